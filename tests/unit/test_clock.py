"""The clock of real loops is the system's, and that of the product's uvloop has exact timers."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from synchromesh.clock import loop_clock, loop_now
from synchromesh.runtime import RealRuntime
from synchromesh.system import loop_factory
from synchromesh.telemetry import MemoryRing, Tracer
from synchromesh.testing import SimLoop

FACTORIES = {
    "asyncio": asyncio.new_event_loop,
    "ours of uvloop": loop_factory("uvloop"),
    "uvloop": uvloop.new_event_loop,
}
LOOKS = 200


@pytest.fixture(params=FACTORIES)
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=FACTORIES[request.param])


def test_real_loops_tell_parts_of_a_millisecond(runner: asyncio.Runner) -> None:
    """The clock of a loop is as fine as the system's, also on uvloop, which cuts its own."""

    async def main() -> None:
        clock = loop_clock(asyncio.get_running_loop())
        for now in (clock, loop_now):
            told = [now() for _ in range(LOOKS)]
            assert told == sorted(told)
            assert any(abs(each * 1000 - round(each * 1000)) > 0.01 for each in told)

    with runner:
        runner.run(main())


def test_spans_are_as_fine_as_the_clock(runner: asyncio.Runner) -> None:
    """A span of less than a millisecond is not 0 ms long, whatever loop measures it."""

    async def main() -> None:
        ring = MemoryRing()
        tracer = Tracer("billing", RealRuntime(), ring)
        for _ in range(LOOKS):
            tracer.start("call", "bank.charge", trace_id="a" * 32).end()
        assert all(span.took_us >= 0 for span in ring)
        assert any(span.took_us % 1000 for span in ring)

    with runner:
        runner.run(main())


@pytest.mark.parametrize("kind", ["asyncio", "ours of uvloop"])
def test_a_timer_is_never_early(kind: str) -> None:
    """Who is woken at a time finds that it has come, by delay as by time; uvloop rounds."""

    async def main() -> None:
        loop, early = asyncio.get_running_loop(), []
        for number in range(100):
            came = loop.create_future()
            after_s = number / 50_000
            due_s = loop.time() + after_s
            if number % 2:
                loop.call_at(due_s, came.set_result, None)
            else:
                loop.call_later(after_s, came.set_result, None)
            await came
            early.append(max(0.0, due_s - loop.time()))
        # What asyncio's own loops take for no time.
        assert max(early) < 1e-8

    with asyncio.Runner(loop_factory=FACTORIES[kind]) as runner:
        runner.run(main())


def test_times_without_end_are_taken() -> None:
    """A timer for never is no error, one for a time that is past comes at once."""

    async def main() -> None:
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        never = [loop.call_later(float("inf"), came.set), loop.call_at(1e300, came.set)]
        await asyncio.sleep(0.001)
        assert not came.is_set()
        for each in never:
            each.cancel()
        loop.call_at(0.0, came.set)
        await came.wait()
        came.clear()
        loop.call_later(-1.0, came.set)
        await came.wait()

    with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
        runner.run(main())


def test_a_simulated_loop_has_its_own_time() -> None:
    """Virtual time is never the system's."""
    loop = SimLoop(seed=1)
    assert loop_clock(loop) == loop.time
    loop.run_until_complete(asyncio.sleep(3600.0))
    assert loop_clock(loop)() == 3600.0
    loop.close()
