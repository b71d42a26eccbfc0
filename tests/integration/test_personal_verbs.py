"""Erasing a person by the command line: in files of every kind, copies and logs (T3)."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import persons_app
from cli_runs import Ran, Run, runner
from console_browser import Browser, crawled
from notes_app import Running, write_config
from persons_app import TOML
from synchromesh.console.payloads import MASKED
from synchromesh.store.vault_reader import VaultReader
from synchromesh.system import RunDir

CANARY = "canary@example.org"
DATA = ".synchromesh/data"
# A message is tried again with growing pauses before it is parked.
WITHIN_S = 90.0
WHY = ("--why", "she asked us to, ticket 7")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    persons_app.failing.clear()
    return write_config(tmp_path / "system", TOML)


def ok(ran: Ran) -> Any:
    assert (ran.code, ran.err) == (0, ""), ran
    return json.loads(ran.out)


def call(run: Run, folder: Path, operation: str, *arguments: str) -> Any:
    answer = ok(run(folder, "call", operation, *arguments, "--json"))
    assert answer["problem"] is None
    return answer["result"]


def found_in(folder: Path, what: bytes) -> list[str]:
    """Return the files below a folder that hold something, as they are on the disk."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    return sorted(str(each.relative_to(folder)) for each in files if what in each.read_bytes())


def key_of(folder: Path, service: str) -> bytes:
    with closing(sqlite3.connect(folder / DATA / f"{service}.keys")) as connection:
        ((key,),) = connection.execute("select key from subject where name = 'c-17'")
    assert isinstance(key, bytes)
    return key


def register(run: Run, folder: Path, customer: str = "c-17") -> None:
    request = json.dumps({"customer_id": customer, "email": CANARY})
    call(run, folder, "customers.register", f"request={request}")


def test_no_file_of_a_system_holds_what_was_erased(run: Run, folder: Path) -> None:
    """Databases, their logs, backups, what was restored, spans, log lines: before and after."""
    persons_app.failing.add("c-17")
    with Running(folder) as running:
        register(run, folder)
        request = json.dumps({"customer_id": "c-17", "email": CANARY})
        call(run, folder, "customers.welcome", f"request={request}")
        for _ in range(4):
            call(run, folder, "customers.visit", "customer_id=c-17")
        until_s = time.monotonic() + WITHIN_S
        parked = run(folder, "messages", "list", "--state", "parked", "--json")
        while parked.code != 1 and time.monotonic() < until_s:
            parked = run(folder, "messages", "list", "--state", "parked", "--json")
        (ref,) = {each["ref"] for each in json.loads(parked.out)}
        keys = key_of(folder, "customers")
        backup = ok(run(folder, "db", "backup", "customers", "--json"))[0]
        assert backup["keys"].endswith("customers.keys")
        assert keys not in Path(backup["folder"], "customers.db").read_bytes()
        told = run(folder, "db", "backup", "post", "--to", "elsewhere")
        assert "without the keys of personal data" in told.out
        shown = [
            run(folder, "events", "list", "--service", "customers", "--json").out,
            run(folder, "events", "export", "customers").out,
            run(folder, "messages", "list", "--json").out,
            run(folder, "messages", "show", ref, "--payload").out,
            run(folder, "messages", "show", ref, "--json").out,
            run(folder, "saga", "show", "welcome-c-17").out,
            run(folder, "personal", "list", "--json").out,
            run(folder, "status", "--json").out,
        ]
        entry = running.system.console_url()
        browser = Browser(entry)
        browser.enter(entry)
        pages = crawled(browser)
        saga = "/sagas/customers%3Awelcome-c-17"
        assert pages.keys() > {f"/messages/{quote(ref, safe='')}", saga}
        assert MASKED in pages[saga]
        secrets = (running.system.info.token, RunDir(folder).key().hex())
        assert not [path for path in pages if any(each in pages[path] for each in secrets)]
        shown += pages.values()
        assert [bool(each) for each in shown] == [True] * len(shown)
        assert "$personal" in shown[0]
        assert "$personal" in shown[4]
        assert [each for each in shown if CANARY in each] == []
        assert found_in(folder, CANARY.encode()) == []
        listed = ok(run(folder, "personal", "list", "--json"))
        assert [(each["service"], each["subject"]) for each in listed] == [
            ("customers", "c-17"),
            ("post", "c-17"),
        ]
        with closing(sqlite3.connect(folder / DATA / "customers.keys")) as reader:
            reader.execute("begin")
            reader.execute("select count(*) from subject").fetchall()
            left = run(folder, "personal", "erase", "c-17", *WHY)
            assert left.code == 1
            assert "customers: erased, and not yet overwritten in customers.keys" in left.out
            assert "post: erased\n" in left.out
            found = json.loads(run(folder, "status", "--json").out)["findings"]
            assert any("not overwritten yet in customers.keys" in each for each in found)
        erased = ok(run(folder, "personal", "erase", "c-17", *WHY, "--json"))
        assert erased["missing"] == []
        assert [(each["was"], each["left_over"]) for each in erased["erased"]] == [
            ("erased", ""), ("erased", ""),
        ]  # fmt: skip
        assert found_in(folder, keys) == []
        again = run(folder, "personal", "erase", "c-17", "--why", "again")
        assert again.code == 0
        assert "was erased before" in again.out
        assert "ticket 7" in again.out
        answer = call(run, folder, "customers.visit", "customer_id=c-17")
        assert answer["email"] == ["erased"]
        log = json.dumps(running.log)
        assert "the post is on strike" in log
        assert CANARY not in log
    assert found_in(folder, CANARY.encode()) == []
    restored = run(folder, "db", "restore", "customers", backup["folder"], "--why", "a drill")
    assert restored.code == 0
    with Running(folder):
        answer = call(run, folder, "customers.visit", "customer_id=c-17")
        assert answer["email"] == ["erased"]
        assert ok(run(folder, "db", "verify", "customers", "--json"))[0]["faults"] == []
    assert found_in(folder, CANARY.encode()) == []
    assert found_in(folder, keys) == []


