"""Policy and edge: the layers around a call, in virtual time."""

from __future__ import annotations

import asyncio
import re
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest

from synchromesh import errors
from synchromesh.calls import OperationPolicy
from synchromesh.errors import (
    CallError,
    CircuitOpen,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    DownstreamFailed,
    InProgress,
    KeyUndone,
    RateLimited,
    Rejection,
    RemoteFailed,
    Shed,
    SynchromeshError,
    TimedOut,
)
from synchromesh.resilience import (
    AdaptiveLimitOptions,
    Attempt,
    Attempts,
    AttemptsLeft,
    BreakerOptions,
    BreakerState,
    BudgetOptions,
    Classification,
    Edge,
    Limiter,
    LimitOptions,
    Policy,
    RetryOptions,
    classify,
    may_retry,
)
from synchromesh.resilience.edge import CALLERS
from synchromesh.testing import SimRuntime, run

COLOUR: ContextVar[str] = ContextVar("COLOUR", default="none")
BARE = Policy(timeout_s=None, retry=None, budget=None, limit=None, breaker=None)
RETRY = Policy(timeout_s=None, retry=RetryOptions(base_s=0.0, cap_s=0.0), breaker=None)


class OutOfStock(Rejection, code="out_of_stock", status=409):
    """Tells that too few are in stock."""

    is_retry_safe = True


class Fixed:
    def __init__(self, number: float = 0.5) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Callee:
    """Answers by script: an error (or a new one of a class) is raised, a number is waited for.

    Anything else is the answer. The last line of the script is repeated.
    """

    script: list[object]
    attempts: list[Attempt] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    async def __call__(self, attempt: Attempt) -> object:
        self.attempts.append(attempt)
        self.at_s.append(now())
        line = self.script[min(len(self.attempts), len(self.script)) - 1]
        if isinstance(line, type):
            raise line("again")
        if isinstance(line, BaseException):
            raise line
        if isinstance(line, float):
            await asyncio.sleep(line)
        return line


async def call(
    edge: Edge,
    callee: Callee,
    *,
    within_s: float | None = None,
    left: int | AttemptsLeft = 8,
    again: bool = False,
    rng: Fixed | None = None,
) -> object:
    return await edge.run(
        callee,
        deadline_s=None if within_s is None else now() + within_s,
        attempts_left=left,
        is_retryable_unknown=again,
        rng=rng or Fixed(),
    )


async def error_of(edge: Edge, callee: Callee, **more: object) -> BaseException:
    try:
        await call(edge, callee, **more)  # type: ignore[arg-type]
    except Exception as error:
        return error
    raise AssertionError("the call was expected to fail")


def edge(policy: Policy) -> Edge:
    return Edge(policy, name="orders -> billing")


# -- classification ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, "success"),
        (OutOfStock(), "success"),
        (errors.BadRequest(""), "success"),
        (errors.UnknownOperation(""), "success"),
        (errors.Unauthenticated(""), "success"),
        (errors.Forbidden(""), "success"),
        (errors.KeyReused(""), "success"),
        (KeyUndone(""), "success"),
        (errors.SagaConflict(""), "success"),
        (Shed(""), "neutral"),
        (RateLimited(""), "neutral"),
        (CircuitOpen(""), "neutral"),
        (InProgress(""), "neutral"),
        (DeadlineExceeded(""), "neutral"),
        (errors.NoInstance(""), "neutral"),
        (DownstreamFailed(""), "neutral"),
        (errors.ConfigError(""), "neutral"),
        (asyncio.CancelledError(), "neutral"),
        (KeyboardInterrupt(), "neutral"),
        (ConnectFailed(""), "failure"),
        (ConnectionLost(""), "failure"),
        (RemoteFailed(""), "failure"),
        (RemoteFailed("", is_final=True), "failure"),
        (TimedOut(""), "failure"),
        (errors.StoreFull(""), "failure"),
        (ValueError(""), "failure"),
        (TimeoutError(""), "failure"),
    ],
)
def test_an_outcome_says_what_it_says_about_the_callee(
    error: BaseException | None, verdict: str
) -> None:
    """B5: an answer proves health, overload and others' failures prove nothing."""
    assert classify(error, had_enough_time=True).value == verdict


