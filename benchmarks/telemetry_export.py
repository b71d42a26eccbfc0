"""What exporting spans adds to requests: the 99th percentile of their time, on and off in turn.

    make bench-telemetry

Requests come at a steady pace, 5 spans each, and wait for nothing but the loop: what keeps that
busy makes them late. Their spans are kept in the SQLite ring; in every second round they are sent
as well, to a collector in a process of its own, which has to have got each of them.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from benchmarks.harness import Measures, Report, at_most, check, in_turn_async, percentile, size
from benchmarks.telemetry import NAMES, Recorded
from synchromesh.http import HttpPool, HttpRequest, HttpResponse, HttpServer
from synchromesh.runtime import RealRuntime
from synchromesh.system.host.otlp_exporter import ExportTarget, OtlpExporter
from synchromesh.telemetry.otlp import Resource

REQUESTS = size(3000, 300)
PACE_S = 0.001
ROUNDS = size(9, 2)


async def collect() -> None:
    """Take telemetry, count its spans and say how many; prints the port."""
    count = 0

    async def answer(request: HttpRequest) -> HttpResponse:
        nonlocal count
        count += request.body.count(b'"traceId"')
        return HttpResponse(200, [("content-type", "application/json")], b'{"n":%d}' % count)

    server = HttpServer(answer, network=RealRuntime().network)
    await server.start()
    print(server.port, flush=True)
    await asyncio.Event().wait()


@asynccontextmanager
async def collector() -> AsyncIterator[int]:
    """Run a collector, and give its port."""
    words = (sys.executable, "-m", "benchmarks.telemetry_export", "collect")
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


class Counted(Recorded):
    """Counts the spans that it has recorded, over all rounds."""

    count = 0


async def measure(recorded: Counted) -> Measures:
    """Serve all requests at their pace, and return how late they were done, and their CPU."""
    clock, late_us = asyncio.get_running_loop().time, []
    began_s, cpu_s = clock(), time.process_time()

    async def one(number: int, due_s: float) -> None:
        await recorded.request(number)
        late_us.append((clock() - due_s) * 1e6)

    async with asyncio.TaskGroup() as group:
        for number in range(REQUESTS):
            due_s = began_s + number * PACE_S
            await asyncio.sleep(due_s - clock())
            group.create_task(one(number, due_s))
    cpu_us = (time.process_time() - cpu_s) * 1e6 / REQUESTS
    await recorded.kept()
    recorded.count += REQUESTS * len(NAMES)
    return {"p99_us": percentile(late_us, 99), "p50_us": percentile(late_us, 50), "cpu_us": cpu_us}


async def main() -> None:
    """Measure, print and write `results/telemetry_export.json`."""
    report, runtime = Report("telemetry_export"), RealRuntime()
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made:
        kept, sent = Counted(Path(made) / "kept.db"), Counted(Path(made) / "sent.db")
        async with collector() as port, HttpPool(network=runtime.network) as pool:
            target = ExportTarget("http://collector", "127.0.0.1", port, signals=("traces",))
            exporter = OtlpExporter(target, pool, runtime, Resource({}, "bench"), "bench", {})
            sent.ring.tap = exporter.take_spans
            sending = asyncio.ensure_future(exporter.run())
            results = await in_turn_async(
                {"kept": lambda: measure(kept), "kept and sent": lambda: measure(sent)},
                rounds=ROUNDS,
            )
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            check(await exporter.close(30.0), True, "the exporter")
            asked = await pool.request("127.0.0.1", port, "POST", "/", timeout_s=10.0)
            check(msgspec.json.decode(asked.body)["n"], sent.count, "the collector")
        for each in (kept, sent):
            await each.ring.close()
    for name in ("p50_us", "p99_us"):
        for who in results.contestants():
            report.alone(f"{name[:3]} of a request, spans {who}", "µs", results.median(who, name))
    ratio = results.ratio("kept and sent", "kept", "p99_us")
    report.alone("p99 with the export, over that without", "times", ratio, at_most(1.05))
    added_us = results.difference("kept and sent", "kept", "cpu_us") / len(NAMES)
    report.alone("CPU that the export of a span adds", "µs", added_us)
    report.finish()


if __name__ == "__main__":
    asyncio.run(collect() if sys.argv[1:] == ["collect"] else main())
