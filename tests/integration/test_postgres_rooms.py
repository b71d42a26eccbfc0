"""Whole services on PostgreSQL: their tables, their statements, and how they work together."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import asyncpg
import msgspec
import pytest

import synchromesh
from postgres_server import empty_database
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
    query,
)
from synchromesh.runtime import RealRuntime
from synchromesh.service.instance import schemas_of
from synchromesh.store import Migration
from synchromesh.store.postgres import PostgresStore, PostgresStores
from synchromesh.store.postgres_dialect import to_postgres
from synchromesh.testing.serving import InProcess

pytestmark = pytest.mark.anyio

WAIT_S = 180.0
# SQLite's files, what is no database of a service, and what is no library.
OTHERS = re.compile(
    r"\.(cli|examples|system|telemetry|testing)\b|store\.(copied_file|migrations|sqlite|taken_along|vault|writer)"
)
OPEN = re.compile(r"[{]| $|\binstr\(")
STATEMENT = re.compile(r"(select|insert|update|delete|with)\s.*\b(sm_|sqlite_|pragma_)", re.DOTALL)


class SoldOut(Rejection, code="sold_out"):
    """Tells that there is no more."""


class Sold(msgspec.Struct, frozen=True):
    sku: str
    n: int


class Stock(Contract, Protocol, service="stock", version="1.0"):
    @command("POST /holds", raises=(SoldOut,))
    async def hold(self, sku: str, n: int) -> int: ...
    @command("POST /releases")
    async def release(self, left: int) -> None: ...
    @query("GET /seen")
    async def seen(self) -> int: ...


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /sales")
    async def sell(self, sku: str, n: int) -> int: ...
    @command("POST /orders", raises=(SoldOut,))
    async def order(self, order: Sold) -> int: ...
    @query("GET /demand")
    async def demand(self) -> int: ...

    sold: PublicEvent[Sold] = event(Sold)


shop = Service(
    "shop", implements=Shop,
    migrations=[Migration(1, ("create table sale(id text primary key, n bigint)",), 1)],
)  # fmt: skip
stock = Service(
    "stock", implements=Stock,
    migrations=[
        Migration(1, ("create table shelf(n bigint)", "insert into shelf values (10)"), 1),
        Migration(2, ("create table seen(n bigint)",), 1),
    ],
)  # fmt: skip


@stock.writes(Stock.hold)
async def hold(tx: Transaction, sku: str, n: int) -> int:
    ((left,),) = await tx.execute("update shelf set n = n - ? returning n", n)
    if int(left or 0) < 0:
        raise SoldOut
    return int(left or 0)


@stock.writes(Stock.release)
async def release(tx: Transaction, left: int) -> None:
    await tx.execute("update shelf set n = 10")


@stock.on(Shop.sold)
async def see(tx: Transaction, sold: Sold) -> None:
    await tx.execute("insert into seen values (?)", sold.n)


@stock.handles(Stock.seen)
async def seen(ctx: Context) -> int:
    return int((await ctx.read("select count(*) from seen"))[0][0] or 0)


@shop.writes(Shop.sell)
async def sell(tx: Transaction, sku: str, n: int) -> int:
    await tx.execute("insert into sale values (?, ?)", tx.new_id(), n)
    version = await tx.append(f"sales/{sku}", [Sold(sku, n)])
    tx.publish(Shop.sold, Sold(sku, n))
    return version


@shop.projection("demand", events=(Sold,), tables=["create table demand(sku text, n bigint)"])
async def demand_of(tx: Transaction, sold: Sold) -> None:
    await tx.execute("insert into demand values (?, ?)", sold.sku, sold.n)


@shop.handles(Shop.demand)
async def demand(ctx: Context) -> int:
    return int((await ctx.read("select coalesce(sum(n), 0) from demand"))[0][0] or 0)


async def note(tx: Transaction, order: Sold) -> str:
    await tx.execute("insert into sale values (?, ?)", f"order {order.sku}", order.n)
    return order.sku


async def cross_out(tx: Transaction, sku: str) -> None:
    await tx.execute("update sale set n = 0 where id = ?", f"order {sku}")


@shop.saga(Sold, version=1, deadline="10m")
async def place(s: Saga, order: Sold) -> int:
    await s.write(note, order, undo=cross_out)
    return await s.call(Stock.hold(order.sku, order.n), undo=Stock.release)


@shop.handles(Shop.order)
async def order(ctx: Context, order: Sold) -> int:
    run = await place.start(ctx, order, id=order.sku)
    placed = await run.result(within_s=60.0)
    assert placed is not None
    return placed


@pytest.fixture
async def served(anyio_backend: str) -> AsyncIterator[InProcess]:
    urls = {name: await empty_database(name) for name in ("shop", "stock")}
    served = InProcess(RealRuntime(), [shop, stock])
    served.deps = replace(served.deps, stores=PostgresStores(served.runtime, urls.__getitem__))
    await served.start("stock", "shop")
    yield served
    await served.close()
    assert served.failures == []


async def until(ask: Callable[[], Awaitable[int]], expected: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while await ask() != expected:
            await asyncio.sleep(0.01)


async def test_services_work_together(served: InProcess) -> None:
    """Commands, their keys, public events to another service, a projection: each effect once."""
    sold = [served.call(Shop.sell("a", n), key=f"k-{n}") for n in range(1, 9)]
    assert sorted(await asyncio.gather(*sold)) == list(range(1, 9))
    assert await served.call(Shop.sell("a", 8), key="k-8") in range(1, 9)
    await until(lambda: served.call(Stock.seen()), 8)
    await until(lambda: served.call(Shop.demand()), 36)
    assert await served.up["shop"].store.read("select count(*), sum(n) from sale") == [(8, 36)]
    assert await served.parked() == []


async def test_a_saga_is_completed_or_undone(served: InProcess) -> None:
    """Across two databases; its records and its steps commit together."""
    assert await served.call(Shop.order(Sold("x", 4))) == 6
    with pytest.raises(SoldOut):
        await served.call(Shop.order(Sold("y", 7)))
    store = served.up["shop"].store
    assert await store.read("select id, n from sale order by id") == [
        ("order x", 4),
        ("order y", 0),
    ]
    assert await served.up["stock"].store.read("select n from shelf") == [(6,)]
    await served.stop("shop")
    await served.start("shop")
    assert await served.call(Shop.order(Sold("x", 4))) == 6, "the recorded result of the same run"


async def test_every_statement_of_ours_is_one_that_postgresql_takes(anyio_backend: str) -> None:
    """SQL is written once: all tables are made, and each constant can be prepared."""
    url = await empty_database("rooms")
    store = await PostgresStore.open(
        url, service="shop", schemas=schemas_of(shop), runtime=RealRuntime()
    )
    connection = await asyncpg.connect(url)
    refused: dict[str, str] = {}
    count = 0
    for found in pkgutil.walk_packages(synchromesh.__path__, "synchromesh."):
        if OTHERS.search(found.name):
            continue
        for text in vars(importlib.import_module(found.name)).values():
            # What is put together later has braces, or ends where something is to come; what looks
            # for sealed values is for SQLite, which alone keeps any.
            if isinstance(text, str) and STATEMENT.match(text) and not OPEN.search(text):
                count += 1
                try:
                    await connection.prepare(to_postgres(text))
                except asyncpg.PostgresError as error:
                    refused[found.name] = f"{error} ({text})"
    await connection.close()
    await store.close()
    assert count > 40
    assert not refused
