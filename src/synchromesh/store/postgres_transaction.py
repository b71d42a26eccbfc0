"""How a transaction of units begins and ends on PostgreSQL: each in one trip to the server.

The snapshot is taken with the lock held that a beginning asks for, as it is not by a function that
locks. What a function has set for the session, and was committed, is no business of the next unit.
"""

from __future__ import annotations

from synchromesh.store.postgres_answers import Again, Lost
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_errors import (
    CANCELED,
    PostgresFault,
    is_conflict,
    is_lost,
    state_of,
)
from synchromesh.store.postgres_limits import TimeLimit

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

# One trip for both, and a mark only where something was written. Nobody reads the table in a unit,
# so that it is in no conflict.
_COMMIT = (
    "insert into sm_commit(unit, at_us) select '{unit}', {now_us} "
    "where pg_current_xact_id_if_assigned() is not null; commit"
)

# A mark of who looked one up is from far in the future, so that one that has no answer itself is
# not taken for the unit's.
_LOOKED_UP_US = 1 << 61
_LOOK_UP = "insert into sm_commit(unit, at_us) values ($1, $2) on conflict do nothing returning 1"
# Written again: whoever says that it stands waits for a synchronous standby, as the commit did.
# What a server has made durable alone is seen there once the session that waited is gone, and is
# lost with that server.
_MARKED = "update sm_commit set at_us = at_us where unit = $1 returning at_us"
_SWEEP = (
    "begin isolation level read committed; "
    "delete from sm_commit where unit >= '{first}' and unit < '{end}'; commit"
)
FORGET = f"delete from sm_commit where at_us % {_LOOKED_UP_US} < $1"
"""Deletes the marks of stores that are gone, which were made before a time."""


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


async def look_up(connection: Connection, mark: str, now_us: int, limit_s: float) -> bool:
    """Return whether a commit took effect that had no answer, by its mark (I3).

    Raises:
        Lost: there is none again, or its old session is still at it.
    """
    try:
        with TimeLimit(connection, limit_s):
            await connection.execute("begin isolation level read committed")
            if await connection.fetch(_LOOK_UP, mark, _LOOKED_UP_US + now_us):
                is_durable = False
            else:
                ((at_us,),) = await connection.fetch(_MARKED, mark)
                is_durable = at_us < _LOOKED_UP_US
            await connection.execute("commit")
    except PostgresFault as error:
        if is_lost(error) or state_of(error) == CANCELED:
            raise Lost(error) from error
        raise
    return is_durable


async def sweep(connection: Connection, first: str, end: str, limit_s: float) -> bool:
    """Delete the marks of units from the first to one before the end; return whether it went."""
    try:
        with TimeLimit(connection, limit_s):
            await connection.execute(_SWEEP.format(first=first, end=end))
    except PostgresFault:
        connection.terminate()
        return False
    return True
