"""A TLS stream over real sockets: slow readers, ends, and what is no TLS; on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from certificates import issue
from real_loops import LOOPS
from synchromesh.errors import ConnectFailed, ConnectionLost
from synchromesh.http import Headers, HttpPool, HttpRequest, HttpResponse, HttpServer
from synchromesh.network import RealNetwork
from synchromesh.system import loop_factory
from synchromesh.tls import ClientContexts, ClientFiles, ServerFiles, ServerTls
from synchromesh.tls_stream import Handshakes, TlsStream

WITHIN_S = 60.0
MiB = 1 << 20


def served(
    folder: Path,
    loop: str,
    main: Callable[[HttpServer, ssl.SSLContext], Coroutine[Any, Any, None]],
) -> None:
    """Run a server that echoes, or answers with as many bytes as it is asked for."""
    ca = issue(folder, "ca")
    issue(folder, "gate", by=ca)
    tls = ServerTls(ServerFiles(folder / "gate.pem", folder / "gate.key"), now_s=0.0)
    client = ssl.create_default_context(cafile=str(ca.pem))

    async def handle(request: HttpRequest) -> HttpResponse:
        if request.method == "POST":
            return HttpResponse(200, body=request.body)
        return HttpResponse(200, body=bytes(int(request.path[1:])))

    async def play() -> None:
        server = HttpServer(handle, network=RealNetwork(server=tls.context))
        await server.start()
        async with asyncio.timeout(WITHIN_S):
            await main(server, client)
        await server.drain(1.0)

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(play())


@pytest.mark.parametrize("loop", LOOPS)
def test_a_pool_and_a_server_speak_tls(tmp_path: Path, loop: str) -> None:
    """Bodies of all sizes, both ways, over kept connections."""

    async def main(server: HttpServer, _: ssl.SSLContext) -> None:
        files = {(server.host, server.port): ClientFiles(tmp_path / "ca.pem")}
        network = RealNetwork(client=ClientContexts(files))
        async with HttpPool(network=network) as pool:

            async def echoed(body: bytes) -> None:
                answer = await pool.request(
                    server.host, server.port, "POST", "/", body=body, timeout_s=WITHIN_S
                )
                assert answer.body == body

            for size in (0, 1, 16_384, 16_385, 500_000):
                await asyncio.gather(*(echoed(bytes([n]) * size) for n in range(5)))
        other = HttpPool(network=RealNetwork(client=ClientContexts()))
        with pytest.raises(ConnectFailed, match="certificate"):
            await other.request(server.host, server.port, "GET", "/1", timeout_s=WITHIN_S)
        await other.close()

    served(tmp_path, loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_slow_reader_gets_the_last_answer_whole(tmp_path: Path, loop: str) -> None:
    """Also where the connection is to be closed after it, and its end is a close_notify."""
    size = 8 * MiB

    async def main(server: HttpServer, client: ssl.SSLContext) -> None:
        def read() -> bytes:
            got = bytearray()
            with (
                socket.create_connection((server.host, server.port), timeout=WITHIN_S) as plain,
                client.wrap_socket(plain, server_hostname=server.host) as secured,
            ):
                secured.sendall(b"GET /%d HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % size)
                pause = threading.Event()
                while data := secured.recv(65_536):  # an end without close_notify would raise
                    got += data
                    pause.wait(0.005)
            return bytes(got)

        got = await asyncio.to_thread(read)
        assert len(got.partition(b"\r\n\r\n")[2]) == size

    served(tmp_path, loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_end_in_the_middle_harms_nobody_else(tmp_path: Path, loop: str) -> None:
    """No TLS, half a handshake, a cut after it, and bytes that are no record."""

    async def main(server: HttpServer, client: ssl.SSLContext) -> None:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b""):
            reader, writer = await asyncio.open_connection(server.host, server.port)
            writer.write(said)
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

        def cut() -> None:
            with socket.create_connection((server.host, server.port), timeout=WITHIN_S) as plain:
                secured = client.wrap_socket(plain, server_hostname=server.host)
                secured.sendall(b"GET /9000000 HTTP/1.1\r\nhost: x\r\n\r\n")
                secured.recv(10)
                below = socket.socket(fileno=secured.detach())
                below.sendall(b"this is no record" * 10)
                below.close()

        await asyncio.to_thread(cut)
        reader, writer = await asyncio.open_connection(server.host, server.port, ssl=client)
        writer.write(b"GET /3 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()

    served(tmp_path, loop, main)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_body_that_comes_in_parts_is_held_back_and_goes_on(tmp_path: Path, loop: str) -> None:
    """A server that reads slowly holds a client back, and loses nothing of what was decrypted."""
    size, taken = 6 * MiB, 0

    class Slow:
        """Answers with how much came, and takes a turn for each part."""

        async def __call__(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse(500)

        def body_max(self, method: str, path: str, pairs: object) -> int:
            return size

        @contextlib.asynccontextmanager
        async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
            nonlocal taken
            assert request.stream is not None
            while part := await request.stream.read():
                taken += len(part)
                await asyncio.sleep(0.002)
            yield HttpResponse(200, body=b"%d" % taken)

    issue(tmp_path, "gate")
    tls = ServerTls(ServerFiles(tmp_path / "gate.pem", tmp_path / "gate.key"), now_s=0.0)

    async def play() -> None:
        slow = Slow()
        network = RealNetwork(server=tls.context)
        server = HttpServer(slow, network=network, streaming=slow)
        await server.start()
        contexts = ClientContexts({(server.host, server.port): ClientFiles(tmp_path / "gate.pem")})
        async with asyncio.timeout(WITHIN_S), HttpPool(network=RealNetwork(client=contexts)) as p:
            answer = await p.request(
                server.host, server.port, "POST", "/", Headers([]), bytes(size), timeout_s=WITHIN_S
            )
        assert answer.body == b"%d" % size
        await server.drain(1.0)

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        runner.run(play())


def test_handshakes_are_bounded_by_address(tmp_path: Path) -> None:
    """Who holds most of them loses its oldest; others are served, and places come back."""
    ca = issue(tmp_path, "ca")
    issue(tmp_path, "gate", by=ca, host="localhost")
    tls = ServerTls(ServerFiles(tmp_path / "gate.pem", tmp_path / "gate.key"), now_s=0.0)
    client = ssl.create_default_context(cafile=str(ca.pem))

    async def play() -> None:
        loop = asyncio.get_running_loop()
        made = Handshakes(asyncio.Protocol, tls.context, handshake_s=WITHIN_S, most=8)
        server = await loop.create_server(made, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with asyncio.timeout(WITHIN_S), server:
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            for reader, _ in held[:12]:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""  # the oldest of the greediest
            assert made._count == 8
            _, other = await asyncio.open_connection(
                "127.0.0.1", port, ssl=client, server_hostname="localhost",
                local_addr=("127.0.0.2", 0),
            )  # fmt: skip
            for _, writer in [*held, (None, other)]:
                writer.close()
            while made._count:
                await asyncio.sleep(0.01)
        assert made._under_way == {}

    asyncio.run(play())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_an_authority_that_was_withdrawn_admits_nobody_by_an_old_session(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Sessions are those of the files that they were made by."""
    ca, old, new = (issue(tmp_path, name) for name in ("ca", "old", "new"))
    issue(tmp_path, "gate", by=ca)
    shop = issue(tmp_path, "shop", by=old)
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(old.pem.read_bytes())
    tls = ServerTls(ServerFiles(tmp_path / "gate.pem", tmp_path / "gate.key", trusted), now_s=0.0)
    client = ssl.create_default_context(cafile=str(ca.pem))
    client.load_cert_chain(shop.pem, shop.key)
    client.maximum_version = version
    sessions: list[ssl.SSLSession | None] = [None]

    def asked(address: tuple[str, int]) -> bytes:
        got = b""
        with (
            socket.create_connection(address, timeout=WITHIN_S) as plain,
            client.wrap_socket(plain, server_hostname=address[0], session=sessions[0]) as secured,
        ):
            secured.sendall(b"GET /1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            while data := secured.recv(65_536):
                got += data
            sessions[0] = secured.session
        return got

    async def handle(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, body=b"x")

    async def play() -> None:
        server = HttpServer(handle, network=RealNetwork(server=tls.context))
        await server.start()
        address = (server.host, server.port)
        for _ in range(2):
            assert b" 200 " in await asyncio.to_thread(asked, address)
        new_file = tmp_path / "clients.new"
        new_file.write_bytes(new.pem.read_bytes())
        new_file.replace(trusted)
        assert tls.refresh(now_s=0.0)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.to_thread(asked, address)
        await server.drain(1.0)

    asyncio.run(play())


@pytest.mark.parametrize("says_goodbye", [False, True])
def test_an_answer_that_was_cut_off_is_not_taken_for_a_whole_one(
    tmp_path: Path, *, says_goodbye: bool
) -> None:
    """An end by the connection's alone has to be the server's, and not of somebody on the way."""
    ca = issue(tmp_path, "ca")
    own = issue(tmp_path, "gate", by=ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.pem, own.key)

    def serve(listening: socket.socket) -> None:
        plain, _ = listening.accept()
        secured = context.wrap_socket(plain, server_side=True)
        secured.recv(65_536)
        secured.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\npartial")
        if says_goodbye:
            with contextlib.suppress(OSError):
                secured.unwrap()
            secured.close()
        else:
            socket.socket(fileno=secured.detach()).close()

    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            port = listening.getsockname()[1]
            serving = asyncio.create_task(asyncio.to_thread(serve, listening))
            contexts = ClientContexts({("127.0.0.1", port): ClientFiles(ca.pem)})
            async with HttpPool(network=RealNetwork(client=contexts)) as pool:
                asking = pool.request("127.0.0.1", port, "GET", "/", timeout_s=WITHIN_S)
                if says_goodbye:
                    assert (await asking).body == b"partial"
                else:
                    with pytest.raises(ConnectionLost):
                        await asking
            await serving

    asyncio.run(play())


def test_a_connection_that_is_over_holds_nothing(tmp_path: Path) -> None:
    """Neither end holds the other one: nothing is left to the collector."""
    issue(tmp_path, "gate")
    tls = ServerTls(ServerFiles(tmp_path / "gate.pem", tmp_path / "gate.key"), now_s=0.0)

    async def handle(request: HttpRequest) -> HttpResponse:
        return HttpResponse(200)

    async def play() -> None:
        server = HttpServer(handle, network=RealNetwork(server=tls.context))
        await server.start()
        files = {(server.host, server.port): ClientFiles(tmp_path / "gate.pem")}
        async with HttpPool(network=RealNetwork(client=ClientContexts(files))) as pool:
            for _ in range(5):
                await pool.request(server.host, server.port, "GET", "/1", timeout_s=WITHIN_S)
        await server.drain(1.0)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(play())
        assert not [each for each in gc.get_objects() if type(each) is TlsStream]
    finally:
        gc.enable()
