"""The consumer: one effect a message; poison is parked, then replayed or dropped by a person."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from messaging_world import SOLD, TRACE, Poison, Shop, Sold, message, stores, take, taken
from synchromesh.codec import decode, encode
from synchromesh.errors import (
    BadRequest,
    ContractError,
    ContractMismatch,
    Forbidden,
    Rejection,
    Shed,
    StoreBroken,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreUnavailable,
    UnitTooLong,
)
from synchromesh.messaging import (
    Consumer,
    Dropped,
    Message,
    Replayed,
    deliver_to,
    drop_letter,
    find_letter,
    list_messages,
    publish,
    show_message,
    summarize,
)
from synchromesh.messaging.dead_letters import COLUMNS, letters_of
from synchromesh.store import Store, inbox
from synchromesh.testing import SimRuntime, run

RETURNED = Shop.returned.full_name


class NotToday(Rejection, code="not_today"):
    """Tells that the handler refuses."""


async def outcomes(consumer: Consumer, *messages: Message) -> list[str]:
    return [(await consumer.take("shop", each)).outcome for each in messages]


async def aside(store: Store) -> list[tuple[str, str, int, str]]:
    """Return what is set aside: its state and why, in the order of each key."""
    rows = await store.read(f"select {COLUMNS} from sm_parked order by source, scope, number")
    return [
        (each.state.value, each.lane.scope, each.message.position, each.error)
        for each in letters_of(rows)
    ]


@asynccontextmanager
async def running(consumer: Consumer) -> AsyncIterator[None]:
    """Run what handles messages that need no person, and give it a while."""
    task = asyncio.get_running_loop().create_task(consumer.run())
    await asyncio.sleep(5.0)
    yield
    await asyncio.sleep(5.0)
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def replay(consumer: Consumer, number: int) -> Any:
    return consumer.replay(number, who="ada", why="mended")


def test_a_message_takes_effect_once_however_often_it_comes() -> None:
    """One after the other and at once, every delivery has the same receipt (O4)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take})
            assert await outcomes(consumer, message(1), message(1)) == ["handled"] * 2
            receipts = await asyncio.gather(*(consumer.take("shop", message(2)) for _ in range(8)))
            assert {receipt.outcome for receipt in receipts} == {"handled"}
            # Another consumer of the same database is what a restart makes.
            assert await outcomes(Consumer(stock, {SOLD: take}), message(1)) == ["handled"]
            assert await taken(stock) == [1, 2]

    run(main)


def test_what_its_publisher_does_not_know_delivered_is_remembered_however_long_it_is_away() -> None:
    """Past `keep_s` it may come again: its publisher was away before it had noted the receipt."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take}, keep_s=10.0)

            async def forget(consumer: Consumer) -> None:
                await stock.write(
                    lambda unit: inbox.sweep(
                        unit, ran_s=3600.0, keep_s=10.0, is_needed=consumer.is_needed
                    ),
                    name="sweep",
                )

            late = msgspec.structs.replace(message(2), settled=1)
            assert await outcomes(consumer, message(1), late) == ["handled"] * 2
            await forget(consumer)
            await asyncio.sleep(60.0)
            # One that has just started knows of no publisher yet, and forgets nothing of theirs.
            await forget(Consumer(stock, {SOLD: take}, keep_s=10.0))
            assert await outcomes(consumer, message(1), late) == ["handled"] * 2
            assert await taken(stock) == [1, 2]
            await asyncio.sleep(60.0)
            await forget(consumer)
            assert await stock.read("select key from sm_inbox") == [(f"message/{late.id}",)]

    run(main)


def test_a_cancelled_delivery_may_have_taken_effect_and_does_so_once() -> None:
    """The unit goes on without its caller; the next delivery is answered from the inbox."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take})
            delivery = asyncio.get_running_loop().create_task(consumer.take("shop", message(1)))
            await asyncio.sleep(0.000001)
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)
            await asyncio.sleep(1.0)
            assert await taken(stock) == [1]
            assert await outcomes(consumer, message(1)) == ["handled"]
            assert await taken(stock) == [1]

    run(main)


