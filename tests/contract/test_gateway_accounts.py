"""What a gateway counts of its requests, and what its access log says of them, on either way."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from types import FrameType
from typing import Any

import pytest

from bodies import body_of, open_body
from forward_fakes import PARTNER, STORE, Way, answering, through
from gateway_fakes import NO_RETRY, PLACE, SHOP, Plant, SoldOut, behind, stalls
from synchromesh.errors import RemoteFailed, Shed
from synchromesh.gateway import Forward, Gateway
from synchromesh.gateway.access_log import AccessLog, Served
from synchromesh.gateway.origin import Origins, read_proxies
from synchromesh.gateway.traffic import RouteCounts
from synchromesh.http import HttpResponse

pytestmark = pytest.mark.usefixtures("http_way")

CANARY = "canary-4711"


def taken(log: AccessLog | None) -> list[Served]:
    assert log is not None
    return log.take()


def test_every_end_of_a_request_is_counted_and_told() -> None:
    """Answered, refused for its credential, for its scopes, for its rate, and by the service."""

    async def main(plant: Plant) -> None:
        headers = {"x-request-id": "r-1"}
        assert (await plant.ask("GET /fleet/M-1", by="", headers=headers)).status == 200
        assert (await plant.ask("GET /orders/A-1", by="")).status == 401
        assert (await plant.ask("GET /orders/A-1", by="visitor")).status == 403
        plant.orders.answers["place"] = SoldOut("there are no more")
        for status in (409, 409, 409, 429):
            assert (await plant.ask("POST /orders", PLACE)).status == status
        plant.fleet.answers["machine"] = RemoteFailed("it broke")
        assert (await plant.ask("GET /fleet/M-1", by="")).status == 502
        plant.fleet.answers["machine"] = Shed("too much is under way")
        assert (await plant.ask("GET /fleet/M-1", by="")).status == 503
        assert (await plant.ask(f"GET /nothing/{CANARY}?key={CANARY}")).status == 404
        counts = plant.engine.snapshot()
        routes = counts.routes
        assert routes["GET /fleet/{id}"] == RouteCounts({"2xx": 1, "5xx": 2}, shed=1)
        assert routes["GET /orders/{order_id}"] == RouteCounts({"4xx": 2})
        assert routes["POST /orders"] == RouteCounts({"4xx": 4}, rate_limited=1)
        assert routes["GET /machines/{id}"].requests == 0
        assert counts.others == RouteCounts({"4xx": 1})
        told = taken(plant.log)
        assert [(each.route, each.status, each.principal) for each in told] == [
            ("GET /fleet/{id}", 200, ""),
            ("GET /orders/{order_id}", 401, ""),
            ("GET /orders/{order_id}", 403, "visitor"),
            *[("POST /orders", status, "shop") for status in (409, 409, 409, 429)],
            ("GET /fleet/{id}", 502, ""),
            ("GET /fleet/{id}", 503, ""),
            ("", 404, ""),
        ]
        first = told[0]
        assert (first.method, first.request_id, first.client) == ("GET", "r-1", "10.0.0.1")
        assert len(first.trace_id) == 32
        assert first.size is not None
        assert first.size > 10
        assert all(each.ended == "ok" for each in told)

    behind(main, log_share=1.0, policies=NO_RETRY)


def test_branches_are_counted_by_what_came_of_them() -> None:
    """A page with fallbacks is degraded; what failed of it, or of a whole that failed, is told."""

    async def main(plant: Plant) -> None:
        assert (await plant.ask("GET /machines/M-1")).status == 200
        plant.production.answers |= {"slot": RemoteFailed("x"), "line": RemoteFailed("x")}
        plant.orders.answers["one"] = RemoteFailed("x")
        assert (await plant.ask("GET /machines/M-1")).status == 200
        plant.fleet.answers["machine"] = RemoteFailed("x")
        assert (await plant.ask("GET /machines/M-1")).status == 502
        counts = plant.engine.snapshot().routes["GET /machines/{id}"]
        assert (counts.answers, counts.degraded) == ({"2xx": 2, "5xx": 1}, 1)
        assert counts.branches["line"]["static"] == 1
        assert counts.branches["production"]["stale"] == 1
        assert counts.branches["order"]["failed"] == 1
        assert counts.branches["machine"] == {"failed": 1}
        # Something stood in: it is told whatever is sampled.
        degraded = [each.status for each in taken(plant.log)]
        assert degraded == [200, 502]

    behind(main, log_share=1e-9, policies=NO_RETRY)


def test_a_client_that_leaves_is_told_of() -> None:
    """Before an answer there is no status; nobody takes it for an error of ours."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = stalls
        for route in ("GET /machines/M-1", "GET /fleet/M-1"):
            asking = asyncio.ensure_future(plant.ask(route))
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await asyncio.sleep(2.0)
        for each in taken(plant.log):
            assert (each.ended, each.status) == ("left", 0)
            assert 0.05 < each.took_s < 2.0
        routes = plant.engine.snapshot().routes
        assert routes["GET /machines/{id}"] == RouteCounts({}, left=1)
        assert routes["GET /fleet/{id}"] == RouteCounts({}, left=1)

    behind(main, log_share=1.0)


