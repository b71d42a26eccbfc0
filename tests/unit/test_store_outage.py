"""A database whose file fails: it is opened again by itself, and nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from store_fakes import (
    ITEMS,
    Fault,
    HandRuntime,
    items,
    open_store,
    put_item,
    sqlite_error,
)
from synchromesh.errors import StoreBroken, StoreUnavailable
from synchromesh.store import OUTAGE, SqliteStore, StoreOptions
from synchromesh.store.outage import PAUSE_CAP_S, WELL_AFTER_S, Outage
from synchromesh.testing import SimRuntime, World, run

IO_ERROR = sqlite_error(sqlite3.SQLITE_IOERR, "disk I/O error")
PATH = "/shop.db"


@pytest.fixture
def runtime() -> HandRuntime:
    """A disk that fails on demand."""
    return HandRuntime()


@pytest.fixture
async def store(tmp_path: Path, runtime: HandRuntime) -> AsyncIterator[SqliteStore]:
    """An open store."""
    opened = await open_store(tmp_path, runtime)
    yield opened
    await opened.close()


async def put(store: SqliteStore, *numbers: int) -> list[Any]:
    """Write items at once; their outcomes."""
    units = [store.write(put_item(number), name=f"put {number}") for number in numbers]
    return await asyncio.gather(*units, return_exceptions=True)


async def simulated(runtime: SimRuntime) -> SqliteStore:
    """Open a store on a simulated disk."""
    return await SqliteStore.open(PATH, service="shop", schemas=[ITEMS], runtime=runtime)


# -- the machine -----------------------------------------------------------------------------------


def test_pauses_double_up_to_a_bound_and_begin_anew_once_it_has_been_well() -> None:
    """One that fails again soon after it came back is left alone for longer."""
    outage = Outage("a.db")
    outage.begin("x")
    assert [outage.pause_s(now=0.0) for _ in range(9)] == [
        0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, PAUSE_CAP_S, PAUSE_CAP_S,
    ]  # fmt: skip
    outage.end(now=10.0)
    outage.begin("y")
    assert outage.pause_s(now=10.0 + WELL_AFTER_S - 0.1) == PAUSE_CAP_S
    outage.end(now=100.0)
    outage.begin("z")
    assert outage.pause_s(now=100.0 + WELL_AFTER_S) == 0.05
    assert repr(outage) == "<Outage of a.db: z, tried 1 times>"


def test_the_first_reason_counts_until_a_person_is_needed() -> None:
    """What may be asked again is told apart from what needs a person."""
    outage = Outage("a.db")
    outage.begin("disk I/O error")
    outage.begin("another one")
    told = outage.error("unit 'fill'")
    assert isinstance(told, StoreUnavailable)
    assert (told.status, told.is_retry_safe) == (503, True)
    assert "unit 'fill' was not run: disk I/O error; it is opened again by itself" in told.message
    outage.begin("the file has gone", needs_person=True)
    outage.begin("disk I/O error")
    assert isinstance(outage.error("a read"), StoreBroken)
    assert outage.reason == "the file has gone"


# -- the writer ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_disk_that_fails_for_a_while_costs_those_under_way_only_time(
    store: SqliteStore, runtime: HandRuntime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are held and answered; others are told at once to ask again, and may read again."""
    told: list[str | None] = []
    store.listen(OUTAGE, lambda: told.append(store.broken))
    # The group, each alone, and two tries to open it.
    runtime.faulty.faults.append(Fault("commit", IO_ERROR, times=4))
    under_way = asyncio.ensure_future(put(store, 1, 2, 3))
    while store.broken is None:
        await asyncio.sleep(0)
    assert "failed 2 times in a row" in str(store.broken)
    assert "broken" in repr(store)
    (refused,) = await put(store, 4)
    assert isinstance(refused, StoreUnavailable)
    assert "unit 'put 4' was not run" in refused.message
    with pytest.raises(StoreUnavailable, match="a read was not run"):
        await store.read("select 1")
    assert await under_way == [1, 2, 3]
    assert await put(store, 4) == [4]
    assert await items(store) == [1, 2, 3, 4]
    assert [bool(each) for each in told] == [True, False]
    levels = [r.levelno for r in caplog.records if r.name == "synchromesh.store"]
    assert levels == [logging.CRITICAL, logging.WARNING]
    auditor = sqlite3.connect(tmp_path / "shop.db")
    assert auditor.execute("select count(*) from item").fetchall() == [(4,)]
    auditor.close()


