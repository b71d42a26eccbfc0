"""A shop that tells of sales, and a stock whose handler fails on the numbers in `BAD`."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from synchromesh import (
    Context,
    Contract,
    Migration,
    PublicEvent,
    Service,
    Transaction,
    command,
    event,
    query,
)

BAD: set[int] = set()

TOML = """
[system]
name = "parcels"

[services.shop]
app = "parcels_app:shop"

[services.stock]
app = "parcels_app:stock"
"""


class Sold(Struct, frozen=True):
    sku: str
    n: int


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /sales")
    async def sell(self, sku: str, n: int) -> None: ...

    sold: PublicEvent[Sold] = event(Sold, key="sku")


class Stock(Contract, Protocol, service="stock", version="1.0"):
    @query("GET /taken")
    async def taken(self) -> list[int]: ...


shop = Service("shop", implements=Shop)
stock = Service(
    "stock",
    implements=Stock,
    migrations=[Migration(1, ("create table taken(id integer primary key, n integer)",), 1)],
)


@shop.writes(Shop.sell)
async def sell(tx: Transaction, sku: str, n: int) -> None:
    tx.publish(Shop.sold, Sold(sku, n))


@stock.on(Shop.sold)
async def take(tx: Transaction, sold: Sold) -> None:
    if sold.n in BAD:
        raise ValueError(f"number {sold.n} is bad")
    await tx.execute("insert into taken(n) values (?)", sold.n)


@stock.handles(Stock.taken)
async def taken(ctx: Context) -> list[int]:
    return [int(str(n)) for (n,) in await ctx.read("select n from taken order by id")]
