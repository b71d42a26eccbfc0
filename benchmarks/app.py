"""The small system that is measured: a shelf, a probe that calls it, and a gateway before both.

The probe measures from within, as the handler of an operation: so what it measures has a trace, a
deadline and a credential, as any call of a running system has.
"""

from __future__ import annotations

import asyncio
import cProfile
import io
import pstats
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from benchmarks.harness import check, percentile
from synchromesh import (
    Context,
    Contract,
    Gateway,
    Migration,
    Route,
    Service,
    Transaction,
    command,
    query,
)

# The gateway and the probe are how the benchmark gets in; what is measured is `probe:shelf`, and
# that edge has all defaults.
CONFIG = """
[system]
name = "bench"

[services.shelf]
app = "benchmarks.app:shelf"

[services.probe]
app = "benchmarks.app:probe"

[gateway]
app = "benchmarks.app:gateway"

[policies."gateway:probe"]
timeout = "60s"
retry = { attempts = 1 }
"""


class Item(Struct, frozen=True):
    """What is asked for."""

    sku: str
    qty: int


class Free(Struct, frozen=True):
    """How many pieces there are."""

    sku: str
    free: int
    held: int


class Shelf(Contract, Protocol, service="shelf", version="1.0"):
    """What is called: the least that a handler can do, so that the call itself is measured."""

    @query("POST /look")
    async def look(self, item: Item) -> Free: ...

    @query("POST /look_later")
    async def look_later(self, item: Item) -> Free: ...

    @command("POST /reserve")
    async def reserve(self, item: Item) -> Free: ...


class Measured(Struct, frozen=True):
    """What calls took: each of them (median, p99), and all of the process's CPU for one.

    `threads_us` of that is of other threads than the loop's: spans and rows are written there.
    """

    p50_us: float
    p99_us: float
    cpu_us: float
    threads_us: float


class Probe(Contract, Protocol, service="probe", version="1.0"):
    """Calls the shelf and says how long it took."""

    @query("POST /calls")
    async def calls(self, operation: str, count: int) -> Measured: ...

    @query("POST /profile")
    async def profile(self, operation: str, seconds: float) -> str: ...

    @command("POST /writes")
    async def writes(self, count: int, in_flight: int) -> Measured: ...


shelf = Service(
    "shelf",
    implements=Shelf,
    migrations=[
        Migration(
            1,
            ("create table hold(id text primary key, sku text not null, n bigint not null)",),
            readable_by_min=1,
        )
    ],
)
probe = Service("probe", implements=Probe)

gateway = Gateway(
    routes=[
        Route("POST /calls", Probe.calls, public=True, deadline="60s"),
        Route("POST /profile", Probe.profile, public=True, deadline="60s"),
        Route("POST /writes", Probe.writes, public=True, deadline="60s"),
    ]
)

OPERATIONS = {"look": Shelf.look, "look_later": Shelf.look_later}
# So many functions are shown of a profile.
PROFILED = 25
ITEM = Item("SX90", 21)
ANSWER = Free("SX90", 42, 1)
# Until the spans of what was measured are written: their CPU belongs to it.
SETTLE_S = 0.2


def answer(item: Item) -> Free:
    """Work out what all operations of the shelf answer."""
    return Free(item.sku, item.qty * 2, 1)


@shelf.handles(Shelf.look)
async def look(_: Context, item: Item) -> Free:
    """Answer without waiting."""
    return answer(item)


@shelf.handles(Shelf.look_later)
async def look_later(_: Context, item: Item) -> Free:
    """Answer after one turn of the loop."""
    await asyncio.sleep(0)
    return answer(item)


@shelf.writes(Shelf.reserve)
async def reserve(tx: Transaction, item: Item) -> Free:
    """Write one row and answer."""
    await tx.execute("insert into hold values (?, ?, ?)", tx.new_id(), item.sku, item.qty)
    return answer(item)


async def measure(
    call: Callable[[], Awaitable[object]], count: int, *, in_flight: int = 1
) -> Measured:
    """Make calls, in as many lines as are to be in flight, and check every answer."""
    took: list[float] = []

    async def line() -> None:
        for _ in range(count // in_flight):
            began_s = time.perf_counter()
            got = await call()
            took.append((time.perf_counter() - began_s) * 1e6)
            if got != ANSWER:
                check(got, ANSWER, "the shelf")

    began_s = _cpu_s()
    await asyncio.gather(*(line() for _ in range(in_flight)))
    await asyncio.sleep(SETTLE_S)
    ended_s = _cpu_s()
    # What the process does while nobody calls is not the calls'.
    await asyncio.sleep(SETTLE_S)
    cpu_us, loop_us = (
        (2 * ended - began - idle) * 1e6 / len(took)
        for began, ended, idle in zip(began_s, ended_s, _cpu_s(), strict=True)
    )
    return Measured(percentile(took, 50), percentile(took, 99), cpu_us, cpu_us - loop_us)


def _cpu_s() -> tuple[float, float]:
    """Return the CPU of the process so far, and that of the loop's thread."""
    return time.process_time(), time.thread_time()


@probe.handles(Probe.calls)
async def calls(ctx: Context, operation: str, count: int) -> Measured:
    """Call `operation` of the shelf so many times, one after the other."""
    described = OPERATIONS[operation]
    # The arguments are encoded for each call: that is part of it.
    return await measure(lambda: ctx.call(described(ITEM)), count)


@probe.handles(Probe.profile)
async def profile(ctx: Context, operation: str, seconds: float) -> str:
    """Profile this process's loop: while it calls the shelf, or "" while others load it."""
    loop = asyncio.get_running_loop()
    profiler, until_s = cProfile.Profile(), loop.time() + seconds
    profiler.enable()
    try:
        while loop.time() < until_s:
            if operation:
                await ctx.call(OPERATIONS[operation](ITEM))
            else:
                await asyncio.sleep(0.1)
    finally:
        profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(PROFILED)
    return text.getvalue()


@probe.handles(Probe.writes)
async def writes(ctx: Context, count: int, in_flight: int) -> Measured:
    """Have the shelf write so many rows."""
    return await measure(lambda: ctx.call(Shelf.reserve(ITEM)), count, in_flight=in_flight)
