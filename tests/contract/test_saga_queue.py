"""More sagas than there are places: the queue of starts, and recovery at its pace."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from saga_fakes import (
    CONTEXT,
    HANGS,
    ON_SQLITE,
    PLACE,
    THREE,
    Fault,
    Order,
    Participants,
    at_work,
    engine_on,
    open_store,
    rows,
)
from synchromesh.calls.contract import Operation
from synchromesh.context import CallContext
from synchromesh.errors import NoInstance, SagaConflict, SagaLocked, SagaUndone, Shed, TimedOut
from synchromesh.saga import Engine, EngineOptions, SagaDefinition, SagaRun
from synchromesh.testing import SimRuntime, run

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 10_000.0
NARROW = EngineOptions(in_flight_max=4, queue_max=6)


async def start(engine: Engine, n: int, definition: Any = THREE) -> SagaRun[Any]:
    return await engine.start(definition, Order(f"A-{n}"), id=f"A-{n}", context=CONTEXT)


def test_what_is_started_beyond_the_places_is_durable_and_queued() -> None:
    """Ten starts at four places: four at work, six as rows; they end in their order."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.3)
        async with at_work(runtime, others, THREE, options=NARROW) as engine:
            runs = [await start(engine, n) for n in range(10)]
            assert await engine.statuses() == {"running": 4, "queued": 6}
            assert len(engine._executions) == 4
            assert await rows(runtime, "select count(*) from sm_saga where status='queued'") == [
                (6,)
            ]
            assert len(await engine.runs("queued")) == 6
            for each in runs:
                assert await each.result(FOREVER_S) is not None
            assert engine.counts["left the queue"] == 6
            assert engine.counts["started"] == engine.counts["completed"] == 10
        began = await rows(
            runtime,
            "select saga from sm_saga_record where kind = 'begun' and step = 'stock.reserve#1' "
            "order by at_us, saga",
        )
        assert [saga for (saga,) in began] == [f"A-{n}" for n in range(10)]

    run(main)


def test_a_full_queue_sheds_with_when_to_ask_again() -> None:
    """Retry-After is how long the last one of the queue has waited, a second at least."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.4)
        async with at_work(runtime, others, THREE, options=NARROW) as engine:
            for n in range(10):
                await start(engine, n)
            with pytest.raises(Shed, match="6 sagas of orders wait") as at_once:
                await start(engine, 10)
            assert at_once.value.retry_after_s == 1.0
            await asyncio.sleep(3.0)  # the first ones are done, and four have left the queue
            for n in range(11, 15):
                await start(engine, n)
            with pytest.raises(Shed) as later:
                await start(engine, 15)
            assert later.value.retry_after_s == pytest.approx(2.4, abs=0.3)
        assert await rows(runtime, "select count(*) from sm_saga where id = 'A-10'") == [(0,)]

    run(main)


def test_a_repeated_start_is_answered_though_the_queue_is_full() -> None:
    """The same id and input is the same run, at work or queued; another input is a conflict."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.3)
        async with at_work(runtime, others, THREE, options=NARROW) as engine:
            for n in range(10):
                await start(engine, n)
            for n in (0, 9):
                assert await (await start(engine, n)).result(0.1) is None
                with pytest.raises(SagaConflict):
                    await engine.start(THREE, Order("other"), id=f"A-{n}", context=CONTEXT)
            assert await (await start(engine, 9)).result(FOREVER_S) is not None
            assert await (await start(engine, 9)).result(FOREVER_S) is not None
        assert max(others.live.values()) == 10
        assert engine.counts["started"] == 10

    run(main)


def test_a_queued_run_holds_its_lock() -> None:
    """Its semantic lock is taken by its start, whenever it begins."""

    async def main(runtime: SimRuntime) -> None:
        locking = SagaDefinition(THREE.fn, "locking", deadline_s=60.0, lock_key=lambda o: o.id)
        options = EngineOptions(in_flight_max=1)
        async with at_work(runtime, Participants(), locking, options=options) as engine:
            await engine.start(locking, Order("A"), id="1", context=CONTEXT)
            queued = await engine.start(locking, Order("B"), id="2", context=CONTEXT)
            with pytest.raises(SagaLocked, match="'2'"):
                await engine.start(locking, Order("B"), id="3", context=CONTEXT)
            await queued.result(FOREVER_S)

    run(main)


def test_a_queued_run_is_cancelled_and_leaves_nothing() -> None:
    """Nothing was asked of anybody."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.3)
        options = EngineOptions(in_flight_max=1)
        async with at_work(runtime, others, THREE, options=options) as engine:
            await start(engine, 0)
            queued = await start(engine, 1)
            await queued.cancel("not wanted any more")
            with pytest.raises(SagaUndone, match="not wanted"):
                await queued.result(FOREVER_S)
        assert not [each for each in others.sent if each[2].key.startswith("A-1")]

    run(main)


def test_the_queue_survives_a_restart_in_its_order() -> None:
    """What was acknowledged goes on: those at work before those in the queue."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS] * 4})
        async with at_work(runtime, others, THREE, options=NARROW) as engine:
            for n in range(10):
                await start(engine, n)
        async with at_work(runtime, others, THREE, options=NARROW) as engine:
            for n in range(10):
                ended = await engine.conclusion(f"A-{n}", FOREVER_S)
                assert ended is not None
            assert engine.counts["recovered"] == 4
            assert engine.counts["left the queue"] == 6
            assert await engine.statuses() == {"completed": 10}
        assert others.live == {"stock.reserve": 10, "plant.book": 10, "bank.charge": 10}

    run(main)


