"""`deadline` around guarded functions and blocks, and `deadline_s` of one; virtual time."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

import pytest

from synchromesh import Policy, deadline
from synchromesh.errors import (
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    DeadlineExceeded,
    Shed,
    SynchromeshError,
    TimedOut,
)
from synchromesh.resilience import BreakerOptions, LimitOptions, RetryOptions, blocking
from synchromesh.testing import run

OPENS = BreakerOptions(minimum_calls=2, open_for_s=5.0, open_for_max_s=5.0)
UNTIMED = Policy(timeout_s=None, retry=None, breaker=OPENS)
TIMED = Policy(timeout_s=2.0, retry=None, breaker=OPENS)
AGAIN = RetryOptions(attempts_max=5, base_s=0.4, cap_s=0.4)


class Fixed:
    def random(self) -> float:
        return 1.0


class Sleeper:
    """An async function that sleeps so long, and counts its runs."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds = seconds
        self.error = error
        self.runs = 0

    async def __call__(self) -> str:
        self.runs += 1
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return "answered"


def now() -> float:
    return asyncio.get_running_loop().time()


async def end_of(call: Awaitable[object], began_s: float) -> tuple[str, float]:
    """Return what a call came to, and when."""
    try:
        outcome = str(await call)
    except (SynchromeshError, ConnectionError) as error:
        outcome = type(error).__name__
    return outcome, round(now() - began_s, 3)


def play(main: Callable[[], Any]) -> Any:
    return run(lambda _: main())


def test_a_deadline_outside_any_loop_is_of_the_threads_clock() -> None:
    """A deadline outside any loop is of the thread's clock."""
    with deadline(1000.0) as held:
        assert 0.0 < held.remaining_s() <= 1000.0
    with deadline(-1.0) as held:
        assert held.remaining_s() == 0.0


# -- async functions -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [UNTIMED, TIMED], ids=["untimed", "timed"])
def test_a_call_is_cut_at_the_deadline_around_it(policy: Policy) -> None:
    """It ends in time, and so do those behind it: they are not sent at all."""
    fn = Sleeper(60.0)
    guarded = policy.wrap(fn, rng=Fixed())

    async def main() -> list[tuple[str, float]]:
        began_s = now()
        with deadline(0.5):
            return [await end_of(guarded(), began_s) for _ in range(2)]

    assert play(main) == [("TimedOut", 0.5), ("DeadlineExceeded", 0.5)]
    assert fn.runs == 1


@pytest.mark.parametrize("policy", [UNTIMED, TIMED], ids=["untimed", "timed"])
def test_what_answers_in_time_is_as_without(policy: Policy) -> None:
    """What answers in time is as without."""
    guarded = policy.wrap(Sleeper(0.4), rng=Fixed())

    async def main() -> list[tuple[str, float]]:
        began_s = now()
        with deadline(0.5):
            inside = await end_of(guarded(), began_s)
        return [inside, await end_of(guarded(), began_s)]

    assert play(main) == [("answered", 0.4), ("answered", 0.8)]


def test_the_earlier_of_timeout_and_deadline_cuts() -> None:
    """The earlier of timeout and deadline cuts."""
    guarded = TIMED.wrap(Sleeper(60.0), rng=Fixed())

    async def main() -> tuple[str, float]:
        with deadline(10.0):
            return await end_of(guarded(), now())

    assert play(main) == ("TimedOut", 2.0)


@pytest.mark.parametrize(("outer_s", "inner_s"), [(0.3, 9.0), (9.0, 0.3), (0.3, math.inf)])
def test_nested_the_earlier_one_counts_and_the_outer_one_returns(
    outer_s: float, inner_s: float
) -> None:
    """Nested the earlier one counts and the outer one returns."""
    guarded = UNTIMED.wrap(Sleeper(60.0), rng=Fixed())

    async def main() -> tuple[str, float]:
        began_s = now()
        with deadline(outer_s) as outer:
            with deadline(inner_s) as inner:
                ended = await end_of(guarded(), began_s)
                assert inner.remaining_s() == 0.0
            assert outer.remaining_s() == pytest.approx(max(0.0, outer_s - 0.3))
        return ended

    assert play(main) == ("TimedOut", 0.3)


