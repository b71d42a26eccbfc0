"""What the codec writes fits the schema of its type, and what fits the schema the codec takes."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from functools import cache
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from kinds_app import (
    Circle,
    Closed,
    Colour,
    Extras,
    Level,
    Money,
    Page,
    Point,
    Row,
    Sku,
    Square,
    Thing,
    Tree,
)
from synchromesh.codec import decode, encode
from synchromesh.errors import BadRequest
from synchromesh.gateway.schemas import PLACE, Schemas

FORMATS = FormatChecker()


@cache
def validator_of(kind: Any) -> Draft202012Validator:
    """Return what judges JSON by the schema of a type."""
    schemas = Schemas()
    schema = schemas.of(kind)
    document = json.loads(json.dumps(schema | {"components": {"schemas": schemas.components}}))
    assert PLACE.startswith("#/components/schemas/")
    Draft202012Validator.check_schema(document)
    return Draft202012Validator(document, format_checker=FORMATS)


def fits(kind: Any, value: Any) -> bool:
    """Tell whether JSON fits the schema of a type."""
    return bool(validator_of(kind).is_valid(value))


def takes(kind: Any, data: bytes) -> bool:
    """Tell whether the codec takes JSON as a type."""
    try:
        decode(data, kind)
    except BadRequest:
        return False
    return True


texts = st.text(max_size=8)
floats = st.floats(allow_nan=False, allow_infinity=False)
zones = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=-3, minutes=-30))])
# So far from the ends that no zone leads over them.
EARLY, LATE = (dt.datetime(year, 1, 1, tzinfo=dt.UTC).replace(tzinfo=None) for year in (2, 9998))
aware = st.datetimes(EARLY, LATE, timezones=zones)
moments = st.datetimes() | aware
decimals = st.decimals(allow_nan=False) | st.sampled_from([Decimal("NaN"), Decimal("1E+30")])
circles = st.builds(Circle, floats)
shapes = circles | st.builds(Square, st.floats(min_value=0.1, max_value=9), st.none() | circles)
moneys = st.builds(Money, st.integers(), texts)
trees = st.recursive(
    st.builds(Tree, texts), lambda inner: st.builds(Tree, texts, st.lists(inner, max_size=3))
)
things = st.builds(
    Thing,
    sku=texts.map(Sku),
    number=st.integers(-5, 99),
    share=st.floats(0, 1),
    is_new=st.booleans(),
    name=st.text(min_size=1, max_size=20),
    code=st.from_regex("^[a-z]{2,4}$", fullmatch=True).map(str.strip),
    raw=st.binary(max_size=9),
    amount=decimals,
    ident=st.none() | st.uuids(),
    at=st.none() | moments,
    aware=st.none() | aware,
    day=st.none() | st.dates(),
    hour=st.none() | st.times() | st.times(timezones=st.just(dt.UTC)),
    lasts=st.none() | st.timedeltas(),
    colour=st.sampled_from(Colour),
    level=st.none() | st.sampled_from(Level),
    shape=st.none() | shapes,
    point=st.builds(Point, st.integers(), st.integers()),
    row=st.none() | st.builds(Row, texts, st.integers(), texts),
    closed=st.none() | st.builds(Closed, texts, st.integers() | st.just(msgspec.UNSET)),
    extras=st.none() | st.just(Extras(a=1)) | st.just(Extras(a=1, b="x")),
    money=st.none() | moneys,
    tree=st.none() | trees,
    page=st.none() | st.builds(Page[Money], st.lists(moneys, max_size=2), st.none() | texts),
    words=st.sampled_from(["a", "b", 1, None]),
    pair=st.none() | st.tuples(st.integers(), texts),
    numbers=st.lists(st.integers(), max_size=3),
    unique=st.frozensets(texts, max_size=3),
    by_name=st.dictionaries(texts, moneys, max_size=2),
    by_number=st.dictionaries(st.integers(), moneys, max_size=2),
    by_colour=st.dictionaries(st.sampled_from(Colour), st.integers(), max_size=2),
    mixed=st.integers() | texts | st.lists(st.booleans(), max_size=2),
    maybe=texts | st.just(msgspec.UNSET),
    anything=st.none() | st.integers() | st.lists(texts, max_size=2),
)
WHOLE = Thing(
    sku=Sku("x"), number=1, at=EARLY, lasts=dt.timedelta(0), hour=dt.time(0),
    aware=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), amount=Decimal("-0E-9"),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(thing=things)
@example(thing=WHOLE)
@example(thing=msgspec.structs.replace(WHOLE, lasts=dt.timedelta.min, at=LATE))
@example(thing=msgspec.structs.replace(WHOLE, lasts=dt.timedelta.max))
@example(thing=msgspec.structs.replace(WHOLE, lasts=-dt.timedelta(microseconds=1)))
def test_what_the_codec_writes_fits(thing: Thing) -> None:
    """Every value of every kind, formats as well."""
    value = json.loads(encode(thing))
    assert list(validator_of(Thing).iter_errors(value)) == []


# What a leaf, or a whole part, may be replaced by. No 1.0: that fits `integer`, and is refused.
WRONG = (
    st.sampled_from(
        [None, True, -6, 5, 3.5, "", "x", "2026-01-01T00:00:00Z", [], [1], {}, {"a": 1}]
    )
    | texts
)


def paths_in(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all parts of a value."""
    found = [at] if at else []
    if isinstance(value, list):
        value = dict(enumerate(value))
    for step, each in value.items() if isinstance(value, dict) else ():
        found += paths_in(each, (*at, step))
    return found


