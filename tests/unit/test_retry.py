"""Retry: backoff, budget, attempts that travel; literal times and chance."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.errors import ConfigError, TimedOut
from synchromesh.resilience import AttemptsLeft, BudgetOptions, RetryBudget, RetryOptions
from synchromesh.resilience.attempts import Attempts


class Fixed:
    def __init__(self, number: float) -> None:
        self.number = number

    def random(self) -> float:
        return self.number


def test_the_longest_wait_doubles_up_to_its_cap() -> None:
    """Waits grow so that a callee that stays down is left alone, but never beyond the cap."""
    options = RetryOptions(base_s=0.05, cap_s=2.0)
    waits = [options.backoff_s(attempt, Fixed(1.0)) for attempt in (1, 2, 3, 6, 7, 5000)]
    assert waits == [0.05, 0.1, 0.2, 1.6, 2.0, 2.0]


def test_jitter_is_full() -> None:
    """Callers that failed together spread over the whole wait, from none at all."""
    options = RetryOptions(base_s=0.05, cap_s=2.0)
    assert options.backoff_s(3, Fixed(0.0)) == 0.0
    assert options.backoff_s(3, Fixed(0.5)) == 0.1


def test_no_retry_begins_in_the_last_moment() -> None:
    """A timer of uvloop's comes half a millisecond early: that is no time for another attempt."""

    def wait_s(cut_s: float) -> float | None:
        attempts = Attempts(
            retry=RetryOptions(attempts_max=2),
            budget=None,
            left=None,
            timeout_s=None,
            deadline_s=10.0,
            is_retryable_unknown=True,
            rng=Fixed(0.0),
        )
        return attempts.failed(attempts.begin(9.0), TimedOut("it did not answer"), cut_s)

    assert [wait_s(cut_s) for cut_s in (9.99, 9.9995, 10.0)] == [0.0, None, None]


@pytest.mark.parametrize("wrong", [{"attempts_max": 0}, {"base_s": -1.0}, {"cap_s": 0.01}])
def test_wrong_retry_options_are_refused(wrong: dict[str, float]) -> None:
    """A number that makes no sense is an error at once, with its range."""
    with pytest.raises(ConfigError, match="make"):
        RetryOptions(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"ratio": 1.5}, {"floor_per_s": -1.0}, {"tokens_max": -1.0}])
def test_wrong_budget_options_are_refused(wrong: dict[str, float]) -> None:
    """A number that makes no sense is an error at once, with its range."""
    with pytest.raises(ConfigError, match=r"BudgetOptions: .*; make it a number"):
        BudgetOptions(**wrong)


def test_retries_are_a_share_of_calls() -> None:
    """Once the start's tokens are spent, five calls pay for one retry at a ratio of 0.2."""
    budget = RetryBudget(BudgetOptions(ratio=0.2, floor_per_s=0.0, tokens_max=2.0), now=0.0)
    assert [budget.take(now=0.0) for _ in range(3)] == [True, True, False]
    taken = 0
    for _ in range(100):
        budget.calls += 1
        taken += budget.take(now=0.0)
    assert 19 <= taken <= 20


def test_a_rarely_called_edge_may_retry_too() -> None:
    """The floor pays in by time, however few the calls."""
    budget = RetryBudget(BudgetOptions(ratio=0.0, floor_per_s=0.5, tokens_max=1.0), now=0.0)
    assert budget.take(now=0.0)
    assert not budget.take(now=1.9)
    assert budget.take(now=2.0)


def test_unused_retries_are_kept_up_to_a_bound() -> None:
    """A quiet hour does not save up for a storm."""
    budget = RetryBudget(BudgetOptions(ratio=1.0, floor_per_s=1.0, tokens_max=3.0), now=0.0)
    budget.calls += 3600
    assert budget.tokens == 3.0
    assert repr(budget) == "<RetryBudget 3.0/3.0 tokens>"


