"""`Policy.wrap` around async functions: every layer, in virtual time and on asyncio's own loop."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from types import FrameType
from typing import Any

import pytest

from synchromesh import Policy
from synchromesh.errors import (
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    RateLimited,
    RemoteFailed,
    Shed,
    TimedOut,
)
from synchromesh.resilience import (
    Attempts,
    BreakerOptions,
    BudgetOptions,
    LatencyTracker,
    Limiter,
    LimitOptions,
    RetryOptions,
)
from synchromesh.testing import SimLoop, SimRuntime, run
from synchromesh.timers import Timers

COLOUR: ContextVar[str] = ContextVar("COLOUR", default="none")
BARE = Policy(timeout_s=None, retry=None, budget=None, breaker=None)
OPENS = BreakerOptions(minimum_calls=2, open_for_s=0.5, open_for_max_s=0.5, probe_lease_s=5.0)
BREAKER = Policy(timeout_s=None, retry=None, budget=None, breaker=OPENS)
TIMED = Policy(timeout_s=0.3, retry=None, budget=None, breaker=OPENS)
WHOLE = Policy(timeout_s=0.3, limit=LimitOptions(in_flight_max=100))
AGAIN = RetryOptions(attempts_max=3, base_s=0.0, cap_s=0.0)

Main = Callable[[], Coroutine[Any, Any, Any]]


def simulated(main: Main) -> Any:
    return run(lambda _: main())


def real(main: Main) -> Any:
    return asyncio.run(main())


# What does not wait runs on both: asyncio's loop is told from others without asking for it.
on_both_loops = pytest.mark.parametrize("play", [simulated, real])


class Fixed:
    def __init__(self, number: float = 0.5) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


class Script:
    """A function that does what its script says, line by line: raise, wait, or answer."""

    def __init__(self, *lines: object) -> None:
        self.lines = lines
        self.runs = 0

    async def __call__(self) -> object:
        line = self.lines[min(self.runs, len(self.lines) - 1)]
        self.runs += 1
        if isinstance(line, type):
            raise line("again")
        if isinstance(line, BaseException):
            raise line
        if isinstance(line, float):
            await asyncio.sleep(line)
        return line


def wrap(policy: Policy, fn: Script, *, again: bool = False) -> Callable[[], Awaitable[object]]:
    return policy.wrap(fn, rng=Fixed(), name="orders -> billing", is_idempotent=again)


async def error_of(call: Awaitable[object]) -> BaseException:
    try:
        await call
    except BaseException as error:
        return error
    raise AssertionError("the call was expected to fail")


def now() -> float:
    return asyncio.get_running_loop().time()


# -- retry ---------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize("attempts_max", [1, 2, 3, 5, 10, 20])
@pytest.mark.parametrize("error", [ConnectionError, ConnectFailed])
def test_a_function_has_the_attempts_that_its_policy_says(
    play: Callable[[Main], Any], attempts_max: int, error: type[Exception]
) -> None:
    """A plain function takes nothing of what a call tree may spend: 3 attempts are 3 runs."""
    retry = RetryOptions(attempts_max=attempts_max, base_s=0.0, cap_s=0.0)
    fn = Script(error)
    guarded = wrap(Policy(retry=retry, budget=None, breaker=None), fn, again=True)

    async def main() -> BaseException:
        return await error_of(guarded())

    assert isinstance(play(main), error)
    assert fn.runs == attempts_max


def test_a_plain_callee_is_given_none_of_the_trees_attempts() -> None:
    """D2: what cannot spend attempts takes none away from what can."""
    attempts = Attempts(
        retry=AGAIN,
        budget=None,
        left=None,
        timeout_s=None,
        deadline_s=None,
        is_retryable_unknown=True,
        rng=Fixed(),
    )
    for number in (1, 2):
        attempt = attempts.begin(0.0)
        assert (attempt.number, attempt.attempts_left) == (number, 0)
        assert attempts.failed(attempt, OSError(), 0.0) == 0.0
    assert attempts.failed(attempts.begin(0.0), OSError(), 0.0) is None
    # What the function's own calls spent is in another account, and stays as it is.
    error = RemoteFailed("x", attempts_used=2)
    assert attempts.final(error) is error
    assert error.attempts_used == 2


def test_the_waits_between_attempts_are_the_backoff() -> None:
    """Full jitter, doubling, up to the cap."""
    retry = RetryOptions(attempts_max=4, base_s=1.0, cap_s=3.0)
    fn = Script(OSError)
    guarded = Policy(retry=retry, breaker=None).wrap(fn, rng=Fixed(), is_idempotent=True)

    async def main() -> float:
        await error_of(guarded())
        return now()

    assert simulated(main) == pytest.approx((1.0 + 2.0 + 3.0) / 2)


@on_both_loops
def test_what_may_have_had_an_effect_is_run_again_only_if_idempotent(
    play: Callable[[Main], Any],
) -> None:
    """D3: an error of the function's own says nothing about what it did before."""
    for again, runs in ((False, 1), (True, 3)):
        fn = Script(OSError)
        guarded = wrap(Policy(retry=AGAIN), fn, again=again)

        async def main(guarded: Callable[[], Awaitable[object]] = guarded) -> BaseException:
            return await error_of(guarded())

        assert isinstance(play(main), OSError)
        assert fn.runs == runs


