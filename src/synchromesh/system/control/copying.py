"""Takes services from their SQLite files to the PostgreSQL server of their system."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from synchromesh.errors import ConfigError, StoreBroken
from synchromesh.runtime import DiskRuntime, RealRuntime
from synchromesh.service import Service, schemas_of
from synchromesh.store.copied_file import CopiedFile
from synchromesh.store.taken_along import (
    COPIED,
    REHEARSED,
    THERE,
    CopiedService,
    CopiedTable,
    TakenTo,
    has_history,
    mark_file,
)
from synchromesh.system.config.databases import Server
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.control.offline import owned, schemas_of_file, wanted_services
from synchromesh.system.control.stopped import server_at


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

    Each is copied whole or not at all, and its file stays as it is, but for its mark. All are
    looked at before the first one is copied.

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
            found = []
            for each in services:
                path = rundir.database(each.name)
                if not has_history(path, runtime.disk):
                    continue
                if not is_rehearsal:
                    stack.enter_context(owned(path, each.name, runtime.disk))
                with CopiedFile.opened(path, service=each.name, disk=runtime.disk) as file:
                    file.check(schemas_of_file(each))
                found.append(each)
            if not found:
                names = ", ".join(each.name for each in services)
                raise ConfigError(f"there is nothing to copy in {rundir.data}: no file of {names}")
            copier = ServiceCopier(
                server, rundir, runtime, change=(runtime.wall_us(), who, why), told=told
            )
            return [await copier.copy(each, is_rehearsal=is_rehearsal) for each in found]


class ServiceCopier:
    """Copies the files of services to their databases on a server, and marks them.

    Args:
        change: when, who and why, as it is recorded.
        told: called with a service and each of its tables once its rows are there.
    """

    def __init__(
        self,
        server: Server,
        rundir: RunDir,
        runtime: DiskRuntime,
        *,
        change: tuple[int, str, str],
        told: Callable[[str, CopiedTable], None] = _told_nobody,
    ) -> None:
        self._server = server
        self._rundir = rundir
        self._runtime = runtime
        self._change = change
        self._told = told

    async def copy(self, service: Service, *, is_rehearsal: bool = False) -> CopiedService:
        """Copy the file of a service, which the caller has locked, unless it is a rehearsal.

        Raises:
            StoreTooNew, ContractError, StoreError: as `copy_services` does.
        """
        name, disk, databases = service.name, self._runtime.disk, self._server.databases
        path, place = self._rundir.database(name), self._server.stores.place(name)
        if not is_rehearsal:
            mark_file(path, TakenTo(place), disk=disk)
        with CopiedFile.opened(path, service=name, disk=disk) as file:
            file.check(schemas_of_file(service))
            _refuse_gone_on(name, file.mark, place)
            if databases.has_user:
                await databases.create([name])
            copied = await self._server.stores.copy(
                name,
                schemas_of(service),
                file,
                change=self._change,
                is_rehearsal=is_rehearsal,
                told=partial(self._told, name),
            )
            log_id = file.log_id
        if not is_rehearsal:
            mark_file(path, TakenTo(place, is_there=True), disk=disk)
        outcome = REHEARSED if is_rehearsal else COPIED if copied is not None else THERE
        return CopiedService(name, outcome, path, place, log_id, copied or [])

    def __repr__(self) -> str:
        return f"<ServiceCopier from {self._rundir.data}>"


def _refuse_gone_on(service: str, mark: TakenTo | None, place: str) -> None:
    """Refuse a second copy of a file whose first one, elsewhere, has gone on."""
    if mark is not None and mark.is_there and mark.place != place:
        raise StoreBroken(
            f"{service} was copied to {mark.place}, and has gone on there: take it to {place} from "
            "there, by pg_dump and pg_restore. Nothing was copied"
        )
