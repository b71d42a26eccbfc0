"""Committed messages come to a function: at least once, in order, whoever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from alone_world import (
    WAIT_S,
    OrderPaid,
    OrderPlaced,
    Purchase,
    World,
    engine_of,
    made_database,
    running,
    until,
    until_there,
)
from postgres_server import empty_database
from synchromesh.alone import (
    Alone,
    AloneOptions,
    Delivered,
    DeliverOptions,
    LoggedEvent,
    downgrade_statements,
    include_name,
    sweeping,
    upgrade_statements,
)
from synchromesh.alone.sweeping import sweep
from synchromesh.errors import BadRequest, ContractError, StoreBroken
from synchromesh.events import Checkpoint, read
from synchromesh.saga import Saga

pytestmark = pytest.mark.anyio

OFTEN = AloneOptions(look_every_s=0.02)
SOON = DeliverOptions(poll_s=0.02, attempts_max=2)


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    url = await made_database("alone")
    async with engine_of(url) as engine:
        yield World(url, engine)


async def test_what_is_committed_is_delivered_in_order_of_each_key(world: World) -> None:
    """Also of many sessions at once; nothing of a rollback is (O1 to O3)."""
    got: list[Delivered] = []

    async def take(message: Delivered) -> None:
        got.append(message)

    async def pay(n: int) -> None:
        for times in range(5):
            async with world.sessions() as session, session.begin():
                async with world.shop.unit(session, trace_id="a" * 32) as unit:
                    await unit.publish(OrderPlaced(f"A-{n % 3}", times), key=f"A-{n % 3}")
                if times == 2:
                    await session.rollback()

    async with world.shop.open(world.url, options=OFTEN) as store:  # noqa: SIM117
        async with running(lambda: world.shop.deliver(store, "mail", take, options=SOON)):
            await asyncio.gather(*(pay(n) for n in range(6)))
            await until(lambda: len(got) == 24)
    assert [each.event.qty for each in got].count(2) == 0
    assert {each.trace_id for each in got} == {"a" * 32}
    assert {(each.name, each.key == each.event.order_id) for each in got} == {
        ("shop.order_placed", True)
    }
    for key in ("A-0", "A-1", "A-2"):
        places = [each.position for each in got if each.key == key]
        assert all(one < two for one, two in pairwise(places))


async def test_what_another_process_commits_is_delivered_too(world: World) -> None:
    """Positions are given here to what was committed where nothing is open, before and after."""
    got = asyncio.Queue[Delivered]()
    elsewhere = World(world.url, world.engine)
    await elsewhere.place("A-1")
    async with world.shop.open(world.url, options=OFTEN) as store:
        async with running(lambda: world.shop.deliver(store, "mail", got.put, options=SOON)):
            assert (await got.get()).event == OrderPlaced("A-1", 1)
            await elsewhere.place("A-2")
            assert (await got.get()).event == OrderPlaced("A-2", 1)
        events = await read(store, after=Checkpoint(store.log_id), limit=9)
    assert [(each.position, each.name) for each in events] == [
        (1, "shop.order_placed"),
        (2, "shop.order_placed"),
    ]


async def test_a_commit_here_is_delivered_at_once(world: World) -> None:
    """Nobody waits for the next look where the process that commits has the database open."""
    got = asyncio.Queue[Delivered]()
    seldom = AloneOptions(look_every_s=3600.0)
    async with world.shop.open(world.url, options=seldom) as store:
        never = DeliverOptions(poll_s=3600.0)
        async with running(lambda: world.shop.deliver(store, "mail", got.put, options=never)):
            for n in range(3):
                await world.place(f"A-{n}")
                async with asyncio.timeout(60):
                    assert (await got.get()).event.order_id == f"A-{n}"


async def test_a_message_that_was_not_finished_comes_again(world: World) -> None:
    """A process that dies in the function leaves its message to the next one, and what follows."""
    began: list[str] = []

    async def dies(message: Delivered) -> None:
        began.append(message.event.order_id)
        await asyncio.Event().wait()

    for n in range(3):
        await world.place(f"A-{n}")
    async with world.shop.open(world.url, options=OFTEN) as store:
        one_by_one = DeliverOptions(poll_s=0.02, in_flight_max=1)
        async with running(lambda: world.shop.deliver(store, "mail", dies, options=one_by_one)):
            await until(lambda: began == ["A-0"])
    effects: list[str] = []

    async def handle(message: Delivered) -> None:
        async with world.sessions.begin() as session, world.shop.unit(session) as unit:
            if is_first := await unit.once(message.id, caller="mail"):
                session.add(Purchase(id=f"mail {message.event.order_id}", qty=1))
        if is_first:
            effects.append(message.event.order_id)

    async with world.shop.open(world.url, options=OFTEN) as store:
        async with running(lambda: world.shop.deliver(store, "mail", handle, options=SOON)):
            await until(lambda: len(effects) == 3)
        # Who begins with the log anew gets all again, and does nothing twice.
        again: list[str] = []

        async def counted(message: Delivered) -> None:
            await handle(message)
            again.append(message.event.order_id)

        async with running(lambda: world.shop.deliver(store, "again", counted, options=SOON)):
            await until(lambda: len(again) == 3)
    assert sorted(effects) == ["A-0", "A-1", "A-2"]
    assert (await world.counts())[0] == 6


async def test_one_that_fails_holds_up_its_own_key_alone(world: World) -> None:
    """It is set aside, later ones of its key wait behind it in order, others flow (O5)."""
    got: list[tuple[str, int]] = []
    is_mended = False

    async def take(message: Delivered) -> None:
        if message.key == "bad" and not (is_mended and message.event.qty):
            raise ValueError("out of paper")
        got.append((message.key, message.event.qty))

    async def publish(key: str, n: int) -> None:
        async with world.sessions.begin() as session, world.shop.unit(session) as unit:
            await unit.publish(OrderPlaced(key, n), key=key)

    async with world.shop.open(world.url, options=OFTEN) as store:  # noqa: SIM117
        async with running(lambda: world.shop.deliver(store, "mail", take, options=SOON)):
            for n in range(3):
                await publish("bad", n)
                await publish("good", n)
            await until(lambda: len(got) == 3)
            async with asyncio.timeout(60):
                while await world.rows("select count(*) from sm_parked") != [(3,)]:
                    await asyncio.sleep(0.02)
            ((error, words),) = await world.rows(
                "select error, text from sm_parked where error <> '' order by number limit 1"
            )
            assert (error, "out of paper" in str(words)) == ("RemoteFailed", True)
            first, *behind = await world.shop.set_aside(store)
            assert (first.subscriber, first.key, first.state) == ("mail", "bad", "refused")
            assert "out of paper" in first.error
            assert [(each.state, each.error) for each in behind] == [("waiting", "")] * 2
            # Given up by a person: the next one of its key is tried.
            for number, who in ((first.number, ""), (10**6, "ada")):
                with pytest.raises(BadRequest, match=r"say who drops|no message 1000000 is set"):
                    await world.shop.drop(store, number, who=who, why="no such printer")
            await world.shop.drop(store, first.number, who="ada", why="no such printer")
            assert [each.number for each in await world.shop.set_aside(store)] == [
                each.number for each in behind
            ]
            ((told,),) = await world.rows(
                "select body from sm_event where name = 'shop.message_dropped'"
            )
            assert "no such printer" in str(told)
            is_mended = True
            await until(lambda: len(got) == 5)
            assert [n for key, n in got if key == "bad"] == [1, 2]
            async with asyncio.timeout(60):
                while await world.shop.set_aside(store):
                    await asyncio.sleep(0.02)


async def test_two_functions_have_places_of_their_own(world: World) -> None:
    """One wants all messages, one only those of a class, from the beginning of the log."""
    mail, search = list[object](), list[object]()

    async def to_mail(message: Delivered) -> None:
        mail.append(message.event)

    async def to_search(message: Delivered) -> None:
        search.append(message.event)

    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        await unit.publish(OrderPlaced("A-1", 1), key="A-1")
        await unit.publish(OrderPaid("A-1"))
        await unit.append("order/A-1", [OrderPaid("A-1")])  # no message
    shop = world.shop
    async with shop.open(world.url, options=OFTEN) as store:
        async with running(lambda: shop.deliver(store, "mail", to_mail, options=SOON)):
            await until(lambda: len(mail) == 2)
        paid = {"events": (OrderPaid,), "options": SOON}
        async with running(lambda: shop.deliver(store, "search", to_search, **paid)):  # type: ignore[arg-type]
            await until(lambda: len(search) == 1)
        assert search == [OrderPaid("A-1")]
        with pytest.raises(ContractError, match="is no name"):
            await shop.deliver(store, "Mail!", to_mail)
        with pytest.raises(ContractError, match="not an event"):
            await shop.deliver(store, "mail", to_mail, events=(Purchase,))
        with pytest.raises(ContractError, match="has no events"):
            await Alone("shop").deliver(store, "mail", to_mail)


async def test_what_everybody_has_got_is_swept_after_its_time(world: World) -> None:
    """Messages go once they are old and delivered, keys once they are old; events stay."""
    got: list[object] = []

    async def take(message: Delivered) -> None:
        got.append(message)

    async with world.sessions.begin() as session, world.shop.unit(session) as unit:
        await unit.append("order/A-1", [OrderPaid("A-1")])
        assert await unit.once("request", keep_s=0.0)
    await world.place("A-1")
    await world.place("A-2")
    async with world.shop.open(world.url, options=OFTEN) as store:
        await sweep(store, ran_s=0.0, keep_s=0.0)
        assert (await world.counts())[1] == 3  # nobody has got them
        async with running(lambda: world.shop.deliver(store, "mail", take, options=SOON)):
            await until(lambda: len(got) == 2)
            async with asyncio.timeout(60):
                while await world.rows("select position from sm_checkpoint") != [(3,)]:
                    await asyncio.sleep(0.02)
        await sweep(store, ran_s=0.0, keep_s=3600.0)
        assert (await world.counts())[1] == 3
        await sweep(store, ran_s=1.0, keep_s=0.0)
        await sweep(store, ran_s=1.0, keep_s=0.0)
        assert await world.counts() == (2, 1, 0)
        assert len(await read(store, after=Checkpoint(store.log_id), limit=9)) == 1


async def test_a_name_that_is_not_used_any_more_is_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is kept for it is said to be; messages and runs go once a person has forgotten it."""
    shop = world.shop

    async def refuse(message: Delivered) -> None:
        raise ValueError("out of paper")

    async def take(message: Delivered) -> None:
        pass

    async def count(session: AsyncSession, event: LoggedEvent) -> None:
        pass

    @shop.saga(int, deadline="24h")
    async def quick(s: Saga, number: int) -> int:
        return number

    async def passed(name: str) -> bool:
        last = "(select max(position) from sm_event where is_public = 1)"
        where = f"where name = '{name}' and position >= {last}"
        return bool(await world.rows(f"select name from sm_checkpoint {where}"))

    async def kept() -> tuple[object, ...]:
        counted = "count(*) from sm_event where is_public = 1), (select count(*) from sm_saga)"
        return (await world.rows(f"select (select {counted}, (select count(*) from sm_parked)"))[0]

    async with shop.open(world.url, options=OFTEN) as store:
        async with (
            running(lambda: shop.deliver(store, "mail", refuse, options=SOON)),
            running(lambda: shop.project(store, "sold", world.sessions.begin, count)),
        ):
            await world.place("A-1")
            await until_there(lambda: shop.set_aside(store))
            await until_there(lambda: passed("alone/sold"))
            with pytest.raises(BadRequest, match="'mail' is not gone"):
                await shop.forget(store, "mail", who="ada", why="renamed")
        async with (
            running(lambda: shop.deliver(store, "mailer", take, options=SOON)),
            running(lambda: shop.run_sagas(store)),
        ):
            await world.place("A-2")
            async with world.sessions.begin() as session, shop.unit(session) as unit:
                await unit.start(quick, 1, id="R-1")
            assert await shop.runs(store).result(quick, "R-1", within_s=WAIT_S) == 1
            await until_there(lambda: passed("relay/mailer"))
        assert await sweep(store, ran_s=1.0, keep_s=-1.0) >= {"alone/sold"}
        assert await kept() == (1, 1, 1)
        with monkeypatch.context() as patch:
            patch.setattr(sweeping, "EVERY_S", 0.01)
            async with running(lambda: sweeping.sweep_for_ever(store, keep_s=-1.0)):
                await until(lambda: "Alone.forget(store, 'sold', who=..., why=...)" in caplog.text)
        for name, who in (("sold", " "), ("unknown", "ada")):
            with pytest.raises(BadRequest, match=r"say who|nothing is kept for 'unknown'"):
                await shop.forget(store, name, who=who, why="renamed")
        for name in ("sold", "mail"):
            await shop.forget(store, name, who="ada", why="renamed")
        assert await sweep(store, ran_s=1.0, keep_s=-1.0) == set()
        assert await kept() == (0, 0, 0)
    told = await world.rows("select body from sm_event where name = 'shop.subscriber_forgotten'")
    assert [b"renamed" in each for (each,) in told if isinstance(each, bytes)] == [True, True]


