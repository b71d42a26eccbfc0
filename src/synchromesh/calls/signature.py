"""The types of an operation, read from annotations: contracts check and encode calls by them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import msgspec

from synchromesh.codec import decoder_of, encoder_of, to_json, writer_of
from synchromesh.errors import ContractError, Rejection
from synchromesh.personal_types import PersonalFields, personal_fields
from synchromesh.tuples import to_tuple

BODILESS = frozenset({"GET", "DELETE"})


@dataclass(frozen=True, slots=True)
class Signature:
    """The types of an operation, read from its annotations once they can be resolved.

    Attributes:
        arguments: a struct with a field a parameter; its constructor takes them as the function
            does.
        canonical: the same with the fields in order of their names: its JSON is the canonical form.
        encode: writes arguments for `decode` to check.
        write: writes what was read, without a check.
        decode: reads them as a `canonical`; raises one of `NO_FIT`.
        hints: the type of each parameter.
        omitted: the parameters that HTTP leaves out where they are null: that is their default.
        body: the parameter that is the HTTP body by itself, "" where the body is an object.
        decode_body: reads the HTTP body where all arguments are in it; None where some are in the
            path or the query.
        before_body: what stands before the body in the canonical form, and `}` behind it.
        result: the type of the answer.
        personal, personal_result: the personal fields of the arguments, and of the answer; None
            where there are none.
    """

    signature: inspect.Signature
    arguments: type[msgspec.Struct]
    canonical: type[msgspec.Struct]
    encode: Callable[[object], bytes]
    write: Callable[[object], bytes]
    decode: Callable[[bytes], msgspec.Struct]
    hints: Mapping[str, Any]
    omitted: frozenset[str]
    body: str
    decode_body: Callable[[bytes], object] | None
    before_body: bytes
    result: Any
    personal: PersonalFields | None
    personal_result: PersonalFields | None


def read_signature(
    stub: Callable[..., Any], *, service: str, method: str, places: Collection[str]
) -> Signature:
    """Read the types of an operation from the function that declares it.

    Args:
        stub: the function, with annotations; its first parameter is `self`.
        service: whose operation it is, for messages.
        method: of its route; GET and DELETE carry no body.
        places: the parameters that are segments of its path.

    Raises:
        ContractError: an annotation is missing or cannot be resolved, a place is no parameter, or
            a personal field is declared so that it cannot be sealed.
    """
    name = stub.__name__
    where = f"{service}.{name} ({stub.__qualname__})"
    try:
        hints = typing.get_type_hints(stub, include_extras=True)
    except NameError as error:
        raise ContractError(f"{where}: {error}; its annotations must be importable") from error
    whole = inspect.signature(stub)
    parameters = list(whole.parameters.values())[1:]
    for parameter in parameters:
        if parameter.name not in hints:
            raise ContractError(f"{where}: parameter {parameter.name!r} has no annotation")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ContractError(f"{where}: *args and **kwargs cannot be sent; name each parameter")
    if "return" not in hints:
        raise ContractError(f"{where}: has no return annotation; write -> None for no answer")
    missing = [place for place in places if place not in hints]
    if missing:
        raise ContractError(f"{where}: the path names {missing[0]!r}, which is not a parameter")
    bare = [p.name for p in parameters if p.name not in places]
    for hint in hints.values():
        try:
            personal_fields(hint)  # first: whatever else reads a wrong declaration says less
        except ContractError as error:
            raise ContractError(f"{where}: {error.message}") from error
    is_body = len(bare) == 1 and method not in BODILESS and _is_struct(hints[bare[0]])
    fields = [_field_of(p, hints[p.name]) for p in sorted(parameters, key=lambda p: p.name)]
    canonical = msgspec.defstruct(name, fields, forbid_unknown_fields=True, kw_only=True)
    body = bare[0] if is_body else ""
    is_all_body = not places and method not in BODILESS
    return Signature(
        signature=whole.replace(parameters=parameters),
        arguments=_struct_of(f"call of {service}.{name}", parameters, hints),
        canonical=canonical,
        encode=encoder_of(canonical),
        write=writer_of(canonical),
        decode=decoder_of(canonical),
        hints={p.name: hints[p.name] for p in parameters},
        omitted=frozenset(p.name for p in parameters if p.default is None),
        body=body,
        decode_body=decoder_of(hints[body] if body else canonical) if is_all_body else None,
        before_body=b"{%b:" % to_json(body) if body and is_all_body else b"",
        result=hints["return"],
        personal=personal_fields(canonical),
        personal_result=personal_fields(hints["return"]),
    )


def _field_of(parameter: inspect.Parameter, hint: Any) -> tuple[Any, ...]:
    if parameter.default is parameter.empty:
        return (parameter.name, hint)
    return (parameter.name, hint, parameter.default)


def _struct_of(
    name: str, parameters: list[inspect.Parameter], hints: Mapping[str, Any]
) -> type[msgspec.Struct]:
    """Return a struct whose constructor takes arguments as a function of these parameters does."""
    named: list[Any] = []
    placed: list[Any] = []
    for p in parameters:
        (named if p.kind is p.KEYWORD_ONLY else placed).append(_field_of(p, hints[p.name]))
    # Fields are by name only in a base that says so.
    base = msgspec.defstruct(name, named, kw_only=True) if named else msgspec.Struct
    return msgspec.defstruct(name, placed, bases=(base,), forbid_unknown_fields=True)


def misfit(shape: Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Return what is wrong with arguments that were refused."""
    try:
        shape.signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return "the arguments do not fit"


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or is_dataclass(kind))


def rejections_of(raises: object, name: str) -> tuple[type[Rejection], ...]:
    """Return the rejections that an operation declares.

    Raises:
        ContractError: they are no classes of `Rejection`.
    """
    kinds = to_tuple(raises, f"raises= of {name!r}")
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Rejection)):
            raise ContractError(
                f"raises= of {name!r} has {kind!r:.60}; give classes of Rejection, such as "
                'class OutOfStock(Rejection, code="out_of_stock")'
            )
    return kinds
