"""The simulated disk: what a power cut leaves of a database, who owns a file, and workers."""

import asyncio
import random
import sqlite3
from collections.abc import Callable

import pytest

from synchromesh.testing import SimDisk, SimRuntime, SimulationError, World, run

COUNT = "SELECT count(*) FROM t"


def survivors(seed: int, pragma: str, *, ends_open: bool = False) -> int:
    """Write ten rows in ten commits, cut the power, and return how many are left."""

    async def main(runtime: SimRuntime) -> None:
        connection = runtime.disk.connect("/a.db")
        connection.execute(pragma)
        connection.execute("CREATE TABLE t (x)")
        for number in range(10):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (?)", (number,))
            connection.execute("COMMIT")
        if ends_open:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (99)")
        await asyncio.Event().wait()

    async def nemesis() -> int:
        await asyncio.sleep(1.0)
        node.crash()
        try:
            return int(world.disk.rows("/a.db", COUNT)[0][0])
        except sqlite3.OperationalError:
            return -1

    world = World(seed)
    node = world.node("a", main)
    node.start()
    return world.run(nemesis())


@pytest.mark.parametrize("pragma", ["PRAGMA synchronous = FULL", "PRAGMA user_version"])
def test_synced_commits_survive(pragma: str) -> None:
    """With synchronous=FULL, which is the default, a power cut loses no commit."""
    assert {survivors(seed, pragma) for seed in range(10)} == {10}


@pytest.mark.parametrize("level", ["NORMAL", "OFF"])
def test_unsynced_commits_may_be_lost(level: str) -> None:
    """Below FULL a power cut leaves the state after any commit, as the seed decides."""
    pragma = f"PRAGMA synchronous = {level}"
    left = {survivors(seed, pragma) for seed in range(100)}
    assert len(left) > 5
    assert left <= set(range(-1, 11))
    assert survivors(7, pragma) == survivors(7, pragma)


def test_open_transaction_is_rolled_back() -> None:
    """A power cut rolls back what was not committed."""
    assert survivors(0, "PRAGMA synchronous = FULL", ends_open=True) == 10


def test_lowering_after_the_start_is_refused() -> None:
    """A connection that hides unsynced commits from the simulation fails it at the power cut."""

    async def main(runtime: SimRuntime) -> None:
        connection = runtime.disk.connect("/a.db")
        connection.execute("BEGIN")
        connection.execute("COMMIT")
        connection.execute("PRAGMA synchronous = OFF")
        await asyncio.Event().wait()

    async def nemesis() -> None:
        await asyncio.sleep(1.0)
        node.crash()

    world = World(0)
    node = world.node("a", main)
    node.start()
    with pytest.raises(SimulationError, match="synchronous was lowered"):
        world.run(nemesis())


def test_full_again_syncs_what_was_before() -> None:
    """Going back to FULL makes the commits so far safe."""
    disk = SimDisk(random.Random(0))
    connection = disk.connect("/a.db")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA synchronous = FULL")
    disk.crash(None)
    assert disk.rows("/a.db", COUNT) == [(0,)]
    disk.close()


def test_a_disk_can_be_made_of_what_another_left() -> None:
    """A database can be copied as the bytes of its file, into another universe too."""
    old, new = SimDisk(random.Random(1)), SimDisk(random.Random(2))
    writer = old.connect("/a.db")
    writer.execute("CREATE TABLE t (x)")
    writer.execute("INSERT INTO t VALUES (1)")
    new.install("/a.db", old.image("/a.db"))
    with pytest.raises(ValueError, match="there is a database"):
        new.install("a.db", b"")
    with pytest.raises(sqlite3.OperationalError):
        old.image("/b.db")
    new.connect("/a.db").execute("INSERT INTO t VALUES (3)")
    assert (old.rows("/a.db", "SELECT x FROM t"), new.rows("/a.db", "SELECT x FROM t")) == (
        [(1,)],
        [(1,), (3,)],
    )
    new.close()
    assert new.image("/a.db")
    old.close()


