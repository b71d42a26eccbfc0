"""Units in an `AsyncSession` of an application's own: all or nothing, never nothing in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from alone_world import OrderPaid, OrderPlaced, Purchase, World, engine_of, made_database
from synchromesh.alone import Alone
from synchromesh.errors import (
    BadRequest,
    ContractError,
    ForeignAwait,
    KeyReused,
    StatementFailed,
    StoreBroken,
    StoreReadOnly,
    VersionConflict,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncpg", "psycopg"])
async def world(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[World]:
    url = await made_database("alone")
    async with engine_of(url, request.param) as engine:
        yield World(url, engine)


async def test_rows_messages_and_keys_commit_together_or_not_at_all(world: World) -> None:
    """The application's commit is that of all of it, and so is its rollback."""
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        session.add(Purchase(id="A-1", qty=2))
        await unit.publish(OrderPlaced("A-1", 2), key="A-1")
        assert await unit.once("request-1")
        assert await world.counts() == (0, 0, 0)
    assert await world.counts() == (1, 1, 1)

    async def fail() -> None:
        async with world.sessions.begin() as session:
            async with world.shop.unit(session) as unit:
                session.add(Purchase(id="A-2", qty=2))
                await unit.publish(OrderPlaced("A-2", 2))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await world.counts() == (1, 1, 1)


async def test_an_error_that_leaves_the_block_undoes_the_whole_transaction(world: World) -> None:
    """Whoever handles it within the transaction commits no part of the unit."""
    async with world.sessions.begin() as session:
        session.add(Purchase(id="A-1", qty=2))
        with suppress(ZeroDivisionError):
            async with world.shop.unit(session) as unit:
                await unit.publish(OrderPlaced("A-1", 2), key="A-1")
                raise ZeroDivisionError
    assert await world.counts() == (0, 0, 0)


async def test_in_a_savepoint_an_error_undoes_the_savepoint_alone(world: World) -> None:
    """What was done before it in the transaction stands."""
    async with world.sessions.begin() as session:
        session.add(Purchase(id="A-1", qty=2))
        with suppress(ZeroDivisionError):
            async with session.begin_nested(), world.shop.unit(session) as unit:
                await unit.publish(OrderPlaced("A-1", 2), key="A-1")
                raise ZeroDivisionError
        async with session.begin_nested(), world.shop.unit(session) as unit:
            await unit.publish(OrderPaid("A-1"), key="A-1")
    assert await world.counts() == (1, 1, 0)
    assert await world.rows("select name from sm_event") == [("shop.order_paid",)]


async def test_a_savepoint_within_a_unit_takes_its_messages_along(world: World) -> None:
    """What was published in a savepoint that is rolled back is not published (O2)."""
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        with suppress(ZeroDivisionError):
            async with session.begin_nested():
                await unit.publish(OrderPlaced("A-1", 2), key="A-1")
                raise ZeroDivisionError
        await unit.publish(OrderPaid("A-1"), key="A-1")
    assert await world.rows("select name from sm_event") == [("shop.order_paid",)]


async def test_a_handled_integrity_error_ends_no_unit_in_silence(world: World) -> None:
    """After an error of a flush that was handled nothing would be stored, and the unit says so."""
    await world.place("A-1")

    async def handle() -> None:
        async with world.sessions.begin() as session, world.shop.unit(session) as unit:
            await unit.publish(OrderPaid("A-1"), key="A-1")
            session.add(Purchase(id="A-1", qty=5))
            with suppress(IntegrityError):
                await session.flush()

    with pytest.raises(StatementFailed, match="begin_nested"):
        await handle()
    assert await world.counts() == (1, 1, 0)


@pytest.mark.parametrize("refused", ["insert into purchase values ('A-1', 1)", "select 1/0"])
async def test_a_handled_error_of_a_statement_ends_no_unit_in_silence(
    world: World, refused: str
) -> None:
    """Neither where it was refused within the unit, nor in the transaction before it."""
    await world.place("A-1")

    async def within() -> None:
        async with world.sessions.begin() as session, world.shop.unit(session) as unit:
            await unit.publish(OrderPaid("A-1"), key="A-1")
            with suppress(DBAPIError):
                await session.execute(text(refused))

    async def before() -> None:
        async with world.sessions.begin() as session:
            with suppress(DBAPIError):
                await session.execute(text(refused))
            async with world.shop.unit(session) as unit:
                await unit.publish(OrderPaid("A-1"), key="A-1")

    for handled in (within, before):
        with pytest.raises(StatementFailed, match="its commit would write nothing"):
            await handled()
    assert await world.counts() == (1, 1, 0)


async def test_what_is_refused_in_a_savepoint_costs_the_savepoint_alone(world: World) -> None:
    """As the message says: then the unit commits."""
    await world.place("A-1")
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        with suppress(IntegrityError):
            async with session.begin_nested():
                session.add(Purchase(id="A-1", qty=5))
        await unit.publish(OrderPaid("A-1"), key="A-1")
    assert await world.counts() == (1, 2, 0)


