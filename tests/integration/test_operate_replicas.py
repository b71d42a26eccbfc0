"""Verbs from any host: replicas by `synchromesh run` are found on NATS, and asked one by one."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from certificates import Issued, issue
from cli_runs import Ran, Run, runner
from nats_server import shared_nats
from nats_world import kept_at, running
from notes_app import TESTS
from operated_app import TOML
from postgres_server import shared_server
from processes import COMMAND, until
from synchromesh.cli.status import read_metrics
from synchromesh.discovery import Endpoint, nats_connection
from synchromesh.discovery.entries import InstanceEntry
from synchromesh.errors import DeadlineExceeded, TimedOut
from synchromesh.gateway import KeysFile, make_key
from synchromesh.http import HttpPool
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.store.postgres_databases import PostgresDatabases
from synchromesh.system.control.catalogue import UP
from synchromesh.system.control.operator import Operator
from synchromesh.system.control.replicas import Asking, Replica
from synchromesh.system.control.status import Status

pytestmark = pytest.mark.anyio

KEY = "11" * 32
WAIT_S = 120.0
NODE = os.uname().nodename
FIRST, SECOND, GATEWAY = f"tills#1@{NODE}", f"tills#2@{NODE}", f"gateway@{NODE}"


@dataclass
class Spread:
    """Replicas that nobody supervises, by the name that each was started under."""

    folder: Path
    port: int
    authority: Issued
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    count: int = 0

    def start(self, *names: str, **env: str) -> None:
        """Start some, and wait until they serve."""
        logs = [self._start(name, env) for name in names]
        assert until(lambda: all("serves at" in log.read_text() for log in logs), WAIT_S), [
            log.read_text() for log in logs
        ]

    def _start(self, name: str, env: dict[str, str]) -> Path:
        self.count += 1
        log = self.folder / f"{self.count}.log"
        with log.open("wb") as out:
            self.started[env.get("SYNCHROMESH_SYSTEM__NODE", name)] = subprocess.Popen(
                [
                    *(*COMMAND, "--folder", self.folder, "run", name),
                    *("--run-dir", self.folder / f"run-{self.count}"),
                ],
                stdout=out,
                stderr=out,
                env={**os.environ, **env},
            )
        return log

    def cli(self, *words: str) -> subprocess.Popen[str]:
        """Run the command line beside the test."""
        return subprocess.Popen(
            [*COMMAND, "--folder", str(self.folder), *words], stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> None:
        """End what is left."""
        for process in self.started.values():
            process.kill()
            process.wait()

    def ask(self, method: str = "GET", body: object = None, port: int = 0) -> tuple[int, str]:
        """Ask the gateway, or that at another port; return status and trace."""
        headers = {"content-type": "application/json", "idempotency-key": str(body)}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port or self.port}/tills",
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                return answer.status, answer.headers.get("traceparent", "")
        except urllib.error.HTTPError as error:
            return error.code, ""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spread]:
    folder = tmp_path_factory.mktemp("operated")
    name = f"operated-{os.getpid()}"
    server = shared_server().url("postgres")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS))
        patch.setenv("MESH_KEY", KEY)
        patch.setenv("NATS_URL", shared_nats().url)
        patch.setenv("DATABASE_URL", server.replace("postgres@", ""))
        port = free_port()
        (folder / "synchromesh.toml").write_text(TOML.format(name=name, port=port))
        (folder / "tls").mkdir()
        authority = issue(folder / "tls", "authority")
        issue(folder / "tls", "host", by=authority)
        passwords = Signer(bytes.fromhex(KEY)).database_passwords
        databases = PostgresDatabases(server, system=name, passwords=passwords)
        asyncio.run(databases.create(["tills"]))
        system = Spread(folder, port, authority)
        try:
            system.start("tills#1", "tills#2", "gateway")
            yield system
        finally:
            system.stop()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def ok(ran: Ran) -> Any:
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def test_the_status_of_all_replicas_is_on_one_screen(spread: Spread, run: Run) -> None:
    """Each tells of itself, and who owns what; what is in their database is told once."""
    status = ok(run(spread.folder, "status", "--json"))
    assert sorted(status["services"]) == [FIRST, SECOND]
    assert sorted(status["gateways"]) == [GATEWAY]
    pids = {name: each["pid"] for name, each in status["services"].items()}
    assert pids == {
        FIRST: spread.started["tills#1"].pid,
        SECOND: spread.started["tills#2"].pid,
    }
    (instance,) = status["services"][FIRST]["instances"]
    assert instance["instance"] == FIRST
    assert status["findings"] == []
    assert sorted(status["engines"]) == ["databases", "registry and messages"]
    assert status["engines"]["databases"].startswith("PostgreSQL at ")
    assert "NATS at 127.0.0.1:" in run(spread.folder, "status").out

    def owned() -> list[str]:
        told = ok(run(spread.folder, "status", "--json"))["services"]
        return [duty for each in told.values() for duty in each["duties"]]

    assert until(lambda: sum(each.startswith("sagas/") for each in owned()) == 60)
    shown = run(spread.folder, "status")
    assert shown.code == 0
    assert all(name in shown.out for name in (FIRST, SECOND, GATEWAY, "nothing needs a person"))
    assert run(spread.folder, "blast", "tills").code == 0
    up = next(each for each in read_metrics(spread.folder) if each.metric.name == UP.name)
    assert sorted(each.labels[0] for each in up.samples) == ["gateway", "tills#1", "tills#2"]


def test_an_edge_is_broken_in_all_replicas_and_healed(spread: Spread, run: Run) -> None:
    """A mistake is refused with a hint; what holds is on the status."""
    assert spread.ask()[0] == 200
    broken = ok(run(spread.folder, "break", "gateway:tills", "--errors", "100%", "--json"))
    assert (broken["target"], broken["silent"]) == ("gateway:tills", [])
    assert spread.ask()[0] >= 500
    (fault,) = ok(run(spread.folder, "status", "--json"))["faults"]["in_force"]
    assert fault["target"] == "gateway:tills"
    assert fault["struck"] >= 1
    healed = ok(run(spread.folder, "heal", "--json"))
    assert [each["target"] for each in healed["healed"]] == ["gateway:tills"]
    assert until(lambda: spread.ask()[0] == 200)
    one = ok(run(spread.folder, "break", "tills#2", "--latency", "1ms", "--json"))
    assert one["target"] == SECOND
    assert run(spread.folder, "heal", "tills#2").out == f"healed: {SECOND}\n"
    mistaken = run(spread.folder, "break", "till", "--stall")
    assert (mistaken.code, "did you mean 'tills'?" in mistaken.err) == (2, True)
    isolated = ok(run(spread.folder, "breaker", "isolate", "tills", "--why", "drill", "--json"))
    assert isolated["isolated"] == ["tills"]
    released = run(spread.folder, "breaker", "release", "tills", "--why", "drill")
    assert released.out == "released: tills\n"
    for words, instead in (
        (["console"], "status --watch"),
        (["call", "tills.count"], "client add"),
        (["logs"], "journalctl"),
    ):
        elsewhere = run(spread.folder, *words)
        assert elsewhere.code in (1, 2)
        assert instead in elsewhere.err, elsewhere
    assert run(spread.folder, "gateway", "mirror").out == "no route of the gateway has a mirror\n"


async def asked(
    pool: HttpPool, admin: str, path: str, shown: str = "", body: bytes = b""
) -> tuple[int, str]:
    """Ask an admin listener; return status and what was said."""
    answer = await pool.request(
        "127.0.0.1", int(admin.rpartition(":")[2]), "POST" if body else "GET", path,
        [("authorization", f"Bearer {shown}")] if shown else [], body, timeout_s=WAIT_S,
    )  # fmt: skip
    return answer.status, answer.body.decode()


async def test_no_verb_without_an_operator_s_credential(
    spread: Spread, run: Run, pool: HttpPool
) -> None:
    """Of this system, for this replica, not too old, and not somebody else's name."""
    status = ok(await asyncio.to_thread(run, spread.folder, "status", "--json"))
    admin = status["services"][FIRST]["admin"]
    key, wall_us = bytes.fromhex(KEY), RealRuntime().wall_us
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await asked(pool, admin, path))[0] == 200
    late = Operator(key, "ada", lambda: wall_us() - 600_000_000)
    early = Operator(key, "ada", lambda: wall_us() + 600_000_000)
    signer = Signer(key)
    for shown, said in (
        ("", "need an operator's credential"),
        ("made.up", "was not signed by this system"),
        (Operator(b"x" * 32, "ada", wall_us).credential(FIRST), "was not signed by this system"),
        (Operator(key, "ada", wall_us).credential(SECOND), f"was shown to '@operator/{FIRST}'"),
        (signer.token("tills", audience="tills", now_us=wall_us()), "is for 'tills'"),
        (signer.token("tills", audience=f"@operator/{FIRST}", now_us=wall_us()), "no operator's"),
        (late.credential(FIRST), "set the clocks of both hosts"),
        (early.credential(FIRST), "set the clocks of both hosts"),
    ):
        code, body = await asked(pool, admin, "/control/status", shown)
        assert (code, said in body) == (401, True), body
    good = Operator(key, "ada", wall_us).credential(FIRST)
    assert (await asked(pool, admin, "/control/status", good))[0] == 200
    for path in ("/control/call", "/control/credentials", "/control/services/tills/restart"):
        assert (await asked(pool, admin, path, good, b"{}"))[0] == 404
    forged = b'{"target": "tills", "who": "bob", "why": "x"}'
    code, body = await asked(pool, admin, "/control/breakers", good, forged)
    assert (code, "cannot act as 'bob'" in body) == (403, True)


