"""What OTLP is made of records: decoded by the protobuf definitions themselves."""

from __future__ import annotations

import json
import logging
import random
import sys
from typing import Any

import pytest

from otlp_collector import MemoryCollector
from synchromesh.telemetry import SpanRow
from synchromesh.telemetry.log import to_log_row
from synchromesh.telemetry.metrics import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    INSTANCE,
    Family,
    Metric,
    Sample,
)
from synchromesh.telemetry.otlp import HttpRoute, Resource, SpanEncoder, log_body
from synchromesh.telemetry.otlp_metrics import CountedMetrics, metrics_body
from synchromesh.telemetry.span import current_span
from synchromesh.testing import SimRuntime, run

CUMULATIVE = 2
TRACE, SPAN, PARENT = "a" * 32, "b" * 16, "c" * 16
RESOURCE = Resource({"service.namespace": "town", "service.version": "7"}, "p-1")
ROUTES = {"shop.sell": HttpRoute("POST", "/sales/{sku}", {"out_of_stock": 409})}


def row(
    kind: str = "handle",
    name: str = "shop.sell",
    status: str = "ok",
    noted: dict[str, str] | None = None,
    service: str = "shop",
) -> SpanRow:
    return TRACE, SPAN, PARENT, service, kind, name, 1.7e15, 250.5, status, noted, 3


def decoded(path: str, body: bytes) -> MemoryCollector:
    """Return a collector that was sent a body."""
    kept: list[MemoryCollector] = []

    async def main(runtime: SimRuntime) -> None:
        kept.append(MemoryCollector(runtime.network))

    run(main)
    kept[0].take(path, "application/json", body)
    return kept[0]


def spans(*rows: SpanRow) -> list[Any]:
    body = b"".join(SpanEncoder(RESOURCE, ROUTES).body(rows))
    return decoded("/v1/traces", body).spans


CODES = {
    "ok": ("handle", "ok", None, 200, 0, ""),
    "a rejection that is declared": ("handle", "out_of_stock", None, 409, 0, ""),
    "the same at the caller": ("call", "out_of_stock", None, 409, 2, "out_of_stock"),
    "shed": ("handle", "shed", None, 503, 2, "shed"),
    "a bug": ("handle", "ValueError", None, 500, 2, "ValueError"),
    "cancelled": ("handle", "cancelled", None, None, 2, "cancelled"),
    "a bad request": ("handle", "bad_request", None, 400, 0, ""),
    "passed on as it was answered": ("call", "ok", {"status": "404"}, 404, 2, "404"),
}


@pytest.mark.parametrize(
    ("kind", "code", "noted", "status", "is_error", "why"), CODES.values(), ids=CODES.keys()
)
def test_an_outcome_is_told_by_the_rules_of_http(
    kind: str, code: str, noted: dict[str, str] | None, status: int | None, is_error: int, why: str
) -> None:
    """4xx is the client's error and not the server's; what was cancelled is none's answer."""
    (span,) = spans(row(kind=kind, status=code, noted=noted))
    assert span.attributes.get("http.response.status_code") == status
    assert (span.status, span.attributes.get("error.type", "")) == (is_error, why)
    assert span.attributes.get("synchromesh.outcome", "ok") == code


KINDS = {
    "gateway": (
        row("gateway", "GET /offers/{who}"), 2, "GET /offers/{who}",
        {"http.request.method": "GET", "http.route": "/offers/{who}"},
    ),
    "handle": (
        row(), 2, "shop.sell", {"http.request.method": "POST", "http.route": "/sales/{sku}"},
    ),
    "call": (
        row("call"), 3, "shop.sell",
        {"http.request.method": "POST", "url.template": "/sales/{sku}", "server.address": "shop"},
    ),
    "passed on": (
        row("call", "fleet GET /machines/{id}"), 3, "GET /machines/{id}",
        {"http.request.method": "GET", "url.template": "/machines/{id}", "server.address": "fleet"},
    ),
    "relay": (
        row("relay", "shop.sold"), 4, "send shop.sold",
        {"messaging.system": "synchromesh", "messaging.operation.type": "send",
         "messaging.destination.name": "shop.sold"},
    ),
    "unit": (row("unit", "charge"), 1, "charge", {}),
    "step": (row("step", "reserve"), 1, "reserve", {}),
}  # fmt: skip


@pytest.mark.parametrize(("of", "kind", "name", "attributes"), KINDS.values(), ids=KINDS.keys())
def test_kinds_and_names_follow_the_conventions(
    of: SpanRow, kind: int, name: str, attributes: dict[str, str]
) -> None:
    """Those of HTTP where there is a route, and those of messaging as they are pinned."""
    (span,) = spans(of)
    assert (span.kind, span.name, span.took_ns) == (kind, name, 250_500)
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE, SPAN, PARENT)
    assert attributes.items() <= span.attributes.items()
    assert span.flags == (0x303 if kind == 2 else 0x103)


def test_services_and_replicas_are_resources_of_their_own() -> None:
    """What is configured goes with each; two replicas in a process are told apart."""
    made = spans(row(service="shop"), row(service="quoting#1"), row(service="quoting#2"))
    assert [(each.service, each.resource["service.instance.id"]) for each in made] == [
        ("shop", "p-1"), ("quoting", "p-1/quoting#1"), ("quoting", "p-1/quoting#2"),
    ]  # fmt: skip
    assert {each.resource["service.version"] for each in made} == {"7"}


def test_who_asked_stays_here() -> None:
    """A principal is in the traces of this machine alone; other notes go."""
    (span,) = spans(row(noted={"principal": "ada", "instance": "shop-1", "fallback": "stale"}))
    assert "ada" not in str(span)
    assert span.attributes["synchromesh.instance"] == "shop-1"
    assert span.attributes["synchromesh.fallback"] == "stale"


