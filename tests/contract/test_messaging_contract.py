"""What messages between services promise: O1 to O5, on real databases, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from messaging_world import (
    SOLD,
    TRACE,
    Direct,
    Poison,
    Shop,
    Sold,
    message,
    open_store,
    relay_to,
    sell,
    stores,
    take,
    taken,
)
from saga_fakes import ON_SQLITE
from synchromesh.calls.contract import Operation
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.errors import SynchromeshError, TimedOut
from synchromesh.messaging import Consumer, Relay, list_messages, publish
from synchromesh.store import StoreOptions, Unit
from synchromesh.testing import STORMY, SimRuntime, World, run

pytestmark = pytest.mark.usefixtures("each_engine")

KEYS = ("SX90", "PX12", "bolt")


class Regretted(Exception):
    """Ends a unit after it has published."""


async def regret(shop: Any, sku: str, n: int) -> None:
    """Sell, publish, and roll all of it back."""

    async def body(unit: Unit) -> None:
        await unit.execute("insert into sale(n, sku) values (?, ?)", n, sku)
        await publish(unit, Shop.sold, Sold(sku, n), trace_id=TRACE)
        raise Regretted

    with suppress(Regretted):
        await shop.write(body, name="regret")


async def in_turn(loop: Relay | Consumer) -> None:
    """Run it as a service does: a relay whenever it is this process's duty."""
    if isinstance(loop, Relay):
        await loop._store.owners.run(loop.checkpoint_name, loop.run)
    else:
        await loop.run()


async def for_a_while(seconds: float, *loops: Relay | Consumer) -> None:
    """Run relays and consumers for some seconds, then stop them as a killed process would not."""
    tasks = [asyncio.get_running_loop().create_task(in_turn(each)) for each in loops]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


def test_published_if_and_only_if_committed() -> None:
    """Rolled back units publish nothing; every one that commits is delivered (O1, O2)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            relay = relay_to(shop, Direct(stock=Consumer(stock, {SOLD: take})), runtime)

            async def work() -> None:
                for n in range(1, 41):
                    await (regret if n % 3 == 0 else sell)(shop, KEYS[n % 2], n)

            # The units are in groups with each other, so that one that fails spoils none.
            await asyncio.gather(for_a_while(5.0, relay), work())
            sold = [n for (n,) in await shop.read("select n from sale order by n")]
            assert sold == [n for n in range(1, 41) if n % 3]
            assert sorted(await taken(stock)) == sold

    run(main)


@ON_SQLITE
@pytest.mark.parametrize("seed", range(8))
def test_order_and_one_effect_under_restarts_lost_answers_and_two_relays(seed: int) -> None:
    """Each key's messages take effect in order, once, whatever is repeated (O3, O4)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            rng = random.Random(seed)
            counts: Counter[str] = Counter()
            sender = Direct()

            def restart() -> None:
                sender.consumers = {"stock": Consumer(stock, {SOLD: take})}

            def fault(_: object) -> str:
                drawn = rng.choice(["", "", "", "lose", "refuse", "garbage", "restart"])
                counts[drawn] += 1
                if drawn == "restart":
                    restart()
                return drawn

            restart()
            sender.fault = fault
            for n in range(1, 61):
                await sell(shop, KEYS[n % 3], n)
                if n % 20 == 0:
                    relays = [relay_to(shop, sender, runtime) for _ in range(2)]
                    await for_a_while(rng.uniform(0.1, 1.0), *relays)
            sender.fault = lambda _: ""
            await for_a_while(20.0, relay_to(shop, sender, runtime))
            for key in range(3):
                assert await taken(stock, KEYS[key]) == [n for n in range(1, 61) if n % 3 == key]
            assert len(sender.sent) > 60
            assert min(counts.values()) > 0

    run(main, seed=seed)


def test_poison_waits_with_its_key_and_is_replayed_in_order() -> None:
    """Other keys flow; after a person has mended the handler the key continues (O5)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            poison = Poison({4})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=3)
            relay = relay_to(shop, Direct(stock=consumer), runtime)
            for n in range(1, 16):
                await sell(shop, KEYS[n % 3], n)
            await for_a_while(5.0, relay)
            key = KEYS[4 % 3]
            others = [n for n in range(1, 16) if n % 3 != 4 % 3]
            assert sorted(await taken(stock)) == sorted([1, *others])
            aside = await list_messages(stock)
            assert [(each.position, each.state) for each in aside] == [
                (4, "parked"), (7, "waiting"), (10, "waiting"), (13, "waiting"),
            ]  # fmt: skip
            # It is parked at the consumer: the publisher's checkpoint has passed it.
            assert (await shop.read("select position from sm_checkpoint")) == [(15,)]
            poison.bad.clear()
            ((letter,),) = await stock.read("select min(number) from sm_parked")
            assert await consumer.replay(letter, who="ada", why="mended")
            await sell(shop, key, 16)
            await for_a_while(2.0, relay, consumer)
            assert await taken(stock, key) == [1, 4, 7, 10, 13, 16]

    run(main)


@ON_SQLITE
def test_what_is_sold_after_a_restore_is_taken_at_the_positions_of_what_was_lost() -> None:
    """An older copy of the publisher's file repeats positions and no id: nothing is swallowed."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            for n in range(1, 5):
                await sell(shop, "SX90", n)
            await for_a_while(2.0, relay_to(shop, sender, runtime))

            async def restore(unit: Unit) -> None:
                await unit.execute("delete from sm_event where position > 1")
                await unit.execute("delete from sale where n > 1")
                await unit.execute("update sqlite_sequence set seq = 1 where name = 'sm_event'")
                await unit.execute("update sm_checkpoint set position = 0")

            await shop.write(restore, name="restore")
            for n in range(5, 8):
                await sell(shop, "SX90", n)
            assert await shop.read("select max(position) from sm_event") == [(4,)]
            await for_a_while(2.0, relay_to(shop, sender, runtime))
            assert await taken(stock) == [1, 2, 3, 4, 5, 6, 7]
            assert sender.sent == [1, 2, 3, 4, 1, 2, 3, 4]

    run(main)


