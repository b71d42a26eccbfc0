"""What a gateway promises of an upstream that is there several times: who is asked or not."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from forward_fakes import PARTNER, Upstream, Way, answering, through
from synchromesh.calls import HttpTransport
from synchromesh.discovery import Endpoint, HealthOptions, UpstreamHealth
from synchromesh.gateway import Forward, Gateway
from synchromesh.system.host.checks import HealthChecks

pytestmark = pytest.mark.usefixtures("http_way")

GATEWAY = Gateway(
    routes=[
        Forward("GET /parts/{id}", to=PARTNER, public=True),
        Forward("POST /parts", to=PARTNER, public=True),
    ]
)


class Twins:
    """Two upstreams of one name, and the checks that list them."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.first, self.second = way.partner, Upstream()
        for each in (self.first, self.second):
            each.answer = answering(200)

    async def start(self, **options: float) -> None:
        way, known = self.way, self.way.system.known.endpoints
        await way.serve(PARTNER, self.second, instance="partner-2")
        urls = [f"{each.url}/v1" for each in known[PARTNER]]
        endpoints = [Endpoint(f"partner#{n}", PARTNER, url) for n, url in enumerate(urls, 1)]
        known[PARTNER] = endpoints
        network = way.system.runtime.network
        transport = HttpTransport(way.pool, runtime=way.system.runtime)
        assert network is way.pool.network
        self.health = UpstreamHealth(endpoints, HealthOptions(**options))  # type: ignore[arg-type]
        self.listings: list[str] = []

        def listed(up: object) -> None:
            known[PARTNER] = list(self.health.listed)
            self.listings.append(",".join(each.instance for each in self.health.listed))

        self.checks = HealthChecks(PARTNER, self.health, "/up", {"http": transport}, listed)
        self.task = asyncio.create_task(self.checks.run())
        way.system.stack.callback(self.task.cancel)

    def asked(self) -> Counter[str]:
        """Return how many requests each of the two was asked, without checks, and forget them."""
        counts: Counter[str] = Counter()
        for name, each in (("first", self.first), ("second", self.second)):
            counts[name] = sum(seen.request.path != "/v1/up" for seen in each.seen)
            each.seen.clear()
        return counts

    async def ask(self, count: int, route: str = "GET /parts/1") -> Counter[int]:
        """Ask the gateway so often, and return the statuses."""
        return Counter([(await self.way.ask(route, by="")).status for _ in range(count)])


def test_one_that_is_down_is_skipped_within_its_interval_and_comes_back() -> None:
    """It answers no requests meanwhile, and none of the clients' is answered 5xx."""

    async def main(way: Way) -> None:
        twins = Twins(way)
        await twins.start(every_s=1.0, timeout_s=0.5, down_after=1, up_after=2)
        await asyncio.sleep(0.1)
        assert await twins.ask(40) == {200: 40}
        twins.second.answer = answering(503)
        assert await twins.ask(40) == {200: 40}  # a GET is asked again at the other
        await asyncio.sleep(1.1)
        assert twins.health.down == {"partner#2": "it answered 503"}
        twins.asked()
        assert await twins.ask(40) == {200: 40}
        assert twins.asked() == {"first": 40, "second": 0}
        twins.second.answer = answering(204)
        await asyncio.sleep(1.0)
        assert twins.health.down
        await asyncio.sleep(1.1)
        assert twins.listings == ["partner#1", "partner#1,partner#2"]
        statuses = await twins.ask(60)
        assert set(statuses) == {200, 204}
        assert 0 < statuses[204] < 30  # it warms up

    through(main, gateway=GATEWAY)


def test_one_that_does_not_answer_in_time_is_down() -> None:
    """And one that refuses connections: the reason is kept for people."""

    async def main(way: Way) -> None:
        twins = Twins(way)
        twins.second.answer = answering(200, after_s=3.0)
        await twins.start(every_s=1.0, timeout_s=0.5)
        await asyncio.sleep(0.6)
        assert "partner#2" in twins.health.down
        assert "did not answer" in twins.health.down["partner#2"]
        twins.second.answer = answering(200)
        await way.servers[PARTNER].close()
        await asyncio.sleep(2.5)
        assert list(twins.health.down) == ["partner#1"]
        assert await twins.ask(20, "POST /parts") == {200: 20}

    through(main, gateway=GATEWAY)


def test_where_none_is_up_all_are_asked_and_a_wrong_check_takes_nothing_away() -> None:
    """Each request is answered, though every check fails; where nobody answers it is one 503."""

    @asynccontextmanager
    async def no_checks(request: object) -> AsyncIterator[object]:
        status = 404 if getattr(request, "path", "") == "/v1/up" else 200
        async with answering(status)(request) as answer:  # type: ignore[arg-type]
            yield answer

    async def main(way: Way) -> None:
        twins = Twins(way)
        twins.first.answer = twins.second.answer = no_checks  # type: ignore[assignment]
        await twins.start(every_s=1.0, down_after=1)
        await asyncio.sleep(0.1)
        assert len(twins.health.down) == 2
        assert await twins.ask(40) == {200: 40}
        both = twins.asked()
        assert both["first"] > 0
        assert both["second"] > 0
        twins.task.cancel()
        for server in way.servers.values():
            await server.close()
        answer = await way.ask("GET /parts/1", by="")
        assert answer.status == 503
        assert b"takes no requests at the moment" in answer.body

    through(main, gateway=GATEWAY)


def test_weights_share_the_requests() -> None:
    """Nine in ten, on either way."""

    async def main(way: Way) -> None:
        twins = Twins(way)
        await twins.start()
        twins.task.cancel()
        known = way.system.known.endpoints
        urls = [each.url for each in known[PARTNER]]
        known[PARTNER] = [
            Endpoint(f"partner#{n}", PARTNER, url, weight=weight)
            for n, (url, weight) in enumerate(zip(urls, (9, 1), strict=True), 1)
        ]
        twins.asked()
        assert await twins.ask(300) == {200: 300}
        assert 15 <= twins.asked()["second"] <= 50

    through(main, gateway=GATEWAY)
