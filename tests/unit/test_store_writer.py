"""The group-commit writer: who shares a commit, who fails alone, and what a lost answer means."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from store_fakes import Fault, HandRuntime, items, open_store, put_item, sqlite_error
from synchromesh.errors import (
    ConstraintFailed,
    Rejection,
    Shed,
    StoreBroken,
    StoreError,
    StoreFull,
    StoreLocked,
    UnitTooLong,
)
from synchromesh.runtime import RealRuntime
from synchromesh.store import (
    InboxState,
    Migration,
    Once,
    Recorded,
    Schema,
    SqliteStore,
    StoreOptions,
    Unit,
)
from synchromesh.store.sqlite_unit import Database, SqliteUnit, drive
from synchromesh.store.vault import SqliteVault

pytestmark = pytest.mark.anyio


@pytest.fixture
def runtime() -> HandRuntime:
    return HandRuntime()


@pytest.fixture
async def store(
    tmp_path: Path, runtime: HandRuntime, anyio_backend: str
) -> AsyncIterator[SqliteStore]:
    opened = await open_store(tmp_path, runtime)
    yield opened
    runtime.faulty.faults.clear()
    await opened.close()


async def put(store: SqliteStore, *numbers: int) -> list[int | BaseException]:
    """Ask for units in one turn, so that they are one group."""
    got: list[int | BaseException] = await asyncio.gather(
        *(store.write(put_item(number), name=f"put {number}") for number in numbers),
        return_exceptions=True,
    )
    return got


async def test_64_concurrent_units_need_at_most_8_commits(tmp_path: Path) -> None:
    """What is asked for while the writer is busy shares a commit."""
    store = await open_store(tmp_path, RealRuntime())
    assert await put(store, *range(64)) == list(range(64))
    assert 1 <= store.commits <= 8
    assert repr(store) == f"<SqliteStore shop open commits {store.commits}>"
    await store.close()


async def marked(store: SqliteStore) -> int:
    """Return which unit the file says the last commit begins with."""
    ((number,),) = await store.read("select seq from sqlite_sequence where name = 'sm_commit'")
    assert isinstance(number, int)
    return number


async def test_units_of_one_turn_share_one_commit(
    store: SqliteStore, tmp_path: Path, runtime: HandRuntime
) -> None:
    """A group is one commit, marked by its first unit; units are counted on in the next life."""
    ids: list[str] = []

    async def body(unit: Unit) -> None:
        ids.append(unit.unit_id)

    await asyncio.gather(*(store.write(body, name="note") for _ in range(3)))
    assert store.commits == 1
    assert await marked(store) == int(ids[0][24:], 16)
    await store.close()
    again = await open_store(tmp_path, runtime)
    await again.write(body, name="note")
    assert await marked(again) == int(ids[3][24:], 16) > int(ids[0][24:], 16)
    assert len(set(ids)) == 4
    await again.close()


async def test_a_commit_is_never_marked_by_a_unit_that_is_not_in_it(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """The first of a group is interrupted, and its own commit is lost: it was not the group's (I3).

    Were it taken for that, it would be acknowledged and never written.
    """
    interrupted = sqlite_error(sqlite3.SQLITE_INTERRUPT, "interrupted")
    broken = sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")
    runtime.faulty.faults += [
        Fault("insert into item", interrupted),
        Fault("commit", broken, skip=1),
    ]
    assert await put(store, 1, 2) == [1, 2]
    assert await items(store) == [1, 2]
    assert store.commits == 2


async def test_a_group_that_wrote_nothing_is_not_committed(store: SqliteStore) -> None:
    """Units that all failed, and replays, cost no flush."""

    async def answer(unit: Unit) -> bytes:
        return b"1"

    once = Once("a", "k", "d")
    await put(store, 1)
    await put(store, 1)
    assert store.commits == 1
    await store.write_once(answer, once, name="answer")
    await store.write_once(answer, once, name="answer")
    assert store.commits == 2


async def test_a_unit_that_fails_rolls_back_its_savepoint_only(store: SqliteStore) -> None:
    """The one that breaks a constraint fails alone, in the group's one commit (I4)."""
    got = await put(store, 1, 2, 1, 3)
    assert isinstance(got[2], ConstraintFailed)
    assert [got[0], got[1], got[3]] == [1, 2, 3]
    assert store.commits == 1
    assert await items(store) == [1, 2, 3]


