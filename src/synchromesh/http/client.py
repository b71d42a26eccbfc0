"""One connection of the pool: sends a request, reads one strict answer, and knows if it may stay.

A connection carries one exchange at a time. It may carry another only if the answer ended by its
own framing, the server did not ask to close, everything was sent, and not one byte came unasked.

An exchange is whole, both bodies in memory, or *streamed*: then the request's body is sent as its
reader gets it, the answer is returned with its head, and reading pauses while enough of its body is
unread. What a streamed exchange waits for is bounded each time, and not in all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, cast

import httptools

from synchromesh.errors import ConnectFailed, ConnectionLost, TimedOut
from synchromesh.http.body import Body, Framing
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import Headers, HttpResponse
from synchromesh.http.outflow import Outflow, reset

# What one read may bring beyond the limit of a head before it is noticed.
_READ_BYTES: Final = 256 * 1024
_LONG_HEAD: Final = "its head is too long"


class _Stopped(Exception):
    """Ends llhttp from within a callback; the reason is kept by the connection."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Is the request of a streamed exchange.

    Attributes:
        head: as it is framed for the wire.
        body: what is read and sent after it; None where there is none.
        framing: of that body.
        answer_s: how long the head of the answer may take, from the last byte of the request on.
    """

    head: bytes
    body: Body | None
    framing: Framing
    answer_s: float | None


class ClientConnection(asyncio.Protocol):
    """Carries exchanges with one endpoint, one at a time.

    Args:
        name: how errors call the endpoint, `host:port`.
        limits: sizes and counts of an answer.
        on_lost: is told when the connection has closed.
    """

    _transport: asyncio.Transport
    _outflow: Outflow
    _pairs: list[tuple[bytes, bytes]]
    _body: list[bytes]

    def __init__(
        self, name: str, limits: PoolLimits, on_lost: Callable[[ClientConnection], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._limits = limits
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._is_spoiled = False
        self._stopped_for: str | None = None
        self._answer: asyncio.Future[HttpResponse] | None = None
        # Of a streamed exchange: the answer's body, what sends the request's, and until when.
        self._stream: Body | None = None
        self._sending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_read_paused = False
        self._expect(is_head=False)
        self._has_answered = False
        self.idle_since_s = 0.0

    def __repr__(self) -> str:
        doing = "busy" if self._answer else "idle" if self.is_reusable else "closed"
        return f"<ClientConnection {self._name} {doing}>"

    @property
    def is_reusable(self) -> bool:
        """True while it may carry the next exchange."""
        return not self._is_spoiled and self._answer is None and not self._transport.is_closing()

    @property
    def was_stale(self) -> bool:
        """True where it had answered before, and nothing came in answer to the latest request."""
        return self._has_answered and not self._has_begun

    async def exchange(
        self, wire: bytes, *, is_head: bool, deadline_s: float | None
    ) -> HttpResponse:
        """Send a framed request and return its answer. Whoever cancels it has to `abort`.

        Raises:
            ConnectFailed: the connection closed before anything was sent.
            TimedOut: no whole answer until `deadline_s` on the loop's clock.
            ConnectionLost: the connection broke, or what came is no acceptable answer.
        """
        if not self.is_reusable:
            raise ConnectFailed(f"{self._name} closed the connection at once; nothing was sent")
        self._expect(is_head=is_head)
        self._answer = self._loop.create_future()
        timer = None
        if deadline_s is not None:
            timer = self._loop.call_at(deadline_s, self._time_out)
        try:
            self._transport.write(wire)
            return await self._answer
        finally:
            self._answer = None
            if timer is not None:
                timer.cancel()

    async def stream(self, outgoing: Outgoing, *, is_head: bool) -> HttpResponse:
        """Send a request, and return its answer with its head; its body is then `stream`.

        Whatever comes of it, it is ended by `leave`.

        Raises:
            ConnectFailed: the connection closed before anything was sent.
            TimedOut: no answer came in `answer_s`, or nothing of the request was taken for long.
            ConnectionLost: the connection broke, or what came is no acceptable answer.
        """
        if not self.is_reusable:
            raise ConnectFailed(f"{self._name} closed the connection at once; nothing was sent")
        self._expect(is_head=is_head)
        self._stream = Body(length=None, on_room=self._on_room)
        answer: asyncio.Future[HttpResponse] = self._loop.create_future()
        self._answer = answer
        self._transport.write(outgoing.head)
        if outgoing.body is None:
            self._wait(outgoing.answer_s)
        else:
            self._sending = self._loop.create_task(self._send(outgoing, outgoing.body))
        return await answer

    async def leave(self) -> None:
        """End a streamed exchange: what has not been sent or read by now never will be."""
        stream, sending = self._stream, self._sending
        self._wait(None)
        self._answer = self._stream = self._sending = None
        is_sent = sending is None or sending.done()
        if not is_sent or (stream is not None and not stream.is_ended):
            self._is_spoiled = True
            # A body that was cut must not be taken for a whole one.
            reset(self._transport)
        elif self._is_read_paused:
            self._is_read_paused = False
            self._transport.resume_reading()
        if sending is not None and not is_sent:
            sending.cancel()
            await asyncio.wait([sending])

    def abort(self) -> None:
        """Close at once; nothing more is sent or read. May be repeated."""
        self._is_spoiled = True
        self._transport.abort()

    # -- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._outflow = Outflow(
            self._transport,
            stall_s=self._limits.stall_s,
            bytes_min=1,
            on_stall=self._on_stall,
        )

    def pause_writing(self) -> None:
        """Let who sends a body wait until the server takes more."""
        self._outflow.pause()

    def resume_writing(self) -> None:
        """Let it go on."""
        self._outflow.resume()

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer; bytes that nobody asked for end the connection."""
        if not self._is_awaited():
            self.abort()
            return
        self._has_begun = True
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse(self._stopped_for or str(error))
        if self._quiet_bytes > self._limits.head_bytes_max + _READ_BYTES:
            self._refuse(_LONG_HEAD)
        self._throttle()

    def eof_received(self) -> None:
        """End an answer that ends with the connection; the transport closes by itself."""
        self._is_spoiled = True
        if self._has_head and not self._is_delimited:
            self._complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange that runs: whether the request was run is unknown."""
        self._is_spoiled = True
        self._outflow.resume()
        why = f": {exc}" if exc is not None else ""
        self._fail(ConnectionLost(f"{self._name} closed the connection before its answer{why}"))
        self._on_lost(self)

    # -- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take the first byte of an answer; a second one was not asked for."""
        if not self._is_awaited():
            self._stop("more than one answer")
        self._pairs = []
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; a trailer field is counted and dropped."""
        self._quiet_bytes = 0
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.head_bytes_max:
            self._stop(_LONG_HEAD)
        if self._has_head:
            return
        if len(self._pairs) >= self._limits.headers_max:
            self._stop(f"more than {self._limits.headers_max} header fields")
        self._pairs.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Judge the framing before a byte of the body is taken."""
        version, status = self._parser.get_http_version(), self._parser.get_status_code()
        if version not in ("1.1", "1.0"):
            self._stop("its version is neither HTTP/1.0 nor HTTP/1.1")
        if status == 101 or not 100 <= status <= 599:
            self._stop(f"status {status} was not asked for")
        codings = [value.lower() for name, value in self._pairs if name == b"transfer-encoding"]
        lengths = [value for name, value in self._pairs if name == b"content-length"]
        if codings and (codings != [b"chunked"] or version == "1.0"):
            self._stop("it has a transfer coding other than 'chunked'")
        if len(lengths) > 1 or (lengths and codings):
            self._stop("it states its length twice")
        if status < 200:
            return
        self._has_head = True
        self._is_delimited = bool(codings or lengths)
        if self._is_head:
            # llhttp cannot be told that no body follows: it ends here, and so does the connection.
            self._is_spoiled = True
            self._complete()
            raise _Stopped
        if self._stream is not None:
            self._stream.length = int(lengths[0][:19]) if lengths else None
            self._begin(self._stream)
        elif lengths and int(lengths[0][:19]) > self._limits.body_bytes_max:
            self._stop(self._long_body())

    def on_chunk_header(self) -> None:
        """Note progress."""
        self._quiet_bytes = 0

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._quiet_bytes = 0
        if self._stream is not None:
            self._stream.feed(part)
            return
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.body_bytes_max:
            self._stop(self._long_body())
        self._body.append(part)

    def on_message_complete(self) -> None:
        """Take the end of an interim answer, or of the one that counts."""
        if self._has_head:
            if not self._parser.should_keep_alive() or self._transport.get_write_buffer_size():
                self._is_spoiled = True
            self._complete()
            return
        self._interims += 1
        if self._interims > self._limits.interim_max:
            self._stop(f"more than {self._limits.interim_max} interim answers")

    # -- ending an exchange ----------------------------------------------------------------------

    def _expect(self, *, is_head: bool) -> None:
        self._is_head = is_head
        self._pairs = []
        self._body = []
        self._head_bytes = self._body_bytes = self._quiet_bytes = self._interims = 0
        self._has_begun = self._has_head = self._is_delimited = False

    def _is_awaited(self) -> bool:
        if self._answer is None:
            return False
        return not (self._answer.done() if self._stream is None else self._stream.is_ended)

    def _complete(self) -> None:
        if self._stream is not None:
            self._begin(self._stream)
            self._stream.end()
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(self._head(None))

    def _begin(self, stream: Body) -> None:
        """Return the head of a streamed answer."""
        if self._answer is not None and not self._answer.done():
            self._wait(None)
            self._answer.set_result(self._head(stream))

    def _head(self, stream: Body | None) -> HttpResponse:
        self._has_answered = True
        status, headers = self._parser.get_status_code(), Headers.from_wire(self._pairs)
        return HttpResponse(status, headers, b"".join(self._body), stream=stream)

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        elif self._stream is not None:
            self._stream.fail(error)

    def _stop(self, reason: str) -> NoReturn:
        self._stopped_for = reason
        raise _Stopped

    def _refuse(self, reason: str) -> None:
        self._is_spoiled = True
        self._fail(ConnectionLost(f"{self._name} sent no acceptable answer: {reason}"))

    def _time_out(self) -> None:
        self._is_spoiled = True
        self._fail(TimedOut(f"{self._name} did not answer in time; what it did is unknown"))

    # -- streaming -------------------------------------------------------------------------------

    async def _send(self, outgoing: Outgoing, body: Body) -> None:
        try:
            while part := await body.read():
                await self._outflow.send(outgoing.framing.part(part))
            await self._outflow.send(outgoing.framing.end())
        except Exception as error:  # noqa: BLE001 - told to who waits for the answer
            self._is_spoiled = True
            self._fail(error)
        else:
            if not self._has_head:
                self._wait(outgoing.answer_s)

    def _on_room(self) -> None:
        """Go on with the answer's body: its reader has taken what there was, or waits for more."""
        if self._stream is None or self._transport.is_closing():
            return
        if self._is_read_paused:
            self._is_read_paused = False
            self._transport.resume_reading()
        self._wait(self._limits.stall_s if self._stream.is_wanted else None)

    def _throttle(self) -> None:
        """Read only while the reader of the answer's body has room for more."""
        stream = self._stream
        if stream is None or not self._has_head:
            return
        if stream.is_full and not self._is_read_paused and not self._transport.is_closing():
            self._is_read_paused = True
            self._transport.pause_reading()
        self._wait(self._limits.stall_s if stream.is_wanted and not stream.is_ended else None)

    def _wait(self, within_s: float | None) -> None:
        """Fail the streamed exchange unless this is called again in time; None is for ever."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if within_s is not None:
            self._timer = self._loop.call_later(within_s, self._time_out)

    def _on_stall(self) -> None:
        # Others have a deadline for all, in which they may take as long as they like.
        if self._stream is not None:
            self._time_out()

    def _long_body(self) -> str:
        return f"its body is longer than {self._limits.body_bytes_max} bytes"
