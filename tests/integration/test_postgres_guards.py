"""What statements may not leave behind on a real PostgreSQL server: a commit, or a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from postgres_server import empty_database
from synchromesh.errors import ContractError, StatementFailed, StoreError
from synchromesh.runtime import RealRuntime
from synchromesh.store import Migration, Schema, Unit, postgres_dialect
from synchromesh.store.postgres import PostgresOptions, PostgresStore

pytestmark = pytest.mark.anyio

ITEMS = Schema("items", (Migration(1, ("create table item(id integer primary key)",), 1),))
Opened = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def opened(anyio_backend: str) -> AsyncIterator[Opened]:
    """Opens stores of one database."""
    stores, url = [], await empty_database("guards")

    async def open_one(schema: Schema = ITEMS, **options: Any) -> PostgresStore:
        store = await PostgresStore.open(
            url, service="guards", schemas=[schema], runtime=RealRuntime(),
            options=PostgresOptions(**options),
        )  # fmt: skip
        stores.append(store)
        return store

    yield open_one
    for each in stores:
        await each.close()


async def put(unit: Unit, number: int) -> None:
    await unit.execute("insert into item(id) values (?)", number)


async def items(store: PostgresStore) -> list[object]:
    return [row[0] for row in await store.read("select id from item order by id")]


@pytest.mark.parametrize(
    "sql",
    [
        "/* /* */ */ commit",
        "/* /* a */ b */ commit and chain",
        "-- a\rcommit",
        "-- a\r/* -- */;;/**/rollback",
        "/* /* */ */ set role none",
    ],
)
async def test_comments_are_read_as_the_server_reads_them(opened: Opened, sql: str) -> None:
    """They nest, and those of a line end at a carriage return."""
    store = await opened()

    async def body(unit: Unit) -> None:
        await put(unit, 1)
        await unit.execute(sql)

    with pytest.raises(StatementFailed, match="steers the engine"):
        await store.write(body, name="steer")
    with pytest.raises(StatementFailed, match="steers the engine"):
        await store.read(sql)
    assert await items(store) == []


@pytest.mark.parametrize(
    "sql",
    [
        "select ?::text /* ? /* ? */ ? */",
        "select ?::text -- ?\r",
        r"select ?::text where e'\'?' <> E'a''?\\'",
        "select ?::text where $a$?$b$?$a$ <> $$?$$",
    ],
)
async def test_marks_are_read_as_the_server_reads_them(opened: Opened, sql: str) -> None:
    """A question mark in a comment or a text is none."""
    store = await opened()
    assert await store.read(sql, "a") == [("a",)]


@pytest.mark.parametrize("many", [False, True])
async def test_a_transaction_that_ended_within_its_unit_is_told(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """Whatever got past the guard; the body goes no further, and the connection is not kept."""
    monkeypatch.setattr(postgres_dialect, "_CONTROL", frozenset())
    store, went_on = await opened(connections_max=1), []

    async def body(unit: Unit) -> None:
        await put(unit, 1)
        if many:
            await unit.execute_many("commit", [()])
        else:
            await unit.execute("commit")
        went_on.append(1)

    with pytest.raises(StatementFailed, match="ended the unit's transaction"):
        await store.write(body, name="steer")
    assert went_on == []
    await store.write(lambda unit: put(unit, 2), name="put")
    with pytest.raises(ValueError, match="no"):
        await store.write(refusing, name="put")
    assert await items(store) == [1, 2]


async def refusing(unit: Unit) -> None:
    await put(unit, 3)
    raise ValueError("no")


async def test_a_unit_finds_nothing_of_the_session_of_another(opened: Opened) -> None:
    """Settings, also by a function; locks and tables of a session; whether it commits or not."""
    store = await opened(connections_max=1)

    async def make(unit: Unit) -> None:
        await unit.execute(
            "create function leave() returns text language sql as "
            "$$ select set_config('app.tenant', 'b', false) $$"
        )

    await store.write(make, name="make")

    async def leave(unit: Unit) -> None:
        await unit.execute("select set_config('app.tenant', 'a', false)")
        await unit.execute("select set_config('default_transaction_read_only', 'on', false)")
        await unit.execute("select set_config('search_path', 'public', false)")
        await unit.execute("create temporary table item(n bigint)")
        await unit.execute("select pg_advisory_lock(7)")

    async def leave_and_fail(unit: Unit) -> None:
        await unit.execute("select pg_advisory_lock(7)")
        raise ValueError("no")

    async def find(unit: Unit) -> None:
        (found,) = await unit.execute(
            "select current_setting('app.tenant', true), current_setting('search_path'), "
            "to_regclass('pg_temp.item') is null, "
            "(select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())"
        )
        assert found[0] in (None, "")
        assert found[1:] == ('"$user", public', True, 0)

    for leaving in (leave, lambda unit: unit.execute("select leave()")):
        await store.write(leaving, name="leave")
        await store.write(find, name="find")
    with pytest.raises(ValueError, match="no"):
        await store.write(leave_and_fail, name="leave")
    await store.write(find, name="find")
    await store.read("select set_config('app.tenant', 'a', false)")
    for _ in range(9):
        ((tenant,),) = await store.read("select current_setting('app.tenant', true)")
        assert tenant in (None, "")


@pytest.mark.parametrize("sql", ["/* /* */ */ commit", "-- a\rcommit", "select 1; commit"])
async def test_a_migration_is_one_transaction(opened: Opened, sql: str) -> None:
    """Applied whole or not at all, whatever its statements say."""
    steps = ("create table item(id integer primary key)", sql, "selct 1")
    with pytest.raises((ContractError, StoreError)):
        await opened(Schema("items", (Migration(1, steps, 1),)))
    store = await opened()
    assert await items(store) == []


@pytest.mark.parametrize("text", [r"e'it\'s secret'", "$$it's secret$$", "$a$secret$b$ ' $a$"])
async def test_texts_of_any_kind_are_not_shown(opened: Opened, text: str) -> None:
    """An error says which statement it was, without its data."""
    store = await opened()
    with pytest.raises(StatementFailed, match="in: select … from nowhere") as caught:
        await store.read(f"select {text} from nowhere")
    assert "secret" not in caught.value.message
