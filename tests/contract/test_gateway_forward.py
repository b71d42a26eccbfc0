"""What a gateway promises of requests that it passes on: who, which headers, how much, how long."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from bodies import body_of, everything, long_body, open_body
from calls_fakes import KEY
from forward_fakes import (
    PARTNER,
    STORE,
    Announced,
    Answering,
    MiB,
    Raw,
    Upstream,
    Way,
    answering,
    names,
    through,
)
from gateway_fakes import SECRET, SHOP, now
from synchromesh.calls import Policies
from synchromesh.calls.faults import Fault
from synchromesh.codec import encode
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.errors import ConnectionLost, DownstreamFailed, to_problem
from synchromesh.gateway import Forward, Gateway
from synchromesh.http import ClientExchange, Headers, HttpRequest, HttpResponse
from synchromesh.http.endpoint import PoolEndpoint
from synchromesh.identity import Signer
from synchromesh.resilience import BreakerOptions, LimitOptions, Policy

pytestmark = pytest.mark.usefixtures("http_way")

PUT = "PUT /firmware/sx90?lot=7%20a"
# Besides the network's own: what is full, one read of a socket, and a part on its way, each way.
HELD_BYTES_MAX = 1024 * 1024
OURS = {
    "host", "traceparent", "deadline-ms", "attempts-left", "synchromesh-credential", "via",
    "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
}  # fmt: skip
ONCE = Policies(default=Policy(retry=None))


# -- what passes -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [True, False])
def test_a_request_and_its_answer_pass_as_they_are(is_known: bool) -> None:
    """Path, query, content and status pass both ways, however the bodies are framed."""
    image = bytes(range(256)) * 5000
    length = len(image) if is_known else None

    async def main(way: Way) -> None:
        way.store.answer = answering(
            202,
            lambda: body_of(image[::-1], length=length),
            (("etag", '"7"'), ("content-type", "image/x"), ("set-cookie", "a=b")),
        )
        answer = await way.ask(
            PUT,
            body_of(image, length=length),
            headers={"content-type": "application/x-image", "x-checksum": "abc"},
        )
        assert (answer.status, answer.body) == (202, image[::-1])
        assert answer.headers.get("etag") == '"7"'
        assert answer.headers.get("content-type") == "image/x"
        assert answer.headers.get("cache-control") == "no-store"
        assert answer.headers.get("x-content-type-options") == "nosniff"
        assert len(answer.headers.get("synchromesh-trace", "")) == 32
        (seen,) = way.store.seen
        assert (seen.request.method, seen.request.target) == ("PUT", "/images/sx90?lot=7%20a")
        assert (seen.body, seen.is_whole) == (image, True)
        assert seen.request.headers.get("content-type") == "application/x-image"
        assert seen.request.headers.get("x-checksum") == "abc"

    through(main)


IDENTITY = (
    "synchromesh-credential", "traceparent", "tracestate", "deadline-ms", "sent-at",
    "attempts-left", "undoes", "x-forwarded-for", "x-forwarded-host", "x-forwarded-user",
    "x-real-ip", "forwarded", "via", "x-principal", "x-user", "remote-user", "cookie",
    "x-consumer-username", "x-amzn-oidc-identity", "content-type-x", "x-checksum-x",
)  # fmt: skip


@pytest.mark.parametrize("separator", ["-", "_"])
@pytest.mark.parametrize("spelt", [str.lower, str.upper, str.title])
def test_no_identity_or_forwarding_header_passes(spelt: Any, separator: str) -> None:
    """However it is spelt, what says who asks comes from the gateway alone (G2)."""
    forged = {spelt(name.replace("-", separator)): f"forged-{n}" for n, name in enumerate(IDENTITY)}

    async def main(way: Way) -> None:
        answer = await way.ask(PUT, b"x", headers=forged)
        assert answer.status == 201
        headers = way.store.seen[0].request.headers
        assert not any("forged" in value for _, value in headers)
        assert names(headers) == {*OURS, "content-length"}
        assert headers.get("via") == "1.1 synchromesh"
        credential = Signer(KEY).verify(
            headers.get("synchromesh-credential", ""),
            audience=STORE,
            now_us=way.system.runtime.wall_us(),
        )
        assert (credential.service, credential.principal.name) == ("gateway", "shop")
        trace_id = headers.get("traceparent", "")[3:35]
        assert trace_id == answer.headers.get("synchromesh-trace")
        assert int(headers.get("deadline-ms", "")) == 2000

    through(main)


def test_an_upstream_that_is_not_ours_is_told_a_trace_and_a_key_alone() -> None:
    """An external upstream learns nothing of who asks, and nothing that it could show others."""

    async def main(way: Way) -> None:
        headers = {"idempotency-key": "k-1"}
        assert (await way.ask("POST /partners", b"x", headers=headers)).status == 201
        seen = way.partner.seen[0].request.headers
        ours = {"host", "via", "traceparent", "idempotency-key", "content-length"}
        assert names(seen) == ours
        assert seen.get("idempotency-key", "").endswith("/k-1")
        assert seen.get("idempotency-key") != "k-1"

    through(main)


def test_what_belongs_to_one_hop_ends_with_it() -> None:
    """Hop-by-hop fields, and those that Connection names, pass in neither direction."""
    told = (
        b"HTTP/1.1 200 OK\r\nkeep-alive: 5\r\nproxy-connection: x\r\nproxy-authenticate: x\r\n"
        b"trailer: x-t\r\nattempts-used: 3\r\nsynchromesh-partial: x\r\nx-hop: 1\r\n"
        b"x-content-type-options: sniff\r\ncache-control: max-age=5\r\netag: 1\r\n"
        b"connection: X-Hop, etag\r\ncontent-length: 1\r\n\r\nx"
    )

    async def main(way: Way) -> None:
        upstreams: list[Raw] = []

        def accept() -> Raw:
            upstreams.append(Raw(told))
            return upstreams[-1]

        listener = await way.system.runtime.network.listen(accept, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.port}"
        way.system.known.endpoints[STORE] = [Endpoint("store-1", STORE, url)]
        raw = await way.raw(
            b"GET /firmware/a HTTP/1.1\r\nhost: x\r\nkeep-alive: 5\r\nte: trailers\r\n"
            b"proxy-authorization: x\r\nproxy-connection: x\r\ntrailer: x\r\n"
            b"accept: text/plain\r\nif-match: a\r\nconnection: IF-MATCH, close\r\n\r\n"
        )
        await raw.has_ended.wait()
        assert fields_of(upstreams[0].came).keys() == {*OURS, "accept", "sent-at"}
        got = fields_of(raw.came)
        assert got.pop("synchromesh-trace")
        assert got == {
            "cache-control": "max-age=5",
            "x-content-type-options": "nosniff",
            "content-length": "1",
            "connection": "close",
        }

    through(main)


def fields_of(message: bytearray) -> dict[str, str]:
    """Return the header fields of a message, as they are on the wire."""
    lines = bytes(message).partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2E",
        "..%2fsecrets",
        "a%2F..%2Fb",
        "..%5Cb",
        ".",
        "..;x",
        "%252e%252E",
        "a%25252F..",
    ],
)
def test_no_place_leads_elsewhere(name: str) -> None:
    """A place stays one segment, also where an upstream decodes it before it splits the path."""

    async def main(way: Way) -> None:
        answer = await way.ask(f"GET /firmware/{name}")
        assert answer.status == 400
        assert way.store.seen == []
        assert (await way.ask("GET /firmware/a%2Fb..c")).status == 400
        assert (await way.ask("GET /firmware/a%20b..c")).status == 201
        assert way.store.seen[0].request.target == "/images/a%20b..c"

    through(main)


def test_head_and_answers_without_a_body_pass() -> None:
    """HEAD keeps the length; 204 and 304 have no body; the client's connection goes on."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200, b"12345")
        raw = await way.raw(b"HEAD /firmware/a HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(1.0)
        assert raw.status == 200
        assert b"\r\ncontent-length: 5\r\n" in raw.came
        assert raw.came.endswith(b"\r\n\r\n")
        assert way.store.seen[0].request.method == "HEAD"
        for status in (204, 304):
            raw.came.clear()
            way.store.answer = answering(status, b"", (("etag", "7"),))
            raw.transport.write(b"GET /firmware/a HTTP/1.1\r\nhost: x\r\n\r\n")
            await asyncio.sleep(1.0)
            assert raw.status == status
            assert b"etag: 7" in raw.came
            assert raw.came.endswith(b"\r\n\r\n")
            assert b"content-length" not in raw.came
            assert b"transfer-encoding" not in raw.came
        assert not raw.has_ended.is_set()

    through(main)


# -- who may -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("by", "status"), [("", 401), ("visitor", 403)])
def test_nothing_goes_upstream_without_a_principal(by: str, status: int) -> None:
    """Who may not is told before a byte of the body is asked for, and no upstream hears (G1)."""

    async def main(way: Way) -> None:
        taken = [0]
        answer = await way.ask(PUT, long_body(64 * MiB, taken), by=by)
        assert answer.status == status
        assert taken[0] < HELD_BYTES_MAX
        who = f"authorization: {by}\r\n".encode() if by else b""
        raw = await way.raw(
            b"PUT /firmware/a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n"
            + who
            + b"content-length: 3\r\n\r\n"
        )
        await raw.has_ended.wait()
        assert raw.status == status
        assert b"100 Continue" not in raw.came
        assert way.store.seen == []

    through(main)


def test_a_rate_holds_for_what_is_passed_on() -> None:
    """One more than the rate is 429, and not passed on."""

    async def main(way: Way) -> None:
        assert [(await way.ask("GET /few")).status for _ in range(3)] == [201, 429, 429]
        assert len(way.store.seen) == 1

    through(main)


def test_continue_comes_once_the_upstream_takes_the_body() -> None:
    """100 Continue is the gateway's own, said when the upstream is there to read."""

    async def main(way: Way) -> None:
        head = b"POST /notes HTTP/1.1\r\nhost: x\r\nauthorization: shop\r\ncontent-length: 3\r\n"
        raw = await way.raw(head + b"expect: 100-continue\r\n\r\n")
        await asyncio.sleep(1.0)
        assert bytes(raw.came) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.transport.write(b"abc")
        await asyncio.sleep(1.0)
        assert raw.came.count(b"HTTP/1.1 201") == 1
        (seen,) = way.store.seen
        assert seen.body == b"abc"
        assert "expect" not in seen.request.headers

    through(main)


# -- how much ----------------------------------------------------------------------------------


def test_a_body_that_is_too_long_is_cut_and_told() -> None:
    """413 by its length, or as it comes: before the upstream hears, or in mid-stream by a cut."""
    head = b"POST /notes HTTP/1.1\r\nhost: x\r\nauthorization: shop\r\n"
    sent = b"1388\r\n" + b"x" * 5000 + b"\r\n"
    longer = Gateway(auth=[SHOP], routes=[Forward("POST /notes", to=STORE, body_max="100000B")])

    async def mid_stream(way: Way) -> None:
        raw = await way.raw(head + b"transfer-encoding: chunked\r\n\r\n" + sent * 20)
        await asyncio.sleep(1.0)
        raw.transport.write(sent)
        await raw.has_ended.wait()
        assert raw.status == 413
        assert b"connection: close" in raw.came
        (seen,) = way.store.seen
        assert seen.body.startswith(b"x" * 65536)
        assert not seen.is_whole
        assert way.store.ends == ["CancelledError"]

    async def main(way: Way) -> None:
        raw = await way.raw(head + b"content-length: 11\r\n\r\n12345678901")
        await raw.has_ended.wait()
        assert raw.status == 413
        assert way.store.seen == []
        raw = await way.raw(head + b"transfer-encoding: chunked\r\n\r\n8\r\n12345678\r\n")
        await asyncio.sleep(1.0)
        raw.transport.write(b"3\r\n901\r\n0\r\n\r\n")
        await raw.has_ended.wait()
        assert raw.status == 413
        assert b"connection: close" in raw.came
        assert way.store.seen == []

    through(main)
    through(mid_stream, gateway=longer)


@pytest.mark.parametrize(
    "broken", [b"zz\r\n", b"3\r\nabcXX", b"3;a\nb\r\nabc\r\n", b"10000000000000003\r\n"]
)
@pytest.mark.parametrize("size", [3, 100_000])
def test_a_bad_chunk_in_mid_stream_cuts_the_upstream_too(broken: bytes, size: int) -> None:
    """What cannot be read further is 400 and closes; the upstream never takes it for whole (G3).

    Of what is short enough to be read ahead it never hears.
    """

    async def main(way: Way) -> None:
        raw = await way.raw(
            b"PUT /firmware/a HTTP/1.1\r\nhost: x\r\nauthorization: shop\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (size, b"x" * size)
        )
        await asyncio.sleep(1.0)
        raw.transport.write(broken + b"0\r\n\r\nGET /firmware/b HTTP/1.1\r\nhost: x\r\n\r\n")
        await raw.has_ended.wait()
        assert raw.status == 400
        assert raw.came.count(b"HTTP/1.1 ") == 1
        heard = [(len(seen.body), seen.is_whole) for seen in way.store.seen]
        assert heard == ([] if size == 3 else [(size, False)])

    through(main)


def test_an_upstream_that_stops_reading_stops_the_client_of_64_mib() -> None:
    """An upload waits at its client while the upstream reads none: the gateway holds a bound."""

    async def main(way: Way) -> None:
        way.store.reads = False
        taken = [0]
        go = asyncio.Event()

        async def wait(request: Any) -> Any:
            await go.wait()
            return await everything(request.stream)

        way.store.answer = _after(wait)
        asking = asyncio.ensure_future(way.ask(PUT, long_body(64 * MiB, taken)))
        await asyncio.sleep(9.0)
        assert 0 < taken[0] <= HELD_BYTES_MAX
        go.set()
        assert (await asking).body == str(64 * MiB).encode()

    through(main)


def test_a_client_that_stops_reading_stops_the_upstream_of_64_mib() -> None:
    """A download waits at its upstream while the client reads none: the gateway holds a bound."""

    async def main(way: Way) -> None:
        taken = [0]
        way.store.answer = answering(200, lambda: long_body(64 * MiB, taken))
        async with way.asking("GET /firmware/a") as answer:
            await asyncio.sleep(4.0)
            assert 0 < taken[0] <= HELD_BYTES_MAX
            assert len(await everything(answer.stream)) == 64 * MiB

    through(main)


def _after(read: Any) -> Answering:
    """Answer with the length of what a function reads."""

    @asynccontextmanager
    async def answer(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), str(len(await read(request))).encode())

    return answer


