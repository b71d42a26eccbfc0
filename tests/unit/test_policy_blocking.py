"""`Policy.wrap` around sync functions: threads share one edge, and time is the test's."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from synchromesh import Policy
from synchromesh.errors import (
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    RateLimited,
    Rejection,
    RemoteFailed,
    Shed,
)
from synchromesh.resilience import (
    AdaptiveLimitOptions,
    BreakerOptions,
    BudgetOptions,
    LimitOptions,
    RetryOptions,
    blocking,
)

OPENS = BreakerOptions(minimum_calls=2, open_for_s=0.5, open_for_max_s=0.5)
BREAKER = Policy(timeout_s=None, retry=None, breaker=OPENS)
AGAIN = RetryOptions(attempts_max=3, base_s=0.0, cap_s=0.0)
RETRY = Policy(timeout_s=None, retry=AGAIN, breaker=None)


class OutOfStock(Rejection, code="out_of_stock_here", status=409):
    """Tells that none is left."""


class Fixed:
    def random(self) -> float:
        return 0.5


class Clock:
    """Threads whose time passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def lock(self) -> AbstractContextManager[object]:
        return threading.Lock()


class Script:
    """A function that does what its script says, line by line: raise or answer."""

    def __init__(self, *lines: object) -> None:
        self.lines = lines
        self.runs = 0

    def __call__(self) -> object:
        line = self.lines[min(self.runs, len(self.lines) - 1)]
        self.runs += 1
        if isinstance(line, type):
            raise line("again")
        if isinstance(line, BaseException):
            raise line
        return line


def guard(
    policy: Policy, fn: Callable[[], object], clock: Clock, *, again: bool = False
) -> Callable[[], object]:
    return blocking.guard(
        policy, fn, name="orders -> billing", rng=Fixed(), may_repeat=again, threads=clock
    )


