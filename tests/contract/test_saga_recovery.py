"""Sagas over crashes and restarts: nothing is lost, nothing comes twice, nothing is stranded."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from saga_fakes import (
    CONTEXT,
    DUMB,
    HANGS,
    LOST,
    ON_POSTGRES,
    ON_SQLITE,
    PATIENT,
    PLACE,
    THREE,
    Bank,
    Created,
    Fault,
    Order,
    Participants,
    Plant,
    Quote,
    Stock,
    at_work,
    audit,
    create_order,
    engine_on,
    has_left,
    open_store,
    reject_order,
    rows,
)
from synchromesh.errors import (
    ContractError,
    Fenced,
    NoInstance,
    SagaError,
    SagaGone,
    SagaLocked,
    SagaUndone,
    Shed,
    StoreFull,
    Stuck,
    SynchromeshError,
)
from synchromesh.saga import Engine, EngineOptions, Saga, SagaDefinition, SagaRun
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import SagaCause, SagaStatus
from synchromesh.store import Store, Unit
from synchromesh.testing import SimRuntime, World, run
from virtual_postgres import few, is_on

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 10_000.0


# -- a crash at every step -----------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """One saga under one weather, and how it has to end."""

    definition: SagaDefinition[Any, Any]
    ends: str
    refuses: frozenset[str] = frozenset()
    faults: tuple[tuple[str, tuple[Fault, ...]], ...] = ()
    is_bad: bool = False


SCENARIOS = {
    "completes": Scenario(PLACE, "completed"),
    "three calls": Scenario(THREE, "completed"),
    "pivot refused": Scenario(PLACE, "undone", frozenset({"bank.charge"})),
    "last refused": Scenario(THREE, "undone", frozenset({"bank.charge"})),
    "write refused": Scenario(PLACE, "undone", is_bad=True),
    "pivot unknown": Scenario(PLACE, "completed", faults=(("bank.charge", (DUMB, LOST)),)),
    "step unknown": Scenario(
        THREE, "undone", faults=(("plant.book", (LOST, DUMB, LOST, LOST, LOST)),)
    ),
    "undo fails": Scenario(
        THREE, "undone", frozenset({"bank.charge"}), (("plant.unbook", (LOST, DUMB)),)
    ),
}


class Universe:
    """One node that starts a saga in each of its lives, until it has ended."""

    def __init__(self, scenario: Scenario, crash_at: int | None) -> None:
        self.scenario = scenario
        self.others = Participants(
            faults={name: list(faults) for name, faults in scenario.faults},
            refuses=set(scenario.refuses),
        )
        self.told: list[str] = []
        self.counts: Counter[str] = Counter()
        self.engines: list[Engine] = []
        self.world = World(seed=1)
        self.node = self.world.node("orders", self.main)
        self.crash_at = crash_at
        self.world.on_step = self.on_step

    def on_step(self, node: Any) -> None:
        if self.crash_at is not None and node.steps >= self.crash_at:
            self.crash_at = None
            node.crash(0.05)

    async def main(self, runtime: SimRuntime) -> None:
        store = await open_store(runtime)
        engine = engine_on(store, self.others, runtime)
        self.engines.append(engine)
        await engine.recover()
        order = Order("A-1", is_bad=self.scenario.is_bad)
        handle = await engine.start(self.scenario.definition, order, id="A-1", context=CONTEXT)
        try:
            told = repr(await handle.result(FOREVER_S))
        except SynchromeshError as error:
            told = error.code
        await engine.close()
        await store.close()
        self.told.append(told)

    async def watch(self) -> None:
        for _ in range(4000):
            await asyncio.sleep(0.05)
            if self.told:
                return
        raise AssertionError(f"never ended: {self.others.log}")

    def play(self) -> None:
        self.node.start()
        self.world.run(self.watch())
        for engine in self.engines:
            self.counts.update(engine.counts)

    def audit(self) -> None:
        """Judge by the database and the participants alone."""
        read = partial(audit, self.world)
        ((status,),) = read("select status from sm_saga")
        assert status == self.scenario.ends
        kinds = read("select seq, kind from sm_saga_record order by seq")
        assert [seq for seq, _ in kinds] == list(range(1, len(kinds) + 1))
        assert kinds[-1][1] == "ended"
        orders = read("select state, n from orders")
        live = dict(+self.others.live)
        is_placed = self.scenario.definition is PLACE
        if status == "completed":
            assert live == {"stock.reserve": 1, "plant.book": 1, "bank.charge": 1}
            assert orders == ([("open", 1)] if is_placed else [])
        else:
            assert live == {}
            assert orders in ([], [("rejected", 0)])
            self.audit_order()
        assert max(self.others.live.values(), default=0) <= 1
        # One crash makes at most one re-run of what was in flight: two steps side by side.
        sends = Counter(context.key for _, _, context in self.others.sent if context.key)
        assert max(sends.values(), default=0) <= 6

    def audit_order(self) -> None:
        log = self.others.log
        if "plant.unbook" in log and "stock.release" in log:
            assert log.index("plant.unbook") < log.index("stock.release")


@ON_SQLITE
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_crash_at_any_step_leaves_all_or_nothing(name: str) -> None:
    """Killed before each step of the process in turn, a saga ends as it would have (S1 to S5)."""
    play_with_crashes(name)


@ON_POSTGRES
@pytest.mark.parametrize("name", ["pivot unknown", "undo fails"])
def test_a_crash_leaves_all_or_nothing_on_a_server_too(name: str) -> None:
    """A commit that was under way took effect or not, and the next life has the runs (S1 to S5)."""
    play_with_crashes(name)


def play_with_crashes(name: str) -> None:
    calm = Universe(SCENARIOS[name], None)
    calm.play()
    calm.audit()
    seen: Counter[str] = Counter()
    for step in few(range(1, calm.node.steps + 1), 12):
        universe = Universe(SCENARIOS[name], step)
        universe.play()
        universe.audit()
        seen.update(universe.counts)
        seen.update(universe.others.seen)
    # On a server every twelfth step is tried alone.
    assert seen["recovered"] > (2 if is_on() else 5), "the rare path was walked"
    if not is_on() and SCENARIOS[name].ends == "undone" and not SCENARIOS[name].is_bad:
        assert seen["recovered mid-undo"] > 0
        assert seen["asked again"] > 0


# -- leaving memory and coming back --------------------------------------------------------------


def define(
    fn: Callable[[Saga, Order], Coroutine[Any, Any, Any]], **more: Any
) -> SagaDefinition[Any, Any]:
    return SagaDefinition(fn, "changing", **{"deadline_s": 60.0, "policy": PATIENT, **more})


async def first_code(s: Saga, order: Order) -> str:
    created = await s.write(create_order, order, undo=reject_order)
    hold = await s.call(Stock.reserve(created.order, 1), undo=Stock.release)
    await s.call(Bank.charge(order.id), pivot=True)
    return hold.id


async def same_steps(s: Saga, order: Order) -> str:
    """The same steps, written otherwise, and one more behind them."""
    made = await s.write(create_order, order, undo=reject_order)
    (hold,) = await s.all(s.call(Stock.reserve(made.order, 1), undo=Stock.release))
    await s.call(Bank.charge(order.id), pivot=True)
    booked = await s.call(Plant.book("more"))
    return f"{hold.id} {booked.id}"


async def other_arguments(s: Saga, order: Order) -> None:
    created = await s.write(create_order, order, undo=reject_order)
    await s.call(Stock.reserve(created.order, 2), undo=Stock.release)


async def other_step(s: Saga, order: Order) -> None:
    await s.write(create_order, order, undo=reject_order)
    await s.call(Plant.book(order.id), undo=Plant.unbook)


async def ends_early(s: Saga, order: Order) -> None:
    await s.write(create_order, order, undo=reject_order)


async def raises_early(s: Saga, order: Order) -> None:
    raise KeyError(order.id)


async def pivot_moved(s: Saga, order: Order) -> None:
    created = await s.write(create_order, order, undo=reject_order)
    await s.call(Stock.reserve(created.order, 1), pivot=True)


async def create_order_as_hold(tx: Any, order: Order) -> Quote:
    return Quote(order.id)


create_order_as_hold.__name__ = "create_order"


async def other_result(s: Saga, order: Order) -> None:
    quote = await s.write(create_order_as_hold, order)
    await s.call(Plant.book(quote.slot))


async def other_input(s: Saga, order: Quote) -> None:
    await s.call(Plant.book(order.slot))


async def left_behind(
    runtime: SimRuntime,
    others: Participants,
    definition: SagaDefinition[Any, Any],
    *,
    after_s: float = 0.1,
) -> None:
    """Start a run, and leave memory after a while."""
    async with at_work(runtime, others, definition) as engine:
        await engine.start(definition, Order("A-1"), id="A-1", context=CONTEXT)
        await asyncio.sleep(after_s)


def test_new_code_continues_a_run_whose_steps_it_still_matches() -> None:
    """Recorded results are given to it; only what has none is asked (S11)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        await left_behind(runtime, others, define(first_code))
        newer = define(same_steps, version=2)
        async with at_work(runtime, others, newer) as engine:
            handle = await engine.start(newer, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(FOREVER_S) == "stock.reserve/0 plant.book/2"
            assert engine.counts["recovered"] == 1
        assert await rows(runtime, "select n from orders") == [(1,)]

    run(main)


@pytest.mark.parametrize(
    ("step", "refused", "ends"),
    [
        ("plant.book", "", SagaStatus.COMPLETED),
        ("bank.charge", "", SagaStatus.COMPLETED),
        ("stock.release", "bank.charge", SagaStatus.UNDONE),
    ],
)
def test_a_run_that_was_down_past_its_deadlines_waits_for_those_that_it_needs(
    step: str, refused: str, ends: SagaStatus
) -> None:
    """After a night without power the others may come up later; that alone is no reason to stick.

    It holds where a run cannot turn: after the pivot, in a doubtful pivot, and in an undo. Past the
    minute the deadline counts again.
    """

    async def main(runtime: SimRuntime, seconds: float) -> SagaStatus:
        others = Participants(faults={step: [HANGS]}, refuses={refused})
        async with at_work(runtime, others) as engine:
            await engine.start(PLACE, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        await asyncio.sleep(8 * 3600.0)
        others.faults[step] = [NoInstance("nobody is up yet")] * 1000
        async with at_work(runtime, others) as engine:
            await asyncio.sleep(seconds)
            others.faults[step] = []
            await asyncio.sleep(30.0)
            return SagaStatus((await engine.show("A-1")).summary.status)

    assert run(lambda runtime: main(runtime, 20.0), until_s=100_000.0) is ends
    assert run(lambda runtime: main(runtime, 90.0), until_s=100_000.0) is SagaStatus.STUCK


async def stuck_run(runtime: SimRuntime) -> Store:
    """Leave a run that became stuck in its database, and return that."""
    others = Participants(refuses={"plant.book"})
    async with at_work(runtime, others) as engine:
        handle = await engine.start(PLACE, Order("A-1"), id="A-1", context=CONTEXT)
        with pytest.raises(Stuck):
            await handle.result(FOREVER_S)
    store: Store = await open_store(runtime)
    return store


def test_a_record_that_nobody_can_read_holds_its_own_run_alone() -> None:
    """A release that was taken back, or an edited file, must not keep the service from starting."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS, HANGS]})
        async with at_work(runtime, others) as engine:
            for each in ("A-1", "A-2"):
                await engine.start(THREE, Order(each), id=each, context=CONTEXT)
            await asyncio.sleep(0.1)
        store = await open_store(runtime)

        async def spoil(unit: Unit) -> None:
            await unit.execute("update sm_saga_record set kind = 'paused' where saga = 'A-1'")

        await store.write(spoil, name="spoil")
        await store.close()
        async with at_work(runtime, others) as engine:
            handle = await engine.start(THREE, Order("A-2"), id="A-2", context=CONTEXT)
            assert await handle.result(FOREVER_S) is not None
            assert [each.id for each in await engine.runs("waiting")] == ["A-1"]
            # What can be read is shown, and what cannot says so: a person needs both.
            story = await engine.show("A-1")
            ((kind, step, why),) = [(each.kind, each.step, each.why) for each in story.lines]
            assert (kind, step) == ("paused", "stock.reserve#1")
            assert "cannot be read: 'paused' is not a valid RecordKind" in why
            assert "record 1 of saga 'A-1' cannot be read" in story.summary.reason
            assert await engine.conclusion("A-1", FOREVER_S) is None
        store = await open_store(runtime)

        async def mend(unit: Unit) -> None:
            await unit.execute("update sm_saga_record set kind = 'begun' where kind = 'paused'")

        await store.write(mend, name="mend")
        await store.close()
        async with at_work(runtime, others) as engine:
            assert await engine.conclusion("A-1", FOREVER_S) is not None

    run(main)


@pytest.mark.parametrize(
    ("spoilt", "kind"),
    [
        ("body = '[]' where kind = 'stuck'", "stuck"),
        ("body = '[' where kind = 'stuck'", "stuck"),
        ("kind = 'paused' where kind = 'stuck'", "paused"),
    ],
)
def test_a_story_and_its_conclusion_survive_any_record_that_was_spoilt(
    spoilt: str, kind: str
) -> None:
    """The line says that it cannot be read; the reason is kept beside the records as well."""
    tell_of_spoilt(spoilt, kind)


@ON_SQLITE
@pytest.mark.parametrize("spoilt", ["at_us = 'late'", "attempt = 'x', at_us = x'00'"])
def test_they_survive_a_value_of_another_type(spoilt: str) -> None:
    """SQLite takes it in any column."""
    tell_of_spoilt(f"{spoilt} where kind = 'stuck'", "stuck")


def tell_of_spoilt(spoilt: str, kind: str) -> None:

    async def main(runtime: SimRuntime) -> None:
        store = await stuck_run(runtime)

        async def spoil(unit: Unit) -> None:
            await unit.execute(f"update sm_saga_record set {spoilt}")

        await store.write(spoil, name="spoil")
        await store.close()
        async with at_work(runtime, Participants()) as engine:
            story = await engine.show("A-1")
            assert story.lines[-1].kind == kind
            assert "cannot be read" in story.lines[-1].why
            ended = await engine.conclusion("A-1", FOREVER_S)
            assert ended is not None
            assert ended.cause.reason == story.summary.reason != ""

    run(main)


def test_a_status_that_nobody_knows_is_an_error_with_a_reason() -> None:
    """Neither the story nor the conclusion of such a run can be told."""

    async def main(runtime: SimRuntime) -> None:
        store = await stuck_run(runtime)

        async def spoil(unit: Unit) -> None:
            await unit.execute("update sm_saga set status = 'paused'")

        await store.write(spoil, name="spoil")
        await store.close()
        async with at_work(runtime, Participants()) as engine:
            for asking in (engine.show("A-1"), engine.conclusion("A-1", FOREVER_S)):
                with pytest.raises(SagaError, match="'A-1' has the status 'paused'"):
                    await asking

    run(main)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (other_arguments, "stock.reserve#1 is recorded with other arguments"),
        (other_step, "the code asks for plant.book#1 where stock.reserve#1 is recorded"),
        (ends_early, "stock.reserve#1, which"),
        (raises_early, "stock.reserve#1, which"),
        (pivot_moved, "stock.reserve#1 is now the pivot"),
        (other_result, "a recorded result of create_order#1 does not fit"),
        (other_input, "v2 does not fit: the data does not fit"),
    ],
)
@pytest.mark.parametrize("is_turned", [False, True])
def test_a_run_that_new_code_does_not_match_waits_and_is_named(
    code: Callable[[Saga, Any], Coroutine[Any, Any, Any]], why: str, is_turned: bool
) -> None:
    """Nothing of it is done, and with code that fits it goes on by itself, either way (S11)."""

    async def main(runtime: SimRuntime) -> None:
        faults: list[Fault] = [HANGS] * 9
        others = Participants(faults={"stock.reserve": faults, "stock.release": [*faults]})
        older = define(first_code)
        async with at_work(runtime, others, older) as engine:
            handle = await engine.start(older, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.1)
            if is_turned:
                await handle.cancel("enough")
                await asyncio.sleep(0.1)
        sent = len(others.sent)
        newer = define(code, version=2)
        for _ in range(2):
            async with at_work(runtime, others, newer) as engine:
                assert await engine.conclusion("A-1", FOREVER_S) is None
                summary = (await engine.show("A-1")).summary
                assert (summary.status, await engine.statuses()) == ("waiting", {"waiting": 1})
                assert summary.reason.startswith("code v1: v2 does not fit: ")
                assert why in summary.reason
                assert [each.id for each in await engine.runs("waiting")] == ["A-1"]
                assert await engine.adopt() == 0, "this process has no other code"
        assert len(others.sent) == sent
        others.faults.clear()
        async with at_work(runtime, others, older) as engine:
            ended = await engine.conclusion("A-1", FOREVER_S)
            assert ended is not None
            assert ended.status is (SagaStatus.UNDONE if is_turned else SagaStatus.COMPLETED)
        told = await rows(runtime, "select name from sm_event order by position")
        names = [name for (name,) in told]
        assert names.count("orders.saga_waiting") == names.count("orders.saga_resumed") == 1
        assert dict(+others.live) == ({} if is_turned else {"stock.reserve": 1, "bank.charge": 1})

    run(main)


def test_old_code_stays_for_old_runs_beside_the_new() -> None:
    """`version=` keeps it: a run ends with the code that started it, new runs have the newest."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        old, new = define(first_code), define(other_step, version=2)
        await left_behind(runtime, others, old)
        async with at_work(runtime, others, new, old) as engine:
            with pytest.raises(ContractError, match="there for its old runs; start version 2"):
                await engine.start(old, Order("A-3"), id="A-3", context=CONTEXT)
            await engine.start(new, Order("A-2"), id="A-2", context=CONTEXT)
            for each in ("A-1", "A-2"):
                ended = await engine.conclusion(each, FOREVER_S)
                assert ended is not None
                assert ended.status is SagaStatus.COMPLETED
        assert others.live == {"stock.reserve": 1, "bank.charge": 1, "plant.book": 1}

    run(main)


def test_of_newer_versions_the_next_one_that_fits_continues_a_run() -> None:
    """Where its own is gone; one that does not fit is passed over."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        await left_behind(runtime, others, define(first_code))
        codes = [define(other_step, version=2), define(same_steps, version=3)]
        async with at_work(runtime, others, *codes) as engine:
            assert await engine.conclusion("A-1", FOREVER_S) is not None
        assert "plant.book" in others.live, "the step that version 3 has more"

    run(main)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_saga_or_a_version_that_this_code_does_not_know_waits(is_known: bool) -> None:
    """A rolled back or removed saga is shown, not forgotten; it may be cancelled all the same."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        await left_behind(runtime, others, define(first_code, version=3))
        code = define(first_code, version=2) if is_known else PLACE
        async with at_work(runtime, others, code) as engine:
            (left,) = await engine.runs("waiting")
            words = "version 2 at most" if is_known else "no such saga"
            assert left.reason == f"code v3: this release has {words}"
        told = await rows(runtime, "select name from sm_event order by position desc limit 1")
        assert told == [("orders.saga_waiting",)]

    run(main)


def test_records_that_were_changed_make_a_run_wait() -> None:
    """A history that cannot be is not continued."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        await left_behind(runtime, others, THREE)
        store = await open_store(runtime)

        async def tamper(unit: Any) -> None:
            await unit.execute("update sm_saga_record set kind = 'undone'")

        await store.write(tamper, name="tamper")
        await store.close()
        async with at_work(runtime, others) as engine:
            (left,) = await engine.runs("waiting")
            assert "cannot follow" in left.reason

    run(main)


def test_the_deadline_counts_while_the_process_is_down() -> None:
    """A run that comes back past its deadline is undone, its step in flight too."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"plant.book": [HANGS]})
        await left_behind(runtime, others, THREE)
        await asyncio.sleep(60.0)
        async with at_work(runtime, others) as engine:
            handle = await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(SagaUndone, match="deadline passed"):
                await handle.result(1.0)
        assert len(others.sends_of("plant.book")) == 1
        assert others.log == ["stock.reserve", "stock.release"]
        assert others.seen["tombstone"] == 1

    run(main)


def test_a_pivot_in_flight_is_asked_again_after_a_long_time_down() -> None:
    """What its key holds is fetched; only then is anything judged (S8)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"bank.charge": [HANGS]})
        await left_behind(runtime, others, PLACE)
        await asyncio.sleep(600.0)
        async with at_work(runtime, others) as engine:
            handle = await engine.start(PLACE, Order("A-1"), id="A-1", context=CONTEXT)
            assert await handle.result(FOREVER_S) is not None
        assert others.live["bank.charge"] == 1

    run(main)


def test_a_run_that_was_being_undone_goes_on_undoing() -> None:
    """The change of direction survives; an undo in flight is asked again under its key (S9)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(refuses={"bank.charge"}, faults={"plant.unbook": [HANGS]})
        await left_behind(runtime, others, THREE)
        others.refuses.clear()
        async with at_work(runtime, others) as engine:
            handle = await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            await handle.cancel("already")
            with pytest.raises(SynchromeshError, match="says no"):
                await handle.result(FOREVER_S)
            assert engine.counts["recovered mid-undo"] == 1
        assert +others.live == {}
        keys = {context.key for context in others.sends_of("plant.unbook")}
        assert keys == {"A-1/plant.book#1/undo"}

    run(main)


def test_many_runs_are_recovered_at_once() -> None:
    """More than may be started at once: what is owed is never refused."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS] * 150})
        async with at_work(runtime, others, THREE) as engine:
            for n in range(150):
                await engine.start(THREE, Order(f"A-{n}"), id=f"A-{n}", context=CONTEXT)
            await asyncio.sleep(0.1)
        async with at_work(
            runtime, others, THREE, options=EngineOptions(in_flight_max=10)
        ) as engine:
            for n in range(150):
                assert await engine.conclusion(f"A-{n}", FOREVER_S) is not None
            assert engine.counts["recovered"] == engine.counts["completed"] == 150
        assert others.live["bank.charge"] == 150

    run(main)


@ON_SQLITE
def test_after_a_takeover_no_record_of_the_old_engine_is_accepted() -> None:
    """The epoch is checked in every commit (S10)."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(latency_s=0.2)
        store = await open_store(runtime)
        old, new = engine_on(store, others, runtime), engine_on(store, others, runtime)
        await old.recover()
        handle = await old.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
        await new.recover()
        with pytest.raises(SagaGone):
            await handle.result(FOREVER_S)
        with pytest.raises(SagaGone):
            await old.cancel("A-1", "mine")
        with pytest.raises(Fenced):
            await old.start(THREE, Order("A-2"), id="A-2", context=CONTEXT)
        taken = await new.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
        assert await taken.result(FOREVER_S) is not None
        await old.close()
        await new.close()
        records = await store.read("select count(*) from sm_saga_record where kind = 'ended'")
        await store.close()
        assert records == [(1,)]
        assert max(others.live.values()) == 1

    run(main)


def test_records_that_came_late_put_a_run_out_of_memory_and_it_goes_on_from_them() -> None:
    """A commit of a run that left memory may land behind its successor's back; none is lost."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        store = await open_store(runtime)
        engine = engine_on(store, others, runtime)
        await engine.recover()
        await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
        await asyncio.sleep(0.1)

        async def late(unit: Unit) -> None:
            await unit.execute(
                "insert into sm_saga_record select saga, seq + 1, kind, step, attempt + 1, digest, "
                "body, at_us from sm_saga_record where saga = 'A-1'"
            )

        await store.write(late, name="late")
        await has_left(await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT))
        assert await engine.adopt() == 1
        assert await engine.conclusion("A-1", FOREVER_S) is not None
        assert others.live["bank.charge"] == 1
        await engine.close()
        await store.close()

    run(main)


@ON_SQLITE
def test_a_write_of_an_engine_that_was_taken_over_has_no_effect() -> None:
    """The business rows of a step are under the same fence as its record (S10)."""

    async def slow_then_write(s: Saga, order: Order) -> Created:
        await s.call(Plant.quote(order.id))
        return await s.write(create_order, order, undo=reject_order)

    async def main(runtime: SimRuntime) -> None:
        others, saga = Participants(latency_s=0.2), define(slow_then_write)
        store = await open_store(runtime)
        old = engine_on(store, others, runtime, [saga])
        await old.recover()
        handle = await old.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
        new = engine_on(store, others, runtime, [])
        await new.recover()
        with pytest.raises((SagaGone, Stuck)):
            await handle.result(FOREVER_S)
        await old.close()
        await new.close()
        assert await store.read("select * from orders") == []
        await store.close()

    run(main)


class FullDisk:
    """A store that has no room for a while."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.failures = 0

    async def write(self, body: Any, *, name: str) -> Any:
        if self.failures:
            self.failures -= 1
            raise StoreFull("no page is left")
        return await self._store.write(body, name=name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_store_that_is_full_for_a_while_holds_a_run_and_loses_nothing() -> None:
    """No effect is made before its cause is durable, however long that takes (S4)."""

    async def main(runtime: SimRuntime) -> None:
        others, store = Participants(), await open_store(runtime)
        full: Any = FullDisk(store)
        engine = engine_on(full, others, runtime)
        await engine.recover()
        handle = await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
        full.failures = 8
        assert await handle.result(FOREVER_S) is not None
        assert full.failures == 0
        second = await engine.start(THREE, Order("A-2"), id="A-2", context=CONTEXT)
        full.failures = 10**6
        assert await second.result(30.0) is None
        assert len(others.sent) == 4, "the second step waits for the record of the first"
        with pytest.raises(StoreFull):
            await engine.start(THREE, Order("A-3"), id="A-3", context=CONTEXT)
        assert [each.id for each in await engine.runs()] == ["A-2", "A-1"]
        await engine.close()
        await store.close()

    run(main)


def test_a_run_that_left_memory_by_a_fault_is_adopted_and_ends() -> None:
    """A fault of this process strands no run until the next start, and repeats no effect."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        async with at_work(runtime, others) as engine:
            with patch.object(SagaMachine, "on_outcome", side_effect=RuntimeError("a bug")):
                handle = await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
                await has_left(handle)
            assert await engine.adopt() == 1
            assert await engine.adopt() == 0
            assert await handle.result(FOREVER_S) is not None
            assert await engine.adopt() == 0

    run(main)


def test_an_engine_that_is_closed_leaves_runs_that_others_wait_for() -> None:
    """Leaving memory is told, and the run is as it was."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants(faults={"stock.reserve": [HANGS]})
        async with at_work(runtime, others) as engine:
            handle = await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            waiting = asyncio.ensure_future(handle.result(FOREVER_S))
            cancelling = asyncio.ensure_future(handle.cancel("no"))
            starting = asyncio.ensure_future(
                engine.start(THREE, Order("A-2"), id="A-2", context=CONTEXT)
            )
            await asyncio.sleep(0)
        ends = await asyncio.gather(waiting, cancelling, starting, return_exceptions=True)
        # Whose turn has not come yet when it closes is told that it closes.
        assert isinstance(ends[0], SagaGone | SagaUndone | Shed)
        assert ends[1] is None or isinstance(ends[1], SagaGone | Shed)
        assert isinstance(ends[2], SagaRun | Shed)
        async with at_work(runtime, others) as engine:
            await engine.conclusion("A-1", FOREVER_S)
            if isinstance(ends[2], SagaRun):
                await engine.conclusion("A-2", FOREVER_S)
            assert {each.status for each in await engine.runs()} <= {"completed", "undone"}

    for seed in few(range(20), 3):
        run(main, seed=seed)


@ON_SQLITE
def test_an_engine_is_closed_where_its_store_does_not_answer() -> None:
    """Whether a run has started is not known then: whoever waits is told that it is gone."""

    async def main(runtime: SimRuntime) -> None:
        others, options = Participants(), EngineOptions(in_flight_max=1)
        async with at_work(runtime, others, options=options) as engine:
            store, loop = engine._store, asyncio.get_running_loop()

            async def write(*_: object, **__: object) -> None:
                await loop.create_future()

            with patch.object(store, "write", write):
                starting = [
                    asyncio.ensure_future(
                        engine.start(THREE, Order(each), id=each, context=CONTEXT)
                    )
                    for each in ("A-1", "A-2")
                ]
                await asyncio.sleep(1.0)
                assert not any(each.done() for each in starting)
                await engine.close()
                for each in starting:
                    with pytest.raises(SagaGone, match=r"A-[12].* left memory before its"):
                        await each
        async with at_work(runtime, others, options=options) as engine:
            assert await engine.runs() == []

    run(main)


# -- longer away than others remember --------------------------------------------------------------

WEEK_S = 7 * 86_400.0


async def away(
    runtime: SimRuntime, others: Participants, away_s: float
) -> tuple[SagaStatus, SagaCause]:
    """Start a run that is left in the middle, come back after a while, and return its end."""
    options = EngineOptions(keep_s=WEEK_S)
    async with at_work(runtime, others, options=options) as engine:
        await engine.start(PLACE, Order("A-1"), id="A-1", context=CONTEXT)
        await asyncio.sleep(0.5)
    await asyncio.sleep(away_s)
    async with at_work(runtime, others, options=options) as engine:
        ended = await engine.conclusion("A-1", FOREVER_S)
        assert ended is not None
        return ended.status, ended.cause


@pytest.mark.parametrize(
    ("held", "refused", "step", "says"),
    [
        ("bank.charge", "", "bank.charge#1", "bank.charge#1 first went out 7.0 days ago"),
        ("plant.book", "", "plant.book#1", "plant.book#1 first went out 7.0 days ago"),
        ("stock.release", "bank.charge", "stock.reserve#1", "its undo: stock.reserve#1 first"),
        ("plant.quote", "", "stock.reserve#1", "its undo: stock.reserve#1 first"),
    ],
)
def test_what_nobody_remembers_is_not_guessed(
    held: str, refused: str, step: str, says: str
) -> None:
    """Longer away than inboxes remember a run is stuck: asked again, a pivot would charge twice.

    Its undo would be told that there is nothing to undo. A query may be asked at any time.
    """

    async def main(runtime: SimRuntime, away_s: float) -> tuple[SagaStatus, SagaCause]:
        others = Participants(faults={held: [HANGS]}, refuses={refused})
        return await away(runtime, others, away_s)

    status, cause = run(lambda r: main(r, WEEK_S), until_s=2 * WEEK_S)
    assert status is SagaStatus.STUCK
    assert (cause.step, cause.is_forgotten) == (step, True)
    assert says in cause.reason
    assert "remembered for 7.0: nobody can tell any more whether it was done" in cause.reason
    # A little earlier everybody still remembers.
    status, _ = run(lambda r: main(r, WEEK_S - 60.0), until_s=2 * WEEK_S)
    is_undone = held == "plant.quote" or bool(refused)
    assert status is (SagaStatus.UNDONE if is_undone else SagaStatus.COMPLETED)


def test_a_stuck_run_keeps_its_lock() -> None:
    """What it holds is in doubt: nobody else takes it before a person has seen to it."""

    async def main(runtime: SimRuntime) -> None:
        saga = replace(PLACE, lock_key=lambda order: f"customer {order.qty}")
        others = Participants(refuses={"plant.book"})
        async with at_work(runtime, others, saga) as engine:
            first = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(Stuck):
                await first.result(FOREVER_S)
            with pytest.raises(SagaLocked, match=r"'A-1'.* it is stuck and keeps") as refused:
                await engine.start(saga, Order("A-2"), id="A-2", context=CONTEXT)
            assert refused.value.retry_after_s == 60.0
            await engine.start(saga, Order("A-3", qty=2), id="A-3", context=CONTEXT)
            with pytest.raises(SagaLocked, match="wait for its end") as refused:
                await engine.start(saga, Order("A-4", qty=2), id="A-4", context=CONTEXT)
            assert refused.value.retry_after_s == 1.0

    run(main)
