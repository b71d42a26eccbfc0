"""Batches of records: what all runs of an engine record in one turn of the loop is one unit.

A unit of work costs as much for one record as for fifty, and a commit costs more than both. So the
runs hand their records over here. One batch is under way at a time; what comes meanwhile is the
next one. Whoever spoils a batch fails alone: its parts are then written one by one, as units of
which the store makes one commit again.

Source: Helland et al., "Group Commit Timers and High Volume Transaction Systems", HPTS 1987.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context

from synchromesh.chance import Chance
from synchromesh.eager import EagerFuture
from synchromesh.errors import (
    ConstraintFailed,
    Fenced,
    ForeignAwait,
    Shed,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from synchromesh.resilience.retry import RetryOptions
from synchromesh.saga.records import SagaRecord
from synchromesh.saga.shards import Shards, fenced
from synchromesh.saga.tables import Part, SagaRow
from synchromesh.saga.writing import write_all
from synchromesh.store import Store, Unit
from synchromesh.telemetry import current_span

_log = logging.getLogger("synchromesh.saga")

_STORE_WAITS = RetryOptions(base_s=0.05, cap_s=5.0)
_PARTS_MAX = 512
# Faults of the file, not of an entry. Any other error, `StoreBroken` too, may be that of one entry:
# of a statement of its `begin`, or of a value that the database cannot hold.
_THE_FILES = (StoreFull, StoreLocked, StoreReadOnly, Shed)


class Entry(Part):
    """A part on its way: it calls `on_settled` with what became of it, then wakes those who wait.

    Attributes:
        is_dropped: its run has left memory: it is not written any more, unless it is already.
    """

    __slots__ = ("_eager", "_loop", "_on_settled", "_waiters", "is_dropped")

    def __init__(
        self,
        row: SagaRow,
        seq: int,
        records: Sequence[SagaRecord],
        on_settled: Callable[[bool | Exception], None],
        *,
        is_start: bool = False,
        begin: Callable[[Unit], Awaitable[None]] | None = None,
    ) -> None:
        # As the base does, without its frame.
        self.row, self.seq, self.records = row, seq, records
        self.is_start, self.begin = is_start, begin
        self.seal = None
        self._loop = asyncio.get_running_loop()
        self._on_settled = on_settled
        self._waiters: list[asyncio.Future[bool]] | None = None
        self._eager: EagerFuture[bool] | None = None
        self.is_dropped = False

    def wait(self) -> asyncio.Future[bool]:
        """Return a future of what `write_all` says of it; whoever waits has one of its own.

        Cancelling it harms nobody, for the entry goes its way whether or not it is waited for.
        """
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiters = [*(self._waiters or ()), future]
        return future

    def wait_eagerly(self) -> Awaitable[bool]:
        """Return the same for the run itself, which then goes on within this turn of the loop."""
        if self._eager is not None:
            return self.wait()
        self._eager = EagerFuture(self._loop)
        return self._eager

    def finish(self, outcome: bool | Exception) -> None:
        """Tell what became of it."""
        self._on_settled(outcome)
        if self._waiters is not None:
            self._answer(outcome)
        eager = self._eager
        if eager is not None and not eager.done():
            self._eager = None
            if isinstance(outcome, Exception):
                eager.set_exception(outcome)
            else:
                eager.hand_over(outcome)

    def drop(self, error: Exception) -> None:
        """Raise to those who wait, and write it no more, unless the store has it already."""
        self.is_dropped = True
        self._answer(error)
        eager, self._eager = self._eager, None
        if eager is not None and not eager.done():
            eager.set_exception(error)

    def _answer(self, outcome: bool | Exception) -> None:
        # Nothing keeps an error that is raised to those who wait, or it would keep their frames.
        waiters, self._waiters = self._waiters, None
        for future in waiters or ():
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class BatchWriter:
    """Writes what the runs of one engine record, a batch a unit, under the epochs of its shards.

    A start that the store cannot take fails with the store's error. Records wait until it can take
    them, however long, for what they tell has happened (S4).
    """

    def __init__(self, store: Store, *, shards: Shards, rng: Chance) -> None:
        self._store = store
        self._shards = shards
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Entry] = []
        self._wake: asyncio.Future[None] | None = None
        self._later: list[Entry] = []
        self._pause: asyncio.TimerHandle | None = None
        self._tries = 0
        # No span of whoever opens the engine: a batch belongs to many traces.
        context = copy_context()
        context.run(current_span.set, None)
        self._task: asyncio.Task[None] | None = self._loop.create_task(
            self._work(), name="saga batches", context=context
        )

    def put(self, entry: Entry) -> None:
        """Take an entry; it is written with all that come in this turn of the loop."""
        self._waiting.append(entry)
        if len(self._waiting) == 1:
            self._go()

    async def close(self) -> None:
        """Write nothing more; a batch that the store has already may still commit."""
        if self._pause is not None:
            self._pause.cancel()
        # Neither is kept: their errors hold the frame that works, and that holds this.
        task, self._task, self._wake = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def _go(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _work(self) -> None:
        while True:
            if not self._waiting:
                self._wake = self._loop.create_future()
                await self._wake
            batch, self._waiting = self._waiting[:_PARTS_MAX], self._waiting[_PARTS_MAX:]
            entries = [entry for entry in batch if not entry.is_dropped]
            if entries:
                await self._write(entries)

    async def _write(self, entries: list[Entry]) -> None:
        fence = self._shards.fence(entry.row.shard for entry in entries)
        try:
            outcomes = await self._store.write(
                lambda unit: write_all(unit, entries, fence), name="saga records"
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is somebody's of the batch
            await self._sort_out(entries, error)
            return
        self._tries = 0
        for entry, outcome in zip(entries, outcomes, strict=True):
            entry.finish(outcome)

    async def _sort_out(self, entries: list[Entry], error: Exception) -> None:
        """Find whose an error is: the store's own, that of one entry, or not known yet."""
        if len(entries) > 1 and not isinstance(error, _THE_FILES):
            await asyncio.gather(*(self._write([entry]) for entry in entries))
        elif isinstance(error, StoreError | Shed) and not isinstance(
            error, ConstraintFailed | Fenced | ForeignAwait
        ):
            self._postpone(entries, error)
        elif isinstance(error, ConstraintFailed) and not entries[0].is_start:
            entries[0].finish(fenced(entries[0].row.id))
        else:
            entries[0].finish(error)

    def _postpone(self, entries: list[Entry], error: Exception) -> None:
        """Refuse starts, and write records again after a while."""
        for entry in entries:
            if entry.is_start:
                entry.finish(error)
            else:
                self._later.append(entry)
        if not self._later or self._pause is not None:
            return
        self._tries += 1
        wait_s = _STORE_WAITS.backoff_s(self._tries, self._rng)
        _log.warning(
            "records of %d sagas wait %.2f s for their database: %s",
            len(self._later), wait_s, error,
        )  # fmt: skip
        self._pause = self._loop.call_later(wait_s, self._again)

    def _again(self) -> None:
        self._waiting[:0] = self._later
        self._later.clear()
        self._pause = None
        self._go()

    def __repr__(self) -> str:
        return f"<BatchWriter {len(self._waiting)} waiting>"
