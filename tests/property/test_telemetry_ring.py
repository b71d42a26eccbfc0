"""The ring of spans against a list of all that was ever added."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from synchromesh.telemetry import SpanRow, SqliteRing
from synchromesh.testing import SimRuntime, run

SPANS_MAX, BLOCK_MAX = 12, 6
TRACES = ["a" * 32, "b" * 32, "c" * 32]
KINDS = ["client", "call", "unit"]

# A block of spans (trace, kind, start), and what comes after it.
spans = st.tuples(st.sampled_from(TRACES), st.sampled_from(KINDS), st.integers(0, 50))
blocks = st.tuples(
    st.lists(spans, max_size=BLOCK_MAX), st.sampled_from(["read", "wait", "flush", "restart"])
)


def row_of(number: int, trace_id: str, kind: str, started_us: int) -> SpanRow:
    name = str(number)
    return trace_id, f"{number:016x}", "", "s", kind, name, float(started_us), 1.0, "ok", None, 1


async def check(ring: SqliteRing, added: list[SpanRow]) -> None:
    """Compare what can be read with what was added; ids tell which span is which."""
    for trace_id in TRACES:
        found = [(int(s.started_us), s.span_id) for s in await ring.trace(trace_id)]
        starts = [(int(row[6]), row[1]) for row in added if row[0] == trace_id]
        newest = [(int(row[6]), row[1]) for row in added[-SPANS_MAX:] if row[0] == trace_id]
        oldest_first = {row[1] for row in added[-(SPANS_MAX + BLOCK_MAX) :]}
        # Spans that start together are in the order in which they ended.
        assert found == sorted(found)
        assert set(newest) <= set(found) <= {s for s in starts if s[1] in oldest_first}
        assert len(found) == len(set(found))
    clients = [row[0] for row in added if row[4] == "client"]
    last = await ring.last_trace_id()
    if any(row[4] == "client" for row in added[-SPANS_MAX:]):
        assert last == clients[-1]
    else:
        assert last in (None, *clients[-1:])


@settings(max_examples=150, deadline=None)
@given(history=st.lists(blocks, max_size=12), seed=st.integers(0, 1000))
def test_what_was_added_is_found_and_nothing_else(
    history: list[tuple[list[tuple[str, str, int]], str]], seed: int
) -> None:
    """However spans are divided into blocks, the newest are found, once each and in order."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime, spans_max=SPANS_MAX)
        added: list[SpanRow] = []
        for block, then in history:
            for trace_id, kind, started_us in block:
                added.append(row_of(len(added), trace_id, kind, started_us))
                ring.add(added[-1])
            if then == "read":
                await check(ring, added)
            elif then == "wait":
                await asyncio.sleep(0.3)
            elif then == "flush":
                await ring.flush()
            else:
                await ring.close()
                ring = SqliteRing("/spans.db", runtime, spans_max=SPANS_MAX)
        await check(ring, added)
        assert ring.dropped == 0
        await ring.close()

    run(main, seed=seed)
