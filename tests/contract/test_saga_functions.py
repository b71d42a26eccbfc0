"""Steps that are functions: at least once under one key, and undone also where nobody knows."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from provider_fakes import Provider, Receipt
from saga_fakes import (
    CONTEXT,
    DUMB,
    HANGS,
    LOST,
    PATIENT,
    Bank,
    Declined,
    Fault,
    Order,
    OutOfStock,
    Participants,
    Stock,
    at_work,
    create_order,
    engine_on,
    open_store,
    reject_order,
)
from synchromesh import Policy
from synchromesh.errors import Rejection, SagaUndone, Shed, Stuck, SynchromeshError
from synchromesh.resilience import deadline
from synchromesh.saga import Engine, Saga, SagaDefinition, SagaRun, Unknown
from synchromesh.saga.records import RepairVerb
from synchromesh.saga.repair import RepairWish
from synchromesh.service import Transaction
from synchromesh.testing import SimRuntime, World, run

FOREVER_S = 10_000.0
KEY = "A-1/pay#1"


def paying(
    provider: Provider,
    *,
    is_pivot: bool = False,
    timeout_s: float | None = None,
    attempts_max: int | None = None,
) -> SagaDefinition[Any, str]:
    """Return a saga that holds stock, pays at the provider, and asks the bank."""

    async def pays(s: Saga, order: Order) -> str:
        await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
        paid = await s.step(
            provider.pay,
            order.id,
            700,
            undo=None if is_pivot else provider.refund,
            pivot=is_pivot,
            timeout_s=timeout_s,
            attempts_max=attempts_max,
        )
        assert isinstance(paid, Receipt), "it is recorded as what it is"
        await s.call(Bank.charge(order.id), undo=None if is_pivot else Bank.refund)
        return paid.id

    return SagaDefinition(pays, "pays", deadline_s=60.0, policy=PATIENT)


@asynccontextmanager
async def started(
    runtime: SimRuntime, others: Participants, saga: SagaDefinition[Any, Any]
) -> AsyncIterator[tuple[Engine, SagaRun[Any]]]:
    """Start the run, or find it as it is."""
    async with at_work(runtime, others, saga) as engine:
        yield engine, await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)


async def told(runtime: SimRuntime, others: Participants, saga: SagaDefinition[Any, Any]) -> object:
    """Return how a run ended: its result, or the error that is told of it."""
    async with started(runtime, others, saga) as (_, handle):
        try:
            return await handle.result(FOREVER_S)
        except SynchromeshError as error:
            return error


def test_a_result_is_recorded_and_given_again() -> None:
    """After a restart the function is given the same receipt, and the provider is not asked."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(), Participants(faults={"bank.charge": [HANGS]})
        async with started(runtime, others, paying(provider)):
            await asyncio.sleep(0.5)
        assert await told(runtime, others, paying(provider)) == "R-0"
        assert (provider.keys, provider.given) == ([KEY], [])

    run(main)


def test_what_is_done_is_undone_with_its_result() -> None:
    """The undo has a key of its own, and comes before that of the step before."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(), Participants(refuses={"bank.charge"})
        ended = await told(runtime, others, paying(provider))
        assert isinstance(ended, Declined)
        assert (provider.given, provider.paid) == ([Receipt("R-0", 700)], {})
        assert provider.undo_keys == [f"{KEY}/undo"]
        assert +others.live == {}

    run(main)


@pytest.mark.parametrize("fault", [HANGS, LOST, DUMB])
def test_an_unknown_outcome_is_tried_again_under_the_same_key(fault: Fault) -> None:
    """A time-out and an error say nothing of what was done; its key tells the next attempt.

    Past its attempts it is undone, by an undo that knows what was asked for.
    """

    async def main(runtime: SimRuntime) -> None:
        provider = Provider(faults=[fault, fault])
        assert await told(runtime, Participants(), paying(provider)) == "R-0"
        assert provider.keys == [KEY] * 3
        assert len(provider.paid) == 1

    async def never_known(runtime: SimRuntime) -> None:
        provider = Provider(faults=[fault] * 3)
        ended = await told(runtime, Participants(), paying(provider))
        assert isinstance(ended, SagaUndone)
        assert "secret" not in str(ended), "users' texts stay in the log"
        assert provider.given == [Unknown(KEY, ("A-1", 700))]
        assert (provider.paid, provider.barred) == ({}, {KEY})

    run(main)
    run(never_known)


def test_a_crash_in_the_middle_is_an_attempt() -> None:
    """It is tried again under its key, and its attempts are counted over all restarts."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(faults=[HANGS] * 9), Participants()
        saga = paying(provider, timeout_s=5.0, attempts_max=3)
        for attempt in (1, 2):
            async with started(runtime, others, saga) as (engine, _):
                await asyncio.sleep(0.5)
                lines = (await engine.show("A-1")).lines
                assert (lines[-1].kind, lines[-1].attempt) == ("begun", attempt)
        assert isinstance(await told(runtime, others, saga), SagaUndone)
        assert provider.keys == [KEY] * 3
        assert provider.given == [Unknown(KEY, ("A-1", 700))]

    run(main)


