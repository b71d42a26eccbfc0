"""Projections: each event takes effect once, none is skipped, a rebuild equals the replay (E5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from store_fakes import HandRuntime, open_store
from synchromesh.errors import LogReplaced
from synchromesh.events import (
    SCHEMA,
    Checkpoint,
    NewEvent,
    Projection,
    ProjectionOptions,
    ProjectionRunner,
    StoredEvent,
    append,
    head,
    load_checkpoint,
    save_checkpoint,
)
from synchromesh.store import Migration, Schema, SqliteStore, Unit

pytestmark = pytest.mark.anyio

SEEN = Schema("seen", (Migration(1, ("create table seen(position integer)",), 1),))
AT_ONCE = ProjectionOptions(backoff_s=0.0, attempts_max=3)


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SqliteStore]:
    opened = await open_store(tmp_path, HandRuntime(), SCHEMA, SEEN)
    yield opened
    await opened.close()


async def add(store: SqliteStore, count: int) -> None:
    new = [NewEvent("shop.sold", b"{}")] * count
    await store.write(lambda unit: append(unit, "a", new, expected=None), name="add")


async def seen(store: SqliteStore) -> list[object]:
    return [row[0] for row in await store.read("select position from seen")]


async def note(unit: Unit, event: StoredEvent) -> None:
    await unit.execute("insert into seen values (?)", event.position)


async def reset(unit: Unit) -> None:
    await unit.execute("delete from seen")


async def until(store: SqliteStore, runner: ProjectionRunner) -> None:
    """Run until all is applied, then stop."""
    task = asyncio.ensure_future(runner.run())
    while (await load_checkpoint(store, runner.checkpoint_name)) != await head(store):
        await asyncio.sleep(0)
        if task.done():
            break
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and (error := task.exception()):
        raise error


async def test_every_event_takes_effect_once_also_over_restarts(store: SqliteStore) -> None:
    """The checkpoint is in the same commit as the effect."""
    await add(store, 5)
    options = ProjectionOptions(batch_max=2)
    for _ in range(3):
        await until(store, ProjectionRunner(store, Projection("seen", note), options))
        await add(store, 1)
    assert await seen(store) == [1, 2, 3, 4, 5, 6, 7]


async def test_live_events_are_applied_without_waiting_for_the_poll(store: SqliteStore) -> None:
    """A commit wakes the runner, and the lag is known."""
    runner = ProjectionRunner(store, Projection("seen", note), ProjectionOptions(poll_s=3600.0))
    task = asyncio.ensure_future(runner.run())
    for count in (1, 2, 3):
        await add(store, count)
        while len(await seen(store)) < sum(range(count + 1)):
            await asyncio.sleep(0)
    assert await seen(store) == [1, 2, 3, 4, 5, 6]
    while runner.lag:
        await asyncio.sleep(0)
    assert repr(runner) == "<ProjectionRunner seen lag 0>"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def failing(at: int, times: int) -> Callable[[Unit, StoredEvent], Awaitable[None]]:
    left = [times]

    async def apply(unit: Unit, event: StoredEvent) -> None:
        await note(unit, event)
        if event.position == at and left[0]:
            left[0] -= 1
            raise ValueError("boom")

    return apply


async def test_a_failing_event_is_tried_again_and_loses_nothing(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had written is rolled back each time; it is named in the log."""
    await add(store, 5)
    await until(store, ProjectionRunner(store, Projection("seen", failing(3, 3)), AT_ONCE))
    assert await seen(store) == [1, 2, 3, 4, 5]
    assert "failed 2 times at position 3 (shop.sold of 'a', version 3): ValueError" in caplog.text


async def test_an_event_that_keeps_failing_escalates_and_is_never_skipped(
    store: SqliteStore,
) -> None:
    """Those before it are done, it is named, those after it wait; mended it goes on."""
    await add(store, 5)
    runner = ProjectionRunner(store, Projection("seen", failing(3, 99)), AT_ONCE)
    with pytest.raises(ValueError, match="boom") as caught:
        await runner.run()
    assert "failed 3 times at position 3" in caught.value.__notes__[0]
    assert await seen(store) == [1, 2]
    assert runner.lag == 3
    await until(store, ProjectionRunner(store, Projection("seen", note), AT_ONCE))
    assert await seen(store) == [1, 2, 3, 4, 5]


async def test_a_rebuild_equals_the_replay_also_while_it_runs(store: SqliteStore) -> None:
    """Reset and beginning are one commit; the runner goes on from there."""
    await add(store, 4)
    runner = ProjectionRunner(
        store, Projection("seen", note), ProjectionOptions(batch_max=2, poll_s=3600.0)
    )
    task = asyncio.ensure_future(runner.run())
    while len(await seen(store)) < 4:
        await asyncio.sleep(0)
    await store.write(note_99, name="spoil")
    await runner.rebuild(reset)
    while len(await seen(store)) < 4:
        await asyncio.sleep(0)
    assert await seen(store) == [1, 2, 3, 4]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def note_99(unit: Unit) -> None:
    await unit.execute("insert into seen values (99)")


async def test_two_runners_of_one_projection_do_not_apply_twice(store: SqliteStore) -> None:
    """The one that finds the checkpoint moved lets its batch go."""
    await add(store, 20)
    options = ProjectionOptions(batch_max=3)
    runners = [ProjectionRunner(store, Projection("seen", note), options) for _ in range(2)]
    await asyncio.gather(*(until(store, runner) for runner in runners))
    assert await seen(store) == list(range(1, 21))


async def test_a_checkpoint_of_a_replaced_log_escalates_until_it_is_rebuilt(
    store: SqliteStore,
) -> None:
    """The repair that the error names works."""
    await add(store, 2)
    runner = ProjectionRunner(store, Projection("seen", note))
    old = Checkpoint("older-log", 7)
    await store.write(lambda unit: save_checkpoint(unit, runner.checkpoint_name, old), name="old")
    with pytest.raises(LogReplaced, match="Rebuild"):
        await runner.run()
    await runner.rebuild(reset)
    await until(store, runner)
    assert await seen(store) == [1, 2]
