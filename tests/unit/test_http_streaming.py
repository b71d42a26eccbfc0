"""Bodies that stream, in virtual time: bounds in both directions, stalls, cuts, early answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bodies import body_of, everything, long_body, open_body
from http_fakes import FakeNetwork, FakeTransport
from synchromesh.errors import (
    CallError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    TimedOut,
)
from synchromesh.http import (
    Body,
    HttpPool,
    HttpRequest,
    HttpResponse,
    HttpServer,
    Limits,
    PoolLimits,
)
from synchromesh.http.body import FULL_BYTES, Framing
from synchromesh.runtime import Runtime
from synchromesh.testing import run

pytestmark = pytest.mark.usefixtures("http_way")

MiB = 1024 * 1024
# What one side holds of a body that the other does not take: what is full, and one read of a
# socket at each end.
HELD_BYTES_MAX = 512 * 1024

Answer = Callable[[HttpRequest], AsyncIterator[HttpResponse]]


class Streams:
    """Answers every request below /s as a stream, by a function."""

    def __init__(self, answer: Answer, *, longest: int = 256 * MiB) -> None:
        self.answer, self.longest = asynccontextmanager(answer), longest
        self.ended: list[str] = []

    def body_max(self, method: str, path: str, pairs: object) -> int | None:
        return self.longest if path.startswith("/s") else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        try:
            async with self.answer(request) as response:
                yield response
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("whole")


async def whole(request: HttpRequest) -> HttpResponse:
    """Answer what is not streamed."""
    return HttpResponse(200, (), b"whole " + request.body)


async def echo(request: HttpRequest) -> AsyncIterator[HttpResponse]:
    """Answer with the request's body while it comes."""
    yield HttpResponse(200, (), stream=request.stream)


async def settle() -> None:
    await asyncio.sleep(0.001)


# -- a server and a pool, on the simulated network ---------------------------------------------


@asynccontextmanager
async def pair(
    runtime: Runtime,
    streams: Streams,
    limits: Limits | None = None,
    pool_limits: PoolLimits | None = None,
) -> AsyncIterator[tuple[HttpServer, HttpPool]]:
    server = HttpServer(
        whole, network=runtime.network, limits=limits or Limits(), streaming=streams
    )
    await server.start()
    async with HttpPool(network=runtime.network, limits=pool_limits or PoolLimits()) as pool:
        yield server, pool
    await server.close()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_known", [True, False])
def test_a_streamed_body_comes_back_as_it_was(seed: int, is_known: bool) -> None:
    """Every byte arrives in order both ways, by length or by chunks."""

    async def main(runtime: Runtime) -> None:
        async with pair(runtime, Streams(echo)) as (server, pool):
            sent = bytes(range(256)) * 4096
            parts = [sent[at : at + 100_000] for at in range(0, len(sent), 100_000)]
            length = len(sent) if is_known else None
            for _ in range(3):
                body = body_of(*parts, length=length)
                async with pool.stream(
                    server.host, server.port, "POST", "/s", (), body, timeout_s=5.0
                ) as answer:
                    assert answer.status == 200
                    assert await everything(answer.stream) == sent
            async with pool.stream(server.host, server.port, "GET", "/s", timeout_s=5.0) as answer:
                assert await everything(answer.stream) == b""
            kept = await pool.request(
                server.host, server.port, "POST", "/w", body=b"x", timeout_s=5
            )
            assert kept.body == b"whole x"

    run(main, seed=seed)


