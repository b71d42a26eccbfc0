"""What others may know about inventory: the drives on the shelf."""

from typing import Annotated, Protocol, TypeAlias

from msgspec import Meta, Struct

from synchromesh import Contract, PublicEvent, Rejection, command, event, query

Pieces: TypeAlias = Annotated[int, Meta(ge=1, le=100_000)]


class Receive(Struct, frozen=True):
    """A delivery from the supplier; the same delivery note is booked once."""

    delivery: str
    sku: str
    qty: Pieces


class Reserve(Struct, frozen=True):
    order_id: str
    sku: str
    qty: Pieces


class Hold(Struct, frozen=True):
    """Pieces set aside for an order; they leave the shelf only with that order."""

    id: str
    order_id: str
    sku: str
    qty: int


class Stock(Struct, frozen=True):
    """How many pieces are free on the shelf, and how many are held for orders."""

    sku: str
    on_hand: int
    held: int


class StockReserved(Struct, frozen=True):
    hold_id: str
    order_id: str
    sku: str
    qty: int


class OutOfStock(Rejection, code="out_of_stock", status=409):
    """Raised when fewer pieces are free than were asked for."""


class UnknownSku(Rejection, code="unknown_sku", status=404):
    """Raised when inventory has never received such a drive."""


class UnknownHold(Rejection, code="unknown_hold", status=404):
    """Raised when nothing is held under this id (any more)."""


class Inventory(Contract, Protocol, service="inventory", version="1.0"):
    @command("POST /deliveries")
    async def receive(self, delivery: Receive) -> Stock: ...

    @command("POST /reservations", raises=(OutOfStock,))
    async def reserve(self, request: Reserve) -> Hold: ...

    @command("POST /releases", raises=(UnknownHold,))
    async def release(self, hold: Hold) -> None: ...

    @query("GET /stock/{sku}", raises=(UnknownSku,))
    async def stock(self, sku: str) -> Stock: ...

    stock_changed: PublicEvent[Stock] = event(Stock, key="sku")
    stock_reserved: PublicEvent[StockReserved] = event(StockReserved, key="order_id")
