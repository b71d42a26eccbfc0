"""`Context`: what a handler that reads, calls others and writes in units is given."""

from __future__ import annotations

import asyncio
import typing
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, TypeVarTuple

import msgspec

from synchromesh.calls import Call, Caller
from synchromesh.codec import decode, digest, encode
from synchromesh.context import CallContext
from synchromesh.errors import ContractError, KeyUndone, Rejection, from_problem
from synchromesh.runtime import Runtime
from synchromesh.saga import SagaDefinition, SagaRun
from synchromesh.saga.engine import Engine
from synchromesh.service.transaction import Transaction, UnitScope
from synchromesh.store import Kind, Once, Recorded, Row, SqlValue, Store, Unit, inbox

R = TypeVar("R")
I = TypeVar("I")  # noqa: E741  the input of a saga
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class Home:
    """What the handlers of one running service work with."""

    store: Store
    caller: Caller
    engine: Engine
    units: UnitScope
    runtime: Runtime
    keep_s: float


@dataclass(frozen=True, slots=True)
class Running:
    """The keyed command that a handler runs for: what its first effect records as begun."""

    caller: str
    key: str
    digest: str
    request: bytes


class Context:
    """Serves one run of a handler; it carries the caller's deadline, trace, principal and key.

    Nested commands and units have keys made from this call's key, so that a handler that is run
    again after a crash repeats no effect (D3).
    """

    def __init__(self, home: Home, context: CallContext, running: Running | None) -> None:
        self._home = home
        self._context = context
        self._running = running
        self._ordinals: Counter[str] = Counter()
        self._has_begun = False

    @property
    def trace_id(self) -> str:
        """The trace that this call belongs to."""
        return self._context.trace_id

    @property
    def principal(self) -> str:
        """On whose behalf the call is made, "" for the calling service's own."""
        return self._context.principal

    @property
    def caller(self) -> str:
        """The service that calls."""
        return self._context.caller

    @property
    def key(self) -> str:
        """The idempotency key of this command, "" in a query."""
        return self._context.key

    def remaining_s(self) -> float | None:
        """Return how long the caller still waits, in seconds; None for ever."""
        return self._context.remaining_s(asyncio.get_running_loop().time())

    def new_id(self) -> str:
        """Return a new UUIDv7. A handler that is run again gets another one."""
        return self._home.runtime.new_id()

    async def call(self, call: Call[R], *, timeout_s: float | None = None) -> R:
        """Send a call and return its answer, in what is left of this call's deadline.

        Raises:
            Rejection: one of those that the operation declares.
            CallError: it failed; see `errors` for what is known of its outcome.
        """
        key = ""
        if call.operation.is_command:
            key = self._nested(call.operation.full_name)
            await self._begin()
        context = replace(self._context, key=key, undoes="")
        return await self._home.caller.call(call, context=context, timeout_s=timeout_s)

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:
        """Return rows of this service's database as they are committed."""
        return await self._home.store.read(sql, *values)

    async def write(self, unit: Callable[[Transaction, *Ts], Awaitable[R]], *args: *Ts) -> R:
        """Run a unit of work exactly once under this command's key, and return its result.

        Raises:
            Rejection: the unit refused; the refusal is recorded, as its result would be.
            KeyUndone: this command was undone before it had an effect.
            ContractError: this is a query, which may not write.
        """
        running = self._writing("ctx.write")
        name = getattr(unit, "__name__", "unit")
        once = Once(
            running.caller,
            self._nested(name),
            digest(encode([name, args])),
            self._home.keep_s,
        )
        rejections: list[Rejection] = []

        async def body(bare: Unit) -> bytes:
            await begin(bare, running, self._home.keep_s)
            try:
                result = await self._home.units.run(bare, self._context, lambda tx: unit(tx, *args))
            except Rejection as rejection:
                rejections[:] = [rejection]
                raise
            return encode(result)

        recorded = await self._home.store.write_once(body, once, name=name)
        self._has_begun = True
        if recorded.kind is Kind.REFUSAL:
            raise rejections[0] if rejections else refusal_of(recorded, all_rejections())
        return typing.cast("R", decode(recorded.body, result_type(unit)))

    async def start_saga(
        self,
        definition: SagaDefinition[I, R],
        value: I,
        *,
        id: str,  # noqa: A002
    ) -> SagaRun[R]:
        """Start a saga of this service; use `definition.start(ctx, value, id=...)`."""
        running = self._writing("starting a saga")
        run = await self._home.engine.start(
            definition,
            value,
            id=id,
            context=self._context,
            begin=lambda unit: begin(unit, running, self._home.keep_s),
        )
        self._has_begun = True
        return run

    async def _begin(self) -> None:
        """Make it durable that this command has begun, before its first effect elsewhere.

        An undo that comes in the middle then finds it, instead of leaving a tombstone beside an
        effect that has happened.
        """
        running = self._running
        if running is None or self._has_begun:
            return
        await self._home.store.write(
            lambda unit: begin(unit, running, self._home.keep_s), name="begin a command"
        )
        self._has_begun = True

    def _writing(self, what: str) -> Running:
        if self._running is None:
            raise ContractError(f"{what} in a query; declare a @command where state changes")
        return self._running

    def _nested(self, name: str) -> str:
        self._ordinals[name] += 1
        if not self._context.key:
            return self._home.runtime.new_id()
        return f"{self._context.key}/{name}#{self._ordinals[name]}"


async def begin(unit: Unit, running: Running, keep_s: float) -> None:
    """Record in a unit that a command has begun, so that its undo waits for its conclusion.

    Raises:
        KeyUndone: it was undone before; nothing of the unit may be written.
    """
    await inbox.begin(unit, running.caller, running.key, running.digest, running.request, keep_s)


def result_type(function: Callable[..., Any]) -> Any:
    """Return the annotated result of a function; anything plain where there is none."""
    return typing.get_type_hints(function).get("return", Any)


def all_rejections() -> list[type[Rejection]]:
    """Return every rejection that is defined in this process."""
    found: list[type[Rejection]] = []
    pending = [Rejection]
    while pending:
        for cls in pending.pop().__subclasses__():
            found.append(cls)
            pending.append(cls)
    return found


def refusal_of(recorded: Recorded, raises: typing.Iterable[type[Rejection]]) -> Exception:
    """Return the error that a recorded conclusion stands for."""
    if recorded.kind is Kind.TOMBSTONE:
        return KeyUndone("the key was undone before its call came; the call has no effect")
    problem = msgspec.json.decode(recorded.body, type=dict[str, Any])
    return from_problem(problem, status=int(problem.get("status", 409)), raises=raises)