def test_a_time_out_that_the_caller_cut_short_proves_nothing() -> None:
    """B5: only a callee that had the edge's own timeout can be blamed for being late."""
    assert classify(TimedOut(""), had_enough_time=False) is Classification.NEUTRAL


def test_every_error_has_a_verdict_and_a_rule_for_retries() -> None:
    """No class of the tree falls through the tables."""
    for cls in errors.error_table().values():
        error = cls.__new__(cls)
        SynchromeshError.__init__(error, "x")
        if isinstance(error, CallError):
            error.retry_after_s, error.is_final = None, False
        assert classify(error, had_enough_time=True) in Classification
        assert may_retry(error, is_retryable_unknown=False) <= cls.is_retry_safe


# -- retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [Shed(""), RateLimited(""), errors.NoInstance(""), InProgress(""), ConnectFailed("")]
)
def test_what_was_certainly_not_run_is_tried_again(error: Exception) -> None:
    """D3: doing nothing twice is safe for a command without a key."""
    callee = Callee([error, "done"])
    assert run(lambda _: call(edge(RETRY), callee)) == "done"
    assert [attempt.number for attempt in callee.attempts] == [1, 2]


@pytest.mark.parametrize(
    "error", [TimedOut(""), ConnectionLost(""), RemoteFailed(""), DownstreamFailed("")]
)
def test_an_unknown_outcome_is_tried_again_only_where_that_is_harmless(error: Exception) -> None:
    """D3: what is not idempotent is never retried without a key."""
    callee = Callee([error, "done"])
    assert run(lambda _: error_of(edge(RETRY), callee)) is error
    assert len(callee.attempts) == 1
    callee = Callee([error, "done"])
    assert run(lambda _: call(edge(RETRY), callee, again=True)) == "done"


@pytest.mark.parametrize(
    "error",
    [
        OutOfStock(), errors.BadRequest(""), DeadlineExceeded(""), CircuitOpen(""), KeyUndone(""),
        RemoteFailed("", is_final=True), DownstreamFailed("", is_final=True),
    ],
)  # fmt: skip
def test_an_answer_is_never_asked_again(error: Exception) -> None:
    """A no stays a no, and a bug a bug, also where its class says that a retry is safe."""
    callee = Callee([error, "done"])
    assert run(lambda _: error_of(edge(RETRY), callee, again=True)) is error
    assert len(callee.attempts) == 1


def test_attempts_are_bounded_and_the_last_error_is_raised() -> None:
    """The caller hears what happened last, and what was spent."""
    last = Shed("third")
    callee = Callee([Shed("first"), Shed("second"), last])
    assert run(lambda _: error_of(edge(RETRY), callee)) is last
    assert len(callee.attempts) == 3
    assert last.attempts_used == 2


def test_waits_are_the_backoff() -> None:
    """Between attempts lies the jittered wait, which doubles."""
    policy = Policy(timeout_s=None, retry=RetryOptions(base_s=0.1, cap_s=2.0), breaker=None)
    callee = Callee([Shed(""), Shed(""), "done"])
    run(lambda _: call(edge(policy), callee, rng=Fixed(1.0)))
    waits = [after - before for before, after in zip(callee.at_s, callee.at_s[1:], strict=False)]
    assert waits == [pytest.approx(0.1), pytest.approx(0.2)]


def test_a_callee_that_asks_for_time_gets_it() -> None:
    """`retry_after_s` is the least wait."""
    policy = Policy(timeout_s=None, retry=RetryOptions(base_s=0.0, cap_s=7.0), breaker=None)
    callee = Callee([RateLimited("", retry_after_s=7.0), "done"])
    run(lambda _: call(edge(policy), callee))
    assert callee.at_s[1] - callee.at_s[0] == pytest.approx(7.0)


def test_a_callee_that_asks_for_more_than_the_longest_wait_is_not_waited_for() -> None:
    """`cap_s` is the longest wait of all: a Retry-After of an hour is the caller's to decide on."""
    policy = Policy(timeout_s=None, retry=RetryOptions(base_s=0.0, cap_s=7.0), breaker=None)
    callee = Callee([RateLimited("", retry_after_s=7.1), "done"])

    async def main(_: SimRuntime) -> float:
        began_s = now()
        assert isinstance(await error_of(edge(policy), callee), RateLimited)
        return now() - began_s

    assert run(main) == 0.0
    assert len(callee.attempts) == 1


