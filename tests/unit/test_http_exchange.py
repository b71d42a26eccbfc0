"""Requests that are answered by ready-made bytes: order, drain, clients that leave, long bodies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest

from bodies import everything
from http_fakes import FakeNetwork, FakeTransport
from synchromesh.http import HttpExchange, HttpRequest, HttpResponse, HttpServer, Limits
from synchromesh.testing import run

WHO: ContextVar[str] = ContextVar("who", default="nobody")

Test = Callable[["Stage"], Coroutine[object, object, None]]


def head(length: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n" % length


class Stage:
    """A server whose handler takes requests below /f as bytes, and keeps those below /f/later."""

    def __init__(self, limits: Limits, *, is_fast: bool, is_streamed: bool) -> None:
        self.network = FakeNetwork()
        self.offered: list[bytes] = []
        self.kept: list[HttpExchange] = []
        self.handled: list[str] = []
        self.streamed: list[bytes] = []
        self.lost: list[bytes] = []
        self.rooms = 0
        self.on_handle: Callable[[], object] = lambda: None
        self.server = HttpServer(
            self,
            network=self.network,
            limits=limits,
            streaming=self if is_streamed else None,
            is_fast=is_fast,
        )

    def begin_exchange(self, exchange: HttpExchange) -> bool:
        self.offered.append(exchange.target)
        if exchange.target == b"/f/fails":
            raise ValueError("s3cret")
        if exchange.target.startswith(b"/f/later"):
            exchange.listener = Watcher(self, exchange)
            self.kept.append(exchange)
            return True
        if not exchange.target.startswith(b"/f"):
            return False
        body = exchange.target + b" " + exchange.body
        exchange.answer(head(len(body)), body)
        return True

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        self.handled.append(request.target)
        self.on_handle()
        return HttpResponse(200, (), request.body)

    def body_max(self, method: str, path: str, pairs: object) -> int | None:
        return 10 if path.startswith("/s") else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        body = await everything(request.stream)
        self.streamed.append(body)
        yield HttpResponse(200, (), body)


class Watcher:
    """Keeps what its exchange is told."""

    def __init__(self, stage: Stage, exchange: HttpExchange) -> None:
        self.stage, self.exchange = stage, exchange
        self.task: asyncio.Task[object] | None = None

    def on_lost(self) -> asyncio.Task[object] | None:
        self.stage.lost.append(self.exchange.target)
        return self.task

    def on_room(self) -> None:
        self.stage.rooms += 1


def staged(
    test: Test, limits: Limits | None = None, *, is_fast: bool = True, is_streamed: bool = False
) -> None:
    async def main(_runtime: object) -> None:
        stage = Stage(limits or Limits(), is_fast=is_fast, is_streamed=is_streamed)
        await stage.server.start()
        try:
            await test(stage)
        finally:
            await stage.server.close()

    run(main)


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "host: x", *fields, "", ""]).encode()


def post(target: str, body: bytes) -> bytes:
    return get(target, f"content-length: {len(body)}", method="POST") + body


def bodies(client: FakeTransport) -> list[bytes]:
    """Read the bodies of the answers that were sent."""
    found, rest = [], bytes(client.sent)
    while rest:
        top, _, rest = rest.partition(b"\r\n\r\n")
        lines = top.split(b"\r\n")
        length = next((int(x[16:]) for x in lines if x.startswith(b"content-length: ")), 0)
        found.append(rest[:length])
        rest = rest[length:]
    return found


async def settle() -> None:
    await asyncio.sleep(0.001)


# -- turns -----------------------------------------------------------------------------------------


def test_what_needs_no_waiting_is_answered_within_its_event() -> None:
    """By bytes or by a coroutine: the answer is sent before the event that brought it is over."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(post("/f/a", b"1"))
        assert bodies(client) == [b"/f/a 1"]
        client.feed(post("/slow", b"2"))
        assert bodies(client) == [b"/f/a 1", b"2"]
        assert stage.handled == ["/slow"]

    staged(test)


