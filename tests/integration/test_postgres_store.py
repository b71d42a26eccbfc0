"""What can go wrong between a store and a real PostgreSQL server, most of it without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from postgres_server import PostgresServer, empty_database, shared_server
from synchromesh.errors import (
    ConstraintFailed,
    ContractError,
    StatementFailed,
    StoreBroken,
    StoreUnavailable,
    SynchromeshError,
    UnitTooLong,
)
from synchromesh.runtime import RealRuntime
from synchromesh.store import OUTAGE, InboxState, Migration, Once, Schema, Unit, postgres_units
from synchromesh.store.postgres import PostgresOptions, PostgresStore, PostgresStores
from synchromesh.store.postgres_connection import Connection

pytestmark = pytest.mark.anyio

ITEMS = Schema(
    "items", (Migration(1, ("create table item(id integer primary key, n bigint)",), 1),)
)
WAIT_S = 180.0


@pytest.fixture
async def url(anyio_backend: str) -> str:
    return await empty_database("trap")


@pytest.fixture
async def opened(url: str) -> AsyncIterator[Callable[..., Awaitable[PostgresStore]]]:
    """Opens stores of one database; each is a replica of its own."""
    stores: list[PostgresStore] = []

    async def open_one(**options: Any) -> PostgresStore:
        store = await PostgresStore.open(
            url, service="trap", schemas=[ITEMS], runtime=RealRuntime(),
            options=PostgresOptions(**options),
        )  # fmt: skip
        stores.append(store)
        return store

    yield open_one
    for each in stores:
        await each.close()


async def put(unit: Unit, number: int) -> int:
    await unit.execute("insert into item(id, n) values (?, 0)", number)
    return number


async def add(unit: Unit) -> None:
    ((n,),) = await unit.execute("select n from item where id = 1")
    await unit.execute("update item set n = ? where id = 1", int(n or 0) + 1)


async def items(store: PostgresStore) -> list[object]:
    return [row[0] for row in await store.read("select id from item order by id")]


class Cut:
    """A connection that is cut at a statement, before or after the server had it."""

    def __init__(self, connection: Connection, at: str, *, is_after: bool) -> None:
        self._connection = connection
        self._at = at
        self._is_after = is_after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, sql: str, *values: Any) -> str:
        if not sql.endswith(self._at):
            done: str = await self._connection.execute(sql, *values)
            return done
        if self._is_after:
            await self._connection.execute(sql, *values)
        raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")


def cut_first(store: PostgresStore, at: str, *, is_after: bool) -> list[Cut]:
    """Cut the store's next connection, and none after it."""
    connect = store._units._connect
    made: list[Cut] = []

    async def connect_cut() -> Connection:
        connection = await connect()
        if made:
            return connection
        made.append(Cut(connection, at, is_after=is_after))
        return made[0]

    store._units._connect = connect_cut
    return made


@pytest.mark.parametrize("is_after", [True, False])
async def test_a_commit_without_an_answer_is_looked_up(opened: Any, is_after: bool) -> None:
    """It took effect, or it is run again: once either way, and nobody is asked twice (I3)."""
    store = await opened(connections_max=1)
    made = cut_first(store, "commit", is_after=is_after)
    ran: list[str] = []

    async def body(unit: Unit) -> int:
        ran.append(unit.unit_id)
        await unit.execute("update item set n = n + 1 where id = 1 returning 1")
        return await put(unit, len(ran))

    assert await store.write(body, name="put") == (1 if is_after else 2)
    assert len(made) == 1
    assert len(set(ran)) == len(ran) == (1 if is_after else 2)
    assert await items(store) == [len(ran)]


async def test_a_late_commit_cannot_take_effect_once_it_was_looked_up(opened: Any) -> None:
    """What was on its way when the connection was cut arrives, and is refused."""
    store, late = await opened(connections_max=1), []
    connect = store._units._connect

    class Held(Cut):
        async def execute(self, sql: str, *values: Any) -> str:
            if sql.endswith("commit"):
                late.append(sql)
            return await super().execute(sql, *values)

        def terminate(self) -> None:
            """Let the session live on, as one whose server has not noticed."""

    async def connect_held() -> Connection:
        connection = await connect()
        if late:
            return connection
        held.append(connection)
        return Held(connection, "commit", is_after=False)

    held: list[Connection] = []
    store._units._connect = connect_held
    asking = asyncio.ensure_future(store.write(lambda unit: put(unit, 1), name="put"))
    while not late:
        await asyncio.sleep(0)
    # The row of the first run is in the way of the second, until its late commit fails.
    with pytest.raises(asyncpg.UniqueViolationError):
        await asyncio.wait_for(_when_looked_up(held[0], late[0]), WAIT_S)
    await held[0].execute("rollback")
    assert await asyncio.wait_for(asking, WAIT_S) == 1
    assert await items(store) == [1]
    await held[0].close()


