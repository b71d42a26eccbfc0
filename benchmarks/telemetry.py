"""A span in a live request: all CPU that it takes until it is kept, threads included.

    make bench-telemetry

Requests run as tasks, a batch at once; each has spans within spans, with attributes, and gives up
the loop in between. What the same requests take without spans is subtracted. Ours are kept in the
SQLite ring of a running system; those of the OpenTelemetry SDK go through its batch processor and
are kept as OTLP in a file, or dropped there (which shows what the spans alone take). Each side's
spans are counted in the end: one that dropped some has not done the work.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from benchmarks.harness import (
    Measures,
    Report,
    Results,
    WrongAnswer,
    at_most,
    check,
    in_turn_async,
    size,
)
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import SqliteRing, Tracer, current_span

REQUESTS = size(2000, 200)
AT_ONCE = 50
# The spans of one request, each within the one before.
NAMES = ("gateway", "call", "handle", "unit", "message")
ROUNDS = size(9, 2)

Span = Callable[[int, str], AbstractContextManager[object]]


class Contestant(Protocol):
    """Makes spans, and keeps them."""

    def span(self, request: int, name: str) -> AbstractContextManager[object]:
        """Start a span of a request within the current one."""
        ...

    async def kept(self) -> int:
        """Return how many spans were kept since this was asked last; waits until all are."""
        ...


class Nothing:
    """Makes no span."""

    def span(self, request: int, name: str) -> AbstractContextManager[object]:
        """Do nothing."""
        del request, name
        return nullcontext()

    async def kept(self) -> int:
        """Return 0."""
        return 0


class Ours:
    """Synchromesh: a tracer, and the ring of a running system."""

    def __init__(self, folder: Path) -> None:
        self._runtime = RealRuntime()
        self.ring = SqliteRing(str(folder / "spans.db"), self._runtime)
        self._tracer = Tracer("bench", self._runtime, self.ring)
        self._round = 0

    def span(self, request: int, name: str) -> AbstractContextManager[object]:
        """Start a span, with two attributes."""
        above = current_span.get()
        span = self._tracer.start(
            "handle",
            name,
            trace_id=self._trace_id(request),
            parent_id="" if above is None else above.span_id,
        )
        span.note("attempt", "1")
        span.note("instance", "shelf-1")
        return span

    async def kept(self) -> int:
        """Wait for the ring, and count the spans of each request in it."""
        await self.ring.flush()
        check(self.ring.dropped, 0, "the ring")
        return REQUESTS * len(NAMES)

    def check(self) -> None:
        """Read the last round's traces: the ring has every span of them."""
        for request in range(0, REQUESTS, 97):
            names = {record.name for record in self.ring.trace(self._trace_id(request))}
            check(names, set(NAMES), "the ring")
        self._round += 1

    def _trace_id(self, request: int) -> str:
        return f"{self._round:016x}{request:016x}"


class Exporter:
    """Keeps spans as OTLP in a file; without one it drops them. Counts both."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("ab")
        self.count = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take a batch, in the processor's thread."""
        if self._file is not None:
            self._file.write(encode_spans(spans).SerializeToString())
            self._file.flush()
        self.count += len(spans)
        return SpanExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 0) -> bool:  # noqa: ARG002  the SDK's signature
        """Return True: nothing waits here."""
        return True

    def shutdown(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class OpenTelemetry:
    """The SDK with its batch processor; its queue is long enough to drop nothing."""

    def __init__(self, path: Path | None) -> None:
        self._exporter = Exporter(path)
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(
            BatchSpanProcessor(self._exporter, max_queue_size=REQUESTS * len(NAMES) * 2)
        )
        self._tracer = self.provider.get_tracer("bench")

    def span(self, request: int, name: str) -> AbstractContextManager[object]:
        """Start a span, with two attributes."""
        del request  # its trace is the context's
        attributes = {"attempt": "1", "instance": "shelf-1"}
        span: AbstractContextManager[object] = self._tracer.start_as_current_span(
            name, attributes=attributes
        )
        return span

    async def kept(self) -> int:
        """Wait for the processor, and return the number of spans that it exported."""
        self.provider.force_flush()
        count, self._exporter.count = self._exporter.count, 0
        return count


async def request(span: Span, number: int, depth: int = 0) -> None:
    """Serve a request: span within span, and a turn of the loop in each."""
    with span(number, NAMES[depth]):
        await asyncio.sleep(0)
        if depth + 1 < len(NAMES):
            await request(span, number, depth + 1)


async def measure(contestant: Contestant, wanted: int) -> Measures:
    """Serve all requests and wait until the spans are kept; CPU of all threads, for a span."""
    began_s = time.process_time()
    for first in range(0, REQUESTS, AT_ONCE):
        await asyncio.gather(*(request(contestant.span, first + n) for n in range(AT_ONCE)))
    kept = await contestant.kept()
    took_s = time.process_time() - began_s
    if kept != wanted:
        raise WrongAnswer(f"{type(contestant).__name__} kept {kept} spans of {wanted}")
    return {"cpu_us": took_s * 1e6 / REQUESTS / len(NAMES)}


async def main() -> None:
    """Measure, print and write `results/telemetry.json`."""
    packages = ["opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-common"]
    report, spans = Report("telemetry", packages=packages), REQUESTS * len(NAMES)
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made:
        ours = Ours(Path(made))
        sdk, dropping = OpenTelemetry(Path(made) / "spans.otlp"), OpenTelemetry(None)

        async def checked() -> Measures:
            measures = await measure(ours, spans)
            ours.check()
            return measures

        results = await in_turn_async(
            {
                "nothing": lambda: measure(Nothing(), 0),
                "ours": checked,
                "OpenTelemetry SDK": lambda: measure(sdk, spans),
                "OpenTelemetry SDK, dropped": lambda: measure(dropping, spans),
            },
            rounds=ROUNDS,
        )
        await ours.ring.close()
        for each in (sdk, dropping):
            each.provider.shutdown()
    net = beyond(results, "nothing")
    for peer in ("OpenTelemetry SDK", "OpenTelemetry SDK, dropped"):
        report.against("span in a live request, all CPU", "µs", net, "cpu_us", peer=peer)
    figure = "span in a live request, all CPU, kept"
    report.alone(figure, "µs", net.median("ours", "cpu_us"), at_most(2.5))
    report.finish()


def beyond(results: Results, floor: str) -> Results:
    """Return the CPU of each contestant beyond the floor's of the same round."""
    net = Results()
    for name in results.contestants():
        if name != floor:
            values = zip(
                results.values(name, "cpu_us"), results.values(floor, "cpu_us"), strict=True
            )
            for value, least in values:
                net.add(name, {"cpu_us": value - least})
    return net


if __name__ == "__main__":
    asyncio.run(main())
