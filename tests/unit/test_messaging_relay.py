"""The relay: what it sends, keeps, retries and refuses, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from messaging_world import (
    SOLD,
    TRACE,
    Direct,
    Poison,
    Shop,
    relay_to,
    sell,
    stores,
    take,
    taken,
)
from synchromesh.context import CallContext
from synchromesh.errors import (
    BadRequest,
    ConnectFailed,
    ContractError,
    Forbidden,
    LogGap,
    LogReplaced,
    RemoteFailed,
    Shed,
    StoreBroken,
    StoreFull,
    UnknownOperation,
)
from synchromesh.events import Checkpoint, load_checkpoint, remove, save_checkpoint
from synchromesh.messaging import (
    Consumer,
    Message,
    Relay,
    drop_letter,
    find_letter,
    list_messages,
    summarize,
)
from synchromesh.store import SqliteStore, Unit
from synchromesh.telemetry import MemoryRing
from synchromesh.testing import SimRuntime, run

FINAL = (
    BadRequest("bad"),
    UnknownOperation("no"),
    Forbidden("not you"),
    RemoteFailed("a bug", is_final=True),
)


@asynccontextmanager
async def running(relay: Relay) -> AsyncIterator[asyncio.Task[None]]:
    """Run a relay meanwhile, and cancel it in the end."""
    task = asyncio.get_running_loop().create_task(relay.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def pauses(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


async def saved(store: SqliteStore) -> int:
    return (await load_checkpoint(store, "relay/stock")).position


def test_public_events_that_are_wanted_are_delivered_and_the_others_passed_over() -> None:
    """Private events and those that nobody subscribed to only move the checkpoint."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            relay = relay_to(shop, sender, runtime)
            async with running(relay):
                await sell(shop, "SX90", 1)
                await sell(shop, "SX90", 2, which=Shop.returned)
                await sell(shop, "SX90", 3)
                await sell(shop, "SX90", 4, which=Shop.counted)
                await asyncio.sleep(2.0)
                assert sender.sent == [1, 3]
                assert await taken(stock) == [1, 3]
                assert await saved(shop) == 4
                assert repr(relay) == (
                    "<Relay to stock <Window 0 under way, 0 held, checkpoint 4>>"
                )

    run(main)


def test_a_message_starts_a_call_tree_of_its_own_and_keeps_its_trace() -> None:
    """Its key is its id, its trace the publisher's, and no deadline is handed on (D1, T1)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            ring = MemoryRing()
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            async with running(relay_to(shop, sender, runtime, ring=ring)):
                await sell(shop, "SX90", 1)
                await asyncio.sleep(1.0)
            context: CallContext = sender.contexts[0]
            assert context.trace_id == TRACE
            assert [(context.key,)] == await shop.read("select id from sm_event")
            assert context.deadline_s is None
            span = next(iter(ring))
            assert (span.kind, span.name, span.trace_id, span.status) == (
                "relay", SOLD, TRACE, "ok",
            )  # fmt: skip
            assert span.span_id == context.span_id
            assert span.attributes == {"subscriber": "stock", "outcome": "handled"}

    run(main)


def test_a_subscriber_that_is_down_for_an_hour_delays_and_loses_nothing() -> None:
    """Attempts go on at the longest pause; then all arrives, in order (O1)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            loop = asyncio.get_running_loop()
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.fault = lambda message: "refuse" if loop.time() < 3600.0 else ""
            async with running(relay_to(shop, sender, runtime, backoff_cap_s=60.0)):
                for n in range(1, 6):
                    await sell(shop, "SX90", n)
                await asyncio.sleep(3590.0)
                assert await saved(shop) == 0
                assert set(sender.sent) == {1}
                # 0.1 s doubled up to 60 s: some 60 to 130 attempts in an hour, not thousands.
                assert 60 <= len(sender.sent) <= 140
                await asyncio.sleep(80.0)
                assert await taken(stock) == [1, 2, 3, 4, 5]
                assert await saved(shop) == 5

    run(main, until_s=7200.0)


