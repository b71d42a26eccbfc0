"""The event log beside an application's rows: decided in its transaction, read in order, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from alone_world import World, engine_of, made_database, running, until
from synchromesh import Decider, Decision, Rejection
from synchromesh.alone import Alone, AloneOptions, LoggedEvent
from synchromesh.errors import ContractError

pytestmark = pytest.mark.anyio


class Taken(msgspec.Struct, frozen=True):
    qty: int


class OutOfStock(Rejection, code="out_of_stock", status=409):
    pass


def take(qty: int, left: int) -> Decision[int]:
    if qty > left:
        raise OutOfStock(f"{left} are left")
    return Decision(left - qty, (Taken(qty),))


def taken(left: int, event: Taken) -> int:
    return left - event.qty


STOCK = Decider("stock", initial=10, decide=take, evolve=taken, events=(Taken,))
OFTEN = AloneOptions(look_every_s=0.02)


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    url = await made_database("alone")
    async with engine_of(url) as engine:
        made = World(url, engine)
        made.shop = Alone("shop", Taken)
        yield made


async def decide(world: World, sku: str, qty: int) -> int:
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        return await unit.decide(STOCK, sku, qty)


async def test_decisions_at_the_same_time_take_no_more_than_there_is(world: World) -> None:
    """At READ COMMITTED too: who comes second decides on what the first has left (E2)."""
    outcomes = await asyncio.gather(
        *(decide(world, "SX90", 3) for _ in range(5)), return_exceptions=True
    )
    left = sorted(each for each in outcomes if isinstance(each, int))
    assert left == [1, 4, 7]
    assert [type(each) for each in outcomes].count(OutOfStock) == 2
    assert (await world.counts())[1] == 3


async def test_a_long_stream_is_folded_within_the_transaction(world: World) -> None:
    """One without a snapshot gets one on the way, however long it is."""
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        await unit.append("stock/SX90", [Taken(0)] * 1205)
    assert await decide(world, "SX90", 4) == 6
    assert await world.rows("select version from sm_snapshot") == [(1205,)]
    assert await decide(world, "SX90", 4) == 2


async def test_a_projection_has_each_event_once_whatever_fails(world: World) -> None:
    """Its rows and its place in the log commit together, in the order of positions (E5)."""
    fails = {"a function": 2}
    seen: list[int] = []

    async def add(session: AsyncSession, event: LoggedEvent) -> None:
        sku = event.stream.partition("/")[2]
        await session.execute(
            text(
                "insert into purchase(id, qty) values (:sku, :qty) on conflict(id) do update "
                "set qty = purchase.qty + excluded.qty"
            ),
            {"sku": sku, "qty": event.event.qty},
        )
        seen.append(event.position)
        if event.event.qty == 2 and fails["a function"]:
            fails["a function"] -= 1
            raise ValueError("not yet")

    async def project() -> None:
        async with world.shop.open(world.url, options=OFTEN) as store:
            await world.shop.project(store, "totals", world.sessions.begin, add, poll_s=0.02)

    async with running(project):
        for qty in (1, 2, 3):
            await decide(world, "SX90", qty)
        await until(lambda: seen[-1:] == [3] and not fails["a function"])
    async with running(project):
        await decide(world, "SX91", 5)
        await until(lambda: seen[-1:] == [4])
        async with asyncio.timeout(60):
            while await world.rows("select position from sm_checkpoint") != [(4,)]:
                await asyncio.sleep(0.02)
    assert await world.rows("select id, qty from purchase order by 1") == [("SX90", 6), ("SX91", 5)]


async def test_what_is_read_of_a_stream_is_what_was_appended(world: World) -> None:
    """A unit loads its own events, too; a class that was not given is refused."""

    class Unknown(msgspec.Struct):
        qty: int

    async with (
        world.sessions.begin() as session,
        world.shop.unit(session, trace_id="b" * 32) as unit,
    ):
        assert await unit.load("stock/SX90") == []
        assert await unit.append("stock/SX90", [Taken(1), Taken(2)], expected=0) == 2
        (last,) = await unit.load("stock/SX90", 1)
        assert (last.version, last.position, last.event, last.trace_id) == (
            2,
            0,
            Taken(2),
            "b" * 32,
        )
        with pytest.raises(ContractError, match="not an event of 'shop'"):
            await unit.append("stock/SX90", [Unknown(1)])


async def test_a_commit_that_stands_late_has_no_effect_twice(world: World) -> None:
    """A run whose commit was cut and goes on at the server is waited for by the next one (E5)."""
    await decide(world, "SX90", 5)
    applied: list[int] = []

    async def add(session: AsyncSession, event: LoggedEvent) -> None:
        await session.execute(text("insert into purchase(id, qty) values (gen_random_uuid(), 1)"))
        applied.append(event.position)

    async with world.shop.open(world.url, options=OFTEN) as store, world.sessions() as late:
        await late.begin()
        await late.execute(text("insert into purchase(id, qty) values ('late', 1)"))
        await late.execute(
            text("insert into sm_checkpoint values ('alone/totals', :log, 1)"),
            {"log": store.log_id},
        )
        project = partial(
            world.shop.project, store, "totals", world.sessions.begin, add, poll_s=0.02
        )
        async with running(project):
            waiting = "select count(*) from pg_stat_activity where wait_event = 'transactionid'"
            async with asyncio.timeout(60):
                while await world.rows(waiting) != [(1,)]:
                    await asyncio.sleep(0.02)
            await late.commit()
            await decide(world, "SX90", 5)
            await until(lambda: applied == [2])
            async with asyncio.timeout(60):
                while await world.rows("select position from sm_checkpoint") != [(2,)]:
                    await asyncio.sleep(0.02)
    assert (await world.counts())[0] == 2
