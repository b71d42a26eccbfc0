"""How a transaction of units begins and ends on PostgreSQL: each in one trip to the server.

The snapshot is taken with the lock held that a beginning asks for, as it is not by a function that
locks. What a function has set for the session, and was committed, is no business of the next unit.
"""

from __future__ import annotations

from synchromesh.store.postgres_answers import Again, Lost
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_errors import PostgresFault, is_conflict, is_lost

TABLES = (
    "create table sm_commit(unit text primary key, at_us bigint not null)",
    "create table sm_turn()",
)
"""The marks of commits; and what units lock, to be beside others or alone: it has no rows."""

_BEGINS = "begin isolation level serializable read write; reset all; lock table sm_turn in "
BEGIN = f"{_BEGINS}row share mode"
"""Begins beside others."""

BEGIN_ALONE = f"{_BEGINS}exclusive mode"
"""Begins once no other unit is under way, and keeps others out."""

IN_ORDER = "; lock table sm_log in exclusive mode"
"""To be appended: holds the order of the log to the end, and nobody else gives positions."""

HURRIED = "; set local lock_timeout = 250"
"""To be appended: waits for nobody long, for all who append wait for it meanwhile.

A unit that has yet to end may have inserted what is inserted here, and its process stand still."""

SAVEPOINT = "; savepoint sm_body"
"""To be appended to what begins; `rollback to sm_body` undoes all since then."""

LOOK_UP = "insert into sm_commit(unit, at_us) values ($1, $2) on conflict do nothing returning 1"
"""Returns nothing where a commit of that mark took effect, and keeps it from it where not."""

SWEEP = "delete from sm_commit where unit >= $1 and unit < $2"
"""Deletes the marks of a store's own, from one to before another."""

FORGET = "delete from sm_commit where at_us < $1"
"""Deletes the marks of stores that are gone, which were made before a time."""

# One trip for both, and a mark only where something was written. Nobody reads the table in a unit,
# so that it is in no conflict.
_COMMIT = (
    "insert into sm_commit(unit, at_us) select '{unit}', {now_us} "
    "where pg_current_xact_id_if_assigned() is not null; commit"
)


async def send(connection: Connection, sql: str) -> None:
    """Run what begins a transaction, or ends one without a result; raises `Lost` if it fails."""
    try:
        await connection.execute(sql)
    except PostgresFault as error:
        # Not known to be in a transaction, or out of one: it is not kept.
        raise Lost(error) from error


async def roll_back(connection: Connection) -> None:
    """Roll a transaction back; raises `Lost` if that fails."""
    await send(connection, "rollback")


async def commit(connection: Connection, unit_id: str, now_us: int) -> BaseException | None:
    """Commit, marked with an id; return the driver's error where it is refused, which is no loss.

    Raises:
        Lost: there was no answer, and it may have taken effect or may not.
        Again: another unit was in the way.
    """
    try:
        await connection.execute(_COMMIT.format(unit=unit_id, now_us=now_us))
    except PostgresFault as error:
        if is_lost(error):
            raise Lost(error) from error
        if is_conflict(error):
            raise Again(error) from error
        return error
    return None
