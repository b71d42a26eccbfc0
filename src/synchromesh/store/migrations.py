"""Schema migrations: versioned, ascending, each applied atomically with its record.

`sm_migration` has each one that was applied, with its text, and the oldest version whose code may
still use the tables after it (`readable_by_min`): a release that is one expand step behind keeps
running beside a newer one, and one that is too old refuses to start. So does one whose text of a
migration is not what was applied: the tables are not those that its code was written for.

Source: Ambler & Sadalage, *Refactoring Databases*, 2006.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from synchromesh.errors import ConstraintFailed, ContractError, StoreTooNew
from synchromesh.runtime import Disk
from synchromesh.store.sqlite_errors import SqliteFault, translate
from synchromesh.store.statements import TRANSACTIONAL, leading_word
from synchromesh.store.unit import OURS, Migration, Schema

SQLITE_TOKENS = {
    "{blob}": "blob",
    "{position}": "integer primary key autoincrement",
    "{log_position}": "integer primary key autoincrement",
    "{keyed}": "without rowid",
    "{json_array}": "json_array",
}
"""Engine-specific SQL: bytes, a row's number, one in the order of commits, a table clustered by its
key, a JSON array."""

# What a file is made of, tables first; SQLite makes its own by itself.
_MADE = (
    "select sql from sqlite_master where sql is not null and substr(name, 1, 7) <> 'sqlite_' "
    "order by type <> 'table', rowid"
)

APPLIED = "select owner, version, readable_by_min, statements from sm_migration order by 1, 2"
"""The migrations that were applied."""

NOTE_APPLIED = (
    "insert into sm_migration(owner, version, readable_by_min, statements) values (?, ?, ?, ?)"
)
"""Records that one was applied."""

TABLE = (
    "create table if not exists sm_migration(owner text not null, version integer not null, "
    "readable_by_min integer not null, statements text not null, primary key(owner, version)) "
    "{keyed}"
)
"""The table of migrations."""

# What is quoted stays as it is; elsewhere one blank is as good as another.
_BLANKS = re.compile(r"('(?:[^']|'')*'|\"(?:[^\"]|\"\")*\")|\s+")
_EXCERPT_CHARS = 48


class PlannedMigration(msgspec.Struct, frozen=True):
    """A migration that a database lacks, with the statements as they run."""

    owner: str
    version: int
    readable_by_min: int
    statements: list[str]


def planned(
    owner: str, migration: Migration, tokens: Mapping[str, str] = SQLITE_TOKENS
) -> PlannedMigration:
    """Return a migration as it is told, in the engine's own types."""
    statements = [render(each, tokens) for each in migration.statements]
    return PlannedMigration(owner, migration.version, migration.readable_by_min, statements)


def check_schemas(schemas: Sequence[Schema]) -> None:
    """Validate schemas: distinct owners, versions 1, 2, 3, ..., no transaction control."""
    owners: set[str] = set()
    for schema in schemas:
        if schema.owner in owners:
            raise ContractError(f"schema {schema.owner!r} is given twice; an owner has one")
        owners.add(schema.owner)
        versions = [migration.version for migration in schema.migrations]
        if not versions or versions != list(range(1, len(versions) + 1)):
            raise ContractError(
                f"schema {schema.owner!r} has migrations {versions}; they must be 1, 2, 3, ... in "
                "ascending order: append new ones, never renumber"
            )
        for migration in schema.migrations:
            if not 1 <= migration.readable_by_min <= migration.version:
                raise ContractError(
                    f"schema {schema.owner!r}, migration {migration.version}: readable_by_min is "
                    f"{migration.readable_by_min}; it must be from 1 to {migration.version}"
                )
            for statement in migration.statements:
                words = {leading_word(statement, nests=nests) for nests in (False, True)}
                if not words.isdisjoint(TRANSACTIONAL):
                    raise ContractError(
                        f"schema {schema.owner!r}, migration {migration.version} runs "
                        f"{statement[:40]!r}: a migration is applied whole or not at all, in the "
                        "store's own transaction; leave that statement out"
                    )


