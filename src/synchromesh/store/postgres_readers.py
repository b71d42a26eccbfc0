"""Connections that only read: each query is one statement, and sees what is committed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from synchromesh.errors import BadRequest, StoreBroken, StoreError
from synchromesh.runtime import Runtime
from synchromesh.store.backup import Backup
from synchromesh.store.dialect import POSTGRES
from synchromesh.store.postgres_connection import (
    NO_MARK,
    Accepted,
    Connection,
    clear,
    connect,
    place_of,
    run,
)
from synchromesh.store.postgres_databases import MARK, check_mark
from synchromesh.store.postgres_dialect import Translation, Translations
from synchromesh.store.postgres_errors import (
    READ_ONLY,
    PostgresFault,
    is_conflict,
    is_lost,
    is_untyped,
    state_of,
    translate,
)
from synchromesh.store.postgres_keys import AbsentKeys
from synchromesh.store.postgres_limits import TimeLimit
from synchromesh.store.statements import refuse
from synchromesh.store.unit import Fetched, Row, SqlValue
from synchromesh.store.unit_store import PoolPlaces

_OTHERS = (
    f"select datname from pg_database where shobj_description(oid, 'pg_database') like '{MARK} %' "
    "and datname <> current_database() order by datname"
)
# A statement is learnt from twice at most, its connection lost or its plan stale once.
_TRIES_MAX = 5
# What is short anyhow has this limit where statements have none.
_SHORT_S = 5.0


class Readers:
    """Query on a bounded number of connections, each made when it is first needed.

    Args:
        connect: makes a connection that only reads.
        limit_s: that of a statement; one without an answer for twice as long is given up.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        plans: Translations,
        *,
        path: str,
        connections_max: int,
        limit_s: float | None = None,
    ) -> None:
        self._connect = connect
        self._plans = plans
        self._path = path
        self._limit_s = limit_s
        self._connections_max = connections_max
        self._places = asyncio.Semaphore(connections_max)
        self._asked = 0
        self._idle: deque[Connection] = deque()
        self._is_closed = False

    @property
    def places(self) -> PoolPlaces:
        """The connections, and how many reads wait for one."""
        busy = min(self._asked, self._connections_max)
        return PoolPlaces(busy, self._connections_max, self._asked - busy)

    async def query(
        self, sql: str, values: tuple[SqlValue, ...], *, has_columns: bool = False
    ) -> list[Row] | Fetched:
        """Run a statement that reads.

        Raises:
            StatementFailed: it writes, or is wrong.
            StoreUnavailable: the server is away.
            StoreError: the engine refused.
        """
        plan = self._plans.of(sql, "a read", path=self._path)
        plan.refuse_values(values, path=self._path)
        tries = 0
        while True:
            tries += 1
            try:
                self._asked += 1
                return await self._run(plan, values, has_columns)
            except PostgresFault as error:
                is_learnt = is_untyped(error) and plan.learn(values)
                if tries < _TRIES_MAX and (is_learnt or is_lost(error) or is_conflict(error)):
                    continue
                if state_of(error) == READ_ONLY:
                    raise refuse(
                        "a read ran a statement that writes; run it in a unit of work",
                        sql,
                        path=self._path,
                    ) from error
                raise translate(error, path=self._path, sql=sql) from error
            finally:
                self._asked -= 1

    async def close(self) -> None:
        """Close the connections; those that are in use when they come back. Idempotent."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().terminate()

    async def _run(
        self, plan: Translation, values: tuple[SqlValue, ...], has_columns: bool
    ) -> list[Row] | Fetched:
        async with self._places:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                with self._limit(connection):
                    return await run(connection, plan, values, has_columns=has_columns)
            finally:
                # It is in no transaction, so that whatever ended the statement it may be kept;
                # where it was cancelled the next one waits for that.
                if self._is_closed:
                    connection.terminate()
                elif not connection.is_closed() and (
                    not plan.has_session or await clear(connection, self._limit_s or _SHORT_S)
                ):
                    self._idle.append(connection)

    def _limit(self, connection: Connection) -> AbstractContextManager[object]:
        return nullcontext() if self._limit_s is None else TimeLimit(connection, self._limit_s)


class PostgresBeside:
    """What is done with a database on connections of their own; implements `Beside`."""

    def __init__(self, url: str, service: str, runtime: Runtime) -> None:
        self._url, self._service, self._runtime = url, service, runtime

    def now_us(self) -> int:
        """Return the wall clock, microseconds since 1970 UTC."""
        return self._runtime.wall_us()

    def keys(self) -> AbsentKeys:
        """Return a reader that knows of no keys."""
        return AbsentKeys(self._service)

    async def reader(self) -> PostgresReader:
        """Connect once more; a statement has no limit, and ends with who asked for it."""
        return await PostgresReader.open(self._url, service=self._service, runtime=self._runtime)

    async def others(self) -> list[str]:
        """Return the databases of the server that are marked as a service's, but for this one."""
        own = await self.reader()
        try:
            return [str(name) for (name,) in await own.read(_OTHERS)]
        finally:
            await own.close()

    async def back_up(self, folder: Path, *, system: str) -> Backup:  # noqa: ARG002
        """Raise `BadRequest`: the server's own tools make backups of it."""
        raise BadRequest(
            f"{place_of(self._url)} is a database of a PostgreSQL server, which is not copied to "
            f"{folder}: back it up with the server's own tools (pg_dump, or pg_basebackup with "
            "its write-ahead log)"
        )

    def __repr__(self) -> str:
        return f"<PostgresBeside {place_of(self._url)}>"


