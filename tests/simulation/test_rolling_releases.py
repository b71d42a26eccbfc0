"""Two releases of a publisher and of a subscriber, replaced in every order, with power cuts.

The old publisher sells; the new one also takes back, and writes a note on some of what it sells.
The old subscriber knows neither; each publisher believes that the subscriber is of its own release,
as a process does that has loaded the code of the whole system when it started.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from messaging_world import SOLD, Shop, open_store, relay_to, sell, take
from synchromesh.calls.contract import Operation
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.discovery import Endpoint, MemoryRegistry
from synchromesh.errors import ContractMismatch, StaleIncarnation, TimedOut, UnknownOperation
from synchromesh.messaging import Consumer, Declared, Message, declaration_of
from synchromesh.service import Child, Supervisor
from synchromesh.service.relays import Relays
from synchromesh.store import Unit
from synchromesh.system.host.subscribers import follow_subscribers
from synchromesh.testing import SimRuntime, World

RETURNED = Shop.returned.full_name
KEYS = ("SX90", "PX12", "bolt")
SOLD_IN_ALL = 60
OLD, NEW = "old", "new"


class Wire:
    """Carries messages from the shop to whichever release of the stock runs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.take: Callable[[Message], Awaitable[Any]] | None = None
        self.count: Counter[str] = Counter()

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        """Deliver one message to the stock's machine, and wait for what comes back."""
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        message = operation.parse(arguments)["message"]

        async def serve() -> None:
            if self.take is None:
                return
            try:
                receipt = await self.take(message)
            except UnknownOperation as error:
                self._world.deliver("stock", "shop", partial(answer, error))
                return
            self.count[receipt.outcome] += 1
            self._world.deliver("stock", "shop", partial(answer, encode(receipt)))

        def answer(told: bytes | UnknownOperation) -> None:
            if answered.done():
                return
            if isinstance(told, UnknownOperation):
                answered.set_exception(told)
            else:
                answered.set_result(told)

        self._world.deliver("shop", "stock", lambda: begin(serve()))
        try:
            async with asyncio.timeout(1.0):
                return await answered
        except TimeoutError:
            raise TimedOut("no answer") from None


