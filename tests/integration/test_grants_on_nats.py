"""Grants of clients in NATS KV: what is revoked on one host is refused on every other."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from cli_runs import Run, runner
from nats_server import NatsServer
from nats_world import until
from notes_app import TOML
from synchromesh.clients import ClientBook, ClientGrant, ClientSigner, credential_text
from synchromesh.discovery import nats_connection
from synchromesh.discovery.nats_document import Document
from synchromesh.errors import Unauthenticated
from synchromesh.identity import Signer
from synchromesh.runtime import RealRuntime
from synchromesh.system import RunDir
from synchromesh.system.config.client_grants import KEPT, ClientsFile, granted, revoked
from synchromesh.system.config.grants_on_nats import GrantsOnNats, SharedGrants, grants_on_nats
from synchromesh.system.config.reading import load_config
from synchromesh.system.config.rundir import changing

pytestmark = pytest.mark.anyio

KEY = "22" * 32
RUNTIME = RealRuntime()
FAR = dt.datetime(2999, 1, 1, tzinfo=dt.UTC)


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


def file_of(folder: Path) -> ClientsFile:
    return ClientsFile(RunDir(folder).clients, RUNTIME.disk, RUNTIME.wall_us())


@asynccontextmanager
async def replica(folder: Path) -> AsyncIterator[Replica]:
    config, signer = load_config(folder, environment={}), Signer(bytes.fromhex(KEY))
    grants = grants_on_nats(config, RunDir(folder), signer, RUNTIME.wall_us)
    await grants.open(file_of(folder).read())
    loops = (grants.run(), grants.note_revoked_in(file_of(folder)))
    tasks = [asyncio.create_task(each) for each in loops]
    try:
        yield Replica(grants, signer, folder)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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


async def test_what_was_revoked_does_not_come_back_from_a_folder(
    server: NatsServer, folder: Path, run: Run
) -> None:
    """The folder is told, so it brings no active grant where NATS lost its disk and all ended."""
    RunDir(folder).create()
    ada = file_of(folder).add(
        "ada", ["notes"], serves="", days=1, made=("ada", "tries"), rng=random.Random(1)
    )
    credential = credential_text(ada.id, Signer(bytes.fromhex(KEY)).client_key(ada.id))
    async with replica(folder) as before:
        assert before.lets_in(credential)
    ran = await asyncio.to_thread(run, folder, "client", "revoke", "ada", "--why", "lost")
    assert ran.code == 0, ran.err
    server.stop()
    shutil.rmtree(server.folder / "jetstream")
    server.start()
    async with replica(folder) as later:
        assert not later.lets_in(credential)
        (told,) = later.grants.known.clients
        assert told.revoked is not None
        assert told.revoked.why == "lost"


async def test_what_was_revoked_on_one_host_does_not_come_back_from_another(
    server: NatsServer, folder: Path, run: Run, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each process notes in its own folder what it learns, and none of them makes a file."""
    other, empty = (host_of(tmp_path / name, request.node.name) for name in ("two", "three"))
    for each in (folder, other, empty):
        RunDir(each).create()
    ada = file_of(folder).add(
        "ada", ["notes"], serves="", days=1, made=("ada", "tries"), rng=random.Random(2)
    )
    shutil.copy(RunDir(folder).clients, RunDir(other).clients)
    credential = credential_text(ada.id, Signer(bytes.fromhex(KEY)).client_key(ada.id))
    async with replica(other) as before, replica(empty):
        assert before.lets_in(credential)
        # Another command may be at work on the file when it comes.
        with changing(RunDir(other).clients, RUNTIME.disk):
            ran = await asyncio.to_thread(run, folder, "client", "revoke", "ada", "--why", "lost")
            assert ran.code == 0, ran.err
            await until(lambda: not before.lets_in(credential))
        await until(lambda: file_of(other).read()[0].revoked is not None)
        assert not RunDir(empty).clients.exists()
    server.stop()
    shutil.rmtree(server.folder / "jetstream")
    server.start()
    async with replica(other) as later:
        assert not later.lets_in(credential)


class Shelf:
    """A document as NATS keeps it, in memory, and how often it was written."""

    there = "memory"
    bytes_max = 1_000_000

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.written = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read(self, after: int | None = None) -> Document | None:
        return None if after == self.written else Document(self.data, self.written)

    async def write(self, data: bytes, *, expected: int) -> int:
        assert expected == self.written
        self.data, self.written = data, self.written + 1
        return self.written


def grants_of(shelf: Shelf, wall_us: Callable[[], int] = RUNTIME.wall_us) -> GrantsOnNats:
    return GrantsOnNats(cast("Any", shelf), wall_us)


async def test_a_folder_that_comes_later_brings_what_was_revoked_there() -> None:
    """Of grants that are known, also a year ago; no others, and what is told twice is no write."""
    ada, bob, eve = (
        msgspec.structs.replace(each, expires=each.expires + 2 * KEPT)
        for each in (made("ada", ago=KEPT * 1.5), made("bob"), made("eve"))
    )
    year_ago_us = RUNTIME.wall_us() - int(KEPT.total_seconds() * 1.2e6)
    gone = revoked([ada], "ada", who="bob", why="lost", now_us=year_ago_us)
    eve_gone = revoked([eve], "eve", who="bob", why="lost", now_us=RUNTIME.wall_us())
    shelf = Shelf()
    await grants_of(shelf).open([ada, bob])
    later = grants_of(shelf)
    for _ in range(2):
        await later.open([gone, bob, eve_gone])
        assert later.by_id() == {ada.id: gone, bob.id: bob}
        assert shelf.written == 2
    again = grants_of(shelf)
    await again.open([ada])
    assert again.by_id()[ada.id] == gone


async def test_what_is_forgotten_is_not_written_down_again_and_again() -> None:
    """A process that runs when a grant ended a year ago forgets it, as those that start do."""
    now_us, shelf = [RUNTIME.wall_us()], Shelf()
    ada, bob = made("ada"), msgspec.structs.replace(made("bob"), expires=FAR)
    grants = grants_of(shelf, lambda: now_us[0])
    await grants.open([ada, bob])
    now_us[0] += int((KEPT + dt.timedelta(days=2)).total_seconds()) * 1_000_000
    for _ in range(3):
        assert await grants.first()
        assert grants.by_id() == {bob.id: bob}
    assert shelf.written == 1
    await grants_of(shelf, lambda: now_us[0]).open([ada])
    assert shelf.written == 1


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
    assert before.merged(after).trimmed(dt.datetime.now(dt.UTC)) == SharedGrants((gone,))
