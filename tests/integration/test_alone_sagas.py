"""A saga in the application's own database begins with its commit, and runs to its end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import alone_worker
from alone_world import (
    WAIT_S,
    OrderPaid,
    Purchase,
    World,
    engine_of,
    made_database,
    running,
    until,
    until_there,
)
from synchromesh.alone import Alone, AloneOptions
from synchromesh.alone.session_steps import SessionSteps
from synchromesh.alone.sweeping import sweep
from synchromesh.calls import Contract, command
from synchromesh.errors import (
    ContractError,
    Rejection,
    SagaConflict,
    SagaLocked,
    SagaUndone,
    Shed,
    StoreUnavailable,
    UnknownSaga,
    VersionConflict,
)
from synchromesh.saga import Saga, SagaDefinition, SagaPolicy, Unknown
from synchromesh.saga.backlog import with_records
from synchromesh.store import Store
from synchromesh.store.postgres import PostgresStore

pytestmark = pytest.mark.anyio

OFTEN = AloneOptions(look_every_s=0.02)
LONG_S = 300.0
SOON = SagaPolicy(step_timeout_s=60.0, backoff_base_s=0.01, backoff_cap_s=0.02)


class Order(msgspec.Struct, frozen=True):
    id: str
    qty: int = 1


class NoCredit(Rejection, code="alone_too_dear", status=402):
    pass


async def reserve(session: AsyncSession, order: Order) -> str:
    session.add(Purchase(id=order.id, qty=order.qty))
    return order.id


async def free(session: AsyncSession, order_id: str) -> None:
    await session.delete(await session.get_one(Purchase, order_id))


class Bank:
    """What is asked by key: it charges, or says no to who wants more than three."""

    def __init__(self) -> None:
        self.charged: list[str] = []
        self.back: list[object] = []

    async def charge(self, key: str, qty: int) -> str:
        if qty > 3:
            raise NoCredit("no credit")
        self.charged.append(key)
        return f"receipt {len(self.charged)}"

    async def refund(self, key: str, receipt: str | Unknown) -> None:
        self.back.append(receipt)


class SagaWorld(World):
    """The application with a saga: it reserves, in a row, and pays at a bank."""

    def __init__(self, url: str, engine: Any) -> None:
        super().__init__(url, engine)
        self.bank = Bank()
        self.checkout = self.of(self.shop)

    def of(self, shop: Alone) -> SagaDefinition[Order, str]:
        """Define the saga."""

        @shop.saga(Order, deadline="10m", policy=SOON)
        async def checkout(s: Saga, order: Order) -> str:
            await s.write(reserve, order, undo=free)
            return await s.step(self.bank.charge, order.qty, undo=self.bank.refund)

        return checkout

    async def start(self, order: Order, saga: SagaDefinition[Order, Any] | None = None) -> bool:
        async with self.sessions.begin() as session, self.shop.unit(session) as unit:
            return await unit.start(saga or self.checkout, order, id=order.id)

    @asynccontextmanager
    async def working(self, begin: Any = None, shop: Alone | None = None) -> AsyncIterator[Store]:
        """Run the sagas meanwhile."""
        shop = shop or self.shop
        async with (
            shop.open(self.url, options=OFTEN) as store,
            running(lambda: shop.run_sagas(store, begin or self.sessions.begin)),
        ):
            yield store

    async def told(self, store: Store, id: str, saga: Any = None) -> object:  # noqa: A002
        """Return a run's result, or the error that is told of it."""
        try:
            return await self.shop.runs(store).result(saga or self.checkout, id, within_s=LONG_S)
        except Exception as error:
            return error

    async def purchases(self) -> list[object]:
        return [each for (each,) in await self.rows("select id from purchase order by 1")]


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[SagaWorld]:
    url = await made_database("alone_sagas")
    async with engine_of(url) as engine:
        yield SagaWorld(url, engine)


