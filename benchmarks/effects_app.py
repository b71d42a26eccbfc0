"""A shop that publishes, and a stock that takes it in a process of its own: how soon is it there?

The shop measures from within: from the return of the unit that published an event until the stock
sees the commit of the unit that took it. Both are on one machine, and read one clock.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from msgspec import Struct

from synchromesh import (
    Context,
    Contract,
    Gateway,
    Migration,
    PublicEvent,
    Route,
    Service,
    Transaction,
    command,
    event,
    query,
)

CONFIG = """
[system]
name = "effects"

[services.shop]
app = "benchmarks.effects_app:shop"

[services.stock]
app = "benchmarks.effects_app:stock"

[gateway]
app = "benchmarks.effects_app:gateway"

[policies."gateway:shop"]
timeout = "60s"
retry = { attempts = 1 }
"""
# How often the stock looks whether it has taken an event.
LOOK_EVERY_S = 0.0002


class Sold(Struct, frozen=True):
    """What was sold."""

    n: int


class Shop(Contract, Protocol, service="shop", version="1.0"):
    """Sells, and says when what it sold was taken."""

    @command("POST /sales")
    async def sell(self, n: int) -> None: ...

    @command("POST /effects")
    async def effects(self, first: int, count: int) -> list[float]: ...

    sold: PublicEvent[Sold] = event(Sold, key="n")


class Stock(Contract, Protocol, service="stock", version="1.0"):
    """Takes what is sold."""

    @query("GET /taken/{n}")
    async def taken(self, n: int) -> float: ...


shop = Service("shop", implements=Shop)
stock = Service(
    "stock",
    implements=Stock,
    migrations=[Migration(1, ("create table taken(n bigint primary key)",), readable_by_min=1)],
)
gateway = Gateway(routes=[Route("POST /effects", Shop.effects, public=True, deadline="60s")])


@shop.writes(Shop.sell)
async def sell(tx: Transaction, n: int) -> None:
    """Publish a sale."""
    tx.publish(Shop.sold, Sold(n))


@shop.handles(Shop.effects)
async def effects(ctx: Context, first: int, count: int) -> list[float]:
    """Sell one after the other, and return after how many milliseconds each was taken."""
    took = []
    for n in range(first, first + count):
        await ctx.call(Shop.sell(n))
        began_s = time.time()
        took.append((await ctx.call(Stock.taken(n)) - began_s) * 1e3)
    return took


@stock.on(Shop.sold)
async def take(tx: Transaction, sold: Sold) -> None:
    """Write it down."""
    await tx.execute("insert into taken(n) values (?)", sold.n)


@stock.handles(Stock.taken)
async def taken(ctx: Context, n: int) -> float:
    """Return once it is committed, with the time."""
    # A commit wakes nobody here.
    while not await ctx.read("select 1 from taken where n = ?", n):  # noqa: ASYNC110
        await asyncio.sleep(LOOK_EVERY_S)
    return time.time()
