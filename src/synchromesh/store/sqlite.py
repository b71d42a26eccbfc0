"""The database of a service in a SQLite file: one process owns it, a worker writes, the loop reads.

WAL and `synchronous=FULL`: an acknowledged commit is on the disk (E4). The connections can reach no
other file (P1).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import StoreBroken, StoreLocked, StoreUnavailable
from synchromesh.runtime import DiskRuntime, FileLock
from synchromesh.store import health, inbox, writer
from synchromesh.store.dialect import SQLITE
from synchromesh.store.guard import refuse_in_unit
from synchromesh.store.migrations import (
    empty_copy,
    migrate,
    missing_migrations,
    read_applied,
    rehearse,
)
from synchromesh.store.sqlite_errors import SqliteFault, translate
from synchromesh.store.sqlite_reader import SqliteBeside, SqliteReader, attaches, query
from synchromesh.store.unit import (
    Fetched,
    Migration,
    Row,
    Schema,
    SqlValue,
)
from synchromesh.store.unit_store import StoreLoad, UnitStore
from synchromesh.store.vault import SqliteVault
from synchromesh.store.writer import Writer
from synchromesh.telemetry import Tracer

STORE_SCHEMA = Schema(
    owner="synchromesh.store",
    migrations=(
        Migration(
            version=1,
            statements=(
                "create table sm_meta(name text primary key, value text not null)",
                *inbox.TABLES,
                *writer.TABLES,
                *health.TABLES,
            ),
            readable_by_min=1,
        ),
    ),
)

_log = logging.getLogger("synchromesh.migrations")

_OWNER_POLL_S = 0.05
_HAS_META = "select 1 from sqlite_master where name = 'sm_meta'"
# Of few files: who reads the mark is imported then.
_IS_TAKEN = "select 1 from sm_meta where name = 'taken_to'"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Limits of a store.

    Attributes:
        owner_wait_s: how long a second start waits for the file's owner to end.
        unit_limit_s: how long a unit of work may run.
        busy_wait_s: how long a statement waits for a foreign connection that holds the file.
        backlog_max: units of work that may wait for the writer.
        pages_max: pages (of 4096 bytes) that the file may have; 0 sets no limit.

    Example:
        >>> StoreOptions(pages_max=250_000).unit_limit_s
        5.0
    """

    owner_wait_s: float = 10.0
    unit_limit_s: float = 5.0
    busy_wait_s: float = 0.25
    backlog_max: int = 10_000
    pages_max: int = 0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_0, "owner_wait_s busy_wait_s pages_max"),
            (ABOVE_0, "unit_limit_s"),
            (FROM_1, "backlog_max"),
        )


