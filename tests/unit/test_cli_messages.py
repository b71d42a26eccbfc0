"""`synchromesh messages` against a running system and a stopped one."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import parcels_app
from cli_runs import Run, runner
from notes_app import Running, write_config
from synchromesh.messaging import Consumer

WITHIN_S = 30.0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a folder, in this process."""
    return runner(capsys)


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """The numbers on which the handler fails; it is asked once only."""
    defaults: dict[str, Any] = Consumer.__init__.__kwdefaults__  # type: ignore[assignment]
    monkeypatch.setitem(defaults, "attempts_max", 1)
    parcels_app.BAD.clear()
    yield parcels_app.BAD
    parcels_app.BAD.clear()


def listed(run: Run, folder: Path, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(folder, "messages", "list", "--json", *words).out)
    return found


def until(condition: Any) -> None:
    """Wait until something is so."""
    end_s = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < end_s


def test_a_parked_message_is_shown_replayed_and_dropped(
    run: Run, tmp_path: Path, bad: set[int]
) -> None:
    """From the finding to the last verb; each is recorded, and a stopped system shows the rest."""
    bad |= {1, 4, 6}
    write_config(tmp_path, parcels_app.TOML)
    with Running(tmp_path):
        assert run(tmp_path, "messages", "list").out == "no message is set aside\n"
        for n, sku in enumerate(("a", "a", "b", "b", "b", "c"), 1):
            assert run(tmp_path, "call", "shop.sell", f"sku={sku}", f"n={n}").code == 0
        until(lambda: len(listed(run, tmp_path)) == 5)
        refs = {each["key"]: each["ref"] for each in listed(run, tmp_path, "--state", "parked")}

        # It is found, and the finding names the verb.
        status = run(tmp_path, "status")
        assert status.code == 1
        assert "messages of shop that are parked: 3 (shop.sold: ValueError)" in status.out
        assert "synchromesh messages list --service stock" in " ".join(status.out.split())
        table = run(tmp_path, "messages", "list", "--key", "a")
        assert table.code == 1
        assert [line.split()[:3] for line in table.out.splitlines()[1:]] == [
            [refs["a"], "parked", "shop.sold"],
            [next(e["ref"] for e in listed(run, tmp_path, "--state", "waiting")), "waiting",
             "shop.sold"],
        ]  # fmt: skip
        shown = run(tmp_path, "messages", "show", refs["a"])
        assert (shown.code, "number 1 is bad" in shown.out) == (1, True)
        assert '"sku"' not in shown.out
        with_payload = run(tmp_path, "messages", "show", refs["a"], "--payload")
        assert '{"sku":"a","n":1}' in with_payload.out
        message_id = listed(run, tmp_path, "--key", "a")[0]["message_id"]
        assert run(tmp_path, "messages", "show", message_id).out == shown.out

        # It fails again; then the handler is mended, and those behind it follow.
        again = run(tmp_path, "messages", "replay", refs["a"], "--why", "hope")
        assert (again.code, again.out) == (1, f"{refs['a']}: parked (ValueError)\n")
        bad.discard(1)
        done = run(tmp_path, "messages", "replay", refs["a"], "--why", "mended")
        assert (done.code, done.out) == (0, f"{refs['a']}: handled\n")
        until(lambda: listed(run, tmp_path, "--key", "a") == [])
        dropped = run(tmp_path, "messages", "drop", refs["b"], "--why", "never valid")
        assert (dropped.code, dropped.out) == (0, f"{refs['b']}: dropped shop.sold of 'b'\n")
        until(lambda: listed(run, tmp_path, "--key", "b") == [])
        taken = json.loads(run(tmp_path, "call", "stock.taken", "--json").out)["result"]
        assert taken == [3, 1, 2, 5]
        before = listed(run, tmp_path)

    # Stopped: it is read from the database, and only what runs is changed.
    assert [each["key"] for each in before] == ["c"]
    assert listed(run, tmp_path) == before
    assert run(tmp_path, "messages", "show", refs["c"]).code == 1
    refused = run(tmp_path, "messages", "drop", refs["c"], "--why", "w")
    assert (refused.code, "synchromesh dev" in refused.err) == (2, True)
    database = sqlite3.connect(tmp_path / ".synchromesh/data/stock.db")
    told = database.execute(
        "select name, json_extract(body, '$.why'), json_extract(body, '$.outcome') from sm_event"
    ).fetchall()
    database.close()
    assert told == [
        ("stock.message_replayed", "hope", "parked"),
        ("stock.message_replayed", "mended", "handled"),
        ("stock.message_dropped", "never valid", None),
    ]


