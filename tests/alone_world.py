"""An application with tables of its own, and an `Alone` beside them on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import msgspec
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from postgres_server import empty_database
from synchromesh.alone import Alone, upgrade_statements

WAIT_S = 60.0


class Base(DeclarativeBase):
    pass


class Purchase(Base):
    __tablename__ = "purchase"
    id: Mapped[str] = mapped_column(primary_key=True)
    qty: Mapped[int]


class OrderPlaced(msgspec.Struct, frozen=True):
    order_id: str
    qty: int


class OrderPaid(msgspec.Struct, frozen=True):
    order_id: str


_MADE: dict[str, str] = {}
_EMPTIED = (
    "purchase", "sm_event", "sm_inbox", "sm_checkpoint", "sm_parked", "sm_subscription",
    "sm_removal", "sm_snapshot", "sm_duty", "sm_replica",
    "sm_saga", "sm_saga_count", "sm_saga_record", "sm_saga_signal", "sm_saga_wish",
)  # fmt: skip


async def made_database(name: str, app: str = "shop") -> str:
    """Make a database with the tables of the application and ours, or empty the one there is."""
    if (url := _MADE.get(name)) is not None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("; ".join(f"delete from {table}" for table in _EMPTIED))
            await connection.execute("update sm_log set last = 0")
        finally:
            await connection.close()
        return url
    url = _MADE[name] = await empty_database(name)
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("create table purchase(id text primary key, qty int not null)")
            for statement in upgrade_statements(app):
                await connection.execute(statement)
    finally:
        await connection.close()
    return url


@asynccontextmanager
async def engine_of(
    url: str, driver: str = "asyncpg", **options: object
) -> AsyncIterator[AsyncEngine]:
    """Make an engine of SQLAlchemy, and dispose of it."""
    engine = create_async_engine(url.replace("postgresql:", f"postgresql+{driver}:"), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


class World:
    """The application: its sessions, and what is committed."""

    def __init__(self, url: str, engine: AsyncEngine) -> None:
        self.url = url
        self.engine = engine
        self.sessions = async_sessionmaker(engine)
        self.shop = Alone("shop", OrderPlaced, OrderPaid)

    async def rows(self, sql: str) -> list[tuple[object, ...]]:
        """Return what a connection of its own sees."""
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def counts(self) -> tuple[object, ...]:
        """Return how many purchases, events and keys are committed."""
        counts = ", ".join(
            f"(select count(*) from {table})" for table in ("purchase", "sm_event", "sm_inbox")
        )
        return (await self.rows(f"select {counts}"))[0]

    async def place(self, order_id: str, qty: int = 1, session: AsyncSession | None = None) -> None:
        """Place an order, and publish that."""
        if session is None:
            async with self.sessions() as session:
                return await self.place(order_id, qty, session)
        async with session.begin(), self.shop.unit(session) as unit:
            session.add(Purchase(id=order_id, qty=qty))
            await unit.publish(OrderPlaced(order_id, qty), key=order_id)
        return None


@asynccontextmanager
async def running(
    work: Callable[[], Coroutine[Any, Any, None]],
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a delivery meanwhile, and cancel it in the end."""
    task = asyncio.ensure_future(work())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes by itself."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def until_there(ask: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Wait until what is asked for is there."""
    async with asyncio.timeout(WAIT_S):
        while not await ask():
            await asyncio.sleep(0.01)
