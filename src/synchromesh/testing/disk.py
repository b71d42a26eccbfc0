"""A simulated disk: real SQLite in memory, with owners, locks and power cuts.

Each path is one database that outlives the processes which open it. It lives in SQLite's `memdb`
file system, so connections lock each other as files do; waiting for a lock cannot help on one
thread, so a conflict is "database is locked" at once. There is no write-ahead log: `PRAGMA
journal_mode = wal` answers `memory`.

A power cut rolls back what was not committed. A commit survives it if `PRAGMA synchronous` was FULL
(SQLite's default); where it was NORMAL or OFF, the cut leaves the database as it was after any of
the commits since the last full one, drawn from the seed. Watching commits costs only those who
lowered `synchronous`: a connection whose first statement (past PRAGMAs) finds FULL is not watched.

A disk that fails answers commits with an I/O error, and may have done them all the same; reads, as
far as they are not answered from memory. A disk that is full refuses what is written, and reads on.
"""

from __future__ import annotations

import itertools
import posixpath
import random
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Any
from urllib.parse import quote

from synchromesh.testing.escapes import SimulationError
from synchromesh.testing.process import PROCESS, SimProcess

# In-memory databases are named process-wide; two universes must not meet.
_universes = itertools.count(1)
# SQLite's level for "every commit is synced"; EXTRA is above it.
_SYNCHRONOUS_FULL = 2
# How many unsynced commits a power cut may choose from, the latest ones.
_SNAPSHOTS_MAX = 32
# What a statement outside of a transaction begins with that a disk which fails does not matter to.
_IN_MEMORY = ("begin", "rollback", "select", "pragma")
# What a statement begins with that needs no room on the disk.
_READING = (*_IN_MEMORY, "savepoint", "release")


class SimDisk:
    """A simulated disk: databases by path, for all processes of one machine.

    A connection or lock belongs to the process in whose context it was made.

    Args:
        rng: decides which unsynced commits a power cut loses.

    Example:
        >>> disk = SimDisk(random.Random(1))
        >>> writer = disk.connect("/orders.db")
        >>> _ = writer.execute("CREATE TABLE item (name TEXT)")
        >>> _ = writer.execute("INSERT INTO item VALUES ('bolt')")
        >>> disk.rows("/orders.db", "SELECT name FROM item")
        [('bolt',)]
        >>> disk.close()
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._prefix = f"/synchromesh-{next(_universes)}"
        self._files: dict[str, _File] = {}
        self._unlinked: list[_File] = []
        self._made = 0
        self._locks: dict[str, SimLock] = {}
        self._is_closed = False

    def connect(
        self,
        path: str,
        *,
        read_only: bool = False,
        is_private: bool = False,  # noqa: ARG002 - nobody else is on this machine
    ) -> sqlite3.Connection:
        """Open a database in autocommit mode, for the current process.

        Raises sqlite3.OperationalError where `read_only` is asked for and there is no such file.
        """
        path = _normal(path)
        file = self._files.get(path)
        if self._is_closed or (file is None and read_only):
            raise sqlite3.OperationalError(f"unable to open database file: {path}")
        if file is None:
            file = self._create(path)
        return file.open(PROCESS.get(), read_only=read_only)

    def file_id(self, path: str) -> tuple[int, int] | None:
        """Return the identity of the database at `path`; None where there is none."""
        file = self._files.get(_normal(path))
        return None if file is None else (0, file.number)

    def unlink(self, path: str) -> None:
        """Delete a database; open connections go on with the unlinked one.

        Raises FileNotFoundError where there is no such file.
        """
        file = self._files.pop(_normal(path), None)
        if file is None:
            raise FileNotFoundError(path)
        self._unlinked.append(file)

    def quarantine(self, path: str) -> None:
        """Move a database to `<path>.damaged`."""
        file = self._files.pop(_normal(path), None)
        if file is not None:
            self._files[f"{_normal(path)}.damaged"] = file

    def fail(self, path: str) -> None:
        """Fail the commits of a database by I/O errors, and some of its reads, until `mend`.

        A commit may take effect all the same: chance decides.

        Raises FileNotFoundError where there is no such file.
        """
        self._file(path).fail(self._rng)

    def fill(self, path: str) -> None:
        """Leave a database no room on its disk: nothing more is written to it, until `mend`.

        Raises FileNotFoundError where there is no such file.
        """
        self._file(path).fill(self._rng)

    def mend(self, path: str) -> None:
        """End what `fail` or `fill` began. Raises FileNotFoundError where there is no such file."""
        self._file(path).mend()

    def try_lock(self, path: str) -> SimLock | None:
        """Lock `path` for the current process, or return None while a live process holds it."""
        path = _normal(path)
        if path in self._locks:
            return None
        lock = self._locks[path] = SimLock(self._locks, path, PROCESS.get())
        return lock

    def owner_of(self, path: str) -> str:
        """Return which process holds the lock."""
        lock = self._locks.get(_normal(path))
        if lock is None:
            return "nobody"
        return "the world" if lock.process is None else f"process {lock.process.name}"

    def paths(self) -> list[str]:
        """Return the paths of all databases."""
        return sorted(self._files)

    def rows(self, path: str, sql: str, *values: Any) -> list[Any]:
        """Query the committed state of a database; also after the simulation.

        Raises sqlite3.OperationalError where there is no such file.
        """
        file = self._files.get(_normal(path))
        if file is None:
            raise sqlite3.OperationalError(f"unable to open database file: {path}")
        return file.rows(sql, values)

    def image(self, path: str) -> bytes:
        """Return the committed state of a database as the bytes of a file; also afterwards.

        Raises sqlite3.OperationalError where there is no such file.
        """
        file = self._files.get(_normal(path))
        if file is None:
            raise sqlite3.OperationalError(f"unable to open database file: {path}")
        return file.image()

    def install(self, path: str, image: bytes) -> None:
        """Create a database from the bytes of a file, such as another universe's `image`."""
        path = _normal(path)
        if path in self._files:
            raise ValueError(f"there is a database {path!r} already")
        self._create(path).restore(image)

    def crash(self, process: SimProcess | None) -> None:
        """Cut the power of a process: its transactions, locks and unsynced commits are lost.

        None stands for whoever runs outside every process.
        """
        for lock in list(self._locks.values()):
            if lock.process is process:
                lock.release()
        for path in sorted(self._files):
            self._files[path].crash(process, self._rng)
        for file in self._unlinked:
            file.crash(process, self._rng)

    def close(self) -> None:
        """Close all connections; what was committed can still be read with `rows`."""
        if not self._is_closed:
            self._is_closed = True
            for file in (*self._files.values(), *self._unlinked):
                file.close()

    def _file(self, path: str) -> _File:
        file = self._files.get(_normal(path))
        if file is None:
            raise FileNotFoundError(path)
        return file

    def _create(self, path: str) -> _File:
        self._made += 1
        file = self._files[path] = _File(f"{self._prefix}/{self._made}{path}", self._made)
        return file


