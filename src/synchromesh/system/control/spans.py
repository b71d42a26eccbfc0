"""The spans of a trace, and the newest requests from outside, of all processes of a system."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import msgspec

from synchromesh.errors import BadRequest
from synchromesh.telemetry import ASKING, SpanRecord

# Instead of the id of a trace: the newest that was asked for from outside.
LAST = "last"
# Instead of it: what each of the newest traces began with.
NEWEST = ""
LISTED_MAX = 500


class Spans(msgspec.Struct, frozen=True):
    """The answer to `GET /traces`: the spans of a trace, or of `NEWEST`."""

    spans: list[SpanRecord]
    trace_id: str = ""


class KeepsSpans(Protocol):
    """A process of the system."""

    async def spans(self, trace_id: str) -> list[SpanRecord]:
        """Return what it keeps of a trace."""
        ...


async def find_spans(processes: Sequence[KeepsSpans], trace_id: str) -> Spans:
    """Return the spans of a trace from all processes, by when they began; the `NEWEST` first.

    Raises:
        BadRequest: there are none.
    """
    if trace_id in (LAST, NEWEST):
        # The gateway may be a process of its own.
        newest = await _gathered(processes, trace_id)
        asked = [span for span in newest if span.kind in ASKING]
        if trace_id == NEWEST:
            return Spans(asked[::-1][:LISTED_MAX])
        if not asked:
            raise BadRequest("nobody has asked for anything yet; try: synchromesh call")
        trace_id = asked[-1].trace_id
    spans = await _gathered(processes, trace_id)
    if not spans:
        raise BadRequest(
            f"no spans of trace {trace_id[:80]!r} are kept; the ring may have wrapped. The "
            "newest is: synchromesh trace last"
        )
    return Spans(spans, trace_id)


async def _gathered(processes: Sequence[KeepsSpans], trace_id: str) -> list[SpanRecord]:
    answers = await asyncio.gather(*(each.spans(trace_id) for each in processes))
    return sorted((span for own in answers for span in own), key=lambda span: span.started_us)
