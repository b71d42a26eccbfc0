"""Circuit breaker: literal times, no clock, no sleep."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import pairwise

import pytest

from synchromesh.errors import CircuitOpen, ConfigError
from synchromesh.resilience import (
    TRANSITIONS,
    Breaker,
    BreakerOptions,
    BreakerState,
    Transition,
    Trigger,
)

OPTIONS = BreakerOptions(
    window_s=10.0,
    minimum_calls=4,
    failure_rate=0.5,
    slow_after_s=1.0,
    slow_rate=0.75,
    open_for_s=0.5,
    open_for_max_s=2.0,
    probes_max=1,
    probe_lease_s=5.0,
)
RAMP = BreakerOptions(minimum_calls=1, open_for_s=0.5, probe_lease_s=5.0)


class Half:
    def random(self) -> float:
        return 0.5


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(OPTIONS, name="orders -> billing", now=0.0)


def state(breaker: Breaker) -> str:
    return breaker.state.value


def fail(breaker: Breaker, times: int, now: float) -> None:
    for _ in range(times):
        breaker.failure(breaker.admit(now), now)


def succeed(breaker: Breaker, times: int, now: float, took_s: float = 0.0) -> None:
    for _ in range(times):
        breaker.success(breaker.admit(now), now, took_s)


def test_fewer_than_the_minimum_of_calls_never_trip(breaker: Breaker) -> None:
    """Three failures of three say too little about a callee that is rarely called."""
    fail(breaker, 3, now=1.0)
    assert state(breaker) == "closed"
    fail(breaker, 1, now=1.0)
    assert state(breaker) == "open"


def test_the_failure_rate_is_inclusive(breaker: Breaker) -> None:
    """Exactly the configured share of failures trips; less does not."""
    succeed(breaker, 3, now=1.0)
    fail(breaker, 2, now=1.0)
    assert state(breaker) == "closed"
    fail(breaker, 1, now=1.0)
    assert state(breaker) == "open"


def test_a_row_of_failures_trips_whatever_was_before() -> None:
    """Where a limit lets four calls through at once, the hundreds before them excuse nothing."""
    breaker = Breaker(BreakerOptions(), name="x", now=0.0)
    succeed(breaker, 1_000, now=1.0)
    fail(breaker, 12, now=3.0)  # time-outs that came together: a burst has them, too
    assert state(breaker) == "closed"
    fail(breaker, 1, now=3.99)
    assert state(breaker) == "closed"
    fail(breaker, 1, now=4.0)
    assert state(breaker) == "open"


def test_an_answer_ends_a_row() -> None:
    """Two calls of five that fail, second after second, are below the rate, and no row."""
    breaker, now = Breaker(BreakerOptions(), name="x", now=0.0), 0.0
    succeed(breaker, 10, now)
    for _ in range(1_000):
        now += 0.25
        fail(breaker, 2, now)
        succeed(breaker, 3, now)
    assert state(breaker) == "closed"


def test_a_success_never_opens(breaker: Breaker) -> None:
    """An answer may complete the minimum of calls, and is still good news."""
    fail(breaker, 3, now=1.0)
    succeed(breaker, 1, now=1.0)
    assert state(breaker) == "closed"


def test_outcomes_leave_the_window(breaker: Breaker) -> None:
    """A failure counts for the length of the window, and no longer."""
    fail(breaker, 3, now=0.5)
    succeed(breaker, 1, now=9.9)
    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (4, 3)
    succeed(breaker, 1, now=10.1)
    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (2, 0)
    succeed(breaker, 1, now=1000.0)
    assert breaker.snapshot().calls == 1


def test_the_window_survives_a_clock_that_starts_late_and_steps_back(breaker: Breaker) -> None:
    """Any float is a time; an outcome that is told late counts now."""
    succeed(breaker, 1, now=50_000.0)
    succeed(breaker, 1, now=49_990.0)
    assert breaker.snapshot().calls == 2


def test_slow_answers_trip_it(breaker: Breaker) -> None:
    """A callee that answers everything too late is as little use as one that fails."""
    succeed(breaker, 1, now=1.0, took_s=0.999)
    succeed(breaker, 2, now=1.0, took_s=1.0)
    assert state(breaker) == "closed"
    succeed(breaker, 1, now=1.0, took_s=1.0)
    assert state(breaker) == "open"


def test_an_open_breaker_refuses_at_once_and_says_until_when(breaker: Breaker) -> None:
    """B2: nothing is sent, nobody waits, and the caller learns when to ask again."""
    fail(breaker, 4, now=1.0)
    with pytest.raises(CircuitOpen, match="orders -> billing is open") as refusal:
        breaker.admit(1.2)
    assert refusal.value.retry_after_s == pytest.approx(0.3)
    assert refusal.value.is_retry_safe


def test_one_probe_closes_it(breaker: Breaker) -> None:
    """When the open time is over one call is let through, and its answer closes the breaker."""
    fail(breaker, 4, now=1.0)
    permit = breaker.admit(1.5)
    assert state(breaker) == "half_open"
    with pytest.raises(CircuitOpen, match="half-open"):
        breaker.admit(1.5)
    breaker.success(permit, 1.6)
    assert state(breaker) == "closed"
    assert breaker.snapshot().calls == 0


def test_a_slow_probe_does_not_close_it(breaker: Breaker) -> None:
    """A probe has to be as quick as any call."""
    fail(breaker, 4, now=1.0)
    breaker.success(breaker.admit(1.5), 3.0, took_s=1.5)
    assert state(breaker) == "open"


def test_failed_probes_double_the_open_time_up_to_its_bound(breaker: Breaker) -> None:
    """A callee that stays down is asked ever more rarely, and a recovery forgets that."""
    fail(breaker, 4, now=0.0)
    opened_s, waits = 0.0, []
    for _ in range(4):
        until_s = breaker.snapshot().open_until_s
        assert until_s is not None
        waits.append(until_s - opened_s)
        breaker.failure(breaker.admit(until_s), until_s)
        opened_s = until_s
    assert waits == [0.5, 1.0, 2.0, 2.0]
    until_s = breaker.snapshot().open_until_s
    assert until_s is not None
    breaker.success(breaker.admit(until_s), until_s)
    fail(breaker, 4, now=100.0)
    assert breaker.snapshot().open_until_s == 100.5


def test_chance_shortens_the_open_time_and_never_lengthens_it() -> None:
    """Callers that tripped together do not probe together."""
    breaker = Breaker(OPTIONS, name="x", now=0.0, rng=Half())
    fail(breaker, 4, now=0.0)
    assert breaker.snapshot().open_until_s == pytest.approx(0.45)


def test_outcomes_of_another_epoch_decide_nothing(breaker: Breaker) -> None:
    """B4: a call sent before the trip says nothing about the callee after it."""
    old = [breaker.admit(0.0) for _ in range(8)]
    for permit in old[:4]:
        breaker.failure(permit, 1.0)
    probe = breaker.admit(1.5)
    breaker.success(old[4], 1.6)
    breaker.failure(old[5], 1.6)
    assert state(breaker) == "half_open"
    breaker.success(probe, 1.7)
    breaker.failure(old[6], 1.8)
    assert state(breaker) == "closed"
    assert breaker.snapshot().calls == 0


def test_a_hung_probe_frees_its_slot_when_its_lease_is_over(breaker: Breaker) -> None:
    """B3: a probe that never ends cannot wedge the breaker, nor decide for its successor."""
    fail(breaker, 4, now=1.0)
    hung = breaker.admit(1.5)
    with pytest.raises(CircuitOpen):
        breaker.admit(6.4)
    successor = breaker.admit(6.5)
    breaker.failure(hung, 6.6)
    breaker.neutral(hung, 6.6)
    with pytest.raises(CircuitOpen):
        breaker.admit(6.7)
    breaker.success(successor, 6.8)
    assert state(breaker) == "closed"


def test_a_late_probe_whose_slot_nobody_took_still_counts(breaker: Breaker) -> None:
    """A lease frees a slot for others; it does not throw the answer away."""
    fail(breaker, 4, now=1.0)
    late = breaker.admit(1.5)
    breaker.success(late, 60.0)
    assert state(breaker) == "closed"


def test_an_answer_counts_however_many_probes_came_after_it() -> None:
    """An operation of 2 s recovers too, though the next probe is sent sooner than it answers."""
    breaker = half_open(BreakerOptions(minimum_calls=1, open_for_s=0.5))
    probes = [breaker.admit(0.5 + 0.7 * number) for number in range(3)]
    breaker.success(probes[0], 2.5)
    assert (breaker.snapshot().probes, breaker.snapshot().probes_max) == (1, 2)
    breaker.failure(probes[1], 2.6)
    assert state(breaker) == "half_open"
    assert len(admitted(breaker, 3.5)) == 1_000
    assert state(breaker) == "closed"


def test_a_neutral_probe_frees_its_slot_and_changes_nothing(breaker: Breaker) -> None:
    """B4: a cancelled probe says nothing; the next call is the probe."""
    fail(breaker, 4, now=1.0)
    breaker.neutral(breaker.admit(1.5), 1.6)
    assert state(breaker) == "half_open"
    breaker.success(breaker.admit(1.6), 1.7)
    assert state(breaker) == "closed"


def test_probes_without_an_outcome_are_paced(breaker: Breaker) -> None:
    """A callee that sheds, or stalls until its callers give up, is not asked by all who come."""
    fail(breaker, 4, now=1.0)
    asked_s: list[float] = []
    for millis in range(1500, 4500):
        now = millis / 1000
        if not breaker.is_refusing(now):
            asked_s.append(now)
            breaker.neutral(breaker.admit(now), now)
        else:
            with pytest.raises(CircuitOpen) as refused:
                breaker.admit(now)
            assert refused.value.retry_after_s is not None
            assert 0 < refused.value.retry_after_s <= 0.5
    assert state(breaker) == "half_open"
    assert asked_s[:6] == [1.5, 1.501, 1.502, 1.503, 1.513, 1.533]
    assert 8 <= len(asked_s) <= 16
    longest = max(later - earlier for earlier, later in pairwise(asked_s))
    assert longest == pytest.approx(0.5, abs=0.01)  # as long as it opens for, and no longer


def test_a_success_ends_the_pauses(breaker: Breaker) -> None:
    """And an end of the ramp closes it, whatever probes had no outcome."""
    fail(breaker, 4, now=1.0)
    for _ in range(4):
        permit = breaker.admit(1.5)
        breaker.neutral(permit, 1.5)
    assert breaker.is_refusing(1.505)
    breaker.success(breaker.admit(1.511), 1.6)
    assert not breaker.is_refusing(1.6)


def test_neutral_outcomes_are_not_counted(breaker: Breaker) -> None:
    """Cancelled and shed calls dilute neither rate nor minimum."""
    for _ in range(20):
        breaker.neutral(breaker.admit(1.0), 1.0)
    assert breaker.snapshot().calls == 0


def admitted(breaker: Breaker, now: float, callers: int = 1_000) -> list[int]:
    """Let so many ask at once; return the permits of those that were let in."""
    permits = []
    for _ in range(callers):
        with suppress(CircuitOpen):
            permits.append(breaker.admit(now))
    return permits


def half_open(options: BreakerOptions = RAMP) -> Breaker:
    breaker = Breaker(options, name="x", now=0.0)
    fail(breaker, 1, now=0.0)
    return breaker


def test_a_crowd_is_let_in_by_a_ramp() -> None:
    """B3: of a thousand callers that wait, 1, 2, 4 ... 32 are under way at once, then all are."""
    breaker, now, widths = half_open(), 0.5, []
    while state(breaker) != "closed":
        permits = admitted(breaker, now)
        widths.append(len(permits))
        now += 0.01
        for permit in permits:
            breaker.success(permit, now)
    assert widths == [1, 2, 4, 8, 16, 32]
    assert len(admitted(breaker, now)) == 1_000


@pytest.mark.parametrize("good", [1, 3, 30, 62])
def test_a_failure_in_the_ramp_opens_it_again(good: int) -> None:
    """However far it has come: a callee that breaks down under the crowd is left alone again."""
    breaker = half_open()
    succeed(breaker, good, now=0.6)
    assert state(breaker) == "half_open"
    fail(breaker, 1, now=0.7)
    assert breaker.snapshot().open_until_s == pytest.approx(0.7 + 0.7)
    assert len(admitted(breaker, 1.5)) == 1


def test_a_ramp_is_over_a_second_after_its_first_success() -> None:
    """A callee that is rarely called is not half-open for ever: the next call finds it closed."""
    breaker = half_open()
    succeed(breaker, 1, now=0.6)
    assert len(admitted(breaker, 1.5)) == 2
    assert len(admitted(breaker, 1.6)) == 1_000
    assert state(breaker) == "closed"


def test_a_ramp_ends_without_a_call_for_who_looks() -> None:
    """An idle edge is shown as it is."""
    breaker = half_open()
    succeed(breaker, 1, now=0.6)
    assert breaker.snapshot(1.5).state is BreakerState.HALF_OPEN
    assert breaker.snapshot(1.6).state is BreakerState.CLOSED


def test_without_a_success_no_time_ends_the_ramp() -> None:
    """A probe that hangs, or was cancelled, says nothing good."""
    breaker = half_open()
    breaker.neutral(breaker.admit(0.5), 0.6)
    breaker.admit(0.7)
    assert admitted(breaker, 5.0) == []
    assert len(admitted(breaker, 60.0)) == 1


def test_a_crowd_that_comes_to_a_healed_callee_is_in_within_a_second() -> None:
    """From the moment it heals: the rest of the longest open time, and a ramp of 20 ms answers."""
    breaker, heals_s, now, served = Breaker(BreakerOptions(), name="x", now=0.0), 10.0, 0.0, 0
    under: deque[tuple[float, int]] = deque()
    while now < 11.0:
        now += 0.001
        while under and under[0][0] <= now:
            sent_s, permit = under.popleft()
            tell = breaker.success if sent_s - 0.02 >= heals_s else breaker.failure
            tell(permit, now)
        for permit in admitted(breaker, now, callers=1):
            under.append((now + 0.02, permit))
            served += now >= heals_s
    assert state(breaker) == "closed"
    assert breaker.snapshot().since_s - heals_s <= 0.85
    assert served > 63


def test_several_probes_are_bounded() -> None:
    """B3: at most as many calls are under way as the ramp is wide; a neutral one gives way."""
    breaker = half_open()
    succeed(breaker, 1, now=0.5)
    first, _ = admitted(breaker, 0.5)
    breaker.neutral(first, 0.6)
    assert len(admitted(breaker, 0.6)) == 1
    assert (breaker.snapshot().probes, breaker.snapshot().probes_max) == (2, 2)
    assert breaker.is_refusing(0.6)
    assert not breaker.is_refusing(5.5)


def test_isolated_by_hand_it_refuses_until_closed_by_hand(breaker: Breaker) -> None:
    """No time ends an isolation, and nobody is told to wait for it."""
    breaker.isolate(1.0)
    with pytest.raises(CircuitOpen, match="isolated by hand") as refusal:
        breaker.admit(1_000_000.0)
    assert refusal.value.retry_after_s is None
    breaker.close(2.0)
    assert breaker.admit(2.0) >= 0


def test_disabled_by_hand_it_admits_everything_and_counts_nothing(breaker: Breaker) -> None:
    """A disabled breaker is as if it were not there."""
    breaker.disable(1.0)
    fail(breaker, 100, now=1.0)
    assert state(breaker) == "disabled"
    assert breaker.snapshot().calls == 0


@pytest.mark.parametrize("slow_after_s", [None, 1.0])
def test_closing_an_isolated_breaker_forgets_what_came_before(slow_after_s: float | None) -> None:
    """A new epoch begins with an empty window, whatever was counted and how."""
    options = BreakerOptions(slow_after_s=slow_after_s)
    breaker = Breaker(options, name="x", now=0.0)
    succeed(breaker, 3, now=1.0)
    breaker.isolate(1.0)
    breaker.close(1.1)
    assert breaker.snapshot().calls == 0
    succeed(breaker, 2, now=1.2)
    fail(breaker, 1, now=1.2)
    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (3, 1)


def test_closing_a_closed_breaker_keeps_what_it_knows(breaker: Breaker) -> None:
    """A command given twice does no harm."""
    fail(breaker, 1, now=1.0)
    breaker.close(1.0)
    assert breaker.snapshot().failures == 1


def test_the_listener_hears_each_change_once_and_in_order() -> None:
    """What a console draws is what happened."""
    heard: list[Transition] = []
    options = BreakerOptions(minimum_calls=1, probes_max=1)
    breaker = Breaker(options, name="x", now=0.0, on_transition=heard.append)
    fail(breaker, 1, now=1.0)
    breaker.success(breaker.admit(1.5), 1.75)
    assert heard == [
        Transition("x", BreakerState.CLOSED, Trigger.TRIPPED, BreakerState.OPEN, 1.0),
        Transition("x", BreakerState.OPEN, Trigger.RESTED, BreakerState.HALF_OPEN, 1.5),
        Transition("x", BreakerState.HALF_OPEN, Trigger.RECOVERED, BreakerState.CLOSED, 1.75),
    ]


def test_the_table_names_one_next_state_for_each_state_and_trigger() -> None:
    """B1: the table is a function, and every state can be reached and left."""
    assert len({(before, trigger) for before, trigger, _ in TRANSITIONS}) == len(TRANSITIONS)
    assert {before for before, _, _ in TRANSITIONS} == set(BreakerState)
    assert {after for _, _, after in TRANSITIONS} == set(BreakerState)


def test_its_repr_shows_what_matters_in_each_state(breaker: Breaker) -> None:
    """One line tells a person what it does and why."""
    fail(breaker, 1, now=1.0)
    assert repr(breaker) == "<Breaker orders -> billing closed 1/1 failed>"
    fail(breaker, 3, now=1.0)
    assert repr(breaker) == "<Breaker orders -> billing open until 1.500>"
    breaker.admit(2.0)
    assert repr(breaker) == "<Breaker orders -> billing half_open 1/1 probes>"
    breaker.isolate(2.0)
    assert repr(breaker) == "<Breaker orders -> billing isolated>"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window_s", 0.0),
        ("minimum_calls", 0),
        ("failure_rate", 1.5),
        ("slow_after_s", -1.0),
        ("slow_rate", 0.0),
        ("open_for_s", 0.0),
        ("open_for_max_s", 0.1),
        ("open_jitter", 1.0),
        ("probes_max", 0),
        ("ramp_s", -1.0),
        ("probe_lease_s", 0.0),
    ],
)
def test_an_option_outside_its_range_is_named(field: str, value: float) -> None:
    """A wrong option is an error at once, with its name and its range."""
    with pytest.raises(ConfigError, match=f"BreakerOptions: {field} is"):
        BreakerOptions(**{field: value})  # type: ignore[arg-type]
