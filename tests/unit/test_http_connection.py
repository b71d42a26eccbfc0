"""One server connection in virtual time: order, limits, slow clients, drain, clients that leave."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from http_fakes import FakeNetwork, FakeTransport
from synchromesh.errors import ConfigError
from synchromesh.http import Headers, HttpRequest, HttpResponse, HttpServer, Limits
from synchromesh.testing import run

pytestmark = pytest.mark.usefixtures("http_way")

Test = Callable[["Stage"], Coroutine[object, object, None]]


class Stage:
    """A server on a scripted network whose handler waits for gates and keeps what happened."""

    def __init__(self, limits: Limits) -> None:
        self.network = FakeNetwork()
        self.server = HttpServer(self.handle, network=self.network, limits=limits)
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.bodies: list[bytes] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def handle(self, request: HttpRequest) -> HttpResponse:
        self.started.append(request.target)
        self.bodies.append(request.body)
        gate = self.gates.get(request.target)
        try:
            if gate is not None:
                await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.target)
            raise
        return HttpResponse(200, (), request.target.encode())

    def gate(self, target: str) -> asyncio.Event:
        return self.gates.setdefault(target, asyncio.Event())


def staged(test: Test, limits: Limits | None = None) -> None:
    """Run a test in virtual time with a server that has started."""

    async def main(_runtime: object) -> None:
        stage = Stage(limits or Limits())
        await stage.server.start()
        try:
            await test(stage)
        finally:
            await stage.server.close()

    run(main)


def get(target: str, *fields: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", "host: x", *fields, "", ""]
    return "\r\n".join(lines).encode()


def post(target: str, length: int, body: bytes, *fields: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "host: x", f"content-length: {length}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def answers(client: FakeTransport) -> list[tuple[int, bytes]]:
    """Read the statuses and bodies of what was sent."""
    found: list[tuple[int, bytes]] = []
    rest = bytes(client.sent)
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next((int(x[16:]) for x in lines if x.startswith(b"content-length: ")), 0)
        found.append((int(lines[0][9:12]), rest[:length]))
        rest = rest[length:]
    return found


def has_ended(client: FakeTransport) -> bool:
    return client.has_eof


async def settle() -> None:
    """Let everything run that is ready."""
    await asyncio.sleep(0.001)


# -- order and flow ------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order_one_at_a_time() -> None:
    """A slow first request holds back the ones behind it, and nothing overtakes."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        client = stage.network.client()
        client.feed(get("/slow") + get("/b") + get("/c"))
        await asyncio.sleep(5.0)
        assert stage.started == ["/slow"]
        assert answers(client) == []
        slow.set()
        await settle()
        assert answers(client) == [(200, b"/slow"), (200, b"/b"), (200, b"/c")]

    staged(test)


def test_a_deep_pipeline_pauses_reading_and_loses_nothing() -> None:
    """What is parsed ahead is bounded; the rest waits unread and is answered in its turn."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        client = stage.network.client()
        client.feed(get("/slow") + b"".join(get(f"/{i}") for i in range(2000)))
        await settle()
        assert client.is_paused
        # Waiting for its turn makes no client slow.
        await asyncio.sleep(100.0)
        assert not client.is_closing()
        slow.set()
        await asyncio.sleep(1.0)
        assert [body for _, body in answers(client)] == [
            b"/slow",
            *(f"/{i}".encode() for i in range(2000)),
        ]
        assert not client.is_paused

    staged(test, Limits(pipeline_max=4, idle_s=1000.0))


def test_bytes_that_were_on_their_way_when_reading_paused_are_kept() -> None:
    """A transport may hand over one more piece after it was paused."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        client = stage.network.client()
        client.feed(get("/slow") + b"".join(get("/" + "x" * 200) for _ in range(100)))
        assert client.is_paused
        stage_end = get("/end")
        client.protocol.data_received(stage_end[:9])
        client.protocol.data_received(stage_end[9:])
        slow.set()
        await settle()
        assert len(answers(client)) == 102
        assert answers(client)[-1] == (200, b"/end")

    staged(test, Limits(pipeline_max=2))