def test_after_the_block_the_deadline_is_gone() -> None:
    """After the block the deadline is gone."""
    guarded = UNTIMED.wrap(Sleeper(1.0), rng=Fixed())

    async def main() -> tuple[str, float]:
        began_s = now()
        with pytest.raises(ZeroDivisionError), deadline(0.1):
            raise ZeroDivisionError
        return await end_of(guarded(), began_s)

    assert play(main) == ("answered", 1.0)


def test_tasks_that_are_made_in_the_block_have_it_too() -> None:
    """Tasks that are made in the block have it too."""
    guarded = UNTIMED.wrap(Sleeper(60.0), rng=Fixed())

    async def main() -> list[tuple[str, float]]:
        began_s = now()
        with deadline(0.5):
            tasks = [asyncio.ensure_future(end_of(guarded(), began_s)) for _ in range(2)]
        outside = asyncio.ensure_future(end_of(guarded(), began_s))
        ended = await asyncio.gather(*tasks)
        outside.cancel()
        return ended

    assert play(main) == [("TimedOut", 0.5)] * 2


def test_retries_end_by_the_deadline_with_what_happened_last() -> None:
    """A wait that would end after it is not begun."""
    fn = Sleeper(0.1, ConnectionResetError("lost"))
    policy = Policy(timeout_s=None, retry=AGAIN, budget=None, breaker=None)
    guarded = policy.wrap(fn, rng=Fixed(), is_idempotent=True)

    async def main() -> list[tuple[str, float]]:
        began_s = now()
        with deadline(1.0):
            first = await end_of(guarded(), began_s)
        return [first, await end_of(guarded(), began_s)]

    assert play(main) == [("ConnectionResetError", 0.6), ("ConnectionResetError", 2.7)]
    assert fn.runs == 2 + 5


def test_who_waits_for_a_place_waits_no_longer_than_that() -> None:
    """Who waits for a place waits no longer than that."""
    limit = LimitOptions(in_flight_max=1, queue_max=10)
    fn = Sleeper(60.0)
    guarded = Policy(timeout_s=None, retry=None, limit=limit).wrap(fn, rng=Fixed())

    async def main() -> tuple[str, float]:
        held = asyncio.ensure_future(guarded())
        await asyncio.sleep(0.01)
        with deadline(0.5):
            ended = await end_of(guarded(), now())
        held.cancel()
        return ended

    assert play(main) == ("Shed", 0.5)
    assert fn.runs == 1


@pytest.mark.parametrize("policy", [UNTIMED, TIMED], ids=["untimed", "timed"])
def test_impatience_says_nothing_of_the_callee(policy: Policy) -> None:
    """Ten calls that were given no time open no breaker; those given all of it do."""
    guarded = policy.wrap(Sleeper(60.0), rng=Fixed())

    async def main() -> list[str]:
        seen = []
        for _ in range(10):
            with deadline(0.01):
                seen.append((await end_of(guarded(), now()))[0])
        for _ in range(3):
            with deadline(2.0):
                seen.append((await end_of(guarded(), now()))[0])
        return seen

    hasty = ["TimedOut"] * 10
    # Without a timeout nobody has said how long is enough, and without an answer nobody knows.
    last = ["TimedOut", "TimedOut", "CircuitOpen" if policy is TIMED else "TimedOut"]
    assert play(main) == hasty + last


@pytest.mark.parametrize(("within_s", "third"), [(0.005, "TimedOut"), (0.5, "CircuitOpen")])
def test_a_callee_that_is_much_later_than_usual_is_to_blame(within_s: float, third: str) -> None:
    """B5: what is usual is learned from answers, within deadlines and without."""
    touchy = BreakerOptions(minimum_calls=2, failure_rate=0.01)
    fn = Sleeper(0.01)
    guarded = Policy(timeout_s=None, retry=None, breaker=touchy).wrap(fn, rng=Fixed())

    async def main() -> list[str]:
        for _ in range(50):
            await guarded()
            with deadline(1.0):
                await guarded()
        fn.seconds = 60.0
        seen = []
        for _ in range(3):
            with deadline(within_s):
                seen.append((await end_of(guarded(), now()))[0])
        return seen

    assert play(main) == ["TimedOut", "TimedOut", third]


