"""One connection of the server: llhttp reads, handlers answer in order, slow clients are cut.

    IDLE ──first byte──▶ HEAD ──head is acceptable──▶ BODY ──complete──▶ IDLE
      └─idle_s: close      └─head_s: 408                └─body_s: 408

Complete requests queue up and are answered one at a time, in order; what is queued, unread and
unsent is bounded, so that a client that sends faster than it reads waits and costs nothing. After
a refusal, or a request that is the last one, the connection is *deaf*: what follows is not parsed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from enum import Enum
from typing import Final, Protocol, TypeAlias, cast

import httptools

from synchromesh.errors import RemoteFailed, Shed
from synchromesh.http.limits import Limits
from synchromesh.http.message import (
    Headers,
    HttpRequest,
    HttpResponse,
    encode_response,
    error_response,
    problem_response,
)
from synchromesh.http.strictness import Head, Refusal, origin_form, refusal_of, too_large

Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]

_logger = logging.getLogger("synchromesh.http")

# llhttp cannot be paused, so that what is parsed ahead is bounded by what is fed to it at once.
_SLICE_BYTES: Final = 8192
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Owner(Protocol):
    """Is told about connections by themselves; the server is one."""

    def opened(self, connection: ServerConnection) -> bool:
        """Count the connection in, or return False to have it answered 503 and closed."""
        ...

    def closed(self, connection: ServerConnection, handling: asyncio.Task[None] | None) -> None:
        """Count it out; `handling` has been cancelled and may still need a moment to end."""
        ...


class Phase(Enum):
    """Says what the client is to send next."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


class _Stopped(Exception):
    """Ends llhttp from within a callback; the reason is kept by the connection."""