def test_an_event_that_is_declared_as_ignored_leaves_nothing() -> None:
    """It is acknowledged, without a record."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take}, ignored=frozenset({RETURNED}))
            assert await outcomes(consumer, message(1, name=RETURNED)) == ["ignored"]
            assert await stock.read("select count(*) from sm_inbox") == [(0,)]
            assert await aside(stock) == []

    run(main)


@pytest.mark.parametrize("source", ["stock", "shop2", "", "sho"])
def test_a_service_delivers_its_own_events_only(source: str) -> None:
    """Whoever delivers in another's name is refused, and nothing is written."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take})
            with pytest.raises(Forbidden, match="delivers its own"):
                await consumer.take(source, message(1))
            assert await taken(stock) == []

    run(main)


def test_poison_is_parked_after_its_attempts_with_those_behind_it() -> None:
    """Later ones of its scope wait behind it, other scopes flow (O5)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1})
            consumer = Consumer(stock, {SOLD: poison, RETURNED: poison}, attempts_max=3)
            bad = message(1)
            assert await outcomes(consumer, bad, bad, bad) == ["failed", "failed", "parked"]
            assert poison.calls == 3
            behind = message(2), message(3, name=RETURNED)
            assert await outcomes(consumer, *behind) == ["parked"] * 2
            assert await outcomes(consumer, message(4, sku="PX12")) == ["handled"]
            assert poison.calls == 4
            # Delivered again they stay as they are.
            assert await outcomes(consumer, bad, *behind) == ["parked"] * 3
            assert await taken(stock) == [4]
            assert await aside(stock) == [
                ("parked", "SX90", 1, "ValueError"),
                ("waiting", "SX90", 2, ""),
                ("waiting", "SX90", 3, ""),
            ]

    run(main)


def test_a_parked_message_says_why_how_often_and_since_when() -> None:
    """The message as it was delivered, the error's type and text, first and last attempt."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=2)
            before_us = runtime.wall_us()
            await outcomes(consumer, message(1))
            between_us = runtime.wall_us()
            await asyncio.sleep(3.0)
            after_us = runtime.wall_us()
            await outcomes(consumer, message(1))
            letter = await find_letter(stock, 1)
            assert letter is not None
            assert (letter.message, letter.error, letter.text, letter.attempts) == (
                message(1), "ValueError", "cannot be taken", 2,
            )  # fmt: skip
            assert before_us <= letter.first_us <= between_us
            assert after_us <= letter.last_us <= runtime.wall_us()
            (listed,) = await list_messages(stock)
            assert (listed.ref, listed.key, listed.event) == ("stock:1", "SX90", SOLD)
            assert listed.payload == "null"
            (shown,) = await show_message(stock, number=1)
            assert shown.payload == '{"sku":"SX90","n":1}'
            assert await find_letter(stock, 2) is None

    run(main)


class Unspeakable(Exception):
    """Is raised by a handler, and cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (lambda: ValueError("x" * 5000), "x" * 1000),
        (lambda: ValueError("half \ud800"), "half ?"),
        (Unspeakable, "(its text cannot be told)"),
    ],
)
def test_whatever_the_text_of_an_error_is_the_message_is_parked(
    error: Any, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is cut, and made such that it can be stored."""
    # What is captured is sent on by the worker that runs the test, as UTF-8.
    caplog.set_level(logging.CRITICAL, "synchromesh")

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1}, error=error)}, attempts_max=1)
            assert await outcomes(consumer, message(1)) == ["parked"]
            letter = await find_letter(stock, 1)
            assert letter is not None
            assert letter.text == text

    run(main)


def test_a_rejection_parks_as_any_failure_does_and_is_not_recorded_as_an_answer() -> None:
    """A consumer has nobody to refuse to (O5)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1}, error=NotToday)
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=2)
            assert await outcomes(consumer, message(1), message(1)) == ["failed", "parked"]
            assert await aside(stock) == [("parked", "SX90", 1, "RejectedMessage")]
            kinds = await stock.read("select kind from sm_inbox")
            assert kinds == [("answer",)]

    run(main)


def test_a_payload_that_a_handler_refuses_is_poison_too() -> None:
    """What it raises parks the message, whatever it is."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take}, attempts_max=1)
            broken = msgspec.structs.replace(message(1), payload=msgspec.Raw(b'{"sku":7}'))
            assert await outcomes(consumer, broken) == ["parked"]
            assert await aside(stock) == [("parked", "SX90", 1, "BadRequest")]

    run(main)