Begins = Callable[[], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def by_asyncpg(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "none"])
async def test_a_run_begins_if_and_only_if_the_transaction_commits(
    world: SagaWorld, driver: str
) -> None:
    """By SQLAlchemy on both drivers, and by an asyncpg connection alone; its steps, too."""

    async def insert(connection: Any, order: Order) -> str:
        await connection.execute("insert into purchase values ($1, $2)", order.id, order.qty)
        return order.id

    async def both(begin: Begins, step: Any) -> None:
        @world.shop.saga(Order, deadline="10m")
        async def reserving(s: Saga, order: Order) -> str:
            return await s.write(step, order)

        async with world.working(begin) as store:
            for each in ("lost", "A-1"):
                with suppress(ZeroDivisionError):
                    async with begin() as session, world.shop.unit(session) as unit:
                        assert await unit.start(reserving, Order(each), id=each)
                        if each == "lost":
                            raise ZeroDivisionError
            assert await world.told(store, "A-1", reserving) == "A-1"
            assert isinstance(await world.told(store, "lost", reserving), UnknownSaga)

    if driver == "none":
        await both(partial(by_asyncpg, world.url), insert)
    else:
        async with engine_of(world.url, driver) as engine:
            await both(World(world.url, engine).sessions.begin, reserve)
    assert await world.purchases() == ["A-1"]


async def test_the_same_id_is_the_same_run(world: SagaWorld) -> None:
    """At once, later, and after its end; with another input it is refused, and nothing is done."""
    both = await asyncio.gather(world.start(Order("A-1")), world.start(Order("A-1")))
    assert sorted(both) == [False, True]
    with pytest.raises(SagaConflict, match="A-1"):
        await world.start(Order("A-1", 2))
    async with world.working() as store:
        assert await world.told(store, "A-1") == "receipt 1"
    assert not await world.start(Order("A-1"))
    assert world.bank.charged == ["A-1/charge#1"]


async def test_so_many_runs_wait_and_no_more(world: SagaWorld) -> None:
    """A start beyond the bound rolls its transaction back; one that is there is no start."""
    shop = Alone("shop", OrderPaid, queue_max=3)
    saga = world.of(shop)

    async def start(id: str) -> bool:  # noqa: A002
        async with world.sessions.begin() as session, shop.unit(session) as unit:
            session.add(Purchase(id=f"with {id}", qty=1))
            return await unit.start(saga, Order(id), id=id)

    for each in ("A-1", "A-2", "A-3"):
        assert await start(each)
    for _ in range(2):
        with pytest.raises(Shed, match=r"3 sagas of shop wait for a place.*'A-4' was not started"):
            await start("A-4")
    async with world.sessions.begin() as session, shop.unit(session) as unit:
        assert not await unit.start(saga, Order("A-1"), id="A-1")
    assert await world.purchases() == ["with A-1", "with A-2", "with A-3"]
    async with world.working(shop=shop) as store:
        for each in ("A-1", "A-2", "A-3"):
            assert str(await shop.runs(store).result(saga, each, within_s=LONG_S))
        assert await start("A-4")


async def test_a_commit_here_begins_its_run_at_once(world: SagaWorld) -> None:
    """Nobody waits for the next look where the process that commits has the database open."""
    seldom = AloneOptions(look_every_s=3600.0)
    async with (
        world.shop.open(world.url, options=seldom) as store,
        running(lambda: world.shop.run_sagas(store, world.sessions.begin)),
    ):
        await until(lambda: bool(store.owners.epoch("sagas/0")))
        for n in range(3):
            await world.start(Order(f"A-{n}"))
            async with asyncio.timeout(WAIT_S):
                assert await world.told(store, f"A-{n}") == f"receipt {n + 1}"


async def test_a_start_elsewhere_begins_too(world: SagaWorld) -> None:
    """Also where the process that commits has nothing open: the worker looks."""
    elsewhere = SagaWorld(world.url, world.engine)
    async with world.working() as store:
        for n in range(2):
            await elsewhere.start(Order(f"A-{n}"))
            assert await world.told(store, f"A-{n}") == f"receipt {n + 1}"
        assert await with_records(store, []) == []  # as where those that are due are in memory


