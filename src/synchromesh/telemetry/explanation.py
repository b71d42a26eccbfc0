"""Why a request took what it took, and came to what it came to: spans in, explanation out.

A pure machine over the tree of a trace and its critical path. Every microsecond of the root is
given to one cause, so that the parts add up; what no span tells is said to be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from synchromesh.telemetry.critical_path import PathSegment, critical_path
from synchromesh.telemetry.span import SpanRecord
from synchromesh.telemetry.trace_tree import TraceTree, tree_of

LISTED_MAX = 12

OWN_WORK = "own work"
DATABASE = "its database"
PLACE = "waiting for a place"
HELD = "held: no instance was ready"
BACKOFF = "waiting between attempts"
NO_ANSWER = "waiting for an answer"
FAULT = "a fault that was put in force on purpose"
ON_THE_WAY = "on the way there and back"
SAGA = "the saga between its calls"
DELIVERY = "the delivery of a message"

# What a saga, or one that was cut short by others, comes to is no failure of its own.
_UNREMARKABLE = frozenset({"ok", "completed", "running", "undone", "cancelled"})
# How long a span waited for a place.
PLACE_MS = "place_ms"
# What of its own time a span notes in milliseconds.
_NOTED = (("held_ms", HELD), (PLACE_MS, PLACE), ("backoff_ms", BACKOFF))
OR_BRANCH = ", or the timeout of its branch"
# What has a time that is written where it is defined.
_TIMED = {
    "gateway": "the deadline of",
    "step": "the timeout of step",
    "undo": "that of the undo of",
}
_OWN = {
    "unit": DATABASE, "saga": SAGA, "step": SAGA, "undo": SAGA, "relay": DELIVERY,
    "message": DELIVERY,
}  # fmt: skip


class TimePart(msgspec.Struct, frozen=True):
    """A part of the root's time: why, and where: a service, or the edge from it to another."""

    why: str
    where: str
    took_us: int


class PathStep(msgspec.Struct, frozen=True):
    """A span on the critical path, with the part of its time in which nothing else did anything."""

    span_id: str
    service: str
    kind: str
    name: str
    status: str
    own_us: int


class SpanFailure(msgspec.Struct, frozen=True):
    """A span that failed.

    Attributes:
        after_us: when, from the beginning of the trace.
        why: in the words of its error; "" where that has none that may be told.
    """

    span_id: str
    service: str
    kind: str
    name: str
    status: str
    after_us: int
    why: str


class Explanation(msgspec.Struct, frozen=True):
    """Explains one trace.

    Attributes:
        name, service, status, took_us: of the root.
        ended_us: how long after its beginning the last span ended: what follows an answer counts.
        parts: where the root's time went, the longest first; they add up to `took_us`.
        path: the spans of the critical path in the order of their beginnings, at most 12: those
            that took longest.
        first_failure: what failed first; None where nothing failed.
        followed: what failed because of it, up to the root, in order of time.
        also_failed: what failed besides.
        cut: what did not end in time, and by which limit, as it is configured.
        stood_in: what answered in place of what failed, and what was asked again.
        undone: the steps of sagas that were undone, in order of time.
        sagas: the runs of sagas that the trace is about, such as "orders:A-1".
        spans: how many there are.
        missing: what is not known, in words.
    """

    trace_id: str
    name: str
    service: str
    status: str
    started_us: int
    took_us: int
    ended_us: int
    parts: tuple[TimePart, ...]
    path: tuple[PathStep, ...]
    first_failure: SpanFailure | None
    followed: tuple[SpanFailure, ...]
    also_failed: tuple[SpanFailure, ...]
    cut: tuple[str, ...]
    stood_in: tuple[str, ...]
    undone: tuple[str, ...]
    sagas: tuple[str, ...]
    spans: int
    missing: tuple[str, ...]


def saga_of(span: SpanRecord) -> str | None:
    """Return the run that a span is a life of, with its service: ids are of a service each."""
    if span.kind != "saga" or "id" not in span.attributes:
        return None
    return f"{span.service.partition('#')[0]}:{span.attributes['id']}"


