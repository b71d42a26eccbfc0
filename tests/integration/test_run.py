"""`synchromesh run`: parts of a system that nobody starts together, on PostgreSQL and NATS."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_server
from typing import Any

import asyncpg
import pytest

from cli_runs import runner
from nats_server import shared_nats
from nats_world import listed, running
from notes_app import TESTS
from postgres_server import shared_server
from processes import COMMAND
from spread_app import TOML
from synchromesh.errors import CallError
from synchromesh.http import HttpPool
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.store.postgres_databases import PostgresDatabases

pytestmark = pytest.mark.anyio

KEY = "00" * 32
WAIT_S = 120.0
AT_ONCE = 4
MANY = 40


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class Replica:
    """A process of `synchromesh run`, and what it says on stdout."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    async def said(self, what: str) -> None:
        """Wait for a line with that text; every line has to be JSON."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while line := await self.process.stdout.readline():
                self.lines.append(json.loads(line))
                if what in self.lines[-1]["message"]:
                    return
        raise AssertionError(f"it ended before it said {what!r}: {self.lines}")

    async def end(self, number: int) -> int:
        """Send a signal, and return the exit code."""
        self.process.send_signal(number)
        async with asyncio.timeout(WAIT_S):
            await self.process.communicate()
        code = self.process.returncode
        assert code is not None
        return code


@dataclass
class Spread:
    """A system whose parts are started one by one.

    Attributes:
        statuses: how often which status was answered to queries.
        sold: the acknowledged sales.
    """

    folder: Path
    port: int
    admin: int
    pool: HttpPool
    cleanup: AsyncExitStack
    statuses: Counter[int] = field(default_factory=Counter)
    sold: int = 0

    async def start(self, name: str, *words: str) -> Replica:
        """Start a part; what is left of it at the end is killed."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "--folder", str(self.folder), "run", name,
            "--run-dir", str(self.folder / f"run-{name}"), *words,
            stdout=subprocess.PIPE,
        )  # fmt: skip

        async def kill() -> None:
            if process.returncode is None:
                process.kill()
                await process.communicate()

        self.cleanup.push_async_callback(kill)
        return Replica(process)

    async def up(self, *names: str) -> list[Replica]:
        """Start parts, and wait until all of them serve."""
        replicas = [await self.start(name) for name in names]
        await asyncio.gather(*(each.said("serves at") for each in replicas))
        return replicas

    async def ask(self, method: str, path: str, key: str = "", body: object = None) -> int:
        """Ask the gateway; 0 for no answer."""
        try:
            answer = await self.pool.request(
                "127.0.0.1", self.port, method, path,
                [("idempotency-key", key), ("content-type", "application/json")] if key else [],
                json.dumps(body).encode() if key else b"",
                timeout_s=WAIT_S, is_idempotent=True,
            )  # fmt: skip
        except CallError:
            return 0
        return answer.status

    async def load(self, is_over: Callable[[], bool]) -> None:
        """Sell and ask, several at once; a sale is sent again until it is acknowledged."""

        async def one_after_the_other(number: int) -> None:
            count = 0
            while not is_over():
                count += 1
                sale = f"{number}-{count}"
                while await self.ask("POST", "/sales", sale, {"sku": sale, "qty": 1}) != 200:
                    await asyncio.sleep(0.05)
                self.sold += 1
                self.statuses[await self.ask("GET", "/quotes/SX90")] += 1

        await asyncio.gather(*map(one_after_the_other, range(AT_ONCE)))


@asynccontextmanager
async def spread(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Spread, PostgresDatabases]]:
    name = folder.name.replace("_", "-")
    server = shared_server().url("postgres")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("MESH_KEY", KEY)
    monkeypatch.setenv("NATS_URL", shared_nats().url)
    # Whoever runs a service needs no more than the place: its role follows from the key.
    monkeypatch.setenv("DATABASE_URL", server.replace("postgres@", ""))
    port, admin = free_port(), free_port()
    (folder / "synchromesh.toml").write_text(TOML.format(name=name, port=port, admin=admin))
    passwords = Signer(bytes.fromhex(KEY)).database_passwords
    databases = PostgresDatabases(server, system=name, passwords=passwords)
    await databases.create(["shop"])
    async with AsyncExitStack() as cleanup, HttpPool(network=RealRuntime().network) as pool:
        yield Spread(folder, port, admin, pool, cleanup), databases


