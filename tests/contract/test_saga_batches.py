"""What the runs of an engine record is written in batches, and each part fails alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from saga_fakes import (
    CONTEXT,
    HANGS,
    PLACE,
    THREE,
    Order,
    Participants,
    at_work,
    engine_on,
    has_left,
    open_store,
    rows,
)
from synchromesh.errors import (
    ContractError,
    Fenced,
    ForeignAwait,
    SagaConflict,
    SagaLocked,
    StatementFailed,
    StoreFull,
    UnitTooLong,
)
from synchromesh.saga import Engine, SagaDefinition, SagaRun
from synchromesh.store import Store, Unit
from synchromesh.testing import SimRuntime, run
from virtual_postgres import few

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 10_000.0


async def start(
    engine: Engine,
    id: str,  # noqa: A002
    definition: SagaDefinition[Any, Any] = THREE,
    **more: Any,
) -> SagaRun[Any]:
    return await engine.start(definition, Order(id), id=id, context=CONTEXT, **more)


async def start_all(engine: Engine, count: int) -> list[SagaRun[Any]]:
    return list(await asyncio.gather(*(start(engine, f"B-{n}") for n in range(count))))


class Watched:
    """A store that counts the units which it is asked for, and may refuse or delay them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.units: Counter[str] = Counter()
        self.refuses: list[Exception] = []
        self.delay_s = 0.0

    async def write(self, body: Any, *, name: str) -> Any:
        self.units[name] += 1
        if self.refuses:
            raise self.refuses.pop()
        await asyncio.sleep(self.delay_s)
        return await self._store.write(body, name=name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_what_is_recorded_in_one_turn_of_the_loop_is_one_unit() -> None:
    """Starts and records of all runs share it: fifty runs take no more units than one."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.0)
        watched: Any = Watched(await open_store(runtime))
        engine = engine_on(watched, others, runtime)
        await engine.recover()
        watched.units.clear()
        for count in (1, 50):
            runs = await asyncio.gather(*(start(engine, f"{count}-{n}") for n in range(count)))
            assert None not in [await each.result(FOREVER_S) for each in runs]
        await engine.close()
        await watched.close()
        # The seed decides the order of tasks, so that a run may miss the batch of the others.
        assert set(watched.units) == {"saga records"}
        assert 8 <= watched.units["saga records"] <= 16

    run(main)


def test_a_single_step_is_tried_in_the_task_of_its_run() -> None:
    """Only steps side by side have tasks of their own, and no commit has one."""

    async def main(runtime: SimRuntime) -> None:
        names: list[str] = []

        class Noting(Participants):
            async def send(self, *args: Any, **more: Any) -> bytes:
                task = asyncio.current_task()
                names.append(task.get_name() if task else "")
                return await super().send(*args, **more)

        async with at_work(runtime, Noting()) as engine:
            await (await start(engine, "A-1")).result(FOREVER_S)
            assert names == ["saga A-1"] * 3
            names.clear()
            await (await start(engine, "A-2", PLACE)).result(FOREVER_S)
            assert sorted(names) == [
                "saga A-2", "saga A-2", "saga A-2 plant.quote#1", "saga A-2 stock.reserve#1",
            ]  # fmt: skip

    run(main)


def test_a_start_that_is_refused_is_refused_alone() -> None:
    """Whatever one start of a batch raises or clashes with, the others begin, each once."""

    async def refuse(unit: Unit) -> None:
        await unit.execute("insert into orders values ('mark', 'begun', 1)")
        raise Fenced("another run has concluded the command")

    async def mark(unit: Unit) -> None:
        await unit.execute("insert into orders values ('mine', 'begun', 1)")

    async def lose(unit: Unit) -> None:
        await unit.execute("insert into orders values ('lost', 'begun', 1)")

    async def main(runtime: SimRuntime) -> None:
        locking = replace(THREE, name="locking", lock_key=lambda order: "one")
        async with at_work(runtime, Participants(), THREE, locking) as engine:
            await (await start(engine, "old")).result(FOREVER_S)
            outcomes = await asyncio.gather(
                start(engine, "A-1"),
                start(engine, "A-2", begin=refuse),
                start(engine, "old"),
                engine.start(THREE, Order("other"), id="old", context=CONTEXT),
                start(engine, "A-3", begin=mark),
                engine.start(THREE, Order("other"), id="old", context=CONTEXT, begin=lose),
                start(engine, "L-1", locking),
                start(engine, "L-2", locking),
                return_exceptions=True,
            )
            kinds = [type(each) for each in outcomes[:6]]
            assert kinds == [SagaRun, Fenced, SagaRun, SagaConflict, SagaRun, SagaConflict]
            assert Counter(type(each) for each in outcomes[6:]) == {SagaRun: 1, SagaLocked: 1}
            for each in outcomes:
                if isinstance(each, SagaRun):
                    assert await each.result(FOREVER_S) is not None
            assert engine.counts["started"] == 4
        assert await rows(runtime, "select id from orders") == [("mine",)]
        told = "select stream, count(*) from sm_event where name = 'orders.saga_started' group by 1"
        assert {count for _, count in await rows(runtime, told)} == {1}

    for seed in few(range(10), 2):
        run(main, seed=seed)


@pytest.mark.parametrize(
    ("sql", "value"), [("insert into nowhere values (?)", 1), ("select ?", 2**70)]
)
def test_a_start_that_the_store_cannot_take_fails_alone(sql: str, value: int) -> None:
    """A wrong statement or value of one start is no trouble of the store: the others begin."""

    async def wrong(unit: Unit) -> None:
        await unit.execute(sql, value)

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            outcomes = await asyncio.gather(
                start(engine, "A-1"),
                start(engine, "A-2", begin=wrong),
                start(engine, "A-3"),
                return_exceptions=True,
            )
            assert [type(each) for each in outcomes] == [SagaRun, StatementFailed, SagaRun]

    run(main)


def test_a_lock_key_is_a_text_or_none() -> None:
    """Another value is refused with the name of the saga, before it reaches the database."""

    async def main(runtime: SimRuntime) -> None:
        keys: dict[str, Any] = {"A-1": "one", "A-2": 7, "A-3": None}
        locking = replace(THREE, lock_key=lambda order: keys[order.id])
        async with at_work(runtime, Participants(), locking) as engine:
            for id_ in ("A-1", "A-3"):
                await start(engine, id_, locking)
            with pytest.raises(ContractError, match="key of saga 'three_calls' is of type int"):
                await start(engine, "A-2", locking)
            assert engine.counts["started"] == 2

    run(main)


def test_a_run_whose_records_clash_leaves_memory_alone() -> None:
    """The number of a record is the fence of its run: the others of the batch are written."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS] * 9})
        store = await open_store(runtime)
        engine = engine_on(store, others, runtime)
        await engine.recover()
        runs = await start_all(engine, 9)
        await asyncio.sleep(0.1)

        async def late(unit: Unit) -> None:
            await unit.execute(
                "insert into sm_saga_record select saga, seq + 1, kind, step, attempt + 1, digest, "
                "body, at_us from sm_saga_record where saga = 'B-4'"
            )

        await store.write(late, name="late")
        for n, each in enumerate(runs):
            if n == 4:
                await has_left(each)
            else:
                assert await each.result(FOREVER_S) is not None
        await engine.close()
        await store.close()

    run(main)


def test_a_record_that_is_missing_makes_its_run_wait() -> None:
    """Numbers ascend by one from 1, so that a hole tells of an edited database."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [HANGS] * 9})
        async with at_work(runtime, others) as engine:
            await start(engine, "A-1")
            await asyncio.sleep(0.1)
        store = await open_store(runtime)
        await store.write(
            lambda unit: unit.execute("delete from sm_saga_record where seq = 2"), name="edit"
        )
        await store.close()
        async with at_work(runtime, others) as engine:
            (left,) = await engine.runs("waiting")
            assert "has 2 records, and the last has number 3" in left.reason

    run(main)


@pytest.mark.parametrize("trouble", [StoreFull("no page"), UnitTooLong("a slow disk")])
def test_records_wait_for_a_store_in_trouble_and_starts_do_not(trouble: Exception) -> None:
    """Who can ask again is told at once; what has happened is written however late (S4)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        watched: Any = Watched(await open_store(runtime))
        engine = engine_on(watched, others, runtime)
        await engine.recover()
        runs = await start_all(engine, 3)
        await asyncio.sleep(0.0015)
        watched.refuses = [trouble] * 30
        with pytest.raises(type(trouble)):
            await start(engine, "A-1")
        assert None not in [await each.result(FOREVER_S) for each in runs]
        assert watched.refuses == []
        assert await (await start(engine, "A-1")).result(FOREVER_S) is not None
        await engine.close()
        await watched.close()

    run(main)


def test_nothing_is_sent_before_what_it_builds_on_is_written() -> None:
    """While records are on their way to the disk, their runs send no further step (S4)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        watched: Any = Watched(await open_store(runtime))
        engine = engine_on(watched, others, runtime)
        await engine.recover()
        runs = await start_all(engine, 3)
        watched.delay_s = 10.0
        await asyncio.sleep(9.0)
        # That the first is begun was written with the start.
        assert Counter(name for name, *_ in others.sent) == {"stock.reserve": 3}
        watched.delay_s = 0.0
        assert None not in [await each.result(FOREVER_S) for each in runs]
        await engine.close()
        await watched.close()

    run(main)


def test_a_unit_starts_no_saga() -> None:
    """A start is durable by itself; within a unit it would be so before that."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            with pytest.raises(ForeignAwait, match="a start of saga 'three_calls'"):
                await engine._store.write(lambda unit: start(engine, "A-1"), name="unit")
            assert await engine.runs() == []

    run(main)
