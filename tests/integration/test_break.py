"""servo-works broken and healed by the command line, as an operator does it, as a real process."""

from __future__ import annotations

import json
import sys
from asyncio.subprocess import PIPE, STDOUT, create_subprocess_exec
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from contracts.orders import PlaceOrder
from demo.account import Account
from demo.customers import Customers
from demo.door import Door
from demo.running import RunningSystem, copy_shipped, until

from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.anyio

EDGE = "billing:credit_provider"
ORDERS = 6


@pytest.fixture
async def pool() -> AsyncIterator[HttpPool]:
    async with HttpPool(network=RealRuntime().network) as pool:
        yield pool


@pytest.fixture
async def system(tmp_path: Path, pool: HttpPool) -> AsyncIterator[RunningSystem]:
    """A copy of servo-works that runs."""
    copy_shipped(tmp_path)
    system = RunningSystem(tmp_path, pool)
    await system.start()
    yield system
    assert await system.stop() == 0


async def synchromesh(system: RunningSystem, *words: str) -> tuple[int, Any]:
    """Run a verb with --json; return its exit code and what it printed."""
    command = (sys.executable, "-m", "synchromesh.cli", "--folder", str(system.folder))
    verb = await create_subprocess_exec(*command, *words, "--json", stdout=PIPE, stderr=STDOUT)
    out, _ = await verb.communicate()
    assert verb.returncode is not None
    return verb.returncode, json.loads(out)


async def breaker(system: RunningSystem) -> dict[str, Any]:
    """Return the breaker of the edge, as `synchromesh status` has it."""
    code, status = await synchromesh(system, "status")
    assert (code, status["findings"]) == (0, [])
    found: dict[str, Any] = status["services"]["billing"]["breakers"].get("credit_provider", {})
    return found


async def test_an_edge_is_broken_watched_and_healed(system: RunningSystem, pool: HttpPool) -> None:
    """Errors open the breaker, sagas wait with their orders, healing closes it, all are placed."""
    account = Account(orders=ORDERS)
    door = await Door.with_key(system, pool, account)

    async def is_known() -> bool:
        return (await door.ask("GET /stock/{sku}", sku="SX90")).status == 200

    assert await until(is_known, 30.0)
    customers = Customers(door, RealRuntime().rng, account)
    code, fault = await synchromesh(system, "break", EDGE, "--errors", "100%")
    assert (code, fault["what"]) == (0, "100% errors")
    async with customers.buying():
        customers.hand_in(PlaceOrder(f"A-{n}", "SX90", 1, "counter") for n in range(ORDERS))
        await customers.all_answered()
    assert account.told == {f"A-{n}": "accepted" for n in range(ORDERS)}

    async def is_open() -> bool:
        return (await breaker(system)).get("state") in ("open", "half_open")

    assert await until(is_open, 30.0)
    _, status = await synchromesh(system, "status")
    assert status["services"]["orders"]["sagas"] == {"running": ORDERS}
    (in_force,) = status["faults"]["in_force"]
    assert (in_force["target"], in_force["struck"] >= 5) == (EDGE, True)
    code, healed = await synchromesh(system, "heal", EDGE)
    assert (code, [each["target"] for each in healed["healed"]]) == (0, [EDGE])

    async def is_closed() -> bool:
        return bool((await breaker(system))["state"] == "closed")

    assert await until(is_closed, 30.0)
    assert await until(system.is_settled, 30.0)
    await customers.settle()
    assert account.told == {f"A-{n}": "placed" for n in range(ORDERS)}
    said = system.log.read_text()
    for words in (
        f"broken on purpose: 100% errors at {EDGE}",
        "breaker billing -> credit_provider: open, was closed",
        f"healed: 100% errors at {EDGE}",
        "breaker billing -> credit_provider: closed, was half_open",
    ):
        assert words in said


async def test_a_fault_ends_by_itself(system: RunningSystem) -> None:
    """A stall is a timeout of its callers, and `--for` needs nobody to heal it."""
    await synchromesh(system, "break", "inventory", "--stall")
    look = ("call", "inventory.stock", "sku=SX90", "--timeout", "0.2")
    code, answer = await synchromesh(system, *look)
    assert (code, answer["problem"]["code"]) == (1, "timed_out")
    code, fault = await synchromesh(system, "break", "inventory", "--stall", "--for", "300ms")
    assert (code, fault["left_s"]) == (0, 0.3)

    async def is_over() -> bool:
        return bool(not (await system.ask("GET", "/faults"))["in_force"])

    assert await until(is_over, 30.0)
    code, answer = await synchromesh(system, "call", "inventory.stock", "sku=SX90")
    assert (code, answer["problem"]) == (0, None)


async def test_faults_end_with_their_process(system: RunningSystem) -> None:
    """A stalled saga keeps no stop waiting; the next start knows of no fault, and ends the saga."""
    await synchromesh(system, "break", EDGE, "--stall")
    place = ("call", "orders.place", "order_id=C-1", "sku=SX90", "qty=1")
    _, answer = await synchromesh(system, *place)
    assert answer["result"]["type"] == "accepted"
    assert await system.stop() == 0
    assert len(system.in_flight()) == 1
    await system.start()
    assert (await system.ask("GET", "/faults"))["in_force"] == []
    assert await until(system.is_settled, 30.0)
    _, answer = await synchromesh(system, *place)
    assert answer["result"]["type"] == "placed"