def test_requests_that_came_together_are_answered_in_one_write() -> None:
    """In order, whoever answers them."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        writes: list[bytes] = []
        write = client.write

        def noted(data: bytes | bytearray | memoryview) -> None:
            writes.append(bytes(data))
            write(data)

        client.write = noted  # type: ignore[method-assign]
        client.feed(get("/f/a") + post("/b", b"b") + get("/f/c"))
        assert bodies(client) == [b"/f/a ", b"b", b"/f/c "]
        assert len(writes) == 1

    staged(test)


def test_answers_that_leave_together_are_bounded() -> None:
    """Past 64 KiB they are sent, and a client that does not take them gets nothing more done."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(post("/f", bytes(60_000)))
        client.take(client.unsent)
        client.sent.clear()
        client.feed(b"".join(post(f"/f/{n}", bytes(7_000)) for n in range(16)))
        await settle()
        assert 8 <= len(bodies(client)) <= 10
        client.takes = True
        client.take(client.unsent)
        await settle()
        assert len(bodies(client)) == 16

    staged(test)


def test_who_sends_many_at_once_does_not_keep_the_others_waiting() -> None:
    """After `pipeline_max` requests the loop has its turn."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        seen: list[int] = []
        asyncio.get_running_loop().call_soon(lambda: seen.append(len(bodies(client))))
        client.feed(b"".join(get(f"/f/{n}") for n in range(100)))
        await settle()
        assert seen == [4]
        assert len(bodies(client)) == 100

    staged(test, Limits(pipeline_max=4))


# -- later -----------------------------------------------------------------------------------------


def test_what_is_answered_later_keeps_its_place() -> None:
    """Requests behind it wait, and begin in its turn."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/later") + get("/f/b") + post("/c", b"c"))
        await asyncio.sleep(100.0)
        assert client.sent == b""
        assert stage.offered == [b"/f/later"]
        stage.kept[0].answer(head(2), b"ok")
        assert bodies(client) == [b"ok"]
        await settle()
        assert bodies(client) == [b"ok", b"/f/b ", b"c"]
        stage.kept[0].answer(head(2), b"no")
        await settle()
        assert len(bodies(client)) == 3

    staged(test)


def test_what_follows_a_later_answer_begins_in_the_connections_context() -> None:
    """Who answers lends nothing of his own to the requests behind."""
    seen: list[str] = []

    async def test(stage: Stage) -> None:
        stage.on_handle = lambda: seen.append(WHO.get())
        client = stage.network.client()
        client.feed(get("/f/later") + get("/b"))
        WHO.set("the writer")
        stage.kept[0].answer(head(0))
        await settle()
        assert seen == ["nobody"]

    staged(test)


def test_a_client_that_leaves_is_told_to_who_works_for_it() -> None:
    """Its task is waited for when the server closes, and a late answer is nobody's."""
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.5)
            ended.append("work")

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/later"))
        task = asyncio.ensure_future(work())
        await settle()
        stage.kept[0].listener.task = task  # type: ignore[union-attr]
        client.hang_up()
        task.cancel()
        await settle()
        assert stage.lost == [b"/f/later"]
        assert stage.kept[0].is_lost
        stage.kept[0].answer(head(2), b"ok")
        assert client.sent == b""
        await stage.server.close()
        assert ended == ["work"]

    staged(test)


def test_drain_waits_for_what_is_answered_later() -> None:
    """Its answer says that the connection closes, and is the last."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/later"))
        draining = asyncio.ensure_future(stage.server.drain(8.0))
        await asyncio.sleep(3.0)
        stage.kept[0].answer(head(2), b"ok")
        assert bytes(client.sent) == head(2) + b"connection: close\r\n\r\nok"
        assert client.has_eof
        client.hang_up()
        assert await draining == 0

    staged(test)


def test_a_client_that_asks_to_close_gets_its_answer_and_the_end() -> None:
    """Ready-made bytes say so as any answer does."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/a", "connection: close") + get("/f/b"))
        assert bytes(client.sent).endswith(b"connection: close\r\n\r\n/f/a ")
        assert client.has_eof
        assert stage.offered == [b"/f/a"]

    staged(test)


def test_one_that_raises_is_answered_500_without_internals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The client learns that it failed, the log learns why, and the connection goes on."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/fails") + get("/f/b"))
        assert bytes(client.sent).startswith(b"HTTP/1.1 500 ")
        assert b"s3cret" not in client.sent
        assert bodies(client)[-1] == b"/f/b "

    with caplog.at_level(logging.ERROR, logger="synchromesh.http"):
        staged(test)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["a handler failed"]