async def write_and_fail(unit: Unit) -> None:
    await unit.execute("insert into item(id, n) values (999, 999)")
    raise ValueError("no")


async def put_beside_one_that_fails(store: SqliteStore, *numbers: int) -> None:
    """Put items in one group with a unit that writes before it fails."""
    got = await asyncio.gather(
        store.write(put_item(numbers[0]), name="first"),
        store.write(write_and_fail, name="fail"),
        *(store.write(put_item(number), name="next") for number in numbers[1:]),
        return_exceptions=True,
    )
    assert got[0] == numbers[0]
    assert isinstance(got[1], ValueError)
    assert got[2:] == list(numbers[1:])


def statements(store: SqliteStore) -> list[str]:
    """Return the list to which the first word of each statement is added from now on."""
    ran: list[str] = []
    store._writer._connection.set_trace_callback(lambda sql: ran.append(sql.split()[0].lower()))
    return ran


async def test_a_group_has_savepoints_only_after_one_was_of_use(store: SqliteStore) -> None:
    """A unit that writes and then fails has its group run again, and for a while all are careful.

    The first unit of a transaction never has one: nothing else is there that its undoing could hit.
    """
    ran = statements(store)
    assert await put(store, 0, 1, 2) == [0, 1, 2]
    assert ran == ["begin", "insert", "insert", "insert", "update", "commit"]
    ran.clear()
    await put_beside_one_that_fails(store, 3, 4)
    assert ran == [
        "begin", "insert", "insert", "rollback",
        "begin", "insert",
        "savepoint", "insert", "rollback", "release",
        "savepoint", "insert", "release", "update", "commit",
    ]  # fmt: skip
    assert store.commits == 2
    ran.clear()
    assert await put(store, 5) == [5]
    assert ran == ["begin", "insert", "update", "commit"]
    for number in range(6, 6 + 2 * 32, 2):
        ran.clear()
        assert await put(store, number, number + 1) == [number, number + 1]
        assert "savepoint" in ran
    ran.clear()
    assert await put(store, 100, 101) == [100, 101]
    assert "savepoint" not in ran


async def test_a_unit_that_changed_nothing_is_not_undone(store: SqliteStore) -> None:
    """A refusal after reading, and a broken constraint, cost the others of the group nothing."""
    await put(store, 7)
    ran = statements(store)

    async def refuse(unit: Unit) -> bytes:
        await unit.execute("select 1 from item")
        raise Rejection("no")

    got = await asyncio.gather(
        store.write(put_item(1), name="1"),
        store.write(put_item(7), name="7"),
        store.write_once(refuse, Once("a", "k", "d"), name="refuse"),
        store.write(put_item(2), name="2"),
        return_exceptions=True,
    )
    assert got[0] == 1
    assert isinstance(got[1], ConstraintFailed)
    assert isinstance(got[2], Recorded)
    assert got[3] == 2
    assert ran.count("begin") == 1
    assert not {"rollback", "savepoint"} & set(ran)
    assert store.commits == 2


async def test_a_unit_that_changed_the_schema_and_failed_leaves_none_of_it(
    store: SqliteStore,
) -> None:
    """Of that the engine counts no changes, and it is undone all the same."""

    async def create(unit: Unit) -> None:
        await unit.execute("create table extra(n integer)")
        raise ValueError("no")

    for first in ([], [1]):
        await asyncio.gather(
            *(store.write(put_item(number), name="put") for number in first),
            store.write(create, name="create"),
            return_exceptions=True,
        )
        assert await store.read("select 1 from sqlite_master where name = 'extra'") == []
    assert await items(store) == [1]


