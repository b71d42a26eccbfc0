"""SIGTERM with hundreds of slow clients at the gateway, in one process and in several (G7)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, create_subprocess_exec
from pathlib import Path

import pytest

from notes_app import TESTS, WITH_GATEWAY, write_config
from processes import COMMAND, family_of, is_alive

pytestmark = pytest.mark.anyio

START_S = 90.0
STOP_S = 10.0
COUNT = b"GET /count HTTP/1.1\r\nhost: x\r\n\r\n"
PAGE = b"GET /page?size=500000 HTTP/1.1\r\nhost: x\r\n\r\n"
JSON = b"host: x\r\ncontent-type: application/json\r\n"
POST = b"POST /%b HTTP/1.1\r\n" + JSON + b"content-length: %d\r\n\r\n"
# 300: in mid-head, in mid-body, never used, used and idle, not reading what they asked for.
SLOW = (
    (b"GET /count HTTP/1.1\r\nhost", 0, 90),
    (POST % (b"notes", 1000) + b"{", 0, 90),
    (b"", 0, 50),
    (COUNT, 12, 50),
    (PAGE * 16, 12, 20),
)


class Client:
    """A client of the gateway that reads no more than it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def come(cls, port: int) -> Client:
        # With a limit of one byte the rest of an answer waits in the kernel, then at the server.
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1))

    async def say(self, request: bytes) -> None:
        self._writer.write(request)
        await self._writer.drain()

    async def hear(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    def leave(self) -> None:
        self._writer.transport.abort()


async def slow_clients(port: int) -> list[Client]:
    """Return those clients, each as slow as it gets."""
    clients = []
    for request, answer_bytes, count in SLOW:
        for _ in range(count):
            client = await Client.come(port)
            await client.say(request)
            assert (await client.hear(answer_bytes))[:12] in (b"", b"HTTP/1.1 200")
            clients.append(client)
    return clients


@pytest.mark.parametrize("flags", [(), ("--split",)], ids=["one process", "split"])
async def test_slow_clients_keep_no_stop_waiting(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Exit 0 within 10 s, no process is left, and what was accepted in time is answered."""
    write_config(tmp_path, WITH_GATEWAY)
    dev = await create_subprocess_exec(
        *(*COMMAND, "--folder", str(tmp_path), "dev", "--json", *flags),
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=PIPE,
        stderr=PIPE,
    )
    assert dev.stdout is not None
    assert dev.stderr is not None
    try:
        async with asyncio.timeout(START_S):
            port = int(
                json.loads(await dev.stdout.readuntil(b"\n}\n"))["gateway"].rpartition(":")[2]
            )
            clients = await slow_clients(port)
            waiting = await Client.come(port)
            body = b'{"seconds": 0.5}'
            await waiting.say(POST % (b"slow", len(body)) + body)
            # All were accepted before: an answer after them says so.
            last = await Client.come(port)
            await last.say(COUNT)
            assert await last.hear(12) == b"HTTP/1.1 200"
        processes = [dev.pid, *family_of(dev.pid)]
        assert len(processes) == (4 if flags else 1)
        dev.send_signal(signal.SIGTERM)
        async with asyncio.timeout(STOP_S):
            code, said = await dev.wait(), await dev.stderr.read()
    finally:
        if dev.returncode is None:
            dev.kill()
            await dev.wait()
    assert (code, said) == (0, b"")
    assert not any(map(is_alive, processes))
    assert await waiting.hear(12) == b"HTTP/1.1 200"
    for client in (*clients, waiting, last):
        client.leave()