def test_a_refusal_during_a_pause_reads_on_until_the_client_closes() -> None:
    """The end of a connection that was paused drops what is unread and sees the client's end."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        client = stage.network.client()
        client.feed(get("/slow") + b"".join(get("/" + "x" * 200) for _ in range(100)))
        draining = asyncio.ensure_future(stage.server.drain(1.0))
        await settle()
        slow.set()
        await settle()
        assert has_ended(client)
        assert not client.is_paused
        client.hang_up()
        assert await draining == 0

    staged(test, Limits(pipeline_max=2))


def test_a_request_cut_by_the_pause_gets_its_full_time_afterwards() -> None:
    """The clock of a half-read request stands still while the server does not read."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        client = stage.network.client()
        whole = get("/slow") + b"".join(get("/" + "x" * 200 + str(i)) for i in range(200))
        client.feed(whole + b"GET /late HT")
        await asyncio.sleep(50.0)
        slow.set()
        await asyncio.sleep(9.0)
        client.feed(b"TP/1.1\r\nhost: x\r\n\r\n")
        await settle()
        assert answers(client)[-1] == (200, b"/late")

    staged(test, Limits(pipeline_max=2))


def test_the_next_request_waits_until_the_client_takes_the_last_answer() -> None:
    """A client that does not read gets nothing more done."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(get("/a"))
        client.feed(get("/b"))
        await settle()
        assert stage.started == ["/a"]
        client.takes = True
        client.take(client.unsent)
        await settle()
        assert stage.started == ["/a", "/b"]

    staged(test)


@given(cuts=st.lists(st.integers(0, 400), max_size=12))
def test_how_the_bytes_are_cut_changes_nothing(cuts: list[int]) -> None:
    """Any slicing of a pipeline gives the same requests and answers."""
    chunked = (
        b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nx-trailer: 1\r\n\r\n"
    )
    whole = get("/a") + post("/b", 5, b"hello") + chunked + get("/d", "connection: close")

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        edges = [0, *sorted(cuts), len(whole)]
        for start, end in itertools.pairwise(edges):
            client.feed(whole[start:end])
        await settle()
        assert [body for _, body in answers(client)] == [b"/a", b"/b", b"/c", b"/d"]
        assert stage.bodies == [b"", b"hello", b"abcde", b""]
        assert client.has_eof

    staged(test)


def test_a_request_has_what_the_wire_said() -> None:
    """Target, path and query stay encoded; names are lower case; the peer is named."""
    seen: list[HttpRequest] = []

    async def keep(request: HttpRequest) -> HttpResponse:
        seen.append(request)
        return HttpResponse(204)

    async def main(_runtime: object) -> None:
        network = FakeNetwork()
        server = HttpServer(keep, network=network)
        await server.start()
        network.client().feed(get("http://x/a%20b?c=%64?e", "X-A:  1  ", "x-a: 2"))
        await settle()
        await server.close()

    run(main)
    headers = Headers([("host", "x"), ("x-a", "1"), ("x-a", "2")])
    assert [msgspec.structs.replace(each, connection=None) for each in seen] == [
        HttpRequest("GET", "/a%20b?c=%64?e", "/a%20b", "c=%64?e", headers, b"", "10.0.0.1:4711")
    ]


# -- continue ------------------------------------------------------------------------------------


def test_a_client_that_waits_is_told_to_continue() -> None:
    """100 Continue comes before the body, after all earlier answers, and only if it is awaited."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        client = stage.network.client()
        client.feed(get("/slow") + post("/p", 3, b"", "expect: 100-continue"))
        await settle()
        assert client.sent == b""
        slow.set()
        await settle()
        assert client.sent.endswith(b"/slowHTTP/1.1 100 Continue\r\n\r\n")
        client.feed(b"abc")
        await settle()
        assert client.sent.endswith(b"\r\n\r\n/p")
        client.feed(post("/q", 3, b"abc", "expect: 100-continue"))
        await settle()
        assert bytes(client.sent).count(b"100 Continue") == 1

    staged(test)


