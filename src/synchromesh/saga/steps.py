"""Steps: what a saga function awaits. A step is a value; only the engine gives it an effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from types import FunctionType
from typing import Any, Generic, TypeVar
from weakref import ref

import msgspec

from synchromesh.calls.contract import Call, Command
from synchromesh.codec import NO_FIT, decode, digest, encode
from synchromesh.errors import BadRequest, ContractError, Rejection, SagaGone, from_problem
from synchromesh.functions import weakly
from synchromesh.personal_types import PersonalFields, personal_fields
from synchromesh.saga.records import Ask
from synchromesh.saga.step_checks import (
    check_arity,
    check_async,
    check_patience,
    check_taken,
    check_undo_of_unknown,
    kind_of_call,
    signature_of,
    taken_by,
)

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class StepRequest(msgspec.Struct, frozen=True):
    """What a saga function yields to its engine: steps, of which all results are wanted.

    Attributes:
        cap: how many may be under way at once.
    """

    steps: Sequence[Step[Any]]
    cap: int = 1


class StepBook:
    """The steps that the function of one run has described, and whether it may describe others.

    Attributes:
        id: the run's.
        is_gone: the run has left memory, or was turned: every further step raises, also in a
            `finally:` of the function.
        unawaited: the steps that were made and are not awaited yet, oldest first.
    """

    __slots__ = ("id", "is_gone", "unawaited")

    def __init__(self, id: str) -> None:  # noqa: A002
        self.id = id
        self.is_gone = False
        self.unawaited: dict[Step[Any], None] = {}

    def check(self) -> None:
        """Raise `SagaGone` where the run has left memory or was turned (S11)."""
        if self.is_gone:
            raise SagaGone(
                f"saga {self.id!r} no longer runs this code: it was turned, or it continues "
                "elsewhere; a step asked for now has no effect"
            )


class Unknown(msgspec.Struct, frozen=True):
    """Stands for the result of an `s.step` of which nobody knows whether it took effect.

    Its undo is given it: it may have run, may run still, or never.

    Attributes:
        key: under which it was tried.
        args: what it was given beside the key.

    Example:
        >>> Unknown("A-1/upload#1", ("invoice",))
        Unknown(key='A-1/upload#1', args=('invoice',))
    """

    key: str
    args: tuple[Any, ...]


class Step(Generic[R_co]):
    """One step of a saga, described and not done. Await it, once, in the saga function."""

    __slots__ = ("_saga", "ask", "personal", "result_type")

    def __init__(
        self, saga: StepBook, ask: Ask, result_type: Any, personal: PersonalFields | None = None
    ) -> None:
        self._saga = saga
        self.personal = personal
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
        saga = self._saga
        # As `claim` does, which says what is wrong.
        if saga.is_gone or saga.unawaited.pop(self, self) is self:
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
        saga: StepBook,
        fn: Callable[..., Awaitable[R_co]],
        args: tuple[object, ...],
        undo: Callable[[Any, Any], Awaitable[object]] | None,
    ) -> None:
        # As `weakly` does it, without its frame.
        weak = ref(fn) if type(fn) is FunctionType else weakly(fn)
        name, result_type, personal, mask = signature_of(weak)
        check_arity("s.write", weak, "tx", len(args))
        if undo is not None:
            weak = ref(undo) if type(undo) is FunctionType else weakly(undo)
            check_arity("its undo=", weak, "tx", 1)
            check_taken(name, result_type, getattr(undo, "__name__", ""), taken_by(weak))
        ask = Ask(name, _digest_of(args, mask), is_write=True, has_undo=undo is not None)
        super().__init__(saga, ask, result_type, personal)
        self.fn, self.args, self.undo = fn, args, undo


class CallStep(Step[R_co]):
    """A call to another service.

    Attributes:
        known: an answer as it is recorded, with the value that was read of it, until the function
            is given that; None where it has to be read from its record.
    """

    __slots__ = ("call", "kind", "known", "timeout_s", "undo")

    def __init__(
        self,
        saga: StepBook,
        call: Call[R_co],
        undo: Command[..., Any] | None,
        is_pivot: bool,
        timeout_s: float | None,
        attempts_max: int | None,
        takes: tuple[str, ...] = (),
    ) -> None:
        self.kind = kind = kind_of_call(call.operation, undo, is_pivot)
        if timeout_s is not None or attempts_max is not None:
            check_patience(kind.name, timeout_s, attempts_max, is_pivot)
        # By place, and without the frame of the base: there is one for every step of every run.
        self.ask = Ask(
            kind.name, call.digest, False, is_pivot, kind.has_undo, kind.is_query, takes, None,
            attempts_max,
        )  # fmt: skip
        self._saga = saga
        saga.unawaited[self] = None
        self.result_type, self.personal = kind.result, kind.personal
        self.call, self.undo, self.timeout_s = call, undo, timeout_s
        self.known: tuple[bytes, R_co] | None = None

    def load(self, result: bytes) -> R_co:
        """Return the step's recorded result as a value of its type."""
        known, self.known = self.known, None
        if known is not None and known[0] is result:
            return known[1]
        try:
            value: R_co = self.kind.read(result)
        except NO_FIT as error:
            raise BadRequest(f"the data does not fit: {error}") from error
        return value

    def load_rejection(self, problem: bytes) -> Exception:
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
        before = self.kind.before_result
        if result is None or not before:
            return b"{}"
        return before + result + self.kind.behind_result


