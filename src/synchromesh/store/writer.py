"""The group-commit writer of a SQLite file: many units of work, one commit.

A commit costs a disk's flush, whatever is in it. So units that are asked for while the writer is
busy run together: one transaction, one commit for all. What each one sees is as if they had run one
after the other (I1), and one that fails, or spoils its group, fails alone (I4):

    group ── all ran, committed ─────────────────────────▶ each has its result or its own error
      └─ the engine rolled all back, or the commit failed ─▶ each again alone, but for the spoiler

Before anything is run again the file is asked whether a unit of the group is in it (I3), since an
error of a commit does not say that nothing was committed. And before anything is acknowledged the
disk is asked whether the file is still where it was opened: SQLite goes on writing to one that was
deleted or replaced, and whoever opens the path next finds nothing of it (E4).

Source: Gray & Reuter, *Transaction Processing*, section 9.4.3 (group commit).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from typing import Any

from synchromesh.codec import encode
from synchromesh.errors import Rejection, Shed, StoreBroken, to_problem
from synchromesh.runtime import DiskRuntime, Worker
from synchromesh.store import inbox
from synchromesh.store.group import BEGIN, Group, NeedsSavepoint
from synchromesh.store.sqlite_errors import FATAL, INTERRUPT, SqliteFault, code_of, translate
from synchromesh.store.sqlite_unit import Database, SqliteUnit, as_coroutine, drive
from synchromesh.store.unit import InboxState, Once, Recorded, Unit

# The number of the first unit that the last commit carries is kept beside the last position of the
# event log, in the engine's own table of such numbers: a page of its own would be one more to flush
# in each commit. `sm_commit` is only what it is named after, and has no rows.
TABLES = (
    "create table sm_commit(number {position})",
    "insert into sqlite_sequence(name, seq) values ('sm_commit', 0)",
)
_MARK = "update sqlite_sequence set seq = ? where name = 'sm_commit'"
_MARKED = "select seq from sqlite_sequence where name = 'sm_commit'"

# How often in a unit's limit the watchdog looks which unit is running.
_TICKS = 4
_INTERRUPTIONS_MAX = 3
# How many groups have savepoints after one was of use.
_CAREFUL_GROUPS = 32
_FATALS_MAX = 2

_log = logging.getLogger("synchromesh.store")


class _Job:
    """A queued unit; the worker fills in its outcome."""

    __slots__ = (
        "body", "context", "error", "future", "has_written", "must_rerun", "name", "number", "once",
        "result", "topics",
    )  # fmt: skip

    def __init__(
        self,
        body: Callable[[Unit], Awaitable[object]],
        once: Once | None,
        name: str,
        number: int,
        context: Context,
        future: asyncio.Future[Any],
    ) -> None:
        self.body = body
        self.once = once
        self.name = name
        self.number = number
        self.context = context
        self.future = future
        self.result: object = None
        self.error: BaseException | None = None
        self.topics: set[str] | None = None
        self.has_written = self.must_rerun = False

    def reset(self) -> None:
        """Reset for a rerun: what an earlier run saw was never committed."""
        self.result = self.error = self.topics = None
        self.has_written = self.must_rerun = False


class Writer:
    """Commit units in groups on the one connection that writes; create and use it on the loop.

    Args:
        connection: in autocommit mode, with `TABLES` in its file; the writer closes it.
        notify: is called on the loop with each topic that a durable unit notified.
        limit_s: past it a unit is named in the log, interrupted and rolled back.
        backlog_max: units that may wait; one more is shed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        path: str,
        service: str,
        runtime: DiskRuntime,
        notify: Callable[[str], None],
        limit_s: float,
        backlog_max: int,
    ) -> None:
        self._connection = connection
        self._path = path
        self._service = service
        self._wall_us = runtime.wall_us
        # Ids of units are UUIDs whose last 48 bits count on: a random one for each would cost two
        # system calls, and at each the writer's thread would take over in the middle of a turn.
        life_id = runtime.new_id()[:23]
        self._database = Database(connection, path, service, life_id, runtime.new_id)
        # Counted on from the last commit, so that what is marked there is never another unit's.
        self._submitted: int = connection.execute(_MARKED).fetchone()[0]
        self._notify = notify
        self._limit_s = limit_s
        self._tick_s = limit_s / _TICKS
        self._backlog_max = backlog_max
        self._loop = asyncio.get_running_loop()
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._running: SqliteUnit | None = None
        self._watched: SqliteUnit | None = None
        self._watched_s = 0.0
        self._careful = 0
        self._fatals = 0
        # Whoever makes another lock file is let in as an owner beside this one.
        self._file_id = runtime.disk.file_id
        self._file_paths = [f"{path}{suffix}" for suffix in ("", "-wal", ".lock")]
        self._file_ids = [self._file_id(each) for each in self._file_paths]
        self._is_closed = False
        self.broken: str | None = None
        self.commits = 0
        self._worker: Worker[_Job] = runtime.worker(f"synchromesh-store-{service}", self._work)

    # -- on the loop -----------------------------------------------------------------------------

    def submit(
        self, body: Callable[[Unit], Awaitable[object]], once: Once | None, name: str
    ) -> asyncio.Future[Any]:
        """Queue a unit; the future gets its result once it is durable: a `Recorded` with `once`.

        Raises:
            StoreBroken: the store is closed.
            Shed: `backlog_max` units wait already.
        """
        if self._is_closed:
            raise StoreBroken(f"{self._path} is closed: unit {name!r} was not run")
        if self._pending >= self._backlog_max:
            raise Shed(
                f"{self._pending} units wait for {self._path}, its bound is {self._backlog_max}; "
                f"unit {name!r} was not run: send less, or later"
            )
        self._pending += 1
        self._submitted = number = self._submitted + 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._worker.put(_Job(body, once, name, number, copy_context(), future))
        if self._timer is None:
            self._timer = self._loop.call_later(self._tick_s, self._watch)
        return future

    async def close(self) -> None:
        """Run queued units, then close the connection. Idempotent."""
        self._is_closed = True
        await self._worker.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.close()

    def _watch(self) -> None:
        """Time out the unit that has run for the limit; it may take half as long again.

        The worker tells only which unit it runs. When that began is what the watchdog has seen of
        it, so that no statement has to read a clock.
        """
        self._timer = None
        unit, now_s = self._running, self._loop.time()
        if unit is not self._watched:
            self._watched, self._watched_s = unit, now_s
        elif unit is not None and not unit.is_late and now_s - self._watched_s >= self._limit_s:
            unit.expire()
            _log.error(
                "unit %r has run for more than %g s and holds the database of %r; it is rolled "
                "back at its next statement",
                unit.name, self._limit_s, self._service,
            )  # fmt: skip
            # It may hit the next unit instead, if this one ends right now: that one is run again.
            self._connection.interrupt()
        if self._pending:
            self._timer = self._loop.call_later(self._tick_s, self._watch)

    def _conclude(self, jobs: list[_Job]) -> None:
        self._pending -= len(jobs)
        topics: dict[str, None] = {}
        for job in jobs:
            future, error = job.future, job.error
            if error is None:
                if job.topics is not None:
                    topics.update(dict.fromkeys(sorted(job.topics)))
                # Where its caller was cancelled the unit stands all the same.
                if not future.done():
                    future.set_result(job.result)
                continue
            # The error's traceback leads to the worker's frames, and they to the job: it lets go.
            job.reset()
            del job.future
            if not future.done():
                future.set_exception(error)
        for topic in topics:
            self._notify(topic)

    # -- in the worker ---------------------------------------------------------------------------

    def _work(self, jobs: list[_Job]) -> Callable[[], None]:
        # There is one only in simulation, where the worker's turn is one of the loop's.
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            for job in jobs if self.broken else self._attempt(jobs):
                job.reset()
                self._run_alone(job)
        finally:
            asyncio._set_running_loop(loop)
        return lambda: self._conclude(jobs)

    def _run_alone(self, job: _Job) -> None:
        for _ in range(_INTERRUPTIONS_MAX):
            if self.broken:
                job.error = StoreBroken(self.broken)
                return
            if not self._attempt([job]):
                return
            job.reset()
        job.error = StoreBroken(
            f"{self._path}: unit {job.name!r} was interrupted {_INTERRUPTIONS_MAX} times; "
            "nothing of it was written"
        )

    def _attempt(self, jobs: list[_Job]) -> list[_Job]:
        """Run units in one transaction; return those that have to run again, alone."""
        group = Group(self._connection, has_savepoints=self._careful > 0 and len(jobs) > 1)
        try:
            for number, job in enumerate(jobs):
                if not self._begin(group, jobs[number:]):
                    return [each for each in jobs if each.must_rerun]
                self._run(job, group)
                if group.is_shared and not self._connection.in_transaction:
                    return [other for other in jobs if other is not job or other.must_rerun]
                if job.has_written:
                    group.is_shared = True
            if len(jobs) > 1:
                self._careful = (
                    _CAREFUL_GROUPS if group.has_gone_back else max(0, self._careful - 1)
                )
            return self._commit(jobs, has_written=group.is_shared)
        except NeedsSavepoint:
            self._careful = _CAREFUL_GROUPS
        except SqliteFault as error:
            return self._abandon(jobs, error)
        try:
            self._connection.execute("rollback")
        except SqliteFault as error:
            return self._abandon(jobs, error)
        for job in jobs:
            job.reset()
        return self._attempt(jobs)

    def _begin(self, group: Group, jobs: list[_Job]) -> bool:
        """Begin the next unit; False if no transaction can begin, which all are told."""
        try:
            group.begin()
        except SqliteFault as error:
            if group.is_shared:
                raise
            self._doubt_code(error)
            for job in jobs:
                job.error = translate(error, path=self._path, sql=BEGIN)
            return False
        return True

    def _run(self, job: _Job, group: Group) -> None:
        """Run one unit and keep its outcome; roll it back if that is not a result."""
        unit = SqliteUnit(self._database, job.number, job.name, self._wall_us())
        self._running = unit
        try:
            if job.once is None:
                job.result = drive(job.body, unit, job.context)
                job.has_written = True
            else:
                around = self._once(job, job.once, group, unit)
                job.result = drive(job.body, unit, job.context, around)
        except NeedsSavepoint:
            raise
        except BaseException as error:  # noqa: BLE001 - the submitter gets it, whatever it is
            job.error = error
        finally:
            self._running = None
            unit.end()
        if unit.fault or unit.spoiled_by is not None:
            self._judge(job, unit)
            unit.spoiled_by = None  # its traceback leads to the unit
        job.topics = unit.topics
        if job.error is not None:
            job.has_written = False
            group.undo(unit)
        group.end()

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

    async def _once(self, job: _Job, once: Once, group: Group, unit: SqliteUnit) -> Recorded:
        """Look up the inbox, run the body and record its conclusion."""
        known = await inbox.recall(unit, once)
        if known is not None:
            return known
        kind = InboxState.ANSWER
        try:
            body: Any = await as_coroutine(job.body(unit), job.body, unit)
        except Rejection as rejection:
            if unit.spoiled_by is not None:
                raise
            # What it executed and told goes; that it was refused stays.
            self._undo(group, unit)
            kind, body = InboxState.REJECTION, encode(to_problem(rejection))
            # It is told from the record. Whoever keeps it is in a frame of its traceback.
            rejection.__traceback__ = None
        job.has_written = True
        return await inbox.conclude(unit, once, kind, body)

    def _undo(self, group: Group, unit: SqliteUnit) -> None:
        """Roll back a unit that continues with its conclusion."""
        try:
            group.undo(unit)
            group.resume()
        except SqliteFault as error:
            self._doubt_code(error)
            raise translate(error, path=self._path) from error
        unit.topics = None

    def _commit(self, jobs: list[_Job], *, has_written: bool) -> list[_Job]:
        again = [job for job in jobs if job.must_rerun]
        if not has_written:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            return again
        # Of a unit that is in this commit and in no other: one that is run again has yet to be.
        mark = next(job.number for job in jobs if job.has_written)
        try:
            self._connection.execute(_MARK, (mark,))
            self._connection.execute("commit")
        except SqliteFault as error:
            if not self._is_durable(jobs, mark, error):
                return [] if self.broken else self._abandon(jobs, error)
        if [self._file_id(each) for each in self._file_paths] != self._file_ids:
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

    def _is_durable(self, jobs: list[_Job], mark: int, error: Exception) -> bool:
        """Look up whether the group was committed, after a commit that ended in an error (I3)."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            rows = self._connection.execute(_MARKED).fetchall()
        except SqliteFault as second:
            self._break(
                f"{self._path}: a commit failed ({error}) and the file cannot be asked whether it "
                f"took effect ({second}); it is known when the store is opened again: ask again "
                "under the same key"
            )
            self._fail(jobs)
            return False
        return rows == [(mark,)]

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
        """Count a fault of the file; close the store at the second without a commit in between."""
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
