"""Byte streams between simulated processes: addresses, listening, connecting."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Callable
from contextvars import Context, copy_context

from synchromesh.network import ClientTls, ServerTlsContext
from synchromesh.testing.process import PROCESS, SimProcess
from synchromesh.testing.stream import GIVE_UP_AFTER_S, SimStream, node_name, os_error
from synchromesh.testing.wire import Wire

_ANY = "0.0.0.0"  # noqa: S104 - nothing real is bound
_LOOPBACK = "127.0.0.1"
_SYNONYMS = {"": _ANY, "::": _ANY, "localhost": _LOOPBACK, "::1": _LOOPBACK}


class SimNetwork:
    """Simulates byte streams between the nodes of a world; a `synchromesh.runtime.Network`.

    All nodes share one space of addresses. What listens or connects belongs to the process in whose
    context it does, and vanishes with it.

    Attributes:
        kernel_bytes: how much each end of a new connection can have under way besides what its
            transport holds; a real one has up to some megabytes.

    Example:
        >>> from synchromesh.testing import SimRuntime, run
        >>> async def main(runtime: SimRuntime) -> bool:
        ...     return isinstance(runtime.network, SimNetwork)
        >>> run(main)
        True
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, wire: Wire) -> None:
        self._loop, self._wire = loop, wire
        self.kernel_bytes = 0
        self._listeners: dict[tuple[str, int], SimListener] = {}
        # Who listened on an address last: a partition hides even that nobody listens any more.
        self._homes: dict[tuple[str, int], SimProcess | None] = {}
        # A dict, because the order of a set would differ between two runs of a seed.
        self._streams: dict[SimStream, None] = {}
        self._ports = itertools.count(49_152)
        self._client_ports = itertools.count(1_024)

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> SimListener:
        """Accept connections. Raises OSError where the port is taken."""
        host = _SYNONYMS.get(host, host)
        if port == 0:
            port = next(p for p in self._ports if self._taken(host, p) is None)
        if self._taken(host, port) is not None:
            raise os_error(OSError, errno.EADDRINUSE, f": {host}:{port}")
        listener = SimListener(self, (host, port), factory)
        self._listeners[host, port] = listener
        self._homes[host, port] = listener.process
        return listener

    def secured(
        self,
        *,
        client: ClientTls | None = None,  # noqa: ARG002
        server: ServerTlsContext | None = None,  # noqa: ARG002
    ) -> SimNetwork:
        """Return itself: nobody listens in on simulated connections, or pretends to be another."""
        return self

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> asyncio.Protocol:
        """Connect, and return the protocol that `factory` made.

        Raises ConnectionRefusedError where nobody listens, TimeoutError where a partition lasts for
        two minutes, ConnectionResetError where the listener dies meanwhile.
        """
        host = _SYNONYMS.get(host, host)
        process, wire = PROCESS.get(), self._wire
        waited_s, resend_s = 0.0, 1.0
        await asyncio.sleep(wire.segment_delay_s())
        while wire.is_partitioned(node_name(process), self._home(host, port)):
            wire.count["connect cut off"] += 1
            if waited_s >= GIVE_UP_AFTER_S:
                raise os_error(TimeoutError, errno.ETIMEDOUT, f": {host}:{port}")
            await asyncio.sleep(resend_s)
            waited_s, resend_s = waited_s + resend_s, min(2.0 * resend_s, 16.0)
        listener = self._find(host, port)
        if listener is None:
            await asyncio.sleep(wire.latency_s())
            raise os_error(ConnectionRefusedError, errno.ECONNREFUSED, f": {host}:{port}")
        ours, theirs = self._pair(process, listener, (host, port))
        self._loop.call_soon(listener.accept, theirs, context=listener.context)
        try:
            await asyncio.sleep(wire.latency_s())
        except BaseException:
            ours.abort()
            raise
        if ours.is_closing():
            raise os_error(ConnectionResetError, errno.ECONNRESET, f": {host}:{port}")
        protocol = factory()
        ours.attach(protocol)
        return protocol

    def taken(self, transport: asyncio.WriteTransport) -> int:
        """Count the bytes that have arrived at the other end."""
        assert isinstance(transport, SimStream)
        return transport.arrived_bytes

    def crash(self, process: SimProcess) -> None:
        """Drop a process's listeners and connections, as a power cut would."""
        for listener in list(self._listeners.values()):
            if listener.process is process:
                listener.close()
        for stream in list(self._streams):
            if stream.process is process:
                stream.cut()

    def forget(self, listener: SimListener) -> None:
        """Free the address of a listener."""
        address = listener.host, listener.port
        if self._listeners.get(address) is listener:
            del self._listeners[address]

    def _pair(
        self, process: SimProcess | None, listener: SimListener, server: tuple[str, int]
    ) -> tuple[SimStream, SimStream]:
        client = _LOOPBACK, 1_024 + next(self._client_ports) % 48_000
        ours = SimStream(
            self._loop,
            self._wire,
            (process, copy_context()),
            addresses=(client, server),
            forget=self._drop,
            kernel_bytes=self.kernel_bytes,
        )
        theirs = SimStream(
            self._loop,
            self._wire,
            (listener.process, listener.context.copy()),
            addresses=(server, client),
            forget=self._drop,
            kernel_bytes=self.kernel_bytes,
        )
        ours.peer, theirs.peer = theirs, ours
        self._streams[ours] = self._streams[theirs] = None
        return ours, theirs

    def _drop(self, stream: SimStream) -> None:
        self._streams.pop(stream, None)

    def _find(self, host: str, port: int) -> SimListener | None:
        return self._listeners.get((host, port)) or self._listeners.get((_ANY, port))

    def _home(self, host: str, port: int) -> str:
        return node_name(self._homes.get((host, port)) or self._homes.get((_ANY, port)))

    def _taken(self, host: str, port: int) -> SimListener | None:
        if host == _ANY:
            return next((v for (_, p), v in self._listeners.items() if p == port), None)
        return self._find(host, port)


class SimListener:
    """A simulated listening socket; a `synchromesh.runtime.Listener`."""

    def __init__(
        self,
        network: SimNetwork,
        address: tuple[str, int],
        factory: Callable[[], asyncio.Protocol],
    ) -> None:
        self.process = PROCESS.get()
        self.context: Context = copy_context()
        self._network, self._address, self._factory = network, address, factory

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self._address[0]

    @property
    def port(self) -> int:
        """The port."""
        return self._address[1]

    @property
    def is_secured(self) -> bool:
        """False: TLS is not simulated."""
        return False

    def accept(self, stream: SimStream) -> None:
        """Hand a new connection to a protocol; runs as a step of the owner."""
        if not stream.is_closing():
            stream.attach(self._factory())

    def pause(self) -> None:
        """Accept no more connections; nothing waits for a simulated listener to be closed."""
        self._network.forget(self)

    def close(self) -> None:
        """Stop listening; open connections stay."""
        self._network.forget(self)