# -- how long ----------------------------------------------------------------------------------


def test_stalls_are_cut_in_their_time() -> None:
    """Client or upstream, sending or taking: who stands still ends the exchange, and all know."""

    async def main(way: Way) -> None:
        # An upstream that takes nothing.
        way.store.reads = False
        way.store.answer = answering(200, after_s=3600.0)
        began_s = now()
        answer = await way.ask(PUT, long_body(64 * MiB))
        assert answer.status == 504
        assert now() - began_s <= 13.0
        # An upstream that stops in its answer, whose length it has said, or not.
        way.store.reads = True
        for length_s, headers in ((10.5, (("content-length", "9"),)), (60.5, ())):
            way.store.answer = answering(200, lambda: open_body(b"half"), headers=headers)
            began_s = now()
            with pytest.raises(ConnectionLost):
                await way.ask("GET /firmware/a")
            assert length_s - 1.0 <= now() - began_s <= length_s
        # A client that stops in its body.
        way.store.answer = answering(200)
        began_s = now()
        answer = await way.ask(PUT, open_body(b"half"))
        assert answer.status == 408
        assert now() - began_s <= 10.5
        # A client that takes nothing of its answer.
        await asyncio.sleep(1.0)
        way.store.ends.clear()
        way.store.answer = answering(200, lambda: long_body(64 * MiB))
        async with way.asking("GET /firmware/a") as answer:
            await asyncio.sleep(13.5)
            assert way.store.ends == ["CancelledError"]
            with pytest.raises(ConnectionLost):
                await everything(answer.stream)
        assert not way.engine._limiter.in_flight

    through(main)


