"""Takes services from their SQLite files to the PostgreSQL server of their system."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.runtime import RealRuntime
from synchromesh.service import Service, schemas_of
from synchromesh.store.copied_file import CopiedFile
from synchromesh.store.copied_rows import CopiedTable
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.offline import owned, schemas_of_file, wanted_services
from synchromesh.system.control.stopped import server_at

COPIED, REHEARSED, THERE = "copied", "rehearsed", "there"


class CopiedService(msgspec.Struct, frozen=True):
    """What became of a service's data.

    Attributes:
        outcome: "copied"; "rehearsed"; "there" where an earlier run did it, and the file is what it
            was then.
        log_id: of its event log, which is the same one.
    """

    service: str
    outcome: str
    source: str
    target: str
    log_id: str = ""
    tables: list[CopiedTable] = []


def _told_nobody(service: str, table: CopiedTable) -> None:
    """Is told, and nothing comes of it."""


async def copy_services(
    folder: Path,
    service: str,
    *,
    who: str,
    why: str,
    is_rehearsal: bool = False,
    starts_server: bool = False,
    told: Callable[[str, CopiedTable], None] = _told_nobody,
) -> list[CopiedService]:
    """Copy the SQLite file of a service, or of each that is to be there, to the server.

    Each is copied whole or not at all, and its file stays as it is. All are looked at before the
    first one is copied.

    Args:
        is_rehearsal: do all of it and take it back; services may run meanwhile.
        starts_server: that of `dev --engine postgres`, where no URL is configured.
        told: called with a service and each of its tables once its rows are there.

    Raises:
        ConfigError: no server is named, or there is no such service or no file.
        StoreLocked: its process runs.
        StoreTooNew, ContractError: a file cannot be copied by this release.
        StoreError: the server cannot be used, its database is not empty, or a value not be held.
    """
    runtime, rundir, services = RealRuntime(), RunDir(folder), wanted_services(folder, service)
    rundir.create()
    async with server_at(folder, starts=starts_server) as server:
        if server is None:
            raise ConfigError(
                'there is no server to copy to: name one ([engine] postgres = "env:DATABASE_URL"), '
                "or give --engine postgres for that of dev"
            )
        if not service:
            services = [each for each in services if server.has(each.name)]
        with contextlib.ExitStack() as stack:
            files = _opened(stack, rundir, services, runtime, is_owned=not is_rehearsal)
            if not files:
                names = ", ".join(each.name for each in services)
                raise ConfigError(f"there is nothing to copy in {rundir.data}: no file of {names}")
            if server.databases.has_user:
                await server.databases.create([each.name for each, _ in files])
            change = (runtime.wall_us(), who, why)
            done = []
            for each, file in files:
                copied = await server.stores.copy(
                    each.name,
                    schemas_of(each),
                    file,
                    change=change,
                    is_rehearsal=is_rehearsal,
                    told=partial(told, each.name),
                )
                outcome = REHEARSED if is_rehearsal else COPIED if copied is not None else THERE
                place, tables = server.stores.place(each.name), copied or []
                done.append(
                    CopiedService(each.name, outcome, file.path, place, file.log_id, tables)
                )
            return done


def _opened(
    stack: contextlib.ExitStack,
    rundir: RunDir,
    services: Sequence[Service],
    runtime: RealRuntime,
    *,
    is_owned: bool,
) -> list[tuple[Service, CopiedFile]]:
    """Open the file of each service that has one, and check it."""
    files = []
    for each in services:
        path = rundir.database(each.name)
        if runtime.disk.file_id(path) is None:
            continue
        if is_owned:
            stack.enter_context(owned(path, each.name, runtime))
        opened = CopiedFile.opened(path, service=each.name, disk=runtime.disk)
        file = stack.enter_context(opened)
        file.check(schemas_of_file(each))
        files.append((each, file))
    return files
