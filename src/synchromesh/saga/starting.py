"""What a run is made of at its start, and the queue of those for which there is no place yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from synchromesh.codec import decode, digest, encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest, ContractError, SagaGone, Shed
from synchromesh.saga import tables
from synchromesh.saga.batches import Entry
from synchromesh.saga.definition import SagaDefinition
from synchromesh.saga.deps import SagaDeps
from synchromesh.saga.journal import Journal
from synchromesh.saga.records import SagaStatus
from synchromesh.saga.revival import Revival
from synchromesh.saga.seals import RunSeal
from synchromesh.saga.tables import Part, SagaRow
from synchromesh.saga.writing import write_all
from synchromesh.store import Unit

_ID_CHARS_MAX = 200
# Handlers, and whoever else waits, have had their time by then.
_ANSWERED_WITHIN_S = 1.0
_RETRY_AFTER_MIN_S, _RETRY_AFTER_MAX_S = 1.0, 60.0


def new_row(
    definition: SagaDefinition[Any, Any],
    input: object,  # noqa: A002
    id: str,  # noqa: A002
    context: CallContext,
    *,
    now_us: int,
    shard: int,
) -> SagaRow:
    """Return the row of a run that starts now, in a shard.

    Raises:
        BadRequest: the id or the input cannot be stored.
        ContractError: the lock key is neither a text nor None.
    """
    if not 1 <= len(id) <= _ID_CHARS_MAX or not id.isprintable() or id != id.strip():
        raise BadRequest(
            f"saga id {id[:40]!r} has {len(id)} characters; 1 to {_ID_CHARS_MAX} printable "
            "ones, without blanks at the ends, are expected"
        )
    lock_key = None if definition.lock_key is None else definition.lock_key(input)
    if not isinstance(lock_key, str | None):
        raise ContractError(
            f"the lock key of saga {definition.name!r} is of type {type(lock_key).__name__}; a "
            "str is expected, or None for a run that takes no lock"
        )
    data, personal = encode(input), definition.shape.personal
    told = data if personal is None else personal.mask(data)
    return SagaRow(
        id=id,
        name=definition.name,
        version=definition.version,
        lock_key=lock_key,
        digest=digest(definition.name.encode() + b"\0" + told),
        input=data,
        status=SagaStatus.RUNNING,
        reason="",
        owner=definition.owner,
        trace_id=context.trace_id,
        span_id=context.span_id,
        caller=context.caller,
        principal=context.principal,
        deadline_us=now_us + int(definition.deadline_s * 1e6),
        result=None,
        started_us=now_us,
        ended_us=None,
        shard=shard,
    )


async def queue_in(unit: Unit, definition: SagaDefinition[Any, Any], row: SagaRow) -> bool:
    """Put a run into the queue of whoever owns its shard, within a unit that does more.

    False where the same run was started before. Of two units that start one at once, one is refused
    by the table: whoever would have them wait locks the id first.

    Raises:
        SagaConflict, SagaLocked: as `Engine.start` says.
        BadRequest: the saga function could not be given this input.
    """
    shape = definition.shape
    decode(row.input, shape.input)
    part = Part(replace(row, status=SagaStatus.QUEUED), 0, (), is_start=True)
    if shape.personal is not None:
        part.seal = RunSeal(shape.personal, shape.personal_result)
    (outcome,) = await write_all(unit, [part], _ANYBODY)
    if isinstance(outcome, Exception):
        raise outcome
    if outcome:
        unit.notify(tables.HANDED_OVER)
    return outcome


class _Anybody:
    """The right to put a run into a queue, which everybody has."""

    async def lost(self, unit: Unit) -> Collection[int]:  # noqa: ARG002
        return ()

    def condition(self) -> None:
        return None


_ANYBODY = _Anybody()


class StartQueue:
    """Takes the runs for which there is no place: they are durable, and begin in their order.

    A run in the queue is a row, and its id in memory; its deadline counts.
    """

    def __init__(self, deps: SagaDeps, revival: Revival, *, service: str, queue_max: int) -> None:
        self._deps = deps
        self._revival = revival
        self._service = service
        self._queue_max = queue_max
        self._committing = 0
        self._under_way: dict[asyncio.Future[bool], Entry] = {}

    @property
    def is_standing(self) -> bool:
        """Whether runs are in the queue, so that others come behind them."""
        return bool(self._revival.backlog.queued or self._committing)

    async def put(
        self,
        definition: SagaDefinition[Any, Any],
        row: SagaRow,
        begin: Callable[[Unit], Awaitable[None]] | None,
    ) -> None:
        """Put a run at the end of the queue; returns once it is durable.

        Cancelling this does not cancel it.

        Raises:
            Shed: the queue is full; it is not where the same run was started before.
            SagaConflict, SagaLocked: as `Engine.start` says.
            BadRequest: the saga function could not be given this input.
        """
        shape = definition.shape
        decode(row.input, shape.input)
        if len(self._revival.backlog.queued) + self._committing >= self._queue_max:
            there = await tables.find(self._deps.store, row.id)
            if there is None or (there.name, there.digest) != (row.name, row.digest):
                raise self._full(row.id)
        queued = replace(row, status=SagaStatus.QUEUED)

        def on_settled(outcome: bool | Exception) -> None:
            self._committing -= 1
            if outcome is True:
                self._deps.counts["started"] += 1
                if self._deps.shards.owns(row.shard):
                    self._revival.queue(row.id)

        entry = Entry(queued, 0, (), on_settled, is_start=True, begin=begin)
        if shape.personal is not None:
            entry.seal = RunSeal(shape.personal, shape.personal_result)
        self._committing += 1
        settled = entry.wait()
        self._under_way[settled] = entry
        settled.add_done_callback(self._on_done)
        self._deps.batches.put(entry)
        await entry.wait()

    def _on_done(self, settled: asyncio.Future[bool]) -> None:
        del self._under_way[settled]
        if not settled.cancelled():
            settled.exception()  # it is told to who waits

    async def settle(self) -> None:
        """Return once no start is under way: its commit cannot be called back."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def abandon(self) -> None:
        """Tell who waits for a start that it is not known whether it is durable."""
        for entry in tuple(self._under_way.values()):
            entry.drop(SagaGone(f"saga {entry.row.id!r} left memory before its start was durable"))

    def _full(self, id: str) -> Shed:  # noqa: A002
        waited_s = self._revival.waited_s
        return Shed(
            f"{self._queue_max} sagas of {self._service} wait for a place already; {id!r} was not "
            "started: ask again later",
            retry_after_s=min(max(_RETRY_AFTER_MIN_S, waited_s), _RETRY_AFTER_MAX_S),
        )

    def __repr__(self) -> str:
        return f"<StartQueue {len(self._revival.backlog.queued)} of {self._queue_max}>"


async def settle(journals: Sequence[Journal], queue: StartQueue | None) -> None:
    """Wait for the starts that are under way, whose commits cannot be called back.

    A store that does not answer is not waited for: whoever waits is told that their run is gone,
    and whether it has started is known once the store is opened again.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_ANSWERED_WITHIN_S):
            await asyncio.gather(*(each.written() for each in journals), return_exceptions=True)
            if queue is not None:
                await queue.settle()
            return
    for each in journals:
        await each.abandon()
    if queue is not None:
        queue.abandon()