FORWARDS = Gateway(
    auth=[SHOP],
    routes=[
        Forward("GET /few", to=STORE, public=True),
        Forward("POST /many", to=PARTNER, body_max="1MiB"),
    ],
)


def test_what_is_passed_on_is_told_with_its_bytes() -> None:
    """A whole answer, one in parts, one that breaks off, and one that the client leaves."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200, b"1234567")
        assert (await way.ask("GET /few", by="")).status == 200
        way.store.answer = answering(201, lambda: body_of(b"x" * 200_000, length=None))
        assert len((await way.ask("GET /few", by="")).body) == 200_000
        way.partner.answer = answering(200, b"kept")
        assert (await way.ask("POST /many", body_of(b"y" * 100_000, length=None))).status == 200
        way.partner.answer = answering(500, b"{}")
        assert (await way.ask("POST /many", b"y")).status >= 500
        body = open_body(b"z" * 10)
        way.store.answer = answering(200, lambda: body)
        async with way.asking("GET /few", by="") as answer:
            assert answer.stream is not None
            assert await answer.stream.read()
        await asyncio.sleep(1.0)
        told = [(each.route, each.status, each.size, each.ended) for each in taken(way.log)]
        assert told[:3] == [
            ("GET /few", 200, 7, "ok"),
            ("GET /few", 201, 200_000, "ok"),
            ("POST /many", 200, 4, "ok"),
        ]
        assert (told[3][0], told[3][3]) == ("POST /many", "ok")
        assert told[3][1] >= 500
        assert told[4] == ("GET /few", 200, 10, "left")
        few = way.engine.snapshot().routes["GET /few"]
        assert (few.answers, few.left, few.cut) == ({"2xx": 3}, 1, 0)

    through(main, gateway=FORWARDS, log_share=1.0, policies=NO_RETRY)


def test_an_answer_that_breaks_off_is_no_whole_one() -> None:
    """Its status says 200, and the log says that it was cut."""

    async def main(way: Way) -> None:
        body = open_body(b"z" * 10)
        way.store.answer = answering(200, lambda: body)
        async with way.asking("GET /few", by="") as answer:
            assert answer.stream is not None
            assert await answer.stream.read()
            await way.servers[STORE].close()
            with pytest.raises(Exception, match=r"."):
                await answer.stream.read()
        (told,) = taken(way.log)
        assert (told.status, told.size, told.ended) == (200, 10, "cut")
        assert json.loads(told.line)["level"] == "WARNING"
        few = way.engine.snapshot().routes["GET /few"]
        assert (few.answers, few.cut) == ({"2xx": 1}, 1)

    through(main, gateway=FORWARDS, log_share=1.0, policies=NO_RETRY)


def test_what_is_no_request_is_told_too() -> None:
    """The server's own refusals have neither a method nor a route."""

    async def main(way: Way) -> None:
        raw = await way.raw(b"GET / HTTP/9.9\r\n\r\n")
        await raw.has_ended.wait()
        (told,) = taken(way.log)
        assert (told.method, told.route, told.status) == ("", "", raw.status)
        assert way.engine.snapshot().others.answers == {f"{raw.status // 100}xx": 1}

    through(main, gateway=FORWARDS, log_share=1.0)