def render(statement: str, tokens: Mapping[str, str]) -> str:
    """Render a statement in the engine's own types.

    Example:
        >>> render("create table t(body {blob})", SQLITE_TOKENS)
        'create table t(body blob)'
    """
    for token, words in tokens.items():
        statement = statement.replace(token, words)
    return statement


def migrate(
    connection: sqlite3.Connection,
    schemas: Sequence[Schema],
    *,
    path: str,
    runs: Callable[[str], None] = lambda _: None,
) -> None:
    """Migrate a SQLite file to the newest version of each schema; keep a newer, readable one.

    `runs` is told which one is run, before it is.

    Every schema is checked before any is changed. Foreign keys must be off, so that a migration can
    rebuild a table that others refer to; they are checked before it commits.

    Raises:
        ContractError: a schema is not in order, or a migration leaves a broken foreign key.
            One that was applied has been edited since.
        StoreTooNew: a newer release has made tables that this one may not use.
        StoreError: SQLite refused a statement; the file is as it was before that migration.
    """
    for owner, migration in pending_migrations(connection, schemas, path=path):
        runs(f"{owner.removeprefix('service.')} to {migration.version}")
        _apply(connection, owner, migration, path)


def pending_migrations(
    connection: sqlite3.Connection, schemas: Sequence[Schema], *, path: str
) -> list[tuple[str, Migration]]:
    """Return the migrations that a file lacks, with their owners, in the order of `migrate`.

    Raises:
        ContractError, StoreTooNew: as `migrate` does.
        StoreError: the file cannot be read.
    """
    try:
        applied = read_applied(connection)
    except SqliteFault as error:
        raise translate(error, path=path) from error
    return missing_migrations(applied, schemas, path=path)


def missing_migrations(
    applied: Mapping[str, tuple[Migration, ...]], schemas: Sequence[Schema], *, path: str
) -> list[tuple[str, Migration]]:
    """Return the migrations that were not applied, with their owners, in the order of `migrate`.

    Raises:
        ContractError, StoreTooNew: as `migrate` does.
    """
    check_schemas(schemas)
    for schema in schemas:
        found = applied.get(schema.owner, ())
        _check_readable(schema, found, path)
        for old, new in zip(found, schema.migrations, strict=False):
            _check_unedited(schema.owner, old, new, path)
    return [
        (schema.owner, migration)
        for schema in schemas
        for migration in schema.migrations[len(applied.get(schema.owner, ())) :]
    ]


def read_applied(connection: sqlite3.Connection) -> dict[str, tuple[Migration, ...]]:
    """Return the migrations that were applied to a file, by owner; none of a new one."""
    made = connection.execute("select 1 from sqlite_master where name = 'sm_migration'").fetchall()
    return applied_of(connection.execute(APPLIED) if made else ())


def applied_of(rows: Iterable[tuple[Any, ...]]) -> dict[str, tuple[Migration, ...]]:
    """Return the migrations, by owner, that rows of `APPLIED` tell of."""
    applied: dict[str, tuple[Migration, ...]] = {}
    for owner, version, by_min, texts in rows:
        statements = msgspec.json.decode(texts, type=tuple[str, ...])
        migration = Migration(version, statements, by_min)
        applied[owner] = (*applied.get(owner, ()), migration)
    return applied


def dry_run_migrations(path: str, schemas: Sequence[Schema], disk: Disk) -> None:
    """Run the migrations on empty copies of a file's tables; another process may own the file.

    What depends on rows is not seen so. Where there is no file yet, or it cannot be copied so,
    nothing is tried.

    Raises:
        ContractError, StoreTooNew, StoreError: as `migrate` does.
    """
    with empty_copy(path, disk) as copy:
        if copy is not None:
            rehearse(copy, schemas, path=path)


def rehearse(copy: sqlite3.Connection, schemas: Sequence[Schema], *, path: str) -> None:
    """Run the migrations on an empty copy of a file. Raises as `migrate` does."""
    # With the rows that are there a constraint may well hold.
    with contextlib.suppress(ConstraintFailed):
        migrate(copy, schemas, path=path)