def test_what_is_no_unicode_is_sent_all_the_same() -> None:
    """Half a surrogate pair, such as from the name of a file, becomes a question mark."""
    made = spans(row(name="x\udcff"), row(noted={"a": "\ud800"}), row())
    assert [each.name for each in made] == ["x?", "shop.sell", "shop.sell"]
    assert made[1].attributes["synchromesh.a"] == "?"


def test_any_number_of_spans_is_one_request() -> None:
    """None, one, and more than a slice."""
    for count in (0, 1, 31, 32, 33, 500):
        assert len(spans(*[row()] * count)) == count


def test_logs_have_their_severity_their_trace_and_no_words_of_errors() -> None:
    """A type stands for what was raised (T3); extras are typed."""
    try:
        raise ValueError("hunter2")
    except ValueError:
        raised = sys.exc_info()
    records = [
        logging.makeLogRecord({
            "msg": "it is %s \udcff", "args": ("late",), "created": 1.5, "levelno": level,
            "levelname": logging.getLevelName(level), "name": "shop", "exc_info": raised,
            "count": 3, "is_new": True, "share": 0.5, "sku": "bolt",
        })
        for level in (5, 10, 20, 30, 40, 50)
    ]  # fmt: skip
    from synchromesh.context import CallContext

    token = current_span.set(CallContext(trace_id=TRACE, span_id=SPAN))
    rows = [to_log_row(record) for record in records]
    current_span.reset(token)
    body = b"".join(log_body(rows, RESOURCE, "town"))
    assert b"hunter2" not in body
    made = decoded("/v1/logs", body).logs
    assert [record.severity_number for _, _, record in made] == [5, 5, 9, 13, 17, 21]
    resource, scope, record = made[0]
    assert (resource["service.name"], scope) == ("town", "shop")
    assert (record.body.string_value, record.time_unix_nano) == ("it is late ?", 1_500_000_000)
    assert (record.trace_id.hex(), record.span_id.hex(), record.flags) == (TRACE, SPAN, 1)
    attributes = {each.key: each.value for each in record.attributes}
    assert attributes["exception.type"].string_value == "ValueError"
    assert (attributes["count"].int_value, attributes["is_new"].bool_value) == (3, True)
    assert (attributes["share"].double_value, attributes["sku"].string_value) == (0.5, "bolt")


def test_a_log_record_without_a_trace_has_none() -> None:
    """And one whose numbers are none is no number."""
    record = logging.makeLogRecord({"msg": "x" * 9000, "share": float("nan"), "levelno": 20})
    (made,) = decoded("/v1/logs", b"".join(log_body([to_log_row(record)], RESOURCE, "t"))).logs
    assert (made[2].trace_id, len(made[2].body.string_value)) == (b"", 4096)


def test_a_body_is_the_same_in_each_run_of_a_seed() -> None:
    """Nothing of it is by chance."""
    rng = random.Random(3)
    rows = [row(service=rng.choice("abc")) for _ in range(100)]
    one, other = (b"".join(SpanEncoder(RESOURCE, ROUTES).body(rows)) for _ in range(2))
    assert one == other


def test_metrics_are_of_their_instance_and_add_up_from_the_start() -> None:
    """Counts ascend, a gauge is as it is, and a label that does not apply is none."""
    took = Metric("took", HISTOGRAM, "s", "How long.", (*INSTANCE, "code"), (0.1, 1.0))
    lost = Metric("lost", COUNTER, "{span}", "Lost.", ("process",))
    runs = Metric("runs", GAUGE, "{saga}", "Runs.", INSTANCE)
    families = [
        Family(took, [
            Sample(("shop", "shop#1", ""), 0.35, (1, 2, 0)),
            Sample(("shop", "shop#2", "late"), 9.0, (0, 0, 1)),
        ]),
        Family(lost, [Sample(("works",), 7)]),
        Family(runs, [Sample(("shop", "shop#1"), 2.5)]),
    ]  # fmt: skip
    resource = Resource({"service.namespace": "works"}, "p-1")
    body = b"".join(metrics_body([CountedMetrics(5, 1_000_005, families)], resource, "works"))
    collector = decoded("/v1/metrics", body)
    told = {(of["service.instance.id"], metric.name): metric for of, metric in collector.metrics}
    assert list(told) == [
        ("p-1/shop#1", "took"), ("p-1/shop#1", "runs"), ("p-1/shop#2", "took"), ("p-1", "lost"),
    ]  # fmt: skip
    of_first = told["p-1/shop#1", "took"]
    assert (of_first.unit, of_first.description) == ("s", "How long.")
    assert of_first.histogram.aggregation_temporality == CUMULATIVE
    (point,) = of_first.histogram.data_points
    assert (point.start_time_unix_nano, point.time_unix_nano) == (5_000, 1_000_005_000)
    assert (point.count, point.sum, list(point.bucket_counts)) == (3, 0.35, [1, 2, 0])
    assert (list(point.explicit_bounds), list(point.attributes)) == ([0.1, 1.0], [])
    (point,) = told["p-1/shop#2", "took"].histogram.data_points
    assert [(each.key, each.value.string_value) for each in point.attributes] == [("code", "late")]
    counted = told["p-1", "lost"].sum
    assert (counted.is_monotonic, counted.aggregation_temporality) == (True, CUMULATIVE)
    assert counted.data_points[0].as_double == 7
    assert told["p-1/shop#1", "runs"].gauge.data_points[0].as_double == 2.5


def test_nothing_counted_is_an_empty_request() -> None:
    """What is sent is a request all the same."""
    body = b"".join(metrics_body([CountedMetrics(0, 1, [])], Resource({}, "p-1"), "works"))
    assert json.loads(body) == {"resourceMetrics": []}
