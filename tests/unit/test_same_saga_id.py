"""Runs of two services with one id: none is touched, or told, for the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from cli_runs import Run, runner
from console_browser import Browser, Markup
from notes_app import Running, write_config
from same_id_app import TOML
from synchromesh.errors import BadRequest, ConnectFailed, UnknownSaga
from synchromesh.system.control.action_table import find_action
from synchromesh.system.control.actions import Action, Answers, aimed, parse_request

pytestmark = pytest.mark.anyio

SAID = (
    "orders and shipping each have a saga with the id 'A-1'; say which is meant, as in: --service"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a system of two services."""
    return write_config(tmp_path, TOML)


@pytest.fixture
def running(folder: Path) -> Iterator[Running]:
    """That system, running."""
    with Running(folder) as running:
        yield running


@pytest.fixture
def run(running: Running, folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs commands, once each service has a run with the id of the other's."""
    run = runner(capsys)
    assert run(folder, "call", "orders.place", "number=A-1").code == 0
    assert run(folder, "call", "shipping.ship", "number=A-1").code == 0
    assert run(folder, "call", "shipping.ship", "number=A-2").code == 0
    return run


def statuses(run: Run, folder: Path) -> dict[str, str]:
    """Return how each run is."""
    runs = json.loads(run(folder, "saga", "list", "--json").out)
    return {f"{each['service']}:{each['id']}": each["status"] for each in runs}


def test_a_verb_without_a_service_touches_none_of_two_runs(run: Run, folder: Path) -> None:
    """It is refused in a sentence that names both, as reading them is; by its service one is."""
    for verb in ("retry", "skip", "undo", "cancel"):
        refused = run(folder, "saga", verb, "A-1", "--why", "x")
        assert (refused.code, SAID in refused.err) == (2, True), refused
    for words in (("saga", "show"), ("saga", "impact"), ("why",)):
        refused = run(folder, *words, "A-1")
        assert (refused.code, SAID in refused.err) == (2, True), refused
        assert run(folder, *words, "A-1", "--service", "shipping").code == 0
        assert run(folder, *words, "A-2").code == 0
    assert set(statuses(run, folder).values()) == {"sleeping"}
    told = json.loads(run(folder, "saga", "show", "A-1", "--service", "orders", "--json").out)
    of_its_trace = json.loads(run(folder, "why", told["trace_id"], "--json").out)["sagas"]
    assert {each["service"] for each in of_its_trace} <= {"orders"}
    done = run(folder, "saga", "cancel", "A-1", "--service", "orders", "--why", "x")
    assert "follow it with: synchromesh saga show A-1 --service orders" in done.out
    assert run(folder, "saga", "cancel", "A-2", "--why", "one has it").code == 0
    told = json.loads(run(folder, "saga", "show", "A-1", "--service", "shipping", "--json").out)
    assert (told["service"], told["status"]) == ("shipping", "sleeping")
    (newest, *_) = json.loads(run(folder, "saga", "list", "--service", "orders", "--json").out)
    assert newest["service"] == "orders"
    found = statuses(run, folder)
    assert found["shipping:A-1"] == "sleeping"
    assert {found["orders:A-1"], found["shipping:A-2"]} <= {"compensating", "undone"}


def test_the_console_names_the_service_of_a_run(run: Run, running: Running, folder: Path) -> None:
    """In its links, and in the forms of its verbs; what names none is no saga."""
    entry = running.system.console_url()
    browser = Browser(entry)
    browser.enter(entry)
    assert browser.ask("GET", "/sagas/A-1")[0] == 400
    for service in ("orders", "shipping"):
        status, _, page = browser.ask("GET", f"/sagas/{service}%3AA-1")
        name = "orders.buying" if service == "orders" else "shipping.parcel"
        assert (status, name in Markup(page).text) == (200, True)
    form = {"form_token": browser.form_token("/lab"), "why": "x", "id": "A-1"}
    status, *_ = browser.ask("POST", "/do/saga.cancel", urlencode(form))
    assert (status, set(statuses(run, folder).values())) == (400, {"sleeping"})
    status, headers, _ = browser.ask(
        "POST", "/do/saga.cancel", urlencode({**form, "service": "shipping"})
    )
    assert (status, headers["location"]) == (303, "/sagas/shipping%3AA-1")
    found = statuses(run, folder)
    assert found.pop("shipping:A-1") in ("compensating", "undone")
    assert set(found.values()) == {"sleeping"}


def test_a_stopped_system_tells_none_of_two_runs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says whose there are, and tells the one of a service."""
    run = runner(capsys)
    with Running(folder):
        assert run(folder, "call", "orders.place", "number=A-1").code == 0
        assert run(folder, "call", "shipping.ship", "number=A-1").code == 0
    refused = run(folder, "saga", "show", "A-1")
    assert (refused.code, SAID in refused.err) == (2, True), refused
    assert run(folder, "saga", "show", "A-1", "--service", "orders").code == 0


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Answers({"orders": {}, "shipping": {}}), BadRequest),
        (Answers({"orders": {}}, ["shipping"]), ConnectFailed),
        (Answers({}, ["shipping"]), ConnectFailed),
        (Answers({}), UnknownSaga),
        (Answers({"orders": {}}, ["gateway#2"]), None),
    ],
    ids=["two", "perhaps two", "nobody knows", "none", "one"],
)
async def test_a_repair_goes_to_the_one_service_that_has_the_run(
    found: Answers, said: type[Exception] | None
) -> None:
    """Which one is asked first; where that is not certain, nothing is done."""
    asked: list[str] = []

    async def ask(action: Action, wanted: Any, body: bytes) -> Answers:
        asked.append(action.name)
        assert parse_request(action, body) == wanted
        return found

    action = find_action("saga.skip")
    body = b'{"id":"A-1","who":"me","why":"x","result":{"slot":7}}'
    wanted = parse_request(action, body)
    if said is not None:
        with pytest.raises(said):
            await aimed(action, wanted, body, ask)
    else:
        aim, sent = await aimed(action, wanted, body, ask)
        assert aim == parse_request(action, sent)
        assert (aim.service, msgspec.json.decode(aim.result)) == ("orders", {"slot": 7})
        assert await aimed(action, aim, sent, ask) == (aim, sent)
    assert asked == ["saga.show"]
