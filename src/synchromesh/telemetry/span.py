"""Spans: what ran, for which trace, from when to when, and how it ended."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self, TypeAlias, TypeGuard

import msgspec

from synchromesh.clock import loop_clock, loop_now
from synchromesh.context import new_span_id
from synchromesh.errors import Rejection, SynchromeshError, readable
from synchromesh.propagation import KEPT_TRACE, SAMPLE_ALL, SAMPLED, Propagation, TraceMarks
from synchromesh.runtime import Runtime
from synchromesh.telemetry.metrics import OK, Histogram, Metrics, Timings

ATTRIBUTES_MAX = 32
TEXT_CHARS_MAX = 512
# The age of the offset between the clocks: a step of the wall clock is followed that late.
CLOCKS_S = 0.1

SpanRow: TypeAlias = tuple[
    str, str, str, str, str, str, float, float, str, Mapping[str, str] | None, int
]
"""The fields of a `SpanRecord` in their order, as a span is kept until somebody reads it.

Behind them are the flags of its trace: it is exported where that is sampled.
"""


class SpanContext(Protocol):
    """Identify a span within its trace; a `Span` does, and so does a `CallContext`."""

    @property
    def trace_id(self) -> str:
        """The trace: 32 hex digits."""
        ...

    @property
    def span_id(self) -> str:
        """The span: 16 hex digits."""
        ...

    @property
    def marks(self) -> TraceMarks:
        """What travels with the trace besides its ids."""
        ...


current_span: ContextVar[SpanContext | None] = ContextVar("synchromesh_span", default=None)


class SpanRecord(msgspec.Struct, frozen=True):
    """Hold one finished span, as it is read and shown.

    Attributes:
        kind: "call" (at the caller), "handle" (at the callee), "unit", "saga", "step", "undo",
            "relay", "message", "client" or "gateway".
        started_us: wall clock, microseconds since 1970 UTC.
        took_us: by the loop's clock, in microseconds.
        status: "ok", or the code of the error.
        attributes: few short texts; never a body, never a secret (T3).
    """

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    kind: str
    name: str
    started_us: int
    took_us: int
    status: str
    attributes: dict[str, str]


def to_record(row: SpanRow) -> SpanRecord:
    """Convert a row to the record that is shown."""
    trace_id, span_id, parent_id, service, kind, name, started_us, took_us, status, noted, _ = row
    started_us, took_us = round(started_us), round(took_us)
    noted = dict(noted or {})
    return SpanRecord(
        trace_id, span_id, parent_id, service, kind, name, started_us, took_us, status, noted
    )


class Sink(Protocol):
    """Export finished spans; never blocks and never raises."""

    def add(self, span: SpanRow, /) -> None:
        """Take a finished span, or drop it."""
        ...


class BufferedSink(Sink, Protocol):
    """Is a `Sink` that a `Tracer` need not call for each span: it appends to `rows` instead.

    Attributes:
        rows: the same object all the time.
        full_at: how many rows are to be there for `on_full` to be called.
    """

    rows: list[SpanRow]
    full_at: int

    def on_full(self) -> None:
        """Take note of the rows."""
        ...


class _Unbuffered:
    """Hands the spans on to a sink that wants to be called for each."""

    full_at = 1

    def __init__(self, sink: Sink) -> None:
        self.rows: list[SpanRow] = []
        self.add = sink.add

    def on_full(self) -> None:
        self.add(self.rows.pop())


class Record(Protocol):
    """Record finished spans of one kind and name; see `Tracer.recorder`."""

    def __call__(
        self,
        trace_id: str,
        span_id: str,
        parent_id: str,
        began_s: float,
        ended_s: float,
        status: str = "ok",
        attributes: Mapping[str, str] | None = None,
        flags: int = SAMPLED,
    ) -> None:
        """Record one finished span.

        Args:
            trace_id: 32 hex digits.
            span_id: 16 hex digits, from `new_span_id`.
            parent_id: the span above, "" for none.
            began_s: the loop's clock when it began.
            ended_s: the loop's clock now.
            status: "ok", or as `outcome_of` the error says, like `attributes`.
            attributes: at most 32 texts of at most 512 characters, which nobody changes any more;
                never a body, never a secret (T3).
            flags: of its trace, as its marks have them.
        """
        ...


class MemoryRing:
    """Keep the newest spans in memory.

    Example:
        >>> ring = MemoryRing(spans_max=2)
        >>> len(ring)
        0
    """

    def __init__(self, spans_max: int = 4096) -> None:
        self._rows: deque[SpanRow] = deque(maxlen=spans_max)
        # The deque's own method, without a frame around it: the oldest makes room.
        self.add: Callable[[SpanRow], None] = self._rows.append

    def __iter__(self) -> Iterator[SpanRecord]:
        return map(to_record, self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Span:
    """Measure an operation while it runs; `with` ends the span, and an error sets its status.

    It costs about four times what `Tracer.recorder` does: for operations that are rare, or have
    attributes to collect on their way.
    """

    __slots__ = (
        "_began_s", "_clock", "_token", "_tracer", "attributes", "is_ended", "kind", "marks",
        "name", "parent_id", "span_id", "status", "trace_id",
    )  # fmt: skip

    def __init__(
        self,
        tracer: Tracer,
        kind: str,
        name: str,
        trace_id: str,
        parent_id: str,
        marks: TraceMarks = KEPT_TRACE,
    ) -> None:
        self._tracer = tracer
        self.kind, self.name = kind, name
        self.trace_id, self.parent_id, self.marks = trace_id, parent_id, marks
        self.span_id = new_span_id(tracer.rng)
        self._clock = loop_clock(asyncio.get_running_loop())
        self._began_s = self._clock()
        self.status = "ok"
        self.attributes: dict[str, str] = {}
        self.is_ended = False

    def note(self, name: str, value: object) -> None:
        """Set an attribute; beyond 512 characters it is cut, beyond 32 attributes dropped."""
        if len(self.attributes) < ATTRIBUTES_MAX:
            self.attributes[name] = str(value)[:TEXT_CHARS_MAX]

    def end(self, status: str | None = None) -> None:
        """End the span; may be repeated, the first time counts."""
        if self.is_ended:
            return
        self.is_ended = True
        if status is not None:
            self.status = status
        tracer, ended_s = self._tracer, self._clock()
        timings = tracer.timings(self.kind, self.name)
        if timings is not None:
            timings.of(self.status).observe(ended_s - self._began_s)
        started_us, took_us = tracer.shown(self._began_s, ended_s)
        tracer.sink.add(
            (
                self.trace_id,
                self.span_id,
                self.parent_id,
                tracer.service,
                self.kind,
                self.name,
                started_us,
                took_us,
                self.status,
                self.attributes,
                self.marks.flags,
            )
        )

    def fail(self, error: BaseException) -> None:
        """Set the status from an error; users' exception texts stay out of traces (T3)."""
        self.status, noted = outcome_of(error)
        for name, text in noted.items():
            self.note(name, text)

    def __enter__(self) -> Self:
        self._token = current_span.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            if isinstance(error, GeneratorExit):
                return  # a coroutine that is thrown away has neither its context nor a loop
            self.fail(error)
        current_span.reset(self._token)
        self.end()


