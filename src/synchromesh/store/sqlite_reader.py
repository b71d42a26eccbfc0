"""Reads a service's SQLite file that another process owns, or nobody does."""

from __future__ import annotations

import sqlite3

from synchromesh.errors import StoreBroken, StoreUnavailable
from synchromesh.runtime import Disk
from synchromesh.store.sqlite_errors import (
    IOERR,
    READONLY,
    SqliteFault,
    code_of,
    refuse,
    translate,
)
from synchromesh.store.sqlite_unit import CHECKED, check_statement, run_statement
from synchromesh.store.unit import Fetched, Row, SqlValue

BUSY_WAIT_S = 5.0


class SqliteReader:
    """Reads the committed state of a SQLite file; implements `StoreReader`.

    Example:
        >>> import asyncio
        >>> from synchromesh.runtime import RealDisk
        >>> try:
        ...     SqliteReader.open("/nowhere/shop.db", service="shop", disk=RealDisk())
        ... except StoreBroken as error:
        ...     print(error.message)
        shop has no database yet: /nowhere/shop.db is made when the service starts
    """

    def __init__(
        self, path: str, *, service: str, log_id: str, connection: sqlite3.Connection
    ) -> None:
        self._path = path
        self._service = service
        self._log_id = log_id
        self._connection = connection

    @classmethod
    def open(cls, path: str, *, service: str, disk: Disk) -> SqliteReader:
        """Open a file to read it.

        Raises:
            StoreBroken: there is none, or it is no database of a service.
        """
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
        return cls(path, service=service, log_id=log_id, connection=connection)

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
