"""Patience of one step: its own timeout and attempts, also over restarts."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from saga_fakes import (
    CONTEXT,
    DUMB,
    HANGS,
    LOST,
    PATIENT,
    Bank,
    Fault,
    Order,
    Participants,
    Plant,
    Stock,
    at_work,
)
from synchromesh.errors import NoInstance, SagaUndone
from synchromesh.saga import Saga, SagaDefinition
from synchromesh.testing import SimRuntime, run

FOREVER_S = 10_000.0


def booking(timeout_s: float | None, attempts_max: int | None) -> SagaDefinition[Any, str]:
    """Return a saga of which the second of three calls has patience of its own."""

    async def books(s: Saga, order: Order) -> str:
        await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
        booked = await s.call(
            Plant.book(order.id), undo=Plant.unbook, timeout_s=timeout_s, attempts_max=attempts_max
        )
        await s.call(Bank.charge(order.id), pivot=True)
        return booked.id

    return SagaDefinition(books, "books", deadline_s=600.0, policy=PATIENT)


@pytest.mark.parametrize(("attempts_max", "sends"), [(None, 3), (1, 1), (2, 2), (7, 7)])
def test_attempts_are_the_steps_own(attempts_max: int | None, sends: int) -> None:
    """Of that step alone, and only of those whose outcome is unknown."""

    async def main(runtime: SimRuntime, is_lucky: bool) -> None:
        faults: list[Fault] = [NoInstance("down"), *[DUMB] * (sends - is_lucky)]
        others, saga = Participants(faults={"plant.book": faults}), booking(None, attempts_max)
        others.faults["stock.reserve"] = [LOST, LOST]
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            if is_lucky:
                assert await handle.result(FOREVER_S)
            else:
                with pytest.raises(SagaUndone, match=r"plant\.book broke off"):
                    await handle.result(FOREVER_S)
                assert +others.live == {}
        assert len(others.sends_of("plant.book")) == sends + 1
        assert len(others.sends_of("stock.reserve")) == 3

    run(lambda runtime: main(runtime, is_lucky=True))
    run(lambda runtime: main(runtime, is_lucky=False))


@pytest.mark.parametrize("attempts_max", [1, 2, 4])
def test_attempts_are_counted_over_restarts(attempts_max: int) -> None:
    """Each crash in an attempt uses it up; the one that is begun anew is the next."""

    async def main(runtime: SimRuntime) -> None:
        others, saga = Participants(faults={"plant.book": [HANGS] * 99}), booking(5.0, attempts_max)
        for _ in range(attempts_max):
            async with at_work(runtime, others, saga) as engine:
                await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
                await asyncio.sleep(0.5)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(SagaUndone):
                await handle.result(FOREVER_S)
        # One that was begun in the last life is asked again once more, to learn what became of it.
        assert len(others.sends_of("plant.book")) == attempts_max + 1
        assert +others.live == {}

    run(main)


@pytest.mark.parametrize(("timeout_s", "took_s"), [(0.2, 0.2), (30.0, 30.0), (None, 1.0)])
def test_the_timeout_holds_in_each_life(timeout_s: float | None, took_s: float) -> None:
    """After a restart an attempt has the whole of it."""

    async def main(runtime: SimRuntime) -> None:
        others, saga = Participants(faults={"plant.book": [HANGS, HANGS]}), booking(timeout_s, 2)
        time = asyncio.get_running_loop().time
        async with at_work(runtime, others, saga) as engine:
            await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.1)
        async with at_work(runtime, others, saga) as engine:
            began_s = time()
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(SagaUndone):
                await handle.result(FOREVER_S)
            assert took_s <= time() - began_s < took_s + 0.15

    run(main)


def test_a_step_passes_few_calls() -> None:
    """What a step may have costs the plain one nothing: Python calls of ours, journal included."""

    async def holds(s: Saga, order: Order) -> int:
        for number in range(order.qty):
            await s.call(Stock.reserve(order.id, number), undo=Stock.release)
        return order.qty

    saga = SagaDefinition(holds, "holds", policy=PATIENT)

    async def passed(runtime: SimRuntime, steps: int) -> int:
        entered = Counter[bool]()

        def watch(frame: FrameType, event: str, _: object) -> None:
            name = frame.f_code.co_filename
            is_ours = "/synchromesh/" in name and "/synchromesh/testing/" not in name
            entered[event == "call" and is_ours] += 1

        async with at_work(runtime, Participants(), saga) as engine:
            sys.setprofile(watch)
            try:
                handle = await engine.start(saga, Order("A-1", steps), id="A-1", context=CONTEXT)
                await handle.result(FOREVER_S)
            finally:
                sys.setprofile(None)
        return entered[True]

    few, many = (run(lambda runtime, n=n: passed(runtime, n)) for n in (10, 60))  # type: ignore[misc]
    assert (many - few) / 50 < 195


def test_patience_may_change_while_runs_are_under_way() -> None:
    """It is no input of the step: new code fits, and has its own."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [HANGS, DUMB, DUMB, DUMB]})
        saga = booking(9.0, 1)
        async with at_work(runtime, others, saga) as engine:
            await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        saga = booking(1.0, 9)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(FOREVER_S) == "plant.book/1"

    run(main)


def test_behind_the_pivot_it_is_asked_until_it_is_done() -> None:
    """Its own attempts count before the pivot alone."""

    async def main(runtime: SimRuntime) -> None:
        async def books(s: Saga, order: Order) -> str:
            await s.call(Bank.charge(order.id), pivot=True)
            return (await s.call(Plant.book(order.id), attempts_max=1)).id

        saga = SagaDefinition(books, "books", policy=PATIENT)
        others = Participants(faults={"plant.book": [LOST] * 9})
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(FOREVER_S) == "plant.book/1"

    run(main)
