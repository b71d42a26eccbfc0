"""One connection of the pool: sends a request, reads one strict answer, and knows if it may stay.

A connection carries one exchange at a time. It may carry another only if the answer ended by its
own framing, the server did not ask to close, everything was sent, and not one byte came unasked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn, cast

import httptools

from synchromesh.errors import CallError, ConnectFailed, ConnectionLost, TimedOut
from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import Headers, HttpResponse

# What one read may bring beyond the limit of a head before it is noticed.
_READ_BYTES: Final = 256 * 1024
_LONG_HEAD: Final = "its head is too long"


class _Stopped(Exception):
    """Ends llhttp from within a callback; the reason is kept by the connection."""


class ClientConnection(asyncio.Protocol):
    """Carries exchanges with one endpoint, one at a time.

    Args:
        name: how errors call the endpoint, `host:port`.
        limits: sizes and counts of an answer.
        on_lost: is told when the connection has closed.
    """

    _transport: asyncio.Transport
    _pairs: list[tuple[str, str]]
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
        self._expect(is_head=False)
        self.has_answered = False
        self.idle_since_s = 0.0

    def __repr__(self) -> str:
        doing = "busy" if self._answer else "idle" if self.is_reusable else "closed"
        return f"<ClientConnection {self._name} {doing}>"

    @property
    def is_reusable(self) -> bool:
        """True while it may carry the next exchange."""
        return not self._is_spoiled and self._answer is None and not self._transport.is_closing()

    @property
    def is_untouched(self) -> bool:
        """True while no byte of an answer to the latest request has come."""
        return not self._has_begun

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

    def abort(self) -> None:
        """Close at once; nothing more is sent or read. May be repeated."""
        self._is_spoiled = True
        self._transport.abort()

    # -- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

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

    def eof_received(self) -> None:
        """End an answer that ends with the connection; the transport closes by itself."""
        self._is_spoiled = True
        if self._has_head and not self._is_delimited:
            self._complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchange that runs: whether the request was run is unknown."""
        self._is_spoiled = True
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
        text = value.decode("latin-1").strip(" \t")
        self._pairs.append((name.decode("latin-1").lower(), text))

    def on_headers_complete(self) -> None:
        """Judge the framing before a byte of the body is taken."""
        version, status = self._parser.get_http_version(), self._parser.get_status_code()
        if version not in ("1.1", "1.0"):
            self._stop("its version is neither HTTP/1.0 nor HTTP/1.1")
        if status == 101 or not 100 <= status <= 599:
            self._stop(f"status {status} was not asked for")
        codings = [value.lower() for name, value in self._pairs if name == "transfer-encoding"]
        lengths = [value for name, value in self._pairs if name == "content-length"]
        if codings and (codings != ["chunked"] or version == "1.0"):
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
        if lengths and int(lengths[0][:19]) > self._limits.body_bytes_max:
            self._stop(self._long_body())

    def on_chunk_header(self) -> None:
        """Note progress."""
        self._quiet_bytes = 0

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._quiet_bytes = 0
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
        return self._answer is not None and not self._answer.done()

    def _complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self.has_answered = True
            status, headers = self._parser.get_status_code(), Headers.from_wire(self._pairs)
            self._answer.set_result(HttpResponse(status, headers, b"".join(self._body)))

    def _fail(self, error: CallError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _stop(self, reason: str) -> NoReturn:
        self._stopped_for = reason
        raise _Stopped

    def _refuse(self, reason: str) -> None:
        self._is_spoiled = True
        self._fail(ConnectionLost(f"{self._name} sent no acceptable answer: {reason}"))

    def _time_out(self) -> None:
        self._is_spoiled = True
        self._fail(TimedOut(f"{self._name} did not answer in time; what it did is unknown"))

    def _long_body(self) -> str:
        return f"its body is longer than {self._limits.body_bytes_max} bytes"
