"""Reads requests from the bytes of one connection: llhttp parses, every limit and rule is applied.

A request is handed over once it is complete, or, where its handler asked for a stream, with its
head: then its body is fed as it comes. After a refusal, or a request that is the last one, the
reader is *closed*: what follows is not parsed. It knows no time, and no socket.

Names and values are judged as they come, by tables of bytes. A head in which nothing is odd is
accepted by a few comparisons; only any other is held against the rules of `strictness`, which say
the same of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NoReturn, Protocol

import httptools

from synchromesh.http.body import Body
from synchromesh.http.exchange import HttpExchange, ResponseWriter
from synchromesh.http.limits import Limits
from synchromesh.http.message import HttpRequest, HttpResponse, RawPair
from synchromesh.http.plain import (
    HEAD_END,
    KEPT_BYTES_MAX,
    LENGTH_DIGITS_MAX,
    LINE_END,
    ODD_MAX,
    KeptFields,
    read_fields,
)
from synchromesh.http.states import READS, ReadingEvent, ReadingState
from synchromesh.http.strictness import (
    WATCHED,
    Head,
    Refusal,
    authority_of,
    has_plain_host,
    has_plain_target,
    origin_form,
    refusal_of,
    too_large,
)

# llhttp cannot be paused, so that what is parsed ahead is bounded by what is fed to it at once.
SLICE_BYTES: Final = 8192
_MALFORMED: Final = Refusal(400, "this is no well-formed HTTP request")
# A tunnel is refused, and the answer to HEAD is framed in a way of its own.
_NOT_PLAIN: Final = frozenset({b"CONNECT", b"HEAD"})

_METHODS: Final = frozenset({b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})

# Looked up for each request: a global is found sooner than a member of its class.
_BEGAN, _JUDGED = ReadingEvent.BEGAN, ReadingEvent.JUDGED
_COMPLETE, _CLOSE = ReadingEvent.COMPLETE, ReadingEvent.CLOSED
_IDLE, _BODY, _CLOSED = ReadingState.IDLE, ReadingState.BODY, ReadingState.CLOSED


class Streaming(Protocol):
    """Answers requests whose bodies, or whose answers' bodies, are not to be held whole."""

    def body_max(self, method: str, path: str, pairs: Sequence[RawPair]) -> int | None:
        """Say how long the body of such a request may be; None has it handed over complete.

        `pairs` are its fields as they came, names in lower case. It is asked before more of the
        body is read than came with its head, and must not raise.
        """
        ...

    def stream(self, request: HttpRequest) -> AbstractAsyncContextManager[HttpResponse]:
        """Answer a request that has a `stream`; the answer is sent before the context is left.

        What it raises before its answer is 500; after that, the answer is cut off.
        """
        ...


class RequestSink(ResponseWriter, Protocol):
    """Receives the requests of a reader; a connection is one."""

    def on_room(self) -> None:
        """Go on with a streamed body: its reader has taken what there was, or waits for more."""
        ...


class _Stopped(Exception):
    """Ends llhttp from within a callback; the reason is kept by the reader."""


