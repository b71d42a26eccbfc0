"""Units in a transaction of a psycopg `AsyncConnection` of an application's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row

from synchromesh.alone.borrowed import (
    DOOM,
    LOOK,
    PROBE,
    autocommits,
    check_began,
    check_look,
    is_over,
    judged,
    no_transaction,
    unknown,
)
from synchromesh.store import Fetched, SqlValue
from synchromesh.store.postgres_dialect import Translation

_WITHIN = (TransactionStatus.INTRANS, TransactionStatus.INERROR)


class BorrowedPsycopg:
    """Runs the statements of a unit in the transaction of a psycopg connection."""

    def __init__(self, connection: Any) -> None:
        if not isinstance(connection, psycopg.AsyncConnection):
            raise unknown(connection)
        self._connection: psycopg.AsyncConnection[Any] = connection
        self._began: object = None

    async def begin(self) -> None:
        """Check that a unit can be in the connection's transaction; raises as the Protocol says.

        Where the connection is not in autocommit, its first statement begins one.
        """
        if self._connection.closed:
            raise no_transaction("connection", "async with connection.transaction()")
        found = await self._send(LOOK, ())
        if self._connection.info.transaction_status not in _WITHIN:
            raise autocommits("connection")
        self._began = check_look(found.rows[0])

    async def run(
        self,
        plan: Translation,
        values: Sequence[SqlValue],
        *,
        has_columns: bool = False,  # noqa: ARG002
    ) -> Fetched:
        """Run a statement."""
        self._check_same()
        return await self._send(plan.text(values), values)

    async def run_many(self, plan: Translation, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run a statement for each row of values."""
        self._check_same()
        async with self._cursor() as cursor:
            try:
                await cursor.executemany(plan.text(rows[0]).encode(), rows)
            except psycopg.Error as error:
                raise judged(error) or error from error

    async def end(self) -> None:
        """Check that the transaction stands; raises as the Protocol says."""
        self._check_same()
        check_began(self._began, (await self._send(PROBE, ())).rows[0][0])

    async def undo(self) -> None:
        """Have the transaction commit nothing, or the savepoint that the unit is within.

        It is not rolled back: whoever handles the error would go on in another transaction.
        """
        # Where another task's statement is under way, the driver has this one wait for it.
        if self._connection.info.transaction_status in (
            TransactionStatus.INTRANS, TransactionStatus.ACTIVE,
        ):  # fmt: skip
            with suppress(psycopg.Error):
                await self._connection.execute(DOOM.encode())

    def after_commit(self, told: Callable[[], None]) -> None:
        """Do nothing: the driver tells of no commit."""

    def _check_same(self) -> None:
        if self._connection.info.transaction_status not in _WITHIN:
            raise is_over()

    def _cursor(self) -> psycopg.AsyncRawCursor[TupleRow]:
        return psycopg.AsyncRawCursor(self._connection, row_factory=tuple_row)

    async def _send(self, sql: str, values: Sequence[SqlValue]) -> Fetched:
        async with self._cursor() as cursor:
            try:
                await cursor.execute(sql.encode(), values)
            except psycopg.Error as error:
                raise judged(error) or error from error
            if cursor.description is None:
                return Fetched((), [])
            return Fetched(tuple(each.name for each in cursor.description), await cursor.fetchall())
