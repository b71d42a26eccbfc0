"""Byte streams between processes: how they listen and connect, and TCP and TLS for the real world.

This module imports neither asyncio nor ssl before they are used, so that `import synchromesh` stays
cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

from synchromesh.kernel import taken_by_peer

if TYPE_CHECKING:
    import asyncio
    import ssl

# What a client secures a connection to a host and port by.
ClientTls: TypeAlias = "Callable[[str, int], ssl.SSLContext]"

# What the next connection that is accepted is secured by.
ServerTlsContext: TypeAlias = "Callable[[], ssl.SSLContext]"

# Who takes longer to shake hands is cut, and so is who comes while so many others do.
HANDSHAKE_S = 5.0
HANDSHAKES_MAX = 512

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

    @property
    def is_secured(self) -> bool:
        """True where clients connect by TLS."""
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

    def secured(
        self, *, client: ClientTls | None = None, server: ServerTlsContext | None = None
    ) -> Network:
        """Return the same network with TLS: where it connects, or where it listens."""
        ...

    def taken(self, transport: asyncio.WriteTransport) -> int:
        """Return a count that grows by each byte of a transport that the other end has taken.

        It is below 0 where only what is left is known. What has been taken may wait, unread, in a
        buffer of the other end.
        """
        ...


class RealNetwork:
    """TCP by asyncio, and TLS over it; Nagle's algorithm is off, as asyncio does by itself.

    Args:
        client: what connections are secured by; None for plain ones.
        server: what listeners are secured by; None for plain ones.
    """

    def __init__(
        self, *, client: ClientTls | None = None, server: ServerTlsContext | None = None
    ) -> None:
        self._client, self._server = client, server

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> Listener:
        """Listen on TCP."""
        import asyncio

        server = await asyncio.get_running_loop().create_server(
            self._terminating(factory), host, port, backlog=BACKLOG, reuse_address=True
        )
        return _RealListener(server, is_secured=self._server is not None)

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> asyncio.Protocol:
        """Connect by TCP; with TLS, to whom the certificate proves to be that host."""
        import asyncio

        loop = asyncio.get_running_loop()
        if self._client is None:
            _, protocol = await loop.create_connection(factory, host, port)
            return protocol
        from synchromesh.tls_stream import TlsStream

        context, opened = self._client(host, port), loop.create_future()

        def told(_: TlsStream, error: BaseException | None) -> None:
            if opened.done():
                return
            if error is None:
                opened.set_result(None)
            else:
                opened.set_exception(error)

        def secured() -> TlsStream:
            return TlsStream(
                factory,
                lambda come, leave: context.wrap_bio(come, leave, server_hostname=host),
                handshake_s=HANDSHAKE_S,
                opened=told,
                is_strict=True,
            )

        transport, stream = await loop.create_connection(secured, host, port)
        try:
            await opened
        except BaseException:
            transport.abort()
            raise
        return cast("asyncio.Protocol", stream.get_protocol())

    def secured(
        self, *, client: ClientTls | None = None, server: ServerTlsContext | None = None
    ) -> RealNetwork:
        """Return the same network with TLS: where it connects, or where it listens."""
        return RealNetwork(client=client or self._client, server=server or self._server)

    def _terminating(
        self, factory: Callable[[], asyncio.Protocol]
    ) -> Callable[[], asyncio.Protocol]:
        """Return what makes the protocol of a connection that was accepted."""
        context = self._server
        if context is None:
            return factory
        from synchromesh.tls_stream import Handshakes

        return Handshakes(factory, context, handshake_s=HANDSHAKE_S, most=HANDSHAKES_MAX)

    def taken(self, transport: asyncio.WriteTransport) -> int:
        """Ask the kernel."""
        return taken_by_peer(transport)


class HandedNetwork(RealNetwork):
    """TCP by asyncio that listens on a socket inherited from another process.

    Connections wait in it while nobody accepts them, so that those who do may change.

    Args:
        handle: the file descriptor of the socket.
    """

    def __init__(
        self,
        handle: int,
        *,
        client: ClientTls | None = None,
        server: ServerTlsContext | None = None,
    ) -> None:
        super().__init__(client=client, server=server)
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
            self._terminating(factory), sock=handed, backlog=BACKLOG
        )
        return _RealListener(server, is_secured=self._server is not None)

    def secured(
        self, *, client: ClientTls | None = None, server: ServerTlsContext | None = None
    ) -> HandedNetwork:
        """Return the same network with TLS: where it connects, or where it listens."""
        return HandedNetwork(
            self._handle, client=client or self._client, server=server or self._server
        )


class _RealListener:
    def __init__(self, server: asyncio.Server, *, is_secured: bool) -> None:
        self._server = server
        self._is_secured = is_secured
        address = server.sockets[0].getsockname()
        self._host, self._port = str(address[0]), int(address[1])

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        return self._port

    @property
    def is_secured(self) -> bool:
        return self._is_secured

    def pause(self) -> None:
        import asyncio

        # Closed at once, asyncio would drop what it has accepted and not yet made a connection of.
        for each in self._server.sockets:
            asyncio.get_running_loop().remove_reader(each.fileno())

    def close(self) -> None:
        self._server.close()
