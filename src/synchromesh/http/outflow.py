"""The sending side of a connection: whether the other end takes what it is sent."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

# On, and for no time at all (SO_LINGER): the connection ends by a reset.
_NO_LINGER: Final = struct.pack("ii", 1, 0)
# How often it is looked at in the time that makes a stall; the last look may be a tick early.
_LOOKS: Final = 4
_NEARLY: Final = 0.99


class Outflow:
    """Watches what is written and not yet taken, and lets a sender wait for that.

    A connection hands it `pause_writing` and `resume_writing`. Whoever takes less than `bytes_min`
    in `stall_s` has stalled.

    Args:
        transport: what is written to.
        stall_s: how long the other end may take nothing.
        bytes_min: what it has to take in that time.
    """

    __slots__ = (
        "_bytes_min", "_loop", "_room", "_since_s", "_stall_s", "_timer", "_transport", "_unsent",
        "is_paused",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.WriteTransport, *, stall_s: float, bytes_min: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._stall_s = stall_s
        self._bytes_min = bytes_min
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = 0
        self._since_s = 0.0
        self._room: asyncio.Future[None] | None = None
        self.is_paused = False

    async def send(self, data: bytes) -> None:
        """Write, and return once there is room for more, or the connection has ended."""
        if self._transport.is_closing():
            # Whoever sends is about to be told. A body that is never waited for would go on to its
            # end before that: what is written to a transport that closes is dropped, and waits not.
            self._room = self._loop.create_future()
            await self._room
            return
        self._transport.write(data)
        while self.is_paused:
            self._room = self._loop.create_future()
            await self._room

    def pause(self, on_stall: Callable[[], None]) -> None:
        """Begin to watch whether the other end takes what it was sent.

        `on_stall` is called once it has stalled, and is expected to end the connection. Nothing but
        the timer holds it: kept here, it and its connection would hold each other.
        """
        self.is_paused = True
        self._watch(on_stall)

    def resume(self) -> None:
        """Go on: it has taken enough. Also what ends a connection calls this."""
        self.is_paused = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def __repr__(self) -> str:
        return f"<Outflow {'paused' if self.is_paused else 'open'}>"

    def _watch(self, on_stall: Callable[[], None]) -> None:
        self._unsent = self._transport.get_write_buffer_size()
        self._since_s = self._loop.time()
        self._timer = self._loop.call_later(self._stall_s / _LOOKS, self._look, on_stall)

    def _look(self, on_stall: Callable[[], None]) -> None:
        if self._unsent - self._transport.get_write_buffer_size() >= self._bytes_min:
            self._watch(on_stall)
        elif self._loop.time() - self._since_s < self._stall_s * _NEARLY:
            self._timer = self._loop.call_later(self._stall_s / _LOOKS, self._look, on_stall)
        else:
            self._timer = None
            on_stall()


def half_close(transport: asyncio.Transport) -> None:
    """Say that nothing more will be sent, once all that was written has left.

    With something unsent asyncio would do so later, in a callback of its own, and log what follows.
    """
    if transport.is_closing():
        return
    if not transport.can_write_eof():
        transport.close()
        return
    try:
        transport.write_eof()
    except OSError:
        transport.abort()  # the other end has reset it since, as health checks do


def reset(transport: asyncio.Transport) -> None:
    """Abort a connection in the middle of a message, so that what was sent never looks whole.

    An orderly end would end a body that has neither length nor chunks.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError, TypeError):  # it is closed already, or the loop allows no options
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
