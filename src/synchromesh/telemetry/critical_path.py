"""The critical path of a trace: for each moment the one span that had to end for it to go on.

The algorithm is that of CRISP (Zhang et al., "CRISP: Critical Path Analysis of Large-Scale
Microservice Architectures", USENIX ATC 2022, section 4): from the end of a span back to its
beginning, each time to the child that returned last before; what lies between the children is the
span's own time. What ran beside those is not on the path: had it been quicker, nothing would have
ended sooner. The attempts of a call are no such: each begins when its caller no longer waits for
the one before, which its callee may be told a moment later. A pure machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from synchromesh.telemetry.span import SpanRecord
from synchromesh.telemetry.trace_tree import TraceTree

# Of two that ran one after the other, clocks may show so much as overlap.
OVERLAP_US = 50


class PathSegment(NamedTuple):
    """A span's own time on the critical path, without what its children took.

    Attributes:
        began_us: on the clock of the root's process.
    """

    span: SpanRecord
    began_us: int
    took_us: int


def critical_path(tree: TraceTree, root: SpanRecord) -> list[PathSegment]:
    """Return the critical path of a span of a tree, in order of time.

    The segments follow each other without a gap, and their times add up to what the span took. A
    child that goes on after its parent counts until the end of that: nobody there waited for more.
    """
    if root.took_us <= 0:
        return []
    began_us = tree.began_us[root.span_id]
    path, pending = [], [(root, began_us, began_us + root.took_us)]
    while pending:
        span, from_us, to_us = pending.pop()
        at_us = to_us
        for child, child_from_us, child_to_us in _returned(tree, span, from_us, to_us):
            if child_to_us - at_us > OVERLAP_US and not _is_attempt(span, child):
                continue  # it ran beside the one that returned last
            child_to_us = min(child_to_us, at_us)
            if child_to_us <= child_from_us:
                continue
            path.append(PathSegment(span, child_to_us, at_us - child_to_us))
            pending.append((child, child_from_us, child_to_us))
            at_us = child_from_us
        path.append(PathSegment(span, from_us, at_us - from_us))
    return sorted((each for each in path if each.took_us), key=lambda each: each.began_us)


def _returned(
    tree: TraceTree, span: SpanRecord, from_us: int, to_us: int
) -> Iterator[tuple[SpanRecord, int, int]]:
    """Yield the children of a span with their times within it, the last to return first.

    Of attempts it is the last to begin, unless two of them were under way on purpose.
    """

    def order(child: SpanRecord) -> int:
        is_next = _is_attempt(span, child) and "hedge" not in span.attributes
        return tree.began_us[child.span_id] if is_next else tree.ended_us(child)

    for child in sorted(tree.below(span), key=order, reverse=True):
        child_from_us = max(from_us, tree.began_us[child.span_id])
        child_to_us = min(to_us, tree.ended_us(child))
        if child_from_us < child_to_us:
            yield child, child_from_us, child_to_us


def _is_attempt(span: SpanRecord, child: SpanRecord) -> bool:
    return span.kind == "call" and child.kind == "handle"