@settings(max_examples=150, deadline=None)
@given(thing=things, data=st.data())
def test_what_fits_is_taken(thing: Thing, data: st.DataObject) -> None:
    """A value is spoilt somewhere: where its schema still takes it, so does the codec."""
    value = json.loads(encode(thing))
    path = data.draw(st.sampled_from(paths_in(value)))
    place = value
    for step in path[:-1]:
        place = place[step]
    how = data.draw(st.sampled_from(["replace", "drop", "add"]))
    if how == "replace":
        place[path[-1]] = data.draw(WRONG)
    elif how == "drop":
        del place[path[-1]]
    elif isinstance(place, dict):
        place["more"] = 1
    else:
        place.append(1)
    if fits(Thing, value):
        assert takes(Thing, json.dumps(value).encode()), (path, value)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Thing, b'{"sku":"x","number":1,"name":""}'),
        (Thing, b'{"sku":"x","number":100}'),
        (Thing, b'{"sku":"x","number":-6}'),
        (Thing, b'{"sku":"x","number":1,"code":"abcde"}'),
        (Thing, b'{"sku":"x","number":1,"colour":"green"}'),
        (Thing, b'{"sku":"x","number":1,"level":2}'),
        (Thing, b'{"sku":"x","number":1,"numbers":[1,2,3,4]}'),
        (Thing, b'{"sku":"x","number":1,"pair":[1]}'),
        (Thing, b'{"sku":"x","number":1,"shape":{"type":"cube","side":1}}'),
        (Thing, b'{"sku":"x","number":1,"shape":{"type":"square","side":0}}'),
        (Thing, b'{"sku":"x","number":1,"closed":{"longName":"x","more":1}}'),
        (Thing, b'{"sku":"x","number":1,"closed":{"long_name":"x"}}'),
        (Thing, b'{"sku":"x","number":1,"row":["x"]}'),
        (Thing, b'{"sku":"x","number":1,"aware":"2026-01-01T00:00:00"}'),
        (Thing, b'{"sku":"x","number":1,"raw":"a"}'),
        (Thing, b'{"sku":"x","number":1,"ident":"x"}'),
        (Thing, b'{"sku":"x","number":"1"}'),
        (Thing, b'{"number":1}'),
        (dict[int, str], b'{"x":"y"}'),
        (dict[int, str], b'{"1.5":"y"}'),
        (dict[Colour, int], b'{"green":1}'),
        (dict[dt.date, int], b'{"1.1.":1}'),
        (Annotated[dict[str, int], msgspec.Meta(min_length=1)], b"{}"),
        (tuple[int, ...], b'["x"]'),
        (bytes, b'"?"'),
    ],
)  # fmt: skip
def test_what_the_codec_refuses_does_not_fit(kind: Any, data: bytes) -> None:
    """Bounds, closed objects, tags, names of keys: each has its word in the schema."""
    assert not takes(kind, data)
    assert not fits(kind, json.loads(data))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (dict[int, str], b'{"-1":"y"}'),
        (dict[float, str], b'{"1.5":"y"}'),
        (dict[Colour, int], b'{"red":1}'),
        (dict[dt.date, int], b'{"2026-01-01":1}'),
        (Thing, b'{"sku":"x","number":1,"unknown":1}'),
        (Extras, b'{"a":1,"c":2}'),
    ],
)
def test_what_the_codec_takes_fits(kind: Any, data: bytes) -> None:
    """Keys that are no texts are written as texts; what is not closed takes more."""
    assert takes(kind, data)
    assert fits(kind, json.loads(data))
