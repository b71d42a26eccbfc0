"""Calls as users write them: mypy --strict accepts each line and knows each type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, assert_type

from synchromesh.calls import (
    Call,
    Caller,
    Command,
    Contract,
    PublicEvent,
    Query,
    command,
    event,
    events_of,
    operations_of,
    query,
)
from synchromesh.context import CallContext
from synchromesh.errors import Rejection


@dataclass(frozen=True)
class Reserve:
    sku: str
    qty: int


@dataclass(frozen=True)
class Hold:
    id: str


@dataclass(frozen=True)
class StockReserved:
    hold_id: str


class OutOfStock(Rejection, code="out_of_stock", status=409):
    """Tells that fewer are in stock than were asked for."""


class Inventory(Contract, Protocol, service="inventory", version="1.2"):
    @command("POST /reservations", raises=(OutOfStock,))
    async def reserve(self, request: Reserve) -> Hold: ...
    @command("POST /releases")
    async def release(self, hold: Hold, /) -> None: ...
    @query("GET /stock/{sku}")
    async def stock(self, sku: str, least: int = 0) -> int: ...

    stock_reserved: PublicEvent[StockReserved] = event(StockReserved, key="hold_id")


async def calls(caller: Caller, context: CallContext) -> None:
    """Answers have the contract's types, whether arguments are given by name or by place."""
    assert_type(Inventory.reserve(Reserve("a", 1)), Call[Hold])
    assert_type(Inventory.reserve(request=Reserve("a", 1)), Call[Hold])
    assert_type(Inventory.stock("a", least=2), Call[int])
    hold = await caller.call(Inventory.reserve(Reserve("a", 1)), context=context, timeout_s=0.3)
    assert_type(hold, Hold)
    await caller.call(Inventory.release(hold), context=context)
    left = await caller.call(Inventory.stock(sku="a"), context=context)
    assert_type(left, int)
    assert_type(Inventory.stock_reserved, PublicEvent[StockReserved])


def kinds(undo: Command[[Hold], None], read: Query[..., int], any_call: Call[object]) -> None:
    """Operations can be passed on; a `Call` of a narrower answer is one of a wider."""


kinds(Inventory.release, Inventory.stock, Inventory.reserve(Reserve("a", 1)))
assert_type(operations_of(Inventory)["reserve"].raises, tuple[type[Rejection], ...])
names: dict[str, PublicEvent[Any]] = events_of(Inventory)
