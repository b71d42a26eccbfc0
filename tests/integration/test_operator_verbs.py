"""Backup, restore, verify, migrate and status of databases, by the command line (P1, P2, E3)."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cli_runs import Ran, Run, runner
from db_app import TOML
from notes_app import Running, write_config

SHOP = ".synchromesh/data/shop.db"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_config(tmp_path / "system", TOML)


def ok(ran: Ran) -> Any:
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def sell(run: Run, folder: Path, name: str) -> None:
    ok(run(folder, "call", "shop.sell", f"id={name}", "cents=7", "--json", "--key", f"sell-{name}"))


def asked(run: Run, folder: Path, operation: str) -> Any:
    return ok(run(folder, "call", operation, "--json"))["result"]


def until(check: Callable[[], bool]) -> None:
    """Wait until it is so: what is relayed comes on its own."""
    for _ in range(2000):
        if check():
            return
    raise AssertionError("it never was so")


def rows(folder: Path, sql: str, path: str = SHOP) -> list[Any]:
    with closing(sqlite3.connect(folder / path)) as connection:
        return connection.execute(sql).fetchall()


def back_up(run: Run, folder: Path, service: str = "shop") -> Path:
    (made,) = ok(run(folder, "db", "backup", service, "--json"))
    return Path(made["folder"])


def test_a_backup_of_a_running_system_is_restored_and_goes_on_by_itself(
    folder: Path, run: Run
) -> None:
    """Relay, projection and sagas go on in the new log; what came after the backup comes again."""
    with Running(folder):
        sell(run, folder, "a")
        until(lambda: asked(run, folder, "books.entries") == ["a"])
        until(lambda: asked(run, folder, "shop.sold_cents") == 7)
        backup = back_up(run, folder)
        sell(run, folder, "b")
        until(lambda: asked(run, folder, "books.entries") == ["a", "b"])
        refused = run(folder, "db", "restore", "shop", str(backup), "--why", "to try")
        assert refused.code == 2
        assert "shop runs in this process: stop the system, do this" in refused.err
    manifest = json.loads((backup / "manifest.json").read_text())
    assert (manifest["system"], manifest["service"]) == ("corner-shop", "shop")
    assert manifest["versions"]["service.shop"] == 2
    silent = run(folder, "db", "restore", "shop", str(backup))
    assert (silent.code, "--why" in silent.err) == (2, True)
    done = ok(run(folder, "db", "restore", "shop", str(backup), "--why", "b was a typo", "--json"))
    assert done["log_id"] != done["before"] == manifest["log_id"]
    assert rows(folder, "select id from sale", str(Path(done["kept_as"]))) == [("a",), ("b",)]
    assert rows(folder, "select id from sale") == [("a",)]
    assert rows(folder, "select distinct log_id from sm_checkpoint") == [(done["log_id"],)]
    assert ok(run(folder, "db", "verify", "--json"))[1]["faults"] == []
    with Running(folder):
        sell(run, folder, "c")
        until(lambda: asked(run, folder, "books.entries") == ["a", "b", "c"])
        until(lambda: asked(run, folder, "shop.sold_cents") == 14)
        assert run(folder, "status").code == 0
        (status,) = ok(run(folder, "db", "status", "shop", "--json"))
    (change,) = status["changes"]
    assert change["why"] == "b was a typo"
    assert change["what"].startswith(f"restored from the backup of {manifest['taken_at']}")
    assert change["who"]


def test_an_edge_is_isolated_and_released_by_hand(folder: Path, run: Run) -> None:
    """Its calls are refused until somebody releases it; each says why, and status shows it."""
    with Running(folder):
        sell(run, folder, "a")
        assert run(folder, "breaker", "isolate", "control:shop").code == 2
        why = ("--why", "the till is moved")
        told = run(folder, "breaker", "isolate", "control:shop", *why)
        assert told.out.startswith("isolated: control:shop\nrelease it with: synchromesh breaker ")
        refused = run(folder, "call", "shop.sold_cents", "--json")
        assert json.loads(refused.out)["problem"]["code"] == "circuit_open"
        assert "the till is moved" in run(folder, "status").out
        free = run(folder, "breaker", "release", "books", *why)
        assert free.out == "released: nothing was isolated there\nstill isolated: control:shop\n"
        assert run(folder, "breaker", "release", "shop", *why).out == "released: control:shop\n"
        assert asked(run, folder, "shop.sold_cents") == 7
        wrong = run(folder, "breaker", "isolate", "shp", *why)
        assert (wrong.code, "did you mean 'shop'?" in wrong.err) == (2, True)


def test_what_may_not_be_restored_is_refused_and_nothing_changed(folder: Path, run: Run) -> None:
    """Another system's, another service's, a future schema, a damaged file, no backup at all."""
    with Running(folder):
        sell(run, folder, "a")
        backup, other = back_up(run, folder), back_up(run, folder, "books")
    before = (folder / SHOP).read_bytes()

    def refused(of: Path, *service: str) -> str:
        ran = run(folder, "db", "restore", *(service or ("shop",)), str(of), "--why", "to try")
        assert ran.code == 2
        assert (folder / SHOP).read_bytes() == before
        assert {path.name for path in (folder / SHOP).parent.iterdir()} <= {
            "shop.db", "shop.db.lock", "books.db", "books.db.lock",
        }  # fmt: skip
        return ran.err

    assert "is a backup of the service 'books', and this is 'shop'" in refused(other)
    assert "there is no service 'shelf'; there are shop, books" in refused(backup, "shelf")
    assert "is no backup: manifest.json cannot be read" in refused(folder)
    manifest = json.loads((backup / "manifest.json").read_text())
    (backup / "manifest.json").write_text(json.dumps({**manifest, "system": "other"}))
    assert "is a backup of the system 'other', and this is 'corner-shop'" in refused(backup)
    (backup / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    assert "was made by a newer release (format 2)" in refused(backup)
    (backup / "manifest.json").write_text(json.dumps({**manifest, "sha256": "0"}))
    assert "its checksum differs" in refused(backup)
    with closing(sqlite3.connect(backup / "shop.db")) as newer:
        newer.execute("insert into sm_migration values ('service.shop', 3, 3, '[]')")
        newer.commit()
    future = __import__("hashlib").sha256((backup / "shop.db").read_bytes()).hexdigest()
    (backup / "manifest.json").write_text(json.dumps({**manifest, "sha256": future}))
    said = refused(backup)
    assert "the tables of 'service.shop' are at version 3" in said
    assert "start the newer release" in said


def test_verify_finds_what_is_wrong_and_reaches_nobody_elses_database(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holes of the log, foreign checkpoints, lost migrations, orphans; and isolation, by trying."""
    with Running(folder):
        for name in "abc":
            sell(run, folder, name)
        shop, books = sorted(
            ok(run(folder, "db", "verify", "--json")), key=lambda e: -len(e["service"])
        )
        assert shop["faults"] == books["faults"] == []
        assert run(folder, "db", "verify").out == "books: in order\nshop: in order\n"
    with closing(sqlite3.connect(folder / SHOP, isolation_level=None)) as broken:
        broken.execute("delete from sm_event where position = 2")
        broken.execute("update sm_checkpoint set log_id = 'old' where name = 'relay/books'")
        broken.execute("update sm_checkpoint set position = 99 where name like 'projection%'")
        broken.execute("delete from sm_migration where owner = 'service.shop' and version = 1")
        broken.execute("create table child(sale text references sale(id))")
        broken.execute("insert into child values ('nobody')")
        broken.execute("update sqlite_sequence set seq = 1 where name = 'sm_event'")
    ran = run(folder, "db", "verify", "shop")
    assert ran.code == 1
    for said in (
        "1 positions up to 3 are missing from the log",
        "the next position would be 2, and 3 is taken",
        "checkpoint relay/books is of log old, and this is",
        "is at 99, and the log ends at 3",
        "the migrations of service.shop that were applied are [2]",
        "refers to a row of sale that is not there",
    ):
        assert said in ran.out
    monkeypatch.setattr("sqlite3.SQLITE_LIMIT_ATTACHED", sqlite3.SQLITE_LIMIT_WORKER_THREADS)
    reached = run(folder, "db", "verify", "books")
    assert reached.code == 1
    assert f"not isolated: the connection of books reaches {folder / SHOP}" in reached.out


