"""The saga engine on the SQLite store, in virtual time: what it promises while nothing crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import pytest

from saga_fakes import (
    CONTEXT,
    DUMB,
    HANGS,
    LOST,
    PATIENT,
    PLACE,
    THREE,
    Bank,
    Created,
    Declined,
    Order,
    OutOfStock,
    Participants,
    Placed,
    Plant,
    Stock,
    at_work,
    create_order,
    engine_on,
    open_store,
    reject_order,
    rows,
)
from synchromesh.calls import Operation
from synchromesh.eager import starter
from synchromesh.errors import (
    BadRequest,
    CircuitOpen,
    ContractError,
    Forbidden,
    Rejection,
    SagaConflict,
    SagaError,
    SagaGone,
    SagaLocked,
    SagaUndone,
    Shed,
    Stuck,
    UnknownSaga,
    VersionConflict,
)
from synchromesh.saga import Engine, EngineOptions, Saga, SagaDefinition, SagaRun
from synchromesh.store import Unit
from synchromesh.telemetry import MemoryRing
from synchromesh.testing import SimRuntime, run
from virtual_postgres import few

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 10_000.0


async def start(
    engine: Engine,
    definition: SagaDefinition[Any, Any],
    order: Order | None = None,
    *,
    id: str = "A-1",  # noqa: A002
) -> SagaRun[Any]:
    return await engine.start(definition, order or Order(id), id=id, context=CONTEXT)


def define(
    fn: Callable[[Saga, Order], Coroutine[Any, Any, Any]], **more: Any
) -> SagaDefinition[Any, Any]:
    return SagaDefinition(fn, fn.__name__, **{"deadline_s": 60.0, "policy": PATIENT, **more})


async def reason_of(engine: Engine, id: str = "A-1") -> str:  # noqa: A002
    return (await engine.show(id)).summary.reason


async def kinds_of(engine: Engine, id: str = "A-1") -> list[str]:  # noqa: A002
    return [f"{line.kind} {line.step}".strip() for line in (await engine.show(id)).lines]


def test_a_saga_completes_and_its_effects_are_where_they_belong() -> None:
    """A write, two calls side by side, a pivot and a call after it, each once."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others) as engine:
            placed = await (await start(engine, PLACE)).result(FOREVER_S)
        assert placed == Placed("A-1", "stock.reserve/0", "plant.book/2")
        assert others.live == {"stock.reserve": 1, "bank.charge": 1, "plant.book": 1}
        assert await rows(runtime, "select * from orders") == [("A-1", "open", 1)]

    run(main)


def test_a_rejection_undoes_in_reverse_and_the_starter_is_told_which() -> None:
    """The rejection that turned the run is raised, of its class, once all is undone."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"bank.charge"})
        async with at_work(runtime, others) as engine:
            handle = await start(engine, THREE)
            with pytest.raises(Declined, match="says no"):
                await handle.result(FOREVER_S)
            again = await start(engine, THREE)
            with pytest.raises(Declined, match="says no"):
                await again.result(0.0)
        assert others.log[-2:] == ["plant.unbook", "stock.release"]
        assert +others.live == {}

    run(main)


def test_keys_and_undo_arguments_are_those_that_participants_know() -> None:
    """A step has one key in all its attempts; its undo names it and carries its result (S6)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"bank.charge"}, faults={"plant.book": [LOST, LOST]})
        async with at_work(runtime, others) as engine:
            await start(engine, THREE)
            with pytest.raises(Declined):
                await (await start(engine, THREE)).result(FOREVER_S)
        assert {context.key for context in others.sends_of("plant.book")} == {"A-1/plant.book#1"}
        assert len(others.sends_of("plant.book")) == 3
        (undo,) = [each for each in others.sent if each[0] == "plant.unbook"]
        assert undo[1] == b'{"hold":{"id":"plant.book/1"}}'
        assert (undo[2].key, undo[2].undoes) == ("A-1/plant.book#1/undo", "A-1/plant.book#1")
        assert undo[2].trace_id == CONTEXT.trace_id
        assert undo[2].attempts_left == 0

    run(main)


