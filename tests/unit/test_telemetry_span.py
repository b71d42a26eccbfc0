"""Spans, their times, and log lines."""

import asyncio
import json
import logging

import pytest

from synchromesh.context import CallContext
from synchromesh.errors import CircuitOpen, Rejection
from synchromesh.telemetry import (
    JsonFormatter,
    MemoryRing,
    SpanRecord,
    Tracer,
    current_span,
    outcome_of,
)
from synchromesh.telemetry.span import CLOCKS_S
from synchromesh.testing import SimRuntime, run

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Refusal(Rejection, code="refusal", status=409):
    """Tells no."""


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
        assert outcome_of(error) == (status, noted)

    run(main)


def test_a_span_that_is_recorded_at_its_end_is_as_one_that_was_started() -> None:
    """The way without an object says the same of what ran, and when, as the one with it."""

    async def main(runtime: SimRuntime) -> list[SpanRecord]:
        ring = MemoryRing()
        tracer = Tracer("orders", runtime, ring)
        loop = asyncio.get_running_loop()
        await asyncio.sleep(1.0)
        began_s, began_us = loop.time(), runtime.wall_us()
        with tracer.start("call", "billing.charge", trace_id=TRACE, parent_id="p") as span:
            span.note("attempts", 2)
            span.status = "busy"
            await asyncio.sleep(0.25)
        record = tracer.recorder("call", "billing.charge")
        noted = {"attempts": "2"}
        record(TRACE, span.span_id, "p", began_s, loop.time(), "busy", noted)
        record(TRACE, span.span_id, "p", began_s, loop.time())
        first, second, third = ring
        assert first == second
        assert (first.started_us, first.took_us) == (began_us, 250_000)
        assert (third.status, third.attributes) == ("ok", {})
        return [first]

    run(main)


def test_a_step_of_the_wall_clock_moves_spans_and_never_stretches_them() -> None:
    """Lengths and order are the loop's clock's; the wall clock is followed within its limit."""

    async def main(runtime: SimRuntime) -> None:
        ring = MemoryRing()
        tracer = Tracer("orders", runtime, ring)
        stepped_us = 0
        tracer.wall_us = lambda: runtime.wall_us() + stepped_us
        for hour in (0, 1, -1):
            with tracer.start("handle", "outer", trace_id=TRACE):
                await asyncio.sleep(0.01)
                stepped_us = hour * 3_600_000_000
                with tracer.start("unit", "inner", trace_id=TRACE):
                    await asyncio.sleep(0.5)
        for unit, handle in zip(*[iter(ring)] * 2, strict=True):
            assert (unit.took_us, handle.took_us) == (500_000, 510_000)
            assert unit.started_us - handle.started_us == 10_000
        await asyncio.sleep(CLOCKS_S)
        now_us = tracer.wall_us()
        tracer.start("call", "next", trace_id=TRACE).end()
        assert list(ring)[-1].started_us == now_us

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
    for name in "abc":
        ring.add((TRACE, "1" * 16, "", "orders", "call", name, 1.0, 5.0, "ok", None, 1))
    assert [made.name for made in ring] == ["b", "c"]


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


@pytest.mark.parametrize("around", [None, CallContext(trace_id=TRACE, span_id="b" * 16)])
def test_a_log_line_below_a_span_without_an_object_carries_its_trace(
    around: CallContext | None,
) -> None:
    """Where a call's context is current it says what the line belongs to; without any, nothing."""

    async def main(runtime: SimRuntime) -> str:
        with Tracer("a", runtime, MemoryRing()).under(around):
            return JsonFormatter().format(logging.makeLogRecord({"msg": "sold"}))

    line = json.loads(run(main))
    expected = (None, None) if around is None else (TRACE, "b" * 16)
    assert (line.get("trace_id"), line.get("span_id")) == expected
