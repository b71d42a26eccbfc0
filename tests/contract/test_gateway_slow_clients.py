"""Clients that send or read slowly: others go on, and their time is not the upstream's."""

from __future__ import annotations

import asyncio
import json

import pytest

from bodies import long_body
from forward_fakes import GATEWAY, STORE, MiB, Raw, Way, answering, through
from gateway_fakes import now
from synchromesh.calls import Policies
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Forward, Gateway
from synchromesh.http import PoolLimits
from synchromesh.resilience import BreakerOptions, BreakerState, LimitOptions, Policy

pytestmark = pytest.mark.usefixtures("http_way")

SLOW = 64
# Fewer places than there are slow clients, of every kind that there is.
PLACES = 4
NARROW = Gateway(auth=GATEWAY.auth, routes=GATEWAY.routes, in_flight_max=PLACES)
POLICIES = Policies(
    default=Policy(
        limit=LimitOptions(PLACES),
        breaker=BreakerOptions(minimum_calls=1, slow_after_s=1.0),
        retry=None,
    )
)
OF_SOMEBODY = Gateway(
    auth=GATEWAY.auth,
    routes=[
        Forward("GET /of-somebody", to=STORE),
        Forward("PUT /of-somebody", to=STORE, body_max="64MiB"),
        Forward("GET /firmware/{name}", to=STORE, public=True),
    ],
)
PUT = b"PUT /firmware/a HTTP/1.1\r\nhost: x\r\nauthorization: shop\r\n"
GET = b"GET /firmware/a HTTP/1.1\r\nhost: x\r\n"


async def slow_readers(way: Way, count: int, *, head: bytes = GET) -> list[Raw]:
    """Ask for long answers, a few at a time, and read hardly any of them."""
    way.store.answer = answering(200, lambda: long_body(8 * MiB))
    readers = []
    for _ in range(count):
        raw = await way.raw(head + b"\r\n")
        while not raw.came:
            await asyncio.sleep(0.01)
        raw.transport.pause_reading()
        readers.append(raw)
    way.store.answer = answering(200, b"quick")
    return readers


async def others_go_on(way: Way) -> None:
    """Check that those who are quick get their answers at once, and that nothing was counted."""
    way.store.answer = answering(200, b"quick")
    for _ in range(5):
        began_s = now()
        assert (await way.ask("GET /firmware/b")).body == b"quick"
        assert (await way.ask("PUT /firmware/b", b"abc")).status == 200
        assert now() - began_s < 1.0
        await asyncio.sleep(0.2)
    edge = way.caller.edges[STORE]
    assert (edge.state, edge.failures, edge.slow) == (BreakerState.CLOSED, 0, 0)
    assert way.caller.edge(STORE).limiter.in_flight == 0  # type: ignore[union-attr]
    assert way.engine._limiter.in_flight == 0


def endpoint_of(way: Way) -> str:
    """Return what the pool says of the connections to the store, without its address."""
    (endpoint,) = way.system.pool._endpoints.values()
    return repr(endpoint).partition(": ")[2]


def test_slow_readers_hold_no_place_of_others() -> None:
    """Limits of gateway, edge and pool are free again once an answer has begun."""

    async def main(way: Way) -> None:
        way.system.pool.limits = PoolLimits(connections_max=SLOW)
        readers = await slow_readers(way, SLOW - 1)
        assert endpoint_of(way) == f"0 used, {SLOW - 1} streams, 0 waiting>"
        await others_go_on(way)
        for raw in readers:
            raw.transport.abort()
        await asyncio.sleep(1.0)
        assert way.store.ends.count("CancelledError") == SLOW - 1
        assert "streams" not in endpoint_of(way)

    through(main, gateway=NARROW, policies=POLICIES)


def test_slow_senders_hold_nothing_until_there_is_something_to_send() -> None:
    """A body that dribbles is read ahead: its upstream hears of it once it is whole."""

    async def main(way: Way) -> None:
        way.system.pool.limits = PoolLimits(connections_max=PLACES)
        senders = [await way.raw(PUT + b"content-length: 10000\r\n\r\na") for _ in range(SLOW)]
        for _ in range(2):
            await asyncio.sleep(2.0)
            for raw in senders:
                raw.transport.write(b"a" * 4096)
            await others_go_on(way)
        dribbled = [seen for seen in way.store.seen if seen.request.path == "/images/a"]
        assert dribbled == []
        for raw in senders[:PLACES]:
            raw.transport.write(b"a" * 1807)
        await asyncio.sleep(1.0)
        assert [raw.status for raw in senders[:PLACES]] == [200] * PLACES
        dribbled = [seen for seen in way.store.seen if seen.request.path == "/images/a"]
        assert [seen.body for seen in dribbled] == [b"a" * 10000] * PLACES

    through(main, gateway=NARROW, policies=POLICIES)