def test_three_steps_alone_take_four_commits_and_fifty_share_theirs() -> None:
    """A step's record rides with the beginning of the next; runs side by side share commits."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            store: Any = engine._store
            before = store.commits
            await (await start(engine, THREE)).result(FOREVER_S)
            assert store.commits - before == 4
            before = store.commits
            handles = await asyncio.gather(*(start(engine, THREE, id=f"B-{n}") for n in range(50)))
            results = await asyncio.gather(*(each.result(FOREVER_S) for each in handles))
            assert len(set(results)) == 50
            assert store.commits - before <= 10

    run(main)


def test_a_run_with_one_step_has_the_task_of_its_run_alone() -> None:
    """Its call or function is done in the run's own; a write is in one that no cancel reaches."""
    seen: list[set[str]] = []

    def names() -> set[str]:
        (loop,) = loops
        return {each.get_name() for each in asyncio.all_tasks(loop)}

    def look() -> None:
        seen.append(names() - before)

    class Looking(Participants):
        async def send(self, *args: Any, **more: Any) -> bytes:
            look()
            return await super().send(*args, **more)

    async def note(_tx: Unit) -> None:
        look()

    async def own(_key: str) -> None:
        look()

    async def one_call(s: Saga, order: Order) -> None:
        await s.call(Plant.quote(order.id))

    async def one_write(s: Saga, _order: Order) -> None:
        await s.write(note)

    async def one_function(s: Saga, _order: Order) -> None:
        await s.step(own)

    loops: list[asyncio.AbstractEventLoop] = []  # within a unit there is none that runs
    before: set[str] = set()

    async def main(runtime: SimRuntime) -> None:
        loops.append(asyncio.get_running_loop())
        sagas = [define(each) for each in (one_call, one_write, one_function)]
        async with at_work(runtime, Looking(), *sagas) as engine:
            await (await start(engine, sagas[0], id="warm")).result(FOREVER_S)
            seen.clear()
            before.update(names())
            for number, saga in enumerate(sagas):
                await (await start(engine, saga, id=f"A-{number}")).result(FOREVER_S)

    run(main)
    assert seen == [{"saga A-0"}, {"saga A-1", "saga A-1 commit"}, {"saga A-2"}]


def test_the_same_id_and_input_is_the_same_run() -> None:
    """A repeated start, at once or later, starts nothing; another input is a conflict (S1)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others) as engine:
            twice = await asyncio.gather(start(engine, THREE), start(engine, THREE))
            first, second = [await each.result(FOREVER_S) for each in twice]
            assert first == second == await (await start(engine, THREE)).result(0.0)
            assert others.log.count("stock.reserve") == 1
            for definition, order in ((THREE, Order("A-1", 2)), (PLACE, Order("A-1"))):
                with pytest.raises(SagaConflict, match="another input"):
                    await start(engine, definition, order)
            await start(engine, THREE, id="A-2")
            with pytest.raises(SagaConflict, match="another input"):
                await start(engine, THREE, Order("A-2", 2), id="A-2")
        assert engine.counts["started"] == 2

    run(main)


def test_a_start_that_is_repeated_meanwhile_hides_no_conclusion() -> None:
    """Who asks how a run ended is told so, whoever starts it again at that moment."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            result = await (await start(engine, THREE)).result(FOREVER_S)
            again = asyncio.create_task(start(engine, THREE))
            while not engine._executions:
                await asyncio.sleep(0)
            ended = await engine.conclusion("A-1", FOREVER_S)
            assert ended is not None
            assert ended.status.value == "completed"
            assert await (await again).result(0.0) == result

    run(main)


def test_the_semantic_lock_admits_one_unfinished_run_a_key() -> None:
    """A second run of the key waits for the end of the first."""

    async def main(runtime: SimRuntime) -> None:
        locking = replace(THREE, lock_key=lambda order: order.id)
        async with at_work(runtime, Participants(), locking) as engine:
            first = await start(engine, locking, Order("A-1"))
            with pytest.raises(SagaLocked, match="'A-1'"):
                await start(engine, locking, Order("A-1"), id="A-2")
            other = await start(engine, locking, Order("B-1"), id="B-1")
            await first.result(FOREVER_S)
            await (await start(engine, locking, Order("A-1"), id="A-2")).result(FOREVER_S)
            await other.result(FOREVER_S)

    run(main)


