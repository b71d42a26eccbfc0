"""The unit of work on SQLite, and how its body is driven without an event loop."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import chain
from types import NoneType
from typing import Any, TypeVar

from synchromesh.errors import ForeignAwait, StoreError, UnitTooLong
from synchromesh.sealing import Vault
from synchromesh.store.bodies import as_coroutine, awaited_by, foreign
from synchromesh.store.guard import in_unit
from synchromesh.store.sqlite_errors import (
    FATAL,
    INTERRUPT,
    SqliteFault,
    code_of,
    translate,
)
from synchromesh.store.statements import TRANSACTIONAL, leading_word, refuse, refuse_unstorable
from synchromesh.store.unit import Fetched, Row, SqlValue, Unit

T = TypeVar("T")

# Statements of which the engine counts what they change.
_COUNTED = frozenset({"select", "insert", "update", "delete", "replace", "with", "values"})
_CONTROL = TRANSACTIONAL | {"attach", "detach", "vacuum", "pragma"}

CHECKED: set[str] = set()
"""The statements that `check_statement` let pass. A text keeps its hash, and most are found by
identity, so that looking one up costs a hundredth of checking it."""

_CHECKED_MAX = 1024

# Of these no value is NaN. Whether others are there is asked of a row, or of all rows at once, in
# one call of the interpreter's: a look at each value would cost more than binding it.
_NEVER_NAN = frozenset((str, int, bytes, NoneType, bool))


def check_statement(sql: str, who: str, *, path: str) -> bool:
    """Validate a statement: refuse transaction control and settings; cache one that passes.

    One that is none of the usual is not remembered: False says that what it changes is uncounted.

    Raises:
        StatementFailed: it steers the engine, or is no Unicode text.
    """
    word = leading_word(sql)
    if word in _CONTROL:
        raise refuse(
            f"{who} ran a statement that steers the engine (transaction, attach, pragma); those "
            "are the store's own: let the unit's return commit it and its error roll it back",
            sql,
            path=path,
        )
    refuse_unstorable((), sql, path=path)
    if word not in _COUNTED:
        return False
    if len(CHECKED) >= _CHECKED_MAX:
        # Only those who write literals into their SQL come here; they pay for it.
        CHECKED.clear()
    CHECKED.add(sql)
    return True


def run_statement(
    connection: sqlite3.Connection,
    sql: str,
    values: tuple[SqlValue, ...],
    *,
    path: str,
    names: list[str] | None = None,
) -> list[Row]:
    """Run one checked statement and return its rows; raises the driver's errors as they are.

    `names` gets those of the columns: few ask for them, and they are a frame for each column.

    Raises:
        StatementFailed: a value cannot be stored as it is.
    """
    if not _NEVER_NAN.issuperset(map(type, values)):
        _refuse_nan(values, sql, path=path)
    try:
        cursor = connection.execute(sql, values)
    except (OverflowError, UnicodeError):
        refuse_unstorable(values, sql, path=path)  # says which value it is, and what to do
        raise
    if names is not None:
        names += [each[0] for each in cursor.description or ()]
    return cursor.fetchall()


def run_statements(
    connection: sqlite3.Connection, sql: str, rows: Sequence[Sequence[SqlValue]], *, path: str
) -> None:
    """Run one checked statement for each row of values; raises as `run_statement` does."""
    if not _NEVER_NAN.issuperset(map(type, chain.from_iterable(rows))):
        for values in rows:
            _refuse_nan(values, sql, path=path)
    try:
        connection.executemany(sql, rows)
    except (OverflowError, UnicodeError):
        for values in rows:
            refuse_unstorable(values, sql, path=path)
        raise


def _refuse_nan(values: Sequence[SqlValue], sql: str, *, path: str) -> None:
    """Refuse what is not a number; raises `StatementFailed`."""
    for value in values:
        # The driver refuses whatever else it cannot store; of NaN it makes NULL without a word.
        if isinstance(value, float) and value != value:
            refuse_unstorable(values, sql, path=path)


@dataclass(slots=True)
class Database:
    """The connection of a writer, as its units share it.

    Attributes:
        life_id: the first 23 characters of the UUIDs of units; others each time the file is opened.
        new_id: makes UUIDv7s; it is called in the writer's thread.
    """

    connection: sqlite3.Connection
    path: str
    service: str
    life_id: str
    new_id: Callable[[], str]
    vault: Vault

    def id_of(self, number: int) -> str:
        """Return the id of a unit; ids ascend in the order of submission."""
        return f"{self.life_id}-{number:012x}"


class SqliteUnit:
    """Execute the statements of one unit, until it ends, times out or loses its transaction.

    Attributes:
        fault: the engine's code, where a statement met an interruption or a fault of the file.
        is_late: it has outlived its limit.
        is_uncounted: it has run a statement of which the engine does not count what it changes.
        spoiled_by: why the engine rolled back the whole transaction under it.
        topics: those that it notified.
    """

    __slots__ = (
        "_database", "_is_over", "_is_stopped", "_number", "fault", "is_late", "is_uncounted",
        "name", "now_us", "spoiled_by", "topics",
    )  # fmt: skip

    def __init__(self, database: Database, number: int, name: str, now_us: int) -> None:
        self._database = database
        self._number = number
        self.name = name
        self.now_us = now_us
        self.topics: set[str] | None = None
        self.fault = 0
        self.is_late = False
        self.is_uncounted = False
        self.spoiled_by: StoreError | None = None
        self._is_over = False
        # One flag for all that refuses a statement: the three before are looked at only then.
        self._is_stopped = False

    @property
    def unit_id(self) -> str:
        """The id of the unit; formatted on demand, as few ask."""
        return self._database.id_of(self._number)

    @property
    def service(self) -> str:
        """The service that owns the database."""
        return self._database.service

    @property
    def vault(self) -> Vault:
        """The keys of the service's subjects."""
        return self._database.vault

    def new_id(self) -> str:
        """Return a new UUIDv7."""
        return self._database.new_id()

    async def execute(self, sql: str, *values: SqlValue) -> list[Row]:
        """Run one statement and return its rows; raises a `StoreError` for what SQLite refuses."""
        if self._is_stopped:
            raise self._why_stopped()
        database = self._database
        if sql not in CHECKED and not check_statement(sql, self._who(), path=database.path):
            self.is_uncounted = True
        try:
            # As `run_statement` does, without its frame.
            if not _NEVER_NAN.issuperset(map(type, values)):
                _refuse_nan(values, sql, path=database.path)
            return database.connection.execute(sql, values).fetchall()
        except SqliteFault as error:
            raise self._refused(error, sql) from error
        except (OverflowError, UnicodeError):
            refuse_unstorable(values, sql, path=database.path)
            raise

    async def fetch(self, sql: str, *values: SqlValue) -> Fetched:
        """Run one statement and return its rows and columns; raises as `execute` does."""
        if self._is_stopped:
            raise self._why_stopped()
        database = self._database
        if sql not in CHECKED and not check_statement(sql, self._who(), path=database.path):
            self.is_uncounted = True
        try:
            names: list[str] = []
            rows = run_statement(database.connection, sql, values, path=database.path, names=names)
            return Fetched(tuple(names), rows)
        except SqliteFault as error:
            raise self._refused(error, sql) from error

    async def execute_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run one statement for each row of values; raises as `execute` does, for any of them."""
        if self._is_stopped:
            raise self._why_stopped()
        database = self._database
        if sql not in CHECKED and not check_statement(sql, self._who(), path=database.path):
            self.is_uncounted = True
        try:
            run_statements(database.connection, sql, rows, path=database.path)
        except SqliteFault as error:
            raise self._refused(error, sql) from error

    def notify(self, topic: str) -> None:
        """Notify the listeners of a topic after the commit."""
        if self.topics is None:
            self.topics = set()
        self.topics.add(topic)

    def end(self) -> None:
        """Refuse every further statement: the body has returned."""
        self._is_over = self._is_stopped = True

    def expire(self) -> None:
        """Refuse every further statement: the unit has timed out.

        This is the watchdog's: it may be called from another thread.
        """
        self.is_late = self._is_stopped = True

    def too_long(self) -> UnitTooLong:
        """Return the error of a unit that has timed out."""
        return UnitTooLong(
            f"unit {self.name!r} outlived its limit and was rolled back; move slow work out of it: "
            f"while it runs it holds the database of {self.service!r}"
        )

    def _who(self) -> str:
        return f"unit {self.name!r}"

    def _why_stopped(self) -> StoreError | ForeignAwait:
        if self._is_over:
            return ForeignAwait(f"unit {self.name!r} is over; it can be used only inside its body")
        if self.spoiled_by is not None:
            return self.spoiled_by
        self.fault = INTERRUPT
        return self.too_long()

    def _refused(self, error: Exception, sql: str) -> StoreError:
        code = code_of(error)
        if code == INTERRUPT or code in FATAL:
            self.fault = code
        refusal = translate(error, path=self._database.path, sql=sql)
        if code == INTERRUPT and self.is_late:
            refusal = self.too_long()
        if not self._database.connection.in_transaction:
            # Without its transaction the next statement would commit by itself.
            self.spoiled_by, self._is_stopped = refusal, True
        return refusal


def drive(
    body: Callable[[Unit], Awaitable[Any]],
    unit: SqliteUnit,
    context: Context,
    around: Coroutine[Any, Any, T] | None = None,
) -> T:
    """Run a body to its end in one step, in its submitter's context, and return its result.

    With `around` that is run instead: it awaits the body, and the unit before and after it.

    The body can be driven without a loop because all that it may await is the unit, which never
    suspends. The caller sees to it that no loop is running, in a thread and in simulation alike, so
    that both refuse the same things.

    Raises:
        ForeignAwait: it awaited something else; it has been closed.
        ContractError: it is not an async function.
    """
    return context.run(_drive, body, unit, around)


def _drive(
    body: Callable[[Unit], Awaitable[Any]],
    unit: SqliteUnit,
    around: Coroutine[Any, Any, T] | None,
) -> T:
    in_unit.set(unit.name)
    try:
        steps = around or as_coroutine(body(unit), body, unit.name)
        try:
            steps.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        awaited = awaited_by(steps, past=1 if around is None else 2)
        unit.end()
        # Whatever its clean-up raises, the unit is rolled back and its own error told.
        with contextlib.suppress(BaseException):
            steps.close()
        raise foreign(unit.name, body, awaited)
    except RuntimeError as error:
        if "no running event loop" in str(error):
            raise foreign(unit.name, body, "the event loop") from error
        raise
