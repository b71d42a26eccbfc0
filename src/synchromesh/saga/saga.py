"""The language of sagas: what a saga function says to describe its steps."""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Never, TypeVar, TypeVarTuple, overload

from synchromesh.calls.contract import Call, Command
from synchromesh.codec import digest, encode
from synchromesh.durations import duration as seconds_of
from synchromesh.errors import ContractError, Rejection
from synchromesh.saga.records import Ask, NapAsk
from synchromesh.saga.steps import (
    CallStep,
    EventStep,
    FunctionStep,
    NapStep,
    SideStep,
    Step,
    StepBook,
    Together,
    Unknown,
    WriteStep,
)

TX = TypeVar("TX")
I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
E = TypeVar("E")
O = TypeVar("O")  # noqa: E741
N = TypeVar("N", bound=Rejection)
Ts = TypeVarTuple("Ts")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")

STEPS_TOGETHER_MAX = 64
EACH_MAX = 10_000
_EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)


class Saga(StepBook):
    """Gives a saga function its steps: transactions, calls with their compensation, the pivot.

    The function awaits nothing else. It never sees a step fail: a rejection, or a failure that
    outlasts its attempts, ends the function and undoes what was done, in reverse.

    Attributes:
        id: the run's id, which the keys of its steps begin with.
        trace_id: the trace of the request that started it.

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

    __slots__ = ("trace_id",)

    def __init__(self, id: str, trace_id: str) -> None:  # noqa: A002
        super().__init__(id)
        self.trace_id = trace_id

    def write(
        self,
        fn: Callable[[TX, *Ts], Awaitable[R]],
        /,
        *args: *Ts,
        undo: Callable[[TX, R], Awaitable[object]] | None = None,
        **named: Never,
    ) -> Step[R]:
        """Describe a unit of work: `fn(tx, *args)` commits with the run's record of it (S3).

        Args:
            fn: the unit; awaits nothing but `tx`. A `Rejection` it raises undoes the saga.
            args: what JSON can carry; they tell a re-run that it is the same step.
            undo: a unit too, given the result of `fn`.
            named: none; the arguments of `fn` are given by place.

        Raises:
            SagaGone: the run has left memory.
            ContractError: the result's type is not annotated, or is none that the undo takes; a
                function does not take what it is given; an argument is given by name.
        """
        self.check()
        if named:
            raise _by_name("s.write", named, "undo=")
        return WriteStep(self, fn, args, undo)

    def call(
        self,
        call: Call[R],
        *,
        undo: Command[[R], Any] | None = None,
        pivot: bool = False,
        timeout_s: float | None = None,
        attempts_max: int | None = None,
    ) -> Step[R]:
        """Describe a call to another service, made under a key of its own until it is known.

        Args:
            call: made by an operation of a contract.
            undo: the command of the same service that takes the call's result and undoes it.
            pivot: the point of no return: from its first attempt on the saga only goes forward.
            timeout_s: how long one attempt waits; the policy's by default.
            attempts_max: attempts before the pivot whose outcome stays unknown, over all restarts;
                the policy's by default. Those that were certainly not run do not count, and behind
                the pivot it is asked again until it is done.

        Raises:
            SagaGone: the run has left memory.
            ContractError: a query or a pivot has an undo, the undo is another service's or does not
                take the call's result, the timeout is not a number above 0, the attempts are not 1
                or more, or a pivot has some.
        """
        if self.is_gone:
            self.check()
        return CallStep(self, call, undo, pivot, timeout_s, attempts_max)

    def try_call(
        self,
        call: Call[R],
        taken: type[N],
        *,
        undo: Command[[R], Any] | None = None,
        pivot: bool = False,
        timeout_s: float | None = None,
        attempts_max: int | None = None,
    ) -> Step[R | N]:
        """Describe a call of which a declared rejection is an answer: the step gives it as a value.

        The function goes on with it, and the run does not turn; whatever else goes wrong is as with
        `call`. A pivot that was rejected so is none: another may come.

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
        step: Step[Any] = CallStep(self, call, undo, pivot, timeout_s, attempts_max, codes)
        return step

    def step(
        self,
        fn: Callable[[str, *Ts], Awaitable[R]],
        /,
        *args: *Ts,
        undo: Callable[[str, R | Unknown], Awaitable[object]] | None = None,
        pivot: bool = False,
        timeout_s: float | None = None,
        attempts_max: int | None = None,
        **named: Never,
    ) -> Step[R]:
        """Describe what is no operation of a contract: a call of a provider's SDK, an upload.

        `fn(key, *args)` runs at least once, always under the same key: again where an attempt's
        outcome is unknown, as after a time-out, an error or a crash. So hand the key on as the
        provider's idempotency key, or make the effect one that may be repeated. What it returns is
        recorded: a re-run is given the same. Where that is not of the annotated type, it is not
        tried again: the run turns, and the undo is given `Unknown`. A `Rejection` that it raises
        says that nothing was done, and undoes the saga; any other error says nothing. It is
        cancelled at its timeout.

        Args:
            fn: an `async def` with one effect.
            args: what JSON can carry; they tell a re-run that it is the same step.
            undo: `undo(key, result)`, an `async def` that runs at least once, too, under a key of
                its own. It is given `Unknown` where nobody knows whether the step took effect, and
                then has to find that out, and to keep out what may come late.
            pivot, timeout_s, attempts_max: as with `call`; the timeout is that of the undo, too.
            named: none; the arguments of `fn` are given by place.

        Raises:
            SagaGone: the run has left memory.
            ContractError: a function is not `async def`, the result's type is not annotated, a
                pivot has an undo, the undo does not take `Unknown`, a function does not take what
                it is given, an argument is given by name, or an option is wrong.
        """
        self.check()
        if named:
            raise _by_name("s.step", named, "undo=, pivot=, timeout_s= and attempts_max=")
        return FunctionStep(self, fn, args, undo, pivot, timeout_s, attempts_max)

    def side(self, fn: Callable[[], R]) -> Step[R]:
        """Describe a value that is no effect, such as the time, a number drawn or a new id.

        The function is called once and what it returns is recorded: a re-run is given the same. It
        may be called again where the process died before any later step had an effect.

        Raises:
            SagaGone: the run has left memory.
            ContractError: its result's type is not annotated.
        """
        self.check()
        return SideStep(self, fn)

    def sleep(self, duration: str) -> Step[None]:
        """Describe a sleep of a while, such as "10m"; the run leaves memory, and survives restarts.

        Before the pivot the saga's deadline counts on, and ends the sleep.

        Raises:
            SagaGone: the run has left memory.
            ConfigError: it is no duration.
        """
        self.check()
        for_s = seconds_of(duration, "s.sleep")
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
        for_s = seconds_of(within, f"s.event of {kind.__name__}: within")
        nap = NapAsk(for_s=for_s, awaits=kind.__name__)
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
    def all(self, *steps: Any) -> Together[Any]:
        """Run steps side by side; where one turns the saga, the others are cancelled and undone.

        Raises:
            SagaGone: the run has left memory.
            ContractError: there are none, too many, or one is no step, is a pivot, or sleeps.
        """
        self.check()
        if not 1 <= len(steps) <= STEPS_TOGETHER_MAX:
            raise ContractError(
                f"s.all was given {len(steps)} steps; expected 1 to {STEPS_TOGETHER_MAX}"
            )
        for step in steps:
            if not isinstance(step, Step) or step.ask.is_pivot or step.ask.nap is not None:
                raise _unfit(step, "s.all")
        return Together(steps, len(steps))

    def each(
        self, items: Sequence[I], step: Callable[[I], Step[R]], *, cap: int
    ) -> Together[tuple[R, ...]]:
        """Run a step for each of a list, at most `cap` at once; give their results in its order.

        They begin in the order of the list, and are undone in reverse. Where one turns the saga,
        those under way are cancelled and undone with those that are done; the others never begin.
        A re-run is given the same list, and asks for the same steps.

        Args:
            items: 0 to 10,000, in an order that a re-run repeats. All stay in memory until the run
                has ended, with what undoes them: some 2 KB each.
            step: makes the step of an item: `lambda line: s.call(Stock.reserve(line), undo=...)`.
            cap: 1 to 64.

        Raises:
            SagaGone: the run has left memory.
            ContractError: what is given is no list, or too long a one; `cap` is out of its range;
                one is no step, a pivot, or sleeps.
        """
        self.check()
        _check_list(items, cap)
        return Together([_checked(step(item)) for item in items], cap)

    def __repr__(self) -> str:
        return f"<Saga {self.id}{' gone' if self.is_gone else ''}>"


