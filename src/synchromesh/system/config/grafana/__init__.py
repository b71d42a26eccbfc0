"""What shows and watches a system's metrics: a Grafana dashboard, and alerts for Prometheus.

The alerts are a file as Prometheus reads it; the dashboard is made of `dashboard.toml`, which has
only what is particular to a panel. Every series that they name is one of docs/metrics.md, and each
alert has a case in the tests in which it fires.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DASHBOARD, ALERTS, SCRAPE = "dashboard.json", "alerts.yml", "prometheus.yml"
# Grafana's grid is 24 wide.
_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_VARIABLES = [
    {"name": "datasource", "type": "datasource", "query": "prometheus"},
    {
        "name": "service",
        "type": "query",
        "datasource": _SOURCE,
        "query": "label_values(synchromesh_calls_held, service_name)",
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    },
]


def dashboard(system: str) -> dict[str, Any]:
    """Return the dashboard of a system as Grafana imports it, version 9 or later.

    Example:
        >>> dashboard("shop")["title"]
        'Synchromesh: shop'
    """
    panels: list[dict[str, Any]] = []
    top = 0
    for row in tomllib.loads((HERE / "dashboard.toml").read_text())["row"]:
        at = {"x": 0, "y": top, "w": _WIDTH * _PER_ROW, "h": 1}
        panels.append({"type": "row", "title": row["title"], "gridPos": at, "panels": []})
        for place, panel in enumerate(row["panel"]):
            line, column = divmod(place, _PER_ROW)
            x, y = column * _WIDTH, top + 1 + line * _HEIGHT
            panels.append(_graph(panel, {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT}))
        top = panels[-1]["gridPos"]["y"] + _HEIGHT
    return {
        "title": f"Synchromesh: {system}",
        "uid": "synchromesh",
        "tags": ["synchromesh"],
        "schemaVersion": 37,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _VARIABLES},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def scrape(url: str, ca: str = "") -> str:
    """Return a configuration of Prometheus that asks the admin listener at a URL.

    Args:
        ca: the file of the authority that is believed there, where that is by TLS.
    """
    scheme, _, target = url.partition("://")
    secured = "    scheme: https\n" if scheme == "https" else ""
    if secured and ca:
        secured += f"    tls_config: {{ca_file: {json.dumps(ca)}}}\n"
    return (
        "global:\n"
        "  scrape_interval: 15s\n"
        "rule_files:\n"
        f"  - {ALERTS}\n"
        "scrape_configs:\n"
        "  - job_name: synchromesh\n"
        f"{secured}"
        "    static_configs:\n"
        f"      - targets: [{json.dumps(target)}]\n"
    )


def write(folder: Path, *, system: str, url: str, ca: str = "") -> list[Path]:
    """Write dashboard, alerts and configuration into a folder; return where they are."""
    texts = {
        DASHBOARD: json.dumps(dashboard(system), indent=2, ensure_ascii=False) + "\n",
        ALERTS: (HERE / ALERTS).read_text(),
        SCRAPE: scrape(url, ca),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [folder / name for name in texts]


def _graph(panel: dict[str, Any], place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel["title"],
        "datasource": _SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + number), "expr": each["expr"], "legendFormat": each["legend"]}
            for number, each in enumerate(panel["query"])
        ],
    }
