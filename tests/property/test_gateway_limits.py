"""Token buckets give what a bucket that is filled drop by drop would give."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.gateway import TokenBuckets
from synchromesh.gateway.limits import whole_seconds


class Bucket:
    """A bucket of tokens, exact."""

    def __init__(self, burst: int) -> None:
        self.burst, self.tokens, self.at = burst, Fraction(burst), Fraction(0)

    def take(self, now: Fraction) -> bool:
        self.tokens = min(Fraction(self.burst), self.tokens + (now - self.at))
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 24)), max_size=60),
    st.integers(3, 5),
)
def test_buckets_are_buckets(burst: int, asked: list[tuple[str, int]], most: int) -> None:
    """With room for every key, each is admitted exactly when its own bucket has a token."""
    buckets = TokenBuckets(interval_s=1.0, burst=burst, buckets_max=most)
    model = {key: Bucket(burst) for key in "abc"}
    now = 0
    for key, after in asked:
        now += after
        assert (buckets.take(key, now / 8) == 0.0) == model[key].take(Fraction(now, 8))


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 8)), max_size=80),
)
def test_no_number_of_names_gets_more_than_the_buckets(
    burst: int, asked: list[tuple[str, int]]
) -> None:
    """Whoever comes under many names gets what few buckets hold, and they stay few."""
    buckets = TokenBuckets(interval_s=1.0, burst=burst, buckets_max=2)
    now, admitted = 0, 0
    for key, after in asked:
        now += after
        admitted += buckets.take(key, now / 8) == 0.0
        assert len(buckets) <= 3
    assert admitted <= 3 * (burst + now / 8)


@given(
    interval_s=st.sampled_from([0.05, 0.3, 1.0, 2.0, 7.5]),
    burst=st.integers(1, 5),
    pauses=st.lists(st.integers(0, 40), max_size=40),
)
def test_what_is_told_is_what_is_given(interval_s: float, burst: int, pauses: list[int]) -> None:
    """So many as are left are admitted at once; after `t` there is one more, as a refusal says."""
    now = 0.0
    buckets = TokenBuckets(interval_s=interval_s, burst=burst, name="GET /x")
    taken: list[float] = []

    def replayed() -> TokenBuckets:
        """Return buckets that the same was taken from."""
        other = TokenBuckets(interval_s=interval_s, burst=burst)
        assert not any(other.take("shop", at) for at in taken)
        return other

    for pause in pauses:
        now += pause * interval_s / 8
        wait_s = buckets.take("shop", now)
        if not wait_s:
            taken.append(now)
        policy, limit = buckets.allowance("shop", now).fields
        assert policy == (
            "ratelimit-policy",
            f'"GET /x";q={burst};w={math.ceil(interval_s * burst - 1e-9)}',
        )
        told = re.fullmatch(r'"GET /x";r=([0-9]+)(?:;t=([1-9][0-9]*))?', limit[1])
        assert told is not None
        left = int(told[1])
        if wait_s:
            assert (left, told[2]) == (0, str(whole_seconds(wait_s)))
        other = replayed()
        given = 0
        while not other.take("shop", now):
            given += 1
        assert given == left
        if told[2] is not None:
            other = replayed()
            later = now + int(told[2])
            assert [bool(other.take("shop", later)) for _ in range(left + 1)] == [False] * (
                left + 1
            )
        assert (
            buckets.allowance("shop", now).lines
            == "".join(f"{name}: {value}\r\n" for name, value in (policy, limit)).encode()
        )


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), max_size=80),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_gateways_together_keep_the_rate(
    burst: int, asked: list[tuple[int, int]], counts: list[int]
) -> None:
    """Whichever of them is asked: no more than the rate, and what a burst is rounded up by.

    How many there are changes meanwhile.
    """
    gateways = [TokenBuckets(interval_s=1.0, burst=burst) for _ in range(4)]
    # Of another number each may have had its burst, once.
    bound, now, admitted = 0.0, 0, 0
    phases = [asked[each :: len(counts)] for each in range(len(counts))]
    for count, phase in zip(counts, phases, strict=True):
        bound += count * math.ceil(burst / count)
        for buckets in gateways:
            buckets.share(count)
        for number, after in phase:
            now += after
            admitted += gateways[number % count].take("a", now / 8) == 0.0
    assert admitted <= bound + now / 8 + 1e-6


def test_a_part_of_a_rate_is_told_as_it_is() -> None:
    """A client is told what this gateway admits, and the whole again once it is alone."""
    buckets = TokenBuckets(interval_s=1.0, burst=4, name="x")
    buckets.share(2)
    assert buckets.take("shop", 0.0) == 0.0
    assert buckets.allowance("shop", 0.0).fields == (
        ("ratelimit-policy", '"x";q=2;w=4'),
        ("ratelimit", '"x";r=1;t=2'),
    )
    buckets.share(1)
    assert buckets.allowance("shop", 0.0).fields == (
        ("ratelimit-policy", '"x";q=4;w=4'),
        ("ratelimit", '"x";r=2;t=1'),
    )
    assert buckets.is_as(TokenBuckets(interval_s=1.0, burst=4))