@pytest.mark.anyio
@pytest.mark.parametrize("is_in", [True, False], ids=["it is in the file", "it is not"])
async def test_a_commit_that_cannot_be_asked_for_is_answered_once_it_is_known(
    store: SqliteStore, runtime: HandRuntime, is_in: bool
) -> None:
    """Neither retried nor called a failure before that: each runs once (I3)."""
    runtime.faulty.faults += [
        Fault("commit", IO_ERROR, is_after=is_in),
        Fault("select seq", IO_ERROR),
    ]
    runs: Counter[int] = Counter()

    async def counted(unit: Any, number: int) -> int:
        runs[number] += 1
        done: int = await put_item(number)(unit)
        return done

    units = [store.write(lambda u, n=n: counted(u, n), name=f"{n}") for n in (1, 2)]  # type: ignore[misc]
    assert await asyncio.gather(*units) == [1, 2]
    assert await items(store) == [1, 2]
    assert runs == ({1: 1, 2: 1} if is_in else {1: 2, 2: 2})


@pytest.mark.anyio
async def test_what_is_under_way_when_the_store_is_closed_is_told_what_is_not_known(
    tmp_path: Path, runtime: HandRuntime
) -> None:
    """The caller is not left waiting; the next owner of the file knows."""
    store = await open_store(tmp_path, runtime)
    runtime.faulty.faults.append(Fault("commit", IO_ERROR, times=1000))
    under_way = asyncio.ensure_future(put(store, 1))
    while store.broken is None:
        await asyncio.sleep(0)
    await store.close()
    (told,) = await under_way
    assert isinstance(told, StoreBroken)
    assert "ask again under the same key" in told.message


@pytest.mark.anyio
async def test_a_unit_that_meets_a_fault_each_time_is_not_held_for_ever(
    store: SqliteStore, runtime: HandRuntime
) -> None:
    """Its page is damaged and not the disk: it fails, and the others go on."""
    runtime.faulty.faults.append(Fault("insert into item", IO_ERROR, times=1000))
    (told,) = await put(store, 1)
    assert isinstance(told, StoreBroken)
    assert "each time it was run" in told.message
    while store.broken is not None:
        await asyncio.sleep(0.01)
    assert (await store.write(_count, name="count")) == 0


async def _count(unit: Any) -> int:
    return int((await unit.execute("select count(*) from item"))[0][0])


@pytest.mark.anyio
@pytest.mark.parametrize("fails", [0, 1])
async def test_a_read_that_meets_a_fault_has_the_file_tried(
    store: SqliteStore, runtime: HandRuntime, fails: int
) -> None:
    """It may be asked again; where the file cannot be written either, it is closed for a while."""
    told: list[bool] = []
    store.listen(OUTAGE, lambda: told.append(store.broken is not None))
    runtime.faulty.faults += [Fault("select id", IO_ERROR), Fault("commit", IO_ERROR, times=fails)]
    with pytest.raises(StoreUnavailable, match="a read failed: disk I/O error"):
        await items(store)
    while len(told) < 2 * fails:
        await asyncio.sleep(0.01)
    assert await put(store, 1) == [1]
    assert await items(store) == [1]
    assert told == [True, False] * fails


@pytest.mark.anyio
async def test_a_file_that_was_moved_is_used_again_once_it_is_back(
    store: SqliteStore, tmp_path: Path
) -> None:
    """The same one, and no other; meanwhile a person is asked for."""
    assert await put(store, 1) == [1]
    file, elsewhere = tmp_path / "shop.db", tmp_path / "elsewhere"
    file.rename(elsewhere)
    assert isinstance((await put(store, 2))[0], StoreBroken)
    await asyncio.sleep(0.3)
    assert "broken" in repr(store)
    assert not file.exists()
    elsewhere.rename(file)
    while store.broken:
        await asyncio.sleep(0.01)
    # What could not be acknowledged was in it: under a key it would be found.
    assert await items(store) == [1, 2]
    assert await put(store, 3) == [3]


# -- in virtual time -------------------------------------------------------------------------------


