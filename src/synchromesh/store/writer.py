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

A file that fails twice in a row is closed and opened again by itself (`outage`). What was under way
is held, and answered once it is known whether it is in the file; what comes then is refused.

Source: Gray & Reuter, *Transaction Processing*, section 9.4.3 (group commit).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from synchromesh.codec import encode
from synchromesh.eager import EagerFuture
from synchromesh.errors import Rejection, Shed, StoreBroken, to_problem
from synchromesh.runtime import DiskRuntime
from synchromesh.store import inbox
from synchromesh.store.bodies import as_coroutine
from synchromesh.store.group import BEGIN, Group, NeedsSavepoint
from synchromesh.store.jobs import HeldUnits, Queued, answer, refuse
from synchromesh.store.outage import CLOSED_IN_DOUBT, FAILS_AGAIN, OUTAGE, REPLACED, Outage
from synchromesh.store.sqlite_errors import FATAL, INTERRUPT, IOERR, SqliteFault, code_of, translate
from synchromesh.store.sqlite_unit import Database, SqliteUnit, drive
from synchromesh.store.unit import InboxState, Once, Recorded, Unit
from synchromesh.store.unit_store import GROUP_SIZES
from synchromesh.store.vault import SqliteVault, vault_path
from synchromesh.telemetry import Histogram

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


