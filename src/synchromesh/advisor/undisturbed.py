"""Leaves out what people broke on purpose: a drill, or `break`, tells nothing of the system itself.

An attempt that a fault has struck says so in its span. While there are such, and for a while after,
breakers are open, queues stand and retries are spent; whatever happened then is no evidence.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from synchromesh.telemetry import SpanRecord

SETTLE_US = 30_000_000
"""How long after a strike what happens may be of the fault still."""


def undisturbed(traces: Sequence[Sequence[SpanRecord]]) -> list[Sequence[SpanRecord]]:
    """Return the traces of which no part is of a time when something was broken on purpose.

    Example:
        >>> struck = SpanRecord(
        ...     "t", "1", "", "shop", "call", "bank.pay", 0, 9, "timed_out", {"fault": "stall"})
        >>> undisturbed([[struck]])
        []
    """
    begins, ends = _windows(span for spans in traces for span in spans if _is_struck(span))
    if not begins:
        return [*traces]
    return [spans for spans in traces if not _is_within(spans, begins, ends)]


def _is_struck(span: SpanRecord) -> bool:
    return "fault" in span.attributes


def _windows(struck: Iterable[SpanRecord]) -> tuple[list[int], list[int]]:
    """Return when each window begins and ends, in order and apart from each other."""
    begins: list[int] = []
    ends: list[int] = []
    for span in sorted(struck, key=lambda span: span.started_us):
        until_us = span.started_us + max(0, span.took_us) + SETTLE_US
        if ends and span.started_us <= ends[-1]:
            ends[-1] = max(ends[-1], until_us)
        else:
            begins.append(span.started_us)
            ends.append(until_us)
    return begins, ends


def _is_within(spans: Sequence[SpanRecord], begins: Sequence[int], ends: Sequence[int]) -> bool:
    if not spans:
        return False
    first_us = min(span.started_us for span in spans)
    last_us = max(span.started_us + max(0, span.took_us) for span in spans)
    at = bisect_right(begins, last_us)
    return at > 0 and ends[at - 1] >= first_us
