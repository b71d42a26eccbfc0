"""What a step is checked for when it is described, so that no run finds out later."""

from __future__ import annotations

import functools
import inspect
import math
import typing
from collections.abc import Callable
from types import FunctionType, UnionType
from typing import Any, NamedTuple

from synchromesh.calls.contract import Command, Operation
from synchromesh.codec import decoder_of, encode, keeps_its_form, writer_of
from synchromesh.durations import is_count, is_number
from synchromesh.errors import ContractError
from synchromesh.functions import Weakly, hints_of, there, weakly
from synchromesh.personal_types import PersonalFields, mask_arguments, personal_fields


class StepSignature(NamedTuple):
    """What a step's function says of itself.

    Attributes:
        personal: the personal fields of its result; None where it has none.
        mask: masks what is personal in its arguments; None where nothing is.
    """

    name: str
    result: Any
    personal: PersonalFields | None
    mask: Callable[[bytes], bytes] | None


@functools.lru_cache(maxsize=4096)
def signature_of(weak: Weakly) -> StepSignature:
    """Return the name of a step's function, and the type of its result.

    Raises:
        ContractError: it has none.
    """
    fn = there(weak)
    name = str(getattr(fn, "__name__", ""))
    try:
        hints = hints_of(fn) if name else {}
    except (NameError, TypeError) as error:
        raise ContractError(
            f"saga step {name!r}: {error}; its annotations must be importable"
        ) from error
    if not name or name == "<lambda>" or "return" not in hints:
        raise ContractError(
            f"saga step {name or fn!r} must be a function of a name with a return annotation, "
            "which tells how its recorded result is read"
        )
    personal = personal_fields(hints["return"])
    if personal is not None:
        personal.check_subject(f"saga step {name!r}")
    return StepSignature(name, hints["return"], personal, mask_arguments(fn))


class CallKind:
    """What all steps have in common that call an operation with one undo: judged once, and kept.

    Attributes:
        name: of the operation, in full.
        result: the type of what it gives.
        personal: the personal fields of that; None where it has none.
        is_query, has_undo: as they are in an `Ask`.
        read: reads an answer; it raises one of `codec.NO_FIT`.
        write: writes what was read, as it is recorded.
        keeps_form: what was read may be given to the function, as if it came from the record.
        before_result, behind_result: what is around a recorded result in the undo's arguments.
    """

    __slots__ = (
        "before_result", "behind_result", "has_undo", "is_query", "keeps_form", "name", "personal",
        "read", "result", "write",
    )  # fmt: skip

    def __init__(self, operation: Operation[..., Any], undo: Command[..., Any] | None) -> None:
        shape = operation.shape
        self.name = operation.full_name
        self.result = shape.result
        self.personal = shape.personal_result
        self.is_query = not operation.is_command
        self.has_undo = undo is not None
        self.read = decoder_of(shape.result)
        self.write = writer_of(shape.result)
        self.keeps_form = keeps_its_form(shape.result)
        names = undo.shape.arguments.__struct_fields__ if undo is not None else ()
        self.before_result, self.behind_result = b"", b""
        if names:
            self.before_result, self.behind_result = b"{%s:" % encode(names[0]), b"}"


@functools.lru_cache(maxsize=4096)
def kind_of_call(
    operation: Operation[..., Any], undo: Command[..., Any] | None, is_pivot: bool
) -> CallKind:
    """Return what all steps of a call have in common. Raises ContractError as `check_undo` does."""
    check_undo(operation, undo, is_pivot)
    return CallKind(operation, undo)


def check_undo(
    operation: Operation[..., Any], undo: Command[..., Any] | None, is_pivot: bool
) -> None:
    """Refuse an undo that cannot undo the call. Raises ContractError."""
    if undo is None:
        return
    if not operation.is_command:
        raise ContractError(f"query {operation.full_name} changes nothing; it takes no undo")
    if is_pivot:
        raise ContractError(f"pivot {operation.full_name} is never undone; it takes no undo")
    if operation.is_external or undo.places:
        what = (
            "somebody else's service" if operation.is_external else "a route with {…} in its path"
        )
        raise ContractError(
            f"{undo.full_name} cannot undo {operation.full_name}: an undo names the key of the "
            f"call it undoes, which does not work for {what}; call it in a command of your own"
        )
    if undo.service != operation.service:
        raise ContractError(
            f"{undo.full_name} cannot undo {operation.full_name}: the undo of a step finds it by "
            "its key, in the inbox of the same service"
        )
    shape = undo.shape
    names = shape.arguments.__struct_fields__
    taken = (names[0], shape.hints[names[0]]) if names else None
    check_taken(operation.full_name, operation.shape.result, undo.full_name, taken)


@functools.lru_cache(maxsize=4096)
def taken_by(weak: Weakly) -> tuple[str, Any] | None:
    """Return the name and the type of the parameter for the result, where both are known."""
    undo = there(weak)
    if not isinstance(undo, FunctionType) or hasattr(undo, "__wrapped__"):
        return None
    code = undo.__code__
    name = code.co_varnames[1] if code.co_argcount > 1 else ""
    try:
        hints = typing.get_type_hints(undo)
    except (NameError, TypeError):
        return None
    return (name, hints[name]) if name in hints else None


