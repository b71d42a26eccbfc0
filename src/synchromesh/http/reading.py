"""Reads requests from the bytes of one connection: llhttp parses, every limit and rule is applied.

    IDLE ──first byte──▶ HEAD ──head is acceptable──▶ BODY ──complete──▶ IDLE

A request is handed over once it is complete, or, where its handler asked for a stream, with its
head: then its body is fed as it comes. After a refusal, or a request that is the last one, the
reader is *deaf*: what follows is not parsed. It knows no time, and no socket.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from enum import Enum
from typing import Final, NoReturn, Protocol

import httptools

from synchromesh.http.body import Body
from synchromesh.http.limits import Limits
from synchromesh.http.message import Headers, HttpRequest, HttpResponse
from synchromesh.http.strictness import Head, Refusal, origin_form, refusal_of, too_large

# llhttp cannot be paused, so that what is parsed ahead is bounded by what is fed to it at once.
SLICE_BYTES: Final = 8192
_MALFORMED: Final = Refusal(400, "this is no well-formed HTTP request")


class Phase(Enum):
    """Says what the client is to send next."""

    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


class Streaming(Protocol):
    """Answers requests whose bodies, or whose answers' bodies, are not to be held whole."""

    def body_max(self, method: str, path: str) -> int | None:
        """Say how long the body of such a request may be; None has it handed over complete.

        It is asked before a byte of the body is read, and must not raise.
        """
        ...

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[HttpResponse]:
        """Answer a request that has a `stream`; the answer is sent before the context is left.

        What it raises before its answer is 500; after that, the answer is cut off.
        """
        ...


class Taker(Protocol):
    """Takes what a reader has read; a connection is one."""

    def on_phase(self, phase: Phase) -> None:
        """Take note of what the client is to send next."""
        ...

    def on_request(self, request: HttpRequest) -> None:
        """Take a request."""
        ...

    def on_room(self) -> None:
        """Go on with a streamed body: its reader has taken what there was, or waits for more."""
        ...


class _Stopped(Exception):
    """Ends llhttp from within a callback; the reason is kept by the reader."""


class RequestReader:
    """Turns bytes into requests, or into the one refusal that ends the connection.

    Attributes:
        phase: what the client is to send next.
        is_deaf: True once nothing more is parsed.
        is_draining: True where the request that is being read is the last.
        coming: the streamed body that is being read.
        body_bytes: how much of the body that is being read has come.
        owes_continue: True while the client waits for 100 Continue.
        peer: the client's address, for its requests.
    """

    _request: tuple[str, str]

    def __init__(self, limits: Limits, streaming: Streaming | None, taker: Taker) -> None:
        self._limits = limits
        self._streaming = streaming
        self._taker = taker
        self._parser = httptools.HttpRequestParser(self)
        self._refused: Refusal | None = None
        self._quiet_bytes = self._head_bytes = self._body_bytes_max = 0
        self._target = b""
        self._pairs: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self.peer = ""
        self.phase = Phase.IDLE
        self.coming: Body | None = None
        self.body_bytes = 0
        self.is_deaf = self.is_draining = self.owes_continue = False

    @property
    def is_old(self) -> bool:
        """True where the latest request came by HTTP/1.0, which knows no chunks."""
        return self._parser.get_http_version() != "1.1"

    def feed(self, piece: bytes | memoryview) -> Refusal | None:
        """Parse a piece; return why the request in it is refused, None where none is."""
        self._quiet_bytes += len(piece)
        try:
            self._parser.feed_data(piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # Once deaf, what follows the last request is not looked at, right or wrong.
            return None if self.is_deaf else self._refused or _MALFORMED
        if self._quiet_bytes > self._limits.head_bytes_max + SLICE_BYTES:
            return self._oversized()
        return None

    def deafen(self) -> None:
        """Parse nothing more, and forget the request that has begun."""
        self.is_deaf = True
        self.phase = Phase.IDLE
        self.coming = None
        self.owes_continue = False

    def __repr__(self) -> str:
        return f"<RequestReader {'deaf' if self.is_deaf else self.phase.value}>"

    # -- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take the first byte of a request."""
        if self.is_deaf:
            raise _Stopped
        self._target = b""
        self._pairs = []
        self._body = []
        self._quiet_bytes = self._head_bytes = self.body_bytes = 0
        self._go(Phase.HEAD)

    def on_url(self, part: bytes) -> None:
        """Take a part of the request target."""
        self._count_head(len(part))
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; a trailer field is counted and dropped."""
        self._count_head(len(name) + len(value) + 4)
        if self.phase is Phase.BODY:
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
        target = origin_form(head.target)
        streamed_max = None
        if self._streaming is not None:
            streamed_max = self._streaming.body_max(head.method, target.partition("?")[0])
        longest = self._limits.body_bytes_max if streamed_max is None else streamed_max
        refusal = refusal_of(head, body_bytes_max=longest)
        if refusal is not None:
            self._stop(refusal)
        self._request = (head.method, target)
        self._body_bytes_max = longest
        self.owes_continue = head.is_continue_expected
        if streamed_max is not None:
            lengths = head.values("content-length")
            length = None if head.values("transfer-encoding") else int(lengths[0]) if lengths else 0
            self.coming = Body(length=length, on_room=self._taker.on_room)
            self._taker.on_request(self._made(self.coming))
        self._go(Phase.BODY)

    def on_chunk_header(self) -> None:
        """Note that the client makes progress."""
        self._quiet_bytes = 0

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._quiet_bytes = 0
        self.owes_continue = False
        self.body_bytes += len(part)
        if self.body_bytes > self._body_bytes_max:
            self._stop(too_large(self._body_bytes_max))
        if self.coming is None:
            self._body.append(part)
        else:
            self.coming.feed(part)

    def on_message_complete(self) -> None:
        """Hand the request over; one that is the connection's last makes the reader deaf."""
        if self.coming is None:
            self._taker.on_request(self._made())
        else:
            self.coming.end()
            self.coming = None
        self.owes_continue = False
        # Keep-alive of HTTP/1.0 was never specified well: such a client gets one answer.
        if self.is_draining or not self._parser.should_keep_alive() or self.is_old:
            self.is_deaf = True
        self._go(Phase.IDLE)

    # -- its own ---------------------------------------------------------------------------------

    def _go(self, phase: Phase) -> None:
        self.phase = phase
        self._taker.on_phase(phase)

    def _made(self, stream: Body | None = None) -> HttpRequest:
        method, target = self._request
        path, _, query = target.partition("?")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        headers = Headers.from_wire(self._pairs)
        return HttpRequest(method, target, path, query, headers, body, self.peer, stream)

    def _count_head(self, size: int) -> None:
        self._quiet_bytes = 0
        self._head_bytes += size
        if self._head_bytes > self._limits.head_bytes_max:
            self._stop(self._oversized())

    def _oversized(self) -> Refusal:
        return Refusal(431, f"the head is longer than {self._limits.head_bytes_max} bytes")

    def _stop(self, refusal: Refusal) -> NoReturn:
        self._refused = refusal
        raise _Stopped
