"""Byte streams between processes: how they listen and connect, and TCP and TLS for the real world.

This module imports neither asyncio nor ssl before they are used, so that `import synchromesh` stays
cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    import ssl

# Connections that may wait to be accepted.
BACKLOG = 1024


class Listener(Protocol):
    """A listening socket."""

    @property
    def host(self) -> str:
        """The address it listens on."""
        ...

    @property
    def port(self) -> int:
        """The port, also where port 0 was requested."""
        ...

    def pause(self) -> None:
        """Accept no more connections; new ones wait in the backlog until it is closed."""
        ...

    def close(self) -> None:
        """Stop listening; open connections stay."""
        ...


class Network(Protocol):
    """Byte streams between processes, as asyncio protocols see them."""

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> Listener:
        """Accept connections. Raises OSError, for instance where the port is taken."""
        ...

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> asyncio.Protocol:
        """Connect, and return the protocol that `factory` made. Raises OSError."""
        ...

    def secured(self, tls: ssl.SSLContext) -> Network:
        """Return the same network, whose connections are made by TLS, as a client."""
        ...


class RealNetwork:
    """TCP by asyncio; Nagle's algorithm is off, as asyncio does by itself.

    Args:
        tls: what connections are secured by; None for plain ones.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> Listener:
        """Listen on TCP."""
        import asyncio

        server = await asyncio.get_running_loop().create_server(
            factory, host, port, backlog=BACKLOG, reuse_address=True
        )
        return _RealListener(server)

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> asyncio.Protocol:
        """Connect by TCP; with TLS, to whom the certificate proves to be that host."""
        import asyncio

        _, protocol = await asyncio.get_running_loop().create_connection(
            factory, host, port, ssl=self._tls
        )
        return protocol

    def secured(self, tls: ssl.SSLContext) -> RealNetwork:
        """Return a network of TLS connections."""
        return RealNetwork(tls)


class HandedNetwork(RealNetwork):
    """TCP by asyncio that listens on a socket inherited from another process.

    Connections wait in it while nobody accepts them, so that those who do may change.

    Args:
        handle: the file descriptor of the socket.
    """

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> Listener:
        """Listen on the inherited socket, wherever it is bound."""
        import asyncio
        import socket

        del host, port  # it is bound already
        handed = socket.socket(fileno=self._handle)
        # Or what is started from here would keep it open.
        handed.set_inheritable(False)
        server = await asyncio.get_running_loop().create_server(
            factory, sock=handed, backlog=BACKLOG
        )
        return _RealListener(server)


class _RealListener:
    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        address = server.sockets[0].getsockname()
        self._host, self._port = str(address[0]), int(address[1])

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        return self._port

    def pause(self) -> None:
        import asyncio

        # Closed at once, asyncio would drop what it has accepted and not yet made a connection of.
        for each in self._server.sockets:
            asyncio.get_running_loop().remove_reader(each.fileno())

    def close(self) -> None:
        self._server.close()