async def test_a_database_without_tables_or_of_another_is_not_opened(anyio_backend: str) -> None:
    """The message says which statements are to be run; nothing is made by looking."""
    url = await empty_database("alone_none")
    with pytest.raises(StoreBroken, match=r"upgrade_statements\('shop', 1\)"):
        await Alone("shop", OrderPaid).open(url).__aenter__()
    connection = await asyncpg.connect(url)
    try:
        assert (
            await connection.fetchval("select count(*) from pg_tables where tablename ~ '^sm_'")
            == 0
        )
        async with connection.transaction():
            for statement in upgrade_statements("shop", 1):
                await connection.execute(statement)
        with pytest.raises(StoreBroken, match="is the database of service 'shop'"):
            await Alone("store", OrderPaid).open(url).__aenter__()
        as_sqlalchemy = url.replace("postgresql:", "postgresql+asyncpg:")
        as_sqlalchemy += f"{'&' if '?' in url else '?'}ssl=prefer&prepared_statement_cache_size=0"
        for address in (as_sqlalchemy, as_sqlalchemy.split("ssl=")[0] + "application_name=shop"):
            async with Alone("shop").open(address):
                pass
        async with connection.transaction():
            for statement in downgrade_statements(1):
                await connection.execute(statement)
        assert (
            await connection.fetchval("select count(*) from pg_class where relname ~ '^sm_'") == 0
        )
    finally:
        await connection.close()
    for version in (0, 2, -1):
        with pytest.raises(ContractError, match="there is no version"):
            upgrade_statements("shop", version)
    assert (include_name(None, "schema", {}), include_name("sm_x", "table", {})) == (True, False)
