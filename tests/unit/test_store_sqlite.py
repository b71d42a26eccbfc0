"""Opening a SQLite file: its owner, what it may be, and what its errors are called."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from store_fakes import ITEMS, HandRuntime, items, open_store, put_item, sqlite_error
from synchromesh import testing
from synchromesh.errors import (
    ConstraintFailed,
    ForeignAwait,
    StoreBroken,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreTooNew,
)
from synchromesh.runtime import DiskRuntime, RealRuntime
from synchromesh.store import Migration, Schema, SqliteStore, StoreOptions, Unit
from synchromesh.store.sqlite_errors import code_of, translate


@pytest.mark.anyio
async def test_a_second_start_is_told_who_owns_the_file(tmp_path: Path) -> None:
    """After its wait it gives up and names the owner; the first is unharmed."""
    runtime = RealRuntime()
    store = await open_store(tmp_path, runtime)
    with pytest.raises(StoreLocked, match="owned by this process"):
        await open_store(tmp_path, runtime)
    assert await store.write(put_item(1), name="put") == 1
    await store.close()


@pytest.mark.anyio
async def test_a_second_start_takes_over_when_the_owner_ends(tmp_path: Path) -> None:
    """It waits, then finds what the first has written."""
    runtime = RealRuntime()
    first = await open_store(tmp_path, runtime)
    options = StoreOptions(owner_wait_s=60.0)
    second = asyncio.ensure_future(open_store(tmp_path, runtime, options=options))
    await first.write(put_item(1), name="put")
    assert not second.done()
    await first.close()
    store = await second
    assert await items(store) == [1]
    await store.close()


@pytest.mark.anyio
async def test_a_commit_is_flushed_and_the_engine_is_closed_off(tmp_path: Path) -> None:
    """WAL, synchronous=FULL, foreign keys, and no second file on either connection (E4, P1)."""
    store = await open_store(tmp_path, RealRuntime())
    for connection in (store._writer._connection, store._reader):
        assert connection.getlimit(sqlite3.SQLITE_LIMIT_ATTACHED) == 0
        for sql in ("attach ':memory:' as o", f"vacuum into '{tmp_path}/copy.db'"):
            with pytest.raises(sqlite3.OperationalError):
                connection.execute(sql)
    writer = store._writer._connection
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    got = {name: writer.execute(f"pragma {name}").fetchone()[0] for name in wanted}
    assert got == wanted
    await store.close()


@pytest.mark.anyio
async def test_a_closed_store_leaves_one_file(tmp_path: Path) -> None:
    """The write-ahead log has been emptied into the database, so that copying it is enough."""
    store = await open_store(tmp_path, RealRuntime())
    await store.write(put_item(1), name="put")
    await store.close()
    assert not (tmp_path / "shop.db-wal").exists()


def test_it_runs_as_it_is_in_simulation() -> None:
    """Same writer, same groups, same refusals, on the loop and in memory."""

    async def main(runtime: DiskRuntime) -> None:
        store = await SqliteStore.open("/shop.db", service="shop", schemas=[ITEMS], runtime=runtime)
        bodies = [put_item(number) for number in range(64)]
        got = await asyncio.gather(*(store.write(body, name="put") for body in bodies))
        assert sorted(got) == list(range(64))
        assert store.commits <= 8

        async def sleep(unit: Unit) -> None:
            await asyncio.sleep(1)

        with pytest.raises(ForeignAwait, match="awaited the event loop"):
            await store.write(sleep, name="sleep")
        second = asyncio.ensure_future(
            SqliteStore.open("/shop.db", service="shop", schemas=[ITEMS], runtime=runtime)
        )
        await asyncio.sleep(5.0)
        await store.close()
        assert len(await items(await second)) == 64
        with pytest.raises(StoreLocked, match=r"after 10 s"):
            await SqliteStore.open("/shop.db", service="shop", schemas=[ITEMS], runtime=runtime)
        await (await second).close()

    testing.run(main)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_deleted_file_is_noticed_in_simulation_too(is_replaced: bool) -> None:
    """The simulated disk can lose a database from under its owner, who then says so."""

    async def main(runtime: DiskRuntime) -> None:
        store = await SqliteStore.open("/shop.db", service="shop", schemas=[ITEMS], runtime=runtime)
        await store.write(put_item(1), name="put")
        disk = runtime.disk
        assert isinstance(disk, testing.SimDisk)
        image = disk.image("/shop.db")
        disk.unlink("/shop.db")
        if is_replaced:
            disk.install("/shop.db", image)
        with pytest.raises(StoreBroken, match="no longer the file that was opened"):
            await store.write(put_item(2), name="put")
        await store.close()

    testing.run(main)


@pytest.mark.anyio
async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """Text is refused with the path and what to do, and the lock is given back."""
    (tmp_path / "shop.db").write_text("this is a letter, not a database. " * 100)
    with pytest.raises(StoreBroken, match=r"shop\.db.*not a database.*restore a backup"):
        await open_store(tmp_path, RealRuntime())
    (tmp_path / "shop.db").unlink()
    await (await open_store(tmp_path, RealRuntime())).close()


@pytest.mark.anyio
async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A database whose first pages were overwritten is refused with its path."""
    await (await open_store(tmp_path, RealRuntime())).close()
    path = tmp_path / "shop.db"
    image = bytearray(path.read_bytes())
    image[100:4096] = b"\xff" * 3996
    path.write_bytes(image)
    with pytest.raises(StoreBroken, match=r"shop\.db.*malformed"):
        await open_store(tmp_path, RealRuntime())


