"""`Context`: what a handler that reads, calls others and writes in units is given."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple, TypeVar, TypeVarTuple, overload
from weakref import ref

import msgspec
from msgspec.structs import replace

from synchromesh.calls import Call, Caller
from synchromesh.clock import loop_now
from synchromesh.codec import decode, digest, encode
from synchromesh.context import KEY_CHARS_MAX, CallContext
from synchromesh.errors import (
    BadRequest,
    ContractError,
    KeyUndone,
    Rejection,
    SagaGone,
    StoreError,
    from_problem,
)
from synchromesh.events import AppendReceipt
from synchromesh.functions import Weakly, there, weakly
from synchromesh.identity import Principal
from synchromesh.personal_types import PersonalFields, mask_arguments, personal_fields
from synchromesh.propagation import baggage_items
from synchromesh.runtime import Runtime
from synchromesh.saga import SagaDefinition, SagaRun
from synchromesh.saga.engine import Engine
from synchromesh.sealing import open_sealed
from synchromesh.service.transaction import Transaction, UnitScope
from synchromesh.store import (
    InboxState,
    Once,
    Recorded,
    Row,
    SqlValue,
    Store,
    Unit,
    fetch_as,
    inbox,
)
from synchromesh.store.guard import in_unit, refuse_in_unit

R = TypeVar("R")
T = TypeVar("T")
I = TypeVar("I")  # noqa: E741  the input of a saga
Ts = TypeVarTuple("Ts")


@dataclass(frozen=True, slots=True)
class HandlerDeps:
    """The dependencies of the handlers of one running service.

    Attributes:
        wait_for: waits until a projection has passed a receipt, for at most so many seconds.
    """

    store: Store
    caller: Caller
    engine: Engine
    units: UnitScope
    wait_for: Callable[[str, AppendReceipt, float], Awaitable[None]]
    runtime: Runtime
    keep_s: float


@dataclass(frozen=True, slots=True)
class RunningCommand:
    """The keyed command that a handler runs for, as recorded before its first effect.

    Attributes:
        personal: the personal fields of the arguments in the request.
    """

    caller: str
    key: str
    digest: str
    request: bytes
    raises: tuple[type[Rejection], ...]
    personal: PersonalFields | None = None


class Context:
    """The context of a request: its deadline, trace, principal and key; calls, reads and writes.

    Nested commands and units have keys made from this call's key, so that a handler that is run
    again after a crash repeats no effect (D3).

    Attributes:
        has_begun: an effect of this command is recorded, so that an undo waits for its conclusion.
        is_in_doubt: a unit was cancelled, or failed, after it was given to the database: what it
            did may stand.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, command, query
        >>> from synchromesh.service import Service
        >>> class Prices(Contract, Protocol, service="prices", version="1.0"):
        ...     @query("GET /prices/{sku}")
        ...     async def price(self, sku: str) -> int: ...
        >>> class Orders(Contract, Protocol, service="orders", version="1.0"):
        ...     @command("POST /orders")
        ...     async def place(self, sku: str) -> int: ...
        >>> orders = Service("orders", implements=Orders)
        >>> async def insert(tx: Transaction, sku: str, price: int) -> None:
        ...     await tx.execute("insert into orders values (?, ?)", sku, price)
        >>> @orders.handles(Orders.place)
        ... async def place(ctx: Context, sku: str) -> int:
        ...     price = await ctx.call(Prices.price(sku), timeout_s=0.3)
        ...     await ctx.write(insert, sku, price)
        ...     return price
    """

    # What a class has costs no store for each call; a query changes none of it.
    has_begun = False
    is_in_doubt = False
    _is_over = False
    _ordinals: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self, deps: HandlerDeps, context: CallContext, running: RunningCommand | None
    ) -> None:
        self._deps = deps
        self._context = context
        self._running = running

    def end(self) -> None:
        """Reject further effects: the command is concluded, and may already be undone."""
        self._is_over = True

    @property
    def trace_id(self) -> str:
        """The trace that this call belongs to."""
        return self._context.trace_id

    @property
    def baggage(self) -> Mapping[str, str]:
        """What `[telemetry] baggage` lets in of what a client says of its request.

        A label, as the trace is: anybody can say anything, so it decides nothing. It ends at a
        durable boundary, such as a step of a saga or a message.
        """
        return baggage_items(self._context.marks.baggage)

    @property
    def principal(self) -> Principal:
        """On whose behalf the call is made, `NOBODY` for the calling service's own."""
        return self._context.principal

    @property
    def caller(self) -> str:
        """The service that calls."""
        return self._context.caller

    @property
    def key(self) -> str:
        """The idempotency key of this command, "" in a query."""
        return self._context.key

    @property
    def now_us(self) -> int:
        """The wall clock, in microseconds since 1970 UTC."""
        return self._deps.runtime.wall_us()

    def remaining_s(self) -> float | None:
        """Return the seconds left until the deadline; None without one."""
        return self._context.remaining_s(loop_now())

    def new_id(self) -> str:
        """Return a new UUIDv7. A handler that is run again gets another one."""
        return self._deps.runtime.new_id()

    def call(self, call: Call[R], *, timeout_s: float | None = None) -> Coroutine[Any, Any, R]:
        """Call another service and return its answer, within this call's deadline.

        Keys count the calls of an operation in the order in which they are made here, so that
        several may be awaited together and still have the same keys when the handler is run again.

        Raises:
            Rejection: one of those that the operation declares.
            CallError: it failed; see `errors` for what is known of its outcome.
            ContractError: this is a query, which may not call a command.
            ForeignAwait: a unit of work made the call.
        """
        operation = call.operation
        if in_unit.get() is not None:
            refuse_in_unit(f"the call {operation.full_name}")
        if not operation.is_command:
            # A query is sent without a key; what this call undoes does not concern those below.
            context = self._context
            if context.undoes:
                context = replace(context, undoes="")
            return self._deps.caller.call(call, context=context, timeout_s=timeout_s)
        running = self._writing(f"the command {operation.full_name}")
        nested = self._nested(operation.full_name)
        key = sent_key(running.caller, running.key, nested)
        context = replace(self._context, key=key, undoes="")
        return self._command(running, call, context, timeout_s)

    async def _command(
        self, running: RunningCommand, call: Call[R], context: CallContext, timeout_s: float | None
    ) -> R:
        self._check_over(f"the command {call.operation.full_name}")
        # Durable before the first effect elsewhere: an undo that comes in the middle then finds it,
        # instead of leaving a tombstone beside an effect that has happened.
        if not self.has_begun:
            with self._doubting():
                await self._deps.store.write(
                    lambda unit: begin(unit, running, self._deps.keep_s), name="begin a command"
                )
            self.has_begun = True
        return await self._deps.caller.call(call, context=context, timeout_s=timeout_s)

    @overload
    def read(self, sql: str, *values: SqlValue) -> Coroutine[Any, Any, list[Row]]: ...
    @overload
    def read(self, sql: str, *values: SqlValue, as_: type[T]) -> Coroutine[Any, Any, list[T]]: ...
    def read(
        self, sql: str, *values: SqlValue, as_: type[T] | None = None
    ) -> Coroutine[Any, Any, list[Row]] | Coroutine[Any, Any, list[T]]:
        """Query this service's database and return the committed rows; await it.

        Args:
            as_: what each row is returned as, as in `Transaction.execute`.

        Raises:
            StatementFailed: the statement is wrong, or writes, or its rows are not of that type.
        """
        store = self._deps.store
        return store.read(sql, *values) if as_ is None else fetch_as(store, as_, sql, values)

    async def wait_for(
        self, projection: str, receipt: AppendReceipt, *, within_s: float = 1.0
    ) -> None:
        """Return once a projection has passed what a receipt tells of: read your own write.

        The receipt is that of a transaction (`tx.receipt`), and may have come with the query.

        Raises:
            ProjectionBehind: it has not within the time, or by this call's deadline; or it is
                parked.
            BadRequest: the receipt is of no event of this service.
        """
        left_s = self.remaining_s()
        longest_s = within_s if left_s is None else max(0.0, min(within_s, left_s))
        await self._deps.wait_for(projection, receipt, longest_s)

    def write(
        self, unit: Callable[[Transaction, *Ts], Awaitable[R]], *args: *Ts
    ) -> Coroutine[Any, Any, R]:
        """Run a transaction exactly once under this command's key, and return its result.

        Keys count the units of a function in the order in which they are asked for here, as those
        of calls do.

        Raises:
            Rejection: raised by the unit; it is recorded, as its result would be.
            KeyUndone: this command was undone before it had an effect.
            ContractError: this is a query, which may not write; or what the unit is given or
                returns cannot be recorded.
        """
        running = self._writing("ctx.write")
        name = getattr(unit, "__name__", "unit")
        # As `weakly` does it, without its frame.
        weak = ref(unit) if type(unit) is FunctionType else weakly(unit)
        wanted = digest(_told(name, args, _shape_of(weak).mask))
        once = Once(running.caller, self._nested(name), wanted, self._deps.keep_s)
        return self._write(running, once, name, unit, args)

    async def _write(
        self,
        running: RunningCommand,
        once: Once,
        name: str,
        unit: Callable[[Transaction, *Ts], Awaitable[R]],
        args: tuple[*Ts],
    ) -> R:
        result_type, personal, _ = _shape_of(
            ref(unit) if type(unit) is FunctionType else weakly(unit)
        )
        self._check_over("ctx.write")
        rejections: list[Rejection] = []

        async def body(bare: Unit) -> bytes:
            await begin(bare, running, self._deps.keep_s)
            try:
                result = await self._deps.units.run(bare, self._context, lambda tx: unit(tx, *args))
            except Rejection as rejection:
                rejections[:] = [rejection]
                raise
            answer = _recordable(result, f"the result of unit {name!r}")
            _load(answer, result_type, name)
            if personal is None:
                return answer
            return personal.seal(answer, answer_place(once.caller, once.key), bare.vault)

        # A lambda is told by where it stands, which is in its handler.
        shown = getattr(unit, "__qualname__", name) if name == "<lambda>" else name
        with self._doubting():
            recorded = await self._deps.store.write_once(body, once, name=shown)
        if recorded.kind is InboxState.ANSWER:
            self.has_begun = True
            answer = recorded.body
            if personal is not None:
                where = answer_place(once.caller, once.key)
                answer = open_sealed(answer, where, self._deps.store.vault)
            return typing.cast("R", _load(answer, result_type, name))
        # A unit that raised a rejection has left no trace but that: the command has yet to begin.
        try:
            raise (
                rejections[0]
                if rejections
                else recorded_error(recorded, _rejections_at(running, unit))
            )
        finally:
            rejections.clear()  # its traceback leads here

    async def start_saga(
        self,
        definition: SagaDefinition[I, R],
        value: I,
        *,
        id: str,  # noqa: A002
    ) -> SagaRun[R]:
        """Start a saga of this service; use `definition.start(ctx, value, id=...)`."""
        running = self._writing("starting a saga")
        with self._doubting():
            run = await self._deps.engine.start(
                definition,
                value,
                id=id,
                context=self._context,
                begin=lambda unit: begin(unit, running, self._deps.keep_s),
            )
        self.has_begun = True
        run.due_s = self._context.deadline_s
        return run

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        try:
            yield
        except (asyncio.CancelledError, StoreError, SagaGone):
            self.is_in_doubt = True
            raise

    def _writing(self, what: str) -> RunningCommand:
        if self._running is None:
            raise ContractError(f"{what} in a query; declare a @command where state changes")
        self._check_over(what)
        return self._running

    def _check_over(self, what: str) -> None:
        if self._is_over:
            raise ContractError(
                f"{what} after its handler had ended: await in the handler all that it begins"
            )

    def _nested(self, name: str) -> str:
        ordinal = self._ordinals.get(name, 0) + 1
        self._ordinals = {**self._ordinals, name: ordinal}
        return f"{self._context.key}/{name}#{ordinal}"


