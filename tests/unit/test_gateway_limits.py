"""Token buckets and the last good answers."""

from __future__ import annotations

import pytest

from synchromesh.errors import ConfigError
from synchromesh.gateway import TokenBuckets
from synchromesh.gateway.last_answers import LastAnswers
from synchromesh.gateway.limits import burst_of, interval_of


@pytest.mark.parametrize("limit", ["", "20", "20/", "/s", "-1/s", "0/s", "1.5/s", "20/d", "20 / s"])
def test_what_is_no_rate_is_refused(limit: str) -> None:
    """A rate is a count above zero per second, minute or hour."""
    with pytest.raises(ConfigError, match="is no rate"):
        interval_of(limit)


def test_a_burst_is_one_seconds_worth() -> None:
    """Where no burst is given, what one second brings may come at once, and at least one."""
    assert [burst_of(limit) for limit in ("1/s", "20/s", "90/m", "3/h", "3600/h")] == [
        1,
        20,
        1,
        1,
        1,
    ]


def test_after_the_burst_tokens_come_at_the_rate() -> None:
    """A bucket gives its burst at once, then a token an interval, and says when one comes."""
    buckets = TokenBuckets(interval_s=0.5, burst=3)
    assert [buckets.take("shop", 10.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("shop", 10.25) == 0.25
    assert buckets.take("shop", 10.5) == 0.0
    assert buckets.take("shop", 10.5) == 0.5


def test_refusals_cost_nothing() -> None:
    """Asking too often does not put off the next token."""
    buckets = TokenBuckets(interval_s=1.0, burst=1)
    assert buckets.take("shop", 0.0) == 0.0
    for at in range(9):
        assert buckets.take("shop", at / 10) > 0
    assert buckets.take("shop", 1.0) == 0.0


def test_rest_fills_the_bucket_and_no_more() -> None:
    """However long nobody asks, no more than the burst comes at once."""
    buckets = TokenBuckets(interval_s=1.0, burst=2)
    buckets.take("shop", 0.0)
    assert [buckets.take("shop", 1000.0) for _ in range(3)] == [0.0, 0.0, 1.0]


def test_each_key_has_its_own() -> None:
    """What one asks does not take from another."""
    buckets = TokenBuckets(interval_s=1.0, burst=1)
    assert [buckets.take(key, 0.0) for key in "abab"] == [0.0, 0.0, 1.0, 1.0]


def test_many_names_get_no_more_than_one() -> None:
    """Past the bound newcomers share one bucket; nobody who was there is forgotten for them."""
    buckets = TokenBuckets(interval_s=1.0, burst=1, buckets_max=2)
    assert [buckets.take(key, 0.0) for key in "abcd"] == [0.0, 0.0, 0.0, 1.0]
    assert [buckets.take(key, 0.5) for key in "abe"] == [0.5, 0.5, 0.5]
    assert len(buckets) == 3


def test_full_buckets_make_room() -> None:
    """A bucket that is full again says nothing, and is forgotten for a newcomer."""
    buckets = TokenBuckets(interval_s=1.0, burst=1, buckets_max=2)
    buckets.take("a", 0.0)
    buckets.take("b", 0.5)
    assert buckets.take("c", 1.0) == 0.0
    assert buckets.take("b", 1.0) == 0.5
    assert len(buckets) == 2


@pytest.mark.parametrize(("interval_s", "burst", "most"), [(0.0, 1, 1), (1.0, 0, 1), (1.0, 1, 0)])
def test_buckets_refuse_what_makes_no_sense(interval_s: float, burst: int, most: int) -> None:
    """No time between tokens, no token, or no bucket is a mistake."""
    with pytest.raises(ConfigError):
        TokenBuckets(interval_s=interval_s, burst=burst, buckets_max=most)


def test_an_answer_is_found_until_it_is_too_old() -> None:
    """The last answer comes with its age, and not once it is older than asked for."""
    last = LastAnswers(answers_max=9, bytes_max=99)
    last.keep("q", b"1", now=5.0)
    assert last.find("q", at_most_s=10.0, now=15.0) == (b"1", 10.0)
    assert last.find("q", at_most_s=10.0, now=15.1) is None
    last.keep("q", b"2", now=20.0)
    assert last.find("q", at_most_s=10.0, now=20.0) == (b"2", 0.0)
    assert last.find("other", at_most_s=10.0, now=20.0) is None
    assert len(last) == 1


def test_answers_are_bounded_in_number_and_bytes() -> None:
    """The one that was used the longest ago goes first, and one too large is not kept at all."""
    last = LastAnswers(answers_max=2, bytes_max=10)
    last.keep("a", b"11", now=0.0)
    last.keep("b", b"22", now=0.0)
    last.find("a", at_most_s=9.0, now=0.0)
    last.keep("c", b"33", now=0.0)
    assert [last.find(q, at_most_s=9.0, now=0.0) for q in "abc"] == [
        (b"11", 0.0),
        None,
        (b"33", 0.0),
    ]
    last.keep("d", b"4" * 10, now=0.0)
    assert [last.find(q, at_most_s=9.0, now=0.0) is None for q in "acd"] == [True, True, False]
    last.keep("d", b"4" * 11, now=1.0)
    assert len(last) == 0
    assert repr(last) == "<LastAnswers 0 of 2, 0 bytes>"