def test_a_damaged_page_is_found_and_not_backed_up(folder: Path, run: Run) -> None:
    """Neither does the backup leave anything half done."""
    with Running(folder):
        for n in range(60):
            sell(run, folder, f"sale-{n}-{'x' * 300}")
    data = bytearray((folder / SHOP).read_bytes())
    (root,) = rows(folder, "select rootpage from sqlite_master where name = 'sale'")[0]
    data[(root - 1) * 4096 + 8 : root * 4096] = b"\xee" * 4088
    (folder / SHOP).write_bytes(data)
    ran = run(folder, "db", "verify", "shop")
    assert ran.code in (1, 2)
    assert "malformed" in ran.out + ran.err or "damaged" in ran.out
    refused = run(folder, "db", "backup", "shop", "--to", "kept")
    assert refused.code == 2
    assert "damaged" in refused.err
    assert list((folder / "kept").iterdir()) == []


def test_status_says_what_a_database_is_made_of(folder: Path, run: Run) -> None:
    """Sizes, rows by table and owner, versions; the same on a running and a stopped system."""
    with Running(folder):
        for name in "abc":
            sell(run, folder, name)
        ok(run(folder, "call", "shop.order", "id=z", "--json"))
        (running,) = ok(run(folder, "db", "status", "shop", "--json"))
        assert "sm_event" in run(folder, "db", "status").out
    (stopped,) = ok(run(folder, "db", "status", "shop", "--json"))
    for found in (running, stopped):
        tables = {each["name"]: each for each in found["tables"]}
        assert (tables["sale"]["owner"], tables["sale"]["rows"]) == ("service.shop", 4)
        assert (tables["sm_event"]["owner"], tables["sm_event"]["rows"]) == (
            "synchromesh.events",
            6,
        )
        assert tables["sm_saga"]["rows"] == tables["sm_saga"]["rows_a_day"] == 1
        assert tables["sm_event"]["rows_a_day"] == 6
        assert tables["sale"]["rows_a_day"] is None
        assert found["versions"]["service.shop"] == 2
        assert (
            found["bytes"] == sum(each["bytes"] or 0 for each in found["tables"]) or found["bytes"]
        )
    assert running["wal_bytes"] > 0
    assert stopped["bytes"] == (folder / SHOP).stat().st_size


