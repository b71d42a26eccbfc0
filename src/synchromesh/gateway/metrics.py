"""The metrics of a gateway; its counts (`traffic`) fill them."""

from __future__ import annotations

from synchromesh.telemetry.metrics import COUNTER, GAUGE, HISTOGRAM, SHORT_S, Metric

IN_FLIGHT = Metric(
    "synchromesh.gateway.in_flight",
    GAUGE,
    "{request}",
    "Requests of clients that are under way.",
)
LOG_DROPPED = Metric(
    "synchromesh.gateway.access_log.dropped",
    COUNTER,
    "{line}",
    "Lines of the access log that were lost, because too many came at once.",
)
# Stable: https://opentelemetry.io/docs/specs/semconv/http/http-metrics/ (1.37).
REQUESTS = Metric(
    "http.server.request.duration",
    HISTOGRAM,
    "s",
    "What a request of a client took until its answer had ended; no status where it left before.",
    (
        "http.request.method",
        "http.route",
        "url.scheme",
        "http.response.status_code",
        "error.type",
    ),
    SHORT_S,
)
OUTCOMES = Metric(
    "synchromesh.gateway.outcomes",
    COUNTER,
    "{request}",
    "Requests that were degraded, shed, rate_limited, cut or left.",
    ("http.route", "outcome"),
)
BRANCHES = Metric(
    "synchromesh.gateway.branch.outcomes",
    COUNTER,
    "{branch}",
    "Branches of aggregates that came to something else than an answer; of a route with a fallback "
    "its branch is empty.",
    ("http.route", "branch", "outcome"),
)
BRANCH_TOOK = Metric(
    "synchromesh.gateway.branch.duration",
    HISTOGRAM,
    "s",
    "What a branch of an aggregate took from when it could begin; outcome says what it came to.",
    ("http.route", "branch", "outcome"),
    SHORT_S,
)