def test_every_subscriber_is_served_by_a_checkpoint_of_its_own() -> None:
    """One that is down holds up no other (O1)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock", "books") as (shop, stock, books):
            sender = Direct(
                stock=Consumer(stock, {SOLD: take}), books=Consumer(books, {SOLD: take})
            )
            down = Direct()
            down.fault = lambda _: "refuse"
            for n in range(1, 6):
                await sell(shop, "SX90", n)
            await for_a_while(
                30.0,
                relay_to(shop, sender, runtime),
                relay_to(shop, down, runtime, subscriber="books"),
            )
            assert await taken(stock) == [1, 2, 3, 4, 5]
            assert await taken(books) == []
            await for_a_while(2.0, relay_to(shop, sender, runtime, subscriber="books"))
            assert await taken(books) == [1, 2, 3, 4, 5]
            names = await shop.read("select name, position from sm_checkpoint order by name")
            assert names == [("relay/books", 5), ("relay/stock", 5)]

    run(main)


@ON_SQLITE
def test_a_full_disk_at_the_subscriber_parks_nothing_and_loses_nothing() -> None:
    """Messages wait at the publisher until there is room, then all arrive (O1)."""

    async def main(runtime: SimRuntime) -> None:
        shop = await open_store(runtime, "shop")
        stock = await open_store(runtime, "stock", StoreOptions(pages_max=40))
        big = "x" * 3000
        consumer = Consumer(stock, {SOLD: take}, attempts_max=2)
        relay = relay_to(shop, Direct(stock=consumer), runtime)
        for n in range(1, 101):
            await sell(shop, big, n)
        await for_a_while(60.0, relay)
        before = await taken(stock)
        assert 1 < len(before) < 100
        assert await list_messages(stock) == []
        await stock.close()
        stock = await open_store(runtime, "stock")
        consumer = Consumer(stock, {SOLD: take}, attempts_max=2)
        await for_a_while(60.0, relay_to(shop, Direct(stock=consumer), runtime))
        assert await taken(stock) == list(range(1, 101))
        await stock.close()
        await shop.close()

    run(main)


# -- two machines that crash, and a network that loses, repeats and delays -------------------------


class Remote:
    """Sends over the world's network to whoever serves at the other node."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.serve: Callable[[Any], Awaitable[Any]] | None = None

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes] = loop.create_future()
        message = operation.parse(arguments)["message"]

        async def serve() -> None:
            if self.serve is None:
                return
            try:
                receipt = await self.serve(message)
            except SynchromeshError:
                self._world.count["not taken"] += 1
                return
            self._world.deliver("stock", "shop", lambda: answer(encode(receipt)))

        def answer(receipt: bytes) -> None:
            if answered.done():
                self._world.count["late answer"] += 1
            else:
                answered.set_result(receipt)

        self._world.deliver("shop", "stock", lambda: start(serve()))
        try:
            async with asyncio.timeout(0.5):
                return await answered
        except TimeoutError:
            raise TimedOut("no answer") from None


def start(work: Any) -> None:
    """Start a task in the process that is being run."""
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


def a_world(seed: int) -> tuple[World, Remote]:
    """Make a shop that sells all the time, and a stock that takes what is sold."""
    world = World(seed, faults=STORMY)
    remote = Remote(world)

    async def shop_main(runtime: SimRuntime) -> None:
        shop = await open_store(runtime, "shop")
        rows = await shop.read("select coalesce(max(n), 0) from sale")
        start(relay_to(shop, remote, runtime, backoff_cap_s=0.5).run())  # type: ignore[arg-type]
        for n in range(int(rows[0][0] or 0) + 1, 61):
            await (regret if runtime.rng.random() < 0.2 else sell)(shop, KEYS[n % 3], n)
            await asyncio.sleep(runtime.rng.uniform(0.0, 0.1))
        await asyncio.sleep(10_000.0)

    async def stock_main(runtime: SimRuntime) -> None:
        remote.serve = None
        stock = await open_store(runtime, "stock")
        consumer = Consumer(stock, {SOLD: flaky})

        async def flaky_take(message: Any) -> Any:
            return await consumer.take("shop", message)

        remote.serve = flaky_take
        await asyncio.sleep(10_000.0)

    async def flaky(unit: Unit, message: Any) -> None:
        await take(unit, message)
        if world.rng.random() < 0.05:
            raise ValueError("now and then")

    world.node("shop", shop_main).start()
    world.node("stock", stock_main).start()
    return world, remote


