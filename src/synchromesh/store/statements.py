"""Statements on any engine: their first word, their values that are refused, how they are told."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import PurePath

from synchromesh.errors import StatementFailed

TRANSACTIONAL = frozenset({"begin", "commit", "end", "rollback", "savepoint", "release"})
"""Statements of transaction control."""

# SQLite skips a byte order mark wherever it skips blanks.
_LEADING = re.compile(r"(?:[\s\ufeff]+|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$)|;)*(\w*)", re.DOTALL)
# PostgreSQL's comments nest, and those of a line end at a carriage return as well.
_NESTED_BLANK = re.compile(r"[\s\ufeff;]+|--[^\n\r]*")
_BRACKET = re.compile(r"/\*|\*/")
_WORD = re.compile(r"\w*")

_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")
# Whatever is data: quoted texts, also unfinished ones, blobs and numbers; and comments.
_DATA = re.compile(
    r"""(?<!\w)[eE]'(?:[^'\\]|''|\\.)*'?|[xX]?'(?:[^']|'')*'?|"(?:[^"]|"")*"?"""
    r"""|(?<![\w$])\$((?:[^\W\d]\w*)?)\$.*?(?:\$\1\$|$)"""
    r"""|--[^\n\r]*|/\*.*?(?:\*/|$)|(?<![\w?])\.?\d[\w.]*""",
    re.DOTALL,
)
_SQL_CHARS = 100

# What runs the loop, and so whatever Synchromesh does there by itself; and what tests run in.
_NOT_THEIRS = ("asyncio", "threading", "doctest", "synchromesh.testing.")


def leading_word(sql: str, *, nests: bool = False) -> str:
    """Return the first word of a statement in lower case, past blanks and comments.

    Engines differ in where a comment ends, and so in what is a statement: `nests` reads as
    PostgreSQL does, else as SQLite.

    Example:
        >>> leading_word("/* now */ COMMIT"), leading_word("/* /* */ */ COMMIT", nests=True)
        ('commit', 'commit')
    """
    if not nests:
        word = _LEADING.match(sql)
        return word[1].lower() if word is not None else ""
    at = 0
    while True:
        if (blank := _NESTED_BLANK.match(sql, at)) is not None:
            at = blank.end()
        elif sql.startswith("/*", at):
            at = end_of_nested(sql, at)
        else:
            first = _WORD.match(sql, at)
            return first[0].lower() if first is not None else ""


def end_of_nested(sql: str, at: int) -> int:
    """Return where the comment ends that begins at a place; comments in it nest.

    Example:
        >>> end_of_nested("/* a /* b */ c */ d", 0)
        17
    """
    depth = 0
    for bracket in _BRACKET.finditer(sql, at):
        depth += 1 if bracket[0] == "/*" else -1
        if not depth:
            return bracket.end()
    return len(sql)


def refuse(what: str, sql: str, *, path: str) -> StatementFailed:
    """Return the error that a statement cannot be run, or cannot be run so.

    Example:
        >>> refuse("two values are NaN", "select ?, ?", path="a.db").message
        'a.db: two values are NaN (in: select ?, ?)'
    """
    return StatementFailed(f"{path}: {what}{in_statement(sql)}")


def refuse_unstorable(values: Sequence[object], sql: str, *, path: str) -> None:
    """Refuse a value that an engine would keep as another, or not at all: raise `StatementFailed`.

    SQLite would store NaN as NULL; drivers have no word of the store's for the others. The message
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
        if _INT_MIN <= value <= _INT_MAX:
            return ""
        return "a whole number of more than 64 bits, which no engine can hold; store it as text"
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
