"""What SQLite's errors are called here: translated at the edge, without any bound value."""

from __future__ import annotations

import re
import sqlite3

from synchromesh.errors import (
    ConstraintFailed,
    StoreBroken,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)

BUSY, LOCKED, READONLY, INTERRUPT, IOERR = 5, 6, 8, 9, 10
CORRUPT, FULL, CANTOPEN, NOTADB = 11, 13, 14, 26

FATAL = frozenset({IOERR, CORRUPT, NOTADB})
"""Codes after which the file, not the statement, is to be doubted."""

SqliteFault = (sqlite3.Error, sqlite3.Warning)
"""All that the driver raises for an engine or a statement (a Warning where it is two of them)."""


def code_of(error: BaseException) -> int:
    """Return the primary result code of an error of the driver; 0 where it has none."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def translate(error: Exception, *, path: str, sql: str = "") -> StoreError:
    """Return the error of ours that an error of the driver stands for.

    It names the file, SQLite's words and how the statement begins; never a literal or bound value.

    Example:
        >>> translate(sqlite3.IntegrityError("UNIQUE constraint failed: hold.id"), path="a.db",
        ...           sql="insert into hold values ('x')").message
        'a.db: UNIQUE constraint failed: hold.id (in: insert into hold values); nothing was written'
    """
    code = code_of(error)
    said = f"{path}: {error}{_beginning(sql)}"
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintFailed(f"{said}; nothing was written")
    if code in (BUSY, LOCKED):
        return StoreLocked(
            f"{said}: another connection writes to the file; end it, only the owner may write"
        )
    if code == FULL:
        return StoreFull(f"{said}: make room on the disk or raise the page limit, then try again")
    if code == READONLY:
        return StoreReadOnly(
            f"{said}: the process needs the right to write the file and its folder"
        )
    if code == CANTOPEN:
        return StoreBroken(f"{said}: the folder must exist and the process may write it")
    if code in (CORRUPT, NOTADB):
        return StoreBroken(f"{said}: move the file away and restore a backup")
    if code == IOERR:
        return StoreBroken(f"{said}: look at the disk and the kernel's log")
    return StoreBroken(said)


def _beginning(sql: str) -> str:
    # Letters only, up to the first bracket, quote or digit: what follows may be data.
    words = (re.match(r"[A-Za-z_.\s]*", sql) or [""])[0].split()[:4]
    return f" (in: {' '.join(words)})" if words else ""
