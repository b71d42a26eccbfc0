"""One database of a simulated disk, and its connections, as they are while the disk is well or not.

What becomes of a commit by a power cut, `SimDisk` says.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Any
from urllib.parse import quote

from synchromesh.testing.escapes import SimulationError
from synchromesh.testing.process import SimProcess

# SQLite's level for "every commit is synced"; EXTRA is above it.
_SYNCHRONOUS_FULL = 2
# How many unsynced commits a power cut may choose from, the latest ones.
_SNAPSHOTS_MAX = 32
# What a statement outside of a transaction begins with that a disk which fails does not matter to.
_IN_MEMORY = ("begin", "rollback", "select", "pragma")
# What a statement begins with that needs no room on the disk.
_READING = (*_IN_MEMORY, "savepoint", "release")


class SimFile:
    """One database; the keeper's connection is what keeps it in memory while nobody has it open."""

    def __init__(self, name: str, number: int) -> None:
        self.number = number
        # Whatever is in it: "#" ends the path of a URI, and what follows would be no option.
        self._uri = f"file:{quote(name)}?vfs=memdb"
        self._keeper = sqlite3.connect(
            self._uri, uri=True, isolation_level=None, timeout=0.0, check_same_thread=False
        )
        self._open: list[tuple[SimProcess | None, SimConnection]] = []
        # The states a power cut may leave, oldest first; empty while every commit is synced.
        self._snapshots: list[bytes] = []
        # Chance, while the disk below it fails or is full; no connection is opened while it fails.
        self.chance = random.Random(0)
        self._kind: type[SimConnection] = SimConnection

    def open(self, process: SimProcess | None, *, read_only: bool) -> sqlite3.Connection:
        """Open a connection of a process."""
        if self._kind is _FailingConnection:
            raise io_error()
        connection = sqlite3.connect(
            self._uri,
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=0.0,
            cached_statements=256,
            factory=SimConnection,
        )
        connection.file = self
        if read_only:
            connection.execute("PRAGMA query_only = 1")
        connection.__class__ = self._kind
        # Most files have few connections at a time; those that were closed are forgotten here.
        self._open = [(owner, c) for owner, c in self._open if not c.is_closed]
        self._open.append((process, connection))
        return connection

    def rows(self, sql: str, values: Iterable[Any]) -> list[Any]:
        """Query what is committed."""
        return self._keeper.execute(sql, tuple(values)).fetchall()

    def keep_state(self) -> None:
        """Record the state before and after each commit that a power cut may lose."""
        self._snapshots.append(_image_of(self._keeper))
        del self._snapshots[:-_SNAPSHOTS_MAX]

    def forget_states(self) -> None:
        """Take all commits so far as synced."""
        self._snapshots.clear()

    def crash(self, process: SimProcess | None, rng: random.Random) -> None:
        """Cut the power of a process; chance decides which unsynced commits are lost."""
        mine = [c for owner, c in self._open if owner is process]
        for connection in mine:
            connection.cut()
        self._open = [(owner, c) for owner, c in self._open if owner is not process]
        if self._snapshots and any(connection.is_unsynced for connection in mine):
            survivor = self._snapshots[int(rng.random() * len(self._snapshots))]
            self._snapshots.clear()
            self.restore(survivor)

    def fail(self, rng: random.Random) -> None:
        """Fail all that needs the disk."""
        self.chance = rng
        self._turn_into(_FailingConnection)

    def fail_commits(self, rng: random.Random) -> None:
        """Fail commits alone."""
        self.chance = rng
        self._turn_into(_UnflushedConnection)

    def fill(self, rng: random.Random) -> None:
        """Refuse what needs room."""
        self.chance = rng
        self._turn_into(_FullConnection)

    def mend(self) -> None:
        """End every fault that was injected."""
        self._turn_into(SimConnection)

    def _turn_into(self, kind: type[SimConnection]) -> None:
        self._kind = kind
        for _, connection in self._open:
            connection.__class__ = kind

    def image(self) -> bytes:
        """Return what is committed as the bytes of a file."""
        return _image_of(self._keeper)

    def restore(self, image: bytes) -> None:
        """Replace the content by the bytes of a file."""
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as source:
            if image:
                source.deserialize(image)
            source.backup(self._keeper)

    def close(self) -> None:
        """Close all connections."""
        for _, connection in self._open:
            connection.close()

    def __del__(self) -> None:
        # What was committed is read for as long as somebody has the disk.
        self._keeper.close()


