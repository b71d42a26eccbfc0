"""One connection of the server: requests are answered in order, slow clients are cut.

    IDLE ──first byte──▶ HEAD ──head is acceptable──▶ BODY ──complete──▶ IDLE
      └─idle_s: close      └─head_s: 408                └─body_s: 408

Requests queue up and are answered one at a time, in order; what is queued, unread and unsent is
bounded, so that a client that sends faster than it reads waits and costs nothing. While the reader
of a streamed body has enough unread, the connection reads no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Final, Protocol, TypeAlias, cast

from synchromesh.errors import RemoteFailed, Shed, SynchromeshError
from synchromesh.http.body import Body, Framing
from synchromesh.http.limits import Limits
from synchromesh.http.message import (
    HttpRequest,
    HttpResponse,
    encode_response,
    error_response,
    has_body,
    problem_response,
)
from synchromesh.http.outflow import Outflow, reset
from synchromesh.http.reading import SLICE_BYTES, Phase, RequestReader, Streaming
from synchromesh.http.strictness import Refusal

Handler: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]

_logger = logging.getLogger("synchromesh.http")

# Who connects sends a request at once; while the server drains, this is how long it is waited for.
_FRESH_S: Final = 0.5
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Owner(Protocol):
    """Is told about connections by themselves; the server is one."""

    def opened(self, connection: ServerConnection) -> bool:
        """Count the connection in, or return False to have it answered 503 and closed."""
        ...

    def closed(self, connection: ServerConnection, handling: asyncio.Task[None] | None) -> None:
        """Count it out; `handling` has been cancelled and may still need a moment to end."""
        ...


class ServerConnection(asyncio.Protocol):
    """Serves one client until it leaves, is refused, is too slow, or the server drains.

    A client that closes its sending side counts as gone: its handler is cancelled. TCP does not
    tell the two apart, and a handler that works for nobody is the costlier mistake.
    """

    _transport: asyncio.Transport
    _outflow: Outflow

    def __init__(
        self, handler: Handler, limits: Limits, owner: Owner, streaming: Streaming | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._limits = limits
        self._owner = owner
        self._streaming = streaming
        self._reader = RequestReader(limits, streaming, self)
        self._queue: deque[HttpRequest | HttpResponse] = deque()
        self._task: asyncio.Task[None] | None = None
        self._unfed = memoryview(b"")
        self._due_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_fresh = True  # no request has begun
        self._has_ended = self._is_lost = self._is_read_paused = False
        # The streamed body of the request that is being answered.
        self._current: Body | None = None
        self._bytes_before = 0
        # Each request begins in the context of the connection's making: a pipelined one is started
        # by the task of the one before it, whose variables are not its own.
        self._context = copy_context()

    def __repr__(self) -> str:
        reading = self._reader.phase.value
        doing = "answering" if self._task else "ending" if self._has_ended else reading
        return f"<ServerConnection {self._reader.peer} {doing}, {len(self._queue)} waiting>"

    # -- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for the first request; its head may take `head_s` from now."""
        self._transport = cast("asyncio.Transport", transport)
        # Any unsent byte counts: a client is slow from the moment it does not take what it is sent.
        self._transport.set_write_buffer_limits(high=0)
        self._outflow = Outflow(
            self._transport,
            stall_s=self._limits.write_s,
            bytes_min=self._limits.write_bytes_min,
            on_stall=self._transport.abort,
        )
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and len(peer) >= 2:
            self._reader.peer = f"{peer[0]}:{peer[1]}"
        if not self._owner.opened(self):
            self._reader.is_deaf = True
            self._queue.append(_FULL)
            self._advance()
            return
        self._set_due(self._limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Parse what came; what is too early to parse is kept, and reading pauses."""
        if self._reader.is_deaf:
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
        self._outflow.pause()

    def resume_writing(self) -> None:
        """Go on: the client has taken everything."""
        self._outflow.resume()
        self._advance()

    def connection_lost(self, _exc: Exception | None) -> None:
        """Cancel the handler that works for this client, and forget what waits."""
        self._is_lost = self._has_ended = True
        self._deafen()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._outflow.resume()
        self._queue.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._owner.closed(self, task)

    # -- what the server asks --------------------------------------------------------------------

    def drain(self) -> None:
        """Answer what has been accepted or begun, take nothing more, then close."""
        reader = self._reader
        reader.is_draining = True
        if reader.phase is Phase.IDLE and not self._unfed:
            if self._is_fresh:
                self._set_due(min(_FRESH_S, self._limits.head_s))
            else:
                reader.is_deaf = True
        self._advance()

    def cut(self) -> None:
        """Drop the connection at once, with what it was doing."""
        self._transport.abort()

    # -- what the reader tells -------------------------------------------------------------------

    def on_phase(self, phase: Phase) -> None:
        """Give the client its time for what it is to send next."""
        if phase is Phase.HEAD:
            self._is_fresh = False
            self._set_due(self._limits.head_s)
        elif phase is Phase.BODY and self._reader.coming is None:
            self._set_due(self._limits.body_s)
        else:
            self._due_s = None

    def on_request(self, request: HttpRequest) -> None:
        """Queue a request."""
        self._queue.append(request)

    def on_room(self) -> None:
        """Go on with a streamed body: its reader has taken what there was, or waits for more."""
        reader = self._reader
        body = reader.coming
        if body is None:
            return
        if reader.owes_continue and body is self._current and body.is_wanted:
            reader.owes_continue = False
            self._transport.write(_CONTINUE)
        self._feed()

    # -- reading ---------------------------------------------------------------------------------

    def _feed(self) -> None:
        reader = self._reader
        while self._unfed and not reader.is_deaf and not self._is_full():
            piece, self._unfed = self._unfed[:SLICE_BYTES], self._unfed[SLICE_BYTES:]
            refusal = reader.feed(piece)
            if refusal is not None:
                self._refuse(refusal)
        if reader.is_deaf:
            self._unfed = memoryview(b"")
        self._throttle()
        self._advance()

    def _throttle(self) -> None:
        """Read only while what is read can be parsed; a paused client is not a slow one."""
        if self._unfed:
            if not self._is_read_paused:
                self._is_read_paused = True
                self._due_s = None
                self._transport.pause_reading()
            return
        phase = self._reader.phase
        if self._is_read_paused:
            self._is_read_paused = False
            self._transport.resume_reading()
            if phase is not Phase.IDLE:
                self._set_due(self._limits.head_s if phase is Phase.HEAD else self._limits.body_s)
        if self._reader.coming is not None and (self._due_s is None or self._is_keeping_up()):
            self._await_more()

    def _await_more(self) -> None:
        """Give the client `body_s` for the next part of a streamed body, if it need not wait."""
        if not self._reader.owes_continue:
            self._bytes_before = self._reader.body_bytes
            self._set_due(self._limits.body_s)

    def _is_full(self) -> bool:
        coming = self._reader.coming
        if coming is not None and coming.is_full:
            return True
        return len(self._queue) >= self._limits.pipeline_max

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with an error after all that came before it, then close."""
        if self._reader.is_deaf:
            return
        coming = self._reader.coming
        self._deafen()
        if coming is not None and self._queue and _stream_of(self._queue[-1]) is coming:
            self._queue.pop()
        self._queue.append(problem_response(refusal.status, refusal.detail))
        if coming is not None and coming is self._current and self._task is not None:
            # Its handler works for a client that has broken its word.
            self._task.cancel()

    def _deafen(self) -> None:
        """Parse nothing more, and forget the request that has begun."""
        self._reader.deafen()
        self._due_s = None
        self._unfed = memoryview(b"")

    # -- answering -------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Do what comes next, unless a handler runs or the client has not taken the last answer."""
        if self._task is not None or self._outflow.is_paused or self._has_ended:
            return
        reader = self._reader
        if self._queue:
            item = self._queue.popleft()
            if isinstance(item, HttpResponse):
                self._send(item)
            else:
                answer = self._answer if item.stream is None else self._answer_streaming
                self._task = self._loop.create_task(answer(item), context=self._context.copy())
        elif self._unfed and not reader.is_deaf:
            self._feed()
        elif reader.phase is not Phase.IDLE:
            if reader.owes_continue:
                reader.owes_continue = False
                self._transport.write(_CONTINUE)
        elif reader.is_deaf:
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

    async def _answer_streaming(self, request: HttpRequest) -> None:
        assert self._streaming is not None
        body = self._current = request.stream
        has_begun = is_whole = False
        try:
            if not self._is_broken(body):
                async with self._streaming.stream(request) as response:
                    has_begun = True
                    await self._send_streaming(response, is_head=request.method == "HEAD")
                is_whole = True
        except asyncio.CancelledError:
            if self._is_lost:
                raise
            if not self._is_broken(body):
                _logger.exception("a handler was cancelled: %r", request)
        except SynchromeshError as error:
            _logger.warning("the answer to %r broke off: %s", request, error)
        except Exception:
            _logger.exception("a handler failed: %r", request)
        if not self._is_lost:
            self._task = self._current = None
            self._end_streaming(body, has_begun=has_begun, is_whole=is_whole)

    def _end_streaming(self, body: Body | None, *, has_begun: bool, is_whole: bool) -> None:
        if has_begun and not is_whole:
            reset(self._transport)
            return
        is_refused = self._is_broken(body)
        if not is_refused and self._reader.coming is body:
            # Nobody reads the rest, and what follows it cannot be found without reading it.
            self._deafen()
        if is_refused and has_begun:
            self._queue.clear()  # the answer is there already
        if has_begun or is_refused:
            self._advance()
        else:
            self._send(_FAILED)

    def _is_broken(self, body: Body | None) -> bool:
        """Tell whether a streamed body was refused: it is not whole, and will not be."""
        return body is not None and not body.is_ended and self._reader.coming is not body

    async def _send_streaming(self, response: HttpResponse, *, is_head: bool) -> None:
        reader, stream = self._reader, response.stream
        # What comes after a body that is not read to its end cannot be read either.
        is_last = self._is_last() or reader.coming is self._current
        if reader.coming is self._current:
            # The answer takes the place of 100 Continue, which would be read as a part of it.
            reader.owes_continue = False
        framing = None
        if stream is not None and has_body(response, is_head=is_head):
            is_chunked = not (is_last and reader.is_old)
            framing = Framing(length=response.length, is_chunked=is_chunked)
        wire = encode_response(response, is_head=is_head, is_last=is_last, framing=framing)
        await self._outflow.send(wire)
        if stream is None or framing is None:
            return
        while part := await stream.read():
            await self._outflow.send(framing.part(part))
        await self._outflow.send(framing.end())

    def _is_last(self) -> bool:
        reader = self._reader
        return reader.is_deaf and not self._queue and reader.phase is Phase.IDLE

    def _send(self, response: HttpResponse, *, is_head: bool = False) -> None:
        if response.headers.get("connection", "").lower() == "close":
            self._deafen()
            self._queue.clear()
        is_last = self._is_last()
        self._transport.write(encode_response(response, is_head=is_head, is_last=is_last))
        self._advance()

    def _end(self) -> None:
        """Close so that the client sees the answer even while it is still sending."""
        self._has_ended = self._reader.is_deaf = True
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
        phase = self._reader.phase
        if self._has_ended:
            self._transport.abort()
        elif phase is Phase.IDLE:
            self._end()
        else:
            seconds = self._limits.head_s if phase is Phase.HEAD else self._limits.body_s
            self._refuse(Refusal(408, f"the {phase.value} did not come in {seconds:g} s"))
            self._advance()

    def _is_keeping_up(self) -> bool:
        return self._reader.body_bytes - self._bytes_before >= self._limits.body_bytes_min


def _stream_of(item: HttpRequest | HttpResponse) -> Body | None:
    return item.stream if isinstance(item, HttpRequest) else None


_FULL: Final = error_response(
    Shed("too many connections are open, or the server drains; try again later")
)
_FAILED: Final = error_response(
    RemoteFailed("the handler failed; the reason is in the log of this service")
)
