"""servo-works behind its gateway, by `synchromesh dev` as a real process, with real keys."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from demo.running import RunningSystem, copy_shipped

from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir

pytestmark = pytest.mark.anyio

SLOW_CLIENTS = 300
STOP_S = 10.0


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


async def test_slow_clients_keep_no_stop_waiting(system: RunningSystem, pool: HttpPool) -> None:
    """SIGTERM ends it within 10 s with 0, with 300 clients in the middle of their requests."""
    port = int(RunDir(system.folder).read().gateway.rpartition(":")[2])
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(SLOW_CLIENTS)]
    for _, writer in slow:
        writer.write(b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        await writer.drain()
    # All are taken in before the signal: an answer after them says so.
    answer = await pool.request("127.0.0.1", port, "GET", "/prices", [], b"", timeout_s=30.0)
    assert answer.status == 200
    async with asyncio.timeout(STOP_S):
        assert await system.stop(signal.SIGTERM) == 0
    for reader, writer in slow:
        await reader.read()
        writer.close()