async def test_a_second_unit_of_a_session_that_expires_nothing_sees_what_others_did(
    world: World,
) -> None:
    """What was read for the first is read again for the second: no change of others is lost."""
    await world.place("A-1", qty=10)
    keeping = async_sessionmaker(
        world.engine.execution_options(isolation_level="SERIALIZABLE"), expire_on_commit=False
    )
    async with keeping() as session:
        async with session.begin(), world.shop.unit(session) as unit:
            bought = await session.get_one(Purchase, "A-1")
            await unit.publish(OrderPaid("A-1"), key="A-1")
        assert bought.qty == 10  # as whoever made the session so wants it
        async with world.sessions.begin() as other:
            (await other.get_one(Purchase, "A-1")).qty -= 3
        async with session.begin(), world.shop.unit(session) as unit:
            again = await session.get_one(Purchase, "A-1")
            again.qty -= 1
            await unit.publish(OrderPlaced("A-1", again.qty), key="A-1")
    assert await world.rows("select qty from purchase") == [(6,)]


async def test_what_was_changed_from_what_an_earlier_transaction_read_is_refused(
    world: World,
) -> None:
    """A change before the transaction begins would overwrite that of another one."""
    await world.place("A-1", qty=10)
    async with async_sessionmaker(world.engine, expire_on_commit=False)() as session:
        async with session.begin(), world.shop.unit(session) as unit:
            bought = await session.get_one(Purchase, "A-1")
            await unit.publish(OrderPaid("A-1"), key="A-1")
        async with world.sessions.begin() as other:
            (await other.get_one(Purchase, "A-1")).qty -= 3
        bought.qty -= 1
        with pytest.raises(ContractError, match="expire_on_commit=False"):
            async with world.shop.unit(session) as unit:
                await unit.publish(OrderPlaced("A-1", 9), key="A-1")
        await session.rollback()
    assert await world.rows("select qty from purchase") == [(7,)]


async def test_a_begin_that_was_cancelled_costs_no_later_unit(world: World) -> None:
    """However early a unit is cut, what comes after it on the same pool is stored."""
    cut = 0
    for n in range(12):
        task = asyncio.ensure_future(world.place(f"cut-{n}"))
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        cut += task.cancelled()
    assert cut
    (before,) = await world.rows("select count(*) from purchase")
    await asyncio.gather(*(world.place(f"A-{n}") for n in range(6)))
    (after,) = await world.rows("select count(*) from purchase")
    assert after[0] == before[0] + 6  # type: ignore[operator]
    purchases, events, _ = await world.counts()
    assert purchases == events


async def test_what_cannot_be_right_is_refused_with_its_reason(world: World) -> None:
    """No transaction, autocommit, read only, a session that is none, a unit that is over."""
    unit = None
    async with world.sessions() as session:
        with pytest.raises(ContractError, match=r"in no transaction.*session\.begin\(\)"):
            await world.shop.unit(session).__aenter__()
    by_itself = async_sessionmaker(world.engine.execution_options(isolation_level="AUTOCOMMIT"))
    async with by_itself.begin() as session:
        with pytest.raises(ContractError, match="AUTOCOMMIT"):
            await world.shop.unit(session).__aenter__()
    async with world.sessions.begin() as session:
        await session.execute(text("set transaction read only"))
        with pytest.raises(StoreReadOnly, match="read only"):
            await world.shop.unit(session).__aenter__()
    for none in (world.sessions, Session(), world.engine, None, "session"):
        with pytest.raises(ContractError, match="AsyncSession"):
            await world.shop.unit(none).__aenter__()
    async with world.sessions.begin() as session:
        async with world.shop.unit(session) as unit:
            pass
        for over in (unit.publish(OrderPaid("A-1")), unit.once("a"), unit.execute("select 1")):
            with pytest.raises(ForeignAwait, match="the unit is over"):
                await over
    assert await world.counts() == (0, 0, 0)


async def test_a_transaction_that_ends_within_the_block_is_told(world: World) -> None:
    """A commit in the middle leaves no unit that seems whole."""

    async def commit_within(session: AsyncSession) -> None:
        await session.execute(text("select 1"))
        async with world.shop.unit(session) as unit:
            await unit.publish(OrderPaid("A-1"))
            await session.commit()
            await unit.publish(OrderPaid("A-2"))

    async with world.sessions() as session:
        with pytest.raises(ContractError, match="end it after the block"):
            await commit_within(session)


async def test_without_tables_and_on_another_engine_it_says_what_to_do(world: World) -> None:
    """A missing migration is told as that, and an engine that is not meant by its name."""
    async with world.sessions.begin() as session:
        await session.execute(text("set local search_path to pg_catalog"))
        with pytest.raises(StoreBroken, match="upgrade_statements"):
            await world.shop.unit(session).__aenter__()