def test_a_start_beyond_the_bound_is_shed() -> None:
    """Bounded: so many runs in flight and in the queue, not one more."""

    async def main(runtime: SimRuntime) -> None:
        options = EngineOptions(in_flight_max=1, queue_max=0)
        async with at_work(runtime, Participants(), THREE, options=options) as engine:
            first = await start(engine, THREE)
            with pytest.raises(Shed, match="0 sagas of orders wait for a place already"):
                await start(engine, THREE, id="A-2")
            await first.result(FOREVER_S)
            await (await start(engine, THREE, id="A-2")).result(FOREVER_S)

    run(main)


def test_bad_starts_are_refused_before_anything_is_written() -> None:
    """An id that cannot be stored, a foreign definition, an engine that is not ready."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants(), THREE) as engine:
            for id_ in ("", " x", "x" * 201, "a\nb"):
                with pytest.raises(BadRequest, match="saga id"):
                    await start(engine, THREE, Order("A"), id=id_)
            with pytest.raises(ContractError, match="none of service"):
                await start(engine, PLACE)
            unready = engine_on(engine._store, Participants(), runtime)
            with pytest.raises(SagaError, match="recover first"):
                await start(unready, THREE, id="A-2")
            assert await engine.runs() == []
        with pytest.raises(Shed, match="closing"):
            await start(engine, THREE)

    run(main)


def test_what_begins_with_a_run_commits_with_it() -> None:
    """The begin hook is part of the start's unit; what it raises refuses the start."""

    async def main(runtime: SimRuntime) -> None:
        async def mark(unit: Unit) -> None:
            await unit.execute("insert into orders values ('mark', 'begun', 1)")

        async def refuse(unit: Unit) -> None:
            await mark(unit)
            raise Forbidden("undone before")

        async def nothing(unit: Unit) -> None:
            seen.append(unit.unit_id)

        seen: list[str] = []
        async with at_work(runtime, Participants()) as engine:
            order, id_ = Order("A-1"), "A-1"
            with pytest.raises(Forbidden):
                await engine.start(THREE, order, id=id_, context=CONTEXT, begin=refuse)
            assert await engine.runs() == []
            assert await rows(runtime, "select * from orders") == []
            handle = await engine.start(THREE, order, id=id_, context=CONTEXT, begin=mark)
            assert await rows(runtime, "select id from orders") == [("mark",)]
            await engine.start(THREE, order, id=id_, context=CONTEXT, begin=nothing)
            assert len(seen) == 1
            await handle.result(FOREVER_S)

    run(main)


