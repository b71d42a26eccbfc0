"""The consumer: one effect a message; poison is parked, then replayed or dropped by a person."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

from messaging_world import SOLD, TRACE, Poison, Shop, Sold, message, stores, take, taken
from synchromesh.codec import decode, encode
from synchromesh.errors import (
    BadRequest,
    ContractError,
    Forbidden,
    Rejection,
    Shed,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
)
from synchromesh.messaging import Consumer, Dropped, Message, deliver_to, publish
from synchromesh.testing import SimRuntime, run

RETURNED = Shop.returned.full_name


class NotToday(Rejection, code="not_today"):
    """Tells that the handler refuses."""


async def outcomes(consumer: Consumer, *messages: Message) -> list[str]:
    return [(await consumer.take("shop", each)).outcome for each in messages]


async def parked(consumer: Consumer) -> list[tuple[str, str, int, str]]:
    return [
        (each.source, each.scope, each.message.position, each.reason)
        for each in await consumer.parked()
    ]


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


def test_an_event_that_nobody_handles_is_ignored_and_leaves_nothing() -> None:
    """It is acknowledged, without a record."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take})
            assert await outcomes(consumer, message(1, name=RETURNED)) == ["ignored"]
            assert await stock.read("select count(*) from sm_inbox") == [(0,)]

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
            assert await parked(consumer) == [
                ("shop", "SX90", 1, "ValueError"),
                ("shop", "SX90", 2, "behind a parked message"),
                ("shop", "SX90", 3, "behind a parked message"),
            ]

    run(main)


def test_a_parked_message_is_kept_whole() -> None:
    """The list shows the message as it was delivered, and since when it waits."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=1)
            before_us = runtime.wall_us()
            await outcomes(consumer, message(1))
            (only,) = await consumer.parked()
            assert (only.message, before_us <= only.parked_us <= runtime.wall_us()) == (
                message(1),
                True,
            )
            assert await consumer.parked(limit=0) == []

    run(main)


def test_a_rejection_parks_as_any_failure_does_and_is_not_recorded_as_an_answer() -> None:
    """A consumer has nobody to refuse to (O5)."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1}, error=NotToday)
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=2)
            assert await outcomes(consumer, message(1), message(1)) == ["failed", "parked"]
            assert await parked(consumer) == [("shop", "SX90", 1, "RejectedMessage")]
            kinds = await stock.read("select kind from sm_inbox")
            assert kinds == [("answer",)]

    run(main)


def test_a_payload_that_does_not_fit_is_poison_too() -> None:
    """A message that cannot be read is parked under the error's code."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: take}, attempts_max=1)
            broken = msgspec.structs.replace(message(1), payload=msgspec.Raw(b'{"sku":7}'))
            assert await outcomes(consumer, broken) == ["parked"]
            assert await parked(consumer) == [("shop", "SX90", 1, "bad_request")]

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


@pytest.mark.parametrize("error", [StoreFull, StoreLocked, StoreReadOnly, Shed])
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
            assert await parked(consumer) == []

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
            assert await parked(consumer) == [("shop", "SX90", 1, "key_reused")]
            assert await taken(stock) == [1]

    run(main)


def test_a_replay_handles_in_order_and_lets_the_scope_flow_again() -> None:
    """Afterwards new messages of the scope are handled at once."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({2})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=1)
            messages = [message(n) for n in (2, 3, 10, 11)]
            await outcomes(consumer, *messages, message(4, sku="PX12"))
            poison.bad.clear()
            assert await consumer.replay("shop", "SX90") == 4
            assert await taken(stock) == [4, 2, 3, 10, 11]
            assert await outcomes(consumer, *messages, message(12)) == ["parked"] * 4 + ["handled"]
            assert await taken(stock) == [4, 2, 3, 10, 11, 12]
            assert await consumer.replay("shop", "SX90") == 0

    run(main)


