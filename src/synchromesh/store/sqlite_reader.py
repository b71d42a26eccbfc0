"""Reads a service's SQLite file that another process owns, or nobody does."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from synchromesh.errors import StoreBroken, StoreUnavailable
from synchromesh.runtime import DiskRuntime
from synchromesh.store.backup import Backup
from synchromesh.store.dialect import SQLITE
from synchromesh.store.sqlite_errors import (
    IOERR,
    READONLY,
    SqliteFault,
    code_of,
    translate,
)
from synchromesh.store.sqlite_unit import CHECKED, check_statement, run_statement
from synchromesh.store.statements import refuse
from synchromesh.store.unit import Fetched, Row, SqlValue
from synchromesh.store.vault import vault_path
from synchromesh.store.vault_reader import VaultReader

T = TypeVar("T")

BUSY_WAIT_S = 5.0
# After how many steps of the engine it is looked whether anybody still waits for the answer.
_LOOKS_EVERY = 100_000


class SqliteReader:
    """Reads the committed state of a SQLite file; implements `StoreReader`.

    Example:
        >>> import asyncio
        >>> from synchromesh.runtime import RealRuntime
        >>> try:
        ...     SqliteReader.open("/nowhere/shop.db", service="shop", runtime=RealRuntime())
        ... except StoreBroken as error:
        ...     print(error.message)
        shop has no database yet: /nowhere/shop.db is made when the service starts
    """

    dialect = SQLITE

    def __init__(
        self,
        path: str,
        *,
        service: str,
        log_id: str,
        connection: sqlite3.Connection,
        beside: SqliteBeside,
    ) -> None:
        self._path = path
        self._service = service
        self._beside = beside
        self._log_id = log_id
        self._connection = connection

    @classmethod
    def open(cls, path: str, *, service: str, runtime: DiskRuntime) -> SqliteReader:
        """Open a file to read it.

        Raises:
            StoreBroken: there is none, or it is no database of a service.
        """
        disk = runtime.disk
        if disk.file_id(path) is None:
            raise StoreBroken(
                f"{service} has no database yet: {path} is made when the service starts"
            )
        connection = None
        try:
            connection = disk.connect(path, read_only=True)
            connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
            connection.execute(f"pragma busy_timeout = {int(BUSY_WAIT_S * 1000)}")
            connection.execute("pragma query_only = on")
            sql = "select value from sm_meta where name = 'log_id'"
            log_id = str(connection.execute(sql).fetchone()[0])
        except SqliteFault as error:
            if connection is not None:
                connection.close()
            raise translate(error, path=path) from error
        beside = SqliteBeside(path, service, runtime)
        return cls(path, service=service, log_id=log_id, connection=connection, beside=beside)

    @property
    def service(self) -> str:
        """The service whose database it is."""
        return self._service

    @property
    def log_id(self) -> str:
        """The id of the event log in it."""
        return self._log_id

    @property
    def place(self) -> str:
        """The path of the file."""
        return self._path

    @property
    def beside(self) -> SqliteBeside:
        """What may take long, beside who serves."""
        return self._beside

    async def reaches(self, place: str) -> bool:
        """Try to attach another file, past what is checked of statements."""
        return attaches(self._connection, place)

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:
        """Query the committed state; a statement that writes is refused."""
        return query(self._connection, sql, values, path=self._path)

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Query the committed state, with the names of the columns."""
        names: list[str] = []
        rows = query(self._connection, sql, values, path=self._path, names=names)
        return Fetched(tuple(names), rows)

    async def close(self) -> None:
        """Close the file. Idempotent."""
        self._connection.close()

    def __repr__(self) -> str:
        return f"<SqliteReader {self._path}>"


class SqliteBeside:
    """What is done with a SQLite file in threads of their own; implements `Beside`."""

    def __init__(self, path: str, service: str, runtime: DiskRuntime) -> None:
        self._path, self._service, self._runtime = path, service, runtime

    def now_us(self) -> int:
        """Return the wall clock, microseconds since 1970 UTC."""
        return self._runtime.wall_us()

    def keys(self) -> VaultReader:
        """Return a reader of the file of its keys."""
        return VaultReader(self._path, self._runtime.disk)

    async def reader(self) -> ReaderBeside:
        """Open the file once more, in a thread of its own, as `Beside` says."""
        own = SqliteReader.open(self._path, service=self._service, runtime=self._runtime)
        return ReaderBeside(
            own._connection, own, _Lane(f"reader of {self._service}", self._runtime)
        )

    async def others(self) -> list[str]:
        """Return the paths of the other databases in the folder of the file."""
        found = map(str, Path(self._path).parent.glob("*.db"))
        return [each for each in found if each != self._path]

    async def back_up(self, folder: Path, *, system: str) -> Backup:
        """Copy the file in a thread of its own, as `sqlite_backup.back_up` says."""
        from synchromesh.store.sqlite_backup import back_up

        lane = _Lane(f"backup of {self._service}", self._runtime)
        try:
            made, manifest = await lane.run(
                lambda: back_up(
                    self._path,
                    folder,
                    system=system,
                    service=self._service,
                    now_us=self._runtime.wall_us(),
                    disk=self._runtime.disk,
                    threads=self._runtime.threads,
                )
            )
        finally:
            await lane.close()
        keys = vault_path(self._path)
        return Backup(made, manifest, keys if self._runtime.disk.file_id(keys) else "")

    def __repr__(self) -> str:
        return f"<SqliteBeside {self._path}>"


