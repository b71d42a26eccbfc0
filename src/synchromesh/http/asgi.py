"""Mounts an ASGI 3 application on the server: http and lifespan, and nothing else.

An application's answer is buffered up to a limit, so that one which fails half way is still
answered with an error. As the server's `streaming` it gets bodies as they come, and sends its own
as it makes them: then one that fails half way is cut off, and never taken for whole.

Source: the ASGI specification, version 3.0, HTTP and lifespan sub-specifications 2.4 and 2.0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias
from urllib.parse import unquote

from synchromesh.errors import ConfigError
from synchromesh.http.body import Body
from synchromesh.http.message import Headers, HttpRequest, HttpResponse

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_logger = logging.getLogger("synchromesh.http")


class AsgiHandler:
    """Answers requests by an ASGI application; `startup` and `shutdown` run its lifespan.

    Given to a server as its `streaming` too, it streams both bodies of every request.

    Once the application has sent its whole answer the client gets it, while the application may
    still run (background tasks); `shutdown` cancels what is left of that.

    Args:
        app: `async def app(scope, receive, send)`.
        body_bytes_max: the longest answer that is buffered; beyond it the application fails.
        stream_bytes_max: the longest body of a request that streams; an answer's has no bound.
        background_max: how many requests may still run after their answer; beyond it an answer
            waits for the application to end.

    Example:
        >>> async def app(scope, receive, send):
        ...     await send({"type": "http.response.start", "status": 200, "headers": []})
        ...     await send({"type": "http.response.body", "body": scope["path"].encode()})
        >>> request = HttpRequest("GET", "/a%20b", "/a%20b", "", Headers(), b"")
        >>> asyncio.run(AsgiHandler(app)(request)).body
        b'/a b'
    """

    def __init__(
        self,
        app: AsgiApp,
        *,
        body_bytes_max: int = 8 * 1024 * 1024,
        stream_bytes_max: int = 64 * 1024 * 1024,
        background_max: int = 64,
    ) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max
        self._stream_bytes_max = stream_bytes_max
        self._background_max = background_max
        self._background: set[asyncio.Task[None]] = set()
        self._lifespan: Lifespan | None = None

    async def startup(self) -> None:
        """Start the application's lifespan, if it has one.

        Raises:
            ConfigError: the application says that it cannot start, or raises while it starts.
        """
        if self._lifespan is None:
            about = {"version": "3.0", "spec_version": "2.0"}
            lifespan = Lifespan(self._app, {"type": "lifespan", "asgi": about, "state": {}})
            await lifespan.startup()
            self._lifespan = lifespan

    async def shutdown(self) -> None:
        """Cancel what still runs, then end the lifespan. May be repeated."""
        await _cancel(self._background)
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.shutdown()

    async def __aenter__(self) -> Self:
        await self.startup()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.shutdown()

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer one request. Raises what the application raises before its answer is whole."""
        exchange = _Exchange(request.body, self._body_bytes_max)
        task = self._start(request, exchange)
        try:
            if len(self._background) > self._background_max:
                await asyncio.wait([task])
            return await exchange.answer
        except asyncio.CancelledError:
            exchange.answer.cancel()
            await _cancel({task})
            raise

    def body_max(self, method: str, path: str, pairs: object) -> int:  # noqa: ARG002  alike for all
        """Say how long the body of a request may be that streams."""
        return self._stream_bytes_max

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        """Answer one request while its body comes; raises as a call does."""
        assert request.stream is not None
        exchange = _StreamedExchange(request.stream)
        task = self._start(request, exchange)
        try:
            yield await exchange.answer
            if len(self._background) > self._background_max:
                await asyncio.wait([task])
        except BaseException:
            exchange.answer.cancel()
            await _cancel({task})
            raise
        finally:
            exchange.leave()

    def _start(self, request: HttpRequest, exchange: _Exchange) -> asyncio.Task[None]:
        scope = _scope(request, self._lifespan.state if self._lifespan is not None else {})
        task = asyncio.ensure_future(_call(self._app, scope, exchange.receive, exchange.send))
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(exchange.end)
        return task