def test_a_budget_holds_the_retries_of_all_calls() -> None:
    """A failing callee is not called more often than its budget allows."""
    budget = BudgetOptions(ratio=0.0, floor_per_s=0.0, tokens_max=2.0)
    fn = Script(OSError)
    guarded = wrap(Policy(retry=AGAIN, budget=budget, breaker=None), fn, again=True)

    async def main() -> None:
        for _ in range(5):
            await error_of(guarded())

    simulated(main)
    assert fn.runs == 5 + 2


def test_successes_pay_for_retries() -> None:
    """Ten calls at a ratio of 0.1 are one retry, and the retry itself pays nothing in."""
    budget = BudgetOptions(ratio=0.125, floor_per_s=0.0, tokens_max=1.0)
    fn = Script(OSError, OSError, *["fine"] * 7, OSError)
    guarded = wrap(Policy(retry=AGAIN, budget=budget, breaker=None), fn, again=True)

    async def main() -> None:
        await error_of(guarded())
        assert fn.runs == 2
        for _ in range(7):
            await guarded()
        await error_of(guarded())

    simulated(main)
    assert fn.runs == 2 + 7 + 2


@on_both_loops
def test_who_asks_for_an_hour_is_not_waited_for(play: Callable[[Main], Any]) -> None:
    """`cap_s` is the longest wait of all: its error is raised at once."""
    fn = Script(RateLimited("slow down", retry_after_s=3600.0), "done")
    guarded = wrap(Policy(), fn)

    async def main() -> tuple[BaseException, float]:
        began_s = now()
        async with asyncio.timeout(30.0):
            return await error_of(guarded()), now() - began_s

    error, took_s = play(main)
    assert isinstance(error, RateLimited)
    assert took_s < 30.0
    assert fn.runs == 1


# -- breaker -------------------------------------------------------------------------------------


@on_both_loops
@pytest.mark.parametrize(
    "policy", [BREAKER, TIMED, Policy(breaker=OPENS)], ids=["alone", "timed", "with retry"]
)
def test_an_open_breaker_rejects_at_once(play: Callable[[Main], Any], policy: Policy) -> None:
    """B2: with all the defaults too, nothing is run, nobody waits, and the error says how long."""
    fn = Script(OSError)
    guarded = wrap(policy, fn)

    async def main() -> tuple[list[BaseException], float]:
        errors = [await error_of(guarded()) for _ in range(2)]
        began_s = now()
        errors += [await error_of(guarded()) for _ in range(20)]
        return errors, now() - began_s

    errors, took_s = play(main)
    assert [type(error).__name__ for error in errors] == ["OSError"] * 2 + ["CircuitOpen"] * 20
    assert len({id(error) for error in errors}) == len(errors)
    assert fn.runs == 2
    assert took_s < 0.4
    refused = errors[-1]
    assert isinstance(refused, CircuitOpen)
    assert "orders -> billing is open" in refused.message
    assert str(refused) == refused.message
    assert refused.retry_after_s is not None
    assert 0.0 < refused.retry_after_s <= 0.5
    assert (refused.attempts_used, refused.is_final, refused.via) == (0, False, "")


