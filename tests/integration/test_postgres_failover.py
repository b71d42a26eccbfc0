"""A standby that takes over: what was acknowledged is there, and one owner is believed."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from scripts.commit_cuts import HOWS, CommitCuts
from scripts.postgres_pair import SETTINGS, Node, PostgresPair

from lists_world import KEYS, LISTS, READ, ListClient, values
from postgres_server import empty_database, shared_server
from synchromesh.errors import StoreBroken, StoreUnavailable
from synchromesh.runtime import RealRuntime
from synchromesh.store import Unit, postgres_connection
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
    async with asyncio.timeout(WAIT_S):
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


async def test_of_two_who_hold_a_lease_over_a_standby_one_is_acknowledged(
    pair: PostgresPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that was left behind grants and keeps what it likes: no commit on it is believed.

    Neither one that waits for the standby, nor one that stands there without it, once the session
    that waited has ended: it is seen there, and is looked up, and is lost when the server is.
    """
    old, new = pair.nodes
    # Whoever holds it reaches nobody else; the other one knows both.
    holder = await open_at(old.url, unit_limit_s=1.0, lease_s=2.0, connections_max=1)
    with pytest.raises(StoreUnavailable, match="takes no writes, as a standby does"):
        await open_at(new.url)
    monkeypatch.setattr(postgres_connection, "_CONNECT_EACH_S", 0.5)
    await holder.owners.add((DUTY,), Duties())
    async with asyncio.timeout(WAIT_S):
        old.send(signal.SIGSTOP, is_to_all=True)
        await pair.promote()
        heir = await open_at(new_first(pair), unit_limit_s=1.0, lease_s=2.0)
        await heir.owners.add((DUTY,), Duties())
        while heir.owners.owned != {DUTY}:
            await heir.owners.add((), Duties())
        await heir.write(lambda unit: append(unit, heir, "heir"), name="append")
        old.send(signal.SIGCONT, is_to_all=True)
        assert holder.owners.owned == {DUTY}, "it does not know"
        held = asyncio.ensure_future(
            holder.write(lambda unit: append(unit, holder, "holder"), name="append")
        )
        waiting = await waits_for_a_standby(old, held)
        await old.ask(f"select pg_terminate_backend({waiting})")
        while await old.ask("select count(*) from list") != 1:
            await asyncio.sleep(0.01)
        await waits_for_a_standby(old, held, but=waiting)
        await pair.lose(old)
        await holder.close()
        with pytest.raises(StoreBroken, match="ask again under the same key"):
            await held
        assert await heir.read("select key from list") == [("heir",)]
        await heir.close()


def new_first(pair: PostgresPair) -> str:
    """Return an address whose first server is the one that stands by."""
    old, new = (str(each.socket.parent) for each in pair.nodes)
    return f"postgresql://postgres@/postgres?host={new},{old}"


async def waits_for_a_standby(node: Node, held: asyncio.Future[None], *, but: object = 0) -> object:
    """Wait until the session of a commit waits for a standby, and return which."""
    sql = (
        "select min(pid) from pg_stat_activity where wait_event = 'SyncRep' "
        f"and query like '%commit' and pid <> {but}"
    )
    while (found := await node.ask(sql)) is None:
        assert not held.done(), "it was acknowledged, and no standby has it"
        await asyncio.sleep(0.02)
    return found


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
