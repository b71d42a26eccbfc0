"""Migrations on PostgreSQL: under a lock of the database, each in a transaction with its record."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from synchromesh.errors import StoreError
from synchromesh.store.migrations import (
    APPLIED,
    NOTE_APPLIED,
    TABLE,
    PlannedMigration,
    applied_of,
    missing_migrations,
    planned,
    render,
)
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_dialect import TOKENS, to_postgres
from synchromesh.store.postgres_errors import PostgresFault, translate
from synchromesh.store.postgres_log import logs_of, prepare_logs
from synchromesh.store.unit import Migration, Schema

MIGRATING = "hashtext('synchromesh.migrations')"
"""The advisory lock of a database whose tables are made: one process at a time does it."""

_LOCK = f"select pg_advisory_lock({MIGRATING})"
_UNLOCK = f"select pg_advisory_unlock({MIGRATING})"
_IS_MADE = "select to_regclass('sm_migration') is not null"


async def pending(
    connection: Connection, schemas: Sequence[Schema], *, path: str
) -> list[PlannedMigration]:
    """Return the migrations that a database lacks, in the order of `migrate`; raises as it does."""
    return [planned(*each, TOKENS) for each in await _missing(connection, schemas, path)]


async def migrate(connection: Connection, schemas: Sequence[Schema], *, path: str) -> None:
    """Migrate a database to the newest version of each schema; keep a newer, readable one.

    Its logs are prepared with it. Every schema is checked before any is changed. The connection
    has no limit for a statement.

    Raises:
        ContractError: a schema is not in order, or one that was applied has been edited since.
        StoreTooNew: a newer release has made tables that this one may not use.
        StoreError: PostgreSQL refused a statement; all is as it was before that migration.
    """
    await connection.execute(_LOCK)
    try:
        for owner, migration in await _missing(connection, schemas, path):
            await _apply(connection, owner, migration, path)
        await prepare_logs(connection, logs_of(schemas))
    finally:
        if not connection.is_closed():
            await connection.execute(_UNLOCK)


async def _missing(
    connection: Connection, schemas: Sequence[Schema], path: str
) -> list[tuple[str, Migration]]:
    made = await connection.fetchval(_IS_MADE)
    applied = applied_of(await connection.fetch(APPLIED)) if made else {}
    return missing_migrations(applied, schemas, path=path)


async def run_migration(
    connection: Connection, owner: str, migration: Migration, *, path: str
) -> None:
    """Run a migration and record it, in the transaction that is open.

    Raises:
        StoreError: PostgreSQL refused a statement; the transaction is of no use any more.
    """
    statement = ""
    try:
        await connection.execute(render(TABLE, TOKENS))
        for raw in migration.statements:
            statement = render(raw, TOKENS)
            # Prepared, so that it is one statement: a second one might be a commit.
            await connection.fetch(statement)
        statement = NOTE_APPLIED
        texts = msgspec.json.encode(migration.statements).decode()
        await connection.execute(
            to_postgres(NOTE_APPLIED), owner, migration.version, migration.readable_by_min, texts
        )
    except PostgresFault as error:
        where = f"{path}: migration {migration.version} of {owner!r}"
        raise translate(error, path=where, sql=statement) from error


async def _apply(connection: Connection, owner: str, migration: Migration, path: str) -> None:
    try:
        await connection.execute("begin")
        await run_migration(connection, owner, migration, path=path)
        await connection.execute("commit")
    except (*PostgresFault, StoreError) as error:
        if not connection.is_closed():
            await connection.execute("rollback")
        if isinstance(error, StoreError):
            raise
        where = f"{path}: migration {migration.version} of {owner!r}"
        raise translate(error, path=where) from error
    except BaseException:
        # Cut somewhere: it is not known to be out of the transaction.
        connection.terminate()
        raise
