"""What travels with a trace: its ids, its flags, what others note of it, and baggage.

Traces are labels, and baggage is what a client says: neither decides what anybody may do.

Source: W3C Trace Context, level 2, and W3C Baggage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self
from urllib.parse import unquote

import msgspec

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
BAGGAGE = "baggage"

SAMPLED: Final = 1
RANDOM: Final = 2

BAGGAGE_KEYS_MAX: Final = 16
BAGGAGE_VALUE_CHARS_MAX: Final = 256

# Version 00 ends with its flags, a later one may say more.
_TRACEPARENT: Final = re.compile(
    r"(?:(00)|(?!00|ff)[0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})"
    r"-([0-9a-f]{2})(?(1)|(?:-.*)?)"
)
_STATE_MEMBER: Final = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]")
_STATE_MEMBERS_MAX, _STATE_CHARS_MAX, _MEMBER_CHARS_MAX = 32, 512, 128
_BAGGAGE_KEY: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_BAGGAGE_VALUE: Final = re.compile(r"(?:[!#$&-+\--:<-\[\]-~]|%[0-9A-Fa-f]{2})*")
_BAGGAGE_CHARS_MAX: Final = 8192
_BLANKS: Final = " \t"


class TraceMarks(msgspec.Struct, frozen=True, gc=False):
    """What travels with a trace besides its ids.

    Attributes:
        flags: 1 where it is sampled, 2 where the last 56 bits of its id are random, or both.
        state: what others have noted of it (`tracestate`), at most 512 characters; "" for nothing.
        baggage: what clients say besides, as it stands in its header; "" for nothing.
    """

    flags: int = SAMPLED
    state: str = ""
    baggage: str = ""

    def outside(self) -> TraceMarks:
        """Return what strangers are told: no baggage."""
        return TraceMarks(self.flags, self.state) if self.baggage else self


# Of a trace whose id alone was kept, and of one that begins here; and where they are not sampled.
KEPT_TRACE: Final = TraceMarks()
NEW_TRACE: Final = TraceMarks(SAMPLED | RANDOM)
_KEPT_UNSAMPLED: Final = TraceMarks(0)
NEW_UNSAMPLED: Final = TraceMarks(RANDOM)
_MARKS: Final = {f"{flags:x}": TraceMarks(flags & NEW_TRACE.flags) for flags in range(16)}


class TraceParent(msgspec.Struct, frozen=True, gc=False):
    """Is a trace as a request continues it: its id, the span of the sender, and its marks."""

    trace_id: str
    span_id: str
    marks: TraceMarks


class Propagation(msgspec.Struct, frozen=True):
    """Decides which traces that begin here are sampled, and which baggage is taken from others.

    A trace from outside has its flag, which is kept. One that begins here, or goes on at a durable
    boundary, which keeps its id alone, is sampled by the last 56 bits of its id: so all who look at
    the same id by the same ratio decide alike.

    Attributes:
        sampled_from: the least that those bits are of a trace that is sampled, as 14 hex digits;
            "" where all are.
        allowed: the keys of baggage that are taken.

    Example:
        >>> half = Propagation.of(0.5, ["tenant"])
        >>> half.begun("a" * 32).flags, half.begun("1" * 32).flags
        (3, 2)
        >>> half.entering("a" * 32, None, ["tenant=acme;p=1, user=eve"]).baggage
        'tenant=acme'
    """

    sampled_from: str = ""
    allowed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, ratio: float, allowed: Iterable[str] = ()) -> Self:
        """Return what samples a ratio, from 0 to 1, of the traces that begin here."""
        least = round((1 - ratio) * 2**56)
        # No digit is as great as "g": nothing is sampled.
        text = "" if least <= 0 else "g" if least >= 2**56 else f"{least:014x}"
        return cls(text, frozenset(allowed))

    def begun(self, trace_id: str) -> TraceMarks:
        """Return the marks of a trace that begins here."""
        return NEW_TRACE if trace_id[18:] >= self.sampled_from else NEW_UNSAMPLED

    def kept(self, trace_id: str) -> TraceMarks:
        """Return the marks of a trace whose id alone was kept."""
        return KEPT_TRACE if trace_id[18:] >= self.sampled_from else _KEPT_UNSAMPLED

    def entering(
        self, trace_id: str, trace: TraceParent | None, baggage: Sequence[str]
    ) -> TraceMarks:
        """Return the marks of a trace as it enters.

        Args:
            trace_id: its id.
            trace: what was said of it; None where it begins here.
            baggage: the values of the header, in their order.
        """
        marks = self.begun(trace_id) if trace is None else trace.marks
        if baggage and self.allowed:
            return TraceMarks(marks.flags, marks.state, read_baggage(baggage, self.allowed))
        return marks


# All traces are sampled, and no baggage is taken.
SAMPLE_ALL: Final = Propagation()


def read_trace(parents: Sequence[str], states: Sequence[str] = ()) -> TraceParent | None:
    """Return the trace that a request continues; None where it begins a new one.

    What is malformed, or there twice, begins a new one, as W3C Trace Context asks; a `tracestate`
    that is malformed is dropped whole, and what exceeds 512 characters by its members.

    Args:
        parents: the values of `traceparent`.
        states: the values of `tracestate`, in their order.

    Example:
        >>> trace = read_trace([f"00-{'a' * 32}-{'b' * 16}-01"], ["k=v"])
        >>> trace.span_id, trace.marks
        ('bbbbbbbbbbbbbbbb', TraceMarks(flags=1, state='k=v', baggage=''))
        >>> read_trace([f"00-{'+' * 32}-{'_' * 16}-01"]) is None
        True
    """
    matched = _TRACEPARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if matched is None:
        return None
    _, trace_id, span_id, flags = matched.groups()
    # What another flag means is not known here, and it is not passed on (section 3.2.2.5).
    marks = _MARKS[flags[1]]
    if states:
        marks = TraceMarks(marks.flags, _read_state(states))
    return TraceParent(trace_id, span_id, marks)


def read_baggage(values: Sequence[str], allowed: frozenset[str]) -> str:
    """Return what is taken of the values of a `baggage` header, as it is passed on.

    A member is taken whose key is allowed, is there once, and whose value is no longer than 256
    characters; its properties are dropped. One that is malformed is dropped alone, and all where
    the header is longer than 8192 characters.

    Example:
        >>> read_baggage(["tenant = a%20b ; k=v, tenant2=x"], frozenset({"tenant"}))
        'tenant=a%20b'
    """
    text = ",".join(values)
    if len(text) > _BAGGAGE_CHARS_MAX:
        return ""
    taken: dict[str, str] = {}
    twice: set[str] = set()
    for member in text.split(","):
        key, sign, value = member.partition(";")[0].partition("=")
        key, value = key.strip(_BLANKS), value.strip(_BLANKS)
        if not sign or key not in allowed:
            continue
        if key in taken:
            twice.add(key)  # which one counts is unclear
        taken[key] = value
    return ",".join(
        f"{key}={value}"
        for key, value in taken.items()
        if key not in twice and len(value) <= BAGGAGE_VALUE_CHARS_MAX and _is_baggage(value)
    )


def baggage_items(baggage: str) -> Mapping[str, str]:
    """Return what `read_baggage` has taken, decoded.

    Example:
        >>> baggage_items("tenant=a%20b,tier=gold")
        {'tenant': 'a b', 'tier': 'gold'}
    """
    members = [member.partition("=") for member in baggage.split(",") if member]
    return {key: unquote(value) for key, _, value in members}


def is_baggage_key(text: str) -> bool:
    """Return whether a text may be a key of baggage: a token, at most 128 characters."""
    return _BAGGAGE_KEY.fullmatch(text) is not None


def _is_baggage(value: str) -> bool:
    if not _BAGGAGE_VALUE.fullmatch(value):
        return False
    try:
        return unquote(value, errors="strict").isprintable()
    except UnicodeDecodeError:
        return False


def _read_state(states: Sequence[str]) -> str:
    """Return a `tracestate` as it is passed on, "" where it is malformed."""
    parts = (part.strip(" \t") for part in ",".join(states).split(","))
    members = [part for part in parts if part]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _STATE_MEMBERS_MAX or len(keys) < len(members):
        return ""
    if not all(map(_STATE_MEMBER.fullmatch, members)):
        return ""
    while sum(map(len, members)) + len(members) - 1 > _STATE_CHARS_MAX:
        # Long ones first, and the oldest, which are at the end (section 3.3.1.5).
        long = [member for member in members if len(member) > _MEMBER_CHARS_MAX]
        members.remove((long or members)[-1])
    return ",".join(members)
