"""`status`, `break` and `heal` against a running system, for people and for programs."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import to_builtins
from rich.console import Console

from cli_runs import Run, runner
from notes_app import TOML, WITH_GATEWAY, Running, write_config
from synchromesh.cli.control import ControlClient
from synchromesh.cli.screen import screen
from synchromesh.cli.show import console
from synchromesh.errors import ConfigError
from synchromesh.system.config.rundir import user
from synchromesh.system.control.status import Status
from synchromesh.telemetry.metrics import WORK, Family, Sample

EXTERNAL = '\n[external.bank]\nurl = "http://127.0.0.1:9"\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a system that runs."""
    place = write_config(tmp_path_factory.mktemp("notebook"), TOML + EXTERNAL)
    with Running(place):
        yield place


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a folder, in this process."""
    return runner(capsys)


def whole(told: dict[str, Any]) -> Status:
    """Return a status of which only what the screen shows is said."""
    for name, service in told["services"].items():
        health = {"service": name, "is_healthy": True, **service["health"]}
        told["services"][name] = {**service, "health": health}
    unseen = {
        "epoch": 0,
        "slow": 0,
        "probes": 0,
        "probes_max": 1,
        "open_until_s": None,
        "since_s": 0.0,
    }
    for name, client in told["clients"].items():
        breakers = {callee: {**unseen, **each} for callee, each in client["breakers"].items()}
        told["clients"][name] = {**client, "breakers": breakers, "holds": {}}
    return msgspec.convert(told, Status)


def lines_of(out: str) -> list[list[str]]:
    """Return the words of each line that has some."""
    return [line.split() for line in out.splitlines() if line.strip()]


def test_a_status_is_one_screen(run: Run, folder: Path) -> None:
    """Services and externals with their places, breakers by edge, and that all is well."""
    run(folder, "call", "notes.count")
    run(folder, "call", "notes.plan", "name=s1")
    ran = run(folder, "status")
    told = json.loads(run(folder, "status", "--json").out)
    assert (ran.code, ran.err) == (0, "")
    head, well, _, notes, bank, _, breaker = lines_of(ran.out)
    assert head == ["notebook", "process", str(told["pid"])]
    url = told["services"]["notes"]["instances"][0]["url"]
    assert notes[:5] == ["notes", "healthy", url, "completed", "1"]
    assert notes[-1] == "0"
    assert bank == ["bank", "not", "ours", "http://127.0.0.1:9"]
    assert breaker[:4] == ["control", "->", "notes", "closed"]
    assert well == ["nothing", "needs", "a", "person"]
    here = {"instance": "shop-1", "url": "http://127.0.0.1:8", "is_stale": False}
    joined = msgspec.convert({**told, "joined": {"shop": [here], "till": []}}, Status)
    shown = io.StringIO()
    Console(file=shown, width=120).print(screen(joined))
    assert lines_of(shown.getvalue())[5:7] == [
        ["shop", "joined", here["url"]], ["till", "not", "joined", "none"]
    ]  # fmt: skip


def test_the_gateway_is_on_the_screen(run: Run, tmp_path: Path) -> None:
    """With its URL, for people and for programs; before it listens it has none."""
    with Running(write_config(tmp_path / "notebook", WITH_GATEWAY)) as running:
        url = running.system.info.gateway
        told = json.loads(run(tmp_path / "notebook", "status", "--json").out)
        shown = lines_of(run(tmp_path / "notebook", "status").out)
        admin = running.system.info.admin
    assert told["admin"] == admin
    pid = told["pid"]
    assert told["gateway"] == {
        "pid": pid, "url": url, "warnings": [], "admin": admin, "mirrors": [], "reloaded": None,
    }  # fmt: skip
    assert ["gateway", "healthy", url] in shown


def test_processes_are_on_the_screen(run: Run, folder: Path) -> None:
    """Each with its number, where there is more than one; who does not run is red."""
    told = json.loads(run(folder, "status", "--json").out)
    assert told["services"]["notes"]["pid"] == told["pid"]
    told["services"]["notes"]["pid"] = 4711
    told["gateway"] = {"pid": 4712, "url": "http://127.0.0.1:9"}
    told["children"]["gateway"] = {"state": "silent", "restarts": 0, "last_error": ""}
    out = console()
    with out.capture() as capture:
        out.print(screen(msgspec.convert(told, Status)))
    shown = lines_of(capture.get())
    assert ["service", "pid", "health"] in [words[:3] for words in shown]
    assert ["notes", "4711", "healthy"] in [words[:3] for words in shown]
    assert ["gateway", "4712", "gateway", "silent", "http://127.0.0.1:9"] in shown


def test_a_service_is_broken_and_healed(run: Run, folder: Path) -> None:
    """Calls fail while it lasts; status shows it and is no finding; healing says what it healed."""
    broke = run(folder, "break", "control:notes", "--errors", "100%", "--for", "10m")
    assert (broke.code, broke.err) == (0, "")
    assert lines_of(broke.out)[1] == ["control:notes", "100%", "errors", "10", "m", "0"]
    assert "heal it with: synchromesh heal control:notes" in broke.out
    assert run(folder, "call", "notes.count").code == 1
    shown = run(folder, "status")
    assert shown.code == 0
    (fault,) = (words for words in lines_of(shown.out) if words[0] == "control:notes")
    assert fault[:3] == ["control:notes", "100%", "errors"]
    assert int(fault[-1]) >= 1
    drill = run(folder, "break", "bank", "--latency", "300ms", "--stall", "--why", "a drill")
    assert lines_of(drill.out)[1][-3:] == [user(), "a", "drill"]
    assert run(folder, "heal", "notes").out.splitlines() == [
        "healed: nothing was broken there",
        "still broken: bank, control:notes",
    ]
    assert run(folder, "heal", "control:notes").out.splitlines() == [
        "healed: control:notes",
        "still broken: bank",
    ]
    assert run(folder, "heal", "--why", "it is over").out == "healed: bank\n"
    assert run(folder, "call", "notes.count").code == 0
    assert run(folder, "restart", "notes", "--why", "to see").code == 0
    acts = json.loads(run(folder, "status", "--json").out)["acts"][:3]
    assert [(each["what"], each["target"], each["who"], each["why"]) for each in acts] == [
        ("restart", "notes", user(), "to see"),
        ("heal", "all", user(), "it is over"),
        ("heal", "control:notes", user(), ""),
    ]


def test_break_and_heal_speak_json(run: Run, folder: Path) -> None:
    """Numbers in seconds and shares, and nothing else on standard output."""
    broke = json.loads(run(folder, "break", "bank", "--stall", "--json").out)
    assert broke == {
        "target": "bank",
        "what": "stall",
        "errors": 0.0,
        "latency_s": 0.0,
        "is_stall": True,
        "left_s": None,
        "struck": 0,
        "who": user(),
        "why": "",
    }
    healed = json.loads(run(folder, "heal", "all", "--json").out)
    assert healed["healed"] == [broke]
    assert (healed["in_force"], sorted(healed)) == ([], ["healed", "in_force", "struck"])


def test_what_needs_a_person_is_a_finding(run: Run, folder: Path) -> None:
    """Exit 1 and which service, for people and for programs, until it is mended."""
    run(folder, "call", "notes.plan", "name=s2")
    database = sqlite3.connect(folder / ".synchromesh/data/notes.db")
    found = "notes: sagas that are stuck: 1; see: synchromesh saga list --status stuck"
    for state, code in (("stuck", 1), ("completed", 0)):
        database.execute("update sm_saga set status = ? where id = 'plan-s2'", (state,))
        database.commit()
        shown, told = run(folder, "status"), run(folder, "status", "--json")
        assert (shown.code, told.code) == (code, code)
        assert json.loads(told.out)["findings"] == [found] * code
        assert (found in shown.out) == bool(code)
    database.close()


def test_watching_draws_until_ctrl_c(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each second anew, also while the system is away; the exit code is that of the last look."""
    asked: list[str] = []

    class Flaky(ControlClient):
        def get(self, path: str) -> Any:
            if path == "/metrics":
                return super().get(path)
            asked.append(path)
            if len(asked) == 2:
                raise ConfigError("the system does not answer")
            if len(asked) == 4:
                raise KeyboardInterrupt
            return {**super().get(path), "findings": [f"look {len(asked)}"]}

    monkeypatch.setattr("synchromesh.cli.status.WATCH_EVERY_S", 0.0)
    monkeypatch.setattr("synchromesh.cli.status.control_of", Flaky)
    ran = run(folder, "status", "--watch")
    assert (ran.code, ran.err, asked) == (1, "", ["/status"] * 4)
    # It is no terminal: each screen is below the one before.
    shown = [line for line in ran.out.splitlines() if line.startswith(("look", "last known"))]
    assert shown == ["look 1", "last known: the system does not answer", "look 1", "look 3"]


