"""What others may know about quoting: what pieces cost, and when they are there."""

from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from contracts.inventory import Pieces
from contracts.money import Money
from synchromesh import Contract, Rejection, query

LeadTime: TypeAlias = Literal["from_shelf", "when_built", "unknown"]


class PriceQuote(Struct, frozen=True):
    """What pieces of a part cost now, and when they are there; it holds nothing.

    They ship from the shelf where enough of them are free; `week` is when they are built, where
    they have to be. It is unknown where nobody says so now, or no open week has room.
    """

    sku: str
    qty: int
    price: Money
    total: Money
    lead_time: LeadTime
    week: int | None


class NotSold(Rejection, code="not_sold", status=404):
    """Raised when a part is not on the price list."""


class Quoting(Contract, Protocol, service="quoting", version="1.0"):
    @query("GET /quotes/{sku}", raises=(NotSold,))
    async def quote(self, sku: str, qty: Pieces) -> PriceQuote: ...
