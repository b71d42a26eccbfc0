"""Opens databases on a server where services had SQLite files before: one history goes on, not two.

A file that is there is the past of its service. The database on the server goes on with it where it
is its copy; where it is empty, or has another log, a start would begin beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from synchromesh.errors import ConfigError, StoreLocked
from synchromesh.runtime import Disk
from synchromesh.store.copied_file import CopiedFile
from synchromesh.store.postgres import PostgresStores
from synchromesh.store.postgres_copy import COPIED, OPENED
from synchromesh.store.taken_along import TakenTo, has_history, mark_file
from synchromesh.store.unit import Schema, Store, StoreReader
from synchromesh.telemetry import Tracer


class OneHistory:
    """Is a `StoreFactory` of databases on a server; one is opened where no file disagrees.

    Args:
        path: of a service's SQLite file, if there is one.
        is_trial: the server is one that a system brings along to try it, where a service begins
            anew beside its file, unless that is on its way there.
    """

    def __init__(
        self, stores: PostgresStores, path: Callable[[str], str], disk: Disk, *, is_trial: bool
    ) -> None:
        self._stores = stores
        self._path = path
        self._disk = disk
        self._is_trial = is_trial

    async def open(
        self, service: str, schemas: Sequence[Schema], *, tracer: Tracer | None = None
    ) -> Store:
        """Open the database of a service, as `PostgresStore.open` says.

        Raises:
            ConfigError: its SQLite file has another history, or one that was not copied.
            StoreLocked: a process has that file.
        """
        await self._refuse_another(service)
        return await self._stores.open(service, schemas, tracer=tracer)

    async def dry_run(
        self, service: str, schemas: Sequence[Schema], lacks: Callable[[], None]
    ) -> None:
        """Try migrations, as `StoreFactory.dry_run` says."""
        await self._stores.dry_run(service, schemas, lacks)

    async def open_reader(self, service: str) -> StoreReader:
        """Open the database of a service to read it, as `StoreFactory.open_reader` says."""
        return await self._stores.open_reader(service)

    async def _refuse_another(self, service: str) -> None:
        path = self._path(service)
        if not has_history(path, self._disk):
            return
        with CopiedFile.opened(path, service=service, disk=self._disk) as file:
            log_id, state, mark = file.log_id, file.state, file.mark
        noted, place = await self._stores.noted(service), self._stores.place(service)
        if noted is None or noted.get("log_id") != log_id or COPIED not in noted:
            if mark is None and self._is_trial:
                return
            raise ConfigError(_not_there(service, path, place, mark, is_empty=noted is None))
        if noted[COPIED] != state:
            raise ConfigError(_older(service, path, place, is_used=OPENED in noted))
        if mark is None or not mark.is_there:
            # Whoever copied it was killed between the commit there and the mark here.
            mark_copied(path, service, TakenTo(place, is_there=True), self._disk)

    def __repr__(self) -> str:
        return f"<OneHistory of {self._stores!r}>"


def mark_copied(path: str, service: str, mark: TakenTo, disk: Disk) -> None:
    """Mark a file that nobody has locked.

    Raises:
        StoreLocked: somebody has.
    """
    lock = disk.try_lock(path)
    if lock is None:
        raise StoreLocked(
            f"{path} is owned by {disk.owner_of(path)}, and {service} starts on its copy at "
            f"{mark.place}: end that process"
        )
    try:
        mark_file(path, mark, disk=disk)
    finally:
        lock.release()


def _not_there(service: str, path: str, place: str, mark: TakenTo | None, *, is_empty: bool) -> str:
    copy = f"synchromesh db copy {service} --why TEXT"
    stays = f'keep it on its file ([engine] sqlite = ["{service}"])'
    if mark is not None and mark.is_there:
        return (
            f"{service} was copied to {mark.place}, and goes on there; {place} has no copy of it: "
            "name that server in [engine] postgres, or restore that database here; where it was "
            f"dropped: {copy}"
        )
    if mark is not None:
        return (
            f"{service} was being copied to {mark.place}, and {place} has no copy of it; what it "
            f"has is in {path}. Begin again: {copy}; or {stays}"
        )
    if is_empty:
        return (
            f"{service} has its data in {path}, and {place} is empty: take it there: {copy}; or "
            f"{stays}; or move the file away where nobody needs it"
        )
    return (
        f"{service} has its data in {path}, and {place} has another log, not a copy of it: move "
        f"the file away where nobody needs it; or {stays}; or drop that database, and copy: {copy}"
    )


def _older(service: str, path: str, place: str, *, is_used: bool) -> str:
    said = f"{place} has an older copy of {path}, which has been written to since"
    if not is_used:
        return (
            f"{said}; nobody has used the copy: bring the rest: synchromesh db copy {service} "
            "--why TEXT"
        )
    return (
        f"{said}, and so has the copy: {service} has two histories. Decide for one: move the file "
        "away, or drop that database and copy the file again"
    )
