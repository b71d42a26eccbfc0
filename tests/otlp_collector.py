"""A collector in memory: it decodes what it is sent, strictly, and answers as a test says."""

from __future__ import annotations

import base64
import importlib
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from synchromesh.http import HttpRequest, HttpResponse, HttpServer
from synchromesh.network import Network

json_format = importlib.import_module("google.protobuf.json_format")
_SERVICES = "opentelemetry.proto.collector"
_REQUESTS = {
    "/v1/traces": (f"{_SERVICES}.trace.v1.trace_service_pb2", "ExportTraceServiceRequest"),
    "/v1/logs": (f"{_SERVICES}.logs.v1.logs_service_pb2", "ExportLogsServiceRequest"),
    "/v1/metrics": (f"{_SERVICES}.metrics.v1.metrics_service_pb2", "ExportMetricsServiceRequest"),
}
_IDS = {"traceId": 32, "spanId": 16, "parentSpanId": 16}
_ENUMS = frozenset({"kind", "severityNumber", "code", "aggregationTemporality"})
_LONG = re.compile(r"(UnixNano|^intValue|^asInt|^count|^bucketCounts)$")


@dataclass(frozen=True)
class Seen:
    """One span as the collector got it."""

    resource: dict[str, str]
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    flags: int
    attributes: dict[str, Any]
    status: int
    took_ns: int

    @property
    def service(self) -> str:
        return self.resource["service.name"]


Answer = Callable[[HttpRequest], Awaitable[HttpResponse]]


async def accept(request: HttpRequest) -> HttpResponse:
    """Take everything."""
    return HttpResponse(200, [("content-type", "application/json")], b"{}")


@dataclass
class MemoryCollector:
    """Listens, decodes and keeps.

    Attributes:
        answer: says what is answered; what is not 200 is not kept.
        asked: the requests, kept or not.
    """

    network: Network
    answer: Answer = accept
    asked: list[HttpRequest] = field(default_factory=list)
    spans: list[Seen] = field(default_factory=list)
    logs: list[tuple[dict[str, str], str, Any]] = field(default_factory=list)
    metrics: list[tuple[dict[str, str], Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = HttpServer(self.handle, network=self.network)

    async def handle(self, request: HttpRequest) -> HttpResponse:
        assert request.method == "POST", request
        self.asked.append(request)
        answer = await self.answer(request)
        if answer.status == 200:
            self.take(request.path, request.headers.get("content-type") or "", request.body)
        return answer

    def take(self, path: str, kind: str, body: bytes) -> None:
        module, name = _REQUESTS[path]
        message = getattr(importlib.import_module(module), name)()
        if kind == "application/x-protobuf":
            message.ParseFromString(body)
        else:
            assert kind == "application/json"
            json_format.ParseDict(_checked(json.loads(body)), message)
        for of in getattr(message, "resource_spans", ()):
            resource = _plain(of.resource.attributes)
            for scope in of.scope_spans:
                self.spans += [_seen(resource, span) for span in scope.spans]
        for of in getattr(message, "resource_logs", ()):
            resource = _plain(of.resource.attributes)
            for scope in of.scope_logs:
                self.logs += [(resource, scope.scope.name, each) for each in scope.log_records]
        for of in getattr(message, "resource_metrics", ()):
            resource = _plain(of.resource.attributes)
            for scope in of.scope_metrics:
                self.metrics += [(resource, metric) for metric in scope.metrics]

    def tree(self) -> set[tuple[str, str, str]]:
        """Return service and name of each span, and the name of the one above."""
        names = {span.span_id: span.name for span in self.spans}
        return {(s.service, s.name, names.get(s.parent_id, "")) for s in self.spans}


def _seen(resource: dict[str, str], span: Any) -> Seen:
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    return Seen(
        resource, span.name, span.kind, span.trace_id.hex(), span.span_id.hex(),
        span.parent_span_id.hex(), span.flags, _plain(span.attributes), span.status.code,
        span.end_time_unix_nano - span.start_time_unix_nano,
    )  # fmt: skip


def _plain(attributes: Any) -> dict[str, Any]:
    plain = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
    assert len(plain) == len(attributes), "an attribute is there twice"
    return plain


def _checked(value: Any, key: str = "") -> Any:
    """Check what OTLP's JSON has otherwise than that of protobuf, and make it that."""
    if isinstance(value, dict):
        return {name: _checked(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_checked(inner, key) for inner in value]
    if key in _IDS:
        assert re.fullmatch(f"[0-9a-f]{{{_IDS[key]}}}", value), (key, value)
        return base64.b64encode(bytes.fromhex(value)).decode()
    if key in _ENUMS:
        assert type(value) is int, (key, value)
    if _LONG.search(key):
        assert type(value) is str, (key, value)
    return value
