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
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
# How many objects and arrays are searched for the places of names that stand twice.
PLACES_MAX: Final = 50_000
# What clients send stands in what they are told; a few of their mistakes are not to make it large.
POINTER_CHARS_MAX: Final = 200
_WORDS_CHARS_MAX: Final = 400
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
    names: frozenset[str]
    is_closed: bool = False


class _Members(NamedTuple):
    """A type without its annotations; of a union, which member a value may be meant for.

    Attributes:
        all: the members; none of what is no union.
        by_tag: the objects that have a tag, by what is in the field of tags.
        object, array: the one that an object without a tag, and an array, may be; None for several.
    """

    bare: Any
    all: tuple[Any, ...] = ()
    tag_field: str | None = None
    by_tag: Mapping[str | int, Any] = {}
    object: Any = None
    array: Any = None


class _Part(NamedTuple):
    step: str | int
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
    search = _Search(pointer)
    search.look(value, kind)
    return tuple(search.found)


def unknown_in(value: Any, kind: Any, pointer: str = "") -> tuple[Mistake, ...]:
    """Return the fields of plain JSON data that its type does not have, where it is of that type.

    All objects are looked at whose fields the type says, and nothing that can hold none of them.

    Example:
        >>> class Line(msgspec.Struct):
        ...     sku: str
        >>> [each["pointer"] for each in unknown_in([{"sku": "a", "x": 1}], list[Line])]
        ['/0/x']
    """
    found: list[Mistake] = []
    path: list[str | int] = []
    levels = [iter((_Part("", value, kind),))]
    while levels and len(found) < MISTAKES_MAX:
        part = next(levels[-1], None)
        if part is None:
            levels.pop()
            del path[-1:]
            continue
        kind = _member(part.value, part.kind)
        described = _object_of(kind)
        if described is not None and _has_unknown(part.value, described):
            here = [*path, part.step][1:]
            found += islice(_unknown(part.value, described, pointer, here), MISTAKES_MAX)
        if _holds_objects(kind):
            levels.append(_with_fields(part.value, kind))
            path.append(part.step)
    return tuple(found[:MISTAKES_MAX])