def test_a_reader_that_stops_stops_the_sender_of_64_mib() -> None:
    """Of a request's 64 MiB the server takes no more than a bound while its handler reads none."""
    total = 64 * MiB
    go = asyncio.Event()
    taken = [0]

    async def slow(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        await go.wait()
        size = 0
        while part := await request.stream.read():  # type: ignore[union-attr]
            size += len(part)
        yield HttpResponse(200, (), str(size).encode())

    async def main(runtime: Runtime) -> None:
        async with pair(runtime, Streams(slow), pool_limits=PoolLimits(stall_s=60.0)) as (
            server,
            pool,
        ):
            body = long_body(total, taken)

            async def send() -> bytes:
                async with pool.stream(
                    server.host, server.port, "POST", "/s", (), body, timeout_s=60.0
                ) as answer:
                    return await everything(answer.stream)

            sending = asyncio.ensure_future(send())
            await asyncio.sleep(30.0)
            assert 0 < taken[0] <= HELD_BYTES_MAX
            go.set()
            assert await sending == str(total).encode()

    run(main)


def test_a_client_that_stops_reading_stops_the_handler_of_64_mib() -> None:
    """Of an answer's 64 MiB no more than a bound is made while its client reads none."""
    total = 64 * MiB
    taken = [0]

    async def answers(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), stream=long_body(total, taken))

    async def main(runtime: Runtime) -> None:
        limits = Limits(write_s=60.0)
        async with (
            pair(runtime, Streams(answers), limits) as (server, pool),
            pool.stream(server.host, server.port, "GET", "/s", timeout_s=5.0) as answer,
        ):
            await asyncio.sleep(30.0)
            assert 0 < taken[0] <= HELD_BYTES_MAX
            assert len(await everything(answer.stream)) == total

    run(main)


def test_a_client_that_stops_reading_for_long_is_cut() -> None:
    """A reader that has stopped is cut, and the handler is cancelled."""

    async def answers(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), stream=long_body(64 * MiB))

    streams = Streams(answers)

    async def main(runtime: Runtime) -> None:
        async with (
            pair(runtime, streams) as (server, pool),
            pool.stream(server.host, server.port, "GET", "/s", timeout_s=5.0) as answer,
        ):
            await asyncio.sleep(9.9)
            assert streams.ended == []
            await asyncio.sleep(3.1)
            assert streams.ended == ["CancelledError"]
            with pytest.raises(ConnectionLost):
                await everything(answer.stream)

    run(main)


def test_an_answer_that_breaks_off_never_looks_whole() -> None:
    """Chunks, a length, or neither: what a handler breaks off is an error at the client's."""

    async def breaks(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        body = Body(length=None, on_room=lambda: None)
        body.feed(b"half")
        asyncio.get_running_loop().call_later(1.0, body.fail, ConnectionLost("the upstream died"))
        known = [("content-length", "8")] if request.query else []
        yield HttpResponse(200, known, stream=body)

    streams = Streams(breaks)

    async def main(runtime: Runtime) -> None:
        async with pair(runtime, streams) as (server, pool):
            for target in ("/s", "/s?known"):
                async with pool.stream(
                    server.host, server.port, "GET", target, timeout_s=5.0
                ) as answer:
                    assert await answer.stream.read() == b"half"  # type: ignore[union-attr]
                    with pytest.raises(ConnectionLost):
                        await answer.stream.read()  # type: ignore[union-attr]
        assert streams.ended == ["ConnectionLost", "ConnectionLost"]

    run(main)


def test_nothing_is_made_for_a_client_that_has_gone() -> None:
    """A body that is never waited for ends with its connection, too, and not with its last byte."""
    taken = [0]

    async def answer(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), stream=long_body(64 * MiB, taken))

    async def main(_runtime: object) -> None:
        network = FakeNetwork()
        server = HttpServer(whole, network=network, streaming=Streams(answer))
        await server.start()
        client = network.client()
        client.feed(b"GET /s HTTP/1.1\r\nhost: x\r\n\r\n")
        # Its connection breaks at the first write, and the loop has yet to say so.
        client.breaks = True
        await settle()
        assert taken[0] <= HELD_BYTES_MAX
        await server.close()

    run(main)


def test_a_client_that_leaves_cancels_the_handler() -> None:
    """Leaving an answer half read closes the connection, and ends who works for it."""

    async def answers(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, (), stream=long_body(64 * MiB))

    streams = Streams(answers)

    async def main(runtime: Runtime) -> None:
        async with pair(runtime, streams) as (server, pool):
            async with pool.stream(server.host, server.port, "GET", "/s", timeout_s=5.0) as answer:
                await answer.stream.read()  # type: ignore[union-attr]
            await asyncio.sleep(1.0)
            assert streams.ended == ["CancelledError"]
            assert repr(pool).startswith("<HttpPool 0 endpoints, 0 connections")

    run(main)