class Writer:
    """Commit units in groups on the one connection that writes; create and use it on the loop.

    Args:
        connection: in autocommit mode, with `TABLES` in its file; the writer closes it.
        connect: makes another one, where the file has failed.
        notify: is called on the loop with each topic that a durable unit notified, and with
            `OUTAGE` where the file is closed, or opened again.
        limit_s: past it a unit is named in the log, interrupted and rolled back.
        backlog_max: units that may wait; one more is shed.

    Attributes:
        outage: whether the file can be used.
        pending: how many units wait or run; `sizes` counts how many each commit had.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        connect: Callable[[], sqlite3.Connection],
        *,
        path: str,
        service: str,
        runtime: DiskRuntime,
        notify: Callable[[str], None],
        limit_s: float,
        backlog_max: int,
    ) -> None:
        self._connect = connect
        self._connection = connection
        self._path = path
        self._service = service
        self._wall_us = runtime.wall_us
        # Ids of units are UUIDs whose last 48 bits count on: a random one for each would cost two
        # system calls, and at each the writer's thread would take over in the middle of a turn.
        life_id = runtime.new_id()[:23]
        self.vault = SqliteVault(vault_path(path), service=service, runtime=runtime)
        self._database = Database(connection, path, service, life_id, runtime.new_id, self.vault)
        # Counted on from the last commit, so that what is marked there is never another unit's.
        self._submitted: int = connection.execute(_MARKED).fetchone()[0]
        self._notify = notify
        self._limit_s = limit_s
        self._tick_s = limit_s / _TICKS
        self._backlog_max = backlog_max
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self.pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._running: SqliteUnit | None = None
        self._watched: SqliteUnit | None = None
        self._watched_s = 0.0
        self._careful = self._fatals = 0
        # Whoever makes another lock file is let in as an owner beside this one.
        self._file_id = runtime.disk.file_id
        self._file_paths = [f"{path}{suffix}" for suffix in ("", "-wal", ".lock")]
        self._file_ids = [self._file_id(each) for each in self._file_paths]
        self._is_closed = False
        self.outage = Outage(path)
        self._was_broken = False
        self._reopening: asyncio.TimerHandle | None = None
        self._is_trying = False
        self._held = HeldUnits()
        self.sizes = Histogram(GROUP_SIZES)
        self._worker = runtime.worker(f"synchromesh-store-{service}", self._work)

    # -- on the loop -----------------------------------------------------------------------------

    def doubt(self) -> None:
        """Try whether the file can be written, for a read of it has failed."""
        if self._reopening is None and not (self._is_trying or self._is_closed):
            self._try_again()

    def submit(
        self, body: Callable[[Unit], Awaitable[object]], once: Once | None, name: str
    ) -> EagerFuture[Any]:
        """Queue a unit; the future gets its result once it is durable: a `Recorded` with `once`.

        Raises:
            StoreBroken: the store is closed, or the file needs a person.
            StoreUnavailable: the file fails; it is opened again by itself.
            Shed: `backlog_max` units wait already.
        """
        if self._is_closed:
            raise StoreBroken(f"{self._path} is closed: unit {name!r} was not run")
        if self.outage.reason is not None:
            raise self.outage.error(f"unit {name!r}")
        if self.pending >= self._backlog_max:
            raise Shed(
                f"{self.pending} units wait for {self._path}, its bound is {self._backlog_max}; "
                f"unit {name!r} was not run: send less, or later"
            )
        self.pending += 1
        self._submitted = number = self._submitted + 1
        future: EagerFuture[Any] = EagerFuture(self._loop)
        self._worker.put(Queued(body, once, name, number, copy_context(), future))
        if self._timer is None:
            self._timer = self._loop.call_later(self._tick_s, self._watch)
        return future

    async def close(self) -> None:
        """Run queued units, then close the connection. Idempotent."""
        self._is_closed = True
        if self._reopening is not None:
            self._reopening.cancel()
        await self._worker.close()
        if self._timer is not None:
            self._timer.cancel()
        held, _ = self._held.release(0)
        for job in held:
            job.error = StoreBroken(f"{self._path}: unit {job.name!r} {CLOSED_IN_DOUBT}")
        self._conclude(held)
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
            with suppress(sqlite3.ProgrammingError):  # it was just closed
                self._connection.interrupt()
        if self.pending:
            self._timer = self._loop.call_later(self._tick_s, self._watch)

    def _conclude(self, jobs: list[Queued], *, has_tried: bool = False) -> None:
        if has_tried:
            self._is_trying = False
        self.pending -= len(jobs)
        topics: dict[str, None] = {}
        written = [job for job in jobs if job.error is None]
        for job in jobs:
            future, error = job.future, job.error
            if error is None:
                if job.topics is not None:
                    topics.update(dict.fromkeys(sorted(job.topics)))
                continue
            # The error's traceback leads to the worker's frames, and they to the job: it lets go.
            job.reset()
            del job.future
            if not future.done():
                future.set_exception(error)
        for topic in topics:
            self._notify(topic)
        if self._was_broken or self.outage.reason is not None:
            self._note_outage()
        answer(written)  # at the end: who waits goes on within it

    def _note_outage(self) -> None:
        """Tell that the file was closed or opened again, and have it tried again later."""
        is_broken = self.outage.reason is not None
        if is_broken and self._reopening is None and not (self._is_trying or self._is_closed):
            pause_s = self.outage.pause_s(now=self._now())
            self._reopening = self._loop.call_later(pause_s, self._try_again)
        if is_broken is not self._was_broken:
            self._was_broken = is_broken
            self._notify(OUTAGE)

    def _try_again(self) -> None:
        self._reopening, self._is_trying = None, True
        self._worker.put(None)

    # -- in the worker ---------------------------------------------------------------------------

    def _work(self, asked: Sequence[Queued | None]) -> Callable[[], None]:
        jobs = new = [job for job in asked if job is not None]
        # There is one only in simulation, where the worker's turn is one of the loop's.
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            if len(new) < len(asked):
                jobs = [*self._reopen(), *new]
            for job in refuse(new, self.outage) if self.outage.reason else self._attempt(new):
                job.reset()
                self._run_alone(job)
        finally:
            asyncio._set_running_loop(loop)
        done, has_tried = self._held.without(jobs), len(new) < len(asked)
        return lambda: self._conclude(done, has_tried=has_tried)

    def _reopen(self) -> list[Queued]:
        """Open the file again, and try to write; return the units that were held, if that works.

        Those that are not in the file have been run by then. What failed to be committed is not:
        the reader keeps the index of the log, which ends before it, and the try is written there.
        """
        if self._is_replaced():
            return []
        connection = self._connection
        try:
            if self.outage.reason:
                with suppress(*SqliteFault):
                    connection.close()
                connection = self._connection = self._database.connection = self._connect()
            connection.execute(BEGIN)
            ((mark,),) = connection.execute(_MARKED).fetchall()
            connection.execute(_MARK, (mark,))
            connection.execute("commit")
            # What is in the log, and was perhaps never flushed, goes to the file and is flushed.
            connection.execute("pragma wal_checkpoint(passive)").fetchall()
        except SqliteFault as error:
            with suppress(*SqliteFault):
                connection.execute("rollback")
            self._break(f"it cannot be written ({error}): look at the disk")
            return []
        if self.outage.reason:
            _log.warning("the store of %r is open again", self._service)
        self._fatals = 0
        self.outage.end(now=self._now())
        held, missing = self._held.release(mark)
        for job in missing:
            job.reset()
            self._run_alone(job)
        return held

    def _run_alone(self, job: Queued) -> None:
        for _ in range(_INTERRUPTIONS_MAX):
            if self.outage.reason:
                if not self._held.add(job):
                    job.error = StoreBroken(f"{self._path}: unit {job.name!r} {FAILS_AGAIN}")
                return
            if not self._attempt([job]):
                return
            job.reset()
        job.error = StoreBroken(
            f"{self._path}: unit {job.name!r} was interrupted {_INTERRUPTIONS_MAX} times; "
            "nothing of it was written"
        )

    def _attempt(self, jobs: list[Queued]) -> list[Queued]:
        """Run units in one transaction; return those that have to run again, alone."""
        if self.vault.is_pending:
            self.vault.drop()  # they are of an attempt that failed
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

    def _begin(self, group: Group, jobs: list[Queued]) -> bool:
        """Begin the next unit; False if no transaction can begin, which all are told."""
        try:
            group.begin()
        except SqliteFault as error:
            if group.is_shared:
                raise
            self._doubt_code(error)
            for job in jobs:
                job.error = translate(error, path=self._path, sql=BEGIN)
                job.must_rerun = code_of(error) == IOERR
            return False
        return True

    def _run(self, job: Queued, group: Group) -> None:
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

    def _judge(self, job: Queued, unit: SqliteUnit) -> None:
        """Fail a unit that went on as if nothing were amiss after it was late or rolled back."""
        if unit.fault in FATAL:
            self._doubt(f"unit {job.name!r} met code {unit.fault}")
        has_outcome = job.error is None or isinstance(job.error, Rejection)
        if unit.fault == IOERR:
            # Nothing of it is written: it may be run again, at the latest once the file is back.
            job.must_rerun = True
            job.error = StoreBroken(f"{self._path}: unit {job.name!r} met a fault of the file")
        elif unit.is_late and unit.fault == INTERRUPT and has_outcome:
            job.error = unit.too_long()
        elif unit.fault == INTERRUPT and not unit.is_late:
            job.must_rerun = True
            job.error = StoreBroken(f"{self._path}: unit {job.name!r} was interrupted")
        elif unit.spoiled_by is not None and has_outcome:
            job.error = unit.spoiled_by

    async def _once(self, job: Queued, once: Once, group: Group, unit: SqliteUnit) -> Recorded:
        """Look up the inbox, run the body and record its conclusion."""
        known = await inbox.recall(unit, once)
        if known is not None:
            return known
        kind = InboxState.ANSWER
        try:
            body: Any = await as_coroutine(job.body(unit), job.body, job.name)
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

    def _commit(self, jobs: list[Queued], *, has_written: bool) -> list[Queued]:
        again = [job for job in jobs if job.must_rerun]
        if not has_written:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            return again
        # Of a unit that is in this commit and in no other: one that is run again has yet to be.
        mark = next(job.number for job in jobs if job.has_written)
        try:
            if self.vault.is_pending:
                self.vault.flush(self._connection)
            self._connection.execute(_MARK, (mark,))
            self._connection.execute("commit")
        except SqliteFault as error:
            if not self._is_durable(jobs, mark, error):
                return [] if self.outage.reason else self._abandon(jobs, error)
        if self._is_replaced():
            return refuse(jobs, self.outage)
        self.sizes.observe(sum(job.has_written for job in jobs))
        self._fatals = 0
        return again

    def _is_durable(self, jobs: list[Queued], mark: int, error: Exception) -> bool:
        """Look up whether the group was committed, after a commit that ended in an error (I3)."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("rollback")
            rows = self._connection.execute(_MARKED).fetchall()
        except SqliteFault as second:
            self._break(
                f"a commit failed ({error}) and the file cannot be asked whether it took effect "
                f"({second})"
            )
            self._held.doubt(mark, jobs)
            return False
        return rows == [(mark,)]

    def _is_replaced(self) -> bool:
        """Look whether the file is still the one that was opened; close the store where it is not.

        That needs a person; once the same file is back, it is opened again.
        """
        if [self._file_id(each) for each in self._file_paths] == self._file_ids:
            return False
        self._break(self._path + REPLACED, needs_person=True)
        return True

    def _abandon(self, jobs: list[Queued], error: Exception) -> list[Queued]:
        """Roll back a transaction that failed as a whole; return the units to be run alone."""
        with suppress(*SqliteFault):
            if self._connection.in_transaction:
                self._connection.execute("rollback")
        self._doubt_code(error)
        if len(jobs) > 1 or code_of(error) in (INTERRUPT, IOERR):
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
                f"the file failed {self._fatals} times in a row ({what}): look at the disk and the "
                "kernel's log"
            )

    def _break(self, reason: str, *, needs_person: bool = False) -> None:
        was_open = self.outage.reason is None
        self.outage.begin(reason, needs_person=needs_person)
        if was_open:
            _log.critical("the store of %r, %s, is closed: %s", self._service, self._path, reason)