def test_what_is_said_of_a_subject(run: Run, folder: Path) -> None:
    """Who is known, since when, and who was erased by whom: of the running system and a stopped."""
    with Running(folder):
        register(run, folder)
        register(run, folder, "c-18")
        assert "has a key since" in run(folder, "personal", "show", "c-17").out
        unknown = run(folder, "personal", "show", "nobody")
        assert (unknown.code, "personal list shows" in unknown.err) == (2, True)
        for words in (("erase", "nobody", *WHY), ("erase", "", *WHY), ("erase", "x" * 300, *WHY)):
            assert run(folder, "personal", *words).code == 2
        silent = run(folder, "personal", "erase", "c-17")
        assert (silent.code, "--why" in silent.err) == (2, True)
        assert run(folder, "personal", "erase", "c-17", *WHY).code == 0
        unseen = run(folder, "personal", "erase", "c-99", "--even-unknown", *WHY)
        assert (unseen.code, "will keep nothing" in unseen.out) == (0, True)
        given_up = run(folder, "personal", "give-up", "post", *WHY)
        assert (given_up.code, "no keys of post are lost" in given_up.err) == (2, True)
    refused = run(folder, "personal", "erase", "c-18", *WHY)
    assert (refused.code, refused.err != "") == (2, True)
    assert "erased at" in run(folder, "personal", "show", "c-17").out
    left = ok(run(folder, "personal", "list", "--service", "customers", "--json"))
    assert [each["subject"] for each in left] == ["c-18"]
    table = run(folder, "personal", "list", "--erased").out
    assert "ticket 7" in table
    assert "c-17" not in table  # who it was is told to whoever asks for the name alone
    assert found_in(folder / DATA, b"ticket 7")


