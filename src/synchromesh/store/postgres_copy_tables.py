"""The tables of a copy: made by the migrations that the file has had, and then as it goes on.

So they are those of a service that has always been here, and no picture of SQLite's. What no
migration has made, as the tables of a projection, is made by the file's own statements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from synchromesh.errors import ConstraintFailed, StatementFailed, StoreBroken, StoreError
from synchromesh.store.copied_file import CopiedFile, Made
from synchromesh.store.copied_rows import CopiedColumn, quoted
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_errors import PostgresFault, state_of, translate
from synchromesh.store.postgres_log import logs_of, prepare_logs
from synchromesh.store.postgres_migrations import run_migration
from synchromesh.store.unit import Schema

TABLES = (
    "select relname from pg_class where relkind in ('r', 'p') "
    "and relnamespace = current_schema()::regnamespace order by 1"
)
"""The tables of a database."""

_MADE = (
    "select relname from pg_class where relnamespace = current_schema()::regnamespace "
    "union all select tgname from pg_trigger where not tgisinternal"
)
_COLUMNS = (
    "select attname, atttypid::regtype::text from pg_attribute where attrelid = $1::text::regclass "
    "and attnum > 0 and not attisdropped and attgenerated = ''"
)
_REFERENCES = (
    "select conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) "
    "from pg_constraint where contype = 'f' and connamespace = current_schema()::regnamespace"
)
_NUMBERED = (
    "select attname from pg_attribute where attrelid = $1::text::regclass and attidentity = 'd'"
)
_NOT_THERE = "23503"


@dataclass(frozen=True, slots=True)
class TargetTable:
    """A table of the file, and what it is here."""

    source: str
    name: str
    columns: list[CopiedColumn]

    @property
    def quoted(self) -> str:
        """The name as SQL has it."""
        return quoted(self.name)


class CopyTables:
    """Makes the tables that a file has, within the transaction of a connection.

    Args:
        schemas: those of the service here, the store's own first.
        place: what messages call the database.
    """

    def __init__(
        self, connection: Connection, file: CopiedFile, schemas: Sequence[Schema], *, place: str
    ) -> None:
        self._connection = connection
        self._file = file
        self._schemas = schemas
        self._place = place
        self._references: list[tuple[str, str, str]] = []

    async def make(self) -> list[TargetTable]:
        """Make all tables, empty and without references, and return those of the file.

        Raises:
            StatementFailed: the server refuses a table of the service's.
            StoreBroken: it has a column that nothing has made here.
        """
        store, *others = self._schemas
        for migration in store.migrations:
            await run_migration(self._connection, store.owner, migration, path=self._place)
        known = [each.owner for each in others]
        for owner in (*known, *sorted({*self._file.applied} - {store.owner, *known})):
            for migration in self._file.applied.get(owner, ()):
                await run_migration(self._connection, owner, migration, path=self._place)
        there = await self._names(_MADE)
        for made in self._file.made():
            if _found(made.name, there) is None:
                await self._make_alone(made)
        there = await self._names(TABLES)
        tables = [await self._table(name, there) for name in self._file.tables()]
        self._references = await self._connection.fetch(_REFERENCES)
        for table, name, _ in self._references:
            await self._connection.execute(f"alter table {table} drop constraint {name}")
        for each in tables:
            await self._connection.execute(f"alter table {each.quoted} disable trigger user")
        # What migrations have put into them is in the file, as it is there now.
        await self._connection.execute(f"truncate {', '.join(each.quoted for each in tables)}")
        return tables

    async def go_on(self, tables: Sequence[TargetTable]) -> None:
        """Put references back, and have numbers and positions go on after the last ones.

        Raises:
            ConstraintFailed: a row refers to one that is not there.
        """
        for table, name, definition in self._references:
            try:
                await self._connection.execute(
                    f"alter table {table} add constraint {name} {definition}"
                )
            except PostgresFault as error:
                if state_of(error) != _NOT_THERE:
                    raise
                raise ConstraintFailed(
                    f"{self._file.path}: a row of {table} refers to one that is not there "
                    f"({name}): synchromesh db verify names it; nothing was copied"
                ) from error
        await prepare_logs(self._connection, logs_of(self._schemas))
        logs = {str(name) for (name,) in await self._connection.fetch("select name from sm_log")}
        for each in tables:
            last = self._file.last(each.source)
            await self._connection.execute(f"alter table {each.quoted} enable trigger user")
            if each.name in logs:
                await self._connection.execute(
                    "update sm_log set last = greatest($2, (select coalesce(max(position), 0) from "
                    f"{each.quoted})) where name = $1",
                    each.name,
                    last,
                )
            for (column,) in await self._connection.fetch(_NUMBERED, each.quoted):
                await self._connection.execute(
                    f"select setval(pg_get_serial_sequence($1, $2), n) from (select greatest($3, "
                    f"(select max({quoted(column)}) from {each.quoted})) as n) as last where n > 0",
                    each.quoted,
                    column,
                    last,
                )
            await self._connection.execute(f"analyze {each.quoted}")

    async def _table(self, source: str, there: Sequence[str]) -> TargetTable:
        name = _found(source, there)
        if name is None:
            raise StoreBroken(f"{self._place} did not get the table {source} of {self._file.path}")
        types = dict(await self._connection.fetch(_COLUMNS, quoted(name)))
        columns = []
        for column in self._file.columns(source):
            found = _found(column, types)
            if found is None:
                raise StoreBroken(
                    f"{self._file.path}: table {source} has a column {column}, which no migration "
                    "has made; nothing was copied: write a migration for it, or drop it"
                )
            columns.append(CopiedColumn(column, found, types[found]))
        return TargetTable(source, name, columns)

    async def _make_alone(self, made: Made) -> None:
        """Make what is no migration's, as a projection's tables and their views are."""
        what = f"{self._file.path}: the {made.kind} {made.name}, which no migration has made,"
        try:
            await self._connection.fetch(made.sql)
        except PostgresFault as error:
            fault = translate(error, path=f"{what} cannot be made on PostgreSQL", sql=made.sql)
            raise _copied_none(fault) from error

    async def _names(self, sql: str) -> list[str]:
        return [str(name) for (name,) in await self._connection.fetch(sql)]


def _copied_none(fault: StoreError) -> StoreError:
    if not isinstance(fault, StatementFailed):
        return fault
    return StatementFailed(f"{fault.message}; nothing was copied")


def _found(name: str, names: Iterable[str]) -> str | None:
    """Return a name as it is here, where one that was not quoted is in lower case."""
    names = [*names]
    return next((each for each in (name, name.lower()) if each in names), None)
