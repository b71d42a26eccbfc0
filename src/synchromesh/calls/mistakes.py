"""What is wrong with JSON that does not fit a type: every mistake, each by its place.

A decoder stops at the first one. Here the value is looked at once more, part by part where a part
does not fit, within a bound: nobody can make it work for long. A pure machine.

Source: RFC 6901 for places; RFC 9457, section 3, for `errors`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

# `detail` says what is wrong, `pointer` where in the body; of a text `name` and `in`, which part.
Mistake: TypeAlias = Mapping[str, str]

MISTAKES_MAX: Final = 16
# How many parts are looked at for them.
STEPS_MAX: Final = 1000
_DEPTH_MAX: Final = 64

_LIKE_LISTS: Final = (list, set, frozenset, tuple, Sequence, AbstractSet)
_TOLD = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[([0-9]+)\]")


class _Field(NamedTuple):
    kind: Any
    is_required: bool


class _Object(NamedTuple):
    """The fields of a type that is an object in JSON, and what else it says."""

    fields: dict[str, _Field]
    tag_field: str | None
    is_closed: bool


class _Part(NamedTuple):
    step: str
    value: Any
    kind: Any


def mistakes_in(value: Any, kind: Any, pointer: str = "") -> tuple[Mistake, ...]:
    """Return what is wrong with plain JSON data that does not fit a type.

    At most `MISTAKES_MAX`, the first one always; none where it fits.

    Args:
        pointer: where the value stands.

    Example:
        >>> found = mistakes_in({"a": ["1", 2, "3"]}, dict[str, list[int]])
        >>> [each["pointer"] for each in found], found[0]["detail"]
        (['/a/0', '/a/2'], 'Expected `int`, got `str`')
    """
    search = _Search()
    search.look(value, kind, pointer, 0)
    return tuple(search.found)


def unknown_in(value: Any, kind: Any, pointer: str = "") -> tuple[Mistake, ...]:
    """Return the fields of plain JSON data, which fits a type, that the type does not have.

    Example:
        >>> class Line(msgspec.Struct):
        ...     sku: str
        >>> [each["pointer"] for each in unknown_in([{"sku": "a", "x": 1}], list[Line])]
        ['/0/x']
    """
    found: list[Mistake] = []
    left = [(_Part("", value, kind), pointer)]
    while left and len(found) < MISTAKES_MAX:
        part, at = left.pop()
        kind = _member(part.value, part.kind)
        found += islice(_unknown(part.value, _object_of(kind), at), MISTAKES_MAX)
        left += reversed([
            (each, f"{at}/{each.step}")
            for each in _parts(part.value, kind)
            if isinstance(each.value, dict | list)  # nothing else has fields
        ])  # fmt: skip
    return tuple(found[:MISTAKES_MAX])


def duplicates_in(data: bytes) -> tuple[Mistake, ...]:
    """Return the names that stand twice in an object of a JSON text, which is well formed.

    Example:
        >>> [each["pointer"] for each in duplicates_in(b'{"a":[{"b":1,"\\\\u0062":2}],"c":3}')]
        ['/a/0/b']
    """
    text = data.decode()
    try:
        _ONCE.decode(text)
    except _GivenTwice:
        return _doubled_in(text)
    return ()


def _doubled_in(text: str) -> tuple[Mistake, ...]:
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        twice = _Doubled(found)
        names = [name for name, _ in pairs]
        twice.names = [name for name in found if names.count(name) > 1]
        return twice

    value = json.loads(text, object_pairs_hook=made, parse_int=_nothing, parse_float=_nothing)
    mistakes: list[Mistake] = []
    left: list[tuple[str, Any]] = [("", value)]
    while left and len(mistakes) < MISTAKES_MAX:
        at, each = left.pop()
        if isinstance(each, _Doubled):
            mistakes += [_mistake(f"{at}/{_escaped(n)}", "is given twice") for n in each.names]
        inner = each.items() if isinstance(each, dict) else enumerate(each)
        parts = [(f"{at}/{_escaped(str(k))}", v) for k, v in inner if isinstance(v, dict | list)]
        left += reversed(parts)
    return tuple(mistakes[:MISTAKES_MAX])


class _Doubled(dict[str, Any]):
    names: list[str]


class _Search:
    """Looks for mistakes, as long as it may."""

    def __init__(self) -> None:
        self.found: list[Mistake] = []
        self._steps = 0

    def look(self, value: Any, kind: Any, at: str, depth: int) -> None:
        """Add what is wrong with a value that stands at a place."""
        self._steps += 1
        try:
            msgspec.convert(value, kind, strict=True, str_keys=True)
        except (msgspec.ValidationError, RecursionError) as error:
            known = len(self.found)
            if depth < _DEPTH_MAX:
                self._look_within(value, _member(value, kind), at, depth)
            if len(self.found) == known:
                self.found.append(_told(error, at))

    def _look_within(self, value: Any, kind: Any, at: str, depth: int) -> None:
        described = _object_of(kind)
        if described is not None and isinstance(value, dict):
            for name, field in described.fields.items():
                if name not in value and field.is_required:
                    self.found.append(_mistake(f"{at}/{_escaped(name)}", "is missing"))
            if described.is_closed:
                self.found += islice(_unknown(value, described, at), MISTAKES_MAX)
        for part in _parts(value, kind):
            if len(self.found) >= MISTAKES_MAX or self._steps >= STEPS_MAX:
                break
            self.look(part.value, part.kind, f"{at}/{part.step}", depth + 1)
        del self.found[MISTAKES_MAX:]


def _parts(value: Any, kind: Any) -> Iterator[_Part]:
    """Yield the parts of a value whose types are known."""
    if isinstance(value, dict):
        described = _object_of(kind)
        if described is not None:
            for name, field in described.fields.items():
                if name in value:
                    yield _Part(_escaped(name), value[name], field.kind)
        elif typing.get_origin(kind) in (dict, Mapping) and len(typing.get_args(kind)) == 2:
            of = typing.get_args(kind)[1]
            yield from (_Part(_escaped(name), each, of) for name, each in value.items())
    elif isinstance(value, list):
        origin, kinds = typing.get_origin(kind), typing.get_args(kind)
        if not (isinstance(origin, type) and issubclass(origin, _LIKE_LISTS) and kinds):
            return
        if origin is tuple and kinds[-1] is not Ellipsis:
            if len(kinds) == len(value):
                yield from (
                    _Part(str(n), v, k) for n, (v, k) in enumerate(zip(value, kinds, strict=True))
                )
            return
        yield from (_Part(str(number), each, kinds[0]) for number, each in enumerate(value))


def _unknown(value: Any, described: _Object | None, at: str) -> Iterator[Mistake]:
    if described is None or not isinstance(value, dict):
        return
    for name in value:
        if name not in described.fields and name != described.tag_field:
            known = ", ".join(described.fields) or "none"
            yield _mistake(f"{at}/{_escaped(name)}", f"is unknown; known: {known}")


@lru_cache(maxsize=1024)
def _object_of(kind: Any) -> _Object | None:
    """Return the fields of a struct, a dataclass or a typed dict; None of another type."""
    cls = typing.get_origin(kind) or kind
    if not isinstance(cls, type):
        return None
    if issubclass(cls, msgspec.Struct):
        config = cls.__struct_config__
        if config.array_like:
            return None
        fields = {f.encode_name: _Field(f.type, f.required) for f in msgspec.structs.fields(kind)}
        return _Object(fields, config.tag_field, config.forbid_unknown_fields)
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        none = dataclasses.MISSING
        return _Object(
            {
                f.name: _Field(hints[f.name], f.default is none and f.default_factory is none)
                for f in dataclasses.fields(cls)
                if f.init
            },
            None,
            is_closed=False,
        )
    if typing.is_typeddict(cls):
        hints = typing.get_type_hints(cls)
        needed: Collection[str] = getattr(cls, "__required_keys__", ())
        return _Object(
            {name: _Field(hint, name in needed) for name, hint in hints.items()},
            None,
            is_closed=False,
        )
    return None


def _member(value: Any, kind: Any) -> Any:
    """Return the one member of a union that a value may be meant for; the type of another one."""
    kind, members = _members(kind)
    if not members:
        return kind
    if isinstance(value, dict):
        objects = [(each, described) for each in members if (described := _object_of(each))]
        tagged = [
            each
            for each, described in objects
            if described.tag_field is not None
            and value.get(described.tag_field) == _origin(each).__struct_config__.tag
        ]
        maps = [each for each in members if typing.get_origin(each) in (dict, Mapping)]
        meant = tagged or [each for each, _ in objects] + maps
    elif isinstance(value, list):
        meant = [each for each in members if _is_like_list(each)]
    else:
        meant = []
    return meant[0] if len(meant) == 1 else kind


@lru_cache(maxsize=1024)
def _members(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type as it is without annotations, and the members of a union."""
    kind = _bare(kind)
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, ()
    return kind, tuple(_bare(each) for each in typing.get_args(kind))


