"""Steps: what a saga function awaits. A step is a value; only the engine gives it an effect."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar, TypeVarTuple, overload

from synchromesh.calls.contract import Call, Command
from synchromesh.codec import decode, digest, encode
from synchromesh.durations import duration as seconds_of
from synchromesh.durations import is_number
from synchromesh.errors import BadRequest, ContractError, Rejection, SagaGone, from_problem
from synchromesh.saga.records import Ask, NapAsk
from synchromesh.saga.step_checks import check_taken, check_undo, signature_of, taken_by

TX = TypeVar("TX")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
E = TypeVar("E")
O = TypeVar("O")  # noqa: E741
N = TypeVar("N", bound=Rejection)
Ts = TypeVarTuple("Ts")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")

STEPS_TOGETHER_MAX = 64
_EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)


class StepRequest:
    """What a saga function yields to its engine: steps, of which all results are wanted."""

    __slots__ = ("steps",)

    def __init__(self, steps: tuple[Step[Any], ...]) -> None:
        self.steps = steps


class Step(Generic[R_co]):
    """One step of a saga, described and not done. Await it, once, in the saga function."""

    __slots__ = ("_saga", "ask", "result_type")

    def __init__(self, saga: Saga, ask: Ask, result_type: Any) -> None:
        self._saga = saga
        saga.unawaited[self] = None
        self.ask = ask
        self.result_type = result_type

    def claim(self) -> None:
        """Mark the step as asked for.

        Raises:
            SagaGone: the run has left memory.
            ContractError: it was asked for before.
        """
        if self._saga.is_gone:
            self._saga.check()
        if self not in self._saga.unawaited:
            raise ContractError(
                f"step {self.ask.name!r} is awaited a second time; make a new step for each time"
            )
        del self._saga.unawaited[self]

    def load(self, result: bytes) -> R_co:
        """Return the step's recorded result as a value of its type."""
        value: R_co = decode(result, self.result_type)
        return value

    def __await__(self) -> Generator[StepRequest, Any, R_co]:
        self.claim()
        results: tuple[R_co, ...] = yield StepRequest((self,))
        return results[0]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ask.name}>"


class WriteStep(Step[R_co]):
    """A unit of work of the service's own database."""

    __slots__ = ("args", "fn", "undo")

    def __init__(
        self,
        saga: Saga,
        fn: Callable[..., Awaitable[R_co]],
        args: tuple[object, ...],
        undo: Callable[[Any, Any], Awaitable[object]] | None,
    ) -> None:
        name, result_type = signature_of(fn)
        if undo is not None:
            check_taken(name, result_type, getattr(undo, "__name__", ""), taken_by(undo))
        ask = Ask(name, digest(encode(args)), is_write=True, has_undo=undo is not None)
        super().__init__(saga, ask, result_type)
        self.fn, self.args, self.undo = fn, args, undo


class CallStep(Step[R_co]):
    """A call to another service."""

    __slots__ = ("call", "timeout_s", "undo")

    def __init__(
        self,
        saga: Saga,
        call: Call[R_co],
        undo: Command[..., Any] | None,
        is_pivot: bool,
        timeout_s: float | None,
        takes: tuple[str, ...] = (),
    ) -> None:
        operation = call.operation
        check_undo(call, undo, is_pivot)
        if timeout_s is not None and not (is_number(timeout_s) and timeout_s > 0):
            raise ContractError(
                f"the step {operation.full_name} was given timeout_s {timeout_s!r}; make it a "
                "number of seconds above 0, or None for the policy's"
            )
        ask = Ask(
            operation.full_name,
            call.digest,
            has_undo=undo is not None,
            is_pivot=is_pivot,
            is_query=not operation.is_command,
            takes=takes,
        )
        super().__init__(saga, ask, operation.shape.result)
        self.call, self.undo, self.timeout_s = call, undo, timeout_s

    def load_refusal(self, problem: bytes) -> Exception:
        """Return the rejection that is recorded.

        Raises:
            BadRequest: it is none that the operation declares.
        """
        told = decode(problem, dict[str, Any])
        raises = self.call.operation.raises
        error = from_problem(told, status=int(told.get("status", 409)), raises=raises)
        if not isinstance(error, Rejection):
            raise BadRequest(
                f"{self.ask.name} is recorded as refused with {told.get('code')!r}, which its "
                "contract does not declare"
            )
        return error

    def undo_arguments(self, result: bytes | None) -> bytes:
        """Return the undo's canonical arguments: the result by the name of its first parameter.

        Without a result they are empty: the participant finds it by the step's key (S6).
        """
        if self.undo is None or result is None:
            return b"{}"
        names = self.undo.shape.arguments.__struct_fields__
        return b"{%s:%s}" % (encode(names[0]), result) if names else b"{}"


class SideStep(Step[R_co]):
    """A value that the function may not make itself, for a re-run would make another."""

    __slots__ = ("fn",)

    def __init__(self, saga: Saga, ask: Ask, result_type: Any, fn: Callable[[], R_co]) -> None:
        super().__init__(saga, ask, result_type)
        self.fn = fn