@pytest.mark.parametrize("policy", [BREAKER, TIMED], ids=["untimed", "timed"])
def test_half_open_lets_one_probe_through(policy: Policy) -> None:
    """B3: of fifty callers one is the probe, and the others do not wait for it."""
    fn = Script(OSError, OSError, 0.1, "fine")
    guarded = wrap(policy, fn)

    async def main() -> list[object]:
        for _ in range(2):
            await error_of(guarded())
        await asyncio.sleep(0.5)
        seen = await asyncio.gather(*(guarded() for _ in range(50)), return_exceptions=True)
        return [*seen, await guarded()]

    *seen, after = simulated(main)
    assert [each for each in seen if not isinstance(each, CircuitOpen)] == [0.1]
    assert after == "fine"
    assert fn.runs == 4


def test_a_probe_that_hangs_is_replaced() -> None:
    """B3: its lease ends, and the breaker with it is not wedged."""
    fn = Script(OSError, OSError, 60.0, "fine")
    guarded = wrap(BREAKER, fn)

    async def main() -> tuple[BaseException, object]:
        for _ in range(2):
            await error_of(guarded())
        await asyncio.sleep(0.5)
        hung = asyncio.ensure_future(guarded())
        await asyncio.sleep(4.9)
        refused = await error_of(guarded())
        await asyncio.sleep(0.2)
        answer = await guarded()
        hung.cancel()
        await asyncio.wait([hung])
        return refused, answer

    refused, answer = simulated(main)
    assert isinstance(refused, CircuitOpen)
    assert answer == "fine"


@pytest.mark.parametrize("policy", [BREAKER, TIMED], ids=["untimed", "timed"])
def test_a_probe_that_is_cancelled_is_replaced_at_once(policy: Policy) -> None:
    """B3, B4: it says nothing, and its slot is free: the next call is the probe."""
    fn = Script(OSError, OSError, 0.25, "fine")
    guarded = wrap(policy, fn)

    async def main() -> object:
        for _ in range(2):
            await error_of(guarded())
        await asyncio.sleep(0.5)
        probe = asyncio.ensure_future(guarded())
        await asyncio.sleep(0.1)
        probe.cancel()
        await asyncio.wait([probe])
        return await guarded()

    assert simulated(main) == "fine"


@pytest.mark.parametrize("policy", [BREAKER, TIMED], ids=["untimed", "timed"])
def test_an_answer_of_an_earlier_epoch_decides_nothing(policy: Policy) -> None:
    """B4: what was admitted before the trip does not close the breaker, nor count after it."""
    fn = Script(0.2, 0.2, OSError, OSError, OSError)
    guarded = wrap(policy, fn)

    async def main() -> tuple[list[object], BaseException]:
        early = [asyncio.ensure_future(guarded()) for _ in range(2)]
        await asyncio.sleep(0.1)
        for _ in range(3):
            await error_of(guarded())
        answers = list(await asyncio.gather(*early))
        return answers, await error_of(guarded())

    answers, after = simulated(main)
    assert answers == [0.2, 0.2]
    assert isinstance(after, CircuitOpen)


def test_slow_answers_open_it() -> None:
    """Where slow calls count, each is timed, with a timeout and without."""
    options = BreakerOptions(minimum_calls=4, slow_after_s=0.2)
    for policy in (
        Policy(timeout_s=None, retry=None, breaker=options),
        Policy(timeout_s=1.0, retry=None, breaker=options),
    ):
        guarded = wrap(policy, Script(*[0.1] * 5, 0.25))

        async def main(guarded: Callable[[], Awaitable[object]] = guarded) -> list[object]:
            seen: list[object] = [await guarded() for _ in range(10)]
            return [*seen, await error_of(guarded())]

        *answers, refused = simulated(main)
        assert answers == [0.1] * 5 + [0.25] * 5
        assert isinstance(refused, CircuitOpen)


# -- timeout and cancellation --------------------------------------------------------------------


def test_a_run_that_takes_too_long_is_cut() -> None:
    """The caller is released in time, the function is cancelled, and it counts as a failure."""
    fn = Script(60.0)
    guarded = wrap(TIMED, fn)

    async def main() -> tuple[list[str], float]:
        errors = [await error_of(guarded()) for _ in range(3)]
        assert "did not answer within its timeout" in str(errors[0])
        return [type(error).__name__ for error in errors], now()

    names, at_s = simulated(main)
    assert names == ["TimedOut", "TimedOut", "CircuitOpen"]
    assert at_s == pytest.approx(0.6)


