"""A system whose registry is on NATS: all its processes find each other there, and so do others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nats_server import NatsServer, shared_nats
from nats_world import listed, registry_at, running, until
from notes_app import TESTS, TOML, WITH_GATEWAY, write_config
from postgres_server import shared_server
from processes import announced, dev, ends
from replicas_app import INSTANCES, Clients
from replicas_app import TOML as REPLICAS
from split_world import running as running_system
from synchromesh.discovery.nats_kv import NatsRegistry
from synchromesh.discovery.view import RegistryView
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir, System, load_config
from synchromesh.system.config.secrets import signing_key

pytestmark = pytest.mark.anyio

MANY = 100
PRICES = REPLICAS.replace("quotes", "prices").replace("way_in", "way_to_prices")


@pytest.fixture(autouse=True)
def path_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes import what tests do."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def on_nats(text: str, folder: Path, url: str = "") -> str:
    """Return a configuration with that registry, and a name that no other test's system has."""
    name = f"{folder.name}".replace("_", "-")
    named = text.replace('[system]\nname = "', f'[system]\nname = "{name}-', 1)
    return f'{named}\n[engine]\nnats = "{url or shared_nats().url}"\n'


def key_of(folder: Path) -> bytes:
    return signing_key("", RunDir(folder), folder, os.environ)


@asynccontextmanager
async def elsewhere(folder: Path, system: System) -> AsyncIterator[NatsRegistry]:
    """Look from another process, which has the system's key."""
    async with running(
        shared_nats().url, system=system.info.system, key=key_of(folder)
    ) as registry:
        yield registry


@pytest.mark.parametrize("is_split", [False, True])
async def test_a_system_is_found_from_elsewhere(tmp_path: Path, is_split: bool) -> None:
    """By addresses that can be called; it leaves the list as it ends."""
    text = on_nats(REPLICAS, tmp_path)
    async with running_system(tmp_path, text, is_split=is_split) as system:
        clients = Clients(system)
        async with elsewhere(tmp_path, system) as registry:
            await listed(registry, *INSTANCES, service="quotes")
            resolved = await registry.resolve("quotes")
            assert {each.url for each in resolved.endpoints} == set(system.info.services.values())
            await clients.ask(MANY)
            assert clients.failed == 0, clients.statuses
            await system.stop()
            await listed(registry, service="quotes")


async def test_a_killed_process_is_off_every_list_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: its supervisor ends its lease before it expires, and nobody else's; another follows."""
    text = on_nats(REPLICAS, tmp_path)
    async with running_system(tmp_path, text) as system, elsewhere(tmp_path, system) as registry:
        await listed(registry, *INSTANCES, service="quotes")
        victim, *_ = INSTANCES
        gone: list[tuple[str, bool]] = []
        forget = RegistryView.gone

        # A watcher may see the successor first: what it was told before is what counts.
        def note(view: RegistryView, service: str, instance: str, **how: Any) -> None:
            if view is registry._view:
                gone.append((instance, how["is_expired"]))
            forget(view, service, instance, **how)

        monkeypatch.setattr(RegistryView, "gone", note)

        def pid() -> int:
            metadata = (
                dict(each.metadata)
                for each in registry.listed()["quotes"].endpoints
                if each.instance == victim
            )
            return next((int(each["pid"].partition("@")[0]) for each in metadata), 0)

        killed = pid()
        os.kill(killed, signal.SIGKILL)
        await until(lambda: pid() not in (0, killed))
        assert gone[0] == (victim, False)
        assert {instance for instance, _ in gone} == {victim}
        await listed(registry, *INSTANCES, service="quotes")
        clients = Clients(system)
        await clients.ask(MANY)
        assert clients.failed == 0, clients.statuses


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_one_of_three_replicas_that_goes_under_load_costs_hardly_a_request(
    tmp_path: Path, number: int
) -> None:
    """On PostgreSQL and NATS, at most 1 in 100 fails, whether it is killed or stands still."""
    text = f'{on_nats(PRICES, tmp_path)}postgres = "{shared_server().url("postgres")}"\n'
    async with running_system(tmp_path, text) as system, elsewhere(tmp_path, system) as registry:
        clients = Clients(system, path="/kept/SX90")
        await clients.ask(MANY)
        assert (clients.failed, len(clients.pids)) == (0, 3), clients.statuses
        pid = int(min(clients.pids))
        async with clients.asking():
            os.kill(pid, number)
            await until(lambda: str(pid) not in pids_of(registry, "prices"))
            await until(lambda: len(pids_of(registry, "prices")) == 3)
            before = clients.asked
            await until(lambda: clients.asked >= before + MANY)
        assert clients.failed <= clients.asked // 100, clients.statuses
    assert ends(pid)