# -- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (413, post("/", 11, b"")),
        (413, post("/", 11, b"", "expect: 100-continue")),
        (413, get("/", "transfer-encoding: chunked") + b"b\r\n01234567890\r\n"),
        (413, get("/", "transfer-encoding: chunked") + b"6\r\n012345\r\n6\r\n678901\r\n"),
        (431, get("/", *[f"a{i}: b" for i in range(10)])),
        (431, get("/" + "a" * 500)),
        (431, get("/", "a: " + "b" * 500)),
        (431, get("/", "transfer-encoding: chunked") + b"0\r\na: " + b"b" * 500 + b"\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nhost: x\r\na: " + b"b" * 40_000),
        (431, get("/", "transfer-encoding: chunked") + b"3;" + b"b" * 40_000),
        (431, b"GET /" + b"a" * 500),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_kept(status: int, raw: bytes) -> None:
    """Head, fields, trailers, chunk extensions and bodies are bounded, ended or not."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(raw + get("/follower"))
        await settle()
        assert [code for code, _ in answers(client)] == [status]
        assert client.has_eof
        assert stage.started == []
        client.feed(b"x" * 1_000_000)
        await asyncio.sleep(2.0)
        assert client.was_aborted

    staged(test, Limits(head_bytes_max=400, headers_max=5, body_bytes_max=10))


def test_one_connection_too_many_is_told_so_and_more_are_reset() -> None:
    """connections_max that work are served; as many again are answered 503; others are dropped."""

    async def test(stage: Stage) -> None:
        gate = stage.gate("/a")
        clients = [stage.network.client() for _ in range(2)]
        for client in clients:
            client.feed(get("/a"))
        clients += [stage.network.client() for _ in range(3)]
        await settle()
        assert [answers(client)[:1] != [] for client in clients] == [False] * 2 + [True] * 2 + [
            False
        ]
        status, body = answers(clients[2])[0]
        assert status == 503
        assert b'"code":"shed"' in body
        assert clients[4].was_aborted
        gate.set()
        await settle()
        assert answers(clients[0]) == [(200, b"/a")]

    staged(test, Limits(connections_max=2))


def test_a_client_of_idle_connections_shuts_nobody_out() -> None:
    """For each that comes an idle one is closed, used or not, and none that works."""

    async def test(stage: Stage) -> None:
        gate = stage.gate("/slow")
        busy = stage.network.client()
        busy.feed(get("/slow"))
        idle = [stage.network.client() for _ in range(3)]
        idle[0].feed(get("/a"))
        for _ in range(20):
            newcomer = stage.network.client()
            newcomer.feed(get("/b"))
            await settle()
            assert answers(newcomer) == [(200, b"/b")]
        assert [client.is_lost for client in idle] == [True] * 3
        gate.set()
        await settle()
        assert answers(busy) == [(200, b"/slow")]

    staged(test, Limits(connections_max=4))


def test_a_burst_over_one_idle_connection_gets_no_more_places() -> None:
    """The limit holds within the turn in which that one is about to close."""

    async def test(stage: Stage) -> None:
        for _ in range(3):
            stage.gate("/slow")
            stage.network.client().feed(get("/slow"))
        stage.network.client()
        burst = [stage.network.client() for _ in range(40)]
        for client in burst:
            client.feed(b"GE")
        assert sum(not client.was_aborted for client in stage.network.made) <= 8
        await settle()
        # Those that work, and the newest of those that were idle.
        assert sum(not client.is_lost for client in stage.network.made) == 4
        assert not burst[-1].is_lost

    staged(test, Limits(connections_max=4))


def test_a_client_that_is_slow_to_take_its_answer_is_not_idle() -> None:
    """What it has not taken is not lost for a newcomer's place."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(get("/a"))
        await settle()
        newcomer = stage.network.client()
        await settle()
        assert not client.is_closing()
        assert [status for status, _ in answers(newcomer)] == [503]
        client.take(client.unsent)
        third = stage.network.client()
        third.feed(get("/b"))
        await settle()
        assert client.is_lost
        assert answers(third) == [(200, b"/b")]

    staged(test, Limits(connections_max=1))