class SqliteStore(UnitStore):
    """Store data in a SQLite file; `open` makes one, `close` releases the file to the next owner.

    Example:
        >>> import tempfile
        >>> from synchromesh.runtime import RealRuntime
        >>> table = "create table stock(sku text, n integer)"
        >>> schema = Schema("shop", (Migration(1, (table,), readable_by_min=1),))
        >>> async def main(path: str) -> list[Row]:
        ...     store = await SqliteStore.open(
        ...         path, service="shop", schemas=[schema], runtime=RealRuntime()
        ...     )
        ...     async def fill(unit: Unit) -> None:
        ...         await unit.execute("insert into stock values (?, ?)", "SX90", 3)
        ...     await store.write(fill, name="fill")
        ...     rows = await store.read("select sku, n from stock")
        ...     await store.close()
        ...     return rows
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     asyncio.run(main(f"{folder}/shop.db"))
        [('SX90', 3)]
    """

    dialect = SQLITE

    def __init__(
        self,
        *,
        path: str,
        service: str,
        log_id: str,
        lock: FileLock,
        reader: sqlite3.Connection,
        tracer: Tracer | None,
        beside: SqliteBeside,
    ) -> None:
        super().__init__(path, service, tracer)
        self.beside = beside
        self._log_id = log_id
        self._lock = lock
        self._reader = reader
        self._writer: Writer
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        path: str,
        *,
        service: str,
        schemas: Sequence[Schema],
        runtime: DiskRuntime,
        options: StoreOptions = StoreOptions(),
        tracer: Tracer | None = None,
    ) -> SqliteStore:
        """Lock a file, migrate its tables and start its writer.

        With a `tracer`, each unit of a trace gets a span of kind "unit": from its submission until
        it is durable.

        Raises:
            StoreLocked: another process still owns it after `owner_wait_s`.
            StoreTooNew: a newer release made its tables, and this one may not use them.
            StoreReadOnly: it cannot be written.
            StoreBroken: it is not a database, is damaged, or its folder does not exist; or it was
                copied to a server, and goes on there.
            ContractError: a schema's migrations are not in order.
        """
        lock = await _own(path, runtime, options.owner_wait_s)
        opened: list[sqlite3.Connection] = []

        def connect() -> sqlite3.Connection:
            return _connect(path, runtime, options)

        try:
            opened.append(connect())
            log_id = await _prepare(opened[0], (STORE_SCHEMA, *schemas), runtime, path)
            opened.append(reader := _connect(path, runtime, options, read_only=True))
            # From its first read on it keeps the log and the log's index, whatever becomes of the
            # writer's connection: no commit that failed is found in the log by who opens it anew.
            reader.execute("select count(*) from sm_meta").fetchone()
            store = cls(
                path=path, service=service, log_id=log_id, lock=lock, reader=reader, tracer=tracer,
                beside=SqliteBeside(path, service, runtime),
            )  # fmt: skip
            store._writer = Writer(
                opened[0],
                connect,
                path=path,
                service=service,
                runtime=runtime,
                notify=store._notify,
                limit_s=options.unit_limit_s,
                backlog_max=options.backlog_max,
            )
            store._submit = store._writer.submit
        except BaseException as error:
            for each in opened:
                each.close()
            lock.release()
            if isinstance(error, SqliteFault):
                raise translate(error, path=path) from error
            raise
        return store

    @property
    def vault(self) -> SqliteVault:
        """The keys of the service's subjects."""
        vault: SqliteVault = self._writer.vault
        return vault

    @property
    def log_id(self) -> str:
        """The id of the event log in it, made with the file."""
        return self._log_id

    @property
    def commits(self) -> int:
        """The number of group commits."""
        return sum(self._writer.sizes.counts)

    def load(self) -> StoreLoad:
        """Return what was committed, and what waits for it."""
        return StoreLoad(self._writer.pending, self._writer.sizes)

    @property
    def broken(self) -> str | None:
        """Why the store is closed for now, after faults of the file; None while it is open.

        It is opened again by itself; the topic `OUTAGE` is notified of both.
        """
        return self._writer.outage.reason

    async def reaches(self, place: str) -> bool:
        """Try to attach another file, past what is checked of statements."""
        return attaches(self._reader, place)

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:
        """Query the committed state; a statement that writes is refused."""
        return self._query(sql, values)

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Query the committed state, with the names of the columns."""
        names: list[str] = []
        rows = self._query(sql, values, names)
        return Fetched(tuple(names), rows)

    def _query(
        self, sql: str, values: tuple[SqlValue, ...], names: list[str] | None = None
    ) -> list[Row]:
        refuse_in_unit("a read outside of it")
        if self._is_closed:
            raise StoreBroken(f"{self.place} is closed: nothing was read")
        if self.broken is not None:
            raise self._writer.outage.error("a read")
        try:
            return query(self._reader, sql, values, path=self.place, names=names)
        except StoreUnavailable:
            # Whether it was one page, or the whole disk, is found by writing.
            self._writer.doubt()
            raise

    async def close(self) -> None:
        """Finish queued units, close the file and release its lock. Idempotent."""
        self._is_closed = True
        # The one that closes last empties the write-ahead log into the file: it must be the writer.
        self._reader.close()
        await self._writer.close()
        self.vault.close()
        self._lock.release()

    def __repr__(self) -> str:
        state = "broken" if self.broken else "closed" if self._is_closed else "open"
        return f"<SqliteStore {self.service} {state} commits {self.commits}>"


class SqliteStores:
    """Is a `StoreFactory` of SQLite files, one for each service.

    Args:
        place: the path of a service's file.
        options: the bounds of a service's store.
    """

    def __init__(
        self,
        runtime: DiskRuntime,
        place: Callable[[str], str],
        options: Callable[[str], StoreOptions] = lambda _: StoreOptions(),
    ) -> None:
        self._runtime = runtime
        self._place = place
        self._options = options

    async def open(
        self, service: str, schemas: Sequence[Schema], *, tracer: Tracer | None = None
    ) -> SqliteStore:
        """Open the file of a service, as `SqliteStore.open` says."""
        return await SqliteStore.open(
            self._place(service),
            service=service,
            schemas=schemas,
            runtime=self._runtime,
            options=self._options(service),
            tracer=tracer,
        )

    async def dry_run(
        self, service: str, schemas: Sequence[Schema], lacks: Callable[[], None]
    ) -> None:
        """Try migrations on empty copies of the tables in a service's file."""
        path, runtime = self._place(service), self._runtime
        with empty_copy(path, runtime.disk) as copy:
            if copy is None or missing_migrations(read_applied(copy), schemas, path=path):
                lacks()
            if copy is not None:
                await runtime.blocking(
                    partial(rehearse, copy, schemas, path=path),
                    cut=copy.interrupt,
                    still=lambda: None,
                )

    async def open_reader(self, service: str) -> SqliteReader:
        """Open the file of a service to read it, as `SqliteReader.open` says."""
        return SqliteReader.open(self._place(service), service=service, runtime=self._runtime)

    def __repr__(self) -> str:
        return f"<SqliteStores {self._place('NAME')}>"


