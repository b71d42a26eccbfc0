"""Migrations: whole or not at all, never backwards, never on tables that are too new (P2)."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synchromesh import runtime
from synchromesh.errors import ContractError, StatementFailed, StoreError, StoreLocked, StoreTooNew
from synchromesh.runtime import RealDisk, RealRuntime
from synchromesh.store import Migration, Schema, SqliteStores
from synchromesh.store.migrations import (
    SQLITE_TOKENS,
    check_schemas,
    dry_run_migrations,
    migrate,
    render,
)

FIRST = Migration(1, ("create table a(n integer)", "insert into a values (1)"), 1)
SECOND = Migration(2, ("alter table a add column m integer", "update a set m = n + 1"), 1)
THIRD = Migration(3, ("create table b as select m from a", "drop table a"), 3)
# Minutes, on any machine.
COUNTS = (
    "with recursive c(n) as (select 1 union all select n + 1 from c where n < 2000000000) "
    "insert into a select max(n) from c"
)
LONG = Migration(2, ("update a set n = 7", COUNTS), 1)


class Killed(BaseException):
    """Stands for the end of the process."""


class MortalConnection(sqlite3.Connection):
    """Dies at its n-th statement."""

    lives: int | None = None

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run a statement, or die before it."""
        if self.lives is not None:
            if self.lives == 0:
                raise Killed(sql)
            self.lives -= 1
        return super().execute(sql, parameters)


@pytest.fixture
def connection() -> Iterator[MortalConnection]:
    made = sqlite3.connect(":memory:", isolation_level=None, factory=MortalConnection)
    yield made
    made.close()


def version(connection: sqlite3.Connection, owner: str = "x") -> tuple[int, int]:
    return connection.execute(  # type: ignore[no-any-return]
        "select version, readable_by_min from sm_migration where owner = ? order by 1 desc limit 1",
        (owner,),
    ).fetchone()


def stored_version(connection: sqlite3.Connection) -> int:
    if not connection.execute("select 1 from sqlite_schema where name = 'sm_migration'").fetchone():
        return 0
    return int(
        connection.execute("select coalesce(max(version), 0) from sm_migration").fetchone()[0]
    )


def shape(connection: sqlite3.Connection) -> list[Any]:
    return connection.execute("select name, sql from sqlite_schema order by name").fetchall()


def test_migrations_are_applied_once_in_order(connection: MortalConnection) -> None:
    """A new file gets all; an old one what it lacks; a current one nothing."""
    migrate(connection, [Schema("x", (FIRST,))], path="x.db")
    assert version(connection) == (1, 1)
    for _ in range(2):
        migrate(connection, [Schema("x", (FIRST, SECOND))], path="x.db")
        assert version(connection) == (2, 1)
    assert connection.execute("select n, m from a").fetchall() == [(1, 2)]


def test_killed_at_any_statement_it_is_the_old_or_the_new(connection: MortalConnection) -> None:
    """Every prefix of the statements leaves one version whole, and a next start finishes (P2)."""
    schema = Schema("x", (FIRST, SECOND, THIRD))
    shapes: dict[int, Any] = {0: []}
    for count in (1, 2, 3):
        fresh = sqlite3.connect(":memory:", isolation_level=None)
        migrate(fresh, [Schema("x", schema.migrations[:count])], path="x.db")
        shapes[count] = shape(fresh)
        fresh.close()
    seen: set[int] = set()
    lives = 0
    while True:
        fresh = sqlite3.connect(":memory:", isolation_level=None, factory=MortalConnection)
        fresh.lives = lives
        try:
            migrate(fresh, [schema], path="x.db")
            survived = True
        except Killed:
            survived = False
        fresh.lives = None
        fresh.rollback()
        at = stored_version(fresh)
        seen.add(at)
        assert at == 0 or shape(fresh) == shapes[at]
        migrate(fresh, [schema], path="x.db")
        assert shape(fresh) == shapes[3]
        fresh.close()
        if survived:
            break
        lives += 1
    assert seen == {0, 1, 2, 3}
    assert lives > 15


