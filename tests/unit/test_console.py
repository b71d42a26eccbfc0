"""The console: who is let in, what it shows of hostile names, and what its verbs do."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from console_browser import Browser, Markup
from notes_app import TESTS, WITH_GATEWAY, Running, write_config
from synchromesh.console.markup import escape, tag
from synchromesh.console.overview import _projections_table
from synchromesh.console.parts import PageQuery, frame
from synchromesh.console.payloads import MASKED, shown_payload
from synchromesh.console.service_map import NODES_MAX, layers, layout, render_map
from synchromesh.console.sessions import ENTRIES_MAX, SESSION_S, Sessions
from synchromesh.console.site import PAGES, find_page
from synchromesh.console.verbs import request_of
from synchromesh.errors import BadRequest, UnknownOperation

PAGE_BYTES_MAX = 200_000
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>\x00\ud800javascript:"
# What pages rely on: times are formatted, the states of nodes are ours.
KEPT = frozenset({"at", "started_at", "ended_at", "first_at", "last_at", "nodes"})
# Mappings whose keys are names that a system gives.
NAMED = frozenset(
    {
        "behind", "breakers", "children", "code_changed", "down", "externals", "instances",
        "ignored", "operations", "sagas", "services",
    }
)  # fmt: skip
TAGS = {
    *("a", "body", "button", "caption", "circle", "code", "details", "div", "form", "h1", "h2"),
    *("head", "header", "html", "input", "label", "li", "line", "link", "main", "meta", "nav"),
    *("option", "p", "path", "pre", "rect", "section", "select", "span", "strong", "summary"),
    *("svg",),
    *("table", "tbody", "td", "text", "th", "thead", "time", "title", "tr", "ul"),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A system with a console."""
    with Running(write_config(tmp_path_factory.mktemp("notebook"), WITH_GATEWAY)) as running:
        yield running


@pytest.fixture
def browser(running: Running) -> Browser:
    """A browser that was let in."""
    entry = running.system.console_url()
    browser = Browser(entry)
    assert browser.enter(entry) == 303
    return browser


def test_a_url_lets_one_browser_in_once(running: Running) -> None:
    """The token is void after its use, and a guess was never worth anything."""
    entry = running.system.console_url()
    one, other = Browser(entry), Browser(entry)
    assert one.enter(entry) == 303
    assert one.ask("GET", "/")[0] == 200
    assert other.enter(entry) == 401
    assert other.enter(entry.partition("token=")[0] + "token=guess") == 401
    assert other.ask("GET", "/")[0] == 401
    assert "synchromesh console" in other.ask("GET", "/")[2]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
        ({"Cookie": ""}, 401),
        ({"Cookie": "synchromesh_console_1=x"}, 401),
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/", "/now.json", "/live?at=/"])
def test_who_may_ask(browser: Browser, path: str, fields: dict[str, str], status: int) -> None:
    """Another Host, Origin or site is refused on every path, and so is who has no session."""
    if status == 200 and path.startswith("/live"):
        return  # what is streamed has no end: see the test of it
    answered, headers, body = browser.ask("GET", path, **fields)
    assert answered == status
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert "notes" not in body or status == 200


def test_a_verb_needs_its_form_and_its_origin(browser: Browser) -> None:
    """A POST without the token of the session, or without an Origin, changes nothing."""
    token = browser.form_token("/lab")
    form = {"target": "notes", "how": "fails", "for": "", "why": "to see it"}
    right = urlencode({**form, "form_token": token})
    assert browser.ask("POST", "/do/break", urlencode(form))[0] == 403
    assert browser.ask("POST", "/do/break", urlencode({**form, "form_token": "x"}))[0] == 403
    assert browser.ask("POST", "/do/break", right, Origin="")[0] == 403
    assert browser.ask("POST", "/do/break", right, Origin="http://evil.example")[0] == 403
    assert browser.ask("GET", f"/do/break?{right}")[0] == 405
    assert browser.ask("POST", "/lab", right)[0] == 405
    assert json.loads(browser.ask("GET", "/lab.json")[2])["faults"] == []


