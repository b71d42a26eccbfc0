"""Which URLs are listed, by what their checks came to; and how weights share requests."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.discovery import (
    Balancer,
    BalancerOptions,
    CallEnd,
    Endpoint,
    HealthOptions,
    UpstreamHealth,
)
from synchromesh.errors import ConfigError

A, B, C = (Endpoint(name, "shop", f"http://{name}") for name in "abc")


def listed(health: UpstreamHealth) -> str:
    return "".join(each.instance for each in health.listed)


def told(health: UpstreamHealth, *checks: str) -> list[str]:
    """Tell checks such as "a-" and "b+", and return what is listed after each."""
    found = []
    for check in checks:
        health.observe(check[0], "refused" if check[1] == "-" else "")
        found.append(listed(health))
    return found


def test_the_first_check_decides_alone_and_later_ones_in_a_row() -> None:
    """A URL that is down at the start is out at once; one that was up, after two failures."""
    health = UpstreamHealth((A, B))
    assert told(health, "a+", "b-") == ["ab", "a"]
    assert told(health, "b+", "b-", "b+", "b+") == ["a", "a", "a", "ab"]
    assert told(health, "a-", "a+", "a-", "a-") == ["ab", "ab", "ab", "b"]
    assert health.down == {"a": "refused"}
    assert repr(health) == "<UpstreamHealth 1 of 2 up>"


def test_where_none_is_up_all_are_listed() -> None:
    """A check that is wrong takes nothing away; who comes back is alone again."""
    health = UpstreamHealth((A, B), HealthOptions(down_after=1, up_after=1))
    assert told(health, "a-", "b-", "b+", "a+") == ["b", "ab", "b", "ab"]


def test_who_comes_back_warms_up() -> None:
    """It is another endpoint to a balancer, so that it is given more and more at first."""
    health = UpstreamHealth((A, B), HealthOptions(down_after=1, up_after=1))
    balancer = Balancer("shop", rng=random.Random(7))

    def calls(now: float) -> Counter[str]:
        given_to: Counter[str] = Counter()
        for _ in range(100):
            member = balancer.pick(health.listed, now)
            balancer.observe(member, now, 0.01, CallEnd.ANSWERED)
            given_to[member.instance] += 1
        return given_to

    calls(0.0)
    told(health, "a+", "b-", "b+")
    assert 1 <= calls(10.0)["b"] < 40


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_what_is_listed_is_up_or_everything(checks: list[tuple[str, bool]]) -> None:
    """Never nobody; never one that is down beside one that is up."""
    health = UpstreamHealth((A, B, C))
    for instance, is_well in checks:
        before = listed(health), set(health.down)
        has_changed = health.observe(instance, "" if is_well else "no")
        assert has_changed == (set(health.down) != before[1])
        up = [name for name in "abc" if name not in health.down]
        assert listed(health) == "".join(up or "abc")


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_s": 0},
        {"every_s": 1.0, "timeout_s": 2.0},
        {"timeout_s": 0.0},
        {"down_after": 0},
        {"up_after": True},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    """With the option's name."""
    with pytest.raises(ConfigError, match="HealthOptions: "):
        HealthOptions(**wrong)
    with pytest.raises(ConfigError, match="has the weight 0"):
        Endpoint("a", "shop", "http://a", weight=0)


@pytest.mark.parametrize("by", ["peak_ewma", "round_robin"])
@pytest.mark.parametrize("weights", [(5, 5), (1, 1), (1, None)])
def test_weights_that_are_the_same_share_requests_as_well(
    by: Literal["peak_ewma", "round_robin"], weights: tuple[int | None, ...]
) -> None:
    """Whether there are weights is up to whoever configures, not to what is left of them."""
    listed = tuple(
        Endpoint(name, "shop", f"http://{name}", weight=weight)
        for name, weight in zip("ab", weights, strict=True)
    )
    balancer = Balancer("shop", rng=random.Random(1), options=BalancerOptions(by=by, warm_up_s=0))
    given_to: Counter[str] = Counter()
    for number in range(1000):
        member = balancer.pick(listed, 0.1 * number)
        took_s = 0.05 if member.instance == "a" else 0.001
        balancer.observe(member, 0.1 * number + took_s, took_s, CallEnd.ANSWERED)
        given_to[member.instance] += 1
    assert 440 < given_to["a"] < 560
    # By chance, not in turn.
    assert given_to["a"] != given_to["b"]


def test_weights_share_requests_and_failures_take_from_a_share() -> None:
    """9 to 1 is nine in ten, whoever answers sooner; who fails gets less, and then nothing."""
    a = Endpoint("a", "shop", "http://a", weight=9)
    balancer = Balancer("shop", rng=random.Random(1))

    def calls(count: int, now: float, *, failing: str = "") -> Counter[str]:
        given_to: Counter[str] = Counter()
        for _ in range(count):
            member = balancer.pick((a, B), now)
            end = CallEnd.FAILED if member.instance in failing else CallEnd.ANSWERED
            balancer.observe(member, now, 0.5 if member.instance == "a" else 0.001, end)
            given_to[member.instance] += 1
        return given_to

    assert 860 < calls(1000, 1.0)["a"] < 940
    failed = calls(200, 1.1, failing="a")
    assert balancer.ejected == ("a",)
    assert failed["b"] > 150