async def test_who_cannot_be_asked_is_named_with_the_mend(spread: Spread, run: Run) -> None:
    """A listener on loopback elsewhere, one that ends connections, one that is told by nobody."""
    name = f"operated-{os.getpid()}"
    dead = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = dead.sockets[0].getsockname()[1]
    facts = {
        "tills#7@far": (("pid", "7@far"), ("admin", "http://127.0.0.1:9100")),
        "tills#8@dead": (("pid", f"8@{NODE}"), ("admin", f"http://127.0.0.1:{port}")),
        "tills#9@old": (("pid", "9@old"),),
    }
    endpoints = [Endpoint(each, "tills", "http://127.0.0.1:1", facts[each]) for each in facts]
    async with (
        dead,
        running(shared_nats().url, system=name, key=bytes.fromhex(KEY)) as registry,
        kept_at(registry, bytes.fromhex(KEY), *endpoints),
    ):
        told = await asyncio.to_thread(run, spread.folder, "status", "--json")
        broken = await asyncio.to_thread(
            run, spread.folder, "break", "tills#2", "--latency", "1ms", "--json"
        )
        await asyncio.to_thread(run, spread.folder, "heal")
    findings = "\n".join(json.loads(told.out)["findings"])
    assert told.code == 1
    assert "tills#7@far/process is silent: its admin listener is http://127.0.0.1:9100" in findings
    assert '[admin] host = "10.0.0.5"' in findings
    assert "tills#8@dead/process is silent: " in findings
    assert "tills#9@old/process is silent: it has told no admin listener" in findings
    assert (broken.code, json.loads(broken.out)["target"]) == (1, SECOND)
    assert all(f"not done by {each}: " in broken.err for each in facts)


