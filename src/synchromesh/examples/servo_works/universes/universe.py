"""One universe: a few orders under faults, then calm, then an audit."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar
from unittest import mock

import shop
from contracts.orders import Orders, Placed, PlaceOrder
from credit_provider import ProviderFaults
from msgspec import structs

from synchromesh.calls import Call, Caller
from synchromesh.errors import CallError, Rejection, SagaUndone, SynchromeshError
from synchromesh.store import InboxState, Once, Recorded, Unit, inbox
from synchromesh.testing import CALM, STORMY, NetworkFaults, Node, SimulationError, World
from universes.cluster import (
    CLIENTS,
    PROVIDER,
    RUNDIR,
    SERVICES,
    Cluster,
    subscribers,
)
from universes.invariants import broken_in, is_quiet

R = TypeVar("R")

STORM_S, SETTLE_S = 8.0, 120.0
JUMP_MAX_S = 86_400.0
# What clients wait for who wait for hardly more than an answer takes in good weather.
HASTE_S = (0.05, 0.8)
# There are few of these and fewer places on the bench, so that orders fight for them.
SCARCE = ("LX40", "LX20", "SX300")
WITHOUT_CREDIT = ("brassworks", "pallas-pumps", "orbital-cnc")


@dataclass(frozen=True, slots=True)
class Weather:
    """The faults of the network, and the rate of other faults."""

    faults: NetworkFaults
    faults_per_s: float = 0.0


PEACE = Weather(CALM)
STORM = Weather(replace(STORMY, duplication=0.06, tail=0.05), 1.2)
# Two clocks are wrong by almost the 5 s that calls allow for.
HURRICANE = Weather(replace(STORMY, loss=0.12, duplication=0.15, tail=0.12, skew_s=2.4), 4.0)


class Universe:
    """Runs once, and then reports what is broken.

    Args:
        seed: decides everything.
        is_stormy: whether there are random faults.
        kill: a node, and the number of its step before which its power is cut.

    Attributes:
        broken: what is not as it must be, by the databases and by what clients were told.
        count: how often rare things happened.
    """

    def __init__(
        self, seed: int | str, *, is_stormy: bool = True, kill: tuple[str, int] | None = None
    ) -> None:
        self.world = World(f"servo-works/{seed}")
        # In one of ten universes it is much worse.
        is_hurricane = self.world.rng.random() < 0.1
        self._weather = (HURRICANE if is_hurricane else STORM) if is_stormy else PEACE
        self.world.wire.faults = self._weather.faults
        self.cluster = Cluster(self.world, self._buy_all)
        self.broken = self.cluster.broken
        self.count: Counter[str] = self.world.count
        self.told: dict[str, str] = {}
        self._rng, self._is_stormy = self.world.rng, is_stormy
        self._orders = self._choose()
        self._is_sold = False
        # Each has chance of its own, so that all else is as in a universe without it.
        self._has_jumps, self._is_hasty = (
            is_stormy and random.Random(f"{seed}/{what}").random() < 0.2  # noqa: S311
            for what in ("jumps", "haste")
        )
        # Most universes find a shop that has opened before; some open it in the storm.
        self._is_new = is_stormy and self._rng.random() < 0.1
        self._last_sends: dict[str, int] = {}
        self._doomed: dict[str, int] = {}
        if kill is not None:
            self._kill_before(*kill)

    def run(self) -> Universe:
        """Run the universe and audit its databases."""
        for path, image in opened_shop().items():
            if not self._is_new:
                self.world.disk.install(path, image)
        with counting_replays(self.count), collecting_errors(self.broken, self.world):
            try:
                self.world.run(self._story(), until_s=STORM_S + SETTLE_S + 60.0)
            except SimulationError as error:
                self.broken.append(f"{type(error).__name__}: {error}")
        self.count.update(self.cluster.counts())
        self._look()
        return self

    @property
    def trace(self) -> str:
        """A hash over every step: the same in each run of a seed."""
        return self.world.loop.trace

    def _look(self) -> None:
        databases = {}
        for name in (*SERVICES, PROVIDER):
            databases[name] = sqlite3.connect(":memory:")
            databases[name].deserialize(self.world.disk.image(RUNDIR.database(name)))
        self.broken += broken_in(databases, self.told, subscribers())
        self.broken += [
            f"the client of order {order.order_id} was never answered"
            for order in self._orders
            if order.order_id not in self.told
        ]
        for database in databases.values():
            with closing(database):
                if database is not databases[PROVIDER]:
                    tombs = "select count(*) from sm_inbox where kind = 'tombstone'"
                    self.count["undo before do"] += database.execute(tombs).fetchone()[0]

    # -- clients ---------------------------------------------------------------------------------

    def _choose(self) -> list[PlaceOrder]:
        sku = self._rng.choice(SCARCE)
        scarce = [order for order in shop.order_book() if order.sku == sku]
        orders = self._rng.sample(scarce, 5 if self._is_stormy else 3)
        if not self._is_stormy or self._rng.random() < 0.7:
            customer = self._rng.choice(WITHOUT_CREDIT)
            orders[0] = structs.replace(orders[0], customer=customer)
        return orders

    async def _buy_all(self, caller: Caller) -> None:
        if self._is_new:
            self.count["opened in the storm"] += 1
            await shop.stock_drives(_Opener(caller), scarce_drives())
        async with asyncio.TaskGroup() as group:
            for order in self._orders:
                group.create_task(self._buy(caller, order))
        self._is_sold = True

    async def _buy(self, caller: Caller, order: PlaceOrder) -> None:
        """Send an order under one key until it is answered; some clients send it twice at once."""
        await asyncio.sleep(self._rng.uniform(0.0, STORM_S / 2 if self._is_stormy else 0.1))
        times = 2 if self._rng.random() < 0.2 else 1
        while order.order_id not in self.told:
            asked = (self._ask(caller, order) for _ in range(times))
            for told in await asyncio.gather(*asked):
                if told:
                    self.told[order.order_id] = told
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))

    async def _ask(self, caller: Caller, order: PlaceOrder) -> str:
        patience_s = 3.0
        if self._is_hasty:
            self.count["short deadline"] += 1
            patience_s = self._rng.uniform(*HASTE_S)
        context = caller.root(key=f"order/{order.order_id}", timeout_s=patience_s)
        try:
            answer = await caller.call(Orders.place(order), context=context)
        except (Rejection, SagaUndone):
            return "rejected"
        except SynchromeshError as error:
            self.count[f"client: {error.code}"] += 1
            return ""
        return "placed" if isinstance(answer, Placed) else "accepted"

    # -- what happens ----------------------------------------------------------------------------

    async def _story(self) -> None:
        loop = self.world.loop
        self.cluster.start()
        if self._is_stormy:
            await self._storm()
        self.world.calm()
        self.cluster.set_provider_faults(ProviderFaults())
        self.cluster.start()
        # Messages that are late still come: peace counts after the last of them.
        least_s = loop.time() + self.world.wire.faults.tail_s
        most_s = loop.time() + SETTLE_S
        while not (self._is_sold and loop.time() > least_s and self._is_quiet()):
            if loop.time() > most_s:
                self.broken.append(f"there is no peace {SETTLE_S:g} s after the last fault")
                return
            await asyncio.sleep(0.5)

    def _is_quiet(self) -> bool:
        return is_quiet(self.world.disk, subscribers())

    async def _storm(self) -> None:
        rng, loop = self._rng, self.world.loop
        evils = {
            self._crash: 0.10,
            self._doom: 0.15,
            self._cut_after_send: 0.20,
            self._black_out: 0.05,
            self._part: 0.15,
            self._hand_over: 0.10,
            self._confuse_provider: 0.10,
            self._pause: 0.05,
            self._cancel: 0.10,
            **({self._jump: 0.20} if self._has_jumps else {}),
        }
        while loop.time() < STORM_S:
            await asyncio.sleep(rng.expovariate(self._weather.faults_per_s))
            (evil,) = rng.choices(list(evils), list(evils.values()))
            evil()

    def _victim(self) -> Node:
        name = self._rng.choice((*SERVICES, PROVIDER))
        return self.world.nodes[PROVIDER] if name == PROVIDER else self.cluster.pair(name)[0]

    def _crash(self) -> None:
        self._victim().crash(self._rng.uniform(0.05, 2.0))

    def _doom(self) -> None:
        """Schedule a power cut of a node at one of its next steps."""
        node = self._victim()
        self._kill_before(node.name, node.steps + self._rng.randrange(1, 100))

    def _cut_after_send(self) -> None:
        """Schedule a power cut of a node right after one of its next sends.

        What it sent arrives, and whatever it had to have on disk before that is lost if it is not:
        over a network a moment later is too late to tell.
        """
        node = self._victim()
        self._last_sends[node.name] = node.sends + self._rng.randrange(1, 10)
        self.world.on_step = self._before_step

    def _black_out(self) -> None:
        """Cut the power of all services at once, as the death of one process that runs them."""
        for name in SERVICES:
            self.cluster.pair(name)[0].crash(self._rng.uniform(0.05, 0.5))

    def _cancel(self) -> None:
        self.cluster.cancel(self._rng.choice(self._orders).order_id)

    def _jump(self) -> None:
        """Set all wall clocks forward or back, as after a flat battery."""
        self.world.jump_clocks(self._rng.uniform(-JUMP_MAX_S, JUMP_MAX_S))

    def _part(self) -> None:
        names = [PROVIDER, CLIENTS, *(self.cluster.pair(name)[0].name for name in SERVICES)]
        a, b = self._rng.sample(names, 2)
        self.world.partition(a, b, self._rng.uniform(0.2, 4.0))

    def _hand_over(self) -> None:
        """Start a successor beside a node, then kill the node or ask it to end."""
        old, new = self.cluster.pair(self._rng.choice(SERVICES))
        if old.is_up and not new.is_up:
            new.start()
            after_s = self._rng.uniform(0.02, 1.0)
            if self._rng.random() < 0.6:
                self.world.later(after_s, old.crash)
            else:
                self.world.later(after_s, self.cluster.stop, old)

    def _confuse_provider(self) -> None:
        mode = self._rng.choice(("errors", "stall", "slow"))
        self.cluster.set_provider_faults(ProviderFaults(mode, 30.0 if mode == "stall" else 0.4))
        lasts_s = self._rng.uniform(0.5, 4.0)
        self.world.later(lasts_s, self.cluster.set_provider_faults, ProviderFaults())

    def _pause(self) -> None:
        node = self.cluster.pair(self._rng.choice(SERVICES))[0]
        node.pause(self._rng.uniform(0.1, 3.0))

    def _kill_before(self, name: str, step: int) -> None:
        self._doomed[name] = step
        self.world.on_step = self._before_step

    def _before_step(self, node: Node) -> None:
        if self._doomed.get(node.name) == node.steps:
            del self._doomed[node.name]
            node.crash(0.3)
        elif node.sends >= self._last_sends.get(node.name, math.inf):
            del self._last_sends[node.name]
            self.world.count["crash after send"] += 1
            node.crash(0.3)
        if not self._doomed and not self._last_sends:
            self.world.on_step = None  # it is asked before each step of all nodes


class _Opener:
    """The client with which `shop.stock_drives` stocks the shop."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def call(self, call: Call[R], *, key: str) -> R:
        """Send a command under an idempotency key until it is answered."""
        while True:
            try:
                return await self._caller.call(call, context=self._caller.root(key=key))
            except CallError:
                await asyncio.sleep(0.2)