# -- time ----------------------------------------------------------------------------------------


def test_a_client_that_sends_nothing_is_closed() -> None:
    """A connection without a request is open for head_s at first and idle_s later."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        await asyncio.sleep(9.9)
        client.feed(get("/a"))
        await asyncio.sleep(9.9)
        assert not has_ended(client)
        await asyncio.sleep(0.2)
        assert client.has_eof
        assert len(answers(client)) == 1
        await asyncio.sleep(1.1)
        assert client.was_aborted

    staged(test)


def test_blank_lines_do_not_keep_a_connection_open() -> None:
    """CRLF before a request is skipped, but is no request."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        for _ in range(11):
            client.feed(b"\r\n")
            await asyncio.sleep(1.0)
        assert client.has_eof

    staged(test)


@pytest.mark.parametrize(
    ("start", "phase"), [(b"GET / HT", b"head"), (post("/", 3, b"a"), b"body")]
)
def test_a_slow_request_is_answered_408_and_cut(start: bytes, phase: bytes) -> None:
    """Bytes that trickle do not buy time: the clock runs from the first one."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        await asyncio.sleep(5.0)
        client.feed(start)
        await asyncio.sleep(9.9)
        assert client.sent == b""
        await asyncio.sleep(0.2)
        status, body = answers(client)[0]
        assert status == 408
        assert phase in body
        assert client.has_eof
        assert stage.started == []

    staged(test)


def test_a_slow_body_gets_the_time_of_bodies() -> None:
    """body_s runs from the end of the head, whatever the head took."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1")
        await asyncio.sleep(8.0)
        client.feed(b"\r\n\r\n")
        await asyncio.sleep(3.9)
        client.feed(b"a")
        await settle()
        assert [code for code, _ in answers(client)] == [200]

    staged(test, Limits(head_s=10.0, body_s=4.0))


def test_a_slow_handler_is_no_slow_client() -> None:
    """Only what the client owes is timed."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        client = stage.network.client()
        client.feed(get("/slow"))
        await asyncio.sleep(300.0)
        slow.set()
        await settle()
        assert answers(client) == [(200, b"/slow")]

    staged(test)


def test_a_client_that_does_not_read_is_cut() -> None:
    """An answer that is not taken for write_s ends the connection."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(get("/a"))
        await asyncio.sleep(9.8)
        assert not client.was_aborted
        await asyncio.sleep(0.4)
        assert client.was_aborted

    staged(test)


