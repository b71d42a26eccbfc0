"""What a gateway promises of WebSockets: none without a proper yes, both ways held, all bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from forward_fakes import STORE, MiB, Raw, Way, answering, through
from synchromesh.calls import Policies
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Forward, Gateway
from synchromesh.http.switching import accept_of
from synchromesh.resilience import Policy

pytestmark = pytest.mark.usefixtures("http_way")

SOCKETS = "sockets"
GATEWAY = Gateway(
    routes=(
        Forward("ANY /{path...}", to=SOCKETS, websocket=True, quiet="30s", public=True),
        Forward("GET /plain", to=STORE, public=True),
    ),
    tunnels_max=4,
)
ONCE = Policies(default=Policy(retry=None))
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ASKED = (
    "GET /live?room=7 HTTP/1.1\r\nHost: shop\r\nConnection: keep-alive, Upgrade\r\n"
    f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    "Sec-WebSocket-Protocol: chat, more\r\nOrigin: https://shop\r\nCookie: a=b\r\n\r\n"
).encode()
YES = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n"
    f"Sec-WebSocket-Accept: {accept_of(KEY)}\r\n"
).encode()


class Server(Raw):
    """Somebody's server of WebSockets: says one thing, keeps what comes, and reads while it may."""

    def eof_received(self) -> bool:
        self.has_eof = True
        return self.keeps_open

    keeps_open = False


def with_server(
    main: Callable[[Way, list[Server]], Any],
    told: bytes = YES + b"\r\n",
    *,
    keeps_open: bool = False,
    policies: Policies = ONCE,
) -> None:
    """Run a test with a server that answers each request by some bytes."""

    async def started(way: Way) -> None:
        servers: list[Server] = []

        def accept() -> Server:
            servers.append(Server(told))
            servers[-1].keeps_open = keeps_open
            return servers[-1]

        listener = await way.system.runtime.network.listen(accept, "127.0.0.1", 0)
        endpoint = Endpoint("sockets-1", SOCKETS, f"http://127.0.0.1:{listener.port}")
        way.system.known.endpoints[SOCKETS] = [endpoint]
        await main(way, servers)
        listener.close()

    through(started, gateway=GATEWAY, policies=policies)


async def until(holds: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.05)


async def opened(way: Way) -> Raw:
    """Ask for a WebSocket, and return once both have switched."""
    raw = await way.raw(ASKED)
    await until(lambda: b"\r\n\r\n" in raw.came)
    assert raw.status == 101, bytes(raw.came)
    return raw


def test_bytes_pass_both_ways_once_both_have_switched() -> None:
    """The server is asked as the client asks, and nothing of what follows is changed."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        head, _, rest = bytes(raw.came).partition(b"\r\n\r\n")
        assert rest == b"\x00first"
        lines = head.lower().split(b"\r\n")
        assert b"upgrade: websocket" in lines
        assert b"connection: upgrade" in lines
        assert f"sec-websocket-accept: {accept_of(KEY)}".lower().encode() in lines
        assert b"sec-websocket-protocol: chat" in lines
        asked = bytes(servers[0].came)
        assert asked.startswith(b"GET /live?room=7 HTTP/1.1\r\n")
        fields = {line.partition(b": ")[0] for line in asked.lower().split(b"\r\n")[1:]}
        assert {b"origin", b"sec-websocket-key", b"sec-websocket-protocol"} <= fields
        assert {b"traceparent", b"synchromesh-credential", b"x-forwarded-for"} <= fields
        assert b"cookie" not in fields
        servers[0].came.clear()
        raw.came.clear()
        for number in range(3):
            raw.transport.write(b"GET / HTTP/1.1\r\n\r\n%d" % number)
            servers[0].transport.write(b"\xff\x00%d" % number)
        await until(lambda: len(raw.came) == 9 and len(servers[0].came) == 57)
        assert bytes(raw.came) == b"\xff\x000\xff\x001\xff\x002"
        raw.transport.close()
        await until(servers[0].has_ended.is_set)

    with_server(main, YES + b"sec-websocket-protocol: chat\r\n\r\n\x00first")


BAD_ANSWERS = (
    YES.replace(accept_of(KEY).encode(), accept_of("x").encode()) + b"\r\n",
    YES.replace(b"Sec-WebSocket-Accept", b"X-Accept") + b"\r\n",
    YES + b"Sec-WebSocket-Accept: a\r\n\r\n",
    YES.replace(b"Upgrade: WebSocket", b"Upgrade: h2c") + b"\r\n",
    YES.replace(b"Upgrade: WebSocket", b"Upgrade: websocket, h2c") + b"\r\n",
    YES.replace(b"Connection: upgrade", b"Connection: close") + b"\r\n",
    YES.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
    YES + b"Content-Length: 5\r\n\r\nhello",
    YES + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    YES + b"Sec-WebSocket-Protocol: other\r\n\r\n",
    YES + b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: more\r\n\r\n",
    YES + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
    YES + b"X-Long: " + b"a" * 70_000,
    YES + b"X: a\r\n" * 200 + b"\r\n",
    YES + b"X : a\r\n\r\n",
    YES.replace(b"\r\n", b"\n") + b"\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    b"HTTP/1.1 199 Odd\r\n\r\n" * 20,
    b"\x82\x05hello",
    b"",
)  # fmt: skip


@pytest.mark.parametrize("told", BAD_ANSWERS)
def test_what_is_no_proper_yes_is_no_tunnel(told: bytes) -> None:
    """Nothing that comes behind it reaches the client, and nothing of the client's the server."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await way.raw(ASKED)
        await until(lambda: b"\r\n\r\n" in raw.came, 20.0)
        assert raw.status in (502, 504)
        await until(servers[0].has_ended.is_set)
        assert servers[0].came.count(b"\r\n\r\n") == 1
        # The client has a connection of HTTP still.
        raw.came.clear()
        raw.transport.write(b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: b"\r\n\r\nkept" in raw.came)
        assert raw.status == 201

    with_server(main, told)


