"""What ends in an error leaves nothing of a saga to the garbage collector, on a real loop."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from saga_fakes import (
    CONTEXT,
    HANGS,
    LOST,
    PATIENT,
    PLACE,
    TABLES,
    THREE,
    Bank,
    Created,
    Fault,
    Order,
    Participants,
    Plant,
    Stock,
    create_order,
    engine_on,
    reject_order,
)
from synchromesh import events
from synchromesh.errors import CallError, Forbidden
from synchromesh.runtime import RealRuntime
from synchromesh.saga import Engine, Saga, SagaDefinition, Step, Unknown
from synchromesh.saga.schema import SCHEMA
from synchromesh.store import SqliteStore, Unit
from unit.test_reference_cycles import cancelled, garbage_of


async def raising(s: Saga, order: Order) -> None:
    await s.write(create_order, order, undo=reject_order)
    raise KeyError(order.id)


async def failing_unit(tx: Unit, order: Order) -> Created:
    raise KeyError(order.id)


async def writing(s: Saga, order: Order) -> None:
    await s.write(failing_unit, order)


async def wrong_undo(tx: Unit, created: Created) -> None:
    raise KeyError(created.order)


async def not_undone(s: Saga, order: Order) -> None:
    await s.write(create_order, order, undo=wrong_undo)
    await s.call(Bank.charge(order.id))


async def side_by_side(s: Saga, order: Order) -> None:
    await s.all(
        s.call(Stock.reserve(order.id, 1), undo=Stock.release),
        s.call(Plant.book(order.id), undo=Plant.unbook),
    )


async def late(key: str, order: str) -> str:
    await asyncio.Event().wait()
    return order


async def wrong(key: str, order: str) -> str:
    raise KeyError(order)


async def cut_within(key: str, order: str) -> str:
    raise asyncio.CancelledError


async def look(key: str, done: str | Unknown) -> None:
    if key.endswith("2"):
        raise KeyError(key)


async def functions(s: Saga, order: Order) -> None:
    def step(fn: Callable[[str, str], Awaitable[str]]) -> Step[str]:
        return s.step(fn, order.id, undo=look, timeout_s=0.01, attempts_max=1)

    await s.each([late, cut_within, wrong], step, cap=3)


async def in_a_list(s: Saga, order: Order) -> None:
    await s.each(
        [order.id] * 4, lambda id_: s.call(Stock.reserve(id_, 1), undo=Stock.release), cap=2
    )


def define(fn: Callable[[Saga, Order], Coroutine[Any, Any, Any]]) -> SagaDefinition[Any, Any]:
    return SagaDefinition(fn, fn.__name__, deadline_s=60.0, policy=PATIENT)


_FUNCTIONS = (raising, writing, not_undone, side_by_side, functions, in_a_list)
_ALL: list[SagaDefinition[Any, Any]] = [PLACE, THREE, *map(define, _FUNCTIONS)]
SAGAS = {each.name: each for each in _ALL}


class House:
    """An engine on a store of its own, on the real disk."""

    def __init__(self, store: SqliteStore, others: Participants) -> None:
        self.store, self.others = store, others
        self.numbers = itertools.count()
        runtime: Any = RealRuntime()
        self.engine: Engine = engine_on(store, others, runtime, _ALL)

    async def once(self, saga: str, *, is_bad: bool = False, within_s: float = 5.0) -> None:
        """Run a saga to its end, or until it is left."""
        id_ = f"A-{next(self.numbers)}"
        run = await self.engine.start(
            SAGAS[saga], Order(id_, is_bad=is_bad), id=id_, context=CONTEXT
        )
        await run.result(within_s)

    async def cancel(self) -> None:
        """Cancel a run in the middle of a step."""
        id_ = f"A-{next(self.numbers)}"
        run = await self.engine.start(THREE, Order(id_), id=id_, context=CONTEXT)
        await asyncio.sleep(0.01)
        await run.cancel("enough")
        await run.result(5.0)


def play(tmp_path: Path, main: Callable[[House], Awaitable[object]], **more: Any) -> Any:
    """Run a test at an engine that has recovered."""

    async def real() -> object:
        runtime = RealRuntime()
        store = await SqliteStore.open(
            str(tmp_path / "orders.db"),
            service="orders",
            schemas=[events.SCHEMA, SCHEMA, TABLES],
            runtime=runtime,
        )
        house = House(store, Participants(latency_s=0.0, **more))
        await house.engine.recover()
        try:
            return await main(house)
        finally:
            await house.engine.close()
            await store.close()

    return asyncio.run(real())


@pytest.mark.parametrize(
    ("saga", "more"),
    [
        ("place_order", {}),
        ("three_calls", {"refuses": {"bank.charge"}}),
        ("three_calls", {"faults": {"plant.book": [LOST, KeyError("bug")] * 99}}),
        ("three_calls", {"faults": {"plant.book": [Forbidden("not yours")] * 99}}),
        ("raising", {}),
        ("writing", {}),
        ("not_undone", {"refuses": {"bank.charge"}, "faults": {}}),
        ("functions", {}),
        ("in_a_list", {}),
        ("in_a_list", {"refuses": {"stock.reserve"}}),
        ("in_a_list", {"faults": {"stock.reserve": [KeyError("bug")] * 99}}),
        ("side_by_side", {"refuses": {"plant.book"}}),
        ("side_by_side", {"faults": {"plant.book": [CallError("no")] * 99}}),
    ],
)
def test_a_run_leaves_none(tmp_path: Path, saga: str, more: dict[str, Any]) -> None:
    """However it ends: completed, undone for a reason of any kind, or stuck."""

    async def main(house: House) -> Counter[str]:
        return await garbage_of(partial(house.once, saga, within_s=0.3))

    assert play(tmp_path, main, **more) == {}


def test_a_run_that_is_cancelled_leaves_none(tmp_path: Path) -> None:
    """In a step that does not answer."""
    hung: list[Fault] = [HANGS] * 99
    found = play(tmp_path, lambda house: garbage_of(house.cancel), faults={"stock.reserve": hung})
    assert found == {}


def test_a_start_that_is_refused_leaves_none(tmp_path: Path) -> None:
    """By its hook, by the id of another, or because nobody waits for it."""

    async def refuse(unit: Unit) -> None:
        raise Forbidden("undone before")

    async def main(house: House) -> list[Counter[str]]:
        engine = house.engine
        await house.once("three_calls")
        other = Order("other")
        starts: list[Callable[[], Awaitable[object]]] = [
            partial(engine.start, THREE, other, id="B-1", context=CONTEXT, begin=refuse),
            partial(engine.start, THREE, other, id="A-0", context=CONTEXT),
            partial(engine.start, THREE, other, id=" ", context=CONTEXT),
        ]
        found = [await garbage_of(each) for each in starts]
        return [*found, await garbage_of(partial(cancelled, partial(house.once, "three_calls")))]

    assert play(tmp_path, main) == [{}] * 4


def test_a_run_that_another_engine_took_over_leaves_none(tmp_path: Path) -> None:
    """Its records are refused, in a batch and in a unit of its own."""

    async def main(house: House) -> list[Counter[str]]:
        async def taken_over(saga: str) -> None:
            old, new = House(house.store, house.others), House(house.store, house.others)
            old.numbers = new.numbers = house.numbers
            await old.engine.recover()
            running = asyncio.ensure_future(old.once(saga))
            await asyncio.sleep(0.005)
            await new.engine.recover()
            await asyncio.wait([running])
            while new.engine._executions:  # it has continued the run
                await asyncio.sleep(0.001)
            await old.engine.close()
            await new.engine.close()

        return [await garbage_of(partial(taken_over, each)) for each in ("three_calls", "raising")]

    assert play(tmp_path, main) == [{}] * 2
