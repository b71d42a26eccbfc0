"""The storm's own parts: all that may happen does, one thing at a time to a server, and it ends."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT as GO
from signal import SIGSTOP as STOP
from signal import Signals
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scripts import storm

from synchromesh.testing import SimRuntime, run

DONE = {
    "kill -9 of a replica", "kill -9 of a gateway", "SIGSTOP of a replica", "SIGSTOP of a gateway",
    "SIGTERM of a replica", "SIGTERM of a gateway", "kill -9 of PostgreSQL",
    "SIGSTOP of PostgreSQL", "SIGTERM, then SIGINT of PostgreSQL",
    "loss of the primary, its standby promoted of PostgreSQL",
    "SIGSTOP, then kill -9 of the standby", "kill -9 of NATS", "SIGSTOP of NATS",
    "SIGTERM of NATS", "kill -9 and loss of its disk of NATS", "loss of a stream of KV_registry",
}  # fmt: skip


class Process:
    """Something that is sent signals."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent: list[Signals] = []
        self.pid = None

    def signal(self, number: Signals) -> None:
        self.sent.append(number)

    def send(self, number: Signals, *, is_to_all: bool = False) -> None:
        assert is_to_all == (number in (STOP, GO)), "one that stands still does so with all it made"
        self.sent.append(number)


class Pair:
    """Two servers, of which nobody expects more than one thing at a time."""

    def __init__(self) -> None:
        self.primary, self.standby = Process("a"), Process("b")
        self.is_busy = False

    async def fail_over(self) -> None:
        assert not self.is_busy
        self.is_busy = True
        await asyncio.sleep(20.0)
        self.primary, self.standby = self.standby, self.primary
        self.is_busy = False


class Client:
    """A client of NATS that finds one stream."""

    deleted = 0

    def jetstream(self) -> Any:
        async def streams_info() -> list[Any]:
            return [SimpleNamespace(config=SimpleNamespace(name="KV_registry"))]

        async def delete_stream(name: str) -> None:
            self.deleted += 1

        return SimpleNamespace(streams_info=streams_info, delete_stream=delete_stream)


def test_all_that_may_happen_does_and_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stands still goes on, no commit is cut after it, and all of it is counted."""
    (tmp_path / "url").write_text("nats://somewhere\n")
    client = Client()

    @asynccontextmanager
    async def entered() -> AsyncIterator[Client]:
        yield client

    async def connect(url: str) -> Any:
        return entered()

    monkeypatch.setattr("nats.connect", connect)
    units = [Process("orders@web1"), Process("gateway@web2")]
    works: Any = SimpleNamespace(
        units=units, postgres=Pair(), nats=Process("nats"), nats_folder=tmp_path,
        ways=[SimpleNamespace(chance=0.0, count=Counter({"before its answer": 2}))],
    )  # fmt: skip
    made = storm.Storm(cast("storm.Works", works), random.Random(5))

    async def rage(_: SimRuntime) -> None:
        await made.rage(asyncio.get_running_loop().time() + 600.0)

    run(rage)
    assert set(made.count) == DONE | {"a commit was cut before its answer"}
    assert client.deleted == made.count["loss of a stream of KV_registry"]
    for each in (*units, works.postgres.primary, works.postgres.standby):
        assert each.sent.count(STOP) == each.sent.count(GO) > 0
    assert works.ways[0].chance == 0.0
