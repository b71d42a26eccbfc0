"""One row of what degrades how, for real: a process of servo-works stands still, and is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from demo.running import RunningSystem, copy_shipped, until

from split_world import port_of
from synchromesh.http import Headers, HttpPool, HttpResponse

pytestmark = pytest.mark.anyio


@pytest.fixture
async def system(tmp_path: Path, pool: HttpPool) -> AsyncIterator[RunningSystem]:
    """A copy of servo-works that runs, each service a process."""
    copy_shipped(tmp_path)
    system = RunningSystem(tmp_path, pool, "--split")
    await system.start()
    yield system
    await system.stop()


async def test_the_last_answer_stands_in_for_a_process_that_is_gone(
    system: RunningSystem, pool: HttpPool
) -> None:
    """It stands still, then it is killed: 200 and marked; replaced by its supervisor, fresh."""
    port = port_of(system.gateway)
    key = (await system.make_keys(["desk"], "stock:read"))["desk"]

    async def ask(path: str) -> HttpResponse:
        headers = [("authorization", f"Bearer {key}")]
        return await pool.request("127.0.0.1", port, "GET", path, headers, timeout_s=30.0)

    async def is_fresh() -> bool:
        answer = await ask("/stock/SX90")
        return answer.status == 200 and "synchromesh-fallback" not in Headers(answer.headers)

    assert await until(is_fresh, 30.0)
    whole = await ask("/stock/SX90")
    process = int((system.data / "inventory.db.lock").read_text())
    os.kill(process, signal.SIGSTOP)
    try:
        stale = await ask("/stock/SX90")
        assert (stale.status, stale.body) == (200, whole.body)
        assert dict(stale.headers)["synchromesh-fallback"].startswith("stale;age_s=")
        # What nobody was told before has no last answer; and others are not concerned.
        assert (await ask("/stock/SX75")).status in (503, 504)
        assert (await ask("/prices")).status == 200
    finally:
        os.kill(process, signal.SIGKILL)
    assert await until(is_fresh, 30.0)
    assert int((system.data / "inventory.db.lock").read_text()) != process
