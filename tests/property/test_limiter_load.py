"""The adaptive limiter under load: nothing is refused without need, and in overload it helps.

A callee with a number of places stands for whatever a service is short of; calls come at random,
and their work is random. All is virtual time and seeds.
"""

from __future__ import annotations

import pytest

from limiter_world import Load, Work, World
from synchromesh.priority import Priority
from synchromesh.resilience import AdaptiveLimitOptions

LOG_NORMAL = 1.0
SHED_MAX = 0.001


def steady(places: int, mean_s: float, *, share: float = 0.8, until_s: float) -> tuple[Load, ...]:
    return (Load(share * places / mean_s, 0.0, until_s),)


@pytest.mark.parametrize("sigma", [None, LOG_NORMAL], ids=["exponential", "log-normal"])
@pytest.mark.parametrize(
    ("places", "mean_s", "until_s"),
    [(1, 0.001, 3.0), (4, 0.02, 15.0), (16, 0.02, 4.0), (16, 0.2, 20.0), (200, 0.1, 2.0)],
)
def test_a_callee_at_four_fifths_of_its_capacity_is_left_in_peace(
    places: int, mean_s: float, until_s: float, sigma: float | None
) -> None:
    """From a cold start: at most 1 in 1,000 is shed, and as much is served as without a limiter."""
    works = (Work(mean_s, sigma),)
    loads = steady(places, mean_s, until_s=until_s)
    limited = World(places, works, loads, seed=1).play()
    free = World(places, works, loads, seed=1, limiter=None).play()
    assert len(limited.told) == len(free.told) > 1_000
    assert limited.share("shed") <= SHED_MAX
    assert limited.count("ok") >= 0.98 * free.count("ok")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_burst_is_waited_out(seed: int) -> None:
    """Four times the load for 200 ms, twice what the callee can: all of it is served in time."""
    base = 0.5 * 16 / 0.02
    loads = (Load(base, 0.0, 4.0), Load(3 * base, 2.0, 2.2))
    world = World(16, (Work(0.02),), loads, seed).play()
    assert world.share("ok") >= 1 - SHED_MAX


@pytest.mark.parametrize("places", [16, 64])
def test_operations_of_1_ms_and_of_500_ms_share_an_edge(places: int) -> None:
    """Each is judged by its own usual time: that the long ones are long is no overload."""
    works = (Work(0.001, None, 0.9), Work(0.5, None, 0.1))
    loads = steady(places, 0.9 * 0.001 + 0.1 * 0.5, until_s=8.0)
    world = World(places, works, loads, seed=1, deadline_s=5.0).play()
    assert world.share("shed") <= SHED_MAX
    assert world.share("ok") >= 0.995


def test_one_call_a_minute_is_never_refused() -> None:
    """There is hardly a window, and nothing to find out."""
    world = World(1, (Work(0.1),), (Load(1 / 60, 0.0, 7_200.0),), seed=1).play()
    assert world.share("ok") == 1.0
    assert {limit for _, limit in world.limits} == {AdaptiveLimitOptions().initial}


def test_nothing_is_refused_for_its_class_while_there_is_no_pressure() -> None:
    """Batch work alone may have four fifths of a callee."""
    loads = (Load(0.8 * 16 / 0.02, 0.0, 4.0, Priority.BATCH),)
    assert World(16, (Work(0.02),), loads, seed=1).play().share("shed") <= SHED_MAX


@pytest.mark.parametrize("seed", [2, 3])
@pytest.mark.parametrize("over", [2, 4])
def test_in_overload_calls_with_little_time_are_answered_in_it(over: int, seed: int) -> None:
    """A quarter of its capacity, and six times the usual time for a call: nine tenths in time."""
    loads = (Load(24, 0.0, 2.0), Load(over * 10, 2.0, 12.0), Load(24, 12.0, 15.0))
    options, changes = AdaptiveLimitOptions(initial=32), ((2.0, 1), (12.0, 4))
    world = World(4, (Work(0.1, 0.5),), loads, seed, options, changes, deadline_s=0.65).play()
    assert world.count("ok", 3.0, 12.0) >= 0.9 * 10 * 9.0
    assert world.count("ok", 13.0) >= 0.98 * sum(each.at_s >= 13.0 for each in world.told)


@pytest.mark.parametrize("is_cut", [True, False], ids=["at the callee", "at the caller"])
@pytest.mark.parametrize("over", [2, 4])
def test_in_overload_the_callee_does_what_it_can(over: int, *, is_cut: bool) -> None:
    """At a quarter of its capacity, and twice or four times the calls of that: nine tenths in time.

    At the caller the callee goes on with what was given up: without a limiter it does little else.
    """
    capacity = 4 / 0.02
    loads = (Load(400, 0.0, 2.0), Load(over * capacity, 2.0, 12.0), Load(400, 12.0, 15.0))

    def play(limiter: AdaptiveLimitOptions | None) -> World:
        return World(
            16, (Work(0.02),), loads, 1, limiter, ((2.0, 4), (12.0, 16)), is_cut=is_cut
        ).play()

    world = play(AdaptiveLimitOptions())
    assert world.count("ok", 2.0, 12.0) >= 0.9 * capacity * 10.0
    assert world.count("shed", 0.0, 2.0) == 0
    assert world.count("ok", 12.5) >= 0.99 * sum(each.at_s >= 12.5 for each in world.told)
    if not is_cut:
        assert play(None).count("ok", 2.0, 12.0) < 0.3 * capacity * 10.0


