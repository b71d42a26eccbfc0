"""What processes declare that they take, as a publisher keeps it, and the relays that follow it."""

from __future__ import annotations

import asyncio
from typing import Any

from messaging_world import SOLD, Direct, Shop, open_store, relay_to, sell, take, taken
from synchromesh.discovery import Endpoint
from synchromesh.messaging import Consumer, Declared, declaration_of, gone_subscribers
from synchromesh.service import Supervisor
from synchromesh.service.relays import Relays
from synchromesh.service.supervisor import Child
from synchromesh.store import Store
from synchromesh.testing import SimRuntime, run

RETURNED = Shop.returned.full_name
OWN = frozenset({SOLD, RETURNED})


def place(*names: str, instance: str = "stock") -> Endpoint:
    """Make the endpoint of a process that takes events."""
    facts = (("pid", "7"), declaration_of(names))
    return Endpoint(instance, "stock", "http://stock:1", facts)


def test_what_is_declared_last_counts_and_who_is_away_takes_what_it_took() -> None:
    """Listeners are told of changes alone; of several processes each takes its own."""
    declared, told = Declared(), list[int]()
    stop = declared.listen(lambda: told.append(len(told)))
    declared.note("stock", [])
    assert (declared.events, told) == ({}, [])
    declared.note("stock", [place(SOLD), place(RETURNED, instance="stock#2")])
    declared.note("stock", [place(RETURNED, SOLD)])
    declared.note("stock", [])
    declared.note("stock", [Endpoint("stock", "stock", "http://stock:1")])
    assert (declared.events, told) == ({"stock": OWN}, [0])
    declared.note("stock", [place()])
    assert (declared.events, told) == ({"stock": frozenset()}, [0, 1])
    stop()
    declared.note("stock", [place(SOLD)])
    assert told == [0, 1]


def test_what_is_known_and_what_is_declared_are_taken_together() -> None:
    """One may be older than the other, and which of them it is cannot be told."""
    declared = Declared()
    known = {"stock": frozenset({SOLD}), "till": frozenset[str]()}
    assert declared.added_to(known) == {"stock": {SOLD}}
    declared.note("stock", [place(RETURNED)])
    declared.note("books", [place(RETURNED)])
    assert declared.added_to(known) == {"books": {RETURNED}, "stock": OWN}


async def settled(store: Store, numbers: list[int]) -> None:
    """Wait until that is what a subscriber has written down."""
    async with asyncio.timeout(60.0):
        while await taken(store) != numbers:
            await asyncio.sleep(0.1)


def test_a_subscriber_may_come_while_its_publisher_runs_and_go_again() -> None:
    """Its relay comes with what the log has; once it goes, what is kept for it is told."""

    async def main(runtime: SimRuntime) -> None:
        shop, stock = await open_store(runtime, "shop"), await open_store(runtime, "stock")
        sender = Direct(stock=Consumer(stock, {SOLD: take, RETURNED: take}))
        declared, failed = Declared(), list[Any]()
        supervisor = Supervisor(
            "shop", rng=runtime.rng, gave_up=lambda *failure: failed.append(failure)
        )
        relays = Relays(
            shop,
            lambda _, names: relay_to(shop, sender, runtime, names=names),
            own=OWN,
            subscribers=lambda: declared.added_to({}),
            listen=declared.listen,
            supervisor=supervisor,
        )
        await relays.prepare()
        relays.start()
        supervisor.start(Child("subscriptions", relays.run))
        await sell(shop, "SX90", 1)
        await sell(shop, "SX90", 2, which=Shop.returned)
        await asyncio.sleep(5.0)
        assert (await taken(stock), repr(relays)) == ([], "<Relays to nobody>")

        # Events of others are none of its own.
        declared.note("stock", [place(SOLD, "till.opened")])
        await settled(stock, [1])
        assert relays.by_subscriber["stock"].names == {SOLD}
        declared.note("stock", [place(SOLD, RETURNED)])
        await settled(stock, [1, 2])
        assert sorted(supervisor.states) == ["relay/stock", "subscriptions"]
        kept = relays.by_subscriber["stock"]
        declared.note("stock", [place(SOLD, RETURNED, "till.opened")])
        await asyncio.sleep(1.0)
        assert relays.by_subscriber["stock"] is kept

        declared.note("stock", [place()])
        await asyncio.sleep(1.0)
        await sell(shop, "SX90", 3)
        (gone,) = await gone_subscribers(shop)
        assert (gone.subscriber, gone.behind) == ("stock", 1)
        assert (list(supervisor.states), relays.by_subscriber) == (["subscriptions"], {})

        declared.note("stock", [place(SOLD, RETURNED)])
        await settled(stock, [1, 2, 3])
        assert await gone_subscribers(shop) == []
        assert failed == []
        await supervisor.close()
        await shop.close()
        await stock.close()

    run(main)
