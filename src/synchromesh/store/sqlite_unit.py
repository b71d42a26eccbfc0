"""The unit of work on SQLite, and how its body is driven without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextvars import Context
from functools import lru_cache
from typing import Any, TypeVar

from synchromesh.errors import ForeignAwait, StoreBroken, StoreError, UnitTooLong
from synchromesh.store.guard import in_unit
from synchromesh.store.sqlite_errors import (
    FATAL,
    INTERRUPT,
    SqliteFault,
    code_of,
    refuse_unstorable,
    translate,
)
from synchromesh.store.unit import Row, SqlValue, Unit

T = TypeVar("T")

TRANSACTIONAL = frozenset({"begin", "commit", "end", "rollback", "savepoint", "release"})
"""What begins or ends a transaction, or a part of one."""

_CONTROL = TRANSACTIONAL | {"attach", "detach", "vacuum", "pragma"}
# SQLite skips a byte order mark wherever it skips blanks.
_LEADING = re.compile(r"(?:[\s\ufeff]+|--[^\n]*(?:\n|$)|/\*.*?(?:\*/|$)|;)*(\w*)", re.DOTALL)


def leading_word(sql: str) -> str:
    """Return the first word of a statement in lower case, past blanks and comments.

    Example:
        >>> leading_word("/* now */ COMMIT")
        'commit'
    """
    word = _LEADING.match(sql)
    return word[1].lower() if word is not None else ""


@lru_cache(maxsize=1024)
def is_control(sql: str) -> bool:
    """Say whether a statement steers transactions, files or the engine: those are the store's own.

    Example:
        >>> is_control("select 1"), is_control("/* now */ COMMIT")
        (False, True)
    """
    return leading_word(sql) in _CONTROL


def refuse_control(sql: str, name: str) -> None:
    """Raise `StoreBroken` for a statement that only the store itself may run."""
    if is_control(sql):
        raise StoreBroken(
            f"{name} ran a statement that steers the engine (transaction, attach, pragma); those "
            "are the store's own: let the unit's return commit it and its error roll it back"
        )


class SqliteUnit:
    """Executes one unit's statements inside its savepoint, until it ends, is late or is spoiled."""

    __slots__ = (
        "_clock", "_connection", "_is_over", "_path", "_until_s", "fault", "is_late",
        "name", "now_us", "service", "spoiled_by", "topics", "unit_id",
    )  # fmt: skip

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        name: str,
        unit_id: str,
        service: str,
        path: str,
        now_us: int,
        clock: Callable[[], float],
        limit_s: float,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self._until_s = clock() + limit_s
        self._is_over = False
        self._path = path
        self.name = name
        self.unit_id = unit_id
        self.service = service
        self.now_us = now_us
        self.topics: set[str] = set()
        self.fault = 0
        self.is_late = False
        self.spoiled_by: StoreError | None = None

    async def execute(self, sql: str, *values: SqlValue) -> list[Row]:
        """Run one statement and return its rows; raises a `StoreError` for what SQLite refuses."""
        self._check(sql)
        refuse_unstorable(values, sql, path=self._path)
        try:
            return self._connection.execute(sql, values).fetchall()
        except SqliteFault as error:
            raise self._refused(error, sql) from error

    async def execute_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run one statement for each row of values; raises as `execute` does, for any of them."""
        self._check(sql)
        for values in rows:
            # What the driver itself refuses is told apart below, from the one row that has it.
            if any(value != value for value in values):
                refuse_unstorable(values, sql, path=self._path)
        try:
            self._connection.executemany(sql, rows)
        except SqliteFault as error:
            raise self._refused(error, sql) from error
        except (OverflowError, UnicodeEncodeError):
            for values in rows:
                refuse_unstorable(values, sql, path=self._path)
            raise

    def notify(self, topic: str) -> None:
        """Wake the listeners of a topic after the commit."""
        self.topics.add(topic)

    def end(self) -> None:
        """Refuse whatever is still asked of the unit."""
        self._is_over = True

    def is_overdue(self) -> bool:
        """Say whether the unit has outlived its limit."""
        return self.is_late or self._clock() > self._until_s

    def too_long(self) -> UnitTooLong:
        """Return the error of a unit that outlived its limit."""
        return UnitTooLong(
            f"unit {self.name!r} outlived its limit and was rolled back; move slow work out of it: "
            f"while it runs it holds the database of {self.service!r}"
        )

    def _check(self, sql: str) -> None:
        """Raise where the unit may run no further statement, or not this one."""
        if self._is_over:
            raise ForeignAwait(f"unit {self.name!r} is over; it can be used only inside its body")
        if self.spoiled_by is not None:
            raise self.spoiled_by
        if self.is_overdue():
            self.is_late, self.fault = True, INTERRUPT
            raise self.too_long()
        refuse_control(sql, f"unit {self.name!r}")

    def _refused(self, error: Exception, sql: str) -> StoreError:
        code = code_of(error)
        if code == INTERRUPT or code in FATAL:
            self.fault = code
        refusal = translate(error, path=self._path, sql=sql)
        if code == INTERRUPT and self.is_late:
            refusal = self.too_long()
        if not self._connection.in_transaction:
            # Without its transaction the next statement would commit by itself.
            self.spoiled_by = refusal
        return refusal


def drive(body: Callable[[Unit], Awaitable[T]], unit: SqliteUnit, context: Context) -> T:
    """Run a body to its end in one step, in its submitter's context, and return its result.

    The body can be driven without a loop because all that it may await is the unit, which never
    suspends. While it runs there is no running loop, in a thread and in simulation alike, so that
    both refuse the same things.

    Raises:
        ForeignAwait: it awaited something else; it has been closed.
        StoreBroken: it is no async function.
    """
    context.run(in_unit.set, unit.name)
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        awaitable = context.run(body, unit)
        if not isinstance(awaitable, Awaitable):
            raise StoreBroken(
                f"unit {unit.name!r} ({_name_of(body)}) returned {type(awaitable).__name__}, "
                "nothing to await: its body has to be an async function; write async def"
            )
        steps = awaitable.__await__()
        try:
            context.run(steps.send, None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        awaited = _awaited(awaitable)
        unit.end()
        _close(steps, context)
        raise _foreign(unit.name, body, awaited)
    except RuntimeError as error:
        if "no running event loop" in str(error):
            raise _foreign(unit.name, body, "the event loop") from error
        raise
    finally:
        asyncio._set_running_loop(loop)


def _foreign(name: str, body: object, awaited: str) -> ForeignAwait:
    return ForeignAwait(
        f"unit {name!r} ({_name_of(body)}) awaited {awaited}; a unit may await nothing but itself, "
        "because it holds the database: do the rest before or after the unit"
    )


def _name_of(body: object) -> str:
    name: str = getattr(body, "__qualname__", type(body).__name__)
    return name


def _awaited(awaitable: object) -> str:
    chain: list[str] = []
    while (inner := getattr(awaitable, "cr_await", None)) is not None and len(chain) < 16:
        chain.append(getattr(inner, "__qualname__", type(inner).__name__))
        awaitable = inner
    return " → ".join(chain) or "something that suspends"


def _close(steps: Generator[Any, Any, Any], context: Context) -> None:
    # Whatever its clean-up raises, the unit is rolled back and its own error told.
    with contextlib.suppress(BaseException):
        context.run(steps.close)
