"""`synchromesh gateway` and the gateway of a system: what is wrong is named before it listens."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.request import urlopen

import pytest

from certificates import issue
from cli_runs import Run, runner
from notes_app import TOML, Notes, Running, write_config
from synchromesh import (
    JWT,
    Aggregate,
    ApiKeys,
    Branch,
    Contract,
    Forward,
    Gateway,
    Rate,
    Route,
    query,
)
from synchromesh.errors import ConfigError
from synchromesh.gateway import Mirror, Split, parse_keys
from synchromesh.gateway.router import Template
from synchromesh.runtime import RealRuntime
from synchromesh.system import load_config
from synchromesh.system.config.gateway_keys import ApiKeysFile

AUTH = (ApiKeys(),)


class Away(Contract, Protocol, service="away", version="1.0"):
    """A service that the system does not have."""

    @query("GET /away")
    async def now(self) -> int: ...


right = Gateway(
    auth=AUTH,
    routes=[
        Route("POST /notes", Notes.write, scopes={"notes:write"}, rate=Rate("5/s", burst=7)),
        Aggregate(
            "GET /page",
            public=True,
            branches={
                "count": Branch(Notes.count, required=True),
                "who": Branch(Notes.who, timeout="300ms"),
            },
        ),
        Forward(
            "POST /raw/tags", to="notes", path="/tags", body_max="8MiB", scopes={"notes:write"}
        ),
    ],
)
mirrored = Gateway(
    routes=[
        Forward("GET /count", to="notes", public=True, mirror=Mirror("other", values=True)),
        Forward("GET /who", to="notes", public=True, mirror=Mirror("away")),
    ],
)
with_tokens = Gateway(
    auth=[ApiKeys(), JWT(issuer="https://a", audience="api", jwks="https://a/keys")],
    routes=[Route("GET /who", Notes.who, scopes={"notes:write"})],
)
for_nobody = Gateway(
    auth=[JWT(issuer="https://a", audience="", jwks="keys.json")],
    routes=[Route("GET /count", Notes.count, public=True)],
)
wrong = Gateway(
    auth=AUTH,
    routes=[
        Route("GET /notes", Notes.write),
        Route("GET /away", Away.now),
        Forward("GET /far/{name}", to="far", path="/{name}"),
        Forward("PUT /notes/{name}", to="notes", path="/notes", body_max="1GB"),
        Aggregate("GET /page", branches={"who": Branch(Notes.who, args={"x": "path.y"})}),
        Forward("GET /lost", to="notes", public=True),
        Forward("PUT /counts", to="far", path="/count", split=Split("notes", percent=5)),
        Forward("GET /near/{name}", to="far", mirror=Mirror("notes", path="/notes/{name}")),
        Forward("ANY /all/{rest...}", to="notes", path="/{rest...}"),
    ],
)

by_nobody = Gateway(auth=ApiKeys, routes=["GET /x", *wrong.routes[:1]])  # type: ignore[arg-type,list-item]


@pytest.fixture(autouse=True)
def _import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading services puts their folder on the import path; each test has its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(name="run")
def _run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def folder_of(folder: Path, gateway: str) -> Path:
    """Make the folder of a system with one of the gateways of this module."""
    return write_config(folder, f'{TOML}\n[gateway]\napp = "{__name__}:{gateway}"\n')


def test_every_mistake_is_named(tmp_path: Path, run: Run) -> None:
    """Routes, arguments, services and keys are all read before it ends with 2; so for `dev`."""
    folder = folder_of(tmp_path, "wrong")
    (folder / ".synchromesh").mkdir()
    keys = folder / ".synchromesh" / "api-keys.json"
    keys.write_text('{"keys": [{"id": "X", "principal": "", "hash": "none"}]}')
    keys.chmod(0o600)
    expected = (
        "GET /notes: notes.write is a POST in its contract",
        "GET /away: leads to away.now, and the system has no service 'away'",
        "GET /far/{name}: leads to 'far', and the system has neither a service nor an external",
        "PUT /notes/{name}: {name} is not used in '/notes'",
        "PUT /notes/{name}: its body_max: '1GB' is no size",
        "GET /lost: leads to GET /lost of 'notes', which has no such operation; it has: POST",
        "PUT /counts: its split: leads to PUT /count of 'notes', which has no such operation",
        "GET /near/{name}: its mirror: leads to GET /notes/{name} of 'notes', which has no such",
        "no branch is required",
        "api-keys.json are wrong: key 1 ('X')",
    )
    for words in (("gateway", "check"), ("dev",), ("dev", "--split"), ("config", "check")):
        ran = run(folder, *words)
        assert ran.code == 2
        for mistake in expected:
            assert mistake in ran.err, words
    told = run(folder, "gateway", "check", "--json")
    assert (told.code, json.loads(told.out)["routes"]) == (2, 9)
    mistakes = json.loads(told.out)["mistakes"]
    assert not any("/all/" in each for each in mistakes)
    assert all(any(mistake in each for each in mistakes) for mistake in expected)
    assert not (folder / ".synchromesh" / "data").exists()


def test_what_is_no_way_to_tell_who_asks_or_no_route_is_named(tmp_path: Path, run: Run) -> None:
    """By every command that reads it; no traceback, and no other mistake for want of it."""
    folder = folder_of(tmp_path, "by_nobody")
    for words in (
        ("gateway", "check"),
        ("gateway", "explain"),
        ("gateway", "key", "add", "ann"),
        ("gateway", "upstream-key", "shop"),
        ("config", "check"),
        ("config", "explain"),
        ("dev",),
    ):
        ran = run(folder, *words)
        assert ran.code == 2, (words, ran.err)
        assert "auth is the class ApiKeys; write a list: auth=[ApiKeys()]" in ran.err, words
        assert "routes[0] is 'GET /x'; write Route, Aggregate or Forward" in ran.err, words
        assert "no auth" not in ran.err


@pytest.mark.parametrize(
    ("tls", "why"),
    [
        ('certificate = "gate.pem", key = "other.key"', "other.key is not the key of"),
        ('certificate = "none.pem", key = "gate.key"', "none.pem cannot be read: No such file"),
        ('certificate = "old.pem", key = "old.key"', "certificate has expired"),
    ],
)
def test_certificates_are_tried_as_at_a_start(tmp_path: Path, run: Run, tls: str, why: str) -> None:
    """Those of the gateway and of external services, in the words of `dev`."""
    folder = folder_of(tmp_path, "right")
    for name, days in (("gate", 1.0), ("other", 1.0), ("old", -1.0)):
        issue(folder, name, days=days)
    file, far = folder / "synchromesh.toml", '[external.far]\nurl = "https://far.example"\n'
    good = 'tls = { certificate = "gate.pem", key = "gate.key" }\n'
    file.write_text(f"{file.read_text()}{good}{far}")
    for words in (("gateway", "check"), ("config", "check")):
        assert run(folder, *words).code == 0, words
    file.write_text(file.read_text().replace(good, f"tls = {{ {tls} }}\n"))
    for line in ("gateway check", "config check", "dev"):
        ran = run(folder, *line.split())
        assert (ran.code, "[gateway] tls: " in ran.err, why in ran.err) == (2, True, True), line
    file.write_text(f'{file.read_text()}tls = {{ ca = "nobody.pem" }}\n')
    for verb in ("gateway", "config"):
        err = run(folder, verb, "check").err
        assert why in err
        assert "[external.far] tls: " in err
        assert "nobody.pem cannot be read" in err
    told = json.loads(run(folder, "gateway", "check", "--json").out)
    assert len(told["mistakes"]) == 2


def test_wrong_rules_of_tokens_are_named_once(tmp_path: Path, run: Run) -> None:
    """By the check of the definition, and by no start of the verifier again."""
    folder = folder_of(tmp_path, "for_nobody")
    (mistake,) = json.loads(run(folder, "gateway", "check", "--json").out)["mistakes"]
    assert "audience is empty" in mistake


def test_keys_that_others_can_read_are_refused(tmp_path: Path, run: Run) -> None:
    """The file of keys is for its user alone."""
    folder = folder_of(tmp_path, "right")
    assert run(folder, "gateway", "key", "add", "shop").code == 0
    (folder / ".synchromesh" / "api-keys.json").chmod(0o644)
    for words in (("gateway", "check"), ("gateway", "key", "list"), ("dev",)):
        ran = run(folder, *words)
        assert (ran.code, "can be read by others" in ran.err) == (2, True)


def test_a_right_gateway_is_explained(tmp_path: Path, run: Run) -> None:
    """Who may what, how often, and what an aggregate asks, for people and for programs."""
    folder = folder_of(tmp_path, "right")
    assert run(folder, "gateway", "check").out == "all is right with 3 routes\n"
    assert json.loads(run(folder, "gateway", "check", "--json").out) == {
        "routes": 3,
        "mistakes": [],
    }
    shown = run(folder, "gateway", "explain").out
    for words in ("notes:write", "5/s, bursts of 7", "anybody", "  1. count", "notes.who()"):
        assert words in shown
    assert "notes /tags, bodies of at most 8MiB" in " ".join(shown.split())
    assert "5s, 2s an attempt, 3 at most" in " ".join(shown.split())
    route, page, drawing = json.loads(run(folder, "gateway", "explain", "--json").out)
    assert (route["operation"], route["kind"], route["who"]) == (
        "notes.write",
        "command",
        "notes:write",
    )
    assert route["rate"] == {"limit": "5/s", "burst": 7}
    assert [(each["name"], each["turn"]) for each in page["branches"]] == [("count", 1), ("who", 1)]
    assert (drawing["kind"], drawing["body_max"]) == ("forward", "8MiB")
    assert not (folder / ".synchromesh").exists()


def test_a_reload_is_shown_before_it_is_taken(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would change, then that it was taken; a mistake ends with 1, and no reason with 2."""
    folder = folder_of(tmp_path, "right")
    file = folder / "synchromesh.toml"
    with Running(folder) as running:
        running.system.reread = lambda: load_config(folder)
        assert run(folder, "gateway", "reload", "--dry-run").out == "nothing has changed\n"
        with file.open("a") as text:
            text.write('access_log = "1%"\n[policies."gateway:notes"]\ntimeout = "3s"\n')
        shown = run(folder, "gateway", "reload", "--dry-run").out
        assert "  ~ [gateway] access_log  off -> 1%\n" in shown
        assert '  ~ [policies."gateway:notes"] timeout  2s -> 3s\n' in shown
        assert shown.endswith("it can be taken; nothing was changed\n")
        unsaid = run(folder, "gateway", "reload")
        assert (unsaid.code, "--why TEXT" in unsaid.err) == (2, True)
        assert run(folder, "gateway", "reload", "--why", "less").out == f"{shown[:-37]}taken\n"
        good = file.read_text()
        file.write_text(good.replace("1%", "often"))
        refused = run(folder, "gateway", "reload", "--why", "more")
        assert (refused.code, "nothing was changed; mistakes:" in refused.err) == (1, True)
        assert "access_log = 'often'" in refused.err
        file.write_text(good.replace("notes_app:notes", "notes_app:broken"))
        report = json.loads(run(folder, "gateway", "reload", "--dry-run", "--json").out)
        assert report["left"] == ['[services."notes"]']


