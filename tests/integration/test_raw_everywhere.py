"""Raw requests to each listener of a running system: the gateway, a service, the control socket.

A table of framings, targets, fields and limits: whoever could read one in two ways is refused, and
what follows it is never run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.test_http_raw import ANSWERED, REFUSED, exchange, statuses
from notes_app import WITH_GATEWAY
from split_world import port_of, running
from synchromesh.system import System

pytestmark = pytest.mark.anyio

AT_ONCE = 16
# What a listener says of a request that is well-formed, and of one that it does not know.
ORDINARY = {200, 400, 401, 403, 404, 405, 415}
FOLLOWER = b"GET /count HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HOST = b"Host: x\r\n"
GET = b"GET /count HTTP/1.1\r\n" + HOST
POST = b"POST /notes HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = b"3\r\nabc\r\n0\r\n\r\n"
KiB = 1024


def bad_lengths() -> Iterator[tuple[str, bytes]]:
    for value in (
        *(b"+3", b"-0", b"-3", b"3 3", b"3,3", b"3, 3", b"3;3", b"0x3", b"3.0", b"3e0", b"three"),
        *(b"3\t3", b"\xb3", b"18446744073709551616", b"18446744073709551619", b"'3'", b"3_0"),
    ):
        yield f"length {value!r}", POST + b"Content-Length: %b\r\n\r\nabc" % value
    for first, second in ((b"3", b"3"), (b"3", b"0"), (b"0", b"3"), (b"3", b"")):
        both = b"Content-Length: %b\r\nContent-Length: %b\r\n\r\nabc" % (first, second)
        yield f"lengths {first!r} and {second!r}", POST + both


def bad_codings() -> Iterator[tuple[str, bytes]]:
    for value in (
        *(b"gzip", b"identity", b"chunked, identity", b"identity, chunked", b"chunked, chunked"),
        *(
            b"gzip, chunked",
            b"xchunked",
            b"chunkedx",
            b"chunked;q=1",
            b"chunk",
            b"cow",
            b"'chunked'",
        ),
        *(b'"chunked"', b",chunked", b"chunked,", b"", b"\x0bchunked", b"chunked\x0c", b"chu nked"),
    ):
        yield f"coding {value!r}", POST + b"Transfer-Encoding: %b\r\n\r\n" % value + WHOLE
    for name in (
        b"Transfer-Encoding ",
        b"Transfer_Encoding:x\r\nTransfer-Encoding\t",
        b" Transfer-Encoding",
    ):
        yield f"coding under {name!r}", POST + b"%b: chunked\r\n\r\n" % name + WHOLE
    for length in (b"0", b"3", b"13"):
        told = b"Content-Length: %b\r\n" % length
        coded = b"Transfer-Encoding: chunked\r\n"
        yield f"length {length!r}, then chunks", POST + told + coded + b"\r\n" + WHOLE
        yield f"chunks, then length {length!r}", POST + coded + told + b"\r\n" + WHOLE
    yield "two chunked", POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + WHOLE
    old = b"POST /notes HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    yield "chunks of HTTP/1.0", old + WHOLE


def bad_chunks() -> Iterator[tuple[str, bytes]]:
    for size in (
        *(b"+3", b"-3", b"0x3", b"3h", b"g", b" 3", b"3\x00", b"\xb3", b"", b"3,", b"3 3", b"_3"),
        *(b"10000000000000003", b"-0", b"'3'", b"3\n", b"3\r", b";a=b"),
    ):
        yield f"chunk size {size!r}", CHUNKED + size + b"\r\nabc\r\n0\r\n\r\n"
    for text in (
        *(
            b"3\nabc\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\nabc0\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
        ),
        *(b"3\r\nabc\r0\r\n\r\n", b"3\r\nabc\r\n\r\n0\r\n\r\n", b"3\r\n\r\nabc\r\n0\r\n\r\n"),
        *(b"3;a\nb\r\nabc\r\n0\r\n\r\n", b"3;a=\x00\r\nabc\r\n0\r\n\r\n", b"3;\rabc\r\n0\r\n\r\n"),
        *(b"3\r\nabc\r\n0\r\nbad trailer\r\n\r\n", b"3\r\nabc\r\n0\r\n: x\r\n\r\n"),
        *(b"3\r\nabc\r\n0\r\nX: \x00\r\n\r\n", b"3\r\nabc\r\n0\r\nX: a\rb\r\n\r\n"),
    ):
        yield f"chunks {text!r}", CHUNKED + text


def bad_heads() -> Iterator[tuple[str, bytes]]:
    for line in (
        *(
            b"X-A : a",
            b"X A: a",
            b": a",
            b"X-A",
            b"X\x00A: a",
            b"X-A: \x00",
            b"X-A: a\rb",
            b"X-A: \x7f",
        ),
        *(b"X-A: a\nX-B: b", b"X-A: a\r\n folded", b"X-A: a\r\n\tfolded", b"\xffX: a", b"X(A): a"),
        *(
            b"X{A}: a",
            b'X"A": a',
            b"X/A: a",
            b"X@A: a",
            b"X,A: a",
            b"X;A: a",
            b"X=A: a",
            b"X[A]: a",
        ),
        *(b"Host: y", b"Host: x", b"hOsT: x", b"Expect: the-unknown", b"Expect: 100-continue, x"),
    ):
        yield f"field {line!r}", GET + line + b"\r\n\r\n"
    for host in (
        *(b"", b"x/y", b"a@x", b"x:", b"x:80:80", b"x:port", b"x:123456", b"[::1", b"::1", b"x y"),
        *(
            b"x,y",
            b"http://x",
            b"x?y",
            b"x#y",
            b"\xe4",
            b"x%20",
            b"x\\y",
            b"[x]:80",
            b"<x>",
            b"x;y",
        ),
    ):
        yield f"Host {host!r}", b"GET /count HTTP/1.1\r\nHost: %b\r\n\r\n" % host
    yield "no Host", b"GET /count HTTP/1.1\r\n\r\n"
    for target in (
        *(
            b"count",
            b"*",
            b"/count#a",
            b"/%",
            b"/%z",
            b"/%zz",
            b"/%2",
            b"//\xff",
            b"/a\x00b",
            b"/a\x7f",
        ),
        *(
            b"http://y/count",
            b"ftp://x/count",
            b"http://x:81/count",
            b"http://u@x/count",
            b"http:/x",
        ),
        *(b"http://", b"//x:y@z#/", b"\\count", b"", b"x:80", b"file:///count", b"http://x#a"),
    ):
        yield f"target {target!r}", b"GET %b HTTP/1.1\r\n" % target + HOST + b"\r\n"
    for method in (b"FOO", b"get", b"G ET", b"GET\t", b"", b"CONNECT", b"GE(T", b"\xc7ET", b"PRI"):
        yield f"method {method!r}", b"%b /count HTTP/1.1\r\n" % method + HOST + b"\r\n"
    for version in (
        *(
            b"HTTP/1.2x",
            b"HTTP/11",
            b"HTTP/1",
            b"http/1.1",
            b"HTTP/1.1 x",
            b"HTP/1.1",
            b"HTTP /1.1",
        ),
        *(b"HTTP/1,1", b"HTTP/0x1.1", b"HTTP/1.10", b"", b"ICE/1.0", b"HTTP/2.0"),
    ):
        yield f"version {version!r}", b"GET /count %b\r\n" % version + HOST + b"\r\n"
    yield "line ends of LF", b"GET /count HTTP/1.1\nHost: x\n\n"
    yield "line ends of CR", b"GET /count HTTP/1.1\rHost: x\r\r"
    yield "a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    yield "HTTP/2 by prior knowledge", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def too_much() -> Iterator[tuple[str, bytes]]:
    yield "a long target", b"GET /" + b"a" * 33 * KiB + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    yield "a long query", b"GET /?" + b"a" * 33 * KiB + b" HTTP/1.1\r\n" + HOST + b"\r\n"
    yield "a long field", GET + b"X: " + b"a" * 33 * KiB + b"\r\n\r\n"
    yield "a long name", GET + b"X" * 33 * KiB + b": a\r\n\r\n"
    yield "many fields", GET + b"X: a\r\n" * 101 + b"\r\n"
    yield "many long fields", GET + (b"X: " + b"a" * KiB + b"\r\n") * 33 + b"\r\n"
    yield "a long trailer", CHUNKED + b"3\r\nabc\r\n0\r\nX: " + b"a" * 33 * KiB + b"\r\n\r\n"
    yield "a long extension", CHUNKED + b"3;" + b"a" * 65 * KiB + b"\r\nabc\r\n0\r\n\r\n"
    for length in (b"1048577", b"9" * 15, b"9" * 18):
        yield f"length {length!r}", POST + b"Content-Length: %b\r\n\r\n" % length


ODD = {
    **REFUSED,
    **dict(bad_lengths()),
    **dict(bad_codings()),
    **dict(bad_chunks()),
    **dict(bad_heads()),
}
LARGE = dict(too_much())
# Well-formed HTTP, whatever comes of it: it is read to its end, and what follows is answered.
DEEP = 100_000
JSON_ODDS = {
    "deep lists": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "a deep field": b'{"note":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "a deep unknown field": b'{"x":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep and open": b"[" * DEEP,
    "not UTF-8": b'{"note":"\xff"}',
    "half a surrogate": b'{"note":"\\ud800"}',
    "a huge number": b'{"note":' + b"9" * 10_000 + b"}",
    "a huge exponent": b'{"note":1e999999999}',
    "nothing": b"",
    "NUL": b"\x00",
    "two values": b"{}{}",
    "NaN": b'{"note":NaN}',
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder: Path = tmp_path_factory.mktemp("raw")
    async with running(folder, WITH_GATEWAY, is_split=False) as system:
        yield system


def listeners(system: System) -> dict[str, int]:
    """Return the ports of all kinds of listeners."""
    info = system.info
    urls = {"gateway": info.gateway, "service": info.services["notes"], "control": info.control}
    return {name: port_of(url) for name, url in urls.items()}


async def answers(system: System, cases: dict[str, bytes]) -> dict[tuple[str, str], bytes]:
    """Send each case with a follower to each listener; return what came until the end."""
    places, told = asyncio.Semaphore(AT_ONCE), {}

    async def ask(listener: str, port: int, name: str, raw: bytes) -> None:
        async with places:
            try:
                told[listener, name] = await exchange(port, raw + FOLLOWER)
            except TimeoutError:
                told[listener, name] = b"it waits for more"

    async with asyncio.TaskGroup() as group:
        for listener, port in listeners(system).items():
            for name, raw in cases.items():
                group.create_task(ask(listener, port, name, raw))
    return told


def test_the_table_is_large() -> None:
    """Two hundred cases at least, that differ."""
    assert len({*ODD.values(), *LARGE.values()}) >= 200


async def test_what_is_odd_is_refused_and_its_follower_never_run(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """One answer of 400, 417, 501 or 505, and the end; nothing is logged."""
    with caplog.at_level(logging.INFO):
        told = await answers(system, ODD)
    wrong = {
        where: answer[:200]
        for where, answer in told.items()
        if statuses(answer) not in ([400], [417], [431], [501], [505])
        or b"connection: close" not in answer.partition(b"\r\n\r\n")[0]
    }
    assert wrong == {}
    assert caplog.records == []


async def test_what_is_too_much_is_refused_and_its_follower_never_run(system: System) -> None:
    """One answer of 413 or 431, and the end."""
    told = await answers(system, LARGE)
    wrong = {w: a[:200] for w, a in told.items() if statuses(a) not in ([413], [431], [400])}
    assert wrong == {}


async def test_what_is_legal_is_read_to_its_end(system: System) -> None:
    """Whatever it is answered, so is what follows it."""
    told = await answers(system, ANSWERED)
    codes = {where: statuses(answer) for where, answer in told.items()}
    assert {where: got for where, got in codes.items() if len(got) != 2} == {}
    assert {status for got in codes.values() for status in got} <= ORDINARY


async def test_no_body_of_json_fails_anybody(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """Deep, broken or huge, it is 400, to a stranger 401, and the connection goes on."""
    cases = {
        name: POST + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        for name, body in JSON_ODDS.items()
    }
    token = b"Authorization: Bearer %b\r\n" % system.info.token.encode()
    authority = system.info.control.removeprefix("http://").encode()
    with caplog.at_level(logging.INFO):
        told = await answers(system, cases)
        for path in (b"call", b"faults", b"actions/x", b"credentials", b"registry/resolve"):
            for name, body in JSON_ODDS.items():
                head = b"POST /%b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\n\r\n"
                raw = head % (path, authority, token, len(body)) + body + FOLLOWER
                told[f"control {path.decode()}", name] = await exchange(
                    port_of(system.info.control), raw
                )
    codes = {where: statuses(answer) for where, answer in told.items()}
    assert {w: got for w, got in codes.items() if len(got) != 2 or got[0] not in ORDINARY} == {}
    assert {got[0] for (where, _), got in codes.items() if where == "gateway"} == {400}
    assert [record.getMessage() for record in caplog.records] == []
