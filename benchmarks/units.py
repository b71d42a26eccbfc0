"""Units of work a second: one at a time and 64 in flight, against one commit for each unit.

    python -m benchmarks.units [UNITS]

Each unit runs five statements with its inbox record. The three runs alternate in one process on one
disk; only their ratios mean anything on another machine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from synchromesh.runtime import RealRuntime, ThreadWorker, Worker
from synchromesh.store import Migration, Once, Schema, SqliteStore, Unit

J = TypeVar("J")

ROUNDS = 3
TABLES = Schema(
    "bench",
    (
        Migration(
            1,
            (
                "create table stock(sku text primary key, n bigint not null)",
                "create table hold(id text primary key, sku text not null, n bigint not null)",
                "create table log(id text primary key, body text not null)",
            ),
            readable_by_min=1,
        ),
    ),
)


async def reserve(unit: Unit, key: str, sku: str) -> bytes:
    """Reserve one piece: a read, three writes, and the answer; the inbox is the fifth statement."""
    ((n,),) = await unit.execute("select n from stock where sku = ?", sku)
    assert isinstance(n, int)
    assert n > 0
    await unit.execute("update stock set n = n - 1 where sku = ?", sku)
    await unit.execute("insert into hold values (?, ?, 1)", key, sku)
    await unit.execute("insert into log values (?, ?)", key, '{"reserved":1}')
    return b'{"ok":true}'


async def fill(unit: Unit) -> None:
    """Put 50 articles on the shelf."""
    for article in range(50):
        await unit.execute("insert into stock values (?, ?)", f"s{article}", 10**9)


async def measure(path: Path, label: str, in_flight: int, units: int) -> tuple[float, int]:
    """Return units a second and the commits that they took."""
    runtime: RealRuntime = RealRuntime()
    if label == "one commit each":
        runtime = OneByOne()
    store = await SqliteStore.open(str(path), service="bench", schemas=[TABLES], runtime=runtime)
    await store.write(fill, name="fill")
    before = store.commits

    async def worker(number: int) -> None:
        for count in range(units // in_flight):
            key = f"{number}-{count}"
            once = Once("bench", key, "digest")
            await store.write_once(
                lambda unit, key=key: reserve(unit, key, f"s{(number * 7) % 50}"),  # type: ignore[misc]
                once,
                name="reserve",
            )

    began_s = time.perf_counter()
    await asyncio.gather(*(worker(number) for number in range(in_flight)))
    took_s = time.perf_counter() - began_s
    commits = store.commits - before
    ((held,),) = await store.read("select count(*) from hold")
    assert held == units // in_flight * in_flight
    await store.close()
    return units / took_s, commits


class OneByOne(RealRuntime):
    """The real world, but for lanes that take one job a round."""

    def worker(self, name: str, work: Callable[[list[J]], Callable[[], None]]) -> Worker[J]:
        """Start a thread that groups nothing."""
        return ThreadWorker(name, work, batch_max=1)


async def main(units: int) -> None:
    """Alternate the three runs and print medians and ratios."""
    runs = (("alone", 1), ("64 in flight", 64), ("one commit each", 64))
    figures: dict[str, list[float]] = {label: [] for label, _ in runs}
    commits: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            for label, in_flight in runs:
                count = units if label == "64 in flight" else units // 8
                path = Path(folder) / f"{label} {turn}.db"
                rate, commits[label] = await measure(path, label, in_flight, count)
                figures[label].append(rate)
    floor = statistics.median(figures["one commit each"])
    for label, rates in figures.items():
        rate = statistics.median(rates)
        print(f"{label:<16} {rate:>9,.0f} units/s  x {rate / floor:5.2f}  {commits[label]} commits")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 16_000))