def test_a_result_that_is_not_there_in_time_is_none() -> None:
    """Waiting for a run does not hold it, and may be repeated."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.3)
        async with at_work(runtime, others) as engine:
            handle = await start(engine, THREE)
            assert await handle.result(1.0) is None
            assert await handle.result(FOREVER_S) is not None
            assert repr(handle) == "<SagaRun A-1>"
            assert repr(engine) == "<Engine orders 0 in flight>"

    run(main)


def test_an_open_breaker_does_not_burn_attempts() -> None:
    """What was certainly not run is tried again, as told, without a further attempt."""

    async def main(runtime: SimRuntime) -> None:
        refused: list[str | Exception] = [CircuitOpen("open", retry_after_s=1.0)] * 20
        others = Participants(faults={"stock.reserve": refused})
        async with at_work(runtime, others) as engine:
            assert await (await start(engine, THREE)).result(FOREVER_S) is not None
            assert (await kinds_of(engine)).count("begun stock.reserve#1") == 1
            assert engine.counts["step not run"] == 20
        assert 20 <= asyncio.get_running_loop().time() < 22

    run(main)


def test_an_unknown_step_is_undone_too_and_a_late_request_has_no_effect() -> None:
    """A time-out means that the outcome is unknown: its key gets an undo (S6)."""

    async def main(runtime: SimRuntime) -> None:
        for n, (fault, effects) in enumerate(((DUMB, ["plant.book", "plant.unbook"]), (LOST, []))):
            others = Participants(faults={"plant.book": [fault] * 3})
            async with at_work(runtime, others) as engine:
                handle = await start(engine, THREE, id=f"A-{n}")
                with pytest.raises(SagaUndone, match=r"plant\.book|broke off|did not answer"):
                    await handle.result(FOREVER_S)
                assert (await kinds_of(engine, f"A-{n}")).count("begun plant.book#1") == 3
                assert engine.counts["undo of unknown"] == 1
            assert [each for each in others.log if each.startswith("plant")] == effects
            assert +others.live == {}
            assert others.seen["tombstone"] == (fault == LOST)
            undo = next(each for each in others.sent if each[0] == "plant.unbook")
            assert undo[1] == b"{}"

    run(main)


def test_a_call_that_hangs_is_left_at_its_time_out() -> None:
    """The engine keeps the time itself, whatever the sender does."""

    async def quick(s: Saga, order: Order) -> str:
        hold = await s.call(Stock.reserve(order.id, 1), undo=Stock.release, timeout_s=0.2)
        return hold.id

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        saga = define(quick)
        async with at_work(runtime, others, saga) as engine:
            assert await (await start(engine, saga)).result(1.0) == "stock.reserve/0"

    run(main)


def test_the_deadline_turns_a_run_in_the_middle_of_a_step() -> None:
    """Before its pivot no run outlives its deadline by more than its undo."""

    async def main(runtime: SimRuntime) -> None:
        saga = replace(THREE, deadline_s=1.5)
        others = Participants(faults={"plant.book": [HANGS] * 9})
        async with at_work(runtime, others, saga) as engine:
            with pytest.raises(SagaUndone):
                await (await start(engine, saga)).result(2.0)
        assert +others.live == {}

    run(main)


def test_of_steps_side_by_side_one_rejection_cancels_the_others() -> None:
    """Those in flight count as unknown and are undone by their keys."""

    async def both(s: Saga, order: Order) -> str:
        await s.all(
            s.call(Stock.reserve(order.id, 1), undo=Stock.release),
            s.call(Plant.book(order.id), undo=Plant.unbook),
            s.write(create_order, order, undo=reject_order),
        )
        return "both"

    async def main(runtime: SimRuntime) -> None:
        saga = define(both)
        others = Participants(refuses={"plant.book"}, faults={"stock.reserve": [HANGS]})
        async with at_work(runtime, others, saga) as engine:
            with pytest.raises(OutOfStock):
                await (await start(engine, saga)).result(0.5)
        assert others.seen["tombstone"] == 1
        assert await rows(runtime, "select state, n from orders") == [("rejected", 0)]

    run(main)


def test_a_write_takes_effect_with_its_record_or_not_at_all() -> None:
    """A rejection of the unit rolls back its rows and turns the run (S3)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others) as engine:
            with pytest.raises(OutOfStock, match="bad order"):
                await (await start(engine, PLACE, Order("A-1", is_bad=True))).result(FOREVER_S)
            assert (await kinds_of(engine))[:2] == ["rejected create_order#1", "turned"]
        assert await rows(runtime, "select * from orders") == []
        assert others.sent == []

    run(main)


def test_a_step_that_nobody_awaits_is_a_bug_and_undoes_the_run() -> None:
    """A call that was described and forgotten must not look done; what was done is undone."""

    async def saga_fn(s: Saga, order: Order) -> None:
        await s.write(create_order, order, undo=reject_order)
        s.call(Bank.charge(order.id), pivot=True)

    async def main(runtime: SimRuntime) -> None:
        saga, others = define(saga_fn), Participants()
        async with at_work(runtime, others, saga) as engine:
            with pytest.raises(SagaUndone, match="charge' was described and never awaited"):
                await (await start(engine, saga)).result(FOREVER_S)
        assert others.sent == []
        assert await rows(runtime, "select state, n from orders") == [("rejected", 0)]

    run(main)