def test_a_client_that_reads_by_drips_is_cut_and_a_steady_one_is_not() -> None:
    """In each write_s at least write_bytes_min have to be taken."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(get("/" + "a" * 2000))
        for _ in range(3):
            await asyncio.sleep(8.0)
            client.take(500)
        assert not client.was_aborted
        client.take(10)
        await asyncio.sleep(13.0)
        assert client.was_aborted

    staged(test, Limits(write_bytes_min=500))


# -- leaving -------------------------------------------------------------------------------------


def test_a_client_that_leaves_cancels_its_handler() -> None:
    """No handler works for a client that has gone, and what waited behind it is not begun."""

    async def test(stage: Stage) -> None:
        stage.gate("/slow")
        client = stage.network.client()
        client.feed(get("/slow") + get("/b"))
        await settle()
        client.hang_up()
        await settle()
        assert stage.cancelled == ["/slow"]
        assert stage.started == ["/slow"]
        assert repr(stage.server) == "<HttpServer http://127.0.0.1:4000, 0 connections>"

    staged(test)


def test_an_answer_that_closes_ends_the_connection() -> None:
    """`connection: close` of either side ends it after the answer, and so does HTTP/1.0."""

    async def close(_request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, [("connection", "Close")], b"bye")

    async def main(_runtime: object) -> None:
        network = FakeNetwork()
        server = HttpServer(close, network=network)
        await server.start()
        half = post("/b", 3, b"", "expect: 100-continue")
        for follower in (get("/b"), b"GET /b HT", half, get("/b") * 2000):
            client = network.client()
            client.feed(get("/a") + follower)
            await settle()
            assert answers(client) == [(200, b"bye")]
            assert client.has_eof
            assert not client.is_paused
        await server.close()

    run(main)

    async def test(stage: Stage) -> None:
        for raw in (
            get("/a", "connection: close"),
            b"GET /a HTTP/1.0\r\n\r\n",
            b"GET /a HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
        ):
            client = stage.network.client()
            client.feed(raw + get("/b"))
            await settle()
            assert answers(client) == [(200, b"/a")]
            assert b"connection: close" in client.sent
            assert client.has_eof

    staged(test)


def test_a_transport_that_cannot_half_close_is_closed() -> None:
    """Lingering is a courtesy of TCP; elsewhere the connection just closes."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.can_half_close = False
        client.feed(get("/a", "connection: close"))
        await settle()
        assert client.is_lost
        assert not client.was_aborted

    staged(test)


def test_a_client_that_resets_after_its_answer_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Health checks do: the end that is said to them finds no connection, and nothing is logged."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.has_reset = True
        client.feed(get("/a", "connection: close"))
        await settle()
        assert answers(client) == [(200, b"/a")]
        assert client.is_lost
        assert caplog.records == []

    staged(test)


def test_the_end_is_said_once_the_answer_has_left() -> None:
    """Said before that, a reset in between would be logged by asyncio itself."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(get("/a", "connection: close"))
        await settle()
        assert not client.has_eof
        client.take(client.unsent)
        assert client.has_eof

    staged(test)


# -- handlers that fail --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ValueError("s3cret"), "a handler failed"),
        (asyncio.CancelledError("s3cret"), "a handler was cancelled"),
        (None, "a handler failed"),
    ],
)
def test_a_handler_that_fails_is_answered_500_without_internals(
    failure: BaseException | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client learns that it failed, the log learns why, and the connection goes on."""

    async def fail(request: HttpRequest) -> HttpResponse:
        if request.target == "/b":
            return HttpResponse(200)
        if failure is not None:
            raise failure
        return "no answer"  # type: ignore[return-value]

    async def main(_runtime: object) -> None:
        network = FakeNetwork()
        server = HttpServer(fail, network=network)
        await server.start()
        client = network.client()
        client.feed(get("/a") + get("/b"))
        await settle()
        (status, body), (second, _) = answers(client)
        assert (status, second) == (500, 200)
        assert b'"code":"remote_failed"' in body
        assert b"s3cret" not in body
        await server.close()

    with caplog.at_level(logging.ERROR, logger="synchromesh.http"):
        run(main)
    assert [record.message.partition(":")[0] for record in caplog.records] == [message]


# -- drain ---------------------------------------------------------------------------------------