def test_older_code_uses_a_newer_database_as_long_as_it_may(connection: MortalConnection) -> None:
    """readable_by_min decides; nothing is migrated backwards."""
    migrate(connection, [Schema("x", (FIRST, SECOND))], path="x.db")
    before = shape(connection)
    migrate(connection, [Schema("x", (FIRST,))], path="x.db")
    assert shape(connection) == before
    assert version(connection) == (2, 1)


def test_a_database_that_is_too_new_is_refused_before_anything_changes(
    connection: MortalConnection,
) -> None:
    """The message names owner and versions; other owners' tables are not touched either."""
    migrate(connection, [Schema("x", (FIRST, SECOND, THIRD))], path="x.db")
    before = shape(connection)
    other = Schema("y", (Migration(1, ("create table y(n integer)",), 1),))
    with pytest.raises(StoreTooNew, match=r"x\.db.*'x' are at version 3.*knows 2"):
        migrate(connection, [other, Schema("x", (FIRST, SECOND))], path="x.db")
    assert shape(connection) == before


@pytest.mark.parametrize(
    ("schemas", "words"),
    [
        ([Schema("x", ())], "must be 1, 2, 3"),
        ([Schema("x", (SECOND,))], "must be 1, 2, 3"),
        ([Schema("x", (SECOND, FIRST))], "never renumber"),
        ([Schema("x", (FIRST, FIRST))], r"\[1, 1\]"),
        ([Schema("x", (FIRST,)), Schema("x", (FIRST,))], "given twice"),
        ([Schema("x", (Migration(1, (), 2),))], "readable_by_min is 2"),
        ([Schema("x", (Migration(1, ("-- now\nCOMMIT",), 1),))], "migration 1 runs .*COMMIT"),
        ([Schema("x", (Migration(1, (), 0),))], "from 1 to 1"),
    ],
)
def test_a_schema_out_of_order_is_refused(schemas: list[Schema], words: str) -> None:
    """Versions are 1, 2, 3, ... and an owner has one schema."""
    with pytest.raises(ContractError, match=words):
        check_schemas(schemas)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (
            Migration(2, ("alter table a add column k integer", SECOND.statements[1]), 1),
            "statement 1 has 'a add column k integer' where 'a add column m integer' was run",
        ),
        (
            Migration(2, (SECOND.statements[0], "update a set m = n + 2"), 1),
            "statement 2 has 'set m = n [+] 2' where 'set m = n [+] 1' was run",
        ),
        (
            Migration(2, (f"{SECOND.statements[0]} default 7", SECOND.statements[1]), 1),
            "statement 1 has .*default 7' where ",
        ),
        (Migration(2, SECOND.statements[:1], 1), "it has 1 statements, and 2 were run"),
        (Migration(2, SECOND.statements, 2), "readable_by_min is 2, and was 1"),
    ],
)
def test_a_migration_that_was_edited_after_it_was_applied_is_refused(
    connection: MortalConnection, second: Migration, said: str
) -> None:
    """It was ignored: the text that is and the one that was run are told, and what to do."""
    migrate(connection, [Schema("x", (FIRST, SECOND))], path="x.db")
    before = shape(connection)
    other = Schema("y", (Migration(1, ("create table y(n integer)",), 1),))
    refused = r"^x\.db: migration 2 of 'x' was applied and has been edited since: .*new migration$"
    for edited in ((FIRST, second), (FIRST, second, THIRD)):
        with pytest.raises(ContractError, match=said) as caught:
            migrate(connection, [other, Schema("x", edited)], path="x.db")
        assert re.search(refused, caught.value.message)
    assert shape(connection) == before
    migrate(connection, [other, Schema("x", (FIRST, SECOND, THIRD))], path="x.db")
    assert version(connection) == (3, 3)


def test_an_edited_migration_is_refused_by_a_rehearsal_and_by_older_code(tmp_path: Path) -> None:
    """A restart is refused before the old process ends; code behind the file is compared, too."""
    path = str(tmp_path / "x.db")
    owner = RealDisk().connect(path)
    migrate(owner, [Schema("x", (FIRST, SECOND))], path=path)
    edited = Migration(1, ("create table a(n text)",), 1)
    with pytest.raises(ContractError, match="edited since"):
        dry_run_migrations(path, [Schema("x", (edited, SECOND))], RealDisk())
    with pytest.raises(ContractError, match="edited since"):
        migrate(owner, [Schema("x", (edited,))], path=path)
    owner.close()


