"""A span in a live request: all CPU that it takes until it is kept, threads included.

    make bench-telemetry

Requests run as tasks, a batch at once; each has spans within spans, with attributes, and gives up
the loop in between. What the same requests take without spans is subtracted. Ours are recorded when
they end, as those of calls are; "current" are those that are context managers. Both are kept in the
SQLite ring of a running system; those of the OpenTelemetry SDK go through its batch processor and
are kept as OTLP in a file, or dropped there (which shows what the spans alone take). Each side's
spans are counted in the end: one that dropped some has not done the work.

A call has two spans, at its caller and at its callee, and metrics count and time both. They cost
what the same spans take more with metrics than without, in turn.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
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
from synchromesh.context import new_span_id
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import Metrics, SqliteRing, Tracer, current_span

REQUESTS = size(2000, 200)
AT_ONCE = 50
# The spans of one request, each within the one before.
NAMES = ("gateway", "call", "handle", "unit", "message")
ROUNDS = size(9, 2)

Span = Callable[[int, str], AbstractContextManager[object]]


class Contestant(Protocol):
    """Makes spans, and keeps them."""

    async def request(self, number: int) -> None:
        """Serve a request: span within span, and a turn of the loop in each."""
        ...

    async def kept(self) -> int:
        """Return how many spans were kept since this was asked last; waits until all are."""
        ...


class Nothing:
    """Makes no span."""

    async def request(self, number: int, depth: int = 0) -> None:
        """Do all but the spans."""
        await asyncio.sleep(0)
        if depth + 1 < len(NAMES):
            await self.request(number, depth + 1)

    async def kept(self) -> int:
        """Return 0."""
        return 0


class Ours:
    """Synchromesh: spans that are current, and the ring of a running system."""

    def __init__(self, path: Path, metrics: Metrics | None = None) -> None:
        runtime = RealRuntime()
        self.ring = SqliteRing(str(path), runtime)
        self._tracer = Tracer("bench", runtime, self.ring, metrics=metrics)
        self._round = 0

    async def request(self, number: int) -> None:
        """Serve a request."""
        await serve(self._span, number)

    def _span(self, request: int, name: str) -> AbstractContextManager[object]:
        """Start a span, with two attributes."""
        above = current_span.get()
        span = self._tracer.start(
            "handle",
            name,
            trace_id=self._trace_id(request) if above is None else above.trace_id,
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

    async def check(self) -> None:
        """Read the last round's traces: the ring has every span of them."""
        for request in range(0, REQUESTS, 97):
            names = {record.name for record in await self.ring.trace(self._trace_id(request))}
            check(names, set(NAMES), "the ring")
        self._round += 1

    def _trace_id(self, request: int) -> str:
        return f"{self._round:016x}{request:016x}"


class Recorded(Ours):
    """Synchromesh: spans that are recorded when they end, as those of calls are."""

    def __init__(self, path: Path, metrics: Metrics | None = None) -> None:
        super().__init__(path, metrics)
        self._clock = asyncio.get_running_loop().time
        self._records = [self._tracer.recorder("handle", name) for name in NAMES]

    async def request(self, number: int) -> None:
        """Serve a request."""
        await self._serve(self._trace_id(number), "", 0)

    async def _serve(self, trace_id: str, parent_id: str, depth: int) -> None:
        clock = self._clock
        span_id, began_s = new_span_id(self._tracer.rng), clock()
        await asyncio.sleep(0)
        if depth + 1 < len(NAMES):
            await self._serve(trace_id, span_id, depth + 1)
        attributes = {"attempt": "1", "instance": "shelf-1"}
        self._records[depth](trace_id, span_id, parent_id, began_s, clock(), "ok", attributes)


class Counted(Recorded):
    """The same, counted and timed by metrics."""

    def __init__(self, path: Path) -> None:
        self._metrics = Metrics()
        super().__init__(path, self._metrics)
        self._seen = 0

    async def kept(self) -> int:
        """Wait for the ring, and count what metrics have counted since."""
        await super().kept()
        (family,) = self._metrics.families()
        seen, self._seen = self._seen, sum(sum(sample.counts) for sample in family.samples)
        return self._seen - seen


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

    async def request(self, number: int) -> None:
        """Serve a request."""
        await serve(self._span, number)

    def _span(self, request: int, name: str) -> AbstractContextManager[object]:
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


async def serve(span: Span, number: int, depth: int = 0) -> None:
    """Serve a request with spans that are context managers."""
    with span(number, NAMES[depth]):
        await asyncio.sleep(0)
        if depth + 1 < len(NAMES):
            await serve(span, number, depth + 1)


async def measure(contestant: Contestant, wanted: int) -> Measures:
    """Serve all requests and wait until the spans are kept; CPU of all threads, for a span."""
    began_s = time.process_time()
    for first in range(0, REQUESTS, AT_ONCE):
        await asyncio.gather(*(contestant.request(first + n) for n in range(AT_ONCE)))
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
        ours, recorded = Ours(Path(made) / "ours.db"), Recorded(Path(made) / "recorded.db")
        counted = Counted(Path(made) / "counted.db")
        sdk, dropping = OpenTelemetry(Path(made) / "spans.otlp"), OpenTelemetry(None)

        async def checked(contestant: Ours) -> Measures:
            measures = await measure(contestant, spans)
            await contestant.check()
            return measures

        results = await in_turn_async(
            {
                "nothing": lambda: measure(Nothing(), 0),
                "ours": lambda: checked(recorded),
                "ours, with metrics": lambda: checked(counted),
                "ours, current": lambda: checked(ours),
                "OpenTelemetry SDK": lambda: measure(sdk, spans),
                "OpenTelemetry SDK, dropped": lambda: measure(dropping, spans),
            },
            rounds=ROUNDS,
        )
        for mine in (ours, recorded, counted):
            await mine.ring.close()
        for each in (sdk, dropping):
            each.provider.shutdown()
    net = beyond(results, "nothing")
    for peer in ("OpenTelemetry SDK", "OpenTelemetry SDK, dropped"):
        report.against("span in a live request, all CPU", "µs", net, "cpu_us", peer=peer)
    figure = "span in a live request, all CPU, kept"
    report.alone(figure, "µs", net.median("ours", "cpu_us"), at_most(2.5))
    report.alone("the same, current", "µs", net.median("ours, current", "cpu_us"))
    more = beyond(results, "ours").median("ours, with metrics", "cpu_us")
    report.alone("metrics of a call, which has two spans", "µs", 2 * more, at_most(1.0))
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


async def all_areas() -> None:
    """Measure spans, then their export, then the console."""
    from benchmarks import telemetry_console, telemetry_export

    for each in (main, telemetry_export.main, telemetry_console.main):
        await each()


if __name__ == "__main__":
    asyncio.run(all_areas())