def test_a_refused_call_takes_neither_slot_nor_permit_nor_budget() -> None:
    """A refused call takes neither slot nor permit nor budget."""
    policy = Policy(timeout_s=None, retry=None, limit=LimitOptions(in_flight_max=1), breaker=OPENS)
    guarded = policy.wrap(Sleeper(0.1), rng=Fixed())

    async def main() -> list[str]:
        seen: list[str] = []
        with deadline(0.0):
            while len(seen) < 5:
                seen.append((await end_of(guarded(), now()))[0])
        return [*seen, (await end_of(guarded(), now()))[0]]

    assert play(main) == ["DeadlineExceeded"] * 5 + ["answered"]


def test_a_cancellation_from_outside_wins_over_the_deadline() -> None:
    """A cancellation from outside wins over the deadline."""
    guarded = UNTIMED.wrap(Sleeper(60.0), rng=Fixed())

    async def main() -> bool:
        async def body() -> None:
            with deadline(0.5):
                await guarded()

        task = asyncio.ensure_future(body())
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert play(main) is True


# -- deadline_s of a function --------------------------------------------------------------------


def test_a_function_has_a_deadline_of_its_own_for_all_its_attempts() -> None:
    """A function has a deadline of its own for all its attempts."""
    fn = Sleeper(0.4)
    policy = Policy(timeout_s=0.3, retry=AGAIN, budget=None, breaker=None)
    guarded = policy.wrap(fn, rng=Fixed(), is_idempotent=True, deadline_s=1.0)

    async def main() -> list[tuple[str, float]]:
        first = await end_of(guarded(), now())
        with deadline(0.2):
            return [first, await end_of(guarded(), now())]

    # 0.3, a wait of 0.4, and 0.3: what is left
    assert play(main) == [("TimedOut", 1.0), ("TimedOut", 0.2)]
    assert fn.runs == 3


def test_it_holds_without_a_timeout_too() -> None:
    """It holds without a timeout too."""
    guarded = UNTIMED.wrap(Sleeper(60.0), rng=Fixed(), deadline_s=0.5)

    async def main() -> tuple[str, float]:
        return await end_of(guarded(), now())

    assert play(main) == ("TimedOut", 0.5)


def test_no_keyword_of_the_function_is_taken() -> None:
    """No keyword of the function is taken."""

    @TIMED.wrap(deadline_s=1.0)
    async def fetch(deadline: float, *, timeout_s: float, key: str) -> tuple[float, float, str]:
        return deadline, timeout_s, key

    async def main() -> object:
        return await fetch(deadline=3.0, timeout_s=4.0, key="own")

    assert play(main) == (3.0, 4.0, "own")


# -- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [UNTIMED, TIMED], ids=["untimed", "timed"])
def test_a_block_ends_by_the_deadline_around_it(policy: Policy) -> None:
    """A block ends by the deadline around it."""
    guard = policy.guard("x", rng=Fixed())

    async def block(seconds: float) -> str:
        async with guard():
            await asyncio.sleep(seconds)
            return "answered"

    async def main() -> list[tuple[str, float]]:
        began_s = now()
        seen = []
        for seconds, within_s in ((0.1, 0.4), (9.0, 0.4), (0.0, 0.0)):
            with deadline(within_s):
                seen.append(await end_of(block(seconds), began_s))
        for _ in range(10):
            with deadline(0.01):
                seen.append(await end_of(block(9.0), now()))
        return [*seen, await end_of(block(0.0), now())]

    assert play(main) == [
        ("answered", 0.1),
        ("TimedOut", 0.5),
        ("DeadlineExceeded", 0.5),
        *[("TimedOut", 0.01)] * 10,
        ("answered", 0.0),
    ]