def test_a_message_that_succeeds_in_the_end_is_not_counted_against_later() -> None:
    """Failures are counted for each message by itself, and forgotten when it is handled."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1, 2})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=2)
            assert await outcomes(consumer, message(1)) == ["failed"]
            poison.bad.clear()
            assert await outcomes(consumer, message(1)) == ["handled"]
            poison.bad.add(2)
            assert await outcomes(consumer, message(2)) == ["failed"]
            poison.bad.clear()
            assert await outcomes(consumer, message(2)) == ["handled"]
            assert consumer._failures == {}

    run(main)


def test_the_count_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound it counts anew, which only delays the parking."""
    monkeypatch.setattr("synchromesh.messaging.consumer.FAILURES_MAX", 3)

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison(set(range(9)))}, attempts_max=2)
            messages = [message(n, sku=f"sku{n}") for n in range(1, 6)]
            assert await outcomes(consumer, *messages) == ["failed"] * 5
            assert len(consumer._failures) <= 3
            assert await outcomes(consumer, messages[4]) == ["parked"]

    run(main)


@pytest.mark.parametrize(
    "error", [StoreFull, StoreLocked, StoreReadOnly, StoreUnavailable, StoreBroken, Shed]
)
def test_a_fault_of_the_database_never_parks(error: type[Exception]) -> None:
    """It is raised however often it happens; the message is handled once the fault is gone."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take}, attempts_max=2)
            write_once = stock.write_once

            async def failing(*args: Any, **more: Any) -> Any:
                raise error("the disk is full")

            stock.write_once = failing
            for _ in range(5):
                with pytest.raises(error):
                    await consumer.take("shop", message(1))
            stock.write_once = write_once
            assert await outcomes(consumer, message(1)) == ["handled"]
            assert await aside(stock) == []

    run(main)


def test_a_handler_that_outlives_each_delivery_parks_its_message() -> None:
    """It fails after its caller has gone; that counts, and its key alone waits (O5)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take}, attempts_max=3)
            write_once, calls = stock.write_once, 0

            async def too_slow(body: Any, once: Any, *, name: str) -> Any:
                nonlocal calls
                calls += 1
                await asyncio.sleep(7.0)
                if calls <= 3:
                    raise UnitTooLong("it outlived its limit")
                return await write_once(body, once, name=name)

            stock.write_once = too_slow
            ends = []
            for _ in range(6):
                try:
                    async with asyncio.timeout(5.0):
                        ends.append((await consumer.take("shop", message(1))).outcome)
                except TimeoutError:
                    ends.append("late")
            # Each second delivery waits for what the one before has begun.
            assert ends == ["late", "failed", "late", "failed", "late", "late"]
            assert calls == 4
            await asyncio.sleep(10.0)
            stock.write_once = write_once
            assert await aside(stock) == [("parked", "SX90", 1, "UnitTooLong")]
            assert await outcomes(consumer, message(1), message(2, sku="PX12")) == [
                "parked", "handled",
            ]  # fmt: skip

    run(main)


def test_an_id_that_comes_with_another_payload_is_parked_for_a_person() -> None:
    """A log that was edited or restored under its old id is shown, and holds up nobody for ever."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take})
            other = message(7, at=1)
            assert await outcomes(consumer, message(1), other, other) == [
                "handled", "parked", "parked",
            ]  # fmt: skip
            assert await aside(stock) == [("parked", "SX90", 1, "KeyReused")]
            assert await taken(stock) == [1]

    run(main)


def test_a_replay_lets_those_behind_it_follow_and_the_key_flow_again() -> None:
    """In order, by themselves; afterwards new messages of the key are handled at once (O3)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({2})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=1)
            messages = [message(n) for n in (2, 3, 10, 11)]
            await outcomes(consumer, *messages, message(4, sku="PX12"))
            poison.bad.clear()
            async with running(consumer):
                assert await taken(stock) == [4]  # what is parked waits for a person
                told = await replay(consumer, 1)
                assert told is not None
                assert told.outcome == "handled"
            assert await taken(stock) == [4, 2, 3, 10, 11]
            assert await outcomes(consumer, *messages, message(12)) == ["parked"] * 4 + ["handled"]
            assert await taken(stock) == [4, 2, 3, 10, 11, 12]
            assert await replay(consumer, 1) is None

    run(main)


