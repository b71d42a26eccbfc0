"""`GET /metrics` of real systems: what they expose, of one process or several, also under load."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from metrics_check import Shown, read
from notes_app import TESTS, WITH_GATEWAY
from running_works import Works, synchromesh
from split_world import WAIT_S, ControlSocket, port_of, running
from synchromesh.errors import TimedOut
from synchromesh.http import HttpPool
from synchromesh.system.control.catalogue import (
    EJECTED,
    EVERY,
    READS_WAITING,
    SCHEDULE_FAILED,
    STORE_PLACES,
)
from synchromesh.system.control.remote import RemoteProcess
from synchromesh.system.host.metrics_page import OPENMETRICS, TEXT
from synchromesh.telemetry.exposition import label_name, prometheus_name

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
# What this system has no occasion for: test_metrics_collected shows them, and a test of a system
# on PostgreSQL.
ABSENT = {
    prometheus_name(metric) for metric in (EJECTED, SCHEDULE_FAILED, READS_WAITING, STORE_PLACES)
}
ASKED = {OPENMETRICS: "application/openmetrics-text", TEXT: "text/plain"}


async def scrape(pool: HttpPool, url: str, kind: str = OPENMETRICS) -> str:
    """Ask for metrics in a format."""
    answer = await pool.request(
        "127.0.0.1", port_of(url), "GET", "/metrics", [("accept", ASKED[kind])], timeout_s=WAIT_S
    )
    assert (answer.status, answer.headers.get("content-type")) == (200, kind), answer.body
    return answer.body.decode()


async def shown(pool: HttpPool, url: str) -> dict[str, Shown]:
    """Ask for metrics, and read them strictly."""
    return read(await scrape(pool, url), is_openmetrics=True)


async def order(pool: HttpPool, url: str, path: str, body: bytes) -> int:
    """Post JSON to the gateway."""
    json = [("content-type", "application/json")]
    answer = await pool.request(
        "127.0.0.1", port_of(url), "POST", path, json, body, timeout_s=WAIT_S
    )
    return answer.status


@pytest.fixture(autouse=True)
def read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read is told to nobody else: it would be of a moment before."""
    monkeypatch.setattr("synchromesh.system.control.metrics.FRESH_S", 0.0)


@pytest.fixture
def works(tmp_path: Path) -> Iterator[Works]:
    """servo-works as `new` writes it, run by `dev`."""
    made = synchromesh(tmp_path, "new", "works", "--example")
    works = Works(Path(made["folder"]))
    scopes = ("orders:write", "orders:read", "stock:read", "fleet:read", "fleet:write")
    words = [word for scope in scopes for word in ("--scope", scope)]
    works.key = synchromesh(works.folder, "gateway", "key", "add", "shop", *words)["key"]
    works.start()
    yield works
    works.leave()


def documented() -> dict[str, tuple[str, ...]]:
    """Return type, labels and text of each metric in the docs, by name."""
    found = {}
    for line in DOCS.read_text().splitlines():
        if line.startswith("| `"):
            name, kind, labels, told = (cell.strip() for cell in line.strip("|").split("|"))
            found[name.strip("`")] = (kind, *re.findall(r"`(\w+)`", labels), told)
    return found