def test_blanks_between_words_are_no_edit(connection: MortalConnection) -> None:
    """A statement may be broken over other lines; what is quoted may not change."""
    first = Migration(1, ("create table a(n  text default 'a  b')",), 1)
    migrate(connection, [Schema("x", (first,))], path="x.db")
    again = Migration(1, ("\n  create table a(n text\n  default 'a  b')\n",), 1)
    migrate(connection, [Schema("x", (again,))], path="x.db")
    changed = Migration(1, ("create table a(n text default 'a b')",), 1)
    with pytest.raises(ContractError, match="statement 1 has"):
        migrate(connection, [Schema("x", (changed,))], path="x.db")


def test_another_build_of_our_own_tables_is_told_apart(connection: MortalConnection) -> None:
    """Nobody is told to put a text of Synchromesh's back."""
    migrate(connection, [Schema("synchromesh.x", (FIRST,))], path="x.db")
    with pytest.raises(ContractError, match="another build of Synchromesh made the file"):
        migrate(
            connection,
            [Schema("synchromesh.x", (Migration(1, FIRST.statements[:1], 1),))],
            path="x.db",
        )


def test_a_statement_that_fails_is_named_and_undone(connection: MortalConnection) -> None:
    """The migration, its owner and the statement's beginning are in the message."""
    bad = Migration(2, ("create table c(n integer)", "alter table nowhere add column n"), 1)
    with pytest.raises(StatementFailed, match=r"migration 2 of 'x'.*alter table nowhere add"):
        migrate(connection, [Schema("x", (FIRST, bad))], path="x.db")
    assert version(connection) == (1, 1)
    assert "c" not in [name for name, _ in shape(connection)]


def test_a_migration_may_rebuild_a_table_but_leave_no_orphan(connection: MortalConnection) -> None:
    """Foreign keys are off meanwhile and checked before the commit."""
    first = Migration(
        1,
        (
            "create table p(id integer primary key)",
            "create table c(p integer references p(id))",
            "insert into p values (1)",
            "insert into c values (1)",
        ),
        1,
    )
    rebuild = Migration(
        2,
        (
            "create table p2(id integer primary key, n integer)",
            "insert into p2(id) select id from p",
            "drop table p",
            "alter table p2 rename to p",
        ),
        1,
    )
    orphan = Migration(3, ("delete from p",), 1)
    migrate(connection, [Schema("x", (first, rebuild))], path="x.db")
    with pytest.raises(ContractError, match="migration 3 of 'x' leaves a row of 'c'"):
        migrate(connection, [Schema("x", (first, rebuild, orphan))], path="x.db")
    assert connection.execute("select count(*) from p").fetchone() == (1,)


def test_the_engines_own_types_are_put_in_and_other_braces_stay() -> None:
    """Only the known tokens are words of ours."""
    got = render("create table t(p {position}, b {blob} default '{}') {keyed}", SQLITE_TOKENS)
    assert got == (
        "create table t(p integer primary key autoincrement, b blob default '{}') without rowid"
    )


def test_a_file_that_another_connection_holds_is_locked(tmp_path: Any) -> None:
    """A migration that cannot begin says so."""
    holder = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    holder.execute("begin exclusive")
    late = sqlite3.connect(tmp_path / "x.db", isolation_level=None, timeout=0.0)
    with pytest.raises(StoreLocked):
        migrate(late, [Schema("x", (FIRST,))], path="x.db")
    late.close()
    holder.close()


