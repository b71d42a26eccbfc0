"""Positions of a log on PostgreSQL: given after the commit, in batches, by one sequencer at a time.

A position that is drawn in a unit becomes visible out of order, and one that is drawn under a lock
has the whole unit wait for all others. So units insert without one, and whoever holds the row of
the log in `sm_log` numbers what has been committed by then:

    lock the row ─▶ (a new snapshot) number all that have none, in the order of insertion ─▶ commit

Positions so have no holes and become visible in their order (E3); within a stream they ascend as
versions do, since an event is inserted after the one before it was committed. A unit is answered
once its events are numbered: then readers see them. What a process leaves that died before that is
numbered by any other's next turn, at the latest by a look from time to time.

A group of units that only append holds the table of that row from before its snapshot to its
commit, and gives positions itself (see `postgres_group`).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress

from synchromesh.errors import StoreError
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_errors import PostgresFault
from synchromesh.store.postgres_limits import TimeLimit
from synchromesh.store.unit import Schema

TABLES = ("create table sm_log(name text primary key, last bigint not null)",)
"""The last position that was given, of each log."""

_LOGS = re.compile(r"create table (\w+)\(position \{log_position\}")
# One trip. Each statement has a snapshot of its own; the second's is taken with the lock held.
_NUMBER = """\
begin isolation level read committed;
select last from sm_log where name = '{log}' for update;
with new as (
    select ctid as at, row_number() over (order by sm_order) as n from {log} where position is null
)
update {log} set position = sm_log.last + new.n from new, sm_log
where {log}.ctid = new.at and sm_log.name = '{log}';
update sm_log set last = greatest(last, (select max(position) from {log})) where name = '{log}';
commit"""
_WAITING = "select exists(select from {log} where position is null)"
# Of a turn; the next may take twice as long, for what is many takes long on a server that is well.
_LIMIT_S = 5.0
_PAUSE_S = 0.05
_PAUSE_MAX_S = 5.0
_log = logging.getLogger("synchromesh.store")


def logs_of(schemas: Iterable[Schema]) -> tuple[str, ...]:
    """Return the tables whose rows are numbered in the order of their commits.

    Example:
        >>> from synchromesh.store.unit import Migration
        >>> made = "create table entry(position {log_position}, body text)"
        >>> logs_of([Schema("shop", (Migration(1, (made,), 1),))])
        ('entry',)
    """
    texts = [text for each in schemas for step in each.migrations for text in step.statements]
    return tuple(found[1] for text in texts if (found := _LOGS.match(text)) is not None)


async def prepare_logs(connection: Connection, logs: Sequence[str]) -> None:
    """Make what the sequencer of each log needs beside its table. May be repeated."""
    for log in logs:
        # Not by `if not exists`, which locks the table first: all writers would wait for it.
        if not await connection.fetchval("select to_regclass($1) is not null", f"{log}_waiting"):
            await connection.execute(
                f"create index {log}_waiting on {log}(sm_order) where position is null"
            )
        await connection.execute(
            "insert into sm_log(name, last) values ($1, 0) on conflict(name) do nothing", log
        )


class Sequencer:
    """Number what is committed; create and use it on the loop.

    Args:
        connect: makes a connection that writes.
        look_every_s: how often it looks for what others have left.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        logs: Sequence[str],
        *,
        service: str,
        look_every_s: float,
    ) -> None:
        self._connect = connect
        self._logs = logs
        self._look_every_s = look_every_s
        self._connection: Connection | None = None
        self._waiting: list[Callable[[], None]] = []
        self._is_wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        if logs:
            self._task = asyncio.get_running_loop().create_task(
                self._work(), name=f"store of {service}, sequencer"
            )

    def number(self, then: Callable[[], None]) -> None:
        """Number what is committed by now, and call `then`."""
        self._waiting.append(then)
        self._is_wanted.set()

    async def close(self) -> None:
        """End; whoever waits is told at once, as what it committed stands. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._tell()

    def _tell(self) -> None:
        waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()

    async def _work(self) -> None:
        pause_s, limit_s, loop = _PAUSE_S, _LIMIT_S, asyncio.get_running_loop()
        try:
            while True:
                # Not `wait_for`: before Python 3.12 it loses a cancellation that comes as it ends.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._look_every_s):
                        await self._is_wanted.wait()
                began_s = loop.time()
                try:
                    await self._turn(limit_s)
                    pause_s, limit_s = _PAUSE_S, _LIMIT_S
                except (*PostgresFault, StoreError) as error:
                    _log.warning("positions are given later: %s", error)
                    self._drop()
                    if loop.time() - began_s >= 2 * limit_s:
                        limit_s *= 2
                    await asyncio.sleep(pause_s)
                    pause_s = min(_PAUSE_MAX_S, 2 * pause_s)
        finally:
            self._drop()

    async def _turn(self, limit_s: float) -> None:
        if self._connection is None:
            self._connection = await self._connect()
        is_wanted = self._is_wanted.is_set()
        # What is committed from here on wants another turn.
        self._is_wanted.clear()
        waiting, self._waiting = self._waiting, []
        try:
            with TimeLimit(self._connection, limit_s):
                for log in self._logs:
                    if is_wanted or await self._connection.fetchval(_WAITING.format(log=log)):
                        await self._connection.execute(_NUMBER.format(log=log))
        except BaseException:
            self._waiting = [*waiting, *self._waiting]
            self._is_wanted.set()
            raise
        for then in waiting:
            then()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