def _is_like_list(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, _LIKE_LISTS)


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _bare(kind: Any) -> Any:
    """Return a type without its annotations, new names and aliases."""
    while True:
        if typing.get_origin(kind) in (typing.Annotated, typing.Required, typing.NotRequired):
            kind = typing.get_args(kind)[0]
        elif isinstance(kind, typing.NewType):
            kind = kind.__supertype__
        elif type(kind).__name__ == "TypeAliasType":
            kind = kind.__value__
        else:
            return kind


def _told(error: Exception, at: str) -> Mistake:
    """Return what a decoder says of a value, by the place that it names itself."""
    matched = _TOLD.fullmatch(str(error))
    if matched is None:
        return _mistake(at, str(error))
    steps = list(_STEP.finditer(matched[2]))
    if "".join(step[0] for step in steps) != matched[2]:
        return _mistake(at, str(error))  # a part of it has no place, such as the value of a map
    inner = "".join(f"/{step[1] or step[2]}" for step in steps)
    return _mistake(f"{at}{inner}", matched[1])


def _mistake(pointer: str, detail: str) -> Mistake:
    return {"detail": detail, "pointer": pointer}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _nothing(_: str) -> None:
    return None


class _GivenTwice(Exception):
    """An object has a name twice."""


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise _GivenTwice


# Made once, for it is dearer than a body. Numbers are of no interest, and may be longer than Python
# takes.
_ONCE: Final = json.JSONDecoder(object_pairs_hook=_once, parse_int=_nothing, parse_float=_nothing)