async def test_one_that_hangs_is_not_waited_for(pool: HttpPool) -> None:
    """Nobody knows whether it has done what it was asked for."""
    with socket.create_server(("127.0.0.1", 0)) as hung:
        admin = f"http://127.0.0.1:{hung.getsockname()[1]}"
        facts = (("pid", f"7@{NODE}"), ("admin", admin))
        entry = InstanceEntry(Endpoint(FIRST, "tills", "http://127.0.0.1:1", facts), "p")
        operator = Operator(bytes.fromhex(KEY), "ada", RealRuntime().wall_us)
        replica = Replica(entry, Asking(operator, pool, NODE))
        with pytest.raises((TimedOut, DeadlineExceeded)):
            await replica.ask("GET", "/status", Status, within_s=0.05)


def test_another_key_and_no_server_are_told(
    spread: Spread, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anybody is asked."""
    monkeypatch.setenv("MESH_KEY", "22" * 32)
    told = run(spread.folder, "status")
    assert (told.code, "belongs to a system with another key" in told.err) == (2, True)
    monkeypatch.setenv("MESH_KEY", KEY)
    monkeypatch.setattr(nats_connection, "CONNECT_WITHIN_S", 0.3)
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    away = run(spread.folder, "status")
    assert (away.code, "NATS at nats://127.0.0.1:1" in away.err) == (2, True)


def test_a_system_of_which_nothing_runs_says_so(spread: Spread, run: Run, tmp_path: Path) -> None:
    """With what to start."""
    (tmp_path / "synchromesh.toml").write_text(
        TOML.format(name=f"{spread.folder.name}-none", port=0)
    )
    shutil.copytree(spread.folder / "tls", tmp_path / "tls")
    told = run(tmp_path, "status")
    assert (told.code, "start a replica with: synchromesh run NAME" in told.err) == (2, True)


def test_a_run_is_shown_cancelled_and_traced_from_anywhere(spread: Spread, run: Run) -> None:
    """Through any replica of its service: with who did it, and why."""
    code, _ = spread.ask("POST", {"till": "till-1"})
    assert code == 200
    (found,) = ok(run(spread.folder, "saga", "list", "--json"))
    assert (found["id"], found["service"]) == ("till-1", "tills")
    cancelled = ok(run(spread.folder, "saga", "cancel", "till-1", "--why", "no till", "--json"))
    assert cancelled["status"] in ("undone", "compensating")
    told = ok(run(spread.folder, "saga", "show", "till-1", "--json"))
    assert "no till" in json.dumps(told)
    unknown = run(spread.folder, "saga", "show", "none")
    assert (unknown.code, "no saga has the id 'none'" in unknown.err) == (2, True)
    assert ok(run(spread.folder, "messages", "list", "--service", "tills", "--json")) == []
    traced = ok(run(spread.folder, "trace", "last", "--json"))
    services = {each["service"].partition("#")[0] for each in traced["spans"]}
    assert services == {"gateway", "tills"}
    assert run(spread.folder, "why", "last").code == 0


def asked_with(port: int, key: str) -> tuple[int, str]:
    """Ask a gateway by an API key; return the status, and the bound that it tells."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/own", headers={"x-api-key": key})
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.headers["ratelimit-policy"]
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("ratelimit-policy", "")