def test_watching_shows_what_was_done_since_the_last_look(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routes and operations with their rate, failures and durations."""
    looks = 0

    class Busy(ControlClient):
        def get(self, path: str) -> Any:
            nonlocal looks
            answer = super().get(path)
            if path == "/metrics":
                looks += 1
                if looks == 3:
                    raise KeyboardInterrupt
                labels = ("notes", "notes", "notes.write", "failed", "timed_out")
                took = Sample(labels, 3.0 * looks, (*[0] * 13, 3 * looks, *[0] * 4))
                answer["families"] = to_builtins([Family(WORK["handle"], [took])])
            return answer

    monkeypatch.setattr("synchromesh.cli.status.WATCH_EVERY_S", 0.0)
    monkeypatch.setattr("synchromesh.cli.status.control_of", Busy)
    ran = run(folder, "status", "--watch")
    assert (ran.code, ran.err) == (0, "")
    assert "a second" in ran.out
    (line,) = [line for line in ran.out.splitlines() if line.startswith("notes.write")]
    assert line.split()[-4:] == ["1750.0", "ms", "2485.0", "ms"]


def test_a_system_that_goes_away_is_shown_as_it_was(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the last screen stands why it is no newer."""
    asked: list[str] = []

    class Gone(ControlClient):
        def get(self, path: str) -> Any:
            if path == "/metrics":
                return super().get(path)
            asked.append(path)
            if len(asked) == 2:
                raise ConfigError("process 4711 may have died")
            if len(asked) == 3:
                raise KeyboardInterrupt
            return super().get(path)

    monkeypatch.setattr("synchromesh.cli.status.WATCH_EVERY_S", 0.0)
    monkeypatch.setattr("synchromesh.cli.status.control_of", Gone)
    ran = run(folder, "status", "--watch")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("notebook  process ")
    assert "\nlast known: process 4711 may have died\n" in ran.out


def test_every_state_has_its_place_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    """Draining, down, unlisted, stale and several are all said in words."""
    down = {"state": "restarting", "restarts": 2, "last_error": "OSError"}
    bare: dict[str, Any] = {
        "pid": 1,
        "health": {"is_draining": False, "children": {}},
        "instances": [],
        "sagas": {},
        "behind": {"relay/b": 3},
        "parked": 2,
        "breakers": {},
    }
    place = {"instance": "a-1", "url": "http://a", "is_stale": True}
    twice = [{"instance": f"c-{n}", "url": f"http://c{n}", "is_stale": False} for n in (1, 2)]
    breaker = {"name": "g -> a", "state": "closed", "in_state_s": 1, "failures": 1, "calls": 2}
    probing = {**breaker, "name": "g -> c", "state": "half_open"}
    told = {
        "system": "s",
        "pid": 1,
        "gateway": None,
        "services": {
            "a": {**bare, "health": {"is_draining": True, "children": {}}, "instances": [place]},
            "b": {
                **bare,
                "health": {"is_draining": False, "children": {"relay/c": down}},
                "behind": {"relay/c": 0},
            },
            "c": {**bare, "instances": twice, "behind": {}, "parked": 0},
        },
        "externals": {"bank": {"instances": []}},
        "clients": {"g@web1": {"breakers": {"a": breaker, "c": probing}}},
        "children": {"external/bank": down},
        "faults": {"in_force": [], "struck": 0},
        "spans_dropped": 7,
        "findings": ["b: messages that are parked: 2"],
    }
    console().print(screen(whole(told)))
    said = [" ".join(words) for words in lines_of(capsys.readouterr().out)]
    assert said == [
        "s process 1 7 spans dropped",
        "b: messages that are parked: 2",
        "service health instances sagas behind parked",
        "a draining http://a stale - b 3 2",
        "b relay/c restarting none - 0 2",
        "c healthy http://c1 c-1 - - 0",
        "http://c2 c-2",
        "bank restarting none",
        "breaker state for failures calls",
        # Of replicas each has its own.
        "g@web1 -> c half_open 1.0 s 1 2",
        "g@web1 -> a closed 1.0 s 1 2",
    ]


def test_each_replica_has_a_line_and_who_ejected_it_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Process, state and calls under way of each instance; one that is down; who passes it over."""
    silent = {"state": "silent", "restarts": 0, "last_error": "it does not answer"}
    well = {"is_draining": False, "children": {}}
    place = {"instance": "q#1", "url": "http://q", "is_stale": False}
    bare: dict[str, Any] = {"sagas": {}, "behind": {}, "parked": 0, "breakers": {}}
    told = {
        "system": "s",
        "pid": 1,
        "gateway": None,
        "services": {
            "q#1": {**bare, "pid": 11, "health": well, "in_flight": 3, "instances": [place]},
            "q#2": {
                **bare,
                "pid": 12,
                "health": {**well, "children": {"process": silent}},
                "instances": [],
            },
        },
        "externals": {},
        "clients": {"gateway": {"breakers": {}, "ejected": {"q": ["q#2"]}}},
        "children": {},
        "faults": {"in_force": [], "struck": 0},
        "spans_dropped": 0,
        "findings": [],
    }
    console().print(screen(whole(told)))
    assert [" ".join(words) for words in lines_of(capsys.readouterr().out)] == [
        "s process 1",
        "nothing needs a person",
        "service pid health in flight instances sagas behind",
        "q#1 11 healthy 3 http://q - -",
        "q#2 12 process silent 0 none - -",
        "ejected instance by",
        "q#2 gateway",
    ]


def test_a_narrow_screen_keeps_urls_whole(capsys: pytest.CaptureFixture[str]) -> None:
    """On 80 columns what is to be copied is neither cut nor wrapped."""
    url = "http://127.0.0.1:65535"
    service = {
        "pid": 4194304,
        "health": {"is_draining": False, "children": {}},
        "instances": [{"instance": "configurator-1", "url": url, "is_stale": False}],
        "sagas": {"completed": 1200, "running": 30, "stuck": 1, "undone": 70},
        "behind": {"relay/configurator": 12, "projection/stock_level": 3},
        "parked": 1000,
        "breakers": {},
    }
    told = {
        "system": "servo-works",
        "pid": 1,
        "gateway": {"pid": 4194303, "url": url},
        "services": {"configurator": service},
        "externals": {},
        "clients": {},
        "children": {},
        "faults": {"in_force": [], "struck": 0},
        "spans_dropped": 0,
        "findings": [],
    }
    Console(width=80).print(screen(whole(told)))
    out = capsys.readouterr().out
    assert url in out
    assert "…" not in out
    for word in ("configurator", "healthy", "1200,", "stuck", "12,", "1000", "4194304"):
        assert word in out.split()


def test_a_narrow_screen_has_a_line_for_a_service_that_is_well(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On 80 columns no word is broken: what is parked has a column only where something is."""
    url = "http://127.0.0.1:65535"
    service = {
        "pid": 23976,
        "health": {"is_draining": False, "children": {}},
        "instances": [{"instance": "configurator-1", "url": url, "is_stale": False}],
        "sagas": {"completed": 4, "undone": 3},
        "behind": {"relay/configurator": 0},
        "parked": 0,
        "breakers": {},
    }
    told = {
        "system": "servo-works",
        "pid": 1,
        "gateway": None,
        "services": {"configurator": service},
        "externals": {},
        "clients": {},
        "children": {},
        "faults": {"in_force": [], "struck": 0},
        "spans_dropped": 0,
        "findings": [],
    }
    Console(width=80).print(screen(whole(told)))
    assert [" ".join(words) for words in lines_of(capsys.readouterr().out)] == [
        "servo-works process 1",
        "nothing needs a person",
        "service pid health instances sagas behind",
        f"configurator 23976 healthy {url} completed 4, 0",
        "undone 3",
    ]


@pytest.mark.parametrize("is_any_up", [True, False])
def test_urls_that_are_down_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_any_up: bool
) -> None:
    """How many are up stands beside the service, and each that is not is a finding with its why."""

    class Up(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204 if self.path == "/v1/up" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Up) as up:
        threading.Thread(target=up.serve_forever, daemon=True).start()
        path = "/v1/up" if is_any_up else "/v1/other"
        urls = f'urls = ["http://127.0.0.1:{up.server_port}", "http://127.0.0.1:9"]'
        health = f'health = {{ path = "{path}", every = "200ms", timeout = "100ms" }}'
        place = write_config(tmp_path, f"{TOML}\n[external.bank]\n{urls}\n{health}\n")
        with Running(place):
            down = 1 if is_any_up else 2
            until_s = time.monotonic() + 90
            while time.monotonic() < until_s:
                ran = runner(capsys)(place, "status", "--json")
                told = json.loads(ran.out)
                if len(told["externals"]["bank"]["down"]) == down:
                    break
            assert told["externals"]["bank"]["checked"] == 2
            assert len(told["externals"]["bank"]["instances"]) == (1 if is_any_up else 2)
            ran = runner(capsys)(place, "status")
            assert ran.code == 1
            assert f"{2 - down} of 2 up" in ran.out
            out = " ".join(ran.out.split())
            assert "bank: http://127.0.0.1:9 is down: cannot connect to 127.0.0.1:9" in out
            assert ("so requests go to all" in out) is not is_any_up
        up.shutdown()


