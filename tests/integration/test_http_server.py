"""Server and pool together on real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from real_loops import ON_BOTH_LOOPS
from synchromesh.errors import ConfigError, ConnectFailed, ConnectionLost
from synchromesh.http import (
    AsgiHandler,
    Handler,
    HttpPool,
    HttpRequest,
    HttpResponse,
    HttpServer,
    Limits,
)
from synchromesh.network import HandedNetwork
from synchromesh.runtime import RealRuntime

pytestmark = [pytest.mark.anyio, ON_BOTH_LOOPS, pytest.mark.usefixtures("http_way")]

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def serving(handler: Handler, limits: Limits | None = None) -> AsyncIterator[HttpServer]:
    server = HttpServer(handler, network=RealRuntime().network, limits=limits or Limits())
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(200, [("x-peer", request.peer)], request.body)


async def test_calls_share_one_connection() -> None:
    """Bodies of every size go there and back over one kept connection."""
    peers = set()
    async with serving(echo) as server, HttpPool(network=RealRuntime().network) as pool:
        for size in (0, 1, 70_000, 1_000_000):
            body = bytes(size)
            response = await pool.request(
                "127.0.0.1", server.port, "POST", "/a", body=body, timeout_s=10.0
            )
            assert response.body == body
            peers.add(response.headers.get("x-peer"))
    assert len(peers) == 1


async def test_a_body_that_is_too_large_is_answered_and_not_reset() -> None:
    """A client that is still sending sees the 413."""
    limits = Limits(body_bytes_max=1000)
    async with serving(echo, limits) as server, HttpPool(network=RealRuntime().network) as pool:
        response = await pool.request(
            "127.0.0.1", server.port, "POST", "/", body=bytes(5_000_000), timeout_s=10.0
        )
        assert response.status == 413
        again = await pool.request("127.0.0.1", server.port, "GET", "/", timeout_s=10.0)
        assert again.status == 200


async def test_a_taken_port_says_what_to_do() -> None:
    """The error names host and port."""
    async with serving(echo) as server:
        second = HttpServer(echo, network=RealRuntime().network)
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{server.port}: .*port 0"):
            await second.start(port=server.port)


async def test_a_closed_port_refuses() -> None:
    """Nothing listens: nothing was sent."""
    async with serving(echo) as server, HttpPool(network=RealRuntime().network) as pool:
        port = server.port
        await server.close()
        with pytest.raises(ConnectFailed):
            await pool.request("127.0.0.1", port, "GET", "/", timeout_s=10.0)


async def test_a_client_that_leaves_cancels_its_handler() -> None:
    """A real socket that closes is noticed while the handler waits."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def wait(_request: HttpRequest) -> HttpResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return HttpResponse(200)

    async with serving(wait) as server, HttpPool(network=RealRuntime().network) as pool:
        call = asyncio.ensure_future(
            pool.request("127.0.0.1", server.port, "GET", "/", timeout_s=None)
        )
        await begun.wait()
        call.cancel()
        async with asyncio.timeout(5.0):
            await ended.wait()


async def test_drain_answers_what_runs_and_cuts_300_slow_clients() -> None:
    """Accepted requests are answered, slow heads and bodies and readers are cut at the limit."""
    release = asyncio.Event()

    async def handle(request: HttpRequest) -> HttpResponse:
        if request.target == "/big":
            return HttpResponse(200, (), bytes(20_000_000))
        await release.wait()
        return HttpResponse(200, (), b"done")

    async with serving(handle) as server, HttpPool(network=RealRuntime().network) as pool:
        calls = [
            asyncio.ensure_future(
                pool.request("127.0.0.1", server.port, "GET", "/", timeout_s=10.0)
            )
            for _ in range(20)
        ]
        slow: list[asyncio.StreamWriter] = []
        for start in (b"GET / HT", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\na"):
            for _ in range(150):
                _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(start)
                slow.append(writer)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.read(1)
        draining = asyncio.ensure_future(server.drain(0.3))
        release.set()
        assert [(await call).body for call in calls] == [b"done"] * 20
        async with asyncio.timeout(5.0):
            assert await draining == 301
        for peer in [*slow, writer]:
            peer.transport.abort()


@pytest.mark.parametrize("turns", range(6))
async def test_a_socket_that_changes_hands_loses_no_request(turns: int) -> None:
    """Who drains answers what it has accepted, at whatever step; the next takes the rest."""
    with socket.create_server(("127.0.0.1", 0)) as handed:
        servers = [HttpServer(echo, network=HandedNetwork(os.dup(handed.fileno()))) for _ in "ab"]
        await servers[0].start()
        port = servers[0].port
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            draining = asyncio.ensure_future(servers[0].drain(5.0))
            await asyncio.sleep(0.05)
            await servers[1].start("", 0)
            assert servers[1].port == port
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(5.0):
                await loop.sock_sendall(client, GET)
                assert (await loop.sock_recv(client, 100)).startswith(b"HTTP/1.1 200 ")
        assert await draining == 0
        assert await servers[1].drain(5.0) == 0


async def test_a_server_that_dies_leaves_the_outcome_unknown() -> None:
    """A connection cut under a call is no refusal."""

    async def die(_request: HttpRequest) -> HttpResponse:
        asyncio.get_running_loop().call_soon(lambda: closing.append(asyncio.ensure_future(end())))
        await asyncio.Event().wait()
        return HttpResponse(200)

    async def end() -> None:
        await server.close()

    closing: list[asyncio.Future[None]] = []
    async with serving(die) as server, HttpPool(network=RealRuntime().network) as pool:
        with pytest.raises(ConnectionLost):
            await pool.request("127.0.0.1", server.port, "GET", "/", timeout_s=10.0)
        await closing[0]


async def test_an_asgi_application_is_mounted() -> None:
    """Requests reach the application, and one that fails is answered 500."""

    async def app(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["path"] == "/fail":
            raise ValueError("s3cret")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    async with (
        AsgiHandler(app) as handler,
        serving(handler) as server,
        HttpPool(network=RealRuntime().network) as pool,
    ):
        fine = await pool.request("127.0.0.1", server.port, "GET", "/a%20b", timeout_s=10.0)
        assert (fine.status, fine.body) == (200, b"/a b")
        failed = await pool.request("127.0.0.1", server.port, "GET", "/fail", timeout_s=10.0)
        assert failed.status == 500
        assert b"s3cret" not in failed.body


async def test_a_pipelined_request_sees_no_context_variable_of_the_one_before() -> None:
    """Requests of one connection share nothing that a handler sets in its context."""
    seen: list[str] = []
    whose: ContextVar[str] = ContextVar("whose", default="nobody")

    async def handler(request: HttpRequest) -> HttpResponse:
        seen.append(whose.get())
        whose.set("the first")
        await asyncio.sleep(0)
        return HttpResponse(200)

    async with serving(handler) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(GET * 3)
        for _ in range(3):
            await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert seen == ["nobody"] * 3