class SimLock:
    """An exclusive lock on a path; a power cut releases it."""

    def __init__(self, locks: dict[str, SimLock], path: str, process: SimProcess | None) -> None:
        self.process = process
        self._locks, self._path = locks, path

    def release(self) -> None:
        """Release the lock. May be repeated."""
        if self._locks.get(self._path) is self:
            del self._locks[self._path]


class _File:
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
        return self._keeper.execute(sql, tuple(values)).fetchall()

    def keep_state(self) -> None:
        """Record the state before and after each commit that a power cut may lose."""
        self._snapshots.append(_image_of(self._keeper))
        del self._snapshots[:-_SNAPSHOTS_MAX]

    def forget_states(self) -> None:
        self._snapshots.clear()

    def crash(self, process: SimProcess | None, rng: random.Random) -> None:
        mine = [c for owner, c in self._open if owner is process]
        for connection in mine:
            connection.cut()
        self._open = [(owner, c) for owner, c in self._open if owner is not process]
        if self._snapshots and any(connection.is_unsynced for connection in mine):
            survivor = self._snapshots[int(rng.random() * len(self._snapshots))]
            self._snapshots.clear()
            self.restore(survivor)

    def fail(self, rng: random.Random) -> None:
        self.chance = rng
        self._turn_into(_FailingConnection)

    def fill(self, rng: random.Random) -> None:
        self.chance = rng
        self._turn_into(_FullConnection)

    def mend(self) -> None:
        self._turn_into(SimConnection)

    def _turn_into(self, kind: type[SimConnection]) -> None:
        self._kind = kind
        for _, connection in self._open:
            connection.__class__ = kind

    def image(self) -> bytes:
        return _image_of(self._keeper)

    def restore(self, image: bytes) -> None:
        with closing(sqlite3.connect(":memory:", isolation_level=None)) as source:
            if image:
                source.deserialize(image)
            source.backup(self._keeper)

    def close(self) -> None:
        for _, connection in self._open:
            connection.close()

    def __del__(self) -> None:
        # What was committed is read for as long as somebody has the disk.
        self._keeper.close()


class SimConnection(sqlite3.Connection):
    """A watched connection: a commit that is not synced leaves a state to fall back to."""

    file: _File
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


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def _image_of(connection: sqlite3.Connection) -> bytes:
    # SQLite refuses to serialize a database that has no page yet.
    is_empty = connection.execute("PRAGMA page_count").fetchone()[0] == 0
    return b"" if is_empty else connection.serialize()
