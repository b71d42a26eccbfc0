"""A transport and a network that are scripted by a test, for connections without sockets."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from typing import Self

from synchromesh.network import ClientTls, ServerTlsContext


class FakeTransport(asyncio.Transport):
    """Keeps what is written. A client that `takes` nothing leaves it in the buffer."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = bytearray()
        self.unsent = 0
        self.takes = True
        self.is_paused = self.is_lost = self.has_eof = self.was_aborted = False
        self.can_half_close = True
        self.has_reset = self.breaks = False
        self._is_closing = self._is_stalled = False
        protocol.connection_made(self)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("10.0.0.1", 4711) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.has_eof
        if self._is_closing:
            return
        if self.breaks:
            self.abort()
            return
        self.sent += data
        if not self.takes:
            self.unsent += len(data)
            if not self._is_stalled:
                self._is_stalled = True
                self.protocol.pause_writing()

    def take(self, size: int) -> None:
        """Let the client take some of what was written."""
        self.unsent -= size
        if self.unsent == 0:
            self._is_stalled = False
            self.protocol.resume_writing()

    def feed(self, data: bytes) -> None:
        """Let the client send."""
        if not self.is_lost and not self._is_closing:
            assert not self.is_paused
            self.protocol.data_received(data)

    def hang_up(self) -> None:
        """Let the client close its end."""
        if not self.protocol.eof_received():
            self.close()

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return self.can_half_close

    def write_eof(self) -> None:
        # A socket says that it is not connected; with something unsent asyncio says so in its log.
        assert self.unsent == 0
        if self.has_reset:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        self.has_eof = True

    def pause_reading(self) -> None:
        assert not self.is_paused
        self.is_paused = True

    def resume_reading(self) -> None:
        assert self.is_paused
        self.is_paused = False

    def close(self) -> None:
        self._lose(None)

    def abort(self) -> None:
        self.was_aborted = True
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        if not self._is_closing:
            self._is_closing = True
            asyncio.get_running_loop().call_soon(self._tell, error)

    def _tell(self, error: Exception | None) -> None:
        self.is_lost = True
        self.protocol.connection_lost(error)


class FakeListener:
    """A listener that only knows its address."""

    is_secured = False

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port, self.is_closed = host, port, False

    def pause(self) -> None:
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True


class FakeNetwork:
    """Makes a `FakeTransport` for each connection; `connecting` may fail or wait first."""

    def __init__(self) -> None:
        self.made: list[FakeTransport] = []
        self.factory: Callable[[], asyncio.Protocol] | None = None
        self.connecting: Callable[[], asyncio.Future[None]] | None = None

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> FakeListener:
        self.factory = factory
        return FakeListener(host, port or 4000)

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> asyncio.Protocol:
        if self.connecting is not None:
            await self.connecting()
        protocol = factory()
        self.made.append(FakeTransport(protocol))
        return protocol

    def secured(
        self, *, client: ClientTls | None = None, server: ServerTlsContext | None = None
    ) -> Self:
        return self

    def taken(self, transport: asyncio.WriteTransport) -> int:
        assert isinstance(transport, FakeTransport)
        return len(transport.sent) - transport.unsent

    def client(self) -> FakeTransport:
        """Let a client connect to what listens."""
        assert self.factory is not None
        transport = FakeTransport(self.factory())
        self.made.append(transport)
        return transport
