"""Raw requests on a real socket: what is odd is refused, and what follows it is never run."""

from __future__ import annotations

import asyncio

import pytest

from real_loops import ON_BOTH_LOOPS
from synchromesh.http import Headers, HttpRequest, HttpResponse, HttpServer, Limits
from synchromesh.runtime import RealRuntime

pytestmark = [pytest.mark.anyio, ON_BOTH_LOOPS, pytest.mark.usefixtures("http_way")]

HOST = b"Host: x\r\n"
POST = b"POST /e HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ONE_CHUNK = b"3\r\nabc\r\n0\r\n\r\n"
FOLLOWER = b"GET /e?second HTTP/1.1\r\nHost: x\r\n\r\n"

ANSWERED = {
    "plain length": POST + b"Content-Length: 3\r\n\r\nabc",
    "plain chunked": CHUNKED + ONE_CHUNK,
    "legal chunk extension": CHUNKED + b"3;a=b\r\nabc\r\n0\r\n\r\n",
    "trailer fields": CHUNKED + b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n",
    "absolute form that names its host": b"POST http://X/e HTTP/1.1\r\n"
    + HOST
    + b"Content-Length: 3\r\n\r\nabc",
    "coding in capitals": POST + b"Transfer-Encoding: CHUNKED\r\n\r\n" + ONE_CHUNK,
    "blanks around a length": POST + b"Content-Length:   3 \t\r\n\r\nabc",
    # RFC 9110, section 7.8: an Upgrade that is not taken is ignored. Java's client offers h2c.
    "h2c of an ordinary client": POST
    + b"Connection: Upgrade, HTTP2-Settings\r\nContent-Length: 3\r\n"
    + b"HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA\r\nUpgrade: h2c\r\n\r\nabc",
    "upgrade to TLS": POST
    + b"Upgrade: TLS/1.2\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc",
    "upgrade in chunks": POST
    + b"Upgrade: h2c\r\nConnection: upgrade\r\nTransfer-Encoding: chunked\r\n\r\n"
    + ONE_CHUNK,
    "upgrade to a list": POST
    + b"Connection: upgrade\r\nUpgrade: HTTP/2.0, SHTTP/1.3, IRC/6.9, RTA/x11\r\n"
    + b"Content-Length: 3\r\n\r\nabc",
    "two upgrades": POST
    + b"Connection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\nContent-Length: 3\r\n\r\nabc",
    "upgrade without its option": POST + b"Upgrade: websocket\r\nContent-Length: 3\r\n\r\nabc",
}

