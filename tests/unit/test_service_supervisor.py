"""Restarts and the supervisor: how often, after which pauses, when a child is given up."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from synchromesh.errors import ConfigError, StoreBroken, StoreUnavailable
from synchromesh.service import Child, RestartsExhausted, Supervisor
from synchromesh.service.restarts import TRIAL_S, RestartDecision, RestartOptions, Restarts
from synchromesh.service.supervisor import CANCEL_AGAIN_S
from synchromesh.testing import SimRuntime, run


class Edge:
    """Chance that always draws the same number."""

    def __init__(self, drawn: float) -> None:
        self._drawn = drawn

    def random(self) -> float:
        """Return it."""
        return self._drawn


def test_pauses_double_up_to_a_bound() -> None:
    """The more failures within the window, the longer the pause; past them it is given up."""
    options = RestartOptions(restarts_max=6, window_s=60.0, pause_base_s=0.5, pause_cap_s=5.0)
    restarts = Restarts(options, Edge(1.0))
    decided = [restarts.failed(now=float(n)) for n in range(7)]
    assert [each.pause_s for each in decided] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 10.0]
    assert [each.is_given_up for each in decided] == [False] * 6 + [True]
    assert repr(restarts) == "<Restarts 7/6, given up 1 times>"


def test_failures_older_than_the_window_are_forgiven() -> None:
    """Seldom failures give nothing up, and pauses are short again."""
    restarts = Restarts(RestartOptions(restarts_max=1, window_s=10.0), Edge(1.0))
    assert [restarts.failed(now=n * 10.0) for n in range(50)] == [RestartDecision(0.1)] * 50
    assert restarts.failed(now=499.9).is_given_up


def test_no_restart_at_all_can_be_asked_for() -> None:
    """With `restarts_max=0` the first failure gives it up; so does one that is hopeless."""
    assert Restarts(RestartOptions(restarts_max=0), Edge(1.0)).failed(now=0.0).is_given_up
    assert Restarts(RestartOptions(), Edge(1.0)).failed(now=0.0, is_hopeless=True).is_given_up


def test_what_was_given_up_is_tried_again_after_growing_pauses_up_to_a_bound() -> None:
    """10 s, doubled with each try, 5 minutes at most; one failure each, no burst of restarts."""
    restarts = Restarts(RestartOptions(restarts_max=0), Edge(1.0))
    now, pauses = 0.0, []
    for _ in range(8):
        decided = restarts.failed(now=now)
        assert decided.is_given_up
        pauses.append(decided.pause_s)
        now += decided.pause_s + 59.0
    assert pauses == [10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]


def test_a_run_longer_than_the_window_begins_anew() -> None:
    """What ran well for long has its restarts back; the pause before the run is no part of it."""
    restarts = Restarts(RestartOptions(restarts_max=1), Edge(0.0))
    assert [restarts.failed(now=t).pause_s for t in (0.0, 1.0, 9.0)] == [0.1, 7.5, 15.0]
    # It paused until 24.0 and ran for 59 s, then for 61 s after a pause of 30 s.
    assert restarts.failed(now=83.0) == RestartDecision(30.0, is_given_up=True)
    assert restarts.failed(now=174.1) == RestartDecision(0.1)


@pytest.mark.parametrize(("drawn", "pause_s"), [(0.0, 7.5), (0.5, 8.75), (1.0, 10.0)])
def test_pauses_of_what_was_given_up_are_jittered_within_bounds(
    drawn: float, pause_s: float
) -> None:
    """Between three quarters and the whole of the pause."""
    restarts = Restarts(RestartOptions(restarts_max=0), Edge(drawn))
    assert restarts.failed(now=0.0).pause_s == pause_s


@pytest.mark.parametrize("wrong", [{"restarts_max": -1}, {"window_s": 0.0}])
def test_options_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    """The message names the values."""
    with pytest.raises(ConfigError, match="RestartOptions: "):
        RestartOptions(**wrong)


class GivenUp(list[tuple[str, float, str]]):
    """Notes what was given up, and when."""

    def __call__(self, child: str, error: BaseException) -> None:
        self.append((child, asyncio.get_running_loop().time(), str(error)))


def supervisor_of(told: GivenUp, **options: Any) -> Supervisor:
    """Return a supervisor whose pauses are the longest that chance allows."""
    return Supervisor("stock", rng=Edge(1.0), gave_up=told, options=RestartOptions(**options))


def test_a_child_is_restarted_and_in_the_end_given_up() -> None:
    """It is shown as failed, and why; the others go on."""

    async def main(_: SimRuntime) -> None:
        told = GivenUp()
        started: list[float] = []

        async def failing() -> None:
            started.append(asyncio.get_running_loop().time())
            raise StoreBroken("the disk is gone")

        supervisor = supervisor_of(told, restarts_max=3, pause_base_s=1.0, pause_cap_s=3.0)
        supervisor.start(Child("relay", failing))
        supervisor.start(Child("sweep", lambda: asyncio.sleep(1000.0)))
        await asyncio.sleep(0.5)
        assert supervisor.states["relay"].state == "restarting"
        health = [supervisor.is_healthy]
        await asyncio.sleep(15.0)
        assert started == [0.0, 1.0, 3.0, 6.0]
        assert told == [("relay", 6.0, "the disk is gone")]
        state = supervisor.states["relay"]
        assert (state.state, state.restarts, state.next_s) == ("failed", 3, 16.0)
        assert state.last_error == "store_broken: the disk is gone"
        assert supervisor.states["sweep"].state == "running"
        assert [*health, supervisor.is_healthy] == [True, False]
        assert repr(supervisor) == "<Supervisor stock: relay failed, sweep running>"
        await supervisor.close()

    run(main)


def test_what_was_given_up_comes_back_by_itself() -> None:
    """It is on trial for a while, and then as any other; it may fail again as often as that."""

    async def main(_: SimRuntime) -> None:
        told, is_mended = GivenUp(), asyncio.Event()
        started: list[float] = []

        async def failing() -> None:
            started.append(asyncio.get_running_loop().time())
            if not is_mended.is_set():
                raise ValueError
            await asyncio.sleep(1000.0)

        supervisor = supervisor_of(told, restarts_max=0)
        supervisor.start(Child("relay", failing))
        state = supervisor.states["relay"]
        await asyncio.sleep(35.0)
        assert started == [0.0, 10.0, 30.0]
        is_mended.set()
        await asyncio.sleep(35.0 + TRIAL_S - 0.1)
        assert started[-1] == 70.0
        assert (state.state, state.restarts, state.next_s) == ("restarting", 3, 0.0)
        await asyncio.sleep(0.2)
        assert (state.state, supervisor.is_healthy) == ("running", True)
        assert len(told) == 3
        await supervisor.close()

    run(main)


@pytest.mark.parametrize("after_s", [0.05, 5.0, 100.0], ids=["pauses", "given up", "runs"])
def test_a_child_is_restarted_by_hand_whatever_its_state(after_s: float) -> None:
    """At once, with all its restarts before it; what is to happen in between does."""

    async def main(_: SimRuntime) -> None:
        told = GivenUp()
        steps: list[str] = []
        fails = iter([*[True] * 2, False, *[True] * 3, False])

        async def child() -> None:
            steps.append("started")
            if next(fails):
                raise ValueError
            try:
                await asyncio.sleep(1000.0)
            finally:
                steps.append("ended")

        async def between() -> None:
            steps.append("between")

        supervisor = supervisor_of(told, restarts_max=1)
        supervisor.start(Child("relay", child))
        await asyncio.sleep(after_s)
        before = list(steps)
        await supervisor.restart("relay", between)
        await asyncio.sleep(0.001)
        expected = {0.05: ["started"], 5.0: ["started"] * 2, 100.0: [*["started"] * 3]}[after_s]
        assert before == expected
        ended = ["ended"] if after_s == 100.0 else []
        assert steps == [*before, *ended, "between", "started"]
        with pytest.raises(KeyError):
            await supervisor.restart("projection")
        await supervisor.close()

    run(main)


def test_a_child_whose_restart_by_hand_fails_half_way_is_kept_all_the_same() -> None:
    """What is to happen in between raises to whoever asked; the child is started."""

    async def main(_: SimRuntime) -> None:
        supervisor, started = supervisor_of(GivenUp()), []

        async def child() -> None:
            started.append("started")
            await asyncio.sleep(1000.0)

        async def between() -> None:
            raise ConfigError("the port is taken")

        supervisor.start(Child("provider", child))
        await asyncio.sleep(1.0)
        with pytest.raises(ConfigError, match="the port is taken"):
            await supervisor.restart("provider", between)
        await asyncio.sleep(1.0)
        assert len(started) == 2
        await supervisor.stop("provider")
        await supervisor.stop("provider")
        assert supervisor.states == {}
        await supervisor.close()

    run(main)


def test_what_a_database_that_fails_ends_is_no_failure() -> None:
    """However often: it waits until the database is back, and is never given up for it."""

    async def main(_: SimRuntime) -> None:
        told, is_open, started = GivenUp(), asyncio.Event(), []

        async def opened() -> None:
            await is_open.wait()

        async def child() -> None:
            started.append(asyncio.get_running_loop().time())
            if not is_open.is_set():
                raise StoreUnavailable("the disk fails")
            await asyncio.sleep(1000.0)

        supervisor = Supervisor(
            "stock",
            rng=Edge(1.0),
            gave_up=told,
            options=RestartOptions(restarts_max=0),
            gate=opened,
        )
        supervisor.start(Child("relay", child))
        await asyncio.sleep(60.0)
        assert supervisor.states["relay"].state == "restarting"
        is_open.set()
        await asyncio.sleep(1.0)
        assert (started, told) == ([0.0, 60.0], [])
        assert supervisor.states["relay"].state == "running"
        await supervisor.close()

    run(main)


async def returns() -> None:
    """End, as a loop never should."""


async def is_cancelled_within() -> None:
    """Await something that is cancelled, and be cancelled with it."""
    something = asyncio.get_running_loop().create_future()
    something.cancel()
    await something


@pytest.mark.parametrize("ends", [returns, is_cancelled_within])
def test_no_loop_ends_silently(ends: Any) -> None:
    """One that returns, or ends by a cancellation that was not the supervisor's, has failed."""

    async def main(_: SimRuntime) -> None:
        told = GivenUp()
        supervisor = supervisor_of(told, restarts_max=1)
        supervisor.start(Child("loop", ends))
        await asyncio.sleep(5.0)
        assert [child for child, _, _ in told] == ["loop"]
        assert supervisor.states["loop"].last_error == "RuntimeError"
        await supervisor.close()

    run(main)


