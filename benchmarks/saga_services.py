"""The services of the saga benchmark: orders runs the sagas, three others take their commands."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from synchromesh import (
    Context,
    Contract,
    Migration,
    Saga,
    Service,
    Transaction,
    command,
)

STOCK = 10**9
WITHIN_S = 60.0


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


class Production(Contract, Protocol, service="production", version="1.0"):
    """The third participant."""

    @command("POST /takes")
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


class Load(Struct, frozen=True):
    """How many sagas to run, and how many at once; their ids begin with `prefix`."""

    prefix: str
    sagas: int
    in_flight: int


class Took(Struct, frozen=True):
    """What a load took: seconds, CPU seconds of the process, and the median saga's milliseconds."""

    wall_s: float
    cpu_s: float
    p50_ms: float


class Orders(Contract, Protocol, service="orders", version="1.0"):
    """Runs loads."""

    @command("POST /loads")
    async def run(self, load: Load) -> Took: ...


orders = Service("orders", implements=Orders)


@orders.saga(str, version=1, deadline="10m")
async def place(s: Saga, order: str) -> str:
    """Three commands one after the other, each with its undo."""
    hold = await s.call(Inventory.take(order), undo=Inventory.undo)
    paid = await s.call(Billing.take(order), undo=Billing.undo)
    slot = await s.call(Production.take(order), undo=Production.undo)
    return f"{hold.id} {paid.id} {slot.id}"


def placed(order: str) -> str:
    """Return the answer of an order's saga."""
    return f"{order} {order} {order}"


@orders.handles(Orders.run)
async def run_load(ctx: Context, load: Load) -> Took:
    """Start sagas as any handler does, and wait for each result."""

    async def once(order: str) -> str | None:
        run = await place.start(ctx, order, id=order)
        return await run.result(within_s=WITHIN_S)

    return await drive(once, load)


async def drive(once: Callable[[str], Awaitable[str | None]], load: Load) -> Took:
    """Run a load: so many sagas at once until all are done, each checked for its answer."""
    numbers = iter(range(load.sagas))
    spans_s: list[float] = []

    async def worker() -> None:
        for number in numbers:
            order = f"{load.prefix}-{number}"
            began_s = time.perf_counter()
            answer = await once(order)
            spans_s.append(time.perf_counter() - began_s)
            if answer != placed(order):
                raise ValueError(f"saga {order} answered {answer!r}")

    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(load.in_flight)))
    return Took(
        time.perf_counter() - began_s,
        time.process_time() - began_cpu_s,
        statistics.median(spans_s) * 1e3,
    )