def test_a_write_is_tried_again_after_a_conflict_and_not_after_a_bug() -> None:
    """What the store could not do may work next time; what the code gets wrong will not."""

    async def conflicted(tx: Unit, order: Order) -> Created:
        tries.append(order.id)
        if len(tries) == 1:
            raise VersionConflict("stock", expected=1, actual=2)
        return await create_order(tx, order)

    async def buggy(tx: Unit, created: Created) -> None:
        raise ZeroDivisionError("secret")

    async def saga_fn(s: Saga, order: Order) -> None:
        created = await s.write(conflicted, order, undo=reject_order)
        await s.write(buggy, created)

    async def main(runtime: SimRuntime) -> None:
        saga = define(saga_fn)
        async with at_work(runtime, Participants(), saga) as engine:
            with pytest.raises(SagaUndone, match="ZeroDivisionError") as caught:
                await (await start(engine, saga)).result(FOREVER_S)
            assert "secret" not in str(caught.value)
        assert len(tries) == 2
        assert await rows(runtime, "select state, n from orders") == [("rejected", 0)]

    tries: list[str] = []
    run(main)


def test_an_unknown_pivot_is_asked_until_it_is_known() -> None:
    """The pivot is never undone for want of an answer (S8)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"bank.charge": [DUMB, LOST, LOST, LOST, DUMB]})
        async with at_work(runtime, others) as engine:
            assert await (await start(engine, PLACE)).result(FOREVER_S) is not None
        assert others.live["bank.charge"] == 1
        assert others.seen["asked again"] == 2

    run(main)


def test_a_pivot_unknown_past_the_deadline_is_stuck_and_visible() -> None:
    """Nobody knows whether it was charged: a person decides (S8)."""

    async def main(runtime: SimRuntime) -> None:
        saga = replace(PLACE, deadline_s=3.0, owner="sales")
        others = Participants(faults={"bank.charge": [LOST] * 99})
        async with at_work(runtime, others, saga) as engine:
            handle = await start(engine, saga)
            with pytest.raises(Stuck, match="did not answer"):
                await handle.result(5.0)
            (stuck,) = await engine.runs("stuck")
            assert (stuck.id, stuck.owner, stuck.ended_at) == ("A-1", "sales", None)
            with pytest.raises(SagaError, match="it is stuck"):
                await handle.cancel("please")
            with pytest.raises(Stuck):
                await (await start(engine, saga)).result(0.0)
        assert "stock.release" not in others.log

    run(main)


def test_after_the_pivot_a_rejection_is_stuck_and_a_failure_asked_again() -> None:
    """There is no way back: forward until it works, or a person (S8)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [LOST] * 9})
        async with at_work(runtime, others) as engine:
            assert await (await start(engine, PLACE)).result(FOREVER_S) is not None
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others) as engine:
            with pytest.raises(Stuck, match="test_out_of_stock"):
                await (await start(engine, PLACE, id="A-2")).result(FOREVER_S)
            assert (await kinds_of(engine, "A-2"))[-2:] == ["rejected plant.book#1", "stuck"]
        assert others.live["bank.charge"] == 1

    run(main)


def test_an_undo_that_fails_is_repeated_until_it_works() -> None:
    """One failed undo neither ends the undoing nor is passed over (S5)."""

    async def main(runtime: SimRuntime) -> None:
        flaky: list[str | Exception] = [LOST, CircuitOpen("open"), RuntimeError("bug"), DUMB, LOST]
        others = Participants(refuses={"bank.charge"}, faults={"plant.unbook": flaky})
        async with at_work(runtime, others) as engine:
            with pytest.raises(Declined):
                await (await start(engine, THREE)).result(FOREVER_S)
            assert (await kinds_of(engine)).count("undo_begun plant.book#1") == 5
        assert +others.live == {}

    run(main)