def test_what_is_done_is_asked_for_and_recorded(running: Running, browser: Browser) -> None:
    """Something is broken and healed by the same requests as on the command line, with a reason."""
    token = browser.form_token("/lab")
    form = {"form_token": token, "target": "notes", "how": "fails", "for": "", "why": "to see it"}
    assert browser.ask("POST", "/do/break", urlencode({**form, "why": " "}))[0] == 400
    assert browser.ask("POST", "/do/break", urlencode({**form, "target": "nots"}))[0] == 400
    status, headers, _ = browser.ask("POST", "/do/break", urlencode(form))
    assert (status, headers["location"]) == (303, "/lab")
    assert [f["target"] for f in json.loads(browser.ask("GET", "/now.json")[2])["faults"]] == [
        "notes"
    ]
    assert browser.ask("POST", "/do/heal", urlencode(form))[0] == 303
    assert json.loads(browser.ask("GET", "/now.json")[2])["faults"] == []
    acts = json.loads(browser.ask("GET", "/now.json")[2])["acts"]
    assert [(each["what"], each["target"], each["why"]) for each in acts] == [
        ("heal", "notes", "to see it"), ("break", "notes", "to see it"),
    ]  # fmt: skip
    assert "What people did" in browser.ask("GET", "/")[2]
    logged = [line for line in running.log if "by the console" in line["message"]]
    assert [line["reason"] for line in logged] == ["to see it"] * 2
    assert all(line["who"] for line in logged)


def test_a_page_is_sent_again_when_it_has_changed(running: Running, browser: Browser) -> None:
    """The main part comes as an event, and anew after something has happened."""
    connection = http.client.HTTPConnection(browser.authority, timeout=30)
    connection.request("GET", "/live?at=/lab", headers={"Cookie": browser.cookie})
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream"

    def event() -> str:
        while not (line := answer.readline()).startswith(b"data: "):
            pass
        return str(json.loads(line[6:]))

    assert "Faults in force: none" in event()
    form = {"target": "notes", "how": "fails", "for": "", "why": "to see it"}
    form["form_token"] = browser.form_token("/lab")
    browser.ask("POST", "/do/break", urlencode(form))
    try:
        assert "Heal notes" in event()
    finally:
        connection.close()
        browser.ask("POST", "/do/heal", urlencode(form))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/services/nobody", 404), ("/traces/0", 400), ("/sagas/notes:none", 404),
        ("/sagas/none", 400), ("/nothing", 404),
        ("/services/", 404), ("/traces?least_ms=soon", 400), ("/sagas?status=odd", 400),
        ("/static/../server.py", 404), ("/static/server.py", 404),
        ("/?" + "&".join(f"a{i}=1" for i in range(30)), 400),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_words(browser: Browser, path: str, status: int) -> None:
    """A wrong page, name or search is one sentence, never a traceback."""
    answered, _, body = browser.ask("GET", path)
    assert answered == status
    assert "Traceback" not in body
    assert 'class="bad"' in body


def test_hostile_names_and_payloads_are_text(
    running: Running, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a name, a reason or an error is, on each page: no element, attribute, URL of it."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # of the process that looks for advice
    control = http.client.HTTPConnection(
        running.system.info.control.removeprefix("http://"), timeout=30
    )
    call = {"operation": "notes.plan", "arguments": {"name": "p1"}}
    headers = {"Authorization": f"Bearer {running.system.info.token}"}
    control.request("POST", "/call", json.dumps(call), headers)
    control.getresponse().read()
    control.close()
    run = json.loads(browser.ask("GET", "/sagas.json")[2])["runs"][0]
    paths = [
        "/services/notes",
        "/databases/notes",
        f"/sagas/{run['service']}:{run['id']}",
        f"/traces/{run['trace_id']}",
    ]
    for path in [*(f"/{name}" for name in PAGES), *paths, "/messages/notes:1"]:
        status, _, body = browser.ask("GET", f"{path}.json")
        # There is no message; what it would be is made up.
        assert status == 200 or "notes:1" in path, body
        found = find_page(path)
        assert found is not None
        told = poisoned((json.loads(body) if status == 200 else {}) | more(path))
        main = found.page.render(told, PageQuery(HOSTILE, {}, HOSTILE))
        page = frame(HOSTILE, HOSTILE, found.here, main, live=HOSTILE).decode()
        assert len(page) < PAGE_BYTES_MAX
        read = Markup(page)
        assert [tag for tag, _ in read.tags if tag not in TAGS] == ["script"]
        for _, attributes in read.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "style"]
            for name in ("href", "action", "src"):
                url = attributes.get(name) or "/"
                assert url.startswith(("/", "#")), url
                assert not url.startswith("//")
        assert "alert(1)" in read.text
        assert "\x00" not in page


