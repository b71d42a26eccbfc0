"""A session of a server that is reached by a pooler, such as PgBouncer in session mode.

A pooler refuses or drops most start-up settings. So they are set once the session is open, and
again by each transaction that resets what units have set. What shows a pooler is that the id of the
server's process is not the one that was told to who connected.

In transaction mode a session is another one after each commit. Each session has a cursor with a
name of its own, and each transaction looks for it as it begins, in the same trip: where somebody
changes the mode later, the first transaction that gets another session fails before it does
anything. The names of prepared statements are of one session, too, so that none is taken for
another client's.

Before an address is used, two sessions begin transactions that overlap, in an order of chance. A
pooler that keeps no session has to give both the right ones, and does so with one in two times at
best, each time; the usual one fails the first time, as it gives both one session while they idle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg

from synchromesh.errors import StoreBroken
from synchromesh.store.postgres_limits import TimeLimit

_TURNS, _LIMIT_S = 24, 5.0
# Also where the pooler does not clear the sessions that it hands on (server_reset_query).
_CLEARED = (
    "set session authorization default; reset all; close all; unlisten *; deallocate all; "
    "select pg_advisory_unlock_all(); discard temp"
)
_ANOTHER = (asyncpg.InvalidCursorNameError, asyncpg.InvalidSQLStatementNameError)
# The addresses whose sessions were seen to be kept, by this process.
_proven: set[str] = set()


class PooledConnection(asyncpg.Connection):  # type: ignore[misc]
    """A connection by a pooler: its settings outlive `reset all`, its transactions are fenced.

    Attributes:
        url: where it is connected to.
        chance: the pooler's own number of this connection, by which it finds whose query to cancel.
    """

    __slots__ = ("_fence", "_settings", "chance", "url")

    async def begin(self, url: str, settings: dict[str, str]) -> None:
        """Clear the session, and set what a store relies on, in one trip."""
        told = (int(self.get_server_pid()), int(self._protocol.backend_secret))
        self.url, self.chance = url, (told[0] & 0xFFFFFFFF) << 32 | told[1] & 0xFFFFFFFF
        self._fence = f"sm_{self.chance:x}"
        self._settings = "; ".join(
            f"set {name} = '{value.replace(chr(39), chr(39) * 2)}'"
            for name, value in settings.items()
        )
        await self.execute(f"{_CLEARED}; declare {self._fence} cursor with hold for select")

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Run statements; of those that begin a transaction, the fence is the second.

        `move`, as `set`, takes no snapshot: a unit's is taken once it has its locks.
        """
        if not args:
            query = query.replace("reset all", f"reset all; {self._settings}", 1)
            if query.startswith("begin"):
                first, _, rest = query.partition(";")
                query = f"{first}; move absolute 0 in {self._fence};{rest}"
        with self._same():
            return str(await super().execute(query, *args, timeout=timeout))

    async def _execute(self, *args: Any, **options: Any) -> Any:
        with self._same():
            return await super()._execute(*args, **options)

    async def _executemany(self, *args: Any, **options: Any) -> Any:
        with self._same():
            return await super()._executemany(*args, **options)

    def _get_unique_id(self, prefix: str) -> str:
        return f"{super()._get_unique_id(prefix)}{self.chance:x}"

    @contextmanager
    def _same(self) -> Iterator[None]:
        """Give the connection up where what is asked of it went to another session."""
        try:
            yield
        except _ANOTHER as error:
            _proven.discard(self.url)
            self.terminate()
            raise asyncpg.ConnectionDoesNotExistError(
                "a pooler has gone on in another session of the server, as it does where its "
                "pool_mode is not session"
            ) from error


async def is_direct(connection: Any) -> bool:
    """Return whether there is no pooler between a connection and its session.

    It is asked without a prepared statement, whose name may be another client's there.
    """
    try:
        await connection.execute(
            f"select 1 / (pg_backend_pid() = {connection.get_server_pid()})::int"
        )
    except asyncpg.DivisionByZeroError:
        return False
    return True


async def prove(
    connection: PooledConnection, another: Callable[[], Awaitable[PooledConnection]], place: str
) -> None:
    """Raise `StoreBroken` where a pooler keeps no session for a connection.

    It is tried once for an address, and again once a session was another one.

    Args:
        another: makes one more connection to the same address.
    """
    if connection.url in _proven:
        return
    other = await another()
    both, chance = (connection, other), connection.chance
    try:
        with TimeLimit(other, _LIMIT_S):
            for turn in range(_TURNS):
                for each in both[:: 1 if chance >> turn & 1 else -1]:
                    await each.execute("begin")
                for each in both:
                    await each.execute("commit")
    except (asyncpg.ConnectionDoesNotExistError, asyncpg.ProtocolViolationError) as error:
        mode = "statement" if "statement pooling" in str(error) else "transaction"
        if mode == "transaction" and not isinstance(error.__cause__, _ANOTHER):
            raise
        raise StoreBroken(
            f"{place} is behind a pooler in {mode} mode, which gives each {mode} another session "
            "of the server; a store needs the settings, locks and notifications of its own "
            "sessions: set pool_mode = session for this database, or give the address of the "
            "server itself"
        ) from error
    finally:
        other.terminate()
    _proven.add(connection.url)
