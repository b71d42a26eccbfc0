"""Spans: what ran, for which trace, from when to when, and how it ended."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self, TypeAlias

import msgspec

from synchromesh.context import new_span_id
from synchromesh.errors import Rejection, SynchromeshError
from synchromesh.runtime import Runtime

ATTRIBUTES_MAX = 32
TEXT_CHARS_MAX = 512
# How old the difference of the two clocks may be: a step of the wall clock is followed that late.
CLOCKS_S = 0.1

SpanRow: TypeAlias = tuple[
    str, str, str, str, str, str, float, float, str, Mapping[str, str] | None
]
"""The fields of a `SpanRecord` in their order, as a span is kept until somebody reads it."""


class SpanContext(Protocol):
    """Says where work belongs: to a span of a trace. A `Span` is one, and so is a `CallContext`."""

    @property
    def trace_id(self) -> str:
        """The trace: 32 hex digits."""
        ...

    @property
    def span_id(self) -> str:
        """The span: 16 hex digits."""
        ...


current_span: ContextVar[SpanContext | None] = ContextVar("synchromesh_span", default=None)


class SpanRecord(msgspec.Struct, frozen=True):
    """One span that has ended, as it is shown.

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
    """Return the record of a row."""
    trace_id, span_id, parent_id, service, kind, name, started_us, took_us, status, noted = row
    started_us, took_us = round(started_us), round(took_us)
    noted = dict(noted or {})
    return SpanRecord(
        trace_id, span_id, parent_id, service, kind, name, started_us, took_us, status, noted
    )


class Sink(Protocol):
    """Takes spans that have ended; never blocks and never raises."""

    def add(self, span: SpanRow, /) -> None:
        """Keep a span, or drop it."""
        ...


class Record(Protocol):
    """Records spans of one kind and name when they have ended; see `Tracer.recorder`."""

    def __call__(
        self,
        trace_id: str,
        span_id: str,
        parent_id: str,
        began_s: float,
        ended_s: float,
        status: str = "ok",
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Record one span.

        Args:
            trace_id: 32 hex digits.
            span_id: 16 hex digits, from `new_span_id`.
            parent_id: the span above, "" for none.
            began_s: the loop's clock when it began.
            ended_s: the loop's clock now.
            status: "ok", or as `outcome_of` the error says, like `attributes`.
            attributes: at most 32 texts of at most 512 characters, which nobody changes any more;
                never a body, never a secret (T3).
        """
        ...


class MemoryRing:
    """Keeps the newest spans in memory.

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
    """One span that is under way; `with` ends it, and an error gives it its code as status.

    This is the slow way, for what is rare or has much to note: see `Tracer.recorder`.
    """

    __slots__ = (
        "_began_s", "_token", "_tracer", "attributes", "is_ended", "kind", "name", "parent_id",
        "span_id", "status", "trace_id",
    )  # fmt: skip

    def __init__(self, tracer: Tracer, kind: str, name: str, trace_id: str, parent_id: str) -> None:
        self._tracer = tracer
        self.kind, self.name = kind, name
        self.trace_id, self.parent_id = trace_id, parent_id
        self.span_id = new_span_id(tracer.rng)
        self._began_s = asyncio.get_running_loop().time()
        self.status = "ok"
        self.attributes: dict[str, str] = {}
        self.is_ended = False

    def note(self, name: str, value: object) -> None:
        """Attach a short text; beyond the bounds it is cut or dropped."""
        if len(self.attributes) < ATTRIBUTES_MAX:
            self.attributes[name] = str(value)[:TEXT_CHARS_MAX]

    def end(self, status: str | None = None) -> None:
        """End the span; may be repeated, the first time counts."""
        if self.is_ended:
            return
        self.is_ended = True
        if status is not None:
            self.status = status
        self._tracer.recorder(self.kind, self.name)(
            self.trace_id,
            self.span_id,
            self.parent_id,
            self._began_s,
            asyncio.get_running_loop().time(),
            self.status,
            self.attributes or None,
        )

    def fail(self, error: BaseException) -> None:
        """Give the span the status of an error; users' exception texts stay out of traces (T3)."""
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
        if isinstance(error, GeneratorExit):
            return  # a coroutine that is thrown away has neither its context nor a loop any more
        current_span.reset(self._token)
        if error is not None:
            self.fail(error)
        self.end()


def status_of(error: BaseException) -> str:
    """Return what a span or a log record calls an error: a code, never its text.

    Example:
        >>> status_of(ValueError("secret"))
        'ValueError'
    """
    if isinstance(error, SynchromeshError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def outcome_of(error: BaseException) -> tuple[str, dict[str, str]]:
    """Return status and attributes of a span that an error ended.

    Only our own errors' messages are among them; users' texts stay out of traces (T3).

    Example:
        >>> from synchromesh.errors import TimedOut
        >>> outcome_of(TimedOut("no answer within 2 s")), outcome_of(ValueError("secret"))
        (('timed_out', {'error': 'no answer within 2 s'}), ('ValueError', {}))
    """
    if isinstance(error, SynchromeshError) and not isinstance(error, Rejection):
        return error.code, {"error": error.message[:TEXT_CHARS_MAX]}
    return status_of(error), {}


class Tracer:
    """Makes the spans of one service.

    Spans are timed by the loop's clock and shown by the wall clock. The difference of the two is
    read again when it is older than `CLOCKS_S`; it is that of a span's end. So a span cannot be cut
    or stretched by a step of the wall clock; one that was under way at a step, or that ended within
    `CLOCKS_S` after it, may be shown by the clock of the other side, its neighbours with it.
    """

    def __init__(self, service: str, runtime: Runtime, sink: Sink) -> None:
        self.service = service
        self.sink = sink
        self.rng: random.Random = runtime.rng
        self.wall_us: Callable[[], int] = runtime.wall_us
        self._ahead_us = 0.0  # the wall clock, less the loop's
        self._stale_s = float("-inf")

    def recorder(self, kind: str, name: str) -> Record:
        """Return what records spans of this kind and name: the fast way, without an object a span.

        Keep it, for example in a plan. Nothing is current while such a span is under way; who runs
        code of users below it sets `current_span`, to the `CallContext` for instance.

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
        service, add = self.service, self.sink.add

        def record(
            trace_id: str,
            span_id: str,
            parent_id: str,
            began_s: float,
            ended_s: float,
            status: str = "ok",
            attributes: Mapping[str, str] | None = None,
        ) -> None:
            if ended_s >= self._stale_s:
                self._read_clocks()
            # Microseconds since 1970 fit a float to half of one until the year 2112.
            started_us = began_s * 1e6 + self._ahead_us
            took_us = (ended_s - began_s) * 1e6
            add(
                (
                    trace_id,
                    span_id,
                    parent_id,
                    service,
                    kind,
                    name,
                    started_us,
                    took_us,
                    status,
                    attributes,
                )
            )

        return record

    def start(self, kind: str, name: str, *, trace_id: str, parent_id: str = "") -> Span:
        """Start a span; use it as a context manager, or end it by hand."""
        return Span(self, kind, name, trace_id, parent_id)

    @contextmanager
    def under(self, span: SpanContext | None) -> Iterator[None]:
        """Make a span the current one without ending it."""
        token = current_span.set(span)
        try:
            yield
        finally:
            current_span.reset(token)

    def _read_clocks(self) -> None:
        now = asyncio.get_running_loop().time()
        self._ahead_us = self.wall_us() - now * 1e6
        self._stale_s = now + CLOCKS_S

    def __repr__(self) -> str:
        return f"<Tracer {self.service}>"
