"""Several processes of one service on PostgreSQL: who runs what; each effect comes once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from notes_app import TESTS
from postgres_server import _end_with_parent, empty_database
from replica_process import POISON, Ahead, Go, Shop, in_process, shop
from synchromesh.errors import ActionRefused, BadRequest, Fenced, StatementFailed, UnknownSaga
from synchromesh.saga.deps import Clock
from synchromesh.saga.records import RepairVerb
from synchromesh.saga.repair import RepairWish
from synchromesh.saga.timetable import tell
from synchromesh.service import ServiceInstance, scheduler
from synchromesh.service.forgetting import Forgetting, Retention
from synchromesh.store.owners import SharedOwners
from synchromesh.store.postgres_connection import connect
from synchromesh.store.postgres_errors import PostgresFault
from synchromesh.testing.serving import InProcess

pytestmark = pytest.mark.anyio

WAIT_S = 200.0
SAGAS = 12
SCHEDULE, PROJECTION = "schedule/minutely", "projection/totals"


class Replica:
    """A process that has both services."""

    def __init__(self, urls: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "replica_process.py"), *urls],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_end_with_parent,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )  # fmt: skip

    async def says(self) -> str:
        """Return its next line."""
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        return line.strip() or "ended"

    def tell(self, *words: object) -> None:
        """Tell it what to do."""
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)

    async def do(self, *words: object) -> str:
        """Tell it what to do, and return what it says then."""
        self.tell(*words)
        return await self.says()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class World:
    """The databases, and the processes on them."""

    def __init__(self, ends: AsyncExitStack, urls: list[str]) -> None:
        self._ends = ends
        self._urls = urls

    async def replicas(self, count: int) -> list[Replica]:
        """Start so many."""
        made = [Replica(self._urls) for _ in range(count)]
        for each in made:
            self._ends.callback(each.close)
        assert [await each.says() for each in made] == ["ready"] * count
        return made

    async def read(self, sql: str, *, of: str = "shop") -> list[Any]:
        """Return committed rows, as an audit sees them."""
        connection = await asyncpg.connect(self._urls[of == "stock"])
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def until(self, sql: str, expected: Any, *, of: str = "shop") -> None:
        """Wait until a query returns that."""
        async with asyncio.timeout(WAIT_S):
            while (found := await self.read(sql, of=of)) != expected:
                await asyncio.sleep(0.1)
        assert found == expected

    async def audit(self, count: int) -> None:
        """Check that each saga has ended once, and what each left; and the order of messages."""
        ended = "select count(*) from sm_saga where status in ('completed', 'undone')"
        await self.until(ended, [(count,)])
        undone = await self.read("select count(*) from sm_saga where status = 'undone'")
        records = (
            "select saga from sm_saga_record where kind = 'ended' group by 1 having count(*) > 1"
        )
        assert await self.read(records) == []
        # Sold once, or taken back; nothing twice, nothing half.
        sold = "select n, count(*) from sale group by n order by n"
        assert await self.read(sold) == [(0, undone[0][0]), (1, count - undone[0][0])]
        held = "select n, count(*) from held where id not like '%last' group by n order by n"
        assert await self.read(held, of="stock") == [(0, undone[0][0]), (1, count - undone[0][0])]
        last = "select distinct n from held where id like '%last'"
        assert await self.read(last, of="stock") == [(1,)]
        # Every message once, each key in the order of its stream.
        await self.until("select count(*) from seen", [(count,)], of="stock")
        assert await self.read("select * from seen where nth <> n", of="stock") == []
        await self.until("select count(*) from totals__1", [(count,)])
        # The schedule's times, too, if one came.
        assert await self.read("select * from tick where n <> 1") == []


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    async with AsyncExitStack() as ends:
        yield World(
            ends, [await empty_database("replicas_shop"), await empty_database("replicas_stock")]
        )


@dataclass
class Two:
    """Two instances of the shop in this process, of which the first is called, and one stock."""

    url: str
    runtime: Ahead
    served: InProcess
    first: ServiceInstance
    second: ServiceInstance

    async def until_owned(self, instance: ServiceInstance, count: int) -> None:
        """Wait until an instance owns so many shards."""
        async with asyncio.timeout(WAIT_S):
            while sum(each.startswith("sagas/") for each in owned_by(instance)) != count:
                await asyncio.sleep(0.02)


def owned_by(instance: ServiceInstance) -> frozenset[str]:
    owners = instance.store.owners
    assert isinstance(owners, SharedOwners)
    return owners.owned


@pytest.fixture
async def two(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Two]:
    # So that the wall clock may jump.
    monkeypatch.setattr(scheduler, "LOOK_EVERY_S", 0.05)
    urls = {name: await empty_database(f"two_{name}") for name in ("shop", "stock")}
    runtime = Ahead()
    served = in_process(urls, runtime)
    await served.start("stock", "shop")
    second = await ServiceInstance.start(shop, served.deps, name="shop#2")
    made = Two(urls["shop"], runtime, served, served.up["shop"], second)
    await made.until_owned(made.first, 30)
    await made.until_owned(second, 30)
    yield made
    await second.stop()
    await served.close()


async def test_a_run_that_another_process_has_is_waited_for_told_cancelled_and_repaired(
    two: Two,
) -> None:
    """By rows and wake-ups; its owner does it, and what it refuses is told to who asked."""
    here, there = two.first.engine, two.second.engine
    for name in ("told", "cancelled"):
        await two.served.call(Shop.place(name, 1, True))
    with pytest.raises(ActionRefused, match="only a stuck run"):
        await there.repair("told", RepairVerb.RETRY, RepairWish("ada", "to see"))
    with pytest.raises(UnknownSaga):
        await there.cancel("nothing", "to see")
    await there.cancel("cancelled", "it is not wanted any more")
    found = await there.conclusion("cancelled", WAIT_S)
    assert found is not None
    assert (found.status.value, found.cause.reason) == (
        "undone", "cancelled: it is not wanted any more",
    )  # fmt: skip
    assert await there.conclusion("told", 0.0) is None
    await two.second.store.write(lambda unit: tell(unit, "selling", "told", Go()), name="tell")
    for engine in (there, here):
        ended = await engine.conclusion("told", WAIT_S)
        assert ended is not None
        assert ended.status.value == "completed"
    assert await two.first.store.read("select count(*) from sm_saga_wish") == [(0,)]


async def test_one_that_stood_still_writes_nothing(two: Two) -> None:
    """It has lost its shards and does not know: its records are refused, its starts handed over."""
    first, second = two.first, two.second
    await two.served.call(Shop.place("begun", 1, True))
    owners = first.store.owners
    assert isinstance(owners, SharedOwners)
    assert owners._task is not None
    owners._task.cancel()
    await two.until_owned(second, 60)
    assert len(owned_by(first) - owned_by(second)) == 0
    assert any(each.startswith("sagas/") for each in owned_by(first)), "it does not know"
    fence = owners.fence(owned_by(first))
    with pytest.raises(Fenced):
        await first.store.write(fence.check, name="too late")
    # It believes to have a place for it, and is refused; then whoever has the shard begins it.
    await two.served.call(Shop.place("late", 1, False))
    await first.store.write(lambda unit: tell(unit, "selling", "begun", Go()), name="tell")
    for name in ("late", "begun"):
        ended = await second.engine.conclusion(name, WAIT_S)
        assert ended is not None
        assert ended.status.value == "completed"
    assert first.engine.counts["completed"] == 0
    owned = "select count(*) from sale where n = 1"
    assert await first.store.read(owned) == [(2,)]


async def test_what_one_that_stands_still_holds_is_freed(two: Two) -> None:
    """It has stopped where the server does not take it for idle: after a statement is prepared."""
    owners = two.first.store.owners
    assert isinstance(owners, SharedOwners)
    assert owners._task is not None
    stopped = await connect(two.url, service="shop", replica=owners._id, limit_s=600.0)
    write = "insert into tick(id, n) values ('here', 1)"
    await stopped.execute(f"begin; {write}")
    await stopped.prepare("select 1")
    owners._task.cancel()
    async with asyncio.timeout(WAIT_S):
        await two.second.store.write(lambda unit: unit.execute(write), name="waits for it")
    with pytest.raises((*PostgresFault, ConnectionError)):
        await stopped.execute("commit")
    assert await two.second.store.read("select n from tick") == [(1,)]


async def test_each_time_of_a_schedule_has_one_effect_whoever_sends_it(two: Two) -> None:
    """One process sends, and another once that one has lost its lease and does not know."""

    async def minute() -> None:
        (before,) = await two.second.store.read("select count(*) from tick")
        two.runtime.ahead_us += 60_000_000
        async with asyncio.timeout(WAIT_S):
            while await two.second.store.read("select count(*) from tick") == [before]:
                await asyncio.sleep(0.02)

    for _ in range(3):
        await minute()
    (sends,) = (each for each in (two.first, two.second) if SCHEDULE in owned_by(each))
    other = two.second if sends is two.first else two.first
    owners = sends.store.owners
    assert isinstance(owners, SharedOwners)
    assert owners._task is not None
    owners._task.cancel()
    async with asyncio.timeout(WAIT_S):
        while SCHEDULE not in owned_by(other):
            await asyncio.sleep(0.02)
    assert SCHEDULE in owned_by(sends), "it does not know"
    for _ in range(3):
        await minute()
    assert await other.store.read("select count(*) >= 6, max(n) from tick") == [(True, 1)]
    assert not await other.schedules_failed()


async def test_projections_skip_are_rebuilt_and_what_all_have_read_is_forgotten(two: Two) -> None:
    """Asked of either process, done by whoever has it; then readers go on over what was removed."""
    store, by = two.second.store, {"who": "ada", "why": "it is mended"}

    async def order(name: str, n: int) -> None:
        await two.served.call(Shop.place(name, n, False))
        assert await two.second.engine.conclusion(name, WAIT_S) is not None

    async def until(sql: str, expected: object) -> None:
        async with asyncio.timeout(WAIT_S):
            while (await store.read(sql))[0][0] != expected:
                await asyncio.sleep(0.05)

    for n in range(4):
        await order(f"order-{n}", n)
    await order(POISON, 1)
    await order("behind", 1)
    await until("select count(*) from sm_projection where parked <> ''", 1)
    unowned = next(each for each in (two.first, two.second) if PROJECTION not in owned_by(each))
    runner = unowned.projections.runner("totals")
    await runner.skip(by=by)
    counted = "select count(*) from totals__{}"
    await until(counted.format(1), 5)
    await runner.rebuild(by=by)
    await until(counted.format(2), 5)
    assert (await runner.switch(by=by)).number == 2
    assert [each.number for each in await two.first.projections.list()] == [2, 1]
    assert (await runner.drop(by=by)).number == 1
    with pytest.raises(StatementFailed):
        await store.read(counted.format(1))
    # Both sides of the relay, and the projection, are past all of it.
    sold = "select count(*) from sm_event where is_public = 1 and name = 'shop.sold'"
    await until(sold, 6)
    short = Retention(sagas_s=0.0, events_s={"shop.sold": 0.0}, rows_max=4, pause_s=0.0)
    forgetting = Forgetting(store, short, Clock(two.runtime))
    async with asyncio.timeout(WAIT_S):
        while await store.read(f"select ({sold}), (select count(*) from sm_saga)") != [(0, 0)]:
            await forgetting.sweep()
    with pytest.raises(BadRequest, match="removed"):
        await runner.rebuild(by=by)
    await order("later", 2)
    await until(counted.format(2), 6)


async def test_one_that_stops_gives_back_at_once(two: Two) -> None:
    """The other owns everything long before a lease has run out, and goes on with what it left."""
    await two.served.call(Shop.place("left", 1, True))
    await two.served.stop("shop")
    rows = await two.second.store.read(
        "select count(distinct owner) from sm_duty where owner <> ''"
    )
    assert rows[0][0] in (0, 1), "nothing is its any more"
    await two.until_owned(two.second, 60)
    await two.second.store.write(lambda unit: tell(unit, "selling", "left", Go()), name="tell")
    ended = await two.second.engine.conclusion("left", WAIT_S)
    assert ended is not None
    assert ended.status.value == "completed"


async def test_one_is_killed_and_one_stands_still_in_the_middle_of_sagas(world: World) -> None:
    """Each saga ends once, each effect comes once, and who wakes after its lease goes on."""
    killed, paused, well = replicas = await world.replicas(3)
    for name, each in zip("abc", replicas, strict=True):
        each.tell("start", name, SAGAS)
    assert [await each.says() for each in replicas] == ["started"] * 3
    killed.send(signal.SIGKILL)
    paused.send(signal.SIGSTOP)
    await world.until(
        "select count(*) from sm_saga where status not in ('completed', 'undone')", [(0,)]
    )
    paused.send(signal.SIGCONT)
    assert await paused.do("start", "later", 7) == "started"
    await world.audit(3 * SAGAS + 7)
    assert await paused.do("wait", "c-0") == "completed"
    assert await well.do("stop") == "stopped"
