"""The services of the saga benchmark: orders runs the sagas, three others take their commands."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from synchromesh import (
    Contract,
    Migration,
    Rejection,
    Saga,
    Service,
    Transaction,
    command,
)

STOCK = 10**9


class Hold(Struct, frozen=True):
    """What a step leads to, and what its undo takes."""

    id: str


class Inventory(Contract, Protocol, service="inventory", version="1.0"):
    """The first participant."""

    @command("POST /takes")
    async def take(self, order: str) -> Hold: ...
    @command("POST /undone")
    async def undo(self, hold: Hold) -> None: ...


class Billing(Contract, Protocol, service="billing", version="1.0"):
    """The second participant."""

    @command("POST /takes")
    async def take(self, order: str) -> Hold: ...
    @command("POST /undone")
    async def undo(self, hold: Hold) -> None: ...


class Booked(Rejection, code="booked", status=409):
    """The third participant has no slot."""


class Production(Contract, Protocol, service="production", version="1.0"):
    """The third participant."""

    @command("POST /takes", raises=(Booked,))
    async def take(self, order: str) -> Hold: ...
    @command("POST /undone")
    async def undo(self, hold: Hold) -> None: ...


PARTICIPANTS = ("inventory", "billing", "production")
TABLES = (
    "create table stock(one integer primary key, n bigint not null)",
    f"insert into stock values (1, {STOCK})",
    "create table hold(id text primary key)",
)
TAKE = "update stock set n = n - 1 where one = 1 and n > 0 returning n"
HOLD = "insert into hold values (?)"
_MIGRATIONS = (Migration(1, TABLES, readable_by_min=1),)

inventory = Service("inventory", implements=Inventory, migrations=_MIGRATIONS)
billing = Service("billing", implements=Billing, migrations=_MIGRATIONS)
production = Service("production", implements=Production, migrations=_MIGRATIONS)


async def _take(tx: Transaction, order: str) -> Hold:
    assert await tx.execute(TAKE)
    await tx.execute(HOLD, order)
    return Hold(order)


async def _undo(tx: Transaction, hold: Hold) -> None:
    await tx.execute("update stock set n = n + 1 where one = 1")
    await tx.execute("delete from hold where id = ?", hold.id)


for _service, _contract in (
    (inventory, Inventory),
    (billing, Billing),
    (production, Production),
):
    _service.writes(_contract.take)(_take)
    _service.writes(_contract.undo)(_undo)


orders = Service("orders")


@orders.saga(str, version=1, deadline="10m")
async def place(s: Saga, order: str) -> str:
    """Three commands one after the other, each with its undo."""
    hold = await s.call(Inventory.take(order), undo=Inventory.undo)
    paid = await s.call(Billing.take(order), undo=Billing.undo)
    slot = await s.call(Production.take(order), undo=Production.undo)
    return f"{hold.id} {paid.id} {slot.id}"


def placed(hold: str) -> str:
    """Return the answer of a saga whose steps all led to this hold."""
    return f"{hold} {hold} {hold}"
