"""Metrics: what there was to do, counted and timed in memory, and the names it is exported under.

Work is counted where its span is recorded, by numbers in lists that were made once for each kind
and name; whatever can be read when somebody asks is read then. Nothing here is per request, and no
label is made of a value: of names there is a bound, past which they are one, `OTHER`.

Names, units and labels are those of OpenTelemetry; `exposition` makes Prometheus' names of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

import msgspec

from synchromesh.errors import error_table

# The stable HTTP conventions' bounds, and three below: a call within the system takes microseconds.
SHORT_S = (
    0.0005, 0.001, 0.0025,
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
# A saga may wait for a person.
LONG_S = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0, 3600.0, 86_400.0, 604_800.0)
# What OpenTelemetry calls a value of a bounded set that is none of its members.
OTHER = "_OTHER"
OK = "ok"

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Metric(msgspec.Struct, frozen=True):
    """The definition of a metric.

    Attributes:
        name: OpenTelemetry's, with dots.
        kind: `COUNTER`, `GAUGE` or `HISTOGRAM`.
        unit: by UCUM: "s", "By", or what is counted, as "{call}".
        help: one sentence.
        labels: the names of its attributes, with dots.
        bounds: the upper bounds of a histogram's buckets, each inclusive.

    Example:
        >>> Metric("synchromesh.sagas", GAUGE, "{saga}", "Runs.", ("saga.status",)).kind
        'gauge'
    """

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One series of a metric at one moment.

    Attributes:
        labels: the values of the metric's labels, in their order; "" for one that does not apply.
        value: of a histogram the sum of what was observed.
        counts: of a histogram how many were in each bucket alone, the last without an upper bound.
    """

    labels: tuple[str, ...]
    value: float
    counts: tuple[int, ...] = ()


class Family(msgspec.Struct, frozen=True):
    """A metric and all its series."""

    metric: Metric
    samples: list[Sample]


