"""The dashboard and the alerts: their queries are read by promtool, and each alert fires."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]
from benchmarks.tools import promtool

from cli_runs import runner
from notes_app import TOML, write_config
from synchromesh.system.config.grafana import ALERTS, DASHBOARD, HERE, SCRAPE, dashboard, scrape
from synchromesh.system.control.catalogue import EVERY
from synchromesh.telemetry.exposition import label_name, prometheus_name
from synchromesh.telemetry.metrics import COUNTER, HISTOGRAM, Metric

# Name and query of each alert, as they are written.
RULES = dict(
    re.findall(r"- alert: (\w+)\n +expr: >-\n((?: {10}.*\n)+)", (HERE / ALERTS).read_text())
)
ROUTE = '{http_route="/orders", http_response_status_code="%s"%s}'
BUCKET = 'http_server_request_duration_seconds_bucket{http_route="/orders", le="%s"}'
LAG = 'synchromesh_event_loop_lag_seconds_bucket{process="shop", le="%s"}'
SHOP = 'service_name="shop", service_instance_id="shop"'
# Of each alert: the series in which it fires, with their values each minute.
FIRES: dict[str, dict[str, str]] = {
    "SynchromeshNotScraped": {'synchromesh_process_up{process="shop"}': "1 _x60"},
    "SynchromeshProcessDown": {'synchromesh_process_up{process="shop"}': "0x60"},
    "SynchromeshInstanceNotReady": {f"synchromesh_instance_ready{{{SHOP}}}": "0x60"},
    "SynchromeshNeedsAPerson": {'synchromesh_findings{process="shop"}': "2x60"},
    "SynchromeshRequestsFail": {
        "http_server_request_duration_seconds_count" + ROUTE % ("200", ""): "0+90x60",
        "http_server_request_duration_seconds_count" + ROUTE % ("503", ""): "0+10x60",
    },
    "SynchromeshRequestsSlow": {
        BUCKET % "1.0": "0+90x60",
        BUCKET % "2.5": "0+100x60",
        BUCKET % "+Inf": "0+100x60",
    },
    "SynchromeshOperationsFail": {
        f'synchromesh_operation_duration_seconds_count{{{SHOP}, operation="shop.sell", '
        'outcome="failed"}': "0+10x60",
        f'synchromesh_operation_duration_seconds_count{{{SHOP}, operation="shop.sell", '
        'outcome="ok"}': "0+10x60",
    },
    "SynchromeshBreakerOpen": {
        f'synchromesh_breaker_state{{{SHOP}, callee="bank", state="closed"}}': "0x60",
        f'synchromesh_breaker_state{{{SHOP}, callee="bank", state="open"}}': "1x60",
    },
    "SynchromeshShedding": {
        'synchromesh_gateway_outcomes_total{http_route="/orders", outcome="shed"}': "0+1x60"
    },
    "SynchromeshQueueStands": {
        f'synchromesh_limiter_waiting{{{SHOP}, limiter="service", name="shop"}}': "3x60"
    },
    "SynchromeshSagaStuck": {f'synchromesh_sagas{{{SHOP}, status="stuck"}}': "1x60"},
    "SynchromeshSagaOld": {
        f'synchromesh_saga_oldest_age_seconds{{{SHOP}, status="running"}}': "3500+60x60"
    },
    "SynchromeshRelayLags": {f'synchromesh_relay_lag{{{SHOP}, subscriber="bank"}}': "1500x60"},
    "SynchromeshProjectionLags": {
        f'synchromesh_projection_lag{{{SHOP}, projection="stock"}}': "1500x60"
    },
    "SynchromeshProjectionParked": {
        f'synchromesh_projection_parked{{{SHOP}, projection="stock"}}': "1x60"
    },
    "SynchromeshMessagesParked": {
        f'synchromesh_messages_set_aside{{{SHOP}, state="parked"}}': "4x60"
    },
    "SynchromeshScheduleFailed": {
        f'synchromesh_schedule_failed{{{SHOP}, schedule="nightly"}}': "1x60"
    },
    "SynchromeshRestarts": {
        f'synchromesh_child_restarts_total{{{SHOP}, child="relay/bank"}}': "0+1x60"
    },
    "SynchromeshEventLoopLate": {
        LAG % "0.25": "0+90x60",
        LAG % "0.5": "0+100x60",
        LAG % "+Inf": "0+100x60",
    },
    "SynchromeshLogFileGrows": {
        f'synchromesh_store_file_bytes{{{SHOP}, file="wal"}}': "2000000000x60"
    },
}
# A selector, and what stands between its braces.
_SERIES = re.compile(r"\b((?:synchromesh|http_server|messaging_client)_\w+)(?:\{([^}]*)\})?")
_BY = re.compile(r"by \(([^)]*)\)")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


def queries() -> list[str]:
    """Return all queries of dashboard and alerts."""
    panels = dashboard("shop")["panels"]
    shown = [each["expr"] for panel in panels for each in panel.get("targets", ())]
    return [*shown, *RULES.values()]


def series_of(metric: Metric) -> list[str]:
    """Return the names of the series of a metric."""
    name = prometheus_name(metric)
    if metric.kind == HISTOGRAM:
        return [f"{name}_bucket", f"{name}_count", f"{name}_sum"]
    return [f"{name}_total"] if metric.kind == COUNTER else [name]


def checked(folder: Path, *words: str) -> tuple[int, str]:
    """Run promtool in a folder."""
    done = subprocess.run(
        [promtool(), *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def evaluated(folder: Path, cases: dict[str, dict[str, str]]) -> tuple[int, str]:
    """Have promtool evaluate alerts, each in its case, and expect that none fires."""
    (folder / ALERTS).write_text((HERE / ALERTS).read_text())
    tests = [
        {
            "interval": "1m",
            "input_series": [
                {"series": series, "values": values} for series, values in case.items()
            ],
            "alert_rule_test": [{"eval_time": "40m", "alertname": name, "exp_alerts": []}],
        }
        for name, case in cases.items()
    ]
    # JSON is YAML.
    told = {"rule_files": [ALERTS], "evaluation_interval": "1m", "tests": tests}
    (folder / "cases.yml").write_text(json.dumps(told))
    return checked(folder, "test", "rules", "cases.yml")


def test_every_query_is_of_series_that_there_are() -> None:
    """By name, and by each label that it selects or groups by."""
    known = {series: metric for metric in EVERY for series in series_of(metric)}
    for query in queries():
        found = _SERIES.findall(query)
        assert found, query
        labels = {"le"}
        for series, where in found:
            assert series in known, query
            own = {label_name(label) for label in known[series].labels}
            labels |= own
            assert set(_LABEL.findall(where)) <= own | {"le"}, query
        for grouped in _BY.findall(query):
            assert {label.strip() for label in grouped.split(",")} <= labels, query


def test_promtool_reads_every_query(tmp_path: Path) -> None:
    """Rules and dashboard; it says how many it has read, for it passes what has none."""
    code, said = checked(HERE, "check", "rules", "--lint=all", "--lint-fatal", ALERTS)
    assert (code, f"{len(RULES)} rules found" in said) == (0, True), said
    panels = [
        {"record": f"query:{number}", "expr": query}
        for number, query in enumerate(
            each.replace("$__rate_interval", "5m").replace("$service", ".*") for each in queries()
        )
    ]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "p", "rules": panels}]}))
    code, said = checked(tmp_path, "check", "rules", "panels.yml")
    assert (code, f"{len(panels)} rules found" in said) == (0, True), said


def test_each_alert_fires_in_its_case(tmp_path: Path) -> None:
    """None is expected to, so that promtool complains of each by its name."""
    assert FIRES.keys() == RULES.keys()
    code, said = evaluated(tmp_path, FIRES)
    assert code == 1
    assert sorted(re.findall(r"alertname:\s*(\w+)", said)) == sorted(FIRES), said
    assert all(f'alertname="{name}"' in said for name in FIRES), said


def test_no_alert_fires_while_all_is_well(tmp_path: Path) -> None:
    """The same series with the values of a quiet day."""
    calm = {
        "SynchromeshNotScraped": {'synchromesh_process_up{process="shop"}': "1x60"},
        "SynchromeshProcessDown": {'synchromesh_process_up{process="shop"}': "1x60"},
        "SynchromeshInstanceNotReady": {f"synchromesh_instance_ready{{{SHOP}}}": "1x60"},
        "SynchromeshRequestsFail": dict(
            zip(FIRES["SynchromeshRequestsFail"], ("0+90x60", "0+1x60"), strict=True)
        ),
        "SynchromeshRequestsSlow": dict.fromkeys(FIRES["SynchromeshRequestsSlow"], "0+100x60"),
        "SynchromeshOperationsFail": dict(
            zip(FIRES["SynchromeshOperationsFail"], ("0x60", "0+10x60"), strict=True)
        ),
        "SynchromeshEventLoopLate": dict.fromkeys(FIRES["SynchromeshEventLoopLate"], "0+100x60"),
    }
    for name, case in FIRES.items():
        calm.setdefault(name, dict.fromkeys(case, "0x60"))
    code, said = evaluated(tmp_path, calm)
    assert (code, said.count("SUCCESS")) == (0, 1), said


def test_export_writes_what_grafana_and_prometheus_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dashboard without panels over each other, alerts, and where the system is asked."""
    run = runner(capsys)
    write_config(tmp_path, TOML + '\n[admin]\nhost = "10.0.0.5"\nport = 9100\n')
    ran = run(tmp_path, "export", "grafana", str(tmp_path / "out"), "--json")
    assert (ran.code, ran.err) == (0, "")
    written = [Path(path) for path in json.loads(ran.out)["written"]]
    assert [path.name for path in written] == [DASHBOARD, ALERTS, SCRAPE]
    assert '- targets: ["10.0.0.5:9100"]' in written[2].read_text()
    assert checked(tmp_path / "out", "check", "config", SCRAPE)[0] == 0
    made = json.loads(written[0].read_text())
    places = [
        (x, y)
        for panel in made["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) == 23
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    # What is chosen at the top has one entry for each that calls or serves.
    assert made["templating"]["list"][1]["query"].startswith("label_values(synchromesh_calls_held,")
    write_config(tmp_path, TOML)
    ran = run(tmp_path, "export", "grafana", str(tmp_path / "out"))
    assert (ran.code, "choose one, or start the system" in ran.err) == (2, True)
    (tmp_path / "file").write_text("")
    ran = run(
        tmp_path, "export", "grafana", str(tmp_path / "file" / "out"), "--set", "admin.port=9100"
    )
    assert ran.code == 2
    assert "cannot write to" in ran.err


def test_an_admin_listener_by_tls_is_scraped_so() -> None:
    """With the authority that it proves itself by; a plain one has neither."""
    secured = yaml.safe_load(scrape("https://10.0.0.5:9100", "/tls/ca.pem"))["scrape_configs"][0]
    assert (secured["scheme"], secured["tls_config"]) == ("https", {"ca_file": "/tls/ca.pem"})
    assert secured["static_configs"] == [{"targets": ["10.0.0.5:9100"]}]
    assert yaml.safe_load(scrape("http://h:1"))["scrape_configs"][0].keys() == {
        "job_name",
        "static_configs",
    }
