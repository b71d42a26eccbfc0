"""Units in a SQLAlchemy `AsyncSession`, on PostgreSQL by asyncpg or psycopg.

What a session does without an exception is what this is about:

- A block of `session.begin()` ends well after an error that was handled in it, and stores nothing:
  so the end of a unit looks whether the transaction still stands.
- With `expire_on_commit=False` what one transaction has read is what the next one is shown, even at
  SERIALIZABLE: so a session that had a unit expires, at the beginning of its next transaction, what
  it holds. What was changed before is told from what an earlier transaction has read, and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import event, inspect
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from synchromesh.alone.borrowed import (
    LOOK,
    PROBE,
    autocommits,
    check_began,
    check_look,
    failed,
    is_over,
    judged,
    no_transaction,
    unknown,
)
from synchromesh.errors import ContractError
from synchromesh.store import Fetched, SqlValue
from synchromesh.store.postgres_dialect import Translation

# Keys of a session's `info`.
_STALE = "synchromesh.stale"
_TOLD = "synchromesh.told"


class BorrowedSession:
    """Runs the statements of a unit in the transaction of an `AsyncSession`."""

    def __init__(self, session: Any) -> None:
        if not isinstance(session, AsyncSession):
            raise unknown(session)
        self._session = session
        self._root: SessionTransaction | None = None
        self._nested: SessionTransaction | None = None
        self._began: object = None
        self._is_dollar = True

    async def begin(self) -> None:
        """Check that a unit can be in the session's transaction; raises as the Protocol says."""
        sync = self._session.sync_session
        if not sync.in_transaction():
            raise no_transaction()
        if not sync.is_active:
            raise failed()
        if not sync.expire_on_commit and sync.info.get(_STALE):
            raise ContractError(
                "the session was made with expire_on_commit=False, and objects of it were changed "
                "between two transactions, from what the earlier one has read: others' changes "
                "would be overwritten. Change them within the transaction, after a "
                "`session.refresh()`, or take a session for each transaction"
            )
        self._root, self._nested = sync.get_transaction(), sync.get_nested_transaction()
        connection = await self._session.connection()
        dialect = connection.dialect
        if dialect.name != "postgresql" or dialect.paramstyle not in ("numeric_dollar", "pyformat"):
            raise ContractError(
                f"the session is on {dialect.name} by {dialect.driver}; units in a session of your "
                "own are on PostgreSQL, by asyncpg or psycopg"
            )
        self._is_dollar = dialect.paramstyle == "numeric_dollar"
        found = await self._send(LOOK, None)
        self._began = check_look(found.rows[0])
        driver: Any = (await connection.get_raw_connection()).driver_connection
        if not _is_in_transaction(driver):
            raise autocommits()
        _watch(sync)

    async def run(
        self,
        plan: Translation,
        values: Sequence[SqlValue],
        *,
        has_columns: bool = False,  # noqa: ARG002
    ) -> Fetched:
        """Run a statement."""
        return await self._send(self._text(plan), tuple(values) or None)

    async def run_many(self, plan: Translation, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run a statement for each row of values."""
        await self._send(self._text(plan), [tuple(each) for each in rows])

    async def end(self) -> None:
        """Flush the session, and check that the transaction stands; raises as that says."""
        self._check_same()
        if self._session.sync_session.get_nested_transaction() is not self._nested:
            raise is_over()
        await self._session.flush()
        check_began(self._began, (await self._send(PROBE, None)).rows[0][0])

    async def undo(self) -> None:
        """Roll the transaction back, or the savepoint that the unit is within."""
        sync = self._session.sync_session
        if sync.get_transaction() is not self._root:
            return
        if self._nested is not None:
            nested = self._session.get_nested_transaction()
            if nested is not None and nested.sync_transaction is self._nested:
                await nested.rollback()
        else:
            await self._session.rollback()

    def after_commit(self, told: Callable[[], None]) -> None:
        """Call `told` after the commit."""
        self._session.sync_session.info.setdefault(_TOLD, []).append(told)

    def _check_same(self) -> None:
        sync = self._session.sync_session
        if sync.get_transaction() is not self._root:
            raise is_over()
        if not sync.is_active:
            raise failed()
        within = sync.get_nested_transaction()
        while within is not None and within is not self._nested:
            within = within.parent
        if within is not self._nested:
            raise is_over()

    async def _send(
        self, sql: str, values: tuple[SqlValue, ...] | list[tuple[SqlValue, ...]] | None
    ) -> Fetched:
        self._check_same()
        try:
            # Each time: a savepoint of the session begins with the first one who asks within it.
            connection = await self._session.connection()
            result = await connection.exec_driver_sql(sql, values)
        except (DBAPIError, InvalidRequestError) as error:
            told = judged(error)
            if told is None:
                raise
            raise told from error
        if not result.returns_rows:
            return Fetched((), [])
        return Fetched(tuple(result.keys()), [tuple(row) for row in result])

    def _text(self, plan: Translation) -> str:
        if self._is_dollar:
            return plan.text(())
        return "%s".join(part.replace("%", "%%") for part in plan.parts)


def _is_in_transaction(driver: Any) -> bool:
    """Return whether a statement has left the driver's connection in a transaction."""
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return bool(driver.is_in_transaction())
    return int(driver.info.transaction_status) != 0  # libpq's word for idle


def _watch(session: Session) -> None:
    if not event.contains(session, "after_transaction_create", _begun):
        event.listen(session, "after_transaction_create", _begun)
        event.listen(session, "after_commit", _committed)


def _begun(session: Session, transaction: SessionTransaction) -> None:
    """Expire what an earlier transaction has read, as a commit would by default."""
    if transaction.parent is not None:
        return
    session.info.pop(_TOLD, None)
    if session.expire_on_commit:
        return
    held = [*session.identity_map.values()]
    changed = [each for each in held if inspect(each).modified]
    session.info[_STALE] = bool(changed)
    for each in held:
        if each not in changed:
            session.expire(each)


def _committed(session: Session) -> None:
    """Tell of the commit; the release of a savepoint is none."""
    if not session.in_nested_transaction():
        for told in session.info.pop(_TOLD, ()):
            told()
