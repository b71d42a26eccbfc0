"""Schema migrations: versioned, ascending, each applied atomically with its version.

`sm_schema` says for each owner the version of its tables and the oldest version whose code may
still use them (`readable_by_min`): a release that is one expand step behind keeps running beside a
newer one, and one that is too old refuses to start.

Source: Ambler & Sadalage, *Refactoring Databases*, 2006.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence

from synchromesh.errors import ConstraintFailed, ContractError, StoreTooNew
from synchromesh.runtime import Disk
from synchromesh.store.sqlite_errors import SqliteFault, translate
from synchromesh.store.sqlite_unit import TRANSACTIONAL, leading_word
from synchromesh.store.unit import Migration, Schema

SQLITE_TOKENS = {
    "{blob}": "blob",
    "{position}": "integer primary key autoincrement",
    "{keyed}": "without rowid",
    "{json_array}": "json_array",
}
"""Engine-specific SQL: bytes, a row's position, a table clustered by its key, a JSON array."""

# What a file is made of, tables first; SQLite makes its own by itself.
_MADE = (
    "select sql from sqlite_master where sql is not null and substr(name, 1, 7) <> 'sqlite_' "
    "order by type <> 'table', rowid"
)


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
                if leading_word(statement) in TRANSACTIONAL:
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


def migrate(connection: sqlite3.Connection, schemas: Sequence[Schema], *, path: str) -> None:
    """Migrate a SQLite file to the newest version of each schema; keep a newer, readable one.

    Every schema is checked before any is changed. Foreign keys must be off, so that a migration can
    rebuild a table that others refer to; they are checked before it commits.

    Raises:
        ContractError: a schema is not in order, or a migration leaves a broken foreign key.
        StoreTooNew: a newer release has made tables that this one may not use.
        StoreError: SQLite refused a statement; the file is as it was before that migration.
    """
    check_schemas(schemas)
    try:
        connection.execute(
            "create table if not exists sm_schema(owner text primary key, version integer not null,"
            " readable_by_min integer not null)"
        )
        found = {
            owner: (version, readable_by_min)
            for owner, version, readable_by_min in _versions(connection)
        }
    except SqliteFault as error:
        raise translate(error, path=path) from error
    for schema in schemas:
        _check_readable(schema, found.get(schema.owner, (0, 0)), path)
    for schema in schemas:
        version, _ = found.get(schema.owner, (0, 0))
        for migration in schema.migrations[version:]:
            _apply(connection, schema.owner, migration, path)


def dry_run_migrations(path: str, schemas: Sequence[Schema], disk: Disk) -> None:
    """Run the migrations on empty copies of a file's tables; another process may own the file.

    What depends on rows is not seen so. Where there is no file yet, or it cannot be copied so,
    nothing is tried.

    Raises:
        ContractError, StoreTooNew, StoreError: as `migrate` does.
    """
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as copy:
        try:
            with contextlib.closing(disk.connect(path, read_only=True)) as connection:
                made, versions = connection.execute(_MADE).fetchall(), _versions(connection)
            for (statement,) in made:
                copy.execute(statement)
            copy.executemany("insert into sm_schema values (?, ?, ?)", versions)
        except SqliteFault:
            return
        # With the rows that are there a constraint may well hold.
        with contextlib.suppress(ConstraintFailed):
            migrate(copy, schemas, path=path)


def _versions(connection: sqlite3.Connection) -> list[tuple[str, int, int]]:
    rows = connection.execute("select owner, version, readable_by_min from sm_schema")
    return [(str(owner), int(version), int(by_min)) for owner, version, by_min in rows]


def _check_readable(schema: Schema, found: tuple[int, int], path: str) -> None:
    version, readable_by_min = found
    ours = schema.migrations[-1].version
    if readable_by_min > ours:
        raise StoreTooNew(
            f"{path}: the tables of {schema.owner!r} are at version {version} and need code that "
            f"knows at least version {readable_by_min}; this release knows {ours}: start the newer "
            "release, or restore a backup made before it"
        )


def _apply(connection: sqlite3.Connection, owner: str, migration: Migration, path: str) -> None:
    statement = ""
    try:
        connection.execute("begin immediate")
        for raw in migration.statements:
            statement = render(raw, SQLITE_TOKENS)
            connection.execute(statement)
        broken = connection.execute("pragma foreign_key_check").fetchall()
        if broken:
            raise ContractError(
                f"{path}: migration {migration.version} of {owner!r} leaves a row of "
                f"{broken[0][0]!r} that refers to nothing; move or remove such rows in it"
            )
        statement = "insert into sm_schema"
        connection.execute(
            "insert into sm_schema(owner, version, readable_by_min) values (?, ?, ?) "
            "on conflict(owner) do update set version = excluded.version, "
            "readable_by_min = excluded.readable_by_min",
            (owner, migration.version, migration.readable_by_min),
        )
        connection.execute("commit")
    except BaseException as error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("rollback")
        if isinstance(error, SqliteFault):
            where = f"{path}: migration {migration.version} of {owner!r}"
            raise translate(error, path=where, sql=statement) from error
        raise
