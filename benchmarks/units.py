"""Units of work a second and their CPU, against plain sqlite3 with one commit for each unit.

    python -m benchmarks.units

A unit is five statements: a read, three writes, and the record of its key in the inbox, so that it
takes effect once. The peer is what one writes by hand: `sqlite3` in a thread of its own, the same
tables and statements, WAL and `synchronous=FULL`, one commit for each unit. Both are awaited by the
same workers on the same loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks import durability, product
from benchmarks.harness import Measures, Report, at_most, check, in_turn_async, size
from synchromesh import Migration
from synchromesh.store import Once, Store, Unit

IN_FLIGHT = 64
ARTICLES = 50
PLENTY = 10**9
PLAIN = "plain sqlite3"

Reserve = Callable[[str, str], Awaitable[object]]
"""Reserves one piece under a key: `reserve(key, sku)`."""

TABLES = (
    "create table stock(sku text primary key, n bigint not null)",
    "create table hold(id text primary key, sku text not null, n bigint not null)",
    "create table log(id text primary key, body text not null)",
)
READ = "select n from stock where sku = ?"
TAKE = "update stock set n = n - 1 where sku = ?"
HOLD = "insert into hold values (?, ?, 1)"
LOG = "insert into log values (?, ?)"
BODY = '{"reserved":1}'


class Ours:
    """Our store: units of work of whoever waits at the moment share a commit."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path) -> AsyncIterator[Ours]:
        """Open the database and put the articles on the shelf."""
        async with product.open_store(path, [Migration(1, TABLES, readable_by_min=1)]) as store:
            yield await cls.on(store)

    @classmethod
    async def on(cls, store: Store) -> Ours:
        """Put the articles on the shelf of a store that has the tables."""
        await store.write(cls._fill, name="fill")
        return cls(store)

    async def reserve(self, key: str, sku: str) -> object:
        """Run the unit once under the key; return when it is durable."""
        return await self._store.write_once(
            lambda unit: _reserve(unit, key, sku), Once("bench", key, "digest"), name="reserve"
        )

    @staticmethod
    async def _fill(unit: Unit) -> None:
        for article in range(ARTICLES):
            await unit.execute("insert into stock values (?, ?)", f"s{article}", PLENTY)


async def _reserve(unit: Unit, key: str, sku: str) -> bytes:
    ((n,),) = await unit.execute(READ, sku)
    assert isinstance(n, int)
    assert n > 0
    await unit.execute(TAKE, sku)
    await unit.execute(HOLD, key, sku)
    await unit.execute(LOG, key, BODY)
    return b'{"ok":true}'