def more(path: str) -> dict[str, Any]:
    """Return what this system has none of, in the form in which it would be told."""
    figures = {"per_s": 1.0, "failed_per_s": 1.0, "p50_s": 0.1, "p99_s": 0.2}
    edge = {"caller": "a", "callee": "b", "breaker": "open", **figures}
    work = [{"name": "GET /count", "is_route": True, **figures}]
    at = "2026-01-01T00:00:00Z"
    letter = {
        "ref": "notes:1", "state": "parked", "event": "e", "subscriber": "s", "attempts": 3,
        "first_at": at, "error": "E",
    }  # fmt: skip
    fault = {"target": "notes", "what": "fails", "struck": 1, "left_s": None}
    fault |= {"who": "me", "why": "so"}
    instance: dict[str, Any] = {
        "health": {
            "is_draining": False, "is_healthy": True,
            "children": {"loop": {"state": "running", "restarts": 1, "last_error": "E"}},
        },
        "in_flight": 1, "sagas": {"running": 1}, "behind": {"relay/bank": 1}, "parked": 1, "pid": 1,
        "breakers": {
            "bank": {"state": "open", "calls": 1, "failures": 1, "slow": 0, "in_state_s": 1.0}
        },
        "projections": [
            {
                "name": "list", "generation": 1, "state": "live", "position": 6, "behind": 1,
                "skipped": 0, "parked": {"position": 7, "error": "E", "is_poison": True},
            }
        ],
    }  # fmt: skip
    act = {"what": "heal", "target": "notes", "who": "me", "why": "so", "at_us": 1}
    isolation = {"target": "notes", "who": "me", "why": "so"}
    advice = dict.fromkeys(("code", "what", "why", "pattern", "page", "change"), "text")
    told: dict[str, dict[str, Any]] = {
        "/now": {
            "findings": ["f"], "work": work, "faults": [fault], "isolations": [isolation],
            "breakers": [{"edge": "a:b", "state": "open", "in_state_s": 1.0}],
            "code_changed": {"notes": ["notes.py"]}, "acts": [act],
        },
        "/services": {
            "externals": {"bank": {"instances": [1], "down": {"http://b": "it is late"}}},
            "joined": {"till": [{"url": "http://t"}]},
        },
        "/services/notes": {
            "operations": work, "edges": [edge], "instances": {"notes#1": instance},
            "policies": [{"edge": "a:b", "policy": ["retry"], "operations": {"x": ["timeout"]}}],
        },
        "/map": {"edges": [edge], "nodes": {HOSTILE: "bad", "a": "good"}},
        "/messages": {
            "set_aside": [letter], "set_aside_count": 9,
            "lag": [{"publisher": "notes", "subscriber": "relay/bank", "behind": 1}],
            "projections": [{"service": "notes#1", **instance["projections"][0]}],
        },
        "/messages/notes:1": {
            **letter, "position": 1, "source": "s", "key": "k", "message_id": "m", "last_at": at,
            "trace_id": "t", "text": "T", "payload": "P",
        },
        "/edge": {
            "routes": work,
            "branches": [{"route": "GET /", "branch": "b", "asks": "a.b", "ladder": ["live"]}],
            "stood_in": [{"route": "/", "branch": "b", "outcome": "stale", "per_s": 1.0}],
        },
        "/lab": {"faults": [fault]},
        "/advice": {"advice": [{**advice, "evidence": ["seen"]}], "ignored": {"code": "because"}},
    }  # fmt: skip
    return told.get(path, {})


