"""Units in a transaction of a driver's own connection: asyncpg's and psycopg's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

import asyncpg
import psycopg
import pytest

from alone_world import OrderPaid, OrderPlaced, World, engine_of, made_database
from synchromesh.errors import ContractError, StatementFailed, StoreBroken, StoreReadOnly

pytestmark = pytest.mark.anyio

INSERT = "insert into purchase(id, qty) values ('A-1', 1)"


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    url = await made_database("alone")
    async with engine_of(url) as engine:
        yield World(url, engine)


@pytest.fixture(params=["asyncpg", "psycopg"])
async def connection(request: pytest.FixtureRequest, world: World) -> AsyncIterator[Any]:
    if request.param == "asyncpg":
        made: Any = await asyncpg.connect(world.url)
    else:
        made = await psycopg.AsyncConnection.connect(world.url, autocommit=True)
    yield made
    await made.close()


def begun(connection: Any) -> AbstractAsyncContextManager[object]:
    """Begin a transaction as either driver does."""
    began: AbstractAsyncContextManager[object] = connection.transaction()
    return began


async def test_rows_messages_and_events_commit_together(world: World, connection: Any) -> None:
    """The connection's commit is that of all of it, and so is its rollback."""
    async with begun(connection), world.shop.unit(connection) as unit:
        await connection.execute(INSERT)
        await unit.publish(OrderPlaced("A-1", 1), key="A-1")
        assert [await unit.once("request"), await unit.once("request")] == [True, False]
        assert await unit.append("order/A-1", [OrderPaid("A-1"), OrderPaid("A-1")]) == 2
        loaded = await unit.load("order/A-1")
        assert [(each.version, each.event) for each in loaded] == [
            (1, OrderPaid("A-1")),
            (2, OrderPaid("A-1")),
        ]
        assert await unit.execute("select '50%', cast(? as int), ?::text", 7, None) == [
            ("50%", 7, None)
        ]
        columns, rows = await unit.fetch("select id, qty from purchase where false")
        assert (columns, rows) == (("id", "qty"), [])
    assert await world.counts() == (1, 3, 1)

    async def fail() -> None:
        async with begun(connection):
            async with world.shop.unit(connection) as unit:
                await unit.publish(OrderPlaced("A-2", 1), key="A-2")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await world.counts() == (1, 3, 1)


async def test_an_error_that_leaves_the_block_leaves_nothing_to_commit(
    world: World, connection: Any
) -> None:
    """Whoever handles it goes on in a transaction that refuses all, and commits nothing."""
    refused: list[str] = []
    with suppress(asyncpg.PostgresError, psycopg.Error):
        async with begun(connection):
            await connection.execute(INSERT)
            with suppress(ZeroDivisionError):
                async with world.shop.unit(connection) as unit:
                    await unit.publish(OrderPlaced("A-1", 1), key="A-1")
                    raise ZeroDivisionError
            try:
                await connection.execute("select 1")
            except (asyncpg.PostgresError, psycopg.Error) as error:
                refused.append(str(error.sqlstate))
    assert refused == ["25P02"]
    assert await world.counts() == (0, 0, 0)
    # In a savepoint it costs the savepoint alone.
    async with begun(connection):
        await connection.execute(INSERT)
        with suppress(ZeroDivisionError):
            async with begun(connection), world.shop.unit(connection) as unit:
                await unit.publish(OrderPlaced("A-1", 1), key="A-1")
                raise ZeroDivisionError
    assert await world.counts() == (1, 0, 0)


async def test_an_error_that_leaves_while_a_statement_is_under_way_leaves_nothing(
    world: World, connection: Any
) -> None:
    """Another task uses the connection just then: nothing of the unit is stored all the same."""
    errors = (asyncpg.PostgresError, asyncpg.InterfaceError, psycopg.Error, OSError)
    others: list[asyncio.Future[Any]] = []
    with suppress(*errors):
        async with begun(connection):
            with suppress(ZeroDivisionError):
                async with world.shop.unit(connection) as unit:
                    await unit.publish(OrderPlaced("A-1", 1), key="A-1")
                    others.append(asyncio.ensure_future(connection.execute("select pg_sleep(0.3)")))
                    await asyncio.sleep(0.05)
                    raise ZeroDivisionError
    await asyncio.gather(*others, return_exceptions=True)
    assert await world.counts() == (0, 0, 0)