def test_a_run_that_was_cut_is_tried_again_where_it_is_idempotent() -> None:
    """Each attempt has the timeout for itself."""
    fn = Script(60.0, 60.0, "done")
    guarded = wrap(Policy(timeout_s=0.3, retry=AGAIN), fn, again=True)

    async def main() -> tuple[object, float]:
        return await guarded(), now()

    assert simulated(main) == ("done", pytest.approx(0.6))


def test_many_runs_are_each_cut_at_their_own_time() -> None:
    """One timer serves them all, and none is early, late, or cut for another."""
    guarded = wrap(Policy(timeout_s=0.3, retry=None, breaker=None), Script(60.0))

    async def one(number: int) -> float:
        await asyncio.sleep(number * 0.01)
        began_s = now()
        assert isinstance(await error_of(guarded()), TimedOut)
        return now() - began_s

    async def main() -> list[float]:
        return list(await asyncio.gather(*(one(number) for number in range(50))))

    assert simulated(main) == [pytest.approx(0.3)] * 50


@on_both_loops
def test_an_inner_timeout_error_keeps_its_identity(play: Callable[[Main], Any]) -> None:
    """B4: a TimeoutError of the function is not the policy's, also when it answers being cut."""
    own = TimeoutError("of the driver")
    late = TimeoutError("of its clean-up")

    async def raising() -> None:
        raise own

    async def cut() -> None:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            raise late from None

    policy = Policy(timeout_s=0.01, retry=None, breaker=None)

    async def main() -> tuple[BaseException, BaseException, int]:
        first = await error_of(policy.wrap(raising, rng=Fixed())())
        second = await error_of(policy.wrap(cut, rng=Fixed())())
        task = asyncio.current_task()
        assert task is not None
        return first, second, task.cancelling()

    first, second, cancelling = play(main)
    assert first is own
    assert second is late
    assert cancelling == 0


def test_a_function_that_ignores_being_cut_may_answer() -> None:
    """As under `asyncio.timeout`: the answer is given, and nobody stays cancelled."""

    async def stubborn() -> str:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            return "all the same"
        return ""

    guarded = TIMED.wrap(stubborn, rng=Fixed())

    async def main() -> tuple[str, int]:
        answer = await guarded()
        await asyncio.sleep(1.0)
        task = asyncio.current_task()
        assert task is not None
        return answer, task.cancelling()

    assert simulated(main) == ("all the same", 0)


@pytest.mark.parametrize("policy", [BREAKER, TIMED, WHOLE], ids=["untimed", "timed", "whole"])
def test_a_cancelled_call_is_neutral_and_leaves_nothing_behind(policy: Policy) -> None:
    """B4, D4: the function hears it, the breaker does not, and its place is free."""
    heard: list[str] = []

    async def stalling() -> None:
        try:
            await asyncio.sleep(0.2)
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    guarded = policy.wrap(stalling, rng=Fixed())

    async def main() -> list[bool]:
        tasks = [asyncio.ensure_future(guarded()) for _ in range(9)]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # Nine failures would have opened it.
        more = asyncio.ensure_future(guarded())
        await asyncio.sleep(0.1)
        more.cancel()
        await asyncio.wait([more])
        return [task.cancelled() for task in (*tasks, more)]

    assert simulated(main) == [True] * 10
    assert heard == ["cancelled"] * 10


@pytest.mark.parametrize("is_first", [True, False])
def test_a_cancellation_from_outside_wins_over_the_timeout(is_first: bool) -> None:
    """B4: who cancels a task at the moment of its timeout has cancelled it."""
    guarded = wrap(Policy(timeout_s=0.3, retry=AGAIN), Script(60.0), again=True)

    async def main() -> tuple[bool, int]:
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] | None = None

        def cancel() -> None:
            assert task is not None
            task.cancel()

        if is_first:
            loop.call_at(loop.time() + 0.3, cancel)
        task = asyncio.ensure_future(guarded())
        await asyncio.sleep(0.0)
        if not is_first:
            loop.call_at(loop.time() + 0.3, cancel)
        await asyncio.wait([task])
        return task.cancelled(), task.cancelling()

    cancelled, cancelling = simulated(main)
    assert cancelled
    assert cancelling >= 1