class ReaderBeside:
    """Reads a SQLite file in a thread of its own; implements `StoreReader`.

    Whoever is cancelled ends the statement that it waits for.
    """

    dialect = SQLITE

    def __init__(self, connection: sqlite3.Connection, own: SqliteReader, lane: _Lane) -> None:
        self._connection, self._own, self._lane = connection, own, lane
        self.service, self.log_id, self.place = own.service, own.log_id, own.place
        self.beside = own.beside
        connection.set_progress_handler(lambda: lane.is_given_up, _LOOKS_EVERY)

    async def reaches(self, place: str) -> bool:
        """Try to attach another file, past what is checked of statements."""
        return await self._lane.run(lambda: attaches(self._connection, place))

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:
        """Query the committed state; a statement that writes is refused."""
        return await self._lane.run(lambda: query(self._connection, sql, values, path=self.place))

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Query the committed state, with the names of the columns."""
        names: list[str] = []
        rows = await self._lane.run(
            lambda: query(self._connection, sql, values, path=self.place, names=names)
        )
        return Fetched(tuple(names), rows)

    async def close(self) -> None:
        """Close the file, and end the thread. Idempotent."""
        await self._lane.close()
        await self._own.close()

    def __repr__(self) -> str:
        return f"<ReaderBeside {self.place}>"


class _Lane:
    """A worker that runs functions, one after the other."""

    def __init__(self, name: str, runtime: DiskRuntime) -> None:
        self._loop = asyncio.get_running_loop()
        self._job: _Job | None = None
        self._worker = runtime.worker(name, self._work)

    @property
    def is_given_up(self) -> bool:
        """Whether nobody waits any more for what is run now; asked in the worker."""
        return self._job is not None and self._job.done.cancelled()

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in the worker, and return or raise what it does."""
        job = _Job(work, self._loop.create_future())
        self._worker.put(job)
        return await job.done  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Run what is queued, then end the worker. Idempotent."""
        await self._worker.close()

    def _work(self, jobs: list[_Job]) -> Callable[[], None]:
        for job in jobs:
            self._job = job
            job.run()

        def tell() -> None:
            for job in jobs:
                job.tell()

        return tell


class _Job:
    """A function that is run in a worker, and who waits for it."""

    def __init__(self, work: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        self.done = done
        self._work = work
        self._result: Any = None
        self._error: Exception | None = None

    def run(self) -> None:
        if self.done.cancelled():
            return  # nobody waits any more
        try:
            self._result = self._work()
        except Exception as error:  # noqa: BLE001 - who waits gets it, whatever it is
            self._error = error

    def tell(self) -> None:
        if self.done.cancelled():
            return
        if self._error is not None:
            self.done.set_exception(self._error)
        else:
            self.done.set_result(self._result)


def attaches(connection: sqlite3.Connection, path: str) -> bool:
    """Return whether a connection can be made to reach another file."""
    try:
        connection.execute("attach database ? as sm_other", (path,))
    except SqliteFault:
        return False
    connection.execute("detach database sm_other")
    return True


def query(
    connection: sqlite3.Connection,
    sql: str,
    values: tuple[SqlValue, ...],
    *,
    path: str,
    names: list[str] | None = None,
) -> list[Row]:
    """Run a statement that reads; `names` gets those of the columns.

    Raises:
        StatementFailed: it writes, or is wrong.
        StoreUnavailable: the disk failed.
        StoreError: the engine refused.
    """
    try:
        if sql not in CHECKED:
            check_statement(sql, "a read", path=path)
        return run_statement(connection, sql, values, path=path, names=names)
    except SqliteFault as error:
        if code_of(error) == READONLY:
            raise refuse(
                "a read ran a statement that writes; run it in a unit of work", sql, path=path
            ) from error
        if code_of(error) == IOERR:
            raise StoreUnavailable(
                f"{path}: a read failed: {error}; look at the disk, and ask again"
            ) from error
        raise translate(error, path=path, sql=sql) from error