class Histogram:
    """Counts observed values by bucket.

    Whoever cannot afford a frame counts as `observe` does.

    Attributes:
        bounds: upper bounds of all buckets but the last, each inclusive.
        counts: how many values each bucket has.
        total: the sum of all values.

    Example:
        >>> took = Histogram((0.1, 1.0))
        >>> took.observe(0.1)
        >>> took.observe(7.5)
        >>> took.counts, took.total
        ([1, 0, 1], 7.6)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def sample(self, *labels: str) -> Sample:
        """Return what was observed so far, as a series with these labels."""
        return Sample(labels, self.total, tuple(self.counts))

    def __repr__(self) -> str:
        return f"<Histogram {sum(self.counts)} values, {self.total:g} in all>"


class Timings:
    """How long the work of one kind and name took, by how it ended.

    Args:
        bounds: of the histograms, in seconds.
        ends_max: how many ways to end are told apart; the others are one, `OTHER`.

    Attributes:
        by_end: the histograms, by `OK` or the code of the error.

    Example:
        >>> timings = Timings(SHORT_S)
        >>> timings.of("timed_out").observe(2.0)
        >>> {end: sum(took.counts) for end, took in timings.by_end.items()}
        {'ok': 0, 'timed_out': 1}
    """

    __slots__ = ("_ends_max", "bounds", "by_end")

    def __init__(self, bounds: tuple[float, ...], ends_max: int = 16) -> None:
        self.bounds = bounds
        self._ends_max = ends_max
        self.by_end = {OK: Histogram(bounds)}

    def of(self, end: str) -> Histogram:
        """Return the histogram of one way to end."""
        found = self.by_end.get(end)
        if found is None:
            if len(self.by_end) >= self._ends_max:
                end = OTHER
            found = self.by_end.setdefault(end, Histogram(self.bounds))
        return found

    def __repr__(self) -> str:
        return f"<Timings {self.by_end}>"


class Metrics:
    """Counts the work of one process; the tracers of its services and clients fill it.

    Args:
        timings_max: how many kinds, services and names are told apart; past it the names that a
            service has of a kind are one, `OTHER`.

    Attributes:
        overflowed: how often a name was met that is not told apart.

    Example:
        >>> metrics = Metrics()
        >>> metrics.timings("handle", "shop", "shop.sell").of(OK).observe(0.25)
        >>> [(family.metric.name, family.samples[0].labels) for family in metrics.families()]
        [('synchromesh.operation.duration', ('shop', 'shop', 'shop.sell', 'ok', ''))]
    """

    def __init__(self, timings_max: int = 2000) -> None:
        self._timings_max = timings_max
        self._timings: dict[tuple[str, str, str], Timings] = {}
        self.overflowed = 0

    def timings(self, kind: str, service: str, name: str) -> Timings | None:
        """Return the timings of one kind and name of work; None of a kind that is not counted.

        Keep them. The name is that of a span, without what tells repetitions apart.
        """
        metric = WORK.get(kind)
        if metric is None:
            return None
        key = (kind, service, name.partition("#")[0])
        found = self._timings.get(key)
        if found is None:
            if len(self._timings) >= self._timings_max:
                self.overflowed += 1
                key = (kind, service, OTHER)
            found = self._timings.setdefault(key, Timings(metric.bounds))
        return found

    def families(self) -> list[Family]:
        """Return all that was counted so far."""
        found = {metric.name: Family(metric, []) for metric in WORK.values()}
        for (kind, service, name), timings in self._timings.items():
            samples = found[WORK[kind].name].samples
            labels = (*of_instance(service), *_labels(kind, name))
            for end, took in timings.by_end.items():
                samples.append(took.sample(*labels, outcome_of(end), "" if end == OK else end))
        return [family for family in found.values() if family.samples]

    def __repr__(self) -> str:
        return f"<Metrics of {len(self._timings)} names>"


def outcome_of(end: str) -> str:
    """Return what a way to end is: "ok", "rejected" by a no, "cancelled" by who asked, or "failed".

    A no is for the caller to mend, as an answer of 4xx is.

    Example:
        >>> [outcome_of(end) for end in ("ok", "out_of_stock", "timed_out", "ValueError")]
        ['ok', 'rejected', 'failed', 'failed']
    """
    if end in (OK, "cancelled"):
        return end
    # What is raised by no class of ours is told by the name of its class.
    is_failure = end in _FAILURES or end == OTHER or end[:1].isupper()
    return "failed" if is_failure else "rejected"


def of_instance(name: str) -> tuple[str, str]:
    """Return service and instance of a name that may be a replica's, as the labels `INSTANCE`.

    Example:
        >>> of_instance("quoting#2")
        ('quoting', 'quoting#2')
    """
    return name.partition("#")[0], name


def merge(first: Iterable[Family], *others: Iterable[Family]) -> list[Family]:
    """Merge the families of several processes, in the order in which they are first met.

    Two series of equal labels become one: counts are added, of a gauge the first is kept. Whose
    definition is not as in the first process, as while releases change, is left out.

    Example:
        >>> hits = Metric("hits", COUNTER, "{hit}", "Hits.")
        >>> merge([Family(hits, [Sample((), 1)])], [Family(hits, [Sample((), 2)])])[0].samples
        [Sample(labels=(), value=3, counts=())]
    """
    found: dict[str, tuple[Metric, dict[tuple[str, ...], Sample]]] = {}
    for families in (first, *others):
        for family in families:
            metric, samples = found.setdefault(family.metric.name, (family.metric, {}))
            if metric == family.metric:
                for sample in family.samples:
                    known = samples.get(sample.labels)
                    samples[sample.labels] = (
                        sample if known is None else _sum(metric, known, sample)
                    )
    return [Family(metric, list(samples.values())) for metric, samples in found.values()]


def _sum(metric: Metric, one: Sample, other: Sample) -> Sample:
    if metric.kind == GAUGE:
        return one
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return Sample(one.labels, one.value + other.value, counts)


def bounded(families: Iterable[Family], samples_max: int) -> Iterator[Family]:
    """Yield families as long as they have no more series than that together, histograms whole.

    What is beyond is left out from the end of a family, and of those that come after it.
    """
    left = samples_max
    for family in families:
        if left <= 0:
            return
        yield Family(family.metric, family.samples[:left])
        left -= len(family.samples)


INSTANCE = ("service.name", "service.instance.id")
_FAILURES = frozenset(code for code, kind in error_table().items() if kind.status >= 500)
_SHARED = "outcome says how it ended, error.type by which error."

WORK = {
    "handle": Metric(
        "synchromesh.operation.duration",
        HISTOGRAM,
        "s",
        f"What a service took to answer a call, waiting for a place included; {_SHARED}",
        (*INSTANCE, "operation", "outcome", "error.type"),
        SHORT_S,
    ),
    "call": Metric(
        "synchromesh.call.duration",
        HISTOGRAM,
        "s",
        f"What a call took as its caller sees it, with all its attempts; {_SHARED}",
        (*INSTANCE, "callee", "operation", "outcome", "error.type"),
        SHORT_S,
    ),
    "unit": Metric(
        "synchromesh.unit.duration",
        HISTOGRAM,
        "s",
        f"What a unit of work took until it was durable, waiting included; {_SHARED}",
        (*INSTANCE, "unit", "outcome", "error.type"),
        SHORT_S,
    ),
    "saga": Metric(
        "synchromesh.saga.duration",
        HISTOGRAM,
        "s",
        f"What a stretch of a saga's run took, in memory and without sleep; {_SHARED}",
        (*INSTANCE, "saga", "outcome", "error.type"),
        LONG_S,
    ),
    "step": Metric(
        "synchromesh.saga.step.duration",
        HISTOGRAM,
        "s",
        f"What a step of a saga took, with all its attempts; {_SHARED}",
        (*INSTANCE, "step", "outcome", "error.type"),
        LONG_S,
    ),
    "undo": Metric(
        "synchromesh.saga.undo.duration",
        HISTOGRAM,
        "s",
        f"What undoing a step took, with all its attempts; {_SHARED}",
        (*INSTANCE, "step", "outcome", "error.type"),
        LONG_S,
    ),
    # The messaging conventions are in development: the names are pinned to those of 1.37.
    "relay": Metric(
        "messaging.client.operation.duration",
        HISTOGRAM,
        "s",
        f"What delivering a message to a subscriber took; {_SHARED}",
        (
            *INSTANCE,
            "messaging.system",
            "messaging.operation.name",
            "messaging.operation.type",
            "messaging.destination.name",
            "outcome",
            "error.type",
        ),
        SHORT_S,
    ),
}
"""What is counted where its span is recorded, by the kind of the span."""


def _labels(kind: str, name: str) -> tuple[str, ...]:
    """Return the values of the labels that name work of a kind."""
    if kind == "call":
        # Of a request that is passed on: "fleet GET /machines/{id}".
        upstream, blank, _ = name.partition(" ")
        return (upstream if blank else name.partition(".")[0], name)
    return ("synchromesh", "send", "send", name) if kind == "relay" else (name,)
