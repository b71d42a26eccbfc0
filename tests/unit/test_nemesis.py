"""The nemesis' own parts: what ends is started again, and only a stop ends it for good."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
from scripts import nemesis

pytestmark = pytest.mark.anyio

WITHIN_S = 120.0


async def test_what_ends_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed or told to end; a stop lets it go on first where it stands still."""
    waits = "import signal, sys; sys.stdout.write('up\\n'); sys.stdout.flush(); signal.pause()"
    monkeypatch.setattr(nemesis, "COMMAND", (sys.executable, "-c", waits))
    monkeypatch.setattr(nemesis, "AGAIN_S", 0.01)
    unit = nemesis.Unit(tmp_path, "orders", "web1")
    log = tmp_path / "web1-orders.log"
    running = asyncio.create_task(unit.run())

    async def up(times: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not log.exists() or log.read_text().count("up") < times:
                await asyncio.sleep(0.01)

    await up(1)
    unit.signal(signal.SIGKILL)
    await up(2)
    unit.signal(signal.SIGTERM)
    await up(3)
    unit.signal(signal.SIGSTOP)
    assert await unit.stop() == -signal.SIGTERM
    await running
    assert log.read_text().count("up") == 3