def pids_of(registry: NatsRegistry, service: str) -> set[str]:
    """Return the processes of what is listed of a service."""
    listed = registry.listed().get(service)
    metadata = (dict(each.metadata) for each in (listed.endpoints if listed else ()))
    return {each["pid"].partition("@")[0] for each in metadata}


async def test_the_system_goes_on_while_the_server_is_away(tmp_path: Path) -> None:
    """R4: requests are answered while NATS is down, and all is as before when it is back."""
    server = NatsServer()
    try:
        text = on_nats(REPLICAS, tmp_path, server.url)
        async with running_system(tmp_path, text) as system:
            clients = Clients(system)
            await clients.ask(MANY)
            server.stop()
            await clients.ask(MANY)
            server.start()
            async with running(
                server.url, system=system.info.system, key=key_of(tmp_path)
            ) as registry:
                await listed(registry, *INSTANCES, service="quotes")
            await clients.ask(MANY)
            assert clients.failed == 0, clients.statuses
    finally:
        server.close()


async def test_an_external_service_is_found_by_all_processes(tmp_path: Path) -> None:
    """Who starts the system registers it, and keeps it so."""
    text = on_nats(TOML + '\n[external.bank]\nurl = "http://127.0.0.1:9"\n', tmp_path)
    async with running_system(tmp_path, text) as system, elsewhere(tmp_path, system) as registry:
        await listed(registry, "bank", service="bank")
        (bank,) = (await registry.resolve("bank")).endpoints
        assert bank.url == "http://127.0.0.1:9"


async def test_a_registry_that_cannot_be_used_is_told_before_anything_serves(
    tmp_path: Path,
) -> None:
    """With what to do; nothing is left running."""
    for text, told in (
        (on_nats(TOML, tmp_path, "nats://127.0.0.1:1"), r"127\.0\.0\.1:1 did not answer .*; start"),
        (on_nats(TOML, tmp_path, "env:NO_SUCH"), "NO_SUCH is not set"),
        (
            on_nats(TOML, tmp_path).replace("\n[services", 'host = "0.0.0.0"\n\n[services', 1),
            "advertise",
        ),
    ):
        config = load_config(write_config(tmp_path, text))
        with pytest.raises(ConfigError, match=told):
            await System(config, tmp_path, RealRuntime()).start()


async def test_what_is_advertised_is_registered(tmp_path: Path) -> None:
    """A service that listens on all addresses is called by the one that is given."""
    text = on_nats(TOML, tmp_path).replace(
        "\n[services", 'host = "0.0.0.0"\nadvertise = "localhost"\n\n[services', 1
    )
    async with (
        running_system(tmp_path, text, is_split=False) as system,
        elsewhere(tmp_path, system) as registry,
    ):
        await until(lambda: bool(registry.listed().get("notes")))
        (notes,) = registry.listed()["notes"].endpoints
        assert notes.url.startswith("http://localhost:")


async def test_dev_starts_a_server_that_ends_with_it(tmp_path: Path) -> None:
    """On a port that it keeps, behind a password; the system answers, and nothing is left."""
    write_config(tmp_path, WITH_GATEWAY)
    addresses = set()
    for _ in range(2):
        with dev(tmp_path, "--split", "--engine", "nats") as process:
            told = await asyncio.get_running_loop().run_in_executor(None, announced, process)
            addresses.add((tmp_path / ".synchromesh/nats/url").read_text().strip())
            async with HttpPool(network=RealRuntime().network) as pool:
                host, _, port = told["gateway"].rpartition("://")[2].rpartition(":")
                answer = await pool.request(host, int(port), "GET", "/nowhere", timeout_s=30.0)
                assert answer.status == 404
            process.send_signal(signal.SIGTERM)
            process.communicate()
        (address,) = addresses
        with pytest.raises(ConfigError, match="cannot be reached"):
            await registry_at(address).open()
    assert (tmp_path / ".synchromesh/nats/url").stat().st_mode & 0o77 == 0