def sent_key(caller: str, own: str, nested: str) -> str:
    """Return the idempotency key of a nested command; its callee knows only our service's name.

    A key is its caller's own: those of two callers must not meet there, nor those of the steps of
    our sagas, whose ids our callers choose: a step's key ends in its number or in "undo".
    """
    key = f"{nested}@{caller}"
    if len(key) <= KEY_CHARS_MAX:
        return key
    # Whoever was given a key that can be sent can finish what was begun under it.
    return f"{digest(own.encode())}{nested.removeprefix(own)}@{caller}"


async def begin(unit: Unit, running: RunningCommand, keep_s: float) -> None:
    """Record in a unit that a command has begun, so that its undo waits for its conclusion.

    Raises:
        KeyUndone: it was undone before; nothing of the unit may be written.
    """
    request = running.request
    if running.personal is not None:
        parts = msgspec.json.decode(request, type=dict[str, msgspec.Raw])
        where = request_place(running.caller, running.key)
        sealed = running.personal.seal(bytes(parts["arguments"]), where, unit.vault)
        request = encode({**parts, "arguments": msgspec.Raw(sealed)})
    await inbox.begin(unit, running.caller, running.key, running.digest, request, keep_s)


def request_place(caller: str, key: str) -> str:
    """Return what personal values in the recorded request of a command are sealed for."""
    return f"request/{caller}/{key}"