def test_without_a_gateway_it_says_how_to_have_one(tmp_path: Path, run: Run) -> None:
    """Each command ends with 2 and names the section."""
    folder = write_config(tmp_path)
    for words in (("check",), ("explain",), ("key", "list"), ("key", "add", "shop")):
        ran = run(folder, "gateway", *words)
        assert (ran.code, "add a section [gateway]" in ran.err) == (2, True)


def test_keys_are_made_listed_and_removed(tmp_path: Path, run: Run) -> None:
    """A key is printed once, alone on standard output; its hash is kept, for its user alone."""
    folder = folder_of(tmp_path, "right")
    ran = run(folder, "gateway", "key", "add", "shop", "--scope", "notes:write", "--scope", "odd")
    text = ran.out.strip()
    assert text.startswith("sm_")
    assert "no route asks for the scope odd" in ran.err
    assert "good within a second where the gateway runs; " in ran.err
    assert "has no scopes" not in ran.err
    ran = run(folder, "gateway", "key", "add", "x", "--expires", "30d", "--json")
    assert "the key has no scopes, and opens only what asks for none; " in ran.err
    assert "where routes ask for: notes:write\n" in ran.err
    made = json.loads(ran.out)
    assert (made["principal"], made["is_expired"]) == ("x", False)
    path = folder / ".synchromesh" / "api-keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert text.strip()[-43:] not in path.read_text()
    first, second = parse_keys(path.read_bytes(), "it").values()
    assert (first.principal, first.scopes, first.expires) == ("shop", ("notes:write", "odd"), None)
    assert second.expires is not None
    listed = run(folder, "gateway", "key", "list").out
    assert (first.id in listed, "never" in listed, text in listed) == (True, True, False)
    assert len(json.loads(run(folder, "gateway", "key", "list", "--json").out)) == 2
    assert run(folder, "gateway", "key", "remove", first.id).out == f"removed: {first.id} of shop\n"
    again = run(folder, "gateway", "key", "remove", first.id)
    assert (again.code, f"the ids are: {second.id}" in again.err) == (2, True)