async def test_one_that_reads_as_of_its_beginning_is_to_be_run_again(world: SagaWorld) -> None:
    """At REPEATABLE READ a start that came meanwhile is not seen, and is a conflict."""

    async def late() -> None:
        async with engine_of(world.url, isolation_level="REPEATABLE READ") as engine:
            begin = World(world.url, engine).sessions.begin
            async with begin() as session, world.shop.unit(session) as unit:
                await world.start(Order("A-1"))
                await unit.start(world.checkout, Order("A-1"), id="A-1")

    with pytest.raises(VersionConflict):
        await late()


async def test_a_key_has_one_unfinished_run(world: SagaWorld) -> None:
    """Of two that start at once one is refused, and nothing of its transaction stands."""

    @world.shop.saga(Order, deadline="10m", key=lambda order: order.id[0])
    async def alone(s: Saga, order: Order) -> None:
        await s.sleep("1h")

    ids = ["A-1", "A-2", "B-1"]
    came = await asyncio.gather(
        *(world.start(Order(each), alone) for each in ids), return_exceptions=True
    )
    assert [type(each) for each in came].count(SagaLocked) == 1
    assert came[2] is True
    assert len(await world.rows("select id from sm_saga")) == 2


async def test_a_refused_run_is_undone_backwards(world: SagaWorld) -> None:
    """In transactions of the application's own; who waits is told the refusal."""
    await world.start(Order("A-1", 9))
    async with world.working() as store:
        assert isinstance(await world.told(store, "A-1"), NoCredit)
        (run,) = await world.shop.runs(store).list("undone")
        lines = (await world.shop.runs(store).show(run.id)).lines
    assert ("undone", "reserve#1") in [(each.kind, each.step) for each in lines]
    assert (await world.purchases(), world.bank.charged) == ([], [])


async def test_a_step_that_raises_leaves_nothing(world: SagaWorld) -> None:
    """A bug of its function rolls back its rows and messages, and turns the run."""
    calls: list[str] = []

    async def publish(session: AsyncSession, order: Order) -> str:
        calls.append(order.id)
        session.add(Purchase(id=order.id, qty=1))
        async with world.shop.unit(session) as unit:
            await unit.publish(OrderPaid(order.id))
        if order.id == "A-2":
            raise ZeroDivisionError
        return order.id

    @world.shop.saga(Order, deadline="10m")
    async def publishing(s: Saga, order: Order) -> str:
        return await s.write(publish, order)

    async with world.working() as store:
        for each in ("A-1", "A-2"):
            await world.start(Order(each), publishing)
        assert await world.told(store, "A-1", publishing) == "A-1"
        assert isinstance(await world.told(store, "A-2", publishing), SagaUndone)
    assert (calls.count("A-2"), await world.purchases()) == (1, ["A-1"])
    published = await world.rows("select count(*) from sm_event where name = 'shop.order_paid'")
    assert published == [(1,)]


class OperationalError(Exception):
    """Has the name of a database's error, and is none."""


OF_A_FUNCTION = [FileNotFoundError("prices"), TimeoutError("no price"), OperationalError("odd")]