class RequestReader:
    """Parses requests, or the one refusal that ends the connection.

    Args:
        limits: sizes and counts.
        streaming: says which requests are handed over with their heads.
        sink: takes them.
        is_fast: small requests that come whole are handed over complete even where they could be
            streamed; who takes them asks `streaming` himself (see `judge_whole`).

    Attributes:
        state: what the client is to send next.
        ready: the requests that have come and were not taken.
        begun: how many requests have begun.
        is_draining: True where the request that is being read is the last.
        is_old: True where the latest request came by HTTP/1.0, which knows no chunks.
        is_open: True while it is not decided whether the request that is read is streamed.
        coming: the streamed body that is being read.
        body_bytes: how much of the body that is being read has come.
        streaming: as it was given; may be replaced between two requests.
        owes_continue: True while the client waits for 100 Continue.
    """

    _method: bytes

    def __init__(
        self,
        limits: Limits,
        streaming: Streaming | None,
        sink: RequestSink,
        *,
        is_fast: bool = True,
    ) -> None:
        self._limits = limits
        self.streaming = streaming
        self._sink = sink
        self._is_fast = is_fast
        self._parser = httptools.HttpRequestParser(self)
        self._refused: Refusal | None = None
        self._piece_bytes = self._quiet_bytes = self._head_bytes = self._body_bytes_max = 0
        self._target = b""
        # The latest that were judged: a Host, and the first line of a plain request.
        self._host: bytes | None = None
        # The latest fields of a plain request, as they came, and those that have come twice.
        self._block = b""
        self._fields: KeptFields | None = None
        self._line = self._line_method = self._line_target = b""
        self._odd = 0 if is_fast else ODD_MAX  # how many in a row were not plain
        self._pairs: list[RawPair] = []
        # The fields that decide about the head, by name; `_is_odd` where one of them came twice.
        self._watched: dict[bytes, bytes] = {}
        self._is_odd = self._is_plain = self.is_open = False
        self._body: list[bytes] = []
        self.state = ReadingState.FRESH
        self.ready: deque[HttpExchange] = deque()
        # The head that llhttp is told again, for the body behind an Upgrade.
        self._framing = b""
        self._is_framing = False
        self.begun = 0
        self.coming: Body | None = None
        self.body_bytes = 0
        self.is_draining = self.is_old = self.owes_continue = False

    @property
    def is_closed(self) -> bool:
        """True once nothing more is parsed."""
        return self.state is _CLOSED

    def feed(self, piece: bytes | memoryview) -> Refusal | None:
        """Parse a piece; return why the request in it is refused, None where none is."""
        self._piece_bytes = size = len(piece)
        self._quiet_bytes += size
        try:
            while piece:
                try:
                    self._parser.feed_data(piece)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # An offer of another protocol, which is not taken: this one goes on behind it.
                    piece = piece[upgrade.args[0] :]
                    if self._framing:
                        self._read_body_behind_upgrade()
        except httptools.HttpParserError:
            # Once closed, what follows the last request is not looked at, right or wrong.
            return None if self.state is _CLOSED else self._refused or _MALFORMED
        if self._quiet_bytes > self._limits.head_bytes_max + SLICE_BYTES:
            return self._oversized()
        return None

    def take_whole(self, piece: bytes) -> HttpExchange | None:
        """Return the request that a piece consists of, if it is plain; else it is to be fed.

        It says of such a request what the parser's callbacks say, which then never see it. Nothing
        may wait in `ready`.
        """
        if self.state > _IDLE or self.is_draining or self._odd >= ODD_MAX:
            return None
        self._odd += 1
        head, end, body = piece.partition(HEAD_END)
        line, _, block = head.partition(LINE_END)
        fields = self._fields
        if fields is not None and fields.block == block:
            pairs: list[RawPair] = fields
            length = fields.length
        else:
            read = self._read_fields(block)
            if read is None:
                return None
            pairs, length = read
        if (
            length != len(body)
            or not end
            or len(head) + len(end) > self._limits.head_bytes_max
            or (line != self._line and not self._judge_line(line))
        ):
            return None
        self._odd = 0
        self.begun += 1
        self.is_old = False
        self._quiet_bytes = 0
        self.state = _IDLE
        return HttpExchange(self._sink, self._line_method, self._line_target, pairs, body, True)

    def _read_fields(self, block: bytes) -> tuple[list[RawPair], int] | None:
        """Return fields, and the length of the body; None where they are odd. No more is asked."""
        read, limits = read_fields(block), self._limits
        if read is None:
            return None
        host, length = read.get(b"host"), read.get(b"content-length", b"0")
        if (
            host is None
            or not length.isdigit()
            or len(length) > LENGTH_DIGITS_MAX
            or int(length) > limits.body_bytes_max
            or len(read) > limits.headers_max
            or not (host == self._host or has_plain_host(host))
        ):
            return None
        self._host = host
        pairs = list(read.items())
        if block == self._block:
            pairs = self._fields = KeptFields(pairs, block, int(length))
        elif len(block) <= KEPT_BYTES_MAX:
            self._block = block
        return pairs, int(length)

    def _judge_line(self, line: bytes) -> bool:
        """Tell whether the first line of a request is plain, and know it from now on."""
        method, _, rest = line.partition(b" ")
        target, _, version = rest.partition(b" ")
        if method not in _METHODS or version != b"HTTP/1.1" or not has_plain_target(target):
            return False
        # A client mostly asks for the same: it is judged once.
        self._line, self._line_method, self._line_target = line, method, target
        return True

    def settle(self) -> Refusal | None:
        """Decide whether a request is streamed whose body has not come with its head."""
        if not self.is_open or self.state is not _BODY:
            return None
        self.is_open = False
        return self._judge_length()

    def judge_whole(self, exchange: HttpExchange) -> Refusal | None:
        """Give a request that came whole its stream, if its route is streamed."""
        if exchange.stream is None and self.streaming is not None and exchange.is_plain:
            longest = self._streamed_max(exchange.method, exchange.target, exchange.pairs)
            if longest is not None:
                if len(exchange.body) > longest:
                    return too_large(longest)
                body = Body(length=len(exchange.body), on_room=self._sink.on_room)
                body.feed(exchange.body)
                body.end()
                exchange.stream, exchange.body = body, b""
        return None

    def close(self) -> None:
        """Stop parsing, and forget the request that has begun."""
        self.state = READS[self.state][_CLOSE]
        self.coming = None
        self.owes_continue = False

    def end(self) -> None:
        """Stop for good: until then the reader, its parser and its sink hold each other."""
        self.ready.clear()
        del self._parser, self._sink

    def __repr__(self) -> str:
        return f"<RequestReader {self.state.name.lower()}, {len(self.ready)} ready>"

    # -- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take the first byte of a request."""
        if self._is_framing:
            return
        if self.state is _CLOSED:
            raise _Stopped
        self._target = b""
        self._pairs = []
        self._watched = {}
        self._body = []
        self._is_odd = False
        # All of the piece that it begins in: never less than there is of its head.
        self._quiet_bytes = self._piece_bytes
        self._head_bytes = self.body_bytes = 0
        self.begun += 1
        self.state = READS[self.state][_BEGAN]

    def on_url(self, part: bytes) -> None:
        """Take a part of the request target."""
        self._target += part
        if len(self._target) > self._limits.head_bytes_max:
            self._stop(self._oversized())

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; a trailer field is counted and dropped."""
        if self.state is _BODY:
            self._drop_trailer(name, value)
            return
        # llhttp leaves the blanks behind a value; they are no part of it (RFC 9112, section 5.1).
        pair = name, value = name.lower(), value.strip(b" \t")
        if name in WATCHED:
            if name in self._watched:
                self._is_odd = True
            self._watched[name] = value
        self._pairs.append(pair)

    def on_headers_complete(self) -> None:
        """Judge the head before a byte of the body is taken."""
        if self._is_framing:
            return
        pairs, limits = self._pairs, self._limits
        if len(pairs) > limits.headers_max:
            self._stop(Refusal(431, f"more than {limits.headers_max} header fields"))
        if self._quiet_bytes > limits.head_bytes_max:
            self._count_head(0)
        self._quiet_bytes = 0
        parser, watched = self._parser, self._watched
        method, target = parser.get_method(), self._target
        self._method = method
        self.owes_continue = False
        host = watched.get(b"host")
        length = watched.get(b"content-length")
        self._is_plain = (
            self._is_fast
            and not self._is_odd
            and host is not None
            # No field but these two: each of the others needs a closer look.
            and len(watched) == (1 if length is None else 2)
            and (length is None or (length.isdigit() and len(length) <= LENGTH_DIGITS_MAX))
            and (host == self._host or has_plain_host(host))
            and has_plain_target(target)
            and method not in _NOT_PLAIN
            and parser.get_http_version() == "1.1"
        )
        if not self._is_plain or host is None:
            self._judge(method, target)
        else:
            self._host = host
            self.is_old = False
            if length is None or int(length) <= limits.body_bytes_max:
                # Whether it is streamed can wait until it has not come whole.
                self._body_bytes_max = limits.body_bytes_max
                self.is_open = self.streaming is not None
            else:
                refusal = self._judge_length()
                if refusal is not None:
                    self._stop(refusal)
        self.state = READS[self.state][_JUDGED]
        if parser.should_upgrade():
            self._framing = self._frame()

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
        """Hand the request over; the last one of a connection closes the reader."""
        if self._framing:
            return  # llhttp takes what follows an Upgrade for another protocol, and not for a body
        if self.coming is None:
            parts = self._body
            body = (parts[0] if len(parts) == 1 else b"".join(parts)) if parts else b""
            # As `_hand_over` does, without its frame.
            self.ready.append(
                HttpExchange(
                    self._sink, self._method, self._target, self._pairs, body, self._is_plain
                )
            )
        else:
            self.coming.end()
            self.coming = None
        self.is_open = self.owes_continue = False
        # Keep-alive of HTTP/1.0 was never specified well: such a client gets one answer.
        is_last = self.is_draining or not self._parser.should_keep_alive()
        if is_last or self.is_old:
            self.state = READS[self.state][_CLOSE]
        else:
            self.state = READS[self.state][_COMPLETE]

    # -- its own ---------------------------------------------------------------------------------

    def _frame(self) -> bytes:
        """Return a head that frames the same body; nothing where there is none."""
        length = int(self._watched.get(b"content-length", b"0"))
        if b"transfer-encoding" in self._watched:
            framing = b"transfer-encoding: chunked"
        elif length:
            framing = b"content-length: %d" % length
        else:
            return b""
        end = b"" if self._parser.should_keep_alive() else b"connection: close\r\n"
        return b"POST / HTTP/1.1\r\nhost: x\r\n%b\r\n%b\r\n" % (framing, end)

    def _read_body_behind_upgrade(self) -> None:
        """Have llhttp read the body of a request whose Upgrade is not taken."""
        framing, target, self._framing, self._is_framing = self._framing, self._target, b"", True
        self._parser.feed_data(framing)
        self._target, self._is_framing = target, False

    def _hand_over(self, body: bytes, stream: Body | None) -> None:
        self.ready.append(
            HttpExchange(
                self._sink, self._method, self._target, self._pairs, body, self._is_plain, stream
            )
        )

    def _judge(self, method: bytes, target: bytes) -> None:
        """Apply the strictness rules to a head that is not plain."""
        version = self._parser.get_http_version()
        self.is_old = version != "1.1"
        head = Head(
            method.decode("ascii"),
            target.decode("latin-1"),
            version,
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._pairs],
        )
        self._target = origin_form(head.target).encode("latin-1")
        if b"host" not in self._watched and (asked := authority_of(head.target)):
            # HTTP/1.0 may name the host there alone (RFC 9112, section 3.2.2).
            self._pairs.append((b"host", asked.encode("latin-1")))
        streamed_max = self._streamed_max(method, self._target, self._pairs)
        longest = self._limits.body_bytes_max if streamed_max is None else streamed_max
        refusal = refusal_of(head, body_bytes_max=longest)
        if refusal is not None:
            self._stop(refusal)
        self.owes_continue = head.is_continue_expected
        if self.is_old:
            # To HTTP/1.0 such an offer means nothing (RFC 9110, section 7.8).
            self._pairs = [pair for pair in self._pairs if pair[0] != b"upgrade"]
        self._accept(streamed_max)

    def _judge_length(self) -> Refusal | None:
        """Decide whether a plain request is streamed, and refuse what is too long for it."""
        streamed_max = self._streamed_max(self._method, self._target, self._pairs)
        longest = self._limits.body_bytes_max if streamed_max is None else streamed_max
        if int(self._watched.get(b"content-length", b"0")) > longest:
            return too_large(longest)
        self._accept(streamed_max)
        return None

    def _accept(self, streamed_max: int | None) -> None:
        if streamed_max is None:
            self._body_bytes_max = self._limits.body_bytes_max
            return
        self._body_bytes_max = streamed_max
        length: int | None = int(self._watched.get(b"content-length", b"0"))
        if b"transfer-encoding" in self._watched:
            length = None
        self.coming = Body(length=length, on_room=self._sink.on_room)
        self.coming.awaits_continue = self.owes_continue
        for part in self._body:
            self.coming.feed(part)
        self._hand_over(b"", self.coming)

    def _streamed_max(self, method: bytes, target: bytes, pairs: Sequence[RawPair]) -> int | None:
        if self.streaming is None:
            return None
        path = target.partition(b"?")[0].decode("latin-1")
        return self.streaming.body_max(method.decode("ascii"), path, pairs)

    def _drop_trailer(self, name: bytes, value: bytes) -> None:
        """Count a trailer field to the head, and forget it: it must not replace a header."""
        self._quiet_bytes = 0
        self._count_head(len(name) + len(value) + 4)

    def _count_head(self, more: int) -> None:
        if not self._head_bytes:
            self._head_bytes = len(self._target)
            self._head_bytes += sum(len(name) + len(value) + 4 for name, value in self._pairs)
        self._head_bytes += more
        if self._head_bytes > self._limits.head_bytes_max:
            self._stop(self._oversized())

    def _oversized(self) -> Refusal:
        return Refusal(431, f"the head is longer than {self._limits.head_bytes_max} bytes")

    def _stop(self, refusal: Refusal) -> NoReturn:
        self._refused = refusal
        raise _Stopped
