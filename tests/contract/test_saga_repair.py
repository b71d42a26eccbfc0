"""What a person does with a run: retry, skip, undo, cancel; each with who and why, none unsafe."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from saga_fakes import (
    CONTEXT,
    HANGS,
    LOST,
    PATIENT,
    PLACE,
    THREE,
    Bank,
    Order,
    OutOfStock,
    Participants,
    Plant,
    Stock,
    at_work,
    create_order,
    reject_order,
    rows,
)
from synchromesh.errors import ActionRefused, Forbidden, SagaUndone, UnknownSaga
from synchromesh.saga import Engine, EngineOptions, Saga, SagaDefinition
from synchromesh.saga.inspection import impact_of
from synchromesh.saga.records import RepairVerb, SagaStatus
from synchromesh.saga.repair import RepairWish
from synchromesh.testing import SimRuntime, run

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 10_000.0
RETRY, SKIP, UNDO, CANCEL = RepairVerb
ADA = RepairWish("ada", "looked at it")


async def left(engine: Engine, saga: SagaDefinition[Any, Any], *, status: str = "stuck") -> str:
    """Start a run, wait for its end, and return why it ended so."""
    await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
    ended = await engine.conclusion("A-1", FOREVER_S)
    assert ended is not None
    assert ended.status.value == status
    return ended.cause.reason


async def ends(engine: Engine, wanted: SagaStatus) -> None:
    ended = await engine.conclusion("A-1", FOREVER_S)
    assert ended is not None
    assert ended.status is wanted


async def refusal(engine: Engine, verb: RepairVerb, wish: RepairWish = ADA) -> str:
    """Return why a verb is refused; nothing may have been recorded of it."""
    before = await engine._store.read("select count(*) from sm_saga_record")
    with pytest.raises(ActionRefused) as refused:
        await engine.repair("A-1", verb, wish)
    assert await engine._store.read("select count(*) from sm_saga_record") == before
    return refused.value.message


def test_a_rejection_past_the_pivot_is_retried_under_a_key_of_its_own() -> None:
    """The last key answers with its rejection for ever; the new one is asked, once."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others) as engine:
            await left(engine, PLACE)
            others.refuses.clear()
            story = await engine.repair("A-1", RETRY, ADA)
            assert story.summary.status == "running"
            assert story.summary.reason == "retry by ada: looked at it"
            await ends(engine, SagaStatus.COMPLETED)
            assert [c.key for c in others.sends_of("plant.book")] == [
                "A-1/plant.book#1", "A-1/plant.book#1/2",
            ]  # fmt: skip
        assert others.live == {"stock.reserve": 1, "bank.charge": 1, "plant.book": 1}
        told = await rows(runtime, "select name, body from sm_event order by position")
        repaired = [json.loads(body) for name, body in told if name == "orders.saga_repaired"]
        assert repaired == [{
            "id": "A-1", "saga": "place_order", "status": "running", "reason": "looked at it",
            "who": "ada", "verb": "retry", "step": "plant.book#1",
        }]  # fmt: skip

    run(main)


