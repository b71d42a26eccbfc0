"""One of several processes of two services on PostgreSQL: the shop, with sagas, and its stock.

`python replica_process.py SHOP_URL STOCK_URL` says "ready", and then does what it reads:

    start PREFIX COUNT   starts so many sagas, and says "started"
    wait ID              says how a saga ended
    stop                 ends in order
"""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from dataclasses import replace
from typing import Protocol

import msgspec

from synchromesh import (
    Context,
    Contract,
    PublicEvent,
    Rejection,
    Saga,
    Service,
    Transaction,
    command,
    event,
)
from synchromesh.calls import Call, Policies
from synchromesh.resilience import Policy
from synchromesh.runtime import RealRuntime
from synchromesh.saga import SagaPolicy
from synchromesh.store import Migration
from synchromesh.store.postgres import PostgresOptions, PostgresStores
from synchromesh.testing.serving import InProcess

LEASE_S = 3.0
KEYS = 8
STEP_S = 0.15
# The order that the projection fails at.
POISON = "poison"


class SoldOut(Rejection, code="sold_out"):
    """Tells that there is no more."""


class Sold(msgspec.Struct, frozen=True):
    order: str
    sku: str
    n: int


class Go(msgspec.Struct, frozen=True):
    """What a run that waits is told."""


class Stock(Contract, Protocol, service="stock", version="1.0"):
    @command("POST /holds", raises=(SoldOut,))
    async def hold(self, order: str, is_there: bool) -> str: ...
    @command("POST /releases")
    async def release(self, held: str) -> None: ...


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /orders")
    async def place(self, order: str, n: int, waits: bool) -> None: ...
    @command("POST /ticks")
    async def tick(self, at: str) -> None: ...

    sold: PublicEvent[Sold] = event(Sold, key="sku")


class Order(msgspec.Struct, frozen=True):
    id: str
    n: int
    waits: bool


COUNTED = "{0}(id text primary key, n bigint not null)"
shop = Service(
    "shop", implements=Shop,
    migrations=[Migration(1, (
        f"create table {COUNTED.format('sale')}", f"create table {COUNTED.format('tick')}",
    ), 1)],
)  # fmt: skip
stock = Service(
    "stock", implements=Stock,
    migrations=[Migration(1, (
        f"create table {COUNTED.format('held')}",
        "create table seen(sku text, nth bigint, n bigint, primary key(sku, nth))",
    ), 1)],
)  # fmt: skip


def counted(table: str, by: int) -> str:
    """Return what counts effects, so that one that comes twice is seen."""
    return (
        f"insert into {table}(id, n) values (?, {by}) "
        f"on conflict(id) do update set n = {table}.n + ({by})"
    )


@stock.writes(Stock.hold)
async def hold(tx: Transaction, order: str, is_there: bool) -> str:
    if not is_there:
        raise SoldOut
    await tx.execute(counted("held", 1), order)
    return order


@stock.writes(Stock.release)
async def release(tx: Transaction, held: str) -> None:
    await tx.execute(counted("held", -1), held)


@stock.on(Shop.sold)
async def see(tx: Transaction, sold: Sold) -> None:
    await tx.execute(
        "insert into seen(sku, nth, n) select ?, coalesce(max(nth), 0) + 1, ? from seen "
        "where sku = ?",
        sold.sku, sold.n, sold.sku,
    )  # fmt: skip


async def note(tx: Transaction, order: Order) -> str:
    await tx.execute(counted("sale", 1), order.id)
    sku = f"sku-{order.n % KEYS}"
    # Its number in the stream is that of its event: in that order they have to be seen.
    version = await tx.append(f"sales/{sku}", [Sold(order.id, sku, 0)])
    tx.publish(Shop.sold, Sold(order.id, sku, version))
    return order.id


async def cross_out(tx: Transaction, order: str) -> None:
    await tx.execute(counted("sale", -1), order)


async def think(key: str, order: Order) -> int:
    await asyncio.sleep(STEP_S)
    return order.n


@shop.saga(Order, version=1, deadline="10m", policy=SagaPolicy(step_timeout_s=100.0))
async def selling(s: Saga, order: Order) -> str:
    held = await s.call(Stock.hold(order.id, True), undo=Stock.release)
    noted = await s.write(note, order, undo=cross_out)
    await s.step(think, order)
    if order.waits:
        await s.event(Go, within="5m")
    # One in seven is undone.
    last = await s.call(Stock.hold(f"{order.id}/last", order.n % 7 != 3), undo=Stock.release)
    return f"{held} {noted} {last}"


@shop.handles(Shop.place)
async def place(ctx: Context, order: str, n: int, waits: bool) -> None:
    await selling.start(ctx, Order(order, n, waits), id=order)


@shop.writes(Shop.tick)
async def tick(tx: Transaction, at: str) -> None:
    await tx.execute(counted("tick", 1), at)


@shop.schedule("* * * * *")
def minutely(due: dt.datetime) -> Call[None]:
    return Shop.tick(due.isoformat())


@shop.projection("totals", events=(Sold,), tables=["create table totals(sku text, n bigint)"])
async def totals(tx: Transaction, sold: Sold) -> None:
    if sold.order == POISON:
        raise ValueError("it cannot be counted")
    await tx.execute("insert into totals values (?, 1)", sold.sku)


class Ahead(RealRuntime):
    """The world, whose wall clock a test may set ahead."""

    ahead_us = 0

    def wall_us(self) -> int:
        return super().wall_us() + self.ahead_us


def in_process(urls: dict[str, str], runtime: RealRuntime | None = None) -> InProcess:
    """Return what runs the services on their databases."""
    runtime = runtime or RealRuntime()
    # Nothing here is about time-outs, however slow the machine is.
    patient = Policies(Policy(timeout_s=100.0, breaker=None))
    served = InProcess(runtime, [shop, stock], policies=lambda _: patient)
    options = PostgresOptions(connections_max=2, readers_max=1, unit_limit_s=60.0, lease_s=LEASE_S)
    stores = PostgresStores(runtime, urls.__getitem__, options)
    served.deps = replace(served.deps, stores=stores)
    return served


async def main(shop_url: str, stock_url: str) -> None:
    served = in_process({"shop": shop_url, "stock": stock_url})
    await served.start("stock", "shop")
    engine = served.up["shop"].engine
    say("ready")
    loop = asyncio.get_running_loop()
    while words := (await loop.run_in_executor(None, sys.stdin.readline)).split():
        match words:
            case ["start", prefix, count]:
                await asyncio.gather(
                    *(
                        served.call(Shop.place(f"{prefix}-{n}", n, prefix == "waiting"))
                        for n in range(int(count))
                    )
                )
                say("started")
            case ["wait", id]:
                found = await engine.conclusion(id, 120.0)
                say(found.status.value if found else "unknown")
            case _:
                break
    await served.close()
    say("stopped")


def say(word: str) -> None:
    print(word, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
