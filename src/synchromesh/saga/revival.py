"""Brings runs back into memory: after a start, after a fault, when they are due, after a repair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from synchromesh.clock import loop_clock
from synchromesh.errors import DeadlineExceeded, SagaError, Shed
from synchromesh.saga import backlog, tables, timetable
from synchromesh.saga.backlog import Backlog
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.execution import Execution
from synchromesh.saga.fitting import fit
from synchromesh.saga.pace import RecoveryPace
from synchromesh.saga.records import (
    UNFINISHED,
    AttemptOutcome,
    AttemptResult,
    Nap,
    SagaRecord,
    SagaStatus,
)
from synchromesh.saga.tables import SagaRow
from synchromesh.saga.timetable import SagaMark
from synchromesh.saga.versions import SagaVersions

# Those that are loaded in one turn of the loop, while everybody else waits.
_PAGE_RUNS = 32
# Those that sleep are waked a few at a time, however many run.
_WAKE_MIN = 16
_FULL_WAIT_S = 0.05
_WAIT_MAX_S = 3600.0
# How often the store is looked through for runs that left memory by a fault.
_LOOK_EVERY_S = 30.0
_OVERLOAD = (Shed.code, DeadlineExceeded.code)
_COUNTED_AS = {SagaStatus.SLEEPING: "woken", SagaStatus.QUEUED: "left the queue"}

_log = logging.getLogger("synchromesh.saga")


class Revival:
    """Loads the runs of one engine from its store and hands them over, at a pace.

    A run that sleeps is nowhere but in the store, and one in the backlog is no more than its id.
    One that no code here fits is tried once.

    Args:
        executions: the runs in memory, by id.
        launch: takes one that was loaded.
        in_flight_max: as many in memory as are loaded; those of the process before take half.

    Attributes:
        backlog: those that have to go on once there is room.
        waited_s: how long the last one of the queue has waited in it.
    """

    def __init__(
        self,
        deps: SagaDeps,
        versions: SagaVersions,
        executions: dict[str, Execution],
        launch: Callable[[Execution], None],
        in_flight_max: int,
    ) -> None:
        self._deps = deps
        self._versions = versions
        self._executions = executions
        self._launch = launch
        self._in_flight_max = in_flight_max
        self._time = loop_clock(asyncio.get_running_loop())
        self._pace = RecoveryPace(in_flight_max)
        self._paced: dict[Execution, float] = {}  # since when
        self._returned: set[Execution] = set()
        self._loading: set[str] = set()
        self._waiting: set[str] = set()
        self._has_room = asyncio.Event()
        self._sooner = asyncio.Event()
        self._look_at_s = self._time() + _LOOK_EVERY_S
        self._wake_us: int | None = None
        self._sleepers: dict[str, list[asyncio.Future[None]]] = {}
        self.backlog = Backlog()
        self.waited_s = 0.0

    def is_loading(self, id: str) -> bool:  # noqa: A002
        """Return whether a run is on its way into memory."""
        return id in self._loading

    def is_ahead(self, id: str) -> bool:  # noqa: A002
        """Return whether a run will come into memory by itself, and is not there yet."""
        return id in self.backlog or id in self._loading

    # -- the backlog -----------------------------------------------------------------------------

    async def adopt(self) -> int:
        """Note every unfinished run that is awake and not in memory; return how many.

        What there is room for is loaded.
        """
        adopted = 0
        for each, is_queued in await backlog.unfinished(self._deps.store, self._deps.shards.mask):
            if not self._is_known(each):
                of_kind = self.backlog.queued if is_queued else self.backlog.interrupted
                of_kind[each] = None
                adopted += 1
        await self._load_more()
        return adopted

    async def try_again(self) -> int:
        """Take those that wait for code or keys as if they had not been tried; return how many."""
        self._waiting.clear()
        return await self.adopt()

    async def keep_going(self) -> None:
        """Load the backlog as there is room for it; only cancellation ends it."""
        stop = self._deps.store.listen(tables.HANDED_OVER, self.look)
        try:
            while True:
                self._has_room.clear()
                await self._load_more()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._look_at_s):
                        await self._has_room.wait()
                if self._time() >= self._look_at_s:
                    self._look_at_s = self._time() + _LOOK_EVERY_S
                    await self.adopt()
        finally:
            stop()

    def look(self) -> None:
        """Look through the store soon: there may be runs of which nothing is known here."""
        self._look_at_s = self._time()
        self._has_room.set()
        self._sooner.set()

    def forget(self) -> None:
        """Forget what is not in memory, and look what is there: some of it is another's."""
        self.backlog.clear()
        self._waiting.clear()
        self.look()

    async def hasten(self, id: str, within_s: float) -> None:  # noqa: A002
        """Load one of the backlog now; wait for one that is being loaded, at most so long."""
        if id in self._loading:
            await self.awake(id, within_s)
        elif id in self.backlog:
            self.backlog.drop(id)
            await self._load([id])

    def queue(self, id: str) -> None:  # noqa: A002
        """Put a run that is durable at the end of the queue."""
        self.backlog.queued[id] = None
        self._has_room.set()

    def on_left(self, execution: Execution) -> None:
        """Note that a run has left memory, so that there may be room."""
        self._returned.discard(execution)
        since_s = self._paced.pop(execution, None)
        if since_s is not None:
            self._pace.leave(self._time() - since_s)
        if self.backlog.queued or self.backlog.interrupted:
            self._has_room.set()

    def let_go(self) -> None:
        """Keep no run that came back: each of them leads back here."""
        self._paced.clear()
        self._returned.clear()

    def _on_trouble(self, execution: Execution, outcome: AttemptOutcome) -> None:
        """Let fewer come back where somebody has too much to do; else another one meanwhile."""
        code = (outcome.problem or {}).get("code")
        if outcome.result is AttemptResult.UNKNOWN or code in _OVERLOAD:
            self._pace.slow(self._time())
        elif self._paced.pop(execution, None) is not None:
            self._pace.step_aside()
            self._has_room.set()

    async def _load_more(self) -> None:
        while ids := self._next():
            await self._load(ids)

    def _next(self) -> list[str]:
        """Take those out of the backlog for which there is room, of both kinds alike.

        New work has half of the places, however many come back.
        """
        free = self._in_flight_max - len(self._executions)
        room = max(0, min(free, self._pace.room, _PAGE_RUNS))
        is_shared = self.backlog.queued and self.backlog.interrupted
        back = (room + 1) // 2 if is_shared else room
        back = max(0, min(back, max(1, self._in_flight_max // 2) - len(self._returned)))
        ids = self.backlog.take(interrupted=back, queued=0)
        return ids + self.backlog.take(interrupted=0, queued=room - len(ids))

    async def _load(self, ids: Sequence[str]) -> None:
        marks: list[SagaMark] = []
        self._loading.update(ids)
        try:
            found = await backlog.with_records(self._deps.store, ids)
            found = [(row, its) for row, its in found if row.status in UNFINISHED]
            queued = [row for row, _ in found if row.status is SagaStatus.QUEUED]
            if queued:
                fence = self._deps.shards.fence(row.shard for row in queued)
                lost = await self._deps.store.write(
                    lambda unit: backlog.leave_queue(unit, queued, fence), name="saga queue"
                )
                found = [(row, its) for row, its in found if row.shard not in lost]
                self.waited_s = (self._deps.clock.now_us() - queued[-1].started_us) / 1e6
        except Exception:
            self.backlog.put_back(ids)
            raise
        finally:
            self._loading.difference_update(ids)
        for row, its in found:
            there = self._executions.get(row.id)
            if there is None:
                self._continue(row, its, marks)
            elif not there.durable.is_set():  # a repeated start, which is about to find the run
                self.backlog.put_back([row.id])
        self._settle(ids)
        await self._mark(marks)

    async def revive(self, row: SagaRow) -> None:
        """Continue a run that was changed by hand, also one that no code fitted before."""
        marks: list[SagaMark] = []
        self._waiting.discard(row.id)
        self._loading.add(row.id)
        try:
            found = await backlog.with_records(self._deps.store, [row.id])
        finally:
            self._loading.discard(row.id)
        for now, its in found:
            self._continue(now, its, marks)
        self._settle([row.id])
        await self._mark(marks)

    # -- time ------------------------------------------------------------------------------------

    async def keep_time(self) -> None:
        """Wake the runs that sleep when they are due, in their order; only cancellation ends it."""
        stop = self._deps.store.listen(timetable.TOPIC, self._sooner.set)
        try:
            while True:
                await self._wake_those_due()
        finally:
            stop()

    async def _wake_those_due(self) -> None:
        """Wake what there is room for, and return when there may be more."""
        self._sooner.clear()
        free = self._in_flight_max - len(self._executions)
        room = max(_WAKE_MIN, min(free, self._pace.room))
        deps = self._deps
        due = await timetable.due(deps.store, deps.clock.now_us(), deps.shards.mask, room)
        for first in range(0, len(due), _PAGE_RUNS):
            await self._wake(due[first : first + _PAGE_RUNS])
        if len(due) == room:
            await asyncio.sleep(_FULL_WAIT_S)
            return
        self._wake_us = await timetable.next_due(deps.store, deps.shards.mask)
        wait_s = _WAIT_MAX_S
        if self._wake_us is not None:
            wait_s = (self._wake_us - deps.clock.now_us()) / 1e6
        # One that is due already is in memory still, and about to leave it.
        wait_s = min(max(wait_s, _FULL_WAIT_S), _WAIT_MAX_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._sooner.wait()

    async def _wake(self, due: Sequence[str]) -> None:
        ids = [each for each in due if not self._is_known(each)]
        marks: list[SagaMark] = []
        self._loading.update(ids)
        try:
            found = await backlog.with_records(self._deps.store, ids)
        finally:
            self._loading.difference_update(ids)
        for row, its in found:
            if row.status is SagaStatus.SLEEPING and row.id not in self._executions:
                self._continue(row, its, marks)
        self._settle(ids)
        await self._mark(marks)

    def on_asleep(self, nap: Nap) -> None:
        """Note that a run has gone to sleep; what it waits for may have come meanwhile."""
        if nap.awaits or self._wake_us is None or nap.wake_us < self._wake_us:
            self._sooner.set()

    async def awake(self, id: str, within_s: float) -> None:  # noqa: A002
        """Wait until a run that sleeps, or is ahead, is in memory, at most so long."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.setdefault(id, []).append(future)
        try:
            # It may have waked, and ended, since whoever asks has looked.
            row = await tables.find(self._deps.store, id)
            is_asleep = row is not None and row.status is SagaStatus.SLEEPING
            if id in self._executions or not (is_asleep or self.is_ahead(id)):
                return
            await asyncio.wait([future], timeout=within_s)
        finally:
            left = self._sleepers.get(id, [])
            if future in left:
                left.remove(future)
            if not left:
                self._sleepers.pop(id, None)

    def _settle(self, ids: Sequence[str]) -> None:
        for each in ids:
            for future in self._sleepers.pop(each, ()) if self._sleepers else ():
                if not future.done():
                    future.set_result(None)

    # -- each ------------------------------------------------------------------------------------

    def _is_known(self, id: str) -> bool:  # noqa: A002
        return id in self._executions or id in self._waiting or self.is_ahead(id)

    def _continue(
        self, row: SagaRow, records: list[SagaRecord] | SagaError, marks: list[SagaMark]
    ) -> None:
        """Hand a run over, or leave it to wait; say what is to be marked of it."""
        was = row.status
        if not self._deps.shards.owns(row.shard):
            return
        if was is SagaStatus.QUEUED:
            row = replace(row, status=SagaStatus.RUNNING)
        if isinstance(records, SagaError):
            found: Execution | str = records.message
        else:
            found = fit(self._deps, self._versions, row, records)
        if isinstance(found, str):
            self._waiting.add(row.id)
            if row.status is not SagaStatus.WAITING:
                _log.error("saga %r waits: %s", row.id, found)
            if (row.status, row.reason) != (SagaStatus.WAITING, found):
                marks.append(SagaMark(row, SagaStatus.WAITING, found))
            return
        nap = found.nap() if row.status is SagaStatus.WAITING else None
        if nap is not None:
            found.drop()
            marks.append(SagaMark(row, SagaStatus.SLEEPING, tables.until(nap), nap))
            return
        machine, counts = found.machine, self._deps.counts
        counts[_COUNTED_AS.get(was, "recovered")] += 1
        if was in UNFINISHED and was is not SagaStatus.QUEUED:
            self._returned.add(found)
        self._paced[found] = self._time()
        self._pace.enter()
        found.on_trouble = self._on_trouble
        if machine.status is SagaStatus.COMPENSATING:
            counts["recovered mid-undo"] += 1
        if row.status is SagaStatus.WAITING:
            status = SagaStatus.COMPENSATING if machine.is_turned else SagaStatus.RUNNING
            marks.append(SagaMark(row, status, machine.cause.reason))
        self._launch(found)

    async def _mark(self, marks: list[SagaMark]) -> None:
        if marks:
            fence = self._deps.shards.fence(each.row.shard for each in marks)
            await self._deps.store.write(
                lambda unit: timetable.mark(unit, marks, fence), name="saga marks"
            )
            for nap in [each.nap for each in marks if each.nap is not None]:
                self.on_asleep(nap)

    def __repr__(self) -> str:
        return f"<Revival {self.backlog!r}, {self._pace!r}, {len(self._waiting)} wait for code>"