def answer_place(caller: str, key: str) -> str:
    """Return what personal values in an answer that is recorded under a key are sealed for."""
    return f"answer/{caller}/{key}"


class _UnitShape(NamedTuple):
    """The result type of a unit, its personal fields, and what masks those of its arguments."""

    result: Any
    personal: PersonalFields | None
    mask: Callable[[bytes], bytes] | None


@lru_cache(maxsize=1024)
def _shape_of(weak: Weakly) -> _UnitShape:
    """Return the annotated types of a function; its result is `Any` where there is none."""
    function = there(weak)
    name = getattr(function, "__qualname__", function)
    try:
        result = typing.get_type_hints(function, include_extras=True).get("return", Any)
    except NameError as error:
        raise ContractError(
            f"unit {name!r}: {error}; its annotations must be importable, since its recorded "
            "result is read by them"
        ) from error
    except TypeError:
        return _UnitShape(Any, None, None)  # a callable object or a partial without annotations
    personal = personal_fields(result)
    if personal is not None:
        personal.check_subject(f"the result of unit {name!r}")
    return _UnitShape(result, personal, mask_arguments(function))


def _told(name: str, args: tuple[object, ...], mask: Callable[[bytes], bytes] | None) -> bytes:
    """Return what tells a unit and its arguments from others, without what is personal in them."""
    what = f"the arguments of unit {name!r}"
    if mask is None:
        return _recordable([name, args], what)
    return encode([name, msgspec.Raw(mask(_recordable(args, what)))])