def test_what_is_forgotten_is_archived_and_shown(folder: Path, run: Run) -> None:
    """A run of long ago goes to a file of the month and then from the database; status says so."""
    write_config(folder, f"{TOML}\n[retention]\narchive = true\n")
    with Running(folder):
        ok(run(folder, "call", "shop.order", "id=z", "--json"))
    with closing(sqlite3.connect(folder / SHOP)) as aged:
        aged.execute("update sm_saga set ended_us = 1")
        aged.commit()
    old = folder / ".synchromesh/telemetry/gone.log"
    old.write_text("")
    os.utime(old, (1, 1))
    with Running(folder) as running:
        assert not old.exists()
        until(lambda: asked(run, folder, "books.entries") == ["z"])
        instance = running.system.instances["shop"]
        until(lambda: asked(run, folder, "shop.sold_cents") == 5)
        until(
            lambda: (
                not any(
                    asyncio.run_coroutine_threadsafe(instance.behind(), running.loop)
                    .result(60.0)
                    .values()
                )
            )
        )
        sweep = asyncio.run_coroutine_threadsafe(instance.forgetting.sweep(), running.loop)
        sweep.result(60.0)
        (status,) = ok(run(folder, "db", "status", "shop", "--json"))
        assert [each["what"] for each in status["retention"]] == ["sagas"]
        assert status["retention"][0]["removed"] == 1
        assert "30 d" in run(folder, "db", "status", "shop").out
    (file,) = (folder / ".synchromesh/archive/shop").glob("sagas-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[0]["saga"]["id"] == "order-z"
    assert {line["name"] for line in lines[1:]} == {"shop.saga_started", "shop.saga_ended"}
    assert rows(folder, "select count(*) from sm_saga") == [(0,)]
    assert ok(run(folder, "db", "verify", "shop", "--json"))[0]["faults"] == []


def test_a_strangers_file_beside_the_databases_is_none_of_them(folder: Path, run: Run) -> None:
    """An external service may keep its own there; a service's that is damaged is named."""
    with Running(folder):
        sell(run, folder, "a")
    with closing(sqlite3.connect(folder / ".synchromesh/data/provider.db")) as stranger:
        stranger.execute("create table charge(id)")
    for words in (("db", "status"), ("db", "verify"), ("db", "backup"), ("saga", "list")):
        assert run(folder, *words).code == 0
    (folder / SHOP).write_bytes(b"dear diary, " * 1000)
    damaged = run(folder, "db", "status")
    assert (damaged.code, "shop.db: file is not a database" in damaged.err) == (2, True)


def test_migrations_are_shown_and_run_by_hand(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dry run may be made while the system runs; running them needs it stopped."""
    new = json.loads(run(folder, "db", "migrate", "--dry-run", "--json").out)
    assert [each["service"] for each in new] == ["shop", "books"]
    assert not (folder / SHOP).exists()
    import db_app
    from synchromesh import Migration

    with Running(folder):
        sell(run, folder, "a")
        third = Migration(3, ("alter table sale add column at integer",), 1)
        changed = (*db_app.shop.migrations, third)
        monkeypatch.setattr(db_app.shop, "migrations", changed)
        plan = run(folder, "db", "migrate", "shop", "--dry-run")
        assert (plan.code, plan.err) == (1, "")
        assert "service.shop 3\n    alter table sale add column at integer" in plan.out
        running = run(folder, "db", "migrate", "shop", "--why", "the new column")
        assert running.code == 2
        assert "shop runs in this process" in running.err
    assert run(folder, "db", "migrate", "shop").code == 2
    (done,) = ok(run(folder, "db", "migrate", "shop", "--why", "the new column", "--json"))
    assert [(each["owner"], each["version"]) for each in done["migrations"]] == [
        ("service.shop", 3)
    ]
    assert rows(folder, "select id, at from sale") == [("a", None)]
    assert rows(folder, "select what, why from sm_change") == [
        ("migrated: service.shop 3", "the new column")
    ]
    assert run(folder, "db", "migrate", "--dry-run").code == 0
    failing = Migration(4, ("alter table nowhere add column at integer",), 1)
    monkeypatch.setattr(db_app.shop, "migrations", (*changed, failing))
    for words in (("--dry-run",), ("--why", "to try")):
        refused = run(folder, "db", "migrate", "shop", *words)
        assert refused.code == 2
        assert "migration 4 of 'service.shop': no such table: nowhere" in refused.err
    assert "db_app" in sys.modules
