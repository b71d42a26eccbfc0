"""A projection whose power is cut before each of its steps: every event takes effect once (E5)."""

from __future__ import annotations

import asyncio

from synchromesh.events import (
    SCHEMA,
    NewEvent,
    Projection,
    ProjectionOptions,
    ProjectionRunner,
    StoredEvent,
    append,
    head,
)
from synchromesh.store import Migration, Schema, SqliteStore, Unit
from synchromesh.testing import Node, SimRuntime, World

SEEN = Schema("seen", (Migration(1, ("create table seen(position integer)",), 1),))
EVENTS = 5


async def note(unit: Unit, event: StoredEvent) -> None:
    await unit.execute("insert into seen values (?)", event.position)


async def serve(runtime: SimRuntime) -> None:
    """Append the events, unless they are there, and apply them."""
    store = await SqliteStore.open(
        "/shop.db", service="shop", schemas=[SCHEMA, SEEN], runtime=runtime
    )
    if not (await head(store)).position:
        new = [NewEvent("shop.sold", b"{}")] * EVENTS
        await store.write(lambda unit: append(unit, "a", new, expected=0), name="add")
    runner = ProjectionRunner(store, [Projection("seen", note)], ProjectionOptions(batch_max=2))
    await runner.prepare()
    await runner.run()


def cut(step: int) -> Node:
    """Cut the power before that step of the node; return the node once all is quiet."""
    world = World(f"cut before step {step}")
    node = world.node("shop", serve)
    world.on_step = lambda each: each.crash(0.1) if each.steps == step else None
    node.start()
    world.run(asyncio.sleep(3.0))
    rows = world.disk.rows("/shop.db", "select position from seen order by position")
    assert rows == [(position,) for position in range(1, EVENTS + 1)], f"cut before step {step}"
    assert world.count["crash"] == (step > 0)
    return node


def test_a_power_cut_at_any_step_applies_nothing_twice_and_loses_nothing() -> None:
    """The checkpoint is in the commit of what was applied."""
    steps = cut(0).steps
    assert steps > 15
    for step in range(1, steps):
        cut(step)
