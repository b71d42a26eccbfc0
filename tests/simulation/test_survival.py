"""`survive`: what holds is told to hold, and each planted fault is found and named."""

from __future__ import annotations

from typing import Any, Protocol

import pytest
from msgspec import Struct

from synchromesh import Context, Contract, Migration, Rejection, Saga, Service, Transaction
from synchromesh.calls import command
from synchromesh.testing import Books, InProcess, NotSurvived, Survival, survive

HELD = ("create table held(order_id text primary key)",)


class Declined(Rejection, code="declined", status=402):
    """Tells that the customer has no credit."""


class Order(Struct, frozen=True):
    id: str
    customer: str = "ada"


class Shelf(Contract, Protocol, service="shelf", version="1.0"):
    @command("POST /holds")
    async def hold(self, order_id: str) -> str: ...

    @command("POST /releases")
    async def release(self, held: str) -> None: ...


class Bank(Contract, Protocol, service="bank", version="1.0"):
    @command("POST /charges", raises=(Declined,))
    async def charge(self, customer: str) -> str: ...


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @command("POST /orders", raises=(Declined,))
    async def place(self, order: Order) -> str: ...


def shop(*, undo: bool = True, is_bank_forgetful: bool = False, breaks: str = "") -> list[Service]:
    """Return three services of which one has a saga.

    Args:
        undo: whether a hold is released where the bank declines.
        is_bank_forgetful: whether what it charged is kept in memory.
        breaks: whose release always fails: it is a bug.
    """
    shelf = Service("shelf", implements=Shelf, migrations=[Migration(1, HELD, 1)])
    table = ("create table charge(customer text)",)
    bank = Service("bank", implements=Bank, migrations=[Migration(1, table, 1)])
    orders = Service("orders", implements=Orders)
    charged: list[str] = []

    @shelf.writes(Shelf.hold)
    async def hold(tx: Transaction, order_id: str) -> str:
        await tx.execute("insert into held values (?)", order_id)
        return order_id

    @shelf.writes(Shelf.release)
    async def release(tx: Transaction, held: str) -> None:
        if breaks == "release":
            raise ZeroDivisionError
        await tx.execute("delete from held where order_id = ?", held)

    @bank.writes(Bank.charge)
    async def charge(tx: Transaction, customer: str) -> str:
        if customer == "nobody":
            raise Declined("no credit")
        if is_bank_forgetful:
            charged.append(customer)
            assert len(charged) == 1, "it is charged twice"
        await tx.execute("insert into charge values (?)", customer)
        return customer

    @orders.saga(Order, deadline="60s")
    async def placing(s: Saga, order: Order) -> str:
        await s.call(Shelf.hold(order.id), undo=Shelf.release if undo else None)
        return await s.call(Bank.charge(order.customer), pivot=True)

    @orders.handles(Orders.place)
    async def place(ctx: Context, order: Order) -> str:
        run = await placing.start(ctx, order, id=order.id)
        return await run.result(within_s=20.0) or "accepted"

    return [shelf, bank, orders]


async def one_of_each(client: InProcess) -> None:
    """Place an order that is paid for, and one that is not."""
    await client.call(Orders.place(Order("o1")), key="o1", timeout_s=30.0)
    try:
        told = await client.call(Orders.place(Order("o2", "nobody")), key="o2", timeout_s=30.0)
    except Declined:
        return
    assert told == "accepted"


def all_or_nothing(books: Books) -> None:
    """A hold for each charge."""
    held = books.rows("shelf", "select order_id from held order by 1")
    charged = books.rows("bank", "select customer from charge")
    assert len(held) == len(charged), f"held {held}, charged {charged}"


def test_a_saga_that_is_right_survives() -> None:
    """Every step cut, twenty storms, and all that is rare happened."""
    survival = survive(one_of_each, *shop(), check=all_or_nothing, cuts_max=60)
    assert survival.storms == 20
    assert 30 < len(survival.cuts) <= 60
    assert survival.count["crash"] > len(survival.cuts)
    assert survival.count["message duplicated"] > 5


def try_shop(made: dict[str, Any], only: str = "") -> Survival:
    """Try a shop with a planted fault."""
    return survive(
        one_of_each, *shop(**made), check=all_or_nothing, cuts_max=60, settle_s=60.0, only=only
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"undo": False}, "held"),
        ({"is_bank_forgetful": True}, "it is charged twice|is stuck|no rest"),
        ({"breaks": "release"}, "orders: sagas that are compensating: 1"),
    ],
)
def test_a_fault_is_found_and_replayed(made: dict[str, Any], said: str) -> None:
    """The message has what is wrong and the universe; that one alone fails again."""
    with pytest.raises(NotSurvived, match=said) as failed:
        try_shop(made)
    where = str(failed.value).partition(":")[0]
    only = where.partition("'")[2].rstrip("'") if where.startswith("only") else ""
    with pytest.raises(NotSurvived, match=said):
        try_shop(made, only or "cut 1")


def test_what_never_happened_is_told() -> None:
    """Storms that touched nothing have shown nothing."""

    async def nothing(_: InProcess) -> None: ...

    with pytest.raises(NotSurvived, match=r"in 1 storms this never happened: .*message lost"):
        survive(nothing, *shop(), check=lambda _: None, cuts_max=1, storms=1)


def test_a_universe_is_named_right() -> None:
    """Any other name is a mistake of the test."""
    for only in ("cut", "storm x", "rain 3"):
        with pytest.raises(ValueError, match="names no universe"):
            survive(one_of_each, *shop(), check=all_or_nothing, only=only)


def test_one_universe_is_run_alone() -> None:
    """What it counts is that of this one."""
    alone = survive(one_of_each, *shop(), check=all_or_nothing, only="cut 7")
    assert (alone.cuts, alone.storms, alone.count["crash"]) == ((7,), 0, 1)
    assert isinstance(alone, Survival)