def test_an_answer_has_to_begin_in_time() -> None:
    """Past its deadline or the edge's timeout it is 504; the time a body takes does not count."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200, b"late", after_s=1.9)
        body = open_body()
        loop = asyncio.get_running_loop()
        for number in range(6):
            loop.call_later(number * 5.0, body.feed, bytes(5000))
        loop.call_later(30.0, body.end)
        assert (await way.ask(PUT, body)).body == b"late"
        way.store.answer = answering(200, b"late", after_s=2.1)
        for route, sent in ((PUT, b"x"), ("GET /firmware/a", None)):
            began_s = now()
            answer = await way.ask(route, sent)
            assert answer.status == 504
            assert json.loads(answer.body)["code"] == "timed_out"
            assert 2.0 <= now() - began_s < 2.2
        assert way.caller.edges[STORE].failures == 2

    through(main, policies=ONCE)


def test_a_body_that_takes_long_makes_no_slow_upstream() -> None:
    """How long a client takes to send counts in no breaker; how long an upstream takes does."""
    breaker = BreakerOptions(minimum_calls=2, slow_after_s=1.0)

    async def main(way: Way) -> None:
        for _ in range(4):
            body = open_body(b"x")
            asyncio.get_running_loop().call_later(5.0, body.end)
            assert (await way.ask(PUT, body)).status == 201
        assert way.caller.edges[STORE].slow == 0
        way.store.answer = answering(200, after_s=1.5)
        assert (await way.ask("GET /firmware/a")).status == 200
        assert way.caller.edges[STORE].slow == 1

    through(main, policies=Policies(default=Policy(breaker=breaker)))


def test_an_answer_may_take_as_long_as_it_moves() -> None:
    """A stream outlives the route's deadline while something comes."""

    async def main(way: Way) -> None:
        body = open_body()
        loop = asyncio.get_running_loop()
        for number in range(10):
            loop.call_later(number * 8.0, body.feed, b"%d" % number)
        loop.call_later(80.0, body.end)
        way.store.answer = answering(200, lambda: body)
        assert (await way.ask("GET /firmware/a")).body == b"0123456789"

    through(main)


