#!/bin/sh
# OpenTelemetry's page for Prometheus is not to be parsed once two meters share a name of a counter.
#
# An instrument belongs to its meter: two libraries may each have a counter "requests", and OTLP
# carries both. The exporter for Prometheus tells them apart by the label `otel_scope_name`, so that
# one expects one family with two series. That is so where their descriptions are the same to the
# letter. Where they differ by a word the family is written twice, each with HELP and TYPE, which the
# text format forbids, and prometheus-client's own parser of OpenMetrics refuses the whole page: with
# it all other metrics of the process. Nothing is logged; the exporter takes both, and the page looks
# right to the eye.
#
# What to do: give every view of such a name one description (`View(instrument_name="requests",
# description="...")`), or names that no other library has; and parse the page in a test.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    opentelemetry-sdk==1.45.2 opentelemetry-exporter-prometheus==0.66b2 prometheus-client==0.26.0
cat > "$work/shown.py" <<'PY'
import sys
from importlib.metadata import version

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import View
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families


def parsed(*descriptions, views=()):
    """Count with a meter for each description; return the families of the page, or the refusal."""
    provider = MeterProvider([PrometheusMetricReader(disable_target_info=True)], views=views)
    for number, description in enumerate(descriptions):
        meter = provider.get_meter(f"library-{number}")
        meter.create_counter("requests", description=description).add(1)
    page = generate_latest(REGISTRY).decode()
    provider.shutdown()
    own = page[page.index("# HELP requests") :]
    try:
        families = text_string_to_metric_families(own)
        return {each.name: len(each.samples) for each in families}
    except ValueError as error:
        return f"refused: {error}"


view = View(instrument_name="requests", description="Requests.")
seen = {
    "alike": parsed("Requests.", "Requests."),
    "by a word": parsed("Requests.", "All requests."),
    "by a view": parsed("Requests.", "All requests.", views=[view]),
}
packages = ("opentelemetry-sdk", "opentelemetry-exporter-prometheus", "prometheus-client")
print(f"version: {', '.join(f'{each} {version(each)}' for each in packages)}")
print(
    "behaviour: one would expect one family with a series for each meter; where descriptions "
    "differ there are two of one name, and the page is refused"
)
print(f"seen: {seen}")
right = {
    "alike": {"requests": 2},
    "by a word": "refused: Received metadata after samples: # HELP requests All requests.",
    "by a view": {"requests": 2},
}
sys.exit(0 if seen == right else 1)
PY
"$work/venv/bin/python" "$work/shown.py"