@pytest.mark.parametrize("error", OF_A_FUNCTION, ids=lambda error: type(error).__name__)
async def test_what_a_function_raises_is_none_of_the_database(
    world: SagaWorld, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever its class is called it turns the run, at once, and is logged; in an undo, too."""
    undone: list[str] = []

    async def look_up(session: AsyncSession, order: Order) -> str:
        raise error

    async def free_at_last(session: AsyncSession, order_id: str) -> None:
        undone.append(order_id)
        if len(undone) == 1:
            raise error
        await free(session, order_id)

    @world.shop.saga(Order, deadline="24h", policy=SOON)
    async def buying(s: Saga, order: Order) -> str:
        await s.write(reserve, order, undo=free_at_last)
        return await s.write(look_up, order)

    await world.start(Order("A-1"), buying)
    async with world.working() as store:
        assert isinstance(await world.told(store, "A-1", buying), SagaUndone)
        lines = (await world.shop.runs(store).show("A-1")).lines
    assert (len(undone), await world.purchases()) == (2, [])
    assert f"{type(error).__name__} was raised" in "".join(each.why for each in lines)
    logged = [each.exc_info[1] for each in caplog.records if each.exc_info]
    assert logged.count(error) == 2


async def test_a_driver_that_gives_up_is_the_database_too(world: SagaWorld) -> None:
    """A time-out of asyncpg's own has no state and no class of its own; it is tried again."""
    calls: list[str] = []

    async def slow_once(session: AsyncSession, order: Order) -> str:
        calls.append(order.id)
        await session.execute(text(f"select pg_sleep({3600 if len(calls) == 1 else 0})"))
        return order.id

    @world.shop.saga(Order, deadline="24h", policy=SOON)
    async def buying(s: Saga, order: Order) -> str:
        return await s.write(slow_once, order)

    await world.start(Order("A-1"), buying)
    async with (
        engine_of(world.url, connect_args={"command_timeout": 0.5}) as engine,
        world.working(World(world.url, engine).sessions.begin) as store,
    ):
        assert await world.told(store, "A-1", buying) == "A-1"
    assert len(calls) > 1


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_commit_whose_answer_is_lost_is_looked_for(
    world: SagaWorld, is_committed: bool
) -> None:
    """A step that stands is not done again; one that does not is, and uses up no attempts."""
    faults = 9
    calls: list[str] = []

    @asynccontextmanager
    async def begin() -> AsyncIterator[AsyncSession]:
        nonlocal faults
        faults -= 1
        async with world.sessions() as session:
            await session.begin()
            yield session
            if is_committed or faults < 0:
                await session.commit()
            if faults >= 0:
                raise ConnectionResetError

    async def buy(session: AsyncSession, order: Order) -> str:
        calls.append(order.id)
        return await reserve(session, order)

    @world.shop.saga(Order, deadline="10m", policy=SOON)
    async def buying(s: Saga, order: Order) -> str:
        return await s.write(buy, order)

    await world.start(Order("A-1"), buying)
    async with world.working(begin) as store:
        assert await world.told(store, "A-1", buying) == "A-1"
    assert (len(calls), await world.purchases()) == (1 if is_committed else 10, ["A-1"])


async def test_an_outage_is_waited_for_to_know_what_became_of_a_commit(
    world: SagaWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the store is away as the answer is lost the step is not done again meanwhile."""
    calls: list[str] = []
    refused: list[str] = []
    write = PostgresStore.write

    async def away(self: PostgresStore, body: Any, *, name: str, **more: Any) -> Any:
        if name.endswith(" outcome") and not refused:
            refused.append(name)
            raise StoreUnavailable("it is away")
        return await write(self, body, name=name, **more)

    @asynccontextmanager
    async def begin() -> AsyncIterator[AsyncSession]:
        async with world.sessions.begin() as session:
            yield session
        if not refused:
            raise ConnectionResetError

    async def buy(session: AsyncSession, order: Order) -> str:
        calls.append(order.id)
        return await reserve(session, order)

    @world.shop.saga(Order, deadline="24h", policy=SOON)
    async def buying(s: Saga, order: Order) -> str:
        return await s.write(buy, order, undo=free)

    monkeypatch.setattr(PostgresStore, "write", away)
    await world.start(Order("A-1"), buying)
    async with world.working(begin) as store:
        assert await world.told(store, "A-1", buying) == "A-1"
    assert (len(calls), len(refused), await world.purchases()) == (1, 1, ["A-1"])
    assert "is not known yet" in caplog.text


async def test_a_record_that_is_there_is_followed(
    world: SagaWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A step whose record is there writes nothing; its run comes back, and goes on behind it."""
    calls: list[str] = []
    has_committed = False

    async def unseen(*_: object) -> bool:
        return False

    @asynccontextmanager
    async def begin() -> AsyncIterator[AsyncSession]:
        nonlocal has_committed
        async with world.sessions.begin() as session:
            yield session
        if not has_committed:
            has_committed = True
            raise ConnectionResetError

    async def buy(session: AsyncSession, order: Order) -> str:
        calls.append(order.id)
        session.add(Purchase(id=f"{order.id} {len(calls)}", qty=1))
        return order.id

    @world.shop.saga(Order, deadline="24h", policy=SOON)
    async def buying(s: Saga, order: Order) -> str:
        return await s.write(buy, order)

    monkeypatch.setattr(SessionSteps, "_is_there", unseen)
    await world.start(Order("A-1"), buying)
    async with world.working(begin) as store:
        await until(lambda: "leaves memory" in caplog.text)
        world.shop.look()
        assert await world.told(store, "A-1", buying) == "A-1"
    assert (calls, await world.purchases()) == (["A-1"] * 2, ["A-1 1"])
    assert "Traceback" not in caplog.text


async def test_a_step_comes_again_after_a_kill(world: SagaWorld) -> None:
    """Kill -9 between a step's effect and its record: the next process asks again under the key."""
    sessions = alone_worker.Pack.sessions = world.sessions
    async with sessions.begin() as session, alone_worker.shop.unit(session) as unit:
        await unit.start(alone_worker.send, alone_worker.Parcel("A-1", 1), id="A-1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, Path(alone_worker.__file__), world.url, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert [await process.stdout.readline() for _ in range(2)] == [b"ready\n", b"packed\n"]
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    alone_worker.Pack.keys.clear()
    async with world.working(sessions.begin, alone_worker.shop) as store:
        assert await world.told(store, "A-1", alone_worker.send) == "again"
    assert alone_worker.Pack.keys == ["A-1/pack#1"]
    assert await world.purchases() == ["noted A-1", "packed A-1", "shipped A-1"]


async def test_several_processes_share_the_runs(world: SagaWorld) -> None:
    """Each run is one's at a time; what one leaves in order goes on with the other at once."""
    other = Alone("shop", OrderPaid)
    did: dict[str, set[str]] = {"here": set(), "there": set()}

    def define(shop: Alone, where: str) -> SagaDefinition[Order, str]:
        async def step(key: str) -> str:
            did[where].add(key)
            return where

        @shop.saga(Order, deadline="10m")
        async def sharing(s: Saga, order: Order) -> str:
            return await s.step(step)

        return sharing

    here, there = define(world.shop, "here"), define(other, "there")
    async with world.working() as store:
        async with world.working(shop=other) as beside:
            runs = count()

            async def told_by_both() -> bool:
                ids = [f"A-{next(runs)}" for _ in range(10)]
                for each in ids:
                    await world.start(Order(each), here)
                told = {await world.told(beside, each, there) for each in ids}
                return told == {"here", "there"}

            await until_there(told_by_both)
        await world.start(Order("B-1"), here)
        assert await world.told(store, "B-1", here) == "here"
    assert not did["here"] & did["there"]


class Paid(msgspec.Struct, frozen=True):
    receipt: str


async def test_a_run_sleeps_and_is_told(world: SagaWorld) -> None:
    """What a transaction tells is told with its commit, also by a process that has nothing open."""

    @world.shop.saga(Order, deadline="10m")
    async def waiting(s: Saga, order: Order) -> str:
        await s.sleep("0.01s")
        paid = await s.event(Paid, within="9m")
        return paid.receipt if paid is not None else "late"

    elsewhere = Alone("shop")
    async with world.working() as store:
        await world.start(Order("A-1"), waiting)
        await until_there(lambda: world.shop.runs(store).list("sleeping"))
        for told in ("no", "R-1"):
            async with world.sessions() as session, session.begin():
                async with elsewhere.unit(session) as unit:
                    assert await unit.tell(waiting, "A-1", Paid(told))
                if told == "no":
                    await session.rollback()
        assert await world.told(store, "A-1", waiting) == "R-1"
        async with world.sessions.begin() as session, world.shop.unit(session) as unit:
            assert not await unit.tell(waiting, "A-1", Paid("late"))


async def test_what_is_told_as_a_run_falls_asleep_wakes_it(world: SagaWorld) -> None:
    """At READ COMMITTED, too: the run waits for the transaction, and then sees what it told."""
    may_sleep = asyncio.Event()

    async def gate(key: str) -> str:
        await may_sleep.wait()
        return key

    @world.shop.saga(Order, deadline="10m", policy=SOON)
    async def waiting(s: Saga, order: Order) -> str:
        await s.step(gate)
        paid = await s.event(Paid, within="9m")
        return paid.receipt if paid is not None else "late"

    async with world.working() as store:
        await world.start(Order("A-1"), waiting)
        async with world.sessions.begin() as session:
            async with world.shop.unit(session) as unit:
                assert await unit.tell(waiting, "A-1", Paid("R-1"))
            may_sleep.set()
            await until_there(lambda: world.rows("select 1 from pg_locks where not granted"))
        assert await world.told(store, "A-1", waiting) == "R-1"


class Mail(Contract, Protocol, service="mail", version="1.0"):
    @command("POST /mails")
    async def post(self, to: str) -> str: ...


async def test_wrong_uses_say_what_to_do(world: SagaWorld) -> None:
    """Calls, sagas of another `Alone`, no way to begin, two workers of one store."""

    @world.shop.saga(Order, deadline="10m")
    async def calls(s: Saga, order: Order) -> str:
        return await s.call(Mail.post(order.id))

    @Alone("shop").saga(Order, deadline="10m")
    async def foreign(s: Saga, order: Order) -> None:
        pass

    with pytest.raises(ContractError, match="define it there, by `@alone"):
        await world.start(Order("A-1"), foreign)
    with pytest.raises(ContractError, match="is not async"):
        world.shop.saga(Order, deadline="10m")(lambda s, order: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ContractError, match="two sagas 'calls' of version 1"):
        world.shop.saga(Order, deadline="10m")(calls.fn)
    await world.start(Order("A-1"), calls)
    async with world.shop.open(world.url, options=OFTEN) as store:
        with pytest.raises(ContractError, match="is not open here"):
            await Alone("shop").run_sagas(store)
        async with running(lambda: world.shop.run_sagas(store)):
            no_call = await world.told(store, "A-1", calls)
            with pytest.raises(ContractError, match="has its sagas run already"):
                await world.shop.run_sagas(store)
    assert "give that to s.step(function, ...)" in str(no_call)


@pytest.mark.parametrize("wrong", ["none", "not begun"])
async def test_a_worker_that_cannot_begin_undoes_nothing(
    world: SagaWorld, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A mistake of the process is none of the run, which waits for one that can."""
    await world.start(Order("A-1"))
    async with world.shop.open(world.url, options=OFTEN) as store:
        begin = None if wrong == "none" else world.sessions
        async with running(lambda: world.shop.run_sagas(store, begin)):
            await until(lambda: "waits for a transaction" in caplog.text)
        said = "such as `sessions.begin`" if begin is None else "is in no transaction"
        assert said in caplog.text
        async with running(lambda: world.shop.run_sagas(store, world.sessions.begin)):
            assert await world.told(store, "A-1") == "receipt 1"


async def test_runs_that_ended_are_swept(world: SagaWorld) -> None:
    """With their records and events; one that goes on stays."""

    @world.shop.saga(Order, deadline="10m")
    async def sleeping(s: Saga, order: Order) -> None:
        await s.sleep("9m")

    await world.start(Order("A-1"))
    await world.start(Order("A-2"), sleeping)
    async with world.working() as store:
        await world.told(store, "A-1")
        await until_there(lambda: world.shop.runs(store).list("sleeping"))
        await sweep(store, ran_s=1.0, keep_s=3600.0)
        assert len(await world.shop.runs(store).list()) == 2
        await sweep(store, ran_s=1.0, keep_s=-1.0)
        assert [each.id for each in await world.shop.runs(store).list()] == ["A-2"]
    assert await world.rows("select distinct saga from sm_saga_record") == [("A-2",)]
    assert await world.rows("select distinct stream from sm_event") == [("saga/A-2",)]