def outage_of(for_s: float, seed: int) -> Counter[str]:
    """Write without a pause while the disk fails for a while; count what became of the units."""
    told: Counter[str] = Counter()

    async def main(runtime: SimRuntime) -> None:
        loop = asyncio.get_running_loop()
        store = await simulated(runtime)
        acknowledged: set[int] = set()
        attempts: Counter[int] = Counter()

        async def write(number: int) -> None:
            while True:
                try:
                    attempts[number] += 1
                    await store.write(put_item(number), name=f"put {number}")
                except StoreUnavailable:
                    told["refused"] += 1
                    await asyncio.sleep(0.1)
                else:
                    acknowledged.add(number)
                    return

        async def writer(first: int) -> None:
            for number in range(first, first + 1000):
                if loop.time() > 2.0 + for_s + 2 * PAUSE_CAP_S:
                    return
                await write(number)
                await asyncio.sleep(0.05)

        writers = [asyncio.ensure_future(writer(n * 1000)) for n in range(8)]
        await asyncio.sleep(1.0)
        runtime.disk.fail(PATH)
        began_s = loop.time()
        await asyncio.sleep(for_s / 2)
        writers += [asyncio.ensure_future(writer(n * 1000)) for n in range(8, 12)]
        await asyncio.sleep(for_s / 2)
        runtime.disk.mend(PATH)
        mended_s = loop.time()
        while store.broken is not None:
            await asyncio.sleep(0.001)
        assert loop.time() - mended_s <= min(PAUSE_CAP_S, 2 * for_s) + 0.1
        await asyncio.gather(*writers)
        found = set(await items(store))
        assert acknowledged == found
        told["written"] = len(found)
        told["run twice"] = sum(n > 1 for n in attempts.values())
        assert began_s < mended_s
        await store.close()

    run(main, seed=seed)
    return told


@pytest.mark.parametrize("for_s", [0.01, 3.0, 60.0])
def test_a_disk_that_fails_for_seconds_loses_nothing_and_is_back_by_itself(for_s: float) -> None:
    """All that was acknowledged is there, once; what was refused was not run (E4, I3)."""
    told = sum((outage_of(for_s, seed) for seed in range(2)), Counter[str]())
    assert told["written"] > 200
    assert told["refused"] > 0


def test_a_power_cut_while_the_disk_fails_loses_no_acknowledged_commit() -> None:
    """Whenever it comes; and the next life may find what nobody was told of, but no half of it."""
    rare: Counter[str] = Counter()
    for seed in range(40):
        acknowledged: set[int] = set()

        async def main(runtime: SimRuntime, acknowledged: set[int] = acknowledged) -> None:
            store = await simulated(runtime)
            first = 10_000 * runtime.epoch
            for number in range(first, first + 40):
                try:
                    await store.write(put_item(number), name="put")
                except StoreUnavailable:
                    await asyncio.sleep(0.01)
                else:
                    acknowledged.add(number)
            await asyncio.Event().wait()

        async def nemesis(world: World) -> None:
            await asyncio.sleep(0.02 * world.rng.random())
            world.disk.fail(PATH)
            await asyncio.sleep(0.05 * world.rng.random())
            world.nodes["shop"].crash()
            world.disk.mend(PATH)
            world.nodes["shop"].start()
            await asyncio.sleep(30.0)

        world = World(seed)
        world.node("shop", main).start()
        world.run(_later(nemesis, world))
        found = {row[0] for row in world.disk.rows(PATH, "select id from item")}
        assert acknowledged <= found
        assert len([n for n in found if n >= 20_000]) == 40
        rare["told of nothing"] += bool(found - acknowledged)
        rare["acknowledged before"] += any(n < 20_000 for n in acknowledged)
    assert rare["told of nothing"] > 2, rare
    assert rare["acknowledged before"] > 2, rare


async def _later(nemesis: Any, world: World) -> None:
    # The file is there once the node has opened it.
    while not world.disk.paths():
        await asyncio.sleep(0.001)
    act: Coroutine[Any, Any, None] = nemesis(world)
    await act


def test_a_store_that_is_asked_while_its_disk_fails_is_not_shed() -> None:
    """What waits is bounded as ever; those that are refused wait for nothing."""

    async def main(runtime: SimRuntime) -> None:
        options = StoreOptions(backlog_max=4)
        store = await SqliteStore.open(
            PATH, service="shop", schemas=[ITEMS], runtime=runtime, options=options
        )
        runtime.disk.fail(PATH)
        under_way = [asyncio.ensure_future(put(store, n)) for n in range(4)]
        await asyncio.sleep(1.0)
        for _ in range(100):
            assert isinstance((await put(store, 99))[0], StoreUnavailable)
        runtime.disk.mend(PATH)
        assert await asyncio.gather(*under_way) == [[n] for n in range(4)]
        await store.close()

    run(main)