@contextlib.contextmanager
def empty_copy(path: str, disk: Disk) -> Iterator[sqlite3.Connection | None]:
    """Copy the tables of a file, without rows, to memory, for any one thread.

    None where there is no file yet, or it cannot be copied so.
    """
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    with contextlib.closing(memory) as copy:
        try:
            with contextlib.closing(disk.connect(path, read_only=True)) as connection:
                made = connection.execute(_MADE).fetchall()
                applied = connection.execute(APPLIED).fetchall()
            for (statement,) in made:
                copy.execute(statement)
            copy.executemany(NOTE_APPLIED, applied)
            found: sqlite3.Connection | None = copy
        except SqliteFault:
            found = None
        yield found


def _check_readable(schema: Schema, found: Sequence[Migration], path: str) -> None:
    ours = schema.migrations[-1].version
    if found and found[-1].readable_by_min > ours:
        raise StoreTooNew(
            f"{path}: the tables of {schema.owner!r} are at version {found[-1].version} and need "
            f"code that knows at least version {found[-1].readable_by_min}; this release knows "
            f"{ours}: start the newer release, or restore a backup made before it"
        )


def _check_unedited(owner: str, old: Migration, new: Migration, path: str) -> None:
    """Raise `ContractError` where a migration is not what was applied, but for its blanks."""
    # Word for word the same, as at nearly every start, needs no look at the blanks.
    difference = "" if old == new else _difference(old, new)
    if not difference:
        return
    where = f"{path}: migration {new.version} of {owner!r} was applied and has been edited since"
    if owner.startswith(OURS):
        raise ContractError(
            f"{where} ({difference}): another build of Synchromesh made the file; use that one, or "
            "begin with a new file"
        )
    raise ContractError(
        f"{where}: {difference}. The tables are as it was then: put that text back, and write "
        "what is to change as a new migration"
    )


def _difference(old: Migration, new: Migration) -> str:
    """Say where two texts of a migration differ first; "" where they do not."""
    pairs = list(zip(old.statements, new.statements, strict=False))
    for number, (was, is_) in enumerate(pairs, 1):
        was, is_ = _plain(was), _plain(is_)
        if was != is_:
            at = next((i for i, (a, b) in enumerate(zip(was, is_, strict=False)) if a != b), None)
            at = min(len(was), len(is_)) if at is None else at
            return f"statement {number} has {_excerpt(is_, at)} where {_excerpt(was, at)} was run"
    if len(old.statements) != len(new.statements):
        return f"it has {len(new.statements)} statements, and {len(old.statements)} were run"
    if old.readable_by_min != new.readable_by_min:
        return f"readable_by_min is {new.readable_by_min}, and was {old.readable_by_min}"
    return ""


def _plain(statement: str) -> str:
    return _BLANKS.sub(lambda found: found[1] or " ", statement.strip())


def _excerpt(text: str, at: int) -> str:
    # From the beginning of a word, so that it can be found.
    begin = text.rfind(" ", 0, max(0, at - _EXCERPT_CHARS // 4)) + 1
    return repr(text[begin : begin + _EXCERPT_CHARS])


def _apply(connection: sqlite3.Connection, owner: str, migration: Migration, path: str) -> None:
    statement = ""
    try:
        connection.execute("begin immediate")
        connection.execute(render(TABLE, SQLITE_TOKENS))
        for raw in migration.statements:
            statement = render(raw, SQLITE_TOKENS)
            connection.execute(statement)
        broken = connection.execute("pragma foreign_key_check").fetchall()
        if broken:
            raise ContractError(
                f"{path}: migration {migration.version} of {owner!r} leaves a row of "
                f"{broken[0][0]!r} that refers to nothing; move or remove such rows in it"
            )
        statement = NOTE_APPLIED
        texts = msgspec.json.encode(migration.statements).decode()
        connection.execute(
            NOTE_APPLIED, (owner, migration.version, migration.readable_by_min, texts)
        )
        connection.execute("commit")
    except BaseException as error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("rollback")
        if isinstance(error, SqliteFault):
            where = f"{path}: migration {migration.version} of {owner!r}"
            raise translate(error, path=where, sql=statement) from error
        raise
