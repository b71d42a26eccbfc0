"""What a gateway promises of another upstream beside a route's own: a share of it, or copies."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bodies import body_of, open_body
from forward_fakes import PARTNER, STORE, Answering, Way, answering, names, through
from gateway_fakes import SECRET, SHOP, now
from synchromesh.errors import ConnectionLost
from synchromesh.gateway import Forward, Gateway, Mirror, Split
from synchromesh.gateway.mirror_book import MirrorBook
from synchromesh.http import HttpRequest, HttpResponse

pytestmark = pytest.mark.usefixtures("http_way")

JSON = (("content-type", "application/json"),)


def with_mirror(mirror: Mirror, **more: Any) -> Gateway:
    more = {"public": True} | more
    return Gateway(
        auth=[SHOP],
        routes=[
            Forward(
                "ANY /stock/{path...}",
                to=STORE,
                mirror=mirror,
                body_max="4MiB",
                **more,
            )
        ],
    )


def with_split(split: Split, **more: Any) -> Gateway:
    public = {"public": True} | more
    return Gateway(
        auth=[SHOP], routes=[Forward("ANY /stock/{path...}", to=STORE, split=split, **public)]
    )


def book(way: Way) -> MirrorBook:
    return way.engine.state.mirrors["ANY /stock/{path...}"]


async def settle(way: Way) -> None:
    """Wait for copies that are under way."""
    while book(way).in_flight:
        await asyncio.sleep(0.01)


def telling(value: object, status: int = 200) -> Answering:
    return answering(status, json.dumps(value).encode(), JSON)


# -- mirror ------------------------------------------------------------------------------------


def test_a_copy_is_sent_and_the_answers_are_compared() -> None:
    """The client gets the first upstream's; what differs is told by its place, without values."""

    async def main(way: Way) -> None:
        way.store.answer = telling({"sku": "a", "left": 7, "at": 1})
        way.partner.answer = telling({"at": 2, "left": 7, "sku": "a"})
        for _ in range(3):
            answer = await way.ask("GET /stock/a%20b?site=1", by="", headers={"accept": "x/y"})
            assert answer.status == 200
            await settle(way)
        assert json.loads(answer.body)["at"] == 1
        assert book(way).counts.same == 3
        copy, first = way.partner.seen[-1].request, way.store.seen[-1].request
        assert (copy.method, copy.target) == ("GET", "/v2/a%20b?site=1")
        assert (first.target, copy.headers.get("accept")) == ("/stock/a%20b?site=1", "x/y")
        assert copy.headers.get("synchromesh-mirror") == "?1"
        assert first.headers.get("synchromesh-mirror") is None
        assert copy.headers.get("traceparent", "")[3:35] == answer.headers.get("synchromesh-trace")
        way.partner.answer = telling({"sku": SECRET, "left": "7"}, 201)
        answer = await way.ask("GET /stock/a?token=x", by="")
        await settle(way)
        (kept,) = book(way).kept
        assert (kept.statuses, kept.trace_id) == (
            (200, 201),
            answer.headers.get("synchromesh-trace"),
        )
        told = [(each.where, each.why) for each in kept.differences]
        assert told == [("status", "status"), ("/sku", "value"), ("/left", "type")]
        assert not {SECRET, "token", "a"} & {
            kept.target,
            *(each.first for each in kept.differences),
            *(each.mirror for each in kept.differences),
        }

    mirror = Mirror(PARTNER, path="/v2/{path...}", ignore={"/at"})
    through(main, gateway=with_mirror(mirror))


