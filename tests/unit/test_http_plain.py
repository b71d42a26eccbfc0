"""What is read at once is read as llhttp and the rules read it, and nothing more is accepted."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from gateway_fakes import Connection
from synchromesh.http import HttpExchange, Limits, PoolLimits
from synchromesh.http.plain import KEPT_BYTES_MAX, ODD_MAX, KeptFields
from synchromesh.http.reading import RequestReader
from synchromesh.http.responses import ResponseReader, ResponseState
from synchromesh.http.states import ReadingState

LIMITS = Limits(head_bytes_max=300, headers_max=6, body_bytes_max=8)
POOL_LIMITS = PoolLimits(head_bytes_max=300, headers_max=6, body_bytes_max=8)

NAMES = [
    *(b"a", b"host", b"Host", b"content-length", b"Content-Length", b"te", b"keep-alive", b"x_y"),
    *(b"transfer-encoding", b"expect", b"upgrade", b"connection", b"Connection", b"x:y", b""),
    *(b"proxy-connection", b"x\x00", b"\xe9", b"a ", b" a", b"a\t", b"host\r", b"x" * 70),
]
VALUES = [
    *(b"x", b"x:80", b"x y", b" x", b"x ", b"\tx", b"x\t", b"", b" ", b"x: y", b"x" * 300),
    *(b"3", b"03", b"+3", b"3, 3", b"-1", b"9", b"1" * 19, b"\xb2", b"chunked", b"100-continue"),
    *(b"close", b"keep-alive", b"Keep-Alive", b"upgrade", b"x\x00y", b"x\x7fy", b"x\xe9y"),
    *(b"x\ry", b"x\ny", b"x\r\n y"),
]
COLONS = [b": ", b":", b":  ", b" : ", b""]
ENDS = [b"\r\n", b"\n", b"\r", b""]
FIELDS = [
    b"".join(parts)
    for parts in itertools.product(NAMES, COLONS, VALUES, ENDS)
    if parts[1] == b": " or parts[3] == b"\r\n"
]
METHODS = [b"GET", b"POST", b"OPTIONS", b"HEAD", b"CONNECT", b"get", b"G*T", b"TRACE", b""]
TARGETS = [
    *(b"/", b"/a?b=%zz", b"/a%20b", b"/a%2", b"/a#b", b"*", b"http://x/", b"x", b"/\xc3", b"//x"),
    *(b"/a|b", b"/a\x7f", b""),
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.10", b"http/1.1", b"RTSP/1.0", b""]
STATUSES = [
    *(b"200 OK", b"404 Not Found", b"204 No Content", b"304 Not Modified", b"100 Continue"),
    *(b"101 Switching Protocols", b"200", b"200 ", b"200 Fine", b"2000 OK", b"600 ", b"000 OK"),
    *(b"20 OK", b"503 Service Unavailable", b"205 Reset Content", b"", b"200  OK"),
]
BODIES = [b"abc", b"", b"abcd", b"ab", b"abcGET / HTTP/1.1\r\n"]
GET, POST = b"GET / HTTP/1.1\r\nhost: x\r\n", b"POST / HTTP/1.1\r\nhost: x\r\n"
CODINGS = [
    b"transfer-encoding: chunked\r\n", b"Transfer-Encoding: Chunked\r\n",
    b"transfer-encoding: gzip, chunked\r\n", b"transfer-encoding: chunked\r\ncontent-length: 3\r\n",
]  # fmt: skip
SIZES = [
    *(b"3", b"03", b"0003", b"00003", b"+3", b" 3", b"3 ", b"0x3", b"3;x=y", b"3_", b"2", b"4"),
    *(b"", b"0", b"a", b"A", b"8", b"9", b"1000000000000000"),
]
CHUNKS = [
    b"abc", b"", b"ab\r\n0\r\n\r\n", b"abc\r\n1\r\nd", b"a" * 8, b"a" * 9, b"abc\r\n0\r\n\r\n",
]  # fmt: skip
LAST_CHUNKS = [
    b"\r\n0\r\n\r\n", b"\r\n00\r\n\r\n", b"\r\n0\r\nx: y\r\n\r\n", b"\r\n0\r\n",
    b"0\r\n\r\n", b"\n0\n\n", b"\r\n0\r\n\r\nx", b"",
]  # fmt: skip
OK, LENGTH = b"HTTP/1.1 200 OK\r\n", b"content-length: 3\r\n"
MANY = [b"a%d: %b\r\n" % (n, b"x" * 40) for n in range(9)]


def requests() -> Iterator[bytes]:
    """Make requests in each of which one thing may be odd."""
    for line in itertools.product(METHODS, TARGETS, VERSIONS):
        for body in BODIES:
            yield b" ".join(line) + b"\r\nhost: x\r\n" + LENGTH + b"\r\n" + body
    for field in FIELDS:
        yield b"POST / HTTP/1.1\r\n" + field + b"host: x\r\n" + LENGTH + b"\r\nabc"
        yield POST + LENGTH + field + b"\r\nabc"
        yield POST + field + b"\r\nabc"
        yield GET + field + b"\r\n"
        yield b"GET / HTTP/1.1\r\n" + field + b"\r\n"
    for count in range(len(MANY)):
        yield GET + b"".join(MANY[:count]) + b"\r\n"


def responses() -> Iterator[bytes]:
    """Make responses in each of which one thing may be odd."""
    for line in itertools.product(VERSIONS, STATUSES):
        for body in BODIES:
            yield b" ".join(line) + b"\r\n" + LENGTH + b"\r\n" + body
    for field in FIELDS:
        yield OK + field + LENGTH + b"\r\nabc"
        yield OK + LENGTH + field + b"\r\nabc"
        yield OK + field + b"\r\nabc"
    for count in range(len(MANY)):
        yield OK + LENGTH + b"".join(MANY[:count]) + b"\r\nabc"
    for coding, size, data, end in itertools.product(CODINGS, SIZES, CHUNKS, LAST_CHUNKS):
        yield OK + coding + b"\r\n" + size + b"\r\n" + data + end


class Nobody:
    """Takes requests, and is told nothing."""

    peer = ""
    transport = Connection()

    def on_room(self) -> None: ...
    def answered(self, head: bytes, body: bytes) -> None: ...
    def begun(self, head: bytes, data: bytes) -> None: ...
    def part(self, data: bytes) -> bool:
        return True

    def ended(self, *, is_whole: bool) -> None: ...
    def answered_by(self, request: object, answering: object) -> None: ...


def request_reader(*, is_fast: bool) -> RequestReader:
    return RequestReader(LIMITS, None, Nobody(), is_fast=is_fast)


def read(reader: ResponseReader) -> tuple[object, ...]:
    how = reader.keeps_alive, reader.is_delimited
    return reader.status, reader.pairs, reader.length, reader.take_body(), how


def taken(exchange: HttpExchange) -> tuple[object, ...]:
    return exchange.method, exchange.target, exchange.pairs, exchange.body


def test_a_request_that_is_read_at_once_is_read_as_by_llhttp() -> None:
    """First on its connection, and behind one that was read in either way."""
    before = b"GET / HTTP/1.1\r\nhost: y\r\n\r\n"
    at_once = 0
    for request in requests():
        fast, slow = request_reader(is_fast=True), request_reader(is_fast=False)
        if at_once % 2:
            assert fast.take_whole(before) is not None
            assert slow.feed(before) is None
            slow.ready.clear()
        exchange = fast.take_whole(request)
        refusal = fast.feed(request) if exchange is None else None
        at_once += exchange is not None
        assert slow.feed(request) == refusal, request
        found = list(map(taken, fast.ready)) if exchange is None else [taken(exchange)]
        assert found == list(map(taken, slow.ready)), request
        assert (fast.state, fast.begun) == (slow.state, slow.begun), request
    assert at_once > 300


def test_fields_that_come_again_are_the_same_until_they_differ() -> None:
    """Of the third message on they are not read again, whatever came between; as llhttp reads."""
    fast, slow = request_reader(is_fast=True), request_reader(is_fast=False)
    for line, field, body in itertools.product(
        (b"POST / HTTP/1.1", b"PUT /a?b=c HTTP/1.1"),
        (b"a: b", b"a: b", b"a: b", b"A: b", b"a: b2", b"a: b", b"a: b"),
        (b"abc", b"abc", b"ab", b"abcd"),
    ):
        request = line + b"\r\nhost: x\r\n" + LENGTH + field + b"\r\n\r\n" + body
        exchange = fast.take_whole(request)
        # One that is cut, or that more follows, is the parser's.
        assert (exchange is not None) is (body == b"abc"), request
        if exchange is not None:
            assert slow.feed(request) is None
            assert taken(exchange) == taken(slow.ready.popleft())
    kept = []
    for field in (b"c: d", b"c: d", b"c: d", b"c: e", b"c: d", b"c: f"):
        exchange = fast.take_whole(GET + field + b"\r\n\r\n")
        kept.append(exchange is not None and isinstance(exchange.pairs, KeptFields))
    assert kept == [False, True, True, False, True, False]


def test_answers_that_come_again_are_the_same_until_they_differ() -> None:
    """The status is a part of what is compared; nothing of one answer is told of another."""
    reader = ResponseReader(POOL_LIMITS)
    seen: list[tuple[int, object, bytes, int]] = []
    for status, tag in itertools.product((b"200 OK", b"404 Not Found"), (b"1", b"1", b"1", b"2")):
        reader.expect(False, False)
        body = b"%b%b!" % (status[:1], tag)
        assert reader.take_whole(
            b"HTTP/1.1 %b\r\n%betag: %b\r\n\r\n%b" % (status, LENGTH, tag, body)
        )
        pairs = [(b"content-length", b"3"), (b"etag", tag)]
        assert (reader.pairs, reader.take_body(), reader.length) == (pairs, body, 3)
        seen.append((reader.status, tag, body, id(reader.pairs)))
    assert [status for status, *_ in seen] == [200] * 4 + [404] * 4
    assert seen[1][3] == seen[2][3] != seen[3][3]
    reader.expect(False, False)
    assert not reader.take_whole(b"HTTP/1.1 404 Not Found\r\n%betag: 2\r\n\r\nab" % LENGTH)


def test_long_fields_are_read_each_time() -> None:
    """What an idle connection keeps is bounded."""
    reader = RequestReader(Limits(), None, Nobody())
    for size, is_kept in ((KEPT_BYTES_MAX - 20, True), (KEPT_BYTES_MAX, False)):
        request = GET + b"a: %b\r\n\r\n" % (b"x" * size)
        taken = [reader.take_whole(request) for _ in range(3)]
        assert [each is not None and isinstance(each.pairs, KeptFields) for each in taken] == [
            False,
            is_kept,
            is_kept,
        ]


def test_a_response_that_is_read_at_once_is_read_as_by_llhttp() -> None:
    """First on its connection, and behind one that was read in either way."""
    before = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    at_once = 0
    for response in responses():
        fast, slow = ResponseReader(POOL_LIMITS), ResponseReader(POOL_LIMITS)
        for reader in (fast, slow):
            reader.expect(False, False)
        if at_once % 2:
            assert fast.take_whole(before)
            assert slow.feed(before) is None
            for reader in (fast, slow):
                reader.expect(False, False)
        is_whole = fast.take_whole(response)
        at_once += is_whole
        reason = None if is_whole else fast.feed(response)
        assert slow.feed(response) == reason, response
        assert fast.state is slow.state, response
        if reason is None and fast.state is ResponseState.WHOLE:
            assert read(fast) == read(slow), response
    assert at_once > 300


def test_a_usual_message_is_read_at_once() -> None:
    """The comparisons above would hold, too, where nothing was."""
    reader = request_reader(is_fast=True)
    exchange = reader.take_whole(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
    assert exchange is not None
    assert taken(exchange) == (
        b"POST",
        b"/a",
        [(b"host", b"x"), (b"content-length", b"3")],
        b"abc",
    )
    assert reader.state is ReadingState.IDLE
    responses = ResponseReader(POOL_LIMITS)
    responses.expect(False, False)
    assert responses.take_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
    assert responses.take_body() == b"abc"
    for body in (b"abc", b"a" * 8, b"abc"):
        responses.expect(False, False)
        chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert responses.take_whole(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        assert (responses.take_body(), responses.length) == (body, None)


def test_a_connection_of_odd_messages_is_left_to_llhttp() -> None:
    """After a few in a row; a plain one in between begins the count anew."""
    odd, plain = GET + b"te: trailers\r\nx:y\r\n\r\n", GET + b"\r\n"
    reader = request_reader(is_fast=True)
    for count in (ODD_MAX - 1, ODD_MAX):
        assert reader.take_whole(plain) is not None
        for _ in range(count):
            assert reader.take_whole(odd) is None
            assert reader.feed(odd) is None
    assert reader.take_whole(plain) is None
    assert reader.feed(plain) is None
    assert len(reader.ready) == 2 * ODD_MAX
    odd, plain = OK + b"x:y\r\n" + LENGTH + b"\r\nabc", OK + LENGTH + b"\r\nabc"
    responses = ResponseReader(POOL_LIMITS)
    for count in (ODD_MAX - 1, ODD_MAX):
        responses.expect(False, False)
        assert responses.take_whole(plain)
        for _ in range(count):
            responses.expect(False, False)
            assert not responses.take_whole(odd)
            assert responses.feed(odd) is None
            assert responses.take_body() == b"abc"
    responses.expect(False, False)
    assert not responses.take_whole(plain)
    assert responses.feed(plain) is None
    assert responses.take_body() == b"abc"