def test_no_secret_is_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    """Canaries in the path, the query, headers, bodies and answers come out nowhere."""
    caplog.set_level(logging.DEBUG)

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = lambda _: CANARY  # a wrong answer, which is logged
        secret = {
            "cookie": f"id={CANARY}",
            "x-api-key": CANARY,
            "traceparent": CANARY,
            "x-request-id": f"{CANARY}!",
            "idempotency-key": CANARY,
            "x-forwarded-for": CANARY,
        }
        body = {"sku": CANARY, "qty": 1}
        for route in (
            f"GET /fleet/{CANARY}?{CANARY}={CANARY}",
            f"GET /machines/{CANARY}",
            f"GET /{CANARY}",
            f"GET /orders/{CANARY}?x={CANARY}",
        ):
            await plant.ask(route, by=CANARY, headers=secret)
        await plant.ask("POST /orders", body, headers=secret)
        lines = b"\n".join(each.line for each in taken(plant.log))
        assert lines.count(b'"logger"') == 5
        # Of these fakes the credential is the name of the principal.
        text = lines.decode().replace(f'"principal":"{CANARY}"', "").replace(f" by {CANARY}", "")
        assert CANARY not in text
        assert CANARY not in caplog.text

    behind(main, log_share=1.0, policies=NO_RETRY)


def test_successes_are_sampled_and_all_else_is_kept() -> None:
    """A tenth of 1000 that went well; each that did not."""

    async def main(plant: Plant) -> None:
        for _ in range(1000):
            await plant.ask("GET /fleet/M-1", by="")
        for _ in range(10):
            await plant.ask("GET /orders/A-1", by="")
        told = [each.status for each in taken(plant.log)]
        assert 60 < told.count(200) < 140
        assert told.count(401) == 10

    behind(main, log_share=0.1)


def test_the_client_is_told_by_trusted_proxies_alone() -> None:
    """Behind one its word counts; from anybody else it is not read."""
    origins = Origins(read_proxies(["10.0.0.7"]), by="x-forwarded")

    async def main(plant: Plant) -> None:
        headers = {"x-forwarded-for": "203.0.113.9"}
        for peer in ("10.0.0.7:1", "10.0.0.8:1"):
            await plant.ask("GET /fleet/M-1", by="", peer=peer, headers=headers)
        assert [each.client for each in taken(plant.log)] == ["203.0.113.9", "10.0.0.8"]

    behind(main, log_share=1.0, origins=origins)


def test_without_a_log_nothing_is_called_for_it(http_way: str) -> None:
    """No frame of the log or the counts is on the fast way of a request that went well."""
    frames: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            frames.append(frame.f_code.co_filename.rpartition("/")[2])

    async def main(way: Way) -> None:
        way.store.answer = answering(200, b"1234567")

        async def asked() -> HttpResponse:
            return await way.ask("GET /few", by="")

        await asked()
        sys.setprofile(note)
        try:
            assert (await asked()).status == 200
        finally:
            sys.setprofile(None)
        assert way.engine.snapshot().routes["GET /few"].answers == {"2xx": 2}

    through(main, gateway=FORWARDS)
    assert "access_log.py" not in frames
    if http_way == "fast":
        assert "passing.py" in frames
        assert not {"traffic.py", "asked.py"} & set(frames)
