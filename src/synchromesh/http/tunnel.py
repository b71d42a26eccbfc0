"""A tunnel: the bytes of a client and of a server, both ways, once both have switched protocols.

    client ──▶ held while the server does not read ──▶ server
    client ◀── held while the client does not read ◀── server

Nothing of it is read or kept: what one end has sent is written to the other, and while anything
of that is not taken, no more is read. An end of one direction is passed on, and the other goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol, cast

from synchromesh.errors import ConnectFailed, ConnectionLost, TimedOut
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import Headers, HttpResponse, Pairs, request_head
from synchromesh.http.outflow import half_close, reset
from synchromesh.http.reading import RequestReader
from synchromesh.http.states import ReadingState
from synchromesh.http.switching import SWITCH_LINES, SwitchReader
from synchromesh.network import Network

# An answer that is no 101 is small: it says no.
_NO_BYTES_MAX: Final = 64 * 1024
# How often it is looked at whether anything has moved.
_LOOK_S: Final = 1.0
# How long an end may take what is left once the other has gone.
_LEFT_S: Final = 5.0
# How long a tunnel goes on while its server drains.
DRAIN_S: Final = 5.0


class Switching(HttpResponse):
    """An answer of 101: its fields, and the server's end of the tunnel.

    Attributes:
        server: what comes from the server, and goes to it.
        quiet_s: how long nothing may move.
    """

    server: ServerEnd
    quiet_s: float

    def __init__(self, headers: Headers | Pairs, server: ServerEnd, quiet_s: float) -> None:
        for name, value in (
            ("status", 101),
            ("headers", Headers(headers)),
            ("body", b""),
            ("stream", None),
            ("server", server),
            ("quiet_s", quiet_s),
        ):
            object.__setattr__(self, name, value)

    def telling(self, headers: Pairs) -> Switching:
        """Return the same tunnel with other fields."""
        return Switching(headers, self.server, self.quiet_s)

    def __repr__(self) -> str:
        return f"<Switching to {self.server!r}>"


class Switchable(Protocol):
    """Is the connection of a client that can be switched; a server connection is one."""

    transport: asyncio.Transport
    reader: RequestReader

    def stop_reading(self) -> None:
        """Parse nothing more."""
        ...

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything: the client has gone."""
        ...


