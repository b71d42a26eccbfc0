"""What is done to a database while nobody runs its service: restored, or migrated by hand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError, StoreLocked
from synchromesh.events.log import ADOPT
from synchromesh.runtime import Disk, RealRuntime
from synchromesh.saga.tables import count_by_status
from synchromesh.service import Service, schemas_of
from synchromesh.store import Schema
from synchromesh.store.migrations import PlannedMigration
from synchromesh.store.sqlite import STORE_SCHEMA
from synchromesh.store.sqlite_backup import read_manifest, restore
from synchromesh.store.sqlite_offline import migrate_file, plan_file
from synchromesh.store.sqlite_reader import SqliteReader
from synchromesh.system.config.definitions import load_services
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.control.stopped import server_at


class RestoredService(msgspec.Struct, frozen=True):
    """What became of a database that was restored.

    Attributes:
        before: the id of the log that was backed up; `log_id` is the new one.
        kept_as: where the file is that was replaced; "" where there was none.
        unknown_since: what was done after that is not in the backup.
        sagas: how many of the backup's runs have which status; unfinished ones go on.
    """

    service: str
    log_id: str
    before: str
    kept_as: str
    unknown_since: str
    sagas: dict[str, int]


class Migrated(msgspec.Struct, frozen=True):
    """The migrations of a service's database that were run, or would be."""

    service: str
    migrations: list[PlannedMigration]


async def restore_service(
    folder: Path, service: str, backup: Path, *, who: str, why: str
) -> RestoredService:
    """Put a backup in the place of a service's database, as another log.

    Raises:
        ConfigError: there is no such service, it has no database, or the backup is of another.
        StoreLocked: its process runs.
        StoreError, ContractError: the backup cannot be used; nothing was changed.
    """
    config = load_config(folder, environment=os.environ)
    definition = _known(config, folder, service)
    async with server_at(folder) as server:
        if server is not None and server.has(service):
            raise ConfigError(
                f"{service} has its database on a PostgreSQL server, which is not restored here: "
                "use the server's own tools (pg_restore, or recovery to a point in time)"
            )
    manifest = read_manifest(backup)
    for what, ours, theirs in (
        ("system", config.system.name, manifest.system),
        ("service", service, manifest.service),
    ):
        if ours != theirs:
            raise ConfigError(
                f"{backup} is a backup of the {what} {theirs!r}, and this is {ours!r}; nothing was "
                "changed"
            )
    runtime, rundir = RealRuntime(), RunDir(folder)
    rundir.create()
    path = rundir.database(service)
    with owned(path, service, runtime.disk):
        done = restore(
            path,
            backup,
            schemas=schemas_of_file(definition),
            adopt=ADOPT,
            log_id=runtime.new_id(),
            change=(runtime.wall_us(), who, why),
            disk=runtime.disk,
        )
        reader = SqliteReader.open(path, service=service, runtime=runtime)
        try:
            sagas = await count_by_status(reader)
        finally:
            await reader.close()
    return RestoredService(
        service, done.log_id, done.before, done.kept_as, done.unknown_since, sagas
    )


async def create_databases(folder: Path, *, is_new_key: bool) -> list[str]:
    """Make what is missing of the databases and roles on a server; return what was done.

    Args:
        is_new_key: take over what this system has made under another key.

    Raises:
        ConfigError: databases are files, or the configuration cannot be read.
        StoreError: the server cannot be reached, or refuses.
    """
    names = [each.name for each in wanted_services(folder, "")]
    async with server_at(folder) as server:
        if server is None:
            raise ConfigError(
                "databases are SQLite files here, which a start makes; name a server: [engine] "
                'postgres = "env:DATABASE_URL"'
            )
        on_it = [name for name in names if server.has(name)]
        return await server.databases.create(on_it, is_new_key=is_new_key)


async def plan_migrations(folder: Path, service: str) -> list[Migrated]:
    """Return which migrations the code would run, of one service or of all; a system may run.

    Raises:
        ConfigError: there is no such service, or it has no database.
        ContractError, StoreError: a start would fail with it.
    """
    runtime, rundir, wanted = RealRuntime(), RunDir(folder), wanted_services(folder, service)
    done = []
    async with server_at(folder) as server:
        for each in wanted:
            if server is not None and server.has(each.name):
                found = await server.stores.plan(each.name, schemas_of(each))
            else:
                path, schemas = rundir.database(each.name), schemas_of_file(each)
                found = plan_file(path, schemas, disk=runtime.disk)
            done.append(Migrated(each.name, found))
    return done


async def migrate_services(folder: Path, service: str, *, who: str, why: str) -> list[Migrated]:
    """Run the migrations that the code has and a database lacks, of one service or of all.

    Raises:
        ConfigError, ContractError, StoreError: as `plan_migrations` does.
        StoreLocked: the process of a service runs, which has its file; on a server it may.
    """
    runtime, rundir, wanted = RealRuntime(), RunDir(folder), wanted_services(folder, service)
    rundir.create()
    done = []
    async with server_at(folder) as server:
        for each in wanted:
            if server is not None and server.has(each.name):
                ran = await server.stores.migrate(each.name, schemas_of(each), who=who, why=why)
                done.append(Migrated(each.name, ran))
                continue
            path = rundir.database(each.name)
            with owned(path, each.name, runtime.disk):
                ran = await migrate_file(
                    path,
                    schemas_of_file(each),
                    change=(runtime.wall_us(), who, why),
                    log_id=runtime.new_id(),
                    runtime=runtime,
                )
            done.append(Migrated(each.name, ran))
    return done


def wanted_services(folder: Path, service: str) -> Sequence[Service]:
    """Return a service, or of "" each that has a database. Raises ConfigError."""
    config = load_config(folder, environment=os.environ)
    if service:
        return [_known(config, folder, service)]
    return [each for each in load_services(config, folder) if each.state]


def _known(config: SystemConfig, folder: Path, service: str) -> Service:
    found = {each.name: each for each in load_services(config, folder)}
    if service not in found:
        raise ConfigError(f"there is no service {service!r}; there are {', '.join(found)}")
    if not found[service].state:
        raise ConfigError(f"{service} has queries only, and therefore no database")
    return found[service]


def schemas_of_file(service: Service) -> tuple[Schema, ...]:
    """Return the schemas of a service's SQLite file, the store's own first."""
    return (STORE_SCHEMA, *schemas_of(service))


@contextlib.contextmanager
def owned(path: str, service: str, disk: Disk) -> Iterator[None]:
    """Hold the lock of a service's SQLite file. Raises StoreLocked where its process runs."""
    lock = disk.try_lock(path)
    if lock is None:
        raise StoreLocked(
            f"{service} runs in {disk.owner_of(path)}: stop the system, do this, and start "
            "it again; nothing was changed"
        )
    try:
        yield
    finally:
        lock.release()
