"""The tree of a trace and its critical path: whatever is missing, each moment has one span."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.critical_path import critical_path
from synchromesh.telemetry.trace_tree import SPANS_MAX, tree_of


def span(
    span_id: str,
    parent: str,
    started_us: int,
    took_us: int,
    *,
    service: str = "shop",
    kind: str = "call",
    status: str = "ok",
) -> SpanRecord:
    """Return a span that is named as its id is."""
    return SpanRecord(
        "t", span_id, parent, service, kind, span_id, started_us, took_us, status, {}
    )  # fmt: skip


def on_path(*spans: SpanRecord) -> list[tuple[str, int, int]]:
    """Return the critical path of the root, as (id, from, to)."""
    tree = tree_of(spans)
    path = critical_path(tree, tree.root)
    return [(each.span.span_id, each.began_us, each.began_us + each.took_us) for each in path]


def test_the_path_goes_back_from_the_child_that_returned_last() -> None:
    """As in figure 4 of CRISP: what ran beside the last to return is not on the path."""
    assert on_path(
        span("root", "", 0, 1000),
        span("a", "root", 100, 300),
        span("b", "root", 200, 600),  # returns last; a ended after b began
        span("c", "root", 50, 100),  # ended before b began
    ) == [("root", 0, 50), ("c", 50, 150), ("root", 150, 200), ("b", 200, 800), ("root", 800, 1000)]


def test_a_child_that_outlives_its_parent_counts_until_its_end() -> None:
    """A saga that goes on after the answer: who asked waited for none of that."""
    assert on_path(span("root", "", 0, 100), span("saga", "root", 40, 900, kind="saga")) == [
        ("root", 0, 40),
        ("saga", 40, 100),
    ]


def test_children_that_overlap_by_the_fineness_of_clocks_come_after_each_other() -> None:
    """Microseconds of overlap are no sign that two ran side by side; 51 are."""
    first, root = span("first", "root", 0, 520), span("root", "", 0, 1000)
    assert [each[0] for each in on_path(root, first, span("second", "root", 500, 500))] == [
        "first",
        "second",
    ]
    assert [each[0] for each in on_path(root, first, span("second", "root", 469, 531))] == [
        "root",
        "second",
    ]


def test_a_clock_that_is_off_moves_what_its_process_did() -> None:
    """What was handled outside of the call that waited for it is moved into its middle."""
    tree = tree_of(
        [
            span("call", "", 0, 10_000),
            span("handle", "call", 70_000, 6_000, kind="handle", service="bank"),
            span("unit", "handle", 71_000, 2_000, kind="unit", service="bank"),
        ]
    )
    assert dict(tree.began_us) == {"call": 0, "handle": 2_000, "unit": 3_000}
    assert tree.missing == ("the clock of bank seems 68.0 ms ahead: its spans are moved",)


def test_a_handler_that_goes_on_after_its_caller_has_left_is_not_moved() -> None:
    """The caller timed out: that is no sign of a clock that is off."""
    call = span("call", "", 0, 300, status="timed_out")
    tree = tree_of([call, span("h", "call", 10, 900_000, kind="handle", service="bank")])
    assert (tree.began_us["h"], tree.missing) == (10, ())


def test_spans_whose_parent_is_lost_stand_beside_the_root() -> None:
    """Where the trace began is what was asked from outside, however early the others are."""
    tree = tree_of([span("x", "gone", 0, 900), span("asked", "", 5, 10, kind="gateway")])
    assert (tree.root.span_id, [each.span_id for each in tree.roots]) == ("asked", ["x", "asked"])
    assert tree.missing == (
        "spans whose parent is not kept, or has not ended: 1 of shop's call",
    )  # fmt: skip


def test_circles_of_parents_are_cut() -> None:
    """Each span is there once, what hangs from the circle too."""
    spans = [span("a", "c", 0, 9), span("b", "a", 1, 8), span("c", "b", 2, 7), span("d", "c", 3, 1)]
    tree = tree_of(spans)
    assert sorted(each.span_id for _, each in tree.walk()) == ["a", "b", "c", "d"]
    assert tree.missing == ("1 circles of spans that are each other's parents are cut",)
    assert tree_of([span("own", "own", 0, 5)]).missing == tree.missing


def test_an_attempt_that_ends_after_the_next_has_begun_is_on_the_path() -> None:
    """A callee is told a moment later that its caller has gone on; its time is not lost by that."""
    first = span("first", "root", 100, 510, kind="handle", status="timed_out")
    second = span("second", "root", 600, 300, kind="handle")
    assert on_path(span("root", "", 0, 1000), first, second) == [
        ("root", 0, 100),
        ("first", 100, 600),
        ("second", 600, 900),
        ("root", 900, 1000),
    ]
    # It may go on until long after: its caller waits for the second one.
    longest = span("first", "root", 100, 5000, kind="handle", status="timed_out")
    assert on_path(span("root", "", 0, 1000), longest, second)[1:3] == [
        ("first", 100, 600),
        ("second", 600, 900),
    ]


def test_one_id_twice_and_too_many_are_said() -> None:
    """The earliest stay."""
    tree = tree_of([span("a", "", 0, 9), span("a", "", 1, 8), span("b", "a", 2, 1)], spans_max=2)
    assert [each.span_id for _, each in tree.walk()] == ["a"]
    assert tree.missing == (
        "1 later spans are left out: there are 3",
        "1 spans have the id of another one, and are left out",
    )


def test_no_span_is_a_mistake() -> None:
    """There is no tree of nothing."""
    with pytest.raises(ValueError, match="at least one span"):
        tree_of([])


@pytest.mark.parametrize("shape", ["chain", "fan", "circles"])
def test_a_hundred_thousand_spans_have_a_path(shape: str) -> None:
    """No depth and no width is too much."""
    spans = []
    for i in range(SPANS_MAX):
        parent = {"chain": i - 1, "fan": 0, "circles": i ^ 1}[shape]
        spans.append(span(str(i), str(parent) if i else "", i, 2 * SPANS_MAX - 2 * i))
    tree = tree_of(spans)
    assert len(tree.walk()) == SPANS_MAX
    path = critical_path(tree, tree.root)
    assert sum(each.took_us for each in path) == tree.root.took_us


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_the_path_has_no_gap_and_nothing_twice(seed: int, count: int) -> None:
    """Whatever the spans are, the segments follow each other, and add up to the root's time."""
    rng = random.Random(seed)
    spans = [
        span(
            str(rng.randrange(count)),
            rng.choice(["", *map(str, range(count))]),
            rng.randrange(-100, 100),
            rng.randrange(-5, 100),
            service=rng.choice("ab"),
            kind=rng.choice(["call", "handle", "saga", "gateway"]),
            status=rng.choice(["ok", "timed_out"]),
        )
        for _ in range(count)
    ]
    tree = tree_of(spans)
    everything = [each for _, each in tree.walk()]
    assert {each.span_id for each in everything} == {each.span_id for each in spans}
    assert len(everything) == len({each.span_id for each in spans})
    for each in everything:
        at_us = tree.began_us[each.span_id]
        for segment in critical_path(tree, each):
            assert segment.began_us == at_us
            assert segment.took_us > 0
            at_us += segment.took_us
        assert at_us == tree.ended_us(each)
