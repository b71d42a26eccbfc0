"""One universe: a few orders under faults, then calm, then an audit."""

from __future__ import annotations

import asyncio
import functools
import math
import sqlite3
from collections import Counter
from contextlib import closing, nullcontext
from typing import TypeVar
from unittest import mock

import shop
from contracts.orders import Orders, Placed, PlaceOrder
from credit_provider import ProviderFaults
from msgspec import structs

from synchromesh.calls import Call, Caller
from synchromesh.errors import (
    Rejection,
    SagaUndone,
    Stuck,
    SynchromeshError,
)
from synchromesh.service import instance as service_instance
from synchromesh.testing import Node, SimulationError, World
from universes.cluster import (
    CLIENTS,
    PROVIDER,
    RUNDIR,
    SERVICES,
    Cluster,
    subscribers,
)
from universes.invariants import (
    Forgotten,
    ForgottenRecords,
    broken_in,
    is_forgotten,
    is_quiet,
    is_sure,
    stuck_in,
)
from universes.listening import (
    TOLD,
    collecting_errors,
    counting_replays,
    keeping_spans_longer,
    noting_what_is_forgotten,
    taking_the_slow_way,
    watching_often,
)
from universes.releases import DIFFERENT
from universes.weather import (
    ABSENCE_S,
    HURRICANE,
    KEEP_S,
    PEACE,
    RETENTION,
    SAGAS_S,
    STORM,
    SWEEP_EVERY_S,
    UNWATCHED_S,
    kinds_of,
)

R = TypeVar("R")

RARE = {
    "undo before do": "select count(*) from sm_inbox where kind = 'tombstone'",
    "message held": "select count(*) from sm_inbox where key glob 'message/*' "
    "and cast(body as text) glob '*held*'",
}

STORM_S, SETTLE_S = 8.0, 120.0
JUMP_MAX_S = 86_400.0
# What clients wait for who wait for hardly more than an answer takes in good weather.
HASTE_S = (0.05, 0.8)
# There are few of these and fewer places on the bench, so that orders fight for them.
SCARCE = ("LX40", "LX20", "SX300")
WITHOUT_CREDIT = ("brassworks", "pallas-pumps", "orbital-cnc")