def test_an_early_answer_ends_the_sending() -> None:
    """An answer that comes before the body's end is whole, and the connection is not kept."""

    async def refuses(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        await request.stream.read()  # type: ignore[union-attr]
        yield HttpResponse(403, (), b"not you")

    streams = Streams(refuses)
    taken = [0]

    async def main(runtime: Runtime) -> None:
        async with pair(runtime, streams) as (server, pool):
            body = long_body(64 * MiB, taken)
            async with pool.stream(
                server.host, server.port, "POST", "/s", (), body, timeout_s=5.0
            ) as answer:
                assert answer.status == 403
                assert await everything(answer.stream) == b"not you"
            await asyncio.sleep(2.0)
            assert taken[0] < 2 * MiB
            assert repr(pool).startswith("<HttpPool 0 endpoints, 0 connections")
        assert streams.ended == ["whole"]

    run(main)


def test_a_sender_that_breaks_off_never_looks_whole() -> None:
    """A body that its sender cuts ends the handler, in chunks and with a length."""
    streams = Streams(echo)

    async def main(runtime: Runtime) -> None:
        async with pair(runtime, streams) as (server, pool):

            async def half(body: Body) -> None:
                async with pool.stream(
                    server.host, server.port, "POST", "/s", (), body, timeout_s=5.0
                ) as answer:
                    assert await answer.stream.read() == b"half"  # type: ignore[union-attr]
                    body.fail(ConnectionLost("gone"))
                    await answer.stream.read()  # type: ignore[union-attr]

            for length in (None, 100):
                body = Body(length=length, on_room=lambda: None)
                body.feed(b"half")
                with pytest.raises(ConnectionLost):
                    await half(body)
                await asyncio.sleep(1.0)
        assert streams.ended == ["CancelledError", "CancelledError"]

    run(main)


def test_what_stands_still_is_timed_out() -> None:
    """Each time has its own bound: head, part, part of what has no length, and what is taken."""

    async def hangs(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        if request.query == "head":
            await asyncio.sleep(3600)
        if request.query == "take":
            await asyncio.sleep(3600)
        length = [("content-length", "9")] if request.query == "part" else ()
        yield HttpResponse(200, length, stream=Body(length=None, on_room=lambda: None))

    async def main(runtime: Runtime) -> None:
        loop = asyncio.get_running_loop()
        async with pair(runtime, Streams(hangs)) as (server, pool):
            for query, body, least_s in (
                ("head", None, 2.0),
                ("head", body_of(b"x"), 2.0),
                ("part", None, 10.0),
                ("event", None, 60.0),
                ("take", long_body(64 * MiB), 10.0),
            ):
                began_s = loop.time()
                with pytest.raises(TimedOut):
                    async with pool.stream(
                        server.host, server.port, "POST", f"/s?{query}", (), body, timeout_s=2.0
                    ) as answer:
                        await answer.stream.read()  # type: ignore[union-attr]
                assert least_s <= loop.time() - began_s < least_s + 3.0

    run(main)


def test_what_was_certainly_not_sent_is_told_apart() -> None:
    """No time left, and nobody there: nothing was sent, and nothing of the body was read."""

    async def main(runtime: Runtime) -> None:
        taken = [0]
        async with HttpPool(network=runtime.network) as pool:
            for timeout_s, error in ((0.0, DeadlineExceeded), (1.0, ConnectFailed)):
                with pytest.raises(error):
                    async with pool.stream(
                        "127.0.0.1",
                        4000,
                        "POST",
                        "/",
                        (),
                        long_body(MiB, taken),
                        timeout_s=timeout_s,
                    ):
                        pass
        assert taken == [0]

    run(main)


def test_a_stale_connection_is_replaced_for_what_may_be_sent_again() -> None:
    """A kept connection that turns out closed costs a GET nothing."""

    async def main(runtime: Runtime) -> None:
        network = FakeNetwork()
        async with HttpPool(network=network) as pool:

            async def get() -> bytes:
                async with pool.stream(
                    "a", 80, "GET", "/", timeout_s=5.0, is_idempotent=True
                ) as answer:
                    return await everything(answer.stream)

            asking = asyncio.ensure_future(get())
            await settle()
            network.made[0].feed(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            assert await asking == b"ok"
            asking = asyncio.ensure_future(get())
            await settle()
            network.made[0].close()
            await settle()
            network.made[1].feed(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnew")
            assert await asking == b"new"

    run(main)


@pytest.mark.parametrize("length", [3, None])
def test_a_whole_body_travels_on_a_kept_connection_and_is_sent_once(length: int | None) -> None:
    """In one write with its head; where the connection turns out closed the outcome is unknown."""

    async def main(runtime: Runtime) -> None:
        network = FakeNetwork()
        async with HttpPool(network=network) as pool:

            async def post(body: Body) -> bytes:
                async with pool.stream("a", 80, "POST", "/", (), body, timeout_s=5.0) as answer:
                    return await everything(answer.stream)

            for number in range(3):
                body = body_of(b"ab", b"c", length=length)
                asking = asyncio.ensure_future(post(body))
                await settle()
                (made,) = network.made
                assert made.sent.count(b"POST") == number + 1
                assert made.sent.endswith(b"\r\n\r\nabc" if length else b"3\r\nabc\r\n0\r\n\r\n")
                assert body.is_touched
                made.feed(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert await asking == b""
            asking = asyncio.ensure_future(post(body_of(b"abc", length=length)))
            await settle()
            made.close()
            with pytest.raises(ConnectionLost):
                await asking
            assert len(network.made) == 1

    run(main)


def test_a_body_that_is_still_coming_gets_a_connection_of_its_own() -> None:
    """It cannot be sent again, and holds no place of those that wait for an answer."""

    async def main(runtime: Runtime) -> None:
        network = FakeNetwork()
        async with HttpPool(network=network) as pool:

            async def post(body: Body) -> bytes:
                async with pool.stream("a", 80, "POST", "/", (), body, timeout_s=5.0) as answer:
                    return await everything(answer.stream)

            for number in range(2):
                body = open_body(b"a", length=2)
                asking = asyncio.ensure_future(post(body))
                await settle()
                body.feed(b"b")
                body.end()
                await settle()
                assert len(network.made) == number + 1
                network.made[number].feed(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert await asking == b""

    run(main)


def test_an_answer_begun_before_the_drain_is_followed_by_one_more() -> None:
    """Its head promised that the connection stays: the client may be sending already."""

    async def main(runtime: Runtime) -> None:
        parts: asyncio.Queue[bytes] = asyncio.Queue()

        class Parts:
            async def __call__(self, request: HttpRequest) -> HttpResponse:
                return HttpResponse(200, (), request.path.encode())

            def body_max(self, method: str, path: str, pairs: object) -> int | None:
                return 0 if path == "/parts" else None

            @asynccontextmanager
            async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
                body = Body(length=None, on_room=lambda: None)
                body.feed(await parts.get())
                asyncio.get_running_loop().call_later(1.0, body.end)
                yield HttpResponse(200, (), stream=body)

        network, handler = FakeNetwork(), Parts()
        server = HttpServer(handler, network=network, streaming=handler)
        await server.start()
        client, late = network.client(), network.client()
        for each in (client, late):
            each.feed(b"GET /parts HTTP/1.1\r\nhost: x\r\n\r\n")
            parts.put_nowait(b"part")
        await settle()
        assert b"part" in client.sent
        draining = asyncio.ensure_future(server.drain(9.0, idle_s=5.0))
        await asyncio.sleep(1.1)
        assert (client.has_eof,) == (False,)
        client.feed(b"GET /next HTTP/1.1\r\nhost: x\r\n\r\n")
        await settle()
        assert bytes(client.sent).endswith(b"/next")
        assert bytes(client.sent).count(b"connection: close") == 1
        assert (client.has_eof,) == (True,)
        client.hang_up()
        await asyncio.sleep(3.8)
        assert (late.has_eof,) == (False,)
        await asyncio.sleep(0.2)
        assert (late.has_eof,) == (True,)
        late.hang_up()
        assert await draining == 0

    run(main)


def test_what_nobody_reads_to_its_end_costs_only_what_was_still_to_come() -> None:
    """An answer that is there is left unread and its connection kept; one that comes is reset."""

    async def main(_runtime: Runtime) -> None:
        network = FakeNetwork()
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2 * FULL_BYTES)
        async with HttpPool(network=network) as pool:

            async def leave() -> None:
                async with pool.stream("a", 80, "GET", "/", timeout_s=5.0):
                    pass

            for part in (bytes(2 * FULL_BYTES), bytes(FULL_BYTES)):
                leaving = asyncio.ensure_future(leave())
                await settle()
                network.made[0].feed(head + part)
                await leaving
            await settle()
            assert network.made[0].was_aborted
            assert len(network.made) == 1

    run(main)


def test_a_drain_lets_a_stream_end() -> None:
    """A stream that was accepted is answered whole while the server drains."""

    async def answers(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        body = Body(length=None, on_room=lambda: None)
        loop = asyncio.get_running_loop()
        for number in range(5):
            loop.call_later(0.5 * number, body.feed, b"%d" % number)
        loop.call_later(2.5, body.end)
        yield HttpResponse(200, (), stream=body)

    async def main(runtime: Runtime) -> None:
        async with (
            pair(runtime, Streams(answers)) as (server, pool),
            pool.stream(server.host, server.port, "GET", "/s", timeout_s=5.0) as answer,
        ):
            draining = asyncio.ensure_future(server.drain(5.0))
            assert await everything(answer.stream) == b"01234"
            assert await draining == 0

    run(main)


# -- one connection, byte by byte ---------------------------------------------------------------

Test = Callable[["Stage"], Coroutine[object, object, None]]


class Stage:
    """A server on a scripted network."""

    def __init__(self, streams: Streams, limits: Limits) -> None:
        self.streams, self.network = streams, FakeNetwork()
        self.server = HttpServer(whole, network=self.network, limits=limits, streaming=streams)

    async def client(self, *sent: bytes) -> FakeTransport:
        client = self.network.client()
        for data in sent:
            client.feed(data)
        await settle()
        return client


def staged(answer: Answer, test: Test, *, limits: Limits | None = None, longest: int = MiB) -> None:
    async def main(_runtime: object) -> None:
        stage = Stage(Streams(answer, longest=longest), limits or Limits())
        await stage.server.start()
        try:
            await test(stage)
        finally:
            await stage.server.close()

    run(main)


async def reads(request: HttpRequest) -> AsyncIterator[HttpResponse]:
    """Answer once the body is whole."""
    yield HttpResponse(200, (), await everything(request.stream))


async def ignores(request: HttpRequest) -> AsyncIterator[HttpResponse]:
    """Answer without a look at the body."""
    yield HttpResponse(401, (), b"who are you")


def post(*fields: str, target: str = "/s", version: str = "1.1") -> bytes:
    return "\r\n".join([f"POST {target} HTTP/{version}", "host: x", *fields, "", ""]).encode()


CHUNKED = post("transfer-encoding: chunked")
FOLLOWER = b"GET /w HTTP/1.1\r\nhost: x\r\n\r\n"


def test_continue_is_said_when_the_body_is_asked_for() -> None:
    """100 Continue comes with the first read, once; who is refused before never gets it."""

    async def asked(stage: Stage) -> None:
        head = post("content-length: 3", "expect: 100-continue")
        client = await stage.client(head)
        assert bytes(client.sent) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await asyncio.sleep(9.0)
        client.feed(b"abc" + FOLLOWER)
        await settle()
        assert bytes(client.sent).count(b"HTTP/1.1 100") == 1
        assert bytes(client.sent).count(b"HTTP/1.1 200") == 2
        assert not client.has_eof

    async def refused(stage: Stage) -> None:
        client = await stage.client(post("content-length: 3", "expect: 100-continue"))
        assert bytes(client.sent).startswith(b"HTTP/1.1 401")
        assert b"connection: close" in client.sent
        assert client.has_eof

    staged(reads, asked)
    staged(ignores, refused)


def test_continue_is_not_said_within_an_answer() -> None:
    """An answer that has begun takes its place: in the middle of it, it would be read as its body.

    Who sends nothing then is slow.
    """

    async def sends(stage: Stage) -> None:
        client = await stage.client(post("content-length: 3", "expect: 100-continue"))
        client.feed(b"abc")
        await settle()
        assert bytes(client.sent).count(b"HTTP/1.1 ") == 1
        assert bytes(client.sent).endswith(b"\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    async def waits(stage: Stage) -> None:
        client = await stage.client(post("content-length: 3", "expect: 100-continue"))
        await asyncio.sleep(10.5)
        assert client.is_closing()

    staged(echo, sends)
    staged(echo, waits)


def test_waiting_for_continue_is_not_being_slow() -> None:
    """A client that waits for 100 Continue is not timed while the handler takes its time."""

    async def thinks(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        await asyncio.sleep(60.0)
        yield HttpResponse(200, (), await everything(request.stream))

    async def test(stage: Stage) -> None:
        client = await stage.client(post("content-length: 3", "expect: 100-continue"))
        await asyncio.sleep(61.0)
        client.feed(b"abc")
        await settle()
        assert bytes(client.sent).endswith(b"\r\n\r\nabc")

    staged(thinks, test)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (CHUNKED + b"3\r\nabc\r\nzz\r\n", 400),
        (CHUNKED + b"3\r\nabcXX0\r\n\r\n", 400),
        (CHUNKED + b"8\r\nabcdefgh\r\n3\r\nijk\r\n0\r\n\r\n", 413),
        (post("content-length: 11") + b"abcdefghijk", 413),
        (post("content-length: 3", "transfer-encoding: chunked"), 400),
        (post("content-length: 3", "content-length: 3") + b"abc", 400),
        (post("transfer-encoding: chunked", version="1.0"), 400),
        (post("transfer-encoding: gzip, chunked"), 501),
        (post("content-length: 3", "expect: more"), 417),
    ],
)
def test_what_is_odd_is_refused_in_mid_stream_too(raw: bytes, status: int) -> None:
    """A bad or too long body cancels its handler, is told, and closes; nothing behind it is run."""

    async def test(stage: Stage) -> None:
        for piece in ([raw + FOLLOWER], [raw, FOLLOWER], [bytes([b]) for b in raw]):
            client = stage.network.client()
            for data in piece:
                client.feed(data)
            await settle()
            assert bytes(client.sent).startswith(b"HTTP/1.1 %d" % status)
            assert bytes(client.sent).count(b"HTTP/1.1 ") == 1
            assert b"connection: close" in client.sent
            assert client.has_eof
        assert set(stage.streams.ended) <= {"CancelledError"}

    staged(reads, test, longest=10)


def test_a_refusal_after_the_answer_began_cuts_it_off() -> None:
    """A body that breaks its word while its answer is being sent leaves no whole answer."""

    async def test(stage: Stage) -> None:
        client = await stage.client(CHUNKED + b"3\r\nabc\r\n")
        assert bytes(client.sent).endswith(b"3\r\nabc\r\n")
        client.feed(b"zz\r\n")
        await settle()
        assert client.was_aborted
        assert b"0\r\n\r\n" not in client.sent
        assert stage.streams.ended == ["CancelledError"]

    staged(echo, test)


def test_a_slow_sender_of_a_stream_is_cut() -> None:
    """Less than body_bytes_min in body_s is 408 and the end; more may go on for ever."""

    async def test(stage: Stage) -> None:
        fast, slow = await stage.client(CHUNKED), await stage.client(CHUNKED)
        for _ in range(10):
            await asyncio.sleep(5.0)
            fast.feed(b"1000\r\n" + bytes(4096) + b"\r\n")
            slow.feed(b"1\r\na\r\n")
        fast.feed(b"0\r\n\r\n")
        await settle()
        assert bytes(slow.sent).startswith(b"HTTP/1.1 408")
        assert slow.is_lost
        assert bytes(fast.sent).startswith(b"HTTP/1.1 200")
        assert sorted(stage.streams.ended) == ["CancelledError", "whole"]

    staged(reads, test)


def test_a_sender_that_stops_is_cut_ten_seconds_later() -> None:
    """However fast it was before, who sends nothing for body_s is cut then."""

    async def test(stage: Stage) -> None:
        client = await stage.client(CHUNKED)
        await asyncio.sleep(9.0)
        client.feed(b"2000\r\n" + bytes(8192) + b"\r\n")
        await asyncio.sleep(9.9)
        assert not client.sent
        await asyncio.sleep(0.2)
        assert bytes(client.sent).startswith(b"HTTP/1.1 408")

    staged(reads, test)


def test_a_sender_that_is_held_back_is_not_slow() -> None:
    """While nobody reads the body, reading is paused and no time runs."""
    go = asyncio.Event()

    async def waits(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        await go.wait()
        yield HttpResponse(200, (), str(len(await everything(request.stream))).encode())

    async def test(stage: Stage) -> None:
        client = await stage.client(post("content-length: 200000"), bytes(100_000))
        assert client.is_paused
        await asyncio.sleep(600.0)
        assert not client.sent
        go.set()
        await settle()
        client.feed(bytes(100_000))
        await settle()
        assert bytes(client.sent).endswith(b"200000")

    staged(waits, test)


def test_an_answer_before_the_end_of_its_request_closes() -> None:
    """What is left of the body is dropped, and so is what would come behind it."""

    async def test(stage: Stage) -> None:
        client = await stage.client(post("content-length: 9") + b"abc")
        assert bytes(client.sent).startswith(b"HTTP/1.1 401")
        assert b"connection: close" in client.sent
        assert client.has_eof
        client.feed(b"defghi" + FOLLOWER)
        await settle()
        assert bytes(client.sent).count(b"HTTP/1.1 ") == 1
        await asyncio.sleep(1.1)
        assert client.is_lost
        assert stage.streams.ended == ["whole"]

    staged(ignores, test)


def test_streams_and_whole_requests_keep_their_order() -> None:
    """Pipelined, each is answered in its turn and the connection stays."""

    async def test(stage: Stage) -> None:
        one = post("content-length: 3") + b"abc"
        two = post("content-length: 3", target="/w") + b"def"
        three = CHUNKED + b"3\r\nghi\r\n0\r\n\r\n"
        client = await stage.client(one + two + three + FOLLOWER)
        found = [bytes(client.sent).index(text) for text in (b"abc", b"whole def", b"ghi")]
        assert found == sorted(found)
        assert bytes(client.sent).endswith(b"whole ")
        assert not client.has_eof

    staged(echo, test)


def test_a_stream_that_waits_for_its_turn_is_bounded() -> None:
    """Behind another request a body is read up to its bound, and goes on in its turn."""
    go = asyncio.Event()

    async def waits(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        if request.query:
            await go.wait()
        yield HttpResponse(200, (), str(len(await everything(request.stream))).encode())

    async def test(stage: Stage) -> None:
        first = post("content-length: 1", target="/s?wait") + b"x"
        client = await stage.client(first + post("content-length: 300000"), bytes(200_000))
        assert client.is_paused
        go.set()
        await settle()
        client.feed(bytes(100_000))
        await settle()
        assert bytes(client.sent).endswith(b"300000")

    staged(waits, test)


def test_a_bad_body_that_waits_for_its_turn_is_never_begun() -> None:
    """A body that turns out bad behind another request is refused in its turn."""
    go = asyncio.Event()
    begun: list[str] = []

    async def waits(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        begun.append(request.target)
        await go.wait()
        yield HttpResponse(200, (), await everything(request.stream))

    async def test(stage: Stage) -> None:
        first = post("content-length: 1", target="/s?wait") + b"x"
        client = await stage.client(first + CHUNKED + b"3\r\nabc\r\nzz\r\n")
        go.set()
        await settle()
        assert begun == ["/s?wait"]
        assert [bytes(client.sent).count(b"HTTP/1.1 %d" % n) for n in (200, 400)] == [1, 1]
        assert client.has_eof

    staged(waits, test)


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        ("HEAD", 200, [b"content-length: 5"]),
        ("GET", 204, []),
        ("GET", 304, []),
    ],
)
def test_what_has_no_body_has_none(method: str, status: int, expected: list[bytes]) -> None:
    """HEAD keeps the length and sends no body; 204 and 304 have neither; the connection stays."""

    async def answers(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        body = body_of(b"abcde", length=5)
        yield HttpResponse(status, [("content-length", "5"), ("etag", '"1"')], stream=body)

    async def test(stage: Stage) -> None:
        client = await stage.client(f"{method} /s HTTP/1.1\r\nhost: x\r\n\r\n".encode() + FOLLOWER)
        head, _, rest = bytes(client.sent).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert [line for line in lines if line.startswith(b"content-length")] == expected
        assert b"transfer-encoding" not in head
        assert rest.startswith(b"HTTP/1.1 200 OK\r\n")

    staged(answers, test)


def test_an_old_client_gets_its_body_to_the_end_of_the_connection() -> None:
    """HTTP/1.0 knows no chunks: the body ends with the connection, or is reset when cut."""

    async def answers(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        body = Body(length=None, on_room=lambda: None)
        body.feed(b"abc")
        if request.query:
            asyncio.get_running_loop().call_later(1.0, body.fail, ConnectionLost("died"))
        else:
            body.end()
        yield HttpResponse(200, (), stream=body)

    async def test(stage: Stage) -> None:
        client = await stage.client(b"GET /s HTTP/1.0\r\n\r\n")
        assert bytes(client.sent) == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc"
        assert client.has_eof
        cut = await stage.client(b"GET /s?cut HTTP/1.0\r\n\r\n")
        await asyncio.sleep(2.0)
        assert cut.was_aborted
        assert not cut.has_eof

    staged(answers, test)


def test_a_handler_that_lies_about_its_length_is_cut_off() -> None:
    """More or less than the announced length never ends as if it were whole."""

    async def lies(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield HttpResponse(200, [("content-length", request.query)], stream=body_of(b"abc"))

    async def test(stage: Stage) -> None:
        for length in (2, 4):
            client = await stage.client(b"GET /s?%d HTTP/1.1\r\nhost: x\r\n\r\n" % length)
            assert client.was_aborted

    staged(lies, test)


def test_a_handler_that_fails_is_500_and_closes() -> None:
    """What raises before its answer is told without internals; the rest of the body is dropped."""

    async def fails(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        if request.target:
            raise ValueError("select * from secrets")
        yield HttpResponse(200)

    async def test(stage: Stage) -> None:
        client = await stage.client(post("content-length: 9") + b"abc")
        assert bytes(client.sent).startswith(b"HTTP/1.1 500")
        assert b"secrets" not in client.sent
        assert client.has_eof

    staged(fails, test)


# -- values -------------------------------------------------------------------------------------


@given(parts=st.lists(st.binary(max_size=40)), is_known=st.booleans())
def test_a_framed_body_is_read_back_as_it_was(parts: list[bytes], is_known: bool) -> None:
    """Whatever the parts, and empty ones among them, they are one body on the wire."""
    total = b"".join(parts)
    framing = Framing(length=len(total) if is_known else None)
    head = "\r\n".join(["POST /s HTTP/1.1", "host: x", *framing.fields, "", ""]).encode()
    wire = head + b"".join(framing.part(part) for part in parts) + framing.end()

    async def test(stage: Stage) -> None:
        client = await stage.client(wire + FOLLOWER)
        assert bytes(client.sent).partition(b"\r\n\r\n")[2].startswith(total)
        assert bytes(client.sent).endswith(b"whole ")

    staged(reads, test)


def test_a_body_is_full_at_its_bound_and_has_room_again() -> None:
    """A body counts what is unread; a read takes all of it, and says so."""
    told: list[int] = []

    async def main(_runtime: object) -> None:
        body = Body(length=None, on_room=lambda: told.append(body.size))
        was_full = []
        for part in (bytes(FULL_BYTES - 1), b"x"):
            body.feed(part)
            was_full.append(body.is_full)
        assert was_full == [False, True]
        assert len(await body.read()) == FULL_BYTES
        assert told == [0]
        assert repr(body) == "<Body coming, 0 bytes unread>"
        body.fail(CallError("broken"))
        assert repr(body) == "<Body broken, 0 bytes unread>"
        with pytest.raises(CallError):
            await body.read()

    run(main)