def explain(spans: Sequence[SpanRecord], root_id: str = "") -> Explanation:
    """Explain a trace, or what one of its spans took, such as a saga.

    Args:
        spans: all that is kept of it, in any order.
        root_id: the span whose time is explained; by default where the trace began.

    Raises:
        ValueError: there is no span.

    Example:
        >>> spans = [
        ...     SpanRecord("t", "1", "", "shop", "handle", "shop.sell", 0, 900, "ok", {}),
        ...     SpanRecord("t", "2", "1", "shop", "unit", "sell", 100, 700, "ok", {}),
        ... ]
        >>> [(part.why, part.took_us) for part in explain(spans).parts]
        [('its database', 700), ('own work', 200)]
    """
    tree = tree_of(spans)
    everything = [span for _, span in tree.walk()]
    root = next((span for span in everything if span.span_id == root_id), tree.root)
    path = critical_path(tree, root)
    first, followed, also = _failures(tree, everything)
    began_us = tree.began_us[root.span_id]
    return Explanation(
        trace_id=root.trace_id,
        name=root.name,
        service=root.service,
        status=root.status,
        started_us=root.started_us,
        took_us=max(0, root.took_us),
        ended_us=max(map(tree.ended_us, everything)) - began_us,
        parts=_parts(tree, path),
        path=_steps(path),
        first_failure=first,
        followed=followed[:LISTED_MAX],
        also_failed=also[:LISTED_MAX],
        cut=tuple(dict.fromkeys(_cut(tree, sorted(everything, key=tree.ended_us))))[:LISTED_MAX],
        stood_in=tuple(dict.fromkeys(_stood_in(tree, everything)))[:LISTED_MAX],
        undone=tuple(_undone(everything))[:LISTED_MAX],
        sagas=tuple(dict.fromkeys(
            run for span in everything if (run := saga_of(span)) is not None
        ))[:LISTED_MAX],
        spans=len(spans),
        missing=tree.missing,
    )  # fmt: skip


# -- where the time went --------------------------------------------------------------------------


def _parts(tree: TraceTree, path: Iterable[PathSegment]) -> tuple[TimePart, ...]:
    own_us: dict[str, int] = {}
    on_path: dict[str, SpanRecord] = {}
    for segment in path:
        span_id = segment.span.span_id
        own_us[span_id] = own_us.get(span_id, 0) + segment.took_us
        on_path[span_id] = segment.span
    found: dict[tuple[str, str], int] = {}
    for span_id, span in on_path.items():
        for part in _parts_of(tree, span, own_us[span_id]):
            key = (part.why, part.where)
            found[key] = found.get(key, 0) + part.took_us
    parts = (TimePart(why, where, took_us) for (why, where), took_us in found.items())
    return tuple(sorted(parts, key=lambda part: (-part.took_us, part.why, part.where)))


def _parts_of(tree: TraceTree, span: SpanRecord, left_us: int) -> Iterator[TimePart]:
    """Divide a span's own time on the path by what the span notes, and what kind it is."""
    where = _edge(span) if span.kind == "call" else span.service
    for name, why in _NOTED:
        noted_us = min(left_us, _number(span.attributes.get(name, "")))
        if noted_us > 0:
            yield TimePart(why, where, noted_us)
            left_us -= noted_us
    if left_us <= 0:
        return
    why = _OWN.get(span.kind, OWN_WORK)
    if span.kind == "call":
        why = ON_THE_WAY if tree.below(span) else NO_ANSWER
        why = FAULT if "fault" in span.attributes else why
    yield TimePart(why, where, left_us)


def _number(text: str) -> int:
    """Return noted milliseconds as microseconds; 0 for what is no number."""
    try:
        return max(0, round(float(text) * 1000)) if text else 0
    except (ValueError, OverflowError):
        return 0


def _edge(call: SpanRecord) -> str:
    """Return the edge of a call: what is passed on is named by its route, and has no callee."""
    callee, dot, _ = call.name.partition(".")
    return f"{call.service} -> {callee}" if dot and " " not in callee else call.name