def test_a_replay_that_fails_again_stays_with_those_behind_it() -> None:
    """The attempt is counted, and the record says what came of it, who asked and why."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=1)
            await outcomes(consumer, message(1), message(2))
            async with running(consumer):
                told = await replay(consumer, 1)
            assert told == Replayed(
                "shop", "", "event-1", SOLD, "SX90", "ValueError", "ada", "mended", "parked"
            )
            letter = await find_letter(stock, 1)
            assert letter is not None
            assert letter.attempts == 2
            assert await taken(stock) == []
            assert await outcomes(consumer, message(3)) == ["parked"]
            ((name, body),) = await stock.read("select name, body from sm_event")
            assert name == "stock.message_replayed"
            assert isinstance(body, bytes)
            assert decode(body, Replayed) == told

    run(main)


def test_one_behind_that_fails_is_parked_after_its_attempts() -> None:
    """It never had any: those come first, with pauses; then a person is asked about it."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1, 3})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=3)
            for _ in range(3):
                await outcomes(consumer, message(1))
            await outcomes(consumer, *(message(n) for n in (2, 3, 4)))
            poison.bad.remove(1)
            calls = poison.calls
            async with running(consumer):
                await replay(consumer, 1)
            assert await taken(stock) == [1, 2]
            assert poison.calls == calls + 5
            assert await aside(stock) == [
                ("parked", "SX90", 3, "ValueError"),
                ("waiting", "SX90", 4, ""),
            ]
            letter = await find_letter(stock, 3)
            assert letter is not None
            assert letter.attempts == 3

    run(main)


def test_a_message_waits_for_the_one_before_it_also_when_a_person_asks() -> None:
    """The error says which one it is, and nothing is out of order (O3)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=1)
            await outcomes(consumer, message(1), message(2))
            with pytest.raises(BadRequest, match="waits behind message 1 of its key, which is par"):
                await replay(consumer, 2)
            assert await taken(stock) == []

    run(main)


def test_two_replays_at_once_have_each_effect_once() -> None:
    """What one of them handles, the other does not count."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=1)
            await outcomes(consumer, *(message(n) for n in range(1, 9)))
            poison.bad.clear()
            async with running(consumer), running(Consumer(stock, {SOLD: poison})):
                done = await asyncio.gather(*(replay(consumer, 1) for _ in range(3)))
                assert sum(told is not None for told in done) == 1
            assert await taken(stock) == list(range(1, 9))

    run(main)


def test_a_message_that_arrives_during_a_replay_waits_behind_it() -> None:
    """Order is kept while those that were set aside are taken one by one (O3, O5)."""

    async def main(runtime: SimRuntime) -> list[str]:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=1)
            await outcomes(consumer, *(message(n) for n in range(1, 7)))
            poison.bad.clear()
            async with running(consumer):
                begun = asyncio.get_running_loop().create_task(replay(consumer, 1))
                later = []
                for n in range(7, 30):
                    later += await outcomes(consumer, message(n))
                    await asyncio.sleep(runtime.rng.uniform(0.0, 0.01))
                await begun
            assert await taken(stock) == list(range(1, 30))
            return later

    seen = {outcome for seed in range(10) for outcome in run(main, seed=seed)}
    assert seen == {"parked", "handled"}


def test_a_replay_of_an_event_that_is_handled_no_longer_is_refused() -> None:
    """The message stays, and the error says what can be done."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            await outcomes(Consumer(stock, {SOLD: Poison({1})}, attempts_max=1), message(1))
            with pytest.raises(ContractError, match=r"does not handle shop.sold.* drop message 1"):
                await replay(Consumer(stock, {}), 1)
            assert await aside(stock) == [("parked", "SX90", 1, "ValueError")]

    run(main)


def test_dropping_frees_the_key_and_records_who_and_why() -> None:
    """The record is an event of the consumer's own log, in the commit that drops."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=1)
            await outcomes(consumer, message(1), message(2), message(3))
            async with running(consumer):
                # One in the middle is gone; the first still says what the others wait for.
                assert await drop_letter(stock, 2, who="ada", why="counted twice")
                assert [each[:3] for each in await aside(stock)] == [
                    ("parked", "SX90", 1), ("waiting", "SX90", 3),
                ]  # fmt: skip
                assert await drop_letter(stock, 1, who="ada", why="a test order")
            assert await taken(stock) == [3]
            told = await stock.read("select stream, name, is_public, trace_id, body from sm_event")
            assert [each[:4] for each in told] == [
                ("parked/shop/SX90", "stock.message_dropped", 0, TRACE)
            ] * 2
            body = told[1][4]
            assert isinstance(body, bytes)
            assert decode(body, Dropped) == Dropped(
                "shop", "", "event-1", SOLD, "SX90", "ValueError", "ada", "a test order"
            )
            assert await drop_letter(stock, 1, who="ada", why="again") is None
            assert await outcomes(consumer, message(4)) == ["handled"]

    run(main)