def test_a_client_that_does_not_take_a_ready_made_answer_is_cut() -> None:
    """`write_s` bounds it as any other."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(get("/f/a"))
        await asyncio.sleep(9.9)
        assert not client.was_aborted
        await asyncio.sleep(0.2)
        assert client.was_aborted

    staged(test)


# -- parts -----------------------------------------------------------------------------------------


def test_a_body_may_follow_in_parts() -> None:
    """Each part leaves at once, and the next request is begun after the end."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/later") + get("/f/b"))
        exchange = stage.kept[0]
        exchange.begin(head(6), b"ab")
        assert bytes(client.sent) == head(6) + b"\r\nab"
        assert exchange.part(b"cd")
        await asyncio.sleep(60.0)
        assert stage.offered == [b"/f/later"]
        exchange.part(b"ef")
        exchange.end()
        await settle()
        assert bodies(client) == [b"abcdef", b"/f/b "]

    staged(test)


def test_who_sends_parts_is_told_to_wait_and_to_go_on() -> None:
    """A client that takes nothing has no room; once it has taken all, there is."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.takes = False
        client.feed(get("/f/later"))
        exchange = stage.kept[0]
        exchange.begin(head(4), b"ab")
        assert not exchange.part(b"cd")
        assert stage.rooms == 0
        client.takes = True
        client.take(client.unsent)
        assert stage.rooms == 1
        exchange.end()
        assert bodies(client) == [b"abcd"]

    staged(test)


def test_a_body_that_breaks_off_is_reset() -> None:
    """Half an answer never looks whole."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/later") + get("/f/b"))
        stage.kept[0].begin(head(4), b"ab")
        stage.kept[0].end(is_whole=False)
        await settle()
        assert client.was_aborted
        assert not client.has_eof
        assert stage.offered == [b"/f/later"]

    staged(test)


# -- what is offered -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        get("/f", method="HEAD"),
        get("/f", version="1.0"),
        get("http://x/f"),
        get("/f", "transfer-encoding: chunked", method="POST") + b"1\r\na\r\n0\r\n\r\n",
        get("/f", "expect: 100-continue", "content-length: 1", method="POST") + b"a",
    ],
)
def test_what_is_out_of_the_ordinary_is_for_the_coroutine(raw: bytes) -> None:
    """Only a plain request that came whole is offered as bytes."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(raw)
        await settle()
        assert stage.offered == []
        assert stage.handled == ["/f"]
        assert b"HTTP/1.1 200 OK" in client.sent

    staged(test)


def test_nothing_is_offered_where_the_fast_way_is_off() -> None:
    """The same requests are answered by the coroutine."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/a") + post("/b", b"b"))
        assert client.sent == b""
        await settle()
        assert stage.offered == []
        assert stage.handled == ["/f/a", "/b"]

    staged(test, is_fast=False)


def test_a_request_that_could_be_streamed_is_offered_where_it_came_whole() -> None:
    """What comes later than its head, or is longer than buffers may be, is streamed."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(post("/s", b"123"))
        await settle()
        assert (stage.offered, stage.streamed) == ([b"/s"], [b"123"])
        whole = post("/s", b"456")
        client.feed(whole[:-1])
        await settle()
        client.feed(whole[-1:])
        await settle()
        assert (stage.offered, stage.streamed) == ([b"/s"], [b"123", b"456"])
        assert bodies(client) == [b"123", b"456"]
        assert stage.handled == []

    staged(test, is_streamed=True)


def test_a_body_that_is_too_long_for_its_stream_is_refused_though_it_came_whole() -> None:
    """It is 413 with the limit of the stream, and what is behind it is not run."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/a") + post("/s", bytes(11)) + get("/f/b"))
        await settle()
        assert bodies(client)[0] == b"/f/a "
        assert b"longer than 10 bytes" in bodies(client)[1]
        assert bytes(client.sent).count(b"HTTP/1.1 ") == 2
        assert client.has_eof
        assert stage.streamed == []
        assert b"/f/b" not in stage.offered

    staged(test, is_streamed=True)


def test_an_exchange_shows_no_secret() -> None:
    """Its query and its headers stay out of logs."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(get("/f/later?key=s3cret", "authorization: s3cret"))
        assert repr(stage.kept[0]) == "<HttpExchange GET /f/later 0 bytes>"

    staged(test)
