"""servo-works as processes: every one of them is replaced in turn, while customers come."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from demo.door import SCOPES
from demo.running import RunningSystem, copy_shipped, until

from split_world import port_of
from synchromesh.http import HttpPool

pytestmark = pytest.mark.anyio

ANSWER_S = 90.0
CUSTOMERS = 3


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
                await self.ask("GET", "/quotes/SX75?qty=1")
            if is_over.is_set():
                return


async def test_rolling_restarts_lose_no_request(system: RunningSystem, pool: HttpPool) -> None:
    """G7: all services and the gateway are replaced, each while calls need it; all answers come."""
    before = await system.processes()
    keys = await system.make_keys(["shop"], *SCOPES)
    shop = Shop(port_of(system.gateway), keys["shop"], pool)

    async def is_known() -> bool:
        return await shop.ask("GET", "/stock/SX75") == 200

    assert await until(is_known, ANSWER_S)
    is_over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        customers = [group.create_task(shop.buy(n, is_over)) for n in range(CUSTOMERS)]
        for name in before:
            come = shop.answered + 2 * CUSTOMERS
            assert await until(lambda come=come: shop.answered >= come, ANSWER_S)  # type: ignore[misc]
            await system.ask("POST", f"/services/{quote(name, safe='')}/restart", {})
        is_over.set()
        await asyncio.gather(*customers)
    assert shop.failed == []
    after = await system.processes()
    assert not set(before.values()) & set(after.values())
    status = await system.status()
    assert {child["restarts"] for child in status["children"].values()} == {0}
    assert status["findings"] == []
