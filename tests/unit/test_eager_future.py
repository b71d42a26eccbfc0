"""A future that resumes its task within the event that brings its result."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import TypeVar

import pytest

from synchromesh.eager import EagerFuture

T = TypeVar("T")


async def waiting(future: EagerFuture[int], seen: list[object]) -> int:
    try:
        seen.append(await future)
    except BaseException as error:
        seen.append(type(error))
        raise
    return 1


def on_loop(main: Callable[[asyncio.AbstractEventLoop], Awaitable[T]]) -> T:
    async def run_it() -> T:
        return await main(asyncio.get_running_loop())

    return asyncio.run(run_it())


def test_a_result_resumes_its_task_within_the_event() -> None:
    """In the task's own context, and as the current task."""
    told: ContextVar[str] = ContextVar("told", default="")

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        future = EagerFuture[int](loop)

        async def wait() -> None:
            told.set("task's")
            seen.append(await future)
            seen.append((told.get(), asyncio.current_task() is task))

        def answer() -> None:
            future.set_result(7)
            seen.append((told.get(), asyncio.current_task()))

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        loop.call_soon(answer)
        await task
        return seen

    assert on_loop(main) == [7, ("task's", True), ("", None)]


def test_a_result_within_a_task_resumes_another_one_later() -> None:
    """A task cannot take a step within that of another one."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        future = EagerFuture[int](loop)
        task = asyncio.ensure_future(waiting(future, seen))
        await asyncio.sleep(0)
        future.set_result(7)
        seen.append("told")
        await task
        return seen

    assert on_loop(main) == ["told", 7]


def test_a_task_hands_a_result_over_within_its_own_step() -> None:
    """The other task takes its step at once, as the current one, and the giver goes on then."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        future = EagerFuture[int](loop)

        async def wait() -> None:
            seen.append(await future)
            seen.append(asyncio.current_task() is task)
            await asyncio.sleep(0)
            seen.append("later")

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        giver = asyncio.current_task()
        future.hand_over(7)
        seen.append(asyncio.current_task() is giver)
        await task
        return seen

    assert on_loop(main) == [7, True, True, "later"]


def test_what_is_handed_over_to_a_task_that_was_cancelled_is_dropped() -> None:
    """Its cancellation was first, and a result must not take its place."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        future = EagerFuture[int](loop)
        task = asyncio.ensure_future(waiting(future, seen))
        await asyncio.sleep(0)
        task.cancel()
        assert future.done()
        await asyncio.wait([task])
        return seen

    assert on_loop(main) == [asyncio.CancelledError]


def test_a_long_row_of_tasks_that_hand_over_does_not_fill_the_stack() -> None:
    """Each ends by handing over to the one before it; a thousand of them take some turns."""

    async def main(loop: asyncio.AbstractEventLoop) -> int:
        row = [EagerFuture[int](loop) for _ in range(1000)]

        async def link(at: int) -> int:
            value = await row[at]
            if at:
                row[at - 1].hand_over(value + 1)
            return value

        tasks = [asyncio.ensure_future(link(at)) for at in range(len(row))]
        await asyncio.sleep(0)
        row[-1].hand_over(0)
        return (await asyncio.gather(*tasks))[0]

    assert on_loop(main) == 999


def test_a_result_or_an_error_that_is_there_needs_no_wait() -> None:
    """The task goes on without a turn of the loop."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        good, bad = EagerFuture[int](loop), EagerFuture[int](loop)
        good.set_result(7)
        bad.set_exception(KeyError("x"))
        await waiting(good, seen)
        with pytest.raises(KeyError):
            await waiting(bad, seen)
        return seen

    assert on_loop(main) == [7, KeyError]


def test_an_error_resumes_its_task_a_turn_later() -> None:
    """Whoever tells it has more to do."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        future = EagerFuture[int](loop)

        def fail() -> None:
            future.set_exception(KeyError("x"))
            seen.append("told")

        task = asyncio.ensure_future(waiting(future, seen))
        loop.call_later(0, fail)
        with pytest.raises(KeyError):
            await task
        return seen

    assert on_loop(main) == ["told", KeyError]


def test_a_task_that_waits_is_cancelled() -> None:
    """By `cancel`, by a time-out, and before its first step; a result that comes then is late."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        futures = [EagerFuture[int](loop) for _ in range(3)]
        begun = asyncio.ensure_future(waiting(futures[0], seen))
        await asyncio.sleep(0)
        begun.cancel("why")
        assert not begun.done()
        assert futures[0].done()
        assert not futures[0].cancel()
        with pytest.raises(asyncio.CancelledError, match="why"):
            await begun
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await waiting(futures[1], seen)

        async def cancels_itself() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await waiting(futures[2], seen)

        with pytest.raises(asyncio.CancelledError):
            await asyncio.ensure_future(cancels_itself())
        return seen

    assert on_loop(main) == [asyncio.CancelledError] * 3


def test_a_cancellation_that_comes_behind_the_result_is_the_tasks() -> None:
    """The result is there, and the task that was to get it ends by its cancellation."""

    async def main(loop: asyncio.AbstractEventLoop) -> list[object]:
        seen: list[object] = []
        future = EagerFuture[int](loop)
        task = asyncio.ensure_future(waiting(future, seen))
        await asyncio.sleep(0)
        future.set_result(7)  # within this task: it is resumed later
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return seen

    assert on_loop(main) == [asyncio.CancelledError]


def test_one_task_waits_for_a_result() -> None:
    """A second one is told so, and the first still gets it."""

    async def main(loop: asyncio.AbstractEventLoop) -> None:
        future = EagerFuture[int](loop)
        task = asyncio.ensure_future(waiting(future, []))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task waits"):
            await future
        loop.call_soon(future.set_result, 7)
        await task

    on_loop(main)
