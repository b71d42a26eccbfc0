"""Steps side by side: so many at once, in their order, until all are done or one turns the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from synchromesh.saga.journal import Journal
from synchromesh.saga.records import Action, Begin, NextAction


async def side_by_side(
    perform: Callable[[str], Coroutine[Any, Any, NextAction]],
    begun: Sequence[Begin],
    cap: int,
    journal: Journal,
    run_id: str,
) -> NextAction:
    """Do steps, at most `cap` at once, and return the first decision that ends the way forward.

    Those under way are then cancelled: what they did is recorded, or undone as unknown. What has
    not begun never does: no record says that it might have had an effect.

    Args:
        perform: does the step of a name to its end.
        begun: the steps, in the order in which they begin; the records of the first `cap` of them
            are durable.
    """
    loop = asyncio.get_running_loop()
    under_way: list[asyncio.Task[NextAction]] = []
    following = begun[:cap]
    next_one = len(following)
    try:
        while True:
            for each in following:
                task_name = f"saga {run_id} {each.step}"
                under_way.append(loop.create_task(perform(each.step), name=task_name))
            decision = await _first_no(under_way)
            if decision.action is not Action.RETURN:
                break
            following = begun[next_one : next_one + cap - len(under_way)]
            next_one += len(following)
            for each in following:
                journal.add(*each.records)
            if not under_way and not following:
                break
            await journal.flush()
    except (Exception, asyncio.CancelledError):
        await _stop(under_way)
        raise
    await _stop(under_way)
    return decision


async def _first_no(under_way: list[asyncio.Task[NextAction]]) -> NextAction:
    """Wait until some have ended, take them out, and return a decision of theirs, a no if any."""
    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    # In their order, not in that of a set. Popped: a task that raised here would be kept by the
    # frame of its own error.
    ended: list[asyncio.Task[NextAction]] = []
    for place in range(len(under_way) - 1, -1, -1):
        if under_way[place].done():
            ended.append(under_way.pop(place))  # noqa: PERF401 - a comprehension is a frame more
    decision = ended.pop().result()
    while ended:
        further = ended.pop().result()
        if decision.action is Action.RETURN:
            decision = further
    return decision


async def _stop(tasks: list[asyncio.Task[NextAction]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