def test_drain_closes_idle_connections_and_answers_what_was_accepted() -> None:
    """Every accepted request gets its answer; the last one of a connection says that it closes."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        idle, used, busy, half = (stage.network.client() for _ in range(4))
        used.feed(get("/used"))
        busy.feed(get("/slow") + get("/b"))
        half.feed(post("/half", 3, b"a"))
        await settle()
        draining = asyncio.ensure_future(stage.server.drain(8.0))
        await settle()
        assert (used.has_eof, idle.has_eof) == (True, False)
        used.hang_up()
        half.feed(b"bc" + get("/late"))
        await asyncio.sleep(0.5)
        assert idle.has_eof
        idle.hang_up()
        await asyncio.sleep(4.5)
        slow.set()
        await settle()
        assert answers(busy) == [(200, b"/slow"), (200, b"/b")]
        assert bytes(busy.sent).count(b"connection: close") == 1
        assert answers(half) == [(200, b"/half")]
        busy.hang_up()
        half.hang_up()
        assert await draining == 0
        assert asyncio.get_running_loop().time() < 6.0
        assert repr(stage.server) == "<HttpServer not listening, 0 connections>"

    staged(test)


def test_drain_waits_for_the_next_request_of_each_connection() -> None:
    """A client about to send one is answered, is told to come by another connection, and none waits
    longer than it was given, or than for its idle time.
    """

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        active, pipelining, quiet, old, busy, streaming = (stage.network.client() for _ in range(6))
        old.feed(get("/used"))
        await asyncio.sleep(8.0)
        for client in (active, pipelining, quiet):
            client.feed(get("/used"))
        busy.feed(get("/slow"))
        streaming.feed(post("/half", 3, b"a"))
        await settle()
        loop = asyncio.get_running_loop()
        draining = asyncio.ensure_future(stage.server.drain(9.0, idle_s=5.0))
        began_s = loop.time()
        await settle()
        assert not any(c.has_eof for c in (active, pipelining, quiet, old, busy, streaming))
        # Idle for 8 of 10 s already: it has no more than the rest.
        await asyncio.sleep(2.1)
        assert (old.has_eof, quiet.has_eof) == (True, False)
        active.feed(get("/a"))
        pipelining.feed(get("/a") + get("/b"))
        slow.set()
        streaming.feed(b"bc")
        await settle()
        assert answers(active) == [(200, b"/used"), (200, b"/a")]
        # What comes behind the last one is not run, and its client knows.
        assert answers(pipelining)[:2] == [(200, b"/used"), (200, b"/a")]
        assert answers(busy) == [(200, b"/slow")]
        assert answers(streaming) == [(200, b"/half")]
        for client in (active, busy, streaming):
            assert client.has_eof
            assert bytes(client.sent).count(b"connection: close") == 1
            client.hang_up()
        pipelining.hang_up()
        old.hang_up()
        await asyncio.sleep(began_s + 4.9 - loop.time())
        assert (quiet.has_eof,) == (False,)
        await asyncio.sleep(0.2)
        assert (quiet.has_eof,) == (True,)
        quiet.hang_up()
        assert await draining == 0
        assert loop.time() == pytest.approx(began_s + 5.1, abs=0.2)

    staged(test)


def test_connections_are_renewed_while_others_come() -> None:
    """Those that are open end after their answer, or soon; nobody is refused."""

    async def test(stage: Stage) -> None:
        slow = stage.gate("/slow")
        active, quiet, busy = (stage.network.client() for _ in range(3))
        for client in (active, quiet):
            client.feed(get("/used"))
        busy.feed(get("/slow"))
        await settle()
        stage.server.renew(2.0)
        active.feed(get("/a"))
        newer = stage.network.client()
        newer.feed(get("/b"))
        await settle()
        assert answers(active) == [(200, b"/used"), (200, b"/a")]
        assert (active.has_eof, quiet.has_eof, busy.has_eof) == (True, False, False)
        await asyncio.sleep(2.1)
        assert quiet.has_eof
        # Again, for those that came meanwhile; who is at work is not cut by it.
        stage.server.renew(2.0)
        slow.set()
        newer.feed(get("/c"))
        await settle()
        assert answers(busy) == [(200, b"/slow")]
        assert bytes(busy.sent).count(b"connection: close") == 1
        assert answers(newer) == [(200, b"/b"), (200, b"/c")]
        latest = stage.network.client()
        latest.feed(get("/d"))
        await settle()
        assert answers(latest) == [(200, b"/d")]
        assert not latest.has_eof

    staged(test)


def test_a_request_that_is_on_its_way_when_the_drain_begins_is_answered() -> None:
    """Its connection was accepted, and it is the first: the client has no other to try."""

    async def test(stage: Stage) -> None:
        fresh = stage.network.client()
        await settle()
        draining = asyncio.ensure_future(stage.server.drain(8.0))
        await asyncio.sleep(0.4)
        fresh.feed(get("/a"))
        await settle()
        assert answers(fresh) == [(200, b"/a")]
        assert b"connection: close" in fresh.sent
        fresh.hang_up()
        assert await draining == 0

    staged(test)


def test_drain_cuts_what_is_left_when_its_time_is_over(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that hangs and a client that trickles cost the drain's time and no more."""

    async def test(stage: Stage) -> None:
        stage.gate("/slow")
        clients = [stage.network.client() for _ in range(30)]
        for client in clients[:10]:
            client.feed(get("/slow"))
        for client in clients[10:20]:
            client.feed(b"GET / HT")
        for client in clients[20:]:
            client.takes = False
            client.feed(get("/a"))
        await settle()
        before_s = asyncio.get_running_loop().time()
        assert await stage.server.drain(3.0) == 30
        assert asyncio.get_running_loop().time() - before_s == pytest.approx(3.0, abs=0.01)
        assert stage.cancelled == ["/slow"] * 10
        assert all(client.is_lost for client in clients)

    staged(test)
    assert "cut 30 connections" in caplog.text


