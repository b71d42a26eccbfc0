"""Spans and log records as OTLP has them: its JSON, written as it is asked for.

Each function yields the body of one request in parts, so that whoever sends it can let others run
in between. Ids are hexadecimal, enumerations are numbers, and numbers of 64 bits are texts: it is
not what protobuf's own JSON would be.

Sources: the OTLP specification 1.9, "JSON Protobuf Encoding"; the semantic conventions 1.37, of
which those of HTTP are stable. Those of messaging are in development: the names are pinned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from synchromesh.errors import error_table, readable
from synchromesh.propagation import SAMPLED
from synchromesh.telemetry.log import LogRow
from synchromesh.telemetry.span import SpanRow

# Spans or records that are encoded in one go, in some 50 µs.
SLICE: Final = 16

_NAMES_MAX: Final = 4096
_INTERNAL, _SERVER, _CLIENT, _PRODUCER, _CONSUMER = range(1, 6)
_KINDS: Final = {
    "gateway": _SERVER, "handle": _SERVER, "call": _CLIENT, "relay": _PRODUCER,
    "message": _CONSUMER,
}  # fmt: skip
# Of what the parent is known, and that it is another process's.
_HAS_REMOTE, _IS_REMOTE = 0x100, 0x200
_ERROR: Final = 2
_OK: Final = "ok"
# What nobody outside is told: who asked is in the spans of this machine alone.
_KEPT_HERE: Final = frozenset({"principal", "error", "status"})
_ATTRIBUTES: Final = {"attempts": "synchromesh.attempts", "instance": "synchromesh.instance"}
_SEVERITIES: Final = (
    (logging.CRITICAL, 21), (logging.ERROR, 17), (logging.WARNING, 13), (logging.INFO, 9),
)  # fmt: skip
_DEBUG: Final = 5

_encode: Final = msgspec.json.Encoder().encode
SCOPE: Final = _encode({"name": "synchromesh"})
"""Whose instrumentation it is, encoded."""


class HttpRoute(msgspec.Struct, frozen=True):
    """The HTTP route of an operation, and the statuses of what it may refuse.

    Attributes:
        method, path: as its contract has them.
        statuses: by the codes of its rejections.
    """

    method: str
    path: str
    statuses: Mapping[str, int] = {}


class Resource(msgspec.Struct, frozen=True):
    """What telemetry is of: a service, or a process that is none.

    Attributes:
        attributes: of all of them: those that are configured go before.
        instance: identifies the process.
    """

    attributes: Mapping[str, str]
    instance: str

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the attributes of a service, or of a replica of it, such as "quoting#2"."""
        service, sign, _ = name.partition("#")
        own = {
            "service.name": service,
            "service.instance.id": f"{self.instance}/{name}" if sign else self.instance,
        }
        return [attribute(key, text) for key, text in {**own, **self.attributes}.items()]