def test_a_start_that_is_repeated_meanwhile_is_no_run_at_work() -> None:
    """A client asks again and again: what it asks for looks as if it began, until it is known."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others) as engine:
            await left(engine, PLACE)
            others.refuses.clear()
            again = asyncio.create_task(
                engine.start(PLACE, Order("A-1"), id="A-1", context=CONTEXT)
            )
            while not engine._executions:
                await asyncio.sleep(0)
            story = await engine.repair("A-1", RETRY, ADA)
            assert story.summary.status == "running"
            await again
            await ends(engine, SagaStatus.COMPLETED)

    run(main)


def test_an_undo_that_was_refused_is_retried_under_a_key_of_its_own() -> None:
    """One that may have been done keeps its key: it must not be done twice."""

    async def main(runtime: SimRuntime, fault: Any) -> list[str]:
        saga = replace(THREE, policy=replace(PATIENT, undo_deadline_s=5.0))
        others = Participants(refuses={"bank.charge"}, faults={"plant.unbook": fault})
        async with at_work(runtime, others, saga) as engine:
            await left(engine, saga)
            others.faults.clear()
            assert (await engine.repair("A-1", RETRY, ADA)).summary.status == "compensating"
            await ends(engine, SagaStatus.UNDONE)
        assert +others.live == {}
        return sorted({context.key for context in others.sends_of("plant.unbook")})

    no = OutOfStock("not now")
    assert run(lambda r: main(r, [no])) == ["A-1/plant.book#1/undo", "A-1/plant.book#1/undo/2"]
    assert run(lambda r: main(r, [LOST] * 99)) == ["A-1/plant.book#1/undo"]


def test_what_was_done_by_hand_is_skipped_with_its_result() -> None:
    """Its result is that of the step's type, and the run goes on behind it."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others) as engine:
            await left(engine, PLACE)
            assert "the result is not what plant.book returns" in await refusal(engine, SKIP)
            wish = replace_result(b'{"id":"by hand"}')
            story = await engine.repair("A-1", SKIP, wish)
            assert story.lines[-1].why == "skip by ada: looked at it"
            await ends(engine, SagaStatus.COMPLETED)
        async with at_work(runtime, others) as engine:
            handle = await engine.start(PLACE, Order("A-1"), id="A-1", context=CONTEXT)
            placed = await handle.result(1.0)
            assert placed is not None
            assert placed.slot == "by hand"
        assert len(others.sends_of("plant.book")) == 1

    run(main)