@pytest.mark.anyio
async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The message says that the folder must exist."""
    with pytest.raises(StoreBroken, match="folder must exist"):
        await open_store(tmp_path / "nowhere", RealRuntime())


@pytest.mark.anyio
async def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    """A folder in place of the file is refused."""
    (tmp_path / "shop.db").mkdir()
    with pytest.raises(StoreBroken, match="unable to open"):
        await open_store(tmp_path, RealRuntime())


@pytest.mark.parametrize("is_wal", [True, False])
@pytest.mark.anyio
async def test_a_read_only_file_is_refused(tmp_path: Path, is_wal: bool) -> None:
    """A file that cannot be written is found at the start."""
    if is_wal:
        await (await open_store(tmp_path, RealRuntime())).close()
    else:
        connection = sqlite3.connect(tmp_path / "shop.db")
        connection.execute("create table other(n)")
        connection.close()
    schema = Schema("more", (Migration(1, ("create table more(n integer)",), 1),))
    with pytest.raises(StoreReadOnly, match="right to write"):
        await open_store(tmp_path, HandRuntime(mode="ro"), ITEMS, schema)


@pytest.mark.anyio
async def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """StoreTooNew gives the lock back, so that the newer release can start."""
    newer = Schema("items", (*ITEMS.migrations, Migration(2, (), 2)))
    await (await open_store(tmp_path, RealRuntime(), newer)).close()
    runtime = RealRuntime()
    with pytest.raises(StoreTooNew, match="start the newer release"):
        await open_store(tmp_path, runtime, ITEMS)
    await (await open_store(tmp_path, runtime, newer)).close()


def test_the_driver_is_not_given_a_word_of_the_values() -> None:
    """A statement that begins with data shows none of it."""
    message = translate(sqlite3.OperationalError("near"), path="a.db", sql="'secret'").message
    assert message.startswith("a.db: near (in: …; at ")
    assert "secret" not in message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY, "locked"), StoreLocked),
        (sqlite_error(sqlite3.SQLITE_LOCKED_SHAREDCACHE, "locked"), StoreLocked),
        (sqlite_error(sqlite3.SQLITE_FULL, "full"), StoreFull),
        (sqlite_error(sqlite3.SQLITE_READONLY_DBMOVED, "moved"), StoreReadOnly),
        (sqlite_error(sqlite3.SQLITE_IOERR_FSYNC, "disk I/O error"), StoreBroken),
        (sqlite_error(sqlite3.SQLITE_CORRUPT, "malformed"), StoreBroken),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN, "cannot open"), StoreBroken),
        (sqlite3.IntegrityError("unique"), ConstraintFailed),
        (sqlite3.ProgrammingError("closed"), StoreBroken),
        (sqlite3.Warning("two statements"), StoreBroken),
    ],
)
def test_every_error_of_the_engine_has_a_name(error: Exception, expected: type[Exception]) -> None:
    """Extended codes count as their primary ones; the path and the words are in the message."""
    translated = translate(error, path="a.db")
    assert type(translated) is expected
    assert translated.message.startswith(f"a.db: {error}")
    assert 0 <= code_of(error) <= 0xFF


@pytest.mark.anyio
async def test_a_store_that_fails_to_start_its_writer_gives_the_file_back(tmp_path: Path) -> None:
    """Whatever goes wrong in `open`, the next try finds the file free."""

    class NoThreads(RealRuntime):
        def worker(self, name: str, work: object) -> object:  # type: ignore[override]
            raise RuntimeError("can't start new thread")

    runtime = NoThreads()
    with pytest.raises(RuntimeError, match="new thread"):
        await open_store(tmp_path, runtime)
    lock = runtime.disk.try_lock(str(tmp_path / "shop.db"))
    assert lock is not None
    lock.release()
    assert isinstance(await open_and_close(tmp_path), SqliteStore)


async def open_and_close(folder: Path) -> SqliteStore:
    store = await open_store(folder, RealRuntime())
    await store.close()
    return store