WRONG_KEYS = {
    "scope": (("shop", "--scope", "Nonsense!"), "is no scope"),
    "principal": (("",), "the principal is 1 to 128"),
    "expiry": (("shop", "--expires", "soon"), "is not a duration"),
    "far": (("shop", "--expires", "99999d"), "more than 100 years"),
}


@pytest.mark.parametrize(("words", "why"), WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_a_wrong_key_is_not_made(
    tmp_path: Path, run: Run, words: tuple[str, ...], why: str
) -> None:
    """Nothing is printed that looks like a key, and none is kept."""
    folder = folder_of(tmp_path, "right")
    ran = run(folder, "gateway", "key", "add", *words)
    assert (ran.code, ran.out, why in ran.err) == (2, "", True)
    assert json.loads(run(folder, "gateway", "key", "list", "--json").out) == []


def test_no_key_is_made_for_the_subject_of_a_token(tmp_path: Path, run: Run) -> None:
    """One that is in the file already is named, and can be removed."""
    folder = folder_of(tmp_path, "with_tokens")
    ran = run(folder, "gateway", "key", "add", "jwt:ada", "--scope", "notes:write")
    assert (ran.code, ran.out) == (2, "")
    assert "'jwt:ada' has a name as tokens of https://a give it" in ran.err
    assert json.loads(run(folder, "gateway", "key", "list", "--json").out) == []
    assert run(folder, "gateway", "key", "add", "jwt", "--scope", "notes:write").code == 0
    assert run(folder, "gateway", "check").code == 0
    path = folder / ".synchromesh" / "api-keys.json"
    path.write_bytes(path.read_bytes().replace(b'"jwt"', b'"jwt:ada"'))
    checked = run(folder, "gateway", "check")
    assert checked.code == 2
    (key,) = parse_keys(path.read_bytes(), "it").values()
    assert f"API key {key.id!r}: the principal 'jwt:ada' has a name as tokens of" in checked.err
    assert run(folder, "gateway", "key", "remove", key.id).code == 0
    assert run(folder, "gateway", "check").code == 0


def test_one_command_at_a_time_changes_the_keys(tmp_path: Path) -> None:
    """Of two at once none loses the other's key: one is told to try again."""
    disk = RealRuntime().disk
    path = tmp_path / "api-keys.json"
    lock = disk.try_lock(str(path))
    assert lock is not None
    with pytest.raises(ConfigError, match="another command changes"):
        ApiKeysFile(path, disk).remove("abcd")
    lock.release()
    with pytest.raises(ConfigError, match="the ids are: none"):
        ApiKeysFile(path, disk).remove("abcd")


class Nine(BaseHTTPRequestHandler):
    """Counts nine notes, whatever it is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "1")
        self.end_headers()
        self.wfile.write(b"9")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_where_answers_differ_is_shown(tmp_path: Path, run: Run) -> None:
    """By a verb that ends with 1, with counts for each route and the last differences."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Nine) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        folder = folder_of(tmp_path, "mirrored")
        config = folder / "synchromesh.toml"
        config.write_text(
            f'{config.read_text()}[external.other]\nurl = "http://127.0.0.1:{other.server_port}"\n'
            '[external.away]\nurl = "http://127.0.0.1:9"\n'
        )
        with Running(folder) as running:
            assert run(folder, "gateway", "mirror").code == 0
            for path in ("/count", "/who"):
                with urlopen(running.system.info.gateway + path, timeout=90) as answer:
                    assert answer.status == 200
            until_s = time.monotonic() + 90
            while time.monotonic() < until_s:
                told = json.loads(run(folder, "gateway", "mirror", "--json").out)
                if told[0]["different"] and told[1]["failed"]:
                    break
            assert (told[0]["same"], told[0]["different"]) == (0, 1)
            ran = run(folder, "gateway", "mirror")
            assert ran.code == 1
            kept = told[0]["kept"][0]
            assert f"trace {kept['trace_id']} GET /count: / (value: 0 / 9)" in ran.out
            assert "GET /who: the last copy that failed: connect_failed" in ran.out
        other.shutdown()
    with Running(folder_of(tmp_path, "right")):
        ran = run(tmp_path, "gateway", "mirror")
        assert (ran.code, ran.out) == (0, "no route of the gateway has a mirror\n")


def test_a_system_without_keys_lets_nobody_in_and_starts(tmp_path: Path) -> None:
    """The first start makes the file of keys, and publishes where the gateway is."""
    folder = folder_of(tmp_path, "right")
    with Running(folder) as running:
        info = running.system.info
        assert info.gateway.startswith("http://127.0.0.1:")
        assert json.loads((folder / ".synchromesh/run.json").read_text())["gateway"] == info.gateway
        assert json.loads((folder / ".synchromesh/api-keys.json").read_text()) == {"keys": []}


def test_a_start_reads_the_definition_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check before the start has made of the routes is what is served."""
    read: Counter[str] = Counter()
    of = Template.of

    def counted(text: str) -> Template:
        read[text] += 1
        return of(text)

    monkeypatch.setattr(Template, "of", counted)
    with Running(folder_of(tmp_path, "right")):
        assert [read[str(route.route)] for route in right.routes] == [1, 1, 1]
