"""SQLite's errors, translated to the store's own; messages hold no bound value.

A fault is the file's, the statement's or a moment's, and each has another person to mend it:

    CORRUPT, NOTADB, IOERR, CANTOPEN    StoreBroken: the operator, perhaps by restoring a backup
    BUSY, FULL, READONLY                StoreLocked, StoreFull, StoreReadOnly: the operator
    CONSTRAINT, MISMATCH                ConstraintFailed: whoever gave the data
    ERROR, RANGE, TOOBIG, MISUSE, ...   StatementFailed: whoever wrote the SQL
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import PurePath

from synchromesh.errors import (
    ConstraintFailed,
    StatementFailed,
    StoreBroken,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)

ERROR, BUSY, LOCKED, READONLY, INTERRUPT, IOERR = 1, 5, 6, 8, 9, 10
CORRUPT, FULL, CANTOPEN, SCHEMA, TOOBIG, MISUSE = 11, 13, 14, 17, 18, 21
AUTH, RANGE, NOTADB = 23, 25, 26

FATAL = frozenset({IOERR, CORRUPT, NOTADB})
"""Result codes that mean a fault of the file, not of the statement."""

_STATEMENTS = frozenset({ERROR, SCHEMA, TOOBIG, MISUSE, AUTH, RANGE})

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")
# Whatever is data: quoted texts, also unfinished ones, blobs and numbers; and comments.
_DATA = re.compile(
    r"""[xX]?'(?:[^']|'')*'?|"(?:[^"]|"")*"?|--[^\n]*|/\*.*?(?:\*/|$)|(?<![\w?])\.?\d[\w.]*""",
    re.DOTALL,
)
_SQL_CHARS = 100

# What runs the loop, and so whatever Synchromesh does there by itself; and what tests run in.
_NOT_THEIRS = ("asyncio", "threading", "doctest", "synchromesh.testing.")

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


def refuse(what: str, sql: str, *, path: str) -> StatementFailed:
    """Return the error that a statement cannot be run, or cannot be run so.

    Example:
        >>> refuse("two values are NaN", "select ?, ?", path="a.db").message
        'a.db: two values are NaN (in: select ?, ?)'
    """
    return StatementFailed(f"{path}: {what}{in_statement(sql)}")


def refuse_unstorable(values: Sequence[object], sql: str, *, path: str) -> None:
    """Refuse a value that SQLite would store as another, or not at all: raise `StatementFailed`.

    It would store NaN as NULL; the driver has no word of the store's for the others. The message
    has the place of the value among those that are bound, never the value.

    Example:
        >>> try:
        ...     refuse_unstorable((1, 2**63), "insert into hold values (?, ?)", path="a.db")
        ... except StatementFailed as error:
        ...     print(error.message[:53])
        a.db: value 2 is a whole number of more than 64 bits,
    """
    if not sql.isascii() and _SURROGATE.search(sql):
        raise refuse("the statement has a lone surrogate; decode it properly first", sql, path=path)
    for number, value in enumerate(values, 1):
        fault = _fault_of(value)
        if fault:
            raise refuse(f"value {number} is {fault}", sql, path=path)


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


def in_statement(sql: str) -> str:
    """Say which statement it is, without its data, and which line of the service's code ran it.

    Example:
        >>> in_statement("select n from hold  where id = 'secret' and n > 17 -- mine")
        ' (in: select n from hold where id = … and n > …)'
    """
    if not sql:
        return ""
    text = " ".join(_DATA.sub(_masked, _SURROGATE.sub("�", sql)).split())
    if len(text) > _SQL_CHARS:
        text = f"{text[:_SQL_CHARS]}…"
    place = _place()
    return f" (in: {text}{f'; at {place}' if place else ''})" if text else ""


def _masked(found: re.Match[str]) -> str:
    return " " if found[0].startswith(("--", "/*")) else "…"


def _place() -> str:
    """Return the line of the service's code that runs a statement; "" where it is none of it."""
    frame = sys._getframe(1)
    while True:
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(_NOT_THEIRS):
            return ""
        if not module.startswith("synchromesh.") or module.startswith("synchromesh.examples."):
            code = frame.f_code
            place = "/".join(PurePath(code.co_filename).parts[-2:])
            return f"{place}:{frame.f_lineno} in {code.co_name}"
        if frame.f_back is None:
            return ""
        frame = frame.f_back