def _by_name(what: str, named: Mapping[str, object], options: str) -> ContractError:
    name = next(iter(named))
    return ContractError(
        f"{what} was given {name}= by name; give the arguments of the function by place, behind "
        f"it: {what}(function, {name}). Its options are {options}"
    )


# To type checkers `cap` has no default; who has none is told what it is for, as of a wrong one.
Saga.each.__kwdefaults__ = {"cap": 0}


def _nap(name: str, nap: NapAsk) -> Ask:
    return Ask(name, digest(encode(nap)), nap=nap)


def _check_list(items: object, cap: object) -> None:
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise ContractError(
            f"s.each was given a {type(items).__name__}; give it a list or a tuple, in an order "
            "that a re-run repeats"
        )
    if len(items) > EACH_MAX:
        raise ContractError(
            f"s.each was given {len(items)} items, and takes {EACH_MAX}: a run keeps all of its "
            "steps in memory; start a saga for each part of the list"
        )
    if not isinstance(cap, int) or isinstance(cap, bool) or not 1 <= cap <= STEPS_TOGETHER_MAX:
        raise ContractError(
            f"s.each was given cap {cap!r}; make it 1 to {STEPS_TOGETHER_MAX}: cap= is needed: how "
            "many at once"
        )


def _checked(step: object) -> Step[Any]:
    """Return what `s.each` was given for an item.

    Raises:
        ContractError: it is no step that may stand beside others.
    """
    if not isinstance(step, Step) or step.ask.is_pivot or step.ask.nap is not None:
        raise _unfit(step, "s.each")
    return step


def _unfit(step: object, where: str) -> ContractError:
    """Say why something may not stand beside other steps."""
    if isinstance(step, Step):
        what = "is a pivot" if step.ask.is_pivot else "sleeps"
        return ContractError(f"step {step.ask.name!r} {what}; await it by itself, not in {where}")
    if inspect.iscoroutine(step):
        step.close()
    return ContractError(
        f"{where} was given a {type(step).__name__} for a step; give it s.call(...), s.write(...) "
        "or another single step, without awaiting it"
    )
