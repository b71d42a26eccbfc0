"""Rates, errors and durations from two readings of the metrics."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.gateway.metrics import BRANCHES, REQUESTS
from synchromesh.system.control.rates import (
    BranchRate,
    WorkRate,
    branch_rates,
    quantile,
    rates,
)
from synchromesh.telemetry.metrics import OK, SHORT_S, WORK, Family, Histogram, Metrics, Sample


def reading(*counted: tuple[str, str, float, int]) -> list[Family]:
    """Return what is read after so much work of operations: name, end, seconds, count."""
    metrics = Metrics()
    for name, end, took_s, count in counted:
        timings = metrics.timings("handle", "shop", name)
        assert timings is not None
        for _ in range(count):
            timings.of(end).observe(took_s)
    return metrics.families()


def test_what_was_done_between_two_readings_is_told_by_second() -> None:
    """What ended and what failed; a business no is no failure, and idle work is left out."""
    before = reading(("shop.sell", OK, 0.3, 10), ("shop.idle", OK, 0.3, 7))
    after = reading(
        ("shop.sell", OK, 0.3, 16),
        ("shop.sell", "out_of_stock", 0.3, 2),
        ("shop.sell", "timed_out", 20.0, 2),
        ("shop.idle", OK, 0.3, 7),
        ("shop.new", OK, 0.06, 1),
    )
    sell, new = rates(before, after, 2.0)
    assert (sell.name, sell.is_route, sell.per_s, sell.failed_per_s) == (
        "shop.sell",
        False,
        5.0,
        1.0,
    )
    assert (sell.p50_s, sell.p99_s) == (0.25 + 0.25 * 5 / 8, 10.0)
    assert (new.name, new.per_s) == ("shop.new", 0.5)


def test_a_process_that_has_started_again_began_at_zero() -> None:
    """Its counts are what was done since; nothing is negative."""
    before, after = reading(("shop.sell", OK, 0.3, 10)), reading(("shop.sell", OK, 0.3, 4))
    assert [each.per_s for each in rates(before, after, 1.0)] == [4.0]
    assert rates(after, after, 1.0) == []


def test_routes_come_first_and_fail_by_5xx() -> None:
    """A client that left, or was refused, is no failure of the route."""
    took = Histogram(SHORT_S)
    took.observe(0.001)
    samples = [
        took.sample("GET", "/stock", "http", status, "")
        for status in ("200", "404", "503", "", "500")
    ]
    after = [*reading(("shop.sell", OK, 0.3, 50)), Family(REQUESTS, samples)]
    first, second = rates([], after, 1.0)
    assert first == WorkRate("GET /stock", True, 5.0, 2.0, 0.00075, 0.000995)
    assert second.name == "shop.sell"
    assert WORK["handle"].bounds == REQUESTS.bounds == SHORT_S


def test_what_stood_in_for_branches_is_told_by_second() -> None:
    """Of two readings; a gateway that has started again began at zero, and what is idle is not."""

    def read(*counted: tuple[str, str, str, float]) -> list[Family]:
        return [Family(BRANCHES, [Sample(each[:3], each[3]) for each in counted])]

    page, stock = ("/page", "order", "stale"), ("/stock", "", "static")
    before, after = read((*page, 4.0), (*stock, 9.0)), read((*page, 10.0), (*stock, 9.0))
    assert branch_rates(before, after, 2.0) == [BranchRate(*page, 3.0)]
    assert branch_rates(after, before, 2.0) == [BranchRate(*page, 2.0)]
    assert branch_rates([], after, 1.0) == [BranchRate(*page, 10.0), BranchRate(*stock, 9.0)]


@given(st.lists(st.floats(0.0, 10.0), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_in_the_bucket_that_has_it(values: list[float], share: float) -> None:
    """It is off by no more than its bucket is wide."""
    took = Histogram(SHORT_S)
    for value in values:
        took.observe(value)
    exact = sorted(values)[min(len(values) - 1, max(0, round(share * len(values) + 0.499999) - 1))]
    found = quantile(share, SHORT_S, took.counts)
    bounds = (0.0, *SHORT_S)
    upper = next(bound for bound in bounds if exact <= bound)
    lower = max((bound for bound in bounds if bound < upper), default=0.0)
    assert lower <= found <= max(upper, SHORT_S[0])