def test_all_that_is_parked_is_replayed_at_once(run: Run, tmp_path: Path, bad: set[int]) -> None:
    """Of a service, a publisher or a key; each says what came of it."""
    bad |= {1, 2, 3}
    write_config(tmp_path, parcels_app.TOML)
    with Running(tmp_path):
        for n, sku in enumerate("abc", 1):
            run(tmp_path, "call", "shop.sell", f"sku={sku}", f"n={n}")
        until(lambda: len(listed(run, tmp_path)) == 3)
        bad -= {1, 2}
        words = ("messages", "replay", "--service", "stock", "--why", "mended")
        one = run(tmp_path, *words, "--key", "b")
        assert (one.code, one.out.count("handled")) == (0, 1)
        rest = run(tmp_path, *words)
        assert (rest.code, rest.out.count("handled"), rest.out.count("parked")) == (1, 1, 1)
        bad.clear()
        assert run(tmp_path, *words, "--source", "nobody").code == 2
        assert run(tmp_path, *words).code == 0
        nothing = run(tmp_path, *words)
        assert (nothing.code, "no message is parked there" in nothing.err) == (2, True)
        _refusals(run, tmp_path)


def test_a_subscriber_that_is_gone_is_found_and_forgotten(run: Run, tmp_path: Path) -> None:
    """Not while the code has it; then it is told of until somebody says that it is for ever."""
    write_config(tmp_path, parcels_app.TOML)
    forget = ("messages", "forget", "stock", "--why", "its team has closed it")
    with Running(tmp_path):
        run(tmp_path, "call", "shop.sell", "sku=a", "n=1")
        until(lambda: run(tmp_path, "call", "stock.taken", "--json").out.count("1"))
        refused = run(tmp_path, *forget)
        assert (refused.code, refused.out) == (2, "")
        assert "stock is not gone: a process that runs declares" in refused.err
        assert run(tmp_path, "status").code == 0

    write_config(tmp_path, parcels_app.TOML.partition("\n[services.stock]")[0])
    with Running(tmp_path):
        assert run(tmp_path, "status").code == 0
        run(tmp_path, "call", "shop.sell", "sku=a", "n=2")
        status = run(tmp_path, "status")
        said = " ".join(status.out.split())
        assert (status.code, "what it has not got is kept: events: 1" in said) == (1, True)
        assert "synchromesh messages forget stock --service shop --why TEXT" in said
        (told,) = json.loads(run(tmp_path, "db", "status", "shop", "--json").out)
        assert told["gone"] == [{"subscriber": "stock", "position": 1, "behind": 1, "set_aside": 0}]
        assert "nobody takes it" in run(tmp_path, "db", "status").out
        for words, why in (
            ("messages forget nobody --why w", "no service keeps anything for a subscriber"),
            ("messages forget nobody --service shop --why w", "shop keeps nothing for"),
            ("messages forget stock --service stock --why w", "there is no service 'stock'"),
            ("messages forget stock", "say why"),
        ):
            ran = run(tmp_path, *words.split())
            assert (ran.code, ran.out, why in ran.err) == (2, "", True), (words, ran.err)
        done = run(tmp_path, *forget, "--json")
        (record,) = json.loads(done.out)
        assert (done.code, record["service"], record["position"]) == (0, "shop", 1)
        assert record["why"] == "its team has closed it"
        assert run(tmp_path, "status").code == 0

    stopped = run(tmp_path, *forget)
    assert (stopped.code, "synchromesh dev" in stopped.err) == (2, True)
    (told,) = json.loads(run(tmp_path, "db", "status", "shop", "--json").out)
    assert told["gone"] == []


def _refusals(run: Run, folder: Path) -> None:
    for words, said in (
        ("list --state lost", "no message has the state 'lost'; known: parked, held"),
        ("list --service nobody", "there is no service 'nobody'"),
        ("show stock:99", "there is no message stock:99; those that are set aside: synchromesh"),
        ("show 0190-none", "no message with the id '0190-none' was set aside"),
        ("show stock:zero", "expected SERVICE:NUMBER"),
        ("drop stock:99 --why w", "there is no message stock:99"),
        ("drop stock:99", "say why"),
        ("drop 7 --why w", "expected SERVICE:NUMBER"),
        ("replay stock:99 --why w", "there is no message stock:99"),
        ("replay --why w", "name one message, as in stock:17, or a service"),
        ("replay stock:1 --service stock --why w", "name one message"),
    ):
        ran = run(folder, "messages", *words.split())
        assert (ran.code, ran.out) == (2, ""), words
        assert said in ran.err, words