class _Span(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    trace_id: str
    span_id: str
    name: str
    kind: int
    start_time_unix_nano: str
    end_time_unix_nano: str
    attributes: list[Any]
    flags: int
    parent_span_id: str = ""
    status: dict[str, Any] = {}


class _Named(msgspec.Struct, frozen=True):
    """What is the same for all spans of a kind and name."""

    kind: int
    name: str
    attributes: tuple[Any, ...]
    statuses: Mapping[str, int]
    is_http: bool


class SpanEncoder:
    """Encodes spans.

    Args:
        resource: what they are of, besides the services that they name.
        routes: of the operations, by their full names.
    """

    def __init__(self, resource: Resource, routes: Mapping[str, HttpRoute]) -> None:
        self._resource = resource
        self._routes = routes
        self._named: dict[tuple[str, str], _Named] = {}

    def body(self, rows: Sequence[SpanRow]) -> Iterator[bytes]:
        """Yield the body of a request for `/v1/traces`, in parts."""
        by_service: dict[str, list[SpanRow]] = {}
        for row in rows:
            by_service.setdefault(row[3], []).append(row)
        start = b'{"resourceSpans":['
        for service, own in by_service.items():
            attributes = _encode(self._resource.of(service))
            yield b'%b{"resource":{"attributes":%b},"scopeSpans":[{"scope":%b,"spans":[' % (
                start, attributes, SCOPE,
            )  # fmt: skip
            yield from _joined(own, self._spans)
            yield b"]}]}"
            start = b","
        yield b"]}" if by_service else b'{"resourceSpans":[]}'

    def _spans(self, rows: Sequence[SpanRow], is_odd: bool) -> list[_Span]:
        return [self._span(row, is_odd) for row in rows]

    def _span(self, row: SpanRow, is_odd: bool) -> _Span:
        trace_id, span_id, parent_id, _, kind, name, started_us, took_us, code, noted, flags = row
        named = self._named.get((kind, name)) or self._name(kind, name)
        noted = noted or {}
        attributes = [*named.attributes]
        for key, text in noted.items():
            if key not in _KEPT_HERE:
                key = _ATTRIBUTES.get(key) or f"synchromesh.{key}"
                attributes.append(attribute(key, readable(text) if is_odd else text))
        status: dict[str, Any] = {}
        if named.is_http:
            answered = _answered(code, noted.get("status", ""), named.statuses)
            if answered:
                attributes.append(attribute("http.response.status_code", answered))
            is_error = answered >= (500 if named.kind == _SERVER else 400) or not answered
        else:
            is_error = code != _OK
        if code != _OK:
            attributes.append(attribute("synchromesh.outcome", code))
        if is_error:
            error_type = code if code != _OK else noted.get("status", "")
            attributes.append(attribute("error.type", error_type))
            message = noted.get("error", "")
            status = {"code": _ERROR, "message": readable(message) if is_odd else message}
        remote = _HAS_REMOTE | (_IS_REMOTE if named.kind == _SERVER and parent_id else 0)
        started_ns = int(started_us * 1000)
        ended_ns = started_ns + max(0, int(took_us * 1000))
        return _Span(
            trace_id, span_id, readable(named.name) if is_odd else named.name, named.kind,
            str(started_ns), str(ended_ns), attributes, flags | remote, parent_id, status,
        )  # fmt: skip

    def _name(self, kind: str, name: str) -> _Named:
        """Return what all spans of a kind and name have, and keep it."""
        found: dict[str, str] = {"synchromesh.kind": kind}
        statuses: Mapping[str, int] = {}
        shown, is_http = name, False
        if kind == "gateway":
            method, _, route = name.partition(" ")
            found |= {"http.request.method": method, "http.route": route}
            is_http = True
        elif kind in ("handle", "call"):
            # Of a request that is passed on: "fleet GET /machines/{id}".
            upstream, blank, passed = name.partition(" ")
            own = self._routes.get(name)
            if blank:
                method, _, path = passed.partition(" ")
                found |= {"http.request.method": method, "url.template": path}
                shown, is_http = f"{method} {path}", True
            elif own is not None:
                where = "http.route" if kind == "handle" else "url.template"
                found |= {"http.request.method": own.method, where: own.path}
                statuses, is_http = own.statuses, True
            if kind == "call":
                found["server.address"] = upstream if blank else name.partition(".")[0]
        elif kind in ("relay", "message"):
            operation = "send" if kind == "relay" else "process"
            found |= {
                "messaging.system": "synchromesh",
                "messaging.operation.name": operation,
                "messaging.operation.type": operation,
                "messaging.destination.name": name,
            }
            shown = f"{operation} {name}"
        if len(self._named) >= _NAMES_MAX:
            self._named.clear()
        attributes = tuple(attribute(key, text) for key, text in found.items())
        span_kind = _KINDS.get(kind, _INTERNAL)
        named = _Named(span_kind, shown, attributes, statuses, is_http)
        self._named[kind, name] = named
        return named


def log_body(rows: Sequence[LogRow], resource: Resource, process: str) -> Iterator[bytes]:
    """Yield the body of a request for `/v1/logs`, in parts; `process` is what they are of."""
    by_logger: dict[str, list[LogRow]] = {}
    for row in rows:
        by_logger.setdefault(row.logger, []).append(row)
    yield b'{"resourceLogs":[{"resource":{"attributes":%b},"scopeLogs":[' % _encode(
        resource.of(process)
    )
    comma = b""
    for logger, own in by_logger.items():
        yield b'%b{"scope":{"name":%b},"logRecords":[' % (comma, _encode(readable(logger)))
        yield from _joined(own, _records)
        yield b"]}"
        comma = b","
    yield b"]}]}"


def _records(rows: Sequence[LogRow], is_odd: bool) -> list[dict[str, Any]]:
    records = []
    for row in rows:
        at_ns = str(row.at_us * 1000)
        message = row.message
        record: dict[str, Any] = {
            "timeUnixNano": at_ns,
            "observedTimeUnixNano": at_ns,
            "severityNumber": next((n for least, n in _SEVERITIES if row.level >= least), _DEBUG),
            "severityText": row.name,
            "body": {"stringValue": readable(message) if is_odd else message},
            "attributes": [
                attribute(key, readable(value) if is_odd and isinstance(value, str) else value)
                for key, value in row.extra.items()
            ],
        }
        if row.trace_id:
            record |= {"traceId": row.trace_id, "spanId": row.span_id, "flags": row.flags}
        records.append(record)
    return records


def is_exported(row: SpanRow) -> bool:
    """Return whether the trace of a span is sampled."""
    return bool(row[10] & SAMPLED)


def _joined(rows: Sequence[Any], encoded: Any) -> Iterator[bytes]:
    """Yield a list of JSON without its brackets, a slice at a time."""
    for start in range(0, len(rows), SLICE):
        part = rows[start : start + SLICE]
        try:
            text = _encode(encoded(part, False))
        except UnicodeEncodeError:  # half a surrogate pair, such as from the name of a file
            text = _encode(encoded(part, True))
        yield b"%b%b" % (b"," if start else b"", text[1:-1])


def _answered(code: str, noted: str, statuses: Mapping[str, int]) -> int:
    """Return the HTTP status of an outcome; 0 where nothing was answered."""
    if noted:
        return int(noted)
    if code == _OK:
        return 200
    if code == "cancelled":
        return 0
    if code in statuses:
        return statuses[code]
    found = _STATUSES.get(code)
    return 500 if found is None else found


def attribute(key: str, value: str | float) -> dict[str, Any]:
    """Return an attribute of a resource, a span, a record or a series."""
    if isinstance(value, str):
        return {"key": key, "value": {"stringValue": value}}
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    return {"key": key, "value": {"doubleValue": value}}


_STATUSES: Final = {code: each.status for code, each in error_table().items()}