def begin(work: Coroutine[Any, Any, None]) -> None:
    """Start a task in the process that is being run."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


class Releases:
    """The world: which release of each side runs next, and what it does."""

    def __init__(self, seed: int, *, has_no_database: bool) -> None:
        self.world = World(seed)
        self.wire = Wire(self.world)
        self.release = {"shop": OLD, "stock": OLD}
        # The old stock has no subscriptions at all, so that it has no database either.
        self.has_no_database = has_no_database
        self.world.node("shop", self.shop).start()
        self.world.node("stock", self.stock).start()

    async def shop(self, runtime: SimRuntime) -> None:
        is_new = self.release["shop"] == NEW
        shop = await open_store(runtime, "shop")
        subscribed = {SOLD, RETURNED} if is_new else {SOLD}
        if self.has_no_database and not is_new:
            subscribed = set()
        relay = relay_to(
            shop,
            self.wire,  # type: ignore[arg-type]
            runtime,
            names=frozenset(subscribed),
            backoff_cap_s=0.5,
        )
        if subscribed:
            begin(relay.run())
        rows = await shop.read("select coalesce(max(n), 0) from sale")
        for n in range(int(rows[0][0] or 0) + 1, SOLD_IN_ALL + 1):
            is_return = is_new and n % 4 == 0
            await sell(shop, KEYS[n % 3], n, which=Shop.returned if is_return else Shop.sold)
            await asyncio.sleep(runtime.rng.uniform(0.0, 0.1))
        await asyncio.sleep(10_000.0)

    async def stock(self, runtime: SimRuntime) -> None:
        self.wire.take = None
        is_new = self.release["stock"] == NEW
        if self.has_no_database and not is_new:
            self.wire.take = self.refuse
            await asyncio.sleep(10_000.0)
        stock = await open_store(runtime, "stock")
        handlers = {SOLD: take, RETURNED: take} if is_new else {SOLD: self.take_as_before}
        consumer = Consumer(stock, handlers, attempts_max=1)
        self.wire.take = lambda message: consumer.take("shop", message)
        await consumer.run()

    async def refuse(self, message: Message) -> Any:
        self.wire.count["refused"] += 1
        raise UnknownOperation("stock has no operation deliver_message")

    async def take_as_before(self, unit: Unit, message: Message) -> None:
        """Handle what is sold, as long as it is without a note."""
        if message.position % 7 == 0 and self.release["shop"] == NEW:
            raise ContractMismatch("there is a note, which this release does not know")
        await take(unit, message)

    async def replace(self, side: str) -> None:
        """Replace a process by one of the other release; a power cut may come at any time."""
        self.release[side] = NEW if self.release[side] == OLD else OLD
        self.world.nodes[side].crash(self.world.rng.uniform(0.0, 0.3))
        await asyncio.sleep(self.world.rng.uniform(0.2, 1.2))
        if self.world.rng.random() < 0.5:
            cut = self.world.rng.choice(["shop", "stock"])
            self.world.nodes[cut].crash(self.world.rng.uniform(0.0, 0.5))

    async def roll(self, order: tuple[str, ...]) -> None:
        await asyncio.sleep(self.world.rng.uniform(0.1, 0.6))
        for side in order:
            await self.replace(side)
        for side in ("shop", "stock"):
            if self.release[side] == OLD:
                await self.replace(side)
        self.world.heal()
        await asyncio.sleep(60.0)


class Hearing(Releases):
    """The world where only processes say what they take: the shop's is of any age.

    A process knows what stood in the folder when it was started. The shop sells and takes back in
    either release; what differs is what it knows of the stock.
    """

    def __init__(self, seed: int, *, has_no_database: bool) -> None:
        self.registry = MemoryRegistry(verify=lambda _: None)
        self.heard = 0
        self.broken: list[str] = []
        super().__init__(seed, has_no_database=has_no_database)
        self.world.node("registry", lambda _: self.registry.run()).start()

    def taken_by(self, release: str) -> frozenset[str]:
        """Return what a release of the stock takes."""
        old = frozenset() if self.has_no_database else frozenset({SOLD})
        return frozenset({SOLD, RETURNED}) if release == NEW else old

    async def shop(self, runtime: SimRuntime) -> None:
        known = {"stock": self.taken_by(self.release["stock"])}
        shop = await open_store(runtime, "shop")
        declared = Declared()

        def gave_up(child: str, error: BaseException) -> None:
            self.broken.append(f"{child}: {error}")

        supervisor = Supervisor("shop", rng=runtime.rng, gave_up=gave_up)
        relays = Relays(
            shop,
            lambda _, names: relay_to(
                shop,
                self.wire,  # type: ignore[arg-type]
                runtime,
                names=names,
                backoff_cap_s=0.5,
            ),
            own=frozenset({SOLD, RETURNED}),
            subscribers=lambda: declared.added_to(known),
            listen=declared.listen,
            supervisor=supervisor,
        )
        await follow_subscribers(self.registry, ["stock"], declared, supervisor)
        await relays.prepare()
        relays.start()
        supervisor.start(Child("subscriptions", relays.run))

        def hear() -> None:
            self.heard += 1

        declared.listen(hear)
        rows = await shop.read("select coalesce(max(n), 0) from sale")
        for n in range(int(rows[0][0] or 0) + 1, SOLD_IN_ALL + 1):
            await sell(shop, KEYS[n % 3], n, which=Shop.returned if n % 4 == 0 else Shop.sold)
            await asyncio.sleep(runtime.rng.uniform(0.0, 0.1))
        await asyncio.sleep(10_000.0)

    async def stock(self, runtime: SimRuntime) -> None:
        takes = declaration_of(self.taken_by(self.release["stock"]))
        # It is listed before it serves, or after: neither may matter.
        await asyncio.sleep(runtime.rng.uniform(0.0, 0.2))
        begin(super().stock(runtime))
        await asyncio.sleep(runtime.rng.uniform(0.0, 0.2))
        place = Endpoint("stock", "stock", "http://stock:1", (takes,))
        registration = await self.registry.register(place, credential="")
        with suppress(StaleIncarnation):
            await registration.run()

    async def take_as_before(self, unit: Unit, message: Message) -> None:
        """Handle what is sold: the publisher writes no notes here."""
        await take(unit, message)

    async def roll(self, order: tuple[str, ...]) -> None:
        await asyncio.sleep(self.world.rng.uniform(0.1, 0.6))
        for step in order:
            if step == "write":
                self.release["stock"] = NEW if self.release["stock"] == OLD else OLD
            else:
                await self.restart(step)
        if self.release["stock"] == OLD:
            self.release["stock"] = NEW
        # The last that is done, and of the subscriber alone: nobody tells the publisher.
        self.world.heal()
        await self.restart("stock")
        await asyncio.sleep(60.0)

    async def restart(self, side: str) -> None:
        """Restart a process, with what stands in the folder; a power cut may come at any time."""
        self.world.nodes[side].crash(self.world.rng.uniform(0.0, 0.3))
        await asyncio.sleep(self.world.rng.uniform(0.2, 1.2))
        if self.world.rng.random() < 0.3:
            self.world.nodes["shop"].crash(self.world.rng.uniform(0.0, 0.5))


STEPS = ("write", "shop", "stock")
HEARING_ORDERS = [order for length in range(5) for order in itertools.product(STEPS, repeat=length)]

ORDERS = [
    order for length in range(4) for order in itertools.product(("shop", "stock"), repeat=length)
]


@pytest.mark.parametrize("has_no_database", [False, True])
def test_rolling_releases_in_every_order_lose_repeat_and_reorder_nothing(
    has_no_database: bool,
) -> None:
    """Forward and back, whichever side is first: all is taken, once, in the order of its key."""
    count: Counter[str] = Counter()
    for seed, order in enumerate(ORDERS):
        releases = Releases(seed, has_no_database=has_no_database)
        releases.world.run(releases.roll(order))
        rows = releases.world.disk.rows
        sold = rows("/shop.db", "select sku, n from sale order by n")
        taken = rows("/stock.db", "select sku, n from taken order by id")
        assert len(sold) == SOLD_IN_ALL
        for key in KEYS:
            mine = [n for sku, n in sold if sku == key]
            assert [n for sku, n in taken if sku == key] == mine, (seed, order, key)
        assert rows("/stock.db", "select count(*) from sm_parked") == [(0,)]
        assert rows("/shop.db", "select count(*) from sm_parked") == [(0,)]
        count.update(releases.wire.count + releases.world.count)
    rare = ("crash", "refused") if has_no_database else ("crash", "held", "parked")
    assert all(count[each] > 10 for each in rare), count


@pytest.mark.parametrize("has_no_database", [False, True])
def test_a_publisher_hears_of_subscriptions_in_every_order_of_restarts(
    has_no_database: bool,
) -> None:
    """In the end all is taken, once, each event in the order of its key; and nobody was needed."""
    count: Counter[str] = Counter()
    for seed, order in enumerate(HEARING_ORDERS):
        releases = Hearing(seed, has_no_database=has_no_database)
        releases.world.run(releases.roll(order))
        rows = releases.world.disk.rows
        sold = rows("/shop.db", "select sku, n from sale order by n")
        taken = rows("/stock.db", "select sku, n from taken order by id")
        assert releases.broken == []
        assert len(sold) == SOLD_IN_ALL
        for key, is_return in itertools.product(KEYS, (False, True)):
            mine = [n for sku, n in sold if sku == key and (n % 4 == 0) is is_return]
            assert [n for sku, n in taken if sku == key and (n % 4 == 0) is is_return] == mine, (
                seed, order, key, is_return,
            )  # fmt: skip
        for database in ("/stock.db", "/shop.db"):
            assert rows(database, "select count(*) from sm_parked") == [(0,)]
        wanted = rows("/shop.db", "select name from sm_subscription where is_wanted = 1")
        assert sorted(wanted) == [(RETURNED,), (SOLD,)]
        count.update(releases.wire.count + releases.world.count)
        count["heard"] += releases.heard
    rare = ("crash", "heard", "refused") if has_no_database else ("crash", "heard", "held")
    assert all(count[each] > 10 for each in rare), count
