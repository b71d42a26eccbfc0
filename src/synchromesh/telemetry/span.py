"""Spans: what ran, for which trace, from when to when, and how it ended."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol, Self

import msgspec

from synchromesh.context import new_span_id
from synchromesh.errors import Rejection, SynchromeshError
from synchromesh.runtime import Runtime

ATTRIBUTES_MAX = 32
TEXT_CHARS_MAX = 512

current_span: ContextVar[Span | None] = ContextVar("synchromesh_span", default=None)


class SpanRecord(msgspec.Struct, frozen=True):
    """One span that has ended, as it is kept and shown.

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


class Sink(Protocol):
    """Takes spans that have ended; never blocks and never raises."""

    def add(self, record: SpanRecord) -> None:
        """Take a record, or drop it."""
        ...


class MemoryRing:
    """Keeps the newest spans in memory.

    Example:
        >>> ring = MemoryRing(spans_max=2)
        >>> len(ring)
        0
    """

    def __init__(self, spans_max: int = 4096) -> None:
        self._records: deque[SpanRecord] = deque(maxlen=spans_max)

    def add(self, record: SpanRecord) -> None:
        """Keep a record; the oldest makes room."""
        self._records.append(record)

    def __iter__(self) -> Iterator[SpanRecord]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


class Span:
    """One thing that runs; `with` ends it, and an exception gives it the error's code as status."""

    __slots__ = (
        "_began_s", "_token", "_tracer", "attributes", "is_ended", "kind", "name", "parent_id",
        "span_id", "started_us", "status", "trace_id",
    )  # fmt: skip

    def __init__(self, tracer: Tracer, kind: str, name: str, trace_id: str, parent_id: str) -> None:
        self._tracer = tracer
        self.kind, self.name = kind, name
        self.trace_id, self.parent_id = trace_id, parent_id
        self.span_id = new_span_id(tracer.rng)
        self.started_us = tracer.wall_us()
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
        took_us = int((asyncio.get_running_loop().time() - self._began_s) * 1e6)
        self._tracer.sink.add(
            SpanRecord(
                self.trace_id,
                self.span_id,
                self.parent_id,
                self._tracer.service,
                self.kind,
                self.name,
                self.started_us,
                took_us,
                self.status,
                self.attributes,
            )
        )

    def fail(self, error: BaseException) -> None:
        """Give the span the status of an error; users' exception texts stay out of traces (T3)."""
        self.status = status_of(error)
        if isinstance(error, SynchromeshError) and not isinstance(error, Rejection):
            self.note("error", error.message)

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


class Tracer:
    """Makes the spans of one service."""

    def __init__(self, service: str, runtime: Runtime, sink: Sink) -> None:
        self.service = service
        self.sink = sink
        self.rng: random.Random = runtime.rng
        self.wall_us: Callable[[], int] = runtime.wall_us

    def start(self, kind: str, name: str, *, trace_id: str, parent_id: str = "") -> Span:
        """Start a span; use it as a context manager, or end it by hand."""
        return Span(self, kind, name, trace_id, parent_id)

    @contextmanager
    def under(self, span: Span | None) -> Iterator[None]:
        """Make a span the current one without ending it."""
        token = current_span.set(span)
        try:
            yield
        finally:
            current_span.reset(token)

    def __repr__(self) -> str:
        return f"<Tracer {self.service}>"