@functools.cache
def scarce_drives() -> list[shop.CatalogueItem]:
    """Return the drives that the shop opens with: half the stock of the scarce ones."""
    return [
        structs.replace(drive, stock=drive.stock // 2, slots=drive.slots[:1])
        for drive in shop.catalogue()
        if drive.sku in SCARCE
    ]


@functools.cache
def opened_shop() -> dict[str, bytes]:
    """Return the databases of a shop that has just opened."""
    world = World("servo-works opens")
    cluster = Cluster(world, lambda caller: shop.stock_drives(_Opener(caller), scarce_drives()))

    async def story() -> None:
        cluster.start()
        await asyncio.sleep(10.0)
        assert is_quiet(world.disk, subscribers())

    world.run(story())
    paths = map(RUNDIR.database, (PROVIDER, *SERVICES))
    return {path: world.disk.image(path) for path in paths}


# -- listening in --------------------------------------------------------------------------------


@contextmanager
def counting_replays(count: Counter[str]) -> Iterator[None]:
    """Count how often an inbox answers what it has recorded, and that a key is undone."""
    recall = inbox.recall

    async def counted(unit: Unit, once: Once) -> Recorded | None:
        known = await recall(unit, once)
        if known is not None:
            count["inbox replay"] += 1
            count["tombstone hit"] += known.kind is InboxState.TOMBSTONE
        return known

    with mock.patch.object(inbox, "recall", counted):
        yield


class _Ear(logging.Handler):
    def __init__(self, heard: list[str], world: World) -> None:
        super().__init__(logging.ERROR)
        self._heard, self._world = heard, world

    def emit(self, record: logging.LogRecord) -> None:
        if self._world.loop.is_closed():
            return  # the coroutines that are left are thrown away, and complain
        error = record.exc_info[1] if record.exc_info else None
        self._heard.append(f"logged: {record.getMessage()}" + (f": {error!r}" if error else ""))


@contextmanager
def collecting_errors(heard: list[str], world: World) -> Iterator[None]:
    """Collect what the services log as errors, which no universe may have."""
    log, ear = logging.getLogger("synchromesh"), _Ear(heard, world)
    level, was_propagating = log.level, log.propagate
    log.addHandler(ear)
    log.setLevel(logging.ERROR)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(ear)
        log.setLevel(level)
        log.propagate = was_propagating
