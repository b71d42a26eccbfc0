"""Prometheus' text formats of metrics, written by its own client library.

It is the only file that imports that library, and is itself imported when metrics are first asked
for. The names are made of OpenTelemetry's by its rules for Prometheus:

    http.server.request.duration, s  ->  http_server_request_duration_seconds
    synchromesh.gateway.outcomes, {request}, a counter  ->  synchromesh_gateway_outcomes_total
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

from synchromesh.telemetry import metrics as own
from synchromesh.telemetry.metrics import Family, Sample

# Series that are written at once: about a millisecond's work for histograms.
SERIES_EACH = 20
_UNITS = {"s": "seconds", "By": "bytes"}
_EOF = b"# EOF\n"


def prometheus_name(metric: own.Metric) -> str:
    """Return the name of a metric's family; samples of a counter end with "_total" besides.

    Example:
        >>> prometheus_name(own.Metric("synchromesh.store.file", own.GAUGE, "By", "Size."))
        'synchromesh_store_file_bytes'
    """
    name, unit = label_name(metric.name), _UNITS.get(metric.unit, "")
    return f"{name}_{unit}" if unit else name


def label_name(name: str) -> str:
    """Return the name of a label."""
    return name.replace(".", "_")


def exposed(families: Iterable[Family], *, is_openmetrics: bool) -> Iterator[bytes]:
    """Yield the text of metrics in parts, each of which is quick to make.

    Args:
        families: no two of one name.
        is_openmetrics: write OpenMetrics 1.0.0; else the text format 0.0.4.

    Example:
        >>> up = own.Metric("shop.up", own.GAUGE, "", "Whether it is up.", ("service.name",))
        >>> family = Family(up, [Sample(("shop",), 1)])
        >>> print(b"".join(exposed([family], is_openmetrics=False)).decode().strip())
        # HELP shop_up Whether it is up.
        # TYPE shop_up gauge
        shop_up{service_name="shop"} 1.0
    """
    for family in families:
        for first in range(0, len(family.samples), SERIES_EACH):
            written = _written(
                _family(family.metric, family.samples[first : first + SERIES_EACH]), is_openmetrics
            )
            yield written if not first else _without_head(written)
    if is_openmetrics:
        yield _EOF


class _One:
    """Is a registry of one metric."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        yield self._metric


def _written(metric: Metric, is_openmetrics: bool) -> bytes:
    if is_openmetrics:
        written: bytes = openmetrics.generate_latest(_One(metric))  # type: ignore[no-untyped-call]
        return written.removesuffix(_EOF)
    return exposition.generate_latest(_One(metric))


def _without_head(written: bytes) -> bytes:
    lines = written.splitlines(keepends=True)
    return b"".join(line for line in lines if not line.startswith(b"# "))


def _family(metric: own.Metric, samples: Sequence[Sample]) -> Metric:
    name, unit = prometheus_name(metric), _UNITS.get(metric.unit, "")
    labels = [label_name(each) for each in metric.labels]
    if metric.kind == own.HISTOGRAM:
        histogram = HistogramMetricFamily(name, metric.help, labels=labels, unit=unit)
        for sample in samples:
            histogram.add_metric(_texts(sample), _buckets(metric, sample), sample.value)
        return histogram
    made: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == own.COUNTER:
        made = CounterMetricFamily(name, metric.help, labels=labels, unit=unit)
    else:
        made = GaugeMetricFamily(name, metric.help, labels=labels, unit=unit)
    for sample in samples:
        made.add_metric(_texts(sample), sample.value)
    return made


def _texts(sample: Sample) -> list[str]:
    """Return the values of labels, without what no text on the wire can have."""
    return [each.encode(errors="replace").decode() for each in sample.labels]


def _buckets(metric: own.Metric, sample: Sample) -> list[tuple[str, float]]:
    """Return cumulative buckets."""
    found, count = [], 0
    bounds = [*map(floatToGoString, metric.bounds), "+Inf"]
    for bound, more in zip(bounds, sample.counts, strict=True):
        count += more
        found.append((bound, float(count)))
    return found