@pytest.mark.parametrize("fault", ["lose", "garbage", "refuse"])
def test_what_is_not_acknowledged_is_sent_again_and_takes_effect_once(fault: str) -> None:
    """A lost answer, one that is none, and a refused connection are all no acknowledgement (O4)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            left = [3]

            def faults(message: Message) -> str:
                left[0] -= 1
                return fault if left[0] >= 0 else ""

            sender.fault = faults
            async with running(relay_to(shop, sender, runtime)) as task:
                await sell(shop, "SX90", 1)
                await sell(shop, "SX90", 2)
                await asyncio.sleep(10.0)
                assert not task.done()
            assert sender.sent == [1, 1, 1, 1, 2]
            assert await taken(stock) == [1, 2]

    run(main)


def test_the_checkpoint_stays_before_the_oldest_that_is_not_acknowledged() -> None:
    """Later ones that were acknowledged are not counted while one before them is under way."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.fault = lambda message: "refuse" if message.scope == "slow" else ""
            async with running(relay_to(shop, sender, runtime)):
                await sell(shop, "a", 1)
                await sell(shop, "slow", 2)
                for n in range(3, 9):
                    await sell(shop, "b", n)
                await asyncio.sleep(5.0)
                assert await taken(stock) == [1, 3, 4, 5, 6, 7, 8]
                assert await saved(shop) == 1
                sender.fault = lambda message: ""
                await asyncio.sleep(10.0)
                assert await saved(shop) == 8
            assert await taken(stock) == [1, 3, 4, 5, 6, 7, 8, 2]

    run(main)


def test_one_is_under_way_in_a_scope_and_a_bounded_number_over_all() -> None:
    """Also the number of positions that are held is bounded, while the subscriber is slow."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))

            async def slow(message: Message) -> None:
                await asyncio.sleep(0.05)

            sender.on_sent = slow
            relay = relay_to(
                shop, sender, runtime, in_flight_max=3, held_max=10, batch_max=7, poll_s=0.5
            )
            for n in range(1, 41):
                await sell(shop, f"sku{n % 5}", n)
            async with running(relay):
                await asyncio.sleep(0.04)
                assert repr(relay) == (
                    "<Relay to stock <Window 3 under way, 10 held, checkpoint 0>>"
                )
                await asyncio.sleep(10.0)
                assert (sender.running_max, sender.scope_max) == (3, 1)
                assert sorted(await taken(stock)) == list(range(1, 41))
                for sku in range(5):
                    of_one = await taken(stock, f"sku{sku}")
                    assert of_one == sorted(of_one)

    run(main)


def test_events_without_a_key_are_in_order_among_those_of_their_name() -> None:
    """No key is one scope for each event name."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            counted = Shop.counted.full_name
            sender = Direct(stock=Consumer(stock, {counted: take}))
            async with running(relay_to(shop, sender, runtime, names=frozenset({counted}))):
                for n in range(1, 7):
                    await sell(shop, f"sku{n}", n, which=Shop.counted)
                await asyncio.sleep(2.0)
            assert await taken(stock) == [1, 2, 3, 4, 5, 6]
            assert sender.scope_max == sender.running_max == 1

    run(main)


def test_a_wake_up_that_is_lost_is_made_up_for_by_polling() -> None:
    """A relay that hears of nothing finds new events within `poll_s`."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            shop.listen = lambda topic, hear: lambda: None
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            async with running(relay_to(shop, sender, runtime, poll_s=3.0)):
                await asyncio.sleep(1.0)
                await sell(shop, "SX90", 1)
                await asyncio.sleep(1.5)
                assert sender.sent == []
                await asyncio.sleep(1.0)
                assert sender.sent == [1]

    run(main)


def test_a_checkpoint_of_another_log_is_refused() -> None:
    """After a restore nothing is delivered until a person has decided (E3)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            await sell(shop, "SX90", 1)
            elsewhere = Checkpoint("another-log", 0)
            await shop.write(lambda u: save_checkpoint(u, "relay/stock", elsewhere), name="x")
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            with pytest.raises(LogReplaced, match="another-log"):
                await relay_to(shop, sender, runtime).run()
            assert sender.sent == []

    run(main)


def refusing(which: set[int], error: Exception | None = None) -> Any:
    """Refuse the messages at these positions for good, as a subscriber of another release does."""

    async def refuse(message: Message) -> None:
        if message.position in which:
            raise error or BadRequest("bad")

    return refuse


async def aside(store: SqliteStore) -> list[tuple[str, str, int]]:
    """Return what the publisher has set aside: state, subscriber and position."""
    found = await list_messages(store)
    return [(each.state, each.subscriber, each.position) for each in found]


