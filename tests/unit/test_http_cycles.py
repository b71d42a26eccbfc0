"""A connection that has closed leaves nothing to the garbage collector, on a real loop.

However it ends, on both sides: what a connection consists of is freed with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import cast

import pytest

from synchromesh.errors import CallError
from synchromesh.http import (
    HttpExchange,
    HttpPool,
    HttpRequest,
    HttpResponse,
    HttpServer,
    Limits,
    PoolLimits,
)
from synchromesh.http.body import Body
from synchromesh.runtime import RealRuntime
from unit.test_reference_cycles import cancelled, garbage_of

Work = Callable[[HttpServer], Awaitable[object]]

TRANSPORT = "_SelectorSocketTransport"
SOON_S = 0.02
LIMITS = Limits(
    body_bytes_max=1000,
    head_s=SOON_S,
    body_s=SOON_S,
    idle_s=SOON_S,
    write_s=SOON_S,
    linger_s=SOON_S,
)
FAR = Limits(body_bytes_max=1000)
GET = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc"
CHUNKED = b"POST %b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"
LONG = b"x" * 4_000_000


class Site:
    """A handler of every kind: at once, in a task, in parts, failing, by callbacks."""

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.path == "/slow":
            await asyncio.sleep(60.0)
        if request.path == "/soon":
            await asyncio.sleep(0.001)
        if request.path == "/bug":
            raise ValueError("a bug")
        if request.path == "/close":
            return HttpResponse(200, [("connection", "close")], b"bye")
        return HttpResponse(200, (), LONG if request.path == "/long" else request.body)

    def begin_exchange(self, exchange: HttpExchange) -> bool:
        if exchange.target == b"/fast":
            exchange.answer(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", b"ok")
        elif exchange.target == b"/later":
            loop = asyncio.get_running_loop()
            loop.call_later(
                0.001, exchange.answer, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", b"ok"
            )
        elif exchange.target == b"/fast/bug":
            raise ValueError("a bug")
        return exchange.target in (b"/fast", b"/later", b"/never")

    def body_max(self, _method: str, path: str, pairs: object) -> int | None:
        return 100_000 if path.startswith("/parts") else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        assert request.stream is not None
        if request.path == "/parts/bug":
            raise ValueError("a bug")
        if request.path == "/parts/unread":
            yield HttpResponse(200, (), b"unread")
            return
        if request.path == "/parts/echo":
            yield HttpResponse(200, (), stream=request.stream)
            return
        while await request.stream.read():
            pass
        yield HttpResponse(200, (), b"read")


async def said(server: HttpServer, *parts: bytes, is_left: bool = True) -> bytes:
    """Send parts to a server, a moment apart, and return all that it answers.

    The client closes its side (`is_left`), or waits until the server does.
    """
    reader, writer = await asyncio.open_connection(server.host, server.port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.005)
    answer = b""
    with suppress(ConnectionError):
        if not is_left:
            answer = await reader.read()
        elif parts:
            answer = await asyncio.wait_for(reader.read(100), 0.01)
    writer.transport.abort()
    return answer


async def left_behind(server: HttpServer, *parts: bytes) -> None:
    """Send parts to a server, and leave without reading."""
    _, writer = await asyncio.open_connection(server.host, server.port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(0.005)
    writer.transport.abort()
    await asyncio.sleep(0.005)


async def refused_in_parts(server: HttpServer) -> None:
    """Send a chunk that is none, in the middle of a streamed body."""
    await said(server, CHUNKED % b"/parts/read", b"no chunk\r\n", is_left=False)


async def drained(server: HttpServer) -> None:
    """Let a server with all kinds of connections drain."""
    other = HttpServer(Site(), network=RealRuntime().network, limits=FAR, streaming=Site())
    await other.start()
    works = [
        said(other, *parts, is_left=False)
        for parts in ([], [GET % b"/soon"], [GET % b"/slow"], [CHUNKED % b"/parts/read"])
    ]
    tasks = [asyncio.ensure_future(work) for work in works]
    await asyncio.sleep(0.02)
    await other.drain(0.01)
    await asyncio.wait(tasks)


async def garbage_of_ours(work: Callable[[], Awaitable[object]]) -> Counter[str]:
    """Return what some work leaves to the collector beside asyncio's own: each of its transports.

    A transport of asyncio keeps a bound method of itself.
    """
    found, alone = await garbage_of(work), await garbage_of(bare_connection)
    count = found[TRANSPORT] / max(1, alone[TRANSPORT])
    return found - Counter({name: round(each * count) for name, each in alone.items()})


async def bare_connection() -> None:
    """Connect without anything of ours, and leave."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.transport.abort()
    server.close()
    await asyncio.sleep(0.005)


