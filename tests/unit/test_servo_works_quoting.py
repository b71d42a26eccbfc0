"""Quoting: a price and a lead time from what others answer, and what it says without them."""

from __future__ import annotations

import asyncio

import pytest
import shop
from contracts.inventory import Inventory, Reserve
from contracts.money import Money
from contracts.quoting import NotSold, PriceQuote, Quoting
from services.quoting import quoting

from servo_works_world import Works, works
from synchromesh.errors import BadRequest, CallError
from synchromesh.testing import SimRuntime, run

ASKED = ("quoting", "configurator", "inventory", "production", "orders")
DRIVE = shop.catalogue()[0]


async def opened(system: Works) -> None:
    """Price and stock one drive, and wait until the configurator has heard of it."""
    await shop.stock_drives(system, [DRIVE])
    await asyncio.sleep(5.0)


def test_what_is_free_ships_from_the_shelf() -> None:
    """The price of so many pieces; the bench is not asked."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *ASKED) as system:
            await opened(system)
            await system.stop("production")
            told = await system.call(Quoting.quote(DRIVE.sku, 3))
            price = DRIVE.price
            total = Money(3 * price.minor, price.currency)
            assert told == PriceQuote(DRIVE.sku, 3, price, total, "from_shelf", None)

    run(main)


def test_what_is_not_free_is_built_in_the_first_week_with_room() -> None:
    """More than the shelf has; and where no week has room the time is unknown."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *ASKED) as system:
            await opened(system)
            told = await system.call(Quoting.quote(DRIVE.sku, DRIVE.stock + 1))
            assert (told.lead_time, told.week) == ("when_built", 1)
            await system.call(Inventory.reserve(Reserve("A-1", DRIVE.sku, DRIVE.stock)), key="all")
            await asyncio.sleep(1.0)  # until the shelf has heard of it
            told = await system.call(Quoting.quote(DRIVE.sku, 1))
            assert (told.lead_time, told.week) == ("when_built", 1)

    run(main)


@pytest.mark.parametrize("absent", ["inventory", "production"])
def test_without_whom_knows_the_time_it_is_still_a_price(absent: str) -> None:
    """Without inventory the bench is asked; without production the time is unknown."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *ASKED) as system:
            await opened(system)
            await system.stop(absent)
            told = await system.call(Quoting.quote(DRIVE.sku, DRIVE.stock + 1))
            expected = ("when_built", 1) if absent == "inventory" else ("unknown", None)
            assert (told.lead_time, told.week) == expected
            assert told.price == DRIVE.price

    run(main)


def test_without_a_price_there_is_no_quote() -> None:
    """Not on the list; nobody who knows the list; and a number that is none."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, *ASKED) as system:
            await opened(system)
            with pytest.raises(NotSold) as refused:
                await system.call(Quoting.quote("nothing", 1))
            assert refused.value.details == {"sku": "nothing"}
            with pytest.raises(BadRequest):
                await system.call(Quoting.quote(DRIVE.sku, 0))
            await system.stop("configurator")
            with pytest.raises(CallError):
                await system.call(Quoting.quote(DRIVE.sku, 1))

    run(main)


def test_it_keeps_nothing() -> None:
    """It has queries only; no file of a database is made for it."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "quoting", "production") as system:
            assert not system.up["quoting"].has_database
            assert runtime.disk.file_id("/quoting.db") is None
            assert runtime.disk.file_id("/production.db") is not None

    assert quoting.state == ()
    run(main)
