"""One connection of the pool: sends a request, reads one strict answer, and knows if it may stay.

A connection carries one exchange at a time. It may carry another only if the answer ended by its
own framing, the server did not ask to close, everything was sent, and not one byte came unasked.

An exchange is told by callbacks: of the whole answer, or, where it takes parts, of its head as soon
as that is there and of its body as it comes. Its deadline is one of the pool's timers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NoReturn, Protocol, cast

import httptools

from synchromesh.errors import ConnectionLost, TimedOut
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import RawPair
from synchromesh.http.outflow import Outflow, reset
from synchromesh.timers import Timers
from synchromesh.wheel import Deadline

# What one read may bring beyond the limit of a head before it is noticed.
_READ_BYTES: Final = 256 * 1024
_LONG_HEAD: Final = "its head is too long"
_FRAMES: Final = frozenset({b"content-length", b"transfer-encoding"})
_CHUNKED: Final = b"chunked"


class Sent(IntEnum):
    """Names how far an exchange has come.

    NEW ──▶ WAITING ──▶ CONNECTING ──▶ SENT ──▶ ANSWERING ──▶ DONE

    Each may be skipped, and DONE is reached from anywhere. From SENT it goes back to CONNECTING
    once, where a kept connection turned out to be closed and the request may be sent again.
    """

    NEW = 0
    WAITING = 1
    CONNECTING = 2
    SENT = 3
    ANSWERING = 4
    DONE = 5


class Custodian(Protocol):
    """Keeps the connections to one endpoint, and knows what an exchange may do next."""

    timers: Timers

    def cancel(self, exchange: ClientExchange) -> None:
        """Give up an exchange: nothing of it reaches anybody from now on."""
        ...

    def expire(self, exchange: ClientExchange) -> None:
        """Fail an exchange whose time is over, by what is known of it."""
        ...

    def on_ended(self, exchange: ClientExchange, connection: ClientConnection) -> None:
        """Take a connection back whose exchange has ended."""
        ...

    def on_failed(
        self, exchange: ClientExchange, connection: ClientConnection, error: Exception
    ) -> None:
        """Take a connection back whose exchange has failed; what may be sent again is."""
        ...


class ClientExchange(Deadline):
    """Is one request on its way to an endpoint; what becomes of it is told to its own methods.

    `HttpPool.send` sends it. Exactly one of `on_answer`, `on_end` and `on_error` is called then,
    once, unless it is cancelled: within an event of the connection, so that they must neither block
    nor raise.

    Args:
        wire: the request as it is sent, in one write.
        due_s: until when an answer has to be there, on the loop's clock; infinity for no bound.
        is_head: the answer has no body, whatever it says.
        is_idempotent: running the request twice does what running it once does.

    Attributes:
        takes_parts: True where the answer's body is taken as it comes, by `on_begin` and `on_part`;
            then `due_s` is for its head, and `expect_within` bounds what comes later.
        may_reuse: False where only a new connection will do.
        state: how far it has come.
        connection: what carries it.
    """

    __slots__ = (
        "connecting", "connection", "custodian", "is_head", "is_idempotent", "lost", "may_reuse",
        "state", "wire",
    )  # fmt: skip

    takes_parts = False
    is_sent = True

    def __init__(
        self, wire: bytes, *, due_s: float, is_head: bool = False, is_idempotent: bool = False
    ) -> None:
        self.due_s = due_s
        self.slot = None
        self.wire = wire
        self.is_head = is_head
        self.is_idempotent = is_idempotent
        self.may_reuse = True
        self.state = Sent.NEW
        self.connection: ClientConnection | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.custodian: Custodian | None = None
        # Why it is sent a second time; that decides what is known if that fails, too.
        self.lost: ConnectionLost | None = None

    def on_sent(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to wait for the answer."""
        if self.slot is None and self.custodian is not None:
            self.custodian.timers.add(self, loop)

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        """Take the whole answer."""

    def on_begin(self, status: int, pairs: list[RawPair], length: int | None) -> None:
        """Take the head of an answer that comes in parts, and the length that it states."""

    def on_part(self, data: bytes) -> None:
        """Take a part of its body."""

    def on_end(self) -> None:
        """Take the news that the body is whole."""

    def on_error(self, error: Exception) -> None:
        """Take the news that no answer will come, or not the rest of it."""

    def cancel(self) -> None:
        """Give up; the connection is closed, so that a late answer can reach nobody else."""
        if self.custodian is not None:
            self.custodian.cancel(self)

    def expire(self) -> None:
        """Fail: its time is over."""
        if self.custodian is not None:
            self.custodian.expire(self)

    def expect_within(self, seconds: float | None) -> None:
        """Let what is waited for come in so many seconds from now; None takes any time."""
        if self.custodian is None:
            return
        timers, loop = self.custodian.timers, asyncio.get_running_loop()
        timers.drop(self)
        if seconds is not None and self.state is not Sent.DONE:
            self.due_s = loop.time() + seconds
            timers.add(self, loop)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.state.name.lower()}>"