# -- what this release does not take: held until one does ------------------------------------------


def test_an_event_that_this_release_does_not_know_is_held_with_those_behind_it() -> None:
    """It is acknowledged and kept; other keys flow (O5)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take})
            async with running(consumer):
                assert await outcomes(
                    consumer, message(1, name=RETURNED), message(2), message(3, sku="PX12")
                ) == ["held", "parked", "handled"]
            assert await taken(stock) == [3]
            assert await aside(stock) == [
                ("held", "SX90", 1, "UnknownEvent"), ("waiting", "SX90", 2, ""),
            ]  # fmt: skip
            (group,) = (await summarize(stock, now_us=runtime.wall_us() + 60_000_000)).groups
            assert (group.state, group.source, group.event, group.count) == (
                "held", "shop", RETURNED, 1,
            )  # fmt: skip
            assert group.oldest_s > 60.0

    run(main)


def test_the_next_release_handles_what_was_held_in_order_and_once() -> None:
    """Without a person, when it starts; a delivery that comes again has no effect (O3, O4)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            held = [message(1, name=RETURNED), message(2), message(3, name=RETURNED)]
            await outcomes(Consumer(stock, {SOLD: take}), *held)
            async with running(Consumer(stock, {SOLD: take})):
                assert await taken(stock) == []  # the same release again
            consumer = Consumer(stock, {SOLD: take, RETURNED: take})
            async with running(consumer):
                assert await taken(stock) == [1, 2, 3]
                assert await outcomes(consumer, *held, message(4)) == [
                    "held", "parked", "parked", "handled",
                ]  # fmt: skip
            assert await taken(stock) == [1, 2, 3, 4]
            assert await aside(stock) == []

    run(main)


def test_what_was_held_is_let_go_where_the_event_is_declared_as_ignored() -> None:
    """Those behind it are handled."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            await outcomes(Consumer(stock, {SOLD: take}), message(1, name=RETURNED), message(2))
            ignoring = Consumer(stock, {SOLD: take}, ignored=frozenset({RETURNED}))
            async with running(ignoring):
                pass
            assert await taken(stock) == [2]
            assert await aside(stock) == []

    run(main)


def test_a_message_that_does_not_fit_is_held_until_a_release_can_read_it() -> None:
    """It is no failure of the handler, and is not tried again before."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            old = Poison({1}, error=lambda: ContractMismatch("no field 'n'"))
            assert await outcomes(Consumer(stock, {SOLD: old}), message(1), message(2)) == [
                "held", "parked",
            ]  # fmt: skip
            assert old.calls == 1
            async with running(Consumer(stock, {SOLD: old})):
                pass
            assert old.calls == 2  # a release is asked once, when it starts
            assert await aside(stock) == [
                ("held", "SX90", 1, "ContractMismatch"), ("waiting", "SX90", 2, ""),
            ]  # fmt: skip
            async with running(Consumer(stock, {SOLD: take})):
                pass
            assert await taken(stock) == [1, 2]

    run(main)


def test_one_behind_that_nothing_handles_is_held_when_its_turn_comes() -> None:
    """The first of its key is then the one that says why the others wait."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=1)
            await outcomes(consumer, message(1), message(2, name=RETURNED), message(3))
            async with running(consumer):
                await drop_letter(stock, 1, who="ada", why="a test order")
            assert await aside(stock) == [
                ("held", "SX90", 2, "UnknownEvent"), ("waiting", "SX90", 3, ""),
            ]  # fmt: skip

    run(main)


def test_more_than_the_bound_is_left_with_its_publisher() -> None:
    """What would be set aside is not acknowledged; what can be handled still is."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take}, letters_max=3)
            unknown = [message(n, sku=f"sku{n}", name=RETURNED) for n in range(1, 5)]
            assert await outcomes(consumer, *unknown[:3]) == ["held"] * 3
            for _ in range(2):
                with pytest.raises(Shed, match=r"3 messages are set aside.* messages list"):
                    await consumer.take("shop", unknown[3])
            assert await outcomes(consumer, message(5)) == ["handled"]
            await drop_letter(stock, 2, who="ada", why="not needed")
            assert await outcomes(consumer, unknown[3]) == ["held"]

    run(main)


