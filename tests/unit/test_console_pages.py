"""The pages of the console: where their links lead, and how they are bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_runs import runner
from console_browser import Browser, Markup
from notes_app import Running, write_config
from synchromesh.console.parts import PageQuery
from synchromesh.console.site import PAGES, PAGES_OF_ONE
from synchromesh.console.traces import render_trace

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


def links_of(page: str) -> set[str]:
    """Return where a page leads."""
    found = {fields.get("href") or "" for tag, fields in Markup(page).tags if tag == "a"}
    return {each for each in found if not each.startswith("#")}


def test_each_link_of_each_page_leads_somewhere(
    folder: Path, browser: Browser, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the first page on, over replicas, what keeps nothing and what has joined; twins too."""
    run = runner(capsys)
    assert run(folder, "call", "notes.plan", "name=p1").code == 0
    for _ in range(2):  # one of each replica
        assert run(folder, "call", "quotes.one", "sku=a").code == 0
    seen, left = set[str](), ["/"]
    while left:
        path = left.pop()
        if path in seen or path == "/advice":
            continue
        seen.add(path)
        status, _, page = browser.ask("GET", path)
        assert status == 200, (path, page)
        left += links_of(page)
        path, _, query = path.partition("?")
        twin = f"{path}.json?{query}" if path != "/" else "/now.json"
        status, _, told = browser.ask("GET", twin)
        assert status == 200, (twin, told)
        assert isinstance(json.loads(told), dict)
    kinds = {path.split("/")[1] for path in seen if path.count("/") == 2}
    assert kinds == set(PAGES_OF_ONE) - {"messages"}  # none was set aside
    assert seen > {f"/{name}" for name in PAGES if name not in ("now", "advice")}
    assert seen > {"/services/quotes", "/services/notes", "/databases/notes", "/map?focus=quotes"}


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
