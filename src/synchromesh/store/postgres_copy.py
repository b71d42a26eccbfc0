"""Copies a SQLite file into an empty PostgreSQL database: in one transaction, or not at all.

What was written is read back and compared with what was read, before the commit. The database
notes which state of which file it has, so that who did not hear how a copy ended asks again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence

from synchromesh.errors import ConstraintFailed, StoreBroken, StoreUnavailable
from synchromesh.store.copied_file import CopiedFile
from synchromesh.store.copied_rows import (
    Misfit,
    TableLines,
    TableSum,
    columns_to_sum,
    quoted,
)
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_copy_tables import TABLES, CopyTables, TargetTable
from synchromesh.store.postgres_errors import PostgresFault, is_lost, state_of, translate
from synchromesh.store.postgres_migrations import MIGRATING
from synchromesh.store.taken_along import FORGET, CopiedTable
from synchromesh.store.unit import Schema

COPIED = "copied_state"
"""The name in `sm_meta` of the state of the file that a database was copied from."""
OPENED = "opened"
"""The name in `sm_meta` of when a database was first opened to be written."""

_LOCK_WAIT_S = 30
_BEGIN = f"begin isolation level read committed; set local lock_timeout = '{_LOCK_WAIT_S}s'"
_LOCK = f"select pg_advisory_xact_lock({MIGRATING})"
_LOCK_TIMED_OUT = "55P03"
_NOTED = "select name, value from sm_meta"
_NOTE = (
    "insert into sm_meta(name, value) values ($1, $2) "
    "on conflict(name) do update set value = excluded.value"
)
_CHANGE = "insert into sm_change(at_us, what, who, why) values ($1, $2, $3, $4)"
# Says what drops all that the role has made here; what others have put there, as extensions, stays,
# and what belongs to another thing goes with that. `drop owned` would also take from a superuser's
# role what it was granted, and cannot be asked for by the one that the server was made with.
_EMPTY = """
    with ours(kind, name, class, id) as (
        select case relkind when 'v' then 'view' when 'm' then 'materialized view'
                   when 'S' then 'sequence' else 'table' end,
               oid::regclass::text, 'pg_class'::regclass, oid
        from pg_class where relkind in ('r', 'p', 'v', 'm', 'S')
        and relowner = current_user::regrole and relnamespace = current_schema()::regnamespace
        union all
        select 'routine', oid::regprocedure::text, 'pg_proc'::regclass, oid from pg_proc
        where proowner = current_user::regrole and pronamespace = current_schema()::regnamespace
        union all
        select 'type', oid::regtype::text, 'pg_type'::regclass, oid from pg_type
        where typowner = current_user::regrole and typnamespace = current_schema()::regnamespace
        and (typtype in ('d', 'e', 'r') or typtype = 'c' and exists (
            select from pg_class where pg_class.oid = typrelid and relkind = 'c'))
    )
    select format('drop %s if exists %s cascade', kind, name) from ours where not exists (
        select from pg_depend where classid = class and objid = id and deptype in ('e', 'i', 'a'))
