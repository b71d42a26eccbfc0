"""The lock by which one process alone runs a service on a database that any number could write.

It belongs to a session, so that it ends with the process, however that ends; a process that stands
still keeps it. A session that was lost is made anew, and the lock is taken again with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from synchromesh.errors import StoreError, StoreLocked
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_errors import PostgresFault

_TAKE = "select pg_try_advisory_lock(hashtext('synchromesh.sole'))"
_PAUSE_S = 0.2
_log = logging.getLogger("synchromesh.store")


class SoleProcess:
    """Holds the lock; `take` makes one, `close` releases it.

    Args:
        connect: makes a connection.
        place: where the database is.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        connection: Connection,
        *,
        service: str,
        place: str,
    ) -> None:
        self._connect = connect
        self._place = place
        self._connection: Connection | None = connection
        self._is_lost = asyncio.Event()
        connection.add_termination_listener(lambda _: self._is_lost.set())
        self._task = asyncio.get_running_loop().create_task(
            self._keep(), name=f"store of {service}, lock"
        )

    @classmethod
    async def take(
        cls, connect: Callable[[], Awaitable[Connection]], *, service: str, place: str
    ) -> SoleProcess:
        """Take the lock.

        Raises:
            StoreLocked: another process has it.
            StoreError: the server cannot be reached, or refuses.
        """
        return cls(connect, await _take(connect, place), service=service, place=place)

    async def close(self) -> None:
        """Release the lock. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._connection is not None:
            # Who takes it next may do so at once: an end of the session takes a moment.
            with suppress(*PostgresFault):
                await self._connection.execute("select pg_advisory_unlock_all()")
            self._connection.terminate()

    async def _keep(self) -> None:
        while True:
            await self._is_lost.wait()
            self._connection = None
            try:
                made = await _take(self._connect, self._place)
            except (*PostgresFault, StoreError) as error:
                _log.warning("the lock of %s was lost: %s", self._place, error)
                await asyncio.sleep(_PAUSE_S)
                continue
            self._is_lost.clear()
            self._connection = made
            made.add_termination_listener(lambda _: self._is_lost.set())


async def _take(connect: Callable[[], Awaitable[Connection]], place: str) -> Connection:
    connection = await connect()
    try:
        if not await connection.fetchval(_TAKE):
            raise StoreLocked(
                f"{place}: another process runs this service; stop that one first: more than one "
                "at a time would each go on with the same sagas"
            )
    except BaseException:
        connection.terminate()
        raise
    return connection