def test_a_connection_that_comes_during_the_drain_is_refused() -> None:
    """Nothing is accepted once the server drains."""

    async def test(stage: Stage) -> None:
        stage.gate("/slow")
        stage.network.client().feed(get("/slow"))
        await settle()
        draining = asyncio.ensure_future(stage.server.drain(1.0))
        await settle()
        late = stage.network.client()
        late.feed(get("/late"))
        await draining
        assert [code for code, _ in answers(late)] == [503]
        assert stage.started == ["/slow"]

    staged(test)


def test_a_handler_that_ignores_its_cancellation_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Closing waits a moment for cancelled handlers, then says that they hang."""
    free = asyncio.Event()

    async def stubborn(_request: HttpRequest) -> HttpResponse:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue
        return HttpResponse(200)

    async def main(_runtime: object) -> None:
        network = FakeNetwork()
        server = HttpServer(stubborn, network=network)
        await server.start()
        client = network.client()
        client.feed(get("/a"))
        await settle()
        await server.close()
        assert client.sent == b""
        free.set()
        await settle()

    run(main)
    assert "1 handlers ignore their cancellation" in caplog.text


# -- starting ------------------------------------------------------------------------------------


def test_a_server_that_does_not_listen_says_so() -> None:
    """Address and second start are refused with what to do."""

    async def test(stage: Stage) -> None:
        with pytest.raises(ConfigError, match=r"listens on http://127\.0\.0\.1:4000 already"):
            await stage.server.start()
        await stage.server.close()
        with pytest.raises(ConfigError, match=r"await start\(\) first"):
            _ = stage.server.url
        await stage.server.start("::1", 5000)
        assert stage.server.url == "http://[::1]:5000"
        assert (stage.server.host, stage.server.port) == ("::1", 5000)

    staged(test)


def test_a_connection_shows_what_it_does() -> None:
    """Its repr names the peer, the phase and what waits."""

    async def test(stage: Stage) -> None:
        stage.gate("/slow")
        client = stage.network.client()
        assert repr(client.protocol) == "<ServerConnection 10.0.0.1:4711 idle, 0 waiting>"
        client.feed(get("/slow") + get("/b") + b"GET")
        await settle()
        assert repr(client.protocol) == "<ServerConnection 10.0.0.1:4711 answering, 1 waiting>"

    staged(test)
