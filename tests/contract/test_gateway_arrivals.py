"""What a request from outside says of itself: its trace goes on, and its name comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from forward_fakes import Way, answering, through
from gateway_fakes import PLACE, Plant, behind
from synchromesh.calls import Policies
from synchromesh.http import Headers, HttpRequest, HttpResponse
from synchromesh.propagation import TraceMarks
from synchromesh.resilience import Policy, RetryOptions

pytestmark = pytest.mark.usefixtures("http_way")

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
# Unsampled, with a random id, and what two vendors have noted of it.
TRACED = {"traceparent": f"00-{TRACE}-{SPAN}-02", "tracestate": "rojo=00f0, congo=t61r"}
NOT_FROM_US = {
    "no hexadecimal": f"00-{'+' * 32}-{SPAN}-01",
    "digits apart": f"00-{'1_' * 16}-{SPAN}-01",
    "blanks": f"00-{TRACE[:-1]} -{SPAN}-01",
    "in capitals": f"00-{TRACE.upper()}-{SPAN}-01",
    "nothing": f"00-{'0' * 32}-{SPAN}-01",
    "more than version 00 has": f"00-{TRACE}-{SPAN}-01-x",
    "version ff": f"ff-{TRACE}-{SPAN}-01",
}


def traced(headers: Headers) -> list[str]:
    """Return version, trace, span and flags of what an upstream was sent."""
    return headers.get("traceparent", "").split("-")


@pytest.mark.parametrize("route", ["PUT /firmware/a", "GET /firmware/a", "POST /partners"])
def test_a_trace_goes_on_to_an_upstream(route: str) -> None:
    """Its id, its flags and its `tracestate` do; the gateway's span is below the sender's."""

    async def main(way: Way) -> None:
        answer = await way.ask(route, None if route[0] == "G" else b"x", headers=TRACED)
        assert answer.status == 201
        assert answer.headers.get("synchromesh-trace") == TRACE
        (seen,) = [*way.store.seen, *way.partner.seen]
        version, trace_id, span_id, flags = traced(seen.request.headers)
        assert (version, trace_id, flags) == ("00", TRACE, "02")
        assert seen.request.headers.get_all("tracestate") == ("rojo=00f0,congo=t61r",)
        await asyncio.sleep(0.1)  # the slow way ends behind its answer
        call, gateway = sorted(way.system.spans, key=lambda span: span.kind)
        assert {call.attributes["status"], gateway.attributes["status"]} == {"201"}
        assert {call.trace_id, gateway.trace_id} == {TRACE}
        assert (gateway.parent_id, call.parent_id) == (SPAN, gateway.span_id)
        assert call.span_id == span_id

    through(main)


@pytest.mark.parametrize("kind", ["inproc", "http"])
@pytest.mark.parametrize("route", ["GET /orders/A-1", "POST /orders", "GET /machines/M-1"])
def test_a_trace_goes_on_to_services(kind: str, route: str) -> None:
    """By whatever transport, through a route and through all branches of an aggregate."""

    async def main(plant: Plant) -> None:
        body = PLACE if route.startswith("POST") else None
        answer = await plant.ask(route, body, headers=TRACED)
        assert (answer.status, answer.headers.get("synchromesh-trace")) == (200, TRACE)
        assert plant.asked
        for asked in plant.asked:
            assert asked.context.trace_id == TRACE
            assert asked.context.marks == TraceMarks(2, "rojo=00f0,congo=t61r")
        (gateway,) = (span for span in plant.system.spans if span.kind == "gateway")
        assert (gateway.trace_id, gateway.parent_id) == (TRACE, SPAN)

    behind(main, kind=kind)


@pytest.mark.parametrize("malformed", NOT_FROM_US.values(), ids=NOT_FROM_US.keys())
@pytest.mark.parametrize("route", ["GET /firmware/a", "POST /partners"])
def test_a_malformed_trace_is_a_new_one(route: str, malformed: str) -> None:
    """It is sampled, says that its id is random, and has no `tracestate` of another."""

    async def main(way: Way) -> None:
        headers = TRACED | {"traceparent": malformed}
        answer = await way.ask(route, None if route[0] == "G" else b"x", headers=headers)
        assert answer.status == 201
        (seen,) = [*way.store.seen, *way.partner.seen]
        _, trace_id, _, flags = traced(seen.request.headers)
        assert trace_id == answer.headers.get("synchromesh-trace")
        assert trace_id not in malformed
        assert flags == "03"
        assert "tracestate" not in seen.request.headers
        await asyncio.sleep(0.1)  # the slow way ends behind its answer
        (gateway,) = (span for span in way.system.spans if span.kind == "gateway")
        assert gateway.parent_id == ""

    through(main)


def test_a_trace_goes_on_over_attempts() -> None:
    """An attempt that failed is followed by another of the same trace, with all it carries."""

    async def main(way: Way) -> None:
        answers = iter([answering(503), answering(200, b"whole")])

        @asynccontextmanager
        async def answer_next(request: HttpRequest) -> AsyncIterator[HttpResponse]:
            async with next(answers)(request) as answer:
                yield answer

        way.store.answer = answer_next
        answer = await way.ask("GET /firmware/a", headers=TRACED | {"x-request-id": "r-1"})
        assert (answer.status, answer.headers.get("x-request-id")) == (200, "r-1")
        assert len(way.store.seen) == 2
        for seen in way.store.seen:
            assert traced(seen.request.headers)[1::2] == [TRACE, "02"]
            assert seen.request.headers.get("tracestate") == "rojo=00f0,congo=t61r"
            assert seen.request.headers.get("x-request-id") == "r-1"
        await asyncio.sleep(0.1)  # the slow way ends behind its answer
        (gateway,) = (span for span in way.system.spans if span.kind == "gateway")
        assert (gateway.parent_id, gateway.attributes["request_id"]) == (SPAN, "r-1")

    through(main, policies=Policies(default=Policy(retry=RetryOptions(base_s=0.01))))


REFUSALS: dict[str, tuple[str, dict[str, Any]]] = {
    "answered": ("GET /firmware/a", {}),
    "without a credential": ("POST /notes", {"by": "", "body": b"x"}),
    "no route": ("GET /nowhere", {}),
    "another method": ("DELETE /notes", {}),
}


@pytest.mark.parametrize(("route", "more"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_request_id_is_echoed(route: str, more: dict[str, Any]) -> None:
    """Whatever comes of a request, its answer says the name it had, once."""
    name = "req.1~A:b/c+d=e@f-" + "x" * 110

    async def main(way: Way) -> None:
        way.store.answer = answering(200, b"x", (("x-request-id", "the upstream's"),))
        answer = await way.ask(route, headers={"x-request-id": name}, **more)
        assert answer.headers.get_all("x-request-id") == (name,)
        for seen in way.store.seen:
            assert seen.request.headers.get_all("x-request-id") == (name,)

    through(main)


@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "<script>", "a,b", '"a"', "caf\xe9"])
def test_a_request_id_that_is_long_or_odd_is_left_out(name: str) -> None:
    """It is neither echoed nor passed on, and the request is answered all the same."""

    async def main(way: Way) -> None:
        answer = await way.ask("GET /firmware/a", headers={"x-request-id": name})
        assert answer.status == 201
        assert "x-request-id" not in answer.headers
        assert "x-request-id" not in way.store.seen[0].request.headers

    through(main)


def test_an_aggregate_and_its_failure_echo_the_request_id() -> None:
    """Whole or refused, and its span has it."""

    async def main(plant: Plant) -> None:
        for expected in (200, 500):
            answer = await plant.ask("GET /machines/M-1", headers={"x-request-id": "r-2"})
            assert answer.status == expected
            assert answer.headers.get_all("x-request-id") == ("r-2",)
            plant.fleet.answers["machine"] = OSError("no")
        spans = [span for span in plant.system.spans if span.kind == "gateway"]
        assert [span.attributes["request_id"] for span in spans] == ["r-2", "r-2"]

    behind(main, policies=Policies(default=Policy(retry=None)))
