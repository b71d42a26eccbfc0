"""Releases of a publisher and a subscriber, replaced as processes: no message is lost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from demo.running import until

from split_world import ControlSocket, running
from synchromesh.http import HttpPool
from synchromesh.system import RunDir

pytestmark = pytest.mark.anyio

TOML = """
[system]
name = "rolling"

[services.shop]
app = "rolling_shop:shop"

[services.stock]
app = "rolling_stock:stock"
"""
CONTRACT = """
from typing import Protocol
from msgspec import Struct
from synchromesh import Contract, PublicEvent, command, event, query

class Sold(Struct):
    sku: str
    n: int

class Returned(Struct):
    sku: str
    n: int

class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /sales")
    async def sell(self, sku: str, n: int) -> None: ...
    sold: PublicEvent[Sold] = event(Sold, key="sku")
    returned: PublicEvent[Returned] = event(Returned, key="sku")

class Stock(Contract, Protocol, service="stock", version="1.0"):
    @query("GET /taken")
    async def taken(self) -> list[int]: ...
"""
SHOP = """
from rolling_contracts import Returned, Shop, Sold
from synchromesh import Service, Transaction

shop = Service("shop", implements=Shop)

@shop.writes(Shop.sell)
async def sell(tx: Transaction, sku: str, n: int) -> None:
    if n % 2:
        tx.publish(Shop.returned, Returned(sku, n))
    else:
        tx.publish(Shop.sold, Sold(sku, n))
"""
STOCK = """
from rolling_contracts import Shop, Stock
from synchromesh import Context, Migration, Service, Transaction

TABLES = ("create table taken(id integer primary key, n integer)",)
stock = Service("stock", implements=Stock, migrations=[Migration(1, TABLES, 1)])

@stock.on(Shop.sold)
async def sold(tx: Transaction, event: object) -> None:
    await tx.execute("insert into taken(n) values (?)", event.n)

@stock.handles(Stock.taken)
async def taken(ctx: Context) -> list[int]:
    return [n for (n,) in await ctx.read("select n from taken order by id")]
"""
TAKES_BACK = """
@stock.on(Shop.returned)
async def returned(tx: Transaction, event: object) -> None:
    await tx.execute("insert into taken(n) values (?)", event.n)
"""
COUNTS = """
@stock.on(Shop.counted)
async def counted(tx: Transaction, event: object) -> None:
    await tx.execute("insert into taken(n) values (?)", event.n)
"""
AND_COUNTED = """    counted: PublicEvent[Sold] = event(Sold, key="sku")

class Stock("""
COUNTS_SOME = """
    if n % 3 == 0:
        tx.publish(Shop.counted, Sold(sku, n))
    elif n % 2:
"""


async def test_releases_in_either_order_lose_no_message(tmp_path: Path, pool: HttpPool) -> None:
    """A subscription begins with the log; an event is held until a release handles it."""
    (tmp_path / "rolling_contracts.py").write_text(CONTRACT)
    (tmp_path / "rolling_shop.py").write_text(SHOP)
    (tmp_path / "rolling_stock.py").write_text(STOCK)
    async with running(tmp_path, TOML) as system:
        control = ControlSocket(system, pool)

        async def restart(name: str) -> None:
            answer = await control.ask("POST", f"/services/{name}/restart", {})
            assert not answer["is_refused"], answer

        async def aside() -> list[Any]:
            found = (await control.ask("POST", "/actions/messages.list", {}))["answers"]
            return [(each["event"], each["state"]) for each in found["stock"]]

        async def is_taken(numbers: list[int]) -> None:
            async def all_of_them() -> bool:
                return bool(await control.call("stock.taken") == numbers)

            assert await until(all_of_them, 90.0), (await control.call("stock.taken"), numbers)

        async def is_wanted(events: list[tuple[str, int]]) -> None:
            """Wait until that is what the publisher knows of its subscriber."""

            async def all_of_them() -> bool:
                with closing(sqlite3.connect(RunDir(tmp_path).database("shop"))) as database:
                    rows = database.execute("select name, is_wanted from sm_subscription")
                    return sorted(rows) == events

            assert await until(all_of_them, 90.0), events

        for n in (1, 2):
            await control.call("shop.sell", sku="a", n=str(n))
        await is_taken([2])

        # The subscriber alone: its publisher, which was there before, hears of it.
        (tmp_path / "rolling_stock.py").write_text(STOCK + TAKES_BACK)
        await restart("stock")
        await is_taken([2, 1])
        for n in (5, 4):
            await control.call("shop.sell", sku="a", n=str(n))
        await is_taken([2, 1, 5, 4])

        # It is taken back: what it does not take is passed over, until it comes again.
        (tmp_path / "rolling_stock.py").write_text(STOCK)
        await restart("stock")
        await is_wanted([("shop.returned", 0), ("shop.sold", 1)])
        for n in (7, 6):
            await control.call("shop.sell", sku="a", n=str(n))
        await is_taken([2, 1, 5, 4, 6])
        assert await aside() == []
        (tmp_path / "rolling_stock.py").write_text(STOCK + TAKES_BACK)
        await restart("stock")
        await is_taken([2, 1, 5, 4, 6, 7])

        # The publisher first: its subscriber does not know the event yet.
        (tmp_path / "rolling_contracts.py").write_text(
            changed(CONTRACT, "\nclass Stock(", AND_COUNTED)
        )
        (tmp_path / "rolling_shop.py").write_text(changed(SHOP, "\n    if n % 2:\n", COUNTS_SOME))
        (tmp_path / "rolling_stock.py").write_text(STOCK + TAKES_BACK + COUNTS)
        await restart("shop")
        for n in (8, 9, 10):
            await control.call("shop.sell", sku="a", n=str(n))
        await control.call("shop.sell", sku="b", n="14")
        await is_taken([2, 1, 5, 4, 6, 7, 8, 14])
        assert await aside() == [("shop.counted", "held"), ("shop.sold", "waiting")]
        assert (await control.ask("GET", "/status"))["findings"] == []
        await restart("stock")
        await is_taken([2, 1, 5, 4, 6, 7, 8, 14, 9, 10])
        assert await aside() == []


def changed(text: str, before: str, after: str) -> str:
    """Return a text with a change."""
    assert before in text
    return text.replace(before, after)