class FunctionStep(Step[R_co]):
    """An async function that is no operation of a contract, such as a call of a provider's SDK."""

    __slots__ = ("args", "fn", "timeout_s", "undo")

    def __init__(
        self,
        saga: StepBook,
        fn: Callable[..., Awaitable[R_co]],
        args: tuple[object, ...],
        undo: Callable[[str, Any], Awaitable[object]] | None,
        is_pivot: bool,
        timeout_s: float | None,
        attempts_max: int | None,
    ) -> None:
        # As `weakly` does it, without its frame.
        weak = ref(fn) if type(fn) is FunctionType else weakly(fn)
        name, result_type, personal, mask = signature_of(weak)
        check_async(name, weak)
        check_arity("s.step", weak, "key", len(args))
        if undo is not None:
            weak = ref(undo) if type(undo) is FunctionType else weakly(undo)
            check_async(getattr(undo, "__name__", repr(undo)), weak)
            check_arity("its undo=", weak, "key", 1)
            check_undo_of_unknown(name, result_type, undo, Unknown, is_pivot)
        check_patience(name, timeout_s, attempts_max, is_pivot)
        ask = Ask(
            name,
            _digest_of(args, mask),
            has_undo=undo is not None,
            is_pivot=is_pivot,
            attempts_max=attempts_max,
        )
        super().__init__(saga, ask, result_type, personal)
        self.fn, self.args, self.undo, self.timeout_s = fn, args, undo, timeout_s


class SideStep(Step[R_co]):
    """A value that the function may not make itself, for a re-run would make another."""

    __slots__ = ("fn",)

    def __init__(self, saga: StepBook, fn: Callable[[], R_co]) -> None:
        name, result_type, personal, _ = signature_of(weakly(fn))
        super().__init__(saga, Ask(name, digest(b""), is_write=True), result_type, personal)
        self.fn = fn


class NapStep(Step[R_co]):
    """A time that the run sleeps; it needs no memory meanwhile."""

    __slots__ = ()


class EventStep(NapStep[R_co]):
    """An event that the run waits for; it gives it, or what stands for its absence."""

    __slots__ = ("otherwise",)

    def __init__(self, saga: StepBook, ask: Ask, kind: Any, otherwise: Any) -> None:
        super().__init__(saga, ask, list[kind] | None, personal_fields(list[kind]))
        self.otherwise = otherwise

    def load(self, result: bytes) -> R_co:
        """Return the event that is recorded; without one, what was to be given otherwise."""
        told: Any = decode(result, self.result_type)
        value: R_co = self.otherwise if told is None else told[0]
        return value


class Together(Generic[R_co]):
    """Steps that run side by side; awaiting gives the tuple of their results."""

    __slots__ = ("_cap", "_steps")

    def __init__(self, steps: Sequence[Step[Any]], cap: int) -> None:
        self._steps = steps
        self._cap = cap

    def __await__(self) -> Generator[StepRequest, Any, R_co]:
        for step in self._steps:
            step.claim()
        results: R_co = yield StepRequest(self._steps, self._cap)
        return results


def _digest_of(args: tuple[object, ...], mask: Callable[[bytes], bytes] | None) -> str:
    """Return what tells arguments from others, without what is personal in them."""
    told = encode(args)
    return digest(told if mask is None else mask(told))
