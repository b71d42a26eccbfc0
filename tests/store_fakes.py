"""A worker that runs on the loop, and a disk whose connections fail on demand."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synchromesh.runtime import Disk, RealDisk, RealRuntime, Worker
from synchromesh.store import Migration, Schema, SqliteStore, StoreOptions, Unit

ITEMS = Schema(
    "items", (Migration(1, ("create table item(id integer primary key, n integer)",), 1),)
)


def sqlite_error(code: int, words: str) -> sqlite3.OperationalError:
    """Make an error as the engine does."""
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = code
    return error


@dataclass
class Fault:
    """Fails statements that begin with `sql`, `times` times, before or after they took effect.

    The first `skip` of them run as they are.
    """

    sql: str
    error: sqlite3.Error
    times: int = 1
    is_after: bool = False
    rolls_back: bool = False
    skip: int = 0


class FaultyConnection(sqlite3.Connection):
    """A connection with a list of faults to come."""

    faults: list[Fault]

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement, unless a fault is due."""
        for fault in self.faults:
            if fault.times and sql.startswith(fault.sql):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.is_after:
                    super().execute(sql, parameters)
                if fault.rolls_back:
                    super().execute("rollback")
                raise fault.error
        return super().execute(sql, parameters)


class FaultyDisk(RealDisk):
    """A disk whose connections share one list of faults."""

    def __init__(self, *, mode: str = "rwc") -> None:
        super().__init__()
        self.faults: list[Fault] = []
        self.mode = mode

    def connect(
        self, path: str, *, read_only: bool = False, is_private: bool = False
    ) -> sqlite3.Connection:
        """Open a file."""
        del is_private
        mode = "ro" if read_only else self.mode
        connection = sqlite3.connect(
            f"{Path(path).as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            factory=FaultyConnection,
        )
        connection.faults = self.faults
        return connection


class LoopWorker:
    """Runs on the loop all that was put in one turn: groups are what the test makes them."""

    def __init__(self, work: Callable[[list[Any]], Callable[[], None]]) -> None:
        self._work = work
        self._jobs: list[Any] = []

    def put(self, job: Any) -> None:
        """Queue a job."""
        if not self._jobs:
            asyncio.get_running_loop().call_soon(self._run)
        self._jobs.append(job)

    async def close(self) -> None:
        """Run what is queued."""
        self._run()

    def _run(self) -> None:
        jobs, self._jobs = self._jobs, []
        if jobs:
            self._work(jobs)()


class HandRuntime(RealRuntime):
    """The real world, but for workers on the loop and a disk that fails."""

    def __init__(self, *, mode: str = "rwc", has_threads: bool = False) -> None:
        super().__init__()
        self.faulty = FaultyDisk(mode=mode)
        self._has_threads = has_threads

    @property
    def disk(self) -> Disk:
        """The disk that fails."""
        return self.faulty

    def worker(self, name: str, work: Callable[[list[Any]], Callable[[], None]]) -> Worker[Any]:
        """Run on the loop."""
        return super().worker(name, work) if self._has_threads else LoopWorker(work)


async def open_store(
    folder: Path,
    runtime: RealRuntime,
    *schemas: Schema,
    options: StoreOptions | None = None,
) -> SqliteStore:
    """Open the file that all tests of one folder share."""
    return await SqliteStore.open(
        str(folder / "shop.db"),
        service="shop",
        schemas=schemas or (ITEMS,),
        runtime=runtime,
        options=options or StoreOptions(owner_wait_s=0.0),
    )


def put_item(number: int, n: int = 1) -> Callable[[Unit], Any]:
    """Make a unit that inserts an item and returns its number."""

    async def body(unit: Unit) -> int:
        await unit.execute("insert into item(id, n) values (?, ?)", number, n)
        return number

    return body


async def items(store: SqliteStore) -> list[object]:
    """Return the numbers of all items."""
    return [row[0] for row in await store.read("select id from item order by id")]
