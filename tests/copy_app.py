"""A till that keeps something of every kind, and books that hear of it: what is to be copied."""

from __future__ import annotations

import datetime as dt
from typing import Protocol

from msgspec import Struct

from synchromesh import (
    Context,
    Contract,
    Migration,
    PublicEvent,
    Saga,
    Service,
    Transaction,
    command,
    event,
    query,
)
from synchromesh.calls import Call

TOML = """
[system]
name = "{name}"
key = "env:MESH_KEY"

[services.till]
app = "copy_app:till"

[services.ledger]
app = "copy_app:ledger"
"""
ON_SERVER = '\n[engine]\npostgres = "env:DATABASE_URL"\n'


class Sold(Struct, frozen=True):
    id: str
    cents: int


class Paid(Struct, frozen=True):
    cents: int


class Till(Contract, Protocol, service="till", version="1.0"):
    @command("POST /sales")
    async def sell(self, id: str, cents: int) -> int: ...  # noqa: A002
    @command("POST /orders")
    async def order(self, id: str) -> str: ...  # noqa: A002
    @command("POST /payments")
    async def pay(self, id: str, cents: int) -> bool: ...  # noqa: A002
    @command("POST /ended")
    async def ended(self, id: str) -> str: ...  # noqa: A002
    @query("GET /demand")
    async def demand(self) -> int: ...

    sold: PublicEvent[Sold] = event(Sold, key="id")


class Ledger(Contract, Protocol, service="ledger", version="1.0"):
    @query("GET /entries")
    async def entries(self) -> list[str]: ...


till = Service(
    "till",
    implements=Till,
    migrations=[
        Migration(
            1,
            (
                "create table kind(name text primary key)",
                "insert into kind(name) values ('cash'), ('seed')",
                (
                    "create table sale(number {position}, id text unique not null, "
                    "kind text not null references kind(name), cents integer not null, "
                    "share double precision, receipt {blob}, is_new boolean not null, "
                    "at timestamp, about json, rate numeric(5, 2),"
                    " after bigint references sale(number))"
                ),
            ),
            1,
        ),
        Migration(
            2,
            (
                "create table place(row text, shelf bigint, primary key(row, shelf)) {keyed}",
                "delete from kind where name = 'seed'",
                "create index sale_of_kind on sale(kind)",
            ),
            1,
        ),
    ],
)
ledger = Service(
    "ledger",
    implements=Ledger,
    migrations=[Migration(1, ("create table entry(id text, cents integer)",), 1)],
)


@till.writes(Till.sell)
async def sell(tx: Transaction, id: str, cents: int) -> int:  # noqa: A002
    await tx.execute(
        "insert into sale(id, kind, cents, share, receipt, is_new, at, about, after) values "
        "(?, 'cash', ?, 0.1, ?, true, '2026-11-30 08:15:00', '{\"a\": [1]}', "
        "(select max(number) from sale))",
        id,
        cents,
        b"\\x00\n\t" + id.encode(),
    )
    await tx.append(f"sales/{id}", [Sold(id, cents)])
    tx.publish(Till.sold, Sold(id, cents))
    (number,) = await tx.execute("select number from sale where id = ?", id, as_=int)
    return number


async def put_down(tx: Transaction, id: str) -> int:  # noqa: A002
    return await sell(tx, id, 5)


@till.saga(str, deadline="1h")
async def ordering(s: Saga, id: str) -> str:  # noqa: A002
    number = await s.write(put_down, id)
    paid = await s.event(Paid, within="50m")
    return f"{id} is number {number}, {paid.cents if paid else 'not'} paid"


@till.handles(Till.order)
async def order(ctx: Context, id: str) -> str:  # noqa: A002
    return (await ordering.start(ctx, id, id=f"order-{id}")).id


@till.writes(Till.pay)
async def pay(tx: Transaction, id: str, cents: int) -> bool:  # noqa: A002
    return await ordering.tell(tx, f"order-{id}", Paid(cents))


@till.handles(Till.ended)
async def ended(ctx: Context, id: str) -> str:  # noqa: A002
    run = await ordering.start(ctx, id, id=f"order-{id}")
    return await run.result(within_s=60.0) or ""


@till.schedule("17 3 1 1 *")
def yearly(due: dt.datetime) -> Call[int]:
    return Till.sell(due.isoformat(), 0)


@till.projection(
    "demand", events=(Sold,), tables=["create table demand(id text primary key, cents integer)"]
)
async def demand(tx: Transaction, sold: Sold) -> None:
    await tx.execute("insert into demand values (?, ?)", sold.id, sold.cents)


@till.handles(Till.demand)
async def demanded(ctx: Context) -> int:
    (cents,) = await ctx.read("select coalesce(sum(cents), 0) from demand", as_=int)
    return cents


@ledger.on(Till.sold)
async def enter(tx: Transaction, sold: Sold) -> None:
    await tx.execute("insert into entry values (?, ?)", sold.id, sold.cents)


@ledger.handles(Ledger.entries)
async def entries(ctx: Context) -> list[str]:
    return await ctx.read("select id from entry order by id", as_=str)