def test_a_retry_that_cannot_start_in_time_is_not_waited_for() -> None:
    """The caller hears the error at once instead of at its deadline."""

    async def main(_: SimRuntime) -> float:
        began_s = now()
        error = await error_of(edge(RETRY), Callee([Shed("full", retry_after_s=5.0)]), within_s=5.0)
        assert isinstance(error, Shed)
        return now() - began_s

    assert run(main) == 0.0


def test_an_empty_budget_allows_no_retry() -> None:
    """A failing callee is not called more often than its budget allows, whatever each call may."""
    policy = Policy(
        retry=RetryOptions(attempts_max=3, base_s=0.0, cap_s=0.0),
        budget=BudgetOptions(ratio=0.0, floor_per_s=0.0, tokens_max=2.0),
        breaker=None,
    )
    callee = Callee([Shed("")])

    async def main(_: SimRuntime) -> None:
        shared = edge(policy)
        for _call in range(5):
            await error_of(shared, callee)

    run(main)
    assert len(callee.attempts) == 5 + 2


def test_a_tree_without_attempts_left_retries_nothing() -> None:
    """D2: what the callers above have spent cannot be spent again."""
    callee = Callee([Shed(""), "done"])
    assert isinstance(run(lambda _: error_of(edge(RETRY), callee, left=0)), Shed)
    assert len(callee.attempts) == 1


def test_the_callee_is_told_what_it_may_spend() -> None:
    """Each attempt carries half of what is left; what came back is given again."""
    callee = Callee([Shed("", attempts_used=1), TimedOut(""), "done"])
    error = run(lambda _: call(edge(RETRY), callee, left=8, again=True))
    assert error == "done"
    # 8: give 4, used 1, retry 1 -> 6: give 3, all spent, retry 1 -> 2: give 1.
    assert [attempt.attempts_left for attempt in callee.attempts] == [4, 3, 1]


def test_the_error_says_what_was_spent_below() -> None:
    """The caller above settles its own account from it."""
    last = RemoteFailed("", attempts_used=1)
    callee = Callee([Shed("", attempts_used=2), last])
    policy = Policy(retry=RetryOptions(attempts_max=2, base_s=0.0, cap_s=0.0), breaker=None)
    assert run(lambda _: error_of(edge(policy), callee, left=8)) is last
    assert last.attempts_used == 2 + 1 + 1


def test_one_account_serves_all_calls_of_a_handler() -> None:
    """D2: a handler that makes many calls does not multiply what it was given."""
    left = AttemptsLeft(3)
    callee = Callee([Shed])

    async def main(_: SimRuntime) -> None:
        for _call in range(4):
            await error_of(edge(RETRY), callee, left=left)

    run(main)
    assert len(callee.attempts) == 4 + 3
    assert left.used == 3


def test_an_answer_may_report_what_it_used() -> None:
    """A success that says so gives the rest back; a silent one keeps what it was given."""
    left = AttemptsLeft(8)

    async def telling(attempt: Attempt) -> None:
        attempt.used = 1

    async def silent(_: Attempt) -> None:
        return

    async def main(_: SimRuntime) -> None:
        for send in (telling, silent):
            await edge(BARE).run(
                send, deadline_s=None, attempts_left=left, is_retryable_unknown=False, rng=Fixed()
            )

    run(main)
    assert left.used == 1 + 3


def test_a_refused_retry_does_not_hide_that_the_call_may_have_run() -> None:
    """`NotExecuted` means certainly not run: it cannot end a call whose first try may be."""
    first = TimedOut("first")
    callee = Callee([first, Shed("second"), ConnectFailed("third")])
    error = run(lambda _: error_of(edge(RETRY), callee, again=True))
    assert error is first
    assert isinstance(error.__cause__, ConnectFailed)
    # 4 were given to the first and are lost, 2 were retries.
    assert first.attempts_used == 6


@pytest.mark.parametrize("first", [InProgress("first"), OSError("first")])
def test_a_refused_retry_hides_neither_a_run_under_way_nor_a_foreign_error(
    first: Exception,
) -> None:
    """Another attempt under the key runs, or nobody knows: neither is "certainly not run"."""
    callee = Callee([first, Shed])
    assert run(lambda _: error_of(edge(RETRY), callee, again=True)) is first