async def _own(path: str, runtime: DiskRuntime, wait_s: float) -> FileLock:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + wait_s
    while True:
        try:
            lock = runtime.disk.try_lock(path)
        except OSError as error:
            raise StoreBroken(
                f"{path} cannot be owned ({error.strerror}): the folder must exist and the process "
                "may write it"
            ) from error
        if lock is not None:
            return lock
        if loop.time() >= until_s:
            raise StoreLocked(
                f"{path} is owned by {runtime.disk.owner_of(path)}, still after {wait_s:g} s; a "
                "SQLite file has one owner: end that process, or give this one another path"
            )
        await asyncio.sleep(_OWNER_POLL_S)


def _connect(
    path: str,
    runtime: DiskRuntime,
    options: StoreOptions,
    *,
    read_only: bool = False,
) -> sqlite3.Connection:
    connection = runtime.disk.connect(path, read_only=read_only)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.execute(f"pragma busy_timeout = {int(options.busy_wait_s * 1000)}")
        if read_only:
            connection.execute("pragma query_only = on")
            return connection
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        if options.pages_max:
            connection.execute(f"pragma max_page_count = {int(options.pages_max)}")
    except BaseException:
        connection.close()
        raise
    return connection


async def _prepare(
    connection: sqlite3.Connection, schemas: Sequence[Schema], runtime: DiskRuntime, path: str
) -> str:
    """Migrate a file, in a thread; return the id of its log.

    Cancelled, it is rolled back to the last migration that was committed.
    """
    running = ""

    def runs(what: str) -> None:
        nonlocal running
        running = what

    def still() -> None:
        if running:
            _log.warning("migrating %s …; stopped before it ends, it is rolled back whole", running)

    return await runtime.blocking(
        lambda: _migrated(connection, schemas, runtime, path, runs),
        cut=connection.interrupt,
        still=still,
    )


def _migrated(
    connection: sqlite3.Connection,
    schemas: Sequence[Schema],
    runtime: DiskRuntime,
    path: str,
    runs: Callable[[str], None],
) -> str:
    if connection.execute(_HAS_META).fetchall() and connection.execute(_IS_TAKEN).fetchall():
        from synchromesh.store.taken_along import refuse_taken

        refuse_taken(connection, path)
    # Off for migrations, which may rebuild a table that others refer to.
    connection.execute("pragma foreign_keys = off")
    migrate(connection, schemas, path=path, runs=runs)
    connection.execute("pragma foreign_keys = on")
    connection.execute(
        "insert into sm_meta(name, value) values ('log_id', ?) on conflict(name) do nothing",
        (runtime.new_id(),),
    )
    return str(connection.execute("select value from sm_meta where name = 'log_id'").fetchone()[0])
