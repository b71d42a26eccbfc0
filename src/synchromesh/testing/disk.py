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
far as they are not answered from memory. One that cannot be flushed fails at commits alone. A disk
that is full refuses what is written, and reads on.
"""

from __future__ import annotations

import itertools
import posixpath
import random
import sqlite3
from typing import Any

from synchromesh.testing.process import PROCESS, SimProcess
from synchromesh.testing.sim_file import SimFile

# In-memory databases are named process-wide; two universes must not meet.
_universes = itertools.count(1)


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
        self._files: dict[str, SimFile] = {}
        self._unlinked: list[SimFile] = []
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

    def connect_copy(self, path: str) -> sqlite3.Connection:
        """Create a real file: what is backed up outlives the machine."""
        return sqlite3.connect(path, isolation_level=None)

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

    def fail_commits(self, path: str) -> None:
        """Fail only the commits of a database by I/O errors, until `mend`: it cannot be flushed.

        Each may take effect all the same, and whether it did perhaps cannot be read.

        Raises FileNotFoundError where there is no such file.
        """
        self._file(path).fail_commits(self._rng)

    def fill(self, path: str) -> None:
        """Leave a database no room on its disk: nothing more is written to it, until `mend`.

        Raises FileNotFoundError where there is no such file.
        """
        self._file(path).fill(self._rng)

    def mend(self, path: str) -> None:
        """End what the others began. Raises FileNotFoundError where there is no such file."""
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

    def _file(self, path: str) -> SimFile:
        file = self._files.get(_normal(path))
        if file is None:
            raise FileNotFoundError(path)
        return file

    def _create(self, path: str) -> SimFile:
        self._made += 1
        file = self._files[path] = SimFile(f"{self._prefix}/{self._made}{path}", self._made)
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


def _normal(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))
