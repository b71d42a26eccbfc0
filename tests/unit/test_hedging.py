"""Hedging: when a second attempt is sent, what bounds it, and who is cancelled."""

from __future__ import annotations

import heapq
import itertools
import math
import random

import pytest

from synchromesh.errors import ConfigError
from synchromesh.resilience import (
    AttemptsLeft,
    BudgetOptions,
    HedgedCall,
    HedgeOptions,
    Hedging,
    RetryBudget,
)


def fixed(after_s: float = 0.05, ratio: float = 0.05, tokens_max: float = 10.0) -> Hedging:
    options = HedgeOptions(after=after_s, ratio=ratio, tokens_max=tokens_max)
    return Hedging(options, now=0.0)


def hedged(hedging: Hedging, left: int = 2) -> tuple[HedgedCall, bool]:
    call = hedging.begin(0.0)
    return call, call.send(call.due_s, AttemptsLeft(left), None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"after": "p50"}, "after is 'p50'; make it \"p90\""),
        ({"after": 0.0}, "after is 0.0"),
        ({"after": math.inf}, "after is inf"),
        ({"after": math.nan}, "after is nan"),
        ({"after": True}, "after is True"),
        ({"ratio": 1.1}, "ratio is 1.1; make it a number from 0 to 1"),
        ({"ratio": "5%"}, "ratio is '5%'"),
        ({"tokens_max": 0.5}, "tokens_max is 0.5; make it a number, 1 or more"),
    ],
)
def test_what_is_no_option_is_refused(wrong: dict[str, float], message: str) -> None:
    """The message names the option, its value and what it takes."""
    with pytest.raises(ConfigError, match=message):
        HedgeOptions(**wrong)


def test_a_command_is_refused() -> None:
    """Both attempts of a command might take effect; a query is let through."""
    HedgeOptions().check("billing.price", is_command=False)
    with pytest.raises(
        ConfigError, match=r"billing\.charge is a command, and its policy has hedge"
    ):
        HedgeOptions().check("billing.charge", is_command=True)


def test_the_first_answer_ends_the_call_and_the_other_is_cancelled() -> None:
    """Whichever of the two it is of."""
    for winner, loser in ((1, 2), (2, 1)):
        call, is_sent = hedged(fixed())
        assert is_sent
        assert call.used == 1
        assert call.end(winner, is_answer=True, now=0.1)
        assert call.loser == loser


def test_a_failure_waits_for_the_other() -> None:
    """Only where both have failed has the call, and then there is nobody to cancel."""
    call, _ = hedged(fixed())
    assert not call.end(1, is_answer=False, now=0.1)
    assert call.end(2, is_answer=False, now=0.2)
    assert call.loser is None


def test_a_first_that_ends_early_is_not_hedged() -> None:
    """Neither after an answer nor after a failure, which is for a retry to repeat."""
    for is_answer in (True, False):
        call = fixed().begin(0.0)
        assert call.end(1, is_answer=is_answer, now=0.01)
        assert call.due_s == math.inf
        assert not call.send(0.05, AttemptsLeft(2), None)


def test_a_hedge_spends_an_attempt_of_the_call_tree() -> None:
    """D2: where none is left nothing is sent, and no token is taken."""
    hedging, left = fixed(tokens_max=1.0), AttemptsLeft(1)
    assert not hedging.begin(0.0).send(0.05, AttemptsLeft(0), None)
    call = hedging.begin(0.0)
    assert call.send(0.05, left, None)
    assert left.left == 0
    assert not call.send(0.1, AttemptsLeft(2), None), "never a third"


def test_a_hedge_takes_from_the_budget_of_retries() -> None:
    """An edge that has no retries left has no hedges either."""
    budget = RetryBudget(BudgetOptions(ratio=0.0, floor_per_s=0.0, tokens_max=1.0), now=0.0)
    hedging = fixed()
    assert hedging.begin(0.0).send(0.05, AttemptsLeft(2), budget)
    assert not hedging.begin(0.0).send(0.05, AttemptsLeft(2), budget)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.25, 1.0])
