"""The places of an endpoint of the pool, whatever happens: none is lost or given twice."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_fakes import FakeNetwork, FakeTransport
from synchromesh.errors import RateLimited, Shed
from synchromesh.http import HttpPool, PoolLimits
from synchromesh.http.client import ClientExchange, ExchangeState
from synchromesh.testing import run

OPERATIONS = (
    "whole", "parts", "parts", "upload", "answer", "begin", "begin", "more", "more", "end", "close",
    "cancel", "connect", "connect", "refuse", "time",
)  # fmt: skip


class Kept(ClientExchange):
    """Keeps how often and by what it ended."""

    def __init__(self, kind: str, client: str, due_s: float) -> None:
        super().__init__(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", due_s=due_s)
        self.client = client
        self.takes_parts = kind != "whole"
        self.is_streaming = kind == "upload"
        self.may_reuse = kind != "upload"
        self.ends: list[object] = []

    def on_answer(self, status: int, pairs: object, body: bytes) -> None:
        self.ends.append(status)

    def on_begin(self, status: int, pairs: object, length: int | None) -> None:
        self.expect_within(5.0)

    def on_end(self) -> None:
        self.ends.append("end")

    def on_error(self, error: Exception) -> None:
        self.ends.append(error)


class Checker:
    """Runs one history on one endpoint."""

    def __init__(self, seed: int, places: int) -> None:
        self.limits = PoolLimits(connections_max=places, waiting_max=4, idle_s=3.0, connect_s=1.0)
        self.rng = random.Random(seed)
        self.network = FakeNetwork()
        self.network.connecting = self._connecting
        self.pool = HttpPool(network=self.network, limits=self.limits)
        self.connects: list[asyncio.Future[None]] = []
        self.exchanges: list[Kept] = []
        self.answered: dict[FakeTransport, int] = {}
        self.begun: set[FakeTransport] = set()
        self.cancelled: set[Kept] = set()

    def _connecting(self) -> asyncio.Future[None]:
        self.connects.append(asyncio.get_running_loop().create_future())
        return self.connects[-1]

    async def step(self, operation: str) -> None:  # noqa: C901 - a line for each operation
        now = asyncio.get_running_loop().time()
        open_ = [each for each in self.network.made if not each.is_closing()]
        asked = [
            each
            for each in open_
            if each not in self.begun and each.sent.count(b"GET") > self.answered.get(each, 0)
        ]
        begun = [each for each in open_ if each in self.begun and not each.is_paused]
        if operation in ("whole", "parts", "upload"):
            exchange = Kept(operation, self.rng.choice("ab"), now + self.rng.choice((0.5, 9.0)))
            self.exchanges.append(exchange)
            self.pool.send("a", 80, exchange)
        elif operation == "answer" and asked:
            self._answer(self.rng.choice(asked), b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
        elif operation == "begin" and asked:
            transport = self.rng.choice(asked)
            self.begun.add(transport)
            transport.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nx")
        elif operation == "more" and begun:
            self._answer(self.rng.choice(begun), b"yz")
        elif operation == "end" and open_:
            self.rng.choice(open_).hang_up()
        elif operation == "close" and open_:
            self.rng.choice(open_).abort()
        elif operation == "cancel" and self.exchanges:
            exchange = self.rng.choice(self.exchanges)
            if not exchange.ends:
                self.cancelled.add(exchange)
            exchange.cancel()
        elif operation in ("connect", "refuse"):
            pending = [each for each in self.connects if not each.done()]
            if pending and operation == "connect":
                self.rng.choice(pending).set_result(None)
            elif pending:
                self.rng.choice(pending).set_exception(ConnectionRefusedError())
        elif operation == "time":
            await asyncio.sleep(self.rng.choice((0.3, 2.0, 6.0)))
        self.check()
        if self.rng.random() < 0.8:
            await asyncio.sleep(1e-6)  # else the next thing happens in the same turn of the loop
            self.check()

    def _answer(self, transport: FakeTransport, data: bytes) -> None:
        self.begun.discard(transport)
        self.answered[transport] = self.answered.get(transport, 0) + 1
        transport.feed(data)

    def check(self) -> None:
        for endpoint in self.pool._endpoints.values():
            assert 0 <= endpoint.used <= self.limits.connections_max
            assert len(endpoint.idle) <= endpoint.used
            assert len(endpoint.streams) <= self.limits.streams_max
            assert sum(endpoint.shares.values()) == len(endpoint.streams)
            assert all(endpoint.shares.values())
            assert not endpoint.waiting or endpoint.used == self.limits.connections_max
            held = [e for e in endpoint.streams if e.state is not ExchangeState.DONE]
            assert all(each.is_streaming for each in held)
        for exchange in self.exchanges:
            assert len(exchange.ends) <= 1
        for endpoint in self.pool._endpoints.values():
            # One more than its share where two were sent before either was answered.
            most = self.limits.share_max + self.limits.connections_max - 1
            assert max(endpoint.shares.values(), default=0) <= most

    async def finish(self) -> None:
        """Let all end: then nothing is held, and everybody has heard."""
        await asyncio.sleep(60.0)
        assert not self.pool._endpoints
        assert not self.pool.connections
        for exchange in self.exchanges:
            assert exchange.state is ExchangeState.DONE
            assert len(exchange.ends) == (exchange not in self.cancelled)
        await self.pool.close()


@given(
    st.integers(0, 2**32),
    st.integers(1, 2),
    st.lists(st.sampled_from(OPERATIONS), min_size=10, max_size=60),
)
def test_no_place_is_lost_or_given_twice(seed: int, places: int, operations: list[str]) -> None:
    """Whoever is cancelled, refused, cut or late, in any order: all is given back in the end."""

    async def main(_: Any) -> None:
        checker = Checker(seed, places)
        for operation in operations:
            await checker.step(operation)
        await checker.finish()

    run(main)


@pytest.mark.parametrize(("clients", "refusal"), [("a", RateLimited), ("abcdefgh", Shed)])
def test_the_streams_of_one_and_of_all_are_bounded(clients: str, refusal: type[Exception]) -> None:
    """One client has a quarter, all have no more than there are; whole exchanges go on."""

    async def main(_: Any) -> None:
        checker = Checker(0, 3)
        checker.network.connecting = None
        for number in range(40):
            exchange = Kept("upload", clients[number % len(clients)], 99.0)
            checker.exchanges.append(exchange)
            checker.pool.send("a", 80, exchange)
            checker.check()
        await asyncio.sleep(0.1)
        (endpoint,) = checker.pool._endpoints.values()
        refused = [each for each in checker.exchanges if each.ends]
        assert {type(each.ends[0]) for each in refused} == {refusal}
        assert len(endpoint.streams) == 40 - len(refused)
        assert len(endpoint.streams) == (3 if len(clients) == 1 else checker.limits.streams_max - 3)
        whole = Kept("whole", "a", 99.0)
        checker.pool.send("a", 80, whole)
        await asyncio.sleep(0.1)
        checker.network.made[-1].feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
        assert whole.ends == [200]
        await checker.pool.close()

    run(main)


def test_who_has_waited_for_a_place_is_asked_again_what_his_share_is() -> None:
    """What became a stream meanwhile counts, and the place goes to the next one."""

    async def main(_: Any) -> None:
        checker = Checker(0, 1)
        checker.network.connecting = None
        sent = [Kept("parts", client, 99.0) for client in "aab"]
        for exchange in sent:
            checker.pool.send("a", 80, exchange)
        await asyncio.sleep(0.1)
        checker.network.made[0].feed(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nx")
        await asyncio.sleep(0.1)
        assert [type(each) for each in sent[1].ends] == [RateLimited]
        checker.network.made[1].feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")
        assert sent[2].ends == [200]
        await checker.pool.close()

    run(main)