async def test_every_metric_is_documented_and_exposed(works: Works, pool: HttpPool) -> None:
    """The docs, the code and a system in which things went well and wrong say the same."""
    assert works.place("P-1", "SX40", customer="wilhelmina").status == 200
    assert works.place("P-2", "SX40", customer="brassworks").status == 402
    assert works.ask("GET", "/machines/SX75-20117").status == 200
    assert synchromesh(works.folder, "break", "fleet", "--errors", "100%") is not None
    works.ask("GET", "/machines/SX75-20117")
    admin = synchromesh(works.folder, "status")["admin"]
    known = {prometheus_name(each): each for each in EVERY}
    # What a process that is busy has not told in time comes with the next look.
    for _ in range(60):
        text, plain = await scrape(pool, admin), await scrape(pool, admin, TEXT)
        strict = read(text, is_openmetrics=True)
        if known.keys() - strict.keys() == ABSENT:
            break
        await asyncio.sleep(0.5)
    assert documented() == {
        prometheus_name(each) + "_total" * (each.kind == "counter"): (
            each.kind,
            *map(label_name, each.labels),
            each.help,
        )
        for each in EVERY
    }
    assert known.keys() - strict.keys() == ABSENT
    for name, family in strict.items():
        assert (family.kind, family.help) == (known[name].kind, known[name].help)
        labels = {label for _, own in family.samples for label, _ in own} - {"le"}
        assert labels == {label_name(label) for label in known[name].labels}, name
    # Its own library reads the same of both formats.
    parsed = {each.name: each for each in openmetrics.text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
    old = {each.name: each for each in text_string_to_metric_families(plain)}
    assert parsed.keys() == strict.keys()
    assert {name.removesuffix("_total") for name in old} == strict.keys()
    _no_secrets(
        text, works.key, "P-1", "P-2", "brassworks", "SX75", "wilhelmina", str(works.folder)
    )
    sagas = strict["synchromesh_sagas"].of("", status="undone", service_name="orders")
    assert list(sagas.values()) == [1.0]
    routes = strict["http_server_request_duration_seconds"]
    refused = {"http_route": "/orders", "http_response_status_code": "402", "error_type": ""}
    assert sum(routes.of("_count", **refused).values()) == 1
    assert works.stop(signal.SIGINT)[0] == 0


def _no_secrets(text: str, *secrets: str) -> None:
    for secret in secrets:
        assert secret not in text


async def test_one_page_tells_of_all_processes(
    tmp_path: Path, pool: HttpPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tells of itself, the supervisor of all; one that does not answer is told as down."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    async with running(tmp_path, WITH_GATEWAY) as system:
        admin = system.info.admin
        assert await order(pool, system.info.gateway, "/slow", b'{"seconds": 0}') == 200
        counted = {"synchromesh_operation_duration_seconds", "http_server_request_duration_seconds"}
        async with asyncio.timeout(WAIT_S):
            # What a process has read a moment ago is told to others, too.
            while not counted <= set(every := await shown(pool, admin)):
                continue
        up = every["synchromesh_process_up"].of("")
        assert {dict(own)["process"]: value for own, value in up.items()} == dict.fromkeys(
            ("notebook", "notes", "gateway"), 1.0
        )
        for name, family in (
            ("notes", "synchromesh_operation_duration_seconds"),
            ("gateway", "http_server_request_duration_seconds"),
        ):
            own = await shown(pool, system.info.admin_of[name])
            assert own[family].of("_count") == every[family].of("_count"), name
            assert {dict(labels)["process"] for labels in own["synchromesh_process_up"].of("")} == {
                name
            }
        began = every["synchromesh_process_start_time_seconds"].of("", process="notes")
        await ControlSocket(system, pool).ask("POST", "/services/notes/restart", {})
        async with asyncio.timeout(WAIT_S):
            while True:
                anew = await shown(pool, admin)
                now = anew["synchromesh_process_start_time_seconds"].of("", process="notes")
                if now and now != began:
                    break
        # Its counters begin at 0 again, as Prometheus expects of a process that starts.
        assert "synchromesh_operation_duration_seconds" not in anew
        assert sum(anew["http_server_request_duration_seconds"].of("_count").values()) == 1
        with mock.patch.object(RemoteProcess, "metrics", _silent):
            told = (await shown(pool, admin))["synchromesh_process_up"].of("")
        assert {dict(own)["process"]: value for own, value in told.items()} == {
            "notebook": 1.0,
            "notes": 0.0,
            "gateway": 0.0,
        }


async def _silent(self: RemoteProcess) -> Any:
    raise TimedOut(f"{self.name} says nothing")


async def test_a_scrape_under_load_leaves_the_loop_to_others(
    tmp_path: Path, pool: HttpPool
) -> None:
    """Whatever it takes in all, no turn of the loop takes more than a part of that."""
    async with running(tmp_path, WITH_GATEWAY, is_split=False) as system:
        admin, gateway = system.info.admin, system.info.gateway
        await scrape(pool, admin)
        metrics = system._host.deps.metrics
        for number in range(500):
            timings = metrics.timings("unit", "notes", f"unit {number}")
            assert timings is not None
            timings.of("ok").observe(0.001)
            timings.of("TimeoutError").observe(1.0)

        async def load() -> None:
            while True:
                assert await order(pool, gateway, "/slow", b'{"seconds": 0}') == 200

        loads = [asyncio.ensure_future(load()) for _ in range(4)]
        shares = [await _longest_turn_of(scrape(pool, admin)) for _ in range(5)]
        for each in loads:
            each.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
    assert min(shares) < 0.25, shares


async def _longest_turn_of(work: Any) -> float:
    """Return what share the longest turn of the loop had of all of them while something ran."""
    longest, task = 0.0, asyncio.ensure_future(work)
    started = time.thread_time()
    while not task.done():
        # Of this thread: on a busy machine others take turns as well.
        began = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - began)
    assert len(task.result()) > 1_000_000
    return longest / (time.thread_time() - started)