async def test_nothing_is_lost_while_replicas_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, drained and replaced under load: each sale is there once, and no query fails."""
    async with spread(tmp_path, monkeypatch) as (system, databases):
        shop, killed, drained, gateway = await system.up("shop", "quotes#1", "quotes#2", "gateway")
        over, steps = asyncio.Event(), Counter[int]()

        async def until_sold(more: int) -> None:
            steps[0] += more
            while system.sold < steps[0]:
                await asyncio.sleep(0.01)

        async def come_and_go() -> None:
            await until_sold(MANY)
            assert await killed.end(signal.SIGKILL) == -signal.SIGKILL
            await until_sold(MANY)
            await system.up("quotes#3")
            assert await drained.end(signal.SIGTERM) == 0
            await until_sold(MANY)
            # Two writers share the duties of the service for a moment.
            next_to_it = ("--run-dir", str(tmp_path / "next"), "--set", "system.node=next")
            following = await system.start("shop", *next_to_it)
            await following.said("serves at")
            assert await shop.end(signal.SIGTERM) == 0
            await until_sold(MANY)
            over.set()

        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(system.load(over.is_set), come_and_go())
        ready = await system.pool.request(
            "127.0.0.1", system.admin, "GET", "/readyz/gateway", timeout_s=WAIT_S
        )
        metrics = await system.pool.request(
            "127.0.0.1", system.admin, "GET", "/metrics", timeout_s=WAIT_S
        )
        assert (ready.status, metrics.status) == (200, 200)
        async with running(
            shared_nats().url, system=tmp_path.name.replace("_", "-"), key=bytes.fromhex(KEY)
        ) as registry:
            await listed(registry, f"quotes#3@{os.uname().nodename}", service="quotes")
        assert await gateway.end(signal.SIGTERM) == 0
        connection = await asyncpg.connect(databases.url("shop"))
        try:
            rows = await connection.fetch(
                "select stream, count(*) from sm_event where stream like 'sales/%' group by 1"
            )
        finally:
            await connection.close()
    assert {each[1] for each in rows} == {1}
    assert len(rows) == system.sold >= 4 * MANY
    assert set(system.statuses) == {200}, system.statuses


async def test_a_second_signal_ends_the_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 0, too; and a part has its run directory for itself, which a second tells."""
    async with spread(tmp_path, monkeypatch) as (system, _):
        (first,) = await system.up("shop")
        second = await system.start(
            "shop", "--run-dir", str(tmp_path / "next"), "--set", "system.node=next"
        )
        third = await system.start("shop", "--set", "system.node=elsewhere")
        assert third.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            assert await third.process.stdout.read() == b""
            assert await third.process.wait() == 2  # its run directory is the first's
        await second.said("serves at")
        assert await second.end(signal.SIGTERM) == 0
        first.process.send_signal(signal.SIGTERM)
        assert await first.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("name", "found", "instead", "said"),
    [
        ("shop", 'nats = "env:NATS_URL"', "", 'write [engine] nats = "env:NATS_URL"'),
        ("shop", 'key = "env:MESH_KEY"', "", 'write [system] key = "env:SYSTEM_KEY"'),
        ("shop", 'postgres = "env:DATABASE_URL"', "", "its database would be a file"),
        ("shop", "env:MESH_KEY", "env:NO_SUCH", "the variable NO_SUCH is not set"),
        ("shop", "\n[services.shop]", 'host = "0.0.0.0"\n\n[services.shop]', "advertise = "),
        ("shop", "[engine]", '[external.bank]\ncommand = ["x"]\n[engine]', "and write its url"),
        ("shops", "", "", "'shops' is no part of this system, which has shop, quotes, gateway"),
        ("quotes#4", "", "", "'quotes#4' is no part of this system"),
    ],
)
def test_what_cannot_be_run_alone_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    found: str,
    instead: str,
    said: str,
) -> None:
    """With what to write, before anything is served."""
    monkeypatch.setenv("MESH_KEY", KEY)
    monkeypatch.setenv("NATS_URL", "nats://127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1")
    text = TOML.format(name="refused", port=0, admin=0)
    (tmp_path / "synchromesh.toml").write_text(text.replace(found, instead, 1))
    ran = runner(capsys)(tmp_path, "run", name)
    assert ran.code == 2
    assert said in ran.err
