"""A SQLite file that is copied: one state of it, its tables and rows, and whether that may be."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from synchromesh.errors import ContractError, StoreBroken, StoreTooNew
from synchromesh.runtime import Disk
from synchromesh.store.copied_rows import quoted
from synchromesh.store.migrations import missing_migrations, read_applied
from synchromesh.store.sqlite_errors import SqliteFault, translate
from synchromesh.store.taken_along import TakenTo, read_mark
from synchromesh.store.unit import Migration, Row, Schema

# Rows that are turned into lines at a time.
_BATCH = 500
# The record of migrations is made by running them; the other is the engine's own, without rows.
_ENGINES = frozenset({"sm_migration", "sm_commit"})
_MADE = (
    "select type, name, tbl_name, sql from sqlite_master where sql is not null "
    "and substr(name, 1, 7) <> 'sqlite_' order by type = 'view', type <> 'table', rowid"
)
# Generated columns are the target's own to compute; 1 is hidden, of a virtual table.
_COLUMNS = "select name, pk from pragma_table_xinfo(?) where hidden = 0 order by cid"
_CHANGES = "select (select count(*) from sm_migration), (select count(*) from sm_change)"


class Made(NamedTuple):
    """What a file is made of: a table, index, view or trigger, with its statement."""

    kind: str
    name: str
    table: str
    sql: str


class CopiedFile:
    """One state of a service's SQLite file, which is only read.

    Attributes:
        log_id: of its event log.
        state: tells this state of the file from each that its service had before or has after.
        applied: the migrations that were run on it, by owner.
        mark: where it was taken to before; None for nowhere.
    """

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.path = path
        self._connection = connection
        self.applied: Mapping[str, tuple[Migration, ...]] = read_applied(connection)
        meta = dict(connection.execute("select name, value from sm_meta").fetchall())
        self.log_id = str(meta["log_id"])
        self.mark: TakenTo | None = read_mark(connection)
        self._has_keys = "keys_id" in meta
        changes = connection.execute(_CHANGES).fetchone()
        self.state = f"{self.log_id}/{self.last('sm_commit')}/{changes[0]}/{changes[1]}"

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str, *, service: str, disk: Disk) -> Iterator[CopiedFile]:
        """Open a file to read one state of it, whoever writes to it meanwhile.

        Raises:
            StoreBroken: there is none, it is damaged, or it is no database of a service.
        """
        if disk.file_id(path) is None:
            raise StoreBroken(f"{service} has no SQLite file at {path}: there is nothing to copy")
        try:
            with contextlib.closing(disk.connect(path, read_only=True)) as connection:
                connection.execute("pragma query_only = on")
                connection.execute("begin")
                # Text that is no UTF-8 is told with its place, and ends no query.
                connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
                if not connection.execute(
                    "select 1 from sqlite_master where name = 'sm_meta'"
                ).fetchall():
                    raise StoreBroken(f"{path} is no database of a service")
                yield cls(connection, path)
        except SqliteFault as error:
            raise translate(error, path=path) from error

    def check(self, schemas: Sequence[Schema]) -> None:
        """Check that this release knows all of a file that is whole, and that it may be copied.

        Raises:
            StoreTooNew: a newer release has made its tables.
            ContractError: a migration has been edited, or there are personal values.
            StoreBroken: the file is damaged.
        """
        missing_migrations(self.applied, schemas, path=self.path)
        for schema in schemas:
            ours, found = len(schema.migrations), len(self.applied.get(schema.owner, ()))
            if found > ours:
                raise StoreTooNew(
                    f"{self.path}: the tables of {schema.owner!r} are at version {found}, of a "
                    f"newer release, and this one knows {ours}: copy it with that release"
                )
        if self._has_keys:
            raise ContractError(
                f"{self.path} has personal values, whose keys are in a file beside it and "
                "cannot be kept with PostgreSQL yet: keep this service on SQLite ([engine] sqlite)"
            )
        said = self._connection.execute("pragma quick_check(1)").fetchone()[0]
        if said != "ok":
            raise StoreBroken(
                f"{self.path} is damaged: {said}; nothing was copied, see synchromesh db verify"
            )

    def made(self) -> list[Made]:
        """Return what the file is made of: tables, then what is made of them, views last."""
        return [Made(*row) for row in self._connection.execute(_MADE).fetchall()]

    def tables(self) -> list[str]:
        """Return the tables whose rows are to be copied."""
        return [m.name for m in self.made() if m.kind == "table" and m.name not in _ENGINES]

    def columns(self, table: str) -> list[str]:
        """Return the columns of a table but those that are computed of others."""
        return [str(name) for name, _ in self._connection.execute(_COLUMNS, (table,)).fetchall()]

    def batches(self, table: str, columns: Sequence[str]) -> Iterator[list[Row]]:
        """Yield the rows of a table in the order in which they were inserted, some at a time."""
        names = ", ".join(map(quoted, columns))
        rows = self._connection.execute(
            f"select {names} from {quoted(table)} order by {self._order(table)}"
        )
        while batch := list(itertools.islice(rows, _BATCH)):
            yield batch

    def place(self, table: str, number: int) -> str:
        """Return how to find the row that `batches` yielded as the so many-th, from 0."""
        order = self._order(table)
        if not self._has_rowid(table):
            return f"row {number + 1} in the order of {order}"
        ((rowid,),) = self._connection.execute(
            f"select _rowid_ from {quoted(table)} order by {order} limit 1 offset ?", (number,)
        ).fetchall()
        return f"the row with rowid {rowid}"

    def last(self, table: str) -> int:
        """Return the last number that was given to a row of a table; 0 where none was."""
        if not self._connection.execute(
            "select 1 from sqlite_master where name = 'sqlite_sequence'"
        ).fetchall():
            return 0
        found = self._connection.execute(
            "select seq from sqlite_sequence where name = ?", (table,)
        ).fetchall()
        return int(found[0][0] or 0) if found else 0

    def _order(self, table: str) -> str:
        if self._has_rowid(table):
            return "_rowid_"
        keys = self._connection.execute(_COLUMNS, (table,)).fetchall()
        return ", ".join(quoted(name) for name, at in sorted(keys, key=lambda key: key[1]) if at)

    def _has_rowid(self, table: str) -> bool:
        try:
            self._connection.execute(f"select _rowid_ from {quoted(table)} limit 0")
        except sqlite3.OperationalError:
            return False
        return True

    def __repr__(self) -> str:
        return f"<CopiedFile {self.path}>"