def test_an_attempt_that_wakes_up_late_raises_what_happened_before() -> None:
    """A loop that was blocked past the deadline sends nothing more, and hides nothing."""
    attempts = Attempts(
        retry=RetryOptions(base_s=0.1, cap_s=0.1),
        budget=None,
        left=AttemptsLeft(4),
        timeout_s=None,
        deadline_s=10.0,
        is_retryable_unknown=True,
        rng=Fixed(1.0),
    )
    first = TimedOut("first")
    assert attempts.failed(attempts.begin(9.0), first, 9.5) == 0.1
    with pytest.raises(TimedOut) as raised:
        attempts.begin(10.0)
    assert raised.value is first


def test_a_tombstone_settles_an_unknown_attempt() -> None:
    """`KeyUndone` speaks for the key, so for every attempt under it."""
    callee = Callee([TimedOut("first"), KeyUndone("second")])
    error = run(lambda _: error_of(edge(RETRY), callee, again=True))
    assert isinstance(error, KeyUndone)


# -- deadline and timeout ------------------------------------------------------------------------


def test_a_passed_deadline_sends_nothing() -> None:
    """A call that cannot be in time is refused before any work is done."""
    callee = Callee(["done"])
    error = run(lambda _: error_of(edge(RETRY), callee, within_s=0.0))
    assert isinstance(error, DeadlineExceeded)
    assert callee.attempts == []


def test_an_attempt_is_cut_at_the_edges_timeout() -> None:
    """A callee that stalls costs the caller its timeout, and the outcome is unknown."""
    policy = Policy(timeout_s=0.5, retry=None, breaker=None)
    callee = Callee([60.0])

    async def main(_: SimRuntime) -> tuple[BaseException, float]:
        began_s = now()
        return await error_of(edge(policy), callee, within_s=5.0), now() - began_s

    error, took_s = run(main)
    assert isinstance(error, TimedOut)
    assert "its timeout" in error.message
    assert took_s == pytest.approx(0.5)
    assert callee.attempts[0].has_full_timeout


def test_an_attempt_is_cut_at_the_callers_deadline() -> None:
    """D1: the caller is released at its deadline, however patient the edge."""
    policy = Policy(timeout_s=5.0, retry=None, breaker=None)
    callee = Callee([60.0])

    async def main(_: SimRuntime) -> tuple[BaseException, float]:
        began_s = now()
        return await error_of(edge(policy), callee, within_s=0.5), now() - began_s

    error, took_s = run(main)
    assert isinstance(error, TimedOut)
    assert "the caller's deadline" in error.message
    assert took_s == pytest.approx(0.5)
    assert not callee.attempts[0].has_full_timeout


@pytest.mark.parametrize(
    ("inner_s", "within_s", "limit"),
    [(0.1, 5.0, "inner = 0.1s"), (None, 5.0, "outer = 0.5s"), (None, 0.2, CALLERS)],
)
def test_a_time_out_within_keeps_what_has_cut_it(
    inner_s: float | None, within_s: float, limit: str
) -> None:
    """Of two edges, one within the other, the one whose timeout ran out is named."""
    plain = Policy(retry=None, breaker=None)
    inner = Edge(replace(plain, timeout_s=inner_s), name="inner", timeout_key="inner")
    outer = Edge(replace(plain, timeout_s=0.5), name="outer", timeout_key="outer")

    async def main(_: SimRuntime) -> BaseException:
        async def through(attempt: Attempt) -> object:
            deadline_s = attempt.deadline_s
            assert deadline_s is not None
            return await call(inner, Callee([60.0]), within_s=deadline_s - now())

        return await error_of(outer, through, within_s=within_s)  # type: ignore[arg-type]

    error = run(main)
    assert isinstance(error, TimedOut)
    assert error.limit == limit


@pytest.mark.parametrize(("within_s", "counts"), [(0.4999, True), (0.48, True), (0.46, False)])
def test_a_call_given_just_the_edges_timeout_still_trips_its_breaker(
    within_s: float, counts: bool
) -> None:
    """B5: the moments lost on the way to the edge are not the caller's haste."""
    policy = Policy(timeout_s=0.5, retry=None, breaker=None)
    callee = Callee([60.0])
    assert isinstance(run(lambda _: error_of(edge(policy), callee, within_s=within_s)), TimedOut)
    assert callee.attempts[0].has_full_timeout is counts


