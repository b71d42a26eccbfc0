"""Metrics in memory: what a tracer counts, what is told apart, and what is merged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from synchromesh.errors import TimedOut
from synchromesh.gateway.composition import BranchOutcome, BranchStatus
from synchromesh.gateway.metrics import BRANCH_TOOK, BRANCHES, REQUESTS
from synchromesh.gateway.traffic import RouteTraffic, families
from synchromesh.runtime import Runtime
from synchromesh.telemetry import MemoryRing, Tracer
from synchromesh.telemetry.metrics import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    OK,
    OTHER,
    SHORT_S,
    WORK,
    Family,
    Histogram,
    Metric,
    Metrics,
    Sample,
    bounded,
    merge,
)
from synchromesh.testing import run

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def of(metrics: Metrics, kind: str) -> dict[tuple[str, ...], int]:
    """Return how many were counted of a kind of work, by labels."""
    return {
        sample.labels: sum(sample.counts)
        for family in metrics.families()
        if family.metric == WORK[kind]
        for sample in family.samples
    }


def test_each_recorded_span_is_counted_and_timed_by_how_it_ended() -> None:
    """Once, whether it was recorded or was a context manager; an error is counted by its code."""
    metrics = Metrics()

    async def main(runtime: Runtime) -> None:
        tracer = Tracer("shop#2", runtime, MemoryRing(), metrics=metrics)
        record = tracer.recorder("call", "bank.charge")
        record(TRACE, SPAN, "", 1.0, 1.25)
        record(TRACE, SPAN, "", 1.0, 1.5)
        record(TRACE, SPAN, "", 1.0, 3.0, "timed_out")
        tracer.recorder("call", "fleet GET /machines/{id}")(TRACE, SPAN, "", 1.0, 1.0)
        with tracer.start("relay", "shop.sold", trace_id=TRACE):
            pass
        span = tracer.start("relay", "shop.sold", trace_id=TRACE)
        span.fail(TimedOut("no answer"))
        span.end()
        span.end()
        # What has metrics of its own is not counted twice.
        tracer.recorder("gateway", "GET /")(TRACE, SPAN, "", 1.0, 1.0)

    run(main)
    who = ("shop", "shop#2")
    assert of(metrics, "call") == {
        (*who, "bank", "bank.charge", "ok", ""): 2,
        (*who, "bank", "bank.charge", "failed", "timed_out"): 1,
        (*who, "fleet", "fleet GET /machines/{id}", "ok", ""): 1,
    }
    message = (*who, "synchromesh", "send", "send", "shop.sold")
    assert of(metrics, "relay") == {(*message, "ok", ""): 1, (*message, "failed", "timed_out"): 1}
    (family, _) = metrics.families()
    assert [sample.value for sample in family.samples] == [0.75, 2.0, 0.0]


def test_without_metrics_a_tracer_counts_nothing() -> None:
    """Spans are recorded all the same."""
    ring = MemoryRing()

    async def main(runtime: Runtime) -> None:
        tracer = Tracer("shop", runtime, ring)
        tracer.recorder("call", "bank.charge")(TRACE, SPAN, "", 1.0, 1.25, "timed_out")
        assert tracer.timings("call", "bank.charge") is None

    run(main)
    assert [made.status for made in ring] == ["timed_out"]


def test_what_is_told_apart_is_bounded() -> None:
    """Names and errors beyond the bound are one, and a step that is repeated is one as well."""
    metrics = Metrics(timings_max=3)
    for number in range(100):
        timings = metrics.timings("step", "shop", f"pack#{number}")
        assert timings is not None
        timings.of(OK).observe(0.1)
    for number in range(100):
        timings = metrics.timings("unit", "shop", f"unit {number}")
        assert timings is not None
        timings.of(f"Error{number}").observe(0.1)
    counted = of(metrics, "unit")
    assert len(metrics.families()) == 2
    assert of(metrics, "step") == {("shop", "shop", "pack", "ok", ""): 100}
    assert sum(counted.values()) == 100
    assert {labels[2] for labels in counted} == {"unit 0", "unit 1", OTHER}
    # Of those that are not told apart, 16 ways to end are, one of them for all others.
    assert sum(labels[2] == OTHER for labels in counted) == 17
    assert counted["shop", "shop", OTHER, "failed", OTHER] == 98 - 15
    assert metrics.overflowed == 98


@given(st.lists(st.floats(0, 1e6)))
def test_a_histogram_has_each_value_in_the_bucket_of_its_bound(values: list[float]) -> None:
    """An upper bound belongs to its bucket, as Prometheus has it; what is larger to the last."""
    took = Histogram(SHORT_S)
    for value in values:
        took.observe(value)
    for place, bound in enumerate(SHORT_S):
        assert sum(took.counts[: place + 1]) == sum(value <= bound for value in values)
    assert sum(took.counts) == len(values)


def test_what_several_processes_tell_becomes_one() -> None:
    """Equal series are added, of a gauge the first is kept, and another definition is left out."""
    hits = Metric("hits", COUNTER, "{hit}", "Hits.", ("page",))
    size = Metric("size", GAUGE, "By", "Size.")
    took = Metric("took", HISTOGRAM, "s", "Took.", (), (1.0,))
    first = [
        Family(hits, [Sample(("a",), 1)]),
        Family(size, [Sample((), 7)]),
        Family(took, [Sample((), 1.5, (1, 0))]),
    ]
    second = [
        Family(took, [Sample((), 2.5, (1, 2))]),
        Family(hits, [Sample(("b",), 1), Sample(("a",), 2)]),
        Family(size, [Sample((), 8)]),
    ]
    other = [Family(Metric("hits", COUNTER, "{hit}", "Other hits."), [Sample((), 9)])]
    assert merge(first, second, other) == [
        Family(hits, [Sample(("a",), 3), Sample(("b",), 1)]),
        Family(size, [Sample((), 7)]),
        Family(took, [Sample((), 4.0, (2, 2))]),
    ]
    kept = list(bounded(merge(first, second), 2))
    assert [len(family.samples) for family in kept] == [2]


def test_requests_are_counted_by_the_stable_conventions() -> None:
    """Method, route, status and error; made-up methods are one, who left has no status."""
    route, others = RouteTraffic("ANY shop.example/stock/{sku}", None), RouteTraffic("", None)
    # As the two ways of the gateway name it.
    route.answered(b"GET", 200, 0.001)
    route.answered("GET", 200, 0.002)
    route.answered("POST", 503, 0.1)
    route.answered(b"GET", 0, 0.5)
    route.branched({})
    route.branches["stock"] = {"stale": 2}
    fresh, late = BranchOutcome(BranchStatus.OK), BranchOutcome(BranchStatus.STALE)
    route.branched({"stock": fresh, "price": fresh}, {"stock": 0.002, "price": 0.1})
    route.branched({"stock": late, "price": fresh}, {"stock": 0.5})
    for number in range(500):
        others.answered(f"MADE-UP{number}", 400 + number % 90, 0.0)
    found = {family.metric: family.samples for family in families([route, others], scheme="https")}
    told = {sample.labels: sum(sample.counts) for sample in found[REQUESTS]}
    path = "shop.example/stock/{sku}"
    assert {labels: count for labels, count in told.items() if labels[1]} == {
        ("GET", path, "https", "200", ""): 2,
        ("POST", path, "https", "503", "503"): 1,
        ("GET", path, "https", "", "cancelled"): 1,
    }
    rest = {labels: count for labels, count in told.items() if not labels[1]}
    assert sum(rest.values()) == 500
    assert {labels[0] for labels in rest} == {OTHER}
    assert len(rest) <= 65
    assert found[BRANCHES] == [Sample((path, "stock", "stale"), 3)]
    took = {sample.labels[1:]: (sum(sample.counts), sample.value) for sample in found[BRANCH_TOOK]}
    assert took == {
        ("stock", "ok"): (1, 0.002), ("price", "ok"): (1, 0.1), ("stock", "stale"): (1, 0.5),
    }  # fmt: skip
    assert route.counts().answers == {"2xx": 2, "5xx": 1}
    assert others.counts().requests == 500
