"""Replicas of one service in a simulation: a database that all of them write, with leases on it.

The database is a node that stays up; each replica reaches it over a way that takes a while, so that
what it sends after a pause arrives after others have taken its duties over. Leases run by the
clock of the database, as on PostgreSQL; duties, epochs and their fences are the product's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping
from contextvars import copy_context
from typing import Any

from synchromesh.store import Migration, Schema, SqliteStore, Unit
from synchromesh.store.owners import TOPIC, SharedOwners
from synchromesh.store.ownership import View
from synchromesh.testing import SimRuntime, World

DUTIES = Schema(
    "replicas",
    (
        Migration(
            1,
            (
                "create table sm_replica(id text primary key, able text, until_us integer)",
                "create table sm_duty(name text primary key, owner text, epoch integer)",
            ),
            readable_by_min=1,
        ),
    ),
)
LEASE_S = 6.0
_HAS_LEASE = "exists (select 1 from sm_replica r where r.id = owner and r.until_us > ?)"


class SharedDatabase:
    """The database, on a node of its own."""

    def __init__(self, world: World, *schemas: Schema) -> None:
        self.world = world
        self._schemas = schemas
        self._is_open = asyncio.Event()
        self.store: Any = None
        world.node("database", self._serve).start()

    async def _serve(self, runtime: SimRuntime) -> None:
        self.store = await SqliteStore.open(
            "/orders.db", service="orders", schemas=[*self._schemas, DUTIES], runtime=runtime
        )
        self._is_open.set()
        await asyncio.Event().wait()

    async def connect(self, runtime: SimRuntime) -> ReplicaStore:
        """Return the store of a replica, in this life of its process."""
        await self._is_open.wait()
        return ReplicaStore(self, f"{runtime.name}-{runtime.epoch}")

    async def travel(self) -> None:
        """Take as long as a statement or its answer is on its way."""
        await asyncio.sleep(self.world.rng.expovariate(200.0))


class ReplicaStore:
    """What one replica has of the database; a `Store`."""

    def __init__(self, database: SharedDatabase, id: str) -> None:  # noqa: A002
        self._database = database
        book = SimDutyBook(self)
        self.owners = SharedOwners(book, id, self.listen, renew_s=LEASE_S / 3)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database.store, name)

    async def write(self, body: Callable[[Unit], Any], *, name: str) -> Any:
        """Have a unit run by the database."""
        return await self._asked("write", body, name=name)

    async def write_once(self, *about: Any, name: str) -> Any:
        """Have an idempotent unit run by the database."""
        return await self._asked("write_once", *about, name=name)

    async def read(self, *about: Any) -> Any:
        """Query it."""
        return await self._asked("read", *about)

    def listen(self, topic: str, listener: Callable[[], None]) -> Callable[[], None]:
        """Be told in this process, once it goes on; never after its end."""
        loop, context = asyncio.get_running_loop(), copy_context()
        stop: Callable[[], None] = self._database.store.listen(
            topic, lambda: loop.call_soon(listener, context=context)
        )
        return stop

    async def close(self) -> None:
        """Give its duties back."""
        await self.owners.close()

    async def _asked(self, verb: str, *about: Any, **more: Any) -> Any:
        await self._database.travel()
        try:
            return await getattr(self._database.store, verb)(*about, **more)
        finally:
            await self._database.travel()


class SimDutyBook:
    """The rows of replicas and duties there; a `DutyBook`."""

    fence_sql: str = (
        "select name, epoch from sm_duty where owner = ? and name in (select value from "
        """json_each('["' || replace(?, char(10), '","') || '"]'))"""
    )

    def __init__(self, store: ReplicaStore) -> None:
        self._store = store

    async def renew(self, replica: str, able: Collection[str]) -> View:
        """Renew the lease of a replica, and return what is told of all of them."""

        async def body(unit: Unit) -> View:
            until_us, told = unit.now_us + int(LEASE_S * 1e6), "\n".join(sorted(able))
            known = await unit.execute("select able from sm_replica where id = ?", replica)
            await unit.execute(
                "insert into sm_replica values (?, ?, ?) on conflict(id) do update set "
                "able = excluded.able, until_us = excluded.until_us", replica, told, until_us,
            )  # fmt: skip
            if known != [(told,)]:
                for duty in able:
                    await unit.execute(
                        "insert into sm_duty values (?, '', 0) on conflict(name) do nothing", duty
                    )
                unit.notify(TOPIC)
            live = "select id, able from sm_replica where until_us > ?"
            replicas: Any = await unit.execute(live, unit.now_us)
            owners: Any = await unit.execute("select name, owner, epoch from sm_duty")
            return View(
                {each: frozenset(text.split("\n")) - {""} for each, text in replicas},
                {name: (owner, epoch) for name, owner, epoch in owners},
            )

        view: View = await self._store.write(body, name="renew")
        return view

    async def claim(self, replica: str, duties: Collection[str]) -> dict[str, int]:
        """Claim duties whose owners have no lease; return the epochs of those that were granted."""

        async def body(unit: Unit) -> dict[str, int]:
            granted: dict[str, int] = {}
            for duty in sorted(duties):
                for (epoch,) in await unit.execute(
                    "update sm_duty set owner = ?, epoch = epoch + 1 where name = ? and not "
                    f"{_HAS_LEASE} returning epoch", replica, duty, unit.now_us,
                ):  # fmt: skip
                    granted[duty] = int(str(epoch))
            return granted

        epochs: dict[str, int] = await self._store.write(body, name="claim")
        return epochs

    async def give_back(self, replica: str, duties: Mapping[str, int]) -> None:
        """Give back what is this replica's under these epochs still, and tell the others."""

        async def body(unit: Unit) -> None:
            for duty, epoch in duties.items():
                await unit.execute(
                    "update sm_duty set owner = '' where owner = ? and name = ? and epoch = ?",
                    replica, duty, epoch,
                )  # fmt: skip
            unit.notify(TOPIC)

        await self._store.write(body, name="give back")

    async def leave(self, replica: str) -> None:
        """End the lease of a replica, with all that it owns, and tell the others."""

        async def body(unit: Unit) -> None:
            await unit.execute("delete from sm_replica where id = ?", replica)
            await unit.execute("update sm_duty set owner = '' where owner = ?", replica)
            unit.notify(TOPIC)

        await self._store.write(body, name="leave")

    async def close(self) -> None:
        """Do nothing."""


def trouble(world: World, names: Collection[str], rng: random.Random, *, until_s: float) -> None:
    """Pause replicas for longer than a lease, and cut their power, so that others take over."""
    for name in names:
        at_s = 0.0
        while (at_s := at_s + rng.expovariate(1 / 8.0)) < until_s:
            node = world.nodes[name]
            if rng.random() < 0.7:
                world.later(at_s, node.pause, rng.uniform(0.5, 3.0) * LEASE_S)
            else:
                world.later(at_s, node.crash, rng.uniform(0.1, 2.0))