def test_each_attempt_has_its_own_timeout_within_the_deadline() -> None:
    """Retries share the call's deadline: the last is cut by what is left of it."""
    policy = Policy(timeout_s=1.0, retry=RetryOptions(base_s=0.0, cap_s=0.0), breaker=None)
    callee = Callee([60.0])
    began: list[float] = []

    async def main(_: SimRuntime) -> BaseException:
        began.append(now())
        return await error_of(edge(policy), callee, within_s=2.5, again=True)

    assert isinstance(run(main), TimedOut)
    deadlines = [(attempt.deadline_s or 0.0) - began[0] for attempt in callee.attempts]
    assert deadlines == [pytest.approx(1.0), pytest.approx(2.0), pytest.approx(2.5)]


def test_the_callers_own_timeout_error_is_its_own() -> None:
    """B4: an inner TimeoutError is neither translated nor retried."""
    own = TimeoutError("of the driver")
    callee = Callee([own])
    policy = Policy(timeout_s=1.0, breaker=None)
    assert run(lambda _: error_of(edge(policy), callee)) is own
    assert len(callee.attempts) == 1


def test_cancelling_the_caller_cancels_the_attempt_and_is_neutral() -> None:
    """D4, B4: no attempt outlives its caller, and none of this is the callee's failure."""
    shared = edge(Policy(breaker=BreakerOptions(minimum_calls=1)))
    heard: list[str] = []

    async def stalling(_: Attempt) -> None:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async def main(_: SimRuntime) -> bool:
        task = asyncio.ensure_future(
            shared.run(
                stalling,
                deadline_s=None,
                attempts_left=2,
                is_retryable_unknown=True,
                rng=Fixed(),
            )
        )
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(main)
    assert heard == ["cancelled"]
    assert shared.breaker is not None
    assert shared.breaker.snapshot().calls == 0


def test_attempts_run_in_the_callers_context() -> None:
    """B4: context variables are kept, in both directions."""

    async def colouring(_: Attempt) -> str:
        before = COLOUR.get()
        COLOUR.set("blue")
        return before

    async def main(_: SimRuntime) -> tuple[str, str]:
        COLOUR.set("red")
        seen = await edge(Policy()).run(
            colouring, deadline_s=None, attempts_left=0, is_retryable_unknown=False, rng=Fixed()
        )
        return seen, COLOUR.get()

    assert run(main) == ("red", "blue")


# -- breaker -------------------------------------------------------------------------------------

TRIPS = Policy(
    timeout_s=1.0,
    retry=RetryOptions(base_s=0.0, cap_s=0.0),
    breaker=BreakerOptions(minimum_calls=2, open_for_s=0.5),
)


def trip_with(error: BaseException | float, *, calls: int, within_s: float | None = None) -> Edge:
    shared = edge(TRIPS)

    async def main(_: SimRuntime) -> None:
        for _call in range(calls):
            await error_of(shared, Callee([error]), left=0, within_s=within_s)

    run(main)
    return shared


def is_open(shared: Edge) -> bool:
    assert shared.breaker is not None
    return shared.breaker.state is BreakerState.OPEN


def test_failures_open_the_edge() -> None:
    """A callee that fails is left alone."""
    assert is_open(trip_with(RemoteFailed(""), calls=2))
    assert is_open(trip_with(60.0, calls=2))


@pytest.mark.parametrize("error", [OutOfStock(), Shed(""), DownstreamFailed("")])
def test_what_is_not_the_callees_failure_does_not_open_it(error: Exception) -> None:
    """B5: breakers do not cascade, and a business no is an answer."""
    assert not is_open(trip_with(error, calls=9))


def test_a_caller_in_a_hurry_does_not_open_it() -> None:
    """B5: a time-out counts only if the callee had time enough to answer."""
    assert not is_open(trip_with(60.0, calls=9, within_s=0.2))


async def opened(policy: Policy) -> Edge:
    shared = edge(policy)
    for _call in range(2):
        await error_of(shared, Callee([RemoteFailed("")]), left=0)
    assert is_open(shared)
    return shared


