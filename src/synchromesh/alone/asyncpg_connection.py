"""Units in a transaction of an asyncpg connection of an application's own.

A `BEGIN` that was cancelled leaves a connection on which each later `transaction()` is a savepoint
of a transaction that nobody will commit, without an error: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import TransactionState

from synchromesh.alone.borrowed import (
    DOOM,
    LOOK,
    PROBE,
    check_began,
    check_look,
    is_over,
    judged,
    no_transaction,
    unknown,
)
from synchromesh.errors import StoreBroken
from synchromesh.store import Fetched, Row, SqlValue
from synchromesh.store.postgres_connection import run
from synchromesh.store.postgres_dialect import Translation


class BorrowedAsyncpg:
    """Runs the statements of a unit in the transaction of an asyncpg connection."""

    def __init__(self, connection: Any) -> None:
        if not isinstance(connection, asyncpg.Connection | PoolConnectionProxy):
            raise unknown(connection)
        self._connection = connection
        self._outer: Any = None
        self._began: object = None

    async def begin(self) -> None:
        """Check that a unit can be in the connection's transaction; raises as the Protocol says."""
        connection = self._connection
        if connection.is_closed() or not connection.is_in_transaction():
            raise no_transaction("connection", "async with connection.transaction()")
        # There is no public word for it; a test holds that it is this one.
        self._outer = connection._top_xact
        if self._outer is not None and self._outer._state is TransactionState.FAILED:
            raise StoreBroken(
                "a BEGIN on the connection was cancelled, and every transaction() since is a "
                "savepoint of one that nobody commits: close it (`connection.terminate()`), or "
                "release it to its pool, and take another one"
            )
        (row,) = await self._judging(connection.fetch(LOOK))
        self._began = check_look(tuple(row))

    async def run(
        self, plan: Translation, values: Sequence[SqlValue], *, has_columns: bool = False
    ) -> Fetched:
        """Run a statement."""
        self._check_same()
        got = await self._judging(run(self._connection, plan, values, has_columns=has_columns))
        return got if isinstance(got, Fetched) else Fetched((), got)

    async def run_many(self, plan: Translation, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run a statement for each row of values."""
        self._check_same()
        await self._judging(self._connection.executemany(plan.text(rows[0]), rows))

    async def end(self) -> None:
        """Check that the transaction stands; raises as the Protocol says."""
        self._check_same()
        rows: list[Row] = await self._judging(self._connection.fetch(PROBE))
        check_began(self._began, rows[0][0])

    async def undo(self) -> None:
        """Have the transaction commit nothing, or the savepoint that the unit is within.

        It is not rolled back: whoever handles the error would go on without a transaction.
        """
        if self._connection.is_in_transaction():
            try:
                with suppress(asyncpg.PostgresError):
                    await self._connection.execute(DOOM)
            except asyncpg.InterfaceError:
                # Another task's statement is under way: without the connection nothing is stored.
                self._connection.terminate()
                raise

    def after_commit(self, told: Callable[[], None]) -> None:
        """Do nothing: the driver tells of no commit."""

    def _check_same(self) -> None:
        connection = self._connection
        if not connection.is_in_transaction() or connection._top_xact is not self._outer:
            raise is_over()

    async def _judging(self, asked: Any) -> Any:
        try:
            return await asked
        except asyncpg.PostgresError as error:
            told = judged(error)
            if told is None:
                raise
            raise told from error
