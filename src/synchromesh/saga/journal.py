"""The journal of one run: its records become durable in order, and before the next effect (S4)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from synchromesh.errors import SagaGone
from synchromesh.saga import tables
from synchromesh.saga.batches import Entry
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import SagaRecord
from synchromesh.saga.seals import RunSeal
from synchromesh.saga.tables import Part, SagaRow
from synchromesh.store import Unit

_Body: TypeAlias = Callable[[Unit], Awaitable[bytes]]
_Keep: TypeAlias = Callable[[bytes], SagaRecord]


class Journal:
    """Takes the records of one run. `add` is known at once and durable by the next `flush`.

    Output commit: a step's result is given to user code at once; only the next effect waits for the
    disk, so that the record of one step and the beginning of the next share a commit.

    Attributes:
        seal: seals what is personal in what it writes; None as long as nothing is.

    Source: Strom & Yemini, "Optimistic Recovery in Distributed Systems", TOCS 1985.
    """

    __slots__ = (
        "_commits", "_deps", "_entry", "_is_gone", "_lock", "_machine", "_pending", "_row", "_seq",
        "seal",
    )  # fmt: skip

    def __init__(self, deps: SagaDeps, row: SagaRow, machine: SagaMachine, *, seq: int) -> None:
        self._deps = deps
        self._row = row
        self._machine = machine
        self._seq = seq
        self._pending: list[SagaRecord] = []
        self._entry: Entry | None = None
        self._is_gone = False
        self.seal: RunSeal | None = None
        # Held by a unit: numbers are given in the order of commits. Few runs have units.
        self._lock: asyncio.Lock | None = None
        self._commits: set[asyncio.Task[bytes | Exception]] | None = None

    def add(self, *records: SagaRecord, at_us: int = 0) -> None:
        """Take records, in the state at once, as those of a moment: now, if none is given."""
        if not records:
            return
        at_us = at_us or self._deps.clock.now_us()
        for record in records:
            # As `SagaRecord.at` does, without its frame.
            stamped = SagaRecord(
                record.kind, record.step, record.attempt, record.digest, record.body, at_us
            )
            self._machine.apply(stamped)
            self._pending.append(stamped)

    def pending(self) -> tuple[SagaRecord, ...]:
        """Return the records that are not durable yet."""
        return tuple(self._pending)

    def start(
        self,
        begin: Callable[[Unit], Awaitable[None]] | None,
        on_settled: Callable[[bool | Exception], None],
    ) -> None:
        """Insert the run with its records so far; `on_settled` is called with the outcome."""

        def on_written(outcome: bool | Exception) -> None:
            self._on_written(outcome)
            on_settled(outcome)

        self._put(Entry(self._row, 0, self.pending(), on_written, is_start=True, begin=begin))

    async def flush(self) -> None:
        """Return once every record so far is durable, however often the store must be asked.

        Cancelling it does not cancel the commit.

        Raises:
            Fenced: another engine has taken over.
            SagaGone: the run has left memory.
        """
        while self._pending:
            if self._is_gone:
                raise self._gone()
            if self._entry is None:
                if self._lock is not None and self._lock.locked():
                    async with self._lock:  # the unit that is under way may take them along
                        continue
                self._put(Entry(self._row, self._seq, tuple(self._pending), self._on_written))
            await self._written()

    async def write(self, body: _Body, kept: _Keep) -> bytes:
        """Run a unit of the service and record what `kept` makes of its answer in its commit.

        Earlier records ride along. The state knows the record once it is durable, even where this
        is cancelled meanwhile.

        Raises what the unit raises, and then nothing was written.
        """
        if self._lock is None or self._commits is None:
            self._lock, self._commits = asyncio.Lock(), set()
        task = asyncio.get_running_loop().create_task(
            self._to_its_end(body, kept, self._lock), name=f"saga {self._row.id} commit"
        )
        self._commits.add(task)
        task.add_done_callback(self._commits.discard)
        try:
            came = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            came = self._gone()
        if not isinstance(came, Exception):
            return came
        try:
            raise came
        finally:
            del came, task  # the frame would be kept by its own error

    def written(self) -> Awaitable[bool]:
        """Return a future of the entry that is under way.

        No frame that awaits it holds the entry: its errors would be kept by those frames.
        """
        assert self._entry is not None
        return self._entry.wait()

    def _written(self) -> Awaitable[bool]:
        """Return the same for the task of the run itself, which then goes on at once."""
        assert self._entry is not None
        return self._entry.wait_eagerly()

    @property
    def has_units(self) -> bool:
        """True while a unit is under way, whose record the state does not know yet."""
        return bool(self._commits)

    async def settle(self) -> None:
        """Return once no unit is under way: the state is then what the disk says."""
        while self._commits:
            await asyncio.wait(self._commits)

    async def abandon(self) -> None:
        """Stop asking the store; what it already has may still commit."""
        self._is_gone = True
        if self._entry is not None:
            # Nobody settles one that is dropped before its batch, and it leads back here.
            self._entry.drop(self._gone())
            self._entry = None
        if self._commits:
            for task in self._commits:
                task.cancel()
            await self.settle()

    def _gone(self) -> SagaGone:
        return SagaGone(f"saga {self._row.id!r} left memory before its records were written")

    def _put(self, entry: Entry) -> None:
        self._entry = entry
        entry.seal = self.seal
        self._deps.batches.put(entry)

    def _on_written(self, outcome: bool | Exception) -> None:
        entry, self._entry = self._entry, None
        if outcome is True and entry is not None:
            count = len(entry.records)
            del self._pending[:count]
            self._seq += count

    async def _to_its_end(self, body: _Body, kept: _Keep, lock: asyncio.Lock) -> bytes | Exception:
        # The error is a value: whoever waited for it may have been cancelled meanwhile.
        try:
            async with lock:
                while self._entry is not None:
                    await self.written()
                return await self._commit(body, kept)
        except Exception as error:  # noqa: BLE001 - it is raised where the commit was asked for
            return error

    async def _commit(self, body: _Body, kept: _Keep) -> bytes:
        deps, row, seq, batch = self._deps, self._row, self._seq, self.pending()
        at_us = deps.clock.now_us()
        fence = deps.shards.fence((row.shard,))

        async def unit_body(unit: Unit) -> tuple[bytes, SagaRecord]:
            await tables.check_owner(unit, row, fence)
            answer = await body(unit)
            record = kept(answer).at(at_us)
            part = Part(row, seq, (*batch, record))
            part.seal = self.seal
            await tables.extend(unit, part)
            return answer, record

        if deps.write_step is None:
            answer, record = await deps.store.write(unit_body, name=f"saga {row.name}")
        else:
            answer, record = await deps.write_step(row, seq + len(batch) + 1, unit_body)
        del self._pending[: len(batch)]
        self._seq += len(batch) + 1
        self._machine.apply(record)
        return answer
