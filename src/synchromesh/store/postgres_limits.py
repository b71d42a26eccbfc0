"""Limits on this side of a connection, for a server that does not keep its own.

A server's `statement_timeout` ends no statement where the server itself stands still, where a
COMMIT waits for a synchronous standby, or where what is sent no longer arrives. So a connection
that has not answered in twice that time is ended from here. Nothing is cancelled: a COMMIT that
waits for a standby would be told to stand without it. Whether it took effect is looked up.

A machine that vanished, or a way to it that forgot the connection, refuses nothing. The kernel
finds that out, also where nothing is asked: it is told to look.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self

# The first look after that long without a word, and how often and how far apart the next ones are.
_KEPT_ALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
# What was sent and is not confirmed for that long was not received.
_UNCONFIRMED_MS = 30_000


class TimeLimit:
    """Tells of what outlives a limit, and ends its connection where it takes twice as long.

    It begins as it is made, and ends with its block, or by `cancel`.

    What waits for an answer on it then gets the driver's error of a connection that is lost.

    Args:
        connection: anything that `terminate` ends.
        late: is called at the limit, if given.
    """

    __slots__ = ("_connection", "_handle", "_limit_s", "_loop")

    def __init__(
        self, connection: Any, limit_s: float, late: Callable[[], None] | None = None
    ) -> None:
        self._connection = connection
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        if late is None:
            self._handle = self._loop.call_later(2 * limit_s, self._end)
        else:
            self._handle = self._loop.call_later(limit_s, self._tell, late)

    def cancel(self) -> None:
        """End the limit: what it was for is over."""
        self._handle.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()

    def _tell(self, late: Callable[[], None]) -> None:
        self._handle = self._loop.call_later(self._limit_s, self._end)
        late()

    def _end(self) -> None:
        self._connection.terminate()


def keep_alive(transport: asyncio.BaseTransport) -> None:
    """Have the kernel end a connection whose other end is gone without a word, in half a minute."""
    found = transport.get_extra_info("socket")
    if found is None or found.family not in (socket.AF_INET, socket.AF_INET6):
        return
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*_KEPT_ALIVE, ("TCP_USER_TIMEOUT", _UNCONFIRMED_MS)):
        if hasattr(socket, name):
            found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