# -- sync functions ------------------------------------------------------------------------------


class Clock:
    """Threads whose time passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def lock(self) -> threading.Lock:
        return threading.Lock()


def test_a_sync_function_keeps_its_deadline_between_attempts() -> None:
    """It is not cut, its answer counts; and no attempt begins too late."""
    clock, runs = Clock(), []

    def fails() -> None:
        runs.append(clock.now)
        clock.now += 0.1
        raise ConnectionResetError("lost")

    guarded = blocking.guard(
        Policy(timeout_s=None, retry=AGAIN, budget=None, breaker=None),
        fails,
        name="x",
        rng=Fixed(),
        may_repeat=True,
        deadline_s=1.2,
        threads=clock,
    )
    with pytest.raises(ConnectionResetError):
        guarded()
    assert runs == pytest.approx([100.0, 100.5, 101.0])


def test_a_sync_function_is_not_run_after_the_deadline() -> None:
    """A sync function is not run after the deadline."""
    runs: list[int] = []

    @UNTIMED.wrap
    def guarded() -> None:
        runs.append(1)

    with deadline(0.0), pytest.raises(DeadlineExceeded, match="nothing was sent"):
        guarded()
    with deadline(1000.0):
        guarded()
    assert runs == [1]


def test_a_thread_that_takes_the_context_along_has_the_deadline() -> None:
    """Also where the deadline is on the clock of a loop: `asyncio.to_thread` copies the context."""
    seen: list[str] = []

    def call() -> None:
        try:
            UNTIMED.wrap(lambda: seen.append("run"), name="x")()
        except DeadlineExceeded:
            seen.append("refused")

    async def main() -> None:
        with deadline(0.0):
            thread = threading.Thread(target=copy_context().run, args=(call,))
            thread.start()
            thread.join(10.0)

    asyncio.run(main())
    play(main)
    assert seen == ["refused", "refused"]


def test_a_deadline_is_handed_on_to_another_loop() -> None:
    """Clocks of loops differ: what is left is what counts."""
    guarded = UNTIMED.wrap(Sleeper(60.0), rng=Fixed())

    async def call() -> tuple[str, float]:
        return await end_of(guarded(), now())

    with deadline(0.0):
        name, took_s = asyncio.run(call())
    # By a real clock: long before what it would have slept.
    assert name == "DeadlineExceeded"
    assert took_s < 30.0

    async def main() -> float:
        with deadline(0.5) as held:
            await asyncio.sleep(0.1)
            return held.due_s(lambda: 7_000.0)

    assert play(main) == pytest.approx(7_000.4)


# -- mistakes, and what is left behind -----------------------------------------------------------


@pytest.mark.parametrize("wrong", [math.nan, True, "2s", None])
def test_what_is_no_number_is_refused(wrong: Any) -> None:
    """What is no number is refused."""
    with pytest.raises(ConfigError, match="number of seconds"):
        deadline(wrong)


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, True, "2s"])
def test_a_function_needs_time(wrong: Any) -> None:
    """A function needs time."""
    with pytest.raises(ConfigError, match="deadline_s is"):
        TIMED.wrap(deadline_s=wrong)


def test_a_deadline_is_entered_once() -> None:
    """A deadline is entered once."""
    held = deadline(1.0)
    with held, pytest.raises(RuntimeError, match="entered once"):
        held.__enter__()


@pytest.mark.parametrize("policy", [UNTIMED, TIMED], ids=["untimed", "timed"])
def test_calls_that_are_cut_leave_no_reference_cycle(policy: Policy) -> None:
    """Calls that are cut leave no reference cycle."""
    guarded = policy.wrap(Sleeper(60.0), rng=Fixed())

    async def fail(times: int) -> None:
        for _ in range(times):
            try:
                with deadline(0.01):
                    await guarded()
            except (TimedOut, CircuitOpen, Shed, ConnectFailed):
                continue

    async def main() -> int:
        await fail(5)
        gc.collect()
        gc.disable()
        try:
            await fail(20)
            return gc.collect()
        finally:
            gc.enable()

    assert play(main) == 0
