"""Token buckets give what a bucket that is filled drop by drop would give."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.gateway import TokenBuckets


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
