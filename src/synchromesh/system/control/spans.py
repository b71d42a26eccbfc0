"""The spans of a trace, and the newest requests from outside, of all processes of a system."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol
from urllib.parse import quote

import msgspec

from synchromesh.errors import BadRequest
from synchromesh.telemetry import ASKING, SpanRecord

# Instead of the id of a trace: the newest that was asked for from outside.
LAST = "last"
# Instead of it: what each of the newest traces began with.
NEWEST = ""
LISTED_MAX = 500


class Spans(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to `GET /traces`: the spans of a trace, or of `NEWEST`.

    `has_more`: the trace has later ones, which were not asked for.
    """

    spans: list[SpanRecord]
    trace_id: str = ""
    has_more: bool = False


class KeepsSpans(Protocol):
    """A process of the system."""

    async def spans(self, trace_id: str, first: int = 0) -> list[SpanRecord]:
        """Return what it keeps of a trace: so many of the earliest spans; 0 is all."""
        ...


def path_of(trace_id: str, first: int = 0) -> str:
    """Return the path by which the spans of a trace are asked for, or so many of the earliest."""
    return f"/traces/{quote(trace_id, safe='')}{f'?first={first}' if first else ''}"


def first_of(query: str) -> int:
    """Return how many spans a query asks for; 0 is all.

    Raises:
        BadRequest: it asks for something else.
    """
    name, _, count = query.partition("=")
    if not query or (name == "first" and count.isascii() and count.isdigit() and len(count) < 7):
        return int(count or 0)
    raise BadRequest(f"{query[:80]!r} is nothing to ask of a trace; there is: first=1000")


async def find_spans(processes: Sequence[KeepsSpans], trace_id: str, first: int = 0) -> Spans:
    """Return the spans of a trace from all processes, by when they began; the `NEWEST` first.

    Args:
        first: so many of the earliest; 0 is all.

    Raises:
        BadRequest: there are none.
    """
    if trace_id in (LAST, NEWEST):
        # The gateway may be a process of its own.
        newest = await _gathered(processes, trace_id, 0)
        asked = [span for span in newest if span.kind in ASKING]
        if trace_id == NEWEST:
            return Spans(asked[::-1][:LISTED_MAX])
        if not asked:
            raise BadRequest("nobody has asked for anything yet; try: synchromesh call")
        trace_id = asked[-1].trace_id
    spans = await _gathered(processes, trace_id, first + 1 if first else 0)
    if not spans:
        raise BadRequest(
            f"no spans of trace {trace_id[:80]!r} are kept; the ring may have wrapped. The "
            "newest is: synchromesh trace last"
        )
    return Spans(spans[: first or None], trace_id, has_more=0 < first < len(spans))


async def _gathered(processes: Sequence[KeepsSpans], trace_id: str, first: int) -> list[SpanRecord]:
    answers = await asyncio.gather(*(each.spans(trace_id, first) for each in processes))
    return sorted((span for own in answers for span in own), key=lambda span: span.started_us)
