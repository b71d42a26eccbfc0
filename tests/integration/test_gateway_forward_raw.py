"""Raw requests on real sockets through a gateway that passes them on: nothing odd gets through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from calls_fakes import System
from integration.test_http_raw import ANSWERED, FOLLOWER, REFUSED, Recorder, exchange, statuses
from real_loops import ON_BOTH_LOOPS
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Forward, Gateway, GatewayEngine
from synchromesh.http import HttpServer, Limits
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import Tracer

pytestmark = [pytest.mark.anyio, ON_BOTH_LOOPS, pytest.mark.usefixtures("http_way")]

GATEWAY = Gateway(
    routes=[
        Forward("POST /e", to="store", public=True, body_max="4B"),
        Forward("GET /e", to="store", public=True),
        Forward("GET /{name}", to="store", public=True),
    ]
)


class Passed(NamedTuple):
    """What came back, and what the upstream was given whole."""

    answer: bytes
    seen: list[tuple[str, bytes]]


async def passed(raw: bytes) -> Passed:
    """Send bytes to a gateway before an upstream that keeps what it is given."""
    upstream = Recorder()
    async with serving(upstream) as server:
        return Passed(await exchange(server.port, raw), upstream.seen)


@asynccontextmanager
async def serving(upstream: Recorder, *, port: int = 0) -> AsyncIterator[HttpServer]:
    """Serve a gateway before an upstream, or before what listens on `port`; on real sockets."""
    runtime = RealRuntime()
    system = System("http", runtime)
    behind = HttpServer(upstream, network=runtime.network)
    await behind.start()
    url = f"http://127.0.0.1:{port or behind.port}"
    system.known.endpoints["store"] = [Endpoint("store-1", "store", url)]
    engine = GatewayEngine(
        GATEWAY,
        caller=system.caller("gateway"),
        tracer=Tracer("gateway", runtime, system.spans),
    )
    limits = Limits(idle_s=0.05, linger_s=0.05)
    server = HttpServer(engine, network=runtime.network, limits=limits, streaming=engine)
    await server.start()
    try:
        yield server
    finally:
        await server.close()
        await system.close()
        await behind.close()


@pytest.mark.parametrize("raw", ANSWERED.values(), ids=ANSWERED)
async def test_what_is_legal_is_passed_on_once_and_so_is_its_follower(raw: bytes) -> None:
    """One request in is one request out, re-serialised, and its answer comes back (G3)."""
    answer, seen = await passed(raw + FOLLOWER)
    assert statuses(answer) == [200, 200]
    assert seen == [("/e", b"abc"), ("/e?second", b"")]


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
async def test_what_is_odd_is_never_given_whole_to_an_upstream(raw: bytes) -> None:
    """It ends its connection with one 400 or 501; neither it nor its follower is passed on (G3)."""
    answer, seen = await passed(raw + FOLLOWER)
    assert statuses(answer) in ([400], [501])
    assert seen == []
    assert b"connection: close" in answer.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde",
        b"POST /e HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    ],
)
async def test_what_is_too_long_is_never_given_whole_to_an_upstream(raw: bytes) -> None:
    """Past its route's body_max it is 413 and closes."""
    answer, seen = await passed(raw + FOLLOWER)
    assert statuses(answer) == [413]
    assert seen == []


async def test_a_client_that_half_closes_in_its_body_is_gone() -> None:
    """What was cut at the client is cut at the upstream."""
    upstream = Recorder()
    async with serving(upstream) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /e HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nabc")
        await writer.drain()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        answer = await exchange(server.port, FOLLOWER)
        assert statuses(answer) == [200]
    assert upstream.seen == [("/e?second", b"")]


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("told", [b"content-length: 9\r\n", b"transfer-encoding: chunked\r\n"])
async def test_an_upstream_that_dies_resets_the_client(version: bytes, told: bytes) -> None:
    """Half an answer ends by a reset, also where an orderly end would be the end of the body."""

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + told + b"\r\n3\r\nabc\r\n")
        await writer.drain()
        await came.wait()
        writer.transport.abort()

    came = asyncio.Event()
    upstream = await asyncio.start_server(dies, "127.0.0.1", 0)
    async with serving(Recorder(), port=upstream.sockets[0].getsockname()[1]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /e HTTP/" + version + b"\r\nHost: x\r\n\r\n")
        assert b"abc" in await reader.readuntil(b"abc")
        came.set()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
    upstream.close()
