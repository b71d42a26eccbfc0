"""Migrations of a SQLite file by hand: what would run, and running it where no service does."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

from synchromesh.runtime import Disk, DiskRuntime
from synchromesh.store.migrations import (
    PlannedMigration,
    check_schemas,
    dry_run_migrations,
    migrate,
    pending_migrations,
    planned,
)
from synchromesh.store.sqlite_errors import SqliteFault, translate
from synchromesh.store.taken_along import refuse_taken
from synchromesh.store.unit import Schema


def plan_file(path: str, schemas: Sequence[Schema], *, disk: Disk) -> list[PlannedMigration]:
    """Return what `migrate` would run on a file, after a rehearsal on a copy of its tables.

    Raises:
        ContractError, StoreError: it would fail with them.
    """
    if disk.file_id(path) is None:
        check_schemas(schemas)
        return [planned(each.owner, one) for each in schemas for one in each.migrations]
    dry_run_migrations(path, schemas, disk)
    try:
        with contextlib.closing(disk.connect(path, read_only=True)) as connection:
            found = pending_migrations(connection, schemas, path=path)
    except SqliteFault as error:
        raise translate(error, path=path) from error
    return [planned(owner, migration) for owner, migration in found]


async def migrate_file(
    path: str,
    schemas: Sequence[Schema],
    *,
    change: tuple[int, str, str],
    log_id: str,
    runtime: DiskRuntime,
) -> list[PlannedMigration]:
    """Migrate a file that the caller has locked, record who asked and why; return what ran.

    Args:
        change: when, who and why.
        log_id: that of a new file.

    Raises:
        ContractError, StoreError: as `migrate` does.
    """
    try:
        with contextlib.closing(runtime.disk.connect(path)) as connection:
            refuse_taken(connection, path)
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            connection.execute("pragma foreign_keys = off")
            found = pending_migrations(connection, schemas, path=path)
            if found:
                # In a thread: Ctrl-C has to end one that takes long.
                await runtime.blocking(
                    partial(migrate, connection, schemas, path=path),
                    cut=connection.interrupt,
                    still=lambda: None,
                )
                ran = ", ".join(f"{owner} {migration.version}" for owner, migration in found)
                at_us, who, why = change
                connection.execute("begin immediate")
                connection.execute(
                    "insert into sm_meta(name, value) values ('log_id', ?) "
                    "on conflict(name) do nothing",
                    (log_id,),
                )
                connection.execute(
                    "insert into sm_change values (?, ?, ?, ?)",
                    (at_us, f"migrated: {ran}", who, why),
                )
                connection.execute("commit")
    except SqliteFault as error:
        raise translate(error, path=path) from error
    return [planned(owner, migration) for owner, migration in found]
