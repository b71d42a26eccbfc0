"""Projections: each event takes effect once, poison parks one alone, generations stand side by side
(E5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from store_fakes import Fault, HandRuntime, open_store, sqlite_error
from synchromesh.errors import (
    BadRequest,
    ContractError,
    EventTooNew,
    ProjectionBehind,
    StoreBroken,
    StoreUnavailable,
)
from synchromesh.events import (
    SCHEMA,
    Checkpoint,
    Generation,
    GenerationTables,
    NewEvent,
    Projection,
    ProjectionOptions,
    ProjectionRunner,
    StoredEvent,
    append,
    head,
    list_generations,
    load,
    load_checkpoint,
    remove,
    save_checkpoint,
)
from synchromesh.events.generations import drop_unknown, mark_unknown, retry, skip
from synchromesh.store import Migration, Schema, SqliteStore, Unit

pytestmark = pytest.mark.anyio

SEEN = Schema("seen", (Migration(1, ("create table seen(position integer)",), 1),))
AT_ONCE = ProjectionOptions(backoff_s=0.0, attempts_max=3)
QUIET = ProjectionOptions(backoff_s=0.0, attempts_max=3, poll_s=3600.0, batch_max=4)
BY = {"who": "ada", "why": "it is mended"}
OWN = GenerationTables(
    "own", ["create table own(position integer)", "create index own_at on own(position)"]
)
Apply = Callable[[Unit, StoredEvent], Awaitable[None]]


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SqliteStore]:
    opened = await open_store(tmp_path, HandRuntime(), SCHEMA, SEEN)
    yield opened
    await opened.close()


async def add(store: SqliteStore, count: int) -> None:
    new = [NewEvent("shop.sold", b"{}")] * count
    await store.write(lambda unit: append(unit, "a", new, expected=None), name="add")


async def seen(store: SqliteStore, table: str = "seen") -> list[object]:
    return [row[0] for row in await store.read(f"select position from {table}")]


async def note(unit: Unit, event: StoredEvent) -> None:
    await unit.execute("insert into seen values (?)", event.position)


async def own(unit: Unit, event: StoredEvent) -> None:
    await unit.execute("insert into own values (?)", event.position)


def runner_of(
    store: SqliteStore, apply: Apply = note, options: ProjectionOptions = AT_ONCE
) -> ProjectionRunner:
    return ProjectionRunner(store, [Projection("seen", apply)], options)


def building(
    store: SqliteStore, *versions: tuple[int, Apply, GenerationTables]
) -> ProjectionRunner:
    """Make the runner of a projection with tables of its own."""
    made = versions or ((1, own, OWN),)
    return ProjectionRunner(store, [Projection("own", f, v, t) for v, f, t in made], QUIET)


@asynccontextmanager
async def running(runner: ProjectionRunner) -> AsyncIterator[asyncio.Future[None]]:
    """Run it meanwhile; what ends it is raised."""
    await runner.prepare()
    task = asyncio.ensure_future(runner.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and (error := task.exception()):
        raise error


async def eventually(holds: Callable[[], Awaitable[object]]) -> None:
    """Return once something holds; the loop is given the turns that it takes."""
    for _ in range(20_000):
        if await holds():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come to hold")


async def until(store: SqliteStore, runner: ProjectionRunner) -> None:
    """Run until all is applied, then stop."""
    async with running(runner) as task:
        await eventually(lambda: is_over(store, runner, task))


async def is_over(store: SqliteStore, runner: ProjectionRunner, task: asyncio.Future[None]) -> bool:
    return task.done() or await is_even(store, runner)


async def is_even(store: SqliteStore, runner: ProjectionRunner) -> bool:
    return await load_checkpoint(store, runner.checkpoint_name) == await head(store)


async def of(store: SqliteStore, name: str = "seen") -> Generation:
    return (await list_generations(store, name))[0]


async def is_parked(store: SqliteStore, name: str = "seen") -> bool:
    return (await of(store, name)).parked is not None


# -- one after the other -------------------------------------------------------------------------


async def test_every_event_takes_effect_once_also_over_restarts(store: SqliteStore) -> None:
    """The checkpoint is in the same commit as the effect."""
    await add(store, 5)
    for _ in range(3):
        await until(store, runner_of(store, options=ProjectionOptions(batch_max=2)))
        await add(store, 1)
    assert await seen(store) == [1, 2, 3, 4, 5, 6, 7]


async def test_live_events_are_applied_without_waiting_for_the_poll(store: SqliteStore) -> None:
    """A commit wakes the runner, and the lag is known."""
    runner = runner_of(store, options=ProjectionOptions(poll_s=3600.0))
    async with running(runner):
        for count in (1, 2, 3):
            await add(store, count)
            while len(await seen(store)) < sum(range(count + 1)):
                await asyncio.sleep(0)
        assert await seen(store) == [1, 2, 3, 4, 5, 6]
        while runner.lag:
            await asyncio.sleep(0)
        assert repr(runner) == "<ProjectionRunner seen lag 0>"


def failing(at: int, times: int, error: type[Exception] = ValueError, write: Apply = note) -> Apply:
    left = [times]

    async def apply(unit: Unit, event: StoredEvent) -> None:
        await write(unit, event)
        if event.position == at and left[0]:
            left[0] -= 1
            raise error("boom")

    return apply


async def test_a_failing_event_is_tried_again_and_loses_nothing(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had written is rolled back each time; it is named in the log."""
    await add(store, 5)
    await until(store, runner_of(store, failing(3, 3)))
    assert await seen(store) == [1, 2, 3, 4, 5]
    assert "failed 2 times: ValueError; it is tried again" in caplog.text
    assert "at position 3 (shop.sold of 'a', version 3)" in caplog.text