def test_a_replay_stops_at_the_first_that_fails_again() -> None:
    """Those before it are done, it and those behind it stay, and its error is raised."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1, 3})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=1)
            await outcomes(consumer, *(message(n) for n in (1, 2, 3, 4)))
            poison.bad.remove(1)
            with pytest.raises(ValueError, match="cannot be taken"):
                await consumer.replay("shop", "SX90")
            assert await taken(stock) == [1, 2]
            assert [position for _, _, position, _ in await parked(consumer)] == [3, 4]
            assert await outcomes(consumer, message(5)) == ["parked"]

    run(main)


def test_two_replays_at_once_have_each_effect_once() -> None:
    """What one of them handles, the other does not count."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=1)
            await outcomes(consumer, *(message(n) for n in range(1, 9)))
            poison.bad.clear()
            done = await asyncio.gather(*(consumer.replay("shop", "SX90") for _ in range(3)))
            assert sum(done) == 8
            assert await taken(stock) == list(range(1, 9))

    run(main)


def test_a_message_that_arrives_during_a_replay_waits_behind_it() -> None:
    """Order is kept while the parked ones are taken one by one (O3, O5)."""

    async def main(runtime: SimRuntime) -> list[str]:
        async with stores(runtime, "stock") as (stock,):
            poison = Poison({1})
            consumer = Consumer(stock, {SOLD: poison}, attempts_max=1)
            await outcomes(consumer, *(message(n) for n in range(1, 7)))
            poison.bad.clear()
            replay = asyncio.get_running_loop().create_task(consumer.replay("shop", "SX90"))
            later = []
            for n in range(7, 13):
                later += await outcomes(consumer, message(n))
                await asyncio.sleep(runtime.rng.uniform(0.0, 0.01))
            await replay
            assert await consumer.replay("shop", "SX90") == 0
            assert await taken(stock) == list(range(1, 13))
            return later

    seen = {outcome for seed in range(10) for outcome in run(main, seed=seed)}
    assert seen == {"parked", "handled"}


def test_a_replay_of_an_event_that_is_handled_no_longer_is_refused() -> None:
    """The message stays parked, and the error says what can be done."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            await outcomes(Consumer(stock, {SOLD: Poison({1})}, attempts_max=1), message(1))
            consumer = Consumer(stock, {})
            with pytest.raises(ContractError, match="drop message event-1"):
                await consumer.replay("shop", "SX90")
            assert len(await parked(consumer)) == 1

    run(main)


def test_dropping_frees_the_scope_and_records_who_and_why() -> None:
    """The record is an event of the consumer's own log, in the commit that drops."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=1)
            await outcomes(consumer, message(1), message(2))
            assert await consumer.drop("shop", "event-1", who="ada", why="a test order")
            assert await stock.read("select stream, name, is_public, trace_id from sm_event") == [
                ("parked/shop/SX90", "stock.message_dropped", 0, TRACE)
            ]
            ((body,),) = await stock.read("select body from sm_event")
            assert isinstance(body, bytes)
            assert decode(body, Dropped) == Dropped(
                "shop", "event-1", SOLD, "SX90", "ValueError", "ada", "a test order"
            )
            assert not await consumer.drop("shop", "event-1", who="ada", why="again")
            assert await consumer.replay("shop", "SX90") == 1
            assert await outcomes(consumer, message(3)) == ["handled"]
            assert await taken(stock) == [2, 3]

    run(main)


@pytest.mark.parametrize(("who", "why"), [(" ", "why"), ("ada", "")])
def test_dropping_asks_for_a_name_and_a_reason(who: str, why: str) -> None:
    """What is missing is named, and nothing is dropped."""

    async def main(runtime: SimRuntime) -> None:
        async with stores(runtime, "stock") as (stock,):
            consumer = Consumer(stock, {SOLD: Poison({1})}, attempts_max=1)
            await outcomes(consumer, message(1))
            with pytest.raises(BadRequest, match="message"):
                await consumer.drop("shop", "event-1", who=who, why=why)
            assert len(await parked(consumer)) == 1

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
