"""What a route promises whose service fails: an answer that is marked, or the failure itself."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway_fakes import (
    NO_RETRY,
    SHOP,
    Fleet,
    Machine,
    Order,
    Orders,
    Plant,
    Production,
    UnknownMachine,
    behind,
    json_of,
    now,
    stalls,
)
from synchromesh.errors import BadRequest, RateLimited, Shed
from synchromesh.gateway import Gateway, Route, Stale, Static
from synchromesh.http import HttpResponse
from synchromesh.telemetry import MemoryRing

pytestmark = pytest.mark.usefixtures("each_way", "http_way")

GATEWAY = Gateway(
    auth=[SHOP],
    stale_max=3,
    routes=[
        Route("GET /orders/{order_id}", Orders.one, deadline="1s", fallback=Stale("10m")),
        Route("GET /fleet/{id}", Fleet.machine, public=True, fallback=Stale("1m")),
        Route("GET /fleet", Fleet.machines, fallback=Stale("1m")),
        Route("GET /lines/{number}", Production.line, fallback=Static("unknown")),
        Route("PUT /orders/{order_id}/notes", Orders.note),
    ],
)
FIRST = {"id": "A-1", "customer": "ada"}


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind the gateway."""
    return str(request.param)


def before(main: Any, *, kind: str = "inproc", policies: Any = NO_RETRY) -> Any:
    return behind(main, gateway=GATEWAY, kind=kind, policies=policies)


def mark_of(answer: HttpResponse) -> str | None:
    return answer.headers.get("synchromesh-fallback")


def test_a_last_answer_stands_in_and_says_its_age(kind: str) -> None:
    """While the service fails its last answer comes with 200, source, age and code (F1)."""

    async def main(plant: Plant) -> None:
        whole = await plant.ask("GET /orders/A-1")
        assert (whole.status, json_of(whole), mark_of(whole)) == (200, FIRST, None)
        plant.system.known.endpoints["orders"] = []
        await asyncio.sleep(12.3)
        answer = await plant.ask("GET /orders/A-1")
        assert (answer.status, json_of(answer)) == (200, FIRST)
        source, age, code = str(mark_of(answer)).split(";")
        assert (source, code) == ("stale", "code=no_instance")
        assert float(age.removeprefix("age_s=")) == pytest.approx(12.3, abs=1.0)
        assert "synchromesh-partial" not in answer.headers
        await asyncio.sleep(600)
        answer = await plant.ask("GET /orders/A-1")
        assert (answer.status, mark_of(answer)) == (503, None)

    before(main, kind=kind)


def test_a_static_value_stands_in(kind: str) -> None:
    """What was written down answers where the service never has; it has no age."""

    async def main(plant: Plant) -> None:
        plant.system.known.endpoints["production"] = []
        answer = await plant.ask("GET /lines/7")
        assert (answer.status, json_of(answer)) == (200, "unknown")
        assert mark_of(answer) == "static;code=no_instance"

    before(main, kind=kind)


def test_recovery_needs_no_restart() -> None:
    """The first answer after a failure is fresh and unmarked, and is the last answer now (F3)."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /orders/A-1")
        plant.orders.answers["one"] = ValueError("down")
        assert str(mark_of(await plant.ask("GET /orders/A-1"))).startswith("stale")
        plant.orders.answers["one"] = Order("A-1", "bob")
        answer = await plant.ask("GET /orders/A-1")
        assert (json_of(answer)["customer"], mark_of(answer)) == ("bob", None)
        plant.orders.answers["one"] = ValueError("down")
        assert json_of(await plant.ask("GET /orders/A-1"))["customer"] == "bob"

    before(main)


@pytest.mark.parametrize(
    "no", [UnknownMachine("it was scrapped"), BadRequest("no")], ids=["rejection", "bad request"]
)
def test_a_no_is_no_failure(no: Exception) -> None:
    """What the service says of the request is the answer, whatever it said before."""

    async def main(plant: Plant) -> None:
        assert (await plant.ask("GET /fleet/M-1")).status == 200
        plant.fleet.answers["machine"] = no
        answer = await plant.ask("GET /fleet/M-1")
        assert (answer.status, mark_of(answer)) == (no.status, None)  # type: ignore[attr-defined]

    before(main)


@pytest.mark.parametrize("no", [Shed("full"), RateLimited("too often")], ids=lambda e: e.code)
def test_a_service_that_is_full_is_a_failure(no: Exception) -> None:
    """A service that has no room for the question has a last answer to it."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /fleet/M-1")
        plant.fleet.answers["machine"] = no
        answer = await plant.ask("GET /fleet/M-1")
        assert (answer.status, str(mark_of(answer)).startswith("stale")) == (200, True)

    before(main)


