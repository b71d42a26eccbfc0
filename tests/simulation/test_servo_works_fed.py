"""What the configurator is told and what drives report, on a machine that loses its power."""

from __future__ import annotations

import asyncio

import shop
from contracts.fleet import Batch, Fleet, Nameplate, Reading
from contracts.inventory import Inventory, Reserve
from contracts.money import Money
from contracts.orders import Orders, Price

from servo_works_world import Works
from synchromesh.testing import SimRuntime, World

FED = ("orders", "inventory", "configurator", "fleet")
PART = shop.accessories()[0]


def live(crash_at: int | None) -> tuple[dict[str, object], int, int]:
    """Let services feed each other; return what they have then, the steps, and the crashes."""
    world = World(11)
    done: list[bool] = []

    async def machine(runtime: SimRuntime) -> None:
        system = Works(runtime)
        await system.start(*FED)
        await shop.stock_part(system, PART)
        await system.call(Orders.set_price(Price(PART.sku, Money(1, "EUR"))), key="price")
        hold = await system.call(Inventory.reserve(Reserve("A-1", PART.sku, 3)), key="hold")
        await system.call(Inventory.reserve(Reserve("A-2", PART.sku, 2)), key="hold too")
        await system.call(Inventory.release(hold), key="release")
        for first in (1, 6, 11):
            readings = tuple(Reading(n, 40.0 + n, 1.0) for n in range(first, first + 5))
            report = Batch(Nameplate("M-1", "SX90"), first, readings)
            await system.call(Fleet.report(report), key=f"report/{first}")
        done.append(True)
        await asyncio.sleep(1000.0)

    node = world.node("machine", machine)
    node.start()
    if crash_at is not None:
        world.on_step = lambda _: node.crash(0.1) if node.steps == crash_at else None
    world.run(asyncio.sleep(5.0))
    assert done
    rows = world.disk.rows
    left: dict[str, object] = {
        "price": rows("/orders.db", "select sku, price_minor, currency from price"),
        "price heard": rows("/configurator.db", "select sku, price_minor, currency from price"),
        "stock": rows("/inventory.db", "select sku, on_hand from stock_level"),
        "stock heard": rows("/configurator.db", "select sku, free from stock"),
        "taken": rows("/fleet.db", "select id, last_number, taken from machine"),
        "worked out": rows("/fleet.db", "select machine_id, readings, hottest_c from condition"),
    }
    return left, node.steps, world.count["crash"]


def test_a_power_cut_at_any_step_loses_nothing_that_was_told_or_reported() -> None:
    """Whenever it goes, what was heard is as its owners have it, and every reading counts once."""
    expected, steps, _ = live(None)
    assert expected == {
        "price": [(PART.sku, 1, "EUR")],
        "price heard": [(PART.sku, 1, "EUR")],
        "stock": [(PART.sku, PART.stock - 2)],
        "stock heard": [(PART.sku, PART.stock - 2)],
        "taken": [("M-1", 15, 15)],
        "worked out": [("M-1", 15, 55.0)],
    }
    crashes = 0
    # Every second one; a sweep of the whole system takes all of its steps.
    for crash_at in range(1 + steps % 2, steps + 1, 2):
        left, _, crashed = live(crash_at)
        assert left == expected, f"crash at step {crash_at} of {steps}"
        crashes += crashed
    assert crashes > 0.45 * steps > 75