def poisoned(value: Any, key: str = "") -> Any:
    """Return a value in which each text, and each name that is a key, is hostile."""
    if key in KEPT:
        return value
    if isinstance(value, str):
        return f"{value}{HOSTILE}"
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    if isinstance(value, dict):
        return {
            (f"{name}{HOSTILE}" if key in NAMED else name): poisoned(each, name)
            for name, each in value.items()
        }
    return value


def test_texts_are_escaped_wherever_they_stand() -> None:
    """What is made of a text by joining is a text again, and is escaped."""
    made = tag("b", "<")
    assert made == "<b>&lt;</b>"
    assert escape(made) == made
    assert tag("p", f"{made}") == "<p>&lt;b&gt;&amp;lt;&lt;/b&gt;</p>"
    assert tag("p", made + "<i>") == "<p>&lt;b&gt;&amp;lt;&lt;/b&gt;&lt;i&gt;</p>"


def test_sessions_end_and_cannot_be_made_up() -> None:
    """A cookie is good for a week, with this key, unchanged; old URLs make room."""
    sessions, other = Sessions(b"k" * 32), Sessions(b"o" * 32)
    sessions.admit("first")
    for number in range(ENTRIES_MAX):
        sessions.admit(str(number))
    assert sessions.enter("first", "s", now_s=0.0) is None
    cookie = sessions.enter("0", "s", now_s=1000.0)
    assert cookie is not None
    assert sessions.knows(cookie, now_s=1000.0 + SESSION_S - 2)
    assert Sessions(b"k" * 32).knows(cookie, now_s=1000.0)
    assert not sessions.knows(cookie, now_s=1000.0 + SESSION_S)
    assert not other.knows(cookie, now_s=1000.0)
    for forged in ("", ".", "..", cookie[:-1], f"{cookie}0", cookie.replace("1000", "9999"), "é"):
        assert not sessions.knows(forged, now_s=1000.0)
    assert not sessions.is_form_token(sessions.form_token("another"), cookie)


def test_verbs_are_requests_of_the_command_line() -> None:
    """Who and why go with each action; what is left out is named."""
    made = request_of(
        "saga.retry", {"service": "s", "id": "a/b", "why": "seen", "not_done": "yes"}, who="me"
    )
    assert made.path == "/actions/saga.retry"
    assert made.body == {"service": "s", "id": "a/b", "not_done": True, "who": "me", "why": "seen"}
    assert made.back == "/sagas/s%3Aa%2Fb"
    parked = {"service": "s", "name": "open", "position": "7", "generation": "2", "why": "x"}
    made = request_of("projection.skip", parked, who="me")
    assert made.body == {
        "service": "s", "name": "open", "position": 7, "generation": 2, "who": "me", "why": "x"
    }  # fmt: skip
    made = request_of("projection.rebuild", {**parked, "retry_skipped": "1"}, who="me")
    assert made.body["retry_skipped"] is True
    made = request_of("restart", {"name": "s#2", "why": "x"}, who="me")
    assert (made.body, made.back) == ({"asked_by": "me", "why": "x"}, "/services/s")
    with pytest.raises(UnknownOperation, match=r"no verb 'db\.drop'"):
        request_of("db.drop", {"why": "x"}, who="me")
    with pytest.raises(BadRequest, match="no number"):
        request_of("messages.drop", {"service": "s", "number": "1e3", "why": "x"}, who="me")
    with pytest.raises(BadRequest, match="has no 'service'"):
        request_of("saga.undo", {"why": "x"}, who="me")


