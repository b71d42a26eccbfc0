"""The group-commit writer of a SQLite file: many units of work, one commit.

A commit costs a disk's flush, whatever is in it. So units that are asked for while the writer is
busy run together: one transaction, a savepoint for each, one commit for all. What each one sees is
as if they had run one after the other (I1), and one that spoils its group fails alone (I4):

    group ── all ran, committed ─────────────────────────▶ each has its result or its own error
      └─ the engine rolled all back, or the commit failed ─▶ each again alone, but for the spoiler

Before anything is run again the file is asked whether the group's id is in it (I3), since an error
of a commit does not say that nothing was committed. And before anything is acknowledged the disk is
asked whether the file is still where it was opened: SQLite goes on writing to one that was deleted
or replaced, and whoever opens the path next finds nothing of it (E4).

Source: Gray & Reuter, *Transaction Processing*, section 9.4.3 (group commit).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from synchromesh.codec import encode
from synchromesh.errors import Rejection, Shed, StoreBroken, to_problem
from synchromesh.runtime import DiskRuntime, Worker
from synchromesh.store import inbox
from synchromesh.store.sqlite_errors import FATAL, INTERRUPT, SqliteFault, code_of, translate
from synchromesh.store.sqlite_unit import SqliteUnit, drive
from synchromesh.store.unit import InboxState, Once, Recorded, Unit

T = TypeVar("T")

TABLES = (
    "create table sm_commit(slot integer primary key, unit_id text not null)",
    "insert into sm_commit(slot, unit_id) values (1, '')",
)

_INTERRUPTIONS_MAX = 3
_FATALS_MAX = 2

_log = logging.getLogger("synchromesh.store")


@dataclass(slots=True, eq=False)
class _Job:
    """A unit on its way through the writer; the lane fills in what became of it."""

    body: Callable[[Unit], Awaitable[object]]
    once: Once | None
    name: str
    unit_id: str
    context: Context
    future: asyncio.Future[Any]
    result: object = None
    error: BaseException | None = None
    topics: set[str] = field(default_factory=set)
    has_written: bool = False
    must_rerun: bool = False

    def forget(self) -> None:
        """Be as before the first run: what it saw then was never committed."""
        self.result, self.error, self.topics = None, None, set()
        self.has_written = self.must_rerun = False


class Writer:
    """Runs units in groups on the one connection that writes; made and used on the loop.

    Args:
        connection: in autocommit mode, with `sm_commit` in its file; the writer closes it.
        hear: is called on the loop with each topic that a durable unit notified.
        unit_limit_s: past it a unit is named in the log, interrupted and rolled back.
        backlog_max: units that may wait; one more is shed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        path: str,
        service: str,
        runtime: DiskRuntime,
        hear: Callable[[str], None],
        unit_limit_s: float,
        backlog_max: int,
    ) -> None:
        self._connection = connection
        self._path = path
        self._service = service
        self._runtime = runtime
        self._hear = hear
        self._unit_limit_s = unit_limit_s
        self._backlog_max = backlog_max
        self._loop = asyncio.get_running_loop()
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._running: SqliteUnit | None = None
        self._fatals = 0
        self._files = self._found()
        self._is_closed = False
        self.broken: str | None = None
        self.commits = 0
        self._lane: Worker[_Job] = runtime.worker(f"synchromesh-store-{service}", self._work)

    # -- on the loop -----------------------------------------------------------------------------

    def submit(self, body: Callable[[Unit], Awaitable[T]], name: str) -> asyncio.Future[T]:
        """Queue a unit; the future gets its result once it is durable.

        Raises:
            StoreBroken: the store is closed.
            Shed: `backlog_max` units wait already.
        """
        return self._put(body, None, name)

    def submit_once(
        self, body: Callable[[Unit], Awaitable[bytes]], once: Once, name: str
    ) -> asyncio.Future[Recorded]:
        """Queue a unit that is recorded under a key; raises as `submit` does."""
        return self._put(body, once, name)

    def _put(
        self, body: Callable[[Unit], Awaitable[object]], once: Once | None, name: str
    ) -> asyncio.Future[Any]:
        if self._is_closed:
            raise StoreBroken(f"{self._path} is closed: unit {name!r} was not run")
        if self._pending >= self._backlog_max:
            raise Shed(
                f"{self._pending} units wait for {self._path}, its bound is {self._backlog_max}; "
                f"unit {name!r} was not run: send less, or later"
            )
        self._pending += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        job = _Job(body, once, name, self._runtime.new_id(), copy_context(), future)
        self._lane.put(job)
        if self._timer is None:
            self._timer = self._loop.call_later(self._unit_limit_s / 2, self._watch)
        return future

    async def close(self) -> None:
        """Run what is queued, then close the connection. May be repeated."""
        self._is_closed = True
        await self._lane.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.close()

    def _watch(self) -> None:
        self._timer = None
        unit = self._running
        if unit is not None and unit.is_overdue() and not unit.is_late:
            unit.is_late = True
            _log.error(
                "unit %r has run for more than %g s and holds the database of %r; it is rolled "
                "back at its next statement",
                unit.name, self._unit_limit_s, self._service,
            )  # fmt: skip
            # It may hit the next unit instead, if this one ends right now: that one is run again.
            self._connection.interrupt()
        if self._pending:
            self._timer = self._loop.call_later(self._unit_limit_s / 2, self._watch)

    def _conclude(self, jobs: list[_Job]) -> None:
        self._pending -= len(jobs)
        topics: dict[str, None] = {}
        for job in jobs:
            future, result, error = job.future, job.result, job.error
            if error is None:
                topics.update(dict.fromkeys(sorted(job.topics)))
            # The error's traceback leads to the lane's frames, and they to the job: it lets go.
            job.forget()
            del job.future
            if future.done():
                continue  # its caller was cancelled; the unit stands all the same
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        for topic in topics:
            self._hear(topic)

    # -- in the lane -----------------------------------------------------------------------------

    def _work(self, jobs: list[_Job]) -> Callable[[], None]:
        alone = jobs if self.broken else self._attempt(jobs)
        for job in alone:
            job.forget()
            self._run_alone(job)
        return lambda: self._conclude(jobs)

    def _run_alone(self, job: _Job) -> None:
        for _ in range(_INTERRUPTIONS_MAX):
            if self.broken:
                job.error = StoreBroken(self.broken)
                return
            if not self._attempt([job]):
                return
            job.forget()
        job.error = StoreBroken(
            f"{self._path}: unit {job.name!r} was interrupted {_INTERRUPTIONS_MAX} times; "
            "nothing of it was written"
        )

    def _attempt(self, jobs: list[_Job]) -> list[_Job]:
        """Run units in one transaction; return those that have to run again, alone."""
        try:
            self._connection.execute("begin immediate")
        except SqliteFault as error:
            self._doubt_code(error)
            for job in jobs:
                job.error = translate(error, path=self._path, sql="begin immediate")
            return []
        try:
            for job in jobs:
                self._run(job)
                if not self._connection.in_transaction:
                    return [other for other in jobs if other is not job or other.must_rerun]
            return self._commit(jobs)
        except SqliteFault as error:
            return self._abandon(jobs, error)

    def _run(self, job: _Job) -> None:
        """Run one unit in a savepoint of its own; its outcome goes into the job."""
        execute = self._connection.execute
        unit = SqliteUnit(
            self._connection,
            name=job.name,
            unit_id=job.unit_id,
            service=self._service,
            path=self._path,
            now_us=self._runtime.wall_us(),
            clock=self._loop.time,
            limit_s=self._unit_limit_s,
        )
        execute("savepoint sm_unit")
        self._running = unit
        try:
            job.result = (
                self._drive_once(job, job.once, unit) if job.once else self._drive(job, unit)
            )
        except BaseException as error:  # noqa: BLE001 - the submitter gets it, whatever it is
            job.error = error
        self._running = None
        unit.end()
        self._judge(job, unit)
        unit.spoiled_by = None  # its traceback leads to the unit
        if self._connection.in_transaction:
            if job.error is not None:
                execute("rollback to sm_unit")
            execute("release sm_unit")

    def _judge(self, job: _Job, unit: SqliteUnit) -> None:
        """Fail a unit that went on as if nothing were amiss after it was late or rolled back."""
        if unit.fault in FATAL:
            self._doubt(f"unit {job.name!r} met code {unit.fault}")
        has_outcome = job.error is None or isinstance(job.error, Rejection)
        if unit.is_late and unit.fault == INTERRUPT and has_outcome:
            job.error = unit.too_long()
        elif unit.fault == INTERRUPT and not unit.is_late:
            job.must_rerun = True
            job.error = StoreBroken(f"{self._path}: unit {job.name!r} was interrupted")
        elif unit.spoiled_by is not None and has_outcome:
            job.error = unit.spoiled_by
        job.topics = unit.topics

    def _drive(self, job: _Job, unit: SqliteUnit) -> object:
        result = drive(job.body, unit, job.context)
        job.has_written = True
        return result

    def _drive_once(self, job: _Job, once: Once, unit: SqliteUnit) -> Recorded:
        context = job.context
        known = drive(lambda unit: inbox.recall(unit, once), unit, context)
        if known is not None:
            return known
        kind = InboxState.ANSWER
        try:
            body = cast("bytes", drive(job.body, unit, context))
        except Rejection as rejection:
            if unit.spoiled_by is not None:
                raise
            # What it executed and told goes; that it was refused stays.
            self._connection.execute("rollback to sm_unit")
            unit.topics.clear()
            kind, body = InboxState.REJECTION, encode(to_problem(rejection))
            # It is told from the record. Whoever keeps it is in a frame of its traceback.
            rejection.__traceback__ = None
        job.has_written = True
        return drive(lambda unit: inbox.conclude(unit, once, kind, body), unit, context)

    def _commit(self, jobs: list[_Job]) -> list[_Job]:
        again = [job for job in jobs if job.must_rerun]
        if not any(job.has_written and job.error is None for job in jobs):
            self._connection.execute("rollback")
            return again
        group_id = jobs[0].unit_id
        try:
            self._connection.execute("update sm_commit set unit_id = ? where slot = 1", (group_id,))
            self._connection.execute("commit")
        except SqliteFault as error:
            if not self._is_durable(jobs, group_id, error):
                return [] if self.broken else self._abandon(jobs, error)
        if self._found() != self._files:
            self._break(
                f"{self._path} is no longer the file that was opened: it, its -wal or its .lock "
                "was deleted, moved or replaced. Nothing is acknowledged any more, for it would be "
                "lost, or somebody else may write. Stop the service, put the database and its "
                "-wal back or restore a backup, start it again, and ask again under the same key"
            )
            self._fail(jobs)
            return []
        self.commits += 1
        self._fatals = 0
        return again

    def _is_durable(self, jobs: list[_Job], group_id: str, error: Exception) -> bool:
        """Ask the file whether the group is in it, after a commit that ended in an error (I3)."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            rows = self._connection.execute("select unit_id from sm_commit").fetchall()
        except SqliteFault as second:
            self._break(
                f"{self._path}: a commit failed ({error}) and the file cannot be asked whether it "
                f"took effect ({second}); it is known when the store is opened again: ask again "
                "under the same key"
            )
            self._fail(jobs)
            return False
        return rows == [(group_id,)]

    def _found(self) -> tuple[tuple[int, int] | None, ...]:
        """Return which files are at the path now: the database, its write-ahead log, its lock.

        Whoever makes another lock file is let in as an owner beside this one.
        """
        disk = self._runtime.disk
        return tuple(disk.file_id(f"{self._path}{suffix}") for suffix in ("", "-wal", ".lock"))

    def _fail(self, jobs: list[_Job]) -> None:
        for job in jobs:
            job.error = StoreBroken(str(self.broken))

    def _abandon(self, jobs: list[_Job], error: Exception) -> list[_Job]:
        """Roll back a transaction that failed as a whole; return the units to be run alone."""
        with contextlib.suppress(*SqliteFault):
            if self._connection.in_transaction:
                self._connection.execute("rollback")
        self._doubt_code(error)
        if len(jobs) > 1 or code_of(error) == INTERRUPT:
            return jobs
        if jobs[0].error is None or isinstance(jobs[0].error, Rejection):
            jobs[0].error = translate(error, path=self._path, sql="commit")
        return []

    def _doubt_code(self, error: Exception) -> None:
        if code_of(error) in FATAL:
            self._doubt(str(error))

    def _doubt(self, what: str) -> None:
        """Count a fault of the file; twice without a commit in between closes the store."""
        self._fatals += 1
        if self._fatals >= _FATALS_MAX:
            self._break(
                f"{self._path} is closed because the file failed {self._fatals} times in a row "
                f"({what}): look at the disk, then open the store again"
            )

    def _break(self, reason: str) -> None:
        if self.broken is None:
            self.broken = reason
            _log.critical("the store of %r is closed: %s", self._service, reason)
