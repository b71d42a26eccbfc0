"""Round robin: whose turn it is, also while instances come and go."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.discovery import Endpoint, RoundRobin
from synchromesh.errors import NoInstance


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
