"""The pages of the console of a large system: what each takes, and what it keeps the loop from.

    make bench-telemetry

50 services that call each other over 1,000 edges, 100,000 spans in the SQLite ring with a trace of
20,000 among them, and a saga of 20,000 records. What tells of the system is made up, and goes the
way of a real one: the source of the console encodes and decodes it, rates come of two readings, and
spans and records are read as they are for `synchromesh trace` and `saga show`. A page takes so much
CPU of all threads. Then it is asked for again, beside a task that does nothing but give up the loop
and notes what CPU of their thread the others had until it got the loop back.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from benchmarks.harness import Measures, Report, Results, at_most, check, in_turn_async, size
from synchromesh.codec import to_datetime
from synchromesh.console import Console, Sessions
from synchromesh.console.site import PAGES
from synchromesh.http import Headers, HttpRequest
from synchromesh.runtime import RealRuntime
from synchromesh.store import Row, StoreReader
from synchromesh.system import load_config
from synchromesh.system.control import catalogue
from synchromesh.system.control.api import Control
from synchromesh.system.control.rates import CALLS, OPERATIONS, ROUTES
from synchromesh.system.control.saga_actions import ShowSaga, show
from synchromesh.system.control.spans import Spans, find_spans, first_of
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    BreakerStatus,
    ChildStatus,
    GatewayStatus,
    HealthStatus,
    HoldStatus,
    ProjectionStatus,
    ServiceStatus,
)
from synchromesh.system.host.console_part import ControlSource
from synchromesh.system.host.process import spare_collector
from synchromesh.telemetry import Family, SpanRecord, SqliteRing
from synchromesh.telemetry.metrics import WORK, Sample

SERVICES = 50
CALLEES = 20
OPERATIONS_EACH = 10
SPANS = size(100_000, 5_000)
LONG = size(20_000, 2_000)
SAGA_RECORDS = size(20_000, 2_000)
ROUNDS = size(15, 2)
BYTES_MAX, TOOK_MS_MAX, TURN_MS_MAX = 200_000, 100.0, 20.0
NAMES = [f"team{number % 10}_part{number}" for number in range(SERVICES)]
TRACE = f"{7:032x}"
TOML = '[system]\nname = "town"\n\n[services.a]\napp = "a:a"\n'


def status() -> Status:
    """Return the status of the whole system, of which one thing in ten is not as it should be."""
    healthy = ChildStatus("running")
    services = {}
    for number, name in enumerate(NAMES):
        callees = [NAMES[(number + step * 7 + 1) % SERVICES] for step in range(CALLEES)]
        breakers = {
            callee: BreakerStatus(
                f"{name}:{callee}", "open" if at == number % 200 else "closed", 3, 90, 1, 0, 0, 1,
                None, 0.0, 9.0,
            )
            for at, callee in enumerate(callees)
        }  # fmt: skip
        projections = [
            ProjectionStatus(f"list{at}", 1, 1, "live", 90, 10, 0, is_waiting=False)
            for at in range(3)
        ]
        services[name] = ServiceStatus(
            pid=number,
            health=HealthStatus(name, True, False, {f"loop{at}": healthy for at in range(8)}),
            sagas={"running": 3, "completed": 900, "stuck": number % 10 == 0},
            behind={f"relay/{callee}": 5 for callee in callees[:5]},
            parked=number % 3,
            projections=projections,
            breakers=breakers,
            holds=HoldStatus(),
            admin="http://127.0.0.1:9000",
        )
    gateway = GatewayStatus(99, "http://127.0.0.1:8000")
    findings = [f"{name}: sagas that are stuck: 1" for name in NAMES[::10]]
    return Status("town", 1, gateway=gateway, services=services, findings=findings)


def counted(times: int) -> list[Family]:
    """Return what was counted of all operations, edges and routes: so often in each bucket."""
    operations, calls = (WORK[kind] for kind in ("handle", "call"))
    routes = next(each for each in catalogue.EVERY if each.name == ROUTES)
    check((operations.name, calls.name), (OPERATIONS, CALLS), "the catalogue")
    found = [Family(metric, []) for metric in (operations, calls, routes)]

    def add(family: Family, **labels: str) -> None:
        counts = (times,) * (len(family.metric.bounds) + 1)
        named = (labels.get(each.replace(".", "_"), "") for each in family.metric.labels)
        family.samples.append(Sample(tuple(named), 1.0, counts))

    for number, name in enumerate(NAMES):
        for outcome in ("ok", "failed"):
            for at in range(OPERATIONS_EACH):
                add(found[0], service_name=name, operation=f"{name}.ask{at}", outcome=outcome)
            for step in range(CALLEES):
                callee = NAMES[(number + step * 7 + 1) % SERVICES]
                add(found[1], service_name=name, callee=callee, outcome=outcome)
        method, answered = "GET", "200"
        add(
            found[2], http_request_method=method, http_response_status_code=answered,
            http_route=f"/{name}/{{id}}",
        )  # fmt: skip
    return found


class Reader:
    """Reads the one run that there is, as a database has it."""

    service = NAMES[0]

    def __init__(self) -> None:
        principal = b'{"name":"","scopes":[]}'
        self._run: Row = (
            "long", "order", 1, None, "", b'{"sku":"SX90"}', "stuck", "no room", "", TRACE,
            "0" * 16, "", principal, 0, None, 0, None, 0,
        )  # fmt: skip
        steps = SAGA_RECORDS // 2
        self._records: list[Row] = [
            row
            for step in range(steps)
            for row in (
                (2 * step + 1, "begun", f"stock.take#{step + 1}", 1, "", b"", step),
                (2 * step + 2, "done", f"stock.take#{step + 1}", 1, "", b'{"id":"A-1"}', step),
            )
        ]

    async def read(self, sql: str, *_: object) -> list[Row]:
        """Return the run, or its records."""
        return list(self._records) if "sm_saga_record" in sql else [self._run]


class Town:
    """Answers as the control API of a large system does."""

    def __init__(self, ring: SqliteRing) -> None:
        self._ring = ring
        self._status = status()
        self._reader = cast("StoreReader", Reader())
        self._readings = [counted(times) for times in range(1, 14)]

    async def metrics(self) -> list[Family]:
        """Return what was counted, never what it was before."""
        self._readings.append(self._readings.pop(0))
        return self._readings[0]

    async def spans(self, trace_id: str, first: int = 0) -> list[SpanRecord]:
        """Return what is kept of a trace."""
        return (await self._ring.trace(trace_id))[: first or None]

    async def answer(self, request: HttpRequest) -> object:
        """Answer a request."""
        path = request.path
        if path == "/status":
            return self._status
        if path == "/traces":
            return Spans((await self._ring.asked(500))[::-1])
        if path.startswith("/traces/"):
            name = path.removeprefix("/traces/")
            return await find_spans([self], name, first_of(request.query))
        wanted = msgspec.json.decode(request.body)
        return {"answers": {NAMES[0]: await self._act(path.removeprefix("/actions/"), wanted)}}

    async def _act(self, name: str, wanted: Mapping[str, Any]) -> object:
        at = to_datetime(1)
        if name == "saga.show":
            return await show(self._reader, msgspec.convert(wanted, ShowSaga))
        if name == "saga.list":
            run = {
                "service": NAMES[0], "id": "long", "name": "order", "status": "stuck", "owner": "",
                "reason": "no room", "started_at": at, "ended_at": None,
            }  # fmt: skip
            return [run] * wanted["limit"]
        if name == "messages.list":
            letter = {
                "ref": f"{NAMES[0]}:1", "state": "parked", "event": "shop.sold", "attempts": 5,
                "subscriber": NAMES[1], "first_at": at, "error": "KeyError",
            }  # fmt: skip
            return [letter] * wanted["limit"]
        raise AssertionError(name)


async def fill(ring: SqliteRing) -> None:
    """Add traces of five spans each, and one that is long."""
    kinds = ("gateway", "call", "handle", "call", "handle")
    for number in range((SPANS - LONG) // len(kinds)):
        if number % 1000 == 0:
            await ring.flush()
        trace = f"{number + 100:032x}"
        for at, kind in enumerate(kinds):
            name = NAMES[(number + at) % SERVICES]
            parent = f"{at:016x}" if at else ""
            ring.add((
                trace, f"{at + 1:016x}", parent, name, kind, f"{name}.ask", float(number), 0.01,
                "ok", None, 1,
            ))  # fmt: skip
    for at in range(LONG):
        if at % 5000 == 0:
            await ring.flush()
        parent = f"{(at + 1) // 2:016x}" if at else ""
        noted = {"attempt": "1", "error": "it did not answer"}
        ring.add((
            TRACE, f"{at + 1:016x}", parent, NAMES[at % SERVICES], "handle" if at else "gateway",
            "shop.ask", 1e6 + at / 1e6, 0.01, "ok" if at % 9 else "timed_out", noted, 1,
        ))  # fmt: skip
    await ring.flush()
    check(ring.dropped, 0, "the ring")


async def longest_turn_s(running: asyncio.Task[Any]) -> float:
    """Return what a turn took at most, of the CPU of this thread, until a task has ended."""
    longest_s, clock = 0.0, time.thread_time
    while not running.done():
        began_s = clock()
        await asyncio.sleep(0)
        longest_s = max(longest_s, clock() - began_s)
    return longest_s


async def measure(console: Console, request: HttpRequest) -> Measures:
    """Ask for a page twice, and return how large it is, what it takes and its longest turn."""
    began_s = time.process_time()
    answer = await console.handle(request)
    took_s = time.process_time() - began_s
    check(answer.status, 200, f"{request.target}: {answer.body[-500:]!r}")
    turn_s = await longest_turn_s(asyncio.ensure_future(console.handle(request)))
    return {"bytes": len(answer.body), "took_ms": took_s * 1e3, "turn_ms": turn_s * 1e3}


async def main() -> None:
    """Measure, print and write `results/telemetry_console.json`."""
    report, runtime = Report("telemetry_console"), RealRuntime()
    with tempfile.TemporaryDirectory(prefix="synchromesh-bench-") as made:
        folder = Path(made)
        (folder / "synchromesh.toml").write_text(TOML)
        ring = SqliteRing(str(folder / "spans.db"), runtime)
        await fill(ring)
        town = cast("Control", Town(ring))
        sessions = Sessions(b"k" * 32)
        source = ControlSource(town, load_config(folder), folder, None)
        await source.work()
        console = Console(
            source, runtime.network, system="town", who="bench", sessions=sessions,
            new_token=lambda: "token", wall_us=runtime.wall_us,
        )  # fmt: skip
        await console.start(0)
        spare_collector()  # as a system does that has started
        sessions.admit("token")
        cookie = sessions.enter("token", "session", now_s=runtime.wall_us() / 1e6)
        host = f"127.0.0.1:{console.port}"
        fields = [("host", host), ("cookie", f"synchromesh_console_{console.port}={cookie}")]

        def page(target: str) -> HttpRequest:
            path, _, query = target.partition("?")
            return HttpRequest("GET", target, path, query, Headers(fields), b"")

        targets = [f"/{'' if name == 'now' else name}" for name in PAGES if name != "advice"]
        targets += ["/map?group=team0", f"/map?focus={NAMES[0]}", f"/services/{NAMES[0]}"]
        targets += [f"/traces/{TRACE}", f"/traces/{100:032x}", f"/sagas/{NAMES[0]}:long"]
        results = await in_turn_async(
            {
                target: lambda target=target: measure(console, page(target))  # type: ignore[misc]
                for target in targets
            },
            rounds=ROUNDS,
        )
        await console.close()
        await ring.close()
    tell(report, results)


def tell(report: Report, results: Results) -> None:
    """Add what the pages took, and the worst of all."""
    for target in results.contestants():
        shown = target.replace(TRACE, "LONG").replace(f"{100:032x}", "SHORT")
        report.alone(f"{shown}, size", "kB", results.median(target, "bytes") / 1e3)
        report.alone(f"{shown}, CPU", "ms", results.median(target, "took_ms"))
        report.alone(f"{shown}, longest turn", "ms", results.median(target, "turn_ms"))
    for measure_, unit, bound, what in (
        ("bytes", "kB", BYTES_MAX / 1e3, "largest page"),
        ("took_ms", "ms", TOOK_MS_MAX, "CPU of the slowest page"),
        ("turn_ms", "ms", TURN_MS_MAX, "longest turn of the loop"),
    ):
        worst = max(results.median(target, measure_) for target in results.contestants())
        worst = worst / 1e3 if measure_ == "bytes" else worst
        report.alone(what, unit, worst, at_most(bound))
    report.finish()


if __name__ == "__main__":
    asyncio.run(main())