@pytest.mark.parametrize("error", FINAL)
def test_a_message_that_is_refused_for_good_is_told_once_and_holds_its_scope_only(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """It is kept, asked for seldom, and delivered once the subscriber takes it (O1, O5)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            refused = {1}
            sender.on_sent = refusing(refused, error)
            async with running(relay_to(shop, sender, runtime, backoff_cap_s=60.0)):
                for n, sku in enumerate("aabc", 1):
                    await sell(shop, sku, n)
                await asyncio.sleep(600.0)
                assert await taken(stock) == [3, 4]
                assert 10 <= sender.sent.count(1) <= 21
                refused.clear()
                await asyncio.sleep(61.0)
            assert await taken(stock) == [3, 4, 1, 2]

    run(main)
    told = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert len(told) == 1
    assert "shop.sold at 1 is refused by stock" in told[0]
    assert "later ones of 'a' wait" in told[0]


@pytest.mark.parametrize("error", FINAL)
def test_after_a_refusal_it_asks_at_the_longest_pause_at_once(error: Exception) -> None:
    """What only a release mends is not asked in short pauses first; what may pass is."""

    async def main(runtime: SimRuntime) -> tuple[list[float], list[float]]:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            asked: dict[str, list[float]] = {"refused": [], "down": []}

            async def fail(message: Message) -> None:
                asked[message.scope].append(asyncio.get_running_loop().time())
                raise error if message.scope == "refused" else ConnectFailed("down")

            sender.on_sent = fail
            async with running(relay_to(shop, sender, runtime, backoff_cap_s=60.0)):
                for n, sku in enumerate(asked, 1):
                    await sell(shop, sku, n)
                await asyncio.sleep(600.0)
            return pauses(asked["refused"]), pauses(asked["down"])

    refused, down = run(main)
    assert len(refused) >= 9
    assert all(30.0 <= pause_s <= 60.5 for pause_s in refused)
    assert all(pause_s <= 0.1 * 2**n + 0.5 for n, pause_s in enumerate(down[:8], 1))


def test_a_refused_message_stops_no_other_key_however_many_come_after_it() -> None:
    """It is set aside in the publisher's database with those of its key, and the window goes on."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            refused = {1}
            sender.on_sent = refusing(refused)
            async with running(relay_to(shop, sender, runtime, held_max=16, backoff_cap_s=60.0)):
                for n in range(1, 81):
                    await sell(shop, "a" if n % 4 == 1 else f"key{n % 4}", n)
                await asyncio.sleep(30.0)
                others = [n for n in range(1, 81) if n % 4 != 1]
                assert sorted(await taken(stock)) == others
                assert await saved(shop) == 80
                assert (await aside(shop))[:2] == [("refused", "stock", 1), ("waiting", "stock", 5)]
                (group,) = (await summarize(shop, now_us=runtime.wall_us())).groups
                assert (group.state, group.subscriber, group.error) == (
                    "refused", "stock", "BadRequest",
                )  # fmt: skip
                # What was set aside is a copy: the log may forget the event.
                await shop.write(lambda unit: remove(unit, 1, 40), name="remove")
                refused.clear()
                await asyncio.sleep(90.0)
            assert await taken(stock, "a") == list(range(1, 81, 4))
            assert await aside(shop) == []
            assert sender.scope_max == 1

    run(main)


def test_what_was_refused_is_asked_for_at_once_when_the_relay_starts_again() -> None:
    """Then it may be another release; in order, with what came meanwhile (O3)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.on_sent = refusing({1})
            async with running(relay_to(shop, sender, runtime, backoff_cap_s=60.0)):
                for n in range(1, 4):
                    await sell(shop, "a", n)
                await asyncio.sleep(5.0)
            await sell(shop, "a", 4)
            sender.on_sent = None
            async with running(relay_to(shop, sender, runtime, backoff_cap_s=60.0)):
                await asyncio.sleep(1.0)
                assert await taken(stock) == [1, 2, 3, 4]
                await sell(shop, "a", 5)
                await asyncio.sleep(1.0)
            assert await taken(stock) == [1, 2, 3, 4, 5]
            assert len(sender.sent) == 6

    run(main)


def test_a_subscriber_that_refuses_all_of_them_fills_no_more_than_the_bound() -> None:
    """The others wait in the log, and all arrive in the order of their keys (O1, O3)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            every = set(range(1, 100))
            sender.on_sent = refusing(every)
            async with running(relay_to(shop, sender, runtime, refused_max=10, held_max=20)):
                for n in range(1, 61):
                    await sell(shop, f"key{n % 7}", n)
                await asyncio.sleep(60.0)
                assert len(await aside(shop)) == 10
                assert await saved(shop) <= 40
                every.clear()
                await asyncio.sleep(60.0)
            for key in range(7):
                assert await taken(stock, f"key{key}") == [n for n in range(1, 61) if n % 7 == key]
            assert await aside(shop) == []

    run(main)


def test_a_full_database_of_the_publisher_sets_nothing_aside_and_loses_nothing() -> None:
    """What is refused then waits in the window, as what cannot be delivered does."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            refused = {1}
            sender.on_sent = refusing(refused)
            for n, sku in enumerate("aab", 1):
                await sell(shop, sku, n)
            write = shop.write

            async def failing(*args: Any, **more: Any) -> Any:
                raise StoreFull("the disk is full")

            async with running(relay_to(shop, sender, runtime)):
                shop.write = failing
                await asyncio.sleep(20.0)
                assert await taken(stock) == [3]
                refused.clear()
                await asyncio.sleep(20.0)
                shop.write = write
            assert await taken(stock) == [3, 1, 2]

    run(main)


def test_a_person_who_replays_what_was_refused_is_told_what_came_of_it() -> None:
    """Each time it is an event of the publisher's log; one that waits behind another is refused."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.on_sent = refusing({1})
            relay = relay_to(shop, sender, runtime, backoff_cap_s=3600.0)
            async with running(relay):
                await sell(shop, "a", 1)
                await sell(shop, "a", 2)
                await asyncio.sleep(1.0)
                first, second = await find_letter(shop, 1), await find_letter(shop, 2)
                assert first is not None
                assert second is not None
                with pytest.raises(BadRequest, match="waits behind message 1"):
                    await relay.replay(second, who="ada", why="now")
                told = await relay.replay(first, who="ada", why="now")
                assert told is not None
                assert (told.outcome, told.reason, told.subscriber) == (
                    "refused", "BadRequest", "stock",
                )  # fmt: skip
                sender.fault = lambda message: "refuse"
                sender.on_sent = None
                with pytest.raises(ConnectFailed):
                    await relay.replay(first, who="ada", why="now")
                sender.fault = lambda message: ""
                told = await relay.replay(first, who="ada", why="mended")
                assert told is not None
                assert told.outcome == "delivered"
                assert await relay.replay(first, who="ada", why="again") is None
                await asyncio.sleep(1.0)
                assert await taken(stock) == [1, 2]
            names = await shop.read("select name from sm_event where is_public = 0")
            assert names == [("shop.message_replayed",)] * 2

    run(main)


def test_what_was_refused_can_be_dropped_and_the_next_one_follows() -> None:
    """The key flows again without it."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.on_sent = refusing({1})
            async with running(relay_to(shop, sender, runtime)):
                for n in range(1, 4):
                    await sell(shop, "a", n)
                await asyncio.sleep(1.0)
                assert await drop_letter(shop, 1, who="ada", why="never valid")
                await asyncio.sleep(10.0)
                assert await taken(stock) == [2, 3]
                assert await aside(shop) == []

    run(main)


# -- subscriptions that change with releases -------------------------------------------------------

RETURNED = Shop.returned.full_name


def test_a_subscription_that_is_new_gets_what_was_published_before_it() -> None:
    """Also what its publisher's relay had passed over, for it was of an older release (O1)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take, RETURNED: take}))
            async with running(relay_to(shop, sender, runtime)):
                for n in range(1, 5):
                    await sell(shop, "a", n, which=Shop.sold if n % 2 else Shop.returned)
                await asyncio.sleep(1.0)
            assert (sender.sent, await saved(shop)) == ([1, 3], 4)
            both = frozenset({SOLD, RETURNED})
            async with running(relay_to(shop, sender, runtime, names=both)):
                await sell(shop, "a", 5)
                await asyncio.sleep(1.0)
            assert sender.sent == [1, 3, 2, 4, 5]
            async with running(relay_to(shop, sender, runtime, names=both)):
                await asyncio.sleep(1.0)
            assert sender.sent == [1, 3, 2, 4, 5]

    run(main)


def test_a_release_that_is_taken_back_and_comes_again_loses_and_repeats_nothing() -> None:
    """What was published meanwhile is delivered when the event is subscribed to again."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take, RETURNED: take}))
            for n, names in enumerate(
                ({SOLD, RETURNED}, {SOLD}, {SOLD}, {RETURNED}, {SOLD, RETURNED}), 0
            ):
                async with running(relay_to(shop, sender, runtime, names=frozenset(names))):
                    await sell(shop, "a", 2 * n + 1)
                    await sell(shop, "b", 2 * n + 2, which=Shop.returned)
                    await asyncio.sleep(1.0)
            assert await taken(stock, "a") == [1, 3, 5, 7, 9]
            assert await taken(stock, "b") == [2, 4, 6, 8, 10]
            assert sorted(sender.sent) == list(range(1, 11))

    run(main)


def test_a_start_that_cannot_be_saved_delivers_and_is_saved_later() -> None:
    """The new subscription is not forgotten with the checkpoint that could not be written."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take, RETURNED: take}))
            async with running(relay_to(shop, sender, runtime)):
                await sell(shop, "a", 1)
                await sell(shop, "a", 2, which=Shop.returned)
                await asyncio.sleep(1.0)
            write, both = shop.write, frozenset({SOLD, RETURNED})

            async def failing(*args: Any, **more: Any) -> Any:
                raise StoreFull("the disk is full")

            shop.write = failing
            async with running(relay_to(shop, sender, runtime, names=both)):
                await asyncio.sleep(1.0)
                assert sender.sent == [1, 2]
                shop.write = write
                await sell(shop, "a", 3)
                await asyncio.sleep(1.0)
            assert await shop.read("select name, is_wanted from sm_subscription order by 1") == [
                (RETURNED, 1), (SOLD, 1),
            ]  # fmt: skip
            async with running(relay_to(shop, sender, runtime, names=both)):
                await asyncio.sleep(1.0)
            assert sender.sent == [1, 2, 3]

    run(main)


def test_what_a_subscriber_has_not_got_cannot_be_removed() -> None:
    """What committed is published, also where old events are removed meanwhile (O1)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.fault = lambda message: "refuse" if message.position == 2 else ""
            async with running(relay_to(shop, sender, runtime)):
                for n in (1, 2):
                    await sell(shop, str(n), n)
                await asyncio.sleep(1.0)
                with pytest.raises(ContractError, match=r"'stock' .* up to 1, and 2 is one"):
                    await shop.write(lambda unit: remove(unit, 1, 2), name="remove")
                assert await shop.write(lambda unit: remove(unit, 1, 1), name="remove") == 1
                sender.fault = lambda message: ""
                await asyncio.sleep(10.0)
                assert await shop.write(lambda unit: remove(unit, 1, 2), name="remove") == 1
            assert await taken(stock) == [1, 2]

    run(main)


def test_a_relay_that_has_delivered_nothing_yet_is_asked_too() -> None:
    """It says where it begins before it sends, and does so once."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.fault = lambda message: "refuse"
            for _start in range(2):
                async with running(relay_to(shop, sender, runtime)):
                    await asyncio.sleep(1.0)
            assert shop.commits == 1
            await sell(shop, "SX90", 1)
            with pytest.raises(ContractError, match=r"'stock' has got .* up to 0"):
                await shop.write(lambda unit: remove(unit, 1, 1), name="remove")

    run(main)


def test_a_hole_in_the_log_ends_the_relay_with_its_own_error() -> None:
    """The error is the log's, not a group's, and what is under way is cancelled (D4)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.fault = lambda message: "refuse"
            async with running(relay_to(shop, sender, runtime)) as task:
                await sell(shop, "SX90", 1)
                await asyncio.sleep(1.0)
                await sell(shop, "SX90", 2)
                await sell(shop, "SX90", 3)

                async def sell_two_and_edit(unit: Unit) -> None:
                    await unit.execute(
                        "insert into sm_event select 9, id, stream, 9, name, type_version, body, "
                        "is_public, ordering_key, trace_id, recorded_us, 1 from sm_event limit 1"
                    )
                    unit.notify("events")

                await shop.write(sell_two_and_edit, name="edit")
                await asyncio.sleep(2.0)
                assert task.done()
                with pytest.raises(LogGap, match="missing"):
                    await task
            sent = len(sender.sent)
            await asyncio.sleep(20.0)
            assert len(sender.sent) == sent

    run(main)


def test_a_removed_range_is_passed_over() -> None:
    """A hole that a removal has recorded is none."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            for n in range(1, 5):
                await sell(shop, "SX90", n)
            await shop.write(lambda unit: remove(unit, 1, 2), name="remove")
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            async with running(relay_to(shop, sender, runtime)):
                await asyncio.sleep(1.0)
            assert await taken(stock) == [3, 4]

    run(main)


@pytest.mark.parametrize("error", [StoreFull("full"), Shed("busy")])
def test_a_checkpoint_that_cannot_be_saved_holds_no_message_back(error: Exception) -> None:
    """On a full disk delivery goes on; the checkpoint follows once there is room."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            for n in range(1, 4):
                await sell(shop, "SX90", n)
            write, is_full = shop.write, [True]

            async def refusing(body: Any, *, name: str) -> Any:
                if is_full[0]:
                    raise error
                return await write(body, name=name)

            shop.write = refusing
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            async with running(relay_to(shop, sender, runtime)) as task:
                await asyncio.sleep(3.0)
                assert await taken(stock) == [1, 2, 3]
                assert await saved(shop) == 0
                is_full[0] = False
                await asyncio.sleep(2.0)
                assert await saved(shop) == 3
                assert not task.done()

    run(main)


def test_a_broken_store_ends_the_relay() -> None:
    """What polling cannot mend is left to the supervisor."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            await sell(shop, "SX90", 1)

            async def broken(body: Any, *, name: str) -> Any:
                raise StoreBroken("the disk is gone")

            shop.write = broken
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            with pytest.raises(StoreBroken, match="the disk is gone"):
                await relay_to(shop, sender, runtime).run()

    run(main)


def test_a_restart_sends_again_only_what_is_beyond_the_checkpoint() -> None:
    """What was acknowledged out of order comes twice and takes effect once; order is kept."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            relay = relay_to(shop, sender, runtime)
            sender.fault = lambda message: "refuse" if message.position == 2 else ""
            await sell(shop, "a", 1)
            await sell(shop, "slow", 2)
            await sell(shop, "b", 3)
            async with running(relay):
                await asyncio.sleep(1.0)
            sender.fault = lambda message: ""
            sender.sent.clear()
            async with running(relay):
                await asyncio.sleep(1.0)
            assert sorted(sender.sent) == [2, 3]
            # 1 and 3 are of other keys, and come in any order.
            *first, last = await taken(stock)
            assert (sorted(first), last) == ([1, 3], 2)

    run(main)


def test_two_relays_to_one_subscriber_deliver_each_once_and_in_order() -> None:
    """Whoever comes second is answered from the inbox (O3, O4)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))

            async def jitter(message: Message) -> None:
                await asyncio.sleep(runtime.rng.uniform(0.0, 0.2))

            sender.on_sent = jitter
            async with (
                running(relay_to(shop, sender, runtime)),
                running(relay_to(shop, sender, runtime)),
            ):
                for n in range(1, 31):
                    await sell(shop, f"sku{n % 3}", n)
                await asyncio.sleep(20.0)
            assert len(sender.sent) > 30
            for sku in range(3):
                assert await taken(stock, f"sku{sku}") == [n for n in range(1, 31) if n % 3 == sku]

    for seed in range(5):
        run(main, seed=seed)


def test_a_failed_receipt_is_no_fault_of_the_call() -> None:
    """Poison does not count against the breaker of the edge: it is an answer, sent again."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            poison = Poison({1})
            ring = MemoryRing()
            sender = Direct(stock=Consumer(stock, {SOLD: poison}, attempts_max=3))
            async with running(relay_to(shop, sender, runtime, ring=ring)):
                await sell(shop, "SX90", 1)
                await asyncio.sleep(5.0)
            spans = [(span.status, span.attributes["outcome"]) for span in ring]
            assert spans == [("ok", "failed"), ("ok", "failed"), ("ok", "parked")]

    run(main)


def test_an_idle_relay_writes_nothing() -> None:
    """Its checkpoint is saved when it has moved, not at each look at the log."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop", "stock") as (shop, stock):
            sender = Direct(stock=Consumer(stock, {SOLD: take}))
            sender.fault = lambda message: "refuse"
            async with running(relay_to(shop, sender, runtime)):
                await sell(shop, "SX90", 1)
                await asyncio.sleep(60.0)
                # One group: the sale, and where the new relay begins.
                assert shop.commits == 1
                sender.fault = lambda message: ""
                await asyncio.sleep(60.0)
                assert shop.commits == 2

    run(main)
