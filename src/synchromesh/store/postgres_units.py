"""Units of work on PostgreSQL: several connections, each unit in a SERIALIZABLE transaction.

    begin ─▶ the body's statements ─▶ commit, marked with the unit's id ─▶ durable
      │            │ conflict                │ conflict      │ the connection is lost
      └────────────┴──── roll back, again ◀──┘               └─▶ look the mark up (I3)

On a conflict a unit is run again at once, and then alone in the database: else it may lose for ever
to those who come and go beside it. A statement that is refused aborts a transaction here, and on
SQLite only itself: so a body that goes on after it is run again with a savepoint around each
statement. Most do not, and pay for none.

A commit whose answer was lost is looked up by inserting its mark. If the old session is still at
it, that waits for its end; if the commit never arrived, it cannot take effect any more, for the
mark is there. Whatever ends otherwise than by a plain answer costs the connection: none is kept
that may be in a transaction of which nobody knows.

Source: Ports & Grittner, "Serializable Snapshot Isolation in PostgreSQL", VLDB 2012.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

from synchromesh.errors import Rejection, Shed, StoreBroken, StoreError, StoreUnavailable
from synchromesh.runtime import Runtime
from synchromesh.sealing import Vault
from synchromesh.store.outage import Outage
from synchromesh.store.postgres_answers import Again, Lost, UnitAnswers
from synchromesh.store.postgres_connection import Connection, clear
from synchromesh.store.postgres_dialect import Translations
from synchromesh.store.postgres_errors import is_own_duplicate, translate
from synchromesh.store.postgres_foretold import foretell
from synchromesh.store.postgres_group import AppendGroup
from synchromesh.store.postgres_grouping import Foresight, Grouping
from synchromesh.store.postgres_job import (
    CLOSED_WITHIN_S,
    ROUNDS_MAX,
    GroupTurn,
    UnitJob,
    UnitLane,
    UnitsOptions,
    steps_of,
)
from synchromesh.store.postgres_limits import TimeLimit
from synchromesh.store.postgres_transaction import (
    BEGIN,
    BEGIN_ALONE,
    IN_ORDER,
    SAVEPOINT,
    commit,
    look_up,
    roll_back,
    send,
    sweep,
)
from synchromesh.store.postgres_unit import PostgresUnit, drive
from synchromesh.store.turns import Turns
from synchromesh.store.unit import Once, Unit
from synchromesh.store.unit_store import GROUP_SIZES, PoolPlaces
from synchromesh.telemetry import Histogram

_SWEEP_EVERY = 1000
# How often a unit is run again for a conflict (I1).
_RERUNS_MAX = 5
_log = logging.getLogger("synchromesh.store")


class Units:
    """Run units on a bounded number of connections; create and use it on the loop.

    Args:
        connect: makes a connection that writes; raises `StoreUnavailable` or `StoreBroken`.
        number: numbers what was committed to the logs, and calls what it is given.
        told: is called with a unit's topics once it is durable, and where it notified none.
        went: is called where the server is away, and where it is back.

    Attributes:
        outage: whether the server can be reached.
        sizes: counts the commits by how many units each was of.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        options: UnitsOptions,
        *,
        runtime: Runtime,
        vault: Vault,
        number: Callable[[Callable[[], None]], None],
        told: Callable[[set[str]], None],
        went: Callable[[], None],
    ) -> None:
        self._connect = connect
        self._options = options
        self._path = options.path
        self._service = options.service
        self._runtime = runtime
        self._vault = vault
        self._number_logs = number
        self._told = told
        self._went = went
        self._loop = asyncio.get_running_loop()
        self.plans = Translations(options.logs)
        self.outage = Outage(options.path)
        self.sizes = Histogram(GROUP_SIZES)
        self._sweep_at = _SWEEP_EVERY
        self._life_id = options.life_id
        self._number = 0
        self._turns: Turns[UnitJob | GroupTurn] = Turns()
        self._grouping: Grouping[UnitJob] = Grouping()
        self._foresight = Foresight()
        # Who holds the order of the log: two of one process would be in conflict at the server.
        self._order = asyncio.Lock()
        self._pending: set[UnitJob] = set()
        self._idle: list[asyncio.Future[UnitJob | GroupTurn]] = []
        # Whether there is nothing that an end would wait for: no unit, or no server.
        self._is_up, self._is_settled = asyncio.Event(), asyncio.Event()
        self._is_up.set()
        self._is_settled.set()
        self._is_closed = False
        self._reconnecting: asyncio.Task[None] | None = None
        name = f"store of {options.service}, connection"
        self._lanes = {
            self._loop.create_task(self._lane(lane := UnitLane()), name=f"{name} {n}"): lane
            for n in range(options.connections_max)
        }

    @property
    def waiting(self) -> int:
        """How many units wait or run."""
        return len(self._pending)

    @property
    def places(self) -> PoolPlaces:
        """The connections that write."""
        return PoolPlaces(len(self._lanes) - len(self._idle), len(self._lanes))

    def submit(
        self, body: Callable[[Unit], Awaitable[object]], once: Once | None, name: str
    ) -> asyncio.Future[Any]:
        """Queue a unit; the future gets its result once it is durable: a `Recorded` with `once`.

        Raises:
            StoreBroken: the store is closed.
            StoreUnavailable: the server is away; it is connected again by itself.
            Shed: `backlog_max` units wait already.
        """
        if self._is_closed:
            raise StoreBroken(f"{self._path} is closed: unit {name!r} was not run")
        if self.outage.reason is not None:
            raise self.outage.error(f"unit {name!r}")
        if len(self._pending) >= self._options.backlog_max:
            raise Shed(
                f"{len(self._pending)} units wait for {self._path}, its bound is "
                f"{self._options.backlog_max}; unit {name!r} was not run: send less, or later"
            )
        job = UnitJob(body, once, name, self._loop.create_future())
        self._pending.add(job)
        self._is_settled.clear()
        if once is not None or not self._grouping.takes(name):
            self._turns.add(job)
        elif self._grouping.add(job):
            self._turns.add(GroupTurn())
        self._kick()
        return job.future

    async def close(self) -> None:
        """Run queued units, but not for long; then end the connections. Idempotent."""
        self._is_closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSED_WITHIN_S):
                await self._is_settled.wait()
        for job in tuple(self._pending):
            if not job.is_durable:
                job.error = job.not_over(self._path, is_away=self.outage.reason is not None)
            self._conclude(job)
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        for task, lane in self._lanes.items():
            # Dropped first: a COMMIT that is cancelled is told to stand without its standby.
            lane.drop()
            task.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)

    # -- lanes: one connection each -----------------------------------------------------------

    async def _lane(self, lane: UnitLane) -> None:
        try:
            while True:
                waiting: asyncio.Future[UnitJob | GroupTurn] = self._loop.create_future()
                self._idle.append(waiting)
                self._kick()
                work = await waiting
                if isinstance(work, GroupTurn):
                    await self._serve_group(lane)
                else:
                    await self._serve(work, lane)
                    if lane.connection is not None and work.has_session:
                        lane.connection = await clear(lane.connection, self._options.limit_s)
                if lane.connection is not None and self._number >= self._sweep_at:
                    self._sweep_at = self._number + _SWEEP_EVERY
                    lane.connection = await self._sweep(lane.connection)
        finally:
            lane.drop()

    def _kick(self) -> None:
        """Hand units to idle lanes, as long as there are both."""
        while self._idle:
            work = self._turns.take()
            if work is None:
                return
            # The one that was busy last: its session has its plans, and the processor its pages.
            self._idle.pop().set_result(work)

    async def _serve(self, job: UnitJob, lane: UnitLane) -> None:
        """Run a unit until it is over."""
        try:
            await self._run(job, lane)
        except BaseException as error:
            # It is told of a mistake of ours, and at the end of the loop; nothing waits for ever.
            lane.drop()
            if not isinstance(error, Exception):
                if job in self._pending:
                    job.future.cancel()
                raise
            job.error = error
        self._turns.done(job)
        self._settle(job)
        self._kick()

    async def _serve_group(self, lane: UnitLane) -> None:
        """Run a group until each of its units is over or put off."""
        group = AppendGroup(
            self._grouping.begin(), self._unit, steps_of, self._foresight, is_used=lane.is_used
        )
        try:
            await self._run_group(group, lane)
        except BaseException as error:
            lane.drop()
            if not isinstance(error, Exception):
                for job in self._pending.intersection(group.all_jobs):
                    job.future.cancel()
                raise
            for job in group.jobs:
                job.error = error
        self._settle(*group.jobs)
        for job in group.singles:
            self._grouping.saw(job.name, is_lone=False)
            self._turns.add(job)
        if self._grouping.end(group.put_off):
            self._turns.add(GroupTurn())

    async def _run_group(self, group: AppendGroup, lane: UnitLane) -> None:
        for _ in range(ROUNDS_MAX):
            connection = await self._connected(lane)
            limit = TimeLimit(connection, self._options.limit_s, group.expire)
            try:
                if group.is_doubtful and await self._is_durable(connection, group.mark):
                    break
                self._number += 1
                mark = self._id_of(self._number)
                async with self._order:
                    is_over = await group.attempt(connection, mark, self._runtime.wall_us())
                lane.is_used = group.is_used
                if is_over:
                    break
            except Lost as lost:
                lane.lose(lost, self._path)
            finally:
                limit.cancel()
        else:
            group.give_up(lambda job: job.lost_too_often(self._path))
        for job in group.jobs:
            job.is_durable = job.error is None

    def _settle(self, *jobs: UnitJob) -> None:
        """Count a commit, and answer its units: those that appended once events have positions."""
        if count := sum(job.is_durable for job in jobs):
            self.sizes.observe(count)
        for job in jobs:
            if job.has_appended and job.error is None:
                self._number_logs(partial(self._conclude, job))
            else:
                self._conclude(job)

    async def _run(self, job: UnitJob, lane: UnitLane) -> None:
        """Run a unit on the connection of a lane until it is over."""
        for _ in range(ROUNDS_MAX):
            connection = await self._connected(lane)
            try:
                if job.is_doubtful and await self._is_durable(connection, job.unit_id):
                    job.is_durable = True
                elif self._is_batch(job):
                    async with self._order:
                        await self._attempt(job, lane, connection)
                else:
                    await self._attempt(job, lane, connection)
            except Again as why:
                if not self._may_rerun(job, why):
                    return
            except Lost as lost:
                lane.lose(lost, self._path)
            else:
                return
        job.error = job.lost_too_often(self._path)

    def _may_rerun(self, job: UnitJob, why: Again) -> bool:
        job.is_careful = job.is_careful or why.is_careful
        if why.error is None:
            return True
        # The next time it is one indeed, and the body's to know.
        job.has_duplicate = job.has_duplicate or is_own_duplicate(why.error)
        job.conflicts += 1
        if job.conflicts <= _RERUNS_MAX:
            return True
        job.error = StoreUnavailable(
            f"{self._path}: unit {job.name!r} met other units {job.conflicts} times, and nothing "
            "of it was written: let units touch fewer of the same rows, or ask again"
        )
        return False

    def _conclude(self, job: UnitJob) -> None:
        if job not in self._pending:
            return
        self._pending.discard(job)
        if not self._pending:
            self._is_settled.set()
        future, error = job.future, job.error
        if error is None:
            self._told(job.topics)
            # Where its caller was cancelled the unit stands all the same.
            if not future.done():
                future.set_result(job.result)
        elif not future.done():
            future.set_exception(error)
        # The error's traceback leads to the frames of its run, and they to the job.
        job.error = job.result = None
        del job.future

    async def _sweep(self, connection: Connection) -> Connection | None:
        """Delete the marks that nobody will look up: of this store, before the oldest unit."""
        numbers = (int(job.unit_id[24:], 16) for job in self._pending if job.unit_id)
        oldest = min(numbers, default=self._number + 1)
        is_well = await sweep(
            connection, self._id_of(0), self._id_of(oldest), self._options.limit_s
        )
        return connection if is_well else None

    def _begin(self, job: UnitJob, unit: PostgresUnit) -> str:
        """Return what begins a unit; a batch holds the order of the log from there on."""
        unit.has_order = self._is_batch(job) and job.conflicts <= 1
        begin = BEGIN_ALONE if job.conflicts > 1 else BEGIN
        return begin + IN_ORDER * unit.has_order + SAVEPOINT * (job.once is not None)

    def _is_batch(self, job: UnitJob) -> bool:
        return job.once is None and self._grouping.is_batch(job.name)

    def _unit(self, job: UnitJob) -> PostgresUnit:
        return PostgresUnit(
            job.unit_id, job.name, self._runtime.wall_us(), service=self._service,
            path=self._path, plans=self.plans, new_id=self._runtime.new_id, vault=self._vault,
        )  # fmt: skip

    # -- one run of a unit --------------------------------------------------------------------

    def _begun(self, job: UnitJob) -> PostgresUnit:
        """Return the unit of another run of a job, with an id of its own."""
        self._number += 1
        job.unit_id, job.error, job.is_doubtful = self._id_of(self._number), None, False
        return self._unit(job)

    async def _foretell(self, job: UnitJob, lane: UnitLane, connection: Connection) -> bool:
        """Run a batch in one statement, if it foretells what it writes; return if it was so."""
        if not self._is_batch(job) or job.conflicts or not self._foresight.is_clear():
            return False
        with TimeLimit(connection, self._options.limit_s):
            is_so = await foretell(job, self._begun(job), lane, connection)
        if is_so is not None:
            self._foresight.saw(is_so=is_so)
        return bool(is_so)

    async def _attempt(self, job: UnitJob, lane: UnitLane, connection: Connection) -> None:
        """Run a unit in a transaction of its own and commit it, or keep its error."""
        if await self._foretell(job, lane, connection):
            return
        lane.is_used = True
        unit = self._begun(job)
        answers = UnitAnswers(
            connection,
            path=self._path,
            is_careful=job.is_careful,
            is_patient=not job.has_duplicate,
        )
        limit = TimeLimit(connection, self._options.limit_s, partial(self._expire, unit))
        try:
            await send(connection, self._begin(job, unit))
            try:
                job.result = await drive(steps_of(job, unit), answers.answer)
            except (Again, Lost):
                raise
            except BaseException as error:  # the submitter gets it, whatever it is
                if answers.is_cut:
                    raise
                job.error = error
            await self._end(job, unit, connection, answers)
            if job.once is None:
                is_lone = answers.asks == answers.appends == 1
                self._grouping.saw(job.name, is_lone=is_lone, is_batch=answers.is_batch)
        except Again:
            await roll_back(connection)
            raise
        finally:
            limit.cancel()
            job.has_session = job.has_session or answers.has_session

    async def _end(
        self, job: UnitJob, unit: PostgresUnit, connection: Connection, answers: UnitAnswers
    ) -> None:
        """Commit a unit, or roll it back where it has no result."""
        if unit.is_refused and (job.error is None or isinstance(job.error, Rejection)):
            job.error = unit.too_long()
        if job.error is None and answers.has_failed:
            # It went on as if nothing were amiss.
            raise Again(is_careful=True)
        if job.error is not None:
            await roll_back(connection)
            return
        job.topics = unit.topics
        job.has_appended = answers.has_appended or unit.has_unnumbered
        try:
            error = await commit(connection, unit.unit_id, unit.now_us)
        except Lost:
            job.is_doubtful = True
            raise
        if error is not None:
            await roll_back(connection)
            job.error = translate(error, path=self._path, sql="commit")
            return
        job.is_durable = True

    def _expire(self, unit: PostgresUnit) -> None:
        """Time a unit out: it is refused its next statement, and one that runs ends soon."""
        unit.is_late = True
        _log.error(
            "unit %r has run for more than %g s and holds a connection to the database of %r; it "
            "is rolled back at its next statement",
            unit.name, self._options.limit_s, self._service,
        )  # fmt: skip

    def _id_of(self, number: int) -> str:
        """Return the id of a unit; ids ascend as units begin."""
        return f"{self._life_id}-{number:012x}"

    # -- connections that are lost --------------------------------------------------------------

    async def _is_durable(self, connection: Connection, mark: str) -> bool:
        """Look up whether a commit took effect that had no answer (I3)."""
        return await look_up(connection, mark, self._runtime.wall_us(), self._options.limit_s)

    async def _connected(self, lane: UnitLane) -> Connection:
        """Connect a lane; where the server is away, refuse what waits, and try again."""
        while lane.connection is None:
            await self._is_up.wait()
            try:
                lane.connection = await self._connect()
            except StoreError as error:
                self._note_outage(error)
        return lane.connection

    def _note_outage(self, error: StoreError) -> None:
        if self.outage.reason is not None:
            return
        self._is_up.clear()
        self._is_settled.set()
        self.outage.begin(error.message)
        _log.critical("the store of %r, %s, is closed: %s", self._service, self._path, error)
        queued = self._turns.drain()
        waiting = self._grouping.drain(is_over=any(isinstance(each, GroupTurn) for each in queued))
        for job in waiting + [each for each in queued if isinstance(each, UnitJob)]:
            job.error = self.outage.error(f"unit {job.name!r}")
            self._conclude(job)
        self._reconnecting = self._loop.create_task(self._reconnect())
        self._went()

    async def _reconnect(self) -> None:
        while self.outage.reason is not None:
            await asyncio.sleep(self.outage.pause_s(now=self._loop.time()))
            with suppress(StoreError):
                (await self._connect()).terminate()
                self.outage.end(now=self._loop.time())
        _log.warning("the store of %r is open again", self._service)
        self._is_up.set()
        if self._pending:
            self._is_settled.clear()
        self._went()