async def test_two_runners_of_one_projection_do_not_apply_twice(store: SqliteStore) -> None:
    """The one that finds the checkpoint moved lets its batch go."""
    await add(store, 20)
    options = ProjectionOptions(batch_max=3)
    runners = [runner_of(store, options=options) for _ in range(2)]
    await asyncio.gather(*(until(store, runner) for runner in runners))
    assert await seen(store) == list(range(1, 21))


async def test_a_projection_goes_on_where_its_file_was_put_back(store: SqliteStore) -> None:
    """Its checkpoint was put back with the log, which has a new id since then."""
    await add(store, 2)
    await until(store, runner_of(store))
    old = Checkpoint("the log before", 2)
    await store.write(lambda unit: save_checkpoint(unit, "projection/seen", old), name="old")
    await add(store, 1)
    await until(store, runner_of(store))
    assert await seen(store) == [1, 2, 3]


# -- poison --------------------------------------------------------------------------------------


async def test_a_poison_event_parks_its_projection_alone(store: SqliteStore) -> None:
    """Those before it are done, it is named with its error and since when, others go on."""
    await add(store, 5)
    bad = runner_of(store, failing(3, 99), QUIET)
    async with running(bad), running(building(store)):
        await eventually(lambda: is_parked(store))
        await add(store, 2)
        while len(await seen(store, "own")) < 7:
            await asyncio.sleep(0)
    assert await seen(store) == [1, 2]
    found = await of(store)
    assert found.parked is not None
    (event,) = await load(store, "a", 2, limit=1)
    assert (found.parked.position, found.parked.event_id) == (3, event.id)
    assert (found.parked.name, found.parked.error) == ("shop.sold", "ValueError: boom")
    assert event.recorded_us <= found.parked.since_us
    assert bad.lag == 5