def test_an_undo_that_will_not_work_is_stuck_and_names_what_is_left() -> None:
    """A failed undo is never hidden in a terminal status; nor are those behind it (S5)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(
            refuses={"bank.charge"}, faults={"plant.unbook": [Forbidden("not yours")]}
        )
        async with at_work(runtime, others) as engine:
            with pytest.raises(Stuck, match="not yours"):
                await (await start(engine, THREE)).result(FOREVER_S)
            story = await engine.show("A-1")
            assert story.not_undone == ("plant.book#1", "stock.reserve#1")
            assert story.lines[-1].kind == "stuck"
            assert "plant.book#1: its undo is broken: forbidden" in story.lines[-1].why

    run(main)


def test_an_undo_past_its_deadline_is_stuck() -> None:
    """Undoing has a time of its own, then it needs a person."""

    async def failing_undo(tx: Unit, created: Created) -> None:
        raise ZeroDivisionError

    async def saga_fn(s: Saga, order: Order) -> None:
        await s.write(create_order, order, undo=failing_undo)
        await s.call(Bank.charge(order.id))

    async def main(runtime: SimRuntime) -> None:
        saga = define(saga_fn, policy=replace(PATIENT, undo_deadline_s=5.0))
        async with at_work(runtime, Participants(refuses={"bank.charge"}), saga) as engine:
            with pytest.raises(Stuck, match="ZeroDivisionError"):
                await (await start(engine, saga)).result(10.0)
            assert engine.counts["undo unknown"] > 3

    run(main)


def test_cancel_means_compensate_and_is_durable_when_it_returns() -> None:
    """The change of direction is recorded, whatever is in flight (S9)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [HANGS] * 9})
        async with at_work(runtime, others) as engine:
            handle = await start(engine, THREE)
            await asyncio.sleep(0.5)
            impatient = asyncio.ensure_future(handle.cancel("the customer left"))
            while engine._executions["A-1"]._cancelled_because is None:
                await asyncio.sleep(0)
            impatient.cancel()
            await handle.cancel("again")
            assert "turned" in await kinds_of(engine)
            assert "the customer left" in await reason_of(engine)
            with pytest.raises(SagaUndone, match="the customer left"):
                await handle.result(FOREVER_S)
            await handle.cancel("late")
        assert +others.live == {}
        assert others.seen["tombstone"] == 1

    run(main)


def test_a_reason_that_no_encoding_carries_turns_a_run_all_the_same() -> None:
    """Half of a surrogate pair costs a character, and not the run its place in memory."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [HANGS] * 9})
        async with at_work(runtime, others) as engine:
            handle = await start(engine, THREE)
            await asyncio.sleep(0.5)
            await handle.cancel("left \udcff")
            assert "left ?" in await reason_of(engine)
            with pytest.raises(SagaUndone, match=r"left \?"):
                await handle.result(FOREVER_S)
        assert +others.live == {}

    run(main)


def test_a_cancel_during_a_write_waits_for_its_commit_and_undoes_it() -> None:
    """A unit that is under way is done or not done: never forgotten."""

    async def saga_fn(s: Saga, order: Order) -> None:
        await s.write(create_order, order, undo=reject_order)
        await s.call(Stock.reserve(order.id, 1), undo=Stock.release)

    async def main(runtime: SimRuntime) -> None:
        saga, others = define(saga_fn), Participants()
        async with at_work(runtime, others, saga) as engine:
            handle = await start(engine, saga)
            await asyncio.sleep(0)
            await handle.cancel("at once")
            with pytest.raises(SagaUndone, match="at once"):
                await handle.result(FOREVER_S)
        assert await rows(runtime, "select state, n from orders") in ([], [("rejected", 0)])
        assert others.log == []

    for seed in few(range(10), 3):
        run(main, seed=seed)


def test_a_cancel_from_within_a_step_that_awaits_nothing_turns_the_run() -> None:
    """A participant in this process may cancel the run in the turn in which it answers (S9)."""

    class Inline(Participants):
        engine: Engine
        cancels: asyncio.Task[None]

        async def send(
            self, operation: Operation[..., Any], arguments: bytes, *, context: Any, **more: Any
        ) -> bytes:
            answer = self._handle(operation, arguments, context)
            assert isinstance(answer, bytes)
            if operation.full_name == "plant.book":
                loop = asyncio.get_running_loop()
                cancel = self.engine.cancel("A-1", "the customer left")
                self.cancels = starter(loop)(cancel, context=copy_context())
            return answer

    async def main(runtime: SimRuntime) -> None:
        others = Inline()
        async with at_work(runtime, others) as engine:
            others.engine = engine
            handle = await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(SagaUndone, match="the customer left"):
                await handle.result(FOREVER_S)
            await others.cancels
        assert +others.live == {}

    run(main)


def test_there_is_no_cancel_after_the_pivot_or_the_end() -> None:
    """What cannot be undone says so."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"bank.charge": [LOST] * 3})
        async with at_work(runtime, others) as engine:
            handle = await start(engine, PLACE)
            await asyncio.sleep(0.1)
            with pytest.raises(SagaError, match="its pivot was tried"):
                await handle.cancel("too late")
            await handle.result(FOREVER_S)
            with pytest.raises(SagaError, match="it is completed"):
                await handle.cancel("too late")
            with pytest.raises(UnknownSaga):
                await engine.cancel("nobody", "?")
            with pytest.raises(UnknownSaga):
                await engine.show("nobody")

    run(main)