def _recordable(value: object, what: str) -> bytes:
    try:
        return encode(value)
    except BadRequest as error:
        raise ContractError(f"{what} cannot be recorded: {error.message}") from error


def _load(answer: bytes, kind: Any, name: str) -> Any:
    try:
        return decode(answer, kind)
    except BadRequest as error:
        raise ContractError(
            f"the result of unit {name!r} is not what its annotation says: {error.message}"
        ) from error


def _rejections_at(
    running: RunningCommand, unit: Callable[..., Any]
) -> typing.Iterator[type[Rejection]]:
    """Yield the rejections that a recorded code may stand for, the most likely first.

    Two services may give one code to classes of their own: the command's own come first, then those
    that the unit's module defines or imports, then any other that is defined in this process.
    """
    yield from running.raises
    named = getattr(unit, "__globals__", {}).values()
    here = [each for each in named if isinstance(each, type) and issubclass(each, Rejection)]
    yield from sorted(here, key=lambda cls: cls.__module__ != unit.__module__)
    pending: list[type[Rejection]] = [Rejection]
    while pending:
        for cls in pending.pop().__subclasses__():
            yield cls
            pending.append(cls)


def recorded_error(recorded: Recorded, raises: typing.Iterable[type[Rejection]]) -> Exception:
    """Return the error that a recorded conclusion stands for."""
    if recorded.kind is InboxState.TOMBSTONE:
        return KeyUndone("the key was undone before its call came; the call has no effect")
    problem = msgspec.json.decode(recorded.body, type=dict[str, Any])
    return from_problem(problem, status=int(problem.get("status", 409)), raises=raises)