@pytest.mark.parametrize("forwarded", [None, True, False])
def test_a_mirror_is_told_whom_a_request_comes_from_by_the_rule_of_its_own_upstream(
    forwarded: bool | None,
) -> None:
    """One that is not ours learns nothing of it by default, whatever the first is told."""
    told_by = {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"}

    async def main(way: Way) -> None:
        for (route, first, copied), theirs in (
            (("/out", way.store, way.partner), forwarded is True),
            (("/in", way.partner, way.store), forwarded is not False),
        ):
            await way.ask(f"GET {route}/a", by="")
            while any(each.in_flight for each in way.engine.state.mirrors.values()):
                await asyncio.sleep(0.01)
            found, passed = copied.seen[-1].request.headers, first.seen[-1].request.headers
            assert found.get("synchromesh-mirror") == "?1"
            assert bool(told_by & names(found)) is theirs
            own = forwarded if forwarded is not None else route == "/out"
            assert bool(told_by & names(passed)) is own

    ways = (("/out", STORE, PARTNER), ("/in", PARTNER, STORE))
    routes = [
        Forward(f"GET {path}/{{name}}", to=to, public=True, forwarded=forwarded, mirror=Mirror(by))
        for path, to, by in ways
    ]
    through(main, gateway=Gateway(auth=[SHOP], routes=routes))


def test_values_are_kept_where_the_route_says_so_and_only_the_last() -> None:
    """With what was asked, cut; older ones are forgotten."""

    async def main(way: Way) -> None:
        way.partner.answer = telling({"left": 1})
        for left in (5, 6, 7):
            way.store.answer = telling({"left": left})
            await way.ask("GET /stock/a?site=1", by="")
            await settle(way)
        assert [each.differences[0].first for each in book(way).kept] == ["6", "7"]
        assert book(way).kept[0].target == "GET /stock/a?site=1"
        assert book(way).counts.different == 3

    through(main, gateway=with_mirror(Mirror(PARTNER, values=True, kept_max=2)))


@pytest.mark.parametrize("writes", [True, False])
def test_writes_are_copied_only_where_that_is_declared(writes: bool) -> None:
    """With their bodies and their keys, once the first upstream has done it."""
    order: list[str] = []

    def named(name: str) -> Answering:
        @asynccontextmanager
        async def answer(request: HttpRequest) -> AsyncIterator[HttpResponse]:
            order.append(name)
            await asyncio.sleep(0.1)
            order.append(name)
            yield HttpResponse(200, JSON, b"{}")

        return answer

    async def main(way: Way) -> None:
        way.store.answer, way.partner.answer = named("first"), named("mirror")
        for headers in ({}, {"idempotency-key": "k"}):
            await way.ask("POST /stock/a", b'{"n": 1}', by="", headers=headers)
            await settle(way)
        assert [seen.body for seen in way.store.seen] == [b'{"n": 1}'] * 2
        copies = [seen.body for seen in way.partner.seen]
        assert copies == ([b'{"n": 1}'] * 2 if writes else [])
        if writes:
            assert order == ["first", "first", "mirror", "mirror"] * 2
            keys = [
                each.seen[1].request.headers.get("idempotency-key")
                for each in (way.store, way.partner)
            ]
            assert keys[0] == keys[1] != "k"
            assert keys[0]

    through(main, gateway=with_mirror(Mirror(PARTNER, writes=writes)))


def test_a_mirror_that_hangs_or_fails_touches_no_answer_and_no_limit() -> None:
    """Answers come as soon, copies beyond the bound are dropped, and no breaker hears of it."""

    async def main(way: Way) -> None:
        way.store.answer = telling({})
        way.partner.answer = answering(200, after_s=60.0)
        began_s = now()
        for _ in range(10):
            assert (await way.ask("GET /stock/a", by="")).status == 200
        assert now() - began_s < 0.1
        counts = book(way).counts
        assert (book(way).in_flight, counts.dropped) == (2, 8)
        await settle(way)
        assert counts.failed == 2
        assert book(way).last_failure == "timed_out"
        await way.servers[PARTNER].close()
        for _ in range(20):
            assert (await way.ask("GET /stock/a", by="")).status == 200
            await settle(way)
        assert counts.failed == 22
        assert PARTNER not in way.caller.edges
        assert way.caller.edges[STORE].failures == 0
        assert way.engine.state.limiter.in_flight == 0

    through(main, gateway=with_mirror(Mirror(PARTNER, in_flight_max=2)))


@pytest.mark.parametrize("after_s", [0.0, 0.5])
def test_an_engine_that_is_closed_gives_its_copies_up(after_s: float) -> None:
    """Whether they were begun or not, and with their places."""

    async def main(way: Way) -> None:
        way.store.answer = telling({})
        way.partner.answer = answering(200, after_s=60.0)
        answer = await way.ask("GET /stock/a", by="")
        assert answer.status == 200
        if after_s:
            await asyncio.sleep(after_s)
            assert book(way).in_flight == 1
        while not (book(way).in_flight or after_s):
            await asyncio.sleep(0)
        began_s = now()
        await way.engine.close()
        await settle(way)
        assert now() - began_s < 1.0

    through(main, gateway=with_mirror(Mirror(PARTNER)))


def test_a_task_that_never_began_gives_its_place_back() -> None:
    """It is cancelled before its first step."""

    async def main(way: Way) -> None:
        way.store.answer = telling({})
        mirrors, taken = way.engine._mirrors, book(way)
        copies: list[Any] = []
        send = mirrors.send

        def kept(copy: Any, told: Any) -> None:
            send(copy, told)
            copies.append(copy)
            for task in mirrors._tasks:
                task.cancel()

        mirrors.send = kept  # type: ignore[method-assign]
        await way.ask("GET /stock/a", by="")
        while not copies:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert taken.in_flight == 0
        assert way.partner.seen == []

    through(main, gateway=with_mirror(Mirror(PARTNER)))


def test_an_engine_that_was_replaced_gives_its_places_back() -> None:
    """Its book goes on in the next one: of copies under way, and of those that end after it."""

    async def main(way: Way) -> None:
        way.store.answer = telling({})
        way.partner.answer = answering(200, after_s=600.0)
        await way.ask("GET /stock/a", by="")
        while not way.partner.seen:
            await asyncio.sleep(0.01)
        assert book(way).in_flight == 1
        await way.engine.retire()
        assert book(way).in_flight == 0
        assert (await way.ask("GET /stock/a", by="")).status == 200
        await settle(way)
        assert book(way).counts.dropped == 1
        assert len(way.partner.seen) == 1

    through(main, gateway=with_mirror(Mirror(PARTNER, in_flight_max=1)))


def test_a_copy_is_never_tried_again() -> None:
    """Each costs the mirror one request; its 5xx is an answer to compare."""

    async def main(way: Way) -> None:
        way.store.answer, way.partner.answer = telling({}), answering(500, b"no")
        await way.ask("GET /stock/a", by="")
        await settle(way)
        assert len(way.partner.seen) == 1
        assert book(way).kept[0].statuses == (200, 500)

    through(main, gateway=with_mirror(Mirror(PARTNER)))


@pytest.mark.parametrize(
    ("route", "body", "answered", "mirrored"),
    [
        ("PUT /stock/a", b"x" * 100_000, 10, 10),
        ("GET /stock/a", None, 300_000, 10),
        ("GET /stock/a", None, 10, 300_000),
    ],
)
def test_long_bodies_are_passed_on_and_not_compared(
    route: str, body: bytes | None, answered: int, mirrored: int
) -> None:
    """What is held for a comparison is bounded; the client gets everything."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200, lambda: body_of(bytes(answered)))
        way.partner.answer = answering(200, lambda: body_of(bytes(mirrored)))
        answer = await way.ask(route, body, by="")
        assert (answer.status, len(answer.body)) == (200, answered)
        await settle(way)
        counts = book(way).counts
        assert (counts.too_long, counts.same, counts.different) == (1, 0, 0)

    through(main, gateway=with_mirror(Mirror(PARTNER, writes=True)))


def test_without_a_whole_answer_there_is_no_copy() -> None:
    """A first upstream that is away, or breaks off, gives nothing to compare with."""

    async def main(way: Way) -> None:
        broken = open_body(b"abc")
        way.store.answer = answering(200, lambda: broken)
        async with way.asking("GET /stock/a", by=""):
            broken.fail(ConnectionLost("died"))
        await way.servers[STORE].close()
        assert (await way.ask("GET /stock/a", by="")).status == 503
        await settle(way)
        assert book(way).counts.unanswered == 2
        assert way.partner.seen == []
        assert book(way).in_flight == 0

    through(main, gateway=with_mirror(Mirror(PARTNER)))


def test_answers_without_bodies_are_compared_by_status() -> None:
    """HEAD and 204, on either way."""

    async def main(way: Way) -> None:
        for route, status in (("HEAD /stock/a", 200), ("DELETE /stock/a", 204)):
            way.store.answer = way.partner.answer = answering(status)
            assert (await way.ask(route, by="")).status == status
            await settle(way)
        assert book(way).counts.same == 2

    through(main, gateway=with_mirror(Mirror(PARTNER, writes=True)))


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
def test_a_share_of_the_requests_is_copied(headers: dict[str, str]) -> None:
    """One in four, whichever way a request takes."""

    async def main(way: Way) -> None:
        way.store.answer = way.partner.answer = telling({})
        for _ in range(200):
            await way.ask("GET /stock/a", by="", headers=headers)
        await settle(way)
        assert 30 <= len(way.partner.seen) <= 70
        assert len(way.store.seen) == 200

    through(main, gateway=with_mirror(Mirror(PARTNER, percent=25, in_flight_max=200)))


def test_each_is_told_who_asks_in_its_own_words() -> None:
    """A signed token is for one of them, a hop for services of the system alone."""

    async def main(way: Way) -> None:
        way.store.answer = way.partner.answer = telling({})
        forged = {"synchromesh-mirror": "?0", "synchromesh-principal": "a.b.c", "cookie": "a=b"}
        answer = await way.ask("GET /stock/a", headers=forged)
        assert answer.status == 200
        await settle(way)
        fields = {}
        for name, upstream in ((STORE, way.store), (PARTNER, way.partner)):
            headers = fields[name] = upstream.seen[0].request.headers
            (token,) = headers.get_all("synchromesh-principal")
            told = token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(told + "=" * (-len(told) % 4)))
            assert (claims["aud"], claims["sub"]) == (name, "shop")
            assert headers.get("cookie") == "a=b"
        assert fields[STORE].get("synchromesh-credential")
        assert fields[PARTNER].get("synchromesh-credential") is None
        assert fields[PARTNER].get_all("synchromesh-mirror") == ("?1",)
        assert fields[STORE].get("synchromesh-mirror") is None

    through(
        main,
        gateway=with_mirror(Mirror(PARTNER), public=False, principal=True, headers={"cookie"}),
    )


# -- split -------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k"}])
@pytest.mark.parametrize(("percent", "least", "most"), [(0, 0, 0), (5, 2, 22), (100, 200, 200)])
def test_a_share_of_the_requests_goes_to_the_other(
    percent: float, least: int, most: int, headers: dict[str, str]
) -> None:
    """At its own path; each has one answer, and one upstream that was asked."""

    async def main(way: Way) -> None:
        way.store.answer, way.partner.answer = answering(200), answering(202)
        statuses: Counter[int] = Counter()
        for _ in range(200):
            answer = await way.ask("GET /stock/a?x=1", by="", headers=headers)
            statuses[answer.status] += 1
        assert least <= statuses[202] <= most
        assert statuses[200] == len(way.store.seen) == 200 - len(way.partner.seen)
        assert {seen.request.target for seen in way.partner.seen} <= {"/v2/a?x=1"}

    through(main, gateway=with_split(Split(PARTNER, percent=percent, path="/v2/{path...}")))


@pytest.mark.parametrize(("path", "there"), [("", "/v1/a"), ("/v2/{path...}", "/v2/a")])
def test_the_other_upstream_has_it_where_the_first_one_has_it(path: str, there: str) -> None:
    """Unless it says where; so for a share of requests, and for copies."""

    async def split(way: Way) -> None:
        await way.ask("GET /stock/a", by="")
        assert [each.request.target for each in way.partner.seen] == [there]

    async def mirror(way: Way) -> None:
        await way.ask("GET /stock/a", by="")
        await settle(way)
        assert [each.request.target for each in way.store.seen] == ["/v1/a"]
        assert [each.request.target for each in way.partner.seen] == [there]

    first = {"path": "/v1/{path...}"}
    through(split, gateway=with_split(Split(PARTNER, percent=100, path=path), **first))
    through(mirror, gateway=with_mirror(Mirror(PARTNER, path=path), **first))


@pytest.mark.parametrize("public", [True, False])
def test_a_sticky_client_goes_to_the_same_one_each_time(public: bool) -> None:
    """By its principal or else its address; and with a larger share nobody comes back."""
    sides: list[dict[str, int]] = []

    def at(percent: float) -> None:
        async def main(way: Way) -> None:
            way.store.answer, way.partner.answer = answering(200), answering(202)
            found: dict[str, int] = {}
            for number in range(20):
                by = ("shop", "desk")[number % 2]
                status = (await way.ask("GET /stock/a", by=by)).status
                assert found.setdefault(by, status) == status
            sides.append(found)

        through(
            main, gateway=with_split(Split(PARTNER, percent=percent, sticky=True), public=public)
        )

    for percent in (10, 50, 90):
        at(percent)
    for by in ("shop", "desk"):
        assert [each[by] for each in sides] == sorted(each[by] for each in sides)


def test_what_fails_at_the_other_is_its_own() -> None:
    """A request that failed is tried again where it was sent, and its breaker is the other's."""

    async def main(way: Way) -> None:
        way.partner.answer = answering(500, b"theirs")
        answer = await way.ask("GET /stock/a", by="")
        assert (answer.status, answer.body) == (500, b"theirs")
        assert (len(way.partner.seen), way.store.seen) == (3, [])
        assert way.caller.edges[PARTNER].failures == 3
        url = way.servers[PARTNER].url
        way.partner.answer = answering(302, headers=(("location", f"{url}/v2/b"),))
        answer = await way.ask("GET /stock/a", by="")
        assert answer.headers.get("location") == "/stock/b"

    through(main, gateway=with_split(Split(PARTNER, percent=100, path="/v2/{path...}")))
