"""What a service promises to its callers under crashes and a bad network: S6, S7, D3, O4."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from service_world import Hooks, OutOfStock, Stock, Town
from synchromesh.calls.wire import Receiver, Reply, Request
from synchromesh.discovery import Endpoint
from synchromesh.errors import (
    CallError,
    KeyUndone,
    StoreError,
)
from synchromesh.testing import PROCESS, STORMY, SimRuntime, World

pytestmark = pytest.mark.usefixtures("each_way")

# -- one machine that loses its power at every step ------------------------------------------------


def everything(crash_at: int | None) -> tuple[Any, int, int]:
    """Build and undo on a machine that loses its power once; return what is left on its disk."""
    world = World(7)
    done = []

    async def machine(runtime: SimRuntime) -> None:
        made = Town(runtime, Hooks())
        for name in ("stock", "bank"):
            await made.start(name)
        await made.ask(Stock.build("A-1", "bolt", 1), "k1")
        await made.ask(Stock.build("A-2", "bolt", 1), "k2")
        await made.undo(Stock.scrap, "k2")
        done.append(await made.ask(Stock.reserve("A-3", "nut", 2), "k3"))
        await asyncio.sleep(1000.0)

    node = world.node("machine", machine)
    node.start()
    if crash_at is not None:
        world.on_step = lambda _: node.crash(0.1) if node.steps == crash_at else None
    world.run(asyncio.sleep(5.0))
    assert done
    left = {
        name: world.disk.rows(
            f"/{name}.db", "select what, count(*) from note group by 1 order by 1"
        )
        for name in ("stock", "bank")
    }
    left["level"] = world.disk.rows("/stock.db", "select qty from level order by sku")
    return left, node.steps, world.count["crash"]


def test_a_power_cut_at_every_step_changes_nothing_of_the_end() -> None:
    """Whenever the power goes, what is asked again under its keys has happened once (D3, S6)."""
    expected, steps, _ = everything(None)
    assert expected["bank"] == [("charge A-1", 1), ("charge A-2", 1), ("refund receipt A-2", 1)]
    assert expected["level"] == [(9,), (8,)]
    crashes = 0
    for crash_at in range(1, steps + 1):
        left, _, crashed = everything(crash_at)
        assert left == expected, f"crash at step {crash_at} of {steps}"
        crashes += crashed
    assert crashes > 0.9 * steps > 60


# -- four machines, a bad network, and a client that gives up and undoes --------------------------


class Wires:
    """Carries calls between the nodes of a world; nobody is told of what is lost."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.receivers: dict[str, tuple[object, Receiver]] = {}

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        """Send, and wait for as long as the caller does."""
        home = PROCESS.get()
        assert home is not None
        source, target = home.name, endpoint.instance.removesuffix("-1")
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

        def arrive() -> None:
            life, receiver = self.receivers.get(target, (None, None))
            if receiver is not None and life is PROCESS.get():
                asyncio.get_running_loop().create_task(serve(receiver))

        async def serve(receiver: Receiver) -> None:
            reply = await receiver.dispatch(request)
            self._world.deliver(target, source, lambda: answer(reply))

        def answer(reply: Reply) -> None:
            if PROCESS.get() is home and not answered.done():
                answered.set_result(reply)

        self._world.deliver(source, target, arrive)
        return await answered


class Wired(Town):
    """The services of one node; the others are reached over the world's network."""

    def __init__(self, runtime: SimRuntime, wires: Wires) -> None:
        self.wires = wires
        super().__init__(runtime)
        self.deps = replace(self.deps, transports={"inproc": wires})
        self.client = self.deps.caller("client")

    async def serve(self, name: str) -> None:
        """Run one service for the rest of this node's life."""
        self.wires.receivers.pop(name, None)
        instance = await self._start(name)
        self.wires.receivers[name] = (PROCESS.get(), instance.dispatcher)
        await asyncio.sleep(100_000.0)

    async def _start(self, name: str) -> Any:
        from synchromesh.service import ServiceInstance

        return await ServiceInstance.start(self.deps.services[name], self.deps)


