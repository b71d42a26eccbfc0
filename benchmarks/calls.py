"""A warm call: in one process, and over HTTP between two.

    make bench-calls

In one process: `synchromesh dev`, all defaults, spans kept in their file; the figure is the median
of single calls, and beside it stands all CPU of the process for a call, the thread that writes the
spans included, less what the process takes while nobody calls. Over HTTP: `synchromesh dev
--split`, so that caller and callee are a process each, against an aiohttp client and an aiohttp
server, a process each too.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack

import aiohttp
import msgspec

from benchmarks import app, journeys
from benchmarks.harness import (
    Measures,
    Report,
    at_most,
    check,
    cpu_s,
    in_turn_async,
    own_cpu_s,
    size,
)
from benchmarks.processes import Server, System, free_port, running

CALLS = size(2000, 300)
HOPS = size(800, 100)
WRITES = size(200, 50)
ROUNDS = size(9, 1)
IN_FLIGHT = 64


async def main() -> None:
    """Measure, print and write `results/calls.json`."""
    report = Report("calls", packages=["aiohttp", "msgspec"])
    with ExitStack() as enter:
        one = enter.enter_context(running(app.CONFIG, settings=["system.loop=asyncio"]))
        split = enter.enter_context(
            running(app.CONFIG, split=True, settings=["system.loop=asyncio"])
        )
        await _in_process(report, one)
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.peers.aiohttp_server", str(port)]
        server = enter.enter_context(Server("aiohttp", command, port=port)).wait()
        await _hop(report, split, server)
    report.finish()
    print("where the time goes: python -m benchmarks.profiles")


async def _in_process(report: Report, system: System) -> None:
    async def ours(operation: str) -> Measures:
        measured = await asyncio.to_thread(
            system.ask, "/calls", {"operation": operation, "count": CALLS}
        )
        return dict(measured)

    async def writes(count: int, in_flight: int) -> Measures:
        measured = await asyncio.to_thread(
            system.ask, "/writes", {"count": count, "in_flight": in_flight}
        )
        return dict(measured)

    async def floor() -> Measures:
        return msgspec.to_builtins(await app.measure(_copied, CALLS))  # type: ignore[no-any-return]

    results = await in_turn_async(
        {
            "call": lambda: ours("look"),
            "later": lambda: ours("look_later"),
            "write": lambda: writes(WRITES, 1),
            "writes": lambda: writes(WRITES * 8, IN_FLIGHT),
            "await + copy": floor,
        },
        rounds=ROUNDS,
    )
    passed = journeys.measure(["call"])["call"]
    report.alone("warm in-process call, p50", "µs", results.median("call", "p50_us"), at_most(10))
    report.against(
        "  against a bare await and a copy of both values",
        "µs",
        results,
        "p50_us",
        ours="call",
        peer="await + copy",
    )
    report.alone("  all CPU a call, spans written", "µs", results.median("call", "cpu_us"))
    report.alone("  of it the spans' thread", "µs", results.median("call", "threads_us"))
    report.alone("  Python calls, both sides", "calls", passed.calls, at_most(40))
    report.alone("  files passed", "files", len(passed.files), at_most(12))
    report.alone(
        "in-process call, callee suspends once, p50",
        "µs",
        results.median("later", "p50_us"),
        at_most(25),
    )
    report.alone("call of a writes handler, p50", "µs", results.median("write", "p50_us"))
    report.alone(
        f"  all CPU a call at {IN_FLIGHT} in flight", "µs", results.median("writes", "cpu_us")
    )


async def _copied() -> app.Free:
    """Await a function with copies of its argument and its answer: what honest calls cost."""
    item = msgspec.json.decode(msgspec.json.encode(app.ITEM), type=app.Item)
    found = app.answer(item)
    return msgspec.json.decode(msgspec.json.encode(found), type=app.Free)


async def _hop(report: Report, system: System, server: Server) -> None:
    pids = system.pids()
    async with aiohttp.ClientSession() as session:

        async def post() -> app.Free:
            async with session.post(f"{server.url}/look", json=sent) as response:
                return app.Free(**await response.json())

        async def ours() -> Measures:
            cpu = sum(cpu_s(pids[name]) for name in ("probe", "shelf"))
            measured = await asyncio.to_thread(
                system.ask, "/calls", {"operation": "look", "count": HOPS}
            )
            cpu = sum(cpu_s(pids[name]) for name in ("probe", "shelf")) - cpu
            return {"p50_us": measured["p50_us"], "cpu_us": cpu * 1e6 / HOPS}

        async def theirs() -> Measures:
            cpu = cpu_s(server.pid) + own_cpu_s()
            measured = await app.measure(post, HOPS)
            cpu = cpu_s(server.pid) + own_cpu_s() - cpu
            return {"p50_us": measured.p50_us, "cpu_us": cpu * 1e6 / HOPS}

        sent = json.loads(msgspec.json.encode(app.ITEM))
        check(await post(), app.ANSWER, "aiohttp")
        results = await in_turn_async({"ours": ours, "aiohttp": theirs}, rounds=ROUNDS)
    report.against("HTTP hop, p50", "µs", results, "p50_us", peer="aiohttp", goal=at_most(0.5))
    report.against("  CPU of both sides", "µs", results, "cpu_us", peer="aiohttp")


if __name__ == "__main__":
    asyncio.run(main())