def check_taken(step: str, result_type: Any, undo: str, taken: tuple[str, Any] | None) -> None:
    """Refuse an undo that would be found wrong when it is needed, and leave its run stuck."""
    if taken is None or _may_take(taken[1], result_type):
        return
    name, type_ = taken
    raise ContractError(
        f"{undo} cannot undo {step}: its parameter {name!r} is of type {type_.__name__}, and "
        f"{step} returns {result_type.__name__}; an undo takes the result of its step"
    )


@functools.lru_cache(maxsize=4096)
def check_async(name: str, weak: Weakly) -> None:
    """Refuse a function that has had its effect before anything is awaited. Raises ContractError.

    One that is wrapped is judged by what is within.
    """
    if not inspect.iscoroutinefunction(inspect.unwrap(there(weak))):
        raise ContractError(
            f"{name} is given to s.step and is not `async def`: it would stop the whole process "
            "while it works; call it by `await asyncio.to_thread(...)` in one that is"
        )


@functools.lru_cache(maxsize=4096)
def check_arity(what: str, weak: Weakly, first: str, given: int) -> None:
    """Refuse a function that cannot be called as it would be, at each attempt anew.

    One that is wrapped by a decorator is judged by what the decorator takes.

    Args:
        what: where it was given, such as "s.step".
        first: what it is given before the others: "key" or "tx".
        given: how many arguments it is given behind that.

    Raises:
        ContractError: it has no parameter for the first one, too many or too few others.
    """
    fn = there(weak)
    try:
        taken = inspect.signature(fn, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return
    name = getattr(fn, "__name__", repr(fn))
    by_place = [
        each for each in taken if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    is_open = any(each.kind is each.VAR_POSITIONAL for each in taken)
    needed = [each.name for each in by_place if each.default is each.empty]
    by_name = [
        each.name for each in taken if each.kind is each.KEYWORD_ONLY and each.default is each.empty
    ]
    if by_name:
        why = f"its argument {by_name[0]!r} can be given by name alone; {what} gives all by place"
    elif not is_open and not _takes_first(fn, first, by_place[:1], is_short=len(by_place) <= given):
        why = f"takes no {first}; its first parameter is the {first}"
    elif len(needed) > given + 1:
        why = f"misses its argument {needed[given + 1]!r}"
    elif not is_open and len(by_place) <= given:
        why = f"takes {len(by_place)} argument{'' if len(by_place) == 1 else 's'}"
    else:
        return
    raise ContractError(
        f"{name} {why}: {what} gives it the {first} and {given} further "
        f"argument{'' if given == 1 else 's'}"
    )


def _takes_first(
    fn: Callable[..., Any], first: str, there: list[inspect.Parameter], *, is_short: bool
) -> bool:
    """Say whether the first parameter may be what it is given; its name tells where one misses."""
    if not there:
        return False
    if is_short and first not in there[0].name:
        return False
    try:
        hints = typing.get_type_hints(fn)
    except (NameError, TypeError):
        return True
    type_ = hints.get(there[0].name)
    return first != "key" or type_ is None or _may_take(type_, str)


def check_undo_of_unknown(
    step: str, result_type: Any, undo: Callable[..., Any], unknown: type, is_pivot: bool
) -> None:
    """Refuse an undo of `s.step` that does not take both a result and what stands for none."""
    if is_pivot:
        raise ContractError(f"pivot {step} is never undone; it takes no undo")
    taken = taken_by(weakly(undo))
    if taken is None:
        return
    name, type_ = taken
    is_union = typing.get_origin(type_) in (typing.Union, UnionType)
    members = typing.get_args(type_) if is_union else (type_,)
    for wanted in (unknown, result_type):
        if not any(_may_take(each, wanted) for each in members):
            raise ContractError(
                f"{undo.__name__} cannot undo {step}: its parameter {name!r} does not take "
                f"{wanted.__name__}; annotate it {result_type.__name__} | Unknown, for whether "
                f"{step} took effect may be unknown when it is undone"
            )


def check_patience(step: str, timeout_s: object, attempts_max: object, is_pivot: bool) -> None:
    """Refuse what is no time or no count, and attempts of what is asked until it is known."""
    if timeout_s is not None and not (is_number(timeout_s) and 0 < timeout_s < math.inf):  # type: ignore[operator]
        raise ContractError(
            f"the step {step} was given timeout_s {timeout_s!r}; make it a number of seconds above "
            "0, or None for the policy's"
        )
    if attempts_max is None:
        return
    if not is_count(attempts_max) or attempts_max < 1:  # type: ignore[operator]
        raise ContractError(
            f"the step {step} was given attempts_max {attempts_max!r}; make it 1 (no further "
            "attempt) or more, or None for the policy's"
        )
    if is_pivot:
        raise ContractError(
            f"the pivot {step} was given attempts_max {attempts_max}; an unknown pivot is asked "
            "again until it is known, and the saga's deadline bounds it"
        )


def _may_take(type_: Any, result_type: Any) -> bool:
    """Say whether a parameter may take a result; what is not a plain class cannot be judged."""
    for each in (type_, result_type):
        if not _is_plain(each):
            return True
    return issubclass(result_type, type_) or (type_ is float and issubclass(result_type, int))


def _is_plain(type_: Any) -> bool:
    # `Any` and `list[int]` are instances of `type` in some releases; neither a protocol nor a
    # typed dictionary can be asked for its subclasses.
    return (
        inspect.isclass(type_)
        and type_ is not Any
        and typing.get_origin(type_) is None
        and not typing.is_typeddict(type_)
        and not getattr(type_, "_is_protocol", False)
    )