class _End(asyncio.Protocol):
    """One end of a tunnel; what comes here goes to the other."""

    transport: asyncio.Transport
    tunnel: Tunnel | None = None
    other: _End
    has_eof = is_lost = is_eof_owed = False

    def data_received(self, data: bytes) -> None:
        """Pass on what came."""
        if self.tunnel is not None:
            self.tunnel.has_moved = True
            if not self.other.is_lost:
                self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end of this direction on, once all before it has been taken."""
        if self.tunnel is None or self.tunnel.ended.done():
            return False
        self.has_eof = True
        self.other.is_eof_owed = True
        self.other.settle()
        return True

    def pause_writing(self) -> None:
        """Read nothing more of what has to go here."""
        if self.tunnel is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on: all has been taken."""
        if self.tunnel is None:
            return
        self.tunnel.has_moved = True
        self.settle()
        if not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the other end what there is for it, and end."""
        self.is_lost = True
        tunnel = self.tunnel
        if tunnel is None:
            return
        self.is_eof_owed = False
        if exc is not None and not self.other.is_lost:
            reset(self.other.transport)  # what was cut must not look whole
        self.other.is_eof_owed = not self.other.is_lost
        self.other.settle()

    def settle(self) -> None:
        """End this direction where that is owed and all has been taken; then maybe the tunnel."""
        tunnel = self.tunnel
        if tunnel is None:
            return
        if self.is_eof_owed and not self.transport.get_write_buffer_size():
            self.is_eof_owed = False
            half_close(self.transport)
        tunnel.settle()


class ServerEnd(_End):
    """The end towards the server, and before that, the request to switch.

    Args:
        reader: reads the answer.
        name: how errors call the server.
    """

    def __init__(self, reader: SwitchReader, name: str) -> None:
        self._reader = reader
        self._name = name
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Read the answer; behind a 101, pass on what came."""
        if self.tunnel is not None:
            super().data_received(data)
            return
        reason = self._reader.feed(data)
        if reason:
            self._fail(f"sent no acceptable answer: {reason}")
        elif self._reader.switched is not None or self._reader.answer is not None:
            self.transport.pause_reading()  # until there is somebody to give it to
            if not self.told.done():
                self.told.set_result(None)

    def eof_received(self) -> bool:
        """Take the end of an answer, or of this direction."""
        if self.tunnel is not None:
            return super().eof_received()
        if self._reader.end() and not self.told.done():
            self.told.set_result(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail where there is no answer yet."""
        super().connection_lost(exc)
        self._fail("closed the connection before its answer")

    def take(self, quiet_s: float) -> HttpResponse:
        """Return the answer that has come."""
        if self._reader.answer is not None:
            return self._reader.answer
        assert self._reader.switched is not None
        return Switching(self._reader.switched, self, quiet_s)

    def take_rest(self) -> bytes:
        """Return what came behind the answer of 101."""
        rest, self._reader.rest = self._reader.rest, b""
        return rest

    def __repr__(self) -> str:
        return f"<ServerEnd {self._name}>"

    def _fail(self, what: str) -> None:
        if not self.told.done():
            self.told.set_exception(ConnectionLost(f"{self._name} {what}"))


class ClientEnd(_End):
    """The end towards the client, in place of its connection, which is told when it has gone.

    It is that connection which closes, once the tunnel has ended.
    """

    def __init__(self, connection: Switchable) -> None:
        self._connection = connection
        self.transport = connection.transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        super().connection_lost(exc)
        self._connection.connection_lost(exc)

    def __repr__(self) -> str:
        return "<ClientEnd>"


class Tunnel:
    """Joins two ends until both directions have ended, or nothing has moved for too long.

    Attributes:
        has_moved: True where something has moved since it was looked at last.
        ended: done once the server's side is over and the client has taken all of it.
    """

    def __init__(self, connection: Switchable, server: ServerEnd, quiet_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = connection.reader
        self._client, self._server = ClientEnd(connection), server
        self._client.other, self._server.other = self._server, self._client
        self._quiet_s = quiet_s
        self._moved_s = self._loop.time()
        self._until_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = (0, 0)
        self.has_moved = False
        self.ended: asyncio.Future[None] = self._loop.create_future()

    def open(self, head: bytes) -> None:
        """Tell the client that both have switched, and pass on from now on."""
        client, server = self._client, self._server
        client.tunnel = server.tunnel = self
        for end in (client, server):
            # Whatever is not taken at once holds the other direction's reading up.
            end.transport.set_write_buffer_limits(high=0)
        client.transport.set_protocol(client)
        client.transport.write(head + server.take_rest())
        if not client.transport.get_write_buffer_size() and not server.transport.is_closing():
            server.transport.resume_reading()
        self._look_later()
        if server.is_lost:
            client.is_eof_owed = True
            client.settle()

    def settle(self) -> None:
        """End once the server has no more to say and the client has all of it."""
        client, server = self._client, self._server
        is_said = server.is_lost or (server.has_eof and (client.has_eof or client.is_lost))
        is_taken = client.is_lost or not client.transport.get_write_buffer_size()
        if is_said and is_taken and not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        """End both directions, now or as soon as what was written has been taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        server = self._server
        server.tunnel = self._client.tunnel = None
        if server.is_lost or server.transport.is_closing():
            return
        if server.transport.get_write_buffer_size():
            self._loop.call_later(_LEFT_S, server.transport.abort)
        server.transport.close()

    def __repr__(self) -> str:
        return f"<Tunnel to {self._server!r}>"

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        now, client, server = self._loop.time(), self._client, self._server
        unsent = (
            client.transport.get_write_buffer_size(),
            server.transport.get_write_buffer_size(),
        )
        if self.has_moved or unsent != self._unsent:
            self.has_moved, self._unsent, self._moved_s = False, unsent, now
        if self._until_s is None and self._reader.is_draining:
            self._until_s = now + DRAIN_S
        is_leaving = client.is_lost or server.is_lost or client.has_eof or server.has_eof
        quiet_s = min(_LEFT_S, self._quiet_s) if is_leaving and any(unsent) else self._quiet_s
        if now - self._moved_s >= quiet_s or (self._until_s is not None and now >= self._until_s):
            for end in (client, server):
                if not end.is_lost:
                    end.transport.abort()
            return
        for end in (client, server):
            if not end.is_lost:
                end.settle()
        self._look_later()


async def switch(connection: Switchable, response: Switching) -> None:
    """Make a tunnel of a client's connection, and return once it has ended.

    A client that has sent anything behind its request is reset: it cannot have known what for.
    """
    reader = connection.reader
    if reader.ready or reader.state is not ReadingState.IDLE:
        reset(connection.transport)
        return
    connection.stop_reading()
    tunnel = Tunnel(connection, response.server, response.quiet_s)
    fields = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    head = b"HTTP/1.1 101 Switching Protocols\r\n" + fields.encode("latin-1") + SWITCH_LINES
    try:
        tunnel.open(head)
        await tunnel.ended
    finally:
        tunnel.close()


@asynccontextmanager
async def asked_to_switch(
    network: Network,
    host: str,
    port: int,
    target: str,
    headers: Pairs,
    *,
    timeout_s: float,
    quiet_s: float,
    limits: PoolLimits,
) -> AsyncIterator[HttpResponse]:
    """Ask a server for a WebSocket, and give its answer: `Switching`, or any other, whole.

    Args:
        host, port: where it is.
        target: path and query, percent-encoded.
        headers: those of the request; none of them frames it.
        timeout_s: how long connection and answer may take together.
        quiet_s: how long nothing may move in the tunnel.
        limits: of the answer.

    Raises:
        ConnectFailed: no connection could be made.
        ConnectionLost: what came is no answer to what was asked.
        TimedOut: no answer came in time.
    """
    name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    asked = Headers(headers)
    wire = request_head(name, "GET", target, asked) + SWITCH_LINES
    small = PoolLimits(
        head_bytes_max=limits.head_bytes_max,
        headers_max=limits.headers_max,
        interim_max=limits.interim_max,
        body_bytes_max=_NO_BYTES_MAX,
    )
    end = ServerEnd(SwitchReader(asked, small), name)
    try:
        try:
            async with asyncio.timeout(min(timeout_s, limits.connect_s)):
                await network.connect(lambda: end, host, port)
        except OSError as error:
            reason = error.strerror or str(error) or "it did not answer in time"
            raise ConnectFailed(f"cannot connect to {name}: {reason}; nothing was sent") from error
        end.transport.write(wire)
        try:
            async with asyncio.timeout(timeout_s):
                await end.told
        except TimeoutError:
            raise TimedOut(f"{name} did not answer in time; what it did is unknown") from None
        yield end.take(quiet_s)
    finally:
        end.told.cancel()
        if end.tunnel is None and not end.is_lost and hasattr(end, "transport"):
            end.transport.close()
