"""A step for each of a list: so many at once, in its order, and undone in reverse."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from provider_fakes import Provider
from saga_fakes import (
    CONTEXT,
    DUMB,
    HANGS,
    LOST,
    ON_SQLITE,
    PATIENT,
    Bank,
    Declined,
    Fault,
    Hold,
    Order,
    Participants,
    Stock,
    at_work,
    audit,
    create_order,
    engine_on,
    open_store,
    reject_order,
)
from synchromesh.errors import ContractError, Rejection, SagaUndone, Stuck, SynchromeshError
from synchromesh.saga import Saga, SagaDefinition, SagaPolicy, Unknown
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.records import Ask, RecordKind, RepairVerb, SagaRecord, SagaStatus, UndoStep
from synchromesh.saga.repair import RepairWish
from synchromesh.saga.saga import EACH_MAX, STEPS_TOGETHER_MAX
from synchromesh.testing import SimRuntime, World, run

pytestmark = pytest.mark.usefixtures("each_engine")

FOREVER_S = 100_000.0


class Picky(Participants):
    """Answers the later the sooner it was asked, and refuses single items.

    Attributes:
        no: the items that are refused.
        slow: the items whose answers are late.
        most: how many were under way at once.
        asked: the items, in the order in which they were asked for.
    """

    no: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.most = self._now = 0
        self.asked: list[str] = []
        self.answered: list[str] = []
        self.released: list[str] = []

    async def send(self, operation: Any, arguments: bytes, **more: Any) -> bytes:
        """Deliver a request, and count those under way."""
        if operation.full_name != "stock.reserve":
            if operation.full_name == "stock.release":
                self.released.append(more["context"].undoes)
            return await super().send(operation, arguments, **more)
        self._now += 1
        self.most = max(self.most, self._now)
        item = msgspec.json.decode(arguments)["order"]
        self.asked.append(item)
        try:
            await asyncio.sleep(0.1 / len(self.asked))
            answer = await super().send(operation, arguments, **more)
            if item in self.slow:
                await asyncio.sleep(0.3)
        finally:
            self._now -= 1
        self.answered.append(item)
        return answer

    def _handle(self, operation: Any, arguments: bytes, context: Any) -> Any:
        if operation.full_name == "stock.reserve":
            is_no = msgspec.json.decode(arguments)["order"] in self.no
            (self.refuses.add if is_no else self.refuses.discard)("stock.reserve")
        return super()._handle(operation, arguments, context)


def holding(count: int, cap: int, *, behind: bool = False) -> SagaDefinition[Any, Any]:
    """Return a saga that holds so many items, behind a pivot or before one."""

    async def holds(s: Saga, order: Order) -> tuple[str, ...]:
        if behind:
            await s.call(Bank.charge(order.id), pivot=True)
        items = [f"item {number}" for number in range(count)]
        held = await s.each(
            items, lambda item: s.call(Stock.reserve(item, 1), undo=Stock.release), cap=cap
        )
        if not behind:
            await s.call(Bank.charge(order.id), pivot=True)
        return tuple(hold.id for hold in held)

    return SagaDefinition(holds, "holds", deadline_s=600.0, policy=PATIENT)


async def told(runtime: SimRuntime, others: Participants, saga: SagaDefinition[Any, Any]) -> object:
    """Return how a run ended: its result, or the error that is told of it."""
    async with at_work(runtime, others, saga) as engine:
        handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
        try:
            return await handle.result(FOREVER_S)
        except SynchromeshError as error:
            return error


def test_results_come_in_the_order_of_the_list() -> None:
    """They begin in that order too, and so many are under way, whatever order answers come in.

    What begins in one turn of the loop is sent in any order.
    """

    async def main(runtime: SimRuntime) -> None:
        others, saga = Picky(), holding(20, 4)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            held = await handle.result(FOREVER_S)
            assert held is not None
            lines = (await engine.show("A-1")).lines
        places = [others.asked.index(f"item {number}") for number in range(20)]
        assert max(abs(place - number) for number, place in enumerate(places)) < 4
        assert others.answered != others.asked
        assert others.most == 4
        names = [f"stock.reserve#{number}" for number in range(1, 21)]
        assert [line.step for line in lines if line.kind == "begun"][:20] == names
        by_key = {key: msgspec.json.decode(body or b"", type=Hold) for key, body in _inbox(others)}
        assert held == tuple(by_key[f"A-1/{name}"].id for name in names)

    run(main)


def _inbox(others: Participants) -> list[tuple[str, bytes]]:
    found = others.inbox.items()
    return [(key, body) for key, body in found if isinstance(body, bytes) and "reserve" in key]


def test_an_empty_list_is_no_step() -> None:
    """It gives the empty tuple."""

    async def main(runtime: SimRuntime) -> None:
        others = Picky()
        assert await told(runtime, others, holding(0, 4)) == ()
        assert others.asked == []

    run(main)


def test_a_rejection_undoes_what_was_done_in_reverse() -> None:
    """Those under way are undone as unknown, and those that had not begun never begin."""

    async def main(runtime: SimRuntime) -> None:
        others = Picky()
        others.no = frozenset({"item 9"})
        saga = holding(40, 4)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(Rejection):
                await handle.result(FOREVER_S)
            lines = (await engine.show("A-1")).lines
        assert +others.live == {}
        assert len(others.asked) <= 14
        begun = [line.step for line in lines if line.kind == "begun"]
        undone = [line.step for line in lines if line.kind == "undone"]
        assert undone == [step for step in reversed(begun) if step != "stock.reserve#10"]
        assert others.released == [f"A-1/{step}" for step in undone]
        assert others.seen["tombstone"] > 0, "one was under way"

    run(main)


def test_the_first_of_two_rejections_is_told() -> None:
    """Of two that come at once, too, it is that of the list."""

    async def main(runtime: SimRuntime) -> None:
        refused: list[str] = []

        async def check(key: str, item: int) -> None:
            await asyncio.sleep(0.1)
            raise Declined(f"no {item}")

        async def checks(s: Saga, order: Order) -> None:
            await s.each(range(8), lambda item: s.step(check, item), cap=8)

        for _ in range(5):
            ended = await told(runtime, Participants(), SagaDefinition(checks, "checks"))
            refused.append(getattr(ended, "message", ""))
        assert refused == ["no 0"] * 5

    run(main)


def test_a_restart_goes_on_with_another_cap() -> None:
    """The cap is not recorded: what was under way is asked again, so many at once as it is now."""

    async def restarted(runtime: SimRuntime, cap: int) -> None:
        saga = holding(30, 8)
        others = Picky(faults={"stock.reserve": [HANGS] * 8})
        async with at_work(runtime, others, saga) as engine:
            await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        others.most = 0
        async with at_work(runtime, others, holding(30, cap)) as engine:
            ended = await engine.conclusion("A-1", FOREVER_S)
            assert ended is not None
            assert ended.status is SagaStatus.COMPLETED
        assert (others.most, others.live["stock.reserve"]) == (cap, 30)
        sends = Counter(context.key for context in others.sends_of("stock.reserve"))
        assert sorted(sends.values()) == [1] * 22 + [2] * 8

    for cap in (2, 8, 16):
        run(lambda runtime, cap=cap: restarted(runtime, cap))  # type: ignore[misc]


def test_a_list_that_is_another_one_waits_for_its_code() -> None:
    """A shorter one leaves out what is recorded, another order has other arguments."""

    async def shuffled(s: Saga, order: Order) -> None:
        items = [f"item {number}" for number in reversed(range(10))]
        await s.each(items, lambda item: s.call(Stock.reserve(item, 1)), cap=4)

    async def main(runtime: SimRuntime, code: SagaDefinition[Any, Any], why: str) -> None:
        others, saga = Picky(faults={"bank.charge": [HANGS]}), holding(10, 4)
        async with at_work(runtime, others, saga) as engine:
            await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.5)
        async with at_work(runtime, others, code) as engine:
            (left,) = await engine.runs("waiting")
            assert why in left.reason
        assert isinstance(await told(runtime, others, saga), tuple)

    for code, why in (
        (holding(5, 4), "stock.reserve#6"),
        (SagaDefinition(shuffled, "holds"), "with other arguments"),
    ):
        run(lambda runtime, code=code, why=why: main(runtime, code, why))  # type: ignore[misc]


def test_behind_the_pivot_a_rejection_is_stuck_and_the_others_stand() -> None:
    """A retry asks again for those that were cut under their keys, for the refused one anew."""

    async def main(runtime: SimRuntime) -> None:
        others = Picky()
        others.no = frozenset({"item 3"})
        saga = holding(12, 3, behind=True)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(Stuck):
                await handle.result(FOREVER_S)
            others.no = frozenset()
            await engine.repair("A-1", RepairVerb.RETRY, RepairWish("ada", "is there again"))
            held = await handle.result(FOREVER_S)
        assert held is not None
        assert len(set(held)) == 12
        assert others.live["stock.reserve"] == 12

    run(main)


def test_a_cancelled_run_undoes_what_was_under_way() -> None:
    """As where one is refused."""

    async def main(runtime: SimRuntime) -> None:
        others, saga = Picky(faults={"stock.reserve": [DUMB, HANGS, HANGS]}), holding(30, 3)
        async with at_work(runtime, others, saga) as engine:
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await asyncio.sleep(0.3)
            await handle.cancel("no longer wanted")
            with pytest.raises(SagaUndone, match="no longer wanted"):
                await handle.result(FOREVER_S)
        assert +others.live == {}
        assert len(others.asked) < 30

    run(main)


def test_units_and_functions_are_done_for_each_too() -> None:
    """Units one after the other, as ever; what an unknown function may have done is undone."""

    async def main(runtime: SimRuntime, refuses: str) -> None:
        provider = Provider(faults=[LOST] * 3, latency_s=0.01, refuses={refuses})

        async def ships(s: Saga, order: Order) -> int:
            orders = [Order(f"B-{number}") for number in range(6)]
            made = await s.each(
                orders, lambda each: s.write(create_order, each, undo=reject_order), cap=3
            )
            paid = await s.each(
                made, lambda each: s.step(provider.pay, each.order, 1, undo=provider.refund), cap=2
            )
            return sum(receipt.cents for receipt in paid)

        ended = await told(runtime, Participants(), SagaDefinition(ships, "ships", policy=PATIENT))
        states = audit(runtime, "select id, state, n from orders order by id")
        if refuses:
            assert isinstance(ended, Declined)
            assert provider.paid == {}
            assert states == [(f"B-{number}", "rejected", 0) for number in range(6)]
        else:
            assert ended == 6
            assert len(provider.paid) == 6
            assert states == [(f"B-{number}", "open", 1) for number in range(6)]

    for refuses in ("", "B-3"):
        run(lambda runtime, refuses=refuses: main(runtime, refuses))  # type: ignore[misc]


# -- what is refused -----------------------------------------------------------------------------


def test_what_is_no_list_is_refused() -> None:
    """What has no order that a re-run repeats, or no end, gives other steps the next time."""
    s = Saga("A-1", "t")

    def step(item: object) -> Any:
        return s.call(Stock.reserve(str(item), 1))

    for items in ({1, 2}, (each for each in (1, 2)), "AB", b"AB", {1: 2}.keys()):
        with pytest.raises(
            ContractError, match=r"give it a list or a tuple, in an order that a re"
        ):
            s.each(items, step, cap=1)  # type: ignore[arg-type]
    with pytest.raises(
        ContractError, match=r"10001 items, and takes 10000: .* a saga for each part"
    ):
        s.each(range(EACH_MAX + 1), step, cap=1)
    for cap in (0, -1, STEPS_TOGETHER_MAX + 1, True, 2.0, None, "8"):
        with pytest.raises(ContractError, match="make it 1 to 64"):
            s.each([1], step, cap=cap)  # type: ignore[arg-type]
    assert s.unawaited == {}, "nothing was described"


def test_what_is_no_step_of_its_own_is_refused() -> None:
    """One that is awaited already, a pivot, and what sleeps."""
    s = Saga("A-1", "t")

    async def awaited(item: int) -> None: ...

    wrong: list[tuple[Callable[[int], Any], str]] = [
        (awaited, "given a coroutine for a step"),
        (lambda item: item, "given a int for a step"),
        (lambda item: s.call(Bank.charge("x"), pivot=True), "is a pivot; .*not in s.each"),
        (lambda item: s.sleep("1s"), "sleeps; await it by itself, not in s.each"),
    ]
    for step, why in wrong:
        with pytest.raises(ContractError, match=why):
            s.each([1, 2], step, cap=1)


def test_one_step_is_not_two() -> None:
    """Each item has its own."""

    async def main(runtime: SimRuntime) -> None:
        async def twice(s: Saga, order: Order) -> None:
            one = s.call(Stock.reserve(order.id, 1))
            await s.each([1, 2], lambda _: one, cap=2)

        ended = await told(runtime, Participants(), SagaDefinition(twice, "twice"))
        assert isinstance(ended, SagaUndone)

    run(main)


# -- many ----------------------------------------------------------------------------------------


class Brief(Picky):
    """Keeps nothing of a request but how many are under way, and counts tasks now and then."""

    tasks = sends = 0

    async def send(self, operation: Any, arguments: bytes, **more: Any) -> bytes:
        """Answer at once."""
        self.sends += 1
        if self.sends % 100 == 0:
            self.tasks = max(self.tasks, len(asyncio.all_tasks()))
        await asyncio.sleep(0)
        return b'{"id":"a hold of some length"}'


@ON_SQLITE
def test_ten_thousand_are_held_by_a_few_tasks() -> None:
    """As many as the cap, and those of the engine."""

    async def main(runtime: SimRuntime) -> None:
        others, saga = Brief(), holding(EACH_MAX, 16)
        async with at_work(runtime, others, saga) as engine:
            before = len(asyncio.all_tasks())
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            held = await handle.result(FOREVER_S)
        assert held is not None
        assert (len(held), others.sends) == (EACH_MAX, EACH_MAX + 1)
        assert 0 < others.tasks <= before + 16 + 2

    run(main)


def test_what_is_kept_of_an_item_is_bounded() -> None:
    """Its step, what undoes it, and its result: no task, no span, no record that is written."""

    async def main(runtime: SimRuntime, count: int) -> int:
        others, saga = Brief(), holding(count, 16)
        async with at_work(runtime, others, saga) as engine:
            tracemalloc.start()
            handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
            await handle.result(FOREVER_S)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return peak

    few, many = (run(lambda runtime, n=n: main(runtime, n)) for n in (200, 600))  # type: ignore[misc]
    assert (many - few) / 400 < 4_000


class Watched(dict[str, Any]):
    """A dict that counts how often it is looked into."""

    looks = 0

    def __getitem__(self, key: str) -> Any:
        self.looks += 1
        return super().__getitem__(key)

    def items(self) -> Any:
        self.looks += len(self)
        return super().items()


def test_undoing_many_looks_at_each_a_few_times() -> None:
    """The next undo is at hand: a run of ten thousand is not walked ten thousand times."""
    machine = SagaMachine(SagaPolicy(), deadline_us=10**9)
    keys = machine.register([Ask("stock.reserve", str(n), has_undo=True) for n in range(2000)])
    for key in keys:
        machine.apply(SagaRecord(RecordKind.BEGUN, key, 1, key))
    for record in machine.turn("refused").records:
        machine.apply(record)
    machine._steps = watched = Watched(machine._steps)
    undone = []
    while isinstance(undo := machine.next_undo(), UndoStep):
        for record in (*undo.records, machine.undone(undo.step)):
            machine.apply(record)
        undone.append(undo.step)
    assert undone == keys[::-1]
    assert watched.looks < 20 * len(keys)


# -- a power cut at every step -------------------------------------------------------------------

STORIES: dict[str, tuple[str, list[Fault], str]] = {
    "completes": ("completed", [], ""),
    "an answer lost": ("completed", [DUMB], ""),
    "one refused": ("undone", [], "item 3"),
}


class Warehouse:
    """One node whose saga holds four items, two at a time; the answer for the third is slow."""

    def __init__(self, story: str, cut_at: int = 0) -> None:
        self.ends, faults, no = STORIES[story]
        self.others = Picky(faults={"stock.reserve": faults[:]})
        self.others.no = frozenset({no})
        self.others.slow = frozenset({"item 2"})
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

    async def main(self, runtime: SimRuntime) -> None:
        saga = holding(4, 2)
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

    async def watch(self) -> None:
        for _ in range(4000):
            await asyncio.sleep(0.05)
            if self.is_told:
                return
        raise AssertionError("never ended")

    def play(self) -> None:
        self.node.start()
        self.world.run(self.watch())
        read = self.world.disk.rows
        ((status, result),) = read("/orders.db", "select status, result from sm_saga")
        records = read("/orders.db", "select seq, kind, step from sm_saga_record order by seq")
        assert status == self.ends
        assert [seq for seq, _, _ in records] == list(range(1, len(records) + 1))
        if status == "completed":
            assert +self.others.live == {"stock.reserve": 4, "bank.charge": 1}
            inbox = dict(_inbox(self.others))
            keys = [f"A-1/stock.reserve#{number}" for number in range(1, 5)]
            holds = [msgspec.json.decode(inbox[key])["id"] for key in keys]
            assert msgspec.json.decode(result) == holds
        else:
            assert +self.others.live == {}
            undone = [step for _, kind, step in records if kind == "undone"]
            assert undone == sorted(undone, reverse=True)
        begun = [step for _, kind, step in records if kind == "begun"]
        first = list(dict.fromkeys(begun))
        assert first == sorted(first, key=lambda step: (step.startswith("bank"), step))


@pytest.mark.parametrize("story", STORIES)
@ON_SQLITE
def test_a_power_cut_at_any_step_leaves_all_or_nothing(story: str) -> None:
    """At each record of each item; what was under way is asked again under its key, or undone."""
    calm = Warehouse(story)
    calm.play()
    seen: Counter[str] = Counter()
    for step in range(1, calm.node.steps + 1, 2):  # a record takes several
        warehouse = Warehouse(story, step)
        warehouse.play()
        seen.update(warehouse.counts)
        seen.update(warehouse.others.seen)
    assert seen["recovered"] > 5
    assert seen["asked again"] > 0
    if calm.ends == "undone":
        assert seen["recovered mid-undo"] > 0


def test_the_functions_of_each_are_undone_as_they_stand() -> None:
    """Of those under way nobody knows, of the others there is a result."""

    async def main(runtime: SimRuntime) -> None:
        provider = Provider(latency_s=0.05, refuses={"c"})
        provider.faults = [DUMB, "", "", HANGS]

        async def pays(s: Saga, order: Order) -> None:
            await s.each(
                list("abcdef"),
                lambda who: s.step(provider.pay, who, 1, undo=provider.refund),
                cap=3,
            )

        ended = await told(runtime, Participants(), SagaDefinition(pays, "pays", policy=PATIENT))
        assert isinstance(ended, Declined)
        assert provider.paid == {}
        assert any(isinstance(each, Unknown) for each in provider.given)

    run(main)