def test_connections_see_each_others_commits() -> None:
    """Readers see commits, not what is still open; read-only connections cannot write."""
    disk = SimDisk(random.Random(0))
    writer = disk.connect("/a.db")
    writer.execute("CREATE TABLE t (x)")
    reader = disk.connect("/a.db", read_only=True)
    writer.execute("INSERT INTO t VALUES (1)")
    assert reader.execute(COUNT).fetchall() == [(1,)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO t VALUES (2)")
    disk.close()


def test_missing_file_cannot_be_read() -> None:
    """Opening a file that is not there for reading raises what SQLite raises."""
    disk = SimDisk(random.Random(0))
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        disk.connect("/none.db", read_only=True)
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        disk.rows("/none.db", "SELECT 1")
    disk.close()


def test_paths_and_universes_are_apart() -> None:
    """Each path is its own database, also across disks; a path is normalised."""
    first, second = SimDisk(random.Random(0)), SimDisk(random.Random(0))
    first.connect("data/a.db").execute("CREATE TABLE t (x)")
    second.connect("data/a.db")
    first.connect("data/b?.db")
    assert first.paths() == ["/data/a.db", "/data/b?.db"]
    assert first.rows("/data/../data/a.db", COUNT) == [(0,)]
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        second.rows("data/a.db", COUNT)
    first.close()
    second.close()


@pytest.mark.parametrize("name", ["quoting#1", "a?b", "50%25", "a b", "é"])
def test_a_path_may_hold_what_has_a_meaning_in_a_uri(name: str) -> None:
    """A replica's name has a `#` in it: its database is in memory as every other, and its own."""
    disk = SimDisk(random.Random(0))
    disk.connect(f"/{name}.db").execute("CREATE TABLE t (x)")
    assert disk.connect(f"/{name}.db", read_only=True).execute(COUNT).fetchall() == [(0,)]
    assert disk.rows(f"/{name}.db", COUNT) == [(0,)]
    disk.connect("/quoting#2.db")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        disk.rows("/quoting#2.db", COUNT)
    disk.close()


def insert(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO t VALUES (?)", (number,))
    connection.execute("COMMIT")


def test_a_full_disk_takes_nothing_and_reads_on() -> None:
    """It refuses at once or in the commit, of connections that were open and of new ones alike."""
    for seed in range(20):
        disk = SimDisk(random.Random(seed))
        writer = disk.connect("/a.db")
        writer.execute("CREATE TABLE t (x)")
        writer.execute("INSERT INTO t VALUES (1)")
        disk.fill("/a.db")
        for connection in (writer, disk.connect("/a.db")):
            assert connection.execute(COUNT).fetchall() == [(1,)]
            with pytest.raises(sqlite3.OperationalError, match="full") as refused:
                insert(connection, 2)
            assert refused.value.sqlite_errorcode == sqlite3.SQLITE_FULL
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        disk.mend("/a.db")
        writer.execute("INSERT INTO t VALUES (3)")
        assert disk.rows("/a.db", "SELECT x FROM t") == [(1,), (3,)]
        disk.close()
    with pytest.raises(FileNotFoundError):
        SimDisk(random.Random(0)).fill("/none.db")


def test_a_disk_that_cannot_be_flushed_fails_commits_alone() -> None:
    """They took effect or not, and perhaps that cannot be read before the next transaction."""
    ends, told = set(), set()
    for seed in range(40):
        disk = SimDisk(random.Random(seed))
        writer = disk.connect("/a.db")
        writer.execute("CREATE TABLE t (x)")
        disk.fail_commits("/a.db")
        for connection in (writer, disk.connect("/a.db")):
            assert connection.execute(COUNT).fetchall()
            with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
                connection.execute("INSERT INTO t VALUES (0)")
            with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
                insert(connection, 1)
            ends.add(connection.in_transaction)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            try:
                told.add(int(connection.execute(COUNT).fetchone()[0]))
            except sqlite3.OperationalError:
                told.add(-1)
            connection.execute("BEGIN")
            assert connection.execute(COUNT).fetchall()
            connection.execute("ROLLBACK")
        disk.mend("/a.db")
        insert(writer, 2)
        disk.close()
    assert (ends, told) == ({True, False}, {-1, 0, 1, 2})
    with pytest.raises(FileNotFoundError):
        SimDisk(random.Random(0)).fail_commits("/none.db")


def test_a_deleted_database_lives_on_for_those_who_have_it_open() -> None:
    """Its path is free for another one, which knows nothing of it; a power cut ends it."""
    disk = SimDisk(random.Random(0))
    writer = disk.connect("/a.db")
    writer.execute("CREATE TABLE t (x)")
    first = disk.file_id("/a.db")
    assert first is not None
    disk.unlink("a.db")
    assert disk.file_id("/a.db") is None
    with pytest.raises(FileNotFoundError):
        disk.unlink("/a.db")
    disk.connect("/a.db").execute("CREATE TABLE other (x)")
    assert disk.file_id("/a.db") not in (None, first)
    writer.execute("INSERT INTO t VALUES (1)")
    assert writer.execute("SELECT x FROM t").fetchall() == [(1,)]
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        disk.rows("/a.db", "SELECT x FROM t")
    disk.crash(None)
    with pytest.raises(sqlite3.ProgrammingError):
        writer.execute("SELECT x FROM t")
    disk.close()


def test_rows_can_be_read_after_the_end() -> None:
    """Audits read the databases when the universe is over; nobody writes them any more."""

    async def main(runtime: SimRuntime) -> sqlite3.Connection:
        connection = runtime.disk.connect("/a.db")
        connection.execute("CREATE TABLE t (x)")
        return connection

    world = World(0)

    async def outside() -> None:
        world.disk.connect("/a.db").execute("CREATE TABLE t (x)")

    world.run(outside())
    assert world.disk.rows("/a.db", COUNT) == [(0,)]
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        world.disk.connect("/a.db")
    connection = run(main)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute(COUNT)


def test_crash_of_a_reader_loses_nothing() -> None:
    """Unsynced commits are lost with the power of who wrote them, not with a reader's."""

    async def write(runtime: SimRuntime) -> None:
        connection = runtime.disk.connect("/a.db")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE t (x)")
        connection.executemany("INSERT INTO t VALUES (?)", [(number,) for number in range(5)])
        await asyncio.Event().wait()

    async def read(runtime: SimRuntime) -> None:
        await asyncio.sleep(1.0)
        connection = runtime.disk.connect("/a.db", read_only=True)
        assert connection.execute(COUNT).fetchone() == (5,)
        await asyncio.Event().wait()

    world = World(0)
    writer, reader = world.node("writer", write), world.node("reader", read)
    writer.start()
    reader.start()
    world.later(2.0, reader.crash)
    world.run(asyncio.sleep(3.0))
    assert world.disk.rows("/a.db", COUNT) == [(5,)]


def test_conflict_of_writers_is_told_at_once() -> None:
    """A lock is never waited for in real time, whatever busy_timeout was asked for."""
    disk = SimDisk(random.Random(0))
    one, two = disk.connect("/a.db"), disk.connect("/a.db")
    two.execute("PRAGMA busy_timeout = 60000")
    assert two.execute("PRAGMA busy_timeout").fetchone() == (0,)
    one.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        two.execute("BEGIN IMMEDIATE")
    disk.close()


def test_lock_has_one_owner_and_ends_with_it() -> None:
    """A lock excludes others until it is released or its owner's power is cut."""
    log: list[tuple[str, bool, str]] = []

    async def main(runtime: SimRuntime) -> None:
        lock = runtime.disk.try_lock("/a.db")
        log.append((runtime.name, lock is not None, runtime.disk.owner_of("/a.db")))
        await asyncio.sleep(5.0)
        if lock is not None:
            lock.release()
            lock.release()

    async def nemesis() -> None:
        first.start()
        await asyncio.sleep(1.0)
        second.start()
        await asyncio.sleep(1.0)
        first.crash(restart_after_s=1.0)
        await asyncio.sleep(10.0)
        assert world.disk.owner_of("/a.db") == "nobody"

    world = World(0)
    first, second = world.node("one", main), world.node("two", main)
    world.run(nemesis())
    assert log == [
        ("one", True, "process one"),
        ("two", False, "process one"),
        ("one", True, "process one"),
    ]


# -- workers -------------------------------------------------------------------------------------


def test_worker_runs_in_order_and_in_batches() -> None:
    """A worker works on all that was put meanwhile, in order, and tells in that order."""

    async def main(runtime: SimRuntime) -> tuple[list[list[int]], list[int]]:
        batches: list[list[int]] = []
        told: list[int] = []

        def work(batch: list[int]) -> Callable[[], None]:
            batches.append(batch)
            return lambda: told.extend(batch)

        worker = runtime.worker("writer", work)
        for number in range(3):
            worker.put(number)
        await asyncio.sleep(0.0001)
        worker.put(3)
        await asyncio.sleep(1.0)
        worker.put(4)
        await worker.close()
        await worker.close()
        with pytest.raises(RuntimeError, match="closed"):
            worker.put(5)
        return batches, told

    for seed in range(20):
        batches, told = run(main, seed=seed)
        assert told == [0, 1, 2, 3, 4]
        assert [number for batch in batches for number in batch] == told
        assert len(batches) in (2, 3)


def test_power_cut_falls_before_and_after_the_commit() -> None:
    """Cutting before each step finds all three: nothing written, written and untold, told."""

    def outcome(kill_at: int) -> tuple[int, bool]:
        told: list[bool] = []

        async def main(runtime: SimRuntime) -> None:
            connection = runtime.disk.connect("/a.db")
            connection.execute("CREATE TABLE IF NOT EXISTS t (x)")

            def work(batch: list[int]) -> Callable[[], None]:
                connection.executemany("INSERT INTO t VALUES (?)", [(job,) for job in batch])
                return lambda: told.append(True)

            runtime.worker("writer", work).put(1)
            await asyncio.Event().wait()

        def kill(_: object) -> None:
            if node.steps == kill_at:
                node.crash()

        world = World(0)
        node = world.node("a", main)
        node.start()
        world.on_step = kill
        world.run(asyncio.sleep(1.0))
        return int(world.disk.rows("/a.db", COUNT)[0][0]), bool(told)

    assert [outcome(kill_at) for kill_at in (2, 3, 4)] == [(0, False), (1, False), (1, True)]


def test_a_worker_can_tell_the_time_and_make_ids() -> None:
    """A worker's work has the runtime of its process, though no loop runs while it works."""
    made: list[tuple[int, str]] = []

    async def main(runtime: SimRuntime) -> None:
        def work(jobs: list[str]) -> Callable[[], None]:
            loop = asyncio._get_running_loop()
            asyncio._set_running_loop(None)
            made.extend((runtime.wall_us(), runtime.new_id()) for _ in jobs)
            asyncio._set_running_loop(loop)
            return lambda: None

        worker = runtime.worker("a", work)
        worker.put("job")
        await worker.close()
        assert made[0][0] <= runtime.wall_us()

    run(main)
    assert len(made) == 1
