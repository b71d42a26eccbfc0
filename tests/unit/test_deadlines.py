"""Deadlines: released in time, and nobody's error is taken for another's; virtual time."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

import pytest

from synchromesh.resilience import DeadlinePassed, within
from synchromesh.testing import SimRuntime, run

COLOUR: ContextVar[str] = ContextVar("COLOUR", default="none")


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_body_that_is_quick_enough_gives_its_result() -> None:
    """A deadline that does not pass is not there."""

    async def main(_: SimRuntime) -> str:
        async def body() -> str:
            await asyncio.sleep(0.9)
            return "done"

        return await within(body, now() + 1.0)

    assert run(main) == "done"


def test_a_slow_body_is_cancelled_at_the_deadline() -> None:
    """The caller is released at its deadline, and the body hears of it."""
    heard: list[float] = []

    async def main(_: SimRuntime) -> float:
        began_s = now()

        async def body() -> None:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                heard.append(now() - began_s)
                raise

        with pytest.raises(DeadlinePassed, match="deadline"):
            await within(body, began_s + 1.0)
        return now() - began_s

    assert run(main) == pytest.approx(1.0)
    assert heard == [pytest.approx(1.0)]


def test_a_timeout_error_of_the_body_keeps_its_identity() -> None:
    """B4: the caller's own TimeoutError is not this deadline, not even after it has passed."""
    own = TimeoutError("of the driver")

    async def main(_: SimRuntime) -> None:
        async def early() -> None:
            raise own

        async def late() -> None:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                raise own from None

        for body in (early, late):
            with pytest.raises(TimeoutError) as raised:
                await within(body, now() + 1.0)
            assert raised.value is own

    run(main)


def test_a_cancellation_from_outside_stays_one() -> None:
    """A cancelled task ends cancelled: its deadline does not hide that."""

    async def main(_: SimRuntime) -> bool:
        task = asyncio.ensure_future(within(lambda: asyncio.sleep(60.0), now() + 2.0))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(main)


@pytest.mark.parametrize("seed", range(8))
def test_a_cancellation_in_the_moment_of_the_deadline_stays_one(seed: int) -> None:
    """Whichever of both comes first, a task that was cancelled ends cancelled."""

    async def main(_: SimRuntime) -> str:
        at_s = now() + 1.0
        task = asyncio.ensure_future(within(lambda: asyncio.sleep(60.0), at_s))
        asyncio.get_running_loop().call_at(at_s, task.cancel)
        await asyncio.wait([task])
        return "cancelled" if task.cancelled() else type(task.exception()).__name__

    assert run(main, seed=seed) == "cancelled"


def test_an_inner_deadline_does_not_end_the_outer() -> None:
    """Nested deadlines each end what is theirs."""

    async def main(_: SimRuntime) -> float:
        async def outer() -> float:
            with pytest.raises(DeadlinePassed):
                await within(lambda: asyncio.sleep(60.0), now() + 1.0)
            await asyncio.sleep(0.5)
            return now()

        began_s = now()
        return await within(outer, began_s + 2.0) - began_s

    assert run(main) == pytest.approx(1.5)


def test_the_body_runs_in_the_task_and_context_of_the_caller() -> None:
    """What the body sets in a context variable, the caller sees."""

    async def main(_: SimRuntime) -> tuple[str, bool]:
        async def body() -> asyncio.Task[None] | None:
            COLOUR.set("blue")
            return asyncio.current_task()

        task = await within(body, now() + 1.0)
        return COLOUR.get(), task is asyncio.current_task()

    assert run(main) == ("blue", True)


def test_without_a_deadline_it_waits_for_as_long_as_it_takes() -> None:
    """None is no deadline, not even a distant one: after a month there is the body's own result."""
    month_s = 30 * 86_400.0

    async def main(_: SimRuntime) -> tuple[str, float]:
        async def body() -> str:
            await asyncio.sleep(month_s)
            return "done"

        began_s = now()
        return await within(body, None), now() - began_s

    result, took_s = run(main, until_s=2 * month_s)
    assert (result, round(took_s)) == ("done", month_s)
