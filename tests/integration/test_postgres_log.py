"""Positions that are given after the commit, and wake-ups between processes, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from postgres_server import empty_database
from synchromesh.events import SCHEMA, Checkpoint, NewEvent, append, load, position_of, read
from synchromesh.events.appending import TOPIC
from synchromesh.events.log import AppendReceipt
from synchromesh.runtime import RealRuntime
from synchromesh.store import Unit, postgres_wakeups
from synchromesh.store.postgres import PostgresOptions, PostgresStore

pytestmark = pytest.mark.anyio

WAIT_S = 180.0


class Replicas:
    """Opens stores of one database, each as a process of its own would."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.opened: list[PostgresStore] = []

    async def open(self, **options: Any) -> PostgresStore:
        store = await PostgresStore.open(
            self.url, service="logs", schemas=[SCHEMA], runtime=RealRuntime(),
            options=PostgresOptions(**options),
        )  # fmt: skip
        self.opened.append(store)
        return store


@pytest.fixture
async def replicas(anyio_backend: str) -> AsyncIterator[Replicas]:
    made = Replicas(await empty_database("logs"))
    yield made
    for each in made.opened:
        await each.close()


async def add(store: PostgresStore, stream: str, *, error: Exception | None = None) -> int:
    async def body(unit: Unit) -> int:
        version = await append(unit, stream, [NewEvent("shop.sold", b"{}")], expected=None)
        if error is not None:
            raise error
        return version

    return await store.write(body, name="add")


async def add_beside(store: PostgresStore, stream: str) -> int:
    """Append in a unit that does more, and so has a transaction of its own and no order."""

    async def body(unit: Unit) -> int:
        await unit.execute("select 1")
        return await append(unit, stream, [NewEvent("shop.sold", b"{}")], expected=None)

    return await store.write(body, name="add beside")


async def test_a_tailing_reader_skips_nothing_of_two_processes(replicas: Replicas) -> None:
    """Four writers in each, groups and units that do more, and some that fail: no hole, no event
    behind what was read (E3)."""
    stores = [await replicas.open() for _ in range(2)]
    tail = await replicas.open(look_every_s=0.01)
    total = 2 * 4 * 24

    async def write(store: PostgresStore, number: int) -> None:
        for n in range(24):
            if n % 5 == 0:
                with pytest.raises(ValueError, match="no"):
                    await add(store, f"s/{number}", error=ValueError("no"))
            stream = f"s/{(number + n) % 4}"
            await (add if n % 3 else add_beside)(store, stream)

    async def follow() -> list[tuple[int, str, int]]:
        seen: list[tuple[int, str, int]] = []
        while len(seen) < total:
            after = Checkpoint(tail.log_id, seen[-1][0] if seen else 0)
            found = await read(tail, after=after, limit=50)
            seen += [(each.position, each.stream, each.version) for each in found]
        return seen

    reading = asyncio.ensure_future(follow())
    await asyncio.gather(*(write(store, n) for n in range(4) for store in stores))
    seen = await asyncio.wait_for(reading, WAIT_S)
    assert [position for position, _, _ in seen] == list(range(1, total + 1))
    for stream in {stream for _, stream, _ in seen}:
        versions = [version for _, of, version in seen if of == stream]
        assert versions == list(range(1, len(versions) + 1))


async def test_what_was_answered_has_a_position(replicas: Replicas) -> None:
    """Readers see it at once, and a receipt is found; a unit's own events have none within it."""
    store = await replicas.open()

    async def body(unit: Unit) -> int:
        version = await append(unit, "a", [NewEvent("shop.sold", b"{}")] * 2, expected=0)
        assert [each.position for each in await load(unit, "a")] == [0, 0]
        return version

    version = await store.write(body, name="add")
    assert await position_of(store, AppendReceipt("a", version)) == 2
    assert [each.position for each in await load(store, "a")] == [1, 2]


