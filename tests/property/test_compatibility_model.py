"""The comparison of contracts against the codec: it says what happens to the data of two releases.

Types are drawn in pairs with values that have each of their parts in each of its forms, so that
where a type does not fit, one of its values shows it.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from decimal import Decimal
from functools import partial
from itertools import count
from typing import Annotated, Any, Literal, Union
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Meta, UnsetType

from synchromesh.calls import command
from synchromesh.calls.compatibility import differences
from synchromesh.calls.contract import Operation
from synchromesh.calls.describing import describe
from synchromesh.codec import decode, encode
from synchromesh.errors import BadRequest

NAMES = ("a", "b", "c")
LEAVES = (int, float, Decimal, str, bytes, dt.date, dt.timedelta, UUID, enum.Enum)
NAIVE = dt.datetime.fromisoformat("2026-01-01T00:00:00")
_numbers = count()


@dataclass(frozen=True)
class Kind:
    """A type and values of it: one for each form of each of its parts."""

    type: Any
    values: list[Any]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


SCALARS = [
    Kind(Any, ["any", 0.5, None, True, [], {"x": 1}]),
    Kind(None, [None]),
    Kind(bool, [True]),
    Kind(int, [-7, 0, 1001]),
    Kind(Annotated[int, Meta(ge=0)], [0, 1001]),
    Kind(Annotated[int, Meta(gt=0, lt=10)], [1, 9]),
    Kind(Annotated[int, Meta(ge=1, multiple_of=2)], [2, 1002]),
    Kind(Annotated[int, Meta(multiple_of=4)], [-8, 0, 1000]),
    Kind(float, [-7.5, 0.5, 1000.5]),
    Kind(Annotated[float, Meta(ge=0)], [0.0, 0.5, 1000.5]),
    Kind(Annotated[float, Meta(le=0.5)], [-7.5, 0.5]),
    Kind(Decimal, [Decimal("0.1"), Decimal("12.25")]),
    Kind(str, ["", "x", "red", "A long text"]),
    Kind(Annotated[str, Meta(min_length=40)], ["x" * 40, "A" * 50]),
    Kind(Annotated[str, Meta(max_length=3)], ["", "A", "red"]),
    Kind(Annotated[str, Meta(pattern="^[a-z]*$")], ["", "red", "longer"]),
    Kind(bytes, [b"bytes"]),
    Kind(dt.datetime, [NAIVE, NAIVE.replace(tzinfo=dt.UTC)]),
    Kind(Annotated[dt.datetime, Meta(tz=True)], [dt.datetime(2026, 1, 1, tzinfo=dt.UTC)]),
    Kind(dt.date, [dt.date(2026, 1, 1)]),
    Kind(dt.timedelta, [dt.timedelta(1), dt.timedelta(1, 5)]),
    Kind(UUID, [UUID(int=1)]),
    Kind(Colour, list(Colour)),
    Kind(Level, list(Level)),
    Kind(Literal["red"], ["red"]),
    Kind(Literal["red", "blue", 1], ["red", "blue", 1]),
    Kind(Literal["red"] | None, ["red", None]),
]


def turns(*parts: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield tuples in which each value of each part comes at least once."""
    for n in range(max(map(len, parts), default=1)):
        yield tuple(values[n % len(values)] for values in parts)


def list_of(item: Kind) -> Kind:
    kind: Any = list
    return Kind(kind[item.type], [[], *([value] * 4 for value in item.values)])


def tuple_of(items: list[Kind]) -> Kind:
    kind: Any = tuple
    return Kind(
        kind[tuple(item.type for item in items)], list(turns(*(item.values for item in items)))
    )


def map_of(item: Kind) -> Kind:
    kind: Any = dict
    every = (dict.fromkeys((*NAMES, "type"), value) for value in item.values)
    return Kind(kind[str, item.type], [{}, *every])


