"""A route to an operation by either way of the gateway: the same in all that can be seen of it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from calls_fakes import Always, Bank, System, play
from forward_fakes import Announced
from gateway_fakes import (
    NO_RETRY,
    PLACE,
    SHOP,
    Fleet,
    Machine,
    Order,
    Orders,
    Plant,
    Production,
    SoldOut,
    behind,
    now,
    stalls,
)
from synchromesh.calls import Incoming, Policies, Reply
from synchromesh.errors import RemoteFailed, Shed
from synchromesh.gateway import Cache, Cors, Gateway, Rate, Route, Static
from synchromesh.gateway.access_log import Served
from synchromesh.gateway.fast import Gate
from synchromesh.http import HttpExchange, HttpResponse, HttpServer
from synchromesh.resilience import Policy, RetryOptions

GATEWAY = Gateway(
    auth=[SHOP],
    cors=Cors(origins={"https://shop.example"}),
    routes=[
        Route("GET /fleet/{id}", Fleet.machine, public=True, rate=Rate("30/m", burst=2)),
        Route("GET /machines", Fleet.machines),
        Route("POST /orders", Orders.place, scopes={"orders:write"}),
        Route("PUT /orders/{order_id}/notes", Orders.note, strict=True),
        Route("GET /orders/{order_id}", Orders.one, cache=Cache("30s")),
        Route("GET /lines/{number}", Production.line, fallback=Static("unknown")),
    ],
)
JSON = "application/json; charset=utf-8"
TRACE = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "x-request-id": "r-1"}
ASKED: tuple[tuple[bool, str, Any, Mapping[str, str]], ...] = (
    (True, "GET /fleet/M-1", None, TRACE),
    (True, "GET /fleet/M%2F1", None, {"authorization": ""}),
    (True, "GET /fleet/M-1", None, {"origin": "https://shop.example"}),
    (True, "GET /fleet/M-1", None, {}),  # too soon
    (True, 'GET /machines?ids=["a"]&since=3', None, {}),
    (False, "GET /machines?ids=x", None, {}),
    (False, "GET /machines", None, {}),
    (True, "POST /orders", PLACE, {"idempotency-key": "order A-1"}),
    (True, "POST /orders", PLACE, {"content-type": JSON, "origin": "https://other.example"}),
    (False, "POST /orders", PLACE, {"content-type": "text/plain"}),
    (False, "POST /orders", PLACE, {"idempotency-key": "x" * 256}),
    (False, "POST /orders", PLACE, {"authorization": "visitor"}),
    (False, "POST /orders", {"sku": 1}, {}),
    (False, "POST /orders", None, {}),
    (False, "POST /orders?x=1", PLACE, {}),
    (True, "PUT /orders/A-1/notes", {"text": "x"}, {}),
    (False, "PUT /orders/A-1/notes", {"text": "x", "more": 1}, {}),
    (False, "GET /orders/A-1", None, {}),
    (False, "GET /lines/7", None, {}),
)
# What differs from one request to the next.
OWN = re.compile(r"\b[0-9a-f]{32}\b|[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f-]{21}")


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind the gateway."""
    return str(request.param)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the fast way says to each request: True where it takes it."""
    noted: list[bool] = []
    begin = Gate.begin

    def begun(gate: Gate, exchange: HttpExchange) -> bool:
        noted.append(begin(gate, exchange))
        return noted[-1]

    monkeypatch.setattr(Gate, "begin", begun)
    return noted


def masked(seen: object) -> str:
    return OWN.sub("*", repr(seen))


def shown(answer: HttpResponse) -> str:
    return masked((answer.status, sorted(answer.headers), answer.body))


def logged(line: Served) -> tuple[object, ...]:
    return (
        line.route, line.status, line.size, line.principal, line.client, line.request_id, line.ended
    )  # fmt: skip


async def told_by(plant: Plant) -> dict[str, object]:
    """Return all that is seen of the requests: answers, calls, spans, log and counts."""
    answers = []
    for _, route, body, headers in ASKED:
        answers.append(shown(await plant.ask(route, body, headers=headers)))
    for error in (SoldOut("no more"), RemoteFailed("10.0.0.7"), Shed("full"), ValueError("a bug")):
        plant.orders.answers["place"] = error
        answers.append(shown(await plant.ask("POST /orders", PLACE)))
    plant.orders.answers["place"] = stalls
    answers.append(shown(await plant.ask("POST /orders", PLACE)))
    asking = asyncio.ensure_future(plant.ask("POST /orders", PLACE))
    await asyncio.sleep(0.1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert "0 in flight" in repr(plant.engine)
    assert plant.log is not None
    spans = [
        masked((span.kind, span.name, span.status, span.attributes, bool(span.parent_id)))
        for span in plant.system.spans
    ]
    calls = [
        masked((each.operation, each.arguments, each.context.key, each.context.attempts_left))
        for each in plant.asked
    ]
    return {
        "answers": answers,
        "calls": calls,
        "spans": sorted(spans),
        "log": [logged(each) for each in plant.log.take()],
        "counts": plant.engine.snapshot(),
    }


def test_both_ways_do_the_same(
    kind: str, said: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked, and whatever comes of it, at the gateway and at the service."""

    async def main(plant: Plant) -> dict[str, object]:
        plant.fleet.answers["machines"] = [Machine("M-1")]
        return await told_by(plant)

    defaults = HttpServer.__init__.__kwdefaults__
    assert defaults is not None
    told = []
    for is_fast in (True, False):
        monkeypatch.setitem(defaults, "is_fast", is_fast)
        told.append(behind(main, gateway=GATEWAY, kind=kind, policies=NO_RETRY, log_share=1.0))
    fast, slow = told
    for what, seen in slow.items():
        assert fast[what] == seen
    assert said[: len(ASKED)] == [is_taken for is_taken, *_ in ASKED]
    assert said[len(ASKED) :] == [True] * 6


