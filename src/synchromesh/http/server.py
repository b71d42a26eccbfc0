"""The HTTP/1.1 server that gateway, services and the control socket share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from synchromesh.eager import starter
from synchromesh.errors import ConfigError
from synchromesh.http.crowd import Crowd, host_of
from synchromesh.http.date import DateLine
from synchromesh.http.exchange import HttpExchange
from synchromesh.http.limits import Limits
from synchromesh.http.protocol import ServerConnection
from synchromesh.http.reading import Streaming
from synchromesh.http.serving import Connection, Handler, Serving
from synchromesh.http.together import together_on
from synchromesh.network import Listener, Network

_logger = logging.getLogger("synchromesh.http")

# How many turns of the loop asyncio takes to make a connection of what it has accepted.
_ACCEPT_TURNS = 3

# What a cancelled handler may take to end before it is named and left.
_CANCEL_S = 1.0


def _nobody(_peer: str, _status: int) -> None:
    """Tell nobody."""


class HttpServer:
    """Serves one handler on one address; strict, bounded, and it drains.

    A handler is any `async def handle(request: HttpRequest) -> HttpResponse`. Its requests are
    complete: heads judged, bodies decoded. One that raises is answered 500 without internals and
    logged; one whose client has gone is cancelled. It is started within the event that brought the
    request, and costs no turn of the loop until it waits. A handler that is a `FastHandler` as well
    gets small requests as bytes first.

    Args:
        handler: answers one request.
        network: where to listen; `RealRuntime().network` in the real world.
        limits: sizes, counts and times.
        streaming: answers the requests that it wants to have as streams; None where there are none.
        client_of: tells by a `peer` whom a connection is counted for, "" for nobody: by its address
            where nothing else is said.
        refused: told the `peer` and the status where a connection is ended with an answer that no
            handler gave: to what is no request, or to one that comes too slowly.
        wall_us: the wall clock, for the `Date` of answers; without one they have none.
        is_fast: False judges each head by all rules, starts each handler as a task of the loop, and
            offers nothing to a `FastHandler`; what clients see is the same. Tests use it.

    Example:
        >>> from synchromesh.http import HttpRequest, HttpResponse
        >>> from synchromesh.runtime import RealRuntime
        >>> async def hello(request: HttpRequest) -> HttpResponse:
        ...     return HttpResponse(200, [("content-type", "text/plain")], b"hello")
        >>> async def main() -> str:
        ...     server = HttpServer(hello, network=RealRuntime().network)
        ...     await server.start()
        ...     url = server.url
        ...     await server.drain(1.0)
        ...     return url.rpartition(":")[0]
        >>> asyncio.run(main())
        'http://127.0.0.1'
    """

    def __init__(
        self,
        handler: Handler,
        *,
        network: Network,
        limits: Limits = Limits(),  # noqa: B008  frozen
        streaming: Streaming | None = None,
        client_of: Callable[[str], str] = host_of,
        refused: Callable[[str, int], None] = _nobody,
        wall_us: Callable[[], int] | None = None,
        is_fast: bool = True,
    ) -> None:
        self._handler = handler
        self._streaming = streaming
        self._refused = refused
        self._wall_us = wall_us
        self._is_fast = is_fast
        self._network = network
        self._limits = limits
        self._listener: Listener | None = None
        self._serving: Serving | None = None
        self._connections = Crowd[Connection](limits, client_of)
        self._handling: set[asyncio.Task[object]] = set()
        self._is_draining = False
        self._changed = asyncio.Event()

    async def start(self, host: str = "127.0.0.1", port: int = 0, *, what: str = "") -> None:
        """Listen; port 0 takes a free one. The message of an error begins with `what`.

        Raises:
            ConfigError: it cannot listen there; the message says what to do.
        """
        if self._listener is not None:
            raise ConfigError(f"this server listens on {self.url} already; make another one")
        self._is_draining = False
        loop = asyncio.get_running_loop()
        serving = self._serving = Serving(
            self._handler,
            self._begin(),
            self._streaming,
            self._limits,
            self,
            starter(loop),
            self._network.taken,
            self._limits.patience,
            DateLine(self._wall_us),
            together_on(loop) if self._is_fast else None,
            self._is_fast,
            self._refused,
        )
        try:
            self._listener = await self._network.listen(
                lambda: ServerConnection(serving), host, port
            )
        except OSError as error:
            raise ConfigError(
                f"{what}cannot listen on {host}:{port}: {error.strerror or error}; stop what "
                "listens there, choose another port, or choose port 0 to take a free one"
            ) from error

    @property
    def host(self) -> str:
        """The address that is listened on."""
        return self._listening().host

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listening().port

    @property
    def url(self) -> str:
        """`http://host:port`, or with https, with no slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "https" if self._listening().is_secured else "http"
        return f"{scheme}://{host}:{self.port}"

    async def drain(self, within_s: float, *, idle_s: float = 0.0) -> int:
        """Stop accepting, answer what was accepted, and cut what is left after `within_s`.

        A client may be sending its next request over a connection in the moment in which that is
        closed, and then cannot know whether it was run. So an idle connection waits `idle_s` for
        one more, and its answer, as all that are still owed, says `connection: close`; one that was
        never used waits half a second. Without `idle_s` idle connections are closed at once, which
        does for clients that ask again. Returns how many connections had to be cut. May be
        repeated.
        """
        if self._listener is not None:
            self._listener.pause()
        # What is taken from the backlog and has no connection yet counts as accepted, and so does
        # what the kernel has received and the loop has not yet read.
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)
        self._is_draining = True
        self._stop_listening()
        for connection in self._connections:
            connection.drain(idle_s)
        try:
            async with asyncio.timeout(within_s):
                while self._connections:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        cut = len(self._connections)
        if cut:
            _logger.warning("cut %d connections that did not end within %g s", cut, within_s)
        await self.close()
        return cut

    def renew(self, idle_s: float) -> None:
        """End the connections that are open, as `drain` does, and go on accepting others.

        What was found out about them when they were opened may be so no longer.
        """
        for connection in list(self._connections):
            connection.drain(idle_s)

    def take_over(
        self,
        handler: Handler,
        streaming: Streaming | None,
        *,
        limits: Limits,
        client_of: Callable[[str], str],
        refused: Callable[[str, int], None],
    ) -> None:
        """Have another handler answer every request from the next one on, on all connections.

        What is under way is answered by who has begun it. Limits of connections that are open stay;
        how many there may be does not. The arguments are those of the server.
        """
        self._handler, self._streaming, self._limits = handler, streaming, limits
        self._refused = refused
        self._connections.take_over(limits, client_of)
        serving = self._serving
        if serving is None:
            return
        serving.handler, serving.begin, serving.streaming = handler, self._begin(), streaming
        serving.limits, serving.patience, serving.refused = limits, limits.patience, refused
        for connection in self._connections:
            connection.reader.streaming = streaming

    async def close(self) -> None:
        """Stop accepting, cut every connection, and wait for cancelled handlers. Repeatable."""
        self._is_draining = True
        self._stop_listening()
        self._serving = None  # it has this server, too: they would be a cycle
        for connection in self._connections:
            connection.cut()
        while self._connections:
            self._changed.clear()
            await self._changed.wait()
        if self._handling:
            _, stubborn = await asyncio.wait(self._handling, timeout=_CANCEL_S)
            if stubborn:
                _logger.error("%d handlers ignore their cancellation", len(stubborn))

    def __repr__(self) -> str:
        where = "not listening" if self._listener is None else self.url
        return f"<HttpServer {where}, {len(self._connections)} connections>"

    # -- what connections tell -------------------------------------------------------------------

    def opened(self, connection: Connection) -> bool:
        """Count a connection in; False where there are too many, or the server drains."""
        return self._connections.join(connection) and not self._is_draining

    def closed(self, connection: Connection, handling: asyncio.Task[object] | None) -> None:
        """Count a connection out, and keep its cancelled handler until that has ended."""
        self._connections.leave(connection)
        if handling is not None and not handling.done():
            self._handling.add(handling)
            handling.add_done_callback(self._handling.discard)
        self._changed.set()

    def _begin(self) -> Callable[[HttpExchange], bool] | None:
        return getattr(self._handler, "begin_exchange", None) if self._is_fast else None

    def _listening(self) -> Listener:
        if self._listener is None:
            raise ConfigError("this server does not listen; await start() first")
        return self._listener

    def _stop_listening(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