def garbage_at_server(work: Work, limits: Limits, *, is_fast: bool) -> Counter[str]:
    """Return what some work with a server leaves to the collector, on both sides."""

    async def main() -> Counter[str]:
        site = Site()
        network = RealRuntime().network
        server = HttpServer(site, network=network, limits=limits, streaming=site, is_fast=is_fast)
        await server.start()
        try:
            return await garbage_of_ours(partial(work, server))
        finally:
            await server.close()

    return asyncio.run(main())


def leaves(*parts: bytes) -> Work:
    return lambda server: left_behind(server, *parts)


def waits(*parts: bytes) -> Work:
    return lambda server: said(server, *parts, is_left=False)


ENDS: dict[str, tuple[Work, Limits]] = {
    "unused": (leaves(), FAR),
    "fast, left": (leaves(GET % b"/fast"), FAR),
    "later, left": (leaves(GET % b"/later"), FAR),
    "never, left": (leaves(GET % b"/never"), FAR),
    "task, left": (leaves(GET % b"/soon"), FAR),
    "slow task, left": (leaves(GET % b"/slow"), FAR),
    "pipelined, left": (leaves((GET % b"/slow") * 20), FAR),
    "in a head, left": (leaves(b"GET /fast HTTP/1.1\r\nhost: "), FAR),
    "in a body, left": (leaves((POST % b"/soon")[:-1]), FAR),
    "in a streamed body, left": (leaves(CHUNKED % b"/parts/read"), FAR),
    "in a streamed echo, left": (leaves(CHUNKED % b"/parts/echo"), FAR),
    "unread answer, left": (leaves(GET % b"/long"), FAR),
    "unread answer, stalled": (waits(GET % b"/long"), LIMITS),
    "closed by the handler": (waits(GET % b"/close"), FAR),
    "handler's bug": (leaves(GET % b"/bug", GET % b"/fast/bug"), FAR),
    "streamed, whole": (leaves(CHUNKED % b"/parts/read" + b"0\r\n\r\n"), FAR),
    "streamed, handler's bug": (waits(CHUNKED % b"/parts/bug"), FAR),
    "streamed, not read": (waits(CHUNKED % b"/parts/unread"), FAR),
    "streamed, refused": (refused_in_parts, FAR),
    "unused, timed out": (waits(), LIMITS),
    "idle, timed out": (waits(GET % b"/fast"), LIMITS),
    "in a head, timed out": (waits(b"GET /fast HTTP/1.1\r\nhost: "), LIMITS),
    "in a body, timed out": (waits((POST % b"/soon")[:-1]), LIMITS),
    "in a streamed body, timed out": (waits(CHUNKED % b"/parts/read"), LIMITS),
    "no HTTP": (waits(b"hello\r\n\r\n"), LIMITS),
    "no host": (waits(b"GET / HTTP/1.1\r\n\r\n"), LIMITS),
    "too many fields": (
        waits(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 101 + b"\r\n"),
        LIMITS,
    ),
    "body too long": (
        waits(b"POST /soon HTTP/1.1\r\nhost: x\r\ncontent-length: 1001\r\n\r\n"),
        LIMITS,
    ),
    "chunks too long": (
        waits(CHUNKED % b"/soon", b"%x\r\n" % 2000 + b"x" * 2000),
        LIMITS,
    ),
    "upgrade": (waits(b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\n\r\n"), LIMITS),
    "drained": (drained, FAR),
}


@pytest.mark.parametrize("is_fast", [True, False], ids=["fast", "slow"])
@pytest.mark.parametrize(("work", "limits"), ENDS.values(), ids=ENDS)
def test_a_server_connection_leaves_none(work: Work, limits: Limits, *, is_fast: bool) -> None:
    """By the client, by the server, by a limit of time or size, and by what is no request."""
    assert garbage_at_server(work, limits, is_fast=is_fast) == {}


# -- the pool ------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
PART = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\npart"
HANGS, LEAVES = b"", None
POOL_LIMITS = PoolLimits(connections_max=1, body_bytes_max=1000, stall_s=SOON_S)


class Scripted(asyncio.Protocol):
    """A server that answers what it is told to, or hangs; None closes the connection."""

    says: bytes | None = OK
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, _data: bytes) -> None:
        if self.says is not None:
            self.transport.write(self.says)
        if self.says is None or self.says.startswith(PART):
            self.transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        del self.transport


@asynccontextmanager
async def scripted(says: bytes | None) -> AsyncIterator[int]:
    """Listen, and say the same to everybody."""
    made = type("Made", (Scripted,), {"says": says})
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def whole_body() -> Body:
    body = Body(length=3, on_room=lambda: None)
    body.feed(b"abc")
    body.end()
    return body


def broken_body() -> Body:
    """Return a body that breaks off."""
    body = Body(length=9, on_room=lambda: None)
    body.feed(b"abc")
    asyncio.get_running_loop().call_later(0.002, body.fail, CallError("it broke off"))
    return body


Use = Callable[[HttpPool, int], Awaitable[object]]


async def request(pool: HttpPool, port: int, timeout_s: float = 5.0) -> object:
    return await pool.request("127.0.0.1", port, "GET", "/", timeout_s=timeout_s)


async def two_requests(pool: HttpPool, port: int) -> object:
    """Ask for one more connection than there may be."""
    return await asyncio.gather(
        request(pool, port, SOON_S), request(pool, port, SOON_S), return_exceptions=True
    )


async def given_up(pool: HttpPool, port: int) -> None:
    await cancelled(lambda: request(pool, port))


async def expired(pool: HttpPool, port: int) -> object:
    return await request(pool, port, SOON_S)


def streamed(
    pool: HttpPool, port: int, body: Body | None
) -> AbstractAsyncContextManager[HttpResponse]:
    return pool.stream(
        "127.0.0.1", port, "POST" if body else "GET", "/", body=body, timeout_s=SOON_S
    )


async def read(pool: HttpPool, port: int) -> None:
    """Stream an answer to its end."""
    async with streamed(pool, port, None) as response:
        assert response.stream is not None
        while await response.stream.read():
            pass


async def sent(pool: HttpPool, port: int) -> None:
    """Stream a request, and read its answer."""
    async with streamed(pool, port, whole_body()) as response:
        assert response.stream is not None
        while await response.stream.read():
            pass


async def unread(pool: HttpPool, port: int) -> None:
    """Leave an answer before its end."""
    async with streamed(pool, port, None) as response:
        assert response.stream is not None
        await response.stream.read()


async def failing_reader(pool: HttpPool, port: int) -> None:
    """Fail while an answer is read."""
    async with streamed(pool, port, None):
        raise ValueError("a bug")


async def sent_in_vain(pool: HttpPool, port: int) -> None:
    """Send a body that breaks off."""
    async with streamed(pool, port, broken_body()):
        pass


async def stream_given_up(pool: HttpPool, port: int) -> None:
    await cancelled(lambda: unending(pool, port))


async def unending(pool: HttpPool, port: int) -> None:
    async with streamed(pool, port, None) as response:
        assert response.stream is not None
        await response.stream.read()
        await asyncio.sleep(60.0)


async def by_nobody(pool: HttpPool, port: int) -> None:
    """Send to where nobody listens, and once the pool is closed."""
    with suppress(CallError):
        await request(pool, 1)
    with suppress(CallError):
        async with streamed(pool, 1, None):
            pass
    await pool.close()
    await request(pool, port)


SAID = {
    "answers": OK,
    "hangs": HANGS,
    "leaves": LEAVES,
    "breaks off": PART,
    "says too much": OK + OK,
    "is no server": b"hello\r\n\r\n",
    "is too long": b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n" + b"x" * 1001,
    "upgrades": b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunks wrongly": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n!",
}
USES: list[Use] = [
    expired,
    two_requests,
    given_up,
    read,
    sent,
    unread,
    failing_reader,
    sent_in_vain,
    stream_given_up,
    by_nobody,
]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("says", SAID.values(), ids=SAID)
def test_a_connection_of_the_pool_leaves_none(says: bytes | None, use: Use) -> None:
    """Whatever the server says, whole and in parts, and however its caller leaves."""

    async def used(port: int) -> None:
        async with HttpPool(network=RealRuntime().network, limits=POOL_LIMITS) as pool:
            await use(pool, port)

    async def main() -> Counter[str]:
        async with scripted(says) as port:
            return await garbage_of_ours(lambda: used(port))

    assert asyncio.run(main()) == {}