def error_of(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:
        return error
    raise AssertionError("the call was expected to fail")


@pytest.mark.parametrize("attempts_max", [1, 2, 3, 5, 10, 20])
def test_a_function_is_run_as_often_as_its_policy_says_and_never_more(attempts_max: int) -> None:
    """Attempts in all, the first one too."""
    retry = RetryOptions(attempts_max=attempts_max, base_s=0.0, cap_s=0.0)
    fn = Script(OSError)
    policy = Policy(timeout_s=None, retry=retry, budget=None, breaker=None)
    assert isinstance(error_of(policy.wrap(fn, is_idempotent=True)), OSError)
    assert fn.runs == attempts_max


def test_a_function_that_answers_is_run_once() -> None:
    """Its answer is the caller's, whatever it is."""
    answer = object()
    fn = Script(answer)
    assert Policy(timeout_s=None).wrap(fn, is_idempotent=True)() is answer
    assert fn.runs == 1


def test_it_is_run_again_only_where_that_does_no_harm() -> None:
    """D3: after its own error if it is idempotent, after "not run" always, after "no" never."""
    for error, again, runs in (
        (OSError, False, 1),
        (OSError, True, 3),
        (ConnectFailed, False, 3),
        (OutOfStock, True, 1),
    ):
        fn = Script(error)
        assert isinstance(error_of(guard(RETRY, fn, Clock(), again=again)), error)
        assert fn.runs == runs


def test_it_waits_as_the_backoff_says() -> None:
    """In the thread of its caller: full jitter, doubling, up to the cap."""
    clock, fn = Clock(), Script(OSError, OSError, OSError, "done")
    retry = RetryOptions(attempts_max=4, base_s=1.0, cap_s=3.0)
    policy = Policy(timeout_s=None, retry=retry, breaker=None)
    assert guard(policy, fn, clock, again=True)() == "done"
    assert clock.slept == [0.5, 1.0, 1.5]


def test_who_asks_for_an_hour_is_not_waited_for() -> None:
    """`cap_s` is the longest wait of all."""
    clock, fn = Clock(), Script(RateLimited("slow down", retry_after_s=3600.0))
    policy = Policy(timeout_s=None, retry=RetryOptions(cap_s=2.0))
    assert isinstance(error_of(guard(policy, fn, clock)), RateLimited)
    assert (clock.slept, fn.runs) == ([], 1)


def test_an_unknown_run_is_not_hidden_by_a_retry_that_was_refused() -> None:
    """Who hears "not executed" may try again elsewhere: so it is the earlier error that counts."""
    first = RemoteFailed("first", attempts_used=2)
    fn = Script(first, ConnectFailed)
    assert error_of(guard(RETRY, fn, Clock(), again=True)) is first
    assert first.attempts_used == 2


def test_a_budget_holds_the_retries_of_all_calls() -> None:
    """A failing callee is not called more often than its budget allows."""
    budget = BudgetOptions(ratio=0.0, floor_per_s=0.0, tokens_max=2.0)
    fn = Script(OSError)
    policy = Policy(timeout_s=None, retry=AGAIN, budget=budget, breaker=None)
    guarded = guard(policy, fn, Clock(), again=True)
    for _ in range(5):
        error_of(guarded)
    assert fn.runs == 5 + 2


@pytest.mark.parametrize(
    "policy", [BREAKER, Policy(timeout_s=None, breaker=OPENS)], ids=["alone", "with retry"]
)
def test_the_breaker_opens_rejects_at_once_and_recovers(policy: Policy) -> None:
    """B1, B2: as around an async function."""
    clock, fn = Clock(), Script(OSError, OSError, "fine")
    guarded = guard(policy, fn, clock)
    errors = [error_of(guarded) for _ in range(4)]
    assert [type(error).__name__ for error in errors] == ["OSError"] * 2 + ["CircuitOpen"] * 2
    assert (clock.slept, fn.runs) == ([], 2)
    refused = errors[-1]
    assert isinstance(refused, CircuitOpen)
    assert refused.retry_after_s == pytest.approx(0.45)
    clock.now += 0.5
    assert [guarded(), guarded()] == ["fine", "fine"]


def test_a_retry_that_would_meet_the_open_breaker_is_not_waited_for() -> None:
    """The call ends with the error that opened it."""
    clock, fn = Clock(), Script(OSError)
    retry = RetryOptions(attempts_max=9, base_s=0.01, cap_s=0.01)
    guarded = guard(Policy(timeout_s=None, retry=retry, breaker=OPENS), fn, clock, again=True)
    assert isinstance(error_of(guarded), OSError)
    assert fn.runs == 2
    assert len(clock.slept) == 1


def test_interrupting_it_is_neutral() -> None:
    """B4: who presses Ctrl-C says nothing about the callee, and the place is free."""
    policy = Policy(timeout_s=None, breaker=OPENS, limit=LimitOptions(in_flight_max=1))
    fn = Script(KeyboardInterrupt, KeyboardInterrupt, KeyboardInterrupt, "fine")
    guarded = guard(policy, fn, Clock(), again=True)
    for _ in range(3):
        assert isinstance(error_of(guarded), KeyboardInterrupt)
    assert guarded() == "fine"


def test_a_rejection_is_an_answer() -> None:
    """B5: a business no never opens the breaker."""
    guarded = guard(BREAKER, Script(OutOfStock), Clock())
    assert {type(error_of(guarded)) for _ in range(9)} == {OutOfStock}


def test_threads_share_the_limit_and_the_probe() -> None:
    """However many threads call, no more are inside than may be, and one probes."""
    limit = LimitOptions(in_flight_max=3)
    inside, leave = threading.Semaphore(0), threading.Event()
    seen: list[str] = []

    def hold() -> str:
        inside.release()
        assert leave.wait(10.0)
        return "held"

    policy = Policy(timeout_s=None, retry=None, breaker=None, limit=limit)
    guarded = policy.wrap(hold, name="hold")
    threads = [threading.Thread(target=lambda: seen.append(guarded())) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert inside.acquire(timeout=10.0)
        error = error_of(guarded)
    finally:
        leave.set()
        for thread in threads:
            thread.join(10.0)
    assert isinstance(error, Shed)
    assert "hold already runs 3 at once" in error.message
    assert seen == ["held"] * 3
    assert guarded() == "held"


def test_half_open_one_thread_probes_and_the_others_are_rejected() -> None:
    """B3: a probe that is under way in one thread keeps all others out."""
    clock = Clock()
    inside, leave = threading.Event(), threading.Event()
    lines: list[object] = [OSError, OSError]

    def fn() -> str:
        if lines:
            raise OSError(lines.pop())
        inside.set()
        assert leave.wait(10.0)
        return "fine"

    guarded = guard(BREAKER, fn, clock)
    for _ in range(2):
        error_of(guarded)
    clock.now += 0.5
    seen: list[object] = []
    probe = threading.Thread(target=lambda: seen.append(guarded()))
    probe.start()
    try:
        assert inside.wait(10.0)
        errors = [error_of(guarded) for _ in range(5)]
    finally:
        leave.set()
        probe.join(10.0)
    assert {type(error) for error in errors} == {CircuitOpen}
    assert seen == ["fine"]
    assert guarded() == "fine"


def test_a_call_that_finds_no_place_is_no_probe() -> None:
    """B3: while every place is taken nobody who was shed holds the breaker half-open."""
    options = BreakerOptions(minimum_calls=2, open_for_s=0.5, probes_max=2)
    limit = LimitOptions(in_flight_max=1)
    policy = Policy(timeout_s=None, retry=None, breaker=options, limit=limit)
    errors: list[BaseException] = []
    clock = Clock()
    lines: list[object] = [OSError, OSError]

    def fn() -> str:
        if lines:
            raise OSError(lines.pop())
        if clock.now == until_s:
            return "first"
        # The probe is under way, and others come.
        errors.extend(error_of(guarded) for _ in range(3))
        return "fine"

    guarded = guard(policy, fn, clock)
    for _ in range(2):
        error_of(guarded)
    until_s = clock.now = clock.now + 0.5
    assert guarded() == "first"
    clock.now += 0.1
    assert guarded() == "fine"
    assert [type(error) for error in errors] == [Shed] * 3


def test_threads_at_once_lose_no_count() -> None:
    """Every outcome of every thread is counted: the last failure that is needed opens it."""
    options = BreakerOptions(minimum_calls=2_000, failure_rate=1.0)
    runs: list[int] = []

    def fn() -> None:
        runs.append(1)
        raise OSError

    guarded = Policy(timeout_s=None, retry=None, breaker=options).wrap(fn)

    def many() -> None:
        for _ in range(600):
            error_of(guarded)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    # A thread that was inside when it opened may have been one more.
    assert 2_000 <= len(runs) <= 2_003


def test_methods_are_guarded_too() -> None:
    """All instances share the edge; the arguments and the text stay."""

    class Client:
        @Policy(timeout_s=None).wrap
        def charge(self, order: str, *, cents: int) -> str:
            """Charges."""
            return f"{order}: {cents}"

    assert Client().charge("A-1", cents=5) == "A-1: 5"
    assert Client.charge.__doc__ == "Charges."
    assert not asyncio.iscoroutinefunction(Client.charge)


@pytest.mark.parametrize("policy", [Policy(), Policy(timeout_s=0.5)])
def test_a_timeout_is_refused_when_it_is_decorated(policy: Policy) -> None:
    """Nothing can cut a sync function that runs: said before it is called, with what to do."""
    runs: list[int] = []

    def charge() -> None:
        runs.append(1)

    with pytest.raises(ConfigError, match=r"charge is not an async function.*timeout_s=None"):
        policy.wrap(charge)
    assert runs == []


def test_a_queue_is_refused_when_it_is_decorated() -> None:
    """A thread that waits for a place holds one."""
    policy = Policy(timeout_s=None, limit=LimitOptions(in_flight_max=1, queue_max=2))
    with pytest.raises(ConfigError, match="queue_max = 2"):
        policy.wrap(Script("x"), name="charge")


def test_a_limit_that_adapts_itself_is_cut_by_overload_and_returns() -> None:
    """The default limit is for threads too: without its queue, for nobody waits in a thread."""
    clock = Clock()
    limit = AdaptiveLimitOptions(initial=8, limit_min=1)
    policy = Policy(timeout_s=None, retry=None, breaker=None, limit=limit)
    edge = blocking._Edge(policy, "charge", random.Random(1), clock, may_repeat=False)
    for _ in range(8):
        held = int(edge._in_flight_max)
        begun = [(each, *edge.begin(each)) for each in (edge.attempts() for _ in range(held))]
        for attempts, attempt, permit in begun:
            clock.now += 0.01
            with pytest.raises(Shed):
                edge.failed(attempts, attempt, permit, Shed("full"))
    cut = edge._in_flight_max
    assert cut < 8
    for _ in range(200):
        clock.now += 0.01
        edge.answered(*edge.begin(edge.attempts()))
    assert edge._in_flight_max > cut


def test_a_function_that_returns_an_awaitable_is_told_from_one_that_answers() -> None:
    """Its work would begin when the guard has gone: it is an error, and not the callee's."""

    async def later() -> str:
        return "never"

    def fn() -> Any:
        return later()

    policy = Policy(timeout_s=None, retry=AGAIN, breaker=OPENS)
    guarded = policy.wrap(fn, is_idempotent=True)
    for _ in range(3):
        with pytest.raises(ConfigError, match="has returned an awaitable"):
            guarded()


@pytest.mark.parametrize(
    ("policy", "script"),
    [
        (BREAKER, (OSError, OSError)),
        (RETRY, (OSError,)),
        (RETRY, (OSError, ConnectFailed)),
        (Policy(timeout_s=None, retry=None, breaker=None), (OSError,)),
    ],
    ids=["rejected", "retried", "retried and refused", "bare"],
)
def test_a_failed_call_leaves_no_reference_cycle(
    policy: Policy, script: tuple[object, ...]
) -> None:
    """Under failures memory is freed at once, and no collector has to run."""
    guarded = guard(policy, Script(*script), Clock(), again=True)
    _fail(guarded, 5)
    gc.collect()
    gc.disable()
    try:
        _fail(guarded, 20)
        assert gc.collect() == 0
    finally:
        gc.enable()


def _fail(guarded: Callable[[], object], times: int) -> None:
    for _ in range(times):
        try:
            guarded()
        except Exception:
            continue
