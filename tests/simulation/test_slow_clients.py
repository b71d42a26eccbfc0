"""Three hundred slow clients of each kind beside a hundred good ones, at a gateway (G7)."""

from __future__ import annotations

import asyncio

import pytest

from bodies import long_body
from forward_fakes import STORE, MiB, Raw, Way, answering, through
from gateway_fakes import now
from synchromesh.calls import Policies
from synchromesh.gateway import Forward, Gateway
from synchromesh.http import PoolLimits
from synchromesh.resilience import BreakerState, LimitOptions, Policy

SLOW, GOOD, ROUNDS = 300, 100, 3
# How long an upstream takes, so that there is something to be delayed.
ANSWER_S = 0.05
ROUTES = Gateway(
    routes=[
        Forward("GET /good", to=STORE, public=True),
        Forward("GET /long/{name}", to=STORE, public=True),
        Forward("PUT /up", to=STORE, public=True, body_max="64MiB"),
    ],
    in_flight_max=SLOW + 2 * GOOD,
)
POLICIES = Policies(default=Policy(limit=LimitOptions(SLOW + 2 * GOOD)))
HOST = b" HTTP/1.1\r\nhost: x\r\n"
# What a slow client sends first, and what it sends each second from then on.
KINDS = {
    "head": (b"GET /good HT", b""),
    "dripping head": (b"GET /good" + HOST, b"a: b\r\n"),
    "body": (b"PUT /up" + HOST + b"content-length: 9999\r\n\r\na", b"a"),
    "upload": (b"PUT /up" + HOST + b"content-length: 999999\r\n\r\n" + bytes(70_000), b"a" * 999),
    "silent": (b"", b""),
    "idle": (b"GET /good" + HOST + b"\r\n", b""),
    "reader": (b"GET /long/a" + HOST + b"\r\n", b""),
    "pipeline": ((b"GET /good" + HOST + b"\r\n") * 5, b""),
}


async def good(way: Way) -> list[float]:
    """Return how long each request of the good clients took."""

    async def ask() -> float:
        began_s = now()
        assert (await way.ask("GET /good", by="")).status == 200
        return now() - began_s

    took: list[float] = []
    for _ in range(ROUNDS):
        took += await asyncio.gather(*(ask() for _ in range(GOOD)))
        await asyncio.sleep(1.0)
    return sorted(took)


async def come(way: Way, sent: bytes, more: bytes) -> None:
    """Connect as one slow client, which reads nothing more once its answer has begun."""
    raw = await way.raw(sent)
    if sent.startswith(b"GET /long"):
        while not raw.came:
            await asyncio.sleep(0.01)
        raw.transport.pause_reading()
    while more and not raw.transport.is_closing():
        await asyncio.sleep(1.0)
        raw.transport.write(more)


def p99(took: list[float]) -> float:
    return took[int(len(took) * 0.99) - 1]


@pytest.mark.parametrize(("sent", "more"), KINDS.values(), ids=KINDS)
def test_good_clients_do_not_notice(sent: bytes, more: bytes) -> None:
    """Their p99 is at most twice what it is alone, all are answered, and no breaker counts."""

    async def main(way: Way) -> None:
        # All of them have one address, and so one share of the bodies under way.
        way.system.pool.limits = PoolLimits(connections_max=2 * SLOW)
        quick = answering(200, b"quick", after_s=ANSWER_S)
        endless = answering(200, lambda: long_body(8 * MiB))
        way.store.answer = lambda request: (endless if "long" in request.path else quick)(request)
        alone = await good(way)
        slow = [asyncio.ensure_future(come(way, sent, more)) for _ in range(SLOW)]
        beside = await good(way)
        assert len(beside) == GOOD * ROUNDS
        assert p99(beside) <= 2 * p99(alone)
        edge = way.caller.edges[STORE]
        assert (edge.state, edge.failures) == (BreakerState.CLOSED, 0)
        # Nobody of them keeps a stop waiting.
        began_s = now()
        await way.server.drain(8.0)
        assert now() - began_s <= 9.0
        for each in slow:
            each.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    through(main, gateway=ROUTES, policies=POLICIES)


def test_slow_clients_are_gone_in_their_time() -> None:
    """Who sends no head or body within 10 s, and who takes nothing, is cut; others stay."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200, lambda: long_body(8 * MiB))
        raws: list[Raw] = [await way.raw(KINDS[kind][0]) for kind in ("head", "body", "silent")]
        reader = await way.raw(KINDS["reader"][0])
        while not reader.came:
            await asyncio.sleep(0.01)
        reader.transport.pause_reading()
        await asyncio.sleep(15.0)
        assert [raw.has_ended.is_set() for raw in (*raws, reader)] == [True] * 4
        assert len(way.server._connections) == 0

    through(main, gateway=ROUTES, policies=POLICIES)
