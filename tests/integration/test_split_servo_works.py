"""servo-works by `synchromesh dev --split`: each service a process, killed and replaced."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from audit import audit
from contracts.orders import PlaceOrder
from demo.account import Account
from demo.customers import Customers
from demo.door import Door
from demo.running import RunningSystem, copy_shipped, until

from processes import ends, family_of, is_alive
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.anyio


@pytest.fixture
async def system(tmp_path: Path, pool: HttpPool) -> AsyncIterator[RunningSystem]:
    """A copy of servo-works that is not started yet; it is stopped at the end."""
    copy_shipped(tmp_path)
    system = RunningSystem(tmp_path, pool, "--split")
    yield system
    await system.stop()


def process_of(system: RunningSystem, service: str) -> int:
    """Return the process that owns a service's database."""
    return int((system.data / f"{service}.db.lock").read_text())


async def test_a_kill_and_a_restart_in_mid_order_lose_nothing(
    system: RunningSystem, pool: HttpPool
) -> None:
    """Orders dies with sagas in flight, inventory is replaced: all is placed, and adds up."""
    account = Account(orders=16)
    door = await Door.with_keys(system, pool, account, ["counter"])
    customers = Customers(door, RealRuntime().rng, account)
    await system.start()
    assert system.pid is not None
    below = family_of(system.pid)
    assert len(set(below)) == len(below) >= 5
    await system.set_faults("slow", 0.2)
    async with customers.buying():
        customers.hand_in(PlaceOrder(f"A-{n}", "SX90", 1, "counter") for n in range(16))
        assert await until(lambda: len(system.in_flight()) >= 5, 15.0)
        killed = process_of(system, "orders")
        os.kill(killed, signal.SIGKILL)
        assert ends(killed)
        await customers.all_answered()
    assert await system.recovered() >= 1
    answer = await system.ask("POST", "/services/inventory/restart", {})
    assert answer["pids"]["inventory"] == process_of(system, "inventory")
    await system.set_faults("ok")
    assert await until(system.is_settled, 30.0)
    await customers.settle()
    below = [system.pid, *family_of(system.pid)]
    assert await system.stop() == 0
    assert not any(map(is_alive, below))
    assert set(account.told.values()) == {"placed"}
    report = audit(system.data, system.data / "credit_provider.db", account.told)
    assert report.is_clean, report.lines()
