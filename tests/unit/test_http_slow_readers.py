"""Clients that read slowly live, and those that have stopped are gone, whatever buffers there are.

Simulated; `tests/integration/test_http_slow_readers.py` asks the kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from bodies import long_body
from synchromesh.http import HttpRequest, HttpResponse, HttpServer, Limits
from synchromesh.http.pace import Pace, Patience
from synchromesh.testing import SimNetwork, SimRuntime, run

pytestmark = pytest.mark.usefixtures("http_way")

KiB, MiB = 1024, 1024 * 1024
SERVERS_KERNEL = {"no buffer": 0, "small": 64 * KiB, "large": 4 * MiB}
# What the client's kernel holds, and takes in one go once it has room for that.
CLIENTS_KERNEL = {"small": (64 * KiB, 32 * KiB), "large": (6 * MiB, 400 * KiB)}
ASKED = {"whole": b"GET /whole", "parts": b"GET /parts"}


class Reader(asyncio.Protocol):
    """A client whose application reads at a pace from the buffer of its kernel."""

    transport: asyncio.Transport

    def __init__(self, pace: float, buffer: tuple[int, int]) -> None:
        self._pace, (self._room, self._jump) = pace, buffer
        self.came, self.is_gone = 0, False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.came += len(data)
        self._room -= len(data)
        if self._room <= 0:
            self.transport.pause_reading()
            if self._pace:
                loop = asyncio.get_running_loop()
                loop.call_later((self._jump - self._room) / self._pace, self._read)

    def _read(self) -> None:
        self._room = self._jump
        if not self.is_gone:
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True


class Relay(asyncio.Protocol):
    """One half of a proxy: passes on what comes, as fast as the other half is rid of it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.other: Relay
        self.connecting: asyncio.Future[asyncio.Protocol]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.other.transport.write(data)

    def pause_writing(self) -> None:
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.other.transport.abort()


async def proxy(network: SimNetwork, port: int) -> int:
    """Listen before a server, and return the port."""

    def accept() -> Relay:
        ours, theirs = Relay(), Relay()
        ours.other, theirs.other = theirs, ours
        ours.connecting = asyncio.ensure_future(network.connect(lambda: theirs, "127.0.0.1", port))
        return ours

    return (await network.listen(accept, "127.0.0.1", 0)).port


class Answers:
    """Answers 64 MiB, whole or in parts."""

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, (), bytes(64 * MiB))

    def body_max(self, method: str, path: str, pairs: object) -> int | None:
        return 0 if path == "/parts" else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), stream=long_body(64 * MiB))


@asynccontextmanager
async def reading(
    runtime: SimRuntime,
    reader: Reader,
    kernel: int,
    asked: bytes,
    *,
    is_through_proxy: bool = False,
) -> AsyncIterator[None]:
    """Let a client ask, before a server whose kernel has such a buffer."""
    network, answers = runtime.network, Answers()
    assert isinstance(network, SimNetwork)
    network.kernel_bytes = kernel
    server = HttpServer(answers, network=network, streaming=answers)
    await server.start()
    port = await proxy(network, server.port) if is_through_proxy else server.port
    await network.connect(lambda: reader, "127.0.0.1", port)
    await asyncio.sleep(0.1)
    reader.transport.write(asked + b" HTTP/1.1\r\nhost: x\r\n\r\n")
    yield
    await server.close()


@pytest.mark.parametrize("is_through_proxy", [False, True], ids=["direct", "proxy"])
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("buffer", CLIENTS_KERNEL.values(), ids=CLIENTS_KERNEL)
@pytest.mark.parametrize("kernel", SERVERS_KERNEL.values(), ids=SERVERS_KERNEL)
def test_a_reader_of_20_kb_a_second_lives(
    kernel: int, buffer: tuple[int, int], asked: bytes, is_through_proxy: bool
) -> None:
    """For twenty minutes, and it gets what it can read in that time."""
    reader = Reader(20_000, buffer)

    async def main(runtime: SimRuntime) -> None:
        async with reading(runtime, reader, kernel, asked, is_through_proxy=is_through_proxy):
            await asyncio.sleep(1200.0)
            assert not reader.is_gone
            assert reader.came >= 20_000 * 1100

    run(main)


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("buffer", CLIENTS_KERNEL.values(), ids=CLIENTS_KERNEL)
@pytest.mark.parametrize("kernel", SERVERS_KERNEL.values(), ids=SERVERS_KERNEL)
def test_a_client_that_takes_nothing_is_gone_in_its_time(
    kernel: int, buffer: tuple[int, int], asked: bytes
) -> None:
    """That is `write_s`, and a second for each 100 kB that its kernel has taken before."""
    reader = Reader(0, buffer)

    async def main(runtime: SimRuntime) -> None:
        async with reading(runtime, reader, kernel, asked):
            its_s = Limits().write_s + (buffer[0] + 128 * KiB) / 100_000
            await asyncio.sleep(Limits().write_s - 0.5)
            assert not reader.is_gone
            await asyncio.sleep(its_s - Limits().write_s + 2.5)
            assert reader.is_gone

    run(main)


@pytest.mark.parametrize("kernel", SERVERS_KERNEL.values(), ids=SERVERS_KERNEL)
def test_a_client_that_reads_by_drips_is_cut(kernel: int) -> None:
    """300 bytes a second are less than 8192 in 10 s; that is no reader, but an attack."""
    reader = Reader(300, (64 * KiB, 3000))

    async def main(runtime: SimRuntime) -> None:
        async with reading(runtime, reader, kernel, ASKED["whole"]):
            await asyncio.sleep(300.0)
            assert reader.is_gone

    run(main)


def test_what_was_taken_buys_time_up_to_a_bound() -> None:
    """A second for each 100 kB; what has to be taken grows with the time."""
    patience = Patience(10.0, 120.0, bytes_min=8192)
    nothing = Pace(patience, now=0.0, taken=0)
    assert nothing.left_s(4.0, 0) == 6.0
    assert nothing.left_s(4.0, 2000) == pytest.approx(6.02)  # too little to begin anew
    assert nothing.left_s(4.0, 4000) == pytest.approx(10.04)
    much = Pace(patience, now=0.0, taken=6_000_000)
    assert much.left_s(30.0, 6_000_000) == 40.0
    assert much.left_s(30.0, 6_008_192) == pytest.approx(40.08, abs=0.01)
    assert much.left_s(30.0, 6_030_000) == pytest.approx(70.3)
    assert Pace(patience, now=0.0, taken=10**9).left_s(0.0, 10**9) == 120.0
    # Where only what is left is known, there is no such time.
    left = Pace(patience, now=0.0, taken=-500_000)
    assert left.left_s(5.0, -500_000) == 5.0
    assert left.left_s(6.0, -400_000) == 10.0