def test_a_stall_ends_at_the_deadline_with_the_last_answer() -> None:
    """Nobody waits longer than the route says, and then there is an answer all the same."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /orders/A-1")
        plant.orders.answers["one"] = stalls
        began = now()
        answer = await plant.ask("GET /orders/A-1")
        assert now() - began == pytest.approx(1.0, abs=0.01)
        assert (answer.status, mark_of(answer)) == (200, "stale;age_s=1.000;code=timed_out")

    before(main)


def test_an_open_breaker_answers_the_fallback_at_once() -> None:
    """Where nothing would be sent nobody waits, and nothing is sent."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /orders/A-1")
        plant.caller.edge("orders").breaker.isolate(now())  # type: ignore[union-attr]
        began, asked = now(), len(plant.orders.asked)
        answer = await plant.ask("GET /orders/A-1")
        assert mark_of(answer) == "stale;age_s=0.000;code=circuit_open"
        assert (now(), len(plant.orders.asked)) == (began, asked)

    before(main)


def test_a_last_answer_is_for_the_same_question_of_the_same_principal() -> None:
    """What one principal was answered, nobody else gets; nor who asks for something else."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /orders/A-1", by="shop")
        plant.system.known.endpoints["orders"] = []
        assert (await plant.ask("GET /orders/A-1", by="shop")).status == 200
        assert (await plant.ask("GET /orders/A-1", by="visitor")).status == 503
        assert (await plant.ask("GET /orders/A-2", by="shop")).status == 503
        assert (await plant.ask("GET /orders/A-1", by="")).status == 401

    before(main)


def test_on_a_public_route_all_share_one_last_answer() -> None:
    """Who asks without a principal is nobody, whether a credential came along or not."""

    async def main(plant: Plant) -> None:
        await plant.ask("GET /fleet/M-1", by="")
        plant.system.known.endpoints["fleet"] = []
        for by in ("", "shop"):
            answer = await plant.ask("GET /fleet/M-1", by=by, peer="10.0.0.9:1")
            assert str(mark_of(answer)).startswith("stale")

    before(main)


def test_the_query_is_part_of_the_question_and_its_order_is_not() -> None:
    """The arguments tell one question from another, however they are written."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machines"] = [Machine("M-1")]
        await plant.ask('GET /fleet?ids=["M-1"]&since=4')
        plant.system.known.endpoints["fleet"] = []
        assert (await plant.ask('GET /fleet?since=4&ids=["M-1"]')).status == 200
        assert (await plant.ask('GET /fleet?since=5&ids=["M-1"]')).status == 503

    before(main)


def test_last_answers_are_bounded() -> None:
    """Beyond the bound the one that was asked for the longest ago is forgotten."""

    async def main(plant: Plant) -> None:
        for number in range(4):
            await plant.ask(f"GET /orders/A-{number}")
        plant.system.known.endpoints["orders"] = []
        statuses = [(await plant.ask(f"GET /orders/A-{n}")).status for n in range(4)]
        assert statuses == [503, 200, 200, 200]

    before(main)


def test_a_command_is_never_answered_by_another_routes_fallback() -> None:
    """A write that failed is a failure, on the path of a query that has a fallback too (F2)."""

    async def main(plant: Plant) -> None:
        assert (await plant.ask("GET /orders/A-1")).status == 200
        plant.system.known.endpoints["orders"] = []
        answer = await plant.ask("PUT /orders/A-1/notes", {"text": "hurry"})
        assert (answer.status, mark_of(answer)) == (503, None)
        assert json.loads(answer.body)["code"] == "no_instance"

    before(main)


def test_the_span_of_a_request_says_what_stood_in() -> None:
    """A trace shows that its answer was no fresh one."""

    async def main(plant: Plant) -> MemoryRing:
        plant.system.known.endpoints["production"] = []
        await plant.ask("GET /lines/7")
        return plant.system.spans

    (span,) = [span for span in before(main) if span.kind == "gateway"]
    assert span.attributes["fallback"] == "static;code=no_instance"