def test_slow_uploads_hold_no_place_of_others() -> None:
    """What is longer than is read ahead goes to its upstream as it comes, in a place of its own."""

    async def main(way: Way) -> None:
        way.system.pool.limits = PoolLimits(connections_max=SLOW)
        senders = [await way.raw(PUT + b"content-length: 80000\r\n\r\n") for _ in range(SLOW - 1)]
        for raw in senders:
            raw.transport.write(b"a" * 70_000)
        await asyncio.sleep(1.0)
        assert endpoint_of(way) == f"0 used, {SLOW - 1} streams, 0 waiting>"
        await others_go_on(way)
        for raw in senders:
            raw.transport.write(b"a" * 10_000)
        await asyncio.sleep(1.0)
        assert [raw.status for raw in senders] == [200] * (SLOW - 1)
        assert "streams" not in endpoint_of(way)
        await others_go_on(way)

    through(main, gateway=NARROW, policies=POLICIES)


@pytest.mark.parametrize(("size", "failures"), [(70_000, 0), (80_000, 3)])
def test_an_upstream_that_cuts_a_slow_upload_is_not_to_blame(size: int, failures: int) -> None:
    """Some close such a connection early; where all was sent it is the upstream's failure."""
    breaker = BreakerOptions(minimum_calls=10)

    async def main(way: Way) -> None:
        upstreams: list[Raw] = []

        def accept() -> Raw:
            upstreams.append(Raw())
            return upstreams[-1]

        listener = await way.system.runtime.network.listen(accept, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.port}"
        way.system.known.endpoints[STORE] = [Endpoint("store-1", STORE, url)]
        for number in range(3):
            raw = await way.raw(PUT + b"content-length: 80000\r\n\r\n" + bytes(size))
            await asyncio.sleep(1.0)
            assert upstreams[number].came.endswith(bytes(size))
            upstreams[number].transport.abort()
            await asyncio.sleep(0.1)
            assert raw.status == 502
        assert way.caller.edges[STORE].failures == failures

    through(main, policies=Policies(default=Policy(breaker=breaker)))


def test_what_is_read_ahead_is_bounded() -> None:
    """A long body waits at its client while its upstream cannot be reached."""

    async def main(way: Way) -> None:
        taken = [0]
        way.system.known.endpoints[STORE].clear()
        asking = asyncio.ensure_future(way.ask("PUT /firmware/a", long_body(64 * MiB, taken)))
        await asyncio.sleep(1.0)
        assert 64 * 1024 <= taken[0] <= MiB
        assert (await asking).status == 503

    through(main)


def test_one_client_has_a_share_of_what_is_under_way() -> None:
    """Past it that client is 429 and told when to come again; others, and quick calls, go on."""

    async def main(way: Way) -> None:
        way.system.pool.limits = PoolLimits(connections_max=2)
        shop = b"GET /of-somebody HTTP/1.1\r\nhost: x\r\nauthorization: shop\r\n"
        await slow_readers(way, 2, head=shop)
        refused = await way.ask("GET /of-somebody")
        assert refused.status == 429
        assert json.loads(refused.body)["code"] == "rate_limited"
        assert refused.headers.get("retry-after") == "1"
        body = long_body(MiB)
        assert (await way.ask("PUT /of-somebody", body)).status == 429
        assert (await way.ask("GET /of-somebody", by="visitor")).status == 200
        # By its address, where nobody says who he is; that is another client.
        readers = await slow_readers(way, 2)
        assert (await way.ask("GET /firmware/a")).status == 429
        readers[0].transport.abort()
        await asyncio.sleep(0.1)
        assert (await way.ask("GET /firmware/a")).status == 200
        edge = way.caller.edges[STORE]
        assert (edge.state, edge.failures) == (BreakerState.CLOSED, 0)

    through(main, gateway=OF_SOMEBODY, policies=Policies(default=Policy()))


def test_no_more_than_a_bound_is_under_way() -> None:
    """With many clients past it, what is passed on is 503 and neutral; calls go on."""

    async def main(way: Way) -> None:
        way.system.pool.limits = PoolLimits(connections_max=2)
        for name in (b"a", b"b", b"c"):
            head = b"GET /of-somebody HTTP/1.1\r\nhost: x\r\nauthorization: " + name + b"\r\n"
            await slow_readers(way, 2, head=head)
        before = way.caller.edge(STORE).limiter.in_flight_max  # type: ignore[union-attr]
        for _ in range(100):
            refused = await way.ask("GET /of-somebody", by="d")
            assert refused.status == 503
            assert json.loads(refused.body)["code"] == "shed"
            assert refused.headers.get("retry-after") == "1"
        store = way.servers[STORE]
        whole = await way.system.pool.request(store.host, store.port, "GET", "/", timeout_s=1.0)
        assert whole.status == 200
        edge = way.caller.edges[STORE]
        assert (edge.state, edge.failures) == (BreakerState.CLOSED, 0)
        assert way.caller.edge(STORE).limiter.in_flight_max == before  # type: ignore[union-attr]

    through(main, gateway=OF_SOMEBODY, policies=Policies(default=Policy()))