def test_an_attempt_that_came_to_nothing_is_told_while_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What has begun the next one says what ended it, and so does a line of the log."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(faults=[HANGS] * 9), Participants()
        saga = paying(provider, timeout_s=1.0, attempts_max=3)
        async with started(runtime, others, saga) as (engine, _):
            await asyncio.sleep(1.5)
            line = (await engine.show("A-1")).lines[-1]
        assert (line.kind, line.attempt) == ("begun", 2)
        late = "timed_out: pay#1 did not end within 1 s, the timeout_s of the step"
        assert line.why == f"after {late}"
        (logged,) = (each for each in caplog.records if "attempt 1" in each.getMessage())
        assert logged.getMessage() == (f"saga 'A-1': attempt 1 of pay#1: {late}; it is asked again")
        assert logged.exc_info is None

    caplog.set_level(logging.INFO, "synchromesh.saga")
    run(main)


def test_a_step_that_raises_the_same_again_has_its_traceback_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each later time is a line, with what was raised; the records tell its type alone."""

    async def unreachable(key: str) -> str:
        raise OSError(f"no way to {key}")

    async def function(s: Saga, order: Order) -> str:
        return await s.step(unreachable)

    async def main(runtime: SimRuntime) -> None:
        saga = SagaDefinition(function, "tries", deadline_s=60.0, policy=PATIENT)
        async with started(runtime, Participants(), saga) as (engine, handle):
            with pytest.raises(SagaUndone):
                await handle.result(within_s=60.0)
            lines = (await engine.show("A-1")).lines
        assert [each.why for each in lines if each.kind == "begun" and each.attempt > 1] == [
            "after OSError was raised; its text is in the log of the process that ran it"
        ] * 2
        logged = [each for each in caplog.records if "raised" in each.getMessage()]
        assert [each.exc_info is not None for each in logged] == [True, False, False]
        assert logged[1].getMessage().endswith("raised again: OSError: no way to A-1/unreachable#1")

    run(main)


def test_a_wrong_statement_of_a_write_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With its place and traceback: a run that is undone for a bug is a bug that is seen."""

    async def hold(tx: Transaction, order: Order) -> None:
        await tx.execute("insert into shelf values (?)", order.id)

    async def function(s: Saga, order: Order) -> None:
        await s.write(hold, order)

    async def main(runtime: SimRuntime) -> None:
        saga = SagaDefinition(function, "holds", deadline_s=60.0, policy=PATIENT)
        async with started(runtime, Participants(), saga) as (_, handle):
            with pytest.raises(SagaUndone, match="no such table"):
                await handle.result(within_s=60.0)
        logged = [each for each in caplog.records if "hold#1" in each.getMessage()]
        assert {each.levelname for each in logged} == {"ERROR"}
        assert [each.exc_info is not None for each in logged] == [True, False, False]
        assert "test_saga_functions.py" in logged[1].getMessage()

    run(main)