@pytest.mark.parametrize("places", [4, 16])
def test_persons_are_served_while_there_is_capacity_for_them(places: int) -> None:
    """Persons need 70 %; batch and retries want 250 % more, and get what is left."""
    capacity = places / 0.02
    loads = (
        Load(0.7 * capacity, 0.0, 8.0),
        Load(2.0 * capacity, 1.0, 8.0, Priority.BATCH),
        Load(0.5 * capacity, 1.0, 8.0, Priority.RETRY),
    )
    world = World(places, (Work(0.02),), loads, seed=1).play()
    # From a second on: the slots that others held when it began have come back by then.
    loaded = [each for each in world.told if each.at_s > 2.0]
    served = {}
    for priority in (Priority.INTERACTIVE, Priority.RETRY, Priority.BATCH):
        outcomes = [each.outcome for each in loaded if each.priority is priority]
        served[priority] = outcomes.count("ok") / len(outcomes)
    assert served[Priority.INTERACTIVE] >= (0.99 if places > 4 else 0.98)  # one call is 0.1 %
    assert served[Priority.INTERACTIVE] > served[Priority.RETRY] > served[Priority.BATCH]
    used = sum(each.outcome == "ok" for each in loaded)
    assert used >= 0.9 * capacity * 6.0


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("places", [4, 16])
def test_what_is_worth_less_is_shed_first(places: int, seed: int) -> None:
    """Batch before retries, these before sagas, and people last, each in need of a half."""
    half = 0.5 * places / 0.02
    loads = tuple(Load(half, 0.0, 6.0, priority) for priority in Priority)
    world = World(places, (Work(0.02),), loads, seed).play()
    served = {}
    for priority in Priority:
        outcomes = [
            each.outcome for each in world.told if each.priority is priority and each.at_s > 1.0
        ]
        served[priority] = outcomes.count("ok") / len(outcomes)
    assert sorted(Priority, key=served.__getitem__) == list(Priority)
    # Of four places none can be kept free for people: a tenth of them is less than one.
    assert served[Priority.INTERACTIVE] >= (0.98 if places > 4 else 0.9)
    assert served[Priority.BATCH] < 0.2


def test_a_callee_that_has_stalled_is_not_waited_for() -> None:
    """No answer comes: soon new calls are refused at once, and when it is well it is used again."""
    world = World(
        16, (Work(0.02),), (Load(400, 0.0, 8.0),), 1, changes=((1.0, -1_000), (4.0, 16))
    ).play()
    stalled = [each for each in world.told if 2.0 < each.at_s < 4.0]
    at_once = [each for each in stalled if each.outcome == "shed" and each.took_s == 0.0]
    assert len(at_once) >= 0.8 * len(stalled)
    assert sum(each.outcome == "late" for each in stalled) < 0.1 * len(stalled)
    assert world.count("ok", 4.5) >= 0.99 * sum(each.at_s >= 4.5 for each in world.told)


# Limits as an edge has them, and as an operation of a service does.
LIMITS = [AdaptiveLimitOptions(), AdaptiveLimitOptions(initial=48)]
AT = pytest.mark.parametrize("limits", LIMITS, ids=["edge", "operation"])


@AT
@pytest.mark.parametrize("rate", [50, 400])
@pytest.mark.parametrize("rare", [0.2, 0.5])
def test_an_operation_some_of_whose_calls_take_long_is_no_queue(
    rare: float, rate: int, limits: AdaptiveLimitOptions
) -> None:
    """Of 10 ms, and 2 s for what misses a cache: the mean is 40 times 10 ms, and no overload."""
    works = (Work(0.01, rare_s=2.0, rare=rare),)
    world = World(2_000, works, (Load(rate, 0.0, 8.0),), 1, limits, deadline_s=10.0).play()
    assert world.share("shed") <= SHED_MAX
    assert world.share("late") == 0


@pytest.mark.parametrize("sigma", [None, 0.5], ids=["exponential", "log-normal"])
@pytest.mark.parametrize("rate", [100, 400])
def test_a_callee_that_becomes_ten_times_slower_is_not_shed(rate: int, sigma: float | None) -> None:
    """There are places for all: the calls take longer, within their time, and that is all."""
    loads = (Load(rate, 0.0, 6.0),)
    world = World(
        1_000, (Work(0.02, sigma),), loads, 1, slower=((2.0, 10.0),), deadline_s=5.0
    ).play()
    assert world.share("shed") <= SHED_MAX