def test_what_is_found_in_a_file_is_told_and_so_is_why_it_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was found last stays, and a finding says what is wrong; a start refuses the mistake."""
    found = "[external.bank]\ndiscover = { file = 'bank.json', every = '50ms' }"
    place = write_config(tmp_path, f"{TOML}\n{found}\n")
    (place / "bank.json").write_text('["http://127.0.0.1:9", "http://127.0.0.1:10"]')

    def told(wanted: str) -> tuple[list[str], int]:
        until_s = time.monotonic() + 90
        while time.monotonic() < until_s:
            ran = runner(capsys)(place, "status", "--json")
            said = json.loads(ran.out)
            there = said["externals"]["bank"]
            if wanted in there["unread"] if wanted else not there["unread"]:
                break
        return [each["url"] for each in there["instances"]], len(said["findings"])

    with Running(place):
        assert told("") == (["http://127.0.0.1:10", "http://127.0.0.1:9"], 0)
        (place / "bank.json").write_text("[]")
        assert told("has no URL") == (["http://127.0.0.1:10", "http://127.0.0.1:9"], 1)
        out = " ".join(runner(capsys)(place, "status").out.split())
        assert "bank goes on at what was found last: " in out
        (place / "bank.json").write_text('["http://127.0.0.1:11"]')
        assert told("") == (["http://127.0.0.1:11"], 0)
    (place / "bank.json").unlink()
    refused = pytest.raises(ConfigError, match=r"\[external\.bank\] discover\.file: .* cannot be")
    with refused, Running(place):
        pass