def test_a_rejection_says_that_nothing_was_done() -> None:
    """It is not undone itself, and the client is told the rejection."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(refuses={"A-1"}), Participants()
        ended = await told(runtime, others, paying(provider))
        assert isinstance(ended, Declined)
        assert ended.message == "A-1 has no credit"
        assert (provider.keys, provider.given, +others.live) == ([KEY], [], {})

    run(main)


def test_what_was_certainly_not_sent_uses_up_no_attempts() -> None:
    """As where a breaker around the SDK is open."""

    async def main(runtime: SimRuntime) -> None:
        provider = Provider(faults=[Shed("full")] * 9)
        assert await told(runtime, Participants(), paying(provider)) == "R-0"
        assert len(provider.keys) == 10

    run(main)


def test_a_pivot_believes_a_rejection_alone() -> None:
    """Another error says nothing of what was sent before it; it is asked until it is known."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(faults=[Shed("full"), LOST, DUMB]), Participants()
        assert await told(runtime, others, paying(provider, is_pivot=True)) == "R-0"
        assert provider.keys == [KEY] * 4

    async def never_known(runtime: SimRuntime) -> None:
        provider, others = Provider(faults=[Shed("full")] * 9999), Participants()
        assert isinstance(await told(runtime, others, paying(provider, is_pivot=True)), Stuck)
        assert +others.live == {"stock.reserve": 1}

    async def refused(runtime: SimRuntime) -> None:
        provider, others = Provider(refuses={"A-1"}), Participants()
        assert isinstance(await told(runtime, others, paying(provider, is_pivot=True)), Declined)
        assert +others.live == {}

    for story in (main, never_known, refused):
        run(story)


def test_behind_the_pivot_it_is_tried_until_it_is_done() -> None:
    """Its own attempts do not count there."""

    async def main(runtime: SimRuntime) -> None:
        provider = Provider(faults=[LOST] * 9)

        async def pays(s: Saga, order: Order) -> str:
            await s.call(Bank.charge(order.id), pivot=True)
            return (await s.step(provider.pay, order.id, 1, attempts_max=1)).id

        saga = SagaDefinition(pays, "pays", policy=PATIENT)
        assert await told(runtime, Participants(), saga) == "R-0"
        assert len(provider.keys) == 10

    run(main)


def test_an_undo_is_tried_until_it_is_done() -> None:
    """A failed one is never passed over; a refused one needs a person, who says it is done."""

    async def main(runtime: SimRuntime) -> None:
        provider = Provider(undo_faults=[LOST, DUMB, Shed("full"), LOST])
        others = Participants(refuses={"bank.charge"})
        assert isinstance(await told(runtime, others, paying(provider)), Declined)
        assert set(provider.undo_keys) == {f"{KEY}/undo"}
        assert (len(provider.undo_keys), provider.paid) == (5, {})

    async def refused(runtime: SimRuntime) -> None:
        provider = Provider(undo_faults=[OutOfStock("no refunds on Sundays")])
        others = Participants(refuses={"bank.charge"})
        saga = paying(provider)
        async with started(runtime, others, saga) as (engine, handle):
            with pytest.raises(Stuck, match="no refunds on Sundays"):
                await handle.result(FOREVER_S)
            assert +others.live == {"stock.reserve": 1}, "what is behind it waits"
            await engine.repair("A-1", RepairVerb.SKIP, RepairWish("ada", "by bank transfer"))
            with pytest.raises(Declined):
                await handle.result(FOREVER_S)
        assert +others.live == {}

    for story in (main, refused):
        run(story)


