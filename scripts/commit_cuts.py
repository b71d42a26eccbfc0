"""A way to a PostgreSQL server, on which connections are cut at the commit."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

HOWS = ("before it was sent", "as it was sent", "before its answer")
# How a query in the plain protocol ends that commits, as all of a store's do.
_COMMIT = b"commit\0"


class CommitCuts:
    """Passes connections on to the socket of a server.

    Args:
        to: its path.
        rng: draws which commits are cut, and how.

    Attributes:
        chance: that a commit is cut.
        count: how often that was so, by `HOWS`.
    """

    def __init__(self, to: Path, rng: random.Random) -> None:
        self.to = str(to)
        self.rng = rng
        self.chance = 0.0
        self.count: Counter[str] = Counter()
        self._ends: set[_Client] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens, on loopback."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", 0)

    async def stop(self) -> None:
        """Listen no more, and end all connections."""
        if self._server is not None:
            self._server.close()
        for each in tuple(self._ends):
            each.abort()
            await asyncio.gather(each.connecting, return_exceptions=True)

    def drawn(self) -> str:
        """Return how a commit is cut that comes now; "" where it is not."""
        if not self.chance or self.rng.random() >= self.chance:
            return ""
        how = self.rng.choice(HOWS)
        self.count[how] += 1
        return how

    def opened(self, end: _Client) -> None:
        """Take note of a connection."""
        self._ends.add(end)

    def closed(self, end: _Client) -> None:
        """Forget a connection."""
        self._ends.discard(end)


class _End(asyncio.Protocol):
    """One end of a connection; what it reads the other one writes."""

    transport: asyncio.Transport
    other: _End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self.other is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.transport.resume_reading()


class _Client(_End):
    """The end of who asks."""

    connecting: asyncio.Task[None]

    def __init__(self, way: CommitCuts) -> None:
        self._way = way
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._way.opened(self)
        self.connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, self.other = await loop.create_unix_connection(lambda: _AtServer(self), self._way.to)
        except OSError:
            # As where nothing listens.
            self.transport.abort()
            return
        if self.transport.is_closing():
            self.abort()
        elif self._early:
            self.data_received(self._early)

    def data_received(self, data: bytes) -> None:
        server = self.other
        if not isinstance(server, _AtServer):
            self._early += data
            return
        how = self._way.drawn() if data.endswith(_COMMIT) else ""
        if how == "before it was sent":
            self.abort()
            return
        server.transport.write(data)
        if how == "as it was sent":
            self.transport.abort()
            server.transport.close()
        server.is_cut = bool(how)

    def connection_lost(self, exc: Exception | None) -> None:
        self._way.closed(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """End both."""
        self.transport.abort()
        if self.other is not None:
            self.other.transport.abort()


class _AtServer(_End):
    """The end at the server.

    Attributes:
        is_cut: what it answers next is lost, with the connection.
    """

    def __init__(self, client: _Client) -> None:
        self.other: _Client = client
        self.is_cut = False

    def data_received(self, data: bytes) -> None:
        if self.is_cut:
            self.other.abort()
        else:
            self.other.transport.write(data)
