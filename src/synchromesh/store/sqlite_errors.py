"""SQLite's errors, translated to the store's own; messages hold no bound value.

A fault is the file's, the statement's or a moment's, and each has another person to mend it:

    CORRUPT, NOTADB, IOERR, CANTOPEN    StoreBroken: the operator, perhaps by restoring a backup
    BUSY, FULL, READONLY                StoreLocked, StoreFull, StoreReadOnly: the operator
    CONSTRAINT, MISMATCH                ConstraintFailed: whoever gave the data
    ERROR, RANGE, TOOBIG, MISUSE, ...   StatementFailed: whoever wrote the SQL
"""

from __future__ import annotations

import sqlite3

from synchromesh.errors import (
    ConstraintFailed,
    StatementFailed,
    StoreBroken,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from synchromesh.store.statements import in_statement

ERROR, BUSY, LOCKED, READONLY, INTERRUPT, IOERR = 1, 5, 6, 8, 9, 10
CORRUPT, FULL, CANTOPEN, SCHEMA, TOOBIG, MISUSE = 11, 13, 14, 17, 18, 21
AUTH, RANGE, NOTADB = 23, 25, 26

FATAL = frozenset({IOERR, CORRUPT, NOTADB})
"""Result codes that mean a fault of the file, not of the statement."""

_STATEMENTS = frozenset({ERROR, SCHEMA, TOOBIG, MISUSE, AUTH, RANGE})

SqliteFault = (sqlite3.Error, sqlite3.Warning)
"""What the driver raises for an engine or a statement (a Warning for two statements in one)."""


def code_of(error: BaseException) -> int:
    """Return the primary result code of an error of the driver; 0 where it has none."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def translate(error: Exception, *, path: str, sql: str = "") -> StoreError:
    """Translate an error of the driver to a `StoreError`.

    It names the file, SQLite's words and the statement; never a literal or bound value.

    Example:
        >>> error = sqlite3.IntegrityError("UNIQUE constraint failed")
        >>> translate(error, path="a.db", sql="insert into hold values ('x')").message
        'a.db: UNIQUE constraint failed (in: insert into hold values (…)); nothing was written'
    """
    code = code_of(error)
    text = f"{path}: {error}{in_statement(sql)}"
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintFailed(f"{text}; nothing was written")
    if code in (BUSY, LOCKED):
        return StoreLocked(
            f"{text}: another connection writes to the file; end it, only the owner may write"
        )
    if code == FULL:
        return StoreFull(f"{text}: make room on the disk or raise the page limit, then try again")
    if code == READONLY:
        return StoreReadOnly(
            f"{text}: the process needs the right to write the file and its folder"
        )
    if code == CANTOPEN:
        return StoreBroken(f"{text}: the folder must exist and the process may write it")
    if code in (CORRUPT, NOTADB):
        return StoreBroken(f"{text}: move the file away and restore a backup")
    if code == IOERR:
        return StoreBroken(f"{text}: look at the disk and the kernel's log")
    # The driver's own refusals have no code: too few values, two statements, a type it cannot bind.
    if sql and (code in _STATEMENTS or not code):
        return StatementFailed(f"{text}: mend the statement; nothing is wrong with the database")
    return StoreBroken(text)