def test_the_deadline_of_a_queued_run_counts() -> None:
    """One that comes too late for its deadline is undone, without a step."""

    async def main(runtime: SimRuntime) -> None:
        hurried = SagaDefinition(THREE.fn, "hurried", deadline_s=2.0, policy=THREE.policy)
        others = Participants(faults={"stock.reserve": [HANGS]}, latency_s=0.4)
        options = EngineOptions(in_flight_max=1)
        async with at_work(runtime, others, THREE, hurried, options=options) as engine:
            await start(engine, 0)
            patient = await start(engine, 1)
            late = await engine.start(hurried, Order("L"), id="L", context=CONTEXT)
            with pytest.raises(SagaUndone, match="its deadline passed"):
                await late.result(FOREVER_S)
            assert await patient.result(FOREVER_S) is not None
        assert not [each for each in others.sent if each[2].key.startswith("L")]

    run(main)


# -- recovery ------------------------------------------------------------------------------------


class Narrow(Participants):
    """Participants that are overrun by more than so many at once: then nobody has an answer."""

    busy = 0
    most = 0

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        """Take longer the more there are; the caller's patience ends after a second."""
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            took_s = 0.02 * max(1.0, self.busy / 15)
            if took_s > 0.15:
                await asyncio.sleep(1.0)
                raise TimedOut(f"{operation.full_name} did not answer in time")
            await asyncio.sleep(took_s)
            return await super().send(operation, arguments, context=context, timeout_s=timeout_s)
        finally:
            self.busy -= 1


async def interrupted(runtime: SimRuntime, count: int) -> None:
    """Leave so many runs in their second step."""
    hangs: list[Fault] = [HANGS for _ in range(count * 3)]
    others = Participants(faults={"plant.book": hangs})
    async with at_work(runtime, others, THREE, options=EngineOptions(in_flight_max=count)) as it:
        for n in range(count):
            await start(it, n)
        while len([1 for sent in others.sent if sent[0] == "plant.book"]) < count:
            await asyncio.sleep(0.1)


@ON_SQLITE
def test_none_is_undone_by_the_rush_of_a_recovery() -> None:
    """Six hundred come back to those who can take a hundred at once: all are completed."""

    async def main(runtime: SimRuntime) -> None:
        count = 600
        await interrupted(runtime, count)
        others = Narrow(latency_s=0.0)
        async with at_work(runtime, others, THREE) as engine:
            for n in range(count):
                ended = await engine.conclusion(f"A-{n}", FOREVER_S)
                assert ended is not None
            assert await engine.statuses() == {"completed": count}
            assert engine.counts["recovered"] == count
        assert others.most <= 200, "far fewer at once than there are"
        assert max(others.live.values()) == count

    run(main)


def test_new_work_is_served_while_thousands_are_recovered() -> None:
    """`recover` returns at once, and new runs end among those that come back."""

    async def main(runtime: SimRuntime) -> None:
        count = 400
        await interrupted(runtime, count)
        others = Participants(latency_s=0.05)
        async with at_work(runtime, others, THREE) as engine:
            assert len(engine._executions) <= 32, "recover waits for none but the first ones"
            ended_before = []
            for n in range(10):
                new = await engine.start(THREE, Order(f"N-{n}"), id=f"N-{n}", context=CONTEXT)
                assert await new.result(FOREVER_S) is not None
                ended_before.append((await engine.statuses())["completed"])
                assert (await engine.statuses()).get("queued", 0) == 0
            assert ended_before[0] < count / 2
            for n in range(count):
                assert await engine.conclusion(f"A-{n}", FOREVER_S) is not None

    run(main)


def test_a_participant_that_is_down_keeps_no_run_back_that_needs_another() -> None:
    """Runs that wait for their next attempt make room for those behind them."""

    async def main(runtime: SimRuntime) -> None:
        await interrupted(runtime, 100)
        async with at_work(runtime, Participants(faults={"stock.reserve": [HANGS]}), PLACE) as it:
            await start(it, 200, PLACE)

        class NoPlant(Participants):
            """The plant is down, the others are up."""

            async def send(self, operation: Operation[..., Any], *args: Any, **more: Any) -> bytes:
                """Refuse what goes to the plant's bookings."""
                if operation.full_name == "plant.book":
                    await asyncio.sleep(0.01)
                    raise NoInstance("the plant is not there")
                return await super().send(operation, *args, **more)

        others = NoPlant()
        async with at_work(runtime, others, PLACE, THREE) as engine:
            await asyncio.sleep(20.0)
            assert others.live["bank.charge"] == 1, "the last one has come as far as its pivot"
            assert (await engine.statuses()) == {"running": 101}

    run(main)


def test_a_page_of_runs_is_read_by_two_statements() -> None:
    """A recovery asks its database twice for a page, not twice for each run."""

    async def main(runtime: SimRuntime) -> None:
        await interrupted(runtime, 200)
        store = await open_store(runtime)
        asked = []
        read = store.read

        async def counted(sql: str, *values: Any) -> Any:
            asked.append(sql)
            return await read(sql, *values)

        store.read = counted
        engine = engine_on(store, Participants(), runtime, [THREE])
        await engine.recover()
        task = asyncio.ensure_future(engine.keep_going())
        while engine.counts["completed"] < 200:
            await asyncio.sleep(0.01)
        task.cancel()
        await engine.close()
        await store.close()
        assert len(asked) < 200 / 2

    run(main)
