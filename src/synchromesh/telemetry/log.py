"""Structured logs: one JSON object a line, with the ids of the current span."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.telemetry.span import current_span

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Format log records as JSON lines: time, level, logger, message, trace and span, extras.

    Tracebacks are kept: they are for this machine's log alone and never travel (T3).

    Example:
        >>> record = logging.makeLogRecord({"msg": "ready", "created": 0.0, "name": "a"})
        >>> JsonFormatter().format(record)[:44]
        '{"at":"1970-01-01T00:00:00+00:00","level":"L'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line of JSON."""
        line: dict[str, Any] = {
            "at": to_datetime(int(record.created * 1e6)).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        span = current_span.get()
        if span is not None:
            line["trace_id"], line["span_id"] = span.trace_id, span.span_id
        line |= {
            name: value
            for name, value in vars(record).items()
            if name not in _OWN and isinstance(value, str | int | float | bool)
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