def test_a_database_that_is_full_delays_what_was_held_and_parks_nothing() -> None:
    """It is handled once there is room; that is no fault of the message."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            await outcomes(Consumer(stock, {}), message(1))
            write = stock.write

            async def failing(*args: Any, **more: Any) -> Any:
                raise StoreFull("the disk is full")

            stock.write = failing
            async with running(Consumer(stock, {SOLD: take}, attempts_max=1)):
                assert await taken(stock) == []
                stock.write = write
            assert await taken(stock) == [1]

    run(main)


@pytest.mark.parametrize("error", [StoreUnavailable, StoreBroken])
def test_a_file_that_fails_ends_the_loop_and_parks_nothing(error: type[Exception]) -> None:
    """Its supervisor runs it again once the file is open; then the message is handled."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            await outcomes(Consumer(stock, {}), message(1))
            write = stock.write

            async def failing(*args: Any, **more: Any) -> Any:
                raise error("the file fails")

            stock.write = failing
            consumer = Consumer(stock, {SOLD: take}, attempts_max=1)
            with pytest.raises(error):
                await consumer.run()
            with pytest.raises(error):
                await replay(consumer, 1)
            stock.write = write
            assert await aside(stock) == [("held", "SX90", 1, "UnknownEvent")]
            async with running(consumer):
                pass
            assert await taken(stock) == [1]

    run(main)


def test_a_person_lets_go_of_a_parked_message_whose_event_is_ignored_now() -> None:
    """A release that ignores it does not discard what failed; whoever replays it does."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            await outcomes(Consumer(stock, {SOLD: Poison({1})}, attempts_max=1), message(1))
            consumer = Consumer(stock, {}, ignored=frozenset({SOLD}))
            async with running(consumer):
                assert await aside(stock) == [("parked", "SX90", 1, "ValueError")]
                told = await replay(consumer, 1)
                assert told is not None
                assert told.outcome == "ignored"
            assert await aside(stock) == []

    run(main)


def test_the_log_says_that_a_message_failed(caplog: pytest.LogCaptureFixture) -> None:
    """The traceback stays here, at the consumer."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            await outcomes(Consumer(stock, {SOLD: Poison({1})}), message(1))

    with caplog.at_level(logging.ERROR, logger="synchromesh.messaging"):
        run(main)
    (record,) = caplog.records
    assert "event-1 of shop could not be taken" in record.getMessage()
    assert record.__dict__["trace_id"] == TRACE
    assert record.exc_info is not None


@pytest.mark.parametrize(
    ("payload", "error", "said"),
    [
        (Sold("x" * 300_000, 1), BadRequest, "at most 262144"),
        ({"sku": "SX90"}, ContractError, "carries a Sold"),
    ],
)
def test_what_no_subscriber_could_take_is_not_published(
    payload: object, error: type[Exception], said: str
) -> None:
    """A payload that is too large, or of another type, is refused at its publisher."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "shop") as (shop,):
            with pytest.raises(error, match=said):
                await shop.write(
                    lambda unit: publish(unit, Shop.sold, payload, trace_id=TRACE), name="publish"
                )
            assert await shop.read("select count(*) from sm_event") == [(0,)]

    run(main)


def test_the_delivery_is_an_operation_of_the_subscriber() -> None:
    """It is a command with a message, alike over every transport, made once a subscriber."""
    operation = deliver_to("stock")
    assert operation is deliver_to("stock")
    assert operation.full_name == "stock.deliver_message"
    call = operation(message(1))
    assert operation.parse(call.arguments) == {"message": message(1)}
    target, body = operation.to_http(call.arguments)
    assert (target, body) == ("/_messages", encode(message(1)))
    assert operation.from_http({}, "", body) == call.arguments
