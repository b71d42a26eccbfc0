"""What does not fit a type is told by its place: every mistake, the first always, within bounds."""

from __future__ import annotations

import datetime as dt
import json
import sys
import tracemalloc
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, Generic, Literal, NewType, Protocol, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.calls import Contract, command, mistakes, query
from synchromesh.calls.http_arguments import refuse_loose
from synchromesh.calls.mistakes import (
    MISTAKES_MAX,
    STEPS_MAX,
    duplicates_in,
    mistakes_in,
    unknown_in,
)
from synchromesh.errors import BadRequest, to_problem

T = TypeVar("T")
Sku = NewType("Sku", str)
Count = Annotated[int, msgspec.Meta(ge=1, le=99)]


class Line(msgspec.Struct, rename="camel"):
    the_sku: Sku
    qty: Count = 1


class Exact(msgspec.Struct, forbid_unknown_fields=True):
    n: int


class Paid(msgspec.Struct, tag="paid"):
    at: dt.datetime


class Open(msgspec.Struct, tag="open"):
    until: dt.date


class Pages(msgspec.Struct, Generic[T]):
    items: list[T]


class Typed(TypedDict):
    n: int


class Checked(msgspec.Struct):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


@dataclass
class Data:
    n: int
    word: str = ""


class Basket(msgspec.Struct):
    id: str
    lines: list[Line]
    state: Paid | Open | None = None
    tags: dict[str, int] = {}
    colour: Literal["red", "blue"] = "red"


GOOD = {"id": "B", "lines": [{"theSku": "a", "qty": 2}]}

