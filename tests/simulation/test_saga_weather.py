"""Sagas of lists, functions, calls and units in any weather, with the power cut where it may be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import msgspec

from provider_fakes import Provider
from saga_fakes import (
    CONTEXT,
    DUMB,
    HANGS,
    LOST,
    Fault,
    Order,
    Participants,
    Stock,
    create_order,
    engine_on,
    open_store,
    reject_order,
)
from synchromesh.errors import NoInstance, Rejection, SagaUndone
from synchromesh.saga import Saga, SagaDefinition, SagaPolicy, Step
from synchromesh.testing import SimRuntime, World

FOREVER_S = 10_000.0
UNIVERSES = 40


class Choosy(Participants):
    """Participants that refuse one item for good; "" for none."""

    no = ""

    def _handle(self, operation: Any, arguments: bytes, context: Any) -> Any:
        is_no = self.no and msgspec.json.decode(arguments).get("order") == self.no
        (self.refuses.add if is_no else self.refuses.discard)("stock.reserve")
        return super()._handle(operation, arguments, context)


class Weather:
    """One universe: a list of items of three kinds, faults, a refusal or none, and power cuts."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.world = World(seed)
        self.node = self.world.node("orders", self.main)
        self.count = rng.randrange(1, 13)
        self.kinds = [rng.choice(("call", "step", "write")) for _ in range(self.count)]
        self.refused = rng.randrange(self.count) if rng.random() < 0.4 else -1
        self.others = Choosy(latency_s=rng.choice((0.0, 0.001, 0.05)))
        self.others.faults = {"stock.reserve": self.faults(), "stock.release": self.faults()}
        self.provider = Provider(latency_s=rng.choice((0.0, 0.001, 0.05)))
        self.provider.faults, self.provider.undo_faults = self.faults(), self.faults()
        if self.refused >= 0:
            self.others.no = f"item {self.refused}"
            self.provider.refuses = {self.others.no}
        self.cuts = sorted(rng.randrange(1, 260) for _ in range(rng.randrange(4)))
        self.told: object = None
        self.counts: Counter[str] = Counter()
        self.world.on_step = self.on_step

    def faults(self) -> list[Fault]:
        """Return what becomes of the next requests; "" is nothing."""
        rng, no_one = self.rng, NoInstance("down")
        return [rng.choice((DUMB, LOST, HANGS, no_one, "", "")) for _ in range(rng.randrange(6))]

    def on_step(self, node: Any) -> None:
        if self.cuts and node.steps >= self.cuts[0]:
            self.cuts.pop(0)
            node.crash(0.05)

    def step(self, s: Saga, number: int) -> Step[Any]:
        """Return the step of an item, in its own kind."""
        name = f"item {number}"
        if self.kinds[number] == "call":
            return s.call(Stock.reserve(name, 1), undo=Stock.release, timeout_s=0.4)
        if self.kinds[number] == "step":
            undo = self.provider.refund
            return s.step(self.provider.pay, name, number, undo=undo, timeout_s=0.4)
        return s.write(create_order, Order(name, is_bad=number == self.refused), undo=reject_order)

    def saga(self) -> SagaDefinition[Any, Any]:
        cap = self.rng.randrange(1, 6)  # another one in each life

        async def runs(s: Saga, order: Order) -> list[Any]:
            made = await s.each(range(self.count), lambda number: self.step(s, number), cap=cap)
            await s.call(Stock.reserve("the last", 1), pivot=True, timeout_s=0.4)
            return list(made)

        policy = SagaPolicy(attempts_max=9, backoff_cap_s=0.2)
        return SagaDefinition(runs, "runs", deadline_s=600.0, policy=policy)

    async def main(self, runtime: SimRuntime) -> None:
        saga = self.saga()
        store = await open_store(runtime)
        engine = engine_on(store, self.others, runtime, [saga])
        await engine.recover()
        handle = await engine.start(saga, Order("A-1"), id="A-1", context=CONTEXT)
        told: object = "undone"
        with suppress(Rejection, SagaUndone):
            told = await handle.result(FOREVER_S)
        self.counts.update(engine.counts)
        await engine.close()
        await store.close()
        self.told = told

    async def watch(self) -> None:
        for _ in range(8000):
            await asyncio.sleep(0.05)
            if self.told is not None:
                return
        raise AssertionError("it never ended")

    def play(self) -> str:
        """Run it to its end, judge what stands, and return how the run ended."""
        self.node.start()
        self.world.run(self.watch())
        read = self.world.disk.rows
        ((status,),) = read("/orders.db", "select status from sm_saga")
        states = dict(read("/orders.db", "select id, state from orders"))
        assert set(read("/orders.db", "select n from orders")) <= {(0,), (1,)}
        places = {kind: [n for n in range(self.count) if self.kinds[n] == kind] for kind in KINDS}
        if status == "completed":
            assert self.refused < 0
            assert self.others.live["stock.reserve"] == len(places["call"]) + 1
            paid = sorted(receipt.cents for receipt in self.provider.paid.values())
            assert paid == places["step"]
            assert states == {f"item {n}": "open" for n in places["write"]}
            assert isinstance(self.told, list)
            for number, made in enumerate(self.told):
                self.check(number, made)
        else:
            assert status == "undone"
            assert self.refused >= 0
            assert +self.others.live == {}
            assert self.provider.paid == {}
            assert set(states.values()) <= {"rejected"}
        return str(status)

    def check(self, number: int, made: object) -> None:
        """Each result is that of its item."""
        if self.kinds[number] == "call":
            ordinal = self.kinds[: number + 1].count("call")
            recorded = self.others.inbox[f"A-1/stock.reserve#{ordinal}"]
            assert isinstance(recorded, bytes)
            assert made == msgspec.json.decode(recorded)
        elif self.kinds[number] == "step":
            ordinal = self.kinds[: number + 1].count("step")
            assert made == msgspec.to_builtins(self.provider.paid[f"A-1/pay#{ordinal}"])
        else:
            assert made == {"order": f"item {number}"}


KINDS = ("call", "step", "write")


def test_lists_of_all_kinds_of_steps_survive_any_weather() -> None:
    """They end completed with the result of each item, or with nothing left, and never stuck."""
    ends: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for seed in range(UNIVERSES):
        weather = Weather(seed)
        try:
            ends[weather.play()] += 1
        except BaseException as error:
            error.add_note(f"universe {seed}")
            raise
        seen.update(weather.counts)
        seen.update(weather.others.seen)
    assert min(ends["completed"], ends["undone"]) > UNIVERSES / 6
    for rare in ("recovered", "recovered mid-undo", "undo of unknown", "asked again", "tombstone"):
        assert seen[rare] > 0, rare