async def nemesis(world: World) -> None:
    """Crash both, again and again; then let them come to an end."""
    for _ in range(8):
        await asyncio.sleep(world.rng.uniform(0.1, 1.0))
        world.nodes[world.rng.choice(["shop", "stock"])].crash(world.rng.uniform(0.0, 1.0))
    world.heal()
    await asyncio.sleep(120.0)


@ON_SQLITE
def test_crashes_and_a_bad_network_neither_lose_nor_repeat_nor_reorder() -> None:
    """Over many universes: what committed is what took effect, once, in order of its key."""
    count: Counter[str] = Counter()
    for seed in range(25):
        world, _ = a_world(seed)
        world.run(nemesis(world))
        sold = world.disk.rows("/shop.db", "select sku, n from sale order by n")
        published = world.disk.rows(
            "/shop.db", "select ordering_key from sm_event where is_public order by position"
        )
        assert Counter(sku for sku, _ in sold) == Counter(key for (key,) in published)
        effects = world.disk.rows("/stock.db", "select sku, n from taken order by id")
        for key in KEYS:
            mine = [n for sku, n in sold if sku == key]
            assert [n for sku, n in effects if sku == key] == mine, f"seed {seed}, {key}"
        parked = world.disk.rows("/stock.db", "select count(*) from sm_parked")
        assert parked == [(0,)]
        count.update(world.count)
        count["answer from the inbox"] += count["late answer"]
    for rare in ("crash", "message lost", "message duplicated", "message late", "late answer"):
        assert count[rare] > 20, (rare, count)


@ON_SQLITE
def test_a_crash_at_every_step_of_the_subscriber_repeats_no_effect() -> None:
    """Between commit and acknowledgement, and anywhere else, a power cut costs a repetition only.

    The subscriber's steps while it takes two messages are counted, then each one is its last.
    """

    def universe(crash_at: int | None) -> tuple[list[Any], int]:
        world = World(1)
        remote = Remote(world)

        async def shop_main(runtime: SimRuntime) -> None:
            shop = await open_store(runtime, "shop")
            await sell(shop, "SX90", 1)
            await sell(shop, "SX90", 2)
            await relay_to(shop, remote, runtime).run()  # type: ignore[arg-type]

        async def stock_main(runtime: SimRuntime) -> None:
            stock = await open_store(runtime, "stock")
            consumer = Consumer(stock, {SOLD: take})
            remote.serve = lambda message: consumer.take("shop", message)
            await asyncio.sleep(1000.0)

        world.node("shop", shop_main).start()
        node = world.node("stock", stock_main)
        node.start()
        if crash_at is not None:

            def cut(stepping: Any) -> None:
                if stepping is node and node.steps == crash_at:
                    node.crash(0.2)

            world.on_step = cut
        world.run(asyncio.sleep(30.0))
        rows = world.disk.rows("/stock.db", "select n from taken order by id")
        return rows, node.steps

    effects, steps = universe(None)
    assert effects == [(1,), (2,)]
    assert steps > 8
    for crash_at in range(1, steps + 1):
        assert universe(crash_at)[0] == [(1,), (2,)], f"crash at step {crash_at}"


@ON_SQLITE
def test_a_crash_at_every_step_while_held_messages_are_handled_repeats_no_effect() -> None:
    """A release that starts handles what the one before held, in order, whenever power is cut."""

    def universe(crash_at: int | None) -> tuple[list[Any], int]:
        world = World(1)
        held_by: list[int] = []  # the steps until all were held

        async def stock_main(runtime: SimRuntime) -> None:
            stock = await open_store(runtime, "stock")
            if not held_by:
                older = Consumer(stock, {})
                for n in range(1, 4):
                    await older.take("shop", message(n))
                held_by.append(node.steps)
            await Consumer(stock, {SOLD: take}).run()

        node = world.node("stock", stock_main)
        node.start()
        if crash_at is not None:

            def cut(stepping: Any) -> None:
                if stepping is node and held_by and node.steps == held_by[0] + crash_at:
                    node.crash(0.2)

            world.on_step = cut
        world.run(asyncio.sleep(30.0))
        assert world.disk.rows("/stock.db", "select count(*) from sm_parked") == [(0,)]
        return world.disk.rows(
            "/stock.db", "select n from taken order by id"
        ), node.steps - held_by[0]

    effects, steps = universe(None)
    assert effects == [(1,), (2,), (3,)]
    assert steps > 8
    for crash_at in range(1, steps + 1):
        assert universe(crash_at)[0] == effects, f"crash at step {crash_at}"
