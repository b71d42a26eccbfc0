"""Comparing two answers: by status, by JSON, and without what may differ."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.gateway import comparing
from synchromesh.gateway.comparing import (
    DIFFERENCES_MAX,
    TEXT_CHARS_MAX,
    AnswerTold,
    Ignored,
    compare,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


def told(value: Any, status: int = 200, **more: Any) -> AnswerTold:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return AnswerTold(status, body, **{"kind": "application/json"} | more)


def places(first: Any, mirror: Any, *ignored: str) -> list[tuple[str, str]]:
    found = compare(told(first), told(mirror), Ignored.of(ignored))
    assert found is not None
    return [(each.where, each.why) for each in found]


@given(VALUES, VALUES)
def test_alike_is_what_json_holds_alike(one: Any, other: Any) -> None:
    """Whatever the order of fields and the spaces; never two values of different types."""
    spaced = json.dumps(one, indent=3, sort_keys=True).encode()
    assert compare(told(one), told(spaced)) == ()
    is_alike = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    found = compare(told(one), told(other))
    assert found is not None
    assert bool(found) is not is_alike
    assert len(found) <= DIFFERENCES_MAX


@pytest.mark.parametrize(
    ("first", "mirror", "expected"),
    [
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": True}, [("/a", "type")]),
        ({"a": 1}, {"a": "1"}, [("/a", "type")]),
        ({"a": None}, {}, [("/a", "only the first")]),
        ({}, {"a/b~": 1}, [("/a~1b~0", "only the mirror")]),
        ([1, 2], [1], [("", "length")]),
        ({"a": [{"b": 1}, 2]}, {"a": [{"b": 2}, 3]}, [("/a/0/b", "value"), ("/a/1", "value")]),
        (1, 2, [("", "value")]),
    ],
)
def test_where_two_differ(first: Any, mirror: Any, expected: list[tuple[str, str]]) -> None:
    """By a JSON pointer, in the order of the first."""
    assert places(first, mirror) == expected


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ((), ["/at", "/items/0/id", "/items/1/id"]),
        (("/at",), ["/items/0/id", "/items/1/id"]),
        (("/items/*/id", "/at"), []),
        (("/items/1", "/*"), []),
        (("/items/1/id",), ["/at", "/items/0/id"]),
        (("/items/*/other", "/id"), ["/at", "/items/0/id", "/items/1/id"]),
    ],
)
def test_what_may_differ_is_left_out(ignored: tuple[str, ...], expected: list[str]) -> None:
    """At that place and below, wherever it is missing; a star is any step."""
    first = {"at": 1, "items": [{"id": 1}, {"id": 2}]}
    mirror = {"items": [{"id": 3}, {}]}
    assert [where for where, _ in places(first, mirror, *ignored)] == expected


def test_what_is_no_json_is_compared_by_its_bytes() -> None:
    """So is JSON that calls itself something else; a type of its own is a difference."""
    assert compare(told(b"x", kind="text/html"), told(b"x", kind="text/html")) == ()
    found = compare(told(b"xy", kind="text/html"), told(b"{}"))
    assert found is not None
    assert [each.where for each in found] == ["body", "type"]
    assert (found[0].first, found[0].mirror) == ("2 bytes", "2 bytes")
    assert compare(told(b"{", kind="application/json"), told(b"{ ")) != ()


def test_bodies_are_decoded_and_bounded() -> None:
    """gzip and deflate; what is encoded otherwise, or too much, is not compared."""
    body = json.dumps({"a": 1}).encode()
    for encoded, name in ((gzip.compress(body), "gzip"), (zlib.compress(body), "deflate")):
        assert compare(told(encoded, encoding=name), told({"a": 1})) == ()
    assert compare(told(b"x", encoding="br"), told(b"x")) is None
    assert compare(told(b"x", encoding="gzip"), told(b"x")) is None
    bomb = gzip.compress(bytes(10_000_000))
    assert compare(told(bomb, encoding="gzip"), told(bomb, encoding="gzip")) is None
    only_status = compare(told(bomb, encoding="gzip"), told(bomb, 404, encoding="gzip"))
    assert only_status is not None
    assert [each.where for each in only_status] == ["status"]


def test_what_is_told_is_cut() -> None:
    """Long values and places."""
    (found,) = compare(told({"k" * 500: "v" * 500}), told({"k" * 500: 1})) or ()
    assert len(found.where) == TEXT_CHARS_MAX + 1
    assert len(found.first) == TEXT_CHARS_MAX + 1


def test_places_that_do_not_differ_take_no_memory() -> None:
    """However long the names are that lead to them; plain or compressed."""
    key, many = "k" * 100_000, 2_000
    bodies = [json.dumps({key: [*range(many), last]}).encode() for last in (1, 2)]
    plain = [told(body) for body in bodies]
    packed = [told(gzip.compress(body), encoding="gzip") for body in bodies]
    tracemalloc.start()
    try:
        for first, mirror in (plain, packed):
            (found,) = compare(first, mirror) or ()
            assert found.where == f"/{'k' * (TEXT_CHARS_MAX - 1)}…"
        (length,) = compare(told({key: [1]}), told({key: [1, 2]})) or ()
        assert (length.why, len(length.where)) == ("length", TEXT_CHARS_MAX + 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000


def test_so_many_values_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies behind them is not known to be alike; what differs before them is told."""
    monkeypatch.setattr(comparing, "PARTS_MAX", 100)
    near, far = [[0] * 200 for _ in range(2)]
    near[10] = far[150] = 1
    alike = told([0] * 200)
    assert compare(alike, told(far)) is None
    assert [each.where for each in compare(alike, told(near)) or ()] == ["/10"]
    changed = compare(alike, told(far, status=404))
    assert [each.where for each in changed or ()] == ["status"]
    assert compare(alike, alike) == ()


@pytest.mark.parametrize("pointer", ["", "a", "a/b"])
def test_what_is_no_pointer_is_refused(pointer: str) -> None:
    """By itself."""
    with pytest.raises(ValueError, match=f"^{pointer}$"):
        Ignored.of([pointer])