class Plain:
    """One connection in one thread, one commit for each unit: the peer."""

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._thread = thread

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: Path) -> AsyncIterator[Plain]:
        """Open the database and put the articles on the shelf."""
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        for table in TABLES:
            connection.execute(table)
        connection.execute("create table inbox(key text primary key, answer blob) without rowid")
        connection.execute("begin immediate")
        for article in range(ARTICLES):
            connection.execute("insert into stock values (?, ?)", (f"s{article}", PLENTY))
        connection.execute("commit")
        with ThreadPoolExecutor(1) as thread:
            yield cls(connection, thread)
        connection.close()

    async def reserve(self, key: str, sku: str) -> object:
        """Run the unit once under the key, in the thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._reserve, key, sku)

    def _reserve(self, key: str, sku: str) -> bytes:
        execute = self._connection.execute
        execute("begin immediate")
        try:
            known = execute("select answer from inbox where key = ?", (key,)).fetchall()
            if known:
                answer: bytes = known[0][0]
            else:
                ((n,),) = execute(READ, (sku,)).fetchall()
                assert n > 0
                execute(TAKE, (sku,))
                execute(HOLD, (key, sku))
                execute(LOG, (key, BODY))
                answer = b'{"ok":true}'
                execute("insert into inbox values (?, ?)", (key, answer))
        except BaseException:
            execute("rollback")
            raise
        execute("commit")
        return answer


class Contestant:
    """Measures one side on a database of its own that grows from round to round."""

    def __init__(self, name: str, path: Path, reserve: Reserve, *, each: int = 25) -> None:
        self._name = name
        self._each = size(each, 8)
        self._path = path
        self._reserve = reserve
        self._turn = 0
        self._done = 0

    async def prove(self) -> None:
        """Check that a key takes effect once, and that every commit is synced."""
        answers = {repr(await self._reserve("same", "s0")) for _ in range(3)}
        check(len(answers), 1, f"{self._name}, asked thrice under one key,")
        durability.prove_synced(self._path, who=self._name)
        self._done += 1
        self._check()

    async def alone(self) -> Measures:
        """Run units one at a time."""
        return await self._measured(1, size(250, 50))

    async def many(self) -> Measures:
        """Run units 64 at once."""
        return await self._measured(IN_FLIGHT, IN_FLIGHT * self._each)

    async def _measured(self, in_flight: int, units: int) -> Measures:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        await self._run(in_flight, units)
        took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        self._check()
        return {"rate": units / took_s, "cpu": took_cpu_s / units * 1e6}

    async def commits(self, in_flight: int) -> float:
        """Return the commits a unit takes."""
        units = IN_FLIGHT * 20
        with durability.commits(self._path) as seen:
            await self._run(in_flight, units)
        return seen.total / units

    async def _run(self, in_flight: int, units: int) -> None:
        """Keep so many units under way until all have been done."""
        self._turn += 1
        turn = self._turn

        async def worker(number: int) -> None:
            for count in range(units // in_flight):
                sku = f"s{(number * 7 + count) % ARTICLES}"
                await self._reserve(f"{turn}/{number}/{count}", sku)

        await asyncio.gather(*(worker(number) for number in range(in_flight)))
        self._done += units

    def _check(self) -> None:
        # As an auditor sees it, by a connection of its own.
        audit = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)
        held, logged, taken = (
            audit.execute(sql).fetchone()[0]
            for sql in (
                "select count(*) from hold",
                "select count(*) from log",
                f"select {ARTICLES * PLENTY} - sum(n) from stock",
            )
        )
        audit.close()
        check((held, logged, taken), (self._done,) * 3, self._name)


async def main() -> None:
    """Run the two in turn and report."""
    durability.watch()
    with tempfile.TemporaryDirectory() as name:
        ours_path, plain_path = Path(name) / "ours.db", Path(name) / "plain.db"
        async with Ours.opened(ours_path) as ours, Plain.opened(plain_path) as plain:
            sides = {
                "ours": Contestant("ours", ours_path, ours.reserve),
                PLAIN: Contestant(PLAIN, plain_path, plain.reserve, each=8),
            }
            for side in sides.values():
                await side.prove()
            alone = await in_turn_async(
                {who: side.alone for who, side in sides.items()}, rounds=size(31, 2)
            )
            many = await in_turn_async(
                {who: side.many for who, side in sides.items()}, rounds=size(21, 2)
            )
            commits = {
                (who, in_flight): await side.commits(in_flight)
                for who, side in sides.items()
                for in_flight in (1, IN_FLIGHT)
            }
    report = Report("units")
    report.alone("unit, CPU at 64 in flight", "us", many.median("ours", "cpu"), at_most(40))
    report.against("unit, CPU at 64, to one commit each", "us", many, "cpu", peer=PLAIN)
    report.against("units a second, 64 in flight", "/s", many, "rate", peer=PLAIN)
    report.against("unit, CPU alone", "us", alone, "cpu", peer=PLAIN)
    report.against("units a second, alone", "/s", alone, "rate", peer=PLAIN)
    for in_flight, how in ((IN_FLIGHT, "64 in flight"), (1, "alone")):
        ours_each, plain_each = commits["ours", in_flight], commits[PLAIN, in_flight]
        ratio = ours_each / plain_each
        report.compare(f"commits a unit, {how}", "", ours_each, (PLAIN, plain_each), ratio)
    report.finish()
    print("where the time goes: python -m benchmarks.profiles unit")


if __name__ == "__main__":
    asyncio.run(main())