def duplicates_in(data: bytes) -> tuple[Mistake, ...]:
    """Return the names that stand twice in an object of a JSON text, which is well formed.

    Their places are searched for within a bound. A name that stands twice behind it is told as one
    of the whole.

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


def pointer_of(steps: Iterable[str | int], chars_max: int = POINTER_CHARS_MAX) -> str:
    """Return the JSON pointer of the steps to a place, cut where it is long.

    Example:
        >>> pointer_of(["a/b", 7]), pointer_of(["abc", "def"], 6)
        ('/a~1b/7', '/abc/d…')
    """
    pointer = ""
    for step in steps:
        # What clients name may be as long as a body.
        pointer += f"/{_escaped(str(step)[:chars_max])}"
        if len(pointer) > chars_max:
            return pointer[:chars_max] + "…"
    return pointer


def _doubled_in(text: str) -> tuple[Mistake, ...]:
    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        twice = _Doubled(found)
        counts = Counter(name for name, _ in pairs)
        names = (name for name, count in counts.items() if count > 1)
        twice.names = list(islice(names, MISTAKES_MAX))
        return twice

    value = json.loads(text, object_pairs_hook=made, parse_int=_nothing, parse_float=_nothing)
    mistakes: list[Mistake] = []
    path: list[str | int] = []
    levels: list[Iterator[tuple[str | int, Any]]] = [iter((("", value),))]
    steps = 0
    while levels and len(mistakes) < MISTAKES_MAX and steps < PLACES_MAX:
        part = next(levels[-1], None)
        if part is None:
            levels.pop()
            del path[-1:]
            continue
        step, each = part
        steps += 1
        path.append(step)
        if isinstance(each, _Doubled):
            here = path[1:]
            mistakes += [_mistake(pointer_of([*here, n]), "is given twice") for n in each.names]
        inner = each.items() if isinstance(each, dict) else enumerate(each)
        levels.append((k, v) for k, v in inner if isinstance(v, dict | list))
    if not mistakes:
        mistakes.append(_mistake("", "holds an object in which a name is given twice"))
    return tuple(mistakes[:MISTAKES_MAX])


class _Doubled(dict[str, Any]):
    names: list[str]


class _Search:
    """Looks for mistakes, as long as it may."""

    def __init__(self, pointer: str) -> None:
        self.found: list[Mistake] = []
        self._steps = 0
        self._pointer = pointer
        # A pointer is written for what is found alone: what it is made of may be long.
        self._path: list[str | int] = []

    def look(self, value: Any, kind: Any) -> None:
        """Add what is wrong with the value at the place that the search has come to."""
        self._steps += 1
        try:
            msgspec.convert(value, kind, strict=True, str_keys=True)
        except (msgspec.ValidationError, RecursionError) as error:
            known = len(self.found)
            if len(self._path) < _DEPTH_MAX:
                self._look_within(value, _member(value, kind))
            if len(self.found) == known:
                self.found.append(_told(error, self._pointer, self._path))

    def _look_within(self, value: Any, kind: Any) -> None:
        described = _object_of(kind)
        if described is not None and isinstance(value, dict):
            for name, field in described.fields.items():
                if name not in value and field.is_required:
                    at = _place(self._pointer, [*self._path, name])
                    self.found.append(_mistake(at, "is missing"))
            if described.is_closed:
                unknown = _unknown(value, described, self._pointer, self._path)
                self.found += islice(unknown, MISTAKES_MAX)
        for part in _parts(value, kind):
            if len(self.found) >= MISTAKES_MAX or self._steps >= STEPS_MAX:
                break
            self._path.append(part.step)
            self.look(part.value, part.kind)
            self._path.pop()
        del self.found[MISTAKES_MAX:]


def _parts(value: Any, kind: Any) -> Iterator[_Part]:
    """Yield the parts of a value whose types are known."""
    if isinstance(value, dict):
        described = _object_of(kind)
        if described is not None:
            for name, field in described.fields.items():
                if name in value:
                    yield _Part(name, value[name], field.kind)
        elif (of := _value_kind(kind)) is not None:
            yield from (_Part(name, each, of) for name, each in value.items())
    elif isinstance(value, list):
        kinds = typing.get_args(kind)
        if not _is_like_list(kind) or not kinds:
            return
        if typing.get_origin(kind) is tuple and kinds[-1] is not Ellipsis:
            if len(kinds) == len(value):
                yield from (
                    _Part(n, v, k) for n, (v, k) in enumerate(zip(value, kinds, strict=True))
                )
            return
        yield from (_Part(number, each, kinds[0]) for number, each in enumerate(value))


def _with_fields(value: Any, kind: Any) -> Iterator[_Part]:
    """Return the parts of a value that may hold fields, without those that are seen to be right."""
    if isinstance(value, list) and typing.get_origin(kind) is not tuple and _is_like_list(kind):
        of = _members(typing.get_args(kind)[0]).bare
        described = _object_of(of)
        if described is not None and not _holders(of):
            # Many small objects are what a body has most of.
            names = described.names
            return (
                _Part(number, each, of)
                for number, each in enumerate(value)
                if isinstance(each, dict) and not each.keys() <= names
            )
    if isinstance(value, dict) and _object_of(kind) is not None:
        holders = _holders(kind).items()
        return (_Part(name, value[name], of) for name, of in holders if name in value)
    return _parts(value, kind)


def _has_unknown(value: Any, described: _Object) -> bool:
    return isinstance(value, dict) and not value.keys() <= described.names


def _unknown(
    value: Any, described: _Object, pointer: str, path: list[str | int]
) -> Iterator[Mistake]:
    for name in value:
        if name not in described.names:
            known = ", ".join(described.fields) or "none"
            yield _mistake(_place(pointer, [*path, name]), f"is unknown; known: {known}")


@lru_cache(maxsize=1024)
def _holders(kind: Any) -> Mapping[str, Any]:
    """Return the fields of an object that may be or hold objects themselves."""
    described = _object_of(kind)
    fields = {} if described is None else described.fields
    return {name: each.kind for name, each in fields.items() if _may_be_object(each.kind, set())}


@lru_cache(maxsize=1024)
def _holds_objects(kind: Any) -> bool:
    """Tell whether what is within a value of a type may be an object whose fields are known."""
    return any(_may_be_object(each, set()) for each in _inner_kinds(kind))


def _may_be_object(kind: Any, seen: set[Any]) -> bool:
    members = _members(kind)
    for each in members.all or (members.bare,):
        if _object_of(each) is not None:
            return True
        if each not in seen:
            seen.add(each)
            if any(_may_be_object(inner, seen) for inner in _inner_kinds(each)):
                return True
    return False


def _inner_kinds(kind: Any) -> Iterable[Any]:
    """Return the types of what is within a value of a type, as `_parts` has them."""
    described = _object_of(kind)
    if described is not None:
        return [each.kind for each in described.fields.values()]
    of = _value_kind(kind)
    if of is not None:
        return (of,)
    kinds = typing.get_args(kind) if _is_like_list(kind) else ()
    return [each for each in kinds if each is not ...]


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
        names = frozenset(fields) | ({config.tag_field} if config.tag_field is not None else set())
        return _Object(fields, names, config.forbid_unknown_fields)
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        none = dataclasses.MISSING
        fields = {
            f.name: _Field(hints[f.name], f.default is none and f.default_factory is none)
            for f in dataclasses.fields(cls)
            if f.init
        }
        return _Object(fields, frozenset(fields))
    if typing.is_typeddict(cls):
        hints = typing.get_type_hints(cls)
        needed: Collection[str] = getattr(cls, "__required_keys__", ())
        fields = {name: _Field(hint, name in needed) for name, hint in hints.items()}
        return _Object(fields, frozenset(fields))
    return None


def _member(value: Any, kind: Any) -> Any:
    """Return the one member of a union that a value may be meant for; the type of another one."""
    members = _members(kind)
    meant = None
    if not members.all:
        return members.bare
    if isinstance(value, list):
        meant = members.array
    elif isinstance(value, dict):
        tag = None if members.tag_field is None else value.get(members.tag_field)
        meant = members.by_tag.get(tag) if isinstance(tag, str | int) else None
        meant = members.object if meant is None else meant
    return members.bare if meant is None else meant


@lru_cache(maxsize=1024)
def _members(kind: Any) -> _Members:
    kind = _bare(kind)
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return _Members(kind)
    members = tuple(_bare(each) for each in typing.get_args(kind))
    tagged = [
        (config.tag_field, config.tag, each)
        for each in members
        if (config := getattr(_origin(each), "__struct_config__", None)) is not None
        and config.tag_field is not None
    ]
    objects = [each for each in members if _object_of(each) or _value_kind(each) is not None]
    arrays = [each for each in members if _is_like_list(each)]
    return _Members(
        kind,
        members,
        tagged[0][0] if tagged else None,  # the decoder takes one for all members
        {tag: each for _, tag, each in tagged if _object_of(each)},
        objects[0] if len(objects) == 1 else None,
        arrays[0] if len(arrays) == 1 else None,
    )


def _is_like_list(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, _LIKE_LISTS)


def _value_kind(kind: Any) -> Any:
    """Return the type of the values of a map; None of another type."""
    kinds = typing.get_args(kind)
    return kinds[1] if len(kinds) == 2 and typing.get_origin(kind) in (dict, Mapping) else None


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


def _told(error: Exception, pointer: str, path: list[str | int]) -> Mistake:
    """Return what a decoder says of a value, by the place that it names itself."""
    words = str(error)
    matched = _TOLD.fullmatch(words)
    inner: list[str] = []
    if matched is not None:
        steps = list(_STEP.finditer(matched[2]))
        # A part of it may have no place, such as the value of a map.
        if "".join(step[0] for step in steps) == matched[2]:
            words, inner = matched[1], [step[1] or step[2] for step in steps]
    return _mistake(_place(pointer, [*path, *inner]), cut(words))


def cut(words: str) -> str:
    """Return what a decoder says; it repeats a name or a value, which may be as long as a body."""
    return words if len(words) <= _WORDS_CHARS_MAX else words[:_WORDS_CHARS_MAX] + "…"


def _place(pointer: str, steps: Iterable[str | int]) -> str:
    return pointer + pointer_of(steps)


def _mistake(pointer: str, detail: str) -> Mistake:
    return {"detail": detail, "pointer": pointer}


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _nothing(_: str) -> None:
    return None


class _GivenTwice(Exception):
    """An object has a name twice."""


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1 and len(dict(pairs)) < len(pairs):
        raise _GivenTwice


# Made once, for it is dearer than a body. Numbers are of no interest, and may be longer than Python
# takes.
_ONCE: Final = json.JSONDecoder(object_pairs_hook=_once, parse_int=_nothing, parse_float=_nothing)
