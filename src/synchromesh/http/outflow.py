"""The sending side of a connection: whether the other end takes what it is sent."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

from synchromesh.http.pace import Pace, Patience

# On, and for no time at all (SO_LINGER): the connection ends by a reset.
_NO_LINGER: Final = struct.pack("ii", 1, 0)
# How often it is looked at in the time that makes a stall.
_LOOKS: Final = 10
# The last look may be so early.
_TICK_S: Final = 0.02

Taken: TypeAlias = Callable[[asyncio.WriteTransport], int]


class Outflow:
    """Watches what is written and not yet taken, and lets a sender wait for that.

    A connection hands it `pause_writing` and `resume_writing`. The kernel is asked what the other
    end has taken: it tells a transport of room only once a third of its own buffer is free, which
    at 20 kB/s takes more than a minute.

    Args:
        transport: what is written to.
        taken: counts what the other end of it has taken; see `Network.taken`.
        patience: how slowly that may be.
    """

    __slots__ = (
        "_loop", "_pace", "_patience", "_room", "_taken", "_timer", "_transport",
        "is_paused",
    )  # fmt: skip

    def __init__(
        self, transport: asyncio.WriteTransport, *, taken: Taken, patience: Patience
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._taken = taken
        self._patience = patience
        self._timer: asyncio.TimerHandle | None = None
        self._pace: Pace | None = None
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
        self._pace = Pace(self._patience, now=self._loop.time(), taken=self._taken(self._transport))
        # A timer that runs is let run: a fast reader pauses thousands of times a second.
        if self._timer is None:
            self._look_within(self._patience.stall_s, on_stall)

    def resume(self) -> None:
        """Go on: it has taken enough."""
        self.is_paused = False
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def end(self) -> None:
        """Stop watching for good, and let a sender go: the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.resume()

    def __repr__(self) -> str:
        return f"<Outflow {'paused' if self.is_paused else 'open'}>"

    def _look_within(self, left_s: float, on_stall: Callable[[], None]) -> None:
        every_s = min(left_s, self._patience.stall_s / _LOOKS)
        self._timer = self._loop.call_later(every_s, self._look, on_stall)

    def _look(self, on_stall: Callable[[], None]) -> None:
        self._timer = None
        if not self.is_paused or self._pace is None:
            return
        left_s = self._pace.left_s(self._loop.time(), self._taken(self._transport))
        if left_s > _TICK_S:
            self._look_within(left_s, on_stall)
        else:
            on_stall()


def peer_of(transport: asyncio.BaseTransport) -> str:
    """Return `host:port` of the other end, "" where the transport does not know it."""
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) and len(peer) >= 2 else ""


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
