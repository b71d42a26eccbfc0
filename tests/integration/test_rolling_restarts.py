"""servo-works as processes: every one of them is replaced in turn, while customers come."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from demo.running import RunningSystem, copy_shipped, until

from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.anyio

ANSWER_S = 30.0
SCOPES = ("orders:write", "orders:read", "fleet:read", "stock:read")
CUSTOMERS = 3


@pytest.fixture
async def pool() -> AsyncIterator[HttpPool]:
    async with HttpPool(network=RealRuntime().network) as pool:
        yield pool


@pytest.fixture
async def system(tmp_path: Path, pool: HttpPool) -> AsyncIterator[RunningSystem]:
    """A copy of servo-works that runs, a process for each part."""
    copy_shipped(tmp_path)
    system = RunningSystem(tmp_path, pool, "--split")
    await system.start()
    yield system
    assert await system.stop() == 0


class Shop:
    """A client of the gateway that remembers every request which nobody saw to.

    That the book is full, 409, is an answer; and until its key is known it is told 401.
    """

    def __init__(self, port: int, key: str, pool: HttpPool) -> None:
        self._port = port
        self._pool = pool
        self._headers = [
            ("authorization", f"Bearer {key}"),
            ("content-type", "application/json"),
        ]
        self.answered = 0
        self.failed: list[tuple[str, int, bytes]] = []

    async def ask(self, method: str, path: str, body: object = None, key: str = "") -> int:
        headers = [*self._headers, ("idempotency-key", key)] if key else self._headers
        answer = await self._pool.request(
            "127.0.0.1",
            self._port,
            method,
            path,
            headers,
            b"" if body is None else json.dumps(body).encode(),
            timeout_s=ANSWER_S,
            is_idempotent=True,
        )
        self.answered += 1
        if answer.status not in (200, 401, 409):
            self.failed.append((path, answer.status, answer.body))
        return answer.status

    async def buy(self, customer: int, is_over: asyncio.Event) -> None:
        """Order, look at the order, the stock, a machine and the prices, again and again."""
        for number in itertools.count():
            order_id = f"R-{customer}-{number}"
            order = {"order_id": order_id, "sku": "SX75", "qty": 1}
            await self.ask("POST", "/orders", order, key=order_id)
            await self.ask("GET", f"/orders/{order_id}")
            await self.ask("GET", "/stock/SX75")
            await self.ask("GET", "/machines/SX75-20117")
            if number % 8 == 0:  # whoever comes without a key is let in 20 times a second
                await self.ask("GET", "/prices")
            if is_over.is_set():
                return


async def make_key(system: RunningSystem) -> str:
    words = [word for scope in SCOPES for word in ("--scope", scope)]
    verb = await create_subprocess_exec(
        *(sys.executable, "-m", "synchromesh.cli", "--folder", str(system.folder)),
        *("gateway", "key", "add", "shop", *words, "--json"),
        stdout=PIPE,
    )
    out, _ = await verb.communicate()
    assert verb.returncode == 0
    key: str = json.loads(out)["key"]
    return key


async def test_rolling_restarts_lose_no_request(system: RunningSystem, pool: HttpPool) -> None:
    """G7: six services and the gateway are replaced, each while calls need it; all answers come."""
    status: Any = await system.ask("GET", "/status")
    port = int(status["gateway"]["url"].rpartition(":")[2])
    shop = Shop(port, await make_key(system), pool)

    async def is_known() -> bool:
        return await shop.ask("GET", "/stock/SX75") == 200

    assert await until(is_known, ANSWER_S)
    parts = ["gateway", *status["services"]]
    before = {name: (await pid_of(system, name)) for name in parts}
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        customers = [group.create_task(shop.buy(n, is_over)) for n in range(CUSTOMERS)]
        for name in parts:
            come = shop.answered + 2 * CUSTOMERS
            assert await until(lambda come=come: shop.answered >= come, ANSWER_S)  # type: ignore[misc]
            await system.ask("POST", f"/services/{name}/restart", {})
        is_over.set()
        await asyncio.gather(*customers)
    assert shop.failed == []
    after = {name: (await pid_of(system, name)) for name in parts}
    assert not set(before.values()) & set(after.values())
    status = await system.ask("GET", "/status")
    assert {child["restarts"] for child in status["children"].values()} == {0}
    assert status["findings"] == []


async def pid_of(system: RunningSystem, name: str) -> int:
    status: Any = await system.ask("GET", "/status")
    pid: int = (status["gateway"] if name == "gateway" else status["services"][name])["pid"]
    return pid
