"""A disk that fails under real processes: they may write no byte more, for a second or two.

`RLIMIT_FSIZE` of 0 fails each write of a process by EFBIG, which SQLite takes for an I/O error.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from pathlib import Path

import pytest

from notes_app import TESTS, TOML
from processes import children_of
from split_world import WAIT_S, ControlSocket, running
from synchromesh.http import HttpPool

pytestmark = pytest.mark.anyio

FAILS_S = 1.5


def let_write(pid: int, *, may: bool) -> None:
    """Let a process write to files, or not."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most if may else 0, most))


async def test_a_disk_that_fails_for_a_while_stops_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: HttpPool
) -> None:
    """The instance leaves the list, says why, and is back by itself; what was told is there."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    told: Counter[str] = Counter()
    written: list[str] = []
    async with running(tmp_path, TOML) as system:
        asking, loop = ControlSocket(system, pool), asyncio.get_running_loop()
        (pid,) = children_of(os.getpid())
        is_over = asyncio.Event()

        async def write(customer: int) -> None:
            number = 0
            while not is_over.is_set():
                number += 1
                name = f"{customer}-{number}"
                note = f'{{"id":"{name}","text":"x"}}'
                answer = await asking.call("notes.write", note=note)
                if isinstance(answer, int):
                    written.append(name)
                else:
                    told[answer] += 1
                    await asyncio.sleep(0.05)

        customers = [asyncio.ensure_future(write(n)) for n in range(3)]
        while len(written) < 10:
            await asyncio.sleep(0.01)
        let_write(pid, may=False)
        fails_until_s = loop.time() + FAILS_S
        findings: list[str] = []
        listed = ["notes"]
        async with asyncio.timeout(WAIT_S):
            while listed or not any("notes is not ready: " in each for each in findings):
                status = await asking.ask("GET", "/status")
                findings, listed = status["findings"], status["services"]["notes"]["instances"]
                await asyncio.sleep(0.02)
        assert "disk I/O error" in " ".join(findings)
        await asyncio.sleep(max(0.0, fails_until_s - loop.time()))
        let_write(pid, may=True)
        before = len(written)
        async with asyncio.timeout(WAIT_S):
            while findings or len(written) < before + 10:
                findings = (await asking.ask("GET", "/status"))["findings"]
                await asyncio.sleep(0.02)
        is_over.set()
        await asyncio.gather(*customers)
        assert children_of(os.getpid()) == [pid]
        status = await asking.ask("GET", "/status")
        children = status["services"]["notes"]["health"]["children"]
        assert {child["state"] for child in children.values()} == {"running"}
        assert await asking.call("notes.count") >= len(written)
        for name in written:
            note = f'{{"id":"{name}","text":"x"}}'
            assert await asking.call("notes.write", note=note) == "taken"
    assert set(told) <= {"store_unavailable", "timed_out", "no_instance", "circuit_open"}, told
