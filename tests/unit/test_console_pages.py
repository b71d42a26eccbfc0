"""The pages of the console: where their links lead, and how they are bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

import persons_app
from cli_runs import runner
from console_browser import Browser, Markup, crawled, links_of
from notes_app import Running, write_config
from synchromesh.console.parts import ROWS_MAX, PageQuery, frame
from synchromesh.console.payloads import MASKED
from synchromesh.console.sagas import LINES_MAX, fetch_saga, render_saga
from synchromesh.console.service_map import fetch_map, render_map
from synchromesh.console.site import PAGES, PAGES_OF_ONE
from synchromesh.console.traces import render_trace
from synchromesh.saga.inspection import PART
from synchromesh.system.control.saga_actions import ACTIONS, ShowSaga

pytestmark = pytest.mark.anyio

PAGE_BYTES_MAX = 200_000
CANARY = "ada@example.org"

TOML = """
[system]
name = "notebook"
joined = ["till"]

[services.notes]
app = "notes_app:notes"

[services.quotes]
app = "replicas_app:quotes"
replicas = 2

[gateway]
app = "replicas_app:way_in"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a system: a service that keeps data, one with replicas, one that may join."""
    return write_config(tmp_path_factory.mktemp("notebook"), TOML)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Running]:
    """That system, running."""
    with Running(folder) as running:
        yield running


@pytest.fixture(scope="module")
def browser(running: Running) -> Browser:
    """A browser that was let in."""
    entry = running.system.console_url()
    browser = Browser(entry)
    assert browser.enter(entry) == 303
    return browser


def test_each_link_of_each_page_leads_somewhere(
    folder: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first page on, over replicas, what keeps nothing and what has joined; twins too."""
    run = runner(capsys)
    assert run(folder, "call", "notes.plan", "name=p1").code == 0
    for _ in range(2):  # one of each replica
        assert run(folder, "call", "quotes.one", "sku=a").code == 0
    seen = crawled(browser)
    assert all(isinstance(json.loads(seen[each]), dict) for each in seen if ".json" in each)
    kinds = {path.split("/")[1] for path in seen if path.count("/") == 2}
    assert kinds == set(PAGES_OF_ONE) - {"messages"}  # none was set aside
    assert seen.keys() > {f"/{name}" for name in PAGES if name not in ("now", "advice")}
    assert seen.keys() > {"/services/quotes", "/databases/notes", "/map?focus=quotes"}


def test_no_page_tells_a_secret_or_what_is_personal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a saga, a message that nobody takes, traces and databases; in no twin either."""
    run, folder = runner(capsys), write_config(tmp_path / "persons", persons_app.TOML)
    request = json.dumps({"customer_id": "c-17", "email": CANARY})
    persons_app.failing.add("c-17")
    try:
        with Running(folder) as running:
            for operation in ("customers.register", "customers.welcome"):
                assert run(folder, "call", operation, f"request={request}").code == 0
            entry = running.system.console_url()
            browser = Browser(entry)
            assert browser.enter(entry) == 303
            while not json.loads(browser.ask("GET", "/messages.json")[2])["set_aside"]:
                continue
            seen = crawled(browser)
            key = (folder / ".synchromesh" / "system.key").read_bytes()
            secrets = {CANARY, running.system.info.token, key.hex(), entry.partition("?")[2]}
    finally:
        persons_app.failing.discard("c-17")
    kinds = {path.split("/")[1] for path in seen if path.count("/") == 2}
    assert kinds == set(PAGES_OF_ONE)
    assert any(MASKED in text for path, text in seen.items() if path.startswith("/messages/"))
    assert {path for path, text in seen.items() for each in secrets if each in text} == set()


def test_traces_are_searched_by_name_end_and_duration(
    folder: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each narrows what is listed; without any all are there, the newest first."""
    run = runner(capsys)
    run(folder, "call", "notes.crash", "name=c1")
    run(folder, "call", "notes.slow", "seconds=0.03")
    run(folder, "call", "quotes.one", "sku=a")

    def found(**query: str) -> list[tuple[str, str]]:
        told = json.loads(browser.ask("GET", f"/traces.json?{urlencode(query)}")[2])
        assert told["looked_at"] >= 3
        return [(each["name"], each["status"]) for each in told["traces"]]

    everything = found()
    assert [name for name, _ in everything[:3]] == ["quotes.one", "notes.slow", "notes.crash"]
    assert everything[2][1] != "ok"
    assert {name for name, _ in found(q="QUOTES")} == {"quotes.one"}
    failed = found(ended="failed")
    assert ("notes.crash", everything[2][1]) in failed
    assert "ok" not in {status for _, status in failed}
    assert {status for _, status in found(ended="ok")} == {"ok"}
    assert [name for name, _ in found(least_ms="30", q="notes.slow")] == ["notes.slow"]
    assert found(least_ms="3600000") == []
    page = Markup(browser.ask("GET", "/traces?q=slow&ended=ok&least_ms=30")[2])
    assert ("option", {"value": "ok", "selected": None}) in page.tags
    fields = {each["name"]: each.get("value") for tag, each in page.tags if tag == "input"}
    assert fields == {"q": "slow", "least_ms": "30"}


