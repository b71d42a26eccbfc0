"""`Transaction`: the unit of work as users see it, with events and messages joined to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar, overload

import msgspec

from synchromesh.calls.contract import PublicEvent
from synchromesh.context import CallContext
from synchromesh.errors import ContractError, ForeignAwait
from synchromesh.events import AppendReceipt, Decider, EventTypes, append, decide_at
from synchromesh.identity import Principal
from synchromesh.messaging import publish
from synchromesh.sealing import Vault
from synchromesh.store import Row, SqlValue, Unit, fetch_as

R = TypeVar("R")
T = TypeVar("T")
C = TypeVar("C")
E = TypeVar("E")

PUBLISHED_MAX = 1000


class Transaction:
    """Joins rows, events and messages in one database transaction: all commit, or none do.

    It is a unit of work, which may await nothing but its transaction (I2).

    Attributes:
        trace_id: the trace that this unit belongs to.
        principal: on whose behalf it runs; `NOBODY` for the service itself.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, command
        >>> from synchromesh.service import Service
        >>> from synchromesh.store import Migration
        >>> from synchromesh.testing import SimRuntime, run, serving
        >>> class Notes(Contract, Protocol, service="notes", version="1.0"):
        ...     @command("POST /notes")
        ...     async def add(self, text: str) -> int: ...
        >>> tables = Migration(1, ("create table note(text text)",), readable_by_min=1)
        >>> notes = Service("notes", implements=Notes, migrations=[tables])
        >>> @notes.writes(Notes.add)
        ... async def add(tx: Transaction, text: str) -> int:
        ...     await tx.execute("insert into note(text) values (?)", text)
        ...     (count,) = await tx.execute("select count(*) from note", as_=int)
        ...     return count
        >>> async def main(runtime: SimRuntime) -> int:
        ...     async with serving(runtime, notes) as client:
        ...         return await client.call(Notes.add("hello"))
        >>> run(main)
        1
    """

    __slots__ = ("_context", "_is_over", "_published", "_receipt", "_scope", "_unit")

    def __init__(self, unit: Unit, scope: UnitScope, context: CallContext) -> None:
        self._unit = unit
        self._scope = scope
        self._context = context
        self._published: list[tuple[PublicEvent[Any], object]] = []
        self._is_over = False
        self._receipt: AppendReceipt | None = None

    @property
    def receipt(self) -> AppendReceipt:
        """The receipt of the last event that was appended or decided here, for `ctx.wait_for`.

        Raises:
            ContractError: nothing was.
        """
        if self._receipt is None:
            raise ContractError("a unit that has appended nothing yet has no receipt")
        return self._receipt

    @property
    def unit_id(self) -> str:
        """The id of this unit."""
        return self._unit.unit_id

    @property
    def now_us(self) -> int:
        """The wall clock when the unit began, in microseconds since 1970 UTC."""
        return self._unit.now_us

    @property
    def service(self) -> str:
        """The service that owns the database."""
        return self._unit.service

    @property
    def trace_id(self) -> str:
        """The trace that this unit belongs to."""
        return self._context.trace_id

    @property
    def principal(self) -> Principal:
        """The principal on whose behalf the unit runs, `NOBODY` for the service itself."""
        return self._context.principal

    @property
    def vault(self) -> Vault:
        """The keys of the service's subjects."""
        return self._unit.vault

    def new_id(self) -> str:
        """Return a new UUIDv7. A unit that is run again gets another one."""
        return self._unit.new_id()

    @overload
    def execute(self, sql: str, *values: SqlValue) -> Coroutine[Any, Any, list[Row]]: ...
    @overload
    def execute(
        self, sql: str, *values: SqlValue, as_: type[T]
    ) -> Coroutine[Any, Any, list[T]]: ...
    def execute(
        self, sql: str, *values: SqlValue, as_: type[T] | None = None
    ) -> Coroutine[Any, Any, list[Row]] | Coroutine[Any, Any, list[T]]:
        """Run one statement of SQL, `?` marking the values, and return its rows; await it.

        Args:
            as_: what each row is returned as: a struct or dataclass, whose fields are the columns
                of their names, or the type of the only column. Without it rows are tuples.

        Raises:
            StatementFailed: the statement is wrong, or its rows are not of that type.
            ConstraintFailed: it broke a constraint of the tables.
        """
        if as_ is not None:
            return fetch_as(self._unit, as_, sql, values)
        # The unit's own coroutine, not one around it.
        return self._unit.execute(sql, *values)

    def notify(self, topic: str) -> None:
        """Notify the listeners of a topic after the commit."""
        self._unit.notify(topic)

    async def decide(self, decider: Decider[Any, C, R], stream_id: str, command: C) -> R:
        """Run a command on the stream of a decider; return its result.

        Raises:
            Rejection: the decider refused.
        """
        scope = self._scope
        scope.adopt(decider)
        result, self._receipt = await decide_at(
            self._unit, decider, scope.types, stream_id, command, trace_id=self._context.trace_id
        )
        return result

    async def append(
        self, stream: str, events: Sequence[object], *, expected: int | None = None
    ) -> int:
        """Append events to a stream and return its new version.

        Raises:
            VersionConflict: the stream is not at the expected version.
            ContractError: an event is neither a struct nor a dataclass, or two classes have one
                stored name.
        """
        types = self._scope.types
        for event in events:
            cls = type(event)
            if cls not in types and (isinstance(event, msgspec.Struct) or is_dataclass(event)):
                types.add(cls)
        new = [types.encode(event, trace_id=self._context.trace_id) for event in events]
        version = await append(self._unit, stream, new, expected=expected)
        self._receipt = AppendReceipt(stream, version)
        return version

    def publish(self, event: PublicEvent[E], payload: E) -> None:
        """Publish a public event of this service: delivered if and only if the unit commits.

        Raises:
            ContractError: the event is another service's, or more than 1,000 are published.
            ForeignAwait: the unit is over.
        """
        if self._is_over:
            raise ForeignAwait(f"{event!r} was published after its unit; publish inside it")
        if event.service != self.service:
            raise ContractError(
                f"{self.service} published {event!r}, which belongs to {event.service}; "
                "declare an event in its own contract"
            )
        if len(self._published) >= PUBLISHED_MAX:
            raise ContractError(f"one unit may publish {PUBLISHED_MAX} events; use several units")
        self._published.append((event, payload))


