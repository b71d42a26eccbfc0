"""One service stalls, in processes of its own: those who do not need it are answered as ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from notes_app import TESTS
from split_world import ControlSocket, port_of, running
from stall_app import STALLED, TOML
from synchromesh.errors import CallError
from synchromesh.http import HttpPool
from synchromesh.system import System

pytestmark = pytest.mark.anyio

MANY = 300
AT_ONCE, NEEDING_AT_ONCE = 4, 24
ASK_WITHIN_S = 90.0


async def status_of(system: System, pool: HttpPool, path: str) -> int:
    """Ask the gateway for a path, and return the status; 0 for no answer."""
    port = port_of(system.info.gateway)
    try:
        answer = await pool.request(
            "127.0.0.1", port, "GET", path, timeout_s=ASK_WITHIN_S, is_idempotent=True
        )
    except CallError:
        return 0
    return answer.status


async def answered(system: System, pool: HttpPool, path: str) -> float:
    """Return the share of many requests that is answered, some of them at once."""
    found: list[int] = []

    async def one_after_the_other() -> None:
        while len(found) < MANY:
            found.append(await status_of(system, pool, path))

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other())
    return found.count(200) / len(found)


async def has_opened(asking: ControlSocket) -> dict[str, bool]:
    """Return which edges have opened their breaker so far, by name."""
    status = await asking.ask("GET", "/status")
    callers = {**status["services"], **status["clients"]}
    return {
        edge["name"]: edge["epoch"] > 0
        for caller in callers.values()
        for edge in caller["breakers"].values()
    }


async def test_a_stall_takes_nobody_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """At least 99 % of what was answered before is, while more and more wait for the other one.

    The edge to it opens, and the one to its caller does not: that is not to blame (B5). When it is
    well it is used again, by whoever asks.
    """
    stalled = tmp_path / "stalled"
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv(STALLED, str(stalled))
    async with running(tmp_path, TOML) as system:
        asking = ControlSocket(system, pool)
        assert await status_of(system, pool, "/needing") == 200
        before = await answered(system, pool, "/alone")
        stalled.touch()
        is_over, seen = False, set[int]()

        async def need() -> None:
            while not is_over:
                seen.add(await status_of(system, pool, "/needing"))

        async with asyncio.TaskGroup() as group:
            for _ in range(NEEDING_AT_ONCE):
                group.create_task(need())
            async with asyncio.timeout(ASK_WITHIN_S):
                while not seen or not (await has_opened(asking))["front -> back"]:
                    assert await status_of(system, pool, "/alone") == 200
            during = await answered(system, pool, "/alone")
            is_over = True
        assert during >= 0.99 * before
        assert before > 0.9
        assert 200 not in seen
        assert await has_opened(asking) == {"front -> back": True, "gateway -> front": False}
        stalled.unlink()
        async with asyncio.timeout(ASK_WITHIN_S):
            while await status_of(system, pool, "/needing") != 200:
                pass