def test_each_verb_reaches_a_running_system(
    folder: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be done is done, and leads back; what has no place is refused in a sentence."""
    run = runner(capsys)
    run(folder, "call", "notes.plan", "name=p2")
    token = browser.form_token("/lab")

    def do(verb: str, **fields: str) -> tuple[int, str]:
        form = {"form_token": token, "why": "to see it", **fields}
        status, headers, page = browser.ask("POST", f"/do/{verb}", urlencode(form))
        return status, headers.get("location", "") or Markup(page).text.partition("not work")[2]

    assert do("restart", name="quotes#1") == (303, "/services/quotes")
    for verb in ("retry", "skip", "undo", "cancel"):
        status, said = do(f"saga.{verb}", service="notes", id="plan-p2")
        assert (status, "it has ended, completed" in said) == (409, True), said
    for verb in ("replay", "drop"):
        status, said = do(f"messages.{verb}", service="notes", number="1")
        assert (400 <= status < 500, "notes:1" in said) == (True, True), said
    which = {"service": "notes", "name": "stars"}
    status, said = do("projection.retry", **which)
    assert (status, "not parked" in said) == (400, True), said
    status, said = do("projection.skip", **which, position="1", generation="1")
    assert (status, "not parked" in said) == (400, True), said
    status, said = do("projection.rebuild", **which)
    assert (status, "declares no tables" in said) == (400, True), said
    acts = json.loads(browser.ask("GET", "/now.json")[2])["acts"]
    assert ("restart", "quotes#1", "to see it") in [
        (each["what"], each["target"], each["why"]) for each in acts
    ]


def test_a_trace_leads_to_services_that_have_a_page() -> None:
    """A replica to its service; an application that has joined is named, and leads nowhere."""
    span = {
        "trace_id": "t", "parent_id": "", "kind": "handle", "name": "x", "started_us": 1,
        "took_us": 5, "status": "ok", "attributes": {},
    }  # fmt: skip
    spans = [
        {**span, "span_id": name, "service": name}
        for name in ("quotes#2", "quotes#1@north", "till")
    ]
    told: dict[str, Any] = {"trace_id": "t", "spans": spans, "services": ["notes", "quotes"]}
    page = render_trace(told, PageQuery("t"))
    assert links_of(page) == {"/services/quotes"}
    assert "till" in Markup(page).text


class Told:
    """Tells of services and the edges between them, as the control API does."""

    def __init__(self, edges: Iterable[tuple[str, str]]) -> None:
        figures = {"per_s": 2.0, "failed_per_s": 0.5, "p50_s": 0.1, "p99_s": 0.2}
        self._edges = [{"caller": a, "callee": b, **figures} for a, b in edges]
        names = sorted({name for edge in edges for name in edge})
        health = {"is_draining": False, "is_healthy": True}
        self._status: dict[str, Any] = {
            "services": {name: {"health": health, "breakers": {}} for name in names},
            "clients": {}, "externals": {}, "joined": {}, "gateway": None,
        }  # fmt: skip

    async def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return the status."""
        return self._status

    async def work(self) -> dict[str, Any]:
        """Return what goes over the edges."""
        return {"over_s": 5.0, "work": [], "edges": self._edges, "stood_in": []}

    policies = advice = work


def drawn(edges: Sequence[tuple[str, str]], **query: str) -> tuple[dict[str, Any], Markup]:
    """Return the map of edges, and what is read of its page."""
    asked = PageQuery("", query)
    told = asyncio.run(fetch_map(Told(edges), asked))
    return told, Markup(frame("Map", "s", "/map", render_map(told, asked)).decode())


def boxes(page: Markup) -> set[str]:
    """Return what is drawn on a map."""
    labels = (fields.get("aria-label") or "" for tag, fields in page.tags if tag == "a")
    return {each.partition(":")[0] for each in labels if each.endswith((": good", ": bad"))}


TEAMS = [f"team{number % 10}_part{number}" for number in range(50)]
BETWEEN = [(a, TEAMS[(at + step) % 50]) for at, a in enumerate(TEAMS) for step in (1, 10)]


def test_a_group_leads_to_its_members_and_their_neighbours() -> None:
    """Its link shows its members alone, and others as groups where they are too many."""
    whole, page = drawn(BETWEEN)
    assert boxes(page) == {f"team{number}" for number in range(10)}
    assert (whole["focus"], whole["group"], len(whole["edges"])) == ("", "", 100)
    links = {fields.get("href") for tag, fields in page.tags if tag == "a"}
    assert "/map?group=team3" in links
    # Five edges go from a team to the next, each of 2 a second; those within it are not drawn.
    assert page.text.count("10/s, 200 ms") == 10
    told, page = drawn(BETWEEN, group="team3")
    members = {name for name in TEAMS if name.startswith("team3_")}
    assert set(told["members"]) == members
    assert all(members & {each["caller"], each["callee"]} for each in told["edges"])
    assert len(told["nodes"]) == 15
    assert boxes(page) == set(told["nodes"])
    assert "Only team3 and its neighbours" in page.text
    everywhere = [*BETWEEN, *(("team3_part3", each) for each in TEAMS)]
    _, page = drawn(everywhere, group="team3")
    assert boxes(page) == members | {f"team{number}" for number in range(10) if number != 3}
    _, page = drawn(BETWEEN, group="nobody")
    assert boxes(page) == {f"team{number}" for number in range(10)}


def test_a_node_leads_to_its_neighbours() -> None:
    """What it calls, and what calls it, by their own names."""
    told, page = drawn(BETWEEN, focus="team0_part0")
    near = {"team0_part0", "team1_part1", "team0_part10", "team9_part49", "team0_part40"}
    assert (told["focus"], set(told["nodes"]), boxes(page)) == ("team0_part0", near, near)
    assert "Only team0_part0 and its neighbours" in page.text


def test_a_map_of_very_many_edges_is_a_short_page() -> None:
    """Of more edges than fit those are listed that have something to do; the JSON has all."""
    told, page = drawn([(a, b) for a in TEAMS for b in TEAMS if a != b])
    assert sum(tag == "tr" for tag, _ in page.tags) == ROWS_MAX + 1
    assert f"{50 * 49 - ROWS_MAX} more are not drawn" in page.text
    assert len(told["edges"]) == 50 * 49
    assert len(render_map(told, PageQuery())) < PAGE_BYTES_MAX


class Run:
    """Reads a run of many steps, as a database has it."""

    service = "shop"
    steps = 5_000

    async def read(self, sql: str, *_: object) -> list[Any]:
        """Return the run, or its records; the first result has a personal value in it."""
        if "sm_saga_record" not in sql:
            return [(
                "long", "order", 1, None, "", GIVEN, "running", "", "", "t", "s", "",
                b'{"name":"","scopes":[]}', 0, None, 0, None, 0,
            )]  # fmt: skip
        ends = range(2 * self.steps)
        return [
            (at + 1, "done", f"take#{at // 2 + 1}", 1, "", GIVEN, at) if at % 2
            else (at + 1, "begun", f"take#{at // 2 + 1}", 1, "", b"", at)
            for at in ends
        ]  # fmt: skip


class LongRun(Run):
    """Reads a run of which each other step gave much."""

    steps = LINES_MAX // 2

    async def read(self, sql: str, *_: object) -> list[Any]:
        """Return the run, or its records."""
        rows = await super().read(sql)
        if "sm_saga_record" not in sql:
            return rows
        much = json.dumps([GIVEN.decode()] * 2_000).encode()
        return [
            (*row[:5], much, *row[6:]) if row[1] == "done" and row[0] % 4 == 0 else row
            for row in rows
        ]


GIVEN = b'{"id":"A-1","email":{"$personal":"c-17","sealed":"AbCd"}}'


async def test_a_long_saga_is_a_short_page_that_does_not_hold_the_loop() -> None:
    """Its newest records are drawn with what they gave, masked; how many are not is said."""
    turns, is_over = 0, asyncio.Event()

    async def count() -> None:
        nonlocal turns
        while not is_over.is_set():
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    (action,) = (each for each in ACTIONS if each.name == "saga.show")
    wanted = ShowSaga(id="long", lines=LINES_MAX, payloads=True, impacts=True)
    answer = await action.run(Run(), wanted)  # type: ignore[arg-type]
    is_over.set()
    await counting
    assert turns >= 2 * Run.steps // PART - 1
    told: dict[str, Any] = json.loads(msgspec.json.encode({"answers": {"shop": answer}}))

    class Answers(Told):
        async def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
            assert path == "/actions/saga.show"
            return told

    asked = PageQuery("shop:long")
    story = await fetch_saga(Answers([]), asked)
    assert "c-17" not in json.dumps(story)
    page = render_saga(story, asked)
    assert len(page) < PAGE_BYTES_MAX
    read = Markup(page)
    hidden = 2 * Run.steps - LINES_MAX
    assert (
        f"{hidden} earlier records are not drawn; synchromesh saga show long --service shop"
        in read.text
    )
    assert sum(tag == "circle" for tag, _ in read.tags) == LINES_MAX
    assert read.text.count(MASKED) == LINES_MAX // 2 + 1
    assert "and 4950 more" in read.text  # of what would be undone


async def test_what_a_step_gave_at_length_is_neither_sent_nor_decoded() -> None:
    """A page shows little of it, and all of it would hold the loop: its length is told."""
    (action,) = (each for each in ACTIONS if each.name == "saga.show")
    wanted = ShowSaga(id="long", lines=LINES_MAX, payloads=True, impacts=True)
    answer = msgspec.json.encode(await action.run(LongRun(), wanted))  # type: ignore[arg-type]
    assert len(answer) < 100_000
    told = json.loads(answer)
    long = LINES_MAX // 4
    (length,) = set(told["payloads"]["left_out"]) - {0}
    assert told["payloads"]["left_out"].count(length) == long

    class Answers(Told):
        async def ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
            return {"answers": {"shop": told}}

    turns, asked = 0, PageQuery("shop:long")

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    page = Markup(render_saga(await fetch_saga(Answers([]), asked), asked))
    counting.cancel()
    said = f"{length} characters, too long to be shown here"
    assert (page.text.count(said), page.text.count(MASKED)) == (long, long + 1)
    assert turns >= long
    # Also where it is sent: of what is no JSON that would be said.
    told["payloads"]["steps"][0] = "x" * 5_000
    page = Markup(render_saga(await fetch_saga(Answers([]), asked), asked))
    assert "5000 characters, too long to be shown here" in page.text