async def test_a_handled_error_ends_no_unit_in_silence(world: World, connection: Any) -> None:
    """Neither where a statement was refused within the unit, nor before it."""

    async def within() -> None:
        async with begun(connection), world.shop.unit(connection) as unit:
            await unit.publish(OrderPaid("A-1"), key="A-1")
            with suppress(asyncpg.PostgresError, psycopg.Error):
                await connection.execute("select 1/0")

    async def before() -> None:
        async with begun(connection):
            with suppress(asyncpg.PostgresError, psycopg.Error):
                await connection.execute("select 1/0")
            async with world.shop.unit(connection) as unit:
                await unit.publish(OrderPaid("A-1"), key="A-1")

    for handled in (within, before):
        with pytest.raises(StatementFailed, match="its commit would write nothing"):
            await handled()
    assert await world.counts() == (0, 0, 0)


async def test_what_cannot_be_right_is_refused_with_its_reason(
    world: World, connection: Any
) -> None:
    """No transaction, read only, one that ends within the block, a connection that is closed."""
    with pytest.raises(ContractError, match=r"in no transaction|in autocommit"):
        await world.shop.unit(connection).__aenter__()
    async with begun(connection):
        await connection.execute("set transaction read only")
        with pytest.raises(StoreReadOnly):
            await world.shop.unit(connection).__aenter__()

    async def end_within() -> None:
        await connection.execute("begin")
        async with world.shop.unit(connection) as unit:
            await unit.publish(OrderPaid("A-1"))
            await connection.execute("commit")
            await connection.execute("begin")

    with pytest.raises(ContractError, match="end it after the block"):
        await end_within()
    await connection.execute("rollback")
    await connection.close()
    with pytest.raises(ContractError, match="in no transaction"):
        await world.shop.unit(connection).__aenter__()


async def test_a_psycopg_connection_begins_by_itself(world: World) -> None:
    """Without autocommit its first statement begins, and its commit commits."""
    async with await psycopg.AsyncConnection.connect(world.url) as connection:
        async with world.shop.unit(connection) as unit:
            await unit.publish(OrderPaid("A-1"))
        assert await world.counts() == (0, 0, 0)
        await connection.commit()
        assert await world.counts() == (0, 1, 0)


async def test_after_a_begin_that_was_cancelled_a_unit_is_refused(world: World) -> None:
    """Else it would be a savepoint of a transaction that nobody commits: nothing is stored."""
    refused = stored = 0
    for patience in range(8):
        kept = await asyncpg.connect(world.url)

        async def work(kept: Any = kept) -> None:
            async with kept.transaction():
                pass

        task = asyncio.ensure_future(work())
        for _ in range(patience):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        async def publish(kept: Any = kept) -> None:
            async with kept.transaction(), world.shop.unit(kept) as unit:
                await unit.publish(OrderPaid("A-1"))

        try:
            await publish()
        except StoreBroken as error:
            refused += "close it" in error.message
        except (asyncpg.NoActiveSQLTransactionError, asyncpg.InterfaceError):
            pass  # the BEGIN never arrived, or the driver knows that its COMMIT was cut
        else:
            stored += 1
        finally:
            kept.terminate()
    assert refused
    assert (await world.counts())[1] == stored


async def test_a_connection_of_a_pool_is_one(world: World) -> None:
    """A pool's proxy is taken as the connection that it stands for."""
    async with asyncpg.create_pool(world.url, min_size=1, max_size=1) as pool:
        async with (
            pool.acquire() as connection,
            connection.transaction(),
            world.shop.unit(connection) as unit,
        ):
            await unit.publish(OrderPaid("A-1"), key="A-1")
        with pytest.raises(ContractError, match=r"asyncpg\.Connection"):
            await world.shop.unit(pool).__aenter__()
    assert (await world.counts())[1] == 1