async def test_a_key_is_done_once_whoever_asks_at_the_same_time(world: World) -> None:
    """The second waits for the first: done where that commits, and its turn where it does not."""
    is_first, may_end = asyncio.Event(), asyncio.Event()

    async def first(*, fails: bool) -> None:
        async with world.sessions.begin() as session, world.shop.unit(session) as unit:
            assert await unit.once("pay A-1", {"sum": 1}, caller="bank")
            is_first.set()
            await may_end.wait()
            if fails:
                raise ZeroDivisionError

    async def second() -> bool:
        async with world.sessions.begin() as session, world.shop.unit(session) as unit:
            return await unit.once("pay A-1", {"sum": 1}, caller="bank")

    for fails in (True, False):
        is_first.clear()
        may_end.clear()
        one = asyncio.ensure_future(first(fails=fails))
        await is_first.wait()
        two = asyncio.ensure_future(second())
        await asyncio.sleep(0)
        assert not two.done()
        may_end.set()
        await asyncio.gather(one, return_exceptions=True)
        assert await two is fails
        if fails:
            await world.rows("delete from sm_inbox")
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        assert await unit.once("pay A-1", {"sum": 1}, caller="another bank")
        with pytest.raises(KeyReused):
            await unit.once("pay A-1", {"sum": 2}, caller="bank")


async def test_an_answer_is_kept_with_its_key(world: World) -> None:
    """Whoever asks again gets the answer of the first time, and nobody that of a rollback."""
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        assert await unit.once("order 1")
        assert await unit.answered("order 1", OrderPaid) is None
        await unit.answer("order 1", OrderPaid("A-1"))
        with pytest.raises(ContractError, match="ask `once` first"):
            await unit.answer("order 2", OrderPaid("A-2"))
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        assert not await unit.once("order 1")
        assert await unit.answered("order 1", OrderPaid) == OrderPaid("A-1")
        with pytest.raises(BadRequest):
            await unit.answered("order 1", OrderPlaced)


async def test_what_cannot_be_published_is_refused_before_anything_is_written(
    world: World,
) -> None:
    """A class that is not known, a key that is none, what is too large to be delivered."""
    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        with pytest.raises(ContractError, match="not an event of 'shop'"):
            await unit.publish(Purchase(id="A-1", qty=1))
        for key in ("", "*", 7):
            with pytest.raises(ContractError, match="is no key"):
                await unit.publish(OrderPaid("A-1"), key=key)  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match="at most 262144"):
            await unit.publish(OrderPaid("A" * 300_000))
        with pytest.raises(StatementFailed, match="steers the engine"):
            await unit.execute("commit")
        with pytest.raises(StatementFailed, match="2 bindings"):
            await unit.execute("select ?", 1, 2)
        assert await unit.execute("select '50%', ?::int", 7) == [("50%", 7)]
    assert await world.counts() == (0, 0, 0)
    with pytest.raises(ContractError, match="is no name"):
        Alone("Shop 1")


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_appends_lose_nothing_at_any_isolation(world: World, level: str) -> None:
    """Who decided at a version that is no more is told so, and versions have no holes (E1, E2)."""
    sessions = async_sessionmaker(world.engine.execution_options(isolation_level=level))

    async def add(session: AsyncSession, expected: int | None) -> int:
        async with session.begin(), world.shop.unit(session) as unit:
            return await unit.append("order/A-1", [OrderPaid("A-1")], expected=expected)

    async with sessions() as one, sessions() as two:
        assert await add(one, 0) == 1
        async with one.begin(), world.shop.unit(one) as unit:
            assert await unit.execute("select count(*) from sm_event") == [(1,)]
            await unit.append("order/A-1", [OrderPaid("A-1")], expected=1)
            late = asyncio.ensure_future(add(two, 1))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not late.done()
        with pytest.raises((VersionConflict, DBAPIError)) as told:
            await late
        if isinstance(told.value, DBAPIError):
            assert getattr(told.value.orig, "sqlstate", "") == "40001"
            assert level != "READ COMMITTED"
        assert await add(two, None) == 3
        with pytest.raises(VersionConflict):
            await add(one, 2)
    assert await world.rows("select version from sm_event order by 1") == [(1,), (2,), (3,)]


async def test_a_session_on_sqlite_is_refused_by_its_name(anyio_backend: str) -> None:
    """What is no PostgreSQL is told as what it is."""

    class Lite:
        name, driver, paramstyle = "sqlite", "aiosqlite", "qmark"

    class Connection:
        dialect = Lite

    class LiteSession(AsyncSession):
        async def connection(self, *_: object, **__: object) -> Connection:  # type: ignore[override]
            return Connection()

    engine = create_async_engine("postgresql+asyncpg://nobody@/nowhere")
    async with LiteSession(engine) as session, session.begin():
        with pytest.raises(ContractError, match="on sqlite by aiosqlite"):
            await Alone("shop").unit(session).__aenter__()
    await engine.dispose()
