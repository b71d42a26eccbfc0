"""PostgreSQL's errors, translated to the store's own; messages hold no bound value.

The class of an error is its SQLSTATE's, as SQLite's result codes are on the other engine:

    40001, 40P01, a stale plan             `is_conflict`: nobody sees it, the unit is run again
    08, 57P0x, a connection that is gone   StoreUnavailable: it is connected again by itself
    23, and 22 of what is inserted         ConstraintFailed: whoever gave the data
    22, 42, 0A, 54                         StatementFailed: whoever wrote the SQL
    53, 25006, 42501, 58, XX               StoreFull, StoreReadOnly, StoreBroken: the operator

What the server says of a value is left out: its detail, and whatever class 22 quotes.

Source: PostgreSQL 18, appendix A (error codes).
"""

from __future__ import annotations

import asyncio
import re

import asyncpg

from synchromesh.errors import (
    ConstraintFailed,
    StatementFailed,
    StoreBroken,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from synchromesh.store.statements import in_statement, leading_word

PostgresFault = (
    asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError,
    asyncio.TimeoutError,
)  # fmt: skip
"""What the driver raises: for a statement, and for a connection that fails."""

READ_ONLY, CANCELED = "25006", "57014"
_CONFLICTS = frozenset({"40001", "40P01", "40003"})
# Where the server cannot tell the types of marks, or tells them wrongly.
_UNTYPED = frozenset({"42725", "42P18", "42804", "42883", "42P08"})
_LOST = ("08", "57P")
_WRITES = frozenset({"insert", "update", "merge", "with"})

_UNIQUE_KEY = re.compile(r"^Key \(([^)]*)\)=")
_ARGUMENT = re.compile(
    r"^invalid input for query argument \$(\d+)(?: in element #\d+ of executemany\(\) sequence)?: "
    r".*\(([^()]*)\)$",
    re.DOTALL,
)
_NAME = re.compile(r'"[A-Za-z_]\w*"')
_QUOTED = re.compile(r'"[^"]*"?|\'[^\']*\'?')


def state_of(error: BaseException) -> str:
    """Return the SQLSTATE of an error; "" where it has none."""
    return str(getattr(error, "sqlstate", None) or "")


def is_lost(error: BaseException) -> bool:
    """Return whether the connection is of no use any more: what was sent may not have arrived.

    The driver's word for it may stand in place of the reason, which is then its context.
    """
    if argument_of(error) is not None:
        return False
    if isinstance(error, asyncpg.PostgresError):
        return state_of(error).startswith(_LOST)
    return isinstance(
        error,
        (OSError, asyncio.TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    )


def is_conflict(error: BaseException) -> bool:
    """Return whether another transaction was in the way, or a table changed under a known plan."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return True
    return state_of(error) in _CONFLICTS


def is_own_duplicate(error: BaseException) -> bool:
    """Return whether a key of our own tables is there already, or a table that a unit makes.

    Of two units that insert it at once the later is told so, and not that it met a conflict.
    """
    table = getattr(error, "table_name", None) or ""
    is_ours = table.startswith(("sm_", "pg_"))
    return (state_of(error) == "23505" and is_ours) or state_of(error) == "42P07"


def is_untyped(error: BaseException) -> bool:
    """Return whether the server could not tell, or told wrongly, the types of a statement."""
    return state_of(error) in _UNTYPED


def argument_of(error: BaseException) -> int | None:
    """Return which value, from 0, the driver could not bring to the type that was inferred."""
    if not isinstance(error, asyncpg.DataError):
        return None
    found = _ARGUMENT.match(str(error))
    return int(found[1]) - 1 if found is not None else None


def translate(error: BaseException, *, path: str, sql: str = "") -> StoreError:
    """Translate an error of the driver to a `StoreError`.

    It names the database, the server's words and the statement; never a literal or bound value.

    Example:
        >>> error = asyncpg.UniqueViolationError("duplicate key value violates a constraint")
        >>> translate(error, path="shop", sql="insert into hold values ('x')").message
        'shop: duplicate key value violates a constraint (in: insert into hold values (…)); nothing was written'
    """  # noqa: E501
    state, kind = state_of(error), state_of(error)[:2]
    text = f"{path}: {_words(error)}{in_statement(sql)}"
    if is_lost(error):
        return StoreUnavailable(
            f"{text}: the connection to PostgreSQL is lost; it is made again by itself: ask again"
        )
    if kind == "23" or (kind == "22" and leading_word(sql, nests=True) in _WRITES):
        return ConstraintFailed(f"{text}; nothing was written")
    if state in ("53100", "53200"):
        return StoreFull(f"{text}: make room on the server's disk or memory, then try again")
    if kind == "53":
        return StoreUnavailable(f"{text}: the server has no room for more connections: ask again")
    if state == READ_ONLY:
        return StoreReadOnly(
            f"{text}: the server takes no writes, as a standby does; give the address of the one "
            "that does"
        )
    if state == "42501":
        return StoreReadOnly(f"{text}: grant that to the role of the service, or run it as another")
    if kind in ("22", "42", "0A", "54") and sql:
        return StatementFailed(f"{text}: mend the statement; nothing is wrong with the database")
    return StoreBroken(text)


def _words(error: BaseException) -> str:
    """Return what the server says of an error, without what it quotes of the data."""
    words = str(getattr(error, "message", None) or error).strip().split("\n")[0]
    state = state_of(error)
    if argument_of(error) is not None:
        found = _ARGUMENT.match(str(error))
        assert found is not None
        return f"value {found[1]} does not fit ({_QUOTED.sub('…', found[2])})"
    if state == "23505":
        # As the other engine says it: tables and columns, where they are told.
        found = _UNIQUE_KEY.match(str(getattr(error, "detail", "") or ""))
        table = getattr(error, "table_name", None)
        if found is not None and table:
            columns = ", ".join(f"{table}.{each.strip()}" for each in found[1].split(","))
            return f"{words} ({columns})"
    if "multiple commands" in words:
        return "one execute is one statement, and there are several"
    if state == "42601":
        return _QUOTED.sub(lambda found: found[0] if _NAME.fullmatch(found[0]) else "…", words)
    if state[:2] == "22":
        return _QUOTED.sub("…", words)
    return words