async def test_what_a_process_left_without_a_position_gets_one(replicas: Replicas) -> None:
    """It died between its commit and its turn: any other one numbers it."""
    dying = await replicas.open()
    await add(dying, "a")
    await dying._sequencer.close()
    lost = asyncio.ensure_future(add_beside(dying, "a"))
    while [each.position for each in await load(dying, "a")] != [1, 0]:
        await asyncio.sleep(0.01)
    other = await replicas.open(look_every_s=0.01)

    async def numbered() -> None:
        while [each.position for each in await load(other, "a")] != [1, 2]:
            await asyncio.sleep(0.01)

    await asyncio.wait_for(numbered(), WAIT_S)
    assert not lost.done()
    await dying._sequencer.close()
    assert await lost == 2, "it is durable, and so it is answered"


async def test_one_sequencer_at_a_time_gives_positions(replicas: Replicas) -> None:
    """Whoever holds the row of the log; the others wait, and number what is there by then."""
    store = await replicas.open()
    await add(store, "a")
    other = await asyncpg.connect(replicas.url)
    await other.execute("begin; select last from sm_log for update")
    waiting = asyncio.ensure_future(add_beside(store, "a"))
    sequencer = store._sequencer._connection
    assert sequencer is not None
    blocked = "select count(*) from pg_locks where pid = $1 and not granted"
    async with asyncio.timeout(WAIT_S):
        while not await other.fetchval(blocked, sequencer.get_server_pid()):
            await asyncio.sleep(0.01)
    assert not waiting.done()
    assert [each.position for each in await load(store, "a")] == [1, 0]
    await other.execute("commit")
    assert await asyncio.wait_for(waiting, WAIT_S) == 2
    assert [each.position for each in await load(store, "a")] == [1, 2]
    await other.close()


async def test_a_sequencer_whose_session_ends_goes_on(replicas: Replicas) -> None:
    """Whoever waits is answered once it is connected again."""
    store = await replicas.open()
    await add(store, "a")
    sequencer = store._sequencer._connection
    assert sequencer is not None
    admin = await asyncpg.connect(replicas.url)
    await admin.execute("select pg_terminate_backend($1)", sequencer.get_server_pid())
    await admin.close()
    await asyncio.wait_for(add_beside(store, "a"), WAIT_S)
    assert await position_of(store, AppendReceipt("a", 2)) == 2


async def heard_from(teller: PostgresStore, hearer: PostgresStore) -> None:
    """Tell until it is heard: the hearer may be about to listen."""
    heard = asyncio.Event()
    stop = hearer.listen(TOPIC, heard.set)
    async with asyncio.timeout(WAIT_S):
        while not heard.is_set():
            await add(teller, "a")
            await asyncio.sleep(0.01)
    stop()


async def test_other_processes_are_woken(replicas: Replicas) -> None:
    """By what is committed elsewhere; and again after their connection was ended without a word."""
    teller, hearer = await replicas.open(), await replicas.open()
    await heard_from(teller, hearer)
    missed = asyncio.Event()
    hearer.listen("other", missed.set)
    admin = await asyncpg.connect(replicas.url)
    ended = await admin.fetchval(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where datname = 'logs' and query ilike 'listen%'"
    )
    assert ended >= 1
    # All who listen look, for something may have been missed.
    await asyncio.wait_for(missed.wait(), WAIT_S)
    await heard_from(teller, hearer)
    await admin.close()


async def test_notifications_are_few_and_not_in_units(
    replicas: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many commits, one notification for as many as came together; one's own are not heard."""
    # Far enough apart that a busy machine has made many commits meanwhile.
    monkeypatch.setattr(postgres_wakeups, "_APART_S", 0.5)
    store = await replicas.open()
    admin = await asyncpg.connect(replicas.url)
    payloads: list[str] = []
    await admin.add_listener("sm_topics", lambda *told: payloads.append(told[3]))
    await asyncio.gather(*(add(store, f"s/{n}") for n in range(64)))
    while not payloads:
        await admin.fetchval("select 1")
        await asyncio.sleep(0.01)
    assert len(payloads) <= 32
    assert all(TOPIC in each for each in payloads)
    await admin.execute("select pg_notify('sm_topics', 'not ours')")
    await add(store, "s/1")
    await admin.close()
