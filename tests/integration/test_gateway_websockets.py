"""WebSockets through the gateway on real sockets, by a client and a server that are not ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from calls_fakes import System
from real_loops import ON_BOTH_LOOPS
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Forward, Gateway, GatewayEngine
from synchromesh.http import HttpServer
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import Tracer

pytestmark = [pytest.mark.anyio, ON_BOTH_LOOPS]

MiB = 1024 * 1024
CHAT = [Subprotocol("chat")]
GATEWAY = Gateway(
    routes=[Forward("ANY /app/{path...}", to="app", path="/{path...}", websocket=True, public=True)]
)


@asynccontextmanager
async def behind_a_gateway(
    handle: Callable[[ServerConnection], Awaitable[None]],
) -> AsyncIterator[tuple[str, HttpServer]]:
    """Serve a handler of WebSockets behind a gateway, and give the URL of it there."""

    def judged(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(404, "no such room\n") if request.path == "/none" else None

    runtime = RealRuntime()
    system = System("http", runtime)
    async with serve(
        handle, "127.0.0.1", 0, subprotocols=CHAT, process_request=judged, max_size=None
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        system.known.endpoints["app"] = [Endpoint("app-1", "app", f"http://127.0.0.1:{port}")]
        engine = GatewayEngine(
            GATEWAY,
            caller=system.caller("gateway"),
            tracer=Tracer("gateway", runtime, system.spans),
        )
        front = HttpServer(engine, network=runtime.network, streaming=engine)
        await front.start()
        try:
            yield f"ws://{front.host}:{front.port}/app", front
        finally:
            await front.close()
            await system.close()


def connected(url: str, compression: str | None = None) -> connect:
    """Connect; nothing of the environment counts."""
    return connect(url, compression=compression, subprotocols=CHAT, max_size=None, proxy=None)


async def echo(connection: ServerConnection) -> None:
    """Send back what comes."""
    async for message in connection:
        await connection.send(message)


@pytest.mark.parametrize("compression", [None, "deflate"])
async def test_megabytes_go_both_ways_at_once(compression: str | None) -> None:
    """64 MiB come back as they were sent, with and without an extension of the protocol."""
    count = 64 if compression is None else 8
    part = bytes(range(256)) * (MiB // 256)
    async with behind_a_gateway(echo) as (url, _):
        async with connected(f"{url}/live?room=7", compression) as client:
            assert client.subprotocol == "chat"

            async def send() -> None:
                for _ in range(count):
                    await client.send(part)

            sending = asyncio.create_task(send())
            async with asyncio.timeout(120.0):
                for _ in range(count):
                    assert await client.recv() == part
                await sending
                assert await (await client.ping()) >= 0
        assert client.close_code == 1000


async def test_how_a_server_closes_is_told() -> None:
    """Its code and reason arrive, behind all that it has sent."""

    async def leave(connection: ServerConnection) -> None:
        await connection.send("one")
        await connection.close(4001, "moved")

    async with behind_a_gateway(leave) as (url, _), asyncio.timeout(30.0):
        async with connected(f"{url}/live") as client:
            assert await client.recv() == "one"
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "moved")


async def test_a_no_is_told_to_the_client() -> None:
    """The answer of the server is the client's, with its body."""
    async with behind_a_gateway(echo) as (url, _), asyncio.timeout(30.0):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(f"{url}/none"):
                pass
        assert refused.value.response.status_code == 404
        assert refused.value.response.body == b"no such room\n"


async def test_a_client_that_vanishes_is_told_to_the_server() -> None:
    """Without a word of the protocol, as a phone does in a tunnel."""
    gone = asyncio.Event()

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        gone.set()

    async with behind_a_gateway(wait) as (url, _), asyncio.timeout(30.0):
        client = await connected(f"{url}/live")
        client.transport.abort()
        await gone.wait()


async def test_a_drain_ends_tunnels_in_time() -> None:
    """Within the ten seconds that a stop may take, and without being cut by the server."""
    async with (
        behind_a_gateway(echo) as (url, front),
        asyncio.timeout(60.0),
        connected(f"{url}/live") as client,
    ):
        draining = asyncio.create_task(front.drain(20.0))
        await client.send("still there")
        assert await client.recv() == "still there"
        assert await draining == 0
        with pytest.raises(ConnectionClosed):
            await client.recv()