CASES: list[tuple[Any, Any, list[str]]] = [
    (GOOD, Basket, []),
    (7, Basket, [""]),
    (None, Basket, [""]),
    ([], Basket, [""]),
    ({}, Basket, ["/id", "/lines"]),
    ({**GOOD, "id": 7, "colour": "green"}, Basket, ["/id", "/colour"]),
    ({**GOOD, "lines": [{"theSku": 1}, {"qty": 0}, {"theSku": "a", "qty": 100}]}, Basket,
     ["/lines/0/theSku", "/lines/1/theSku", "/lines/1/qty", "/lines/2/qty"]),
    ({**GOOD, "lines": {"0": 1}}, Basket, ["/lines"]),
    ({**GOOD, "tags": {"a/b": "x", "c~d": "y", "ok": 1, "": "z"}}, Basket,
     ["/tags/a~1b", "/tags/c~0d", "/tags/"]),
    ({**GOOD, "state": {"type": "paid", "at": "soon"}}, Basket, ["/state/at"]),
    ({**GOOD, "state": {"type": "open"}}, Basket, ["/state/until"]),
    ({**GOOD, "state": {"type": "lost"}}, Basket, ["/state/type"]),
    ({**GOOD, "state": 5}, Basket, ["/state"]),
    ({"n": "x", "m": 1}, Exact, ["/m", "/n"]),
    ({"n": 1, "m": 1}, Exact, ["/m"]),
    ({"n": "x", "m": 1}, Data, ["/n"]),
    ({}, Data, ["/n"]),
    ({"n": "x"}, Typed, ["/n"]),
    ({}, Typed, ["/n"]),
    ({"items": [1, "2", 3.5]}, Pages[int], ["/items/1", "/items/2"]),
    ([1, "x"], tuple[int, int], ["/1"]),
    ([1], tuple[int, int], [""]),
    (["a", 1], set[str], ["/1"]),
    ({"low": 2, "high": 1}, Checked, [""]),
    ([{"low": 2, "high": 1}, {"low": "x", "high": 1}], list[Checked], ["/0", "/1/low"]),
    ({"x": 1}, dict[int, int], [""]),
    ([["x"]], list[list[int] | None], ["/0/0"]),
    ({"theSku": 1}, Line | list[int], ["/theSku"]),
    ({"a": {"n": "x"}}, dict[str, Exact] | list[int], ["/a/n"]),
    (["x"], Line | list[int], ["/0"]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind", "pointers"), CASES)
def test_each_mistake_has_its_place(value: Any, kind: Any, pointers: list[str]) -> None:
    """A part that does not fit is named itself, not what it is in; what is missing by its name."""
    assert [each["pointer"] for each in mistakes_in(value, kind)] == pointers


def test_a_mistake_says_what_is_wrong() -> None:
    """In the words of the decoder, without its own way to write places."""
    lines = [{"theSku": "a", "qty": 0}, {"qty": "x"}]
    assert [dict(each) for each in mistakes_in(lines, list[Line], "/lines")] == [
        {"detail": "Expected `int` >= 1", "pointer": "/lines/0/qty"},
        {"detail": "is missing", "pointer": "/lines/1/theSku"},
        {"detail": "Expected `int`, got `str`", "pointer": "/lines/1/qty"},
    ]
    (unknown,) = mistakes_in({"n": 1, "m": 2}, Exact)
    assert unknown["detail"] == "is unknown; known: n"


def test_nobody_makes_it_look_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at so many parts; the first mistake is told also where it is behind them."""
    steps = 0
    convert = msgspec.convert

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal steps
        steps += 1
        return convert(*args, **options)

    monkeypatch.setattr(msgspec, "convert", counted)
    far = mistakes_in({"items": [1] * 100_000 + ["x"]}, Pages[int])
    assert [each["pointer"] for each in far] == ["/items/100000"]
    assert steps <= STEPS_MAX + 2
    many = mistakes_in(["x"] * 1000, list[int])
    assert [each["pointer"] for each in many] == [f"/{n}" for n in range(MISTAKES_MAX)]
    unknown = mistakes_in({f"x{n}": 1 for n in range(1000)}, Exact)
    assert len(unknown) == MISTAKES_MAX
    deep: Any = "x"
    for _ in range(200):
        deep = [deep]
    kind: Any = int
    for _ in range(200):
        kind = list[kind]
    assert [each["pointer"] for each in mistakes_in(deep, kind)] == ["/0" * 100 + "…"]


def test_what_clients_send_does_not_make_what_they_are_told_large() -> None:
    """Neither a long name nor a long value is repeated whole, however many mistakes name it."""
    key = "k" * 500_000
    found = [
        *mistakes_in({key: ["x"] * 100}, dict[str, list[int]]),
        *mistakes_in({key: 1}, Exact),
        *mistakes_in({key: {}}, dict[str, Data]),
        *mistakes_in({"type": key}, Paid | Open),
        *unknown_in([{"n": 1, key: 1}], list[Data]),
        *duplicates_in(b'{"%b":[{"a":1,"a":1}]}' % key.encode()),
        *duplicates_in(b'{"%b":1,"%b":2}' % (key.encode(), key.encode())),
        *refusal(Shop.note, {"id": "B", "number": "1"}, "", b'{"%b":1}' % key.encode()).mistakes,
        *refusal(Shop.find, {"number": "1"}, f"sku=a&{key}=1", b"").mistakes,
    ]
    assert len(found) >= MISTAKES_MAX + 8
    assert max(len(json.dumps(dict(each), ensure_ascii=False)) for each in found) < 700
    for name in ("text", key):
        told = refusal(Shop.find, {"number": "1"}, f"sku=a&{name}=1", b"")
        assert len(told.message) < 600
    told = refusal(Shop.note, {"id": "B", "number": "1"}, "", b'{"%b":1}' % key.encode())
    assert len(told.message) < 600


class CountedName(str):
    """A name that notes how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


def test_many_names_are_compared_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that stands twice is found without holding each against all."""
    loads = json.loads

    def counted(text: str, *, object_pairs_hook: Any, **options: Any) -> Any:
        def made(pairs: list[tuple[str, Any]]) -> Any:
            return object_pairs_hook([(CountedName(name), value) for name, value in pairs])

        return loads(text, object_pairs_hook=made, **options)

    monkeypatch.setattr(json, "loads", counted)
    CountedName.compared = 0
    names = [f'"{n:x}":0' for n in range(1000)]
    found = duplicates_in(("{" + ",".join([*names, '"1":0']) + "}").encode())
    assert [each["pointer"] for each in found] == ["/1"]
    assert CountedName.compared < 3000
    every = duplicates_in(("{" + ",".join([*names, *names]) + "}").encode())
    assert len(every) == MISTAKES_MAX


def test_places_of_names_that_stand_twice_are_searched_for_within_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind it one is refused all the same, as a mistake of the whole."""
    body = b"[" + b"{}," * 20 + b'{"a":1,"a":2}]'
    assert [each["pointer"] for each in duplicates_in(body)] == ["/20/a"]
    monkeypatch.setattr(mistakes, "PLACES_MAX", 10)
    (far,) = duplicates_in(body)
    assert dict(far) == {"detail": "holds an object in which a name is given twice", "pointer": ""}


def test_long_names_take_no_memory() -> None:
    """Whoever has many parts under a long name is asked for no pointer to each."""
    key, parts = "k" * 40_000, 5_000
    body = b'{"a":1,"a":1,"%b":[%b[]]}' % (key.encode(), b"[]," * parts)
    broken = {key: [{"n": 1}] * parts + [{"n": 1, "x": 1}]}
    tracemalloc.start()
    try:
        assert [each["pointer"] for each in duplicates_in(body)] == ["/a"]
        assert len(unknown_in(broken, dict[str, list[Data]])) == 1
        assert len(mistakes_in({key: [1] * parts + ["x"]}, dict[str, list[int]])) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 200) | st.sampled_from(["", "a", "red", "paid"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "lines", "theSku", "qty", "state", "type", "tags", "n", "a/~"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(
    JSON, st.sampled_from([Basket, list[Line], Exact, dict[str, Line], Pages[Data], Paid | Open])
)
def test_there_are_mistakes_where_it_does_not_fit(value: Any, kind: Any) -> None:
    """Some exactly where the decoder refuses it, each at a place that is there, or next to it."""
    try:
        msgspec.json.decode(json.dumps(value).encode(), type=kind)
    except msgspec.ValidationError:
        fits = False
    else:
        fits = True
    found = mistakes_in(value, kind)
    assert (found == ()) is fits
    assert len(found) <= MISTAKES_MAX
    for each in found:
        place = value
        *steps, last = each["pointer"].split("/")[1:] or [""]
        for step in (s.replace("~1", "/").replace("~0", "~") for s in steps):
            place = place[int(step)] if isinstance(place, list) else place[step]
        assert each["pointer"] == "" or isinstance(place, dict | list)
        if isinstance(place, list) and last:
            assert int(last) < len(place)


# -- what a type does not say ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "pointers"),
    [
        (GOOD, Basket, []),
        ({**GOOD, "x": 1}, Basket, ["/x"]),
        ({**GOOD, "lines": [{"theSku": "a", "the_sku": "b"}]}, Basket, ["/lines/0/the_sku"]),
        (
            {**GOOD, "state": {"type": "open", "until": "2026-01-01", "at": 1}},
            Basket,
            ["/state/at"],
        ),
        ({"any": {"x": 1}}, dict[str, Any], []),
        ([{"n": 1, "x": 2}, {"n": 1}], list[Data], ["/0/x"]),
        ({"items": [{"n": 1, "a/b": 2}]}, Pages[Typed], ["/items/0/a~1b"]),
        ({"a": [[{"n": 1, "x": 2}]]}, dict[str, list[list[Data] | None]], ["/a/0/0/x"]),
    ],
)
def test_fields_that_a_type_does_not_have(value: Any, kind: Any, pointers: list[str]) -> None:
    """At any depth, by the names that are sent; what is any JSON has no unknown fields."""
    assert [each["pointer"] for each in unknown_in(value, kind)] == pointers


@pytest.mark.parametrize(
    ("text", "pointers"),
    [
        ('{"a": 1, "b": [{"a": 1}, {"a": 2}]}', []),
        ('{"a": 1, "a": 1}', ["/a"]),
        (r'{"a": 1, "\u0061": 2, "b": 0, "b": 0}', ["/a", "/b"]),
        ('[{"a/b": {"x": [1, {"~": 1, "~": 2}]}}]', ["/0/a~1b/x/1/~0"]),
        ('{"a": {"b": 1, "b": 2}, "c": {"d": 1, "d": 2}}', ["/a/b", "/c/d"]),
        ('{"a": 1, "a": 2, "a": {"b": 1, "b": 1}}', ["/a", "/a/b"]),
        ("7", []),
        ('"x"', []),
        ('{"n": ' + "9" * 5000 + ', "m": 1e400}', []),
    ],
)
def test_names_that_stand_twice(text: str, pointers: list[str]) -> None:
    """However they are spelt; which of the two a reader takes is its own affair."""
    assert [each["pointer"] for each in duplicates_in(text.encode())] == pointers


# -- a whole request ---------------------------------------------------------------------------


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /baskets")
    async def fill(self, basket: Basket) -> None: ...
    @command("PUT /baskets/{id}/notes/{number}")
    async def note(self, id: str, number: Count, text: str, line: Line | None = None) -> None: ...  # noqa: A002
    @command("POST /any")
    async def keep(self, value: Any) -> None: ...
    @query("GET /baskets/{number}")
    async def find(self, number: int, sku: str, limit: Count = 10) -> list[Basket]: ...


def refusal(operation: Any, places: dict[str, str], query_text: str, body: bytes) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        operation.from_http(places, query_text, body)
    return refused.value


def test_all_mistakes_of_a_request_are_told() -> None:
    """Of path, query and body, each by what names it there."""
    found = refusal(Shop.find, {"number": "x"}, "limit=0&limit=5&colour=red", b"")
    assert [dict(each) for each in found.mistakes] == [
        {"detail": "Expected `int`, got `str`", "in": "path", "name": "number"},
        {"detail": "Expected `int` >= 1", "in": "query", "name": "limit"},
        {"detail": "is given twice", "in": "query", "name": "limit"},
        {"detail": "is unknown; known: number, sku, limit", "in": "query", "name": "colour"},
        {"detail": "is missing", "in": "query", "name": "sku"},
    ]
    note = refusal(
        Shop.note,
        {"id": "B", "number": "0"},
        "x=1",
        b'{"txt":1,"line":{"theSku":7},"a/b":2}',
    )
    assert [(each.get("pointer"), each.get("name")) for each in note.mistakes] == [
        (None, "number"), (None, "x"), ("/txt", None), ("/line/theSku", None), ("/a~1b", None),
        ("/text", None),
    ]  # fmt: skip
    fill = refusal(Shop.fill, {}, "", b'{"id":7}')
    assert [each["pointer"] for each in fill.mistakes] == ["/lines", "/id"]
    assert to_problem(fill)["errors"] == [dict(each) for each in fill.mistakes]


@pytest.mark.parametrize(
    ("operation", "body", "detail"),
    [
        (Shop.fill, b"", "is no JSON"),
        (Shop.fill, b"{", "is no JSON"),
        (Shop.fill, b"\xff", "is no JSON"),
        (Shop.note, b"[]", "is no object of arguments"),
        (Shop.note, b"[" * 5000, "is no JSON"),
        (Shop.find, b"{}", "GET takes no body"),
    ],
)
def test_a_body_that_is_none(operation: Any, body: bytes, detail: str) -> None:
    """It is wrong as a whole."""
    places = {"id": "B", "number": "1"} if operation is Shop.note else {}
    if operation is Shop.find:
        places = {"number": "1"}
    found = refusal(operation, places, "sku=a" if operation is Shop.find else "", body)
    (mistake,) = found.mistakes
    assert mistake["pointer"] == ""
    assert detail in mistake["detail"]


def test_loose_bodies_are_refused_where_that_is_asked_for() -> None:
    """What fits may hold what nobody reads; a strict route has none of it."""
    body = b'{"id":"B","lines":[{"theSku":"a","theSku":"b","sku":1}],"more":1}'
    assert Shop.fill.from_http({}, "", body)
    with pytest.raises(BadRequest, match="'/lines/0/theSku' is given twice") as refused:
        refuse_loose(Shop.fill, body)
    assert [each["pointer"] for each in refused.value.mistakes] == [
        "/lines/0/theSku", "/more", "/lines/0/sku",
    ]  # fmt: skip
    with pytest.raises(BadRequest) as refused:
        refuse_loose(Shop.note, b'{"text":"a","text":"b","line":{"theSku":"a","x":1}}')
    assert [each["pointer"] for each in refused.value.mistakes] == ["/text", "/line/x"]
    refuse_loose(Shop.fill, json.dumps(GOOD).encode())
    refuse_loose(Shop.note, b'{"text":"a"}')
    refuse_loose(Shop.find, b"")


@pytest.mark.parametrize(
    "held", [b'"\xff"', b'"\xed\xa0\x80"', b'{"\xff":1}', b"1e999", b"1" * 5000]
)
def test_what_is_skipped_and_cannot_be_read_is_refused(held: bytes) -> None:
    """Arguments are read past it; who looks at all fields comes upon it, and fails of nothing."""
    body = b'{"id":"B","lines":[{"theSku":"a"}],"more":%b}' % held
    assert Shop.fill.from_http({}, "", body)
    with pytest.raises(BadRequest, match="cannot be read") as refused:
        refuse_loose(Shop.fill, body)
    (mistake,) = refused.value.mistakes
    assert mistake["pointer"] == ""
    assert "is no JSON" in mistake["detail"]


def test_what_has_no_fields_is_not_looked_into() -> None:
    """A body of many numbers costs next to nothing; one of many small objects a step each."""
    entered: list[str] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.append(frame.f_code.co_name)

    value, small, before = {"n": list(range(1000))}, [{"n": 1}] * 500, sys.getprofile()
    sys.setprofile(note)
    try:
        assert unknown_in(value, dict[str, list[int]]) == ()
        assert unknown_in(small, list[Data]) == ()
    finally:
        sys.setprofile(before)
    # One for each of the objects, from what goes through them.
    assert len(entered) < len(small) + 200


def test_a_body_that_one_decoder_takes_and_another_does_not_is_refused() -> None:
    """A stack that runs out is the client's mistake, wherever it does."""
    ends = set()
    for depth in (1, 50, *range(700, 1100, 20), 5000, 60_000):
        body = b'{"value":' + b"[" * depth + b"]" * depth + b"}"
        try:
            Shop.keep.from_http({}, "", body)
            refuse_loose(Shop.keep, body)
        except BadRequest:
            ends.add("refused")
        else:
            ends.add("taken")
    assert ends == {"refused", "taken"}
