"""The page "Call from outside", against processes: clients come, are refused, and go."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import anyio
import pytest

from cli_runs import Run, runner
from pages import ROOT, blocks_of
from processes import announced, dev
from synchromesh import Client, Contract, SyncClient, command, query
from synchromesh.clients import credential_text
from synchromesh.errors import (
    ConfigError,
    DiscoveryError,
    Forbidden,
    SynchromeshError,
    Unauthenticated,
)
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir
from synchromesh.system.config.client_grants import ClientsFile

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs/call-from-outside.md").read_text()


class Inventory(Contract, Protocol, service="inventory", version="1.0"):
    """That of the page."""

    @command("POST /deliveries")
    async def receive(self, sku: str, qty: int) -> int: ...
    @query("GET /stock/{sku}")
    async def stock(self, sku: str) -> int: ...


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page."""
    folder = tmp_path_factory.mktemp("shop")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for block in blocks_of(PAGE):
        if block.title:
            (folder / block.title).write_text(block.body.replace("9100", port))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The control socket of the page's system, a process for each part."""
    with dev(folder, "--split") as system:
        yield announced(system)["control"]
        system.terminate()
        assert system.wait(30.0) == 0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


def added(folder: Path, name: str, *scopes: str) -> str:
    """Return a credential, as `client add` makes one; that runs where the page is followed."""
    rundir, runtime = RunDir(folder), RealRuntime()
    made = ClientsFile(rundir.clients, runtime.disk, runtime.wall_us()).add(
        name, scopes, serves="", days=1, made=("ada", "tries"), rng=runtime.secret_rng
    )
    return credential_text(made.id, Signer(rundir.key()).client_key(made.id))


async def test_a_client_is_refused_within_seconds_once_its_credential_is_taken_back(
    folder: Path, url: str, run: Run
) -> None:
    """Calls of another process are in time and in scope, and end with the revocation."""
    credential = added(folder, "ada", "inventory")
    async with Client(folder, credential=credential) as client:
        async with anyio.create_task_group() as calls:
            for _ in range(8):
                calls.start_soon(lambda: client.call(Inventory.receive("a", 1), key="once"))
        assert await client.call(Inventory.stock("a"), timeout_s=30.0) == 1
        said = run(folder, "client", "revoke", "ada", "--why", "lost", "--json")
        revoked = json.loads(said.out)
        assert (revoked["state"], revoked["revoked"]["why"]) == ("revoked", "lost")

        async def until_refused() -> None:
            while True:
                await client.call(Inventory.stock("a"), timeout_s=30.0)

        with anyio.fail_after(30.0), pytest.raises(Unauthenticated, match="'ada' is revoked, si"):
            await until_refused()
    with pytest.raises(Unauthenticated, match="'ada' is revoked, since"):
        async with Client(url, credential=credential):
            raise AssertionError("it was let in")
    listed = json.loads(run(folder, "client", "list", "--all", "--json").out)
    assert [(each["name"], each["state"]) for each in listed] == [("ada", "revoked")]
    assert "ada" not in run(folder, "client", "list").out


async def test_a_configuration_that_is_being_edited_stops_no_client(
    folder: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The system runs by what it has read; whether it is by TLS is told where that is met."""
    credential, file = added(folder, "joan", "inventory"), folder / "synchromesh.toml"
    written = file.read_text()
    try:
        file.write_text(written + "\n[system")
        async with Client(folder, credential=credential) as client:
            assert await client.call(Inventory.stock("none"), timeout_s=30.0) == 0
    finally:
        file.write_text(written)
    (told,) = [each for each in caplog.records if each.name == "synchromesh.client"]
    assert (told.levelname, "is not valid TOML" in told.getMessage()) == ("WARNING", True)


async def test_a_client_that_is_not_async_is_refused_at_the_callee(
    folder: Path, url: str, run: Run
) -> None:
    """What it may is decided where the call arrives; what is raised is what a service would get.

    What it has asked for last is what `trace last` and `why last` tell of.
    """
    credential = added(folder, "bob", "inventory.stock")

    def call() -> None:
        with SyncClient(url, credential=credential) as client:
            assert client.call(Inventory.stock("b"), timeout_s=30.0) == 0
            with pytest.raises(Forbidden, match=r"may not call inventory\.receive: its credential"):
                client.call(Inventory.receive("b", 1), key="never")
            assert client.call(Inventory.stock("b"), timeout_s=30.0) == 0
        with pytest.raises(ConfigError, match="the client is not open"):
            client.call(Inventory.stock("b"))

    await anyio.to_thread.run_sync(call)
    spans = json.loads(run(folder, "trace", "last", "--json").out)["spans"]
    asked = {(each["kind"], each["service"], each["name"]) for each in spans}
    assert ("client", "client.bob", "inventory.stock") in asked
    assert "inventory.stock  client.bob" in run(folder, "why", "last").out


@pytest.mark.parametrize(
    ("system", "error", "said"),
    [
        ("http://127.0.0.1:1", DiscoveryError, "does not answer: .*; is the system started"),
        ("nats://127.0.0.1:4222", ConfigError, "clients from outside do not read; give the folder"),
        ("https://127.0.0.1:9100", ConfigError, "no place of a system; write the URL"),
        ("http://shop", ConfigError, "no place of a system; write the URL"),
        ("nowhere", ConfigError, "no system runs in"),
    ],
)
async def test_a_system_that_is_not_there_is_named(
    system: str, error: type[SynchromeshError], said: str
) -> None:
    """A client opens at a system that answers, or not at all."""
    with pytest.raises(error, match=said):
        async with Client(system, credential=f"smc_abcd_{'a' * 43}"):
            raise AssertionError("it has opened")
    with pytest.raises(error, match=said), suppress(KeyError):
        SyncClient(system, credential=f"smc_abcd_{'a' * 43}").__enter__()


async def test_a_credential_of_another_system_is_refused(url: str) -> None:
    """Before anything is listed."""
    with pytest.raises(Unauthenticated, match="not signed by a credential of this system"):
        async with Client(url, credential=f"smc_abcd_{'a' * 43}"):
            raise AssertionError("it was let in")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "eve", "--why", "x"), "say what it may do: --scope SERVICE, or --serves SERVICE"),
        (("add", "eve", "--scope", "inventory"), "say why, it is recorded with your name"),
        (("revoke", "eve", "--why", "x"), "no client 'eve' is active; those that are: "),
        (("revoke", "eve"), "say why, it is recorded with your name"),
    ],
)
def test_a_mistake_of_an_operator_is_said_and_changes_nothing(
    folder: Path, words: tuple[str, ...], said: str, run: Run
) -> None:
    """Who gives and takes credentials says for what, and why."""
    ran = run(folder, "client", *words)
    assert (ran.code, said in ran.err) == (2, True), ran.err
