"""Sagas that sleep: out of memory, over restarts, until they are due or their deadline is."""

from __future__ import annotations

import asyncio
import datetime as dt
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from saga_fakes import (
    CONTEXT,
    LOST,
    ON_SQLITE,
    PATIENT,
    PLACE,
    Bank,
    Order,
    Participants,
    Plant,
    Stock,
    at_work,
    create_order,
    open_store,
    reject_order,
    rows,
)
from synchromesh.errors import (
    ConfigError,
    ContractError,
    SagaLocked,
    SagaUndone,
    Stuck,
    UnknownSaga,
)
from synchromesh.saga import Engine, EngineOptions, Saga, SagaDefinition
from synchromesh.saga.records import RepairVerb, SagaStatus
from synchromesh.saga.repair import RepairWish
from synchromesh.store import Unit
from synchromesh.testing import SimRuntime, World, run
from virtual_postgres import few, is_on

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 10_000.0


async def sleepy(s: Saga, order: Order) -> str:
    """A hold that expires: it sleeps before its pivot, and again behind it."""
    await s.write(create_order, order, undo=reject_order)
    hold = await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
    await s.sleep("10m")
    await s.call(Bank.charge(order.id), pivot=True)
    await s.sleep("2h")
    booked = await s.call(Plant.book(hold.id))
    return booked.id


SLEEPY = SagaDefinition(sleepy, "sleepy", deadline_s=3600.0, policy=PATIENT)


