"""The exporter in virtual time: a collector that is down, slow or says no, and an end in time."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from otlp_collector import MemoryCollector, accept
from service_world import Stock, Town
from synchromesh.http import HttpPool, HttpRequest, HttpResponse
from synchromesh.propagation import Propagation
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import ExportStatus
from synchromesh.system.host.exporting import TelemetryExport
from synchromesh.system.host.otlp_exporter import ExportTarget, OtlpExporter
from synchromesh.system.host.otlp_target import routes_of
from synchromesh.telemetry import SqliteRing
from synchromesh.telemetry.exporting import ExportOptions
from synchromesh.telemetry.metrics import COUNTER, Family, Metric, Sample
from synchromesh.telemetry.otlp import Resource
from synchromesh.testing import SimRuntime, run

OPTIONS = ExportOptions(items_max=200, batch_max=10)
TEN_MINUTES_S = 600.0


async def hang(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(3600.0)
    return await accept(request)


async def slow(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(9.0)
    return await accept(request)


def saying(status: int, *headers: tuple[str, str]) -> Callable[..., Awaitable[HttpResponse]]:
    async def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse(status, headers, b"")

    return answer


class Place:
    """Services that record what they do, what exports it, and where it goes."""

    sending: asyncio.Future[None]

    def __init__(self, runtime: SimRuntime, ratio: float) -> None:
        self.runtime = runtime
        self.collector = MemoryCollector(runtime.network)
        self.ring = SqliteRing("/spans.db", runtime)
        self.town = Town(runtime)
        self.town.deps = replace(
            self.town.deps, sink=self.ring, propagation=Propagation.of(ratio, ["tenant"])
        )
        self.town.client = self.town.deps.caller("client")
        self.asked = self.failed = 0

    async def end(self) -> None:
        """End what sends, and have the last spans handed over."""
        self.sending.cancel()
        await asyncio.gather(self.sending, return_exceptions=True)
        await self.ring.flush()

    async def ask(self, seconds: float, every_s: float) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + seconds
        while loop.time() < until_s:
            self.asked += 1
            try:
                await self.town.ask(Stock.level("bolt"))
            except Exception:
                self.failed += 1
            await asyncio.sleep(every_s)


Main = Callable[[Place, OtlpExporter], Coroutine[object, object, None]]


def exporting(main: Main, *, listens: bool = True, ratio: float = 1.0) -> None:
    @asynccontextmanager
    async def placed(runtime: SimRuntime) -> AsyncIterator[tuple[Place, OtlpExporter]]:
        place = Place(runtime, ratio)
        await place.town.start("stock")
        port = 4318
        if listens:
            await place.collector.server.start()
            port = place.collector.server.port
        async with HttpPool(network=runtime.network) as pool:
            exporter = OtlpExporter(
                ExportTarget("http://c", "127.0.0.1", port, "", (("authorization", "Bearer x"),)),
                pool, runtime, Resource({"service.namespace": "town"}, "p-1"), "town",
                routes_of(place.town.services.values()), OPTIONS,
            )  # fmt: skip
            place.ring.tap = exporter.take_spans
            place.sending = asyncio.ensure_future(exporter.run())
            try:
                yield place, exporter
            finally:
                await place.end()
        await place.town.stop("stock")
        await place.ring.close()
        if listens:
            await place.collector.server.drain(1.0)
            await place.collector.server.close()

    async def world(runtime: SimRuntime) -> None:
        async with placed(runtime) as (place, exporter):
            await main(place, exporter)

    run(world)


def test_metrics_are_read_and_sent_again_and_again() -> None:
    """A collector that was away gets the last ones; one that cannot be read is left out (T2)."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        readings = 0

        async def read() -> list[Family]:
            nonlocal readings
            readings += 1
            if readings == 2:
                raise ValueError("a part is stopping")
            return [Family(Metric("reads", COUNTER, "{read}", "Reads."), [Sample((), readings)])]

        exporter.read = read
        await asyncio.sleep(210.0)
        counts = [metric.sum.data_points[0].as_double for _, metric in place.collector.metrics]
        assert counts == [1.0, 3.0]
        place.collector.answer = saying(503)
        await asyncio.sleep(1800.0)
        assert exporter.waiting()["metrics"] <= 10
        assert exporter.lost()["metrics"].keys() == {"queue_full", "gave_up"}
        place.collector.answer = accept
        await asyncio.sleep(120.0)
        assert exporter.waiting()["metrics"] == 0
        assert len(place.collector.metrics) > len(counts)

    exporting(main)


