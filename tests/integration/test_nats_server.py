"""The NATS server of the tests: what it keeps over a restart, and that it ends with its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import nats
import pytest

from nats_server import NatsServer, shared_nats
from notes_app import TESTS
from processes import until

OWNER = """
import threading
from nats_server import NatsServer
server = NatsServer()
print(server.pid, server.folder, flush=True)
threading.Event().wait()
"""


@pytest.mark.anyio
async def test_what_is_acknowledged_is_there_after_a_restart() -> None:
    """The server comes back on its port, with its streams, after kill -9 and after SIGTERM."""
    server = NatsServer()
    try:
        for number in (signal.SIGKILL, signal.SIGTERM):
            port = server.port
            client = await nats.connect(server.url, allow_reconnect=False)
            bucket = await client.jetstream().create_key_value(bucket=f"kept-{number}")
            await bucket.put("a", b"1")
            await client.close()
            server.restart(number)
            assert server.port == port
            client = await nats.connect(server.url, allow_reconnect=False)
            again = await client.jetstream().key_value(f"kept-{number}")
            assert (await again.get("a")).value == b"1"
            await client.close()
    finally:
        server.close()
    assert not server.folder.exists()


@pytest.mark.anyio
async def test_tests_share_a_server_that_syncs_each_write() -> None:
    """One server a process, with the durability that is promised for it."""
    assert shared_nats() is shared_nats()
    client = await nats.connect(shared_nats().url)
    assert (await client.jetstream().account_info()).limits is not None
    await client.close()
    assert "sync_interval: always" in (shared_nats().folder / "nats.conf").read_text()


def test_it_ends_with_the_process_that_started_it() -> None:
    """A test run that is killed leaves no server, and the next one removes its folder."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip
    assert owner.stdout is not None
    pid, folder = owner.stdout.readline().split()
    owner.kill()
    owner.communicate()
    assert until(lambda: _state_of(int(pid)) in ("", "Z"))
    assert Path(folder).exists()
    NatsServer().close()
    assert not Path(folder).exists()


def _state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