def test_a_run_that_sleeps_is_nowhere_but_in_the_store() -> None:
    """It leaves memory and comes back when it is due; who waits for its result, waits on."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others, SLEEPY) as engine:
            now = asyncio.get_running_loop().time
            began_s = now()
            handle = await engine.start(SLEEPY, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(60.0) is None
            assert (repr(engine), await engine.statuses()) == (
                "<Engine orders 0 in flight>", {"sleeping": 1},
            )  # fmt: skip
            (asleep,) = await engine.runs("sleeping")
            assert asleep.reason.startswith("until ")
            assert others.log == ["stock.reserve"]
            assert await handle.result(FOREVER_S) == "plant.book/2"
            assert 7800.0 <= now() - began_s < 7801.0
            assert engine.counts["woken"] == 2
            assert engine.counts["recovered"] == 0

    run(main, until_s=1e5)


@pytest.mark.parametrize("away_s", [10.0, 1000.0])
def test_a_sleep_goes_on_while_the_process_is_down(away_s: float) -> None:
    """Whoever comes back in time sleeps on; whoever comes late wakes at once."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        now = asyncio.get_running_loop().time
        began_s = now()
        async with at_work(runtime, others, SLEEPY) as engine:
            await engine.start(SLEEPY, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(1.0)
        await asyncio.sleep(away_s)
        async with at_work(runtime, others, SLEEPY) as engine:
            assert engine.counts["recovered"] == 0, "what sleeps is not loaded"
            while "bank.charge" not in others.log:
                await asyncio.sleep(0.5)
            assert now() - began_s == pytest.approx(max(600.0, away_s), abs=3.0)

    run(main, until_s=1e5)


def test_the_deadline_ends_a_sleep_before_the_pivot() -> None:
    """A run is undone at its deadline, not when it would have waked."""

    async def main(runtime: SimRuntime) -> None:
        others, saga = Participants(), replace(SLEEPY, deadline_s=300.0)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(299.0) is None
            with pytest.raises(SagaUndone, match="its deadline passed"):
                await handle.result(2.0)
        assert +others.live == {}
        assert await rows(runtime, "select wake_us from sm_saga") == [(None,)]

    run(main, until_s=1e5)


def test_what_a_run_has_slept_behind_its_pivot_is_no_time_of_its_steps() -> None:
    """They have their deadline from the moment it wakes."""

    async def main(runtime: SimRuntime) -> None:
        policy = replace(PATIENT, after_pivot_deadline_s=60.0)
        others = Participants(faults={"plant.book": [LOST] * 9})
        saga = replace(SLEEPY, policy=policy)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(FOREVER_S) is not None

    run(main, until_s=1e5)


@pytest.mark.parametrize("is_by_hand", [True, False])
def test_a_run_that_sleeps_is_cancelled_at_once(is_by_hand: bool) -> None:
    """It wakes for its undo (S9)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others, SLEEPY) as engine:
            handle = await engine.start(SLEEPY, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(1.0)
            if is_by_hand:
                await engine.repair("A-1", RepairVerb.CANCEL, RepairWish("ada", "enough"))
            else:
                await handle.cancel("enough")
            with pytest.raises(SagaUndone, match="cancelled: enough"):
                await handle.result(5.0)
        assert +others.live == {}

    run(main)


def test_a_cancel_while_a_run_falls_asleep_is_not_lost() -> None:
    """At whatever turn of the loop it comes, the run is undone or has charged."""

    async def main(runtime: SimRuntime, at_s: float) -> str:
        others, saga = Participants(), replace(SLEEPY, lock_key=lambda order: order.id)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(at_s)
            status = (await engine.runs())[0].status
            await handle.cancel("enough")
            with pytest.raises(SagaUndone):
                await handle.result(60.0)
            assert +others.live == {}
            return status

    seen = {run(lambda r, n=n: main(r, n * 0.0005)) for n in few(range(25), 5)}  # type: ignore[misc]
    assert seen == {"running", "sleeping"}


def test_a_run_that_sleeps_keeps_its_lock() -> None:
    """It has not ended."""

    async def main(runtime: SimRuntime) -> None:
        saga = replace(SLEEPY, lock_key=lambda order: "all")
        async with at_work(runtime, Participants(), saga) as engine:
            await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(1.0)
            with pytest.raises(SagaLocked):
                await engine.start(saga, Order("A-2"), id="A-2", context=CONTEXT)
            again = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            assert await again.result(1.0) is None

    run(main)


def test_a_run_that_waited_for_code_sleeps_on() -> None:
    """What it slept for is not over because it could not be waked."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others, SLEEPY) as engine:
            await engine.start(SLEEPY, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(1.0)
        async with at_work(runtime, others, PLACE) as engine:
            assert await engine.statuses() == {"sleeping": 1}
            await asyncio.sleep(700.0)
            assert await engine.statuses() == {"waiting": 1}
        async with at_work(runtime, others, SLEEPY) as engine:
            await asyncio.sleep(1.0)
            assert others.live["bank.charge"] == 1
            assert await engine.statuses() == {"sleeping": 1}, "the second one"
        async with at_work(runtime, others, PLACE) as engine:
            await asyncio.sleep(7200.0)
            assert await engine.statuses() == {"waiting": 1}
        async with at_work(runtime, others, SLEEPY) as engine:
            ended = await engine.conclusion("A-1", 60.0)
            assert ended is not None
            assert ended.status is SagaStatus.COMPLETED

    run(main, until_s=1e5)


def test_until_a_moment_and_what_is_no_moment() -> None:
    """One that has passed wakes at once; one without a time zone is none, and nothing is tried."""
    at = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)

    async def past(s: Saga, order: Order) -> str:
        await s.until(at)
        return (await s.call(Stock.reserve(order.id, 1), undo=Stock.release)).id

    async def main(runtime: SimRuntime) -> None:
        saga = SagaDefinition(past, "past", policy=PATIENT)
        async with at_work(runtime, Participants(), saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(1.0) == "stock.reserve/0"
            assert engine.counts["woken"] == 0

    run(main)
    s = Saga("A-1", "t")
    with pytest.raises(ContractError, match="no time zone"):
        s.until(dt.datetime(2000, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigError, match="'soon' is not a duration"):
        s.sleep("soon")
    with pytest.raises(ContractError, match="'sleep' sleeps; await it by itself"):
        s.all(s.sleep("1s"), s.sleep("2s"))


@ON_SQLITE
def test_a_hundred_thousand_sleep_in_no_memory_and_wake_a_few_at_a_time() -> None:
    """None is loaded before it is due, and of those that are due no more than the bound."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others, SLEEPY) as engine:
            await engine.start(SLEEPY, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(1.0)
        store = await open_store(runtime)

        async def multiply(unit: Unit) -> None:
            columns = (
                "name, version, lock_key, digest, input, status, reason, owner, trace_id, span_id, "
                "caller, principal, deadline_us, shard, result, started_us, ended_us"
            )
            await unit.execute(
                "with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000) "
                f"insert into sm_saga(id, {columns}, wake_us) select 'B-' || i, {columns}, "
                "wake_us + case when i <= 300 then 0 else 86400000000 end from sm_saga, n"
            )
            await unit.execute(
                "with recursive n(i) as (select 1 union all select i + 1 from n where i < 300) "
                "insert into sm_saga_record select 'B-' || i, seq, kind, step, attempt, digest, "
                "body, at_us from sm_saga_record, n where saga = 'A-1'"
            )

        await store.write(multiply, name="multiply")
        await store.close()
        most = 0
        options = EngineOptions(in_flight_max=50)
        async with at_work(runtime, others, SLEEPY, options=options) as engine:
            in_memory: dict[str, Any] = engine._executions
            assert (await engine.statuses(), in_memory) == ({"sleeping": 100_001}, {})
            await asyncio.sleep(590.0)
            assert not in_memory
            while others.live["bank.charge"] < 301:
                await asyncio.sleep(0.01)
                most = max(most, len(in_memory))
            await asyncio.sleep(1.0)
            assert not in_memory
            assert await engine.statuses() == {"sleeping": 100_001}
        assert 20 < most <= 66

    run(main, until_s=1e5)


# -- events ----------------------------------------------------------------------------------------


class Approved(msgspec.Struct, frozen=True):
    by: str


async def approval(s: Saga, order: Order) -> str:
    """A hold that a person approves within ten minutes, twice, or that is let go."""
    await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
    first = await s.event(Approved, within="10m")
    if first is None:
        return "nobody"
    second = await s.event(Approved, within="10m", otherwise="one")
    return f"{first.by} and {second if isinstance(second, str) else second.by}"


APPROVAL = SagaDefinition(approval, "approval", deadline_s=7200.0, policy=PATIENT)


async def tell(engine: Engine, event: object, id: str = "A-1") -> bool:  # noqa: A002
    return await engine._store.write(lambda unit: APPROVAL.tell(unit, id, event), name="tell")


@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_run_is_told_an_event_early_or_while_it_sleeps(early: int) -> None:
    """What came before it asked is kept; what comes while it sleeps wakes it at once."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.3)
        async with at_work(runtime, others, APPROVAL) as engine:
            handle = await engine.start(APPROVAL, Order("A-1"), id="A-1", context=CONTEXT)
            names = ["ada", "bob"]
            for name in names[:early]:
                assert await tell(engine, Approved(name))
            await asyncio.sleep(5.0)
            for name in names[early:]:
                assert await handle.result(0.0) is None
                assert await tell(engine, Approved(name))
                await asyncio.sleep(1.0)
            assert await handle.result(1.0) == "ada and bob"
            assert not await tell(engine, Approved("eve")), "it has ended"
            with pytest.raises(UnknownSaga, match="nobody was told"):
                await tell(engine, Approved("eve"), "A-2")
        assert await rows(runtime, "select * from sm_saga_signal") == []

    run(main)


@pytest.mark.parametrize(("told", "ends"), [([], "nobody"), (["ada"], "ada and one")])
def test_an_event_that_does_not_come_is_what_stands_for_it(told: list[str], ends: str) -> None:
    """Each wait has its time, over restarts; the result is the same in every re-run."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others, APPROVAL) as engine:
            await engine.start(APPROVAL, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(1.0)
        async with at_work(runtime, others, APPROVAL) as engine:
            for name in told:
                await tell(engine, Approved(name))
            handle = await engine.start(APPROVAL, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(590.0) is None
            await asyncio.sleep(20.0)
        async with at_work(runtime, others, APPROVAL) as engine:
            handle = await engine.start(APPROVAL, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(700.0) == ends

    run(main)


def test_an_event_that_is_told_at_any_moment_wakes_the_run_once() -> None:
    """Before, while and after it falls asleep; it never sleeps through one."""

    async def main(runtime: SimRuntime, at_s: float) -> str:
        async with at_work(runtime, Participants(), APPROVAL) as engine:
            handle = await engine.start(APPROVAL, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(at_s)
            status = (await engine.runs())[0].status
            await asyncio.gather(tell(engine, Approved("ada")), tell(engine, Approved("bob")))
            assert await handle.result(5.0) in ("ada and bob", "bob and ada")
            return status

    seen = {run(lambda r, n=n: main(r, n * 0.0005)) for n in few(range(20), 5)}  # type: ignore[misc]
    assert seen == {"running", "sleeping"}


def test_a_crash_at_any_step_loses_no_event_and_takes_none_twice() -> None:
    """The event goes with the record that took it."""
    seen: set[int] = set()
    step = 1
    while True:
        world = World(seed=1)
        told: list[str] = []

        async def main(runtime: SimRuntime, told: list[str] = told) -> None:
            async with at_work(runtime, Participants(), APPROVAL) as engine:
                handle = await engine.start(APPROVAL, Order("A-1"), id="A-1", context=CONTEXT)
                ((sent,),) = await engine._store.read(
                    "select (select count(*) from sm_saga_signal) + (select count(*) from "
                    "sm_saga_record where kind = 'woken') from (select 1)"
                )
                assert isinstance(sent, int)
                for name in ("ada", "bob")[sent:]:
                    await tell(engine, Approved(name))
                told.append(str(await handle.result(60.0)))

        async def watch(told: list[str] = told) -> None:
            for _ in range(400):
                await asyncio.sleep(0.05)
                if told:
                    return

        def crash(node: Any, at: int = step) -> None:
            if node.steps == at and not seen.intersection({at}):
                seen.add(at)
                node.crash(0.05)

        node = world.node("orders", main)
        world.on_step = crash
        node.start()
        world.run(watch())
        assert told == ["ada and bob"], step
        if step not in seen:
            break
        step += 60 if is_on() else 3
    assert step > 30


def test_what_a_run_was_told_and_cannot_read_is_for_a_person() -> None:
    """An event of another form sticks the run that asks for it, with the reason."""

    class Other(msgspec.Struct, frozen=True):
        count: int

    Other.__name__ = "Approved"

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants(), APPROVAL) as engine:
            handle = await engine.start(APPROVAL, Order("A-1"), id="A-1", context=CONTEXT)
            await tell(engine, Other(1))
            with pytest.raises(Stuck, match="what it was told is no Approved: "):
                await handle.result(5.0)
            await engine.repair("A-1", RepairVerb.UNDO, RepairWish("ada", "no"))
            with pytest.raises(SagaUndone):
                await handle.result(5.0)

    run(main)