def test_a_task_that_was_cancelled_before_still_has_its_timeouts() -> None:
    """Who has caught a cancellation and cleans up is cut in time, and hears of no other one."""
    guarded = wrap(TIMED, Script(60.0))

    async def cleaning() -> tuple[BaseException, int]:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            error = await error_of(guarded())
        task = asyncio.current_task()
        assert task is not None
        return error, task.cancelling()

    async def main() -> tuple[BaseException, int]:
        task = asyncio.ensure_future(cleaning())
        await asyncio.sleep(0.1)
        task.cancel()
        return await task

    error, cancelling = simulated(main)
    assert isinstance(error, TimedOut)
    assert cancelling == 1


@on_both_loops
@pytest.mark.parametrize("policy", [BARE, WHOLE], ids=["bare", "whole"])
def test_the_function_runs_in_the_callers_task_and_context(
    play: Callable[[Main], Any], policy: Policy
) -> None:
    """B4: context variables are kept, in both directions."""

    async def colouring() -> tuple[str, bool]:
        seen = COLOUR.get()
        COLOUR.set("blue")
        await asyncio.sleep(0)
        return seen, asyncio.current_task() is caller[0]

    caller: list[asyncio.Task[Any] | None] = []
    guarded = policy.wrap(colouring, rng=Fixed())

    async def main() -> tuple[str, bool, str]:
        caller.append(asyncio.current_task())
        COLOUR.set("red")
        return *(await guarded()), COLOUR.get()

    assert play(main) == ("red", True, "blue")


def test_a_call_that_is_thrown_away_gives_its_place_back() -> None:
    """A coroutine that is closed when its loop has gone can ask no loop for the time."""
    policy = Policy(timeout_s=None, retry=None, breaker=OPENS, limit=LimitOptions(in_flight_max=1))
    guarded = policy.wrap(Script(1.0, "done"), rng=Fixed())
    loop = asyncio.new_event_loop()
    call: Coroutine[Any, Any, object] = guarded()

    async def first_step() -> None:
        call.send(None)

    async def again() -> object:
        return await guarded()

    try:
        loop.run_until_complete(first_step())
        call.close()
        assert loop.run_until_complete(again()) == "done"
    finally:
        loop.close()


def test_a_timer_that_cannot_be_had_leaks_neither_slot_nor_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a call fails at once it was admitted, its slot and its permit are given back."""
    options = BreakerOptions(minimum_calls=2, open_for_s=0.5, open_jitter=0.0)
    policy = Policy(timeout_s=0.3, retry=None, breaker=options, limit=LimitOptions(in_flight_max=1))

    def broken(self: Timers, *_: object) -> None:
        raise MemoryError

    async def main() -> None:
        guarded = wrap(policy, Script("done"))
        block = policy.guard("block", rng=Fixed())
        for _ in range(3):
            with monkeypatch.context() as patched:
                patched.setattr(Timers, "add", broken)
                await error_of(guarded())
                with pytest.raises(MemoryError):
                    async with block():
                        pass
            await asyncio.sleep(1.0)  # where it has opened, the next call is the probe
        assert await guarded() == "done"
        async with block():
            pass

    simulated(main)


def test_a_timeout_needs_a_task() -> None:
    """Outside of one there is nothing to cancel: said at once, and no place is lost."""
    policy = Policy(timeout_s=1.0, retry=None, limit=LimitOptions(in_flight_max=1))
    guarded = policy.wrap(Script("done"), rng=Fixed())
    loop = asyncio.new_event_loop()
    heard: list[BaseException] = []

    def by_hand() -> None:
        call: Coroutine[Any, Any, object] = guarded()
        try:
            call.send(None)
        except RuntimeError as error:
            heard.append(error)
        loop.stop()

    async def main() -> object:
        return await guarded()

    try:
        loop.call_soon(by_hand)
        loop.run_forever()
        assert "within a task" in str(heard[0])
        assert loop.run_until_complete(main()) == "done"
    finally:
        loop.close()


# -- limiter -------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout_s", [None, 0.3])
def test_no_more_run_at_once_than_the_limit_says(timeout_s: float | None) -> None:
    """The one that is too many is shed and not run; those in the queue run in turn."""
    limit = LimitOptions(in_flight_max=2, queue_max=1)
    policy = Policy(timeout_s=timeout_s, retry=None, breaker=None, limit=limit)
    fn = Script(0.2)
    guarded = wrap(policy, fn)

    async def main() -> tuple[list[object], float]:
        calls = [guarded() for _ in range(4)]
        return list(await asyncio.gather(*calls, return_exceptions=True)), now()

    seen, at_s = simulated(main)
    assert sorted(type(each).__name__ for each in seen) == ["Shed", "float", "float", "float"]
    assert fn.runs == 3
    assert at_s == pytest.approx(0.4)


@pytest.mark.parametrize("timeout_s", [None, 1.0])
@pytest.mark.parametrize("how", ["function", "block"])
def test_the_limiter_learns_of_overload_while_its_slot_is_held(
    timeout_s: float | None, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many were under way when the callee refused one is what the limit is cut by."""
    seen: list[int] = []

    def sample(limiter: Limiter, *_: object, is_shed: bool = False, is_late: bool = False) -> None:
        if is_late or is_shed:
            seen.append(limiter.in_flight)

    monkeypatch.setattr(Limiter, "sample", sample)
    policy = Policy(timeout_s=timeout_s, retry=None, breaker=None)
    guard = policy.guard("x", rng=Fixed())
    guarded = wrap(policy, Script(Shed("full")))

    async def block() -> None:
        async with guard():
            raise Shed("full")

    async def main() -> BaseException:
        return await error_of(guarded() if how == "function" else block())

    assert isinstance(simulated(main), Shed)
    assert seen == [1]