def test_a_person_gives_the_result_of_a_step_that_is_stuck() -> None:
    """It has to be of the step's type."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(faults=[LOST] * 9999), Participants()
        async with started(runtime, others, paying(provider, is_pivot=True)) as (engine, handle):
            with pytest.raises(Stuck):
                await handle.result(FOREVER_S)
            skip = RepairVerb.SKIP
            with pytest.raises(SynchromeshError, match=r"the result is not what pay returns"):
                await engine.repair("A-1", skip, RepairWish("ada", "seen", result=b'{"no":1}'))
            seen = RepairWish("ada", "seen", result=b'{"id":"R-9","cents":700}')
            await engine.repair("A-1", skip, seen)
            assert await handle.result(FOREVER_S) == "R-9"

    run(main)


def test_a_result_that_cannot_be_stored_is_unknown() -> None:
    """It has happened: it is undone, and the reason says what is wrong."""
    given: list[object] = []

    async def upload(key: str) -> int:
        return object()  # type: ignore[return-value]

    async def remove(key: str, done: int | Unknown) -> None:
        given.append(done)

    async def uploads(s: Saga, order: Order) -> None:
        await s.step(upload, undo=remove)

    async def main(runtime: SimRuntime) -> None:
        ended = await told(runtime, Participants(), SagaDefinition(uploads, "u", policy=PATIENT))
        assert isinstance(ended, SagaUndone)
        assert given == [Unknown("A-1/upload#1", ())]

    run(main)


def test_a_function_takes_no_steps_of_its_own() -> None:
    """It is no saga: what it asks for is nobody's, and the run is undone."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()

        async def nests(s: Saga, order: Order) -> str:
            async def pay(key: str) -> str:
                return (await s.call(Bank.charge(key))).id

            return await s.step(pay, undo=look)

        async def look(key: str, done: str | Unknown) -> None:
            assert isinstance(done, Unknown)

        ended = await told(runtime, others, SagaDefinition(nests, "nests", policy=PATIENT))
        assert isinstance(ended, SagaUndone)
        assert others.sent == []

    run(main)


def test_a_function_that_is_cancelled_within_ends_no_run() -> None:
    """As where an SDK cancels what it awaits: the outcome is unknown."""

    async def main(runtime: SimRuntime) -> None:
        provider = Provider()

        async def pay(key: str, customer: str) -> Receipt:
            receipt = await provider.pay(key, customer, 1)
            if len(provider.keys) == 1:
                raise asyncio.CancelledError
            return receipt

        async def pays(s: Saga, order: Order) -> str:
            return (await s.step(pay, order.id)).id

        saga = SagaDefinition(pays, "pays", policy=PATIENT)
        assert await told(runtime, Participants(), saga) == "R-0"
        assert provider.keys == [KEY, KEY]

    run(main)


def test_a_cancelled_run_cuts_its_function_and_undoes_it() -> None:
    """What was cut may have been done."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(faults=[HANGS]), Participants()
        async with started(runtime, others, paying(provider, timeout_s=50.0)) as (_, handle):
            await asyncio.sleep(0.5)
            await handle.cancel("no longer wanted")
            with pytest.raises(SagaUndone, match="no longer wanted"):
                await handle.result(FOREVER_S)
        assert provider.given == [Unknown(KEY, ("A-1", 700))]
        assert +others.live == {}

    run(main)


def test_the_deadline_of_the_starter_is_none_of_the_steps() -> None:
    """A run is a tree of calls of its own (D1); a step's guarded calls end by its own time."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(), Participants(latency_s=0.4)
        guarded = Policy(timeout_s=9.0, retry=None, breaker=None).wrap(
            provider.pay, rng=runtime.rng
        )

        async def pay(key: str, customer: str) -> Receipt:
            return await guarded(key, customer, 1)

        async def pays(s: Saga, order: Order) -> str:
            await s.call(Stock.reserve(order.id, 1), undo=Stock.release)
            return (await s.step(pay, order.id, timeout_s=0.5)).id

        saga = SagaDefinition(pays, "pays", policy=PATIENT)
        async with at_work(runtime, others, saga) as engine:
            with deadline(0.2):
                handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(FOREVER_S) == "R-0"
            provider.latency_s = 0.4
            handle = await engine.start(saga, Order("A-2"), id="A-2", context=CONTEXT)
            with pytest.raises(SagaUndone, match="pay"):
                await handle.result(FOREVER_S)

    run(main)