# -- who goes away -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_known", [True, False])
def test_an_upstream_that_dies_in_its_answer_leaves_no_whole_one(is_known: bool) -> None:
    """The client's connection is reset: what it has is never taken for all."""

    async def main(way: Way) -> None:
        body = open_body(b"half", length=8 if is_known else None)
        known = (("content-length", "8"),) if is_known else ()
        way.store.answer = answering(200, lambda: body, known)
        for version in (b"1.1", b"1.0"):
            raw = await way.raw(b"GET /firmware/a HTTP/" + version + b"\r\nhost: x\r\n\r\n")
            await asyncio.sleep(1.0)
            assert b"half" in raw.came
            body.fail(ConnectionLost("the power is gone"))
            await raw.has_ended.wait()
            assert not raw.has_eof
            assert not raw.came.endswith(b"0\r\n\r\n")
            body = open_body(b"half", length=8 if is_known else None)

    through(main)


def test_a_client_that_goes_away_takes_its_upstream_along() -> None:
    """Leaving in mid-answer, or in mid-body, ends the exchange upstream and frees its places."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200, lambda: long_body(64 * MiB))
        async with way.asking("GET /firmware/a") as answer:
            assert answer.stream is not None
            await answer.stream.read()
        await asyncio.sleep(1.0)
        way.store.answer = answering(200)
        raw = await way.raw(
            b"PUT /firmware/a HTTP/1.1\r\nhost: x\r\nauthorization: shop\r\n"
            b"content-length: 99999\r\n\r\n" + bytes(70_000)
        )
        await asyncio.sleep(1.0)
        raw.transport.abort()
        await asyncio.sleep(1.0)
        assert way.store.ends == ["CancelledError", "CancelledError"]
        assert not way.store.seen[1].is_whole
        assert repr(way.engine) == "<GatewayEngine 0 in flight>"
        assert way.caller.edges[STORE].failures == 0

    through(main)


def test_an_upstream_may_answer_before_the_body_ends() -> None:
    """An early answer reaches the client whole, and the rest of the body goes nowhere."""

    async def main(way: Way) -> None:
        way.store.reads = False
        way.store.answer = answering(409, b"there is one already")
        taken = [0]
        answer = await way.ask(PUT, long_body(64 * MiB, taken))
        assert (answer.status, answer.body) == (409, b"there is one already")
        await asyncio.sleep(2.0)
        assert taken[0] < 2 * MiB

    through(main)


def test_both_bodies_may_flow_at_once() -> None:
    """What an upstream answers while it reads comes back while it is sent."""

    async def main(way: Way) -> None:
        way.store.reads = False
        way.store.answer = _echo
        # As much as is read ahead: the upstream hears of no less.
        body = open_body(bytes(65536), b"one")
        async with way.asking(PUT, body) as answer:
            assert answer.stream is not None
            ahead = b""
            while not ahead.endswith(b"one"):
                ahead += await answer.stream.read()
            body.feed(b"one")
            for part in (b"one", b"two", b"three"):
                assert await answer.stream.read() == part
                body.feed({b"one": b"two", b"two": b"three", b"three": b""}[part])
            body.end()
            assert await everything(answer.stream) == b""

    through(main)


@asynccontextmanager
async def _echo(request: HttpRequest) -> AsyncIterator[HttpResponse]:
    yield HttpResponse(200, (), stream=request.stream)


def test_a_drain_lets_a_stream_end() -> None:
    """A request that was accepted is passed on and answered whole while the gateway drains (G7)."""

    async def main(way: Way) -> None:
        body = open_body(b"abc")
        way.store.answer = answering(200, lambda: body)
        asking = asyncio.ensure_future(way.ask("GET /firmware/a"))
        await asyncio.sleep(0.5)
        draining = asyncio.ensure_future(way.server.drain(5.0))
        await asyncio.sleep(0.5)
        body.feed(b"def")
        body.end()
        assert (await asking).body == b"abcdef"
        assert await draining == 0

    through(main)


# -- what guards the edge ----------------------------------------------------------------------


def test_a_failing_upstream_opens_its_breaker() -> None:
    """5xx count, as the upstream says them; then nothing is sent, and it is refused at once."""

    async def main(way: Way) -> None:
        way.store.answer = answering(500, b"our own words", (("x-why", "7"),))
        for _ in range(10):
            answer = await way.ask("GET /firmware/a")
            assert (answer.status, answer.body) == (500, b"our own words")
            assert answer.headers.get("x-why") == "7"
            assert answer.headers.get("synchromesh-trace")
        began_s = now()
        for route, body in (("GET /firmware/a", None), (PUT, b"x")):
            answer = await way.ask(route, body)
            assert answer.status == 503
            assert json.loads(answer.body)["code"] == "circuit_open"
            assert answer.headers.get("retry-after")
        assert now() - began_s < 0.2
        assert len(way.store.seen) == 10
        way.store.answer = answering(200)
        await asyncio.sleep(3.0)
        assert (await way.ask("GET /firmware/a")).status == 200

    through(main, policies=ONCE)


def test_an_open_breaker_does_not_make_a_request_wait() -> None:
    """Where calls would wait for the breaker, what is passed on is refused at once."""
    breaker = BreakerOptions(minimum_calls=1, open_for_s=1.0, open_for_max_s=1.0, open_jitter=0.0)

    async def main(way: Way) -> None:
        way.caller.edge(STORE).breaker.isolate(now())  # type: ignore[union-attr]
        assert (await way.ask("GET /firmware/a")).status == 503
        way.caller.edge(STORE).breaker.close(now())  # type: ignore[union-attr]
        way.store.answer = answering(500)
        await way.ask(PUT, b"x")
        began_s = now()
        assert (await way.ask("GET /firmware/a")).status == 503
        assert now() - began_s < 0.2

    through(main, policies=Policies(default=Policy(breaker=breaker)))


@pytest.mark.parametrize("status", [400, 404, 409, 422, 429])
def test_a_no_is_the_upstreams_answer(status: int) -> None:
    """4xx pass as they are and count as answers (B5)."""

    async def main(way: Way) -> None:
        way.store.answer = answering(status, b"no", (("x-reason", "why"),))
        for _ in range(12):
            answer = await way.ask("GET /firmware/a")
            assert (answer.status, answer.body) == (status, b"no")
            assert answer.headers.get("x-reason") == "why"
        assert way.caller.edges[STORE].failures == 0

    through(main)


def test_overload_is_told_and_counts_as_no_failure() -> None:
    """503 of an upstream is 503 with its Retry-After, and trips nothing (B5)."""

    async def main(way: Way) -> None:
        way.store.answer = answering(503, b"", (("retry-after", "7"),))
        answer = await way.ask(PUT, b"x")
        assert (answer.status, answer.headers.get("retry-after")) == (503, "7")
        assert way.caller.edges[STORE].failures == 0
        assert len(way.store.seen) == 1

    through(main)


@pytest.mark.parametrize(("route", "times"), [("GET /firmware/a", 3), ("POST /partners", 1)])
def test_a_503_that_asks_nobody_to_come_back_counts(route: str, times: int) -> None:
    """Of a service and of a stranger; what is not idempotent is not sent again (B5)."""

    async def main(way: Way) -> None:
        for upstream in (way.store, way.partner):
            upstream.answer = answering(503, b"<html>")
        answer = await way.ask(route, b"x" if times == 1 else None)
        assert (answer.status, answer.body) == (503, b"<html>")
        assert "retry-after" not in answer.headers
        edge = way.caller.edges[PARTNER if times == 1 else STORE]
        assert len((*way.store.seen, *way.partner.seen)) == edge.failures == times

    through(main)


def test_a_service_of_ours_is_asked_why_it_failed() -> None:
    """What its problem says counts: a failure below it trips no breaker here (B5)."""
    problem = encode(to_problem(DownstreamFailed(f"billing failed: {SECRET}")))
    kind = (("content-type", "application/problem+json; charset=utf-8"), ("x-why", SECRET))

    async def main(way: Way) -> None:
        for upstream in (way.store, way.partner):
            upstream.answer = answering(502, problem, kind)
        answer = await way.ask(PUT, b"x")
        assert (answer.status, json.loads(answer.body)["code"]) == (502, "downstream_failed")
        assert SECRET not in answer.body.decode() + str(list(answer.headers))
        # What others say in the same form is theirs to say.
        answer = await way.ask("POST /partners", b"x")
        assert (answer.status, answer.body) == (502, problem)
        failures = {name: edge.failures for name, edge in way.caller.edges.items()}
        assert failures == {STORE: 0, PARTNER: 1}
        way.store.answer = answering(500, lambda: open_body(b'{"code"'), kind)
        began_s = now()
        answer = await way.ask(PUT, b"x")
        assert json.loads(answer.body)["code"] == "remote_failed"
        assert now() - began_s < 1.5

    through(main)


THEIRS = b'{"type": "about:blank", "code": "no_stock", "detail": "none left"}'
PROBLEM = ("content-type", "application/problem+json")


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 300_000])
@pytest.mark.parametrize("status", [500, 502, 503, 504, 507])
@pytest.mark.parametrize("route", [PUT, "POST /partners", "GET /firmware/a"])
def test_what_an_upstream_says_of_its_failure_is_passed_on(
    route: str, status: int, body: bytes
) -> None:
    """Status, fields and body, short or streamed, once no more attempt is made; it counts."""
    sent = None if route.startswith("GET") else b"abc"

    async def main(way: Way) -> None:
        headers = (("content-type", "text/html"), ("retry-after", "0"), ("set-cookie", "a=b"))
        for upstream in (way.store, way.partner):
            upstream.answer = answering(status, lambda: body_of(body, length=len(body)), headers)
        answer = await way.ask(route, sent)
        assert (answer.status, answer.body) == (status, body)
        for name, value in headers:
            assert answer.headers.get(name) == value
        edge = way.caller.edges[PARTNER if "partners" in route else STORE]
        seen = (*way.store.seen, *way.partner.seen)
        assert len(seen) == (3 if sent is None else 1)
        assert edge.failures == (0 if status == 503 else len(seen))
        await asyncio.sleep(0.1)
        spans = {way.system.span(kind, "gateway").status for kind in ("gateway", "call")}
        assert len(spans) == 1
        assert "ok" not in spans

    through(main)


def test_a_problem_of_an_application_of_ours_is_its_own() -> None:
    """A code that is none of ours is the application's to tell, though it is one of our own."""

    async def main(way: Way) -> None:
        way.store.answer = answering(500, THEIRS, (PROBLEM,))
        for route, body in ((PUT, b"x"), ("GET /firmware/a", None)):
            answer = await way.ask(route, body)
            assert (answer.status, answer.body) == (500, THEIRS)

    through(main)


