"""What others may know about production: the build bench and its weeks."""

from typing import Annotated, Protocol

from msgspec import Meta, Struct

from synchromesh import Contract, Rejection, command, query


class OpenSlots(Struct, frozen=True):
    """Says how many orders of one drive the bench can build in a week; the latest word counts."""

    sku: str
    week: Annotated[int, Meta(ge=1)]
    capacity: Annotated[int, Meta(ge=0, le=100_000)]


class Quote(Struct, frozen=True):
    """The first week with room on the bench: an estimate, which holds nothing."""

    sku: str
    week: int


class Book(Struct, frozen=True):
    order_id: str
    quote: Quote


class Slot(Struct, frozen=True):
    """A place on the bench that belongs to an order."""

    id: str
    order_id: str
    sku: str
    week: int


class FullyBooked(Rejection, code="fully_booked", status=409):
    """Raised when no open week has room for this drive."""


class Production(Contract, Protocol, service="production", version="1.0"):
    @command("PUT /slots")
    async def open_slots(self, slots: OpenSlots) -> None: ...

    @query("GET /quotes/{sku}", raises=(FullyBooked,))
    async def quote(self, sku: str) -> Quote: ...

    @command("POST /bookings")
    async def book(self, request: Book) -> Slot: ...