def test_a_finally_of_the_function_has_no_effect() -> None:
    """After a run was turned every s.* raises, and what was made before cannot be awaited (S11)."""

    async def tidy(s: Saga, order: Order) -> None:
        late = s.write(create_order, order)
        try:
            await s.call(Bank.charge(order.id))
        finally:
            for attempt in (lambda: s.write(create_order, order), lambda: s.all(late)):
                try:
                    attempt()
                except SagaGone as error:
                    seen.append(error.code)
            await late

    seen: list[str] = []

    async def main(runtime: SimRuntime) -> None:
        saga = define(tidy)
        async with at_work(runtime, Participants(refuses={"bank.charge"}), saga) as engine:
            with pytest.raises(Declined):
                await (await start(engine, saga)).result(FOREVER_S)
        assert seen == ["saga_gone", "saga_gone"]
        async with at_work(runtime, Participants(faults={"bank.charge": [HANGS]}), saga) as engine:
            handle = await start(engine, saga, id="A-2")
            waiting = asyncio.ensure_future(handle.result(FOREVER_S))
            await asyncio.sleep(0.1)
        assert len(seen) == 4
        with pytest.raises(SagaGone, match="next start"):
            await waiting
        assert await rows(runtime, "select * from orders") == []

    run(main)


@pytest.mark.parametrize("is_past_pivot", [False, True])
def test_a_function_may_await_nothing_but_its_steps(is_past_pivot: bool) -> None:
    """Time, network and chance would be other ones in a re-run: turned, or stuck past the pivot."""

    async def sleepy(s: Saga, order: Order) -> None:
        await s.call(Bank.charge(order.id), pivot=is_past_pivot)
        await asyncio.sleep(1.0)

    async def main(runtime: SimRuntime) -> None:
        saga = define(sleepy)
        async with at_work(runtime, Participants(), saga) as engine:
            with pytest.raises(Stuck if is_past_pivot else SagaUndone, match="something else"):
                await (await start(engine, saga)).result(FOREVER_S)

    run(main)


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OutOfStock("none"), OutOfStock),
        (OutOfStock("no \udcff left"), OutOfStock),
        (OutOfStock("none", left=object()), OutOfStock),
        (KeyError("secret"), SagaUndone),
    ],
)
def test_a_function_that_raises_turns_the_run(raised: Exception, told: type[Exception]) -> None:
    """Its own rejection is passed on, as far as it can be; a bug is named without its text."""

    async def raising(s: Saga, order: Order) -> None:
        await s.write(create_order, order, undo=reject_order)
        raise raised

    async def main(runtime: SimRuntime) -> None:
        saga = define(raising)
        async with at_work(runtime, Participants(), saga) as engine:
            with pytest.raises(told) as caught:
                await (await start(engine, saga)).result(FOREVER_S)
            assert "secret" not in str(caught.value)
        assert await rows(runtime, "select state from orders") == [("rejected",)]

    run(main)


def test_a_function_that_ends_before_its_first_step_is_told_all_the_same() -> None:
    """Its end is in the commit of its start."""

    async def at_once(s: Saga, order: Order) -> str:
        if order.is_bad:
            raise Declined("bad")
        return "at once"

    async def unsayable(s: Saga, order: Order) -> object:
        return object()

    async def main(runtime: SimRuntime) -> None:
        one, other = define(at_once), define(unsayable)
        async with at_work(runtime, Participants(), one, other) as engine:
            assert await (await start(engine, one)).result(1.0) == "at once"
            with pytest.raises(Rejection, match="bad"):
                await (await start(engine, one, Order("A-2", is_bad=True), id="A-2")).result(1.0)
            with pytest.raises(SagaUndone, match="cannot be sent"):
                await (await start(engine, other, id="A-3")).result(1.0)

    run(main)