def test_it_is_cut_at_the_deadline_of_the_saga() -> None:
    """However long its own timeout is: the run turns, and the function is undone as unknown."""

    async def main(runtime: SimRuntime) -> None:
        provider, others = Provider(faults=[HANGS] * 9), Participants()
        began_s = asyncio.get_running_loop().time()
        ended = await told(runtime, others, paying(provider, timeout_s=1e6))
        assert isinstance(ended, SagaUndone)
        assert 59.0 < asyncio.get_running_loop().time() - began_s < 62.0
        assert provider.given == [Unknown(KEY, ("A-1", 700))]

    run(main)


# -- a power cut at every step -------------------------------------------------------------------

STORIES: dict[str, tuple[str, list[Fault], set[str]]] = {
    "completes": ("completed", [], set()),
    "pivot refused": ("undone", [], {"bank.charge"}),
    "unknown": ("undone", [DUMB] * 99, set()),
    "answer lost": ("completed", [DUMB], set()),
}


class Shop:
    """One node whose saga pays at a provider; the provider knows no power cuts."""

    def __init__(self, story: str, cut_at: int = 0) -> None:
        self.ends, faults, refuses = STORIES[story]
        self.provider = Provider(faults=list(faults))
        self.others = Participants(refuses=set(refuses))
        self.world = World(seed=1)
        self.node = self.world.node("orders", self.main)
        self.cut_at = cut_at
        self.is_told = False
        self.counts: Counter[str] = Counter()
        self.world.on_step = self.on_step

    def on_step(self, node: Any) -> None:
        if self.cut_at and node.steps >= self.cut_at:
            self.cut_at = 0
            node.crash(0.05)

    def saga(self) -> SagaDefinition[Any, Any]:
        provider = self.provider

        async def ships(s: Saga, order: Order) -> str:
            created = await s.write(create_order, order, undo=reject_order)
            paid = await s.step(provider.pay, created.order, 5, undo=provider.refund)
            await s.call(Bank.charge(order.id), pivot=True)
            return f"{paid.id} {(await s.step(self.ship, paid)).id}"

        return SagaDefinition(ships, "ships", deadline_s=60.0, policy=PATIENT)

    async def ship(self, key: str, paid: Receipt) -> Receipt:
        await asyncio.sleep(0.001)
        return paid

    async def main(self, runtime: SimRuntime) -> None:
        saga = self.saga()
        store = await open_store(runtime)
        engine = engine_on(store, self.others, runtime, [saga])
        await engine.recover()
        handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
        with suppress(Rejection, SagaUndone):
            await handle.result(FOREVER_S)
        self.counts.update(engine.counts)
        await engine.close()
        await store.close()
        self.is_told = True

    def play(self) -> None:
        self.node.start()
        self.world.run(self.watch())
        ((status,),) = self.world.disk.rows("/orders.db", "select status from sm_saga")
        assert status == self.ends
        is_done = self.ends == "completed"
        assert len(self.provider.paid) == int(is_done)
        assert +self.others.live == ({"bank.charge": 1} if is_done else {})
        assert set(self.provider.keys) <= {KEY}
        orders = self.world.disk.rows("/orders.db", "select state, n from orders")
        assert orders == [("open", 1) if is_done else ("rejected", 0)]

    async def watch(self) -> None:
        for _ in range(4000):
            await asyncio.sleep(0.05)
            if self.is_told:
                return
        raise AssertionError("never ended")


@pytest.mark.parametrize("story", STORIES)
def test_a_power_cut_at_any_step_leaves_all_or_nothing(story: str) -> None:
    """What the provider keeps is what the saga ended with, whenever the power fails."""
    calm = Shop(story)
    calm.play()
    seen: Counter[str] = Counter()
    for step in range(1, calm.node.steps + 1, 2):  # a record takes several
        shop = Shop(story, step)
        shop.play()
        seen.update(shop.counts)
        seen["asked again"] += len(shop.provider.keys) > len(calm.provider.keys)
        seen["undone unknown"] += any(isinstance(each, Unknown) for each in shop.provider.given)
        seen["undone twice"] += len(shop.provider.undo_keys) > 1
    assert seen["recovered"] > 5
    assert seen["asked again"] > 0
    if calm.ends == "undone":
        assert seen["undone twice"] > 0
        assert seen["undone unknown"] > 0 or story != "unknown"