@pytest.mark.parametrize("seed", range(20))
def test_calls_paid_in_at_a_retry_are_those_paid_in_one_by_one(seed: int) -> None:
    """A bucket that is filled up late holds what one holds that was filled at each call."""
    rng = random.Random(seed)
    # Eighths and quarters: sums of them are exact, in any order.
    options = BudgetOptions(ratio=0.125, floor_per_s=0.5, tokens_max=3.0)
    budget, tokens, filled_s, now = RetryBudget(options, now=0.0), 3.0, 0.0, 0.0
    answers = set()
    for _ in range(2_000):
        now += rng.choice((0.0, 0.0, 0.25, 0.5))
        is_retry = rng.random() < 0.4
        tokens = min(3.0, tokens + (0.0 if is_retry else 0.125) + (now - filled_s) * 0.5)
        filled_s = now
        if is_retry:
            answers.add(tokens >= 1.0)
            assert budget.take(now=now) == (tokens >= 1.0)
            tokens -= 1.0 if tokens >= 1.0 else 0.0
        else:
            budget.calls += 1
    assert answers == {True, False}


def test_a_clock_that_steps_back_pays_nothing_in() -> None:
    """Time counts once."""
    budget = RetryBudget(BudgetOptions(ratio=0.0, floor_per_s=1.0, tokens_max=5.0), now=10.0)
    for _ in range(5):
        assert budget.take(now=10.0)
    assert not budget.take(now=5.0)
    assert not budget.take(now=10.5)
    assert budget.take(now=11.0)


def test_the_callee_gets_half_of_what_is_left() -> None:
    """Both sides keep something to retry with; the odd one stays here."""
    left = AttemptsLeft(5)
    assert (left.give(), left.give(), left.give()) == (2, 1, 1)
    assert left.left == 1
    assert left.give() == 0


def test_what_the_callee_did_not_use_comes_back() -> None:
    """A report settles a send exactly; silence costs all that was given."""
    left = AttemptsLeft(8)
    left.settle(left.give(), used=1)
    assert (left.left, left.used) == (7, 1)
    left.settle(left.give(), used=None)
    assert (left.left, left.used) == (4, 4)


def test_a_callee_that_overspends_is_believed() -> None:
    """What was spent is spent; below zero there is nothing."""
    left = AttemptsLeft(4)
    left.settle(left.give(), used=3)
    assert left.left == 1
    left.settle(left.give(), used=99)
    assert left.left == 0
    assert not left.can_retry


def test_a_negative_report_does_not_make_attempts() -> None:
    """A callee that lies the other way gains nothing."""
    left = AttemptsLeft(4)
    left.settle(left.give(), used=-5)
    assert left.left == 4


def test_taking_what_is_not_there_is_an_error() -> None:
    """A shell that forgets to ask is found at once."""
    left = AttemptsLeft(-3)
    assert left.left == 0
    with pytest.raises(ValueError, match="ask can_retry"):
        left.take()


@dataclass
class Tree:
    """A call tree: every node calls its children in turn, each with retries; leaves count."""

    rng: random.Random
    attempts_max: int
    sent: dict[tuple[int, ...], int]

    def handle(self, node: tuple[int, ...], shape: list[int], total: int) -> tuple[bool, int]:
        """Handle one request at a node; return whether it succeeded and what it reports."""
        if not shape:
            return self.rng.random() < 0.3, 0
        left = AttemptsLeft(total)
        has_succeeded = all(self.call((*node, child), shape[1:], left) for child in range(shape[0]))
        return has_succeeded, left.used

    def call(self, node: tuple[int, ...], shape: list[int], left: AttemptsLeft) -> bool:
        for attempt in range(self.attempts_max):
            if attempt > 0:
                if not left.can_retry:
                    return False
                left.take()
            self.sent[node] = self.sent.get(node, 0) + 1
            given = left.give()
            has_succeeded, used = self.handle(node, shape, given)
            left.settle(given, used if self.rng.random() < 0.7 else None)
            if has_succeeded and self.rng.random() < 0.8:
                return True
        return False


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    total=st.integers(0, 12),
    attempts_max=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_nested_retries_do_not_multiply(
    shape: list[int], total: int, attempts_max: int, seed: int
) -> None:
    """D2: whatever fails, and whoever reports, no leaf sees more than total + 1 attempts."""
    tree = Tree(random.Random(seed), attempts_max, {})
    tree.handle((), shape, total)
    assert max(tree.sent.values()) <= total + 1


@given(total=st.integers(0, 40), reports=st.lists(st.one_of(st.none(), st.integers(0, 40))))
def test_attempts_are_never_made(total: int, reports: list[int | None]) -> None:
    """What is left and what is used are the total, at every moment."""
    left = AttemptsLeft(total)
    for report in reports:
        given_away = left.give()
        left.settle(given_away, None if report is None else min(report, given_away))
        assert left.left + left.used == total
        assert 0 <= left.left <= total
