"""Types of arguments and answers: the fields of an answer, and whether it fits a parameter."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Collection, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

_ARRAYS = (list, set, frozenset, Sequence, AbstractSet)


def is_a(value: object, *kinds: type) -> bool:
    """Return whether a value has its annotated type; not every user has a type checker."""
    return isinstance(value, kinds)


def without_null(kind: Any) -> tuple[Any, bool]:
    """Return a type without null, and whether it included null.

    Example:
        >>> without_null(str | None), without_null(int)
        ((<class 'str'>, True), (<class 'int'>, False))
    """
    members = members_of(kind)
    rest = tuple(member for member in members if member is not type(None))
    if len(rest) == len(members) or not rest:
        return bare(kind), kind is None or kind is type(None)
    return typing.Union[rest], True  # noqa: UP007  made at run time of what is there


def members_of(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    kind = bare(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(bare(member) for member in typing.get_args(kind))
    return (type(None),) if kind is None else (kind,)


def bare(kind: Any) -> Any:
    """Return a type without its annotations and new names."""
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        else:
            return kind


def fields_of(kind: Any) -> dict[str, Any] | None:
    """Return the fields of a struct, dataclass or named tuple; None for a type that has none."""
    kind = bare(kind)
    if not isinstance(kind, type):
        return None
    if issubclass(kind, msgspec.Struct):
        return {field.name: field.type for field in msgspec.structs.fields(kind)}
    if dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields")):
        return typing.get_type_hints(kind, include_extras=True)
    return None


def field_at(kind: Any, fields: Collection[str]) -> tuple[Any, bool] | str:
    """Return the type that a path of names leads to, and if null may stand there; or what is wrong.

    Example:
        >>> field_at(str, ("x",))
        "there is no 'x'; str has no fields"
    """
    kind, may_be_null = without_null(kind)
    for field in fields:
        known = fields_of(kind)
        if known is None or field not in known:
            has = "no fields" if not known else f"the fields {', '.join(known)}"
            return f"there is no {field[:40]!r}; {words(kind)} has {has}"
        kind, is_null = without_null(known[field])
        may_be_null = may_be_null or is_null
    return kind, may_be_null


def words(kind: Any) -> str:
    """Return a type as it is written in code."""
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def element_of(kind: Any) -> Any:
    """Return the type of the elements of a list, a set or a tuple of any length; None for others.

    Example:
        >>> element_of(list[int]), element_of(tuple[str, ...] | None), element_of(dict[str, int])
        (<class 'int'>, <class 'str'>, None)
    """
    kind = without_null(kind)[0]
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return members[0] if len(members) == 2 and members[1] is Ellipsis else None
    is_array = isinstance(origin, type) and issubclass(origin, _ARRAYS)
    return members[0] if is_array else None


def fits(source: Any, target: Any) -> bool:
    """Return whether one type is a subtype of another, null aside.

    What cannot be told is no: the remedy is a field of the parameter's own type.

    Example:
        >>> fits(int, float), fits(str | None, str), fits(int, str)
        (True, True, False)
    """
    targets = [m for m in members_of(target) if m is not type(None)]
    sources = [m for m in members_of(source) if m is not type(None)]
    return bool(sources) and all(any(_is_one(s, t) for t in targets) for s in sources)


def is_text(kind: Any) -> bool:
    """Return whether a type is written as one segment of a path: no collection and no struct."""
    return not any(
        isinstance(origin, type)
        and (
            fields_of(origin) is not None
            or (issubclass(origin, Collection) and not issubclass(origin, str | enum.Enum))
        )
        for origin in (typing.get_origin(member) or member for member in members_of(kind))
    )


def _is_one(source: Any, target: Any) -> bool:
    if target is Any or target is object or source == target:
        return True
    if typing.get_origin(source) is typing.Literal:
        values = typing.get_args(source)
        if typing.get_origin(target) is typing.Literal:
            return set(values) <= set(typing.get_args(target))
        return all(type(value) is target for value in values)
    if target is float and source is int:
        return True
    return (
        isinstance(source, type)
        and isinstance(target, type)
        and issubclass(source, target)
        and fields_of(target) is not None
    )
