"""The unit in a transaction of the application's own: what it writes beside the rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from synchromesh.alone.borrowed import DUPLICATE, BorrowedTransaction, state_of_any
from synchromesh.alone.logged import LoggedEvent, logged
from synchromesh.alone.queue_bound import QueueBound
from synchromesh.codec import decode, digest, encode
from synchromesh.context import CallContext
from synchromesh.errors import BadRequest, ContractError, ForeignAwait, VersionConflict
from synchromesh.events import Decider, EventTypes, append, append_each, decide_at, load
from synchromesh.messaging.message import PAYLOAD_BYTES_MAX
from synchromesh.runtime import Runtime
from synchromesh.saga import SagaDefinition, SagaVersions
from synchromesh.saga.shards import shard_of
from synchromesh.saga.starting import new_row, queue_in
from synchromesh.sealing import Vault
from synchromesh.store import (
    Fetched,
    InboxState,
    Once,
    Row,
    SqlValue,
    Store,
    Unit,
    Unprepared,
    inbox,
)
from synchromesh.store.postgres_dialect import Translation, Translations
from synchromesh.store.postgres_keys import AbsentKeys

C = TypeVar("C")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

KEYLESS = "*"
"""How the partition key of a message begins that was published without one."""

WEEK_S = 7 * 86_400.0

LOCK = "select 1 from pg_advisory_xact_lock(hashtextextended(?, 0))"
"""Locks a text for a transaction; whoever waits for it, and reads as of now, sees what it did."""

# An update also of what it leaves as it is: whoever has read the run before it is run again.
_TOUCH = "update sm_saga set awaits = awaits where id = ?"
_WHERE = "the application's transaction"


class AloneUnit:
    """Appends, publishes and does things once, in a transaction that is the application's.

    It is made by `Alone.unit` and is of use within that block. Whatever it writes is committed by
    whoever began the transaction, with the rows of the application, or not at all. Errors of the
    driver come as the driver, or SQLAlchemy, raises them: a conflict (40001, 40P01) is the whole
    transaction's, which is to be run again.

    Attributes:
        unit_id: its own.
        now_us: the wall clock when it began, in microseconds since 1970 UTC.
        service: the name of the `Alone`.
        trace_id: the trace that its events and messages carry.
        topics: what those who listen are told after the commit.

    Example:
        >>> async def pay(unit: AloneUnit, order_id: str) -> bool:
        ...     if not await unit.once(f"pay {order_id}"):
        ...         return False
        ...     await unit.execute("update orders set paid = 1 where id = ?", order_id)
        ...     return True
    """

    __slots__ = (
        "_borrowed", "_is_over", "_new_id", "_once", "_plans", "_queue", "_sagas", "_types",
        "_vault", "now_us", "service", "topics", "trace_id", "unit_id",
    )  # fmt: skip

    def __init__(
        self,
        borrowed: BorrowedTransaction,
        types: EventTypes,
        sagas: SagaVersions,
        *,
        service: str,
        runtime: Runtime,
        plans: Translations,
        trace_id: str,
        queue: QueueBound,
    ) -> None:
        self._queue = queue
        self._borrowed = borrowed
        self._types = types
        self._sagas = sagas
        self._plans = plans
        self._new_id = runtime.new_id
        self._vault = AbsentKeys(service)
        self._once: dict[tuple[str, str], Once] = {}
        self._is_over = False
        self.service = service
        self.unit_id = runtime.new_id()
        self.now_us = runtime.wall_us()
        self.trace_id = trace_id
        self.topics: set[str] = set()

    @property
    def vault(self) -> Vault:
        """The keys of subjects: there are none, and personal fields are refused."""
        return self._vault

    async def publish(self, event: object, *, key: str | None = None) -> None:
        """Publish a message: it is delivered if and only if the transaction commits (O1, O2).

        Those of one key are delivered in the order of their commits (O3), so that a transaction
        waits here for another one that has published under the key. Publish under several keys in
        the same order everywhere, as with locks of rows. Without a key there is no order, and
        nobody waits.

        Raises:
            ContractError: the class of the event was not given to `Alone`, or the key is none.
            BadRequest: it cannot be encoded, or is larger than 256 KiB.
        """
        self._check_open()
        if key is not None:
            _check_key(key)
        partition = f"{KEYLESS}{self._new_id()}" if key is None else key
        new = self._types.encode(
            event, is_public=True, partition_key=partition, trace_id=self.trace_id
        )
        if len(new.body) > PAYLOAD_BYTES_MAX:
            raise BadRequest(
                f"{new.name} has {len(new.body)} bytes, at most {PAYLOAD_BYTES_MAX} can be "
                "delivered; publish where it is to be found instead"
            )
        if key is not None:
            await self.lock(f"key/{key}")
        await append_each(self, [(f"{new.name}/{partition}", new)])

    async def once(
        self, key: str, request: object = None, *, caller: str = "", keep_s: float = WEEK_S
    ) -> bool:
        """Return True the first time that it is asked for a key, and False ever after (O4).

        The key is recorded in the transaction: where that is rolled back, the next one is the first
        again. Two that ask at once wait for each other. A record is kept for `keep_s` seconds at
        least, as `Alone.open` sweeps it.

        Args:
            request: what is done under the key; another one under it is refused. None is not told
                from another.
            caller: whose key it is: those of two callers are two keys.

        Raises:
            KeyReused: it was recorded with another request.
            ContractError: the key is none.
        """
        self._check_open()
        _check_key(key)
        told = "" if request is None else digest(encode(request))
        once = Once(caller, key, told, keep_s)
        self._once[caller, key] = once
        return await inbox.claim(self, once) is None

    async def answer(self, key: str, value: object, *, caller: str = "") -> None:
        """Keep an answer under a key that `once` was asked for here, for `answered`.

        Raises:
            ContractError: `once` was not asked for the key.
        """
        self._check_open()
        once = self._once.get((caller, key))
        if once is None:
            raise ContractError(
                f"the unit was given an answer under {key!r:.80}, and was not asked for it: ask "
                "`once` first"
            )
        await inbox.conclude(self, once, InboxState.ANSWER, encode(value))

    async def answered(self, key: str, kind: type[T], *, caller: str = "") -> T | None:
        """Return the answer that is kept under a key, as a type; None where there is none.

        Raises:
            BadRequest: it is not of that type.
        """
        self._check_open()
        known = await inbox.look_up(self, caller, key)
        return None if known is None or known.body == b"null" else decode(known.body, kind)

    async def append(
        self, stream: str, events: Sequence[object], *, expected: int | None = None
    ) -> int:
        """Append events to a stream of the log and return its new version.

        Args:
            expected: the version that was decided at, 0 for a new stream; None appends whatever
                the version is.

        Raises:
            VersionConflict: the stream is at another version (E2). The transaction is to be rolled
                back and run again, as the end of the block by this error does.
            ContractError: the class of an event was not given to `Alone`.
        """
        self._check_open()
        new = [self._types.encode(event, trace_id=self.trace_id) for event in events]
        await self.lock(f"stream/{stream}")
        with _told_as_conflict(stream, expected or 0):
            return await append(self, stream, new, expected=expected)

    async def load(self, stream: str, after_version: int = 0) -> list[LoggedEvent]:
        """Load the events of a stream after a version, in order, the unit's own too.

        Raises:
            ContractError: the class of one was not given to `Alone`.
            LogGap: some were removed.
        """
        self._check_open()
        return [logged(self._types, each) for each in await load(self, stream, after_version)]

    async def decide(self, decider: Decider[S, C, R], stream_id: str, command: C) -> R:
        """Run a command on the stream of a decider; return its result.

        The stream is locked until the end of the transaction, and a snapshot of it is taken now and
        then.

        Raises:
            Rejection: the decider refused; by leaving the block it undoes the transaction.
            VersionConflict: as `append` does; not at READ COMMITTED.
            ContractError: the class of an event was not given to `Alone`.
        """
        self._check_open()
        stream = decider.stream(stream_id)
        await self.lock(f"stream/{stream}")
        with _told_as_conflict(stream, 0):
            while True:
                try:
                    result, _ = await decide_at(
                        self, decider, self._types, stream_id, command, trace_id=self.trace_id
                    )
                except Unprepared as needs:
                    # A long stream without a snapshot: it is folded here, in the transaction.
                    await needs.prepare(cast("Store", _InPlace(self)))
                else:
                    return result

    async def start(self, saga: SagaDefinition[I, Any], input: I, *, id: str) -> bool:  # noqa: A002
        """Start a run of a saga; it begins if and only if the transaction commits.

        `Alone.run_sagas` runs it, in this process or another. The same id and input is the same run
        (S1): False then, and True where it is started here. Two that start one at once wait for
        each other.

        Args:
            saga: what `Alone.saga` has made of a function of this `Alone`.
            input: given to the function, and to its re-runs.
            id: 1 to 200 printable characters; the keys of its steps begin with it.

        Raises:
            SagaConflict: the id belongs to a run with another input, or of another saga.
            SagaLocked: another unfinished run holds the lock of the saga's `key`.
            VersionConflict: another transaction has started it, and this one reads as of its
                beginning, as at REPEATABLE READ: run it again.
            ContractError: the saga is none of this `Alone`, or not its newest version.
            BadRequest: the id or the input cannot be stored.
            Shed: as many runs wait for a place as may (`queue_max` of the `Alone`).
        """
        self._check_open()
        if self._sagas.newest(saga.name) is not saga:
            raise _not_ours(self._sagas, saga, self.service)
        trace_id = self.trace_id or self._new_id().replace("-", "")
        context = CallContext(trace_id=trace_id, span_id="")
        row = new_row(saga, input, id, context, now_us=self.now_us, shard=shard_of(id))
        await self.lock(f"saga/{id}")
        if row.lock_key is not None:
            await self.lock(f"saga of {row.name}/{row.lock_key}")
        await self._queue.check(self, row)
        with _told_as_conflict(f"saga/{id}", 0):
            return await queue_in(self, saga, row)

    async def tell(self, saga: SagaDefinition[Any, Any], id: str, event: object) -> bool:  # noqa: A002
        """Tell a run something, which it is told if and only if the transaction commits.

        It is kept until the run asks for it by `s.event`, and wakes one that sleeps for it. False
        where the run has ended. Until the commit the process that runs it may wait, so tell at the
        end of a transaction.

        Raises:
            UnknownSaga: no run of this saga has the id.
            BadRequest: the event cannot be stored.
        """
        self._check_open()
        await self.execute(_TOUCH, id)
        return await saga.tell(self, id, event)

    # -- what the rooms need of a unit ----------------------------------------------------------

    def new_id(self) -> str:
        """Return a new UUIDv7."""
        return self._new_id()

    async def execute(self, sql: str, *values: SqlValue) -> list[Row]:
        """Run one statement, `?` marking the values, and return its rows as the driver has them.

        What a session has not flushed is not there for it.

        Raises:
            StatementFailed: it steers the transaction, or its values do not fit.
            ForeignAwait: the unit is over.
        """
        plan = self._plan(sql)
        plan.refuse_values(values, path=_WHERE)
        return (await self._borrowed.run(plan, values)).rows

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Run one statement and return its rows and columns; raises as `execute` does."""
        plan = self._plan(sql)
        plan.refuse_values(values, path=_WHERE)
        return await self._borrowed.run(plan, values, has_columns=True)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run one statement for each row of values; raises as `execute` does."""
        plan = self._plan(sql)
        for values in rows:
            plan.refuse_values(values, path=_WHERE)
        if rows:
            await self._borrowed.run_many(plan, rows)

    def notify(self, topic: str) -> None:
        """Note a topic; whoever listens to it in a process that is open looks after the commit."""
        self.topics.add(topic)

    def close(self) -> None:
        """Refuse all that comes from here on: the block is over."""
        self._is_over = True

    async def lock(self, what: str) -> None:
        """Wait for other units that have locked the same, and lock it until the commit."""
        await self.execute(LOCK, f"{self.service}/{what}")

    def _plan(self, sql: str) -> Translation:
        self._check_open()
        return self._plans.of(sql, "a unit", path=_WHERE)

    def _check_open(self) -> None:
        if self._is_over:
            raise ForeignAwait(
                "the unit is over; it can be used only within its block (`async with "
                "alone.unit(session) as unit:`)"
            )


class _InPlace:
    """Is as much of a store as folding needs, within a unit."""

    def __init__(self, unit: AloneUnit) -> None:
        self.execute = unit.execute
        self.vault = unit.vault
        self._unit = unit

    async def write(self, body: Callable[[Unit], Awaitable[T]], *, name: str) -> T:  # noqa: ARG002
        return await body(self._unit)


@contextmanager
def _told_as_conflict(stream: str, expected: int) -> Iterator[None]:
    """Tell a version that is taken as a conflict: the transaction reads as of its beginning."""
    try:
        yield
    except Exception as error:
        if state_of_any(error) != DUPLICATE:
            raise
        raise VersionConflict(stream, expected=expected, actual=expected + 1) from error


def _not_ours(sagas: SagaVersions, saga: SagaDefinition[Any, Any], name: str) -> ContractError:
    if saga in sagas.fitting(saga.name, saga.version):
        return sagas.not_newest(saga, name)
    return ContractError(
        f"saga {saga.name!r} is none of Alone {name!r}: define it there, by `@alone.saga(...)`, "
        "and start what that returns"
    )


def _check_key(key: object) -> None:
    """Raise `ContractError` for what is no key."""
    if not isinstance(key, str) or not key or key.startswith(KEYLESS):
        raise ContractError(
            f"{key!r:.80} is no key: give a text that is not empty and does not begin with "
            f"{KEYLESS!r}"
        )