def watched(spread: Spread, admin: str, path: str) -> int:
    """Ask an admin listener that proves itself, and show it nothing; return the status."""
    context = ssl.create_default_context(cafile=str(spread.authority.pem))
    try:
        with urllib.request.urlopen(admin + path, timeout=WAIT_S, context=context) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


def test_services_call_each_other_by_tls_alone(spread: Spread, run: Run) -> None:
    """Who shows no certificate of their authority is not let in; one that is renewed is taken."""
    status = ok(run(spread.folder, "status", "--json"))
    (listed,) = status["services"][FIRST]["instances"]
    assert listed["url"].startswith("https://127.0.0.1:")
    port = int(listed["url"].rpartition(":")[2])
    tls = spread.folder / "tls"
    context = ssl.create_default_context(cafile=str(tls / "authority.pem"))

    def answered() -> bytes:
        """What is read by who asks something; nothing where the connection is ended."""
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            shown.append(secured.getpeercert(binary_form=True))
            try:
                secured.sendall(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n")
                return secured.recv(8)
            except OSError:
                return b""

    shown: list[bytes | None] = []
    # By TLS 1.3 who shows nothing is refused at the first that is read.
    assert answered() == b""
    context.load_cert_chain(tls / "host.pem", tls / "host.key")
    assert answered() == b"HTTP/1.1"
    issue(tls, "host", by=spread.authority)
    assert until(lambda: answered() != b"" and shown[-1] != shown[0])
    assert spread.ask()[0] == 200


def test_two_gateways_share_keys_rates_and_reloads(spread: Spread, run: Run) -> None:
    """From any host, while both run; a rate is the whole again once one of them is gone."""
    port = free_port()
    elsewhere = {"SYNCHROMESH_SYSTEM__NODE": "second", "SYNCHROMESH_GATEWAY__PORT": str(port)}
    spread.start("gateway", SYNCHROMESH_ADMIN__TLS="true", **elsewhere)
    gateways = (spread.port, port)
    told = ok(run(spread.folder, "status", "--json"))["gateways"]["gateway@second"]["admin"]
    assert told.startswith("https://"), "operators and probes reach it by TLS"
    assert watched(spread, told, "/healthz") == 200
    assert watched(spread, told, "/control/status") == 401
    with pytest.raises((OSError, HTTPException)):
        urllib.request.urlopen(told.replace("https", "http") + "/healthz", timeout=WAIT_S)
    made = ok(run(spread.folder, "gateway", "key", "add", "shop", "--json"))
    for each in gateways:
        # Of a burst of four each has two.
        assert until(lambda: asked_with(each, made["key"]) == (200, '"GET /own";q=2;w=4'))  # noqa: B023
    listed = ok(run(spread.folder, "gateway", "key", "list", "--json"))
    assert [each["id"] for each in listed] == [made["id"]]
    assert not (spread.folder / ".synchromesh" / "api-keys.json").exists()
    assert run(spread.folder, "gateway", "key", "remove", made["id"]).code == 0
    for each in gateways:
        assert until(lambda: asked_with(each, made["key"])[0] == 401)  # noqa: B023
    again = run(spread.folder, "gateway", "key", "remove", made["id"])
    assert (again.code, "there is no API key" in again.err) == (2, True)

    text, brought = make_key("old shop", [], rng=random.Random(1))
    file = spread.folder / "keys.json"
    file.write_bytes(msgspec.json.encode(KeysFile((brought,))))
    imported = run(spread.folder, "gateway", "key", "import", str(file))
    assert imported.out == "1 of 1 API keys are on NATS now\n"
    for each in gateways:
        assert until(lambda: asked_with(each, text)[0] == 200)  # noqa: B023

    toml = spread.folder / "synchromesh.toml"
    before = toml.read_text()
    toml.write_text(before.replace('timeout = "20s"', 'timeout = "9s"'))
    reloaded = ok(run(spread.folder, "gateway", "reload", "--why", "slow", "--json"))
    assert (reloaded["is_taken"], reloaded["mistakes"]) == (True, [])
    (change,) = reloaded["changes"]
    assert change["what"].startswith("[policies"), "all of them say so"
    toml.write_text(before + '[gateway.clients]\nquiet = "5s"\n')
    refused = run(spread.folder, "gateway", "reload", "--why", "slow")
    assert (refused.code, "nothing was changed" in refused.err) == (1, True), refused
    toml.write_text(before + "[gateway.clients]\nquiet = 5\n")
    unread = run(spread.folder, "gateway", "reload", "--why", "slow")
    assert (unread.code, "gateway.clients" in unread.err) == (2, True), unread
    toml.write_text(before)
    spread.started["second"].terminate()
    assert spread.started.pop("second").wait(WAIT_S) == 0
    key = run(spread.folder, "gateway", "key", "add", "shop").out.strip()
    assert until(lambda: asked_with(spread.port, key)[1] == '"GET /own";q=4;w=4')
    assert ok(run(spread.folder, "gateway", "reload", "--why", "back", "--json"))["is_taken"]


class Clients:
    """Three who ask one gateway all the time, one of them for something to be done."""

    def __init__(self, spread: Spread) -> None:
        self.port = spread.port
        self.statuses: list[list[int]] = [[], [], []]
        self._spread = spread
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(3)
        ]

    def __enter__(self) -> Self:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for each in self._threads:
            each.join(WAIT_S)

    def go_to(self, port: int) -> None:
        """Ask another gateway, and return once nobody asks the one before any more."""
        self.port = port
        before = [len(each) for each in self.statuses]
        assert until(
            lambda: all(len(b) > a + 1 for a, b in zip(before, self.statuses, strict=True)), WAIT_S
        )

    def _ask(self, number: int) -> None:
        told = self.statuses[number]
        while not self._is_over.is_set():
            body = {"till": f"rolled-{len(told)}"}
            method, sent = ("GET", None) if number else ("POST", body)
            told.append(self._spread.ask(method, sent, port=self.port)[0])
            self._is_over.wait(0.2)