def test_what_is_held_of_a_person_is_told_to_them(run: Run, folder: Path) -> None:
    """Each record that has a value, of each kind, in each service; and to whom it was shown."""
    persons_app.failing.add("c-17")
    with Running(folder):
        register(run, folder)
        register(run, folder, "c-18")
        request = json.dumps({"customer_id": "c-17", "email": CANARY})
        call(run, folder, "customers.welcome", f"request={request}")
        for _ in range(3):
            call(run, folder, "customers.visit", "customer_id=c-17")
        told = json.dumps({"customer_id": "c-17", "by": CANARY})
        call(run, folder, "customers.confirm", f"told={told}")
        until_s, found = time.monotonic() + WITHIN_S, set[tuple[str, str]]()
        while time.monotonic() < until_s:
            held = ok(run(folder, "personal", "export", "c-17", *WHY, "--json"))
            found = {
                (service, each["what"]) for service, own in held.items() for each in own["found"]
            }
            if ("post", "message set aside") in found and ("customers", "saga result") in found:
                break
        assert found == {
            ("customers", "event"), ("customers", "snapshot"), ("customers", "recorded answer"),
            ("customers", "saga input"), ("customers", "saga step"), ("customers", "saga result"),
            ("post", "recorded answer"), ("post", "message set aside"),
        }  # fmt: skip
        for own in held.values():
            assert own["is_all"]
            for each in own["found"]:
                shown = json.dumps(each["values"])
                assert CANARY in shown or "pending" in shown
                assert "c-18" not in json.dumps(each)
        printed = run(folder, "personal", "export", "c-17", *WHY)
        assert (printed.code, f"  email: {CANARY}" in printed.out) == (0, True)
        assert "shown to" in run(folder, "personal", "show", "c-17").out
        assert run(folder, "personal", "export", "c-17").code == 2
        unknown = run(folder, "personal", "export", "nobody", *WHY)
        assert (unknown.code, "no service has" in unknown.err) == (2, True)
        assert run(folder, "personal", "erase", "c-17", *WHY).code == 0
        left = ok(run(folder, "personal", "export", "c-17", *WHY, "--json"))
        assert [own["found"] for own in left.values()] == [[], []]
    assert found_in(folder, CANARY.encode()) == []


def test_an_erasure_that_a_service_missed_is_no_success(run: Run, folder: Path) -> None:
    """A service that does not run is named, and the verb ends with 1."""
    with Running(folder) as running:
        register(run, folder)
        instance = running.system._host.local.instances.pop("post")
        missed = run(folder, "personal", "erase", "c-17", *WHY)
        running.system._host.local.instances["post"] = instance
        assert (missed.code, "NOT erased in post" in missed.out) == (1, True)
        again = run(folder, "personal", "erase", "c-17", *WHY)
        assert (again.code, "post: " in again.out) == (0, True)


def test_lost_keys_are_found(run: Run, folder: Path) -> None:
    """`db verify` says which file is missing; giving it up by hand is recorded."""
    with Running(folder):
        register(run, folder)
    keys = folder / DATA / "customers.keys"
    assert keys.stat().st_mode & 0o777 == 0o600
    keys.unlink()
    found = run(folder, "db", "verify", "customers")
    assert (found.code, "put that file back" in found.out) == (1, True)
    with Running(folder):
        failed = run(folder, "call", "customers.visit", "customer_id=c-17", "--json")
        assert json.loads(failed.out)["problem"]["code"] == "personal_unreadable"
        status = run(folder, "status")
        assert status.code == 1
        assert "customers: the keys of its personal data are lost" in " ".join(status.out.split())
        assert run(folder, "personal", "give-up", "customers", *WHY).code == 0
        answer = call(run, folder, "customers.visit", "customer_id=c-17")
        assert answer["email"] == ["erased"]
        assert run(folder, "db", "verify", "customers").code == 0
    assert VaultReader(str(folder / DATA / "customers.db"), _disk()).find("c-17") is None


def _disk() -> Any:
    from synchromesh.runtime import RealDisk

    return RealDisk()
