"""How the cost of events grows: the same work over logs of 10³, 10⁵ and 10⁶ events.

    python -m benchmarks.growth

Each log is one stream, the worst case. Sizes take turns, round by round, so that what else the
machine does meets all of them alike: the ratios to the smallest are what counts.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks import product
from benchmarks.harness import Measures, Report, at_most, check, in_turn_async, size
from synchromesh import Decider, Decision
from synchromesh.events import (
    Checkpoint,
    EventTypes,
    Projection,
    ProjectionRunner,
    StoredEvent,
    decide,
    head,
    load,
    read,
)
from synchromesh.events.generation_tables import GenerationTables
from synchromesh.store import Store, Unit

SIZES = (1_000, 100_000, 1_000_000)
QUICK_SIZES = (100, 1_000, 10_000)
TAIL, PAGE, PAGES = 100, 1_000, 20
_SEEDED = 50_000
_SEED = (
    "with recursive n(i) as (select ? union all select i + 1 from n where i < ?) "
    "insert into sm_event(id, stream, version, name, type_version, body, is_public, ordering_key, "
    "trace_id, recorded_us) select printf('%032d', i), 'total/a', i, 'bench.added', 1, "
    "cast('{\"n\":1}' as blob), 0, '', '', 0 from n"
)


class Added(msgspec.Struct, frozen=True):
    """The one event."""

    n: int


class Total(msgspec.Struct, frozen=True):
    """What they add up to."""

    count: int = 0
    total: int = 0


def _decide(n: int, state: Total) -> Decision[Total]:
    return Decision(state, (Added(n),))


def _evolve(state: Total, event: Added) -> Total:
    return Total(state.count + 1, state.total + event.n)


TOTALS = Decider("total", Total(), _decide, _evolve, events=(Added,))
TYPES = EventTypes("bench", Added)
TABLES = GenerationTables("sums", ["create table sums(id integer primary key, n integer)"])


async def _count(unit: Unit, _: StoredEvent) -> None:
    await unit.execute(
        "insert into sums values (1, 1) on conflict(id) do update set n = sums.n + 1"
    )


@dataclass
class Log:
    """A log of so many events, and how many were added since."""

    store: Store
    events: int
    first_s: float = 0.0
    added: int = 0
    runner: ProjectionRunner = field(init=False)

    async def fill(self) -> None:
        """Write the events, and decide once: that folds them all, and keeps a snapshot."""
        for first in range(1, self.events + 1, _SEEDED):
            last = min(self.events, first + _SEEDED - 1)

            async def body(unit: Unit, first: int = first, last: int = last) -> None:
                await unit.execute(_SEED, first, last)

            await self.store.write(body, name="seed")
        began_s = time.perf_counter()
        await self.decide()
        self.first_s = time.perf_counter() - began_s
        self.runner = ProjectionRunner(self.store, [Projection("sums", _count, tables=TABLES)])
        await self.runner.prepare()

    async def decide(self) -> None:
        """Make one decision on the whole stream."""
        found = await self.store.write(
            lambda unit: decide(unit, TOTALS, TYPES, "a", 1), name="decide"
        )
        check(found.count, self.events + self.added, "decide")
        self.added += 1

    async def round(self) -> Measures:
        """Measure decisions, loads of the last events, and pages of the log."""
        took_s = []
        for _ in range(size(210, 10)):
            began_s = time.perf_counter()
            await self.decide()
            took_s.append(time.perf_counter() - began_s)
        end = self.events + self.added
        began_s = time.perf_counter()
        for _ in range(size(50, 5)):
            check(len(await load(self.store, "total/a", end - TAIL)), TAIL, "load")
        load_s = (time.perf_counter() - began_s) / size(50, 5)
        at = Checkpoint(self.store.log_id, max(0, end - PAGE * PAGES))
        began_s, seen = time.perf_counter(), 0
        while page := await read(self.store, after=at, limit=PAGE):
            for stored in page:
                TYPES.decode(stored)
            seen += len(page)
            at = at.past(page[-1])
        read_s = time.perf_counter() - began_s
        return {
            "decide_ms": statistics.median(took_s) * 1e3,
            "load_ms": load_s * 1e3,
            "read_rate": seen / read_s,
        }

    async def project(self) -> float:
        """Let a projection take all of the log; return the events a second."""
        began_s = time.perf_counter()
        task = asyncio.ensure_future(self.runner.run())
        end = (await head(self.store)).position
        await self.runner.wait_for(end)
        took_s = time.perf_counter() - began_s
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        check((await self.store.read("select n from sums"))[0][0], end, "the projection")
        return end / took_s


async def rows(report: Report, folder: Path) -> None:
    """Add the rows of all sizes to a report."""
    async with AsyncExitStack() as opened:
        logs: dict[str, Log] = {}
        for events in size_of():
            path = folder / f"growth-{events}.db"
            log = Log(await opened.enter_async_context(product.open_store(path)), events)
            await log.fill()
            logs[f"{events:,}"] = log
        results = await in_turn_async(
            {name: log.round for name, log in logs.items()}, rounds=size(7, 2)
        )
        smallest, *others = logs
        for name, log in logs.items():
            report.alone(f"{name} events: decide, p50", "ms", results.median(name, "decide_ms"))
            report.alone(f"{name} events: first decide of a release", "s", log.first_s)
            report.alone(f"{name} events: load the last 100", "ms", results.median(name, "load_ms"))
            report.alone(f"{name} events: catch-up", "/s", results.median(name, "read_rate"))
            report.alone(f"{name} events: projection from zero", "/s", await log.project())
        for name in others:
            figure = f"decide at {name} events, x at {smallest}"
            report.alone(figure, "x", results.ratio(name, smallest, "decide_ms"), at_most(2))


def size_of() -> tuple[int, ...]:
    """Return the sizes, small ones for a smoke."""
    return SIZES if size(1, 0) else QUICK_SIZES


async def main() -> None:
    """Measure all sizes and report."""
    report = Report("growth")
    with tempfile.TemporaryDirectory() as name:
        await rows(report, Path(name))
    report.finish()


if __name__ == "__main__":
    asyncio.run(main())
