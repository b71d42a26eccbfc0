"""Proves that two contestants commit alike: what their SQLite connections promise, and how often.

`watch` has to come before a contestant opens its database. It keeps every connection that is opened
through `sqlite3`, whoever opens it, so that it can be asked afterwards how it syncs, and be made to
count its commits for a while. Nothing is counted, and nothing costs time, until `commits` is
entered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import check

_FULL = 2
"""`pragma synchronous`: the log is synced at every commit."""

_opened: list[sqlite3.Connection] = []


def watch() -> None:
    """Keep the connections that are opened from now on. May be repeated."""
    for module in (sqlite3, sqlite3.dbapi2):
        connect = module.connect
        if getattr(connect, "is_watching", False):
            continue

        # A library may call either name: both are the same function before the first one is set.
        def watching(*args: Any, _connect: Any = connect, **kwargs: Any) -> sqlite3.Connection:
            opened: sqlite3.Connection = _connect(*args, **kwargs)
            _opened.append(opened)
            return opened

        watching.is_watching = True  # type: ignore[attr-defined]
        setattr(module, "connect", watching)  # noqa: B010  mypy forbids the plain form


def forget() -> None:
    """Forget every connection: their owners have closed them."""
    _opened.clear()


def prove_synced(*paths: Path, who: str) -> None:
    """Check that whoever writes these databases syncs every commit to the disk.

    Raises:
        WrongAnswer: one of them commits without a sync, or nobody writes one.
    """
    for path in paths:
        modes = {
            (
                connection.execute("pragma journal_mode").fetchone()[0],
                connection.execute("pragma synchronous").fetchone()[0],
            )
            for connection in _of(path)
            if not connection.execute("pragma query_only").fetchone()[0]
        }
        check(modes, {("wal", _FULL)}, f"{who}, asked how it syncs {path.name},")


@dataclass(slots=True)
class Commits:
    """How many transactions that wrote were committed, by the name of the database's file."""

    by_file: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_file.values())


@contextmanager
def commits(*paths: Path) -> Iterator[Commits]:
    """Count the commits to these databases until the block ends; it costs time."""
    seen = Commits(dict.fromkeys((path.name for path in paths), 0))

    def counter(name: str) -> Any:
        def count(statement: str) -> None:
            # Two words at most: "COMMIT" and "commit transaction".
            if statement[:6].lower() == "commit":
                seen.by_file[name] += 1

        return count

    traced = [(path.name, connection) for path in paths for connection in _of(path)]
    for name, connection in traced:
        connection.set_trace_callback(counter(name))
    try:
        yield seen
    finally:
        for _, connection in traced:
            connection.set_trace_callback(None)


def _of(path: Path) -> Iterator[sqlite3.Connection]:
    for connection in _opened:
        try:
            files = connection.execute("pragma database_list").fetchall()
        except sqlite3.ProgrammingError:  # closed
            continue
        if files and files[0][2] and Path(files[0][2]).resolve() == path.resolve():
            yield connection
