"""`survive`: sagas of functions and of lists, under power cuts at each step and under storms."""

from __future__ import annotations

from typing import Protocol

import pytest
from msgspec import Struct

from provider_fakes import Provider, Receipt
from saga_fakes import DUMB, LOST, Declined
from synchromesh import Context, Contract, Migration, Rejection, Saga, Service, Transaction
from synchromesh.calls import command
from synchromesh.saga import Unknown
from synchromesh.testing import Books, InProcess, NotSurvived, Survival, survive

PARCELS = ("create table parcel(order_id text, item text)",)


class TooHeavy(Rejection, code="test_too_heavy", status=409):
    """Tells that no parcel takes it."""


class Order(Struct, frozen=True):
    id: str
    items: list[str]
    customer: str = "ada"


class Depot(Contract, Protocol, service="depot", version="1.0"):
    @command("POST /parcels", raises=(TooHeavy,))
    async def pack(self, order_id: str, item: str) -> str: ...

    @command("POST /unpackings")
    async def unpack(self, parcel: str) -> None: ...


class Sales(Contract, Protocol, service="sales", version="1.0"):
    @command("POST /orders", raises=(Declined, TooHeavy))
    async def place(self, order: Order) -> str: ...


def shop(provider: Provider, *, forgets_unknown: bool = False) -> list[Service]:
    """Return a depot, and sales whose saga pays at a provider and packs each item.

    Args:
        forgets_unknown: whether the undo of a payment takes an unknown one as never made.
    """
    depot = Service("depot", implements=Depot, migrations=[Migration(1, PARCELS, 1)])
    sales = Service("sales", implements=Sales)

    @depot.writes(Depot.pack)
    async def pack(tx: Transaction, order_id: str, item: str) -> str:
        if item == "anvil":
            raise TooHeavy("no parcel takes an anvil")
        await tx.execute("insert into parcel values (?, ?)", order_id, item)
        return f"{order_id} {item}"

    @depot.writes(Depot.unpack)
    async def unpack(tx: Transaction, parcel: str) -> None:
        order_id, _, item = parcel.partition(" ")
        await tx.execute("delete from parcel where order_id = ? and item = ?", order_id, item)

    async def pay(key: str, customer: str, cents: int) -> Receipt:
        return await provider.pay(key, customer, cents)

    async def refund(key: str, done: Receipt | Unknown) -> None:
        if not (forgets_unknown and isinstance(done, Unknown)):
            await provider.refund(key, done)

    @sales.saga(Order, deadline="60s")
    async def placing(s: Saga, order: Order) -> str:
        paid = await s.step(pay, order.customer, len(order.items), undo=refund, attempts_max=2)
        packed = await s.each(
            order.items, lambda item: s.call(Depot.pack(order.id, item), undo=Depot.unpack), cap=2
        )
        return f"{paid.cents} for {', '.join(packed)}"

    @sales.handles(Sales.place)
    async def place(ctx: Context, order: Order) -> str:
        run = await placing.start(ctx, order, id=order.id)
        return await run.result(within_s=20.0) or "accepted"

    return [depot, sales]


async def orders(client: InProcess) -> None:
    """Place one that can be packed, and one that cannot."""
    told = await client.call(Sales.place(Order("A", ["a", "b", "c"])), key="A", timeout_s=30.0)
    assert told in ("3 for A a, A b, A c", "accepted")
    try:
        told = await client.call(
            Sales.place(Order("B", ["d", "anvil", "e"])), key="B", timeout_s=30.0
        )
    except Rejection:
        return
    assert told == "accepted"


def try_shop(provider: Provider, *, forgets_unknown: bool = False, storms: int = 10) -> Survival:
    """Try it, with a provider that knows no power cuts."""
    faults = list(provider.faults)

    def check(books: Books) -> None:
        parcels = books.rows("depot", "select order_id, item from parcel order by 1, 2")
        paid = [(key, receipt.cents) for key, receipt in provider.paid.items()]
        # What was refused for good is no order; the other is whole or, as unknown, undone.
        assert parcels in ([("A", "a"), ("A", "b"), ("A", "c")], []), parcels
        assert paid == ([("A/pay#1", 3)] if parcels else []), f"paid {paid}, packed {parcels}"
        provider.paid.clear()
        provider.barred.clear()
        provider.faults[:] = faults

    return survive(
        orders,
        *shop(provider, forgets_unknown=forgets_unknown),
        check=check,
        cuts_max=40,
        storms=storms,
    )


def test_a_function_and_a_list_survive() -> None:
    """What is paid is what is packed, whatever happens to the system."""
    survival = try_shop(Provider(faults=[DUMB]))
    assert survival.storms == 10
    assert len(survival.cuts) > 25
    assert survival.count["crash"] > len(survival.cuts)


def test_an_undo_that_forgets_the_unknown_is_found() -> None:
    """A payment whose answer was lost may have been made."""
    with pytest.raises(NotSurvived, match=r"paid \[\('A/pay#1', 3\)\], packed \[\]"):
        try_shop(Provider(faults=[DUMB, LOST]), forgets_unknown=True, storms=0)