@pytest.mark.parametrize("within_s", [None, 5.0, 0.4])
def test_an_open_edge_rejects_at_once(within_s: float | None) -> None:
    """B2: a rejection never waits, however much time there is."""

    async def main(_: SimRuntime) -> tuple[BaseException, float]:
        shared = await opened(TRIPS)
        began_s = now()
        return await error_of(shared, Callee(["done"]), within_s=within_s), now() - began_s

    error, took_s = run(main)
    assert isinstance(error, CircuitOpen)
    assert error.retry_after_s == pytest.approx(0.5)
    assert took_s == 0.0


def test_a_call_whose_own_attempts_open_the_edge_ends_with_them() -> None:
    """B2: the retry that would meet the open breaker is neither made nor waited for."""
    policy = Policy(
        timeout_s=1.0,
        retry=RetryOptions(attempts_max=5, base_s=0.1, cap_s=0.1),
        budget=BudgetOptions(ratio=0.0, floor_per_s=0.0, tokens_max=2.0),
        breaker=BreakerOptions(minimum_calls=2, open_for_s=0.5),
    )
    callee = Callee([RemoteFailed])

    async def main(_: SimRuntime) -> tuple[BaseException, float, Edge]:
        shared = edge(policy)
        began_s = now()
        error = await error_of(shared, callee, again=True, rng=Fixed(1.0))
        return error, now() - began_s, shared

    error, took_s, shared = run(main)
    assert isinstance(error, RemoteFailed)
    assert len(callee.attempts) == 2
    assert took_s == pytest.approx(0.1)
    # Nor is it paid for: one retry was made, and one is left.
    assert shared.budget is not None
    assert shared.budget.tokens == 1.0


# -- limiter -------------------------------------------------------------------------------------


def test_an_edge_bounds_what_is_under_way() -> None:
    """The call that is one too many is shed at the caller; the others are not disturbed."""
    policy = Policy(retry=None, breaker=None, limit=LimitOptions(in_flight_max=2))

    async def main(_: SimRuntime) -> list[object]:
        shared = edge(policy)
        calls = [call(shared, Callee([1.0])) for _ in range(3)]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    answers = run(main)
    assert sorted(type(answer).__name__ for answer in answers) == ["Shed", "float", "float"]


def test_waiting_for_a_slot_takes_nothing_from_the_callees_time() -> None:
    """B5: the callee has the edge's whole timeout, counted from when it is called."""
    policy = Policy(
        timeout_s=1.0,
        retry=None,
        breaker=None,
        limit=LimitOptions(in_flight_max=1, queue_max=1),
    )

    async def main(_: SimRuntime) -> list[object]:
        shared = edge(policy)
        return list(await asyncio.gather(*(call(shared, Callee([0.8])) for _ in range(2))))

    assert run(main) == [0.8, 0.8]


def test_a_call_that_gets_no_slot_in_time_is_shed() -> None:
    """It was certainly not run, and says so."""
    policy = Policy(
        timeout_s=1.0,
        retry=None,
        breaker=None,
        limit=LimitOptions(in_flight_max=1, queue_max=1),
    )

    async def main(_: SimRuntime) -> tuple[BaseException, str]:
        shared = edge(policy)
        assert shared.limiter is not None
        async with shared.limiter:
            error = await error_of(shared, Callee(["done"]))
        return error, repr(shared.limiter)

    error, shown = run(main)
    assert isinstance(error, Shed)
    assert shown == "<Limiter orders -> billing 0/1 in flight, 0/1 waiting>"


async def hold(limiter: Limiter, held: list[int], number: int, for_s: float = 0.06) -> None:
    async with limiter:
        held.append(number)
        await asyncio.sleep(for_s)


@pytest.mark.parametrize(("for_s", "order"), [(0.04, [0, 1, 2]), (1.0, [0, 2, 1])])
def test_slots_are_given_in_turn_and_in_a_queue_that_stands_to_the_newest(
    for_s: float, order: list[int]
) -> None:
    """Who waits longest goes first, unless all would be served too late; the queue has an end."""

    async def main(_: SimRuntime) -> tuple[list[int], list[object]]:
        limiter = Limiter(LimitOptions(in_flight_max=1, queue_max=2), name="billing")
        held: list[int] = []
        tasks = []
        for number in range(4):
            tasks.append(asyncio.ensure_future(hold(limiter, held, number, for_s)))
            await asyncio.sleep(0.01)
        return held, list(await asyncio.gather(*tasks, return_exceptions=True))

    held, ends = run(main)
    assert held == order
    assert [type(end).__name__ for end in ends] == ["NoneType", "NoneType", "NoneType", "Shed"]


