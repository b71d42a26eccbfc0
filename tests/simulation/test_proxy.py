"""Claims about the proxy before each service of a universe: what TCP alone never does."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Protocol

from universes.proxy import Proxy

from synchromesh.calls import Contract, HttpEdge, Reply, Request, command
from synchromesh.calls.contract import operations_of
from synchromesh.errors import TimedOut
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import Credential
from synchromesh.testing import CALM, NetworkFaults, SimRuntime, Wire, World

GIVES_UP_S = 0.5


class Billing(Contract, Protocol, service="billing", version="1.0"):
    """What is called here."""

    @command("POST /charges")
    async def charge(self, cents: int) -> int: ...


class Counting:
    """Answers 1, 2, 3, ..., and notes when each request came."""

    def __init__(self) -> None:
        self.came_s: list[float] = []

    def authenticate(self, _: str) -> Credential:
        return Credential("orders", "", "billing", 0)

    async def dispatch(self, _: Request) -> Reply:
        self.came_s.append(asyncio.get_running_loop().time())
        return Reply(200, b"%d" % len(self.came_s))


class Pair:
    """A node that calls, and one that answers behind a proxy with weather of its own."""

    def __init__(self, faults: NetworkFaults, *, seed: int = 1) -> None:
        self.world = World(seed)
        self.receiver = Counting()
        self.answer = b""
        self.gave_up_s: float | None = None
        self._wire = Wire(random.Random(seed), faults)
        self.world.node("billing", self._serve).start()
        self.world.node("orders", self._call).start()
        self.world.run(asyncio.sleep(12.0))

    async def _serve(self, runtime: SimRuntime) -> None:
        edge = HttpEdge(runtime=runtime)
        edge.mount(self.receiver, operations_of(Billing).values())
        await HttpServer(Proxy(edge, self._wire), network=runtime.network).start(port=8001)
        await asyncio.Event().wait()

    async def _call(self, runtime: SimRuntime) -> None:
        await asyncio.sleep(0.1)
        async with HttpPool(network=runtime.network) as pool:
            sending = pool.request(
                "127.0.0.1", 8001, "POST", "/charges", body=b'{"cents":1}', timeout_s=GIVES_UP_S
            )
            try:
                self.answer = (await sending).body
            except TimedOut:
                self.gave_up_s = asyncio.get_running_loop().time()


def test_calm_weather_passes_a_request_on_once() -> None:
    """Without faults a request arrives once and is answered."""
    pair = Pair(CALM)
    assert (pair.answer, len(pair.receiver.came_s)) == (b"1", 1)


def test_a_request_may_come_twice_and_is_answered_once() -> None:
    """A repeated request runs twice; the caller gets the first answer."""
    pair = Pair(replace(CALM, duplication=1.0))
    assert (pair.answer, len(pair.receiver.came_s)) == (b"1", 2)


def test_a_lost_request_runs_never() -> None:
    """A lost request never runs, and nothing says so to its caller."""
    pair = Pair(replace(CALM, loss=1.0))
    assert pair.gave_up_s is not None
    assert pair.receiver.came_s == []


def test_a_late_request_runs_though_its_caller_has_given_up() -> None:
    """A request that was held back is delivered, whether somebody still waits for it or not."""
    pair = Pair(replace(CALM, tail=1.0, tail_s=8.0), seed=3)
    assert pair.gave_up_s is not None
    assert [came_s > pair.gave_up_s for came_s in pair.receiver.came_s] == [True]
