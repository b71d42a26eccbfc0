"""What a unit needs of a transaction that somebody else has begun, and will end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from synchromesh.errors import (
    ContractError,
    StatementFailed,
    StoreBroken,
    StoreError,
    StoreReadOnly,
)
from synchromesh.store import Fetched, SqlValue
from synchromesh.store.postgres_dialect import Translation

_BEGAN = "cast(extract(epoch from now()) as text)"

LOOK = (
    "select current_setting('transaction_read_only'), to_regclass('sm_event') is not null, "
    f"{_BEGAN}"
)
"""The first statement of a unit: what `check_look` judges."""

PROBE = f"select {_BEGAN}"
"""The last one: refused where the transaction has failed, whose commit would say nothing."""

DOOM = (
    "do $$ begin raise exception "
    "'a unit of Synchromesh was left by an error: its transaction commits nothing'; end $$"
)
"""Fails on purpose, so that a transaction that cannot be rolled back from here commits nothing."""

FAILED = "25P02"
"""The state of what is refused since an earlier statement of the transaction was."""

DUPLICATE = "23505"

_BEGIN = "async with session.begin()"


class BorrowedTransaction(Protocol):
    """Runs the statements of a unit in a transaction that is somebody else's."""

    async def begin(self) -> None:
        """Check that a unit can be in the transaction.

        Raises:
            ContractError: there is none, or nothing would end it.
            StoreReadOnly: it only reads.
            StatementFailed: it has failed already.
            StoreBroken: the tables are not there.
        """
        ...

    async def run(
        self, plan: Translation, values: Sequence[SqlValue], *, has_columns: bool = False
    ) -> Fetched:
        """Run a statement; columns are told where they are asked for.

        Raises the driver's errors as they are.
        """
        ...

    async def run_many(self, plan: Translation, rows: Sequence[Sequence[SqlValue]]) -> None:
        """Run a statement for each row of values."""
        ...

    async def end(self) -> None:
        """Check that what ends the transaction will commit it.

        Raises:
            StatementFailed: it has failed, and its commit would write nothing.
            ContractError: it is over.
        """
        ...

    async def undo(self) -> None:
        """Roll it back, so that nobody commits a part of a unit."""
        ...

    def after_commit(self, told: Callable[[], None]) -> None:
        """Call `told` after the commit, where the driver tells of it: a hint."""
        ...


def unknown(given: object) -> ContractError:
    """Return the error of what is no session that a unit can be in."""
    kind = f"{type(given).__module__}.{type(given).__qualname__}"
    return ContractError(
        f"a unit was given a {kind}; give it the sqlalchemy.ext.asyncio.AsyncSession of the "
        "transaction, on PostgreSQL by asyncpg or psycopg, an asyncpg.Connection or a "
        "psycopg.AsyncConnection"
    )


def no_transaction(what: str = "session", begin: str = _BEGIN) -> ContractError:
    """Return the error of a unit in no transaction."""
    return ContractError(
        f"the {what} is in no transaction, so that nothing would commit the unit: begin one first "
        f"(`{begin}:`), and open the unit within it"
    )


def autocommits(what: str = "session") -> ContractError:
    """Return the error of a unit where each statement is committed by itself."""
    return ContractError(
        f"the {what} is in autocommit: each statement would be committed by itself, and a unit "
        "never be all or nothing: take one without isolation level AUTOCOMMIT"
    )


def failed() -> StatementFailed:
    """Return the error of a unit in a transaction that has failed."""
    return StatementFailed(
        "an earlier statement of the transaction was refused and its error was handled, but the "
        "transaction has failed with it: its commit would write nothing, and say nothing. Let the "
        "error end the transaction, or put a savepoint around what may be refused (`async with "
        "session.begin_nested():`, of a driver's connection `async with connection.transaction():`)"
    )


def is_over() -> ContractError:
    """Return the error of a unit whose transaction ended before it."""
    return ContractError(
        "the transaction was committed or rolled back within the block of its unit, so that what "
        "the unit did is in no one transaction: end it after the block"
    )


def check_look(row: Sequence[object]) -> object:
    """Judge what `LOOK` has found; return what tells the transaction from others."""
    read_only, has_tables, began = row
    if read_only == "on":
        raise StoreReadOnly(
            "the transaction is read only, and a unit writes: begin one that is not, on the "
            "primary server"
        )
    if not has_tables:
        raise StoreBroken(
            "the tables of Synchromesh are not there: run upgrade_statements(...) in a migration, "
            "in the schema that the session's search_path has first"
        )
    return began


def check_began(before: object, now: object) -> None:
    """Raise `ContractError` where what `PROBE` has found is another transaction."""
    if before != now:
        raise is_over()


def state_of_any(error: BaseException) -> str:
    """Return the SQLSTATE of a driver's error, also within SQLAlchemy's; "" where it has none."""
    return str(getattr(getattr(error, "orig", None) or error, "sqlstate", None) or "")


def judged(error: Exception) -> StoreError | None:
    """Return what stands for a driver's error; None where it is told as it is."""
    return failed() if state_of_any(error) == FAILED else None
