"""Clients that reset their connections, as health checks do, leave nothing in the log."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct

import pytest

from calls_fakes import System
from real_loops import LOOPS, LongAnswers, on
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Forward, Gateway, GatewayEngine
from synchromesh.http import HttpServer
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import Tracer

pytestmark = pytest.mark.usefixtures("http_way")

CLOSE = b"\r\nhost: x\r\nconnection: close\r\n\r\n"
# What is sent, and how much is read of the answer before the reset.
CLIENTS = {
    "before a request": (b"", 0),
    "an answer that closes": (b"GET /up/a HTTP/1.1" + CLOSE, 1),
    "unread": (b"GET /up/a HTTP/1.1" + CLOSE, 0),
    "HTTP/1.0, as HAProxy asks": (b"OPTIONS / HTTP/1.0\r\n\r\n", 1),
    "kept alive": (b"GET /up/a HTTP/1.1\r\nhost: x\r\n\r\n", 1),
    "in a head": (b"GET /up/a HT", 0),
    "in a body": (b"POST /up/a HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc", 0),
    "in chunks": (
        b"POST /up/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc",
        0,
    ),
    "refused": (b"GET /up/a HTTP/1.1\r\n\r\n", 1),
    "in a long answer": (b"GET /up/parts HTTP/1.1" + CLOSE, 1),
    "pipelined": (b"GET /up/a HTTP/1.1\r\nhost: x\r\n\r\n" * 3 + b"GET /up/a HTTP/1.1" + CLOSE, 1),
}
GATEWAY = Gateway(
    routes=[
        Forward("GET /up/{name}", to="store", path="/{name}", public=True),
        Forward("POST /up/{name}", to="store", path="/{name}", public=True),
    ]
)


async def reset(port: int, sent: bytes, read: int) -> None:
    """Connect, send, read some of the answer, and end the connection by a reset."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await loop.sock_connect(client, ("127.0.0.1", port))
        await loop.sock_sendall(client, sent)
        if read:
            assert await loop.sock_recv(client, read) == b"H"


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize(("sent", "read"), CLIENTS.values(), ids=CLIENTS)
def test_a_reset_leaves_nothing_in_the_log(
    kind: str, sent: bytes, read: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At a server, and at a gateway before it, at whatever point it comes."""

    async def main() -> None:
        runtime = RealRuntime()
        system, store = System("http", runtime), LongAnswers()
        behind = HttpServer(store, network=runtime.network, streaming=store)
        await behind.start()
        system.known.endpoints["store"] = [Endpoint("store-1", "store", behind.url)]
        caller = system.caller("gateway")
        tracer = Tracer("gateway", runtime, system.spans)
        engine = GatewayEngine(GATEWAY, caller=caller, tracer=tracer)
        server = HttpServer(engine, network=runtime.network, streaming=engine)
        await server.start()
        for port in (server.port, behind.port):
            for _ in range(5):
                await reset(
                    port, sent.replace(b"/up", b"" if port == behind.port else b"/up"), read
                )
        async with asyncio.timeout(30.0):
            while server._connections:
                await asyncio.sleep(0.01)
        await server.close()
        await system.close()
        await behind.close()

    with caplog.at_level(logging.INFO):
        on(kind, main)
    assert [record.getMessage() for record in caplog.records] == []
