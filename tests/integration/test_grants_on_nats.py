"""Grants of clients in NATS KV: what is revoked on one host is refused on every other."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cli_runs import Run, runner
from nats_server import NatsServer
from nats_world import until
from notes_app import TOML
from synchromesh.clients import ClientBook, ClientGrant, ClientSigner
from synchromesh.discovery import nats_connection
from synchromesh.errors import Unauthenticated
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir
from synchromesh.system.config.client_grants import KEPT, granted, revoked
from synchromesh.system.config.grants_on_nats import GrantsOnNats, SharedGrants, grants_on_nats
from synchromesh.system.config.reading import load_config

pytestmark = pytest.mark.anyio

KEY = "22" * 32
RUNTIME = RealRuntime()


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """A server that the tests of this file stop and start, one after the other."""
    server = NatsServer()
    yield server
    server.close()


@pytest.fixture
def folder(
    server: NatsServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder of a system whose registry is on NATS."""
    monkeypatch.setenv("MESH_KEY", KEY)
    monkeypatch.setenv("NATS_URL", server.url)
    return host_of(tmp_path / "one", request.node.name)


def host_of(folder: Path, name: str) -> Path:
    """Return the folder of the system on one more host."""
    folder.mkdir()
    text = TOML.replace("[system]", '[system]\nkey = "env:MESH_KEY"', 1)
    named = "\n".join(
        f'name = "{name[:40]}"' if line.startswith("name = ") else line
        for line in text.splitlines()
    )
    (folder / "synchromesh.toml").write_text(f'{named}\n[engine]\nnats = "env:NATS_URL"\n')
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return runner(capsys)


class Replica:
    """What a process on a host admits clients by."""

    def __init__(self, grants: GrantsOnNats, signer: Signer, folder: Path) -> None:
        self.grants = grants
        self._book = ClientBook(RunDir(folder).clients, signer.client_keys)
        self._book.shared = grants.by_id

    def lets_in(self, credential: str) -> bool:
        now_us = RUNTIME.wall_us()
        token = ClientSigner(credential).token("", audience="notes", now_us=now_us)
        try:
            self._book.admit(token, audience="notes", now_us=now_us)
        except Unauthenticated:
            return False
        return True


@asynccontextmanager
async def replica(folder: Path) -> AsyncIterator[Replica]:
    config, signer = load_config(folder, environment={}), Signer(bytes.fromhex(KEY))
    grants = grants_on_nats(config, RunDir(folder), signer, RUNTIME.wall_us)
    await grants.open()
    task = asyncio.create_task(grants.run())
    try:
        yield Replica(grants, signer, folder)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await grants.close()


def added(run: Run, folder: Path, name: str) -> str:
    ran = run(folder, "client", "add", name, "--scope", "notes", "--why", "tries")
    assert ran.code == 0, ran.err
    return ran.out.strip()


async def test_a_revocation_reaches_every_host(folder: Path, tmp_path: Path, run: Run) -> None:
    """Within a second, from any of them, while no file of any host knows of the client."""
    elsewhere = host_of(tmp_path / "two", _name(folder))
    async with replica(folder) as one, replica(elsewhere) as other:
        ada = await asyncio.to_thread(added, run, folder, "ada")
        bob = await asyncio.to_thread(added, run, elsewhere, "bob")
        await until(lambda: all(each.lets_in(who) for each in (one, other) for who in (ada, bob)))
        ran = await asyncio.to_thread(run, elsewhere, "client", "revoke", "ada", "--why", "lost")
        assert ran.out == "revoked: the credential of client ada\n"
        await until(lambda: not one.lets_in(ada) and not other.lets_in(ada))
        assert one.lets_in(bob)
        assert other.lets_in(bob)
    listed = await asyncio.to_thread(run, folder, "client", "list", "--all")
    assert "lost" in listed.out
    again = await asyncio.to_thread(run, folder, "client", "revoke", "ada", "--why", "again")
    assert (again.code, "those that are: bob" in again.err) == (2, True)
    assert not RunDir(folder).clients.exists()


def _name(folder: Path) -> str:
    text = (folder / "synchromesh.toml").read_text()
    return text.partition('name = "')[2].partition('"')[0]


async def test_what_was_revoked_stays_so_whatever_becomes_of_the_server(
    server: NatsServer, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is away, and it has lost its disk: the last known holds, and is written down again."""
    monkeypatch.setattr(nats_connection, "CONNECT_WITHIN_S", 1.0)
    async with replica(folder) as one:
        ada = await asyncio.to_thread(added, run, folder, "ada")
        bob = await asyncio.to_thread(added, run, folder, "bob")
        await until(lambda: one.lets_in(ada) and one.lets_in(bob))
        await asyncio.to_thread(run, folder, "client", "revoke", "ada", "--why", "lost")
        await until(lambda: not one.lets_in(ada))
        server.stop()
        await until(lambda: one.grants.why_old != "")
        assert (one.lets_in(ada), one.lets_in(bob)) == (False, True)
        server.start()
        await until(lambda: one.grants.why_old == "")
        async with replica(folder) as later:
            assert (later.lets_in(ada), later.lets_in(bob)) == (False, True)


def made(name: str, *, ago: dt.timedelta = dt.timedelta(0)) -> ClientGrant:
    now_us = RUNTIME.wall_us() - int(ago.total_seconds()) * 1_000_000
    return granted(
        name, ["notes"], "", 1, ("ada", "tries"), random.Random(name), now_us=now_us
    )  # fmt: skip


def test_of_two_states_of_a_grant_the_revoked_holds() -> None:
    """In whichever order they come; what ended a year ago is forgotten."""
    ada, old = made("ada"), made("old", ago=KEPT + dt.timedelta(days=2))
    gone = revoked([ada], "ada", who="bob", why="lost", now_us=RUNTIME.wall_us())
    before, after = SharedGrants((ada,)), SharedGrants((gone, old))
    assert before.merged(after) == after.merged(before) == after.merged(after).merged(before)
    assert {each.id for each in before.merged(after).clients} == {ada.id, old.id}
    assert before.merged(after).since(dt.datetime.now(dt.UTC) - KEPT) == SharedGrants((gone,))
