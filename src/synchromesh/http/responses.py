"""Reads one strict answer after the other from the bytes of one connection of the pool.

    AWAITED ──first byte──▶ BEGUN ──head is acceptable──▶ BODY ──complete──▶ WHOLE

Names and values are judged as they come, by tables of bytes; `Headers` are made where somebody asks
for them. It knows no time, and no socket.

Source: RFC 9112, sections 6 and 7; RFC 9110, section 15.2 (interim answers).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NoReturn

import httptools

from synchromesh.http.limits import PoolLimits
from synchromesh.http.message import RawPair
from synchromesh.http.plain import (
    HEAD_END,
    KEPT_BYTES_MAX,
    LENGTH_DIGITS_MAX,
    LINE_END,
    ODD_IN_ANSWERS,
    ODD_MAX,
    STATUSES,
    KeptFields,
    one_chunk,
    read_fields,
)

# What one read may bring beyond the limit of a head before it is noticed.
_READ_BYTES: Final = 256 * 1024
_LENGTH_DIGITS: Final = 19
# Looking whether it came whole costs a copy of what there is of its body.
_WHOLE_BYTES_MAX: Final = 16 * 1024
_LONG_HEAD: Final = "its head is too long"
_CHUNKED: Final = (b"transfer-encoding", b"chunked")
_FRAMES: Final = frozenset({b"content-length", b"transfer-encoding"})


class ResponseState(IntEnum):
    """Names the states of reading a response."""

    AWAITED = 0
    BEGUN = 1
    BODY = 2
    WHOLE = 3


_AWAITED, _BEGUN, _BODY, _WHOLE = ResponseState


class ResponseReader:
    """Parses one strict response, or says why what came is not acceptable.

    Attributes:
        state: how much has come.
        status, pairs: of the answer, from BODY on; names are in lower case.
        length: what its head says of the body's length; None where it says nothing.
        is_delimited: True where its own framing says where it ends; else its connection does.
        keeps_alive: True where the connection may carry another exchange.
    """

    def __init__(self, limits: PoolLimits) -> None:
        self._limits = limits
        self._parser = httptools.HttpResponseParser(self)
        self._reason = ""
        self._is_head = self._takes_parts = self._is_new = False
        self._frames: list[RawPair] = []
        self._body: list[bytes] = []
        self._head_bytes = self._body_bytes = self._quiet_bytes = self._interims = 0
        self.state = ResponseState.AWAITED
        self.status = 0
        self.pairs: list[RawPair] = []
        self.length: int | None = None
        self.is_delimited = self.keeps_alive = False
        self._odd = 0  # how many in a row were not plain
        # The latest head of a plain response, as it came, and what one that came twice has said.
        self._head = b""
        self._fields: KeptFields | None = None
        self._fields_status = 0

    def expect(self, is_head: bool, takes_parts: bool) -> None:
        """Expect the next response; one that is taken in parts may be of any length."""
        self._is_head = is_head
        self._takes_parts = takes_parts
        self.state = _AWAITED

    def feed(self, data: bytes) -> str | None:
        """Parse a part; return why it is not acceptable, None where it is.

        Where the answer is WHOLE then, it is so all the same: what came behind it is not.
        """
        if self.state is _AWAITED:
            self.state = _BEGUN
            self._body = []
            self._body_bytes = self._quiet_bytes = self._interims = 0
            # Asking the parser takes longer than all else that is asked of a head.
            self._is_new = data.startswith(b"HTTP/1.1 ")
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            return self._reason or str(error)
        if self._quiet_bytes > self._limits.head_bytes_max + _READ_BYTES:
            return _LONG_HEAD
        return None

    def take_whole(self, data: bytes) -> bool:
        """Take a piece that is one plain response; False where it is anything else, to be fed.

        It says of such a response what the parser's callbacks say, which then never see it.
        """
        if self.state is not _AWAITED or self._is_head or self._odd >= ODD_MAX:
            return False
        self._odd += 1
        if len(data) > _WHOLE_BYTES_MAX:
            return False
        head, end, body = data.partition(HEAD_END)
        fields = self._fields
        if fields is not None and fields.block == head:
            pairs: list[RawPair] = fields
            length, status = fields.length, self._fields_status
        else:
            read = self._read_head(head)
            if read is None:
                return False
            status, pairs, length = read
        if not end:
            return False
        if length < 0:
            chunk = one_chunk(body)
            if chunk is None or len(chunk) > self._limits.body_bytes_max:
                return False
            body = chunk
        elif length != len(body):
            return False
        self.status, self.pairs, self.length = status, pairs, None if length < 0 else length
        self._body = [body]
        self._odd = 0
        self.is_delimited = self.keeps_alive = True
        self.state = _WHOLE
        return True

    def _read_head(self, head: bytes) -> tuple[int, list[RawPair], int] | None:
        """Return status, fields and length of a plain response; None where its head is odd.

        The length is below 0 where it comes in chunks. All that is asked of a head is asked here:
        who finds the same bytes again asks nothing.
        """
        line, _, block = head.partition(LINE_END)
        status, read = STATUSES.get(line), read_fields(block, ODD_IN_ANSWERS)
        limits = self._limits
        if status is None or read is None:
            return None
        stated, coding = read.get(b"content-length"), read.get(b"transfer-encoding")
        if stated is None and coding == b"chunked":
            length = -1
        elif coding is None and stated and stated.isdigit() and len(stated) <= LENGTH_DIGITS_MAX:
            length = int(stated)
        else:
            return None
        if (
            length > limits.body_bytes_max
            or len(head) + len(HEAD_END) > limits.head_bytes_max
            or len(read) > limits.headers_max
        ):
            return None
        pairs = list(read.items())
        if head == self._head:
            pairs = self._fields = KeptFields(pairs, head, length)
            self._fields_status = status
        elif len(head) <= KEPT_BYTES_MAX:
            self._head = head
        return status, pairs, length

    def take_body(self) -> bytes:
        """Return what has come of the body and was not taken."""
        parts = self._body
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._body = []
        return body

    def end(self) -> None:
        """Stop for good: until then the reader and its parser hold each other."""
        del self._parser

    def __repr__(self) -> str:
        return f"<ResponseReader {self.state.name.lower()}>"

    # -- what the parser tells -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take the first byte of an answer; a second one was not asked for."""
        if self.state is _WHOLE:
            self._stop("more than one answer")
        self.pairs = []
        self._frames = []
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; a trailer field is counted and dropped."""
        if self.state is _BODY:
            self._quiet_bytes = 0
            self._count_head(len(name) + len(value) + 4)
            return
        pair = (name.lower(), value.strip(b" \t"))
        if pair[0] in _FRAMES:
            self._frames.append(pair)
        self.pairs.append(pair)

    def on_headers_complete(self) -> None:
        """Judge the framing before a byte of the body is taken."""
        parser, frames, limits = self._parser, self._frames, self._limits
        if len(self.pairs) > limits.headers_max:
            self._stop(f"more than {limits.headers_max} header fields")
        if self._quiet_bytes > limits.head_bytes_max:
            self._count_head(0)
        self._quiet_bytes = 0
        status = parser.get_status_code()
        if (
            len(frames) == 1
            and (frames[0][0] == b"content-length" or frames[0] == _CHUNKED)
            and 200 <= status <= 599
            and self._is_new
            and not self._interims
        ):
            frame = frames[0]
            self.length = None if frame == _CHUNKED else int(frame[1][:_LENGTH_DIGITS])
        else:
            self.length = self._judge(status)
            if status < 200:
                return
        self.status = status
        self.state = _BODY
        self.is_delimited = bool(frames)
        if self._is_head:
            # llhttp cannot be told that no body follows: it ends here, and so does the connection.
            self.state = ResponseState.WHOLE
            self.length, self.keeps_alive = None, False
            self._stop("")
        if self.length is not None and self.length > limits.body_bytes_max:
            self._refuse_long_body()

    def on_chunk_header(self) -> None:
        """Note progress."""
        self._quiet_bytes = 0

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        self._quiet_bytes = 0
        self._body.append(part)
        self._body_bytes += len(part)
        if self._body_bytes > self._limits.body_bytes_max:
            self._refuse_long_body()

    def on_message_complete(self) -> None:
        """Take the end of an interim answer, or of the one that counts."""
        if self.state is _BODY:
            self.state = _WHOLE
            self.keeps_alive = self._parser.should_keep_alive()
            return
        self._interims += 1
        if self._interims > self._limits.interim_max:
            self._stop(f"more than {self._limits.interim_max} interim answers")

    # -- its own ---------------------------------------------------------------------------------

    def _judge(self, status: int) -> int | None:
        """Judge a head in which something may be odd, and return the length that it states."""
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._stop("its version is neither HTTP/1.0 nor HTTP/1.1")
        if status == 101 or not 100 <= status <= 599:
            self._stop(f"status {status} was not asked for")
        codings = [value.lower() for name, value in self._frames if name == b"transfer-encoding"]
        lengths = [value for name, value in self._frames if name == b"content-length"]
        if codings and (codings != [b"chunked"] or version == "1.0"):
            self._stop("it has a transfer coding other than 'chunked'")
        if len(lengths) > 1 or (lengths and codings):
            self._stop("it states its length twice")
        return int(lengths[0][:_LENGTH_DIGITS]) if lengths else None

    def _count_head(self, more: int) -> None:
        if not self._head_bytes:
            self._head_bytes = sum(len(name) + len(value) + 4 for name, value in self.pairs)
        self._head_bytes += more
        if self._head_bytes > self._limits.head_bytes_max:
            self._stop(_LONG_HEAD)

    def _refuse_long_body(self) -> None:
        if not self._takes_parts:
            self._stop(f"its body is longer than {self._limits.body_bytes_max} bytes")

    def _stop(self, reason: str) -> NoReturn:
        self._reason = reason
        raise _StoppedReading


class _StoppedReading(Exception):
    """Ends llhttp from within a callback; the reason is kept by the reader."""
