"""`db copy` takes services from SQLite to PostgreSQL: all that they keep, whole or not at all."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from cli_runs import Ran, Run, runner
from copy_app import ON_SERVER, TOML
from notes_app import Running, write_config
from postgres_server import shared_server
from synchromesh.errors import SynchromeshError
from synchromesh.runtime import Disk
from synchromesh.store.postgres import PostgresStores
from synchromesh.store.taken_along import CopiedTable, TakenTo, mark_file
from synchromesh.system.control import copying
from synchromesh.system.control.copying import copy_services

TILL, LEDGER = ".synchromesh/data/till.db", ".synchromesh/data/ledger.db"
WHY = ("--why", "one machine is too small")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MESH_KEY", "00" * 32)
    monkeypatch.setenv("DATABASE_URL", shared_server().url("postgres"))


def ok(ran: Ran) -> Any:
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def asked(run: Run, folder: Path, operation: str, *words: str) -> Any:
    return ok(run(folder, "call", operation, *words, "--json"))["result"]


def sell(run: Run, folder: Path, name: str) -> int:
    words = (f"id={name}", "cents=7", "--key", f"sell-{name}")
    number: int = asked(run, folder, "till.sell", *words)
    return number


def until(check: Callable[[], bool]) -> None:
    """Wait until it is so: what is relayed comes on its own."""
    end = time.monotonic() + 120.0
    while time.monotonic() < end:
        if check():
            return
    raise AssertionError("it never was so")


def on_server(folder: Path, name: str) -> None:
    write_config(folder, TOML.format(name=name) + ON_SERVER)


def asked_of_file(folder: Path, sql: str, path: str = TILL) -> list[Any]:
    with closing(sqlite3.connect(folder / path, isolation_level=None)) as connection:
        return connection.execute(sql).fetchall()


def dump(folder: Path) -> set[str]:
    with closing(sqlite3.connect(folder / TILL)) as connection:
        return set(connection.iterdump())


def asked_of_server(database: str, sql: str) -> list[Any]:
    async def ask() -> list[Any]:
        connection = await asyncpg.connect(shared_server().url(database))
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def told_to_server(database: str, sql: str) -> None:
    async def tell() -> None:
        connection = await asyncpg.connect(shared_server().url(database))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(tell())


def tables(database: str) -> int:
    sql = "select count(*) from pg_tables where schemaname = 'public'"
    ((count,),) = asked_of_server(database, sql)
    return int(count)


def copied(unspoilt: Path, tmp_path: Path, name: str) -> Path:
    """Return a folder with the files of another, and a server in its configuration."""
    folder = tmp_path / name
    (folder / TILL).parent.mkdir(parents=True)
    for path in (TILL, LEDGER):
        (folder / path).write_bytes((unspoilt / path).read_bytes())
    on_server(folder, name)
    return folder


def fill(folder: Path, run: Run) -> None:
    """Have something of every kind in the files of a running system, at rest."""
    assert sell(run, folder, "a") == 1
    assert asked(run, folder, "till.order", "id=b") == "order-b"
    until(lambda: asked(run, folder, "ledger.entries") == ["a", "b"])
    until(lambda: asked(run, folder, "till.demand") == 12)
    until(lambda: "sleeping" in run(folder, "saga", "list").out)


def test_a_system_goes_on_where_it_was(tmp_path: Path, run: Run) -> None:
    """Log, inbox, a run that waits, relay, projection, schedule and tables; numbers go on, too."""
    folder = write_config(tmp_path / "moved", TOML.format(name="moved"))
    with Running(folder):
        fill(folder, run)
        no_server = run(folder, "db", "copy", "--dry-run")
        assert (no_server.code, "there is no server to copy to" in no_server.err) == (2, True)
        on_server(folder, "moved")
        running = run(folder, "db", "copy", *WHY)
        assert (running.code, "name the service that is to pause" in running.err) == (2, True)
        running = run(folder, "db", "copy", "till", *WHY)
        assert (running.code, "till shares its process with" in running.err) == (2, True)
        assert "till can be copied to" in run(folder, "db", "copy", "till", "--dry-run").out
        assert tables("moved_till") == 0
    # What was given once is not given again, though it is gone.
    asked_of_file(folder, "delete from sale where id = 'b'")
    log_id = asked_of_file(folder, "select value from sm_meta where name = 'log_id'")[0][0]
    positions = asked_of_file(folder, "select position, id from sm_event order by 1")
    before = dump(folder)
    assert run(folder, "db", "copy").code == 2
    done = {each["service"]: each for each in ok(run(folder, "db", "copy", *WHY, "--json"))}
    assert (done["till"]["outcome"], done["till"]["log_id"]) == ("copied", log_id)
    assert "postgres@" not in done["till"]["target"]
    rows = {each["name"]: each["rows"] for each in done["till"]["tables"]}
    assert (rows["sale"], rows["kind"], rows["demand__1"], rows["sm_saga"]) == (1, 1, 2, 1)
    assert rows["sm_event"] == len(positions)
    (mark,) = dump(folder) - before
    assert (before <= dump(folder), "'taken_to'" in mark) == (True, True)
    again = run(folder, "db", "copy", *WHY)
    assert (again.code, again.out.count("was copied before")) == (0, 2)
    verified = run(folder, "db", "verify")
    assert (verified.code, verified.out) == (0, "till: in order\nledger: in order\n")
    assert "copied from a SQLite file" in run(folder, "db", "status", "till").out
    listed = ok(run(folder, "events", "list", "--service", "till", "--json"))
    assert [(each["position"], each["id"]) for each in listed] == positions
    with Running(folder):
        assert sell(run, folder, "a") == 1
        assert asked(run, folder, "till.demand") == 12
        assert sell(run, folder, "c") == 3
        assert asked(run, folder, "till.pay", "id=b", "cents=9") is True
        assert asked(run, folder, "till.ended", "id=b") == "b is number 2, 9 paid"
        until(lambda: asked(run, folder, "ledger.entries") == ["a", "b", "c"])
        until(lambda: asked(run, folder, "till.demand") == 19)
    found = asked_of_server("moved_till", "select max(position), min(position) from sm_event")
    # A sale is appended and published; the run's end is an event, too.
    assert found == [(len(positions) + 3, 1)]
    kept = "select receipt, share, is_new, at::text, about::text, after from sale where id = 'a'"
    assert asked_of_server("moved_till", kept) == [
        (b"\\x00\n\ta", 0.1, True, "2026-11-30 08:15:00", '{"a": [1]}', None)
    ]
    taken = run(folder, "db", "copy", *WHY)
    # It has the copy still, whatever came after it.
    assert (taken.code, taken.out.count("was copied before")) == (0, 2)


def test_what_is_cut_short_is_run_again(unspoilt: Path, tmp_path: Path, run: Run) -> None:
    """Cut after the first table of the second service: that has nothing, and the first has all.

    A copy that nobody has used makes room for what the file is now; one that is used stays.
    """
    folder = copied(unspoilt, tmp_path, "cut")

    def cut(service: str, table: CopiedTable) -> None:
        if service == "ledger":
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(copy_services(folder, "", who="me", why="to try", told=cut))
    assert (tables("cut_till") > 0, tables("cut_ledger")) == (True, 0)
    done = ok(run(folder, "db", "copy", *WHY, "--json"))
    assert [each["outcome"] for each in done] == ["there", "copied"]
    changes = "insert into sm_change values (1, 'a', 'b', 'c')"
    asked_of_file(folder, changes, LEDGER)
    (again,) = ok(run(folder, "db", "copy", "ledger", *WHY, "--json"))
    assert again["outcome"] == "copied"
    assert asked_of_server("cut_ledger", "select 1 from sm_change where what = 'a'") == [(1,)]
    assert run(folder, "db", "migrate", "ledger", *WHY).code == 0
    asked_of_file(folder, changes, LEDGER)
    changed = run(folder, "db", "copy", "ledger", *WHY)
    assert (changed.code, "both have been written to since" in changed.err) == (2, True)
    (folder / LEDGER).unlink()
    (folder / TILL).unlink()
    assert run(folder, "db", "verify").code == 0


def test_an_older_copy_makes_room_and_its_role_keeps_its_rights(
    unspoilt: Path, tmp_path: Path, run: Run
) -> None:
    """Also where a DBA made the database and granted them; what the service wrote there stays."""
    folder, made = copied(unspoilt, tmp_path, "rights"), "rights_ledger"
    assert run(folder, "db", "copy", "ledger", *WHY).code == 0
    for sql in (
        f"alter database {made} owner to postgres",
        f"grant connect on database {made} to {made}",
        f"grant create on schema public to {made}",
        "create function others() returns int language sql as 'select 1'",
        f"set role {made}; create sequence own; create type mood as enum ('good')",
        f"set role {made}; create function own(mood) returns int language sql as 'select 2'",
        f"set role {made}; create view own_view as select own('good')",
        f"alter role {made} superuser",
    ):
        told_to_server(made, sql)
    changes = "insert into sm_change values (1, 'a', 'b', 'c')"
    asked_of_file(folder, changes, LEDGER)
    (again,) = ok(run(folder, "db", "copy", "ledger", *WHY, "--json"))
    assert again["outcome"] == "copied"
    found = "select proname from pg_proc where proname in ('own', 'others')"
    assert asked_of_server(made, found) == [("others",)]
    found = (
        "select relname from pg_class where relname like 'own%' union "
        "select typname from pg_type where typname = 'mood'"
    )
    assert asked_of_server(made, found) == []
    told_to_server(made, f"alter role {made} nosuperuser")
    granted = (
        f"select has_database_privilege('{made}', '{made}', 'connect') "
        f"and has_schema_privilege('{made}', 'public', 'create')"
    )
    assert asked_of_server(made, granted) == [(True,)]
    told_to_server(made, "insert into sm_commit values ('u', 1)")
    asked_of_file(folder, changes, LEDGER)
    changed = run(folder, "db", "copy", "ledger", *WHY)
    assert (changed.code, "both have been written to since" in changed.err) == (2, True)


def test_no_start_begins_a_second_history(
    unspoilt: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a copy was killed, the side that is not the newest is refused, with the mend."""
    folder = copied(unspoilt, tmp_path, "once")

    def refused() -> str:
        with pytest.raises(SynchromeshError) as error, Running(folder):
            pass
        return str(error.value)

    assert run(folder, "db", "create").code == 0
    assert "is empty: take it there: synchromesh db copy till" in refused()

    def cut(*_: object, **__: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as killed:
        killed.setattr(PostgresStores, "copy", cut)
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(copy_services(folder, "till", who="me", why="to try"))
    assert "till was being copied to" in refused()

    def cut_after(path: str, mark: TakenTo, *, disk: Disk) -> None:
        if mark.is_there:
            raise asyncio.CancelledError
        mark_file(path, mark, disk=disk)

    with monkeypatch.context() as killed:
        killed.setattr(copying, "mark_file", cut_after)
        for service in ("till", "ledger"):
            with pytest.raises(asyncio.CancelledError):
                asyncio.run(copy_services(folder, service, who="me", why="to try"))
    write_config(folder, TOML.format(name="once"))
    with Running(folder):
        assert sell(run, folder, "c") == 3
        until(lambda: "c" in asked(run, folder, "ledger.entries"))
    on_server(folder, "once")
    assert "nobody has used the copy: bring the rest: synchromesh db copy till" in refused()
    done = ok(run(folder, "db", "copy", *WHY, "--json"))
    assert [each["outcome"] for each in done] == ["copied", "copied"]
    with Running(folder):
        assert sell(run, folder, "d") == 4
    write_config(folder, TOML.format(name="once"))
    assert "till.db was copied to" in refused()
    moved = run(folder, "db", "migrate", "till", *WHY)
    assert (moved.code, "till.db was copied to" in moved.err) == (2, True)
    asyncio.run(drop("once_till"))
    on_server(folder, "once")
    assert run(folder, "db", "create").code == 0
    assert "where it was dropped: synchromesh db copy till" in refused()
    (folder / LEDGER).unlink()
    write_config(folder, TOML.format(name="once"))
    made = ok(run(folder, "db", "backup", "till", "--json"))[0]["folder"]
    assert run(folder, "db", "restore", "till", made, *WHY).code == 0
    with Running(folder):
        assert sell(run, folder, "e") == 4


async def drop(database: str) -> None:
    connection = await asyncpg.connect(shared_server().url("postgres"))
    await connection.execute(f"drop database {database} with (force)")
    await connection.close()


def test_an_answer_that_is_lost_is_found_out(
    unspoilt: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit stands, and nobody was told: the next run is."""
    folder = copied(unspoilt, tmp_path, "lost")
    execute = asyncpg.Connection.execute

    async def lose(self: Any, query: str, *words: Any, **more: Any) -> Any:
        done = await execute(self, query, *words, **more)
        if query == "commit":
            raise asyncpg.ConnectionDoesNotExistError("cut")
        return done

    with monkeypatch.context() as cut:
        cut.setattr(asyncpg.Connection, "execute", lose)
        ran = run(folder, "db", "copy", "till", *WHY)
    assert (ran.code, "the connection was lost at the commit" in ran.err) == (2, True)
    (done,) = ok(run(folder, "db", "copy", "till", *WHY, "--json"))
    assert done["outcome"] == "there"


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        (
            "update sale set kind = cast(x'63006d' as text) where id = 'b'",
            (
                "table sale, column kind, the row with rowid 2: PostgreSQL cannot hold it: a text "
                "with a NUL character; keep it as bytes. Nothing was copied"
            ),
        ),
        ("update sale set id = cast(x'ff' as text) where id = 'b'", "a text that is no UTF-8"),
        (
            "update sale set cents = 1 << 31 where id = 'b'",
            (
                "table sale, column cents, the row with rowid 2: PostgreSQL cannot hold it: more "
                "than 32 bits hold; make the column bigint in a migration"
            ),
        ),
        ("update sale set receipt = 'x'", "column receipt, the row with rowid 1"),
        ("update sale set share = x'00'", "bytes, and the column holds numbers"),
        ("update sale set is_new = 2", "other than 0 and 1, and the column is boolean"),
        (
            "update sale set at = 'tomorrow-ish' where id = 'b'",
            (
                "table sale, column at, the row with rowid 2: PostgreSQL cannot hold it: the "
                "server says: invalid input syntax for type timestamp: …"
            ),
        ),
        ("update sale set rate = 1.005", "a type of its columns rounds or cuts what SQLite keeps"),
        ("insert into place values ('a', x'00')", 'row 1 in the order of "row", "shelf"'),
        ("update sale set kind = 'lost'", "a row of sale refers to one that is not there"),
        ("alter table sale add column odd text", "a column odd, which no migration has made"),
        (
            "create trigger t after insert on sale begin select 1; end",
            "the trigger t, which no migration has made, cannot be made on PostgreSQL",
        ),
        (
            "insert into sm_migration values ('service.till', 3, 1, '[\"select 1\"]')",
            "at version 3, of a newer release, and this one knows 2",
        ),
        ("insert into sm_meta values ('keys_id', 'x')", "has personal values"),
    ],
)
def test_what_postgresql_cannot_hold_is_named(
    unspoilt: Path, tmp_path: Path, run: Run, spoilt: str, told: str
) -> None:
    """Table, column and row are told, and nothing of the service is there."""
    folder = copied(unspoilt, tmp_path, "held")
    asked_of_file(folder, spoilt)
    ran = run(folder, "db", "copy", "till", *WHY)
    assert told in ran.err
    assert ran.code == 2
    assert tables("held_till") == 0


@pytest.fixture(scope="module")
def unspoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a file of the till, which is at rest."""
    text = TOML.format(name="held").replace("env:MESH_KEY", "")
    folder = write_config(tmp_path_factory.mktemp("unspoilt"), text)
    with Running(folder) as running:
        from copy_app import Till

        caller = running.system._host.control.caller

        async def fill() -> None:
            for name in "ab":
                await caller.call(Till.sell(name, 3), context=caller.root(key=name))

        asyncio.run_coroutine_threadsafe(fill(), running.loop).result()
    return folder


def test_a_database_that_is_not_empty_or_not_ours_is_left_alone(
    unspoilt: Path, tmp_path: Path, run: Run
) -> None:
    """What a start has made is somebody's, and so is what another system has made."""
    folder = copied(unspoilt, tmp_path, "full")
    assert run(folder, "db", "create").code == 0
    assert run(folder, "db", "migrate", *WHY).code == 0
    refused = run(folder, "db", "copy", "till", *WHY)
    assert (refused.code, "is not empty: it has" in refused.err) == (2, True)
    assert "drop the database" in refused.err
    on_server(folder, "Full")
    refused = run(folder, "db", "copy", "till", *WHY)
    assert (refused.code, "of another system or service" in refused.err) == (2, True)
    (folder / LEDGER).unlink()
    nothing = run(folder, "db", "copy", "ledger", *WHY)
    assert (nothing.code, "there is nothing to copy" in nothing.err) == (2, True)


def test_a_service_may_stay_on_its_file(unspoilt: Path, tmp_path: Path, run: Run) -> None:
    """The till moves, and the ledger stays: they go on together, and verbs find each of them."""
    folder = copied(unspoilt, tmp_path, "apart")
    config = folder / "synchromesh.toml"
    config.write_text(f'{config.read_text()}sqlite = ["nobody"]\n')
    assert "[engine] sqlite names 'nobody'" in run(folder, "config", "check").err
    config.write_text(config.read_text().replace("nobody", "ledger"))
    done = ok(run(folder, "db", "copy", *WHY, "--json"))
    assert [each["service"] for each in done] == ["till"]
    with Running(folder):
        assert sell(run, folder, "c") == 3
        until(lambda: asked(run, folder, "ledger.entries") == ["a", "b", "c"])
    till, ledger = (each["path"] for each in ok(run(folder, "db", "status", "--json")))
    assert ("/apart_till?" in till, ledger.endswith("ledger.db")) == (True, True)
    assert run(folder, "db", "verify").out == "till: in order\nledger: in order\n"
    assert run(folder, "db", "migrate", "--dry-run").code == 0
    assert run(folder, "db", "create").out.count("ledger") == 0
    back = run(folder, "db", "backup", "ledger", "--json")
    assert ok(back)[0]["service"] == "ledger"
    moved = ok(run(folder, "db", "copy", "ledger", *WHY, "--json"))
    assert {each["name"]: each["rows"] for each in moved[0]["tables"]}["entry"] == 3
