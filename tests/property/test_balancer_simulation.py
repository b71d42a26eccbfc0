"""Balancer, outliers and an edge in virtual time: what callers get while replicas are bad.

Three replicas, 300 calls a second, timeouts of 2 s and 0.5 s; an attempt that fails is repeated up
to twice, at others. The worst is a caller whose whole call has no more time than one attempt.
"""

from __future__ import annotations

import math

import pytest

from balancer_world import Load, Mode, World, always, flapping, until
from synchromesh.discovery import BalancerOptions

LOADS = {
    "2 s an attempt": Load(),
    "0.5 s an attempt": Load(timeout_s=0.5, own_s=0.5),
    "0.5 s a call": Load(timeout_s=0.5, own_s=0.5, deadline_s=0.5),
    "0.5 s a call, of 2 s an attempt": Load(deadline_s=0.5),
}
BAD = ("refuse", "fail", "hang")
BY: tuple[BalancerOptions, ...] = (BalancerOptions(), BalancerOptions(by="round_robin"))


def world(modes: dict[str, Mode], load: Load, by: BalancerOptions = BY[0], seed: int = 1) -> World:
    return World(modes, load, options=by, seed=seed).run()


@pytest.mark.parametrize("options", BY, ids=lambda each: each.by)
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("mode", BAD)
def test_one_bad_of_three(mode: str, load: Load, options: BalancerOptions) -> None:
    """99 of 100 calls succeed from the start, and after 2 s 1 attempt of 100 goes to the bad."""
    seen = world({"a": always(mode)}, load, options)
    assert seen.success() >= 0.99
    assert seen.success(since_s=2.0) >= 0.995
    assert seen.shares(since_s=2.0)["a"] <= 0.01
    assert seen.opened == 0


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("modes", [("refuse",) * 2, ("hang",) * 2, ("refuse", "hang")], ids=str)
def test_two_bad_of_three(modes: tuple[str, str], load: Load) -> None:
    """The healthy one is reached, though most are bad: the breaker does not close its door."""
    seen = world({"a": always(modes[0]), "b": always(modes[1])}, load)
    assert seen.success() >= 0.98
    assert seen.success(since_s=2.0) >= 0.99
    assert max(seen.shares(since_s=2.0)[each] for each in "ab") <= 0.01
    assert seen.opened == 0


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("mode", BAD)
def test_one_bad_of_two(mode: str, load: Load) -> None:
    """Half of them may be ejected: the other one has all calls."""
    seen = World({"a": always(mode)}, load, joins_s={"c": math.inf}).run()
    assert seen.success() >= 0.98
    assert seen.success(since_s=2.0) >= 0.99
    assert seen.shares(since_s=2.0)["a"] <= 0.01
    assert seen.opened == 0


@pytest.mark.parametrize(("bad", "success_max"), [("a", 0.9), ("ab", 0.5)])
@pytest.mark.parametrize("mode", BAD)
def test_the_replicas_are_bad_enough(mode: str, bad: str, success_max: float) -> None:
    """Turns without ejection fail what the claims above promise."""
    options = BalancerOptions(by="round_robin", outliers=None)
    seen = world(dict.fromkeys(bad, always(mode)), LOADS["2 s an attempt"], options)
    assert seen.success() <= success_max


@pytest.mark.parametrize("mode", BAD)
def test_all_bad(mode: str) -> None:
    """Nobody is ejected where nobody is well, and the breaker sees it: few attempts are made."""
    seen = world(dict.fromkeys("abc", always(mode)), LOADS["0.5 s an attempt"])
    assert seen.success() == 0.0
    assert seen.balancer.ejected == ()
    assert seen.opened >= 0.9 * len(seen.calls)


@pytest.mark.parametrize("seed", range(3))
def test_one_that_is_three_times_slower(seed: int) -> None:
    """It costs little: the slowest of 100 calls take at most twice as long as where all are well.

    Turns would give it a third of the calls.
    """
    healthy = world({}, Load(), seed=seed)
    seen = world({"a": always(3.0)}, Load(), seed=seed)
    assert seen.quantile_s(0.99) <= 2.0 * healthy.quantile_s(0.99)
    assert 0.0 < seen.shares()["a"] <= 0.2
    assert seen.success() == 1.0