def test_hedges_are_at_most_a_share_of_the_calls(ratio: float) -> None:
    """However late every call is: the bucket holds `tokens_max`, and each call pays its part in."""
    hedging = fixed(ratio=ratio, tokens_max=3.0)
    sent = sum(hedged(hedging)[1] for _ in range(1000))
    assert sent <= 3 + ratio * 1000
    assert sent >= ratio * 1000 - 1


def test_what_is_late_is_learned() -> None:
    """At first nothing is; then what takes longer than 95 of 100, and later what does so then."""
    hedging = Hedging(HedgeOptions(after="p95"), now=0.0)
    assert hedging.begin(0.0).due_s == math.inf
    for number in range(1000):
        hedging.begin(0.0).end(1, is_answer=True, now=(number % 100 + 1) / 1000)
    assert 0.090 <= hedging.begin(0.0).due_s <= 0.1
    for _ in range(200):
        hedging.begin(0.0).end(1, is_answer=True, now=0.5)
    assert hedging.begin(0.0).due_s == 0.5


def test_failures_do_not_tell_what_is_late() -> None:
    """A callee that fails at once would have every call hedged."""
    hedging = Hedging(HedgeOptions(after="p90"), now=0.0)
    for _ in range(100):
        hedging.begin(0.0).end(1, is_answer=False, now=0.001)
    assert hedging.begin(0.0).due_s == math.inf


def test_every_history_of_a_call_ends_once() -> None:
    """In whatever order things happen: at most two attempts, one winner, nobody is forgotten."""
    steps = ("send", "answer 1", "answer 2", "fail 1", "fail 2")
    ended = set()
    for history in itertools.product(steps, repeat=4):
        call, under, is_done = fixed().begin(0.0), {1}, False
        left = AttemptsLeft(2)
        for step in history:
            verb, _, number = step.partition(" ")
            if is_done or (number and int(number) not in under):
                continue
            if not number:
                was = set(under)
                if call.send(0.05, left, None):
                    assert was == {1}
                    under.add(2)
                continue
            under.discard(int(number))
            is_done = call.end(int(number), is_answer=verb == "answer", now=0.1)
            assert is_done == (verb == "answer" or not under)
            if is_done:
                assert call.loser == (under.pop() if under else None)
                ended.add((verb, call.used, call.loser))
        assert left.used == call.used <= 1
    assert ended == {
        ("answer", 0, None), ("answer", 1, None), ("answer", 1, 1), ("answer", 1, 2),
        ("fail", 0, None), ("fail", 1, None),
    }  # fmt: skip


def slowest_of_a_hundred(
    hedging: Hedging | None, stalls: float, count: int = 4000
) -> tuple[float, float]:
    """Make calls that take 10 ms, and 300 ms by chance; return p99 and attempts for each call."""
    rng, took, attempts = random.Random(3), [], 0

    def once() -> float:
        return 0.3 if rng.random() < stalls else rng.uniform(0.008, 0.012)

    for number in range(count):
        began_s, attempts = number * 0.01, attempts + 1
        ends = [(began_s + once(), 1)]
        call = hedging.begin(began_s) if hedging is not None else None
        if call is not None and call.due_s < ends[0][0]:
            due_s = call.due_s
            if call.send(due_s, AttemptsLeft(2), None):
                attempts += 1
                heapq.heappush(ends, (due_s + once(), 2))
        ended_s, winner = ends[0]
        if call is not None:
            assert call.end(winner, is_answer=True, now=ended_s)
        took.append(ended_s - began_s)
    return sorted(took)[int(0.99 * count)], attempts / count


def test_it_cuts_the_slowest_calls_for_few_attempts() -> None:
    """2 of 100 calls stall: the slowest of 100 take a tenth, for 5 of 100 more attempts."""
    without_s, _ = slowest_of_a_hundred(None, stalls=0.02)
    with_s, attempts = slowest_of_a_hundred(Hedging(HedgeOptions(), now=0.0), stalls=0.02)
    assert without_s == pytest.approx(0.3)
    assert with_s <= 0.03
    assert attempts <= 1.055


def test_it_does_not_double_the_load_where_all_are_slow() -> None:
    """Half of the calls stall: the budget holds, whatever is late."""
    _, attempts = slowest_of_a_hundred(fixed(0.05), stalls=0.5)
    assert attempts <= 1.06
