"""Runs the statements that one attempt of a unit asks for, on the connection that it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from synchromesh.store.postgres_append import as_values
from synchromesh.store.postgres_connection import Connection, run
from synchromesh.store.postgres_dialect import Translation
from synchromesh.store.postgres_errors import (
    PostgresFault,
    argument_of,
    is_conflict,
    is_lost,
    is_own_duplicate,
    is_untyped,
)
from synchromesh.store.postgres_unit import Asked, AskedAppend, AskedForetold
from synchromesh.store.statements import refuse
from synchromesh.store.unit import SqlValue


class Again(Exception):
    """Signal that the unit has to be rolled back and run again.

    Attributes:
        error: the driver's, of a conflict; None where something has been learnt.
        is_careful: the next run has a savepoint around each statement.
    """

    def __init__(self, error: BaseException | None = None, *, is_careful: bool = False) -> None:
        super().__init__()
        self.error = error
        self.is_careful = is_careful


class Lost(Exception):
    """Signal that the connection is of no use any more."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class UnitAnswers:
    """Answer what one attempt of a unit asks for.

    Args:
        path: where the database is, as messages show it.
        is_careful: each statement has a savepoint, so that one that is refused undoes only itself.
        is_patient: a duplicate of a key of our own tables may be a conflict; it is once.

    Attributes:
        has_failed: a statement was refused, and the transaction is of no use unless it is undone.
        is_cut: it ended in the middle of a statement.
        has_appended: something was inserted into a log.
        has_session: something may have been left in the session.
        asks: how often something was asked.
        appends: how often that was an append to one stream.
        is_batch: it appended as a batch does.
    """

    def __init__(
        self, connection: Connection, *, path: str, is_careful: bool, is_patient: bool
    ) -> None:
        self._connection = connection
        self._path = path
        self._is_careful = is_careful
        self._is_patient = is_patient
        self.has_failed = False
        self.asks = self.appends = 0
        self.is_batch = False
        self.is_cut = self.has_appended = self.has_session = False

    async def answer(self, asked: Asked) -> object:
        """Run what is asked and return its rows.

        Raises:
            Again: the whole unit has to be run again.
            Lost: the connection is.
            StatementFailed: it has ended the transaction; the connection is not kept.
            PostgresFault: the statement was refused.
        """
        plan, rows, values = asked.plan, asked.rows, asked.values
        if isinstance(asked, AskedForetold):
            return False
        self.asks += 1
        if isinstance(asked, AskedAppend):
            values = cast("Sequence[SqlValue]", as_values(asked.appends))
            self.appends += asked.is_lone
            self.is_batch = self.is_batch or asked.is_each
        if plan is None:
            await self._send("rollback to sm_body")
            self.has_failed = False
            return None
        if self.has_failed:
            # The transaction is over, and the body goes on all the same.
            raise Again(is_careful=True)
        self.has_appended = self.has_appended or plan.has_log
        self.has_session = self.has_session or plan.has_session
        if rows is None:
            return await self._run(plan, values, has_columns=asked.has_columns)
        if self._is_careful:
            # One by one: those before the one that is refused stand.
            for values in rows:
                await self._run(plan, values)
        else:
            await self._run_many(plan, rows)
        return []

    async def _run(
        self, plan: Translation, values: Sequence[SqlValue], *, has_columns: bool = False
    ) -> object:
        if self._is_careful:
            await self._send("savepoint sm_statement")
        self.is_cut = True
        try:
            got = await run(self._connection, plan, values, has_columns=has_columns)
        except PostgresFault as error:
            self.is_cut = False
            self._judge(error, plan, values)
            if self._is_careful:
                await self._send("rollback to sm_statement")
            else:
                self.has_failed = True
            raise
        self._refuse_ended(plan)
        self.is_cut = False
        if self._is_careful:
            await self._send("release sm_statement")
        return got

    async def _run_many(self, plan: Translation, rows: Sequence[Sequence[SqlValue]]) -> None:
        self.is_cut = True
        try:
            at = 0
            while at < len(rows):
                # As many as have one text: without casts that is all of them.
                text, end = plan.text(rows[at]), at + 1
                while end < len(rows) and plan.text(rows[end]) == text:
                    end += 1
                await self._connection.executemany(text, rows[at:end])
                at = end
        except PostgresFault as error:
            self.is_cut = False
            self._judge(error, plan, rows[at])
            place = argument_of(error)
            # It may be of any of the rows, and those before it have been sent.
            if place is not None and any(plan.learn(values, place) for values in rows):
                raise Again from error
            self.has_failed = True
            raise
        self._refuse_ended(plan)
        self.is_cut = False

    def _refuse_ended(self, plan: Translation) -> None:
        """Raise `StatementFailed` where a statement has ended the transaction of its unit."""
        if not self._connection.is_in_transaction():
            raise refuse(
                "a statement has ended the unit's transaction, and what the unit had done by then "
                "may stand; leave it out, and let the unit's return commit it and its error roll "
                "it back",
                plan.sql,
                path=self._path,
            )

    def _judge(self, error: BaseException, plan: Translation, values: Sequence[SqlValue]) -> None:
        """Raise `Lost` or `Again` where the body has no part in an error."""
        if is_lost(error):
            self.is_cut = True
            raise Lost(error) from error
        if is_conflict(error) or (self._is_patient and is_own_duplicate(error)):
            raise Again(error) from error
        if is_untyped(error) and plan.learn(values):
            raise Again from error

    async def _send(self, sql: str) -> None:
        self.is_cut = True
        try:
            await self._connection.execute(sql)
        except PostgresFault as error:
            if is_lost(error):
                raise Lost(error) from error
            self.is_cut = False
            raise Again(error) from error
        self.is_cut = False
