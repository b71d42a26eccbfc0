"""A PostgreSQL server that stands still, or is out of reach without a word, is noticed from here.

Nothing on its side ends what waits for it: not `statement_timeout`, and no connection is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from nats_world import Wire
from postgres_server import PostgresServer, empty_database, shared_server
from synchromesh.errors import StoreBroken, StoreUnavailable
from synchromesh.events.schema import SCHEMA as EVENTS
from synchromesh.runtime import RealRuntime
from synchromesh.store import OUTAGE, Migration, Schema, Unit, postgres_connection
from synchromesh.store.postgres import PostgresOptions, PostgresStore

pytestmark = pytest.mark.anyio

ITEMS = Schema("items", (Migration(1, ("create table item(id integer primary key)",), 1),))
WAIT_S = 180.0


class Watched:
    """A store, and what it said of its outages."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.heard: list[bool] = []
        self._changed = asyncio.Event()
        store.listen(OUTAGE, self._hear)

    def _hear(self) -> None:
        self.heard.append(self.store.broken is not None)
        self._changed.set()

    async def changed(self) -> None:
        async with asyncio.timeout(WAIT_S):
            await self._changed.wait()
        self._changed.clear()


async def open_at(
    url: str, monkeypatch: pytest.MonkeyPatch, schemas: Sequence[Schema] = (ITEMS,)
) -> Watched:
    """Open a store with short limits on this side."""
    store = await PostgresStore.open(
        url, service="still", schemas=schemas, runtime=RealRuntime(),
        options=PostgresOptions(connections_max=1, unit_limit_s=2.0, lease_s=2.0),
    )  # fmt: skip
    monkeypatch.setattr(postgres_connection, "_CONNECT_S", 0.5)
    return Watched(store)


async def put(unit: Unit, number: int) -> int:
    await unit.execute("insert into item(id) values (?)", number)
    return number


async def items(store: PostgresStore) -> list[object]:
    return [row[0] for row in await store.read("select id from item order by id")]


@pytest.fixture
async def wire(anyio_backend: str) -> AsyncIterator[Wire]:
    await empty_database("still")
    wire = Wire(f"{shared_server().folder}/socket/.s.PGSQL.5432")
    await wire.start()
    yield wire
    await wire.close()


@pytest.mark.parametrize("is_back_only", [True, False])
async def test_a_commit_on_a_way_that_stands_still_is_looked_up(
    wire: Wire, is_back_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reached the server, or did not: it takes effect once, and meanwhile others are told."""
    url = f"postgresql://postgres@127.0.0.1:{wire.port}/still"
    watched = await open_at(url, monkeypatch)
    store, ran = watched.store, 0

    async def body(unit: Unit) -> int:
        nonlocal ran
        ran += 1
        await put(unit, ran)
        if ran == 1:
            wire.hold(is_back_only=is_back_only)
        return ran

    asked = asyncio.ensure_future(store.write(body, name="put"))
    await watched.changed()
    assert watched.heard == [True]
    with pytest.raises(StoreUnavailable, match="it does not answer"):
        await store.write(lambda unit: put(unit, 9), name="put")
    wire.flow()
    assert await asyncio.wait_for(asked, WAIT_S) == ran == (1 if is_back_only else 2)
    assert await items(store) == [ran]
    assert watched.heard == [True, False]
    await store.close()


async def test_a_server_that_stands_still_is_noticed_and_waited_for(
    anyio_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units, reads and the lease come to an end, and go on by themselves once it does."""
    server = PostgresServer()
    try:
        watched = await open_at(await empty_database("still", server), monkeypatch)
        store = watched.store
        assert await store.write(lambda unit: put(unit, 1), name="put") == 1
        assert await items(store) == [1]
        await store.owners.add(("first",), Duties())
        assert store.owners.owned == {"first"}
        server.pause()
        asked = asyncio.ensure_future(store.write(lambda unit: put(unit, 2), name="put"))
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(store.read("select 1"), WAIT_S)
        await asyncio.wait_for(store.owners.add(("second",), Duties()), WAIT_S)
        assert store.owners.owned == {"first"}, "nobody was asked"
        if not watched.heard:
            await watched.changed()
        assert watched.heard == [True]
        server.resume()
        assert await asyncio.wait_for(asked, WAIT_S) == 2
        assert await items(store) == [1, 2]
        async with asyncio.timeout(WAIT_S):
            while store.owners.owned != {"first", "second"}:
                await store.owners.add((), Duties())
        await store.close()
    finally:
        server.close()


@pytest.mark.parametrize("is_lost", [True, False])
async def test_a_store_is_closed_whatever_its_server_does(
    wire: Wire, is_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its connections waits for an answer: a commit, positions, a read, a lease, a hint.

    The server is lost as it closes, or answers never: who waits is told, and nothing waits on.
    """
    url = f"postgresql://postgres@127.0.0.1:{wire.port}/still"
    store = (await open_at(url, monkeypatch, schemas=[ITEMS, EVENTS])).store
    await store.owners.add(("first",), Duties())
    await store.read("select 1")

    async def body(unit: Unit) -> int:
        await put(unit, 1)
        wire.hold()
        return 1

    asked = asyncio.ensure_future(store.write(body, name="put"))
    while not wire.is_held:
        await asyncio.sleep(0)
    looked = asyncio.Event()
    store.listen("topic", looked.set)
    store.look({"topic"})
    store._wakeups.tell({"hint"})
    every = [
        asyncio.ensure_future(store.read("select 1")),
        asyncio.ensure_future(store.owners.add(("second",), Duties())),
    ]
    for _ in range(5):
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.sleep(0)
    if is_lost:
        wire.cut()
    async with asyncio.timeout(WAIT_S):
        await closing
        with pytest.raises(
            StoreBroken, match="went away" if is_lost else "was not over 1.5 s after"
        ):
            await asked
        await looked.wait()
        await asyncio.gather(*every, return_exceptions=True)
    await store.close()


class Duties:
    """Does nothing of what it owns."""

    def gained(self, duties: object) -> None:
        """Begin nothing."""

    async def lost(self, duties: object) -> None:
        """End nothing."""


async def test_the_next_server_is_asked_where_the_first_is_silent(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is dialed with a limit of its own; what only reads is not sent to a standby either."""
    silent = Wire(f"{shared_server().folder}/socket/.s.PGSQL.5432")
    await silent.start()
    silent.hold()
    monkeypatch.setattr(postgres_connection, "_CONNECT_EACH_S", 2.0)
    both = f"127.0.0.1:{silent.port},127.0.0.1:{wire.port}"
    connection = await postgres_connection.connect(
        f"postgresql://postgres@{both}/still", service="still", is_read_only=True
    )
    assert await connection.fetchval("select 1") == 1
    connection.terminate()
    monkeypatch.setattr(postgres_connection, "_CONNECT_EACH_S", 0.1)
    wire.hold()
    with pytest.raises(StoreUnavailable, match="none of these servers") as caught:
        await postgres_connection.connect(f"postgresql://postgres@{both}/still", service="still")
    for port in (silent.port, wire.port):
        assert f"127.0.0.1:{port}/still cannot be reached (it does not answer)" in str(caught.value)
    await silent.close()
