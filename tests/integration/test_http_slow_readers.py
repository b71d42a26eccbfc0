"""Slow readers on real sockets: the kernel is asked what they have taken, on each event loop."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from real_loops import LONG, LOOPS, LongAnswers, MiB, on
from synchromesh import kernel
from synchromesh.http import HttpServer, Limits
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.usefixtures("http_way")

# As the defaults are, ten times faster: 20 kB/s and 10 s are 200 kB/s and 1 s.
LIMITS = Limits(write_s=1.0, write_most_s=5.0, write_bytes_min=8192)
PACE, FOR_S, GONE_S = 200_000, 4.0, 60.0
# A client's receive buffer, 0 for the kernel's own choice, and its segments, 0 for loopback's.
CLIENTS = ((0, 0), (0, 1400), (4096, 0), (4 * MiB, 0))
PATHS = (b"/whole", b"/parts")


@asynccontextmanager
async def asking(server: HttpServer) -> AsyncIterator[list[socket.socket]]:
    """Let clients with every kind of buffer ask for every answer."""
    loop, clients = asyncio.get_running_loop(), []
    try:
        for buffer, segment in CLIENTS:
            for path in PATHS:
                client = socket.socket()
                clients.append(client)
                client.setblocking(False)
                if buffer:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
                if segment:
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
                await loop.sock_connect(client, (server.host, server.port))
                await loop.sock_sendall(client, b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        yield clients
    finally:
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", LOOPS)
def test_who_reads_slowly_lives_and_who_has_stopped_is_gone(kind: str) -> None:
    """With small and large buffers on both sides, for answers that are whole and in parts."""

    async def main() -> None:
        answers = LongAnswers()
        server = HttpServer(
            answers, network=RealRuntime().network, streaming=answers, limits=LIMITS
        )
        await server.start()
        async with asking(server) as clients:
            began_s, came = time.monotonic(), dict.fromkeys(clients, 0)
            while (past_s := time.monotonic() - began_s) < FOR_S:
                for client in clients:
                    owed = int(PACE * past_s) - came[client]
                    try:
                        came[client] += len(client.recv(owed)) if owed > 0 else 0
                    except BlockingIOError:
                        continue
                await asyncio.sleep(0.02)
            assert len(server._connections) == len(clients)
            assert min(came.values()) > PACE * FOR_S / 2
            async with asyncio.timeout(GONE_S):
                while server._connections:
                    await asyncio.sleep(0.05)
        await server.close()

    on(kind, main)


class Silent(asyncio.Protocol):
    """Writes, and takes nothing."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("is_counted", [True, False], ids=["counted", "what is left"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_what_was_taken_grows_as_it_is_read(
    kind: str, family: str, is_counted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the kernel's count, or by what is left where it has none: in a sandbox, or of no TCP."""
    if not is_counted:
        monkeypatch.setattr(kernel, "_acked", lambda _: 0)

    async def main() -> None:
        loop, taken = asyncio.get_running_loop(), RealRuntime().network.taken
        if family == "unix":
            ours, theirs = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                theirs = socket.create_connection(listening.getsockname())
                ours, _ = listening.accept()
        ours.setblocking(False)
        theirs.setblocking(False)
        transport, protocol = await loop.create_connection(Silent, sock=ours)
        assert isinstance(protocol, Silent)
        total, came = LONG, 0
        transport.write(bytes(total))
        await asyncio.sleep(0.1)
        before = seen = taken(transport)
        assert transport.get_write_buffer_size() > 0
        while came < total // 2:
            came += len(await loop.sock_recv(theirs, 65536))
            now = taken(transport)
            assert now >= seen
            seen = now
        assert came - total // 4 <= seen - before <= came + total // 4
        transport.abort()
        await asyncio.sleep(0)
        assert taken(transport) <= 0 or seen > 0
        theirs.close()

    on(kind, main)
