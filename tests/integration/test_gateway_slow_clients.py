"""Clients that send or read slowly, on real sockets, before a healthy upstream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bodies import long_body
from calls_fakes import System
from real_loops import ON_BOTH_LOOPS
from synchromesh.calls import Policies
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Forward, Gateway, GatewayEngine
from synchromesh.http import HttpPool, HttpRequest, HttpResponse, HttpServer
from synchromesh.resilience import BreakerState, LimitOptions, Policy
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import Tracer

pytestmark = [pytest.mark.anyio, ON_BOTH_LOOPS, pytest.mark.usefixtures("http_way")]

MiB = 1024 * 1024
SLOW, HEALTHY = 64, 20
# Fewer at once than there are slow clients.
POLICIES = Policies(default=Policy(limit=LimitOptions(8)))
GATEWAY = Gateway(
    routes=[
        Forward("GET /up/{name}", to="store", path="/{name}", public=True),
        Forward("POST /up/{name}", to="store", path="/{name}", public=True),
    ],
    in_flight_max=8,
)


class Store:
    """Answers /big with 64 MiB, which is more than any buffer on the way, and all else at once."""

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (), b"quick")

    def body_max(self, method: str, path: str, pairs: object) -> int | None:
        return 0 if path == "/big" else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), stream=long_body(64 * MiB))


@pytest.mark.parametrize(
    "slow",
    [
        b"GET /up/big HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /up/sink HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\na",
        b"POST /up/sink HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 100_000,
    ],
    ids=["read", "send", "upload"],
)
async def test_others_go_on_beside_slow_clients(slow: bytes) -> None:
    """Sixty-four that hardly read, or send, and everybody else is answered 200."""
    runtime = RealRuntime()
    system, store = System("http", runtime), Store()
    behind = HttpServer(store, network=runtime.network, streaming=store)
    await behind.start()
    system.known.endpoints["store"] = [Endpoint("store-1", "store", behind.url)]
    caller = system.caller("gateway", POLICIES)
    engine = GatewayEngine(GATEWAY, caller=caller, tracer=Tracer("gateway", runtime, system.spans))
    server = HttpServer(engine, network=runtime.network, streaming=engine)
    await server.start()
    loop, clients = asyncio.get_running_loop(), []
    try:
        for _ in range(SLOW):
            client = socket.socket()
            clients.append(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, slow)
            if slow.startswith(b"GET"):
                assert await loop.sock_recv(client, 12) == b"HTTP/1.1 200"
        async with HttpPool(network=runtime.network) as pool:
            answers = [
                await pool.request("127.0.0.1", server.port, "GET", "/up/a", timeout_s=60)
                for _ in range(HEALTHY)
            ]
        assert [answer.status for answer in answers] == [200] * HEALTHY
        assert caller.edges["store"].state is BreakerState.CLOSED
        assert caller.edges["store"].failures == 0
    finally:
        for client in clients:
            client.close()
        await server.close()
        await system.close()
        await behind.close()