@pytest.mark.parametrize("seed", range(8))
def test_cancelled_waiters_lose_no_slot(seed: int) -> None:
    """A waiter that is cancelled, also in the moment of its turn, leaves the slot to others."""

    async def main(_: SimRuntime) -> tuple[int, int, list[int]]:
        limiter = Limiter(LimitOptions(in_flight_max=1, queue_max=8), name="billing")
        held: list[int] = []
        tasks = []
        for number in range(5):
            tasks.append(asyncio.ensure_future(hold(limiter, held, number)))
            await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        loop.call_later(0.005, tasks[2].cancel)
        # The first ends at 0.06 and hands over to the second, which is cancelled right then.
        loop.call_at(loop.time() + 0.01, tasks[1].cancel)
        await asyncio.wait(tasks)
        return limiter.in_flight, limiter.waiting, held

    in_flight, waiting, held = run(main, seed=seed)
    assert (in_flight, waiting) == (0, 0)
    assert held[-2:] == [3, 4]


def test_a_slot_handed_over_to_a_cancelled_waiter_is_passed_on() -> None:
    """The hand-over and the cancellation in one step of the loop lose nothing."""

    async def main(_: SimRuntime) -> int:
        limiter = Limiter(LimitOptions(in_flight_max=1, queue_max=2), name="billing")
        await limiter.acquire()
        held: list[int] = []
        waiters = [asyncio.ensure_future(hold(limiter, held, number)) for number in (1, 2)]
        await asyncio.sleep(0.05)
        limiter.release()
        waiters[0].cancel()
        await asyncio.wait(waiters)
        assert held in ([1], [2])
        return limiter.in_flight

    assert run(main) == 0


def test_wrong_limits_are_refused() -> None:
    """A bound that lets nothing through is a mistake."""
    with pytest.raises(ConfigError, match="in_flight_max"):
        LimitOptions(in_flight_max=0)


# -- policy --------------------------------------------------------------------------------------


def test_explain_names_the_layers_that_are_on() -> None:
    """A policy can be read, outermost layer first."""

    def layers(policy: Policy) -> list[str]:
        return [line.split()[0] for line in policy.explain().splitlines()]

    assert layers(Policy(limit=LimitOptions())) == [
        "deadline", "retry", "budget", "limiter", "breaker", "timeout",
    ]  # fmt: skip
    assert layers(BARE) == ["deadline"]
    assert "limiter" in layers(Policy())
    slow = Policy(retry=RetryOptions(attempts_max=1), breaker=BreakerOptions(slow_after_s=1.0))
    assert "retry     no: 1 attempt" in slow.explain()
    assert "or 50% slower than 1 s" in slow.explain()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("initial", 3),
        ("limit_min", 0),
        ("limit_max", 3),
        ("room_max", 0),
        ("queue_max", -1),
        ("wait_max_s", 0.0),
    ],
)
def test_an_adaptive_limit_outside_its_range_is_named(field: str, value: float) -> None:
    """A wrong option is an error at once, with its name and its range."""
    with pytest.raises(ConfigError, match=f"AdaptiveLimitOptions: {field} is"):
        AdaptiveLimitOptions(**{field: value})  # type: ignore[arg-type]


def test_an_adaptive_limit_is_explained() -> None:
    """What it may become is said, and what it does."""
    told = Policy(limit=AdaptiveLimitOptions()).explain()
    assert "4 to 1000, as many as it can bear, at once, 1000 waiting, the rest is shed" in told


def test_a_timeout_of_nothing_is_refused() -> None:
    """Zero seconds would let nothing through."""
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        Policy(timeout_s=0)


