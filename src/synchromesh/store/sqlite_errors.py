"""SQLite's errors, translated to the store's own; messages hold no bound value."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence

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
"""Result codes that mean a fault of the file, not of the statement."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")

SqliteFault = (sqlite3.Error, sqlite3.Warning)
"""What the driver raises for an engine or a statement (a Warning for two statements in one)."""


def code_of(error: BaseException) -> int:
    """Return the primary result code of an error of the driver; 0 where it has none."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def translate(error: Exception, *, path: str, sql: str = "") -> StoreError:
    """Translate an error of the driver to a `StoreError`.

    It names the file, SQLite's words and how the statement begins; never a literal or bound value.

    Example:
        >>> translate(sqlite3.IntegrityError("UNIQUE constraint failed: hold.id"), path="a.db",
        ...           sql="insert into hold values ('x')").message
        'a.db: UNIQUE constraint failed: hold.id (in: insert into hold values); nothing was written'
    """
    code = code_of(error)
    text = f"{path}: {error}{_beginning(sql)}"
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
    return StoreBroken(text)


def refuse_unstorable(values: Sequence[object], sql: str, *, path: str) -> None:
    """Refuse a value that SQLite would store as another, or not at all; raise `StoreBroken`.

    It would store NaN as NULL; the driver has no word of the store's for the others. The message
    has the place of the value among those that are bound, never the value.

    Example:
        >>> try:
        ...     refuse_unstorable((1, 2**63), "insert into hold values (?, ?)", path="a.db")
        ... except StoreBroken as error:
        ...     print(error.message[:53])
        a.db: value 2 is a whole number of more than 64 bits,
    """
    if not sql.isascii() and _SURROGATE.search(sql):
        raise StoreBroken(f"{path}: the statement has a lone surrogate{_beginning(sql)}; mend it")
    for number, value in enumerate(values, 1):
        fault = _fault_of(value)
        if fault:
            raise StoreBroken(f"{path}: value {number} is {fault}{_beginning(sql)}")


def _fault_of(value: object) -> str:
    if value is None or isinstance(value, bytes):
        return ""
    if isinstance(value, int):
        if INT_MIN <= value <= INT_MAX:
            return ""
        return "a whole number of more than 64 bits, which SQLite cannot hold; store it as text"
    if isinstance(value, float):
        if value == value:
            return ""
        return "NaN, which SQLite would store as NULL; store None, or do not compute it"
    if isinstance(value, str):
        if value.isascii() or not _SURROGATE.search(value):
            return ""
        return "a text with a lone surrogate, which is no Unicode text; decode it properly first"
    return ""


def _beginning(sql: str) -> str:
    # Letters only, up to the first bracket, quote or digit: what follows may be data.
    words = (re.match(r"[A-Za-z_.\s]*", sql) or [""])[0].split()[:4]
    return f" (in: {' '.join(words)})" if words else ""