class _Exchange:
    """One request's `receive` and `send`; the answer is there once it is whole."""

    def __init__(self, body: bytes, body_bytes_max: int) -> None:
        self.answer: asyncio.Future[HttpResponse] = asyncio.get_running_loop().create_future()
        self._unread: bytes | None = body
        self._body_bytes_max = body_bytes_max
        self._status = 0
        self._headers = Headers()
        self._parts: list[bytes] = []
        self._size = 0
        self._is_over = asyncio.Event()
        self._is_left = False

    async def receive(self) -> Message:
        body, self._unread = self._unread, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._is_over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._is_over.is_set():
            raise OSError("the answer is complete, or nobody waits for it; no more can be sent")
        if message["type"] == "http.response.start" and not self._status:
            self._status = int(message["status"])
            self._headers = Headers(
                (bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
                for name, value in message.get("headers", ())
            )
        elif message["type"] == "http.response.body" and self._status:
            is_last = not message.get("more_body", False)
            await self._take(bytes(message.get("body", b"")), is_last=is_last)
        else:
            raise RuntimeError(f"the application sent {message['type']!r} out of turn")

    async def _take(self, part: bytes, *, is_last: bool) -> None:
        self._size += len(part)
        if self._size > self._body_bytes_max:
            raise RuntimeError(f"the answer is longer than {self._body_bytes_max} bytes")
        self._parts.append(part)
        if is_last:
            self._is_over.set()
            body = b"".join(self._parts)
            self.answer.set_result(HttpResponse(self._status, self._headers, body))

    def end(self, task: asyncio.Task[None]) -> None:
        """Take the end of the application: an error unless its answer was whole."""
        is_whole = self._is_over.is_set()
        self._is_over.set()
        error = None if task.cancelled() else task.exception()
        if not is_whole:
            self._fail(error or RuntimeError("the application ended without a whole answer"))
        elif error is not None and not (self._is_left and isinstance(error, OSError)):
            _logger.error("an application failed after its answer", exc_info=error)

    def _fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class _StreamedExchange(_Exchange):
    """As bodies come: the answer is there with its first part, and `send` waits for its reader."""

    def __init__(self, body: Body) -> None:
        super().__init__(b"", 0)
        self._body: Body | None = body
        self._room = asyncio.Event()
        self._stream = Body(length=None, on_room=self._room.set)

    async def receive(self) -> Message:
        if self._body is None:
            await self._is_over.wait()
            return {"type": "http.disconnect"}
        part = await self._body.read()
        if not part:
            self._body = None
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def _take(self, part: bytes, *, is_last: bool) -> None:
        if not self.answer.done():
            self.answer.set_result(HttpResponse(self._status, self._headers, stream=self._stream))
        self._stream.feed(part)
        if is_last:
            self._is_over.set()
            self._stream.end()
        while self._stream.is_full and not self._is_over.is_set():
            self._room.clear()
            await self._room.wait()

    def leave(self) -> None:
        """Tell the application that nobody reads its answer any more."""
        self._is_left = not self._is_over.is_set()
        self._is_over.set()
        self._room.set()

    def _fail(self, error: BaseException) -> None:
        super()._fail(error)
        # A failure of the application, and not of the loop, is what the reader is told.
        self._stream.fail(error if isinstance(error, Exception) else RuntimeError(repr(error)))


class Lifespan:
    """Runs the lifespan of an application once: `startup`, then `shutdown`.

    Args:
        scope: what the application is called with; its "state" is what requests are given.
    """

    def __init__(self, app: AsgiApp, scope: Scope) -> None:
        self.state: dict[str, Any] = scope.get("state", {})
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._has_received = False
        self._reply: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(_call(app, scope, self._receive, self._send))

    async def startup(self) -> None:
        """Start the application; one that has no lifespan needs no start.

        Raises:
            ConfigError: it says that it cannot start, or raises while it starts.
        """
        try:
            failure = await self._ask("lifespan.startup")
        except asyncio.CancelledError:
            await _cancel({self._task})
            raise
        # An application that ends without asking for events has no lifespan; that is allowed.
        if failure is not None and self._has_received:
            await _cancel({self._task})
            raise ConfigError(f"the application did not start: {failure}")

    async def shutdown(self) -> None:
        """Have the application end; what it says against it is logged."""
        if not self._task.done():
            failure = await self._ask("lifespan.shutdown")
            if failure is not None:
                _logger.error("the application did not shut down well: %s", failure)
        await _cancel({self._task})

    async def _ask(self, event: str) -> str | None:
        """Send an event; return None once it is complete, else what went wrong."""
        self._reply = asyncio.get_running_loop().create_future()
        self._events.put_nowait({"type": event})
        waited: set[asyncio.Future[Any]] = {self._task, self._reply}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if self._reply.done():
            return self._reply.result()
        self._reply.cancel()
        error = None if self._task.cancelled() else self._task.exception()
        return f"it raised {error!r}" if error is not None else f"it ended during {event}"

    async def _receive(self) -> Message:
        self._has_received = True
        return await self._events.get()

    async def _send(self, message: Message) -> None:
        kind = str(message["type"])
        if not kind.endswith((".complete", ".failed")) or self._reply.done():
            raise RuntimeError(f"the application sent {kind!r} out of turn")
        failed = kind.endswith(".failed")
        self._reply.set_result(str(message.get("message", "")) or kind if failed else None)


def _scope(request: HttpRequest, state: dict[str, Any]) -> Scope:
    host, _, port = request.peer.rpartition(":")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": unquote(request.path),
        "raw_path": request.path.encode("latin-1"),
        "query_string": request.query.encode("latin-1"),
        "root_path": "",
        "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in request.headers],
        "client": (host, int(port)) if port.isdecimal() else None,
        "server": None,
        "state": dict(state),
    }


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until each has ended; what they raise has been logged or answered."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _call(app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
    # Called only once the task runs: one that ends before that leaves no coroutine unawaited.
    await app(scope, receive, send)
