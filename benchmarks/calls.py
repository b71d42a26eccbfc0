"""What a warm call passes: Python calls, files and microseconds, in-process and over HTTP.

    python -m benchmarks.calls

Caller and callee run in one process, so that both sides are counted. Calls are Python functions
that were entered (also resumed coroutines); files are modules of synchromesh among them.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import Counter
from types import FrameType
from typing import Protocol

from synchromesh import Contract, query
from synchromesh.calls import (
    Caller,
    Dispatcher,
    HttpEdge,
    HttpTransport,
    Incoming,
    InProcessTransport,
    Policies,
    Transport,
)
from synchromesh.codec import encode
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import MemoryRing, Tracer

WARM_UP = 200
CALLS = 3000


class Stock(Contract, Protocol, service="stock", version="1.0"):
    """One query, the smallest there is."""

    @query("GET /stock/{sku}")
    async def count(self, sku: str) -> int: ...


class Static:
    """Knows one endpoint."""

    def __init__(self, url: str) -> None:
        self._resolved = Resolved((Endpoint("stock-1", "stock", url),))

    async def resolve(self, service: str) -> Resolved:
        """Return the endpoint."""
        assert service == "stock"
        return self._resolved


async def count(incoming: Incoming) -> bytes:
    """Answer a number."""
    return encode(len(incoming.operation.parse(incoming.arguments)["sku"]))


async def main() -> None:
    """Print a line for each transport."""
    runtime, signer, ring = RealRuntime(), Signer(b"0" * 32), MemoryRing()
    tracer = Tracer("bench", runtime, ring)
    dispatcher = Dispatcher(
        "stock", {"count": count}, signer=signer, tracer=tracer, runtime=runtime
    )
    inproc = InProcessTransport()
    inproc.add("stock-1", dispatcher)
    edge = HttpEdge(runtime=runtime)
    edge.mount(dispatcher, [Stock.count])
    server = HttpServer(edge, network=runtime.network)
    await server.start()
    pool = HttpPool(network=runtime.network)
    transports: dict[str, Transport] = {
        "inproc": inproc,
        "http": HttpTransport(pool, runtime=runtime),
    }
    for url in ("inproc://stock-1", server.url):
        caller = Caller(
            "bench",
            resolver=Static(url),
            transports=transports,
            signer=signer,
            tracer=tracer,
            runtime=runtime,
            policies=Policies(),
        )
        await _measure(url.partition(":")[0], caller)
    await pool.close()
    await server.close()


async def _measure(label: str, caller: Caller) -> None:
    async def call() -> None:
        answer = await caller.call(Stock.count("SX90"), context=caller.root(timeout_s=5.0))
        assert answer == 4

    for _ in range(WARM_UP):
        await call()
    took = []
    for _ in range(CALLS):
        began_s = time.perf_counter()
        await call()
        took.append((time.perf_counter() - began_s) * 1e6)
    entered: Counter[str] = Counter()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered[frame.f_code.co_filename] += 1

    sys.setprofile(watch)
    await call()
    sys.setprofile(None)
    ours = {name: n for name, n in entered.items() if "/synchromesh/" in name}
    print(
        f"{label:<7} p50 {statistics.median(took):7.1f} us   {sum(entered.values()):4} Python calls"
        f" ({sum(ours.values())} of ours)   {len(ours)} files"
    )


if __name__ == "__main__":
    asyncio.run(main())