class UnitScope:
    """The event types that the transactions of one running service share."""

    def __init__(self, types: EventTypes) -> None:
        self.types = types
        self._adopted: set[str] = set()

    def adopt(self, decider: Decider[Any, Any, Any]) -> None:
        """Register the event types of a decider. Idempotent."""
        if decider.name not in self._adopted:
            for event in decider.events:
                self.types.add(event)
            self._adopted.add(decider.name)

    async def run(
        self, unit: Unit, context: CallContext, body: Callable[[Transaction], Awaitable[R]]
    ) -> R:
        """Run a function on the transaction of a unit, and append what it published."""
        tx = Transaction(unit, self, context)
        result = await body(tx)
        for event, payload in tx._published:
            await publish(unit, event, payload, trace_id=context.trace_id)
        tx._is_over = True
        return result

    async def project(
        self, unit: Unit, context: CallContext, body: Callable[[Transaction], Awaitable[None]]
    ) -> None:
        """Run a projection's function, which may be run again for the same event years later.

        Raises:
            ContractError: it appended, decided or published, which a rebuild would repeat.
        """
        tx = Transaction(unit, self, context)
        await body(tx)
        tx._is_over = True
        if tx._receipt is not None or tx._published:
            raise ContractError(
                "a projection appended or published an event, which a rebuild would repeat; write "
                "its tables only, and let a subscription or a saga do the rest"
            )