@pytest.mark.parametrize(
    ("third", "said"),
    [
        (Migration(3, ("create table a(n integer)",), 1), "migration 3 of 'x': table a already"),
        (Migration(3, ("drop table gone",), 1), "no such table: gone"),
    ],
)
def test_a_migration_that_would_fail_is_found_by_a_rehearsal(
    tmp_path: Path, third: Migration, said: str
) -> None:
    """It names what `migrate` would; the file, which another has open, is as it was."""
    path = str(tmp_path / "x.db")
    owner = RealDisk().connect(path)
    owner.execute("pragma journal_mode = wal")
    migrate(owner, [Schema("x", (FIRST, SECOND))], path=path)
    dry_run_migrations(path, [Schema("x", (FIRST, SECOND, THIRD))], RealDisk())
    with pytest.raises(StoreError, match=said):
        dry_run_migrations(path, [Schema("x", (FIRST, SECOND, third))], RealDisk())
    assert version(owner) == (2, 1)
    assert owner.execute("select n, m from a").fetchall() == [(1, 2)]
    owner.close()


def test_what_only_rows_can_tell_is_no_matter_of_a_rehearsal(tmp_path: Path) -> None:
    """A migration that needs rows is not refused for want of them, nor one of a file to come."""
    path = str(tmp_path / "x.db")
    first = Migration(1, ("create table b(n integer not null)", "create table c(n integer)"), 1)
    second = Migration(2, ("insert into b values ((select n from c))",), 1)
    dry_run_migrations(path, [Schema("x", (first, second))], RealDisk())
    assert not Path(path).exists()
    owner = RealDisk().connect(path)
    migrate(owner, [Schema("x", (first,))], path=path)
    dry_run_migrations(path, [Schema("x", (first, second))], RealDisk())
    owner.close()


@pytest.mark.anyio
async def test_a_rehearsal_tells_first_whether_there_is_anything_to_run(tmp_path: Path) -> None:
    """So that whoever waits knows that it may take long; a file to come lacks all."""
    path = str(tmp_path / "x.db")
    told: list[int] = []

    stores = SqliteStores(RealRuntime(), lambda _: path)

    def lacks() -> None:
        told.append(len(told))

    await stores.dry_run("x", [Schema("x", (FIRST,))], lacks)
    assert len(told) == 1
    owner = RealDisk().connect(path)
    migrate(owner, [Schema("x", (FIRST,))], path=path)
    await stores.dry_run("x", [Schema("x", (FIRST,))], lacks)
    assert len(told) == 1
    wrong = Migration(2, ("insert into nowhere values (1)",), 1)
    with pytest.raises(StoreError):
        await stores.dry_run("x", [Schema("x", (FIRST, wrong))], lacks)
    assert len(told) == 2
    owner.close()


def test_tables_that_cannot_be_copied_are_not_rehearsed(tmp_path: Path) -> None:
    """Such as those of a virtual table, which makes tables of its own."""
    path = str(tmp_path / "x.db")
    owner = RealDisk().connect(path)
    search = Migration(1, ("create virtual table search using fts5(text)",), 1)
    migrate(owner, [Schema("x", (search,))], path=path)
    dry_run_migrations(
        path, [Schema("x", (search, Migration(2, ("drop table gone",), 1)))], RealDisk()
    )
    owner.close()


@pytest.mark.anyio
@pytest.mark.parametrize("is_rehearsal", [False, True], ids=["start", "rehearsal"])
async def test_one_that_takes_long_blocks_nobody_and_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_rehearsal: bool
) -> None:
    """The loop goes on, and says which one runs; whoever is cancelled leaves it rolled back."""
    path = str(tmp_path / "x.db")
    stores = SqliteStores(RealRuntime(), lambda _: path)
    await (await stores.open("x", [Schema("x", (FIRST,))])).close()
    monkeypatch.setattr(runtime, "STILL_AFTER_S", 0.01)
    schemas, runs, said = [Schema("x", (FIRST, LONG))], asyncio.Event(), list[str]()

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            runs.set()

    log, told = logging.getLogger("synchromesh.migrations"), Told()
    log.addHandler(told)
    try:
        starting: asyncio.Future[object] = asyncio.ensure_future(
            stores.dry_run("x", schemas, runs.set) if is_rehearsal else stores.open("x", schemas)
        )
        await runs.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    finally:
        log.removeHandler(told)
    assert said == [] if is_rehearsal else said[0].startswith("migrating x to 2 …")
    store = await stores.open("x", [Schema("x", (FIRST,))])
    assert await store.read("select n from a") == [(1,)]
    assert await store.read("select max(version) from sm_migration where owner = 'x'") == [(1,)]
    await store.close()
