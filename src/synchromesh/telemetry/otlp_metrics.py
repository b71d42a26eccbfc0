"""Metrics as OTLP/JSON: what a process has counted by one moment, cumulative from its start on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from synchromesh.telemetry.metrics import COUNTER, GAUGE, INSTANCE, Family, Metric, Sample
from synchromesh.telemetry.otlp import SCOPE, Resource, attribute

# Series that are encoded in one go: one with its buckets takes some 10 µs.
SLICE: Final = 16

_CUMULATIVE: Final = 2
_encode: Final = msgspec.json.Encoder().encode


class CountedMetrics(msgspec.Struct, frozen=True):
    """What one process has counted by a moment.

    Attributes:
        started_us: when it began to count, since 1970.
        at_us: when it was read.
    """

    started_us: int
    at_us: int
    families: list[Family]


def metrics_body(
    readings: Sequence[CountedMetrics], resource: Resource, process: str
) -> Iterator[bytes]:
    """Yield the body of a request for `/v1/metrics`, in parts.

    What is of a service is told of that as its resource, and all else of `process`.

    Example:
        >>> runs = Metric("synchromesh.sagas", GAUGE, "{saga}", "Runs.")
        >>> reading = CountedMetrics(0, 1, [Family(runs, [Sample((), 3.0)])])
        >>> body = b"".join(metrics_body([reading], Resource({}, "1"), "shop"))
        >>> msgspec.json.decode(body)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["unit"]
        '{saga}'
    """
    start = b'{"resourceMetrics":['
    for reading in readings:
        for name, families in _by_resource(reading.families, process).items():
            yield b'%b{"resource":{"attributes":%b},"scopeMetrics":[{"scope":%b,"metrics":[' % (
                start, _encode(resource.of(name)), SCOPE,
            )  # fmt: skip
            comma = b""
            for family in families:
                for first in range(0, len(family.samples), SLICE):
                    part = family.samples[first : first + SLICE]
                    yield comma + _encode(_told(family.metric, part, reading))
                    comma = b","
            yield b"]}]}"
            start = b","
    yield b"]}" if start == b"," else start + b"]}"


def _by_resource(families: Sequence[Family], process: str) -> dict[str, list[Family]]:
    """Return families by the instance that they are of, or the process."""
    found: dict[str, list[Family]] = {}
    for family in families:
        metric = family.metric
        if metric.labels[: len(INSTANCE)] != INSTANCE:
            found.setdefault(process, []).append(family)
            continue
        labels = metric.labels[len(INSTANCE) :]
        own = msgspec.structs.replace(metric, labels=labels)
        by_name: dict[str, list[Sample]] = {}
        for sample in family.samples:
            of_it = Sample(sample.labels[len(INSTANCE) :], sample.value, sample.counts)
            by_name.setdefault(sample.labels[1], []).append(of_it)
        for name, samples in by_name.items():
            found.setdefault(name, []).append(Family(own, samples))
    return found


def _told(metric: Metric, samples: Sequence[Sample], reading: CountedMetrics) -> dict[str, Any]:
    """Return some series of a metric."""
    times = {
        "startTimeUnixNano": str(reading.started_us * 1000),
        "timeUnixNano": str(reading.at_us * 1000),
    }
    points = [{**times, **_point(metric, each)} for each in samples]
    if metric.kind == GAUGE:
        kind, told = "gauge", {"dataPoints": points}
    elif metric.kind == COUNTER:
        kind, told = "sum", _cumulative(points, isMonotonic=True)
    else:
        kind, told = "histogram", _cumulative(points)
    return {"name": metric.name, "unit": metric.unit, "description": metric.help, kind: told}


def _cumulative(points: list[dict[str, Any]], **more: bool) -> dict[str, Any]:
    return {"dataPoints": points, "aggregationTemporality": _CUMULATIVE, **more}


def _point(metric: Metric, sample: Sample) -> dict[str, Any]:
    # A label that does not apply is none.
    pairs = zip(metric.labels, sample.labels, strict=True)
    attributes = [attribute(name, value) for name, value in pairs if value]
    if not sample.counts:
        return {"attributes": attributes, "asDouble": sample.value}
    return {
        "attributes": attributes,
        "count": str(sum(sample.counts)),
        "sum": sample.value,
        "bucketCounts": [str(count) for count in sample.counts],
        "explicitBounds": metric.bounds,
    }