def status_of(error: BaseException) -> str:
    """Return the status code of an error for spans and log records; never its text.

    Example:
        >>> status_of(ValueError("secret"))
        'ValueError'
    """
    if isinstance(error, SynchromeshError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def outcome_of(error: BaseException) -> tuple[str, dict[str, str]]:
    """Return status and attributes of a span that ended with an error.

    Only messages of the toolkit's own errors are among them; users' texts stay out of traces (T3).

    Example:
        >>> from synchromesh.errors import TimedOut
        >>> outcome_of(TimedOut("no answer within 2 s")), outcome_of(ValueError("secret"))
        (('timed_out', {'error': 'no answer within 2 s'}), ('ValueError', {}))
    """
    if isinstance(error, SynchromeshError) and not isinstance(error, Rejection):
        return error.code, {"error": readable(error.message)[:TEXT_CHARS_MAX]}
    return status_of(error), {}


def _is_buffered(sink: Sink) -> TypeGuard[BufferedSink]:
    return hasattr(sink, "rows")


class Tracer:
    """Create the spans of one service, and count and time what they stand for.

    Its `propagation` says which of the traces that begin there are sampled. Spans of others are
    recorded all the same, and not exported.

    Spans are timed by the loop's monotonic clock and shown in wall-clock time. The offset between
    the two is read again once it is older than `CLOCKS_S`, when a span ends. So a step of the wall
    clock neither stretches a span nor changes the order within a service; spans that end within
    `CLOCKS_S` after a step are shown in the time before it, and those that began before it and end
    later in the time after it.

    Args:
        metrics: what counts; None where nothing is counted.

    Example:
        >>> import asyncio
        >>> from synchromesh.runtime import RealRuntime
        >>> async def main() -> list[str]:
        ...     ring = MemoryRing()
        ...     tracer = Tracer("billing", RealRuntime(), ring)
        ...     with tracer.start("unit", "charge", trace_id="a" * 32):
        ...         pass
        ...     return [record.name for record in ring]
        >>> asyncio.run(main())
        ['charge']
    """

    def __init__(
        self,
        service: str,
        runtime: Runtime,
        sink: Sink,
        propagation: Propagation = SAMPLE_ALL,
        metrics: Metrics | None = None,
    ) -> None:
        self.service = service
        self.sink = sink
        self.propagation = propagation
        self._metrics = metrics
        self.rng: random.Random = runtime.rng
        self.wall_us: Callable[[], int] = runtime.wall_us
        self._ahead_us = 0.0  # the wall clock, less the loop's
        self._stale_s = float("-inf")

    def recorder(self, kind: str, name: str) -> Record:
        """Return a function that records finished spans of this kind and name.

        This is the fast path: no object a span, no context manager. Make it once, and keep it. Such
        a span is never the current one; whoever runs users' code within it sets `current_span`, to
        the `CallContext` for example, so that log records carry its ids.

        Example:
            >>> from synchromesh.testing import run
            >>> ring = MemoryRing()
            >>> async def main(runtime: Runtime) -> None:
            ...     record = Tracer("billing", runtime, ring).recorder("call", "bank.charge")
            ...     record("a" * 32, "b" * 16, "", 1.0, 1.25)
            >>> run(main)
            >>> [(made.name, made.took_us, made.status) for made in ring]
            [('bank.charge', 250000, 'ok')]
        """
        # Locals of a closure: what is the same for all of them is found without a look-up.
        service = self.service
        sink = self.sink if _is_buffered(self.sink) else _Unbuffered(self.sink)
        rows, append = sink.rows, sink.rows.append
        timings = self.timings(kind, name)
        well = Histogram(()) if timings is None else timings.by_end[OK]
        bounds, counts = well.bounds, well.counts
        shortest_s = bounds[0] if bounds else 0.0

        def record(
            trace_id: str,
            span_id: str,
            parent_id: str,
            began_s: float,
            ended_s: float,
            status: str = "ok",
            attributes: Mapping[str, str] | None = None,
            flags: int = SAMPLED,
        ) -> None:
            # As in `shown`, without its frame.
            if ended_s >= self._stale_s:
                self._read_clocks()
            started_us = began_s * 1e6 + self._ahead_us
            took_s = ended_s - began_s
            if timings is not None:
                if status == "ok":
                    # As `Histogram.observe`, without its frame; most calls are in the first bucket.
                    counts[0 if took_s <= shortest_s else bisect_left(bounds, took_s)] += 1
                    well.total += took_s
                else:
                    timings.of(status).observe(took_s)
            append(
                (
                    trace_id,
                    span_id,
                    parent_id,
                    service,
                    kind,
                    name,
                    started_us,
                    took_s * 1e6,
                    status,
                    attributes,
                    flags,
                )
            )
            if len(rows) >= sink.full_at:
                sink.on_full()

        return record

    def timings(self, kind: str, name: str) -> Timings | None:
        """Return what counts work of this kind and name; None where that is not counted."""
        metrics = self._metrics
        return None if metrics is None else metrics.timings(kind, self.service, name)

    def start(
        self,
        kind: str,
        name: str,
        *,
        trace_id: str,
        parent_id: str = "",
        marks: TraceMarks = KEPT_TRACE,
    ) -> Span:
        """Start a span; use it as a context manager, or call its `end`."""
        return Span(self, kind, name, trace_id, parent_id, marks)

    def shown(self, began_s: float, ended_s: float) -> tuple[float, float]:
        """Convert times of the loop to wall-clock start and duration, in microseconds."""
        if ended_s >= self._stale_s:
            self._read_clocks()
        # Microseconds since 1970 fit a float to half of one until the year 2112.
        return began_s * 1e6 + self._ahead_us, (ended_s - began_s) * 1e6

    @contextmanager
    def under(self, span: SpanContext | None) -> Iterator[None]:
        """Make a span the current one without ending it."""
        token = current_span.set(span)
        try:
            yield
        finally:
            current_span.reset(token)

    def _read_clocks(self) -> None:
        now = loop_now()
        self._ahead_us = self.wall_us() - now * 1e6
        self._stale_s = now + CLOCKS_S

    def __repr__(self) -> str:
        return f"<Tracer {self.service}>"
