"""The context of a call: literal times, there and back over headers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.context import (
    CallContext,
    check_key,
    from_headers,
    header_lines,
    lines_outside,
    new_span_id,
    new_trace_id,
    own_headers,
    to_headers,
)
from synchromesh.errors import BadRequest
from synchromesh.identity import Principal
from synchromesh.propagation import NEW_TRACE, Propagation, TraceMarks, baggage_items, read_trace

RNG = random.Random(1)
TRACE, SPAN = "a" * 32, "b" * 16


def back(
    headers: dict[str, str], *, now: float = 100.0, wall_us: int = 1_000_000_000
) -> CallContext:
    return from_headers(headers, now=now, wall_us=wall_us, rng=random.Random(1))


def test_everything_travels_but_who_calls() -> None:
    """Caller and principal come from the credential alone."""
    sent = CallContext(
        trace_id=TRACE, span_id=SPAN, caller="orders", principal=Principal("alice"),
        deadline_s=12.5, key="k/1", attempts_left=3, undoes="k",
    )  # fmt: skip
    headers = to_headers(sent, now=10.0, wall_us=1_000_000_000)
    assert headers == {
        "traceparent": f"00-{TRACE}-{SPAN}-01", "deadline-ms": "2500", "sent-at": "1000000000",
        "idempotency-key": "k/1", "attempts-left": "3", "undoes": "k",
    }  # fmt: skip
    assert back(headers) == CallContext(
        trace_id=TRACE, span_id=SPAN, deadline_s=102.5, key="k/1", attempts_left=3, undoes="k"
    )


def test_what_is_not_set_is_not_sent() -> None:
    """A context with a trace alone is one header."""
    bare = CallContext(trace_id=TRACE, span_id=SPAN)
    assert to_headers(bare, now=0.0, wall_us=0) == {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.mark.parametrize(
    ("deadline_s", "millis"), [(10.0, "0"), (9.0, "0"), (10.0019, "1"), (10.9999, "999")]
)
def test_remaining_time_is_rounded_down(deadline_s: float, millis: str) -> None:
    """A child's deadline is never later than its parent's (D1)."""
    context = CallContext(trace_id=TRACE, span_id=SPAN, deadline_s=deadline_s)
    assert to_headers(context, now=10.0, wall_us=0)["deadline-ms"] == millis


@pytest.mark.parametrize(
    ("under_way_s", "deadline_s"), [(0, 102.0), (5, 102.0), (6, 101.0), (7, 100.0), (-60, 102.0)]
)
def test_a_call_that_was_long_under_way_has_less_time(under_way_s: int, deadline_s: float) -> None:
    """What the clocks cannot differ by, 5 s, was spent on the way; an early clock gives nothing."""
    sent_us = 1_000_000_000 - under_way_s * 1_000_000
    got = back({"deadline-ms": "2000", "sent-at": str(sent_us)})
    assert got.deadline_s == pytest.approx(deadline_s)


def test_remaining_time_is_never_negative() -> None:
    """A deadline that has passed leaves nothing; none at all leaves None."""
    context = CallContext(trace_id=TRACE, span_id=SPAN, deadline_s=5.0)
    assert (context.remaining_s(4.0), context.remaining_s(6.0)) == (1.0, 0.0)
    assert CallContext(trace_id=TRACE, span_id=SPAN).remaining_s(4.0) is None


@pytest.mark.parametrize(
    "traceparent",
    [
        "", "00", f"ff-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01", f"00-{'x' * 32}-{SPAN}-01", f"00-{TRACE}-{SPAN}",
        f"00-+{TRACE[1:]}-{SPAN}-01", f"00-{TRACE}-{SPAN[:7]}_{SPAN[8:]}-01",
        f" 0-{TRACE}-{SPAN}-01",
        f"00- {TRACE[1:]}-{SPAN}-01", f"00-{TRACE}-{SPAN}-0", f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}-01-", f"00-{TRACE}-{SPAN}-01-more", f"00-{TRACE}-{SPAN}-01\n",
        f"01-{TRACE}-{SPAN}-01more", f"+1-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-\u0660\u0661",
    ],
)  # fmt: skip
def test_a_malformed_trace_is_begun_anew(traceparent: str) -> None:
    """As W3C Trace Context asks; a later version with more fields is taken."""
    got = back({"traceparent": traceparent})
    assert got.trace_id not in (TRACE, "0" * 32)
    assert (len(got.trace_id), len(got.span_id)) == (32, 16)
    assert got.marks == NEW_TRACE
    assert back({"traceparent": f"01-{TRACE}-{SPAN}-01-more"}).trace_id == TRACE


@pytest.mark.parametrize(
    ("told", "kept"), [("00", 0), ("01", 1), ("02", 2), ("03", 3), ("ff", 3), ("fc", 0), ("a9", 1)]
)
def test_the_flags_of_a_trace_go_on(told: str, kept: int) -> None:
    """What is sampled, or not, stays so, and what is random; what nobody knows is left out."""
    got = back({"traceparent": f"00-{TRACE}-{SPAN}-{told}"})
    assert got.marks == TraceMarks(kept)
    assert to_headers(got, now=0.0, wall_us=0)["traceparent"] == f"00-{TRACE}-{SPAN}-0{kept}"
    line = header_lines(got, now=0.0, wall_us=0).decode()
    assert line == f"traceparent: 00-{TRACE}-{SPAN}-0{kept}\r\n"


STATES = {
    "one": (("a=1",), "a=1"),
    "blanks and empty members": ((" a=1 ,, \tb=2,",), "a=1,b=2"),
    "two fields": (("a=1", "b=2"), "a=1,b=2"),
    "a tenant": (("1t@vendor=x y",), "1t@vendor=x y"),
    "33 members": ((",".join(f"k{n}=1" for n in range(33)),), ""),
    "32 members": ((",".join(f"k{n}=1" for n in range(32)),),
                   ",".join(f"k{n}=1" for n in range(32))),
    "a key twice": (("a=1", "a=2"), ""),
    "no value": (("a=1,b",), ""),
    "an empty value": (("a=",), ""),
    "a key in capitals": (("A=1",), ""),
    "two signs": (("a=1=2",), ""),
    "no ASCII": (("a=caf\xe9",), ""),
    "a line more": (("a=1\nb",), ""),
    "a long key": ((f"{'k' * 257}=1",), ""),
    "long in all": ((f"a={'1' * 256},b={'2' * 256},c=3",), f"a={'1' * 256},c=3"),
    "many": ((",".join(f"k{n:02}={'v' * 20}" for n in range(30)),), ",".join(
        f"k{n:02}={'v' * 20}" for n in range(20)
    )),
}  # fmt: skip


@pytest.mark.parametrize(("told", "kept"), STATES.values(), ids=STATES.keys())
def test_what_others_note_of_a_trace_goes_on_within_its_limits(
    told: tuple[str, ...], kept: str
) -> None:
    """A malformed `tracestate` is dropped whole, the trace is kept; a long one loses members."""
    trace = read_trace([f"00-{TRACE}-{SPAN}-01"], told)
    assert trace is not None
    assert (trace.trace_id, trace.marks) == (TRACE, TraceMarks(1, kept))
    assert len(trace.marks.state) <= 512
    sent = CallContext(trace_id=TRACE, span_id=SPAN, marks=trace.marks)
    lines = header_lines(sent, now=0.0, wall_us=0).decode().split("\r\n")
    assert lines[1:-1] == ([f"tracestate: {kept}"] if kept else [])
    pairs = [(n.encode(), v.encode()) for n, v in to_headers(sent, now=0.0, wall_us=0).items()]
    assert back(own_headers(pairs)).marks == trace.marks


def test_a_state_of_two_fields_is_one_and_two_parents_are_refused() -> None:
    """A list may come in parts; of two traces it is unclear which one counts."""
    parent = (b"traceparent", f"00-{TRACE}-{SPAN}-01".encode())
    own = own_headers([parent, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
    assert back(own).marks.state == "a=1,b=2"
    with pytest.raises(BadRequest, match="traceparent is given twice"):
        own_headers([parent, parent])
    assert read_trace([parent[1].decode()] * 2) is None


def test_no_line_is_forged_by_a_state() -> None:
    """What could end its line is not sent."""
    sent = CallContext(trace_id=TRACE, span_id=SPAN, marks=TraceMarks(1, "a=1\r\nx: y"))
    with pytest.raises(ValueError, match="tracestate"):
        header_lines(sent, now=0.0, wall_us=0)


@pytest.mark.parametrize("name", ["deadline-ms", "attempts-left", "sent-at"])
@pytest.mark.parametrize("value", ["", "-1", "1.5", "soon", "9" * 19, "٣"])
def test_a_malformed_number_is_refused(name: str, value: str) -> None:
    """Guessing would weaken a promise."""
    with pytest.raises(BadRequest, match=f"header {name}"):
        back({"deadline-ms": "5", name: value})


def test_attempts_are_bounded() -> None:
    """A caller cannot hand over more than a tree may have."""
    assert back({"attempts-left": "1000"}).attempts_left == 16


@pytest.mark.parametrize("key", ["a" * 513, "a\n", "\x00", " a", "a\t"])
def test_a_key_that_cannot_be_kept_is_refused(key: str) -> None:
    """Keys are at most 512 printable characters."""
    with pytest.raises(BadRequest, match="printable"):
        check_key(key)
    with pytest.raises(BadRequest, match="header undoes"):
        back({"undoes": key})


@given(key=st.text(st.characters(codec="utf-8"), max_size=30))
def test_every_key_that_can_be_kept_can_be_sent(key: str) -> None:
    """In ASCII as it is, else percent-encoded; a header could carry each."""
    if not key.isprintable() or key != key.strip():
        return
    headers = to_headers(CallContext(trace_id=TRACE, span_id=SPAN, key=key), now=0.0, wall_us=0)
    assert all(text.isascii() and text.isprintable() for text in headers.values())
    assert back(headers).key == key


def test_ids_are_hexadecimal_and_never_zero() -> None:
    """Not even where chance gives nothing but zeros."""

    class Zero(random.Random):
        def getrandbits(self, k: int, /) -> int:
            return 0

    assert (int(new_trace_id(Zero()), 16), int(new_span_id(Zero()), 16)) == (1, 1)
    assert (len(new_trace_id(RNG)), len(new_span_id(RNG))) == (32, 16)


BAGGAGE = {
    "one": (("tenant=acme",), "tenant=acme"),
    "blanks and properties": ((" tenant = acme ;secret=1;x , k=v",), "tenant=acme"),
    "two fields, in their order": (("tier=gold", "tenant=acme"), "tier=gold,tenant=acme"),
    "not allowed": (("user=eve,tenants=x,Tenant=y",), ""),
    "percent": (("tenant=a%20b%2Cc",), "tenant=a%20b%2Cc"),
    "a plus is a plus": (("tenant=a+b",), "tenant=a+b"),
    "an equals sign": (("tenant=a==",), "tenant=a=="),
    "empty": (("tenant=",), "tenant="),
    "twice": (("tenant=acme,tier=gold,tenant=eve",), "tier=gold"),
    "no sign": (("tenant,tier=gold",), "tier=gold"),
    "half an escape": (("tenant=a%2,tier=gold",), "tier=gold"),
    "no UTF-8": (("tenant=%ff,tier=gold",), "tier=gold"),
    "a line more": (("tenant=a%0d%0ax,tier=gold",), "tier=gold"),
    "a bare line more": (("tenant=a\r\nx: y,tier=gold",), "tier=gold"),
    "a blank within": (("tenant=a b,tier=gold",), "tier=gold"),
    "a quote": (('tenant="a",tier=gold',), "tier=gold"),
    "no ASCII": (("tenant=caf\xe9,tier=gold",), "tier=gold"),
    "256 characters": ((f"tenant={'v' * 256}",), f"tenant={'v' * 256}"),
    "257 characters": ((f"tenant={'v' * 257},tier=gold",), "tier=gold"),
    "8193 characters": ((f"tenant=a,k={'v' * 8182}",), ""),
    "many members": ((",".join(f"k{n}=1" for n in range(500)) + ",tenant=a",), "tenant=a"),
}  # fmt: skip
ALLOWED = Propagation.of(1.0, ["tenant", "tier"])


@pytest.mark.parametrize(("told", "kept"), BAGGAGE.values(), ids=BAGGAGE.keys())
def test_baggage_goes_on_by_the_list_of_what_is_allowed(told: tuple[str, ...], kept: str) -> None:
    """A member that does not fit is dropped alone; what is taken travels as it came."""
    own = own_headers((b"baggage", value.encode("latin-1")) for value in told)
    parent = {"traceparent": f"00-{TRACE}-{SPAN}-00", **own}
    for headers, trace_ids in ((parent, {TRACE}), (own, set[str]())):
        got = from_headers(headers, now=0.0, wall_us=0, rng=RNG, propagation=ALLOWED)
        assert got.marks.baggage == kept
        assert not trace_ids or got.trace_id in trace_ids
        lines = header_lines(got, now=0.0, wall_us=0).decode().split("\r\n")
        assert lines[1:-1] == ([f"baggage: {kept}"] if kept else [])
        assert to_headers(got, now=0.0, wall_us=0).get("baggage", "") == kept
        assert got.marks.outside() == TraceMarks(got.marks.flags)
        # Without a list of what is allowed none is taken.
        assert from_headers(headers, now=0.0, wall_us=0, rng=RNG).marks.baggage == ""
    assert all(text.isprintable() for text in baggage_items(kept).values())


@pytest.mark.parametrize(
    ("ratio", "least"), [(1.0, ""), (0.0, "g"), (0.5, "8" + "0" * 13), (1e-20, "g"), (0.999, "0")]
)
def test_a_ratio_of_traces_is_sampled_by_their_ids(ratio: float, least: str) -> None:
    """As many as it says; an id is judged alike where its trace begins and where it is kept."""
    propagation = Propagation.of(ratio)
    assert propagation.sampled_from.startswith(least)
    rng = random.Random(7)
    ids = [new_trace_id(rng) for _ in range(2000)]
    sampled = [each for each in ids if propagation.begun(each).flags == 3]
    assert len(sampled) / len(ids) == pytest.approx(ratio, abs=0.04)
    assert sampled == [each for each in ids if propagation.kept(each).flags == 1]
    assert {propagation.begun(each).flags for each in set(ids) - set(sampled)} <= {2}
    assert {propagation.kept(each).flags for each in set(ids) - set(sampled)} <= {0}


@pytest.mark.parametrize("flag", [0, 1, 2, 3])
def test_no_ratio_goes_before_what_a_trace_says_of_itself(flag: int) -> None:
    """Who began it has decided."""
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-0{flag}"}
    for ratio in (0.0, 1.0):
        propagation = Propagation.of(ratio)
        got = from_headers(headers, now=0.0, wall_us=0, rng=RNG, propagation=propagation)
        assert got.marks.flags == flag
        begun = from_headers({}, now=0.0, wall_us=0, rng=RNG, propagation=propagation)
        assert begun.marks.flags == (3 if ratio else 2)


@pytest.mark.parametrize("key", ["", "order A-1"])
@pytest.mark.parametrize("state", ["", "vendor=1"])
@pytest.mark.parametrize("baggage", ["", "tenant=acme"])
def test_a_stranger_is_told_the_trace_and_the_key_alone(key: str, state: str, baggage: str) -> None:
    """By either way of putting it together; no baggage is among it."""
    trace_id, span_id = "a" * 32, "b" * 16
    marks = TraceMarks(2, state, baggage)
    own = CallContext(trace_id=trace_id, span_id=span_id, key=key, marks=TraceMarks(2, state))
    told = header_lines(own, now=0.0, wall_us=None)
    assert lines_outside(trace_id, span_id, marks, key) == told
