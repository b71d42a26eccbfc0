"""One instance: start, drain and stop, messages, projections, sagas, the bounds of units."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any
from unittest.mock import patch

import pytest

from service_world import (
    SIGNER,
    TABLES,
    Bank,
    Counted,
    Declined,
    Fails,
    Gate,
    Hold,
    Reserved,
    Stock,
    Town,
    note,
    town,
)
from synchromesh.calls.wire import Request
from synchromesh.context import CallContext
from synchromesh.errors import (
    ConnectFailed,
    ContractError,
    ForeignAwait,
    KeyUndone,
    NoInstance,
    RemoteFailed,
    SagaUndone,
    Shed,
    StoreFull,
    StoreLocked,
    StoreUnavailable,
    TimedOut,
    UnknownOperation,
    VersionConflict,
)
from synchromesh.events import Decider, Decision
from synchromesh.identity import Principal
from synchromesh.messaging import deliver_to
from synchromesh.service import Service, ServiceInstance, Transaction
from synchromesh.service.instance import SWEEP_EVERY_S
from synchromesh.testing import SimRuntime, run


def in_town(main: Any, *names: str, until_s: float = 3600.0) -> None:
    async def whole(runtime: SimRuntime) -> None:
        async with town(runtime, *names) as made:
            await main(made)

    run(whole, until_s=until_s)


async def in_a_unit(town: Town, body: Any) -> Any:
    """Run a body on the transaction of a unit of the stock."""
    context = CallContext(trace_id="1" * 32, span_id="2" * 16, principal=Principal("ada"))
    stock = town.up["stock"]
    return await stock.store.write(
        lambda unit: stock._units.run(unit, context, body), name="a test's unit"
    )


# -- coming up and going down ----------------------------------------------------------------------


def test_an_instance_says_what_it_offers_and_how_it_is() -> None:
    """The operations of its contract and the delivery of messages; its children by name."""

    async def main(town: Town) -> None:
        stock = town.up["stock"]
        assert [operation.full_name for operation in stock.offered] == [
            "stock.reserve", "stock.release", "stock.build", "stock.scrap", "stock.order",
            "stock.level", "stock.deliver_message",
        ]  # fmt: skip
        health = stock.health()
        assert (health.service, health.is_healthy, health.is_draining) == ("stock", True, False)
        assert sorted(health.children) == [
            "forgetting",
            "inbox sweep",
            "keys",
            "message replay",
            "projection/totals",
            "relay/books",
            "saga recovery",
            "saga timers",
            "subscriptions",
        ]
        assert {child.state for child in health.children.values()} == {"running"}
        assert repr(stock) == "<ServiceInstance stock>"

    in_town(main)


def test_a_drained_instance_finishes_what_runs_and_takes_nothing_new() -> None:
    """New calls are shed, which is safe to retry elsewhere; within its time the rest ends."""

    async def main(town: Town) -> None:
        gate = town.hooks.at["level"] = Gate()
        asked = asyncio.get_running_loop().create_task(town.ask(Stock.level("bolt")))
        await gate.arrived.wait()
        stock = town.up["stock"]
        drained = asyncio.get_running_loop().create_task(stock.drain(5.0))
        await asyncio.sleep(0.1)
        with pytest.raises(Shed, match="drains"):
            await town.ask(Stock.level("bolt"))
        assert not drained.done()
        gate.opened.set()
        assert await asked == 10
        await drained
        assert stock.health().is_draining
        assert repr(stock) == "<ServiceInstance stock draining>"

    in_town(main)


def test_a_stopped_instance_sheds_and_leaves_its_database_to_the_next() -> None:
    """It may be stopped twice; nothing of it runs on (D4)."""

    async def main(town: Town) -> None:
        stock = town.up["stock"]
        await stock.stop()
        await stock.stop()
        with pytest.raises(Shed):
            await town.ask(Stock.level("bolt"))
        await town.start("stock")
        assert await town.ask(Stock.level("bolt")) == 10
        await town.stop("stock")
        with pytest.raises(ConnectFailed):
            await town.ask(Stock.level("bolt"))
        await town.start("stock")

    in_town(main)


def test_what_cannot_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong service, a database that is owned, a recovery that fails: the file is free again."""

    async def main(town: Town) -> None:
        with pytest.raises(StoreLocked):
            await town.start("stock")
        await town.stop("stock")
        handlers = dict(town.services["stock"].operations)
        del town.services["stock"].operations["level"]
        with pytest.raises(ContractError, match="does not handle level"):
            await town.start("stock")
        town.services["stock"].operations.update(handlers)

        async def full(_: Any) -> None:
            raise StoreFull("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("synchromesh.saga.engine.Engine.recover", full)
            with pytest.raises(StoreFull):
                await town.start("stock")
            patch.setattr("synchromesh.service.instance.Consumer", None)
            with pytest.raises(TypeError):
                await town.start("stock")
        await town.start("stock")
        assert await town.ask(Stock.level("bolt")) == 10

    in_town(main)


def test_an_operation_that_nobody_handles_is_named() -> None:
    """The answer lists what there is; a call without a credential is refused before that."""

    async def main(town: Town) -> None:
        context = CallContext(trace_id="1" * 32, span_id="2" * 16)
        call = Bank.charge("A-1", 1)
        token = SIGNER.token("client", audience="stock", now_us=town.runtime.wall_us())
        reply = await town.request("stock", Request(call.operation, call.arguments, context, token))
        error = reply.to_error(())
        assert isinstance(error, UnknownOperation)
        assert "no operation 'charge'" in error.message
        reply = await town.request("stock", Request(call.operation, call.arguments, context, ""))
        assert reply.status == 401

    in_town(main)


def test_a_child_that_fails_too_often_is_given_up_and_its_service_goes_on() -> None:
    """A relay whose checkpoint is of another log is shown as failed, and somebody is told.

    It is tried again by itself, and comes back once the reason has gone.
    """

    async def main(town: Town) -> None:
        await town.up["stock"].store.write(
            lambda unit: unit.execute(
                "insert into sm_checkpoint values ('relay/books', 'another-log', 0) "
                "on conflict(name) do update set log_id = excluded.log_id"
            ),
            name="restore",
        )
        stock = await town.restart("stock")
        await asyncio.sleep(5.0)
        assert [(service, child) for service, child, _ in town.failures] == [
            ("stock", "relay/books")
        ]
        assert not stock.health().is_healthy
        relay = stock.health().children["relay/books"]
        assert (relay.state, relay.last_error[:12]) == ("failed", "log_replaced")
        assert await town.ask(Stock.level("bolt")) == 10
        await asyncio.sleep(60.0)
        assert 2 < len(town.failures) < 6
        await stock.store.write(
            lambda unit: unit.execute("delete from sm_checkpoint where name = 'relay/books'"),
            name="repair",
        )
        await asyncio.sleep(90.0)
        assert (relay.state, stock.health().is_healthy) == ("running", True)

    in_town(main)


def test_a_child_can_be_started_anew_at_once() -> None:
    """Whoever has mended the reason need not wait; the name is that of `health`."""

    async def main(town: Town) -> None:
        stock = town.up["stock"]
        relay = stock.health().children["relay/books"]
        await stock.restart_child("relay/books")
        assert (relay.state, relay.restarts) == ("running", 1)
        with pytest.raises(KeyError):
            await stock.restart_child("relay/nobody")

    in_town(main)


def test_a_database_that_fails_makes_its_instance_not_ready_until_it_is_back() -> None:
    """Queries that need it answer an error that may be tried again; loops wait, and go on."""

    async def main(town: Town) -> None:
        stock = town.up["stock"]
        runtime = town.runtime
        assert isinstance(runtime, SimRuntime)
        await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        runtime.disk.fail("/stock.db")
        under_way = asyncio.ensure_future(town.ask(Stock.reserve("A-2", "bolt", 1), "k2"))
        await asyncio.sleep(0.5)
        assert not stock.readiness.is_ready
        assert "disk" in stock.health().not_ready
        assert not stock.health().is_healthy
        with pytest.raises(StoreUnavailable) as refused:
            await town.ask(Stock.level("bolt"))
        assert refused.value.is_retry_safe
        # Nobody is told of the file, or of what the engine said.
        assert "/stock.db" not in refused.value.message
        await asyncio.sleep(60.0)
        runtime.disk.mend("/stock.db")
        await stock.readiness.usable()
        await asyncio.sleep(10.0)
        assert stock.health().is_healthy
        assert {child.state for child in stock.health().children.values()} == {"running"}
        assert town.failures == []
        (outcome,) = await asyncio.gather(under_way, return_exceptions=True)
        assert isinstance(outcome, Hold | StoreUnavailable | TimedOut)
        await town.ask(Stock.reserve("A-2", "bolt", 1), "k2")
        assert await town.ask(Stock.level("bolt")) == 8

    in_town(main)


def test_the_inbox_is_swept_in_the_background() -> None:
    """Records whose time is over go, the others stay."""

    async def main(town: Town) -> None:
        town.deps = dataclasses.replace(town.deps, keep_s=600.0)
        await town.restart("bank")
        for n in range(1200):
            await town.ask(Bank.charge(f"A-{n}", 1), f"old{n}")
        await asyncio.sleep(300.0)
        await town.ask(Bank.charge("A-1", 1), "k1")
        await asyncio.sleep(360.0 - SWEEP_EVERY_S)
        read = town.up["bank"].store.read
        assert await read("select count(*) from sm_inbox") == [(1201,)]
        await asyncio.sleep(3 * SWEEP_EVERY_S)
        assert await read("select key from sm_inbox") == [("k1",)]
        told = "select removed, keep_s from sm_retention where what = 'inbox'"
        assert await read(told) == [(1200, 600.0)]

    in_town(main, "bank")


def test_a_clock_that_jumps_sweeps_no_tombstone() -> None:
    """A call that comes after its undo has no effect, whatever somebody set the time to (S6)."""

    async def main(town: Town) -> None:
        await town.undo(Stock.release, "k1")
        wall_us, week_us = town.runtime.wall_us, 8 * 86_400 * 1_000_000
        with patch.object(town.runtime, "wall_us", lambda: wall_us() + week_us):
            await asyncio.sleep(2 * SWEEP_EVERY_S)
            assert await town.record("k1") == "tombstone"
            # A start under the wrong clock is the same: it has not seen those days go by.
            await town.restart("stock")
            await asyncio.sleep(2 * SWEEP_EVERY_S)
            assert await town.record("k1") == "tombstone"
        with pytest.raises(KeyUndone):
            await town.ask(Stock.reserve("A-1", "bolt", 3), "k1")

    in_town(main, "stock")


# -- messages and projections ----------------------------------------------------------------------


def test_what_a_handler_publishes_reaches_its_subscribers_once() -> None:
    """Through relay, dispatcher and consumer; and carries the trace of the call that caused it."""

    async def main(town: Town) -> None:
        seen: list[str] = []

        async def look(tx: Any) -> None:
            seen.append(tx.trace_id)

        town.hooks.at["on reserved"] = look
        for n in (1, 2, 3):
            await town.ask(Stock.reserve(f"A-{n}", "bolt", n), f"k{n}")
        await town.restart("books")
        await town.restart("stock")
        await asyncio.sleep(3.0)
        assert await town.notes("books") == ["book bolt 1", "book bolt 2", "book bolt 3"]
        traces = {span.trace_id for span in town.ring if span.name == "stock.reserve"}
        assert set(seen) <= traces

    in_town(main)


def test_a_subscriber_that_is_down_gets_its_messages_when_it_is_back() -> None:
    """Nothing is lost meanwhile, and nothing else waits for it (O1)."""

    async def main(town: Town) -> None:
        await town.stop("books")
        await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        await asyncio.sleep(600.0)
        assert town.failures == []
        await town.start("books")
        await asyncio.sleep(10.0)
        assert await town.notes("books") == ["book bolt 1"]

    in_town(main)


def test_a_message_that_cannot_be_taken_is_parked_and_replayed() -> None:
    """The relay is told so, and other keys flow (O5)."""

    async def main(town: Town) -> None:
        town.hooks.at["on reserved"] = Fails(lambda: Declined("not today"), times=5)
        await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        await asyncio.sleep(10.0)
        await town.ask(Stock.reserve("A-2", "bolt", 2), "k2")
        await town.ask(Stock.reserve("A-3", "nut", 3), "k3")
        await asyncio.sleep(2.0)
        books = town.up["books"]
        aside = await books.set_aside(town.runtime.wall_us())
        assert [(each.state, each.error, each.count) for each in aside.groups] == [
            ("parked", "RejectedMessage", 1)
        ]
        assert aside.count == 2
        assert await town.notes("books") == ["book nut 3"]
        await books.consumer.replay(1, who="ada", why="open again")
        await asyncio.sleep(1.0)
        assert await town.notes("books") == ["book nut 3", "book bolt 1", "book bolt 2"]

    in_town(main)


def test_an_older_release_of_a_subscriber_holds_what_the_next_one_handles() -> None:
    """Its publisher is newer than it; and what a release declares as ignored is let go of."""

    async def main(town: Town) -> None:
        services: Any = town.services
        new = services["books"]
        older = Service("books", migrations=TABLES)
        ignoring = Service("books", migrations=TABLES, ignored=[Stock.reserved])

        async def release(service: Service) -> ServiceInstance:
            # The stock goes on with what it knew when it started.
            services["books"] = service
            return await town.restart("books")

        books = await release(older)
        await town.ask(Stock.reserve("A-1", "bolt", 1), "k1")
        await town.ask(Stock.reserve("A-2", "bolt", 2), "k2")
        await asyncio.sleep(90.0)
        (group,) = (await books.set_aside(town.runtime.wall_us())).groups
        assert (group.state, group.error, group.count) == ("held", "UnknownEvent", 1)
        assert group.oldest_s > 60.0
        books = await release(new)
        await asyncio.sleep(1.0)
        assert await town.notes("books") == ["book bolt 1", "book bolt 2"]
        await release(older)
        await town.ask(Stock.reserve("A-3", "bolt", 3), "k3")
        await asyncio.sleep(1.0)
        books = await release(ignoring)
        await town.ask(Stock.reserve("A-4", "bolt", 4), "k4")
        await asyncio.sleep(1.0)
        assert (await books.set_aside(0)).count == 0
        await release(new)
        await asyncio.sleep(1.0)
        assert await town.notes("books") == ["book bolt 1", "book bolt 2"]

    in_town(main)


def test_a_message_is_taken_from_its_publisher_only() -> None:
    """Who delivers is what the credential says."""

    async def main(town: Town) -> None:
        from messaging_world import message

        forged = deliver_to("books")(message(1, name="stock.reserved"))
        reply = None
        for service, status in (("bank", 403), ("stock", 200)):
            token = SIGNER.token(service, audience="books", now_us=town.runtime.wall_us())
            context = CallContext(trace_id="1" * 32, span_id="2" * 16, key="log:1")
            request = Request(forged.operation, forged.arguments, context, token)
            reply = await town.request("books", request)
            assert reply.status == status
        # Its payload does not fit: an answer all the same, so that no breaker opens.
        assert reply is not None
        assert reply.body == b'{"outcome":"held"}'

    in_town(main, "books")


def test_a_projection_sees_each_event_of_its_classes_once() -> None:
    """Over restarts too, with its checkpoint in the same commit (E5)."""

    async def main(town: Town) -> None:
        for n in (1, 2):
            await town.ask(Stock.reserve(f"A-{n}", "bolt", n), f"k{n}")
            await asyncio.sleep(1.0)
            await town.restart("stock")
        await asyncio.sleep(1.0)
        totals = [each for each in await town.notes() if each.startswith("total")]
        assert totals == ["total bolt 1", "total bolt 2"]

    in_town(main)


def test_a_projection_of_what_the_contract_publishes_sees_what_was_published() -> None:
    """A payload's class stands for the public event, not for an appended one of its name."""

    async def main(runtime: SimRuntime) -> None:
        made = Town(runtime)
        stock = made.services["stock"]

        @stock.projection("published", events=(Reserved,))
        async def published(tx: Transaction, reserved: Reserved) -> None:
            await note(tx, f"published {reserved.sku} {reserved.qty}")

        await made.start("stock")
        await made.ask(Stock.reserve("A-1", "bolt", 1), "k1")

        async def append(tx: Transaction) -> None:
            await tx.append("x", [Reserved("nut", 9)])

        await in_a_unit(made, append)
        await asyncio.sleep(2.0)
        notes = await made.notes()
        assert [each for each in notes if each.startswith("published")] == ["published bolt 1"]
        await made.stop("stock")

    run(main)


# -- sagas -----------------------------------------------------------------------------------------


def test_a_handler_starts_a_saga_once_whose_units_publish() -> None:
    """Asked again it is the same run; what its unit publishes is delivered."""

    async def main(town: Town) -> None:
        for _ in range(2):
            assert await town.ask(Stock.order("A-1", 100), "k1") == "receipt saga"
        assert await town.ask(Stock.order("A-1", 100), "k2") == "receipt saga"
        await asyncio.sleep(2.0)
        assert await town.notes("bank") == ["charge saga"]
        assert await town.notes("books") == ["book bolt 2"]
        assert [each.id for each in await town.up["stock"].engine.runs()] == ["A-1"]

    in_town(main)


def test_a_handler_that_dies_after_the_start_of_its_saga_finds_it_again() -> None:
    """The start is durable, and so is that the command has begun (S1)."""

    async def main(town: Town) -> None:
        town.hooks.at["order has started"] = Fails(ValueError)
        with pytest.raises(RemoteFailed):
            await town.ask(Stock.order("A-1", 100), "k1")
        assert await town.record("k1") == "begun"
        await town.restart("stock")
        assert await town.ask(Stock.order("A-1", 100), "k1") == "receipt saga"
        assert await town.notes("bank") == ["charge saga"]

    in_town(main)


def test_a_rejection_that_turned_a_saga_is_the_handlers_answer() -> None:
    """The business no of a step comes to whoever asked."""

    async def main(town: Town) -> None:
        with pytest.raises(Declined, match="too much"):
            await town.ask(Stock.order("A-1", 5000), "k1")
        assert await town.record("k1") == "rejection"

    in_town(main)


def test_the_end_of_a_technically_undone_saga_is_final_under_its_key() -> None:
    """It is 409 with the reason, recorded, and no reason to ask again; its undo has nothing to do.

    A saga that is not undone yet is no end: the handler says so, and asks again.
    """

    async def main(town: Town) -> None:
        town.hooks.at["charge"] = Fails(lambda: ZeroDivisionError("a bug"), times=99)
        for _ in range(2):
            with pytest.raises(SagaUndone, match=r"saga 'A-1' was undone: .*bank\.charge") as no:
                await town.ask(Stock.order("A-1", 5), "k1")
            assert (no.value.status, no.value.is_final) == (409, True)
            assert await town.record("k1") == "rejection"
        await town.undo(Stock.release, "k1")
        town.hooks.at.clear()
        with pytest.raises(SagaUndone):
            await town.ask(Stock.order("A-1", 5), "k2")
        assert await town.ask(Stock.order("A-2", 5), "k3") == "receipt saga"

    in_town(main)


# -- the transaction -------------------------------------------------------------------------------


def test_a_service_publishes_its_own_events_only() -> None:
    """Another service's event is refused, and the unit is rolled back."""

    async def main(town: Town) -> None:
        async def foreign(tx: Any) -> None:
            tx.publish(Stock.reserved, Reserved("bolt", 1))

        town.hooks.at["charge"] = foreign
        with pytest.raises(RemoteFailed):
            await town.ask(Bank.charge("A-1", 1), "k1")
        assert await town.notes("bank") == []
        assert await town.up["bank"].store.read("select count(*) from sm_event") == [(0,)]

    in_town(main)


def test_a_unit_publishes_a_bounded_number_and_only_while_it_runs() -> None:
    """One more than 1,000 is refused; so is one after the unit."""

    async def main(town: Town) -> None:
        kept: list[Transaction] = []

        async def many(tx: Transaction) -> None:
            kept.append(tx)
            for n in range(1001):
                tx.publish(Stock.reserved, Reserved("bolt", n))

        with pytest.raises(ContractError, match="1000 events"):
            await in_a_unit(town, many)

        async def one(tx: Transaction) -> None:
            kept.append(tx)
            tx.publish(Stock.reserved, Reserved("bolt", 1))

        await in_a_unit(town, one)
        with pytest.raises(ForeignAwait, match="after its unit"):
            kept[-1].publish(Stock.reserved, Reserved("bolt", 1))
        rows = await town.up["stock"].store.read("select count(*) from sm_event where is_public")
        assert rows == [(1,)]

    in_town(main, "stock")


def take(qty: int, taken: int) -> Decision[int]:
    return Decision(taken + qty, (Counted("bolt", qty),))


TAKING: Decider[int, int, int] = Decider(
    "taking", initial=0, decide=take, evolve=lambda n, e: n + e.qty, events=(Counted,)
)


def test_a_unit_decides_and_appends_in_its_commit() -> None:
    """Events of deciders and appended ones are known by name from then on."""

    async def main(town: Town) -> None:
        async def body(tx: Transaction) -> list[int]:
            first = await tx.decide(TAKING, "1", 2)
            second = await tx.decide(TAKING, "1", 3)
            version = await tx.append("hold/1", [Hold("1", "bolt", 1)], expected=0)
            return [first, second, version]

        assert await in_a_unit(town, body) == [2, 5, 1]

        async def late(tx: Transaction) -> None:
            await tx.append("hold/1", [Hold("1", "bolt", 1)], expected=0)

        with pytest.raises(VersionConflict):
            await in_a_unit(town, late)

        async def plain(tx: Transaction) -> None:
            await tx.append("x", [{"not": "an event"}])

        with pytest.raises(ContractError, match="dict is not an event"):
            await in_a_unit(town, plain)
        rows = await town.up["stock"].store.read("select name, trace_id from sm_event order by 1")
        assert rows == [
            ("stock.counted", "1" * 32),
            ("stock.counted", "1" * 32),
            ("stock.hold", "1" * 32),
        ]

    in_town(main, "stock")


def test_a_service_that_nobody_registered_has_no_instance() -> None:
    """The caller's error says so; nothing was sent."""

    async def main(town: Town) -> None:
        from synchromesh.discovery import Resolved

        async def nobody(service: str) -> Resolved:
            return Resolved(())

        town.resolve = nobody  # type: ignore[method-assign]
        with pytest.raises(NoInstance):
            await town.ask(Stock.level("bolt"))

    in_town(main, "stock")