class Universe:
    """Runs once, and then reports what is broken.

    Args:
        seed: decides everything.
        is_stormy: whether there are random faults.
        kill: a node, and the number of its step before which its power is cut.
        is_slow: whether the fast way of calls and of HTTP is switched off.

    Attributes:
        broken: what is not as it must be, by the databases and by what clients were told.
        count: how often rare things happened.
        kinds: what happens in it besides the storm, by the names of `SHARES`.
    """

    def __init__(
        self,
        seed: int | str,
        *,
        is_stormy: bool = True,
        kill: tuple[str, int] | None = None,
        is_slow: bool = False,
    ) -> None:
        self.world = World(f"servo-works/{seed}")
        self._is_slow = is_slow
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
        self.kinds = kinds_of(seed) if is_stormy else frozenset[str]()
        # Most universes find a shop that has opened before; some open it in the storm.
        self._is_new = is_stormy and self._rng.random() < 0.1
        self._last_sends: dict[str, int] = {}
        if "releases" in self.kinds:
            self.cluster.releases.update(dict.fromkeys(DIFFERENT, "old"))
        self.forgotten: Forgotten = {}
        self.forgotten_records: ForgottenRecords = {}
        if "absence" in self.kinds:
            self.cluster.otherwise["keep_s"] = KEEP_S
        if "forgetting" in self.kinds:
            self.cluster.otherwise["retention"] = RETENTION
        self._doomed: dict[str, int] = {}
        if kill is not None:
            self._kill_before(*kill)

    def run(self) -> Universe:
        """Run the universe and audit its databases."""
        for path, image in opened_shop().items():
            if not self._is_new:
                self.world.disk.install(path, image)
        known = [told for kind, told in TOLD.items() if kind in self.kinds]
        with (
            counting_replays(self.count),
            mock.patch.object(service_instance, "SWEEP_EVERY_S", SWEEP_EVERY_S),
            noting_what_is_forgotten(self.forgotten, self.forgotten_records, self._check_age),
            watching_often(),
            keeping_spans_longer(),
            taking_the_slow_way(self.count) if self._is_slow else nullcontext(),
            collecting_errors(self.broken, self.world, known),
        ):
            try:
                self.world.run(self._story(), until_s=STORM_S + SETTLE_S + ABSENCE_S + 180.0)
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
        self.count["event forgotten"] += sum(map(len, self.forgotten.values()))
        self.count["run forgotten"] += len({saga for saga, _ in self.forgotten_records})
        found = broken_in(
            databases, self.told, subscribers(), self.forgotten, self.forgotten_records
        )
        if "absence" in self.kinds:
            stuck = stuck_in(databases["orders"])
            self.count["stuck after an absence"] += len(stuck)
            found = (each for each in found if is_sure(each, stuck))
        self.broken += found
        self.broken += [
            f"the client of order {order.order_id} was never answered"
            for order in self._orders
            if order.order_id not in self.told
        ]
        for database in databases.values():
            with closing(database):
                if database is not databases[PROVIDER]:
                    for what, sql in RARE.items():
                        self.count[what] += database.execute(sql).fetchone()[0]

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
            await self.cluster.present.wait()
            asked = (self._ask(caller, order) for _ in range(times))
            for told in await asyncio.gather(*asked):
                if told:
                    self.told[order.order_id] = told
            await asyncio.sleep(self._rng.uniform(0.1, 1.0))

    async def _ask(self, caller: Caller, order: PlaceOrder) -> str:
        patience_s = 3.0
        if "haste" in self.kinds:
            self.count["short deadline"] += 1
            patience_s = self._rng.uniform(*HASTE_S)
        context = caller.root(key=f"order/{order.order_id}", timeout_s=patience_s)
        try:
            answer = await caller.call(Orders.place(order), context=context)
        except (Rejection, SagaUndone):
            return "rejected"
        except Stuck:
            return "stuck"
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
        if "absence" in self.kinds:
            await self._be_away()
        self.world.calm()
        for name in SERVICES:
            self.world.disk.mend(RUNDIR.database(name))
        self.cluster.set_provider_faults(ProviderFaults())
        self.cluster.finish_releases()
        self.cluster.start()
        # Messages that are late still come: peace counts after the last of them.
        least_s = loop.time() + self.world.wire.faults.tail_s
        most_s = loop.time() + SETTLE_S
        while not (self._is_sold and loop.time() > least_s and self._is_quiet()):
            if loop.time() > most_s:
                self.broken.append(f"there is no peace {SETTLE_S:g} s after the last fault")
                return
            await asyncio.sleep(0.5)
        # Time that nobody watched is time for which everything is kept longer.
        if "forgetting" in self.kinds and "absence" not in self.kinds:
            await self._forget()

    async def _forget(self) -> None:
        """Wait until the runs that have ended are forgotten; nodes die in the midst of it."""
        loop = self.world.loop
        most_s = loop.time() + SAGAS_S + UNWATCHED_S * self.count["clock jump"] + 20.0
        has_struck = False
        while not is_forgotten(self.world.disk) or not self._is_quiet():
            if self.forgotten_records and not has_struck:
                has_struck = True
                self._doom("orders")
            if loop.time() > most_s:
                # A clock that was set back makes runs older only once it is there again.
                if "jumps" not in self.kinds:
                    self.broken.append("runs that ended long ago are not forgotten")
                return
            await asyncio.sleep(0.5)

    def _check_age(self) -> None:
        """Note where a run is forgotten that cannot be old enough, whatever clocks were set to."""
        if (now_s := self.world.loop.time()) < SAGAS_S - UNWATCHED_S:
            self.broken.append(f"after {now_s:g} s runs are forgotten; kept are {SAGAS_S:g} s")

    async def _be_away(self) -> None:
        """Take orders away, in the midst of the storm, until the others have forgotten its keys."""
        self.cluster.away, present = "orders", self.cluster.present
        present.clear()
        self._crash_all("orders")
        await asyncio.sleep(ABSENCE_S)
        self.cluster.away = ""
        present.set()
        self._crash_all("orders")
        # What began as nothing begins anew as orders.
        await asyncio.sleep(0.5)

    def _crash_all(self, service: str) -> None:
        for node in self.cluster.pair(service):
            node.crash(0.1)

    def _is_quiet(self) -> bool:
        return is_quiet(self.world.disk, subscribers())

    async def _storm(self) -> None:
        rng, loop = self._rng, self.world.loop
        rare = (
            ("jumps", self._jump, 0.20),
            ("disks", self._spoil_disk, 0.30),
            ("releases", self._release, 0.40),
            ("looks", self._look_into, 0.30),
        )
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
            **{evil: share for kind, evil, share in rare if kind in self.kinds},
        }
        # An absence begins while orders are under way.
        ends_s = rng.uniform(1.0, STORM_S / 2) if "absence" in self.kinds else STORM_S
        while loop.time() < ends_s:
            await asyncio.sleep(rng.expovariate(self._weather.faults_per_s))
            (evil,) = rng.choices(list(evils), list(evils.values()))
            evil()

    def _victim(self) -> Node:
        name = self._rng.choice((*SERVICES, PROVIDER))
        return self.world.nodes[PROVIDER] if name == PROVIDER else self.cluster.pair(name)[0]

    def _crash(self) -> None:
        self._victim().crash(self._rng.uniform(0.05, 2.0))

    def _doom(self, service: str = "") -> None:
        """Schedule a power cut of a node at one of its next steps."""
        node = self.cluster.pair(service)[0] if service else self._victim()
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

    def _look_into(self) -> None:
        self.cluster.verify(self._rng.choice(SERVICES))

    def _jump(self) -> None:
        """Set all wall clocks forward or back, as after a flat battery."""
        self.world.jump_clocks(self._rng.uniform(-JUMP_MAX_S, JUMP_MAX_S))

    def _spoil_disk(self) -> None:
        """Have the disk below a database fail, at commits or at all, or be full, for a while."""
        path, disk = RUNDIR.database(self._rng.choice(SERVICES)), self.world.disk
        spoil = self._rng.choice((disk.fail, disk.fail_commits, disk.fill))
        if path in disk.paths():
            self.count[f"disk: {spoil.__name__}"] += 1
            spoil(path)
            self.world.later(self._rng.uniform(0.1, 3.0), disk.mend, path)

    def _part(self) -> None:
        names = [PROVIDER, CLIENTS, *(self.cluster.pair(name)[0].name for name in SERVICES)]
        a, b = self._rng.sample(names, 2)
        self.world.partition(a, b, self._rng.uniform(0.2, 4.0))

    def _release(self) -> None:
        """Replace a service by one of the other release, beside it or in its place."""
        service = self._rng.choice(DIFFERENT)
        is_old = self.cluster.releases[service] == "old"
        self.cluster.releases[service] = "new" if is_old else "old"
        self.count["released" if is_old else "rolled back"] += 1
        if self._rng.random() < 0.5:
            self._hand_over(service)
        else:
            self.cluster.pair(service)[0].crash(self._rng.uniform(0.05, 0.5))

    def _hand_over(self, service: str = "") -> None:
        """Start a successor beside a node, then kill the node or ask it to end."""
        old, new = self.cluster.pair(service or self._rng.choice(SERVICES))
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
            except SynchromeshError:
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