async def test_units_that_fail_before_any_has_written_leave_the_others_alone(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """Each of them ends its transaction; the next one begins another, in the group's one commit."""

    async def group(*bodies: Callable[[Unit], Any]) -> list[Any]:
        return await asyncio.gather(
            *(store.write(body, name="unit") for body in bodies), return_exceptions=True
        )

    ran = statements(store)
    fail = write_and_fail
    got = await group(fail, fail, put_item(1), put_item(2))
    assert [type(got[number]) for number in (0, 1)] == [ValueError] * 2
    assert got[2:] == [1, 2]
    assert ran == [
        "begin", "insert", "rollback", "begin", "insert", "rollback",
        "begin", "insert", "insert", "update", "commit",
    ]  # fmt: skip
    error = sqlite_error(sqlite3.SQLITE_BUSY, "database is locked")
    runtime.faulty.faults.append(Fault("begin immediate", error, skip=1))
    failed, refused = await group(fail, put_item(3))
    assert isinstance(failed, ValueError)
    assert "another connection" in str(refused)
    assert await items(store) == [1, 2]
    assert await put(store, 3) == [3]


async def test_a_first_unit_that_is_rejected_is_recorded_without_its_effects(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """Its refusal begins the transaction that the others share; if that cannot be, nothing stands.

    What it told its listeners goes with its effects.
    """
    heard: list[str] = []
    store.listen("item", lambda: heard.append("item"))

    async def refuse(unit: Unit) -> bytes:
        await unit.execute("insert into item(id, n) values (1, 1)")
        unit.notify("item")
        raise Rejection("no")

    error = sqlite_error(sqlite3.SQLITE_BUSY, "database is locked")
    runtime.faulty.faults.append(Fault("begin immediate", error, skip=1))
    with pytest.raises(StoreLocked):
        await store.write_once(refuse, Once("a", "k", "d"), name="refuse")
    assert await store.read("select * from sm_inbox") == []
    refused, two = await asyncio.gather(
        store.write_once(refuse, Once("a", "k", "d"), name="refuse"),
        store.write(put_item(2), name="2"),
    )
    assert refused.kind is InboxState.REJECTION
    assert two == 2
    assert await items(store) == [2]
    assert await store.read("select kind from sm_inbox") == [("rejection",)]
    assert store.commits == 1
    assert heard == []


async def test_a_unit_that_makes_the_engine_roll_back_fails_alone(store: SqliteStore) -> None:
    """The others are run again, one commit each (I4)."""
    await put(store, 7)

    async def spoil(unit: Unit) -> None:
        await unit.execute("insert or rollback into item(id, n) values (7, 7)")

    got = await asyncio.gather(
        store.write(put_item(1), name="1"),
        store.write(spoil, name="spoil"),
        store.write(put_item(2), name="2"),
        return_exceptions=True,
    )
    assert [got[0], got[2]] == [1, 2]
    assert isinstance(got[1], ConstraintFailed)
    assert await items(store) == [1, 2, 7]
    assert store.commits == 3


@pytest.mark.parametrize("ending", [None, Rejection("no"), ValueError("own")])
async def test_a_unit_that_goes_on_after_the_engines_rollback_writes_nothing(
    store: SqliteStore, ending: Exception | None
) -> None:
    """Without its transaction a later statement would commit by itself: it is refused."""
    await put(store, 7)

    async def spoil(unit: Unit) -> bytes:
        for number in (7, 8):
            try:
                await unit.execute("insert or rollback into item(id, n) values (?, 7)", number)
            except StoreError:
                unit.notify("went on")
        if ending is not None:
            raise ending
        return b""

    expected = ValueError if isinstance(ending, ValueError) else ConstraintFailed
    with pytest.raises(expected):
        await store.write(spoil, name="spoil")
    with pytest.raises(expected):
        await store.write_once(spoil, Once("a", "k", "d"), name="spoil")
    assert await items(store) == [7]
    assert await store.read("select * from sm_inbox") == []


async def test_what_a_failed_unit_saw_in_a_lost_group_is_not_believed(store: SqliteStore) -> None:
    """A refusal based on a neighbour that was rolled back is decided anew."""
    await put(store, 7)

    async def refuse_if_first(unit: Unit) -> bytes:
        if await unit.execute("select 1 from item where id = 1"):
            raise Rejection("1 is there")
        return b"free"

    async def first(unit: Unit) -> None:
        await unit.execute("insert into item(id, n) values (1, 1)")
        if not await unit.execute("select 1 from sm_inbox"):
            unit.notify("seen")

    async def spoil(unit: Unit) -> None:
        await unit.execute("insert or rollback into item(id, n) values (7, 7)")

    runs = itertools.count(1)

    async def flaky(unit: Unit) -> None:
        await first(unit)
        if next(runs) > 1:
            raise ValueError("not the second time")

    got = await asyncio.gather(
        store.write(flaky, name="flaky"),
        store.write(refuse_if_first, name="refuse"),
        store.write(spoil, name="spoil"),
        return_exceptions=True,
    )
    assert isinstance(got[0], ValueError)
    assert got[1] == b"free"
    assert isinstance(got[2], ConstraintFailed)


async def test_a_commit_that_fails_is_the_fault_of_one(tmp_path: Path) -> None:
    """A deferred constraint fails at the commit: the guilty unit fails alone (I4)."""
    schema = Schema(
        "tree",
        (
            Migration(
                1,
                (
                    "create table item(id integer primary key, n integer)",
                    "create table leaf(item integer references item deferrable initially deferred)",
                ),
                1,
            ),
        ),
    )
    store = await open_store(tmp_path, HandRuntime(), schema)

    async def hang(unit: Unit) -> None:
        await unit.execute("insert into leaf values (99)")

    got = await asyncio.gather(
        store.write(put_item(1), name="1"),
        store.write(hang, name="hang"),
        store.write(put_item(2), name="2"),
        return_exceptions=True,
    )
    assert [got[0], got[2]] == [1, 2]
    assert isinstance(got[1], ConstraintFailed)
    assert "FOREIGN KEY" in got[1].message
    assert await items(store) == [1, 2]
    assert await store.read("select * from leaf") == []
    await store.close()


async def test_a_full_file_refuses_and_the_others_stand(tmp_path: Path) -> None:
    """Past the page limit a unit gets StoreFull, a small neighbour commits, nothing is torn."""
    store = await open_store(
        tmp_path, HandRuntime(), options=StoreOptions(owner_wait_s=0.0, pages_max=20)
    )

    async def fill(unit: Unit) -> None:
        for number in range(100, 200):
            await unit.execute("insert into item(id, n) values (?, ?)", number, "x" * 4000)

    got = await asyncio.gather(
        store.write(put_item(1), name="1"),
        store.write(fill, name="fill"),
        store.write(put_item(2), name="2"),
        return_exceptions=True,
    )
    assert [got[0], got[2]] == [1, 2]
    assert isinstance(got[1], StoreFull)
    assert "make room" in got[1].message
    assert await items(store) == [1, 2]
    await store.close()


async def test_a_commit_whose_answer_was_lost_is_found_in_the_file(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """The error came after the commit: all are answered, none is run twice (I3)."""
    error = sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")
    runtime.faulty.faults.append(Fault("commit", error, is_after=True))
    assert await put(store, 1, 2, 3) == [1, 2, 3]
    assert await items(store) == [1, 2, 3]
    assert store.commits == 1


async def test_a_commit_that_is_not_in_the_file_is_run_again(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """The error came before the commit: each is run again alone (I3)."""
    error = sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")
    runtime.faulty.faults.append(Fault("commit", error))
    assert await put(store, 1, 2, 3) == [1, 2, 3]
    assert await items(store) == [1, 2, 3]
    assert store.commits == 3
    assert store.broken is None


async def test_a_file_that_fails_in_a_unit_twice_closes_the_store(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """A damaged page met by two units in a row is the file's fault, not theirs."""
    error = sqlite_error(sqlite3.SQLITE_CORRUPT, "database disk image is malformed")
    runtime.faulty.faults.append(Fault("insert into item", error, times=2))
    assert "restore a backup" in str((await put(store, 1))[0])
    assert store.broken is None
    assert isinstance((await put(store, 2))[0], StoreBroken)
    assert store.broken is not None


@pytest.mark.parametrize("name", ["shop.db", "shop.db-wal", "shop.db.lock"])
@pytest.mark.parametrize("act", ["deleted", "moved", "replaced"])
async def test_a_file_that_is_not_there_any_more_is_not_written_in_vain(
    store: SqliteStore, tmp_path: Path, name: str, act: str, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite would go on in a file that nobody finds again: that is not acknowledged (E4).

    Nor is what is written without the lock, beside which another process could write.
    """
    assert await put(store, 1) == [1]
    file, elsewhere = tmp_path / name, tmp_path / "elsewhere"
    if act == "deleted":
        file.unlink()
    elif act == "moved":
        file.rename(elsewhere)
    else:
        shutil.copy(file, elsewhere)
        elsewhere.replace(file)
    got = await put(store, 2, 3)
    assert [type(each) for each in got] == [StoreBroken] * 2
    assert "no longer the file that was opened" in str(got[0])
    assert "put the database and its -wal back or restore a backup" in str(got[0])
    assert "no longer the file" in str((await put(store, 4))[0])
    with pytest.raises(StoreBroken, match="no longer the file"):
        await store.read("select 1")
    assert store.commits == 1
    assert [r.levelno for r in caplog.records] == [logging.CRITICAL]


async def test_a_commit_in_between_clears_the_doubt(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """One fault now and one much later do not close the store; each is run again."""
    error = sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")
    for _ in range(3):
        runtime.faulty.faults.append(Fault("insert into item", error))
        assert await put(store, 1) == [1]
        assert (await store.write(put_item(2), name="2")) == 2
        await store.write(_delete, name="delete")
    assert store.broken is None


async def _delete(unit: Unit) -> None:
    await unit.execute("delete from item")


async def test_a_file_that_another_connection_writes_is_locked(
    store: SqliteStore, tmp_path: Path
) -> None:
    """All of the group are told at once; when it is free again they are served."""
    other = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
    other.execute("begin immediate")
    got = await put(store, 1, 2)
    assert [type(each) for each in got] == [StoreLocked] * 2
    other.execute("rollback")
    other.close()
    assert await put(store, 1, 2) == [1, 2]


@pytest.mark.parametrize("is_rolled_back", [True, False])
@pytest.mark.parametrize("sql", ["savepoint", "release", "rollback to", "rollback"])
async def test_a_transaction_that_fails_outside_of_a_unit_is_run_again(
    store: SqliteStore, runtime: HandRuntime, sql: str, is_rolled_back: bool
) -> None:
    """A fault of the writer's own statement is nobody's fault: each is run again alone."""
    if sql != "rollback":
        await put_beside_one_that_fails(store, 1, 2)  # so that the next group is careful
    error = sqlite_error(sqlite3.SQLITE_NOMEM, "out of memory")
    runtime.faulty.faults.append(Fault(sql, error, rolls_back=is_rolled_back))
    await put_beside_one_that_fails(store, 3, 4)
    assert runtime.faulty.faults[0].times == 0
    assert {3, 4} <= set(await items(store))
    assert 999 not in await items(store)
    assert await put(store, 9) == [9]


async def test_a_lone_unit_gets_the_error_of_its_transaction(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """There is nobody else whose fault it could be."""
    error = sqlite_error(sqlite3.SQLITE_NOMEM, "out of memory")
    runtime.faulty.faults.append(Fault("update sqlite_sequence", error, rolls_back=True))
    assert "out of memory" in str((await put(store, 1))[0])
    assert await items(store) == []


async def test_a_unit_hit_by_anothers_interruption_is_run_again(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """The watchdog may hit the next unit: that one is innocent and never hears of it."""
    error = sqlite_error(sqlite3.SQLITE_INTERRUPT, "interrupted")
    runtime.faulty.faults.append(Fault("insert into item", error))
    assert await put(store, 1, 2) == [1, 2]
    runtime.faulty.faults.append(Fault("insert into item", error, rolls_back=True))
    assert await put(store, 3, 4) == [3, 4]
    runtime.faulty.faults.append(Fault("commit", error))
    assert await put(store, 5) == [5]
    assert await items(store) == [1, 2, 3, 4, 5]


async def test_a_unit_that_is_interrupted_for_ever_is_given_up(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """Runs are bounded."""
    error = sqlite_error(sqlite3.SQLITE_INTERRUPT, "interrupted")
    runtime.faulty.faults.append(Fault("insert into item", error, times=99))
    assert "interrupted 3 times" in str((await put(store, 1))[0])


async def test_the_backlog_is_bounded(tmp_path: Path) -> None:
    """One unit too many is shed, certainly not run, and may be sent again."""
    options = StoreOptions(owner_wait_s=0.0, backlog_max=2)
    store = await open_store(tmp_path, HandRuntime(), options=options)
    got = await put(store, 1, 2, 3)
    assert got[:2] == [1, 2]
    assert isinstance(got[2], Shed)
    assert got[2].is_retry_safe
    assert await put(store, 3) == [3]
    await store.close()


ENDLESS = (
    "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n where i"
    " < 0"
)


async def test_the_watchdog_interrupts_a_unit_that_outlives_its_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An endless query is named in the log, interrupted and rolled back; the next one runs."""
    options = StoreOptions(owner_wait_s=0.0, unit_limit_s=0.05)
    store = await open_store(tmp_path, HandRuntime(has_threads=True), options=options)

    async def endless(unit: Unit) -> None:
        await unit.execute("insert into item(id, n) values (1, 1)")
        await unit.execute(ENDLESS)

    with pytest.raises(
        UnitTooLong, match=r"'endless' outlived its limit .* the database of 'shop'"
    ):
        await store.write(endless, name="endless")
    assert "'endless'" in caplog.text
    await asyncio.wait_for(store.write(put_item(2), name="next"), 30)
    assert await items(store) == [2]
    await store.close()


async def test_the_watchdog_stops_a_unit_of_many_short_statements(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """None of them is long enough to be interrupted: the next one is refused."""
    options = StoreOptions(owner_wait_s=0.0, unit_limit_s=0.05)
    store = await open_store(tmp_path, HandRuntime(has_threads=True), options=options)

    async def restless(unit: Unit) -> None:
        await unit.execute("insert into item(id, n) values (1, 1)")
        while True:
            await unit.execute("select 1")

    with pytest.raises(UnitTooLong, match=r"'restless' outlived its limit .* database of 'shop'"):
        await asyncio.wait_for(store.write(restless, name="restless"), 30)
    assert "'restless'" in caplog.text
    assert await items(store) == []
    await store.close()


async def test_a_late_unit_is_refused_at_its_next_statement() -> None:
    """Until the watchdog tells it so it runs; from then on every statement says so."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    vault = SqliteVault("shop.keys", service="shop", runtime=RealRuntime())
    slow = SqliteUnit(Database(connection, "shop.db", "shop", "life", str, vault), 1, "slow", 0)

    async def body(unit: Unit) -> list[object]:
        done: list[object] = [await unit.execute("select 1")]
        slow.expire()
        for _ in range(2):
            try:
                await unit.execute("select 2")
            except UnitTooLong as error:
                done.append(error.code)
        return done

    assert drive(body, slow, copy_context()) == [[(1,)], "unit_too_long", "unit_too_long"]
    assert slow.is_late
    connection.close()


async def test_a_late_unit_that_goes_on_is_rolled_back_all_the_same(store: SqliteStore) -> None:
    """Catching UnitTooLong does not help."""

    async def body(unit: Unit) -> None:
        await unit.execute("insert into item(id, n) values (1, 1)")
        unit.expire()  # type: ignore[attr-defined]
        with pytest.raises(UnitTooLong):
            await unit.execute("insert into item(id, n) values (2, 2)")

    with pytest.raises(UnitTooLong):
        await store.write(body, name="late")
    assert await items(store) == []


async def test_an_error_of_the_bodys_own_is_not_taken_for_a_foreign_await(
    store: SqliteStore,
) -> None:
    """A RuntimeError of the user's stays one."""

    async def boom(unit: Unit) -> None:
        raise RuntimeError("own")

    with pytest.raises(RuntimeError, match="own"):
        await store.write(boom, name="boom")
