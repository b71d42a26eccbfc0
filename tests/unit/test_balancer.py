"""Round robin: whose turn it is, also while instances come and go; and the balancer's choices."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.discovery import (
    Balancer,
    BalancerOptions,
    CallEnd,
    Ejection,
    Endpoint,
    OutlierOptions,
    RoundRobin,
)
from synchromesh.errors import ConfigError, NoInstance


def at(instances: str) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(name, "billing", f"sim://{name}") for name in instances)


def turns(balancer: RoundRobin[Endpoint], instances: str, times: int) -> str:
    return "".join(balancer.pick(at(instances)).instance for _ in range(times))


def test_each_has_its_turn() -> None:
    """Calls go round, by the order of names, whatever the order of the list."""
    assert turns(RoundRobin("billing"), "abc", 7) == "abcabca"
    assert turns(RoundRobin("billing"), "cab", 7) == "abcabca"


def test_a_change_of_the_list_does_not_upset_the_turns() -> None:
    """The next is the one after the last, not the one at an index."""
    balancer: RoundRobin[Endpoint] = RoundRobin("billing")
    assert turns(balancer, "bcd", 2) == "bc"
    assert turns(balancer, "abcd", 2) == "da"
    assert turns(balancer, "cd", 3) == "cdc"
    assert turns(balancer, "ab", 2) == "ab"


def test_excluded_instances_are_passed_over() -> None:
    """A call that failed at one instance is tried at another."""
    balancer: RoundRobin[Endpoint] = RoundRobin("billing")
    assert balancer.pick(at("abc"), frozenset("a")).instance == "b"
    assert balancer.pick(at("abc"), frozenset("cx")).instance == "a"
    assert repr(balancer) == "<RoundRobin billing after 'a'>"


def test_without_an_instance_it_says_why() -> None:
    """Nothing registered, and everything tried already, are two different messages."""
    balancer: RoundRobin[Endpoint] = RoundRobin("billing")
    with pytest.raises(NoInstance, match="service 'billing' is ready: none is registered"):
        balancer.pick(())
    with pytest.raises(NoInstance, match="left to try: a, b failed this call already"):
        balancer.pick(at("ab"), frozenset("ab"))
    with pytest.raises(NoInstance, match="a, b, c, d, e and 2 more"):
        balancer.pick(at("abcdefg"), frozenset("abcdefg"))


@given(instances=st.sets(st.sampled_from("abcdefgh"), min_size=1), rounds=st.integers(1, 5))
def test_it_is_fair(instances: set[str], rounds: int) -> None:
    """Over whole rounds each instance is given the same number of calls."""
    listed = "".join(instances)
    counts = Counter(turns(RoundRobin("billing"), listed, rounds * len(listed)))
    assert set(counts.values()) == {rounds}


@given(lists=st.lists(st.sets(st.sampled_from("abcd"), min_size=1), min_size=8, max_size=40))
def test_nobody_starves(lists: list[set[str]]) -> None:
    """One who is always listed is never passed over twice for the same other one."""
    balancer: RoundRobin[Endpoint] = RoundRobin("billing")
    since: list[str] = []
    for listed in lists:
        picked = balancer.pick(at("".join(listed | {"m"}))).instance
        since = [] if picked == "m" else [*since, picked]
        assert len(set(since)) == len(since)


@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.sampled_from("abcdef"), min_size=1, unique=True),
            st.frozensets(st.sampled_from("abcdef"), max_size=3),
            st.integers(1, 4),
        ),
        max_size=20,
    )
)
def test_the_next_is_the_least_name_after_the_last(
    steps: list[tuple[list[str], frozenset[str], int]],
) -> None:
    """Whatever the list was before and whoever is excluded; after the greatest comes the least."""
    balancer: RoundRobin[Endpoint] = RoundRobin("billing")
    last = ""
    for listed, excluded, times in steps:
        endpoints, left = at("".join(listed)), sorted(set(listed) - excluded)
        for _ in range(times):
            if not left:
                with pytest.raises(NoInstance):
                    balancer.pick(endpoints, excluded)
                continue
            last = min((name for name in left if name > last), default=left[0])
            assert balancer.pick(endpoints, excluded).instance == last


def test_a_pick_does_not_look_at_every_instance() -> None:
    """From a list that stays the same it looks at one instance, however many are listed."""
    looks = 0

    class Watched:
        def __init__(self, name: str) -> None:
            self._name = name

        @property
        def instance(self) -> str:
            nonlocal looks
            looks += 1
            return self._name

    listed: Any = tuple(Watched(f"i{n:04}") for n in range(1000))
    balancer: RoundRobin[Endpoint] = RoundRobin("billing")
    balancer.pick(listed)
    looks = 0
    for _ in range(1000):
        balancer.pick(listed)
    assert looks <= 2000


ANSWERED, FAILED = CallEnd.ANSWERED, CallEnd.FAILED
AB = (Endpoint("a", "billing", "sim://a"), Endpoint("b", "billing", "sim://b"))
TURNS = BalancerOptions(by="round_robin")


def two_choices(**options: Any) -> Balancer:
    return Balancer("billing", rng=random.Random(1), options=BalancerOptions(**options))


def learn(balancer: Balancer, took_s: dict[str, float], now: float, times: int = 20) -> None:
    """Let each instance answer some calls, in its own time."""
    for _ in range(times):
        for instance, each_s in took_s.items():
            others = frozenset(took_s) - {instance}
            member = balancer.pick(at("".join(sorted(took_s))), now, others)
            assert member.instance == instance
            balancer.observe(member, now, each_s, ANSWERED)


def picked(balancer: Balancer, instances: str, now: float, times: int = 200) -> Counter[str]:
    """Pick so often, each time with nothing under way."""
    counts: Counter[str] = Counter()
    for _ in range(times):
        member = balancer.pick(at(instances), now)
        counts[member.instance] += 1
        balancer.observe(member, now, 0.0, CallEnd.LEFT)
    return counts


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"by": "least"}, 'by is \'least\'; make it "peak_ewma" or "round_robin"'),
        ({"decay_s": 0}, "decay_s is 0; make it a number of seconds above 0"),
        ({"decay_s": math.nan}, "decay_s is nan"),
        ({"warm_up_s": -1}, "warm_up_s is -1; make it a number of seconds, 0 or more"),
        ({"warm_up_answers": 0.5}, "warm_up_answers is 0.5; make it a whole number, 1 or more"),
    ],
)
def test_what_is_no_option_is_refused(wrong: dict[str, Any], message: str) -> None:
    """The message names the option, its value and what it takes."""
    with pytest.raises(ConfigError, match=message):
        BalancerOptions(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"failures_in_row": 0}, "failures_in_row is 0; make it a whole number, 1 or more"),
        ({"failures_in_row": 2.5}, "failures_in_row is 2.5; make it a whole number"),
        ({"failure_rate": 0}, "failure_rate is 0; make it a number above 0 and at most 1"),
        ({"minimum_answers": True}, "minimum_answers is True; make it a whole number"),
        ({"silent_for_s": 0}, "silent_for_s is 0; make it a number of seconds above 0"),
        ({"eject_for_s": "1s"}, "eject_for_s is '1s'; make it a number"),
        ({"eject_for_max_s": 0.1}, "eject_for_max_s is 0.1; make it at least eject_for_s"),
        ({"ejected_max": 1.5}, "ejected_max is 1.5; make it a number from 0 to 1"),
    ],
)
def test_what_is_no_outlier_option_is_refused(wrong: dict[str, Any], message: str) -> None:
    """The message names the option, its value and what it takes."""
    with pytest.raises(ConfigError, match=message):
        OutlierOptions(**wrong)


def test_without_an_instance_there_is_no_pick() -> None:
    """It says so as round robin does."""
    with pytest.raises(NoInstance, match="service 'billing' is ready: none is registered"):
        two_choices().pick((), 0.0)


def test_the_quicker_one_is_picked() -> None:
    """And the slower once the quicker has so many calls under way that it would be no quicker."""
    balancer = two_choices()
    learn(balancer, {"a": 0.010, "b": 0.035}, 0.0)
    assert picked(balancer, "ab", 0.0) == {"a": 200}
    names = [balancer.pick(at("ab"), 0.0).instance for _ in range(5)]
    assert names == ["a", "a", "a", "b", "a"]


def test_a_peak_fades() -> None:
    """One slow answer is no sentence for life, though nobody asks who is slow."""
    balancer = two_choices()
    learn(balancer, {"a": 0.010, "b": 0.010}, 0.0)
    member = balancer.pick(at("ab"), 0.0, frozenset("b"))
    balancer.observe(member, 0.0, 0.5, ANSWERED)
    assert picked(balancer, "ab", 0.0) == {"b": 200}
    again = balancer.pick(at("ab"), 0.0)
    assert (again.instance, balancer.pick(at("ab"), 10.0).instance) == ("b", "a")


def test_a_peak_has_a_bound() -> None:
    """One long answer among short ones: the others get at most ten times as many calls at once."""
    balancer = two_choices()
    learn(balancer, {"a": 0.010, "b": 0.010}, 0.0)
    balancer.observe(balancer.pick(at("ab"), 0.0, frozenset("b")), 0.0, 60.0, ANSWERED)
    counts = Counter(balancer.pick(at("ab"), 0.0).instance for _ in range(110))
    assert 8 <= counts["a"] <= 11


def test_one_that_fails_quickly_is_not_quick() -> None:
    """Refusals take no time, and would attract all calls: they count as what repeating costs."""
    for end in (FAILED, CallEnd.BUSY):
        balancer = two_choices(outliers=None)
        learn(balancer, {"a": 0.010, "b": 0.010}, 0.0)
        for _ in range(3):
            balancer.observe(balancer.pick(at("ab"), 0.0, frozenset("b")), 0.0, 0.0, end)
        assert picked(balancer, "ab", 0.0) == {"b": 200}


def test_a_new_one_has_the_latency_of_the_others_and_grows_into_its_share() -> None:
    """Its share is a tenth at once, half after half of the time, and then the whole."""
    balancer = two_choices()
    learn(balancer, {"a": 0.010, "b": 0.010}, 0.0)
    shares = [picked(balancer, "abc", now, times=3000)["c"] / 3000 for now in (1.0, 1.5, 2.1)]
    # What costs the same goes to the one that was drawn first: a third.
    assert shares == pytest.approx([0.033, 0.167, 0.333], abs=0.04)


def test_answers_warm_up_too() -> None:
    """Who has answered enough calls is warm, however soon."""
    balancer = two_choices(warm_up_answers=5)
    learn(balancer, {"a": 0.010, "b": 0.010}, 0.0)
    for _ in range(5):
        member = balancer.pick(at("abc"), 1.0, frozenset("ab"))
        balancer.observe(member, 1.0, 0.010, ANSWERED)
    assert picked(balancer, "abc", 1.0, times=3000)["c"] / 3000 == pytest.approx(0.333, abs=0.04)


def test_where_all_are_new_nobody_warms_up() -> None:
    """At the start of a caller there is nobody who could spare them anything."""
    assert picked(two_choices(), "ab", 0.0).keys() == {"a", "b"}


def test_who_failed_a_call_comes_last_but_before_who_is_ejected() -> None:
    """A second attempt goes to another one, unless that is known to be bad."""
    heard: list[Ejection] = []
    balancer = Balancer("billing", rng=random.Random(1), on_ejection=heard.append)
    learn(balancer, {"a": 0.010, "b": 0.010}, 0.0)
    assert balancer.pick(AB, 0.0, frozenset("a")).instance == "b"
    for _ in range(5):
        member = balancer.pick(at("ab"), 0.1, frozenset("b"))
        other = balancer.pick(at("ab"), 0.1, frozenset("a"))
        balancer.observe(other, 0.1, 0.01, ANSWERED)
        assert balancer.observe(member, 0.1, 0.01, FAILED) is False
    assert heard == [Ejection("a", "5 failures in a row", 0.1, 0.6)]
    assert balancer.ejected == ("a",)
    assert balancer.pick(AB, 0.2, frozenset("b")).instance == "b"
    assert repr(balancer) == "<Balancer billing by peak_ewma, <Outliers 1/2 ejected>>"
    probe = balancer.pick(AB, 0.7)
    assert probe.instance == "a"
    assert balancer.observe(probe, 0.8, 0.1, ANSWERED)
    assert heard[1:] == [Ejection("a", "the probe succeeded", 0.8, None)]


def test_a_probe_is_not_sent_by_a_call_that_failed_there() -> None:
    """Its next attempt goes elsewhere, also when the time of the ejection is over."""
    balancer = Balancer("billing", rng=random.Random(1), options=TURNS)
    members = [balancer.pick(AB, 0.0) for _ in range(12)]
    for member in reversed(members):
        balancer.observe(member, 0.1, 0.1, FAILED if member.instance == "a" else ANSWERED)
    assert balancer.ejected == ("a",)
    assert balancer.pick(AB, 9.0, frozenset("a")).instance == "b"
    assert balancer.pick(AB, 9.0).instance == "a"


def test_an_instance_that_fails_a_third_of_its_calls_is_ejected() -> None:
    """Its rate tells, though it never fails five times in a row."""
    heard: list[Ejection] = []
    balancer = Balancer("billing", rng=random.Random(1), options=TURNS, on_ejection=heard.append)
    for number in range(60):
        for _ in range(2):
            member = balancer.pick(AB, number / 100)
            is_bad = member.instance == "a" and number % 2 == 0
            balancer.observe(member, number / 100, 0.001, FAILED if is_bad else ANSWERED)
        if heard:
            break
    assert [each.instance for each in heard] == ["a"]
    assert heard[0].why.endswith("% of its last calls failed")


@pytest.mark.parametrize(
    ("count", "share", "most"),
    [(2, 0.5, 1), (3, 0.5, 2), (3, 0.3, 1), (3, 1.0, 2), (5, 0.5, 3), (10, 0.1, 1), (10, 0.0, 0)],
)
def test_no_more_than_the_share_is_ejected_at_once(count: int, share: float, most: int) -> None:
    """The panic threshold, rounded up, and never the last: who stays is asked though it fails."""
    names = "abcdefghij"[:count]
    listed, balancer = at(names), two_choices(outliers=OutlierOptions(ejected_max=share))
    for number in range(50 * count):
        now, name = number / 1000, names[number % count]
        member = balancer.pick(listed, now, frozenset(names) - {name})
        is_bad = member.instance != "a"
        balancer.observe(member, now, 0.001, FAILED if is_bad else ANSWERED)
    assert len(balancer.ejected) == most
    asked = {balancer.pick(listed, 0.3, frozenset(names) - {name}).instance for name in names}
    assert asked >= set(names) - set(balancer.ejected)


def test_what_a_caller_keeps_is_made_anew_for_each_term() -> None:
    """`target` outlives a list that is equal but not the same; an ejection begins a new member."""
    balancer = Balancer("billing", rng=random.Random(1), options=TURNS)
    members = [balancer.pick(AB, 0.0) for _ in range(12)]
    for member in members:
        member.target = f"target of {member.instance}"
    for member in reversed(members):
        balancer.observe(member, 0.1, 0.1, FAILED if member.instance == "a" else ANSWERED)
    probe = balancer.pick(at("ab"), 9.0)
    assert (probe.instance, probe.target) == ("a", None)
    balancer.observe(probe, 9.0, 0.0, ANSWERED)
    assert {balancer.pick(at("ab"), 9.1).target for _ in range(4)} == {None, "target of b"}


def test_one_failing_instance_among_unknown_ones_counts_for_the_edge() -> None:
    """Where nothing is known of the others, nothing says that they are well."""
    balancer = Balancer("billing", rng=random.Random(1), options=TURNS)
    for _ in range(20):
        member = balancer.pick(AB, 0.0)
        assert balancer.observe(member, 0.0, 0.0, FAILED) is True
    assert balancer.ejected == ()


def test_half_open_one_instance_does_not_decide_for_all() -> None:
    """While the breaker probes, the first that fails is neutral; the last one speaks for all."""
    balancer = Balancer("billing", rng=random.Random(1))
    for _ in range(20):
        balancer.observe(balancer.pick(at("abc"), 0.0), 0.0, 0.0, FAILED)
    verdicts, asked = [], []
    for number in range(3):
        member = balancer.pick(at("abc"), 5.0 + number)
        asked.append(member.instance)
        verdicts.append(balancer.observe(member, 5.5 + number, 0.5, FAILED, half_open_s=5.0))
    assert sorted(asked) == ["a", "b", "c"]
    assert verdicts == [False, False, True]