@pytest.mark.parametrize(
    "told",
    [
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nX-Why: no\r\n\r\nno",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 403 Forbidden\r\nX-Why: no\r\n%b"
        % b"Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
    ],
)
def test_a_no_is_the_upstreams_answer(told: bytes) -> None:
    """It is passed on as any other answer, and its connection is closed."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await way.raw(ASKED)
        await until(lambda: raw.came.endswith(b"no"))
        assert raw.status == 403
        assert b"\r\nx-why: no\r\n" in raw.came
        await until(servers[0].has_ended.is_set)
        assert not raw.has_ended.is_set()

    with_server(main, told)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"keep-alive, Upgrade", b"keep-alive"),
        (b"GET", b"POST"),
        (b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\nab"),
        (b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
    ],
)
def test_what_asks_for_none_is_an_ordinary_request(old: bytes, new: bytes) -> None:
    """With HTTP/1.0 or a body there is no tunnel; the offer is not passed on."""
    told = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await way.raw(ASKED.replace(old, new))
        await until(lambda: raw.came.endswith(b"ok"))
        assert raw.status == 200
        asked = bytes(servers[0].came).lower()
        assert b"\r\nupgrade:" not in asked
        assert b"\r\nsec-websocket" not in asked

    with_server(main, told)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Version: 13", b"Version: 12"),
        (b"Sec-WebSocket-Version: 13\r\n", b""),
        (KEY.encode(), b"c2hvcnQ="),
        (KEY.encode(), b"not base64 at all!!!!!=="),
        (b"Origin:", b"Sec-WebSocket-Key: " + KEY.encode() + b"\r\nOrigin:"),
    ],
)
def test_a_malformed_request_is_refused(old: bytes, new: bytes) -> None:
    """The upstream is not asked what no answer could be checked for."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await way.raw(ASKED.replace(old, new))
        await until(lambda: b"\r\n\r\n" in raw.came)
        assert raw.status == 400
        assert not servers

    with_server(main)


def test_a_route_that_takes_none_passes_no_offer_on() -> None:
    """Only where it says so does a route take WebSockets."""

    async def main(way: Way, servers: list[Server]) -> None:
        way.store.answer = answering(200, b"plain")
        raw = await way.raw(ASKED.replace(b"/live?room=7", b"/plain"))
        await until(lambda: raw.came.endswith(b"plain"))
        assert raw.status == 200
        assert way.store.seen[0].request.headers.get("sec-websocket-key") is None

    with_server(main)


