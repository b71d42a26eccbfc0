"""Twenty kills of the running system with sagas in flight: nothing acknowledged is lost."""

import json
from itertools import cycle, islice
from pathlib import Path

import pytest
from audit import PROVIDER_DB, audit
from contracts.orders import PlaceOrder
from demo.account import Account
from demo.customers import Customers
from demo.door import Door
from demo.running import RunningSystem, copy_shipped, until

from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

KILLS = 20
# A kill may find fewer sagas in flight than the look before it; those do not count.
KILLS_MAX = 30
IN_FLIGHT_MIN = 5
ORDERS_A_KILL = 20
# Late, and yet in time; never in time; not late: the kill meets other steps each time.
FAULTS = (("slow", 0.2), ("stall", 30.0), ("ok", None))
CUSTOMERS = ("acme-automation", "counter", "tanaka-precision", "brassworks", "lumen-optics")


def stock_up(folder: Path) -> list[str]:
    """Fill the shelves and the bench, so that orders are rejected for want of credit alone."""
    path = folder / "data" / "catalogue.json"
    drives = json.loads(path.read_text())
    for drive in drives:
        drive["stock"] *= 100
        drive["slots"] = [100 * capacity for capacity in drive["slots"]]
    path.write_text(json.dumps(drives))
    return [drive["sku"] for drive in drives]


@pytest.mark.anyio
async def test_twenty_kills_lose_nothing_and_leave_nothing_half_done(tmp_path: Path) -> None:
    """After 20 kills with 5 sagas or more in flight, every answer still holds and all adds up."""
    copy_shipped(tmp_path)
    skus = cycle(stock_up(tmp_path))
    buyers = cycle(CUSTOMERS)
    numbers = iter(range(ORDERS_A_KILL * KILLS_MAX))
    account, runtime = Account(orders=0), RealRuntime()
    kills: list[int] = []
    async with HttpPool(network=runtime.network) as pool:
        system = RunningSystem(tmp_path, pool)
        door = await Door.with_keys(system, pool, account, CUSTOMERS)
        customers = Customers(door, runtime.rng, account)
        try:
            await system.start()
            async with customers.buying():
                for mode, delay_s in islice(cycle(FAULTS), KILLS_MAX):
                    await system.set_faults(mode, delay_s)
                    orders = [
                        PlaceOrder(f"K-{number}", next(skus), 1 + number % 3, next(buyers))
                        for number in islice(numbers, ORDERS_A_KILL)
                    ]
                    account.orders += len(orders)
                    customers.hand_in(orders)
                    await until(lambda: len(system.in_flight()) >= IN_FLIGHT_MIN + 2, 15.0)
                    await system.kill()
                    in_flight = len(system.in_flight())
                    await system.start()
                    assert await system.recovered() == in_flight
                    kills.append(in_flight)
                    if sum(met >= IN_FLIGHT_MIN for met in kills) == KILLS:
                        break
                await customers.all_answered()
            assert await until(system.is_settled, 40.0)
            await customers.settle()
            assert await system.stop() == 0
        finally:
            await system.stop()

    assert sum(met >= IN_FLIGHT_MIN for met in kills) == KILLS, kills
    report = audit(system.data, system.data / PROVIDER_DB, account.told)
    assert report.findings == []
    assert len(account.told) == account.orders == report.orders.total()
    assert set(account.told.values()) == {"placed", "rejected"}
    assert report.sagas["undone"] > 0
