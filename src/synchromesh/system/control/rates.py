"""Rates, errors and durations of work, from two readings of the metrics of a system.

As Prometheus' `rate` and `histogram_quantile` have them, so that a screen and a dashboard agree.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from operator import add, sub
from typing import TypeVar

import msgspec

from synchromesh.telemetry.metrics import Family, Sample

ROUTES, OPERATIONS = "http.server.request.duration", "synchromesh.operation.duration"
CALLS = "synchromesh.call.duration"
BRANCHES = "synchromesh.gateway.branch.outcomes"


K = TypeVar("K")


class WorkRate(msgspec.Struct, frozen=True):
    """What a route or an operation did between two readings.

    Attributes:
        name: of an operation, or a route's method and path.
        is_route: whether it is a route of the gateway.
        per_s: how many ended, a second.
        failed_per_s: how many of them failed; a no to the caller is no failure.
        p50_s, p99_s: what they took, half of them and 99 in 100 at most, as far as buckets tell;
            of what took longer than the longest bucket its bound.
    """

    name: str
    is_route: bool
    per_s: float
    failed_per_s: float
    p50_s: float
    p99_s: float


class EdgeRate(msgspec.Struct, frozen=True):
    """What went over an edge between two readings; the figures are those of `WorkRate`."""

    caller: str
    callee: str
    per_s: float
    failed_per_s: float
    p50_s: float
    p99_s: float


class BranchRate(msgspec.Struct, frozen=True):
    """How often a branch of a route, "" for all of it, came to something else than an answer."""

    route: str
    branch: str
    outcome: str
    per_s: float


class _Work:
    """Adds up the series of one name."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.failed = 0

    def add(self, counts: tuple[int, ...], *, is_failed: bool) -> None:
        self.counts = list(map(add, self.counts, counts))
        self.failed += sum(counts) * is_failed

    def figures(self, took_s: float) -> tuple[float, float, float, float]:
        """Return how many ended and failed a second, and what half of them and 99 in 100 took."""
        summed = list(accumulate(self.counts))
        return (
            summed[-1] / took_s,
            self.failed / took_s,
            _quantile(0.5, self.bounds, summed),
            _quantile(0.99, self.bounds, summed),
        )


def rates(before: Iterable[Family], after: Iterable[Family], took_s: float) -> list[WorkRate]:
    """Return the rates of routes and operations that had something to do, the busiest first.

    Args:
        before: the reading before; what is not in it began at 0.
        took_s: how long after it the other one is, above zero.
    """
    told = [
        WorkRate(name, metric == ROUTES, *work.figures(took_s))
        for (metric, name), work in _worked(before, after, (ROUTES, OPERATIONS), _read).items()
    ]
    return sorted(told, key=lambda each: (not each.is_route, -each.per_s, each.name))


def edge_rates(before: Iterable[Family], after: Iterable[Family], took_s: float) -> list[EdgeRate]:
    """Return the rates of edges over which something was called; the arguments are of `rates`."""
    found = _worked(before, after, (CALLS,), _read_edge)
    return sorted(
        (EdgeRate(*edge, *work.figures(took_s)) for (_, edge), work in found.items()),
        key=lambda each: (each.caller, each.callee),
    )


def branch_rates(
    before: Iterable[Family], after: Iterable[Family], took_s: float
) -> list[BranchRate]:
    """Return how often what stood in for answers; the arguments are of `rates`."""
    known = dict(_values(before, BRANCHES))
    found = []
    for labels, value in _values(after, BRANCHES):
        since = value - known.get(labels, 0.0)
        if since < 0:  # its process has started again
            since = value
        if since:
            route, branch, outcome = labels
            found.append(BranchRate(route, branch, outcome, since / took_s))
    return sorted(found, key=lambda each: (each.route, each.branch, each.outcome))


def _values(families: Iterable[Family], metric: str) -> Iterator[tuple[tuple[str, ...], float]]:
    for family in families:
        if family.metric.name == metric:
            for sample in family.samples:
                yield sample.labels, sample.value


def _worked(
    before: Iterable[Family],
    after: Iterable[Family],
    metrics: tuple[str, ...],
    read: Callable[[str, dict[str, str]], tuple[K, bool]],
) -> dict[tuple[str, K], _Work]:
    """Return what was done between two readings, by metric and by what is read of its labels."""
    known = {
        (family.metric.name, sample.labels): sample.counts
        for family in before
        if family.metric.name in metrics
        for sample in family.samples
    }
    found: dict[tuple[str, K], _Work] = {}
    for family in after:
        metric = family.metric
        if metric.name not in metrics:
            continue
        for sample in family.samples:
            name, is_failed = read(
                metric.name, dict(zip(metric.labels, sample.labels, strict=True))
            )
            work = found.get((metric.name, name))
            if work is None:
                work = found[metric.name, name] = _Work(metric.bounds)
            counts = _since(known.get((metric.name, sample.labels)), sample)
            work.add(counts, is_failed=is_failed)
    return {name: work for name, work in found.items() if sum(work.counts)}


def quantile(share: float, bounds: tuple[float, ...], counts: Iterable[int]) -> float:
    """Return what a share of values is at most, as if each bucket were evenly filled.

    Example:
        >>> quantile(0.5, (1.0, 2.0), [0, 4, 0]), quantile(0.99, (1.0, 2.0), [0, 0, 1])
        (1.5, 2.0)
    """
    return _quantile(share, bounds, list(accumulate(counts)))


def _quantile(share: float, bounds: tuple[float, ...], summed: list[int]) -> float:
    rank = share * summed[-1]
    at = bisect_left(summed, rank)
    if not rank or at >= len(bounds):
        return bounds[-1]
    lower, below = (bounds[at - 1], summed[at - 1]) if at else (0.0, 0)
    return lower + (bounds[at] - lower) * (rank - below) / (summed[at] - below)


def _read(metric: str, labels: dict[str, str]) -> tuple[str, bool]:
    """Return the name of a series, and whether it is of what failed."""
    if metric == OPERATIONS:
        return labels["operation"], labels["outcome"] == "failed"
    path = labels["http.route"]
    name = f"{labels['http.request.method']} {path}" if path else "no route"
    return name, labels["http.response.status_code"] >= "500"


def _read_edge(_: str, labels: dict[str, str]) -> tuple[tuple[str, str], bool]:
    return (labels["service.name"], labels["callee"]), labels["outcome"] == "failed"


def _since(before: tuple[int, ...] | None, sample: Sample) -> tuple[int, ...]:
    """Return what was counted since; a process that has started again began at 0."""
    if before is None:
        return sample.counts
    since = tuple(map(sub, sample.counts, before))
    return sample.counts if min(since) < 0 else since