class SimConnection(sqlite3.Connection):
    """A watched connection: a commit that is not synced leaves a state to fall back to."""

    file: SimFile
    is_closed = False
    is_unsynced = False

    def cursor(self, factory: Any = None) -> Any:
        """Return a cursor that reports what it ran."""
        return super().cursor(_WatchedCursor if factory is None else factory)

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """Run a statement."""
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        """Run a statement for each row of values."""
        return self.cursor().executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:
        """Run many statements."""
        return self.cursor().executescript(sql_script)

    def close(self) -> None:
        """Close; an open transaction is rolled back, and what was committed is synced."""
        if self.is_unsynced and not self.is_closed:
            self.file.forget_states()
        self.is_closed = True
        super().close()

    def cut(self) -> None:
        """Close by a power cut, which syncs nothing."""
        if not self.is_closed and type(self) is _UnwatchedConnection:
            level = self.execute("PRAGMA synchronous").fetchone()[0]
            if level < _SYNCHRONOUS_FULL:
                raise SimulationError(
                    "PRAGMA synchronous was lowered after the first statement; "
                    "set it right after connecting, so that power cuts can be simulated"
                )
        self.is_closed = True
        super().close()

    def ran(self, sql: str) -> None:
        """Record a statement that succeeded."""
        words = sql.lstrip()[:60].lower()
        if words.startswith("pragma"):
            if "synchronous" in words:
                self._note_level()
            elif "busy_timeout" in words:
                # It would wait in real time, for a lock whose owner is on this very thread.
                sqlite3.Cursor(self).execute("PRAGMA busy_timeout = 0")
        elif not self.is_unsynced:
            # From here on the connection costs what any other does.
            self.__class__ = _UnwatchedConnection
        elif not self.in_transaction and not words.startswith("select"):
            self.file.keep_state()

    def _note_level(self) -> None:
        level = sqlite3.Cursor(self).execute("PRAGMA synchronous").fetchone()[0]
        was_unsynced, self.is_unsynced = self.is_unsynced, level < _SYNCHRONOUS_FULL
        if self.is_unsynced and not was_unsynced:
            self.file.keep_state()
        elif was_unsynced and not self.is_unsynced:
            self.file.forget_states()


class _UnwatchedConnection(SimConnection):
    """A connection whose commits are all synced; statements run at full speed."""

    cursor = sqlite3.Connection.cursor
    execute = sqlite3.Connection.execute
    executemany = sqlite3.Connection.executemany
    executescript = sqlite3.Connection.executescript


class _FailingConnection(SimConnection):
    """A connection to a database whose disk fails; what needs no disk goes on."""

    cursor = sqlite3.Connection.cursor

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """Run a statement, where that needs no disk."""
        words, rng = sql.lstrip()[:60].lower(), self.file.chance
        is_commit = words.startswith("commit") and self.in_transaction
        if is_commit and rng.random() < 0.5:
            sqlite3.Connection.execute(self, sql, parameters)
        if is_commit or (words.startswith("select") and rng.random() < 0.5):
            raise io_error()
        if not (self.in_transaction or words.startswith(_IN_MEMORY)):
            raise io_error()
        return sqlite3.Connection.execute(self, sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:  # noqa: ARG002
        raise io_error()

    def executescript(self, sql_script: str, /) -> Any:  # noqa: ARG002
        raise io_error()


class _UnflushedConnection(SimConnection):
    """A connection to a database that cannot be flushed: each commit fails, done or not.

    As long as that is in doubt, what is read next fails, too, perhaps.
    """

    is_in_doubt = False
    cursor = sqlite3.Connection.cursor
    executemany = sqlite3.Connection.executemany
    executescript = sqlite3.Connection.executescript

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """Run a statement, but for commits."""
        words, rng = sql.lstrip()[:60].lower(), self.file.chance
        if words.startswith("commit") and self.in_transaction:
            self.is_in_doubt = True
            if rng.random() < 0.5:
                sqlite3.Connection.execute(self, sql, parameters)
            raise io_error()
        if words.startswith("begin"):
            self.is_in_doubt = False
        if self.is_in_doubt and words.startswith("select") and rng.random() < 0.5:
            raise io_error()
        if not (self.in_transaction or words.startswith(_IN_MEMORY)):
            raise io_error()
        return sqlite3.Connection.execute(self, sql, parameters)


class _FullConnection(SimConnection):
    """A connection to a database whose disk is full; what writes nothing goes on.

    What needs a new page is refused at once; else it is the commit that finds no room, and perhaps
    it is rolled back by that.
    """

    cursor = sqlite3.Connection.cursor

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        """Run a statement, where that needs no room."""
        words, rng = sql.lstrip()[:60].lower(), self.file.chance
        if words.startswith("commit") and self.in_transaction:
            if rng.random() < 0.5:
                sqlite3.Connection.execute(self, "rollback")
            raise full_error()
        if not words.startswith(_READING) and (not self.in_transaction or rng.random() < 0.3):
            raise full_error()
        return sqlite3.Connection.execute(self, sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        """Insert rows, where that needs no room."""
        if not self.in_transaction or self.file.chance.random() < 0.3:
            raise full_error()
        return sqlite3.Connection.executemany(self, sql, parameters)

    def executescript(self, sql_script: str, /) -> Any:  # noqa: ARG002
        raise full_error()


class _WatchedCursor(sqlite3.Cursor):
    """A cursor of a watched connection."""

    connection: SimConnection

    def execute(self, sql: str, parameters: Any = (), /) -> _WatchedCursor:
        super().execute(sql, parameters)
        self.connection.ran(sql)
        return self

    def executemany(self, sql: str, parameters: Any, /) -> _WatchedCursor:
        super().executemany(sql, parameters)
        self.connection.ran(sql)
        return self

    def executescript(self, sql_script: str, /) -> _WatchedCursor:
        super().executescript(sql_script)
        self.connection.ran("-- a script")
        if "synchronous" in sql_script.lower():
            self.connection.ran("PRAGMA synchronous")
        return self


def io_error() -> sqlite3.OperationalError:
    """Return the error by which the engine tells of a disk that fails."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error


def full_error() -> sqlite3.OperationalError:
    """Return the error by which the engine tells that the disk is full."""
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def _image_of(connection: sqlite3.Connection) -> bytes:
    # SQLite refuses to serialize a database that has no page yet.
    is_empty = connection.execute("PRAGMA page_count").fetchone()[0] == 0
    return b"" if is_empty else connection.serialize()
