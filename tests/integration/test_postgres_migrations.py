"""Migrations on PostgreSQL that are cut, or meet a server or tables of another release."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from postgres_server import empty_database
from synchromesh.errors import StoreBroken, StoreTooNew, SynchromeshError
from synchromesh.runtime import RealRuntime
from synchromesh.store import Migration, Schema, postgres_connection
from synchromesh.store.postgres import PostgresStore, PostgresStores
from synchromesh.store.postgres_migrations import migrate

pytestmark = pytest.mark.anyio

FIRST = Migration(1, ("create table a(n integer)", "insert into a values (1)"), 1)
SECOND = Migration(2, ("alter table a add column m integer", "update a set m = n + 1"), 1)
THIRD = Migration(3, ("create table b as select m from a", "drop table a"), 3)
ALL = Schema("x", (FIRST, SECOND, THIRD))

_SHAPE = (
    "select table_name, column_name, data_type from information_schema.columns "
    "where table_schema = 'public' and table_name <> 'sm_migration' order by 1, 2"
)


class Mortal:
    """A connection whose process ends once the server has had its n-th statement."""

    def __init__(self, connection: Any, lives: int) -> None:
        self._connection = connection
        self._lives = lives

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        return found if name in ("is_closed", "terminate") else self._dying(found)

    def _dying(self, ask: Any) -> Any:
        async def asked(*words: Any) -> Any:
            self._lives -= 1
            answer = await ask(*words)
            if self._lives >= 0:
                return answer
            self._connection.terminate()
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")

        return asked


@pytest.fixture
async def url(anyio_backend: str) -> str:
    return await empty_database("moved")


async def state(connection: Any) -> tuple[int, Any]:
    """Return the version of a database, and what its tables are."""
    at = 0
    if await connection.fetchval("select to_regclass('sm_migration') is not null"):
        at = await connection.fetchval("select coalesce(max(version), 0) from sm_migration")
    return at, [tuple(row) for row in await connection.fetch(_SHAPE)]


async def test_cut_at_any_statement_it_is_the_old_or_the_new(url: str) -> None:
    """Whatever the server has had of it: one version is there whole, and a next start goes on."""
    watching = await asyncpg.connect(url)
    shapes: dict[int, Any] = {0: []}
    for count in (1, 2, 3):
        await migrate(watching, [Schema("x", ALL.migrations[:count])], path="x")
        shapes[count] = (await state(watching))[1]
    seen, lives, is_cut = set[int](), 0, True
    while is_cut:
        await watching.execute("drop schema public cascade; create schema public")
        connection = await asyncpg.connect(url)
        mortal = Mortal(connection, lives)
        try:
            await migrate(mortal, [ALL], path="x")
            is_cut = False
        except (SynchromeshError, asyncpg.PostgresError, asyncpg.InterfaceError):
            assert connection.is_closed()
        connection.terminate()
        # The next one waits for the lock, until the server has ended the session that had it.
        await watching.execute("select pg_advisory_lock(hashtext('synchromesh.migrations'))")
        await watching.execute("select pg_advisory_unlock_all()")
        at, shape = await state(watching)
        assert shape == shapes[at], (lives, at)
        seen.add(at)
        await migrate(watching, [ALL], path="x")
        assert await state(watching) == (3, shapes[3])
        lives += 1
    assert seen == {0, 1, 2, 3}
    assert lives > 15
    await watching.close()


async def opened(url: str, *migrations: Migration, other: Schema | None = None) -> None:
    """Start a release that has these migrations, and stop it."""
    schemas = [*([other] if other else []), Schema("x", migrations)]
    store = await PostgresStore.open(url, service="moved", schemas=schemas, runtime=RealRuntime())
    await store.close()


async def test_an_older_release_starts_as_long_as_it_may(url: str) -> None:
    """readable_by_min decides, before anything changes; nothing is migrated backwards."""
    await opened(url, FIRST, SECOND)
    await opened(url, FIRST)
    watching = await asyncpg.connect(url)
    assert (await state(watching))[0] == 2
    await opened(url, FIRST, SECOND, THIRD)
    before = await state(watching)
    other = Schema("y", (Migration(1, ("create table y(n integer)",), 1),))
    with pytest.raises(StoreTooNew, match=r"'x' are at version 3.*knows 2") as told:
        await opened(url, FIRST, SECOND, other=other)
    assert "start the newer release" in told.value.message
    stores = PostgresStores(RealRuntime(), lambda _: url)
    with pytest.raises(StoreTooNew):
        await stores.migrate("moved", [Schema("x", (FIRST,)), other], who="ada", why="back")
    assert await state(watching) == before
    await watching.close()


async def test_a_server_that_is_too_old_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is made in it, with what it is and what is needed."""
    monkeypatch.setattr(postgres_connection, "VERSION_MIN", 99)
    with pytest.raises(StoreBroken, match=r"is PostgreSQL 18; 99 or newer is needed: upgrade"):
        await opened(url, FIRST)
    watching = await asyncpg.connect(url)
    assert await state(watching) == (0, [])
    await watching.close()


async def test_whoever_starts_tells_first_whether_there_is_anything_to_run(url: str) -> None:
    """So that a migration has the time that its rows take; nothing is changed by it."""
    stores, told = PostgresStores(RealRuntime(), lambda _: url), list[str]()

    async def tells(*migrations: Migration) -> bool:
        told.clear()
        await stores.dry_run("moved", [Schema("x", migrations)], lambda: told.append("lacks"))
        return told == ["lacks"]

    assert await tells(FIRST)
    await opened(url, FIRST)
    assert not await tells(FIRST)
    assert await tells(FIRST, SECOND)
    await opened(url, FIRST)