def test_equal_replicas_share_equally() -> None:
    """Where all are well nobody is ejected, and each has about a third."""
    seen = world({}, Load())
    assert all(0.28 <= share <= 0.39 for share in seen.shares().values())
    assert seen.success() == 1.0


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("mode", ["refuse", "hang"])
def test_one_that_flaps(mode: str, load: Load) -> None:
    """One that is bad every other second is ejected longer and longer."""
    seen = world({"a": flapping(mode, 1.0)}, load)
    assert seen.success() >= 0.99
    assert seen.opened == 0


@pytest.mark.parametrize("mode", BAD)
@pytest.mark.parametrize("bad", ["a", "ab"])
def test_what_has_healed_has_its_share_again(mode: str, bad: str) -> None:
    """Within 3 s of its end: at most 2.5 s until a probe that may cost 0.5 s, then it warms up."""
    modes = dict.fromkeys(bad, until(8.0, mode))
    seen = world(modes, LOADS["0.5 s a call"])
    shares = seen.shares(since_s=11.5, until_s=14.0)
    assert all(share >= 0.25 for share in shares.values())
    assert seen.success(since_s=8.0) >= 0.99


@pytest.mark.parametrize("load", [LOADS["2 s an attempt"], LOADS["0.5 s a call"]], ids=["2", "0.5"])
@pytest.mark.parametrize("mode", BAD)
def test_one_that_heals_after_all_were_bad(mode: str, load: Load) -> None:
    """The breaker's probes go round: one that finds a bad one keeps nobody else out.

    At most 2 s of an open breaker, and one timeout for each of the two that are still bad.
    """
    modes = {"a": always(mode), "b": always(mode), "c": until(8.0, mode)}
    seen = world(modes, load)
    assert seen.opened > 0
    assert seen.success(since_s=8.0 + 2.0 + 2 * load.timeout_s + 0.5) >= 0.99


@pytest.mark.parametrize("mode", BAD)
def test_the_last_that_is_well_fails_for_a_second(mode: str) -> None:
    """Two are bad for good: who is left has all calls again as soon as it is well."""

    def blip(now: float) -> str:
        return "refuse" if 8.0 < now < 9.0 else "ok"

    modes = {"a": always(mode), "b": always(mode), "c": blip}
    seen = world(modes, LOADS["0.5 s a call"])
    assert seen.success(since_s=10.0) >= 0.99


def test_a_long_ejection_is_bounded() -> None:
    """Where a probe costs 2 s an instance that hangs is asked again after 10 s at the latest."""
    seen = world({"a": until(8.0, "hang")}, Load(lasts_s=24.0))
    assert seen.shares(since_s=20.0)["a"] >= 0.25


def test_one_that_sheds_load_is_spared_and_not_ejected() -> None:
    """An answer that it is too busy is no fault, but the calls go where they are taken."""
    seen = world({"a": always("shed")}, Load())
    assert seen.balancer.ejected == ()
    assert seen.success() >= 0.99
    assert seen.shares(since_s=2.0)["a"] <= 0.02


def test_one_that_is_new_gets_its_share_step_by_step() -> None:
    """It is neither flooded nor starved: its share grows over a second."""
    joins_s = {"c": 5.0}
    seen = World({}, Load(lasts_s=12.0), options=BalancerOptions(), joins_s=joins_s).run()
    first = seen.shares(since_s=5.0, until_s=5.2)["c"]
    later = seen.shares(since_s=6.0, until_s=12.0)["c"]
    assert 0.0 < first < 0.2
    assert 0.28 <= later <= 0.39


def test_a_cold_one_is_not_flooded() -> None:
    """One that is ten times slower in its first second slows few calls: turns would a third."""
    joins_s = {"c": 5.0}

    def cold(now: float) -> str | float:
        return 10.0 if now < 6.0 else "ok"

    seen = World({"c": cold}, Load(lasts_s=12.0), options=BalancerOptions(), joins_s=joins_s).run()
    slow = [call for call in seen.calls if 5.0 <= call.sent_s < 6.0 and call.took_s > 0.06]
    assert len(slow) <= 0.05 * 300
    assert seen.shares(since_s=9.0)["c"] >= 0.25


def test_the_same_seed_gives_the_same_run() -> None:
    """Chance comes from the generator that is handed in, and from nothing else."""
    runs = [world({"a": flapping("fail", 0.7)}, Load(lasts_s=5.0), seed=7) for _ in range(2)]
    assert runs[0].attempts == runs[1].attempts
    assert runs[0].attempts != world({"a": flapping("fail", 0.7)}, Load(lasts_s=5.0)).attempts