def test_all_are_replaced_one_by_one_and_no_request_fails(spread: Spread) -> None:
    """Each ends with exit code 0, and the verb waits for the one that is started in its place."""
    port = free_port()
    elsewhere = {"SYNCHROMESH_SYSTEM__NODE": "second", "SYNCHROMESH_GATEWAY__PORT": str(port)}
    spread.start("gateway", **elsewhere)
    with Clients(spread) as clients:
        replaced(spread, "tills", "tills#1", "tills#2")
        clients.go_to(port)
        (followed,) = replaced(spread, GATEWAY, "gateway")
        clients.go_to(spread.port)
        spread.started["second"].terminate()
        assert spread.started.pop("second").wait(WAIT_S) == 0
    pid = spread.started["gateway"].pid
    assert followed == {"instance": GATEWAY, "by": GATEWAY, "node": NODE, "pid": pid}
    assert {status for each in clients.statuses for status in each} == {200}


def replaced(spread: Spread, whom: str, *names: str) -> list[Any]:
    """Restart some, start whatever ends, and return what the verb says of each."""
    with spread.cli("restart", whom, "--json") as asking:
        for name in names:
            assert spread.started[name].wait(WAIT_S) == 0
            spread.start(name)
        report = json.loads(asking.communicate(timeout=WAIT_S)[0])
    assert (asking.returncode, report["stopped"]) == (0, "")
    followed: list[Any] = report["followed"]
    return followed


def test_a_restart_stops_where_nobody_starts_the_next(spread: Spread, run: Run) -> None:
    """The others are left as they are, and told."""
    unknown = run(spread.folder, "restart", "till")
    assert (unknown.code, f"there are gateway, {GATEWAY}, tills" in unknown.err) == (2, True)
    nothing = run(spread.folder, "restart", "tills", "--break", "--reason", "x")
    assert (nothing.code, "compare no contracts" in nothing.err) == (2, True)
    stopped = run(spread.folder, "restart", "tills", "--within", "100ms")
    assert stopped.code == 1
    assert "no successor of it has registered within 0.1 s" in stopped.out
    assert f"left as they are: {SECOND}" in stopped.out
    assert spread.started["tills#1"].wait(WAIT_S) == 0
    assert spread.ask()[0] == 200