def test_what_was_undone_by_hand_is_skipped_and_the_others_are_undone() -> None:
    """It is no longer owed; what lies before it is (S5)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"bank.charge"}, faults={"plant.unbook": [Forbidden("no")]})
        async with at_work(runtime, others) as engine:
            await left(engine, THREE)
            assert "takes no result" in await refusal(engine, SKIP, replace_result(b"1"))
            await engine.repair("A-1", SKIP, ADA)
            await ends(engine, SagaStatus.UNDONE)
            assert (await engine.show("A-1")).not_undone == ()
        assert dict(+others.live) == {"plant.book": 1}, "by hand is not by us"

    run(main)


def test_a_pivot_in_doubt_is_undone_only_by_who_has_looked() -> None:
    """That it was not done is known to a person alone; then the run turns (S8)."""

    async def main(runtime: SimRuntime) -> None:
        saga = replace(PLACE, deadline_s=5.0)
        others = Participants(faults={"bank.charge": [LOST] * 99})
        async with at_work(runtime, others, saga) as engine:
            await left(engine, saga)
            assert "whether its pivot bank.charge#1 was done is unknown" in await refusal(
                engine, UNDO
            )
            await engine.repair("A-1", UNDO, RepairWish("ada", "not charged", not_done=True))
            await ends(engine, SagaStatus.UNDONE)
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(SagaUndone, match="undone by ada: not charged"):
                await handle.result(1.0)
        assert +others.live == {}
        assert await rows(runtime, "select state from orders") == [("rejected",)]

    run(main)


def test_a_pivot_in_doubt_is_retried_with_time_of_its_own() -> None:
    """The deadline that has passed does not end it at once."""

    async def main(runtime: SimRuntime) -> None:
        saga = replace(PLACE, deadline_s=5.0)
        others = Participants(faults={"bank.charge": [LOST] * 99})
        async with at_work(runtime, others, saga) as engine:
            await left(engine, saga)
            others.faults["bank.charge"] = [LOST] * 9
            await engine.repair("A-1", RETRY, ADA)
            await ends(engine, SagaStatus.COMPLETED)
        assert others.live["bank.charge"] == 1

    run(main)


def test_code_that_raised_past_the_pivot_is_mended_and_retried() -> None:
    """There is no step to skip; the new function goes on from the records."""

    async def broken(s: Saga, order: Order) -> str:
        await s.call(Bank.charge(order.id), pivot=True)
        raise ZeroDivisionError

    async def mended(s: Saga, order: Order) -> str:
        hold = await s.call(Bank.charge(order.id), pivot=True)
        return hold.id

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        old = SagaDefinition(broken, "changing", policy=PATIENT)
        async with at_work(runtime, others, old) as engine:
            assert "ZeroDivisionError" in await left(engine, old)
            assert "stuck at no step" in await refusal(engine, SKIP)
            assert "past its pivot bank.charge#1" in await refusal(engine, UNDO)
        async with at_work(runtime, others, SagaDefinition(mended, "changing")) as engine:
            await engine.repair("A-1", RETRY, ADA)
            await ends(engine, SagaStatus.COMPLETED)
        assert others.live == {"bank.charge": 1}

    run(main)


@pytest.mark.parametrize("is_done", [True, False])
def test_what_nobody_remembers_is_for_who_has_looked(is_done: bool) -> None:
    """A charge that was made is skipped with its receipt; one that was not is made."""

    async def main(runtime: SimRuntime) -> None:
        options = EngineOptions(keep_s=7 * 86_400.0)
        others = Participants(faults={"bank.charge": [HANGS]})
        async with at_work(runtime, others, options=options) as engine:
            await engine.start(PLACE, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        await asyncio.sleep(8 * 86_400.0)
        async with at_work(runtime, others, options=options) as engine:
            await ends(engine, SagaStatus.STUCK)
            assert "it would be done a second time" in await refusal(engine, RETRY)
            if is_done:
                await engine.repair("A-1", SKIP, replace_result(b'{"id":"receipt"}'))
            else:
                await engine.repair("A-1", RETRY, RepairWish("ada", "no charge", not_done=True))
            await ends(engine, SagaStatus.COMPLETED)
        assert others.live["bank.charge"] == (0 if is_done else 1)

    run(main, until_s=1e6)


def test_an_undo_that_nobody_remembers_is_not_retried() -> None:
    """The participant would answer that there is nothing to undo, and it would look undone."""

    async def main(runtime: SimRuntime) -> None:
        options = EngineOptions(keep_s=7 * 86_400.0)
        others = Participants(refuses={"bank.charge"}, faults={"plant.unbook": [HANGS]})
        async with at_work(runtime, others, options=options) as engine:
            await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        await asyncio.sleep(8 * 86_400.0)
        async with at_work(runtime, others, options=options) as engine:
            await ends(engine, SagaStatus.STUCK)
            said = await refusal(engine, RETRY, RepairWish("ada", "x", not_done=True))
            assert "undo it by hand where it stands, then skip" in said
            for step in ("plant.book#1", "stock.reserve#1"):
                assert (await engine.show("A-1")).not_undone[0] == step
                await engine.repair("A-1", SKIP, ADA)
                await asyncio.sleep(1.0)
            await ends(engine, SagaStatus.UNDONE)

    run(main, until_s=1e6)


def test_a_run_at_work_is_cancelled_by_name_and_not_past_its_pivot() -> None:
    """Who and why are in the record that turns it, and in the event."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [HANGS] * 9})
        async with at_work(runtime, others) as engine:
            handle = await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.1)
            assert "only a stuck run" in await refusal(engine, RETRY)
            story = await engine.repair("A-1", CANCEL, ADA)
            assert [each.why for each in story.lines if each.kind == "turned"] == [
                "cancelled: looked at it (by ada)"
            ]
            with pytest.raises(SagaUndone, match="cancelled: looked at it"):
                await handle.result(FOREVER_S)
            assert "it has ended, undone" in await refusal(engine, CANCEL)
            assert "it has ended, undone" in await refusal(engine, RETRY)
            await engine.start(PLACE, Order("A-2"), id="A-2", context=CONTEXT)
            await asyncio.sleep(0.5)
            with pytest.raises(ActionRefused, match=r"past its pivot bank\.charge#1"):
                await engine.repair("A-2", CANCEL, ADA)
            with pytest.raises(UnknownSaga):
                await engine.repair("A-3", CANCEL, ADA)
        told = await rows(runtime, "select body from sm_event where name = 'orders.saga_turned'")
        assert [json.loads(body)["who"] for (body,) in told] == ["ada"]

    run(main)