@pytest.mark.parametrize(
    ("option", "value", "right"),
    [
        ("retry", 3, "RetryOptions(attempts_max=3)"),
        ("budget", 0.2, "BudgetOptions(ratio=0.2)"),
        ("limit", 3, "LimitOptions(in_flight_max=8)"),
        ("breaker", True, "BreakerOptions()"),
        ("hedge", "p95", 'HedgeOptions(after="p95")'),
    ],
)
def test_a_layer_of_the_wrong_type_is_refused_where_it_is_written(
    option: str, value: Any, right: str
) -> None:
    """It would else be found at the first failure, as an error of ours."""
    said = f"policy {option} is {value!r}; write {option}={right}, or {option}=None"
    kinds = [Policy, OperationPolicy] if option in ("retry", "hedge") else [Policy]
    for kind in kinds:
        with pytest.raises(ConfigError, match=re.escape(said)):
            kind(**{option: value})
        assert getattr(kind(**{option: None}), option) is None


@pytest.mark.parametrize("wrong", [float("nan"), True, "1"])
def test_what_is_no_number_is_refused_where_it_is_written(wrong: Any) -> None:
    """NaN compares with nothing, so that no check of a range would ever find it."""
    for options, names in (
        (Policy, ("timeout_s",)),
        (LimitOptions, ("in_flight_max", "queue_max")),
        (AdaptiveLimitOptions, tuple(each.name for each in fields(AdaptiveLimitOptions))),
        (RetryOptions, ("attempts_max", "base_s", "cap_s")),
        (BudgetOptions, ("ratio", "floor_per_s", "tokens_max")),
        (BreakerOptions, tuple(each.name for each in fields(BreakerOptions))),
    ):
        for name in names:
            with pytest.raises(ConfigError, match="make "):
                options(**{name: wrong})


@pytest.mark.parametrize(("is_idempotent", "calls"), [(False, 1), (True, 2)])
def test_a_policy_guards_a_plain_function(is_idempotent: bool, calls: int) -> None:
    """Its own exception is raised; it is run again only where that was said to be harmless."""
    seen: list[str] = []
    policy = Policy(retry=RetryOptions(attempts_max=2, base_s=0.0, cap_s=0.0))

    async def fetch(name: str, *, times: int) -> str:
        """Fetches."""
        seen.append(name * times)
        raise OSError("gone")

    guarded = policy.wrap(fetch, rng=Fixed(), is_idempotent=is_idempotent)

    async def main(_: SimRuntime) -> None:
        with pytest.raises(OSError, match="gone"):
            await guarded("ab", times=2)

    run(main)
    assert seen == ["abab"] * calls
    assert guarded.__doc__ == "Fetches."


def test_an_edge_shows_itself() -> None:
    """One line for tests, command line and console."""
    assert repr(edge(Policy())) == "<Edge orders -> billing closed>"
    assert repr(edge(BARE)) == "<Edge orders -> billing>"


def test_an_edge_tells_whether_it_would_refuse_and_changes_nothing() -> None:
    """Open, half-open with its probes under way, isolated: what a call would meet, unasked."""
    assert not edge(BARE).is_refusing(0.0)
    options = BreakerOptions(minimum_calls=1, open_for_s=1.0, open_for_max_s=1.0, probe_lease_s=5.0)
    guarded = edge(Policy(breaker=options))
    breaker = guarded.breaker
    assert breaker is not None
    assert not guarded.is_refusing(0.0)
    breaker.failure(breaker.admit(0.0), 0.0)
    assert [guarded.is_refusing(at_s) for at_s in (0.0, 0.9, 1.0)] == [True, True, False]
    assert breaker.state is BreakerState.OPEN
    breaker.admit(1.0)
    assert [guarded.is_refusing(at_s) for at_s in (1.0, 5.9, 6.0)] == [True, True, False]
    breaker.isolate(6.0)
    assert guarded.is_refusing(100.0)
    breaker.disable(6.0)
    assert not guarded.is_refusing(100.0)


def test_an_untimed_edge_shares_all_else() -> None:
    """Breaker, budget and limiter are the same; who calls holds no slot and bounds it himself."""
    whole = edge(Policy(timeout_s=2.0, limit=LimitOptions(1)))
    untimed = whole.untimed()
    assert (untimed.breaker, untimed.budget) == (whole.breaker, whole.budget)
    assert untimed.breaker is not None
    assert untimed.limiter is whole.limiter  # which learns from what it does
    assert untimed.policy.timeout_s is None
    assert whole.limiter is not None
    assert whole.policy.timeout_s == 2.0