def test_a_failure_that_was_told_is_passed_on_though_no_other_attempt_came_to_anything() -> None:
    """The breaker opens behind the first attempt: the client gets what the upstream has said."""
    breaker = BreakerOptions(minimum_calls=1, open_for_s=9.0, open_for_max_s=9.0)

    async def main(way: Way) -> None:
        way.store.answer = answering(500, b"first words")
        answer = await way.ask("GET /firmware/a")
        assert (answer.status, answer.body) == (500, b"first words")
        assert len(way.store.seen) == 1
        answer = await way.ask("GET /firmware/a")
        assert json.loads(answer.body)["code"] == "circuit_open"

    through(main, policies=Policies(default=Policy(breaker=breaker)))


def test_a_later_attempt_that_is_answered_takes_the_place_of_a_failure() -> None:
    """Of the failure nothing passes; and a last attempt without an answer is told in our words."""
    answers = iter([500, 200, 500])

    @asynccontextmanager
    async def changing(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        status = next(answers, None)
        if status is None:
            await asyncio.sleep(60.0)
        yield HttpResponse(status or 200, [("x-status", str(status))], b"%d" % (status or 0))

    async def main(way: Way) -> None:
        way.store.answer = changing
        answer = await way.ask("GET /firmware/a")
        assert (answer.status, answer.body, answer.headers.get("x-status")) == (200, b"200", "200")
        answer = await way.ask("GET /firmware/a")
        assert (answer.status, json.loads(answer.body)["code"]) == (504, "timed_out")

    through(main)


def test_a_failure_that_breaks_off_never_looks_whole() -> None:
    """Half of an upstream's words is a reset, as half of any answer."""

    async def main(way: Way) -> None:
        body = open_body(b"x" * 70_000)
        way.partner.answer = answering(500, lambda: body)
        async with way.asking("POST /partners", b"x") as answer:
            assert answer.status == 500
            body.fail(ConnectionLost("died"))
            with pytest.raises(ConnectionLost):
                await everything(answer.stream)

    through(main)


def test_an_edge_without_a_timeout_has_the_deadline_of_the_route() -> None:
    """Where the policy has none, an upload's answer may take all that the route allows."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200, after_s=60.0)
        began_s = now()
        assert (await way.ask(PUT, b"x")).status == 504
        assert 2.0 <= now() - began_s < 2.1

    through(main, policies=Policies(default=Policy(timeout_s=None)))


@pytest.mark.parametrize(
    ("route", "body", "headers", "times"),
    [
        ("GET /firmware/a", None, {}, 3),
        ("PUT /firmware/a", None, {}, 3),
        ("POST /notes", None, {}, 1),
        ("POST /notes", None, {"idempotency-key": "k"}, 3),
        ("POST /notes", b"x", {"idempotency-key": "k"}, 1),
        ("PUT /firmware/a", b"x", {}, 1),
    ],
)
def test_only_what_may_be_sent_again_is(
    route: str, body: bytes | None, headers: dict[str, str], times: int
) -> None:
    """Without a body and idempotent it is retried; of a body no byte is ever sent twice."""

    async def main(way: Way) -> None:
        way.store.answer = answering(500)
        assert (await way.ask(route, body, headers=headers)).status == 500
        assert len(way.store.seen) == times

    through(main)


@pytest.mark.parametrize(("held", "times"), [(2, 3), (3, 1)])
def test_under_pressure_retries_give_way(held: int, times: int) -> None:
    """A further attempt takes a slot of its own, and of the four that there are not the last."""

    async def main(way: Way) -> None:
        limiter = way.caller.edge(STORE).limiter
        assert limiter is not None
        limiter.in_flight += held
        way.store.answer = answering(500)
        assert (await way.ask("GET /firmware/a")).status == 500
        assert len(way.store.seen) == times
        assert limiter.in_flight == held

    through(main, policies=Policies(default=Policy(limit=LimitOptions(4))))


def test_a_body_is_sent_to_another_instance_while_none_of_it_has_gone() -> None:
    """An instance that refuses the connection costs an upload nothing."""

    async def main(way: Way) -> None:
        listed = way.system.known.endpoints[STORE]
        listed.insert(0, Endpoint("store-0", STORE, "http://127.0.0.1:1"))
        for _ in range(3):
            assert (await way.ask(PUT, b"abc")).status == 201
        assert [seen.body for seen in way.store.seen] == [b"abc"] * 3

    through(main)


def test_a_request_is_held_while_no_instance_is_listed() -> None:
    """A restart of the upstream is bridged within the deadline, for uploads too."""

    async def main(way: Way) -> None:
        known = way.system.known
        assert isinstance(known, Announced)
        for route, body in ((PUT, b"abc"), ("GET /firmware/a", None)):
            assert (await way.ask(route, body)).status == 201
            gone = known.endpoints.pop(STORE)
            asking = asyncio.ensure_future(way.ask(route, body))
            await asyncio.sleep(0.6)
            assert not asking.done()
            known.endpoints[STORE] = gone
            known.announce()
            assert (await asking).status == 201
        del known.endpoints[STORE]
        began_s = now()
        assert (await way.ask(PUT, b"abc")).status == 503
        assert 1.0 < now() - began_s <= 2.0

    through(main)


def test_faults_on_purpose_strike_what_is_passed_on() -> None:
    """An edge that is broken by hand fails or stalls for a forwarded request as for a call."""

    async def main(way: Way) -> None:
        faults = way.caller.faults
        faults.put("gateway:store", Fault(errors=1.0), now=now())
        assert (await way.ask(PUT, b"abc")).status == 500
        faults.put("gateway:store", Fault(is_stall=True), now=now())
        for route, body in ((PUT, b"abc"), ("GET /firmware/a", None)):
            began_s = now()
            assert (await way.ask(route, body)).status == 504
            assert now() - began_s < 5.1
        assert way.store.seen == []
        faults.heal(None, now=now())
        assert (await way.ask(PUT, b"abc")).status == 201

    through(main, policies=ONCE)


# -- what is told ------------------------------------------------------------------------------


def test_a_request_is_one_trace_that_ends_with_its_answer() -> None:
    """The spans of gateway and call last until the answer was read, and say how it ended."""

    async def main(way: Way) -> None:
        body = open_body(b"abc")
        way.store.answer = answering(200, lambda: body)
        async with way.asking("GET /firmware/a") as answer:
            await asyncio.sleep(5.0)
            assert len(way.system.spans) == 0
            body.end()
            await everything(answer.stream)
        await asyncio.sleep(0.1)
        outer, inner = way.system.span("gateway", "gateway"), way.system.span("call", "gateway")
        assert outer.trace_id == inner.trace_id == answer.headers.get("synchromesh-trace")
        assert inner.parent_id == outer.span_id
        assert (outer.name, inner.name) == ("GET /firmware/{name}", "store GET /images/{name}")
        assert min(outer.took_us, inner.took_us) >= 5_000_000
        assert (outer.status, inner.status) == ("ok", "ok")
        assert inner.attributes["instance"] == "store-1"

    through(main)


def test_a_broken_answer_is_told_in_the_trace() -> None:
    """An answer that breaks off fails both spans with its code."""

    async def main(way: Way) -> None:
        body = open_body(b"abc")
        way.store.answer = answering(200, lambda: body)
        async with way.asking("GET /firmware/a") as answer:
            body.fail(ConnectionLost("died"))
            with pytest.raises(ConnectionLost):
                await everything(answer.stream)
        await asyncio.sleep(0.1)
        statuses = {way.system.span(kind, "gateway").status for kind in ("gateway", "call")}
        assert statuses == {"connection_lost"}

    through(main)


def test_what_has_no_instance_is_told_by_its_class_alone() -> None:
    """An upstream that is nowhere is 503, and its address stays inside (G6)."""

    async def main(way: Way) -> None:
        way.system.known.endpoints[STORE] = [Endpoint("store-1", STORE, "http://127.0.0.1:1")]
        for route, body in ((PUT, b"abc"), ("GET /firmware/a", None)):
            answer = await way.ask(route, body)
            assert answer.status == 503
            assert "127.0.0.1" not in answer.body.decode()
            assert json.loads(answer.body)["trace_id"]

    through(main)


def test_an_instance_in_this_process_is_reached_by_its_http_url() -> None:
    """An instance that calls reach in the process says besides where it is reached by HTTP."""

    async def main(way: Way) -> None:
        listed = way.system.known.endpoints[STORE]
        listed[0] = replace(listed[0], url="inproc://store-1", metadata=(("http", listed[0].url),))
        assert (await way.ask(PUT, b"abc")).status == 201
        listed[0] = replace(listed[0], metadata=())
        assert (await way.ask(PUT, b"abc")).status == 500

    through(main)


@pytest.mark.parametrize("headers", [{}, {"idempotency-key": "k-1"}])
def test_requests_with_a_body_share_kept_connections(
    headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other they need one connection to their upstream, by either way."""
    made: list[str] = []
    connect = PoolEndpoint._connect

    async def counting(endpoint: PoolEndpoint, exchange: ClientExchange) -> None:
        made.append(endpoint.name)
        await connect(endpoint, exchange)

    async def main(way: Way) -> None:
        monkeypatch.setattr(PoolEndpoint, "_connect", counting)
        for _ in range(20):
            assert (await way.ask("POST /notes", b"abc", headers=headers)).status == 201
        assert [seen.body for seen in way.store.seen] == [b"abc"] * 20
        upstream = way.servers[STORE]
        assert made.count(f"{upstream.host}:{upstream.port}") == 1

    through(main)


def test_two_routes_on_one_path_keep_their_own_bodies() -> None:
    """Upstreams are told apart by the route, and resolved each time."""

    async def main(way: Way) -> None:
        other = Upstream()
        await way.serve(STORE, other, instance="store-2")
        for _ in range(40):
            assert (await way.ask(PUT, b"abc")).status == 201
        assert len(way.store.seen) + len(other.seen) == 40
        # The one that was connected to later looks slower for a while, and gets less.
        assert min(len(way.store.seen), len(other.seen)) >= 1
        assert (await way.ask("POST /partners", b"x")).status == 201
        assert [seen.body for seen in way.partner.seen] == [b"x"]
        resolved: Resolved = await way.system.known.resolve(PARTNER)
        assert len(resolved.endpoints) == 1

    through(main)


def test_a_server_without_streams_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """What would be passed on is answered by nothing else: it is 500, and the log says why."""

    async def main(way: Way) -> None:
        request = HttpRequest("GET", "/firmware/a", "/firmware/a", "", Headers(), b"")
        assert (await way.engine(request)).status == 500
        assert way.store.seen == []

    through(main)
    assert "give it the engine as its streaming" in caplog.text