def test_a_place_is_held_while_a_call_is_under_way(kind: str, said: list[bool]) -> None:
    """What is over the bound takes the slow way, which has words for it."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = stalls
        asking = [asyncio.ensure_future(plant.ask("GET /fleet/M-1")) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert "1 in flight" in repr(plant.engine)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert "0 in flight" in repr(plant.engine)

    narrow = Gateway(
        auth=[], routes=[Route("GET /fleet/{id}", Fleet.machine, public=True)], in_flight_max=1
    )
    behind(main, gateway=narrow, kind=kind)
    assert said == [True, False]


def test_a_client_that_leaves_takes_its_call_along(kind: str, said: list[bool]) -> None:
    """The handler is cancelled at once, and not at its deadline."""
    ends: list[float] = []

    async def stalling(_: Incoming) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            ends.append(now())

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = stalling
        asking = asyncio.ensure_future(plant.ask("GET /fleet/M-1"))
        await asyncio.sleep(0.1)
        left = now()
        asking.cancel()
        await asyncio.sleep(0.1)
        assert ends == [pytest.approx(left, abs=0.01)]
        (span,) = (span for span in plant.system.spans if span.kind == "gateway")
        assert span.status == "cancelled"

    behind(main, gateway=GATEWAY, kind=kind)
    assert said == [True]


def test_a_failed_attempt_is_tried_again(kind: str, said: list[bool]) -> None:
    """A command too, under the one key that its client is told."""

    async def main(plant: Plant) -> None:
        outcomes = iter([RemoteFailed("it broke"), Order("A-2", "ada")])
        plant.orders.answers["place"] = lambda _: next(outcomes)
        answer = await plant.ask("POST /orders", PLACE)
        assert (answer.status, json.loads(answer.body)["id"]) == (200, "A-2")
        first, second = (each.context.key for each in plant.orders.asked)
        assert first == second
        assert first.endswith(f"/{answer.headers.get('idempotency-key')}")

    again = Policies(default=Policy(retry=RetryOptions(base_s=0.01)))
    behind(main, gateway=GATEWAY, kind=kind, policies=again)
    assert said == [True]


def test_a_call_waits_for_an_instance_that_comes_back(kind: str, said: list[bool]) -> None:
    """It is a task then, which ends with the answer."""

    async def main(system: System) -> None:
        known = system.known = Announced()
        plant = Plant(system, GATEWAY, None)
        await plant.start()
        plant.fleet.answers["machine"] = Machine("M-1")
        gone = known.endpoints.pop("fleet")
        asking = asyncio.ensure_future(plant.ask("GET /fleet/M-1"))
        await asyncio.sleep(0.1)
        assert not asking.done()
        known.endpoints["fleet"] = gone
        known.announce()
        assert (await asking).status == 200

    play(kind, main)
    assert said == [True]


def test_an_external_service_is_told_a_trace_and_a_key_alone(said: list[bool]) -> None:
    """A command to a stranger carries the key that its client is told, and nothing of who asks."""
    bank = Always(Reply(200, b'"charged"'))

    async def main(system: System) -> None:
        await system.mount("bank", bank, [Bank.charge])
        plant = Plant(
            system, Gateway(routes=[Route("POST /charges", Bank.charge, public=True)]), None
        )
        answer = await plant.ask("POST /charges", {"amount": 3}, by="")
        assert (answer.status, answer.body) == (200, b'"charged"')
        (request,) = bank.requests
        assert request.context.key.endswith(f"/{answer.headers.get('idempotency-key')}")
        assert request.context.trace_id == answer.headers.get("synchromesh-trace")
        assert (request.credential, request.context.deadline_s) == ("", None)
        assert request.context.attempts_left == 0

    play("http", main)
    assert said == [True]
