"""Spans, rings and log lines."""

import json
import logging
from pathlib import Path

import pytest

from synchromesh.errors import CircuitOpen, Rejection
from synchromesh.telemetry import JsonFormatter, MemoryRing, SpanRow, Tracer, current_span
from synchromesh.telemetry.ring import SqliteRing
from synchromesh.testing import SimRuntime, run

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Refusal(Rejection, code="refusal", status=409):
    """Tells no."""


def record(number: int, kind: str = "call", trace_id: str = TRACE) -> SpanRow:
    noted = {"n": str(number)}
    return trace_id, f"{number:016x}", "", "orders", kind, "x", float(number), 5.0, "ok", noted


def test_a_span_says_what_ran_for_which_trace_and_how_it_ended() -> None:
    """A span that ends is handed over once, with its time by the loop's clock."""

    async def main(runtime: SimRuntime) -> None:
        ring = MemoryRing()
        tracer = Tracer("orders", runtime, ring)
        with tracer.start("call", "billing.charge", trace_id=TRACE, parent_id="p") as span:
            assert current_span.get() is span
            span.note("attempts", 2)
        span.end("twice")
        assert current_span.get() is None
        (made,) = ring
        assert (made.trace_id, made.parent_id, made.service) == (TRACE, "p", "orders")
        assert (made.status, made.attributes) == ("ok", {"attempts": "2"})
        assert len(made.span_id) == 16

    run(main)


@pytest.mark.parametrize(
    ("error", "status", "noted"),
    [
        (CircuitOpen("open; wait"), "circuit_open", {"error": "open; wait"}),
        (Refusal("card 4711"), "refusal", {}),
        (ValueError("password hunter2"), "ValueError", {}),
    ],
)
def test_a_failed_span_has_the_code_of_its_error_and_no_text_of_users(
    error: Exception, status: str, noted: dict[str, str]
) -> None:
    """Texts of users' exceptions and rejections stay out of traces (T3)."""

    async def main(runtime: SimRuntime) -> None:
        ring = MemoryRing()
        with (
            pytest.raises(type(error)),
            Tracer("a", runtime, ring).start("unit", "u", trace_id=TRACE),
        ):
            raise error
        assert [(made.status, made.attributes) for made in ring] == [(status, noted)]

    run(main)


def test_notes_are_bounded() -> None:
    """A span cannot be made to hold more than its bounds, however often it is noted."""

    async def main(runtime: SimRuntime) -> None:
        span = Tracer("a", runtime, MemoryRing()).start("unit", "u", trace_id=TRACE)
        for number in range(100):
            span.note(f"n{number}", "x" * 10_000)
        assert len(span.attributes) == 32
        assert {len(text) for text in span.attributes.values()} == {512}

    run(main)


def test_the_memory_ring_keeps_the_newest() -> None:
    """The oldest makes room."""
    ring = MemoryRing(spans_max=2)
    for number in (1, 2, 3):
        ring.add(record(number))
    assert [made.started_us for made in ring] == [2, 3]


def test_the_sqlite_ring_gives_back_a_trace_in_order_and_forgets_the_oldest() -> None:
    """What was flushed is read in order of start; beyond the bound the oldest are gone."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime, spans_max=3)
        assert ring.trace(TRACE) == []
        assert ring.last_trace_id() is None
        for number in (4, 2, 3, 1):
            ring.add(record(number))
        await ring.flush()
        assert [made.started_us for made in ring.trace(TRACE)] == [1, 2, 3]
        assert ring.trace(TRACE)[0].attributes == {"n": "1"}
        ring.add(record(9, "client", "f" * 32))
        await ring.flush()
        assert ring.last_trace_id() == "f" * 32
        await ring.close()

    run(main)


def test_spans_are_written_soon_without_being_asked_for() -> None:
    """A span can be read a moment after it ended, also by another process."""

    async def main(runtime: SimRuntime) -> None:
        import asyncio

        ring = SqliteRing("/spans.db", runtime, flush_s=0.05)
        ring.add(record(1))
        await asyncio.sleep(0.2)
        assert len(ring.trace(TRACE)) == 1
        await ring.close()

    run(main)


def test_spans_beyond_what_may_wait_are_dropped_and_counted() -> None:
    """A burst costs bounded memory and never the request (T2)."""

    async def main(runtime: SimRuntime) -> None:
        ring = SqliteRing("/spans.db", runtime, pending_max=2)
        for number in range(5):
            ring.add(record(number))
        await ring.flush()
        assert ring.dropped == 3
        assert len(ring.trace(TRACE)) == 2
        await ring.close()

    run(main)


@pytest.mark.anyio
async def test_a_ring_that_cannot_be_written_drops_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken disk of telemetry fails no request: spans are dropped, one warning is logged."""
    from synchromesh.runtime import RealRuntime

    ring = SqliteRing(str(tmp_path / "missing" / "spans.db"), RealRuntime())
    for number in (1, 2):
        ring.add(record(number))
        await ring.flush()
    await ring.close()
    assert ring.dropped == 2
    assert [r.levelname for r in caplog.records] == ["WARNING"]


@pytest.mark.anyio
@pytest.mark.parametrize("damage", ["cut", "overwritten", "empty log", "foreign log"])
async def test_a_ring_that_a_power_cut_damaged_begins_anew(tmp_path: Path, damage: str) -> None:
    """What is left of the file is set aside, and only what waited to be written to it is lost."""
    from synchromesh.runtime import RealRuntime

    path = tmp_path / "spans.db"
    ring = SqliteRing(str(path), RealRuntime())
    for number in range(200):
        ring.add(record(number))
    await ring.close()
    if damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "overwritten":
        path.write_bytes(b"dear diary, " * 1000)
    else:
        log = path.with_name("spans.db-wal")
        log.write_bytes(b"" if damage == "empty log" else b"dear diary, " * 1000)
    ring = SqliteRing(str(path), RealRuntime())
    for trace_id in ("a" * 32, "b" * 32):
        assert isinstance(ring.trace(trace_id), list)
        ring.add(record(1, trace_id=trace_id))
        await ring.flush()
    assert len(ring.trace("b" * 32)) == 1
    await ring.close()
    is_damaged = damage in ("cut", "overwritten")
    assert path.with_name("spans.db.damaged").exists() == is_damaged
    assert ring.dropped == is_damaged


def test_a_log_line_is_json_and_carries_the_trace_of_its_span() -> None:
    """A log record can be joined to its trace, and keeps extras and the traceback."""

    async def main(runtime: SimRuntime) -> str:
        with Tracer("a", runtime, MemoryRing()).start("unit", "u", trace_id=TRACE):
            try:
                raise ValueError("boom")
            except ValueError as error:
                made = logging.makeLogRecord(
                    {
                        "msg": "unit %s failed",
                        "args": ("u",),
                        "levelname": "ERROR",
                        "name": "shop",
                        "order": 7,
                        "exc_info": (type(error), error, error.__traceback__),
                    }
                )
                return JsonFormatter().format(made)

    line = json.loads(run(main))
    assert (line["message"], line["level"], line["logger"]) == ("unit u failed", "ERROR", "shop")
    assert (line["trace_id"], line["order"]) == (TRACE, 7)
    assert "ValueError: boom" in line["exception"]
