"""A subscriber that is gone: what is kept for it, what it gets if it comes back, how it goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from messaging_world import SOLD, Direct, relay_to, sell, stores, take, taken
from synchromesh.errors import BadRequest, ContractError, UnknownOperation
from synchromesh.events import Checkpoint, remove, save_checkpoint
from synchromesh.messaging import (
    Consumer,
    Forgotten,
    GoneSubscriber,
    end_subscriptions,
    forget_subscriber,
    gone_subscribers,
    list_messages,
)
from synchromesh.store import Store, Unit
from synchromesh.testing import SimRuntime, run

BY = {"who": "ada", "why": "its team has closed it"}
Setting = Callable[[SimRuntime, Store, Store, Direct], Awaitable[None]]


async def deliver(runtime: SimRuntime, store: Store, sender: Direct, **more: Any) -> None:
    """Let a relay run for a while, as one release of the publisher does."""
    relay = asyncio.ensure_future(relay_to(store, sender, runtime, **more).run())
    await asyncio.sleep(30.0)
    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)


def with_both(main: Setting) -> None:
    async def opened(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            await main(runtime, shop, stock, Direct(stock=Consumer(stock, {SOLD: take})))

    run(opened, until_s=1e6)


def test_what_a_gone_subscriber_has_not_got_is_kept_and_shown_until_it_is_forgotten() -> None:
    """It holds events back from removal; one of its name that comes later begins with the log."""

    async def main(runtime: SimRuntime, shop: Store, stock: Store, sender: Direct) -> None:
        await sell(shop, "a", 1)
        await deliver(runtime, shop, sender)
        assert await gone_subscribers(shop) == []
        with pytest.raises(BadRequest, match="stock is not gone: a process that runs declares"):
            await forget_subscriber(shop, "stock", **BY)
        await end_subscriptions(shop, declared=())
        await sell(shop, "a", 2)
        assert await gone_subscribers(shop) == [GoneSubscriber("stock", 1, 1, 0)]
        with pytest.raises(ContractError, match="synchromesh messages forget stock --why TEXT"):
            await shop.write(lambda unit: remove(unit, 2, 2), name="remove")

        assert await forget_subscriber(shop, "nobody", **BY) is None
        assert await forget_subscriber(shop, "stock", **BY) == Forgotten("stock", 1, 0, **BY)
        assert await forget_subscriber(shop, "stock", **BY) is None
        assert await gone_subscribers(shop) == []
        (body,) = await shop.read(
            "select body from sm_event where name = 'shop.subscriber_forgotten'"
        )
        assert json.loads(bytes(body[0] or b"")) == {  # type: ignore[arg-type]
            "subscriber": "stock", "position": 1, "dropped": 0, **BY,
        }  # fmt: skip
        await shop.write(lambda unit: remove(unit, 2, 2), name="remove")

        await deliver(runtime, shop, sender)
        assert sender.sent == [1, 1]
        assert await taken(stock) == [1]  # its inbox knows it

    with_both(main)


@pytest.mark.parametrize("times", [1, 2])
def test_one_that_comes_back_goes_on_where_it_was(times: int) -> None:
    """However often it is gone and back: nothing is lost, nothing is sent twice."""

    async def main(runtime: SimRuntime, shop: Store, stock: Store, sender: Direct) -> None:
        await sell(shop, "a", 1)
        await deliver(runtime, shop, sender)
        for n in range(times):
            await end_subscriptions(shop, declared=())
            await end_subscriptions(shop, declared=("others",))
            await sell(shop, "a", n + 2)
            await end_subscriptions(shop, declared=())
            await deliver(runtime, shop, sender)
            assert await gone_subscribers(shop) == []
        assert sender.sent == [*range(1, times + 2)]
        assert await taken(stock) == sender.sent

    with_both(main)


def test_what_it_refused_goes_with_it() -> None:
    """Others' messages that were set aside stay."""

    async def main(runtime: SimRuntime, shop: Store, stock: Store, sender: Direct) -> None:
        async def no(_: object) -> None:
            raise UnknownOperation("it is being taken down")

        sender.consumers["books"] = sender.consumers["stock"]
        sender.on_sent = no
        for n in range(3):
            await sell(shop, "a", n)
        for subscriber in ("stock", "books"):
            await deliver(runtime, shop, sender, subscriber=subscriber)
        await end_subscriptions(shop, declared=("books",))
        assert await gone_subscribers(shop) == [GoneSubscriber("stock", 3, 0, 3)]
        told = await forget_subscriber(shop, "stock", **BY)
        assert told == Forgotten("stock", 3, 3, **BY)
        assert [each.subscriber for each in await list_messages(shop)] == ["books"] * 3

    with_both(main)


def test_to_ask_who_is_gone_costs_the_same_beside_a_hundred_times_as_many_events() -> None:
    """Of private events, for public ones are counted up to a bound."""

    async def steps(runtime: SimRuntime, count: int) -> int:
        asked = 0

        def step() -> int:
            nonlocal asked
            asked += 1
            return 0

        async with stores(runtime, "shop") as (shop,):

            async def fill(unit: Unit) -> None:
                await save_checkpoint(unit, "relay/stock", Checkpoint(shop.log_id))
                await unit.execute(
                    "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) "
                    "insert into sm_event(id, stream, version, name, type_version, body, "
                    "is_public, ordering_key, trace_id, recorded_us) select 'e' || i, 's' || i, "
                    "1, 'shop.noted', 1, x'7b7d', 0, '', '', i from n",
                    count,
                )

            await shop.write(fill, name="fill")
            await sell(shop, "a", 1)
            shop._reader.set_progress_handler(step, 10)
            assert await gone_subscribers(shop) == [GoneSubscriber("stock", 0, 1, 0)]
            shop._reader.set_progress_handler(None, 0)
        return asked

    few, many = (run(lambda runtime, n=n: steps(runtime, n)) for n in (300, 30_000))  # type: ignore[misc]
    assert 0 < many <= few + 2
