"""A shop that publishes what it sells, and books that hear of it: two databases and a relay."""

from __future__ import annotations

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

TOML = """
[system]
name = "corner-shop"

[services.shop]
app = "db_app:shop"

[services.books]
app = "db_app:books"
"""


class Sold(Struct, frozen=True):
    id: str
    cents: int


class Told(Struct, frozen=True):
    text: str


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /sales")
    async def sell(self, id: str, cents: int) -> int: ...  # noqa: A002
    @command("POST /orders")
    async def order(self, id: str) -> str: ...  # noqa: A002
    @query("GET /sold")
    async def sold_cents(self) -> int: ...

    sold: PublicEvent[Sold] = event(Sold, key="id")
    told: PublicEvent[Told] = event(Told)


class Books(Contract, Protocol, service="books", version="1.0"):
    @query("GET /entries")
    async def entries(self) -> list[str]: ...


shop = Service(
    "shop",
    implements=Shop,
    migrations=[
        Migration(1, ("create table sale(id text primary key, cents integer not null)",), 1),
        Migration(2, ("create table total(one integer primary key, cents integer not null)",), 1),
    ],
)
books = Service(
    "books",
    implements=Books,
    migrations=[Migration(1, ("create table entry(id text, cents integer)",), 1)],
)


@shop.writes(Shop.sell)
async def sell(tx: Transaction, id: str, cents: int) -> int:  # noqa: A002
    await tx.execute("insert into sale(id, cents) values (?, ?)", id, cents)
    tx.publish(Shop.sold, Sold(id, cents))
    (count,) = await tx.execute("select count(*) from sale", as_=int)
    return count


async def put_down(tx: Transaction, id: str) -> str:  # noqa: A002
    await sell(tx, id, 5)
    return id


@shop.saga(str, deadline="1m")
async def ordering(s: Saga, id: str) -> str:  # noqa: A002
    return await s.write(put_down, id)


@shop.handles(Shop.order)
async def order(ctx: Context, id: str) -> str:  # noqa: A002
    run = await ordering.start(ctx, id, id=f"order-{id}")
    return await run.result(within_s=5.0) or ""


@shop.projection("total", events=(Sold,))
async def total(tx: Transaction, sold: Sold) -> None:
    await tx.execute(
        "insert into total values (1, ?) on conflict(one) do update set cents = cents + ?",
        sold.cents,
        sold.cents,
    )


@shop.handles(Shop.sold_cents)
async def sold_cents(ctx: Context) -> int:
    found = await ctx.read("select cents from total", as_=int)
    return found[0] if found else 0


@books.on(Shop.sold)
async def enter(tx: Transaction, sold: Sold) -> None:
    await tx.execute("insert into entry values (?, ?)", sold.id, sold.cents)


@books.handles(Books.entries)
async def entries(ctx: Context) -> list[str]:
    return await ctx.read("select id from entry order by rowid", as_=str)