class NapStep(Step[R_co]):
    """A time that the run sleeps; it needs no memory meanwhile."""

    __slots__ = ()


class EventStep(NapStep[R_co]):
    """An event that the run waits for; it gives it, or what stands for its absence."""

    __slots__ = ("otherwise",)

    def __init__(self, saga: Saga, ask: Ask, kind: Any, otherwise: Any) -> None:
        super().__init__(saga, ask, list[kind] | None)
        self.otherwise = otherwise

    def load(self, result: bytes) -> R_co:
        """Return the event that is recorded; without one, what was to be given otherwise."""
        told: Any = decode(result, self.result_type)
        value: R_co = self.otherwise if told is None else told[0]
        return value


class Together(Generic[R_co]):
    """Steps that run side by side; awaiting gives the tuple of their results."""

    __slots__ = ("_steps",)

    def __init__(self, steps: tuple[Step[Any], ...]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[StepRequest, Any, R_co]:
        for step in self._steps:
            step.claim()
        results: R_co = yield StepRequest(self._steps)
        return results


class Saga:
    """Gives a saga function its steps: transactions, calls with their compensation, the pivot.

    The function awaits nothing else. It never sees a step fail: a refusal, or a failure that
    outlasts its attempts, ends the function and undoes what was done, in reverse.

    Attributes:
        id: the run's id, which the keys of its steps begin with.
        trace_id: the trace of the request that started it.
        is_gone: the run has left memory, or was turned: every further step raises.
        unawaited: the steps that were made and are not awaited yet, oldest first.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, command
        >>> class Bank(Contract, Protocol, service="bank", version="1.0"):
        ...     @command("POST /holds")
        ...     async def hold(self, cents: int) -> str: ...
        ...     @command("POST /releases")
        ...     async def release(self, hold_id: str) -> None: ...
        ...     @command("POST /charges")
        ...     async def charge(self, hold_id: str) -> str: ...
        >>> async def pay(s: Saga, cents: int) -> str:
        ...     hold_id = await s.call(Bank.hold(cents), undo=Bank.release)
        ...     return await s.call(Bank.charge(hold_id), pivot=True)
    """

    __slots__ = ("id", "is_gone", "trace_id", "unawaited")

    def __init__(self, id: str, trace_id: str) -> None:  # noqa: A002
        self.id = id
        self.trace_id = trace_id
        self.is_gone = False
        self.unawaited: dict[Step[Any], None] = {}

    def write(
        self,
        fn: Callable[[TX, *Ts], Awaitable[R]],
        /,
        *args: *Ts,
        undo: Callable[[TX, R], Awaitable[object]] | None = None,
    ) -> Step[R]:
        """Describe a unit of work: `fn(tx, *args)` commits with the run's record of it (S3).

        Args:
            fn: the unit; awaits nothing but `tx`. A `Rejection` it raises undoes the saga.
            args: what JSON can carry; they tell a re-run that it is the same step.
            undo: a unit too, given the result of `fn`.

        Raises:
            SagaGone: the run has left memory.
            ContractError: the result's type is not annotated, or is none that the undo takes.
        """
        self.check()
        return WriteStep(self, fn, args, undo)

    def call(
        self,
        call: Call[R],
        *,
        undo: Command[[R], Any] | None = None,
        pivot: bool = False,
        timeout_s: float | None = None,
    ) -> Step[R]:
        """Describe a call to another service, made under a key of its own until it is known.

        Args:
            call: made by an operation of a contract.
            undo: the command of the same service that takes the call's result and undoes it.
            pivot: the point of no return: from its first attempt on the saga only goes forward.
            timeout_s: how long one attempt waits; the policy's by default.

        Raises:
            SagaGone: the run has left memory.
            ContractError: a query or a pivot has an undo, the undo is another service's or does not
                take the call's result, or the timeout is not a number above 0.
        """
        self.check()
        return CallStep(self, call, undo, pivot, timeout_s)

    def try_call(
        self,
        call: Call[R],
        taken: type[N],
        *,
        undo: Command[[R], Any] | None = None,
        pivot: bool = False,
        timeout_s: float | None = None,
    ) -> Step[R | N]:
        """Describe a call of which a declared rejection is an answer: the step gives it as a value.

        The function goes on with it, and the run does not turn; whatever else goes wrong is as with
        `call`. A pivot that was refused so is none: another may come.

        Args:
            taken: the class of the rejection; all that the operation declares, for `Rejection`.

        Raises:
            SagaGone, ContractError: as `call` does, or the operation declares no such rejection.
        """
        self.check()
        declared = call.operation.raises
        codes = tuple(each.code for each in declared if issubclass(each, taken))
        if not codes:
            raise ContractError(
                f"{call.operation.full_name} does not declare {taken.__name__} in raises=; it "
                f"declares {', '.join(each.__name__ for each in declared) or 'nothing'}"
            )
        step: Step[Any] = CallStep(self, call, undo, pivot, timeout_s, codes)
        return step

    def side(self, fn: Callable[[], R]) -> Step[R]:
        """Describe a value that is no effect, such as the time, a number drawn or a new id.

        The function is called once and what it returns is recorded: a re-run is given the same. It
        may be called again where the process died before any later step had an effect.

        Raises:
            SagaGone: the run has left memory.
            ContractError: its result's type is not annotated.
        """
        self.check()
        name, result_type = signature_of(fn)
        return SideStep(self, Ask(name, digest(b""), is_write=True), result_type, fn)

    def sleep(self, duration: str) -> Step[None]:
        """Describe a sleep of a while, such as "10m"; the run leaves memory, and survives restarts.

        Before the pivot the saga's deadline counts on, and ends the sleep.

        Raises:
            SagaGone: the run has left memory.
            ConfigError: it is no duration.
        """
        self.check()
        for_s = seconds_of(duration)
        return NapStep(self, _nap("sleep", NapAsk(for_s=for_s)), type(None))

    def until(self, moment: dt.datetime) -> Step[None]:
        """Describe a sleep until a moment; one that has passed wakes at once. Else as `sleep`.

        Raises:
            SagaGone: the run has left memory.
            ContractError: the moment has no time zone.
        """
        self.check()
        if moment.tzinfo is None:
            raise ContractError(
                f"s.until was given {moment.isoformat()}, which has no time zone: 10 o'clock is "
                "many moments; use dt.datetime(..., tzinfo=dt.timezone.utc)"
            )
        at_us = max(1, (moment - _EPOCH) // dt.timedelta(microseconds=1))
        return NapStep(self, _nap("until", NapAsk(at_us=at_us)), type(None))

    @overload
    def event(self, kind: type[E], *, within: str) -> Step[E | None]: ...
    @overload
    def event(self, kind: type[E], *, within: str, otherwise: O) -> Step[E | O]: ...
    def event(self, kind: type[E], *, within: str, otherwise: Any = None) -> Step[Any]:
        """Describe a wait for an event that the run is told, by `definition.tell(tx, id, event)`.

        What it was told before it asked counts, the oldest first. It sleeps meanwhile, as `sleep`.

        Args:
            kind: the class of the event; its name is what tells it from others.
            within: how long it is waited for, such as "2d".
            otherwise: what the step gives where none came in time.

        Raises:
            SagaGone: the run has left memory.
            ConfigError: `within` is no duration.
        """
        self.check()
        nap = NapAsk(for_s=seconds_of(within), awaits=kind.__name__)
        return EventStep(self, _nap(kind.__name__, nap), kind, otherwise)

    # The type system has no map over a TypeVarTuple: a tuple of mixed types needs a signature for
    # each length. Steps of one type, however many, need the last one alone.
    @overload
    def all(self, a: Step[T1], b: Step[T2], /) -> Together[tuple[T1, T2]]: ...
    @overload
    def all(self, a: Step[T1], b: Step[T2], c: Step[T3], /) -> Together[tuple[T1, T2, T3]]: ...
    @overload
    def all(
        self, a: Step[T1], b: Step[T2], c: Step[T3], d: Step[T4], /
    ) -> Together[tuple[T1, T2, T3, T4]]: ...
    @overload
    def all(self, *steps: Step[R]) -> Together[tuple[R, ...]]: ...
    def all(self, *steps: Step[Any]) -> Together[Any]:
        """Run steps side by side; where one turns the saga, the others are cancelled and undone.

        Raises:
            SagaGone: the run has left memory.
            ContractError: there is no step, there are too many, or one is a pivot or sleeps.
        """
        self.check()
        if not 1 <= len(steps) <= STEPS_TOGETHER_MAX:
            raise ContractError(
                f"s.all was given {len(steps)} steps; expected 1 to {STEPS_TOGETHER_MAX}"
            )
        for step in steps:
            if step.ask.is_pivot or step.ask.nap is not None:
                what = "is a pivot" if step.ask.is_pivot else "sleeps"
                raise ContractError(
                    f"step {step.ask.name!r} {what}; await it by itself, not in s.all"
                )
        return Together(steps)

    def check(self) -> None:
        """Raise `SagaGone` where the run has left memory or was turned (S11)."""
        if self.is_gone:
            raise SagaGone(
                f"saga {self.id!r} no longer runs this code: it was turned, or it continues "
                "elsewhere; a step asked for now has no effect"
            )

    def leave(self) -> None:
        """Refuse every further step: what a `finally:` of the function asks for has no effect."""
        self.is_gone = True

    def __repr__(self) -> str:
        return f"<Saga {self.id}{' gone' if self.is_gone else ''}>"


def _nap(name: str, nap: NapAsk) -> Ask:
    return Ask(name, digest(encode(nap)), nap=nap)