def test_a_child_that_gave_up_is_not_restarted_at_once() -> None:
    """What has used up restarts of its own is given up, however many are left here."""

    async def main(runtime: SimRuntime) -> None:
        async def gives_up() -> None:
            raise RestartsExhausted("its own child failed too often")

        told = GivenUp()
        supervisor = supervisor_of(told)
        supervisor.start(Child("projection", gives_up))
        await asyncio.sleep(0.01)
        assert told == [("projection", 0.0, "its own child failed too often")]
        state = supervisor.states["projection"]
        assert (state.state, supervisor.is_healthy) == ("failed", False)
        assert state.last_error == "its own child failed too often"
        await supervisor.close()

    run(main)


def test_a_child_that_recovers_is_running_again() -> None:
    """Its restarts are counted, and nobody is told; a user's text is not shown (T3)."""

    async def main(_: SimRuntime) -> None:
        told = GivenUp()
        lives = iter([ValueError("secret"), ValueError("secret"), None])

        async def recovering() -> None:
            error = next(lives)
            if error is not None:
                raise error
            await asyncio.sleep(1000.0)

        supervisor = supervisor_of(told)
        supervisor.start(Child("loop", recovering))
        await asyncio.sleep(10.0)
        state = supervisor.states["loop"]
        assert (state.state, state.restarts, state.last_error) == ("running", 2, "ValueError")
        assert told == []
        await supervisor.close()

    run(main)


