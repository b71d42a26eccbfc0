"""Structured logs: one JSON object a line, with the ids of the current span."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.telemetry.span import current_span

MESSAGE_CHARS_MAX: Final = 4096

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogRow(msgspec.Struct, frozen=True, gc=False):
    """A log record as it is kept until it is exported.

    Attributes:
        at_us: wall clock, microseconds since 1970 UTC.
        level, name: its level as a number, and its name.
        logger: who made it.
        message: at most 4096 characters.
        trace_id, span_id, flags: of the span that it was made in; "" and 0 for none.
        extra: what was noted besides.
    """

    at_us: int
    level: int
    name: str
    logger: str
    message: str
    trace_id: str
    span_id: str
    flags: int
    extra: Mapping[str, str | int | float | bool]


def to_log_row(record: logging.LogRecord) -> LogRow:
    """Return what is exported of a log record: of an error no more than its type (T3).

    Example:
        >>> record = logging.makeLogRecord({"msg": "ready", "created": 1.5, "levelno": 20})
        >>> to_log_row(record).at_us, to_log_row(record).message
        (1500000, 'ready')
    """
    span = current_span.get()
    extra = _extra(record)
    if record.exc_info and record.exc_info[0] is not None:
        extra["exception.type"] = record.exc_info[0].__qualname__
    return LogRow(
        int(record.created * 1e6),
        record.levelno,
        record.levelname,
        record.name,
        record.getMessage()[:MESSAGE_CHARS_MAX],
        "" if span is None else span.trace_id,
        "" if span is None else span.span_id,
        0 if span is None else span.marks.flags,
        extra,
    )


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
        line |= _extra(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _extra(record: logging.LogRecord) -> dict[str, str | int | float | bool]:
    """Return what was noted of a record besides."""
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _OWN and isinstance(value, str | int | float | bool)
    }
