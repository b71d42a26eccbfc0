"""servo-works behind its gateway, by `synchromesh dev` as a real process, with real keys."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from demo.running import RunningSystem, copy_shipped, until

from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.anyio

SLOW_CLIENTS = 300
STOP_S = 10.0
ALL = ("orders:write", "orders:read", "fleet:read", "stock:read")


class Told(NamedTuple):
    """What the gateway answered."""

    status: int
    headers: dict[str, str]
    body: Any


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
    await system.stop()


class Client:
    """A client of the gateway, with a key or without one."""

    def __init__(self, system: RunningSystem, pool: HttpPool, key: str = "") -> None:
        run_json = system.folder / ".synchromesh" / "run.json"
        self.url: str = json.loads(run_json.read_text())["gateway"]
        self.port = int(self.url.rpartition(":")[2])
        self._pool = pool
        self._key = key

    async def ask(self, method: str, path: str, body: object = None) -> Told:
        headers = [("authorization", f"Bearer {self._key}")] if self._key else []
        if body is not None:
            headers.append(("content-type", "application/json"))
        content = b"" if body is None else json.dumps(body).encode()
        answer = await self._pool.request(
            "127.0.0.1", self.port, method, path, headers, content, timeout_s=30.0
        )
        return Told(answer.status, dict(answer.headers), json.loads(answer.body))


async def synchromesh(system: RunningSystem, *words: str) -> Any:
    """Run a verb with --json, and return what it printed."""
    command = (sys.executable, "-m", "synchromesh.cli", "--folder", str(system.folder))
    verb = await create_subprocess_exec(*command, *words, "--json", stdout=PIPE, stderr=DEVNULL)
    out, _ = await verb.communicate()
    assert verb.returncode == 0, words
    return json.loads(out)


async def make_key(system: RunningSystem, *scopes: str) -> tuple[str, str]:
    """Make a key as an operator does; return its text and its id."""
    words = [word for scope in scopes for word in ("--scope", scope)]
    told = await synchromesh(system, "gateway", "key", "add", "shop", *words)
    return told["key"], told["id"]


async def client_of(system: RunningSystem, pool: HttpPool, *scopes: str) -> Client:
    """Return a client whose key the running gateway knows."""
    client = Client(system, pool, (await make_key(system, *scopes))[0])

    async def is_known() -> bool:
        return (await client.ask("GET", "/stock/SX90")).status != 401

    assert await until(is_known, 30.0)
    return client


async def test_orders_come_through_the_gateway(system: RunningSystem, pool: HttpPool) -> None:
    """No key is 401, a key without the scope 403; with both an order is placed, once a key."""
    order = {"order_id": "G-1", "sku": "SX90", "qty": 1}
    nobody = Client(system, pool)
    refused = await nobody.ask("POST", "/orders", order)
    assert (refused.status, refused.body["code"]) == (401, "unauthenticated")
    assert (await nobody.ask("GET", "/prices")).status == 200
    assert (await nobody.ask("GET", "/nowhere")).status == 404
    reader = await client_of(system, pool, "orders:read")
    refused = await reader.ask("POST", "/orders", order)
    assert (refused.status, refused.body["code"]) == (403, "forbidden")
    shop = await client_of(system, pool, "orders:write", "orders:read")
    placed = await shop.ask("POST", "/orders", order)
    assert (placed.status, placed.body["type"]) == (200, "placed")
    assert (await shop.ask("GET", "/orders/G-1")).status == 200
    status = await synchromesh(system, "status")
    assert status["clients"]["gateway"]["breakers"]["orders"]["state"] == "closed"
    assert status["children"]["gateway/keys"]["state"] == "running"


async def test_a_page_is_partial_where_a_service_is_broken(
    system: RunningSystem, pool: HttpPool
) -> None:
    """A broken branch answers with its last answer and its age, and healing makes the page whole.

    A required branch decides: without its machine the page is an error, and no partial one.
    """
    shop = await client_of(system, pool, *ALL)
    placed = await shop.ask("POST", "/orders", {"order_id": "SW-1001", "sku": "SX75", "qty": 1})
    assert placed.status == 200, placed
    whole = await shop.ask("GET", "/machines/SX75-20117")
    assert (whole.status, "synchromesh-partial" in whole.headers) == (200, False)
    await synchromesh(system, "break", "gateway:orders", "--errors", "100%")
    partial = await shop.ask("GET", "/machines/SX75-20117")
    assert (partial.status, partial.headers["synchromesh-partial"]) == (200, "order")
    assert partial.body["branches"]["order"]["status"] == "stale"
    assert partial.body["branches"]["order"]["age_s"] >= 0
    assert partial.body["data"]["order"] == whole.body["data"]["order"]
    await synchromesh(system, "break", "gateway:fleet", "--errors", "100%")
    assert (await shop.ask("GET", "/machines/SX75-20117")).status >= 500
    await synchromesh(system, "heal")

    async def is_whole() -> bool:
        told = await shop.ask("GET", "/machines/SX75-20117")
        return told.status == 200 and "synchromesh-partial" not in told.headers

    assert await until(is_whole, 30.0)


async def test_who_asks_too_often_is_told_when_to_come_again(
    system: RunningSystem, pool: HttpPool
) -> None:
    """Beyond the rate and its burst the answer is 429, with the time to wait."""
    client = Client(system, pool)
    told = await asyncio.gather(*(client.ask("GET", "/prices") for _ in range(60)))
    assert {each.status for each in told} == {200, 429}
    refused = next(each for each in told if each.status == 429)
    assert refused.body["code"] == "rate_limited"
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_removed_key_ends_while_the_gateway_runs(
    system: RunningSystem, pool: HttpPool
) -> None:
    """Keys are made and removed without a restart, and no file has a key in it."""
    key, key_id = await make_key(system, "stock:read")
    client = Client(system, pool, key)

    async def is_let_in() -> bool:
        return (await client.ask("GET", "/stock/SX90")).status == 200

    assert await until(is_let_in, 30.0)
    path = system.folder / ".synchromesh" / "api-keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    secret = key.rpartition("_")[2]
    assert secret not in path.read_text()
    await synchromesh(system, "gateway", "key", "remove", key_id)

    async def is_refused() -> bool:
        return (await client.ask("GET", "/stock/SX90")).status == 401

    assert await until(is_refused, 30.0)
    assert secret not in system.log.read_text()


async def test_slow_clients_keep_no_stop_waiting(system: RunningSystem, pool: HttpPool) -> None:
    """SIGTERM ends it within 10 s with 0, with 300 clients in the middle of their requests."""
    port = Client(system, pool).port
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SLOW_CLIENTS)]
    for _, writer in slow:
        writer.write(b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
    # All are taken in before the signal: an answer after them says so.
    assert (await Client(system, pool).ask("GET", "/prices")).status == 200
    async with asyncio.timeout(STOP_S):
        assert await system.stop(signal.SIGTERM) == 0
    for reader, writer in slow:
        await reader.read()
        writer.close()