@pytest.mark.parametrize("sigma", [None, 0.5], ids=["exponential", "log-normal"])
@AT
def test_slower_work_is_told_from_a_queue_in_a_second_or_two(
    limits: AdaptiveLimitOptions, sigma: float | None
) -> None:
    """Where the limit is reached fewer are let in, to see; they take as long, and all come in.

    Fewer for as long as some answers take, which have become ten times as slow; a few in a hundred
    do not come in time.
    """
    world = World(
        1_000, (Work(0.02, sigma),), (Load(800, 0.0, 8.0),), 1, limits, slower=((2.0, 10.0),)
    ).play()
    assert world.count("shed", 0.0, 2.0) == 0
    assert world.count("shed", 4.0) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("deadline_s", [0.3, 5.0])
def test_a_cold_start_under_overload_is_known_for_one(deadline_s: float, seed: int) -> None:
    """Twice what the callee can from the first moment on: what the first calls took is usual."""
    capacity = 8 / 0.05
    world = World(
        8, (Work(0.05, 0.5),), (Load(2 * capacity, 0.0, 4.0),), seed, LIMITS[1],
        deadline_s=deadline_s,
    ).play()  # fmt: skip
    assert world.count("ok", 1.0, 4.0) >= 0.9 * capacity * 3.0
    assert max(limit for at_s, limit in world.limits if at_s > 1.0) < 100


@pytest.mark.parametrize(
    ("places", "mean_s", "until_s"), [(1, 0.001, 3.0), (4, 0.02, 15.0), (16, 0.2, 20.0)]
)
def test_places_that_calls_share_are_left_in_peace_at_four_fifths(
    places: int, mean_s: float, until_s: float
) -> None:
    """None waits for another, all become slower together: that is refused no more than a queue."""
    works, loads = (Work(mean_s),), steady(places, mean_s, until_s=until_s)
    limited = World(places, works, loads, seed=1, is_shared=True).play()
    free = World(places, works, loads, seed=1, limiter=None, is_shared=True).play()
    assert limited.share("shed") <= SHED_MAX
    assert limited.count("ok") >= 0.98 * free.count("ok")


@pytest.mark.parametrize("sigma", [None, 0.5, 0.05], ids=["exponential", "log-normal", "alike"])
@pytest.mark.parametrize(
    ("places", "mean_s", "deadline_s"), [(8, 0.05, 0.3), (5, 0.05, 1.0), (16, 0.1, 0.65)]
)
def test_in_overload_places_that_calls_share_do_what_they_can(
    places: int, mean_s: float, deadline_s: float, sigma: float | None
) -> None:
    """Twice what they can: nine tenths of it are answered in time, from two seconds on."""
    capacity = places / mean_s
    loads = (Load(0.6 * capacity, 0.0, 2.0), Load(2 * capacity, 2.0, 8.0))
    world = World(
        places, (Work(mean_s, sigma),), loads, 3, LIMITS[1], deadline_s=deadline_s, is_shared=True
    ).play()
    assert world.count("ok", 4.0) >= 0.9 * capacity * 4.0


@pytest.mark.parametrize("sigma", [None, 0.5, 0.05], ids=["exponential", "log-normal", "alike"])
def test_a_cold_start_of_places_that_calls_share_is_known_for_one(sigma: float | None) -> None:
    """Not one call has met a callee that was not in overload; those that began first tell most."""
    world = World(
        16, (Work(0.1, sigma),), (Load(320, 0.0, 6.0),), 2, LIMITS[1],
        deadline_s=0.65, is_shared=True,
    ).play()  # fmt: skip
    assert world.count("ok", 2.0) >= 0.9 * 160 * 4.0


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "in turn"])
def test_few_calls_that_are_late_cut_a_limit_that_they_do_not_reach(*, is_shared: bool) -> None:
    """20 calls a second, and one place of four is left: they are never many, and all too late."""

    def play(limiter: AdaptiveLimitOptions | None) -> int:
        works, loads = (Work(0.1, 0.05),), (Load(20, 0.0, 22.0),)
        world = World(4, works, loads, 1, limiter, ((2.0, 1),), is_shared=is_shared)
        return world.play().count("ok", 4.0)

    assert play(None) < 0.5 * 10 * 18.0
    assert play(AdaptiveLimitOptions()) >= 0.9 * 10 * 18.0


def test_a_limit_does_not_run_away_where_calls_share_the_places() -> None:
    """Four times what they can, no deadline: that 90 take as long as 120 is no slower work."""
    world = World(
        8, (Work(0.05, 0.05),), (Load(640, 0.0, 8.0),), 1, deadline_s=None, is_shared=True
    ).play()
    assert max(limit for at_s, limit in world.limits if 2.0 < at_s < 8.0) < 200