def test_the_map_is_the_same_each_time_and_nothing_overlaps() -> None:
    """Callers stand left of what they call, circles are cut, and no two nodes share a place."""
    nodes = [f"n{i}" for i in range(12)]
    edges = [(f"n{i}", f"n{(i * 5 + 3) % 12}") for i in range(12)] + [("n1", "n1"), ("n9", "gone")]
    places = layout(nodes, edges)
    assert places == layout(nodes[::-1], edges[::-1])
    assert len(set(places.values())) == len(nodes)
    tree = [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e"), ("a", "e")]
    depth = layers(list("abcde"), tree)
    assert all(depth[a] < depth[b] for a, b in tree)


def test_many_services_are_drawn_as_groups() -> None:
    """Of more than 25 the map has at most 25 nodes, and the table has all edges."""
    names = [f"g{i % 40}_part{i}" for i in range(200)]
    figures = {"per_s": 1.0, "failed_per_s": 0.0, "p50_s": 0.1, "p99_s": 0.2, "breaker": ""}
    edges = [{"caller": a, "callee": b, **figures} for a, b in pairwise(names)]
    told = {
        "focus": "", "group": "", "members": [], "nodes": dict.fromkeys(names, "good"),
        "edges": edges, "over_s": 5.0,
    }  # fmt: skip
    page = frame("Map", "s", "/map", render_map(told, PageQuery())).decode()
    read = Markup(page)
    assert 0 < sum(tag == "rect" for tag, _ in read.tags) <= NODES_MAX
    assert sum(tag == "tr" for tag, _ in read.tags) == len(edges) + 1
    assert len(page) < PAGE_BYTES_MAX


def test_a_long_trace_is_a_short_page() -> None:
    """Of many spans the first are drawn, and how many are not is said."""
    span = {
        "trace_id": "t" * 32, "parent_id": "", "service": "orders", "kind": "handle",
        "name": "orders.place", "started_us": 1, "took_us": 5, "status": "ok", "attributes": {},
    }  # fmt: skip
    spans = [{**span, "span_id": str(i), "started_us": i} for i in range(400)]
    found = find_page("/traces/t")
    assert found is not None
    told = {"trace_id": "t" * 32, "spans": spans, "services": ["orders"]}
    main = found.page.render({**told, "has_more": True}, PageQuery("t"))
    page = frame("Trace", "s", "/traces", main)
    assert len(page) < PAGE_BYTES_MAX
    assert b"spans later than the first 400 are left out" in page
    assert b"150 spans are not drawn" in page


def test_a_restart_finds_the_port_and_the_session_again(tmp_path: Path) -> None:
    """A page that is open goes on: same port, same cookie."""
    folder = write_config(tmp_path / "notebook", WITH_GATEWAY)
    with Running(folder) as running:
        entry = running.system.console_url()
        browser = Browser(entry)
        browser.enter(entry)
    with Running(folder) as running:
        assert urlsplit(running.system.console_url()).netloc == browser.authority
        assert browser.ask("GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ('{"email":{"$personal":"c-17","sealed":"AbCd"}}', {"email": MASKED}),
        ('{"a":[{"b":{"$personal":"c-17","erased":true}}]}', {"a": [{"b": MASKED}]}),
        ('{"$personal":"c-17"}', MASKED),
        ('"plain"', "plain"),
    ],
)
def test_personal_values_of_a_payload_are_not_shown(stored: str, shown: object) -> None:
    """Neither the value nor whose it is, at any depth."""
    assert json.loads(shown_payload(stored)) == shown
    assert "c-17" not in shown_payload(stored)


@pytest.mark.parametrize("stored", ["{", '{"email":"a@b"', "[" * 3000])
def test_what_cannot_be_read_of_a_payload_is_not_shown(stored: str) -> None:
    """It may be personal; and what is long is cut."""
    assert "a@b" not in shown_payload(stored)
    assert len(shown_payload(stored)) < 100
    assert len(shown_payload(json.dumps("x" * 100_000))) < 21_000
    assert "deeper" in shown_payload("[" * 100 + "]" * 100)


def test_a_parked_projection_can_be_skipped_and_any_be_rebuilt() -> None:
    """A replica's verbs are of its service; one whose log is the trouble cannot be skipped."""
    parked = {"position": 7, "error": "E", "is_poison": True}
    own = {"generation": 2, "state": "live", "position": 6, "behind": 1, "skipped": 0}
    instances: dict[str, Any] = {
        "notes#2": {"projections": [{"name": "open", "parked": parked, **own}]}
    }
    page = _projections_table(PageQuery("notes", {}, "t"), instances)
    for each in ("/do/projection.retry", "/do/projection.skip", "/do/projection.rebuild"):
        assert f'action="{each}"' in page
    assert 'name="service" value="notes"' in page
    assert 'name="position" value="7"' in page
    parked["is_poison"] = False
    assert "projection.skip" not in _projections_table(PageQuery("notes", {}, "t"), instances)
