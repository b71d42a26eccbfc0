"""What a person does with runs of an application alone, and what keeps other processes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from alone_world import Purchase, World, engine_of, made_database, running, until_there
from synchromesh.alone import AloneOptions, AloneRuns, RunSagasOptions
from synchromesh.errors import (
    ActionRefused,
    BadRequest,
    Rejection,
    SagaUndone,
    Stuck,
    TimedOut,
    UnknownSaga,
)
from synchromesh.saga import Saga, SagaDefinition, SagaPolicy, Unknown, elsewhere

pytestmark = pytest.mark.anyio

OFTEN = AloneOptions(look_every_s=0.02)
LONG_S = 300.0
SOON = SagaPolicy(
    step_timeout_s=60.0, attempts_max=1, backoff_base_s=0.01, backoff_cap_s=0.02,
    after_pivot_deadline_s=0.05, undo_deadline_s=0.05,
)  # fmt: skip
ADA: Any = {"who": "ada", "why": "seen to it"}


class Order(msgspec.Struct, frozen=True):
    id: str


class Refused(Rejection, code="alone_refused", status=409):
    pass


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    url = await made_database("alone_runs")
    async with engine_of(url) as engine:
        yield World(url, engine)


@asynccontextmanager
async def working(world: World) -> AsyncIterator[AloneRuns]:
    """Run the sagas in one process, and look at them from another."""
    async with (
        world.shop.open(world.url, options=OFTEN) as store,
        world.shop.open(world.url, options=OFTEN) as beside,
        running(lambda: world.shop.run_sagas(store, world.sessions.begin)),
    ):
        yield world.shop.runs(beside)


async def start(world: World, saga: SagaDefinition[Order, Any]) -> None:
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        await unit.start(saga, Order("A-1"), id="A-1")


class Part:
    """Does something, fails at it, and is mended."""

    def __init__(self, fault: Callable[[], Exception] = ZeroDivisionError) -> None:
        self.fault: Callable[[], Exception] | None = fault
        self.calls = 0

    async def ask(self, key: str) -> str:
        self.calls += 1
        if self.fault is not None:
            raise self.fault()
        return "asked"

    async def write(self, session: AsyncSession, order: Order) -> str:
        self.calls += 1
        session.add(Purchase(id=order.id, qty=1))
        await session.flush()
        if self.fault is not None:
            raise self.fault()
        return "written"


async def done(key: str) -> str:
    return key


async def undo(session: AsyncSession, written: str) -> None:
    await session.delete(await session.get_one(Purchase, "A-1"))


async def stuck(runs: AloneRuns, saga: SagaDefinition[Order, Any]) -> None:
    with pytest.raises(Stuck, match="needs a person"):
        await runs.result(saga, "A-1", within_s=LONG_S)
    assert [each.status for each in await runs.list("stuck")] == ["stuck"]


async def test_a_stuck_run_is_tried_again_once_it_is_mended(world: World) -> None:
    """Behind its pivot there is no way back; who did what and why is in its story."""
    part = Part()

    @world.shop.saga(Order, deadline="10m", policy=SOON)
    async def checkout(s: Saga, order: Order) -> str:
        await s.step(done, pivot=True)
        return await s.write(part.write, order)

    await start(world, checkout)
    async with working(world) as runs:
        await stuck(runs, checkout)
        with pytest.raises(ActionRefused, match=r"past its pivot done#1: there is no way back"):
            await runs.undo("A-1", **ADA)
        with pytest.raises(ActionRefused, match="undo turns a stuck run"):
            await runs.cancel("A-1", **ADA)
        part.fault = None
        story = await runs.retry("A-1", **ADA)
        assert "retry by ada: seen to it" in [each.why for each in story.lines]
        assert await runs.result(checkout, "A-1", within_s=LONG_S) == "written"
        with pytest.raises(ActionRefused, match="it has ended, completed"):
            await runs.retry("A-1", **ADA)
    assert await world.rows("select id from purchase") == [("A-1",)]


async def test_what_was_done_by_hand_is_skipped(world: World) -> None:
    """With the result that the step would have had; one of another type is refused."""
    part = Part()

    @world.shop.saga(Order, deadline="10m", policy=SOON)
    async def checkout(s: Saga, order: Order) -> str:
        await s.step(done, pivot=True)
        return await s.step(part.ask)

    await start(world, checkout)
    async with working(world) as runs:
        await stuck(runs, checkout)
        with pytest.raises(ActionRefused, match=r"not what ask returns.*result="):
            await runs.skip("A-1", result=7, **ADA)
        await runs.skip("A-1", result="by hand", **ADA)
        assert await runs.result(checkout, "A-1", within_s=LONG_S) == "by hand"


async def test_a_pivot_that_was_not_done_is_undone(world: World) -> None:
    """Nobody knows by itself: a person has looked it up and says so."""
    part, keeps = Part(), Part()
    keeps.fault = None

    @world.shop.saga(Order, deadline="1s", policy=SOON)
    async def checkout(s: Saga, order: Order) -> str:
        await s.write(keeps.write, order, undo=undo)
        return await s.step(part.ask, pivot=True)

    await start(world, checkout)
    async with working(world) as runs:
        await stuck(runs, checkout)
        with pytest.raises(ActionRefused, match="undo with `not_done` said"):
            await runs.undo("A-1", **ADA)
        await runs.undo("A-1", not_done=True, **ADA)
        with pytest.raises(SagaUndone):
            await runs.result(checkout, "A-1", within_s=LONG_S)
    assert await world.rows("select id from purchase") == []


async def test_an_undo_that_fails_is_stuck_and_not_hidden(world: World) -> None:
    """It says what is not undone; once a person has undone it by hand it is skipped."""
    asked = Part(Refused)

    async def give_back(key: str, result: str | Unknown) -> None:
        raise Refused(f"{key}: {result}")

    @world.shop.saga(Order, deadline="10m", policy=SOON)
    async def checkout(s: Saga, order: Order) -> str:
        await s.step(done, undo=give_back)
        return await s.step(asked.ask)

    await start(world, checkout)
    async with working(world) as runs:
        await stuck(runs, checkout)
        assert (await runs.show("A-1")).not_undone == ("done#1",)
        await runs.skip("A-1", **ADA)
        with pytest.raises(Refused):
            await runs.result(checkout, "A-1", within_s=LONG_S)


async def test_a_run_that_sleeps_is_cancelled(world: World) -> None:
    """What it did is undone; one that nobody started, or says no reason for, is not."""
    keeps = Part()
    keeps.fault = None

    @world.shop.saga(Order, deadline="10m", policy=SOON)
    async def checkout(s: Saga, order: Order) -> str:
        written = await s.write(keeps.write, order, undo=undo)
        await s.sleep("9m")
        return written

    await start(world, checkout)
    async with working(world) as runs:
        await until_there(lambda: runs.list("sleeping"))
        with pytest.raises(BadRequest, match="say who does it, and why"):
            await runs.cancel("A-1", who="ada", why=" ")
        with pytest.raises(UnknownSaga, match="no saga of shop has the id 'A-2'"):
            await runs.cancel("A-2", **ADA)
        assert await runs.result(checkout, "A-1", within_s=0.0) is None
        await runs.cancel("A-1", **ADA)
        with pytest.raises(SagaUndone, match="cancelled: seen to it"):
            await runs.result(checkout, "A-1", within_s=LONG_S)
    assert await world.rows("select id from purchase") == []


async def test_where_nobody_runs_sagas_a_verb_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks whoever runs the run, and nobody has answered."""

    @world.shop.saga(Order, deadline="10m")
    async def checkout(s: Saga, order: Order) -> None:
        pass

    await start(world, checkout)
    monkeypatch.setattr(elsewhere, "_WITHIN_S", 0.1)
    async with world.shop.open(world.url, options=OFTEN) as store:
        with pytest.raises(TimedOut, match="nobody who runs saga 'A-1' has answered"):
            await world.shop.runs(store).cancel("A-1", **ADA)