def test_the_limiter_learns_how_long_calls_take_though_few_are_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Quick and slow calls are chosen alike, so that what is usual is the mean of all."""
    took: list[float] = []

    def sample(limiter: Limiter, tracker: LatencyTracker, now: float, took_s: float) -> None:
        took.append(took_s)
        tracker.next_sample_s = now + 0.001

    monkeypatch.setattr(Limiter, "sample", sample)
    guarded = Policy(
        timeout_s=None, retry=None, breaker=None, limit=LimitOptions(in_flight_max=1000)
    ).wrap(asyncio.sleep, rng=Fixed())

    async def main() -> None:
        rng, calls = random.Random(7), []
        for number in range(6_000):
            await asyncio.sleep(rng.expovariate(2_000.0))
            calls.append(asyncio.ensure_future(guarded(0.1 if number % 2 else 0.001)))
        await asyncio.gather(*calls)

    simulated(main)
    share = sum(each < 0.05 for each in took) / len(took)
    assert len(took) > 500
    assert 0.4 < share < 0.6


def test_a_breaker_that_opens_rejects_though_the_limiter_is_full() -> None:
    """B2: those under way hold every place, and who comes now does not queue behind them."""
    policy = Policy(
        timeout_s=None, retry=None, breaker=OPENS, limit=LimitOptions(in_flight_max=3, queue_max=9)
    )
    fn = Script(9.0, 9.0, OSError)
    guarded = wrap(policy, fn)

    async def main() -> tuple[BaseException, float]:
        under_way = [asyncio.ensure_future(guarded()) for _ in range(2)]
        await asyncio.sleep(0.1)
        await error_of(guarded())
        await error_of(guarded())
        third = asyncio.ensure_future(error_of(guarded()))
        await asyncio.sleep(0.01)
        began_s, error = now(), third.result()
        await asyncio.gather(*under_way)
        return error, began_s

    error, at_s = simulated(main)
    assert isinstance(error, CircuitOpen)
    assert at_s == pytest.approx(0.11)


def test_a_call_that_finds_no_place_is_no_probe() -> None:
    """B3: while the limiter is full nobody who was shed holds the breaker half-open."""
    options = BreakerOptions(minimum_calls=2, open_for_s=0.5, probes_max=2)
    limit = LimitOptions(in_flight_max=1)
    policy = Policy(timeout_s=None, retry=None, breaker=options, limit=limit)
    guarded = wrap(policy, Script(OSError, OSError, "fine", 1.0))

    async def main() -> list[BaseException]:
        for _ in range(2):
            await error_of(guarded())
        await asyncio.sleep(0.5)
        assert await guarded() == "fine"
        probe = asyncio.ensure_future(guarded())
        await asyncio.sleep(0.1)
        errors = [await error_of(guarded()) for _ in range(3)]
        await probe
        return errors

    assert [type(error) for error in simulated(main)] == [Shed] * 3


# -- memory --------------------------------------------------------------------------------------

FAILING: dict[str, tuple[Policy, tuple[object, ...]]] = {
    "bare": (BARE, (ConnectionError,)),
    "breaker": (Policy(timeout_s=None, retry=None, breaker=BreakerOptions()), (ConnectionError,)),
    "rejected": (BREAKER, (ConnectionError,)),
    "timed": (Policy(timeout_s=5.0, retry=None, breaker=None), (ConnectionError,)),
    "cut": (Policy(timeout_s=0.001, retry=None, breaker=None), (60.0,)),
    "retried": (Policy(retry=AGAIN, breaker=None), (ConnectionError,)),
    "retried and refused": (Policy(retry=AGAIN, breaker=None), (ConnectionError, ConnectFailed)),
    "whole": (WHOLE, (ConnectionError,)),
}


@on_both_loops
@pytest.mark.parametrize(("policy", "script"), FAILING.values(), ids=FAILING)
def test_a_failed_call_leaves_no_reference_cycle(
    play: Callable[[Main], Any], policy: Policy, script: tuple[object, ...]
) -> None:
    """Under failures memory is freed at once, and no collector has to run."""
    guarded = wrap(policy, Script(*script), again=True)

    async def main() -> int:
        await _fail(guarded, 5)
        gc.collect()
        gc.disable()
        try:
            await _fail(guarded, 20)
            return gc.collect()
        finally:
            gc.enable()

    assert play(main) == 0


def test_a_call_that_is_shed_leaves_no_reference_cycle() -> None:
    """Overload is when memory matters most."""
    policy = Policy(timeout_s=None, retry=None, breaker=OPENS, limit=LimitOptions(in_flight_max=1))
    guarded = wrap(policy, Script(1.0))

    async def main() -> int:
        held = asyncio.ensure_future(guarded())
        await asyncio.sleep(0)
        await _fail(guarded, 5)
        gc.collect()
        gc.disable()
        try:
            await _fail(guarded, 20)
            return gc.collect()
        finally:
            gc.enable()
            held.cancel()
            await asyncio.wait([held])

    assert real(main) == 0


async def _fail(guarded: Callable[[], Awaitable[object]], times: int) -> None:
    for _ in range(times):
        try:
            await guarded()
        except Exception:
            continue


# -- what it costs -------------------------------------------------------------------------------


async def _answer() -> int:
    return 42


def _frames(policy: Policy) -> list[str]:
    """Return the Python functions that one call enters, beside the guarded one itself."""
    guarded = policy.wrap(_answer, rng=Fixed(), name="x")

    async def main() -> list[str]:
        entered: list[str] = []

        def note(frame: FrameType, event: str, _: object) -> None:
            if event == "call":
                entered.append(frame.f_code.co_name)

        for _ in range(3):
            await guarded()
        sys.setprofile(note)
        try:
            await guarded()
        finally:
            sys.setprofile(None)
        return entered

    return real(main)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "policy",
    [
        BARE,
        BREAKER,
        Policy(timeout_s=None, breaker=None),
        Policy(timeout_s=None, breaker=BreakerOptions()),
    ],
    ids=["bare", "breaker", "retry + budget", "retry + budget + breaker"],
)
def test_breaker_retry_and_budget_enter_no_frame_of_their_own(policy: Policy) -> None:
    """A first attempt that succeeds enters the guarded function and the function, no more."""
    assert _frames(policy) == ["guarded", "_answer"]


def test_all_layers_together_enter_few_frames() -> None:
    """The timeout is an entry of the wheel, the limiter two calls."""
    frames = _frames(WHOLE)
    assert frames[0] == "guarded"
    assert frames.count("_answer") == 1
    assert len(frames) <= 9
    assert set(_frames(Policy(limit=None))) == set(frames) - {"take", "release"}


# -- loops ---------------------------------------------------------------------------------------


def test_each_loop_has_an_edge_of_its_own() -> None:
    """Loops have clocks of their own and may run in several threads: nothing is shared."""
    fn = Script(OSError)
    guarded = wrap(BREAKER, fn)

    async def trip() -> list[str]:
        return [type(await error_of(guarded())).__name__ for _ in range(3)]

    first = real(trip)
    assert first == ["OSError", "OSError", "CircuitOpen"]
    assert real(trip) == first
    assert simulated(trip) == first
    seen: list[list[str]] = []
    threads = [threading.Thread(target=lambda: seen.append(real(trip))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
    assert seen == [first] * 3


def test_a_loop_in_another_thread_is_told_from_the_one_that_called_before() -> None:
    """While both run, by turns: what one has tripped is closed for the other."""
    guarded = wrap(BREAKER, Script(OSError))
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    seen: list[list[str]] = [[], []]

    async def by_turns(number: int) -> None:
        for _ in range(3):
            assert turns[number].acquire(timeout=10.0)
            seen[number].append(type(await error_of(guarded())).__name__)
            turns[1 - number].release()

    def play(number: int) -> None:
        real(lambda: by_turns(number))

    threads = [threading.Thread(target=play, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert seen == [["OSError", "OSError", "CircuitOpen"]] * 2


def test_loops_in_turn_keep_what_they_know() -> None:
    """A loop that is left and entered again finds its breaker as it was."""
    guarded = wrap(BREAKER, Script(OSError))

    async def one() -> str:
        return type(await error_of(guarded())).__name__

    loops = [asyncio.new_event_loop() for _ in range(2)]
    try:
        seen = [loop.run_until_complete(one()) for _ in range(3) for loop in loops]
    finally:
        for loop in loops:
            loop.close()
    assert seen == ["OSError"] * 4 + ["CircuitOpen"] * 2


def test_simulated_processes_share_no_breaker_and_no_timer() -> None:
    """In the world each has its own, and one that is killed takes no deadline of another along."""
    guarded = Policy(timeout_s=0.3, retry=None, breaker=OPENS).wrap(
        Script(60.0), rng=Fixed(), name="x"
    )
    loop = SimLoop()
    heard: list[tuple[str, str, float]] = []

    async def calls(name: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        for _ in range(3):
            error = await error_of(guarded())
            heard.append((name, type(error).__name__, round(loop.time(), 3)))

    try:
        first, second = loop.new_process("first"), loop.new_process("second")
        loop.spawn(first, calls("first", 0.0))
        loop.call_later(0.2, loop.kill, first)
        loop.run_until_complete(loop.spawn(second, calls("second", 0.1)))
    finally:
        loop.close()
    assert heard == [
        ("second", "TimedOut", 0.4),
        ("second", "TimedOut", 0.7),
        ("second", "CircuitOpen", 0.7),
    ]


# -- what can be guarded -------------------------------------------------------------------------


def test_it_decorates_functions_and_methods() -> None:
    """With arguments or without; the name, the text and the kind of the function stay."""

    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        @Policy().wrap
        async def fetch(self, *, times: int) -> str:
            """Fetches."""
            return self.name * times

        @staticmethod
        @Policy().wrap(is_idempotent=True)
        async def ping() -> str:
            return "pong"

        @classmethod
        @Policy().wrap
        async def make(cls, name: str) -> str:
            return cls(name).name

    async def main() -> list[str]:
        bound = Policy().wrap(Client("c").fetch)
        return [
            await Client("a").fetch(times=2),
            await Client("b").fetch(times=1),
            await Client.ping(),
            await Client.make("d"),
            await bound(times=3),
        ]

    assert real(main) == ["aa", "b", "pong", "d", "ccc"]
    assert Client.fetch.__doc__ == "Fetches."
    assert asyncio.iscoroutinefunction(Client.fetch)


def test_methods_of_all_instances_have_one_breaker() -> None:
    """It guards what is called, and that is the same for all of them."""

    class Client:
        @BREAKER.wrap
        async def fetch(self) -> None:
            raise OSError

    async def main() -> list[str]:
        return [type(await error_of(Client().fetch())).__name__ for _ in range(3)]

    assert real(main) == ["OSError", "OSError", "CircuitOpen"]


async def _named(_: type) -> str:
    return "x"


async def _items() -> Any:
    yield 1


def _sync_items() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("thing", "reason"),
    [
        (_items, "is a generator"),
        (_sync_items, "is a generator"),
        (staticmethod(_answer), "beneath that decorator"),
        (classmethod(_named), "beneath that decorator"),
        (dict, "is a class"),
        (42, "cannot be called"),
    ],
)
def test_what_cannot_be_guarded_is_refused_with_the_reason(thing: Any, reason: str) -> None:
    """When it is decorated, not when it is called."""
    with pytest.raises(ConfigError, match=reason):
        Policy().wrap(thing)


def test_a_first_call_needs_no_chance_of_its_own() -> None:
    """`rng` may be left out: jitter is then the process' own."""
    fn = Script(ConnectFailed, "done")

    async def main(_: SimRuntime) -> object:
        return await Policy().wrap(fn)()

    assert run(main) == "done"
