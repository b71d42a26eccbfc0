"""Priority from end to end: who sets it, what a callee is told, and that nobody else can say it."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest
from msgspec.structs import replace

from calls_fakes import (
    KEY,
    Front,
    Leaf,
    Middle,
    System,
    passing_on,
    play,
)
from forward_fakes import STORE, Way, through
from gateway_fakes import SHOP, Orders, Plant, behind
from saga_fakes import (
    CONTEXT,
    PATIENT,
    Bank,
    Declined,
    Hold,
    Order,
    Participants,
    Quote,
    Stock,
    at_work,
    place_order,
)
from saga_fakes import Plant as Works
from synchromesh.calls import Incoming
from synchromesh.codec import encode
from synchromesh.errors import ConfigError
from synchromesh.gateway import Aggregate, Branch, Forward, Gateway, Route
from synchromesh.gateway.checking import compiled
from synchromesh.identity import Signer
from synchromesh.priority import Priority
from synchromesh.saga import SagaDefinition, SagaPolicy
from synchromesh.testing import SimRuntime

pytestmark = pytest.mark.usefixtures("each_way")

EACH_HTTP = pytest.mark.usefixtures("http_way")

WRITTEN = pytest.mark.parametrize("written", ["interactive", "saga", "batch"])


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind."""
    return str(request.param)


def of(written: str) -> Gateway:
    """Return a gateway whose routes to services all have a priority."""
    branches = {"order": Branch(Orders.one, args={"order_id": "path.id"}, required=True)}
    return Gateway(
        auth=[SHOP],
        routes=[
            Route("GET /orders/{order_id}", Orders.one, priority=written),
            Aggregate("GET /views/{id}", branches=branches, priority=written),
            Aggregate(
                "GET /slower/{id}",
                branches=branches | {"again": Branch(Orders.one, args={"order_id": "order.id"})},
                priority=written,
            ),
        ],
    )


def passing(written: str) -> Gateway:
    return Gateway(
        auth=[SHOP],
        routes=[
            Forward("GET /files", to=STORE, priority=written),
            Forward("POST /files", to=STORE, priority=written),
        ],
    )


def said(headers: Any, system: System) -> Priority:
    """Return the priority of a request that was passed on: what its credential says."""
    token = headers.get("synchromesh-credential", "")
    now_us = system.runtime.wall_us()
    return Signer(KEY).verify(token, audience=STORE, now_us=now_us).priority


@EACH_HTTP
@WRITTEN
def test_what_a_route_or_an_aggregate_says_reaches_the_callee(kind: str, written: str) -> None:
    """Each call that is made for it, on each way and transport."""

    async def main(plant: Plant) -> None:
        for target, calls in (("orders", 1), ("views", 1), ("slower", 2)):
            plant.orders.asked.clear()
            assert (await plant.ask(f"GET /{target}/A-1")).status == 200
            came = [each.context.priority.name.lower() for each in plant.orders.asked]
            assert came == [written] * calls

    behind(main, gateway=of(written), kind=kind)


@EACH_HTTP
@WRITTEN
def test_what_a_forward_says_reaches_the_upstream(written: str) -> None:
    """In the credential of the hop, with a body or without."""

    async def main(way: Way) -> None:
        await way.ask("GET /files")
        await way.ask("POST /files", b"x")
        came = [said(seen.request.headers, way.system) for seen in way.store.seen]
        assert [each.name.lower() for each in came] == [written] * 2

    through(main, gateway=passing(written))


# By what a client could try to say what its request is worth.
NAMES = ("priority", "x-priority", "synchromesh-priority", "importance", "x-criticality")


def claimed() -> dict[str, str]:
    """Return all of them, with a credential that somebody else has signed."""
    theirs = Signer(b"another system's key, 32 bytes..")
    token = theirs.token("gateway", audience=STORE, now_us=0, priority=Priority.BATCH)
    return dict.fromkeys(NAMES, "batch") | {"synchromesh-credential": token}