class ClientConnection(asyncio.Protocol):
    """Carries exchanges with one endpoint, one at a time.

    Args:
        name: how errors call the endpoint, `host:port`.
        limits: sizes and counts of an answer.
        custodian: takes it back after each exchange.
        on_lost: is told when the connection has closed.

    Attributes:
        exchange: what it carries; None while it is idle.
        outflow: whether the server takes what it is sent.
        idle_since_s: when it was given back last.
    """

    transport: asyncio.Transport
    outflow: Outflow

    def __init__(
        self,
        name: str,
        limits: PoolLimits,
        custodian: Custodian,
        on_lost: Callable[[ClientConnection], None],
    ) -> None:
        self._name = name
        self._limits = limits
        self._custodian = custodian
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._is_spoiled = self._has_answered = self._is_read_paused = False
        self._stopped_for: str | None = None
        self.exchange: ClientExchange | None = None
        self.idle_since_s = 0.0
        self._expect()

    def __repr__(self) -> str:
        doing = "busy" if self.exchange else "idle" if self.is_reusable else "closed"
        return f"<ClientConnection {self._name} {doing}>"

    @property
    def is_reusable(self) -> bool:
        """True while it may carry the next exchange."""
        return not self._is_spoiled and self.exchange is None and not self.transport.is_closing()

    @property
    def was_stale(self) -> bool:
        """True where it had answered before, and nothing came in answer to the latest request."""
        return self._has_answered and not self._has_begun

    def send(self, exchange: ClientExchange) -> None:
        """Send the request of an exchange, and tell it what comes."""
        self._expect()
        self.exchange = exchange
        self.transport.write(exchange.wire)

    def pause(self) -> None:
        """Read no more until `resume`: who takes the answer's parts has enough of them."""
        if not self._is_read_paused and not self.transport.is_closing():
            self._is_read_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Go on reading. May be repeated."""
        if self._is_read_paused:
            self._is_read_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once; nothing more is sent or read. May be repeated."""
        self._is_spoiled = True
        self.transport.abort()

    def drop(self) -> None:
        """Close at once in the middle of an exchange, and forget it."""
        exchange, self.exchange = self.exchange, None
        self._is_spoiled = True
        if exchange is not None and exchange.takes_parts:
            # A body that was cut must not be taken for a whole one.
            reset(self.transport)
        else:
            self.transport.abort()

    # -- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast("asyncio.Transport", transport)
        self.outflow = Outflow(
            self.transport, stall_s=self._limits.stall_s, bytes_min=1, on_stall=self._on_stall
        )

    def pause_writing(self) -> None:
        """Let who sends a body wait until the server takes more."""
        self.outflow.pause()

    def resume_writing(self) -> None:
        """Let it go on."""
        self.outflow.resume()

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer; bytes that nobody asked for end the connection."""
        exchange = self.exchange
        if exchange is None or self._is_whole:
            self.abort()
            return
        self._has_begun = True
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._is_spoiled = True
            if not self._is_whole:
                self._fail(self._unacceptable(self._stopped_for or str(error)))
                return
        if self._is_whole:
            self._finish(exchange)
        elif self._quiet_bytes > self._limits.head_bytes_max + _READ_BYTES:
            self._fail(self._unacceptable(_LONG_HEAD))
        elif exchange.takes_parts and self._has_head:
            self._pass_on(exchange)

    def eof_received(self) -> None:
        """End an answer that ends with the connection; the transport closes by itself."""
        self._is_spoiled = True
        if self.exchange is not None and self._has_head and not self._is_delimited:
            self._finish(self.exchange)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange that runs: whether the request was run is unknown."""
        self._is_spoiled = True
        self.outflow.resume()
        why = f": {exc}" if exc is not None else ""
        self._fail(ConnectionLost(f"{self._name} closed the connection before its answer{why}"))
        self._on_lost(self)

    # -- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take the first byte of an answer; a second one was not asked for."""
        if self._is_whole:
            self._stop("more than one answer")
        self._pairs = []
        self._frames = []
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; a trailer field is counted and dropped."""
        if self._has_head:
            self._quiet_bytes = 0
            self._count_head(len(name) + len(value) + 4)
            return
        name, value = name.lower(), value.strip(b" \t")
        if name in _FRAMES:
            self._frames.append((name, value))
        self._pairs.append((name, value))

    def on_headers_complete(self) -> None:
        """Judge the framing before a byte of the body is taken."""
        parser, exchange, limits = self._parser, self.exchange, self._limits
        if len(self._pairs) > limits.headers_max:
            self._stop(f"more than {limits.headers_max} header fields")
        if self._quiet_bytes > limits.head_bytes_max:
            self._count_head(0)
        self._quiet_bytes = 0
        status = parser.get_status_code()
        frames = self._frames
        if (
            len(frames) == 1
            and frames[0][0] == b"content-length"
            and 200 <= status <= 599
            and parser.get_http_version() == "1.1"
        ):
            length: int | None = int(frames[0][1][:19])
        else:
            length = self._judge(status)
        if status < 200 or exchange is None:
            return
        self._status = status
        self._has_head = True
        self._is_delimited = bool(frames)
        if exchange.is_head:
            # llhttp cannot be told that no body follows: it ends here, and so does the connection.
            self._is_spoiled = self._is_whole = True
            raise _Stopped
        self._length = length
        if length is not None and length > limits.body_bytes_max and not exchange.takes_parts:
            self._stop(self._long_body())

    def on_chunk_header(self) -> None:
        """Note progress."""
        self._quiet_bytes = 0

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._quiet_bytes = 0
        self._body.append(part)
        self._body_bytes += len(part)
        exchange = self.exchange
        if self._body_bytes > self._limits.body_bytes_max and not (
            exchange and exchange.takes_parts
        ):
            self._stop(self._long_body())

    def on_message_complete(self) -> None:
        """Take the end of an interim answer, or of the one that counts."""
        if self._has_head:
            self._is_whole = True
            if not self._parser.should_keep_alive() or self.transport.get_write_buffer_size():
                self._is_spoiled = True
            return
        self._interims += 1
        if self._interims > self._limits.interim_max:
            self._stop(f"more than {self._limits.interim_max} interim answers")

    # -- ending an exchange ----------------------------------------------------------------------

    def _expect(self) -> None:
        self._pairs: list[RawPair] = []
        self._frames: list[RawPair] = []
        self._body: list[bytes] = []
        self._status = self._head_bytes = self._body_bytes = self._quiet_bytes = self._interims = 0
        self._has_begun = self._has_head = self._is_delimited = self._is_whole = False
        self._is_passing = False
        # What the answer says of its body's length; None where it says nothing.
        self._length: int | None = None

    def _finish(self, exchange: ClientExchange) -> None:
        """Give the connection back, then tell the exchange."""
        self._has_answered = True
        status, pairs, parts = self._status, self._pairs, self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        is_passing = self._is_passing
        if not exchange.is_sent:
            # An early answer: what is left of the request must not be read as another one.
            self._is_spoiled = True
        self.resume()
        self.exchange = None
        self._custodian.on_ended(exchange, self)
        if not exchange.takes_parts:
            exchange.on_answer(status, pairs, body)
            return
        if not is_passing:
            exchange.on_begin(status, pairs, self._length)
        if body:
            exchange.on_part(body)
        exchange.on_end()

    def _pass_on(self, exchange: ClientExchange) -> None:
        """Tell of what has come of an answer that is taken in parts."""
        self._has_answered = True
        parts, self._body = self._body, []
        if not self._is_passing:
            self._is_passing = True
            exchange.state = Sent.ANSWERING
            exchange.expect_within(None)
            exchange.on_begin(self._status, self._pairs, self._length)
        if parts and self.exchange is exchange:
            exchange.on_part(parts[0] if len(parts) == 1 else b"".join(parts))

    def _fail(self, error: Exception) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            self._custodian.on_failed(exchange, self, error)

    def _judge(self, status: int) -> int | None:
        """Judge a head in which something may be odd, and return the length that it states."""
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop("its version is neither HTTP/1.0 nor HTTP/1.1")
        if status == 101 or not 100 <= status <= 599:
            self._stop(f"status {status} was not asked for")
        codings = [value.lower() for name, value in self._frames if name == b"transfer-encoding"]
        lengths = [value for name, value in self._frames if name == b"content-length"]
        if codings and (codings != [_CHUNKED] or version == "1.0"):
            self._stop("it has a transfer coding other than 'chunked'")
        if len(lengths) > 1 or (lengths and codings):
            self._stop("it states its length twice")
        return int(lengths[0][:19]) if lengths else None

    def _count_head(self, more: int) -> None:
        if not self._head_bytes:
            self._head_bytes = sum(len(name) + len(value) + 4 for name, value in self._pairs)
        self._head_bytes += more
        if self._head_bytes > self._limits.head_bytes_max:
            self._stop(_LONG_HEAD)

    def _stop(self, reason: str) -> NoReturn:
        self._stopped_for = reason
        raise _Stopped

    def _unacceptable(self, reason: str) -> ConnectionLost:
        return ConnectionLost(f"{self._name} sent no acceptable answer: {reason}")

    def timed_out(self) -> TimedOut:
        """Return what is told of an exchange whose answer did not come in time."""
        return TimedOut(f"{self._name} did not answer in time; what it did is unknown")

    def _on_stall(self) -> None:
        # Others have a deadline for all, in which they may take as long as they like.
        if self.exchange is not None and self.exchange.takes_parts:
            self._custodian.expire(self.exchange)

    def _long_body(self) -> str:
        return f"its body is longer than {self._limits.body_bytes_max} bytes"


class _Stopped(Exception):
    """Ends llhttp from within a callback; the reason is kept by the connection."""