def test_milestones_are_events_with_the_trace() -> None:
    """Started, turned and ended are in the log, in the commits that made them true (T1)."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants(refuses={"bank.charge"})) as engine:
            with pytest.raises(Declined):
                await (await start(engine, THREE)).result(FOREVER_S)
        told = await rows(runtime, "select stream, name, trace_id from sm_event order by position")
        assert told == [
            ("saga/A-1", f"orders.saga_{name}", CONTEXT.trace_id)
            for name in ("started", "turned", "ended")
        ]

    run(main)


def test_spans_tell_the_run_its_steps_and_its_undos() -> None:
    """One trace: the run under its starter, steps and undos under the run."""

    async def main(runtime: SimRuntime) -> None:
        ring = MemoryRing()
        others = Participants(refuses={"bank.charge"})
        async with at_work(runtime, others, THREE, ring=ring) as engine:
            with pytest.raises(Declined):
                await (await start(engine, THREE)).result(FOREVER_S)
        spans = [(s.kind, s.name, s.status) for s in ring]
        assert spans == [
            ("step", "stock.reserve#1", "ok"),
            ("step", "plant.book#1", "ok"),
            ("step", "bank.charge#1", "rejected"),
            ("undo", "plant.book#1", "ok"),
            ("undo", "stock.reserve#1", "ok"),
            ("saga", "three_calls", "undone"),
        ]
        *parts, whole = ring
        assert {each.parent_id for each in parts} == {whole.span_id}
        assert whole.parent_id == CONTEXT.span_id
        assert {each.trace_id for each in ring} == {CONTEXT.trace_id}
        assert others.sent[0][2].span_id == parts[0].span_id

    run(main)


def test_runs_are_listed_newest_first_and_by_status() -> None:
    """What the command line shows comes from the tables."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            for n in range(3):
                await (await start(engine, THREE, id=f"A-{n}")).result(FOREVER_S)
                await asyncio.sleep(1.0)
            assert [each.id for each in await engine.runs(limit=2)] == ["A-2", "A-1"]
            assert len(await engine.runs("completed")) == 3
            assert await engine.runs("stuck") == []
            with pytest.raises(BadRequest, match="known: queued, running, compensating"):
                await engine.runs("lost")
            story = await engine.show("A-0")
            assert [line.kind for line in story.lines] == ["begun", "done"] * 3 + ["ended"]
            assert story.lines[0].at < story.lines[-1].at
            assert story.not_undone == ()

    run(main)


def test_a_start_that_is_not_waited_for_is_a_start_all_the_same() -> None:
    """Cancelling the starter leaves no run that is durable and that nobody drives."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others) as engine:
            impatient = asyncio.ensure_future(start(engine, THREE))
            while not engine._executions:  # until it has handed its start over
                await asyncio.sleep(0)
            impatient.cancel()
            await asyncio.sleep(1.0)
            assert [each.status for each in await engine.runs()] == ["completed"]

    run(main)


def test_opening_needs_the_tables() -> None:
    """The schema is the room's own, beside that of the log."""

    async def main(runtime: SimRuntime) -> None:
        store = await open_store(runtime)
        for table in ("sm_saga", "sm_saga_record", "sm_saga_epoch"):
            assert await store.read(f"select count(*) from {table}") == [(0,)]
        await store.close()

    run(main)


def test_a_result_that_has_no_end_undoes_its_run() -> None:
    """A result that cannot be recorded is a bug of the code: it ends the run, visibly (S5)."""

    async def endless(s: Saga, order: Order) -> object:
        await s.write(create_order, order, undo=reject_order)
        result: list[object] = []
        result.append(result)
        return result

    async def main(runtime: SimRuntime) -> None:
        saga = define(endless)
        async with at_work(runtime, Participants(), saga) as engine:
            handle = await start(engine, saga)
            with pytest.raises(SagaUndone, match="its result"):
                await handle.result(FOREVER_S)

    run(main)
