"""Who calls whom, as spans tell: what a handler calls is code, and is declared nowhere.

A pure machine. What was never called while spans were kept is not among it, and not known.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from synchromesh.errors import error_table
from synchromesh.telemetry.span import SpanRecord

# The codes of errors that are failures, and no word about what was asked.
FAILURES = frozenset(
    code for code, error in error_table().items() if error.status >= 500 or error.status == 429
)


class ObservedCall(msgspec.Struct, frozen=True):
    """An operation or saga that was called by another one, a route or a saga, and how often.

    Attributes:
        source: an operation, "orders.place", a route, "GET /prices", or "saga orders.place_order".
        target: an operation, or a saga that was started.
        seen: how often.
        failed: how often the call failed; a business no is an answer.
        survived: how often the source answered all the same.
    """

    source: str
    target: str
    seen: int
    failed: int
    survived: int


def observed_calls(spans: Iterable[SpanRecord]) -> list[ObservedCall]:
    """Return the calls among the spans of one process, in any order of them."""
    by_id, calls = {}, []
    for span in spans:
        if span.kind in ("call", "saga"):
            calls.append(span)
        if span.kind != "call":
            by_id[span.span_id] = span
    found = []
    for call in calls:
        source = _source_of(by_id.get(call.parent_id), by_id)
        target = _saga(call) if call.kind == "saga" else call.name
        if source and (call.kind == "saga" or _is_operation(call.name)):
            has_failed = call.kind == "call" and call.status in FAILURES
            survived = has_failed and by_id[call.parent_id].status == "ok"
            found.append(ObservedCall(source, target, 1, int(has_failed), int(survived)))
    return merged(found)


def merged(calls: Iterable[ObservedCall]) -> list[ObservedCall]:
    """Return calls with those of one source and target counted together."""
    found: dict[tuple[str, str], ObservedCall] = {}
    for call in calls:
        known = found.get((call.source, call.target))
        if known is not None:
            call = ObservedCall(
                call.source,
                call.target,
                known.seen + call.seen,
                known.failed + call.failed,
                known.survived + call.survived,
            )
        found[call.source, call.target] = call
    return [found[key] for key in sorted(found)]


def _source_of(span: SpanRecord | None, by_id: dict[str, SpanRecord]) -> str:
    """Return what a span belongs to: an operation, a route or a saga; "" for anything else."""
    if span is None:
        return ""
    if span.kind in ("handle", "gateway"):
        return span.name
    if span.kind in ("step", "undo"):
        span = by_id.get(span.parent_id)
    return _saga(span) if span is not None and span.kind == "saga" else ""


def _saga(span: SpanRecord) -> str:
    """Return the name of a saga, which is the same in each replica of its service."""
    return f"saga {span.service.partition('#')[0]}.{span.name}"


def _is_operation(name: str) -> bool:
    """Say whether a call names an operation; what is passed on is named by its route."""
    return "." in name and " " not in name