@pytest.mark.parametrize(
    ("answer", "reasons"),
    [
        (None, {"queue_full", "gave_up"}),
        (hang, {"queue_full", "gave_up"}),
        (slow, {"queue_full"}),
        (saying(500), {"refused"}),
        (saying(301, ("location", "http://elsewhere/v1/traces")), {"refused"}),
        (saying(503), {"queue_full", "gave_up"}),
        (saying(429, ("retry-after", "100000")), {"queue_full"}),
    ],
    ids=["down", "hangs", "slow", "500", "301", "503", "429"],
)
def test_ten_minutes_of_a_bad_collector_cost_no_request(
    answer: Callable[[HttpRequest], Awaitable[HttpResponse]] | None,
    reasons: set[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Memory is bounded, nothing fails, what is lost is counted, and people are told once (T2)."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        if answer is not None:
            place.collector.answer = answer
        for _ in range(10):
            await place.ask(TEN_MINUTES_S / 10, 1.0)
            await place.ring.flush()
            assert exporter.waiting()["traces"] <= OPTIONS.items_max
        assert (place.asked, place.failed) == (600, 0)
        lost = exporter.lost()["traces"]
        assert set(lost) <= reasons
        assert lost
        # What a slow one had taken when nobody waited for its answer any more may come again.
        told = {span.span_id for span in place.collector.spans}
        assert len(told) + exporter.waiting()["traces"] + sum(lost.values()) == 2 * place.asked
        assert 1 <= caplog.text.count("not all traces are taken by http://c: ") <= 20

    with caplog.at_level(logging.INFO, "synchromesh.telemetry"):
        exporting(main, listens=answer is not None)


def test_a_collector_that_comes_back_gets_what_waited(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost while the queue has room, nothing twice, and that it is back is said."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        place.collector.answer = saying(503, ("retry-after", "20"))
        await place.ask(10.0, 0.2)
        asked_s = asyncio.get_running_loop().time()
        place.collector.answer = accept
        await asyncio.sleep(40.0)
        assert asked_s > 0
        assert len(place.collector.spans) == 2 * place.asked
        assert len({span.span_id for span in place.collector.spans}) == 2 * place.asked
        assert exporter.lost()["traces"] == {}
        assert len(place.collector.asked) <= 12  # one was refused, and it waited as it was told
        assert "all traces are taken by http://c again; 0 were lost" in caplog.text

    with caplog.at_level(logging.INFO, "synchromesh.telemetry"):
        exporting(main)


def test_what_is_rejected_is_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """A partial success is neither taken for a whole one nor tried again."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        body = b'{"partialSuccess":{"rejectedSpans":"2","errorMessage":"too old"}}'

        async def partly(request: HttpRequest) -> HttpResponse:
            return HttpResponse(200, [("content-type", "application/json")], body)

        place.collector.answer = partly
        await place.ask(0.5, 1.0)
        await asyncio.sleep(5.0)
        assert exporter.lost()["traces"] == {"rejected": 2}
        assert len(place.collector.asked) == 1
        assert "not all traces are taken by http://c: too old" in caplog.text

    exporting(main)


def test_memory_does_not_grow_with_what_is_lost() -> None:
    """Twenty thousand spans more cost nothing that stays."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        place.collector.answer = hang

        def take(spans: int) -> None:
            for number in range(spans):
                row = "a" * 32, f"{number:016x}", "", "shop", "call", "x", 1e15, 5.0, "ok", None, 1
                exporter.take_spans([row])

        take(1_000)
        await asyncio.sleep(5.0)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        take(20_000)
        await asyncio.sleep(5.0)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        assert grown < 100_000
        assert exporter.waiting()["traces"] == OPTIONS.items_max

    exporting(main)


@pytest.mark.parametrize("answer", [hang, saying(503), None], ids=["hangs", "503", "down"])
def test_an_end_has_one_deadline_and_tells_the_truth(
    answer: Callable[[HttpRequest], Awaitable[HttpResponse]] | None,
) -> None:
    """However many batches wait, and whatever the collector does: what was not taken is counted."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        if answer is not None:
            place.collector.answer = answer
        await place.ask(20.0, 0.5)
        await place.end()
        clock = asyncio.get_running_loop().time
        began_s = clock()
        assert await exporter.close(0.5) is False
        assert clock() - began_s <= 0.6
        assert exporter.lost()["traces"]["closed"] > 0

    exporting(main, listens=answer is not None)


def test_an_end_sends_what_is_left() -> None:
    """All batches, within the deadline."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        await place.ask(0.9, 0.02)
        await place.end()
        assert await exporter.close(1.0) is True
        assert len(place.collector.spans) == 2 * place.asked
        assert exporter.lost()["traces"] == {}

    exporting(main)


def test_what_is_not_sampled_is_recorded_and_not_exported() -> None:
    """Neither what the ratio leaves out, nor what comes with a flag that says so."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        await place.ask(2.0, 0.1)
        await asyncio.sleep(3.0)
        assert (place.asked, place.collector.asked) == (20, [])
        trace_id = await place.ring.last_trace_id()
        assert trace_id is None or await place.ring.trace(trace_id)

    exporting(main, ratio=0.0)


def test_spans_are_told_by_the_conventions() -> None:
    """Service and route, kinds, the credential of the exporter: as a collector takes them."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        await place.ask(0.5, 1.0)
        await asyncio.sleep(3.0)
        (asked,) = place.collector.asked
        assert asked.headers.get("authorization") == "Bearer x"
        by_kind = {span.attributes["synchromesh.kind"]: span for span in place.collector.spans}
        call, handle = by_kind["call"], by_kind["handle"]
        assert (call.kind, call.parent_id, call.service, call.flags) == (3, "", "client", 0x103)
        assert (handle.kind, handle.parent_id, handle.flags) == (2, call.span_id, 0x303)
        assert handle.resource["service.namespace"] == "town"
        assert handle.resource["service.instance.id"] == "p-1"
        assert handle.attributes["http.request.method"] == "GET"
        assert handle.attributes["http.route"].startswith("/")
        assert handle.attributes["http.response.status_code"] == 200
        assert call.attributes["server.address"] == "stock"

    exporting(main)


def test_what_was_counted_last_is_sent_at_the_end_and_what_is_not_taken_is_told() -> None:
    """A process that ends between two readings reads once more; `status` says what was lost."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        counted = 7.0

        async def read() -> list[Family]:
            return [Family(Metric("reads", COUNTER, "{read}", "Reads."), [Sample((), counted)])]

        exporter.read = read
        export = TelemetryExport(exporter, 0.1)
        assert export.status() == {}
        await place.end()
        await export.end()
        assert await exporter.close(1.0) is True
        ((_, metric),) = place.collector.metrics
        assert metric.sum.data_points[0].as_double == counted
        await export.end()  # a second time there is nothing to read
        assert exporter.waiting()["metrics"] == 0
        place.collector.answer = saying(400)
        exporter.read = read
        await export.end()
        await exporter.close(1.0)
        told = export.status()
        assert told == {"metrics": ExportStatus(1, "it answered 400")}
        other = Status("town", 2, export={"metrics": ExportStatus(2), "logs": ExportStatus(1)})
        merged = Status.merge(Status("town", 1, export=told), other).export
        assert merged == {"metrics": ExportStatus(3, "it answered 400"), "logs": ExportStatus(1)}

    exporting(main)


def test_a_last_reading_that_hangs_is_given_up() -> None:
    """The end is not kept waiting by what counts."""

    async def main(place: Place, exporter: OtlpExporter) -> None:
        exporter.read = asyncio.Event().wait  # type: ignore[assignment]
        export = TelemetryExport(exporter, 0.1)
        await place.end()
        await export.end()
        assert export.spent_s == pytest.approx(0.1)
        assert await exporter.close(1.0) is True
        assert place.collector.metrics == []

    exporting(main)
