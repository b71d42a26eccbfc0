"""Wake-ups between the processes that write one database: hints to look, never data.

One connection listens and notifies, outside of transactions and of units: `NOTIFY` in each unit has
all commits of the server wait for one lock. Topics of many commits go out together. A connection
that the server has ended makes no sound: a termination listener has it made anew, and then all that
listen here look, for something may have been missed. Whoever listens polls anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from synchromesh.errors import StoreError
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_errors import PostgresFault
from synchromesh.store.postgres_limits import TimeLimit

CHANNEL = "sm_topics"
"""What all processes that write a database listen on."""

# As many as surely fit into the 7,999 bytes of a payload.
_TOPICS_MAX = 32
_TOPIC_CHARS_MAX = 60
# Between two notifications; a hint is as good a moment later.
_APART_S = 0.005
# After which silence the connection is looked at, and how long that may take.
_QUIET_S, _LIMIT_S = 30.0, 5.0
_PAUSE_S = 0.05
_PAUSE_MAX_S = 5.0
_log = logging.getLogger("synchromesh.store")


class _Told(msgspec.Struct, array_like=True):
    sender: str
    topics: list[str]


_decode = msgspec.json.Decoder(_Told).decode


def told(sender: str, topics: list[str]) -> str:
    """Return what is notified on the channel, to tell of topics."""
    return msgspec.json.encode(_Told(sender, topics)).decode()


class Wakeups:
    """Tell other processes of topics, and hear of theirs; create and use it on the loop.

    Args:
        connect: makes a connection.
        sender: tells this store from every other.
        heard: is called with each topic of another process; with None where any may be missed.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        heard: Callable[[str | None], None],
        *,
        sender: str,
        service: str,
    ) -> None:
        self._connect = connect
        self._heard = heard
        self._sender = sender
        self._topics: set[str] = set()
        self._is_wanted = asyncio.Event()
        self._is_lost = False
        self._task = asyncio.get_running_loop().create_task(
            self._work(), name=f"store of {service}, wake-ups"
        )

    def tell(self, topics: set[str]) -> None:
        """Tell other processes of topics, soon; a topic that is too long is not told."""
        if topics <= self._topics:
            return  # as most are, of many commits
        self._topics.update(each for each in topics if len(each) <= _TOPIC_CHARS_MAX)
        if self._topics:
            self._is_wanted.set()

    async def close(self) -> None:
        """End. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        pause_s, is_first = _PAUSE_S, True
        while True:
            try:
                connection = await self._listening()
            except (*PostgresFault, StoreError) as error:
                _log.warning("no wake-ups from other processes for now: %s", error)
                await asyncio.sleep(pause_s)
                pause_s, is_first = min(_PAUSE_MAX_S, 2 * pause_s), False
                continue
            pause_s = _PAUSE_S
            try:
                if not is_first:
                    self._heard(None)
                is_first = False
                await self._tell_until_lost(connection)
            except PostgresFault as error:
                _log.warning("the connection for wake-ups was lost: %s", error)
            finally:
                connection.terminate()

    async def _listening(self) -> Connection:
        connection = await self._connect()
        try:
            self._is_lost = False
            connection.add_termination_listener(self._lose)
            with TimeLimit(connection, _LIMIT_S):
                # A notification is a commit; nobody waits for a hint to be on the disk.
                await connection.execute("set synchronous_commit = off")
                await connection.add_listener(CHANNEL, self._hear)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _tell_until_lost(self, connection: Connection) -> None:
        while not self._is_lost:
            with suppress(TimeoutError):
                async with asyncio.timeout(_QUIET_S):
                    await self._is_wanted.wait()
            self._is_wanted.clear()
            topics = sorted(self._topics)
            self._topics.clear()
            with TimeLimit(connection, _LIMIT_S):
                # Where there is nothing to tell, too: is anybody there who would be heard?
                for at in range(0, max(1, len(topics)), _TOPICS_MAX):
                    some = told(self._sender, topics[at : at + _TOPICS_MAX])
                    await connection.execute("select pg_notify($1, $2)", CHANNEL, some)
            await asyncio.sleep(_APART_S)

    def _lose(self, _: Connection) -> None:
        self._is_lost = True
        self._is_wanted.set()

    def _hear(self, _: Connection, __: int, ___: str, payload: str) -> None:
        try:
            hint = _decode(payload)
        except msgspec.DecodeError:
            return  # somebody else's, on a channel that is open to all of the database
        if hint.sender != self._sender:
            for topic in hint.topics:
                self._heard(topic)