def bounded_list_of(item: Kind) -> Kind:
    kind: Any = list
    return Kind(
        Annotated[kind[item.type], Meta(min_length=1, max_length=2)],
        [v for value in item.values for v in ([value], [value, value])],
    )


def optional(item: Kind) -> Kind:
    return Kind(Union[item.type, None], [*item.values, None])  # noqa: UP007


def union_of_tagged(members: list[Kind]) -> Kind:
    return Kind(
        Union[tuple(member.type for member in members)],  # noqa: UP007
        [value for member in members for value in member.values],
    )


@st.composite
def structs(draw: st.DrawFn, kinds: st.SearchStrategy[Kind], tag: str = "") -> Kind:
    """Draw a struct, or a dataclass, of up to three fields."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    kinds_of = [draw(kinds) for _ in names]
    hows = [draw(st.sampled_from(("required", "default", "unset"))) for _ in names]
    flavour = "struct" if tag else draw(st.sampled_from(("struct", "array", "dataclass", "closed")))
    leaves_out = flavour == "struct" and draw(st.booleans())
    fields: list[tuple[str, Any, Any]] = []
    values: list[list[Any]] = []
    for name, kind, how in zip(names, kinds_of, hows, strict=True):
        given_values = list(kind.values)
        if how == "unset" and flavour != "array" and kind.type is not Any:
            fields.append((name, Union[kind.type, UnsetType], UNSET))  # noqa: UP007
            given_values.append(UNSET)
        elif how == "default" and len(kind.values) > 1:  # or it could be left out always
            fields.append((name, kind.type, kind.values[0]))
        else:
            fields.append((name, kind.type, msgspec.NODEFAULT))
        values.append(given_values)
    cls: Any
    name = f"Drawn{next(_numbers)}"
    if flavour == "dataclass":
        own = [
            (n, k)
            if d is msgspec.NODEFAULT
            else (n, k, d if d is UNSET else field(default_factory=partial(_same, d)))
            for n, k, d in fields
        ]
        cls = make_dataclass(name, own, kw_only=True)
    else:
        cls = msgspec.defstruct(
            name,
            [(n, k) if d is msgspec.NODEFAULT else (n, k, _default(d)) for n, k, d in fields],
            kw_only=True,
            frozen=True,
            tag=tag or None,
            array_like=flavour == "array",
            forbid_unknown_fields=flavour == "closed",
            omit_defaults=leaves_out,
        )
    return Kind(cls, [cls(**dict(zip(names, each, strict=True))) for each in turns(*values)])


def _same(value: Any) -> Any:
    return value


def _default(value: Any) -> Any:
    # A mutable default is made anew each time.
    return (
        msgspec.field(default_factory=partial(_same, value))
        if isinstance(value, list | dict)
        else value
    )


def _wider(kinds: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    tagged = st.tuples(structs(kinds, tag="one"), structs(kinds, tag="two")).map(list)
    return st.one_of(
        kinds.map(list_of),
        kinds.map(bounded_list_of),
        kinds.map(map_of),
        st.lists(kinds, min_size=1, max_size=2).map(tuple_of),
        kinds.map(optional),
        structs(kinds),
        structs(kinds, tag="one"),
        tagged.map(union_of_tagged),
    )


KINDS = st.recursive(st.sampled_from(SCALARS), _wider, max_leaves=6)


def operation(argument: Any, result: Any) -> Operation[..., Any]:
    """Make the command of a release."""

    async def act(self: Any, value: Any) -> Any: ...

    act.__annotations__ = {"value": argument, "return": result}
    made = command("POST /acts")(act)
    made.belong_to("tool", made.name)
    return made


def fields_of(value: Any) -> tuple[str, ...]:
    names: Any = getattr(value, "__struct_fields__", None)
    names = names or getattr(value, "__dataclass_fields__", ())
    return tuple(names)


def is_kept(sent: Any, read: Any) -> bool:
    """Say whether all that was sent, as JSON, is in the value that was read."""
    if isinstance(sent, dict) and not isinstance(read, dict):
        # The tag is the class.
        known = {"type": read} | {name: getattr(read, name) for name in fields_of(read)}
        return all(name in known and is_kept(value, known[name]) for name, value in sent.items())
    if isinstance(sent, dict):
        return all(name in read and is_kept(value, read[name]) for name, value in sent.items())
    if isinstance(sent, list):
        is_row = not isinstance(read, list | tuple)
        items = [getattr(read, name) for name in fields_of(read)] if is_row else read
        return len(sent) <= len(items) and all(map(is_kept, sent, items))
    return True


def means(sent: Any, read: Any) -> bool:
    """Say whether fields that were left out were read as what they are; UNSET is nothing."""
    names = fields_of(sent)
    there = fields_of(read)
    if names and there:
        # In a row a value is read by its place: whoever has changed places is not who was meant.
        config = getattr(sent, "__struct_config__", None)
        if config is not None and config.array_like:
            both = [name for name in names if name in there]
            if [names.index(name) for name in both] != [there.index(name) for name in both]:
                return False
        return all(means(getattr(sent, n), getattr(read, n)) for n in names if hasattr(read, n))
    if isinstance(sent, dict) and isinstance(read, dict):
        return all(means(value, read[name]) for name, value in sent.items())
    if isinstance(sent, list | tuple) and isinstance(read, list | tuple):
        return all(map(means, sent, read))
    if sent is UNSET or read is UNSET:
        return sent is UNSET
    if not all(each is None or isinstance(each, LEAVES) for each in (sent, read)):
        return None not in (sent, read)
    if isinstance(sent, int | float) and isinstance(read, Decimal):
        return Decimal(str(sent)) == read
    return bool(msgspec.to_builtins(sent) == msgspec.to_builtins(read))


def is_read(value: Any, read: Any) -> bool:
    """Say whether one release reads the answer of the other, by the codec."""
    try:
        return means(value, decode(encode(value), read))
    except BadRequest:
        return False


def is_taken(value: Any, old: Operation[..., Any], new: Operation[..., Any]) -> bool:
    """Say whether one release takes the arguments of the other, and all of them."""
    _, body = old.to_http(old(value).arguments)
    try:
        arguments = new.from_http({}, "", body)
    except BadRequest:
        return False
    # A single struct is the body itself.
    read = new.parse(arguments)
    if not is_kept(json.loads(body), read["value"] if new.shape.body else read):
        return False
    return old.shape.body != new.shape.body or means(value, read["value"])


def found(expects: Operation[..., Any], offered: Operation[..., Any], what: str) -> list[str]:
    both = describe([expects]), describe([offered])
    return [
        str(each)
        for each in differences(*both, of="tool", by="user")
        if each.where.startswith(what)
    ]


@settings(max_examples=400)
@given(KINDS, KINDS)
def test_an_answer_fits_where_it_is_read(one: Kind, other: Kind) -> None:
    """A difference is found if and only if the caller's release cannot read some answer."""
    old, new = operation(int, one.type), operation(int, other.type)
    every = [is_read(value, one.type) for value in other.values]
    assert (found(old, new, "answer") == []) == all(every), (
        describe([old]),
        describe([new]),
        other.values,
    )


@settings(max_examples=400)
@given(KINDS, KINDS)
def test_arguments_fit_where_all_of_them_is_read(one: Kind, other: Kind) -> None:
    """A difference is found if and only if the callee's release refuses or loses something."""
    old, new = operation(one.type, int), operation(other.type, int)
    every = [is_taken(value, old, new) for value in one.values]
    assert (found(old, new, "argument") == []) == all(every), (
        describe([old]),
        describe([new]),
        one.values,
    )


@settings(max_examples=100)
@given(KINDS)
def test_what_is_the_same_has_the_same_digest(one: Kind) -> None:
    """It depends on nothing but the types, and fits itself."""
    first, second = operation(one.type, one.type), operation(one.type, one.type)
    assert describe([first]).digests == describe([second]).digests
    assert found(first, second, "") == []
