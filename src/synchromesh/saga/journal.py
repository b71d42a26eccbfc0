"""The journal of one run: its records become durable in order, and before the next effect (S4)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from synchromesh.errors import Fenced, SagaGone, Shed, StoreError
from synchromesh.resilience.retry import RetryOptions
from synchromesh.runtime import Runtime
from synchromesh.saga import tables
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import SagaRecord
from synchromesh.saga.tables import SagaRow
from synchromesh.store import Store, Unit

_log = logging.getLogger("synchromesh.saga")

_Body: TypeAlias = Callable[[Unit], Awaitable[bytes]]
_Keep: TypeAlias = Callable[[bytes], SagaRecord]

_STORE_WAITS = RetryOptions(base_s=0.05, cap_s=5.0)


class Clock:
    """Is a wall clock that does not jump: read once, then carried on by the loop's clock.

    Stored deadlines are wall-clock microseconds; a run must not turn because somebody set the time.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._loop = asyncio.get_running_loop()
        self._base_us = runtime.wall_us() - int(self._loop.time() * 1e6)

    def now_us(self) -> int:
        """Return microseconds since 1970 UTC."""
        return self._base_us + int(self._loop.time() * 1e6)

    def to_loop_s(self, at_us: int) -> float:
        """Return the moment of the loop's clock that a stored one is."""
        return (at_us - self._base_us) / 1e6


@dataclass(frozen=True, slots=True)
class Desk:
    """Where a journal writes: the store, and the epoch that gives the right to."""

    store: Store
    runtime: Runtime
    clock: Clock
    epoch: int


class Journal:
    """Takes the records of one run. `add` is known at once and durable by the next `flush`.

    Output commit: a step's result is given to user code at once; only the next effect waits for the
    disk, so that the record of one step and the beginning of the next share a commit.

    Source: Strom & Yemini, "Optimistic Recovery in Distributed Systems", TOCS 1985.
    """

    def __init__(self, desk: Desk, row: SagaRow, machine: SagaMachine, *, seq: int) -> None:
        self._desk = desk
        self._row = row
        self._machine = machine
        self._seq = seq
        self._pending: list[SagaRecord] = []
        self._lock = asyncio.Lock()
        self._commits: set[asyncio.Task[bytes | Exception]] = set()

    def add(self, *records: SagaRecord) -> None:
        """Take records, in the state at once."""
        for record in records:
            stamped = record.at(self._desk.clock.now_us())
            self._machine.apply(stamped)
            self._pending.append(stamped)

    def pending(self) -> tuple[SagaRecord, ...]:
        """Return the records that are not durable yet."""
        return tuple(self._pending)

    def flushed(self, count: int) -> None:
        """Mark the first records as durable: the run's start has committed them."""
        del self._pending[:count]
        self._seq += count

    async def flush(self) -> None:
        """Return once every record so far is durable, however often the store must be asked.

        Cancelling it does not cancel the commit.

        Raises:
            Fenced: another engine has taken over.
        """
        while self._pending:
            await self._shielded(self._flush)

    async def write(self, body: _Body, kept: _Keep) -> bytes:
        """Run a unit of the service and record what `kept` makes of its answer in its commit.

        Earlier records ride along. The state knows the record once it is durable, even where this
        is cancelled meanwhile.

        Raises what the unit raises, and then nothing was written.
        """
        return await self._shielded(lambda: self._write(body, kept))

    async def settle(self) -> None:
        """Return once no commit is under way: the state is then what the disk says."""
        while self._commits:
            await asyncio.wait(self._commits)

    async def abandon(self) -> None:
        """Stop asking the store; a unit that it already has may still commit."""
        for task in self._commits:
            task.cancel()
        await self.settle()

    async def _shielded(self, commit: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
        work = self._to_its_end(commit)
        task = asyncio.get_running_loop().create_task(work, name=f"saga {self._row.id} commit")
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        try:
            came = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            came = SagaGone(f"saga {self._row.id!r} left memory while its records were written")
        if isinstance(came, Exception):
            raise came
        return came

    async def _to_its_end(
        self, commit: Callable[[], Coroutine[Any, Any, bytes]]
    ) -> bytes | Exception:
        # The error is a value: whoever waited for it may have been cancelled meanwhile.
        try:
            return await commit()
        except Exception as error:  # noqa: BLE001 - it is raised where the commit was asked for
            return error

    async def _flush(self) -> bytes:
        tries = 0
        async with self._lock:
            while self._pending:
                try:
                    await self._commit(tuple(self._pending), None)
                except Fenced:
                    raise
                except (StoreError, Shed) as error:
                    tries += 1
                    wait_s = _STORE_WAITS.backoff_s(tries, self._desk.runtime.rng)
                    _log.warning(
                        "saga %r waits %.2f s for its database: %s", self._row.id, wait_s, error
                    )
                    await asyncio.sleep(wait_s)
        return b""

    async def _write(self, body: _Body, kept: _Keep) -> bytes:
        async with self._lock:
            return await self._commit(tuple(self._pending), (body, kept))

    async def _commit(
        self,
        batch: tuple[SagaRecord, ...],
        work: tuple[_Body, _Keep] | None,
    ) -> bytes:
        desk, row, seq = self._desk, self._row, self._seq
        at_us = desk.clock.now_us()

        async def unit_body(unit: Unit) -> tuple[bytes, SagaRecord | None]:
            await tables.extend(unit, row, batch, seq=seq, epoch=desk.epoch)
            if work is None:
                return b"", None
            answer = await work[0](unit)
            record = work[1](answer).at(at_us)
            # The fence was checked in this very unit.
            await tables.put(unit, row, seq + len(batch), (record,))
            return answer, record

        answer, record = await desk.store.write(unit_body, name=f"saga {row.name}")
        self.flushed(len(batch))
        if record is not None:
            self._seq += 1
            self._machine.apply(record)
        return answer
