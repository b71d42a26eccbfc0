"""A standby that takes over: what was acknowledged is there, and one owner is believed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripts.commit_cuts import HOWS, CommitCuts
from scripts.postgres_pair import SETTINGS, PostgresPair

from lists_world import KEYS, LISTS, READ, ListClient, values
from postgres_server import empty_database, shared_server
from synchromesh.runtime import RealRuntime
from synchromesh.store import Unit
from synchromesh.store.postgres import PostgresOptions, PostgresStore
from synchromesh.testing.list_append import anomalies

pytestmark = pytest.mark.anyio

WAIT_S = 180.0
DUTY = "relay/billing"
APPEND = "insert into list(key, vals) values (?, '1 ')"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[PostgresPair]:
    made = PostgresPair(tmp_path, (*SETTINGS, "fsync=off", "shared_buffers=16MB"))
    await made.start()
    yield made
    await made.stop()


async def open_at(url: str, **options: Any) -> PostgresStore:
    return await PostgresStore.open(
        url, service="lists", schemas=[LISTS], runtime=RealRuntime(),
        options=PostgresOptions(**options),
    )  # fmt: skip


async def test_a_standby_that_is_promoted_has_all_that_was_acknowledged(pair: PostgresPair) -> None:
    """Processes find it by themselves, and no history of theirs tells of the change."""
    stores = [await open_at(pair.url()) for _ in range(2)]
    clients = [ListClient(number, stores[number % 2]) for number in range(6)]
    acknowledged, is_over = [0] * len(clients), asyncio.Event()

    async def go_on(number: int) -> None:
        while not is_over.is_set():
            acknowledged[number] += await clients[number].run_one()

    async def until(done: int) -> None:
        wanted = [each + done for each in acknowledged]
        while any(a < b for a, b in zip(acknowledged, wanted, strict=True)):
            await asyncio.sleep(0.01)

    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        for number in range(len(clients)):
            group.create_task(go_on(number))
        await until(10)
        first = pair.primary
        await pair.caught_up()
        await pair.lose(first)
        await pair.promote()
        await until(10)
        is_over.set()
    history = [txn for each in clients for txn in each.history(has_times=False)]
    for each in stores:
        await each.close()
    assert pair.primary is not first
    last = await open_at(pair.url())
    assert anomalies(history, {key: values(await last.read(READ, key)) for key in KEYS}) == []
    await last.close()


class Duties:
    """Does nothing of what it owns."""

    def gained(self, duties: object) -> None:
        """Begin nothing."""

    async def lost(self, duties: object) -> None:
        """End nothing."""


async def append(unit: Unit, store: PostgresStore, key: str) -> None:
    """Append under the lease of a store, as what does a duty writes."""
    await store.owners.fence((DUTY,)).check(unit)
    await unit.execute(APPEND, key)


async def test_commits_that_are_cut_on_their_way_are_found_out(anyio_backend: str) -> None:
    """Not sent, just sent, or done and not answered: each unit has taken effect once, or never."""
    server = shared_server()
    await empty_database("cuts")
    cuts = CommitCuts(server.folder / "socket/.s.PGSQL.5432", random.Random(3))
    await cuts.start()
    url = f"postgresql://postgres@127.0.0.1:{cuts.port}/cuts"
    stores = [await open_at(url) for _ in range(2)]
    clients = [ListClient(number, stores[number % 2]) for number in range(4)]
    cuts.chance = 0.25
    async with asyncio.timeout(WAIT_S):
        while min(cuts.count[how] for how in HOWS) < 8:
            assert all(await asyncio.gather(*(each.run_one() for each in clients)))
    cuts.chance = 0.0
    history = [txn for each in clients for txn in each.history(has_times=False)]
    final = {key: values(await stores[0].read(READ, key)) for key in KEYS}
    for each in stores:
        await each.close()
    await cuts.stop()
    assert anomalies(history, final) == []
