"""The database of a service on PostgreSQL: any number of processes write, and none holds it alone.

Units are SERIALIZABLE transactions, an acknowledged commit is on the server's disk (E4), and the
role of a service reaches no other database (P1, if it was set up so).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from synchromesh.durations import ABOVE_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import StoreBroken
from synchromesh.runtime import Runtime
from synchromesh.store import (
    health,
    inbox,
    postgres_log,
    postgres_owners,
    postgres_transaction,
)
from synchromesh.store.copied_file import CopiedFile
from synchromesh.store.dialect import POSTGRES
from synchromesh.store.guard import refuse_in_unit
from synchromesh.store.migrations import PlannedMigration, check_schemas
from synchromesh.store.outage import OUTAGE
from synchromesh.store.owners import SharedOwners
from synchromesh.store.postgres_connection import (
    NO_MARK,
    Accepted,
    Connection,
    connect,
    place_of,
)
from synchromesh.store.postgres_copy import OPENED, PostgresCopy
from synchromesh.store.postgres_databases import check_mark
from synchromesh.store.postgres_errors import PostgresFault, translate
from synchromesh.store.postgres_job import UnitsOptions
from synchromesh.store.postgres_keys import AbsentKeys
from synchromesh.store.postgres_log import logs_of
from synchromesh.store.postgres_migrations import migrate, pending
from synchromesh.store.postgres_owners import PostgresDutyBook
from synchromesh.store.postgres_readers import (
    PostgresBeside,
    PostgresReader,
    Readers,
    reaches,
)
from synchromesh.store.postgres_units import Units
from synchromesh.store.postgres_wakeups import Wakeups
from synchromesh.store.taken_along import CopiedTable
from synchromesh.store.unit import Fetched, Migration, Row, Schema, SqlValue
from synchromesh.store.unit_store import StoreLoad, UnitStore
from synchromesh.telemetry import Tracer

STORE_SCHEMA = Schema(
    owner="synchromesh.store",
    migrations=(
        Migration(
            version=1,
            statements=(
                "create table sm_meta(name text primary key, value text not null)",
                *inbox.TABLES,
                *postgres_transaction.TABLES,
                *postgres_log.TABLES,
                *postgres_owners.TABLES,
                *health.TABLES,
            ),
            readable_by_min=1,
        ),
    ),
)

# Far longer than any store looks for the outcome of a commit.
_FORGOTTEN_AFTER_US = 7 * 86_400_000_000
_NOTE = "insert into sm_meta(name, value) values ($1, $2) on conflict(name) do nothing"
_CHANGE = "insert into sm_change(at_us, what, who, why) values ($1, $2, $3, $4)"
_HAS_META = "select to_regclass('sm_meta') is not null"
_META = "select name, value from sm_meta"
_NOTED = f"{_META} where name in ('log_id', 'service')"


@dataclass(frozen=True, slots=True)
class PostgresOptions:
    """Limits of a store.

    Attributes:
        connections_max: connections that write, and so units that run at once.
        readers_max: connections that read.
        unit_limit_s: how long a unit of work may run.
        backlog_max: units of work that may be under way or wait.
        look_every_s: how often it is looked for events to which a process that died gave no
            position.
        lease_s: after which time without a sign of life others do what this process did; it is
            renewed three times as often.

    Example:
        >>> PostgresOptions(connections_max=8).unit_limit_s
        5.0
    """

    connections_max: int = 4
    readers_max: int = 2
    unit_limit_s: float = 5.0
    backlog_max: int = 10_000
    look_every_s: float = 1.0
    lease_s: float = 6.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "connections_max readers_max backlog_max"),
            (ABOVE_0, "unit_limit_s look_every_s lease_s"),
        )


class PostgresStore(UnitStore):
    """Store data in a PostgreSQL database; `open` makes one, `close` closes its connections."""

    dialect = POSTGRES
    owners: SharedOwners

    def __init__(
        self,
        url: str,
        *,
        service: str,
        log_id: str,
        logs: Sequence[str],
        runtime: Runtime,
        options: PostgresOptions,
        tracer: Tracer | None,
    ) -> None:
        super().__init__(place_of(url), service, tracer)
        self.log_id = log_id
        self._url = url
        self.vault = AbsentKeys(service)
        self.beside = PostgresBeside(url, service, runtime)
        life_id = runtime.new_id()[:23]
        connected = partial(connect, url, service=service, replica=life_id)
        bounded = partial(connected, limit_s=options.unit_limit_s)
        self._sequencer = postgres_log.Sequencer(
            connected, logs, service=service, look_every_s=options.look_every_s
        )
        self._units = Units(
            partial(bounded, isolation="serializable"),
            UnitsOptions(
                self.place,
                service,
                life_id,
                logs,
                options.unit_limit_s,
                options.backlog_max,
                options.connections_max,
            ),
            runtime=runtime,
            vault=self.vault,
            number=self._sequencer.number,
            told=self._tell,
            went=lambda: self._notify(OUTAGE),
        )
        self._submit = self._units.submit
        self._wakeups = Wakeups(connected, self._hear, sender=life_id, service=service)
        self._readers = Readers(
            partial(bounded, is_read_only=True),
            self._units.plans,
            path=self.place,
            connections_max=options.readers_max,
            limit_s=options.unit_limit_s,
        )
        book = PostgresDutyBook(bounded, path=self.place, sender=life_id, lease_s=options.lease_s)
        self.owners = SharedOwners(book, life_id, self.listen, renew_s=options.lease_s / 3)
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        service: str,
        schemas: Sequence[Schema],
        runtime: Runtime,
        options: PostgresOptions = PostgresOptions(),
        tracer: Tracer | None = None,
        mark: Accepted = NO_MARK,
    ) -> PostgresStore:
        """Connect to a database, migrate its tables under a lock, and start.

        With a `tracer`, each unit of a trace gets a span of kind "unit": from its submission until
        it is durable. With a `mark`, a database that has another one is refused.

        Raises:
            StoreUnavailable: the server cannot be reached.
            StoreBroken: it refuses the role, is too old, or the database is another service's.
            StoreTooNew: a newer release made its tables, and this one may not use them.
            ContractError: a schema's migrations are not in order.
        """
        check_schemas((STORE_SCHEMA, *schemas))
        place = place_of(url)
        connection = await connect(url, service=service)
        try:
            await check_mark(connection, mark, place)
            log_id = await _prepare(connection, url, service, schemas, runtime)
        except PostgresFault as error:
            raise translate(error, path=place) from error
        finally:
            connection.terminate()
        return cls(
            url, service=service, log_id=log_id, logs=logs_of(schemas), runtime=runtime,
            options=options, tracer=tracer,
        )  # fmt: skip

    @property
    def commits(self) -> int:
        """The number of commits."""
        return sum(self._units.sizes.counts)

    def load(self) -> StoreLoad:
        """Return what was committed, and what waits for it."""
        places = {"units": self._units.places, "reads": self._readers.places}
        return StoreLoad(self._units.waiting, self._units.sizes, places)

    @property
    def broken(self) -> str | None:
        """Why the server cannot be reached for now; None where it can.

        It is connected again by itself; the topic `OUTAGE` is notified of both.
        """
        return self._units.outage.reason

    async def reaches(self, place: str) -> bool:
        """Try to connect to another database as this service's role."""
        return await reaches(self._url, place, service=self.service)

    async def read(self, sql: str, *values: SqlValue) -> list[Row]:
        """Query the committed state; a statement that writes is refused."""
        self._check_open()
        rows = await self._readers.query(sql, values)
        assert not isinstance(rows, Fetched)
        return rows

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Query the committed state, with the names of the columns."""
        self._check_open()
        fetched = await self._readers.query(sql, values, has_columns=True)
        assert isinstance(fetched, Fetched)
        return fetched

    async def close(self) -> None:
        """Finish queued units, and close the connections. Idempotent."""
        self._is_closed = True
        await self._readers.close()
        await self._units.close()
        await self.owners.close()
        await self._sequencer.close()
        await self._wakeups.close()

    def look(self, topics: set[str]) -> None:
        """Number what others have committed, and notify the listeners of topics of it."""
        self._sequencer.number(lambda: self._tell(topics))

    def __repr__(self) -> str:
        state = "broken" if self.broken else "closed" if self._is_closed else "open"
        return f"<PostgresStore {self.service} {state} commits {self.commits}>"

    def _check_open(self) -> None:
        refuse_in_unit("a read outside of it")
        if self._is_closed:
            raise StoreBroken(f"{self.place} is closed: nothing was read")
        if self.broken is not None:
            raise self._units.outage.error("a read")

    def _tell(self, topics: set[str]) -> None:
        if topics:
            self._wakeups.tell(topics)
        for topic in sorted(topics):
            self._notify(topic)

    def _hear(self, topic: str | None) -> None:
        """Notify the listeners here of what another process told; of None all of them."""
        for each in [topic] if topic is not None else [*self._listeners]:
            if each != OUTAGE:
                self._notify(each)


class PostgresStores:
    """Is a `StoreFactory` of PostgreSQL databases, one for each service.

    Args:
        url: the address of a service's database.
        mark: what is noted of it, if anything is; "" is not looked for.
    """

    def __init__(
        self,
        runtime: Runtime,
        url: Callable[[str], str],
        options: PostgresOptions = PostgresOptions(),
        mark: Callable[[str], Accepted] = lambda _: NO_MARK,
    ) -> None:
        self._runtime = runtime
        self._url = url
        self._options = options
        self._mark = mark

    async def open(
        self, service: str, schemas: Sequence[Schema], *, tracer: Tracer | None = None
    ) -> PostgresStore:
        """Open the database of a service, as `PostgresStore.open` says."""
        return await PostgresStore.open(
            self._url(service),
            service=service,
            schemas=schemas,
            runtime=self._runtime,
            options=self._options,
            tracer=tracer,
            mark=self._mark(service),
        )

    async def dry_run(
        self, service: str, schemas: Sequence[Schema], lacks: Callable[[], None]
    ) -> None:
        """Check that the migrations are in order; they are tried where they are applied."""
        if await self.plan(service, schemas):
            lacks()

    async def plan(self, service: str, schemas: Sequence[Schema]) -> list[PlannedMigration]:
        """Return the migrations that a database lacks; raises as `PostgresStore.open` does."""
        async with self._connected(service, schemas) as (connection, all_of, place):
            return await pending(connection, all_of, path=place)

    async def migrate(
        self, service: str, schemas: Sequence[Schema], *, who: str, why: str
    ) -> list[PlannedMigration]:
        """Run the migrations that a database lacks, record who asked and why; return what ran.

        Its service may run meanwhile. Raises as `PostgresStore.open` does.
        """
        async with self._connected(service, schemas) as (connection, all_of, place):
            found = await pending(connection, all_of, path=place)
            url, runtime = self._url(service), self._runtime
            await _prepare(connection, url, service, schemas, runtime)
            if found:
                ran = ", ".join(f"{each.owner} {each.version}" for each in found)
                await connection.execute(_CHANGE, runtime.wall_us(), f"migrated: {ran}", who, why)
            return found

    @asynccontextmanager
    async def _connected(
        self, service: str, schemas: Sequence[Schema]
    ) -> AsyncIterator[tuple[Connection, Sequence[Schema], str]]:
        """Connect, check whose the database is, and translate errors."""
        url, all_of = self._url(service), (STORE_SCHEMA, *schemas)
        check_schemas(all_of)
        connection = await connect(url, service=service)
        try:
            await check_mark(connection, self._mark(service), place_of(url))
            yield connection, all_of, place_of(url)
        except PostgresFault as error:
            raise translate(error, path=place_of(url)) from error
        finally:
            connection.terminate()

    async def copy(
        self,
        service: str,
        schemas: Sequence[Schema],
        file: CopiedFile,
        *,
        change: tuple[int, str, str],
        is_rehearsal: bool,
        told: Callable[[CopiedTable], None],
    ) -> list[CopiedTable] | None:
        """Copy a service's SQLite file to its database, which is empty, as `PostgresCopy.run` says.

        Raises also as `open` does where the server cannot be used.
        """
        async with self._connected(service, schemas) as (connection, all_of, place):
            copying = PostgresCopy(connection, file, all_of, place=place, told=told)
            return await copying.run(service, change, is_rehearsal=is_rehearsal)

    async def noted(self, service: str) -> dict[str, str] | None:
        """Return what a database notes of itself; None where it has no tables of a service.

        Raises as `open` does where the server cannot be used.
        """
        async with self._connected(service, ()) as (connection, _, _):
            if not await connection.fetchval(_HAS_META):
                return None
            return {str(name): str(each) for name, each in await connection.fetch(_META)}

    def place(self, service: str) -> str:
        """Return where the database of a service is, without a password."""
        return place_of(self._url(service))

    async def open_reader(self, service: str) -> PostgresReader:
        """Open the database of a service to read it, as `PostgresReader.open` says."""
        return await PostgresReader.open(
            self._url(service), service=service, runtime=self._runtime, mark=self._mark(service)
        )

    def __repr__(self) -> str:
        return f"<PostgresStores {place_of(self._url('NAME'))}>"


async def _prepare(
    connection: Connection, url: str, service: str, schemas: Sequence[Schema], runtime: Runtime
) -> str:
    """Migrate a database, note whose it is, and return the id of its log."""
    place = place_of(url)
    if await connection.fetchval(_HAS_META):
        _check_owner(await connection.fetch(_NOTED), service, place)
    await migrate(connection, (STORE_SCHEMA, *schemas), path=place)
    await connection.execute(_NOTE, "service", service)
    await connection.execute(_NOTE, "log_id", runtime.new_id())
    await connection.execute(_NOTE, OPENED, str(runtime.wall_us()))
    noted = _check_owner(await connection.fetch(_NOTED), service, place)
    await connection.execute(postgres_transaction.FORGET, runtime.wall_us() - _FORGOTTEN_AFTER_US)
    return noted["log_id"]


def _check_owner(rows: Sequence[Sequence[str]], service: str, place: str) -> dict[str, str]:
    """Return what is noted of a database; raise `StoreBroken` where it is another service's."""
    noted = {str(name): str(value) for name, value in rows}
    owner = noted.get("service", service)
    if owner != service:
        raise StoreBroken(
            f"{place} is the database of service {owner!r}, and not of {service!r}: a service has "
            "one of its own; give it the address of another"
        )
    return noted
