"""Time-outs that cut what they should wait for: a check of traces. Pure.

A service that is down, or hangs, is cut as well, and its time-outs are right. So a request counts
where its callee was at work on it until it was cut; and of an operation that answers at all those
that are cut have to come in between those that are not, for an outage comes in one piece.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from synchromesh.advisor.advice import AdviceCase
from synchromesh.advisor.facts import Facts
from synchromesh.advisor.traces import CASES_MIN, service_of, some, walked_of
from synchromesh.telemetry import SpanRecord
from synchromesh.telemetry.explanation import OR_BRANCH
from synchromesh.telemetry.trace_tree import TraceTree

_CUT = "timed_out"
# What a handler ends with whose caller no longer waits.
_AT_WORK = frozenset({_CUT, "cancelled", "ok"})
# What took no more of the limit than this was no slow one.
_QUICK_SHARE = 0.5
# A callee that came to it in the last moment had other reasons to be late.
_WORKED_SHARE = 0.5


class _Asked(NamedTuple):
    started_us: int
    took_us: int
    trace_id: str
    limit: str  # of one that was cut; "" of one that was answered


def cut_requests(facts: Facts) -> Iterator[AdviceCase]:
    """Find operations of which a time-out cuts every request that takes long."""
    found: dict[tuple[str, str], list[_Asked]] = defaultdict(list)
    for tree, walked in walked_of(facts):
        for _, span in walked:
            if span.kind == "call" and (asked := _asked(tree, span)) is not None:
                found[service_of(span), span.name].append(asked)
    for (caller, name), every in sorted(found.items()):
        every.sort()
        cut = [each for each in every if each.limit]
        if _bursts(every) < CASES_MIN:
            continue
        shortest_us = min(each.took_us for each in cut)
        if any(not each.limit and each.took_us > _QUICK_SHARE * shortest_us for each in every):
            continue
        limits = tuple(dict.fromkeys(each.limit for each in cut))
        yield AdviceCase(
            f"{len(cut)} of {len(every)} calls of {name} by {caller} were cut while it was at "
            "work, and none that takes as long was answered",
            (*limits[:2], *some([each.trace_id for each in cut])),
        )


def _asked(tree: TraceTree, call: SpanRecord) -> _Asked | None:
    """Return what became of a call; None where its callee is not known to have been at it."""
    if call.status == "ok":
        return _Asked(call.started_us, call.took_us, call.trace_id, "")
    if call.status != _CUT:
        return None
    attempts = [each for each in tree.below(call) if each.kind == "handle"]
    longest = max(attempts, key=lambda each: each.took_us, default=None)
    if longest is None or longest.status not in _AT_WORK:
        return None
    # Who waited for another one is cut because of that.
    if any(each.status == _CUT for each in tree.below(longest)):
        return None
    if longest.took_us < _WORKED_SHARE * call.took_us / max(1, len(attempts)):
        return None
    return _Asked(call.started_us, longest.took_us, call.trace_id, _limit_of(tree, call))


def _limit_of(tree: TraceTree, call: SpanRecord) -> str:
    limit = call.attributes.get("limit", "")
    if " = " in limit:
        return limit
    above = [span for _, span in tree.walk() if span.span_id == call.parent_id]
    if above and above[0].kind == "gateway":
        is_page = len(tree.below(above[0])) > 1
        return f"the deadline of {above[0].name}{OR_BRANCH * is_page}"
    return limit or "the deadline of who calls"


def _bursts(every: Sequence[_Asked]) -> int:
    """Count how often requests were cut, those together that none was answered between."""
    if all(each.limit for each in every):
        return len(every)
    return sum(
        bool(each.limit) and (not at or not every[at - 1].limit) for at, each in enumerate(every)
    )
