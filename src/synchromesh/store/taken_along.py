"""A SQLite file that is taken to a server says so in itself, so that it is not gone on with too.

It is marked twice: before the first row is copied, which only tells where it is to go, and once the
copy is committed. From then on it is what it was at the copy, and is not opened to be written.
"""

from __future__ import annotations

import contextlib
import sqlite3

import msgspec

from synchromesh.errors import StoreBroken
from synchromesh.runtime import Disk
from synchromesh.store.sqlite_errors import SqliteFault, translate

TAKEN_TO = "taken_to"
"""The name of the mark in `sm_meta`."""

COPIED, REHEARSED, THERE = "copied", "rehearsed", "there"

_IS_DATABASE = "select 1 from sqlite_master where name = 'sm_meta'"
_LOG = "select 1 from sm_meta where name = 'log_id'"
_READ = f"select value from sm_meta where name = '{TAKEN_TO}'"
_NOTE = (
    f"insert into sm_meta(name, value) values ('{TAKEN_TO}', ?) "
    "on conflict(name) do update set value = excluded.value"
)
FORGET = f"delete from sm_meta where name = '{TAKEN_TO}'"
"""Takes the mark off what is another history from here on."""


class CopiedTable(msgspec.Struct, frozen=True):
    """A table that was copied, and the sum of its rows, which is the same on both sides."""

    name: str
    rows: int
    sum: str


class CopiedService(msgspec.Struct, frozen=True):
    """What became of a service's data.

    Attributes:
        outcome: COPIED; REHEARSED; THERE where an earlier run did it, and the file is what it
            was then.
        log_id: of its event log, which is the same one.
    """

    service: str
    outcome: str
    source: str
    target: str
    log_id: str = ""
    tables: list[CopiedTable] = []


class TakenTo(msgspec.Struct, frozen=True):
    """Where a file is taken to.

    Attributes:
        place: the database, without a password.
        is_there: whether its copy was committed there.
    """

    place: str
    is_there: bool = False


def read_mark(connection: sqlite3.Connection) -> TakenTo | None:
    """Return the mark of a file; None where it has none, or is no database of a service yet."""
    if not connection.execute(_IS_DATABASE).fetchall():
        return None
    rows = connection.execute(_READ).fetchall()
    return msgspec.json.decode(rows[0][0], type=TakenTo) if rows else None


def has_history(path: str, disk: Disk) -> bool:
    """Return whether there is a file in which a service has begun.

    Raises:
        StoreError: it cannot be read.
    """
    if disk.file_id(path) is None:
        return False
    try:
        with contextlib.closing(disk.connect(path, read_only=True)) as connection:
            return bool(
                connection.execute(_IS_DATABASE).fetchall() and connection.execute(_LOG).fetchall()
            )
    except SqliteFault as error:
        raise translate(error, path=path) from error


def mark_of(path: str, disk: Disk) -> TakenTo | None:
    """Return the mark of the file at a path; None where it has none, or there is no file.

    Raises:
        StoreError: it cannot be read.
    """
    if disk.file_id(path) is None:
        return None
    try:
        with contextlib.closing(disk.connect(path, read_only=True)) as connection:
            return read_mark(connection)
    except SqliteFault as error:
        raise translate(error, path=path) from error


def refuse_taken(connection: sqlite3.Connection, path: str) -> None:
    """Refuse to write to a file whose copy is on a server.

    Raises:
        StoreBroken: it is; the message says how it goes on.
    """
    mark = read_mark(connection)
    if mark is not None and mark.is_there:
        raise StoreBroken(
            f"{path} was copied to {mark.place}, which has gone on since: keep its service there "
            "([engine] postgres, and not in [engine] sqlite). To go on with what was in the file "
            "instead, as another log: synchromesh db backup, then synchromesh db restore"
        )


def mark_file(path: str, mark: TakenTo, *, disk: Disk) -> None:
    """Mark a file that the caller has locked; it is on the disk when this returns.

    Where a copy is, is not forgotten because another is begun.

    Raises:
        StoreError: the file cannot be written.
    """
    try:
        with contextlib.closing(disk.connect(path)) as connection:
            # One that was restored has none yet, and would wait for who reads it.
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = full")
            before = read_mark(connection)
            if before is None or mark.is_there or not before.is_there:
                connection.execute(_NOTE, (msgspec.json.encode(mark).decode(),))
    except SqliteFault as error:
        raise translate(error, path=path) from error