async def test_a_new_start_tries_a_parked_event_again(store: SqliteStore) -> None:
    """As after a release that mends it; where it does not, it stands since the first time."""
    await add(store, 4)
    async with running(runner_of(store, failing(2, 99))):
        await eventually(lambda: is_parked(store))
    since = (await of(store)).parked
    calls: list[int] = []

    async def again(unit: Unit, event: StoredEvent) -> None:
        calls.append(event.position)
        raise KeyError("other")

    async with running(runner_of(store, again)):
        await eventually(lambda: _true(calls == [2]))
        for _ in range(50):
            await asyncio.sleep(0)
    now = (await of(store)).parked
    assert since is not None
    assert now is not None
    assert (calls, now.since_us, now.error) == ([2], since.since_us, "KeyError: 'other'")
    await until(store, runner_of(store))
    assert await seen(store) == [1, 2, 3, 4]
    assert (await of(store)).parked is None


async def _true(value: bool) -> bool:
    return value


async def events_of(store: SqliteStore, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return what was recorded of a projection by hand."""
    found = await load(store, f"projection/{name}")
    return [(each.name, msgspec.json.decode(each.body)) for each in found]


async def test_a_person_has_a_parked_event_tried_again(store: SqliteStore) -> None:
    """Once for each time that they ask, with who and why; it goes on as soon as that helps."""
    await add(store, 4)
    calls: list[int] = []

    async def thrice(unit: Unit, event: StoredEvent) -> None:
        await note(unit, event)
        calls.append(event.position)
        if event.position == 2 and calls.count(2) <= 4:
            raise ValueError("boom")

    runner = runner_of(store, thrice, QUIET)
    async with running(runner):
        await eventually(lambda: is_parked(store))
        for tries in (4, 5):
            await store.write(lambda unit: retry(unit, "seen", number=0, by=BY), name="retry")
            await eventually(lambda n=tries: _true(calls.count(2) == n))  # type: ignore[misc]
        await eventually(lambda: is_even(store, runner))
    assert await seen(store) == [1, 2, 3, 4, 5, 6]
    audit = {"projection": "seen", "generation": 1, "position": 2, **BY}
    assert await events_of(store, "seen") == [("shop.projection_retried", audit)] * 2


async def test_a_person_skips_a_poison_event(store: SqliteStore) -> None:
    """It is left out and the others follow; who did it, why, and what it was is an event."""
    await add(store, 4)
    runner = runner_of(store, failing(2, 99), QUIET)
    async with running(runner):
        await eventually(lambda: is_parked(store))
        (event,) = await load(store, "a", 1, limit=1)
        with pytest.raises(BadRequest, match="parked at position 2, not at 3"):
            await store.write(lambda u: skip(u, "seen", number=0, at=3, by=BY), name="skip")
        await store.write(lambda u: skip(u, "seen", number=0, at=2, by=BY), name="skip")
        await eventually(lambda: is_even(store, runner))
    assert await seen(store) == [1, 3, 4, 5]
    assert (await of(store)).skipped == 1
    ((name, audit),) = await events_of(store, "seen")
    assert name == "shop.projection_skipped"
    assert audit == {
        "projection": "seen", "generation": 1, "position": 2, "event_id": event.id,
        "event": "shop.sold", "error": "ValueError: boom", **BY,
    }  # fmt: skip


@pytest.mark.parametrize("act", ["skip", "retry"])
async def test_only_what_is_parked_is_skipped_or_tried_again(store: SqliteStore, act: str) -> None:
    """Anything else is told, and changes nothing."""
    await add(store, 1)
    await until(store, runner_of(store))

    def do(name: str) -> Awaitable[object]:
        if act == "retry":
            return store.write(lambda u: retry(u, name, number=0, by=BY), name=act)
        return store.write(lambda u: skip(u, name, number=0, at=0, by=BY), name=act)

    with pytest.raises(BadRequest, match="'seen' is not parked"):
        await do("seen")
    with pytest.raises(BadRequest, match="no projection is called 'sean'"):
        await do("sean")
    assert await events_of(store, "seen") == []


async def test_an_event_of_a_newer_release_is_waited_for_and_not_skipped(
    store: SqliteStore,
) -> None:
    """It is no poison: the release that wrote it takes it, and nothing was lost."""
    await add(store, 3)
    async with running(runner_of(store, failing(2, 99, EventTooNew))):
        await eventually(lambda: is_parked(store))
        with pytest.raises(BadRequest, match="no event is the reason that could be skipped"):
            await store.write(lambda u: skip(u, "seen", number=0, at=0, by=BY), name="skip")
    await until(store, runner_of(store))
    assert await seen(store) == [1, 2, 3]


async def test_a_log_with_a_hole_parks_who_reads_it_until_it_is_mended(store: SqliteStore) -> None:
    """The log is the reason, and no event of it."""
    await add(store, 4)

    async def damage(unit: Unit) -> None:
        await unit.execute("delete from sm_event where position = 2")

    async def mend(unit: Unit) -> None:
        await unit.execute("insert into sm_removal values (2, 2)")
        await retry(unit, "seen", number=1, by=BY)

    await store.write(damage, name="damage")
    runner = runner_of(store, options=QUIET)
    async with running(runner):
        await eventually(lambda: is_parked(store))
        found = (await of(store)).parked
        assert found is not None
        assert (found.position, found.is_poison) == (0, False)
        assert found.error.startswith("LogGap: 1 positions between 0 and 4 are missing")
        await store.write(mend, name="mend")
        await eventually(lambda: is_even(store, runner))
    assert await seen(store) == [1, 3, 4, 5]


async def test_a_full_disk_parks_nobody(tmp_path: Path) -> None:
    """It may pass: it is waited for, however often it fails, and no event is blamed."""
    runtime = HandRuntime()
    store = await open_store(tmp_path, runtime, SCHEMA, SEEN)
    await add(store, 3)
    full = sqlite_error(13, "database or disk is full")
    runtime.faulty.faults.append(Fault("insert into seen", full, times=30))
    await until(store, runner_of(store, options=QUIET))
    assert await seen(store) == [1, 2, 3]
    assert runtime.faulty.faults[0].times == 0
    await store.close()


async def test_a_file_that_fails_parks_nobody(store: SqliteStore) -> None:
    """It is waited for; where the store is closed for it, whoever starts the runner waits."""
    await add(store, 3)
    await until(store, runner_of(store, failing(2, 9, StoreBroken), QUIET))
    assert await seen(store) == [1, 2, 3]
    await add(store, 1)
    with pytest.raises(StoreUnavailable):
        await until(store, runner_of(store, failing(4, 9, StoreUnavailable), QUIET))
    assert not await is_parked(store)
    await until(store, runner_of(store))
    assert await seen(store) == [1, 2, 3, 4]


# -- generations ---------------------------------------------------------------------------------


async def shape(store: SqliteStore, name: str = "own") -> list[tuple[int, bool, int]]:
    """Return number, liveness and version of each generation."""
    return [(g.number, g.is_live, g.version) for g in await list_generations(store, name)]


async def test_a_rebuild_is_made_beside_the_live_one_and_switched_in(store: SqliteStore) -> None:
    """Queries say the plain name, and read the live generation; the other is not seen."""
    await add(store, 10)
    runner = building(store)
    async with running(runner):
        await eventually(lambda: is_even(store, runner))

        async def spoil(unit: Unit) -> None:
            await unit.execute("insert into own__1 values (99)")

        await store.write(spoil, name="spoil")
        made = await runner.rebuild(by=BY)
        assert (made.number, made.is_live) == (2, False)
        assert len(await seen(store, "own")) == 12 - 1
        await eventually(lambda: has_reached(store, 2, 11))
        assert await seen(store, "own") == [*range(1, 11), 99, 11]
        await runner.switch(by=BY)
        assert await seen(store, "own") == [*range(1, 13 - 1)]
        assert await shape(store) == [(2, True, 1), (1, False, 1)]
        await add(store, 3)
        await eventually(lambda: has_reached(store, 2, 15))
        await eventually(lambda: has_reached(store, 1, 15))
        # And back: the one before is as fresh.
        await runner.switch(by=BY)
        assert await seen(store, "own") == [*range(1, 11), 99, *range(11, 16)]
    names = [name.removeprefix("shop.projection_") for name, _ in await events_of(store, "own")]
    assert names == ["rebuilt", "switched", "switched"]


async def has_reached(store: SqliteStore, number: int, position: int) -> bool:
    found = {each.number: each.position for each in await list_generations(store, "own")}
    return found.get(number, 0) >= position


async def test_a_second_rebuild_takes_the_place_of_the_first(store: SqliteStore) -> None:
    """There are two at most, and the tables of what is dropped are gone."""
    await add(store, 2)
    runner = building(store)
    async with running(runner):
        for number in (2, 3, 4):
            assert (await runner.rebuild(by=BY)).number == number
        await eventually(lambda: has_reached(store, 4, 5))
    assert await shape(store) == [(1, True, 1), (4, False, 1)]
    made = await store.read("select name from sqlite_master where name like 'own%' order by name")
    assert [row[0] for row in made] == ["own", "own__1", "own__4", "own_at__1", "own_at__4"]


async def test_a_rebuild_of_which_a_part_is_missing_is_not_switched_in(store: SqliteStore) -> None:
    """Behind by more than a batch, parked or not there: each is told, and nothing changes."""
    await add(store, 12)
    runner = building(store)
    await until(store, runner)
    with pytest.raises(BadRequest, match="has one generation, 1, and it is live"):
        await runner.switch(by=BY)
    await runner.rebuild(by=BY)
    with pytest.raises(BadRequest, match="at position 0, more than 4 events behind"):
        await runner.switch(by=BY)
    bad = building(store, (1, failing(3, 99, write=own), OWN))
    async with running(bad):
        await eventually(lambda: has_reached(store, 2, 2))
        await eventually(lambda: is_standby_parked(store))
        with pytest.raises(BadRequest, match=r"generation 2 .* is parked at position 3 \(shop"):
            await bad.switch(by=BY)
    assert await shape(store) == [(1, True, 1), (2, False, 1)]
    assert await seen(store, "own") == list(range(1, 14))


async def is_standby_parked(store: SqliteStore) -> bool:
    return (await list_generations(store, "own"))[1].parked is not None


async def test_a_switch_takes_the_last_events_along(store: SqliteStore) -> None:
    """So that no reader sees an older state than before, though nobody stops writing."""
    await add(store, 3)
    runner = building(store)
    async with running(runner):
        await runner.rebuild(by=BY)
        await eventually(lambda: has_reached(store, 2, 4))
        await eventually(lambda: has_reached(store, 1, 4))
    await add(store, 3)
    await runner.switch(by=BY)
    assert await seen(store, "own") == [1, 2, 3, 4, 5, 6, 7]


async def test_a_rebuild_leaves_out_what_was_skipped_unless_told_to_try_it(
    store: SqliteStore,
) -> None:
    """A projection equals its replay from zero, without what a person left out (E5)."""
    await add(store, 4)
    bad = building(store, (1, failing(2, 99, write=own), OWN))
    async with running(bad):
        await eventually(lambda: is_parked(store, "own"))
        await store.write(lambda u: skip(u, "own", number=0, at=0, by=BY), name="skip")
        await eventually(lambda: has_reached(store, 1, 5))
    mended = building(store)
    async with running(mended):
        for takes_skipped, expected in ((False, [1, 3, 4, 5, 6]), (True, list(range(1, 8)))):
            made = await mended.rebuild(by=BY, takes_skipped=takes_skipped)
            end = (await head(store)).position
            await eventually(lambda m=made, e=end: has_reached(store, m.number, e))  # type: ignore[misc]
            assert await seen(store, f"own__{made.number}") == expected


async def test_a_rebuild_over_removed_events_is_refused(store: SqliteStore) -> None:
    """It would lack them; who knows that it needs none of them says so."""
    await add(store, 4)
    runner = building(store)
    await until(store, runner)
    await store.write(lambda unit: remove(unit, 1, 2), name="remove")
    with pytest.raises(BadRequest, match="up to position 2 were removed"):
        await runner.rebuild(by=BY)
    assert await shape(store) == [(1, True, 1)]
    await runner.rebuild(by=BY, is_lossy=True)
    async with running(runner):
        await eventually(lambda: has_reached(store, 2, 5))
    assert await seen(store, "own__2") == [3, 4, 5]


async def test_a_projection_without_tables_of_its_own_is_not_rebuilt(store: SqliteStore) -> None:
    """What there is to do is said."""
    runner = runner_of(store)
    await until(store, runner)
    with pytest.raises(BadRequest, match="declares no tables"):
        await runner.rebuild(by=BY)


WIDE = GenerationTables("own", ["create table own(position integer, twice integer)"])


async def wide(unit: Unit, event: StoredEvent) -> None:
    await unit.execute("insert into own values (?, ?)", event.position, 2 * event.position)


async def test_a_new_version_is_built_beside_the_old_one(store: SqliteStore) -> None:
    """Both functions are there: each generation is written by its own, and a person switches."""
    await add(store, 3)
    await until(store, building(store))
    both = building(store, (1, own, OWN), (2, wide, WIDE))
    async with running(both):
        await add(store, 2)
        await eventually(lambda: has_reached(store, 1, 5))
        await eventually(lambda: has_reached(store, 2, 5))
        assert await shape(store) == [(1, True, 1), (2, False, 2)]
        await both.switch(by=BY)
        assert await store.read("select * from own where position = 5") == [(5, 10)]
        await eventually(lambda: has_reached(store, 1, 6))
        await both.switch(by=BY)
        assert await seen(store, "own") == [1, 2, 3, 4, 5, 6]


async def test_a_version_whose_code_is_gone_is_replaced_once_the_new_one_is_there(
    store: SqliteStore,
) -> None:
    """And the other way round, when the release before comes back."""
    await add(store, 30)
    await until(store, building(store))
    await add(store, 1)
    async with running(building(store, (2, wide, WIDE))):
        await eventually(lambda: is_shape(store, [(2, True, 2), (1, False, 1)]))
        found = await list_generations(store, "own")
        assert [each.is_waiting for each in found] == [False, True]
        assert found[1].position == 30
    assert len(await seen(store, "own")) >= 31
    async with running(building(store)):
        await eventually(lambda: is_shape(store, [(1, True, 1), (2, False, 2)]))
    assert (await seen(store, "own"))[:31] == list(range(1, 32))
    (_, audit), *_more = await events_of(store, "own")
    assert audit["who"] == "synchromesh"
    assert "no code of version 1 is here" in audit["why"]


async def is_shape(store: SqliteStore, expected: list[tuple[int, bool, int]]) -> bool:
    return await shape(store) == expected


async def test_tables_that_change_need_a_new_version(store: SqliteStore) -> None:
    """It is told before anything runs; what is there stays as it is."""
    await add(store, 1)
    await until(store, building(store))
    with pytest.raises(ContractError, match="have changed, and its version is still 1"):
        await building(store, (1, wide, WIDE)).prepare()
    assert await seen(store, "own") == [1]


async def test_a_table_of_somebody_else_is_not_taken(store: SqliteStore) -> None:
    """A migration made it; nothing is left half made."""
    taken = GenerationTables("own", ["create table seen(position integer)"])
    with pytest.raises(ContractError, match="take them out of the service's migrations"):
        await building(store, (1, note, taken)).prepare()
    assert await list_generations(store) == []
    assert await store.read("select name from sqlite_master where name = 'seen__1'") == []


async def test_a_projection_that_no_code_names_is_dropped_whole(store: SqliteStore) -> None:
    """It waits, is said to, and goes with all of its tables; what is named stays."""
    runner = building(store)
    async with running(runner):
        await runner.rebuild(by=BY)
    await store.write(lambda unit: mark_unknown(unit, ["own"]), name="mark")
    assert not (await of(store, "own")).is_waiting
    await store.write(lambda unit: mark_unknown(unit, ["other"]), name="mark")
    assert [each.is_waiting for each in await list_generations(store, "own")] == [True, True]
    await store.write(lambda unit: drop_unknown(unit, "own", by=BY), name="drop")
    assert await list_generations(store) == []
    assert await store.read("select name from sqlite_master where name like 'own%'") == []
    assert await store.read("select name from sm_checkpoint") == []
    assert (await events_of(store, "own"))[-1][0] == "shop.projection_dropped"


async def test_only_its_projection_writes_its_tables(store: SqliteStore) -> None:
    """Everybody else reads; a command that writes to them is told."""
    await until(store, building(store))

    async def meddle(unit: Unit) -> None:
        await unit.execute("insert into own values (7)")

    with pytest.raises(Exception, match="cannot modify own because it is a view"):
        await store.write(meddle, name="meddle")


# -- reading one's own writes --------------------------------------------------------------------


async def test_a_caller_waits_until_a_projection_has_passed_a_position(store: SqliteStore) -> None:
    """It returns at once for what is done, and otherwise as soon as it is."""
    runner = runner_of(store, options=QUIET)
    async with running(runner):
        waiting = [asyncio.ensure_future(runner.wait_for(n)) for n in (1, 3, 3)]
        await add(store, 2)
        await waiting[0]
        assert not waiting[1].done()
        await add(store, 1)
        await asyncio.gather(*waiting)
        await runner.wait_for(3)
    assert await seen(store) == [1, 2, 3]


async def test_who_waits_for_a_parked_projection_is_told_at_once(store: SqliteStore) -> None:
    """What it has passed is passed all the same."""
    await add(store, 3)
    runner = runner_of(store, failing(2, 99), QUIET)
    async with running(runner):
        with pytest.raises(ProjectionBehind, match=r"parked at position 2 .*ValueError: boom"):
            await runner.wait_for(3)
        await runner.wait_for(1)


# -- names of tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "rendered"),
    [
        ("select * from own", "select * from own__2"),
        ("select OWN.n from Own", "select own__2.n from own__2"),
        ('select "own"."n" from "own"', 'select "own__2"."n" from "own__2"'),
        ("select [own].n, `own`.n from own", "select [own__2].n, `own__2`.n from own__2"),
        ("select 'own', x'00' from own -- own", "select 'own', x'00' from own__2 -- own"),
        ("select 'it''s own' /* own */ from own", "select 'it''s own' /* own */ from own__2"),
        ("select owner, own_, my_own from t", "select owner, own_, my_own from t"),
        ("drop index own_at", "drop index own_at__2"),
    ],
)
def test_statements_are_about_the_tables_of_a_generation(sql: str, rendered: str) -> None:
    """Names are told from texts, comments and other names."""
    assert OWN.render(sql, 2).lower() == rendered.lower()
    assert GenerationTables("none", []).render(sql, 2) == sql


@pytest.mark.parametrize(
    ("statements", "words"),
    [
        (["create view own as select 1"], "create view own"),
        (["create table if not exists own(n)"], "among its tables"),
        (["insert into own values (1)"], "among its tables"),
        (["create table own(n)", "create table OWN(m)"], "declares 'own' twice"),
        (["create table sm_own(n)"], "begins with sm_"),
        (["create table own(n, own integer)"], "names a table, and a column too"),
    ],
)
def test_tables_that_cannot_be_told_apart_are_refused(statements: list[str], words: str) -> None:
    """When the module is imported, before anything is built."""
    with pytest.raises(ContractError, match=words):
        GenerationTables("own", statements)
