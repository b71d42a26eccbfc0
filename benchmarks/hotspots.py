"""Where the time goes in a guarded function, a unit, a saga, and the log of events.

`benchmarks.profiles` prints it. Everything runs in this process, and every thread that is started
is profiled with the loop's, by the functions' own CPU time: waiting is none.
"""

from __future__ import annotations

import asyncio
import cProfile
import io
import pstats
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import events, product, resilience, saga_runs, units
from benchmarks.harness import size

LINES = 25

Work = Callable[[Path], Coroutine[None, None, None]]


@contextmanager
def _every_thread() -> Iterator[list[cProfile.Profile]]:
    """Profile this thread, and each that is started meanwhile, until the block ends."""
    here = cProfile.Profile(time.thread_time)
    profiles, run = [here], threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        profile = cProfile.Profile(time.thread_time)
        profiles.append(profile)
        profile.runcall(run, thread)

    threading.Thread.run = profiled  # type: ignore[method-assign, assignment]
    here.enable()
    try:
        yield profiles
    finally:
        here.disable()
        threading.Thread.run = run  # type: ignore[method-assign]


async def _breaker(_: Path) -> None:
    await _called(resilience.breakers()["ours"](resilience.answers))


async def _timeout(_: Path) -> None:
    await _called(resilience.timeouts()["ours"](resilience.answers))


async def _composed(_: Path) -> None:
    await _called(resilience.composed()["ours"](resilience.answers))


async def _called(fn: resilience.Fn) -> None:
    for turn in range(size(50_000, 500)):
        await fn(turn)


async def _unit(folder: Path) -> None:
    async with units.Ours.opened(folder / "ours.db") as ours:
        side = units.Contestant("ours", folder / "ours.db", ours.reserve)
        for _ in range(size(4, 1)):
            await side.many()


async def _saga(folder: Path) -> None:
    async with saga_runs.ours_stubbed(folder) as once:
        await saga_runs.load(once, "profile", size(1_000, 50), saga_runs.IN_FLIGHT)


async def _commands(folder: Path) -> None:
    async with saga_runs.ours_real(folder) as once:
        await saga_runs.load(once, "profile", size(500, 50), saga_runs.IN_FLIGHT)


async def _append(folder: Path) -> None:
    async with product.open_store(folder / "ours.db") as store:
        await events.Ours(store).append(64, size(50, 2))


async def _load(folder: Path) -> None:
    async with product.open_store(folder / "ours.db") as store:
        ours = events.Ours(store)
        (stream,) = await ours.fill(1, events.STREAM_EVENTS)
        for _ in range(size(1_000, 10)):
            await ours.state(stream)


async def _catch_up(folder: Path) -> None:
    async with product.open_store(folder / "ours.db") as store:
        ours = events.Ours(store)
        await ours.fill(size(40, 1), 500)
        for _ in range(size(5, 1)):
            await ours.catch_up()


PROFILES: dict[str, Work] = {
    "breaker": _breaker,
    "timeout": _timeout,
    "composed": _composed,
    "unit": _unit,
    "saga": _saga,
    "commands": _commands,
    "append": _append,
    "load": _load,
    "catch-up": _catch_up,
}


def profile(name: str) -> str:
    """Do a profile's work and return the functions that took its time."""
    with tempfile.TemporaryDirectory() as folder, _every_thread() as profiles:
        asyncio.run(PROFILES[name](Path(folder)))
    said = io.StringIO()
    stats = pstats.Stats(stream=said)
    for each in profiles:
        stats.add(each)
    stats.strip_dirs().sort_stats("tottime").print_stats(LINES)
    return said.getvalue()
