"""A model of positions that are given after the commit (ADR 60): no reader skips an event.

The model is of what PostgreSQL does, and no code of the product: units insert, and commit later,
in another order or never; whoever numbers holds the row of the log. `store/postgres_log` does the
same by its statements, and contract suites hold those.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from synchromesh.testing import SimRuntime, World

UNIVERSES = 15
WRITERS, UNITS, STREAMS = ("a", "b", "c"), 25, 4


@dataclass
class Row:
    """An event: where it was drawn, and what became of it."""

    order: int
    stream: int
    version: int
    is_committed: bool = False
    position: int = 0


@dataclass
class Log:
    """The table of events, the row of the log that is locked, and the moments of one server."""

    rng: random.Random
    rows: list[Row] = field(default_factory=list)
    drawn: int = 0
    last: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def moment(self) -> None:
        """Let others go on at the server: a statement takes a while."""
        await asyncio.sleep(self.rng.expovariate(500.0))

    def insert(self) -> Row:
        """Insert an event in a unit that is not committed yet."""
        self.drawn += 1
        stream = self.rng.randrange(STREAMS)
        version = sum(each.is_committed and each.stream == stream for each in self.rows) + 1
        row = Row(self.drawn, stream, version)
        self.rows.append(row)
        return row

    def commit(self, row: Row) -> bool:
        """Commit; False where another has committed the same version of the stream."""
        stream, version = row.stream, row.version
        same = [each for each in self.rows if (each.stream, each.version) == (stream, version)]
        row.is_committed = not any(each.is_committed for each in same)
        return row.is_committed

    async def number(self) -> None:
        """Number what is committed by now: the snapshot is of a moment with the lock held."""
        async with self.lock:
            await self.moment()
            new = [each for each in self.rows if each.is_committed and not each.position]
            await self.moment()
            self.give(new)

    async def append(self) -> None:
        """Append as a group does (ADR 79): the lock is held from before the snapshot on.

        What follows an event of its stream that has no position yet is numbered after that one.
        """
        async with self.lock:
            await self.moment()
            row = self.insert()
            is_behind = self.is_behind(row)
            await self.moment()
            if self.commit(row) and not is_behind:
                self.give([row])
        if is_behind:
            await self.number()

    def is_behind(self, row: Row) -> bool:
        """Return whether an event of its stream is committed and has no position yet."""
        return any(
            each.is_committed and not each.position and each.stream == row.stream
            for each in self.rows
        )

    def give(self, rows: list[Row]) -> None:
        """Give positions, in the order of insertion; it is seen at once, with the commit."""
        for row in sorted(rows, key=lambda each: each.order):
            self.last += 1
            row.position = self.last

    def after(self, position: int) -> list[Row]:
        """Return what a reader sees."""
        seen = [each for each in self.rows if each.is_committed and each.position > position]
        return sorted(seen, key=lambda each: each.position)


class DrawnBeforeCommit(Log):
    """The bug: the position is what a sequence gives to the insert."""

    def insert(self) -> Row:
        row = super().insert()
        row.position = row.order
        return row

    def give(self, rows: list[Row]) -> None:
        """They have theirs."""


class OldSnapshot(Log):
    """The bug: what is numbered is looked up before the lock is held."""

    async def number(self) -> None:
        new = [each for each in self.rows if each.is_committed and not each.position]
        async with self.lock:
            await self.moment()
            self.give(new)


class HeadLong(Log):
    """The bug: what is appended in a group is numbered, whatever it follows."""

    def is_behind(self, row: Row) -> bool:
        return False


class Universe:
    """Writers that die and stand still between insert and commit, and a reader that tails."""

    def __init__(self, seed: int, make: Callable[[random.Random], Log]) -> None:
        self.world = World(seed)
        self.rng = self.world.rng
        self.log = make(random.Random(f"{seed}/log"))
        self.read: list[Row] = []
        self.world.node("server", self.serve)
        for name in WRITERS:
            self.world.node(name, self.write)
        self.world.node("reader", self.tail)

    async def serve(self, runtime: SimRuntime) -> None:
        await asyncio.Event().wait()

    async def at_server(self, work: Coroutine[Any, Any, None]) -> None:
        """Have the server do something: it does so though who asked for it dies."""
        process = self.world.nodes["server"].process
        assert process is not None
        await asyncio.shield(self.world.loop.spawn(process, work))

    async def write(self, runtime: SimRuntime) -> None:
        for _ in range(UNITS):
            await asyncio.sleep(self.rng.expovariate(50.0))
            if self.rng.random() < 0.3:
                await self.at_server(self.log.append())
                continue
            row = self.log.insert()
            await asyncio.sleep(self.rng.expovariate(50.0))
            if self.log.commit(row):
                await self.at_server(self.log.number())

    async def tail(self, runtime: SimRuntime) -> None:
        while True:
            self.read += self.log.after(self.read[-1].position if self.read else 0)
            await asyncio.sleep(self.rng.expovariate(200.0))

    async def play(self) -> None:
        world = self.world
        for node in world.nodes.values():
            node.start()
        for name in WRITERS:
            world.later(self.rng.uniform(0.0, 1.0), world.nodes[name].pause, 0.3)
            world.later(self.rng.uniform(0.0, 1.0), world.nodes[name].crash, 0.1)
        await asyncio.sleep(20.0)
        await self.log.number()  # any other's next look
        await asyncio.sleep(1.0)

    def broken(self) -> str:
        """Return what is wrong; "" where nothing is."""
        committed = [each for each in self.log.rows if each.is_committed]
        if {each.order for each in self.read} != {each.order for each in committed}:
            return "the reader has skipped an event"
        if len(self.read) != len(committed):
            return "the reader has an event twice"
        for stream in range(STREAMS):
            versions = [each.version for each in self.read if each.stream == stream]
            if versions != sorted(versions):
                return "a stream was read out of order"
        if [each.position for each in self.log.after(0)] != list(range(1, len(committed) + 1)):
            return "positions have holes"
        return ""


def found(make: Callable[[random.Random], Log]) -> tuple[str, int, int]:
    """Play universe after universe until something is wrong; return what, and counts."""
    lost = crashes = 0
    for seed in range(UNIVERSES):
        universe = Universe(seed, make)
        universe.world.run(universe.play())
        lost += sum(not each.is_committed for each in universe.log.rows)
        crashes += universe.world.count["crash"]
        if wrong := universe.broken():
            return f"seed {seed}: {wrong}", lost, crashes
    return "", lost, crashes


def test_no_reader_skips_what_commits_late() -> None:
    """Units commit in any order or never, and processes die: each event is read once, in order."""
    wrong, lost, crashes = found(Log)
    assert wrong == ""
    assert min(lost, crashes) > UNIVERSES


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (DrawnBeforeCommit, "skipped an event"),
        (OldSnapshot, "positions have holes"),
        (HeadLong, "a stream was read out of order"),
    ],
)
def test_the_other_ways_are_found_out(make: Callable[[random.Random], Log], wrong: str) -> None:
    """Drawn before the commit, by a snapshot older than the lock, or without regard to a stream."""
    assert wrong in found(make)[0]
