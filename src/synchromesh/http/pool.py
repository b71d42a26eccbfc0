"""The connection pool: few connections to each endpoint, the latest used first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self, TypeAlias

from synchromesh.errors import ConnectFailed, ConnectionLost, DeadlineExceeded, Shed
from synchromesh.http.body import Body, Framing
from synchromesh.http.client import ClientConnection, Outgoing
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import Headers, HttpResponse, Pairs, encode_request
from synchromesh.runtime import Network

# Given with a connection, or with the right to make one.
_Place: TypeAlias = "asyncio.Future[ClientConnection | None]"


@dataclass(slots=True)
class _Endpoint:
    """One host and port, for whole exchanges or for streamed ones.

    `used` counts its connections, being made, busy and idle. A streamed exchange takes as long as
    the slowest client: those that are whole must never wait for one.
    """

    host: str
    port: int
    is_streamed: bool
    used: int = 0
    idle: deque[ClientConnection] = field(default_factory=deque)
    waiting: deque[_Place] = field(default_factory=deque)

    @property
    def key(self) -> tuple[str, int, bool]:
        return self.host, self.port, self.is_streamed

    @property
    def name(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class HttpPool:
    """Sends requests over kept connections, and says how much is known where one fails.

    The latest used connection is taken first, so that the others expire in quiet times. A call that
    is cancelled or runs out of time closes its connection: a late answer can reach nobody else.

    Args:
        network: how endpoints are reached; `RealRuntime().network` in the real world.
        limits: sizes, counts and times.

    Example:
        >>> from synchromesh.runtime import RealRuntime
        >>> async def main() -> str:
        ...     async with HttpPool(network=RealRuntime().network) as pool:
        ...         try:
        ...             await pool.request("127.0.0.1", 1, "GET", "/", timeout_s=1.0)
        ...         except ConnectFailed as error:
        ...             return error.code
        ...     return "answered"
        >>> asyncio.run(main())
        'connect_failed'
    """

    def __init__(self, *, network: Network, limits: PoolLimits = PoolLimits()) -> None:  # noqa: B008
        self._network = network
        self._limits = limits
        self._endpoints: dict[tuple[str, int, bool], _Endpoint] = {}
        # A dict keeps the order in which they were made, which a simulated close relies on.
        self._connections: dict[ClientConnection, None] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._changed = asyncio.Event()

    async def request(
        self,
        host: str,
        port: int,
        method: str,
        target: str,
        headers: Headers | Pairs = (),
        body: bytes = b"",
        *,
        timeout_s: float | None,
        is_idempotent: bool = False,
    ) -> HttpResponse:
        """Send one request and return its answer, whatever its status.

        The server may close a kept connection in the moment in which it is used again; whether it
        has run the request then is unknown, so that only one that `is_idempotent` is sent a second
        time, once, on a new connection.

        Args:
            host: a name or an address.
            port: the port.
            method: in upper case.
            target: path and query, percent-encoded; "*" for OPTIONS.
            headers: no framing fields; a Host replaces `host:port`.
            body: sent with its length.
            timeout_s: bounds all of it, the waiting for a connection too; None: no bound but the
                caller's own.
            is_idempotent: running the request twice does what running it once does.

        Raises:
            ValueError: method, target or headers cannot be sent.
            DeadlineExceeded: `timeout_s` is not above zero: nothing was sent.
            Shed: no connection of the endpoint became free in time: nothing was sent.
            ConnectFailed: no connection could be made: nothing was sent.
            ConnectionLost: sent, but no whole and acceptable answer came: the outcome is unknown.
            TimedOut: sent, but no answer came in time: the outcome is unknown.
        """
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded(f"no time was left for the call to {host}:{port}; not sent")
        deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        endpoint = self._endpoint(host, port, is_streamed=False)
        wire = encode_request(endpoint.name, method, target, headers, body)
        is_head = method == "HEAD"
        connection = await self._acquire(endpoint, deadline_s)
        try:
            return await self._exchange(endpoint, connection, wire, is_head, deadline_s)
        except ConnectionLost as lost:
            if not (connection.was_stale and is_idempotent):
                raise
            connection = await self._fresh(endpoint, deadline_s, lost)
        return await self._exchange(endpoint, connection, wire, is_head, deadline_s)

    @asynccontextmanager
    async def stream(
        self,
        host: str,
        port: int,
        method: str,
        target: str,
        headers: Headers | Pairs = (),
        body: Body | None = None,
        *,
        timeout_s: float,
        is_idempotent: bool = False,
    ) -> AsyncIterator[HttpResponse]:
        """Send one request, and give its answer as soon as its head is there; read its `stream`.

        Neither body is ever held whole: the request's is read as the server takes it, and reading
        from the server pauses while the answer's waits to be read. The context is left once that is
        done; what is not read then closes the connection. A request with a body always gets a new
        connection: it cannot be sent again if a kept one turns out to be closed.

        Args:
            body: what is to be sent; it is read once. None where there is none.
            timeout_s: bounds the waiting for a connection, and once more the time from the last
                byte of the request to the head of the answer. In between and after that,
                `PoolLimits.stall_s` bounds each time in which nothing moves.
            host, port, method, target, headers, is_idempotent: as for `request`; a request with a
                body is not sent a second time.

        Raises:
            Exception: as `request` does; `read` of the answer's stream raises ConnectionLost and
                TimedOut as well.
        """
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no time was left for the call to {host}:{port}; not sent")
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        endpoint = self._endpoint(host, port, is_streamed=True)
        framing = Framing(length=None if body is None else body.length)
        sent = b"" if body is None else framing
        head = encode_request(endpoint.name, method, target, headers, sent)
        outgoing, is_head = Outgoing(head, body, framing, timeout_s), method == "HEAD"
        connection = await self._acquire(endpoint, deadline_s, is_fresh=body is not None)
        try:
            response = await self._begin(endpoint, connection, outgoing, is_head)
        except ConnectionLost as lost:
            if not (connection.was_stale and is_idempotent and body is None):
                raise
            connection = await self._fresh(endpoint, deadline_s, lost)
            response = await self._begin(endpoint, connection, outgoing, is_head)
        try:
            yield response
        finally:
            await self._leave(endpoint, connection)

    async def close(self) -> None:
        """Close every connection; calls that run or wait fail. May be repeated."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        for endpoint in self._endpoints.values():
            for waiting in endpoint.waiting:
                if not waiting.done():
                    waiting.set_exception(_closed(endpoint.name))
            endpoint.waiting.clear()
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            self._changed.clear()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        idle = sum(len(endpoint.idle) for endpoint in self._endpoints.values())
        endpoints = len({endpoint.name for endpoint in self._endpoints.values()})
        return (
            f"<HttpPool {endpoints} endpoints, {len(self._connections)} connections, {idle} idle>"
        )

    # -- taking and giving back ------------------------------------------------------------------

    def _endpoint(self, host: str, port: int, *, is_streamed: bool) -> _Endpoint:
        known = self._endpoints.get((host, port, is_streamed))
        return known or _Endpoint(host, port, is_streamed)

    async def _exchange(
        self,
        endpoint: _Endpoint,
        connection: ClientConnection,
        wire: bytes,
        is_head: bool,
        deadline_s: float | None,
    ) -> HttpResponse:
        try:
            return await connection.exchange(wire, is_head=is_head, deadline_s=deadline_s)
        except BaseException:
            # Cancelled, late or broken: nothing that still comes may reach another call.
            connection.abort()
            raise
        finally:
            self._give(endpoint, connection)

    async def _begin(
        self, endpoint: _Endpoint, connection: ClientConnection, outgoing: Outgoing, is_head: bool
    ) -> HttpResponse:
        try:
            return await connection.stream(outgoing, is_head=is_head)
        except BaseException:
            await self._leave(endpoint, connection)
            raise

    async def _leave(self, endpoint: _Endpoint, connection: ClientConnection) -> None:
        try:
            await connection.leave()
        finally:
            self._give(endpoint, connection)

    async def _fresh(
        self, endpoint: _Endpoint, deadline_s: float | None, lost: ConnectionLost
    ) -> ClientConnection:
        """Return a new connection for a request that was lost with the one before.

        Raises:
            ConnectionLost: there is none. That the request was not sent again says nothing of the
                first time, when it may have been run: its outcome stays unknown.
        """
        try:
            return await self._acquire(endpoint, deadline_s, is_fresh=True)
        except (ConnectFailed, DeadlineExceeded, Shed):
            raise lost from None

    async def _acquire(
        self, endpoint: _Endpoint, deadline_s: float | None, *, is_fresh: bool = False
    ) -> ClientConnection:
        if self._is_closed:
            raise _closed(endpoint.name)
        self._endpoints.setdefault(endpoint.key, endpoint)
        connection: ClientConnection | None = None
        if endpoint.idle and not is_fresh:
            connection = endpoint.idle.pop()
        elif endpoint.used < self._limits.connections_max:
            endpoint.used += 1
        elif endpoint.idle:
            connection = endpoint.idle.popleft()
        else:
            connection = await self._wait(endpoint, deadline_s)
        # From here on one place among the endpoint's connections is this call's own.
        if connection is not None:
            if connection.is_reusable and not is_fresh:
                return connection
            connection.abort()
        return await self._connect(endpoint, deadline_s)

    async def _wait(self, endpoint: _Endpoint, deadline_s: float | None) -> ClientConnection | None:
        if len(endpoint.waiting) >= self._limits.waiting_max:
            raise Shed(
                f"{len(endpoint.waiting)} calls wait for a connection to {endpoint.name} already; "
                "nothing was sent"
            )
        place: _Place = asyncio.get_running_loop().create_future()
        endpoint.waiting.append(place)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await place
        except BaseException as error:
            if place in endpoint.waiting:
                endpoint.waiting.remove(place)
            elif place.done() and not place.cancelled() and place.exception() is None:
                # Given in the moment in which the waiting ended: the next one gets it.
                self._give(endpoint, place.result())
            if isinstance(error, TimeoutError):
                raise Shed(
                    f"all {endpoint.used} connections to {endpoint.name} stayed busy until the "
                    "deadline; nothing was sent"
                ) from None
            raise

    async def _connect(self, endpoint: _Endpoint, deadline_s: float | None) -> ClientConnection:
        until_s = asyncio.get_running_loop().time() + self._limits.connect_s
        if deadline_s is not None:
            until_s = min(until_s, deadline_s)
        made: list[ClientConnection] = []

        def factory() -> ClientConnection:
            connection = ClientConnection(
                endpoint.name, self._limits, lambda lost: self._lost(endpoint, lost)
            )
            made.append(connection)
            return connection

        try:
            async with asyncio.timeout_at(until_s):
                await self._network.connect(factory, endpoint.host, endpoint.port)
        except OSError as error:
            self._give(endpoint, None)
            reason = error.strerror or str(error) or "it did not answer in time"
            raise ConnectFailed(
                f"cannot connect to {endpoint.name}: {reason}; nothing was sent"
            ) from error
        except BaseException:
            self._give(endpoint, None)
            raise
        connection = made[-1]
        self._connections[connection] = None
        if self._is_closed:
            connection.abort()
            self._give(endpoint, None)
            raise _closed(endpoint.name)
        return connection

    def _give(self, endpoint: _Endpoint, connection: ClientConnection | None) -> None:
        """Pass a place on, with its connection if that may stay: to who waits longest, or idle."""
        if connection is not None and not connection.is_reusable:
            connection.abort()
            connection = None
        while endpoint.waiting:
            place = endpoint.waiting.popleft()
            if not place.done():
                place.set_result(connection)
                return
        if connection is None:
            self._free(endpoint)
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        endpoint.idle.append(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(self._limits.idle_s, self._sweep)

    def _free(self, endpoint: _Endpoint) -> None:
        endpoint.used -= 1
        if not endpoint.used:
            self._endpoints.pop(endpoint.key, None)

    def _lost(self, endpoint: _Endpoint, connection: ClientConnection) -> None:
        self._connections.pop(connection, None)
        self._changed.set()
        # A busy connection is given back by the call that it fails.
        if connection in endpoint.idle:
            endpoint.idle.remove(connection)
            self._free(endpoint)

    def _sweep(self) -> None:
        """Close what has been idle for too long, and come again when the next one may be."""
        loop = asyncio.get_running_loop()
        oldest_s: float | None = None
        for endpoint in list(self._endpoints.values()):
            while endpoint.idle:
                since_s = endpoint.idle[0].idle_since_s
                if since_s + self._limits.idle_s > loop.time():
                    oldest_s = since_s if oldest_s is None else min(oldest_s, since_s)
                    break
                endpoint.idle.popleft().abort()
                self._free(endpoint)
        self._sweeping = None
        if oldest_s is not None:
            self._sweeping = loop.call_at(oldest_s + self._limits.idle_s, self._sweep)


def _closed(name: str) -> ConnectFailed:
    return ConnectFailed(f"the pool is closed: nothing was sent to {name}")