@EACH_HTTP
def test_a_client_cannot_set_it(kind: str) -> None:
    """Whatever it sends, a request is worth what its route says."""

    async def main(plant: Plant) -> None:
        for target in ("orders", "views"):
            await plant.ask(f"GET /{target}/A-1", headers=claimed())
        came = [each.context.priority for each in plant.orders.asked]
        assert came == [Priority.INTERACTIVE] * 2

    behind(main, gateway=of("interactive"), kind=kind)


@EACH_HTTP
def test_a_client_cannot_set_it_where_its_request_is_passed_on() -> None:
    """The upstream is shown the gateway's own credential alone."""

    async def main(way: Way) -> None:
        await way.ask("GET /files", headers=claimed())
        (seen,) = way.store.seen
        assert said(seen.request.headers, way.system) is Priority.INTERACTIVE

    through(main, gateway=passing("interactive"))


def test_a_call_is_worth_what_its_credential_says(kind: str) -> None:
    """And so are those that its callee makes for it: no hop raises or lowers it."""

    async def main(system: System) -> None:
        came: list[Incoming] = []

        async def keep(incoming: Incoming) -> bytes:
            came.append(incoming)
            return b"1"

        await system.serve(Leaf, {"ask": keep})
        await system.serve(Middle, {"ask": passing_on(system.caller("middle"), Leaf.ask(1))})
        await system.serve(Front, {"ask": passing_on(system.caller("front"), Middle.ask(1))})
        caller = system.caller()
        for priority in Priority:
            await caller.call(Front.ask(1), context=replace(caller.root(), priority=priority))
        assert [each.context.priority for each in came] == list(Priority)

    play(kind, main)


@pytest.mark.parametrize("priority", Priority)
def test_another_attempt_travels_as_a_retry(kind: str, priority: Priority) -> None:
    """Whatever the first one was, but for what is worth less already."""

    async def main(system: System) -> None:
        came: list[Priority] = []

        async def fails_twice(incoming: Incoming) -> bytes:
            came.append(incoming.context.priority)
            if len(came) < 3:
                raise ConnectionResetError("once more")
            return b"1"

        await system.serve(Leaf, {"ask": fails_twice})
        caller = system.caller()
        await caller.call(Leaf.ask(1), context=replace(caller.root(), priority=priority))
        assert came == [priority, *[min(priority, Priority.RETRY)] * 2]

    play(kind, main)


@WRITTEN
def test_the_steps_of_a_saga_are_worth_what_its_policy_says(kind: str, written: str) -> None:
    """So are its undos; by default they are "saga", which gives way to people."""
    assert SagaPolicy().priority == "saga"
    policy = dataclasses.replace(PATIENT, priority=written)

    async def main(system: System) -> None:
        came: dict[str, str] = {}

        def keep(answer: object) -> Any:
            async def handle(incoming: Incoming) -> bytes:
                came[incoming.operation.full_name] = incoming.context.priority.name.lower()
                if isinstance(answer, Exception):
                    raise answer
                return encode(answer)

            return handle

        await system.serve(Works, {"quote": keep(Quote("q-1"))})
        await system.serve(Stock, {"reserve": keep(Hold("h-1")), "release": keep(None)})
        await system.serve(Bank, {"charge": keep(Declined("no")), "refund": keep(None)})
        definition = SagaDefinition(place_order, "place", deadline_s=60.0, policy=policy)
        runtime = cast("SimRuntime", system.runtime)
        others = cast("Participants", system.caller("orders"))
        async with at_work(runtime, others, definition) as engine:
            run = await engine.start(definition, Order("A-1"), id="A-1", context=CONTEXT)
            with pytest.raises(Declined):
                await run.result(60.0)
        assert came == dict.fromkeys(
            ("plant.quote", "stock.reserve", "bank.charge", "stock.release"), written
        )

    play(kind, main)


@pytest.mark.parametrize("wrong", ["urgent", "retry", "BATCH", "", 0, None, Priority.BATCH])
def test_one_that_there_is_not_is_refused(wrong: Any) -> None:
    """By the gateway and by a saga, with those that there are; a retry is no choice."""
    mend = "make it one of batch, interactive, saga"
    for gateway in (of(wrong), passing(wrong)):
        with pytest.raises(ConfigError, match=mend):
            compiled(gateway)
    with pytest.raises(ConfigError, match=mend):
        SagaPolicy(priority=wrong)