def _steps(path: Iterable[PathSegment]) -> tuple[PathStep, ...]:
    steps: dict[str, PathStep] = {}
    for span, _, took_us in path:
        known = steps.get(span.span_id)
        own_us = took_us + (known.own_us if known else 0)
        steps[span.span_id] = PathStep(
            span.span_id, span.service, span.kind, span.name, span.status, own_us
        )
    longest = sorted(steps.values(), key=lambda step: -step.own_us)[:LISTED_MAX]
    shown = {step.span_id for step in longest}
    return tuple(step for step in steps.values() if step.span_id in shown)


# -- what failed ----------------------------------------------------------------------------------


def _failures(
    tree: TraceTree, everything: Sequence[SpanRecord]
) -> tuple[SpanFailure | None, tuple[SpanFailure, ...], tuple[SpanFailure, ...]]:
    """Return what failed first, what followed from it, and what failed besides.

    A span follows from another one that failed below it: the first is the one that ended first, and
    of several the deepest, for a callee is told before its caller.
    """
    depth = {span.span_id: depth for depth, span in tree.walk()}
    failed = sorted(
        (span for span in everything if span.status not in _UNREMARKABLE),
        key=lambda span: (tree.ended_us(span), -depth[span.span_id]),
    )
    if not failed:
        return None, (), ()
    by_id = {span.span_id: span for span in everything}
    above, at = set[str](), failed[0]
    while at.parent_id in by_id and at.parent_id not in above:
        at = by_id[at.parent_id]
        above.add(at.span_id)
    told = [_failure(tree, span) for span in failed]
    followed = tuple(each for each in told[1:] if each.span_id in above)
    also = tuple(each for each in told[1:] if each.span_id not in above)
    return told[0], followed, also


def _failure(tree: TraceTree, span: SpanRecord) -> SpanFailure:
    after_us = tree.ended_us(span) - tree.began_us[tree.root.span_id]
    why = span.attributes.get("error", "") or span.attributes.get("last", "")
    return SpanFailure(span.span_id, span.service, span.kind, span.name, span.status, after_us, why)


def _cut(tree: TraceTree, everything: Sequence[SpanRecord]) -> Iterator[str]:
    by_id = {span.span_id: span for span in everything}
    for span in everything:
        limit = span.attributes.get("limit", "")
        if not limit:
            continue
        if " = " not in limit:
            # The time of whoever calls: that of the route or step above, where there is one.
            above, seen = by_id.get(span.parent_id), set[str]()
            while above is not None and above.kind not in _TIMED and above.span_id not in seen:
                seen.add(above.span_id)
                above = by_id.get(above.parent_id)
            if above is not None and above.kind in _TIMED:
                limit = f"{_TIMED[above.kind]} {above.name}"
                limit += OR_BRANCH * (above.kind == "gateway" and len(tree.below(above)) > 1)
        yield f"{_edge(span)}: {span.name}, by {limit}"


def _stood_in(tree: TraceTree, everything: Iterable[SpanRecord]) -> Iterator[str]:
    for span in everything:
        noted = span.attributes
        if "fallback" in noted:
            yield f"{span.name} was answered by its fallback: {noted['fallback']}"
        if "partial" in noted:
            yield f"{span.name} was answered in part, without a fresh {noted['partial']}"
        if span.status != "ok":
            continue
        if span.kind == "call" and noted.get("attempts", "1") not in ("0", "1"):
            before = f", after {noted['failed']}" if "failed" in noted else ""
            yield f"{_edge(span)}: {span.name} was answered at attempt {noted['attempts']}{before}"
        if "hedge" in noted:
            yield f"{_edge(span)}: {span.name} was asked a second time, of {noted['hedge']}"
        if span.kind == "handle":
            for call in tree.below(span):
                if call.kind == "call" and call.status not in _UNREMARKABLE:
                    yield f"{span.name} answered although {call.name} failed: {call.status}"


def _undone(everything: Iterable[SpanRecord]) -> Iterator[str]:
    for span in sorted(everything, key=lambda span: span.started_us):
        if span.kind == "undo":
            how = "was undone" if span.status == "ok" else f"could not be undone: {span.status}"
            yield f"{span.name} {how}"
