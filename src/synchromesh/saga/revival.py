"""Brings runs back into memory: after a start, after a fault, when they are due, after a repair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from synchromesh.saga import tables, timetable
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.execution import Execution
from synchromesh.saga.fitting import load
from synchromesh.saga.records import Nap, SagaStatus
from synchromesh.saga.tables import SagaRow
from synchromesh.saga.timetable import SagaMark
from synchromesh.saga.versions import SagaVersions

_BREATH_RUNS = 64
# Those that sleep are waked a few at a time, however many run.
_WAKE_MIN = 16
_FULL_WAIT_S = 0.05
_WAIT_MAX_S = 3600.0

_log = logging.getLogger("synchromesh.saga")


class Revival:
    """Loads the runs of one engine from its store and hands them over.

    A run that sleeps is nowhere but in the store. One that no code here fits is tried once.

    Args:
        executions: the runs in memory, by id.
        launch: takes one that was loaded.
        in_flight_max: as many in memory as are waked without holding back.
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
        self._loading: set[str] = set()
        self._waiting: set[str] = set()
        self._sooner = asyncio.Event()
        self._wake_us: int | None = None
        self._sleepers: dict[str, list[asyncio.Future[None]]] = {}

    def is_loading(self, id: str) -> bool:  # noqa: A002
        """Return whether a run is on its way into memory."""
        return id in self._loading

    async def adopt(self) -> int:
        """Continue every unfinished run that is awake and not in memory; return how many."""
        marks: list[SagaMark] = []
        adopted = 0
        for row in await tables.unfinished(self._deps.store):
            if self._is_known(row.id):
                continue
            await self._continue(row, marks)
            adopted += 1
            if adopted % _BREATH_RUNS == 0:
                await self._mark(marks)
                await asyncio.sleep(0)
        await self._mark(marks)
        return adopted

    async def revive(self, row: SagaRow) -> None:
        """Continue a run that was changed by hand, also one that no code fitted before."""
        marks: list[SagaMark] = []
        self._waiting.discard(row.id)
        await self._continue(row, marks)
        await self._mark(marks)

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
        room = max(_WAKE_MIN, self._in_flight_max - len(self._executions))
        due = await timetable.due(self._deps.store, self._deps.clock.now_us(), room)
        marks: list[SagaMark] = []
        for row in due:
            if not self._is_known(row.id):
                await self._continue(row, marks)
        await self._mark(marks)
        if len(due) == room:
            await asyncio.sleep(_FULL_WAIT_S)
            return
        self._wake_us = await timetable.next_due(self._deps.store)
        wait_s = _WAIT_MAX_S
        if self._wake_us is not None:
            wait_s = (self._wake_us - self._deps.clock.now_us()) / 1e6
        # One that is due already is in memory still, and about to leave it.
        wait_s = min(max(wait_s, _FULL_WAIT_S), _WAIT_MAX_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._sooner.wait()

    def on_asleep(self, nap: Nap) -> None:
        """Note that a run has gone to sleep; what it waits for may have come meanwhile."""
        if nap.awaits or self._wake_us is None or nap.wake_us < self._wake_us:
            self._sooner.set()

    async def awake(self, id: str, within_s: float) -> None:  # noqa: A002
        """Wait until a run that sleeps is in memory, at most so long."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.setdefault(id, []).append(future)
        try:
            # It may have waked, and ended, since whoever asks has looked.
            row = await tables.find(self._deps.store, id)
            if row is None or row.status is not SagaStatus.SLEEPING or id in self._executions:
                return
            await asyncio.wait([future], timeout=within_s)
        finally:
            left = self._sleepers.get(id, [])
            if future in left:
                left.remove(future)
            if not left:
                self._sleepers.pop(id, None)

    def _is_known(self, id: str) -> bool:  # noqa: A002
        return id in self._executions or id in self._waiting or id in self._loading

    async def _continue(self, row: SagaRow, marks: list[SagaMark]) -> None:
        """Load a run and hand it over, or leave it to wait; say what is to be marked of it."""
        self._loading.add(row.id)
        try:
            found = await load(self._deps, self._versions, row)
        finally:
            self._loading.discard(row.id)
        if isinstance(found, str):
            self._waiting.add(row.id)
            if row.status is not SagaStatus.WAITING:
                _log.error("saga %r waits for other code: %s", row.id, found)
            if (row.status, row.reason) != (SagaStatus.WAITING, found):
                marks.append(SagaMark(row, SagaStatus.WAITING, found))
            return
        nap = found.nap() if row.status is SagaStatus.WAITING else None
        if nap is not None:
            found.drop()
            marks.append(SagaMark(row, SagaStatus.SLEEPING, tables.until(nap), nap))
            return
        machine, counts = found.machine, self._deps.counts
        counts["woken" if row.status is SagaStatus.SLEEPING else "recovered"] += 1
        if machine.status is SagaStatus.COMPENSATING:
            counts["recovered mid-undo"] += 1
        if row.status is SagaStatus.WAITING:
            status = SagaStatus.COMPENSATING if machine.is_turned else SagaStatus.RUNNING
            marks.append(SagaMark(row, status, machine.cause.reason))
        self._launch(found)
        for future in self._sleepers.pop(row.id, ()):
            if not future.done():
                future.set_result(None)

    async def _mark(self, marks: list[SagaMark]) -> None:
        if marks:
            told = marks[:]
            marks.clear()
            await self._deps.store.write(
                lambda unit: timetable.mark(unit, told, epoch=self._deps.epoch), name="saga marks"
            )
            for nap in [each.nap for each in told if each.nap is not None]:
                self.on_asleep(nap)

    def __repr__(self) -> str:
        return f"<Revival {len(self._waiting)} wait for code>"
