"""A group of units on PostgreSQL that only append: one transaction, and one commit for all.

    all bodies, to their ends, as if each stream were as it expects ─▶ one statement, which commits
                                                                         │ no: nothing is written
    begin, in order ─▶ all bodies, to their append ─▶ one statement ─▶ to their ends ─▶ commit
                                      ▲                     │ a stream of two of them
                                      └─────────────────────┘

What an append answers is known beforehand where its unit expects a version: that it was there. So
the statement that checks this is the whole transaction, of one trip, and the bodies are over before
it is sent. Where a stream is at another version, or its last event has no position yet, it writes
nothing, and the group goes step by step; so does one of which that is not known, as where two
append to one stream, and one whose statement was refused. If the connection is lost, and the mark
of the commit is there, all is as it was foretold.

Step by step the bodies go on together, and it is all the same as one after the other: each reads
and writes its own stream and nothing else, and of one stream it is one body at a time, to its end.
A unit that fails before it has appended, as by a version that is taken, has written nothing: it
fails, and the others go on. One that fails after, or asks for more, has the transaction rolled
back; the group is run again without it, and it by itself. So is each of a group that does not come
through (I4).

Source: Helland et al., "Group Commit Timers and High Volume Transaction Systems", HPTS 1987.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from synchromesh.store.postgres_answers import Again, Lost
from synchromesh.store.postgres_append import APPEND_IN_ORDER, as_values, foretold
from synchromesh.store.postgres_connection import Connection, run
from synchromesh.store.postgres_errors import PostgresFault, is_conflict, is_lost, is_own_duplicate
from synchromesh.store.postgres_grouping import Foresight
from synchromesh.store.postgres_job import UnitJob
from synchromesh.store.postgres_pooled import PooledConnection
from synchromesh.store.postgres_transaction import BEGIN, HURRIED, IN_ORDER, commit, roll_back, send
from synchromesh.store.postgres_unit import Asked, AskedAppend, PostgresUnit, Steps
from synchromesh.store.unit import StreamRows

# How often a group is run again before each of its units is run by itself.
_RERUNS_MAX = 3
# Statements of one group: whoever appends to a stream after so many others waits for the next one.
_ROUNDS_MAX = 8


class _Spoiled(Exception):
    """Signal that the transaction has what a unit appended that is to be run by itself."""


class _Member:
    """A unit of a group, in one run of it.

    Attributes:
        asked: the append that it waits for; None where it is over, or leaves the group.
        has_asked: its append was answered.
        has_written: something of it is in the transaction.
    """

    __slots__ = ("asked", "has_asked", "has_written", "job", "steps", "unit")

    def __init__(self, job: UnitJob, unit: PostgresUnit, steps: Steps) -> None:
        self.job = job
        self.unit = unit
        self.steps = steps
        self.asked: AskedAppend | None = None
        self.has_asked = self.has_written = False
        job.error = job.result = None
        job.has_appended = False

    def go(self, value: object = None) -> None:
        """Go to the append, or from there to the end.

        Raises:
            _Spoiled: it fails or asks for more, and has written.
        """
        job = self.job
        asked: Asked | None = None
        self.asked = None
        try:
            asked = self.steps.go(value)
        except BaseException as error:  # noqa: BLE001 - the submitter gets it, whatever it is
            job.error = error
            job.is_single = self.has_written
        else:
            if asked is None:
                job.result, job.topics = self.steps.result, self.unit.topics
            elif isinstance(asked, AskedAppend) and asked.is_lone and not self.has_asked:
                self.asked = asked
            else:
                job.is_single = True
        if job.is_single and self.has_written:
            raise _Spoiled


class AppendGroup:
    """The units that one commit is for; it is run again until each of them is settled.

    Args:
        unit_of: makes the unit of a job, with an id of its own.
        steps_of: makes the body's steps, on that unit.

    Attributes:
        is_used: the session may be changed by what ran in it before.
        jobs: those that are in it still.
        put_off: those that wait for the next group.
        singles: those that are to be run by themselves.
        mark: the id of its last commit.
        is_doubtful: that commit had no answer.
        is_late: it has outlived its limit.
    """

    def __init__(
        self,
        jobs: Sequence[UnitJob],
        unit_of: Callable[[UnitJob], PostgresUnit],
        steps_of: Callable[[UnitJob, PostgresUnit], Steps],
        foresight: Foresight,
        *,
        is_used: bool = False,
    ) -> None:
        self.jobs = [*jobs]
        self.put_off: list[UnitJob] = []
        self.singles: list[UnitJob] = []
        self.mark = ""
        self.is_doubtful = self.is_late = False
        self._unit_of = unit_of
        self._steps_of = steps_of
        self._foresight = foresight
        self.is_used = is_used
        self._reruns = 0

    async def attempt(self, connection: Connection, mark: str, now_us: int) -> bool:
        """Run it in one transaction; return False where what is left of it is to be run again.

        Raises:
            Lost: the connection is; where the group is doubtful, its commit may have happened.
        """
        self.mark, self.is_doubtful = mark, False
        # What is foretold has no `begin`, which is what sees to its session behind a pooler. The
        # driver has `isinstance` say yes for every class of connections.
        is_pooled = type(connection) is PooledConnection
        is_foretold = not (self._reruns or is_pooled) and self._foresight.is_clear()
        if is_foretold and (await self._foretell(connection, now_us) or not self.jobs):
            return True
        await send(connection, f"{BEGIN}{IN_ORDER}{HURRIED}")
        self.is_used = False
        members: list[_Member] = []
        try:
            members += self._members()
            await self._run(connection, members)
            self._part({member.job for member in members if member.asked is not None})
            error = await self._commit(connection, mark, now_us)
        except _Spoiled:
            await roll_back(connection)
            self._part(frozenset())
            return not self.jobs
        except Again:
            await roll_back(connection)
            self._reruns += 1
            if self._reruns > _RERUNS_MAX:
                self.dissolve()
            return not self.jobs
        finally:
            for member in members:
                member.steps.close()
        if error is not None:
            # It is told of each by itself, for it may be of one.
            await roll_back(connection)
            self.dissolve()
        return True

    @property
    def all_jobs(self) -> list[UnitJob]:
        """All that have no outcome yet."""
        return [*self.jobs, *self.put_off, *self.singles]

    def expire(self) -> None:
        """Time it out: it is rolled back at the end of its statement."""
        self.is_late = True

    def dissolve(self) -> None:
        """Have each of its units run by itself."""
        self.singles += self.jobs
        self.jobs = []
        for job in self.singles:
            job.is_single = True
            job.error = job.result = None

    def give_up(self, lost: Callable[[UnitJob], Exception]) -> None:
        """End it after too many losses: what may stand already is not run again."""
        if self.is_doubtful:
            for job in self.jobs:
                job.error = lost(job)
        else:
            self.dissolve()

    def _members(self) -> Iterator[_Member]:
        for job in self.jobs:
            job.unit_id = self.mark
            unit = self._unit_of(job)
            yield _Member(job, unit, self._steps_of(job, unit))

    async def _foretell(self, connection: Connection, now_us: int) -> bool:
        """Run it in one statement; return False where nothing was written, and it is to go on.

        Raises:
            Lost: the connection is, and the commit may have happened.
        """
        appends = self._foretold()
        self._part(frozenset())
        if not appends:
            return False
        if self.is_used:
            await send(connection, "reset all")
            self.is_used = False
        try:
            told: Any = await run(connection, *foretold(appends, self.mark, now_us))
        except PostgresFault as error:
            if is_lost(error):
                self.is_doubtful = True
                raise Lost(error) from error
            is_so = False
        else:
            is_so = bool(told[0][0])
        self._foresight.saw(is_so=is_so)
        return is_so

    def _foretold(self) -> list[StreamRows]:
        """Drive all bodies to their ends; return what they append, nothing where it is not known.

        One that fails after its append, or asks for more, is to be run by itself.
        """
        appends: list[StreamRows] = []
        streams: set[str] = set()
        for member in self._members():
            try:
                member.go()
                if (asked := member.asked) is None:
                    continue
                stream, expected, rows = asked.appends[0]
                if expected is None or not rows or stream in streams:
                    return []
                member.has_asked = True
                member.go([(expected, True)])
                if (job := member.job).error is not None:
                    job.is_single, job.error = True, None
                elif not job.is_single:
                    streams.add(stream)
                    appends.append(asked.appends[0])
            finally:
                member.steps.close()
        return appends

    async def _run(self, connection: Connection, members: Sequence[_Member]) -> None:
        for member in members:
            member.go()
        for _ in range(_ROUNDS_MAX):
            first: dict[str, _Member] = {}
            for member in members:
                if member.asked is not None:
                    first.setdefault(member.asked.appends[0][0], member)
            if not first:
                return
            await self._append(connection, [*first.values()])
            if self.is_late:
                self._reruns = _RERUNS_MAX
                raise Again

    async def _append(self, connection: Connection, members: Sequence[_Member]) -> None:
        asked = [member.asked.appends[0] for member in members if member.asked is not None]
        values: Any = as_values(asked)
        try:
            told: Any = await run(connection, APPEND_IN_ORDER, values)
        except PostgresFault as error:
            if is_lost(error):
                raise Lost(error) from error
            if not (is_conflict(error) or is_own_duplicate(error)):
                # Whose value it was, or who was waited for, each finds out by itself.
                self._reruns = _RERUNS_MAX
            raise Again(error) from error
        for member, (_, expected, rows), (version, is_numbered) in zip(
            members, asked, told, strict=True
        ):
            member.has_asked = True
            if rows and expected in (None, version):
                member.has_written = True
                member.job.has_appended = not is_numbered
        for member, (version, is_numbered) in zip(members, told, strict=True):
            member.go([(version, is_numbered)])

    async def _commit(self, connection: Connection, mark: str, now_us: int) -> BaseException | None:
        try:
            return await commit(connection, mark, now_us)
        except Lost:
            self.is_doubtful = True
            raise

    def _part(self, waiting: Collection[UnitJob]) -> None:
        """Take out those that are to be run by themselves, and those that wait for the next one."""
        self.singles += [job for job in self.jobs if job.is_single]
        self.put_off += [job for job in self.jobs if job in waiting]
        self.jobs = [job for job in self.jobs if not job.is_single and job not in waiting]