async def customer(town: Wired, n: int, ends: dict[str, str], count: Counter[str]) -> None:
    """Ask for something until it is answered, or give up somewhere and undo it until that is."""
    rng = town.runtime.rng
    key = f"k{n}"
    is_build = n % 2 == 0
    sku = "bolt" if n % 7 else "gone"
    call: Any = Stock.build(f"A-{n}", sku, 1) if is_build else Stock.reserve(f"A-{n}", sku, 1)
    undo: Any = Stock.scrap if is_build else Stock.release
    tries = rng.choice([0, 1, 1, 2, 100])
    end = ""
    for _ in range(tries):
        try:
            await town.ask(call, key, timeout_s=rng.uniform(0.02, 0.6))
            end = "answered"
            break
        except OutOfStock:
            end = "refused"
            break
        except (CallError, StoreError) as error:
            count[error.code] += 1
            await asyncio.sleep(rng.uniform(0.0, 0.5))
    if end == "answered" and rng.random() < 0.3:
        end = ""  # it changed its mind
    while not end or (end == "refused" and rng.random() < 0.2):
        try:
            await town.undo(undo, key, timeout_s=rng.uniform(0.05, 1.0))
            end = end or "undone"
            # A late copy of the call has no effect (S7).
            if rng.random() < 0.5:
                try:
                    await town.ask(call, key, timeout_s=0.5)
                except (KeyUndone, OutOfStock) as error:
                    count[f"late: {error.code}"] += 1
        except (CallError, StoreError) as error:
            if end != "undone":
                count[f"undo: {error.code}"] += 1
                await asyncio.sleep(rng.uniform(0.0, 0.5))
    ends[f"A-{n}"] = end


def universe(seed: int) -> tuple[World, dict[str, str]]:
    """Run customers against stock and bank while both crash and the network misbehaves."""
    world = World(seed, faults=STORMY)
    wires = Wires(world)
    ends: dict[str, str] = {}

    async def client(runtime: SimRuntime) -> None:
        made = Wired(runtime, wires)
        await asyncio.gather(*(customer(made, n, ends, world.count) for n in range(16)))
        world.count["came to an end"] += 1

    for name in ("stock", "bank", "books"):

        async def serve(runtime: SimRuntime, name: str = name) -> None:
            await Wired(runtime, wires).serve(name)

        world.node(name, serve).start()
    world.node("client", client).start()

    async def nemesis() -> None:
        await asyncio.sleep(0.1)
        for _ in range(6):
            await asyncio.sleep(world.rng.uniform(0.1, 0.8))
            world.nodes[world.rng.choice(["stock", "bank", "books"])].crash(
                world.rng.uniform(0.0, 0.5)
            )
        world.heal()
        await asyncio.sleep(60.0)
        assert world.count["came to an end"] == 1, ends

    world.run(nemesis())
    return world, ends


def test_stock_and_money_add_up_whatever_crashes_and_gets_lost() -> None:
    """What was answered happened once; what was undone or refused has left nothing (S6, S7)."""
    count: Counter[str] = Counter()
    for seed in range(30):
        world, ends = universe(seed)
        count.update(world.count)
        count.update(ends.values())
        stock = Counter(what for (what,) in world.disk.rows("/stock.db", "select what from note"))
        bank = Counter(what for (what,) in world.disk.rows("/bank.db", "select what from note"))
        assert len(ends) == 16
        gone = 0
        for order, end in ends.items():
            where = f"seed {seed}, {order} {end}: {stock}, {bank}"
            took = stock[f"take {order}"] + stock[f"reserve {order}"]
            gave = stock[f"give back {order}"] + stock[f"release {order}"]
            charged, refunded = bank[f"charge {order}"], bank[f"refund receipt {order}"]
            assert max(took, gave, charged, refunded) <= 1, where
            held = 1 if end == "answered" else 0
            assert took - gave == held, where
            assert charged - refunded == (held if f"finish {order}" in stock else 0), where
            gone += held
        assert world.disk.rows("/stock.db", "select qty from level where sku = 'bolt'") == [
            (10 - gone,)
        ], f"seed {seed}"
        reserved = sum(stock[f"reserve A-{n}"] for n in range(16))
        assert world.disk.rows("/books.db", "select count(*) from note") == [(reserved,)]
    rare = ("crash", "timed_out", "undone", "refused", "answered", "late: key_undone")
    assert min(count[each] for each in rare) > 5, {each: count[each] for each in rare}
