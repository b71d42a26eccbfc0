"""Replicas of a service that stand still, die and come back: each effect once, none left out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress
from typing import Any
from unittest.mock import patch

from replica_world import LEASE_S, SharedDatabase, trouble
from saga_fakes import CONTEXT, PLACE, TABLES, Order, Participants, audit, engine_on
from synchromesh import events, messaging
from synchromesh.context import CallContext
from synchromesh.errors import Fenced, SagaError, Shed, StoreError
from synchromesh.events import NewEvent, Projection, ProjectionOptions, ProjectionRunner, append
from synchromesh.messaging import Message, Relay, RelayOptions
from synchromesh.messaging.message import Receipt
from synchromesh.saga.schema import SCHEMA
from synchromesh.store import Migration, Schema, Unit
from synchromesh.store.owners import _SharedFence
from synchromesh.telemetry import MemoryRing, Tracer
from synchromesh.testing import SimRuntime, World

UNIVERSES = 8
REPLICAS = ("one", "two", "three")
APPENDED, SAGAS = 120, 12
SOLD = "orders.sold"
GOES_BACK = """\
create trigger goes_back after update on sm_checkpoint when new.position < old.position
begin insert into went_back values (new.name); end"""
SEEN = Schema(
    "seen",
    (
        Migration(
            1,
            (
                "create table seen(position integer)",
                "create table went_back(name text)",
                GOES_BACK,
            ),
            readable_by_min=1,
        ),
    ),
)


async def note(unit: Unit, event: events.StoredEvent) -> None:
    await unit.execute("insert into seen values (?)", event.position)


class Subscriber:
    """Takes messages, each once, as an inbox does; a `Delivery`."""

    def __init__(self) -> None:
        self.taken_ids: Counter[int] = Counter()

    async def begin(self, position: int) -> None:
        """Do nothing."""

    async def deliver(self, message: Message, context: CallContext) -> Receipt:
        """Take a message, in a while."""
        await asyncio.sleep(0.02)
        self.taken_ids[message.position] += 1
        return Receipt("handled", message.position)

    async def taken(self, position: int) -> int:
        """Return the position."""
        return position


class Replicas:
    """One universe: three replicas, of which two run at first, a projection and sagas."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"{seed}/replicas")
        self.world = World(seed)
        self.others = Participants(latency_s=0.3)
        self.counts: Counter[str] = Counter()
        self.subscriber = Subscriber()
        schemas = (events.SCHEMA, SCHEMA, messaging.SCHEMA, TABLES, SEEN)
        self.database = SharedDatabase(self.world, *schemas)
        self.world.node("client", self.append)
        for name in REPLICAS:
            self.world.node(name, self.serve)

    async def append(self, runtime: SimRuntime) -> None:
        """Append events now and then, as a replica that only answers calls does."""
        store = await self.database.connect(runtime)
        sold = [NewEvent(SOLD, b"{}", is_public=True, partition_key="k")]
        for _ in range(APPENDED):
            await asyncio.sleep(self.rng.expovariate(3.0))
            await store.write(lambda unit: append(unit, "a", sold, expected=None), name="add")

    async def serve(self, runtime: SimRuntime) -> None:
        store: Any = await self.database.connect(runtime)
        engine = engine_on(store, self.others, runtime, [PLACE])
        await engine.recover()
        options = ProjectionOptions(batch_max=4)
        runner = ProjectionRunner(store, [Projection("seen", note)], options)
        await runner.prepare()
        relay = Relay(
            store, self.subscriber, subscriber="stock", names=frozenset({SOLD}), runtime=runtime,
            tracer=Tracer("orders", runtime, MemoryRing()), options=RelayOptions(poll_s=1.0),
        )  # fmt: skip
        loops = [engine.keep_going(), engine.keep_time(), engine.keep_looking(1.0)]
        duties: list[Any] = [runner, relay]
        loops += [store.owners.run(each.checkpoint_name, each.run) for each in duties]
        tasks = [asyncio.ensure_future(each) for each in loops]
        for number in range(SAGAS):
            id_ = f"{runtime.name}-{number}"
            with suppress(SagaError, Shed, Fenced, StoreError):
                await engine.start(PLACE, Order(id_), id=id_, context=CONTEXT)
            await asyncio.sleep(2.0)
        await asyncio.gather(*tasks)

    async def play(self) -> None:
        world, busy_s = self.world, 45.0
        for name in ("client", *REPLICAS[:2]):
            world.nodes[name].start()
        world.later(10.0, world.nodes[REPLICAS[2]].start)
        trouble(world, REPLICAS, self.rng, until_s=busy_s)
        await asyncio.sleep(busy_s)
        world.heal()
        for _ in range(200):
            await asyncio.sleep(LEASE_S)
            seen = audit(world, "select count(*) from seen")[0][0]
            open_ = audit(world, "select count(*) from sm_saga where ended_us is null")[0][0]
            if len(self.sold()) == APPENDED and not open_ and seen >= self.events():
                break

    def sold(self) -> list[int]:
        told = audit(self.world, f"select position from sm_event where name = '{SOLD}' order by 1")
        return [position for (position,) in told]

    def events(self) -> int:
        return int(audit(self.world, "select count(*) from sm_event")[0][0])

    def audit(self) -> None:
        """Judge by the database and the participants alone."""
        seen = [row[0] for row in audit(self.world, "select position from seen order by rowid")]
        assert seen == list(range(1, self.events() + 1)), f"seed {self.seed}: once, in order"
        assert audit(self.world, "select * from went_back") == [], f"seed {self.seed}"
        assert sorted(self.subscriber.taken_ids) == self.sold()
        states = audit(self.world, "select status, count(*) from sm_saga group by 1")
        assert {status for status, _ in states} <= {"completed"}, (self.seed, states)
        count = sum(n for _, n in states)
        assert audit(self.world, "select count(*), max(n) from orders") == [(count, 1)]
        assert self.others.live["bank.charge"] == count


def test_a_replica_that_wakes_is_fenced_out_and_nothing_comes_twice_or_is_left_out() -> None:
    """Paused for longer than its lease, killed or joined by others: each effect is there once."""
    count: Counter[str] = Counter()
    lost = _SharedFence.lost

    async def counted(self: Any, unit: Unit) -> Any:
        gone = await lost(self, unit)
        count["fenced out"] += bool(gone)
        return gone

    with patch.object(_SharedFence, "lost", counted):
        for seed in range(UNIVERSES):
            universe = Replicas(seed)
            universe.world.run(universe.play())
            universe.audit()
            count.update(universe.world.count)
    assert min(count["pause"], count["crash"]) > UNIVERSES
    assert count["fenced out"] > 0, "the rare path was walked"