def test_what_a_client_sends_before_the_yes_is_no_part_of_the_tunnel() -> None:
    """It may be meant as a request for us or as bytes for the server: both are cut."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await way.raw(ASKED + b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(raw.has_ended.is_set)
        assert raw.came == b""
        await until(servers[0].has_ended.is_set)
        assert servers[0].came.count(b"GET") == 1
        assert not way.store.seen

    with_server(main)


@pytest.mark.parametrize("to_client", [True, False])
def test_who_does_not_read_holds_the_other_up(to_client: bool) -> None:
    """Of 64 MiB next to nothing is held, either way, and all of it arrives in the end."""
    size = 64 * MiB

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        source, sink = (servers[0], raw) if to_client else (raw, servers[0])
        sink.transport.pause_reading()
        sink.came.clear()
        source.transport.write(bytes(size))
        await asyncio.sleep(5.0)
        assert source.transport.get_write_buffer_size() > size - 2 * MiB
        sink.transport.resume_reading()
        await until(lambda: len(sink.came) == size, 600.0)
        # And the other way goes on all the time.
        sink.transport.write(b"back")
        await until(lambda: source.came.endswith(b"back"))

    with_server(main)


@pytest.mark.parametrize("by_client", [True, False])
def test_half_a_close_ends_one_direction(by_client: bool) -> None:
    """What was sent before it arrives, and the other direction goes on until its own end."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        raw.came.clear()
        ends: tuple[Raw, Raw] = (raw, servers[0]) if by_client else (servers[0], raw)
        first, second = ends
        first.transport.write(b"last words")
        first.transport.write_eof()
        await until(lambda: second.came.endswith(b"last words"))
        if by_client:
            await until(lambda: servers[0].has_eof)
            servers[0].transport.write(bytes(MiB))
            await until(lambda: len(raw.came) == MiB)
            servers[0].transport.close()
            await until(lambda: raw.has_eof or raw.has_ended.is_set())
        else:
            await until(lambda: raw.has_eof and servers[0].has_eof)
            servers[0].transport.close()
        await until(lambda: raw.has_ended.is_set() and servers[0].has_ended.is_set(), 10.0)

    with_server(main, keeps_open=True)


@pytest.mark.parametrize("is_reset", [True, False])
@pytest.mark.parametrize("by_client", [True, False])
def test_who_vanishes_takes_the_other_along(by_client: bool, is_reset: bool) -> None:
    """Neither end waits for one that has gone."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        first, second = (raw, servers[0]) if by_client else (servers[0], raw)
        if is_reset:
            first.transport.abort()
        else:
            first.transport.close()
        await until(second.has_ended.is_set)
        assert not way.engine._tunnels._open

    with_server(main)


def test_a_client_that_goes_before_the_answer_takes_the_request_along() -> None:
    """Nobody waits for a yes that nobody hears."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await way.raw(ASKED)
        await until(lambda: bool(servers) and servers[0].came.endswith(b"\r\n\r\n"))
        raw.transport.abort()
        await until(servers[0].has_ended.is_set)

    with_server(main, b"")


def test_a_quiet_tunnel_is_closed_and_one_that_moves_is_not() -> None:
    """One byte each way or the other is enough."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        for number in range(4):
            await asyncio.sleep(25.0)
            (raw if number % 2 else servers[0]).transport.write(b".")
            assert not raw.has_ended.is_set()
        await asyncio.sleep(28.0)
        assert not raw.has_ended.is_set()
        await until(raw.has_ended.is_set)
        await until(servers[0].has_ended.is_set)

    with_server(main)


def test_a_drain_lets_tunnels_go_on_for_a_moment() -> None:
    """They end by themselves before the server has to cut them."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        draining = asyncio.create_task(way.server.drain(8.0))
        await asyncio.sleep(4.0)
        raw.transport.write(b"still there")
        await until(lambda: servers[0].came.endswith(b"still there"))
        assert await draining == 0
        await until(raw.has_ended.is_set)
        await until(servers[0].has_ended.is_set)

    with_server(main)


def test_tunnels_are_bounded_in_all_and_for_each_client() -> None:
    """One client cannot have them all: here all come from one address."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        other = await way.raw(ASKED)
        await until(lambda: b"\r\n\r\n" in other.came)
        assert other.status == 429
        assert len(servers) == 1
        raw.transport.close()
        await until(servers[0].has_ended.is_set)
        await opened(way)

    with_server(main)


def test_an_upstream_that_is_not_there_is_told() -> None:
    """As for any other request."""

    async def main(way: Way, servers: list[Server]) -> None:
        endpoint = Endpoint("sockets-1", SOCKETS, "http://127.0.0.1:1")
        way.system.known.endpoints[SOCKETS] = [endpoint]
        raw = await way.raw(ASKED)
        await until(lambda: b"\r\n\r\n" in raw.came, 30.0)
        assert raw.status == 503

    with_server(main)


@pytest.mark.parametrize(("by_client", "status"), [(True, "cancelled"), (False, "ok")])
def test_a_tunnel_is_one_trace_that_ends_with_it(by_client: bool, status: str) -> None:
    """How it ended is told: in order, or by a client that has gone."""

    async def main(way: Way, servers: list[Server]) -> None:
        raw = await opened(way)
        await asyncio.sleep(5.0)
        assert len(way.system.spans) == 0
        if by_client:
            raw.transport.abort()
        else:
            servers[0].transport.close()
        await until(lambda: len(way.system.spans) == 2)
        outer, inner = way.system.span("gateway", "gateway"), way.system.span("call", "gateway")
        assert inner.parent_id == outer.span_id
        assert (outer.status, inner.status) == (status, status)
        assert min(outer.took_us, inner.took_us) >= 5_000_000

    with_server(main)