class ServerConnection(asyncio.Protocol):
    """Serves one client until it leaves, is refused, is too slow, or the server drains.

    A client that closes its sending side counts as gone: its handler is cancelled. TCP does not
    tell the two apart, and a handler that works for nobody is the costlier mistake.
    """

    _transport: asyncio.Transport
    _request: tuple[str, str]

    def __init__(self, handler: Handler, limits: Limits, owner: Owner) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._limits = limits
        self._owner = owner
        self._parser = httptools.HttpRequestParser(self)
        self._peer = ""
        self._phase = Phase.IDLE
        self._queue: deque[HttpRequest | HttpResponse] = deque()
        self._task: asyncio.Task[None] | None = None
        self._unfed = memoryview(b"")
        self._refused: Refusal | None = None
        self._due_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_deaf = self._is_draining = self._has_ended = self._is_lost = False
        self._is_read_paused = self._is_write_paused = self._owes_continue = False
        self._quiet_bytes = self._head_bytes = self._body_bytes = 0
        self._target = b""
        self._pairs: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        # Each request begins in the context of the connection's making: a pipelined one is started
        # by the task of the one before it, whose variables are not its own.
        self._context = copy_context()

    def __repr__(self) -> str:
        doing = "answering" if self._task else "ending" if self._has_ended else self._phase.value
        return f"<ServerConnection {self._peer} {doing}, {len(self._queue)} waiting>"

    # -- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for the first request; its head may take `head_s` from now."""
        self._transport = cast("asyncio.Transport", transport)
        # Any unsent byte counts: a client is slow from the moment it does not take what it is sent.
        self._transport.set_write_buffer_limits(high=0)
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and len(peer) >= 2:
            self._peer = f"{peer[0]}:{peer[1]}"
        if not self._owner.opened(self):
            self._is_deaf = True
            self._queue.append(_FULL)
            self._advance()
            return
        self._set_due(self._limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what is too early to parse is kept, and reading pauses."""
        if self._is_deaf:
            return
        if self._unfed:
            self._unfed = memoryview(bytes(self._unfed) + data)
            return
        self._unfed = memoryview(data)
        self._feed()

    def eof_received(self) -> None:
        """Let the transport close: the client has gone."""

    def pause_writing(self) -> None:
        """Begin to watch whether the client takes what it was sent."""
        self._is_write_paused = True
        self._watch_writing()

    def resume_writing(self) -> None:
        """Go on: the client has taken everything."""
        self._is_write_paused = False
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        self._advance()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Cancel the handler that works for this client, and forget what waits."""
        self._is_lost = self._is_deaf = self._has_ended = True
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._write_timer = self._due_s = None
        self._queue.clear()
        self._unfed = memoryview(b"")
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._owner.closed(self, task)

    # -- what the server asks --------------------------------------------------------------------

    def drain(self) -> None:
        """Answer what has been accepted or begun, take nothing more, then close."""
        self._is_draining = True
        if self._phase is Phase.IDLE and not self._unfed:
            self._is_deaf = True
        self._advance()

    def cut(self) -> None:
        """Drop the connection at once, with what it was doing."""
        self._transport.abort()

    # -- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take the first byte of a request."""
        if self._is_deaf:
            raise _Stopped
        self._phase = Phase.HEAD
        self._target = b""
        self._pairs = []
        self._body = []
        self._quiet_bytes = self._head_bytes = self._body_bytes = 0
        self._set_due(self._limits.head_s)

    def on_url(self, part: bytes) -> None:
        """Take a part of the request target."""
        self._count_head(len(part))
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; a trailer field is counted and dropped."""
        self._count_head(len(name) + len(value) + 4)
        if self._phase is Phase.BODY:
            return
        if len(self._pairs) >= self._limits.headers_max:
            self._stop(Refusal(431, f"more than {self._limits.headers_max} header fields"))
        # llhttp leaves the blanks behind a value; they are no part of it (RFC 9112, section 5.1).
        text = value.decode("latin-1").strip(" \t")
        self._pairs.append((name.decode("latin-1").lower(), text))

    def on_headers_complete(self) -> None:
        """Judge the head before a byte of the body is taken."""
        head = Head(
            self._parser.get_method().decode("ascii"),
            self._target.decode("latin-1"),
            self._parser.get_http_version(),
            self._pairs,
        )
        refusal = refusal_of(head, body_bytes_max=self._limits.body_bytes_max)
        if refusal is not None:
            self._stop(refusal)
        self._request = (head.method, origin_form(head.target))
        self._owes_continue = head.is_continue_expected
        self._phase = Phase.BODY
        self._set_due(self._limits.body_s)

    def on_chunk_header(self) -> None:
        """Note that the client makes progress."""
        self._quiet_bytes = 0

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._quiet_bytes = 0
        self._owes_continue = False
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.body_bytes_max:
            self._stop(too_large(self._limits.body_bytes_max))
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Queue the request; one that is the connection's last makes it deaf."""
        method, target = self._request
        path, _, query = target.partition("?")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        headers = Headers.from_wire(self._pairs)
        self._queue.append(HttpRequest(method, target, path, query, headers, body, self._peer))
        self._phase = Phase.IDLE
        self._owes_continue = False
        self._due_s = None
        # Keep-alive of HTTP/1.0 was never specified well: such a client gets one answer.
        if (
            self._is_draining
            or not self._parser.should_keep_alive()
            or self._parser.get_http_version() != "1.1"
        ):
            self._is_deaf = True

    # -- reading ---------------------------------------------------------------------------------

    def _feed(self) -> None:
        while self._unfed and not self._is_deaf and not self._is_full():
            piece, self._unfed = self._unfed[:_SLICE_BYTES], self._unfed[_SLICE_BYTES:]
            self._quiet_bytes += len(piece)
            try:
                self._parser.feed_data(piece)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade):
                # Once deaf, what follows the last request is not looked at, right or wrong.
                if not self._is_deaf:
                    self._refuse(self._refused or _MALFORMED)
            if self._quiet_bytes > self._limits.head_bytes_max + _SLICE_BYTES:
                self._refuse(self._oversized())
        if self._is_deaf:
            self._unfed = memoryview(b"")
        self._throttle()
        self._advance()

    def _throttle(self) -> None:
        """Read only while what is read can be parsed; a paused client is not a slow one."""
        if self._unfed and not self._is_read_paused:
            self._is_read_paused = True
            self._due_s = None
            self._transport.pause_reading()
        elif not self._unfed and self._is_read_paused:
            self._is_read_paused = False
            self._transport.resume_reading()
            if self._phase is not Phase.IDLE:
                is_head = self._phase is Phase.HEAD
                self._set_due(self._limits.head_s if is_head else self._limits.body_s)

    def _is_full(self) -> bool:
        return len(self._queue) >= self._limits.pipeline_max

    def _count_head(self, size: int) -> None:
        self._quiet_bytes = 0
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes_max:
            self._stop(self._oversized())

    def _oversized(self) -> Refusal:
        return Refusal(431, f"the head is longer than {self._limits.head_bytes_max} bytes")

    def _stop(self, refusal: Refusal) -> None:
        self._refused = refusal
        raise _Stopped

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with an error after all that came before it, then close."""
        if not self._is_deaf:
            self._deafen()
            self._queue.append(problem_response(refusal.status, refusal.detail))

    def _deafen(self) -> None:
        """Parse nothing more, and forget the request that has begun."""
        self._is_deaf = True
        self._phase = Phase.IDLE
        self._due_s = None
        self._owes_continue = False
        self._unfed = memoryview(b"")

    # -- answering -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do what comes next, unless a handler runs or the client has not taken the last answer."""
        if self._task is not None or self._is_write_paused or self._has_ended:
            return
        if self._queue:
            item = self._queue.popleft()
            if isinstance(item, HttpResponse):
                self._send(item)
            else:
                self._task = self._loop.create_task(
                    self._answer(item), context=self._context.copy()
                )
        elif self._unfed and not self._is_deaf:
            self._feed()
        elif self._phase is not Phase.IDLE:
            if self._owes_continue:
                self._owes_continue = False
                self._transport.write(_CONTINUE)
        elif self._is_deaf:
            self._end()
        elif self._due_s is None:
            self._set_due(self._limits.idle_s)

    async def _answer(self, request: HttpRequest) -> None:
        is_head = request.method == "HEAD"
        try:
            response = await self._handler(request)
            if not isinstance(response, HttpResponse):
                raise TypeError(f"a handler answered {type(response).__name__}, not HttpResponse")
        except asyncio.CancelledError:
            if self._is_lost:
                raise
            _logger.exception("a handler was cancelled: %r", request)
            response = _FAILED
        except Exception:
            _logger.exception("a handler failed: %r", request)
            response = _FAILED
        if not self._is_lost:
            self._task = None
            self._send(response, is_head=is_head)

    def _send(self, response: HttpResponse, *, is_head: bool = False) -> None:
        if response.headers.get("connection", "").lower() == "close":
            self._deafen()
            self._queue.clear()
        is_last = self._is_deaf and not self._queue and self._phase is Phase.IDLE
        self._transport.write(encode_response(response, is_head=is_head, is_last=is_last))
        self._advance()

    def _end(self) -> None:
        """Close so that the client sees the answer even while it is still sending."""
        self._has_ended = self._is_deaf = True
        if self._transport.is_closing():
            return
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        if self._is_read_paused:
            self._is_read_paused = False
            self._transport.resume_reading()
        self._set_due(self._limits.linger_s)

    # -- time ------------------------------------------------------------------------------------

    def _set_due(self, after_s: float) -> None:
        """Fire `after_s` from now; an armed timer that fires earlier is let run and armed anew."""
        due_s = self._due_s = self._loop.time() + after_s
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._on_timer)

    def _on_timer(self) -> None:
        armed, self._timer = self._timer, None
        if self._due_s is None:
            return
        # The loop may fire a clock tick early, so that the timer's own time is compared.
        if armed is not None and armed.when() < self._due_s:
            self._timer = self._loop.call_at(self._due_s, self._on_timer)
            return
        self._due_s = None
        if self._has_ended:
            self._transport.abort()
        elif self._phase is Phase.IDLE:
            self._end()
        else:
            seconds = self._limits.head_s if self._phase is Phase.HEAD else self._limits.body_s
            self._refuse(Refusal(408, f"the {self._phase.value} did not come in {seconds:g} s"))
            self._advance()

    def _watch_writing(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        self._write_timer = self._loop.call_later(self._limits.write_s, self._on_stall, unsent)

    def _on_stall(self, before: int) -> None:
        if before - self._transport.get_write_buffer_size() < self._limits.write_bytes_min:
            self._transport.abort()
        else:
            self._watch_writing()


_MALFORMED: Final = Refusal(400, "this is no well-formed HTTP request")
_FULL: Final = error_response(
    Shed("too many connections are open, or the server drains; try again later")
)
_FAILED: Final = error_response(
    RemoteFailed("the handler failed; the reason is in the log of this service")
)
