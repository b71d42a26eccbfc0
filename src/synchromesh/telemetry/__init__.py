"""Telemetry: spans, metrics and structured log records, in bounded memory.

A `Tracer` creates spans and hands them to a sink: `MemoryRing`, or `SqliteRing`, which the command
line reads. Dropping a span never fails a request (T2). `Metrics` counts and times what they stand
for.
"""

from synchromesh.telemetry.log import JsonFormatter
from synchromesh.telemetry.metrics import Family, Histogram, Metric, Metrics, Sample
from synchromesh.telemetry.ring import ASKING, SqliteRing, kept_calls, kept_spans
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
    "ASKING",
    "Family",
    "Histogram",
    "JsonFormatter",
    "MemoryRing",
    "Metric",
    "Metrics",
    "Record",
    "Sample",
    "Sink",
    "Span",
    "SpanContext",
    "SpanRecord",
    "SpanRow",
    "SqliteRing",
    "Tracer",
    "current_span",
    "kept_calls",
    "kept_spans",
    "outcome_of",
    "status_of",
    "to_record",
]