class PostgresReader:
    """Reads the committed state of a database that others may write; implements `StoreReader`."""

    dialect = POSTGRES

    def __init__(
        self, url: str, *, service: str, log_id: str, readers: Readers, beside: PostgresBeside
    ) -> None:
        self._url = url
        self.beside = beside
        self._readers = readers
        self.service = service
        self.log_id = log_id
        self.place = place_of(url)

    @classmethod
    async def open(
        cls, url: str, *, service: str, runtime: Runtime, mark: Accepted = NO_MARK
    ) -> PostgresReader:
        """Connect to a database to read it.

        Raises:
            StoreUnavailable: the server cannot be reached.
            StoreBroken: it refuses the role, or the database is another's, or no service's yet.
        """
        place = place_of(url)
        connection = await connect(url, service=service, is_read_only=True)
        try:
            with TimeLimit(connection, _SHORT_S):
                await check_mark(connection, mark, place)
                rows = await connection.fetch("select value from sm_meta where name = 'log_id'")
        except PostgresFault as error:
            if state_of(error) == "42P01":
                raise StoreBroken(
                    f"{service} has no tables yet: {place} gets them when the service starts"
                ) from error
            raise translate(error, path=place) from error
        finally:
            connection.terminate()
        readers = Readers(
            lambda: connect(url, service=service, is_read_only=True),
            Translations(),
            path=place,
            connections_max=1,
        )
        beside = PostgresBeside(url, service, runtime)
        return cls(url, service=service, log_id=str(rows[0][0]), readers=readers, beside=beside)

    async def reaches(self, place: str) -> bool:
        """Try to connect to another database as this service's role."""
        return await reaches(self._url, place, service=self.service)

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:
        """Query the committed state; a statement that writes is refused."""
        rows = await self._readers.query(sql, values)
        assert not isinstance(rows, Fetched)
        return rows

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Query the committed state, with the names of the columns."""
        fetched = await self._readers.query(sql, values, has_columns=True)
        assert isinstance(fetched, Fetched)
        return fetched

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        await self._readers.close()

    def __repr__(self) -> str:
        return f"<PostgresReader {self.place}>"


async def reaches(url: str, place: str, *, service: str) -> bool:
    """Return whether the role of an address can connect to another database of its server.

    Args:
        place: the name of that database, or an address with it.
    """
    other = urlsplit(place).path.removeprefix("/")
    try:
        connection = await connect(url, service=service, is_read_only=True, database=other)
    except StoreError:
        return False
    connection.terminate()
    return True