"""
# Each unit of a service leaves a mark, and a copy leaves none.
_IS_UNUSED = "select not exists (select from sm_commit)"
# What the server says of where it is in what it is sent.
_WHERE = re.compile(r"COPY .+?, line (\d+)(?:, column ([^:]+))?")
_FETCHED = 2000


class PostgresCopy:
    """Copies one file over a connection that has no transaction and no limit for a statement.

    Args:
        schemas: those of the service here, the store's own first.
        place: what messages call the database.
        told: called with each table whose rows are there; what it raises ends the copy.
    """

    def __init__(
        self,
        connection: Connection,
        file: CopiedFile,
        schemas: Sequence[Schema],
        *,
        place: str,
        told: Callable[[CopiedTable], None],
    ) -> None:
        self._connection = connection
        self._file = file
        self._tables = CopyTables(connection, file, schemas, place=place)
        self._place = place
        self._told = told

    async def run(
        self, service: str, change: tuple[int, str, str], *, is_rehearsal: bool
    ) -> list[CopiedTable] | None:
        """Copy the file and commit; return its tables, or None where its state is there already.

        Args:
            change: when, who and why, as it is recorded.
            is_rehearsal: all is done, and then rolled back.

        Raises:
            ConstraintFailed: the server cannot hold a value; it says where that is.
            StoreBroken: the database is not empty, or what was read back differs.
            StoreUnavailable: the connection was lost at the commit: run it again.
            StoreError: the server refuses a table.
        """
        await self._connection.execute(_BEGIN)
        await self._lock()
        if await self._is_there():
            return None
        tables = await self._tables.make()
        copied = [await self._fill(each) for each in tables]
        await self._tables.go_on(tables)
        at_us, who, why = change
        for name, value in (("service", service), (COPIED, self._file.state)):
            await self._connection.execute(_NOTE, name, value)
        what = f"copied from a SQLite file, log {self._file.log_id}"
        await self._connection.execute(_CHANGE, at_us, what, who, why)
        await self._connection.execute(FORGET)
        if is_rehearsal:
            await self._connection.execute("rollback")
        else:
            await self._commit()
        return copied

    async def _lock(self) -> None:
        """Wait for who migrates the database, or copies to it."""
        try:
            await self._connection.execute(_LOCK)
        except PostgresFault as error:
            if state_of(error) != _LOCK_TIMED_OUT:
                raise
            raise StoreBroken(
                f"{self._place} has been migrated, or copied to, by another process for the last "
                f"{_LOCK_WAIT_S} s: let it end, then run this again"
            ) from error

    async def _is_there(self) -> bool:
        """Return whether it has this copy. Raises StoreBroken where it has anything else.

        An older copy that nobody has written to is no more than the file, and makes room for it: so
        is one of which nobody heard that it was committed, and whose service went on with its file.
        """
        tables = [str(name) for (name,) in await self._connection.fetch(TABLES)]
        if not tables:
            return False
        noted = {}
        if "sm_meta" in tables:
            noted = dict(await self._connection.fetch(_NOTED))
        if noted.get(COPIED) == self._file.state:
            return True
        why = f"it has {len(tables)} tables, such as {tables[0]}"
        if COPIED in noted and noted.get("log_id") == self._file.log_id:
            if OPENED not in noted and await self._connection.fetchval(_IS_UNUSED):
                for (drop,) in await self._connection.fetch(_EMPTY):
                    await self._connection.execute(drop)
                return False
            why = "it has an older copy of the file, and both have been written to since"
        raise StoreBroken(
            f"{self._place} is not empty: {why}. Nothing was copied; where nobody needs what is "
            "there, drop the database and have it made anew: synchromesh db create (of the server "
            "that dev brings: remove .synchromesh/postgres while nothing runs)"
        )

    async def _fill(self, table: TargetTable) -> CopiedTable:
        """Write the rows of a table, read them back, and compare."""
        lines = TableLines(table.columns)
        try:
            await self._connection.copy_to_table(
                table.name,
                source=self._lines(table, lines),
                columns=[each.name for each in table.columns],
                format="text",
            )
        except Misfit as error:
            row = self._file.place(table.source, lines.sum.rows)
            raise self._not_held(table, error.column, row, str(error)) from error
        except PostgresFault as error:
            found = _WHERE.search(str(getattr(error, "context", None) or ""))
            if is_lost(error) or found is None:
                raise
            row = self._file.place(table.source, int(found[1]) - 1)
            fault = translate(error, path="the server says").message
            raise self._not_held(table, found[2] or "", row, fault) from error
        back = TableSum(table.columns)
        sql = f"select {columns_to_sum(table.columns)} from {table.quoted}"
        # By a name for each table: the driver knows the columns of a statement by its text.
        cursor = quoted(f"{table.name} back")
        await self._connection.execute(f"declare {cursor} no scroll cursor for {sql}")
        while rows := await self._connection.fetch(f"fetch {_FETCHED} from {cursor}"):
            back.add(rows)
        await self._connection.execute(f"close {cursor}")
        if (back.sum.rows, back.sum.text()) != (lines.sum.rows, lines.sum.text()):
            raise StoreBroken(
                f"{self._file.path}: table {table.source} has {lines.sum.rows} rows with the sum "
                f"{lines.sum.text()}, and {back.sum.rows} with {back.sum.text()} came back from "
                f"{self._place}: a type of its columns rounds or cuts what SQLite keeps. Nothing "
                "was copied"
            )
        copied = CopiedTable(table.source, lines.sum.rows, lines.sum.text())
        self._told(copied)
        return copied

    async def _lines(self, table: TargetTable, lines: TableLines) -> AsyncIterator[bytes]:
        for rows in self._file.batches(table.source, [each.source for each in table.columns]):
            yield lines.write(rows)

    def _not_held(self, table: TargetTable, column: str, row: str, reason: str) -> ConstraintFailed:
        where = f"table {table.source}, {f'column {column}, ' if column else ''}{row}"
        return ConstraintFailed(
            f"{self._file.path}: {where}: PostgreSQL cannot hold it: {reason}. Nothing was copied: "
            "change it in the service, and copy again"
        )

    async def _commit(self) -> None:
        try:
            await self._connection.execute("commit")
        except PostgresFault as error:
            if not is_lost(error):
                raise
            raise StoreUnavailable(
                f"{self._place}: the connection was lost at the commit, and whether the copy is "
                "there is not known: run it again, which looks"
            ) from error