def test_closing_ends_every_child_and_waits_for_its_clean_up() -> None:
    """Also those that pause before a restart; it may be repeated (D4)."""

    async def main(_: SimRuntime) -> None:
        ended: list[str] = []

        async def cleaning() -> None:
            try:
                await asyncio.sleep(1000.0)
            finally:
                await asyncio.sleep(1.0)
                ended.append("cleaning")

        async def failing() -> None:
            raise ValueError

        supervisor = Supervisor("stock", rng=Random(1), gave_up=GivenUp())
        assert repr(supervisor) == "<Supervisor stock: no children>"
        supervisor.start(Child("a", cleaning))
        supervisor.start(Child("b", failing))
        await asyncio.sleep(0.05)
        await supervisor.close()
        await supervisor.close()
        assert ended == ["cleaning"]

    run(main)


@pytest.mark.parametrize("swallowed", [1, 3])
def test_a_child_that_swallows_its_cancellation_ends_all_the_same(swallowed: int) -> None:
    """It is cancelled again: a process that was told to end would never do so."""
    cancelled = 0

    async def deaf() -> None:
        nonlocal cancelled
        while True:
            try:
                await asyncio.sleep(0.4)
            except asyncio.CancelledError:
                cancelled += 1
                if cancelled > swallowed:
                    raise

    async def main(runtime: SimRuntime) -> float:
        loop = asyncio.get_running_loop()
        supervisor = Supervisor("orders", rng=runtime.rng, gave_up=lambda *_: None)
        supervisor.start(Child("deaf", deaf))
        await asyncio.sleep(1.0)
        before = loop.time()
        await supervisor.close()
        return loop.time() - before

    assert run(main) == swallowed * CANCEL_AGAIN_S
    assert cancelled == swallowed + 1


@pytest.mark.parametrize("ending", ["raises", "returns"])
def test_a_child_that_ends_otherwise_when_it_is_cancelled_is_not_started_again(ending: str) -> None:
    """An error that a library makes of a cancellation is no failure of the child's."""
    runs = 0

    async def ended() -> None:
        nonlocal runs
        runs += 1
        try:
            await asyncio.sleep(3600.0)
        except asyncio.CancelledError:
            if ending == "raises":
                raise OSError("the connection was closed") from None

    async def main(runtime: SimRuntime) -> None:
        supervisor = Supervisor("orders", rng=runtime.rng, gave_up=lambda *_: None)
        supervisor.start(Child("ended", ended))
        await asyncio.sleep(1.0)
        await supervisor.close()
        await asyncio.sleep(60.0)

    run(main)
    assert runs == 1
