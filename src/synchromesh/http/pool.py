"""The connection pool: few connections to each endpoint, the latest used first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf
from typing import Self

from synchromesh.clock import loop_now
from synchromesh.errors import DeadlineExceeded
from synchromesh.http.body import Body, Framing
from synchromesh.http.client import ClientConnection, ClientExchange
from synchromesh.http.endpoint import PoolEndpoint
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import Headers, HttpResponse, Pairs, RawPair, encode_request
from synchromesh.http.streamed import StreamedExchange
from synchromesh.network import Network
from synchromesh.timers import Timers


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """How many connections a pool has, how many are idle, and how many requests wait for one."""

    connections: int
    idle: int
    waiting: int


class FutureExchange(ClientExchange):
    """Is an exchange whose complete response is awaited as a future.

    Attributes:
        answer: the answer, or why there is none.
    """

    def __init__(
        self, wire: bytes, *, due_s: float, is_head: bool = False, is_idempotent: bool = False
    ) -> None:
        super().__init__(wire, due_s=due_s, is_head=is_head, is_idempotent=is_idempotent)
        self.answer: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Resolve the future."""
        if not self.answer.done():
            self.answer.set_result(HttpResponse(status, Headers.from_wire(pairs), body))

    def on_error(self, error: Exception) -> None:
        """Fail the future."""
        if not self.answer.done():
            self.answer.set_exception(error)


class HttpPool:
    """Sends requests over kept connections, and says how much is known where one fails.

    The latest used connection is taken first, so that the others expire in quiet times. A call that
    is cancelled or runs out of time closes its connection: a late answer can reach nobody else.

    Args:
        network: how endpoints are reached; `RealRuntime().network` in the real world.
        limits: sizes, counts and times.

    Example:
        >>> from synchromesh.errors import ConnectFailed
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
        self.network = network
        self.limits = limits
        self.timers = Timers()
        # A dict keeps the order in which they were made, which a simulated close relies on.
        self.connections: dict[ClientConnection, None] = {}
        self.is_closed = False
        self._endpoints: dict[tuple[str, int], PoolEndpoint] = {}
        self.sweeping: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    def send(self, host: str, port: int, exchange: ClientExchange) -> None:
        """Send an exchange; its callbacks are called later, or before this returns.

        Its `wire` is the whole request, framed by its length: nothing is checked here. See
        `request_head` and `HttpPool.request` for what a request may be.
        """
        key = (host, port)
        endpoint = exchange.owner = self._endpoints.get(key) or PoolEndpoint(key, self)
        endpoint.send(exchange)

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
        time, once, on a new connection. Any other takes only a connection that was used in the last
        second.

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
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        wire = encode_request(name, method, target, headers, body)
        exchange = FutureExchange(
            wire,
            due_s=inf if timeout_s is None else loop_now() + timeout_s,
            is_head=method == "HEAD",
            is_idempotent=is_idempotent,
        )
        self.send(host, port, exchange)
        try:
            return await exchange.answer
        except asyncio.CancelledError:
            # Nothing that still comes may reach another call.
            exchange.cancel()
            raise
        finally:
            del exchange  # it keeps an error that has this frame in its traceback

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
        done; what is not read then closes the connection. A body that is still coming always gets a
        new connection: it cannot be sent again if a kept one turns out to be closed.

        A body that is under way, either way, holds none of the places of exchanges that wait for an
        answer; there are `PoolLimits.streams_max` of its own.

        Args:
            body: what is to be sent; it is read once. None where there is none.
            timeout_s: bounds the waiting for a connection, and once more the time from the last
                byte of the request to the head of the answer. In between and after that,
                `PoolLimits.stall_s` bounds each time in which nothing moves, and `quiet_s` where
                the answer has not said its length.
            host, port, method, target, headers, is_idempotent: as for `request`; a request with a
                body is not sent a second time.

        Raises:
            Exception: as `request` does, and Shed where too many bodies are under way; `read` of
                the answer's stream raises ConnectionLost and TimedOut as well.
        """
        # The exchange is not kept here: it keeps an error that has this frame in its traceback.
        async with self.sent(
            host,
            port,
            self.streamed(
                host,
                port,
                method,
                target,
                headers,
                body,
                timeout_s=timeout_s,
                is_idempotent=is_idempotent,
            ),
        ) as answer:
            yield answer

    def streamed(
        self,
        host: str,
        port: int,
        method: str,
        target: str,
        headers: Headers | Pairs,
        body: Body | None,
        *,
        timeout_s: float,
        is_idempotent: bool,
    ) -> StreamedExchange:
        """Return the exchange of `stream`, which is to be `sent`.

        Raises:
            ValueError, DeadlineExceeded: as `request` does.
        """
        if timeout_s <= 0:
            raise DeadlineExceeded(f"no time was left for the call to {host}:{port}; not sent")
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        framing = Framing(length=None if body is None else body.length)
        sent = b"" if body is None else framing
        return StreamedExchange(
            encode_request(name, method, target, headers, sent),
            body,
            framing,
            due_s=loop_now() + timeout_s,
            answer_s=timeout_s,
            limits=self.limits,
            is_head=method == "HEAD",
            is_idempotent=is_idempotent and body is None,
        )

    @asynccontextmanager
    async def sent(
        self, host: str, port: int, exchange: StreamedExchange
    ) -> AsyncIterator[HttpResponse]:
        """Send what `streamed` has made; see `stream`."""
        self.send(host, port, exchange)
        try:
            yield await exchange.answer
        finally:
            left = exchange.leave()
            del exchange  # it keeps an error that has this frame in its traceback
            await left

    async def close(self) -> None:
        """Close every connection; calls that run or wait fail. May be repeated."""
        self.is_closed = True
        if self.sweeping is not None:
            self.sweeping.cancel()
            self.sweeping = None
        for endpoint in list(self._endpoints.values()):
            endpoint.close()
        for connection in list(self.connections):
            connection.abort()
        while self.connections:
            self._changed.clear()
            await self._changed.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    def snapshot(self) -> PoolSnapshot:
        """Return what it holds at this moment."""
        endpoints = self._endpoints.values()
        return PoolSnapshot(
            len(self.connections),
            sum(len(endpoint.idle) for endpoint in endpoints),
            sum(len(endpoint.waiting) for endpoint in endpoints),
        )

    def __repr__(self) -> str:
        now, endpoints = self.snapshot(), f"{len(self._endpoints)} endpoints"
        return f"<HttpPool {endpoints}, {now.connections} connections, {now.idle} idle>"

    # -- what endpoints tell ---------------------------------------------------------------------

    def on_used(self, endpoint: PoolEndpoint) -> None:
        """Register an endpoint that has connections."""
        self._endpoints[endpoint.key] = endpoint

    def on_unused(self, endpoint: PoolEndpoint) -> None:
        """Forget an endpoint whose last connection has gone."""
        self._endpoints.pop(endpoint.key, None)

    def on_idle(self) -> None:
        """Schedule the idle timeout."""
        if self.sweeping is None:
            loop = asyncio.get_running_loop()
            self.sweeping = loop.call_later(self.limits.idle_s, self._sweep)

    def on_lost(self) -> None:
        """Wake `close`, which waits for the last connection."""
        self._changed.set()

    def _sweep(self) -> None:
        """Close idle connections past the idle timeout, and schedule the next look."""
        loop = asyncio.get_running_loop()
        now = loop_now()
        due = [endpoint.sweep(now) for endpoint in list(self._endpoints.values())]
        next_s = min((at_s for at_s in due if at_s is not None), default=None)
        self.sweeping = None if next_s is None else loop.call_at(next_s, self._sweep)
