"""The page "Join a FastAPI app", run: its application under uvicorn and granian, in its system."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import anyio
import pytest

import nats_world
from certificates import issue
from nats_server import shared_nats
from pages import ROOT, blocks_of
from processes import COMMAND, announced, dev
from synchromesh import Client, Contract, query
from synchromesh.clients import credential_text
from synchromesh.discovery import Endpoint
from synchromesh.errors import CallError, ConfigError, DiscoveryError, Unauthenticated
from synchromesh.http import HttpPool, HttpResponse
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir
from synchromesh.system.config.client_grants import ClientsFile
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.tls import ClientFiles

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs/join-an-app.md").read_text()
SERVERS = {
    "uvicorn": ["uvicorn", "main:app", "--port"],
    "granian": ["granian", "--interface", "asgi", "main:app", "--port"],
}
ENDS = {"uvicorn": -signal.SIGTERM, "granian": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the page."""
    for block in blocks_of(PAGE):
        if block.title:
            (tmp_path / block.title).write_text(block.body)
    return tmp_path


@contextmanager
def served(
    folder: Path, server: str, *flags: str, scheme: str = "http"
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the application by a real server; give its process and its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", *SERVERS[server], str(port), *flags],
        cwd=folder,
        env={**os.environ, "SHOP_URL": f"{scheme}://127.0.0.1:{port}", "PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process, port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Orders(Contract, Protocol, service="orders", version="1.0"):
    """That of the page."""

    @query("GET /quotes/{sku}")
    async def quote(self, sku: str) -> int: ...


def added(folder: Path, key: bytes) -> str:
    """Return the credential of a client."""
    runtime = RealRuntime()
    made = ClientsFile(RunDir(folder).clients, runtime.disk, runtime.wall_us()).add(
        "ada", ("orders",), serves="", days=1, made=("ada", "tries"), rng=runtime.secret_rng
    )
    return credential_text(made.id, Signer(key).client_key(made.id))


def typed(folder: Path, *words: str) -> str:
    """Return what a command prints; what it imports is no module of this process."""
    command = [*COMMAND, "--folder", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


async def listed(folder: Path, pool: HttpPool) -> tuple[Endpoint, ...]:
    """Return the instances of the shop that the registry lists; none where no system runs."""
    rundir, runtime = RunDir(folder), RealRuntime()
    signer = Signer(rundir.key())
    registry = RemoteRegistry(
        lambda: rundir.read().control,
        pool=pool,
        credential=lambda: signer.token("orders", audience=REGISTRY, now_us=runtime.wall_us()),
        runtime=runtime,
    )
    try:
        await registry.refresh()
    except DiscoveryError:
        return ()
    return (await registry.resolve("shop")).endpoints


async def comes(holds: Callable[[], Awaitable[bool]]) -> None:
    """Look again until it holds."""
    with anyio.fail_after(60.0):
        while not await holds():
            await anyio.sleep(0.02)


async def ask(pool: HttpPool, url: str, path: str, *fields: tuple[str, str]) -> HttpResponse:
    port = int(url.rpartition(":")[2].strip("/"))
    return await pool.request("127.0.0.1", port, "GET", path, fields, timeout_s=30.0)


@pytest.mark.parametrize(("server", "flags"), [("uvicorn", ()), ("granian", ("--split",))])
async def test_an_application_joins_as_it_is(
    server: str, flags: tuple[str, ...], folder: Path
) -> None:
    """It is called by a service, calls one with its principal, drains, and is off the list.

    With --split the system runs it a second time, as a service of its own.
    """
    if flags:
        with (folder / "synchromesh.toml").open("a") as toml:
            toml.write('[services.till]\napp = "main:app"\n')
    api_key = typed(folder, "gateway", "key", "add", "alice").strip()
    asks = [("authorization", f"Bearer {api_key}"), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")]
    async with HttpPool(network=RealRuntime().network) as pool:
        with dev(folder, "--set", "gateway.port=0", *flags) as system:
            told = announced(system)
            url = told["gateway"]
            if flags:
                assert (await ask(pool, told["services"]["till"], "/prices/axle")).body == b"400"
            with served(folder, server) as (process, _):

                async def is_listed() -> bool:
                    return bool(await listed(folder, pool))

                await comes(is_listed)
                quoted = await ask(pool, url, "/quotes/axle")
                assert (quoted.status, quoted.body) == (200, b"800")
                offered = await ask(pool, url, "/shop/offers/axle", *asks)
                assert json.loads(offered.body) == {"for": "alice", "by": "gateway", "left": 7}
                assert f"/shop/offers/axle\n{offered.body.decode()}\n```" in PAGE
                assert (await ask(pool, url, "/shop/offers/axle")).status == 401
                process.terminate()
                assert process.wait(30.0) == ENDS[server]
                assert await listed(folder, pool) == ()
            system.terminate()
            assert system.wait(30.0) == 0
    traced = typed(folder, "trace", "a" * 32)
    assert "GET /offers/{sku}" in traced
    assert "inventory.left" in traced


async def test_it_serves_without_a_system_and_joins_each_that_starts(folder: Path) -> None:
    """Two systems after each other are joined by both workers, which go with their leases."""
    async with HttpPool(network=RealRuntime().network) as pool:
        with served(folder, "uvicorn", "--workers", "2") as (process, port):

            async def serves() -> bool:
                try:
                    answer = await ask(pool, f":{port}", "/prices/axle")
                except CallError:
                    return False
                return answer.body == b"400"

            async def are_two() -> bool:
                found = await listed(folder, pool)
                return len(found) == 2 and len({each.url for each in found}) == 1

            async def are_gone() -> bool:
                return not await listed(folder, pool)

            await comes(serves)
            for is_last in (False, True):
                # Another start, on other ports.
                with dev(folder, "--set", "gateway.port=0") as system:
                    url = announced(system)["gateway"]
                    await comes(are_two)
                    assert (await ask(pool, url, "/quotes/axle")).body == b"800"
                    if is_last:
                        os.killpg(process.pid, signal.SIGKILL)
                        await comes(are_gone)
                    system.terminate()
                    assert system.wait(30.0) == 0


async def test_by_tls_it_is_called_and_calls_and_so_is_a_client(folder: Path) -> None:
    """Of one authority all of them: who shows no certificate of it gets no further."""
    authority = issue(folder, "authority")
    host, stranger = issue(folder, "host", by=authority), issue(folder, "stranger")
    toml = folder / "synchromesh.toml"
    names = 'certificate = "host.pem", key = "host.key", ca = "authority.pem"'
    toml.write_text(toml.read_text().replace('"works"', f'"works"\ntls = {{ {names} }}'))
    flags = (
        *("--ssl-certfile", "host.pem", "--ssl-keyfile", "host.key"),
        *("--ssl-ca-certs", "authority.pem", "--ssl-cert-reqs", "2"),
    )
    async with HttpPool(network=RealRuntime().network) as pool:
        with (
            dev(folder, "--set", "gateway.port=0") as system,
            served(folder, "uvicorn", *flags, scheme="https"),
        ):
            told = announced(system)

            async def is_listed() -> bool:
                return bool(await listed(folder, pool))

            await comes(is_listed)
            (shop,) = await listed(folder, pool)
            assert shop.url.startswith("https://")
            # The gateway asks orders, that the shop, and the shop the inventory.
            assert (await ask(pool, told["gateway"], "/quotes/axle")).body == b"800"
            credential = added(folder, RunDir(folder).key())
            files = ClientFiles(authority.pem, host.pem, host.key)
            for system_, tls in ((folder, None), (told["control"], files)):
                async with Client(system_, credential=credential, tls=tls) as client:
                    assert await client.call(Orders.quote("axle"), timeout_s=30.0) == 800
            async with Client(told["control"], credential=credential) as client:
                with pytest.raises(ConfigError, match=r"by TLS, and .*tls=ClientFiles"):
                    await client.call(Orders.quote("axle"), timeout_s=30.0)
            unknown = ClientFiles(authority.pem, stranger.pem, stranger.key)
            async with Client(told["control"], credential=credential, tls=unknown) as client:
                with pytest.raises(CallError):
                    await client.call(Orders.quote("axle"), timeout_s=2.0)
            system.terminate()
            assert system.wait(30.0) == 0


async def test_on_nats_it_joins_from_a_machine_without_the_run_directory(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration and the key by reference are all it needs; it leaves the list there."""
    key, name, url = "5a" * 32, f"works-{os.getpid()}", shared_nats().url
    monkeypatch.setenv("WORKS_KEY", key)
    toml = folder / "synchromesh.toml"
    named = toml.read_text().replace('"works"', f'"{name}"\nkey = "env:WORKS_KEY"')
    toml.write_text(f'{named}\n[engine]\nnats = "{url}"\n')
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, elsewhere, dirs_exist_ok=True)
    async with (
        HttpPool(network=RealRuntime().network) as pool,
        nats_world.running(url, system=name, key=bytes.fromhex(key)) as registry,
    ):
        with dev(folder, "--set", "gateway.port=0") as system:
            gateway = announced(system)["gateway"]
            with served(elsewhere, "uvicorn") as (process, _):

                async def is_listed() -> bool:
                    return bool((await registry.resolve("shop")).endpoints)

                await comes(is_listed)
                assert (await ask(pool, gateway, "/quotes/axle")).body == b"800"
                # A client that finds the system by its folder is told of the same list. It is
                # known and revoked on NATS, from whichever host.
                words = ("client", "add", "ada", "--scope", "orders", "--why", "tries")
                credential = typed(elsewhere, *words).strip()

                async def is_let_in() -> bool:
                    try:
                        async with Client(folder, credential=credential) as client:
                            return await client.call(Orders.quote("axle"), timeout_s=30.0) == 800
                    except Unauthenticated:
                        return False

                async def is_refused() -> bool:
                    return not await is_let_in()

                await comes(is_let_in)
                typed(elsewhere, "client", "revoke", "ada", "--why", "lost")
                await comes(is_refused)
                process.terminate()
                assert process.wait(30.0) == ENDS["uvicorn"]
                await nats_world.listed(registry, service="shop")
            system.terminate()
            assert system.wait(30.0) == 0