async def _when_looked_up(connection: Connection, commit: str) -> None:
    other = await asyncpg.connect(shared_server().url("trap"))
    try:
        while not await other.fetchval("select count(*) from sm_commit"):
            await asyncio.sleep(0.01)
    finally:
        await other.close()
    await connection.execute(commit)


@pytest.mark.parametrize("is_after", [True, False])
async def test_a_begin_that_was_cut_leaves_no_transaction_behind(
    opened: Any, is_after: bool
) -> None:
    """A connection that may be in one is not kept: else all later units would store nothing."""
    store = await opened(connections_max=1)
    made = cut_first(store, "row share mode", is_after=is_after)
    for number in range(3):
        await store.write(lambda unit, number=number: put(unit, number), name="put")
    assert made[0].is_closed()
    assert await items(await opened()) == [0, 1, 2]


async def test_marks_of_commits_are_deleted(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that no unit can ask for any more, and no others; reads alone leave none."""
    monkeypatch.setattr(postgres_units, "_SWEEP_EVERY", 8)
    store, other = await opened(), await opened()
    await other.write(lambda unit: put(unit, 100), name="put")
    await asyncio.gather(
        *(store.write(lambda unit, n=n: put(unit, n), name="put") for n in range(64))
    )
    for _ in range(16):
        await store.write(lambda unit: unit.execute("select 1"), name="read")
    ((left,),) = await store.read("select count(*) from sm_commit")
    assert left == 1, "the other store's"
    assert await other.read("select count(*) from item") == [(65,)]


async def test_a_session_that_the_server_ends_is_replaced(opened: Any) -> None:
    """In the middle of a unit: it is run again, whole, and its error never told in its place."""
    store = await opened()
    ran: list[int] = []

    async def body(unit: Unit) -> None:
        ran.append(1)
        await put(unit, 7)
        if len(ran) == 1:
            await unit.execute("select pg_terminate_backend(pg_backend_pid())")

    await store.write(body, name="put")
    assert len(ran) == 2
    assert await items(store) == [7]


async def test_a_body_that_goes_on_after_a_refusal_is_run_with_savepoints(opened: Any) -> None:
    """Else the commit would answer ROLLBACK, and store nothing without an error."""
    store = await opened()
    await store.write(lambda unit: put(unit, 1), name="put")
    ran: list[int] = []

    async def body(unit: Unit) -> None:
        ran.append(1)
        await put(unit, 2)
        with pytest.raises(SynchromeshError):
            await unit.execute_many("insert into item(id, n) values (?, 0)", [(3,), (1,), (4,)])

    await store.write(body, name="put")
    assert len(ran) == 2, "the first time without savepoints"
    assert await items(store) == [1, 2, 3], "those before the row that is refused stand"


async def test_replicas_lose_no_update(opened: Any) -> None:
    """Read, add, write from two processes' stores at once: each conflict is run again (I1)."""
    first, second = await opened(), await opened()
    await first.write(lambda unit: put(unit, 1), name="put")
    await asyncio.gather(
        *(store.write(add, name="add") for _ in range(24) for store in (first, second))
    )
    assert await first.read("select n from item") == [(48,)]


async def test_a_key_takes_effect_once_over_replicas(opened: Any) -> None:
    """The inbox row of the later one breaks a key, which is a conflict and no fault of the unit."""
    stores = [await opened() for _ in range(3)]
    await stores[0].write(lambda unit: put(unit, 1), name="put")

    async def body(unit: Unit) -> bytes:
        await add(unit)
        return b"done"

    for key in range(8):
        once = Once("caller", f"k-{key}", "d")
        recorded = await asyncio.gather(
            *(store.write_once(body, once, name="add") for store in stores)
        )
        assert {(each.kind, each.body) for each in recorded} == {(InboxState.ANSWER, b"done")}
    assert await stores[0].read("select n from item") == [(8,)]


async def test_a_duplicate_of_our_own_keys_is_tried_once_more(opened: Any) -> None:
    """Of two who insert one at once the later is told so, and no conflict; then it is true."""
    store = await opened()
    ran: list[int] = []

    async def body(unit: Unit) -> None:
        ran.append(1)
        await unit.execute("insert into sm_meta(name, value) values ('log_id', '')")

    with pytest.raises(ConstraintFailed, match=r"sm_meta\.name"):
        await store.write(body, name="twice")
    assert len(ran) == 2


async def test_a_unit_that_is_always_in_conflict_ends(opened: Any) -> None:
    """After five more tries; it is told so, and may be asked again."""
    store = await opened()
    ran: list[int] = []

    async def body(unit: Unit) -> None:
        ran.append(1)
        await unit.execute("do $$ begin raise exception using errcode = '40001'; end $$")

    with pytest.raises(StoreUnavailable, match="met other units 6 times") as caught:
        await store.write(body, name="unlucky")
    assert caught.value.is_retry_safe
    assert len(ran) == 6
    await store.write(lambda unit: put(unit, 1), name="put")


async def test_a_table_that_changes_under_a_known_statement(opened: Any, url: str) -> None:
    """The plan that the driver keeps is stale: in a unit that is an error, and is run again."""
    store = await opened(connections_max=1)
    await store.write(lambda unit: put(unit, 1), name="put")

    async def all_of(unit: Unit) -> Any:
        return await unit.fetch("select * from item")

    assert (await store.write(all_of, name="read")).columns == ("id", "n")
    assert (await store.fetch("select * from item")).columns == ("id", "n")
    other = await asyncpg.connect(url)
    await other.execute("alter table item add column more integer")
    await other.close()
    assert (await store.write(all_of, name="read")).columns == ("id", "n", "more")
    assert (await store.fetch("select * from item")).columns == ("id", "n", "more")


async def test_a_statement_that_hangs_is_ended(opened: Any) -> None:
    """At the unit's limit; the connection and the store go on."""
    store = await opened(connections_max=1, unit_limit_s=0.2)
    with pytest.raises(UnitTooLong, match="'slow' outlived its limit"):
        await store.write(lambda unit: unit.execute("select pg_sleep(60)"), name="slow")

    async def stubborn(unit: Unit) -> None:
        await put(unit, 9)
        with pytest.raises(UnitTooLong):
            await unit.execute("select pg_sleep(60)")

    with pytest.raises(UnitTooLong):
        await store.write(stubborn, name="stubborn")
    await store.write(lambda unit: put(unit, 1), name="put")
    assert await items(store) == [1]


async def test_values_come_as_the_other_engine_has_them(opened: Any) -> None:
    """Sums are whole, times and ids are texts; a text goes into whatever column takes it."""
    store = await opened()

    async def make(unit: Unit) -> None:
        await unit.execute(
            "create table odd(day date, at timestamptz, id uuid, doc jsonb, price numeric, ok bool)"
        )
        await unit.execute(
            "insert into odd values (?, ?, ?, ?, ?, ?)",
            "2026-03-27", "2026-03-27 12:00:00+00", "0198c0de-0000-7000-8000-000000000001",
            '{"n": 1}', 12, True,
        )  # fmt: skip

    await store.write(make, name="make")
    (row,) = await store.read("select day, at, id, doc, price, ok, price / 8 from odd")
    assert row == (
        "2026-03-27", "2026-03-27 12:00:00+00", "0198c0de-0000-7000-8000-000000000001",
        '{"n": 1}', 12, True, 1.5,
    )  # fmt: skip
    assert [type(each) for each in row] == [str, str, str, str, int, bool, float]
    assert await store.read("select sum(n), count(*) from item") == [(None, 0)]
    assert await store.read("select ? + ?, ? || ?", 1, 2.5, "a", "b") == [(3.5, "ab")]


async def test_migrations_are_applied_once_and_whole(opened: Any, url: str) -> None:
    """Two that start at once wait for each other; what fails leaves nothing behind (P2)."""
    await asyncio.gather(*(opened() for _ in range(3)))
    bad = Migration(
        2, ("alter table item add column x integer", "alter table nowhere add y int"), 1
    )
    with pytest.raises(StatementFailed, match="migration 2 of 'items'"):
        await PostgresStore.open(
            url, service="trap", schemas=[Schema("items", (*ITEMS.migrations, bad))],
            runtime=RealRuntime(),
        )  # fmt: skip
    store = await opened()
    assert (await store.fetch("select * from item")).columns == ("id", "n")
    edited = Migration(1, ("create table item(id bigint primary key)",), 1)
    with pytest.raises(ContractError, match="has been edited since"):
        await PostgresStore.open(
            url, service="trap", schemas=[Schema("items", (edited,))], runtime=RealRuntime()
        )


async def test_what_cannot_be_used_is_told_with_the_mend(url: str, tmp_path: Any) -> None:
    """Before anything is served; a password is in none of it."""
    server = shared_server()
    admin = await asyncpg.connect(url)
    await admin.execute("drop role if exists stranger")
    await admin.execute("create role stranger login password 'secret'")
    await admin.execute("revoke connect on database trap from public")
    await admin.close()
    mine = await PostgresStore.open(url, service="trap", schemas=[ITEMS], runtime=RealRuntime())
    assert await mine.reaches(server.url("postgres")), "a superuser reaches all"
    await mine.close()
    wrong: list[tuple[str, str, type[Exception], str]] = [
        (f"postgresql://u:secret@/x?host={tmp_path}", "trap", StoreUnavailable, "start the server"),
        ("postgresql://u:secret@127.0.0.1:1/x", "trap", StoreUnavailable, "cannot be reached"),
        ("mysql://u:secret@db/x", "trap", StoreBroken, "write postgresql://"),
        (server.url("nowhere"), "trap", StoreBroken, "create it"),
        (server.url("trap", user="nobody"), "trap", StoreBroken, "refuses the role"),
        (server.url("trap", user="stranger:secret"), "trap", StoreBroken, "grant connect"),
        (url, "other", StoreBroken, "is the database of service 'trap', and not of 'other'"),
    ]
    for address, service, kind, words in wrong:
        stores = PostgresStores(RealRuntime(), {service: address}.__getitem__)
        with pytest.raises(kind, match=words) as caught:
            await stores.open(service, [ITEMS])
        assert "secret" not in str(caught.value), words
    empty = await empty_database("void")
    with pytest.raises(StoreBroken, match="has no tables yet"):
        await PostgresStores(RealRuntime(), lambda _: empty).open_reader("trap")
    reader = await PostgresStores(RealRuntime(), lambda _: url).open_reader("trap")
    assert await reader.read("select count(*) from item") == [(0,)]
    assert (await reader.fetch("select n from item")).columns == ("n",)
    with pytest.raises(StatementFailed, match="run it in a unit"):
        await reader.read("delete from item")
    await reader.close()


async def test_a_server_that_goes_away_is_waited_for() -> None:
    """Meanwhile it is said at once, and nothing is run; what was under way is not lost."""
    server = PostgresServer()
    address = await empty_database("away", server)
    store = await PostgresStore.open(
        address, service="away", schemas=[ITEMS], runtime=RealRuntime()
    )
    heard: list[str | None] = []
    changed = asyncio.Event()

    def hear() -> None:
        heard.append(store.broken)
        changed.set()

    store.listen(OUTAGE, hear)
    await store.write(lambda unit: put(unit, 1), name="put")
    server.stop()
    held = asyncio.ensure_future(store.write(lambda unit: put(unit, 2), name="put"))
    await asyncio.wait_for(changed.wait(), WAIT_S)
    assert store.broken is not None
    with pytest.raises(StoreUnavailable, match=r"'put' was not run.*start the server"):
        await store.write(lambda unit: put(unit, 3), name="put")
    with pytest.raises(StoreUnavailable, match="a read was not run"):
        await store.read("select 1")
    changed.clear()
    server.start()
    await asyncio.wait_for(changed.wait(), WAIT_S)
    assert await asyncio.wait_for(held, WAIT_S) == 2
    assert heard[1:] == [None]
    await store.write(lambda unit: put(unit, 4), name="put")
    assert await items(store) == [1, 2, 4]
    server.stop()
    lost = asyncio.ensure_future(store.write(lambda unit: put(unit, 5), name="put"))
    changed.clear()
    await asyncio.wait_for(changed.wait(), WAIT_S)
    await store.close()
    with pytest.raises(StoreBroken, match="under way when the server went away"):
        await lost
    server.close()
