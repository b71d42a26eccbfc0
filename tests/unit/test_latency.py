"""Latency tracker: what is usual, learned from samples; literal times, no clock."""

from __future__ import annotations

import random

import pytest

from synchromesh.resilience import LatencyTracker


def learned(took_s: float = 0.02, *, samples: int = 1_000, every_s: float = 0.01) -> LatencyTracker:
    tracker = LatencyTracker()
    for number in range(samples):
        tracker.sample(number * every_s, took_s)
    return tracker


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sigma", [None, 0.5, 1.0])
def test_mean_and_percentiles_are_those_of_all_samples(sigma: float | None, seed: int) -> None:
    """Three floats say nearly what a list of all times would."""
    rng, tracker, seen = random.Random(seed), LatencyTracker(), []
    for number in range(20_000):
        took_s = rng.expovariate(50) if sigma is None else 0.02 * rng.lognormvariate(0, sigma)
        seen.append(took_s)
        tracker.sample(number * 0.01, took_s)
    seen.sort()
    assert tracker.usual_s == pytest.approx(sum(seen) / len(seen), rel=0.15)
    assert sum(each <= tracker.p95_s for each in seen) / len(seen) == pytest.approx(0.95, abs=0.03)
    assert sum(each <= tracker.p99_s for each in seen) / len(seen) == pytest.approx(0.99, abs=0.008)


def test_the_same_samples_give_the_same_values() -> None:
    """No chance is in it."""
    assert repr(learned()) == repr(learned())


def test_without_history_nobody_has_had_enough() -> None:
    """What is usual is not known: no time is long, and no second attempt is worth it."""
    tracker = LatencyTracker()
    assert not tracker.has_had_enough(1_000.0)
    assert tracker.hedge_after_s is None
    for number in range(29):
        tracker.sample(number * 1.0, 0.02)
    assert not tracker.has_had_enough(1_000.0)
    assert tracker.hedge_after_s is None
    tracker.sample(29.0, 0.02)
    assert tracker.has_had_enough(1_000.0)
    assert tracker.hedge_after_s == 0.02


def test_who_took_longer_than_nearly_all_has_had_enough() -> None:
    """A time-out is the callee's only where it had more time than its answers take."""
    tracker = learned(0.02)
    assert tracker.has_had_enough(0.04)
    assert not tracker.has_had_enough(0.018)


def test_of_calls_that_began_together_the_quick_ones_do_not_decide() -> None:
    """Thirty answers within the usual time are the quickest thirty, not the usual ones."""
    tracker = LatencyTracker()
    for number in range(60):
        tracker.sample(0.001 * number, 0.001 * (number + 1))
    assert not tracker.is_learned
    tracker.sample(1.0, 0.06)
    assert tracker.is_learned


def test_overload_does_not_become_usual() -> None:
    """Half a minute of a full callee leaves the mean nearly, and the percentiles, as they were."""
    tracker = learned(0.02)
    slow = tracker.p99_s
    for number in range(3_000):
        tracker.sample(10.0 + number * 0.01, 0.2, is_pressed=True)
    assert tracker.usual_s < 0.04
    assert tracker.p99_s == slow


def test_what_has_become_slower_for_good_becomes_usual() -> None:
    """A release whose answers take four times as long is judged by itself, after half a minute."""
    tracker = learned(0.02)
    for number in range(3_000):
        tracker.sample(10.0 + number * 0.01, 0.08)
    assert tracker.usual_s == pytest.approx(0.08, rel=0.1)
    assert tracker.p99_s == pytest.approx(0.08, rel=0.15)


def test_a_sample_is_due_once_a_millisecond() -> None:
    """However many calls there are, no more than a thousand a second are looked at."""
    tracker = LatencyTracker()
    assert tracker.next_sample_s == 0.0
    tracker.sample(5.0, 0.02)
    assert tracker.next_sample_s == 5.001


def test_a_clock_that_steps_back_does_no_harm() -> None:
    """An outcome that is told late is a sample like any other."""
    tracker = learned(0.02)
    tracker.sample(0.0, 0.02)
    assert tracker.usual_s == pytest.approx(0.02)
