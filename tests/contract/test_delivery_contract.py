"""What messages promise by whichever way they are delivered: O1 to O5, on real engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from delivery_world import Works, until
from messaging_world import SOLD, TRACE, Poison, Shop, Sold, sell, take, taken
from nats_server import shared_nats
from synchromesh.messaging import Consumer, Message, list_messages, publish
from synchromesh.store import Unit

pytestmark = pytest.mark.anyio

RETURNED = Shop.returned.full_name
KEYS = ("SX90", "PX12", "bolt", "nut")


@pytest.fixture(params=["calls on sqlite", "jetstream on sqlite", "jetstream on postgres"])
async def works(
    request: pytest.FixtureRequest, tmp_path: Path, anyio_backend: str
) -> AsyncIterator[Works]:
    """A shop and its subscribers, joined by each way, with databases of each engine."""
    way, _, engine = request.param.split()
    url = shared_nats().url if way == "jetstream" else ""
    made = Works(tmp_path, url, system=request.node.name, engine=engine)
    yield made
    await made.close()


class Regretted(Exception):
    """Ends a unit after it has published."""


async def test_published_if_and_only_if_committed(works: Works) -> None:
    """What is rolled back is delivered to nobody; all that commits is (O1, O2)."""
    shop = await works.store("shop")

    async def regret(unit: Unit) -> None:
        await publish(unit, Shop.sold, Sold("SX90", 0), trace_id=TRACE)
        raise Regretted

    async with works.publishing(), works.taking():
        for n in range(1, 21):
            with suppress(Regretted):
                await shop.write(regret, name="regret")
            await sell(shop, KEYS[n % 4], n)
        assert sorted(await works.until_taken(20)) == list(range(1, 21))
        await works.until_saved(20)


async def test_order_and_one_effect_under_restarts_of_both_and_two_relays(works: Works) -> None:
    """Each key's messages take effect in order, once, whatever is cut off and repeated (O3, O4)."""
    shop, stock = await works.store("shop"), await works.store("stock")
    for n in range(1, 81):
        await sell(shop, KEYS[n % 4], n)
        if n % 20 == 0:
            async with works.publishing(), works.publishing(), works.taking():
                await works.until_taken(n // 2)
    async with works.publishing(), works.taking():
        await works.until_taken(80)
        await works.until_saved(80)
    for key in range(4):
        assert await taken(stock, KEYS[key]) == [n for n in range(1, 81) if n % 4 == key]


async def test_a_handler_that_fails_now_and_then_is_asked_again(works: Works) -> None:
    """Its message takes effect once, and before the next one of its key (O3, O4)."""
    shop = await works.store("shop")
    calls = 0

    async def flaky(unit: Unit, message: Message) -> None:
        nonlocal calls
        calls += 1
        await take(unit, message)
        if calls % 3 == 1:
            raise ValueError("now and then")

    async with works.publishing(), works.taking(handlers={SOLD: flaky}):
        for n in range(1, 13):
            await sell(shop, "SX90", n)
        assert await works.until_taken(12) == list(range(1, 13))
    assert calls > 12


async def test_poison_waits_with_its_key_and_is_replayed_in_order(works: Works) -> None:
    """It is kept at the subscriber, other keys flow, and the checkpoint goes on (O5)."""
    shop, stock = await works.store("shop"), await works.store("stock")
    poison = Poison({4})
    consumer = Consumer(stock, {SOLD: poison}, attempts_max=3)
    async with works.publishing(), works.taking(consumer=consumer):
        for n in range(1, 17):
            await sell(shop, KEYS[n % 4], n)
        assert sorted(await works.until_taken(12)) == [n for n in range(1, 17) if n % 4]
        await works.until_saved(16)
        aside = await list_messages(stock)
        assert [(each.position, each.state) for each in aside] == [
            (4, "parked"), (8, "waiting"), (12, "waiting"), (16, "waiting"),
        ]  # fmt: skip
        poison.bad.clear()
        assert await consumer.replay(1, who="ada", why="mended")
        await sell(shop, KEYS[0], 20)
        await works.until_taken(17)
    assert await taken(stock, KEYS[0]) == [4, 8, 12, 16, 20]


async def test_what_a_release_does_not_know_is_held_for_the_next_one(works: Works) -> None:
    """It is told where the subscriber's other messages are, and handled before later ones (O5)."""
    shop, stock = await works.store("shop"), await works.store("stock")
    both = frozenset({SOLD, RETURNED})
    async with works.publishing(names=both):
        async with works.taking():
            await sell(shop, "SX90", 1)
            await sell(shop, "SX90", 2, which=Shop.returned)
            await sell(shop, "SX90", 3)
            await works.until_saved(3)
            found = [(each.position, each.state) for each in await list_messages(stock)]
            assert found == [(2, "held"), (3, "waiting")]
        async with works.taking(handlers={SOLD: take, RETURNED: take}):
            await sell(shop, "SX90", 4)
            assert await works.until_taken(4) == [1, 2, 3, 4]


async def test_a_subscriber_that_is_away_holds_up_no_other(works: Works) -> None:
    """What it has not taken is not counted as taken, and comes when it is there (O1)."""
    shop, stock = await works.store("shop"), await works.store("stock")
    async with works.publishing(), works.publishing("books"):
        async with works.taking("books"):
            for n in range(1, 11):
                await sell(shop, KEYS[n % 4], n)
            await works.until_taken(10, "books")
            await works.until_saved(10, "books")
            assert await taken(stock) == []
            rows = await shop.read("select position from sm_checkpoint where name = 'relay/stock'")
            assert rows == [(0,)]
        async with works.taking():
            await works.until_taken(10)
            await works.until_saved(10)


async def test_a_new_subscription_begins_with_the_log(works: Works) -> None:
    """Also where what the subscriber took before was delivered long ago (O1)."""
    shop, stock = await works.store("shop"), await works.store("stock")
    async with works.publishing(), works.taking():
        for n in range(1, 5):
            await sell(shop, "SX90", n)
            await sell(shop, "SX90", -n, which=Shop.returned)
        await works.until_taken(4)
        await works.until_saved(8)
    handlers = {SOLD: take, RETURNED: take}
    async with (
        works.publishing(names=frozenset(handlers)),
        works.taking(handlers=handlers),
    ):
        await sell(shop, "SX90", 5)
        await works.until_taken(9)
        await works.until_saved(9)
    assert await taken(stock) == [1, 2, 3, 4, -1, -2, -3, -4, 5]


async def test_one_key_at_a_time_and_keys_side_by_side(works: Works) -> None:
    """No two messages of a key are handled at once, and one key does not wait for all."""
    shop = await works.store("shop")
    stock = await works.store("stock")
    under_way: set[str] = set()
    most = 0
    consumer = Consumer(stock, {SOLD: take})
    take_one = consumer.take

    async def watched(source: str, message: Message) -> object:
        nonlocal most
        assert message.scope not in under_way
        under_way.add(message.scope)
        most = max(most, len(under_way))
        try:
            await asyncio.sleep(0.005)
            return await take_one(source, message)
        finally:
            under_way.remove(message.scope)

    consumer.take = watched  # type: ignore[assignment, method-assign]
    async with works.publishing(), works.taking(consumer=consumer):
        for n in range(1, 41):
            await sell(shop, KEYS[n % 4], n)
        await works.until_taken(40)
    assert most > 1


async def test_from_one_way_to_the_other_and_back_nothing_is_lost_or_repeated(
    tmp_path: Path,
) -> None:
    """The checkpoint is what was taken, whichever way it went: a stream may be left as it is."""
    url = shared_nats().url
    works = Works(tmp_path, url, system="back-and-forth")
    shop, stock = await works.store("shop"), await works.store("stock")
    sold = 0
    for way in (url, "", url, ""):
        works.url = way
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(works.publishing())
            for _ in range(12):
                sold += 1
                await sell(shop, KEYS[sold % 4], sold)
            if not way:
                await stack.enter_async_context(works.taking())
                await works.until_taken(sold)
                await works.until_saved(sold)
            else:

                async def is_there() -> bool:
                    async with works.stream() as stream:
                        _, info = await stream._connection.info(">")
                        return info.state.messages >= 12

                await until(is_there)
    works.url = url
    async with works.taking(), works.publishing():
        await sell(shop, KEYS[0], 100)
        await works.until_taken(sold + 1)
        await works.until_saved(sold + 1)
    for key in range(1, 4):
        assert await taken(stock, KEYS[key]) == [n for n in range(1, 49) if n % 4 == key]
    await works.close()
