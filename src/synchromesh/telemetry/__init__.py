"""Telemetry: what happened, as spans and log records, bounded and never in the way.

Spans are made through a `Tracer`; sinks stand apart: memory, and a SQLite ring that the command
line reads. Dropping a span never fails a request (T2).
"""

from synchromesh.telemetry.log import JsonFormatter
from synchromesh.telemetry.ring import SCHEMA_SQL, SqliteRing
from synchromesh.telemetry.span import (
    MemoryRing,
    Record,
    Sink,
    Span,
    SpanContext,
    SpanRecord,
    SpanRow,
    Tracer,
    current_span,
    outcome_of,
    status_of,
    to_record,
)

__all__ = [
    "SCHEMA_SQL",
    "JsonFormatter",
    "MemoryRing",
    "Record",
    "Sink",
    "Span",
    "SpanContext",
    "SpanRecord",
    "SpanRow",
    "SqliteRing",
    "Tracer",
    "current_span",
    "outcome_of",
    "status_of",
    "to_record",
]
