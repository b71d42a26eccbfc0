"""Eager tasks, on asyncio's loop and on the simulated one: a first step that costs no turn."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

from synchromesh import eager
from synchromesh.testing import run

Main = Callable[[], Awaitable[None]]
Runner = Callable[[Main], None]

WHO: ContextVar[str] = ContextVar("who", default="nobody")


def _on_asyncio(main: Main) -> None:
    async def whole() -> None:
        await main()

    asyncio.run(whole())


def _simulated(main: Main) -> None:
    async def whole(_runtime: object) -> None:
        await main()

    run(whole)


@pytest.fixture(params=[_on_asyncio, _simulated], ids=["asyncio", "simulated"])
def runner(request: pytest.FixtureRequest) -> Runner:
    found: Runner = request.param
    return found


def start(coro: object, name: str | None = None) -> asyncio.Task[object]:
    loop = asyncio.get_running_loop()
    return eager.start(coro, loop=loop, context=copy_context(), name=name)  # type: ignore[arg-type]


def test_what_does_not_wait_is_done_when_start_returns(runner: Runner) -> None:
    """A result and an error are there at once, and the error is the task's alone."""

    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise ValueError("no")

    async def main() -> None:
        assert start(answer()).result() == 42
        assert isinstance(start(fail()).exception(), ValueError)

    runner(main)


def test_a_task_is_the_same_before_and_after_its_first_wait(runner: Runner) -> None:
    """`current_task` is the task in each of its steps, and the caller's again after the first."""
    seen: list[object] = []

    async def waits() -> None:
        seen.append(asyncio.current_task())
        await asyncio.sleep(0)
        seen.append(asyncio.current_task())

    async def main() -> None:
        mine = asyncio.current_task()
        task = start(waits(), "callee")
        assert asyncio.current_task() is mine
        assert not task.done()
        await task
        assert seen == [task, task]
        assert task.get_name() == "callee"

    runner(main)


def test_a_timeout_set_in_the_first_step_holds(runner: Runner) -> None:
    """What asks for its task in the first step may cancel it later."""

    async def bounded() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "in time"
        return "never"

    async def main() -> None:
        assert await start(bounded()) == "in time"

    runner(main)


def test_variables_that_are_set_stay_in_the_context_given(runner: Runner) -> None:
    """The first step runs in a context of its own, as that of every task does."""

    async def sets() -> str:
        WHO.set("the callee")
        await asyncio.sleep(0)
        return WHO.get()

    async def main() -> None:
        WHO.set("the caller")
        task = start(sets())
        assert WHO.get() == "the caller"
        assert await task == "the callee"

    runner(main)


def test_tasks_start_each_other_within_one_step(runner: Runner) -> None:
    """An eager task may start another one eagerly: both end before the first `start` returns."""

    async def nested(depth: int) -> int:
        return depth if depth == 0 else 1 + start(nested(depth - 1)).result()  # type: ignore[operator]

    async def main() -> None:
        assert start(nested(5)).result() == 5

    runner(main)


def test_what_a_finalizer_schedules_while_a_task_is_made_is_run(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collector may run at any allocation: what it schedules is neither lost nor the step."""
    ran: list[str] = []

    async def step() -> str:
        return "stepped"

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def make(coro: Any, **options: Any) -> asyncio.Task[object]:
            loop.call_soon(ran.append, "before")
            task: asyncio.Task[object] = found(coro, **options)
            loop.call_soon(ran.append, "after")
            gc.collect()
            return task

        found = getattr(loop, "make_task", asyncio.Task)
        monkeypatch.setattr(loop, "make_task", make, raising=False)
        assert start(step()).result() == "stepped"
        await asyncio.sleep(0.001)
        assert ran == ["before", "after"]

    runner(main)
