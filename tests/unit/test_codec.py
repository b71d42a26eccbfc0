"""The codec: equal values are equal bytes, and what does not fit is named."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.codec import (
    convert,
    decode,
    digest,
    encode,
    encoder_of,
    keeps_its_form,
    to_datetime,
    writer_of,
)
from synchromesh.errors import BadRequest


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Line:
    sku: str
    qty: int


class Order(msgspec.Struct):
    id: uuid.UUID
    lines: list[Line]
    at: dt.datetime
    total: decimal.Decimal
    colour: Colour = Colour.RED


class Rate(msgspec.Struct, omit_defaults=True):
    at: float
    more: list[float | None] = []


ORDER = Order(
    uuid.UUID(int=1),
    [Line("a", 1)],
    dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    decimal.Decimal("1.50"),
)


def test_values_come_back() -> None:
    """Structs, dataclasses, dates, ids, decimals and enums, checked throughout."""
    assert decode(encode(ORDER), Order) == ORDER


@pytest.mark.parametrize(
    ("kind", "value", "data"),
    [
        (dict[int, str], {10: "b", 9: "a"}, b'{"10":"b","9":"a"}'),
        (dict[int, set[int]], {1: {3, 1, 2}}, b'{"1":[1,2,3]}'),
        (dict[Colour, float | None], {Colour.RED: None}, b'{"red":null}'),
        (dict[uuid.UUID, Line], {ORDER.id: Line("a", 1)},
         b'{"00000000-0000-0000-0000-000000000001":{"qty":1,"sku":"a"}}'),
    ],
)  # fmt: skip
def test_keys_that_are_no_texts_are_written_as_texts(kind: Any, value: Any, data: bytes) -> None:
    """In one order, by all that writes a type, and they come back as they were."""
    assert encode(value) == encoder_of(kind)(value) == writer_of(kind)(value) == data
    assert decode(data, kind) == value


class Counted(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Tree(msgspec.Struct):
    sku: str
    below: list[Tree]
    made_at: dt.datetime | None = None
    price: float | decimal.Decimal = 0.0


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Tree, b'{"price": 1, "sku": "a", "below": [{"below": [], "sku": "b", "n": 7}]}'),
        (dt.datetime, b'"2026-01-02T00:00:00.1234567+02:00"'),
        (tuple[Colour, uuid.UUID | None, float], b'["red", null, 10e-1]'),
        (list[tuple[bytes, ...]], b'[["AA=="], []]'),
    ],
)  # fmt: skip
def test_what_keeps_its_form_is_the_same_read_again(kind: Any, data: bytes) -> None:
    """Its JSON may be another, and it is not."""
    value = decode(data, kind)
    assert keeps_its_form(kind)
    assert encode(value) != data
    assert repr(decode(encode(value), kind)) == repr(value)


@pytest.mark.parametrize(
    "kind",
    [dict[str, int], list[dict[str, int]], set[int], Any, object, Counted, tuple[int, Counted],
     Line | None, msgspec.Raw],
)  # fmt: skip
def test_what_may_be_another_read_again_does_not_keep_its_form(kind: Any) -> None:
    """An order that JSON sorts, code that runs as it is made, and what is not known."""
    assert not keeps_its_form(kind)


def test_a_key_that_json_has_no_text_for_is_named() -> None:
    """Nor can NaN hide behind another key."""
    with pytest.raises(BadRequest, match="a dict cannot be sent: Only dicts with"):
        encode({(1, 2): 3})
    with pytest.raises(BadRequest, match="holds NaN"):
        encode({1: float("nan")})


@given(st.dictionaries(st.text(max_size=3), st.integers(-5, 5), max_size=6))
def test_equal_values_have_equal_bytes(value: dict[str, int]) -> None:
    """However a mapping was filled, its bytes are the same, and so is its digest."""
    turned = dict(reversed(value.items()))
    assert encode(turned) == encode(value)
    assert digest(encode(turned)) == digest(encode(value))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_float_that_is_no_number_is_refused_wherever_it_is(bad: float) -> None:
    """It would become null, which is another value; None and the text are what they are."""
    for value in (bad, [1, (None, bad)], {"a": {"b": bad}}, {bad}, Rate(bad), Rate(1.0, [bad])):
        with pytest.raises(BadRequest, match="NaN or an infinity"):
            encode(value)
    assert encode([None, 1e308, "null"]) == b'[null,1e308,"null"]'
    assert encode(Rate(0.5, [None])) == b'{"at":0.5,"more":[null]}'
    assert encode({"raw": msgspec.Raw(b"null")}) == b'{"raw":null}'


@pytest.mark.parametrize("value", [object(), {1: object()}, "\ud800", 2**70 + 0j, {(1, 2): 3}])
def test_what_json_cannot_carry_is_refused(value: object) -> None:
    """The message names the type, not the value."""
    with pytest.raises(BadRequest, match=f"a {type(value).__name__} cannot be sent"):
        encode(value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff", "malformed"),
        (b'{"sku":"a"}', "missing required field `qty`"),
        (b'{"sku":"a","qty":"1"}', r"Expected `int`, got `str` - at `\$.qty`"),
        (b'{"sku":"\xff","qty":1}', "fit"),
        (b"[" * 100_000, "fit"),
    ],
)
def test_data_that_does_not_fit_is_refused(data: bytes, text: str) -> None:
    """Malformed JSON and wrong types are BadRequest, and say where."""
    with pytest.raises(BadRequest, match=text):
        decode(data, Line)


def test_texts_become_numbers_only_on_demand() -> None:
    """A query's "3" is a 3; a body's is a mistake."""
    assert convert("3", int, from_text=True) == 3
    with pytest.raises(BadRequest, match="Expected `int`"):
        convert("3", int)


def test_stored_times_become_aware() -> None:
    """Microseconds since 1970 UTC, before it too."""
    assert to_datetime(-1) == dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    assert len(digest(b"")) == 32


def test_a_value_that_holds_itself_is_refused() -> None:
    """It has no end, whoever sends it: a handler, a saga, a caller."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(BadRequest, match="a list cannot be sent"):
        encode(endless)