async def test_a_process_that_was_replaced_writes_nothing(world: World) -> None:
    """Its function is not called: the epoch is checked first, in the transaction of the step."""
    part, replaced = Part(), Part()
    part.fault = None

    async def replace(key: str) -> str:
        replaced.calls += 1
        if replaced.calls > 1:
            return "replaced"
        connection = await asyncpg.connect(world.url)
        try:
            await connection.execute(
                "update sm_duty set owner = 'another', epoch = epoch + 1 where name like 'sagas/%'"
            )
        finally:
            await connection.close()
        return "replaced"

    @world.shop.saga(Order, deadline="10m")
    async def checkout(s: Saga, order: Order) -> str:
        await s.step(replace)
        return await s.write(part.write, order)

    await start(world, checkout)
    async with working(world) as runs:
        assert await runs.result(checkout, "A-1", within_s=LONG_S) == "written"
    epochs = await world.rows("select min(epoch) from sm_duty where name like 'sagas/%'")
    assert epochs >= [(3,)]
    assert (replaced.calls, part.calls) == (2, 1)


async def test_a_step_that_hangs_is_cut(world: World) -> None:
    """Its transaction is rolled back at the limit, which counts as an attempt."""

    async def hang(session: AsyncSession, order: Order) -> str:
        session.add(Purchase(id=order.id, qty=1))
        await session.flush()
        await asyncio.Event().wait()
        return "never"

    @world.shop.saga(Order, deadline="10m", policy=SOON)
    async def checkout(s: Saga, order: Order) -> str:
        return await s.write(hang, order)

    await start(world, checkout)
    options = RunSagasOptions(session_limit_s=0.1)
    begin = world.sessions.begin
    async with (
        world.shop.open(world.url, options=OFTEN) as store,
        running(lambda: world.shop.run_sagas(store, begin, options=options)),
    ):
        with pytest.raises(SagaUndone, match=r"did not end within 0\.1 s"):
            await world.shop.runs(store).result(checkout, "A-1", within_s=LONG_S)
    assert await world.rows("select id from purchase") == []