def test_a_run_that_waits_for_code_is_cancelled_and_undone_once_it_is_there() -> None:
    """The turn is recorded at once; undoing needs the code."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [HANGS] * 9})
        async with at_work(runtime, others) as engine:
            await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.1)
        async with at_work(runtime, others, PLACE) as engine:
            for verb in (RETRY, SKIP, UNDO):
                assert "waits for code v1: this release has no such saga" in await refusal(
                    engine, verb
                )
            assert (await engine.repair("A-1", CANCEL, ADA)).summary.status == "waiting"
            assert "being undone already" in await refusal(engine, CANCEL)
        async with at_work(runtime, others) as engine:
            await ends(engine, SagaStatus.UNDONE)
        assert +others.live == {}

    run(main)


def test_a_result_needs_the_code_that_knows_its_type() -> None:
    """Without it nothing is taken on trust."""

    async def other(s: Saga, order: Order) -> None:
        await s.call(Stock.reserve(order.id, 1))

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others) as engine:
            await left(engine, PLACE)
        async with at_work(runtime, others, SagaDefinition(other, "place_order")) as engine:
            said = await refusal(engine, SKIP, replace_result(b'{"id":"x"}'))
            assert "only the code of the run knows what plant.book#1 returns" in said
            # It is allowed to go on; it then waits for its code.
            assert (await engine.repair("A-1", RETRY, ADA)).summary.status == "waiting"

    run(main)


def test_two_people_do_not_repair_one_run_twice() -> None:
    """The second one is told that it has changed; it is done once."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others) as engine:
            await left(engine, PLACE)
            others.refuses.clear()
            both = await asyncio.gather(
                *(engine.repair("A-1", RETRY, RepairWish(who, "x")) for who in ("ada", "bob")),
                return_exceptions=True,
            )
            assert sum(isinstance(each, ActionRefused) for each in both) == 1
            await ends(engine, SagaStatus.COMPLETED)
        ((count,),) = await rows(
            runtime, "select count(*) from sm_saga_record where kind = 'repaired'"
        )
        assert count == 1
        assert others.live["plant.book"] == 1

    run(main)


def test_a_write_that_is_refused_past_the_pivot_is_retried_or_skipped() -> None:
    """It has no key with others: it is run again, or taken as done."""

    async def late_write(s: Saga, order: Order) -> str:
        await s.call(Bank.charge(order.id), pivot=True)
        created = await s.write(create_order, order, undo=reject_order)
        await s.call(Plant.quote(created.order))
        return created.order

    async def main(runtime: SimRuntime, verb: RepairVerb) -> Any:
        saga = SagaDefinition(late_write, "late_write", policy=PATIENT)
        async with at_work(runtime, Participants(), saga) as engine:
            order = Order("A-1", is_bad=True)
            await engine.start(saga, order, id="A-1", context=CONTEXT)
            await ends(engine, SagaStatus.STUCK)
            wish = replace_result(b'{"order":"A-9"}') if verb is SKIP else ADA
            await engine.repair("A-1", verb, wish)
            await ends(engine, SagaStatus.COMPLETED if verb is SKIP else SagaStatus.STUCK)
        return await rows(runtime, "select result from sm_saga")

    assert run(lambda r: main(r, SKIP)) == [(b'"A-9"',)]
    assert run(lambda r: main(r, RETRY)) == [(None,)]


def test_the_impact_of_each_verb_is_told_before_it_is_done() -> None:
    """What is refused, and why; what would be asked and undone, in its order."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others) as engine:
            await left(engine, PLACE)
            told = await impact_of(engine._store, "A-1")
            assert told is not None
            by_verb = {each.verb: each for each in told}
            assert by_verb["retry"].effects[0].startswith("asks again for plant.book#1 as a new")
            assert by_verb["skip"].is_allowed
            assert by_verb["undo"].refused.startswith("it is past its pivot bank.charge#1")
            assert by_verb["cancel"].refused == "it is stuck; undo turns a stuck run"
            others.faults["plant.book"] = [HANGS]
            await engine.start(THREE, Order("A-2"), id="A-2", context=CONTEXT)
            await asyncio.sleep(0.1)
            told = await impact_of(engine._store, "A-2")
            assert told is not None
            (allowed,) = [each for each in told if each.is_allowed]
            assert (allowed.verb, allowed.effects) == (
                "cancel",
                (
                    "goes no further",
                    "undoes, where the code names an undo: plant.book#1, stock.reserve#1",
                ),
            )
            assert await impact_of(engine._store, "A-3") is None

    run(main)


def replace_result(result: bytes) -> RepairWish:
    return RepairWish("ada", "looked at it", result)
