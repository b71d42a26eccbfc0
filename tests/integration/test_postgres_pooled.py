"""A store behind a real PgBouncer: session mode is used, every other one is refused."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from postgres_server import empty_database, shared_server
from synchromesh.errors import StoreBroken, StoreError, StoreUnavailable
from synchromesh.events import SCHEMA, NewEvent, append
from synchromesh.events.appending import TOPIC
from synchromesh.runtime import RealRuntime
from synchromesh.store import Migration, Schema, Unit
from synchromesh.store.postgres import PostgresOptions, PostgresStore
from synchromesh.store.postgres_connection import connect

pytestmark = pytest.mark.anyio

ITEMS = Schema("items", (Migration(1, ("create table item(id text primary key)",), 1),))
WAIT_S = 180.0
PROGRAM = "/usr/sbin/pgbouncer"
INSTALL = "apt-get update && apt-get install --yes pgbouncer"
DROPPED = (
    "jit, synchronous_commit, default_transaction_isolation, default_transaction_read_only, "
    "statement_timeout, idle_in_transaction_session_timeout"
)


class Bouncer:
    """A PgBouncer before the shared server, on a socket of its own; `configure` may be repeated."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        """Return the address of a database, by the pooler."""
        return f"postgresql://postgres@/{database}?host={self._folder}&port=6432"

    async def configure(self, mode: str, **more: object) -> None:
        """Start it, or have it read its settings again; wait until it has."""
        host = urlsplit(shared_server().url("x")).query.removeprefix("host=")
        settings = {
            "pool_mode": mode, "listen_addr": "", "unix_socket_dir": self._folder,
            "auth_type": "any", "admin_users": "admin", "default_pool_size": 40, **more,
        }  # fmt: skip
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        path = self._folder / "pgbouncer.ini"
        path.write_text(f"[databases]\n* = host={host} user=postgres\n[pgbouncer]\n{lines}")
        if self._process is None:
            assert Path(PROGRAM).exists(), f"no PgBouncer; install it: {INSTALL}"
            # Root it refuses to run as.
            user: dict[str, Any] = {}
            if os.geteuid() == 0:
                user = {"user": 65534, "group": 65534, "extra_groups": []}
            with (self._folder / "log").open("wb") as log:
                self._process = subprocess.Popen([PROGRAM, path], stdout=log, stderr=log, **user)
        else:
            self._process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(WAIT_S):
            while not await self._has(mode):
                assert self._process.poll() is None, (self._folder / "log").read_text()
                await asyncio.sleep(0.01)

    async def _has(self, mode: str) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self._folder / ".s.PGSQL.6432")
        except OSError:
            return False
        # As a client of the simple protocol alone, which is all that its console speaks.
        start = b"\0\x03\0\0user\0admin\0database\0pgbouncer\0\0"
        ask = b"show config\0"
        writer.write((len(start) + 4).to_bytes(4, "big") + start)
        writer.write(b"Q" + (len(ask) + 4).to_bytes(4, "big") + ask + b"X\0\0\0\4")
        told = await reader.read()
        writer.close()
        return b"pool_mode" + len(mode).to_bytes(4, "big") + mode.encode() in told

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def bouncer() -> Iterator[Bouncer]:
    # Beside the server's own folder, which is short enough for a socket, and whoever may read it.
    # An address of its own each time: what was seen of another is nothing to go by.
    folder = Path(tempfile.mkdtemp(prefix="pooler", dir=shared_server().folder))
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    made = Bouncer(folder)
    yield made
    made.close()


SLEEPING = (
    "select count(*) from pg_stat_activity "
    "where query like '%pg_sleep(600)%' and pid <> pg_backend_pid() and state = 'active'"
)
Opener = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def opened(bouncer: Bouncer) -> AsyncIterator[Opener]:
    """Opens stores of one database, by the pooler; each is a replica of its own."""
    stores: list[PostgresStore] = []
    await empty_database("pooled")

    async def open_one(**options: Any) -> PostgresStore:
        store = await PostgresStore.open(
            bouncer.url("pooled"), service="pooled", schemas=[SCHEMA, ITEMS],
            runtime=RealRuntime(), options=PostgresOptions(**options),
        )  # fmt: skip
        stores.append(store)
        return store

    yield open_one
    for each in stores:
        await each.close()


async def sold(unit: Unit) -> None:
    await append(unit, "s/1", [NewEvent("shop.sold", b"{}")], expected=None)


async def shown(unit: Unit) -> dict[str, str]:
    rows = await unit.execute(
        "select name, setting from pg_settings where name in ('jit', 'synchronous_commit', "
        "'statement_timeout', 'idle_in_transaction_session_timeout', 'TimeZone', "
        "'default_transaction_isolation', 'transaction_isolation')"
    )
    # It is committed with the session, and taken off before the next.
    await unit.execute("select set_config('jit', 'on', false)")
    return {str(name): str(value) for name, value in rows}


@pytest.mark.parametrize("more", [{}, {"ignore_startup_parameters": DROPPED}])
async def test_a_store_works_behind_session_mode(
    bouncer: Bouncer, opened: Opener, more: dict[str, str]
) -> None:
    """Its settings hold in each unit, others are woken, positions are given, a cut is mended; also
    where the pooler clears no session that it hands on."""
    await bouncer.configure("session", server_reset_query="", **more)
    first = await opened(look_every_s=60.0, connections_max=1)
    second = await opened(look_every_s=60.0)
    for _ in range(2):
        assert await first.write(shown, name="shown") == {
            "jit": "off", "synchronous_commit": "on", "statement_timeout": "5000",
            "idle_in_transaction_session_timeout": "2000", "TimeZone": "UTC",
            "default_transaction_isolation": "serializable",
            "transaction_isolation": "serializable",
        }  # fmt: skip
    assert await second.read("select current_setting('default_transaction_read_only')") == [("on",)]
    heard = asyncio.Event()
    second.listen(TOPIC, heard.set)
    for count in range(1, 4):
        await first.write(sold, name="sold")
        async with asyncio.timeout(WAIT_S):
            while (await second.read("select max(position) from sm_event"))[0][0] != count:
                await asyncio.sleep(0.01)
            await heard.wait()
        heard.clear()
    connection = await asyncpg.connect(shared_server().url("pooled"))
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where application_name like 'synchromesh %' and datname = 'pooled'"
    )
    await connection.close()
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(StoreUnavailable):
                await first.write(sold, name="sold again")
                break
    assert await second.read("select count(*) from sm_event") == [(4,)]
    reading = asyncio.ensure_future(second.read("select count(*) from pg_sleep(600)"))
    async with asyncio.timeout(WAIT_S):
        while await first.read(SLEEPING) != [(1,)]:
            await asyncio.sleep(0.01)
        reading.cancel()
        while await first.read(SLEEPING) != [(0,)]:
            await asyncio.sleep(0.01)
    with pytest.raises(StoreBroken, match="there is no such database; create it"):
        await connect(bouncer.url("nowhere"), service="x")


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("more", [{}, {"ignore_startup_parameters": DROPPED}])
async def test_a_mode_without_sessions_is_refused_with_the_reason(
    bouncer: Bouncer, opened: Opener, mode: str, more: dict[str, str]
) -> None:
    """Also where others have been there before, so that many sessions idle, taken in turn."""
    await bouncer.configure(mode, server_round_robin=1, **more)
    busy = [await asyncpg.connect(bouncer.url("pooled")) for _ in range(4)]
    await asyncio.gather(*(each.execute("select pg_sleep(0.1)") for each in busy))
    with pytest.raises(StoreBroken, match=f"a pooler in {mode} mode.*set pool_mode = session"):
        await opened()
    for each in busy:
        await each.close()


async def test_a_mode_that_is_changed_while_a_store_is_open_is_noticed(
    bouncer: Bouncer, opened: Opener
) -> None:
    """A unit goes on in no other session than its own: it is done once, or refused; the store is
    closed with the reason, and opens by itself once there are sessions again."""
    await bouncer.configure("session")
    store = await opened()
    done: list[str] = []
    count = 0

    async def put(unit: Unit, key: str) -> None:
        await unit.execute("insert into item(id) values (?)", key)

    async def put_some() -> None:
        nonlocal count
        count += 1
        keys = [f"{count}/{n}" for n in range(8)]
        ends = await asyncio.gather(
            *(store.write(partial(put, key=key), name="put") for key in keys),
            return_exceptions=True,
        )
        assert all(end is None or isinstance(end, StoreError) for end in ends), ends
        done.extend(key for key, end in zip(keys, ends, strict=True) if end is None)

    await put_some()
    assert len(done) == 8
    await bouncer.configure("transaction")

    was_closed = asyncio.Event()

    async def put_until_closed() -> None:
        while not was_closed.is_set():
            await put_some()

    # What was under way waits, as it does for a server that is away.
    putting = asyncio.ensure_future(put_until_closed())
    async with asyncio.timeout(WAIT_S):
        while "a pooler in transaction mode" not in (store.broken or ""):
            await asyncio.sleep(0.01)
        was_closed.set()
        await bouncer.configure("session")
        await putting
        while store.broken is not None:
            await asyncio.sleep(0.01)
    await put_some()
    rows = await store.read("select id from item")
    assert sorted(str(key) for (key,) in rows) == sorted(done)


async def test_a_pooler_without_room_says_which_limit_to_look_at(
    bouncer: Bouncer, opened: Opener
) -> None:
    """That is no fault of the address, and may be better the next time."""
    await bouncer.configure("session", max_client_conn=1)
    held = await asyncpg.connect(bouncer.url("pooled"))
    with pytest.raises(StoreUnavailable, match=r"no more connections allowed.*max_client_conn"):
        await opened()
    await held.close()