REFUSED = {
    "length and chunked": POST
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    + ONE_CHUNK,
    "chunked and length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
    + ONE_CHUNK,
    "two lengths that differ": POST + b"Content-Length: 3\r\nContent-Length: 0\r\n\r\nabc",
    "two lengths that agree": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "length +3": POST + b"Content-Length: +3\r\n\r\nabc",
    "length '3, 3'": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "coding xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + ONE_CHUNK,
    "coding 'chunked, identity'": POST
    + b"Transfer-Encoding: chunked, identity\r\n\r\n"
    + ONE_CHUNK,
    "coding 'gzip, chunked'": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + ONE_CHUNK,
    "coding 'chunked, chunked'": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + ONE_CHUNK,
    "empty coding": POST + b"Transfer-Encoding:\r\n\r\n" + ONE_CHUNK,
    "two codings": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n"
    + ONE_CHUNK,
    "blank before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + ONE_CHUNK,
    "folded header": b"GET /e HTTP/1.1\r\n" + HOST + b"X-A: a\r\n b\r\n\r\n",
    "bare LF line endings": b"GET /e HTTP/1.1\nHost: x\n\n",
    "bare LF in one header": b"GET /e HTTP/1.1\r\nHost: x\nX-B: 1\r\n\r\n",
    "bare CR in a value": b"GET /e HTTP/1.1\r\n" + HOST + b"X-B: a\rb\r\n\r\n",
    "NUL in a value": b"GET /e HTTP/1.1\r\n" + HOST + b"X-B: a\0b\r\n\r\n",
    "chunk extension with bare LF": CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "chunk size with bare LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "chunk with a bad end": CHUNKED + b"3\r\nabcXX0\r\n\r\n",
    "chunk size 0x3": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "chunk size that overflows": CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "no Host": b"GET /e HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /e HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two equal Hosts": b"GET /e HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "empty Host": b"GET /e HTTP/1.1\r\nHost:\r\n\r\n",
    "Host with a path": b"GET /e HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "Host with credentials": b"GET /e HTTP/1.1\r\nHost: a@x\r\n\r\n",
    "chunked on HTTP/1.0": b"POST /e HTTP/1.0\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + ONE_CHUNK,
    "target that names another host": b"GET http://y/e HTTP/1.1\r\n" + HOST + b"\r\n",
    "target of another scheme": b"GET ftp://x/e HTTP/1.1\r\n" + HOST + b"\r\n",
    "fragment in the target": b"GET /e#f HTTP/1.1\r\n" + HOST + b"\r\n",
    "broken escape in the path": b"GET /e%zz HTTP/1.1\r\n" + HOST + b"\r\n",
    "high byte in the target": b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n",
    "asterisk without OPTIONS": b"GET * HTTP/1.1\r\n" + HOST + b"\r\n",
    "unknown method": b"FOO /e HTTP/1.1\r\n" + HOST + b"\r\n",
    "empty header name": b"GET /e HTTP/1.1\r\n" + HOST + b": a\r\n\r\n",
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


class Recorder:
    """A handler that answers with the body it saw and keeps each request's target and body."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        self.seen.append((request.target, request.body))
        return HttpResponse(200, Headers(), request.body)


async def exchange(port: int, raw: bytes) -> bytes:
    """Send `raw`, and return all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        async with asyncio.timeout(5.0):
            return await reader.read()
    finally:
        writer.close()


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


async def run(raw: bytes, **limits: float) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Serve one connection that sends `raw`, and return the answer and what the handler saw."""
    handler = Recorder()
    chosen = Limits(idle_s=0.05, linger_s=0.05, **limits)  # type: ignore[arg-type]
    server = HttpServer(handler, network=RealRuntime().network, limits=chosen)
    await server.start()
    try:
        return await exchange(server.port, raw), handler.seen
    finally:
        await server.close()


@pytest.mark.parametrize("raw", ANSWERED.values(), ids=ANSWERED)
async def test_what_is_legal_is_answered_and_so_is_its_follower(raw: bytes) -> None:
    """A well-formed request is read to its exact end."""
    answer, seen = await run(raw + FOLLOWER)
    assert statuses(answer) == [200, 200]
    assert seen == [("/e", b"abc"), ("/e?second", b"")]


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
async def test_what_is_odd_is_refused_and_its_follower_never_run(raw: bytes) -> None:
    """A request that two parties could read differently ends its connection with one 400 or 501."""
    answer, seen = await run(raw + FOLLOWER)
    assert statuses(answer) in ([400], [501])
    assert seen == []
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"application/problem+json" in head
    assert b'"detail":' in body
    assert b"synchromesh/" not in body


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
async def test_a_refusal_waits_for_the_answers_before_it(raw: bytes) -> None:
    """A good request ahead of a bad one is answered first."""
    answer, seen = await run(b"GET /first HTTP/1.1\r\nHost: x\r\n\r\n" + raw + FOLLOWER)
    assert statuses(answer) in ([200, 400], [200, 501])
    assert seen == [("/first", b"")]


@pytest.mark.parametrize(
    "raw", [ANSWERED["plain chunked"], ANSWERED["upgrade in chunks"], *REFUSED.values()]
)
async def test_bytes_may_come_one_at_a_time(raw: bytes) -> None:
    """How TCP cuts the bytes changes nothing about what is accepted."""
    handler = Recorder()
    limits = Limits(idle_s=0.05, linger_s=0.05)
    server = HttpServer(handler, network=RealRuntime().network, limits=limits)
    await server.start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for index in range(len(raw)):
            writer.write(raw[index : index + 1])
            await asyncio.sleep(0)
        writer.write(FOLLOWER)
        answer = await reader.read()
        writer.close()
    finally:
        await server.close()
    is_legal = raw in ANSWERED.values()
    assert statuses(answer) in ([[200, 200]] if is_legal else [[400], [501]])
    assert [body for _, body in handler.seen] == ([b"abc", b""] if is_legal else [])


async def test_many_upgrades_in_one_piece_are_each_gone_on_behind() -> None:
    """A pipeline of them is a pipeline, and what is odd among them is refused all the same."""
    offer = b"GET /e HTTP/1.1\r\n" + HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    answer, seen = await run(offer * 300 + FOLLOWER)
    assert statuses(answer) == [200] * 301
    assert len(seen) == 301
    answer, seen = await run(offer * 3 + REFUSED["two Hosts"] + FOLLOWER)
    assert statuses(answer) == [200, 200, 200, 400]
    assert len(seen) == 3


async def test_other_versions_are_refused() -> None:
    """HTTP/0.9 and HTTP/2.0 are answered 505."""
    for version in (b"0.9", b"2.0"):
        answer, seen = await run(b"GET /e HTTP/" + version + b"\r\nHost: x\r\n\r\n" + FOLLOWER)
        assert statuses(answer) == [505]
        assert seen == []
