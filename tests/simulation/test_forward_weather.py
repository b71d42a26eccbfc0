"""Requests that are passed on, in bad weather: half a body is never taken for a whole one."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bodies import everything, open_body
from calls_fakes import System
from forward_fakes import GATEWAY, STORE, Announced, Way
from synchromesh.errors import CallError
from synchromesh.http import Body, HttpRequest, HttpResponse
from synchromesh.testing import NetworkFaults, SimRuntime, run

pytestmark = pytest.mark.usefixtures("http_way")

EXCHANGES = 50


def content(number: int, size: int) -> bytes:
    """Return bytes that tell of which body they are, and where they stand in it."""
    return b"".join(b"%04d:%08d;" % (number, at) for at in range(0, size, 14))[:size]


def dribbling(whole: bytes, rng: random.Random, *, breaks: bool) -> Body:
    """Return a body that comes in parts, over some time, and may never come to its end."""
    body = open_body(length=rng.choice((None, len(whole))))
    loop = asyncio.get_running_loop()
    at, when_s = 0, 0.0
    end = int(len(whole) * rng.random()) if breaks else len(whole)
    while at < end:
        size = rng.randrange(1, 30_000)
        loop.call_later(when_s, body.feed, whole[at : min(at + size, end)])
        at, when_s = at + size, when_s + rng.random() * 0.2
    if breaks:
        loop.call_later(when_s, body.fail, CallError("it broke"))
    else:
        loop.call_later(when_s, body.end)
    return body


class Weather:
    """Clients, a gateway and an upstream that all may fail at any time, and what they saw."""

    def __init__(self, way: Way, rng: random.Random) -> None:
        self.way, self.rng = way, rng
        self.happened: Counter[str] = Counter()
        self.sizes = {n: rng.randrange(0, 150_000) for n in range(EXCHANGES)}
        way.store.answer = self.answer

    @asynccontextmanager
    async def answer(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        number = int(request.path.rpartition("/")[2])
        if self.rng.random() < 0.1:
            raise ValueError("a bug of the upstream")
        breaks = self.rng.random() < 0.15
        self.happened["upstream broke"] += breaks
        told = content(number, self.sizes[number])
        stream = dribbling(told, self.rng, breaks=breaks)
        known = () if stream.length is None else (("content-length", str(stream.length)),)
        yield HttpResponse(200, known, stream=stream)

    async def client(self, number: int) -> None:
        """Upload and download, and judge what comes of it."""
        rng, sent = self.rng, content(number, self.sizes[number])
        await asyncio.sleep(rng.random() * 30.0)
        kind = rng.choice(("up", "up", "down", "leaves", "breaks"))
        body = dribbling(sent, rng, breaks=kind == "breaks") if kind in ("up", "breaks") else None
        route = f"{'GET' if body is None else 'PUT'} /firmware/{number}"
        try:
            async with self.way.asking(route, body) as answer:
                if kind == "leaves" and answer.stream is not None:
                    await answer.stream.read()
                    self.happened["client left"] += 1
                    return
                told = await everything(answer.stream)
        except CallError:
            self.happened[f"{kind}: cut"] += 1
            return
        self.happened[f"{kind}: {answer.status}"] += 1
        if answer.status == 200:
            assert told == content(number, self.sizes[number])

    async def storms(self) -> None:
        """Restart the upstream now and then, under another port."""
        server = self.way.servers[STORE]
        for _ in range(3):
            await asyncio.sleep(self.rng.random() * 10.0)
            known = self.way.system.known
            known.endpoints[STORE] = []
            await server.close()
            self.happened["upstream restarted"] += 1
            await asyncio.sleep(self.rng.random() * 2.0)
            server = await self.way.serve(STORE, self.way.store)
            assert isinstance(known, Announced)
            known.announce()


@pytest.mark.parametrize("seed", range(4))
def test_half_a_body_is_never_whole(seed: int) -> None:
    """Whoever breaks, leaves or restarts: what is seen whole is whole, and nothing is left over."""

    async def main(runtime: SimRuntime) -> None:
        system = System("http", runtime)
        system.known = Announced()
        way = Way(system, GATEWAY, None)
        await way.start()
        weather = Weather(way, random.Random(seed))
        await asyncio.gather(weather.storms(), *map(weather.client, range(EXCHANGES)))
        await asyncio.sleep(30.0)
        for seen in way.store.seen:
            if seen.is_whole and seen.request.method == "PUT":
                number = int(seen.request.path.rpartition("/")[2])
                assert seen.body == content(number, weather.sizes[number])
        assert repr(way.engine) == "<GatewayEngine 0 in flight>"
        assert weather.happened["upstream restarted"] == 3
        for rare in ("upstream broke", "client left", "breaks: cut", "up: 200", "down: 200"):
            assert weather.happened[rare], (rare, weather.happened)
        await system.close()

    run(main, seed=seed, faults=NetworkFaults(loss=0.03, latency_max_s=0.05))
