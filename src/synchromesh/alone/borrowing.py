"""What borrows the transaction of a session or connection; an engine is imported for its own."""

from __future__ import annotations

from typing import Any

from synchromesh.alone.borrowed import BorrowedTransaction, unknown


def borrow(given: Any) -> BorrowedTransaction:
    """Return the transaction of a session or connection, as a unit borrows it.

    Raises:
        ContractError: it is none of those that are known.
    """
    roots = {cls.__module__.partition(".")[0] for cls in type(given).__mro__}
    if "sqlalchemy" in roots:
        from synchromesh.alone.sqlalchemy_session import BorrowedSession

        return BorrowedSession(given)
    if "asyncpg" in roots:
        from synchromesh.alone.asyncpg_connection import BorrowedAsyncpg

        return BorrowedAsyncpg(given)
    if "psycopg" in roots:
        from synchromesh.alone.psycopg_connection import BorrowedPsycopg

        return BorrowedPsycopg(given)
    raise unknown(given)
