"""The tree of a trace, from whatever spans are left of it; a pure machine.

Spans are best effort: a ring has wrapped, a process was killed before it wrote, an operation still
runs, two processes had different clocks. The tree has every span exactly once whatever is missing,
and says what that is. It takes O(n log n) for n spans, at any depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from synchromesh.telemetry.ring import ASKING
from synchromesh.telemetry.span import SpanRecord

SPANS_MAX = 100_000
# Less than this is the fineness of clocks, and no news.
SKEW_SHOWN_US = 1_000
# Who ended a call for these did not wait for its callee, which may go on after it.
_LEFT = frozenset({"timed_out", "cancelled", "deadline_exceeded", "connection_lost"})


@dataclass(frozen=True, slots=True)
class TraceTree:
    """The spans of one trace, each under its parent.

    Attributes:
        root: where the trace began: what was asked from outside, where that is kept.
        roots: all spans without a parent that is kept, the earliest first; a message, for example.
        children: by the id of the parent, the earliest first.
        began_us: by id, when a span began on the clock of the root's process.
        missing: what is not there, or not right, in words.
    """

    root: SpanRecord
    roots: tuple[SpanRecord, ...]
    children: Mapping[str, Sequence[SpanRecord]]
    began_us: Mapping[str, int]
    missing: tuple[str, ...]

    def below(self, span: SpanRecord) -> Sequence[SpanRecord]:
        """Return the children of a span."""
        return self.children.get(span.span_id, ())

    def ended_us(self, span: SpanRecord) -> int:
        """Return when a span ended, on the clock of the root's process."""
        return self.began_us[span.span_id] + max(0, span.took_us)

    def walk(self) -> list[tuple[int, SpanRecord]]:
        """Return all spans with their depths, each before those below it."""
        found: list[tuple[int, SpanRecord]] = []
        pending = [(0, span) for span in reversed(self.roots)]
        while pending:
            depth, span = pending.pop()
            found.append((depth, span))
            pending.extend((depth + 1, child) for child in reversed(self.below(span)))
        return found


def tree_of(spans: Iterable[SpanRecord], *, spans_max: int = SPANS_MAX) -> TraceTree:
    """Return the tree of a trace; of more than `spans_max` spans the earliest.

    A process whose clock is off shows what it handled outside of the call that waited for it. Such
    a span is moved into its call, and all that its process did for it as far, as Jaeger's query
    service does (`jaeger/internal/uiconv/adjuster/clockskew.go`): to the middle, or to the
    beginning where it took longer than the call.

    Raises:
        ValueError: there is no span.
    """
    given = sorted(spans, key=lambda span: (span.started_us, -span.took_us))
    if not given:
        raise ValueError("a trace has at least one span")
    missing = []
    if len(given) > spans_max:
        missing.append(f"{len(given) - spans_max} later spans are left out: there are {len(given)}")
    by_id: dict[str, SpanRecord] = {}
    for span in given[:spans_max]:
        by_id.setdefault(span.span_id, span)
    if (twice := min(len(given), spans_max) - len(by_id)) > 0:
        missing.append(f"{twice} spans have the id of another one, and are left out")
    children: dict[str, list[SpanRecord]] = {}
    roots = []
    for span in by_id.values():
        if span.parent_id in by_id:
            children.setdefault(span.parent_id, []).append(span)
        else:
            roots.append(span)
    roots += _cut_circles(by_id, roots, children, missing)
    lost = Counter(
        f"{span.service}'s {span.kind}" for span in roots
        if span.parent_id and span.parent_id not in by_id and span.kind not in ASKING
    )  # fmt: skip
    if lost:
        told = ", ".join(f"{count} of {what}" for what, count in lost.most_common(5))
        missing.append(f"spans whose parent is not kept, or has not ended: {told}")
    roots.sort(key=lambda span: span.started_us)
    began_us, skews = _on_one_clock(roots, children)
    for service, skew_us in sorted(skews.items()):
        off = f"{abs(skew_us) / 1000:.1f} ms {'behind' if skew_us > 0 else 'ahead'}"
        missing.append(f"the clock of {service} seems {off}: its spans are moved")
    for below in children.values():
        below.sort(key=lambda span: began_us[span.span_id])
    return TraceTree(_main(roots), tuple(roots), children, began_us, tuple(missing))


def _main(roots: Sequence[SpanRecord]) -> SpanRecord:
    """Return where a trace began: what was asked from outside, else what took longest."""
    asked = [span for span in roots if span.kind in ASKING]
    return asked[0] if asked else max(roots, key=lambda span: span.took_us)


def _cut_circles(
    by_id: Mapping[str, SpanRecord],
    roots: Sequence[SpanRecord],
    children: dict[str, list[SpanRecord]],
    missing: list[str],
) -> list[SpanRecord]:
    """Cut circles of parents at their earliest spans, and return these."""
    reached: set[str] = set()
    _reach([span.span_id for span in roots], children, reached)
    cut = []
    for span in by_id.values():
        if span.span_id in reached:
            continue
        # Up to the circle: what hangs from it is reached through it.
        at, seen = span, set[str]()
        while at.span_id not in seen:
            seen.add(at.span_id)
            at = by_id[at.parent_id]
        children[at.parent_id].remove(at)
        cut.append(at)
        _reach([at.span_id], children, reached)
    if cut:
        missing.append(f"{len(cut)} circles of spans that are each other's parents are cut")
    return cut


def _reach(ids: list[str], children: Mapping[str, Sequence[SpanRecord]], reached: set[str]) -> None:
    while ids:
        span_id = ids.pop()
        reached.add(span_id)
        ids.extend(child.span_id for child in children.get(span_id, ()))


def _on_one_clock(
    roots: Sequence[SpanRecord], children: Mapping[str, Sequence[SpanRecord]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Return when each span began on its root's clock, and how far services are off."""
    began_us = {span.span_id: span.started_us for span in roots}
    skews: dict[str, int] = {}
    pending = list(roots)
    while pending:
        parent = pending.pop()
        for child in children.get(parent.span_id, ()):
            moved_us = 0
            if child.service == parent.service:
                moved_us = began_us[parent.span_id] - parent.started_us
            elif child.kind == "handle" and parent.status not in _LEFT:
                moved_us = _skew_us(child, parent, began_us[parent.span_id])
                if abs(moved_us) > max(SKEW_SHOWN_US, abs(skews.get(child.service, 0))):
                    skews[child.service] = moved_us
            began_us[child.span_id] = child.started_us + moved_us
            pending.append(child)
    return began_us, skews


def _skew_us(child: SpanRecord, parent: SpanRecord, parent_began_us: int) -> int:
    """Return how far a span has to be moved to be within its parent."""
    latest_us = parent_began_us + parent.took_us - child.took_us
    if parent_began_us <= child.started_us <= latest_us:
        return 0
    return parent_began_us + max(0, (parent.took_us - child.took_us) // 2) - child.started_us
