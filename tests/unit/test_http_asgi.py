"""The ASGI mount, with small applications written by hand, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from bodies import everything, long_body
from synchromesh.errors import ConfigError, ConnectionLost
from synchromesh.http import (
    AsgiApp,
    AsgiHandler,
    Body,
    Headers,
    HttpPool,
    HttpRequest,
    HttpResponse,
    HttpServer,
)
from synchromesh.runtime import Runtime
from synchromesh.testing import run

pytestmark = pytest.mark.usefixtures("http_way")

MiB = 1024 * 1024

Asking = Callable[..., AbstractAsyncContextManager[Any]]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def request(target: str = "/", body: bytes = b"", peer: str = "10.0.0.1:99") -> HttpRequest:
    path, _, query = target.partition("?")
    headers = Headers([("host", "x"), ("x-a", "\xe4")])
    return HttpRequest("POST", target, path, query, headers, body, peer)


def in_time(test: Callable[[], Coroutine[object, object, None]]) -> None:
    async def main(_runtime: object) -> None:
        await test()

    run(main)


async def start(send: Send, status: int = 200) -> None:
    headers = [(b"X-B", b"1"), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def finish(send: Send, body: bytes = b"", *, more: bool = False) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def echo(scope: Message, receive: Receive, send: Send) -> None:
    message = await receive()
    await start(send, 201)
    await finish(send, message["body"], more=True)
    await finish(send, b"!")


def test_a_request_becomes_a_scope_and_an_answer_is_put_together() -> None:
    """The path is decoded, raw parts stay raw, and a streamed answer is buffered."""
    scopes: list[Message] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await echo(scope, receive, send)

    async def test() -> None:
        response = await AsgiHandler(app)(request("/a%20b?c=%64", b"hello"))
        assert response == HttpResponse(
            201, [("x-b", "1"), ("content-type", "text/plain")], b"hello!"
        )
        await AsgiHandler(app)(request(peer=""))

    in_time(test)
    scope = scopes[0]
    assert scope["type"] == "http"
    assert scope["method"] == "POST"
    assert scope["path"] == "/a b"
    assert scope["raw_path"] == b"/a%20b"
    assert scope["query_string"] == b"c=%64"
    assert scope["headers"] == [(b"host", b"x"), (b"x-a", b"\xe4")]
    assert scope["client"] == ("10.0.0.1", 99)
    assert scopes[1]["client"] is None


async def _nothing(scope: Message, receive: Receive, send: Send) -> None:
    return


async def _half(scope: Message, receive: Receive, send: Send) -> None:
    await start(send)
    await finish(send, b"half", more=True)


async def _raises(scope: Message, receive: Receive, send: Send) -> None:
    await start(send)
    raise ValueError("own")


async def _body_first(scope: Message, receive: Receive, send: Send) -> None:
    await finish(send)


async def _starts_twice(scope: Message, receive: Receive, send: Send) -> None:
    await start(send)
    await start(send)


async def _too_long(scope: Message, receive: Receive, send: Send) -> None:
    await start(send)
    await finish(send, b"x" * 6, more=True)
    await finish(send, b"x" * 6)


async def _forges(scope: Message, receive: Receive, send: Send) -> None:
    headers = [(b"a", b"b\r\nc: d")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _cancels_itself(scope: Message, receive: Receive, send: Send) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("app", "error", "words"),
    [
        (_nothing, RuntimeError, "without a whole answer"),
        (_half, RuntimeError, "without a whole answer"),
        (_raises, ValueError, "own"),
        (_body_first, RuntimeError, "out of turn"),
        (_starts_twice, RuntimeError, "out of turn"),
        (_too_long, RuntimeError, "longer than 10 bytes"),
        (_forges, ValueError, "may not stand in a header"),
        (_cancels_itself, RuntimeError, "without a whole answer"),
    ],
)
def test_an_application_that_fails_before_its_answer_is_whole_raises(
    app: AsgiApp, error: type[Exception], words: str
) -> None:
    """Nothing half done is sent: the server answers 500."""

    async def test() -> None:
        with pytest.raises(error, match=words):
            await AsgiHandler(app, body_bytes_max=10)(request())

    in_time(test)


def test_an_application_may_go_on_after_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Background work does not delay the answer; its failure is logged; shutdown cancels it."""
    ended: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await start(send)
        await finish(send)
        assert (await receive())["type"] == "http.disconnect"
        with pytest.raises(OSError, match="complete"):
            await finish(send)
        try:
            await asyncio.sleep(5.0)
        finally:
            ended.append(scope["path"])
        raise ValueError("late")

    async def test() -> None:
        handler = AsgiHandler(app)
        assert (await handler(request("/a"))).status == 200
        assert asyncio.get_running_loop().time() == 0.0
        await asyncio.sleep(3.0)
        assert (await handler(request("/b"))).status == 200
        await asyncio.sleep(3.0)
        assert ended == ["/a"]
        await handler.shutdown()
        assert ended == ["/a", "/b"]

    in_time(test)
    assert [r.message for r in caplog.records] == ["an application failed after its answer"]


def test_too_much_background_work_delays_the_answer() -> None:
    """Past background_max an answer waits for its application, so that nothing piles up."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await start(send)
        await finish(send)
        await asyncio.sleep(5.0)

    async def test() -> None:
        handler = AsgiHandler(app, background_max=1)
        await handler(request())
        assert asyncio.get_running_loop().time() == 0.0
        await handler(request())
        assert asyncio.get_running_loop().time() == 5.0

    in_time(test)


def test_a_cancelled_request_cancels_its_application() -> None:
    """A client that leaves stops the application too."""
    cancelled: list[bool] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def test() -> None:
        for background_max in (0, 1):
            handler = AsgiHandler(app, background_max=background_max)
            task = asyncio.ensure_future(handler(request()))
            await asyncio.sleep(1.0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    in_time(test)
    assert cancelled == [True, True]


# -- lifespan ------------------------------------------------------------------------------------


def test_the_lifespan_surrounds_the_requests_and_gives_them_its_state() -> None:
    """startup is complete before the first request, shutdown follows the last."""
    told: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{kind}"
                scope["state"]["db"] = "open"
                told.append(kind)
                await send({"type": f"lifespan.{kind}.complete"})
            return
        told.append(scope["state"]["db"])
        await echo(scope, receive, send)

    async def test() -> None:
        async with AsgiHandler(app) as handler:
            await handler.startup()
            await handler(request())
        await handler.shutdown()

    in_time(test)
    assert told == ["startup", "open", "shutdown"]


def test_an_application_without_a_lifespan_is_served_all_the_same() -> None:
    """One that raises or returns without asking for events has none."""

    async def refuses(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("only http")
        await echo(scope, receive, send)

    async def test() -> None:
        async with AsgiHandler(refuses) as handler:
            assert (await handler(request())).status == 201
        async with AsgiHandler(_nothing):
            pass

    in_time(test)


@pytest.mark.parametrize("how", ["failed", "raised", "returned", "silent"])
def test_an_application_that_cannot_start_is_a_clear_error(how: str) -> None:
    """startup raises ConfigError with what the application said."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        if how == "failed":
            await send({"type": "lifespan.startup.failed", "message": "no database"})
            await receive()
        if how == "silent":
            await send({"type": "lifespan.startup.failed"})
        if how == "raised":
            raise ValueError("no database")

    words = {"returned": "it ended during", "silent": "lifespan.startup.failed"}

    async def test() -> None:
        handler = AsgiHandler(app)
        expected = f"did not start: .*{words.get(how, 'no database')}"
        with pytest.raises(ConfigError, match=expected):
            await handler.startup()
        await handler.shutdown()

    in_time(test)


@pytest.mark.parametrize("how", ["failed", "raised", "cancelled"])
def test_an_application_that_cannot_shut_down_is_logged(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """shutdown never raises: there is nothing left to do but to say so."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        with pytest.raises(RuntimeError, match="out of turn"):
            await send({"type": "lifespan.startup.complete"})
        await receive()
        if how == "failed":
            await send({"type": "lifespan.shutdown.failed", "message": "stuck"})
        elif how == "raised":
            raise ValueError("stuck")
        else:
            raise asyncio.CancelledError

    async def test() -> None:
        async with AsgiHandler(app):
            pass

    in_time(test)
    assert [r.message.partition(":")[0] for r in caplog.records] == [
        "the application did not shut down well"
    ]


def test_a_lifespan_that_ended_early_needs_no_shutdown() -> None:
    """An application may return after its startup."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})

    async def test() -> None:
        async with AsgiHandler(app):
            await asyncio.sleep(1.0)

    in_time(test)


def test_a_startup_that_is_given_up_leaves_no_task() -> None:
    """Who waits no longer for the startup stops it."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(3600.0)

    async def test() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await AsgiHandler(app).startup()

    in_time(test)


# -- bodies as they come ------------------------------------------------------------------------


def streaming(app: AsgiApp, test: Callable[[Asking], Coroutine[object, object, None]]) -> None:
    """Run a test of an application whose bodies stream, on the simulated network."""

    async def main(runtime: Runtime) -> None:
        handler = AsgiHandler(app, stream_bytes_max=64 * MiB)
        server = HttpServer(handler, network=runtime.network, streaming=handler)
        await server.start()
        async with HttpPool(network=runtime.network) as pool:

            def ask(method: str, body: Body | None = None) -> AbstractAsyncContextManager[Any]:
                return pool.stream(server.host, server.port, method, "/", (), body, timeout_s=60.0)

            await test(ask)
        await handler.shutdown()
        await server.close()

    run(main)


def test_a_streamed_application_sends_back_what_comes_while_it_comes() -> None:
    """Each part of a body is a message, and each message of an answer is sent at once."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await start(send)
        is_more = True
        while is_more:
            message = await receive()
            is_more = message["more_body"]
            await finish(send, message["body"], more=is_more)
        assert (await receive())["type"] == "http.disconnect"

    async def test(ask: Asking) -> None:
        body = Body(length=None, on_room=lambda: None)
        body.feed(b"one")
        async with ask("POST", body) as answer:
            assert (answer.status, answer.headers.get("x-b")) == (200, "1")
            for part in (b"one", b"two", b"three"):
                assert await answer.stream.read() == part
                body.feed({b"one": b"two", b"two": b"three", b"three": b""}[part])
            body.end()
            assert await everything(answer.stream) == b""

    streaming(app, test)


def test_a_streamed_application_is_slowed_down_and_slows_down() -> None:
    """What it does not receive is not taken, and what its client does not take it cannot send."""
    sent, go = [0], asyncio.Event()

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await start(send)
        if scope["method"] == "POST":
            await go.wait()
            size = 0
            while (message := await receive())["more_body"]:
                size += len(message["body"])
            await finish(send, str(size).encode())
            return
        while sent[0] < 16 * MiB:
            sent[0] += 65536
            await finish(send, bytes(65536), more=True)
        await finish(send)

    async def test(ask: Asking) -> None:
        taken = [0]

        async def upload() -> bytes:
            async with ask("POST", long_body(16 * MiB, taken, is_known=False)) as answer:
                return await everything(answer.stream)

        uploading = asyncio.ensure_future(upload())
        await asyncio.sleep(4.0)
        assert 0 < taken[0] < MiB
        go.set()
        assert await uploading == str(16 * MiB).encode()
        async with ask("GET") as answer:
            await asyncio.sleep(4.0)
            assert 0 < sent[0] < MiB
            assert len(await everything(answer.stream)) == 16 * MiB

    streaming(app, test)


def test_a_streamed_application_that_fails_half_way_is_cut_off() -> None:
    """Before its first part it is 500; after that its answer never looks whole."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await start(send)
        if scope["method"] == "GET":
            await finish(send, b"half", more=True)
        raise ValueError("select * from secrets")

    async def test(ask: Asking) -> None:
        async with ask("POST", long_body(MiB, is_known=False)) as answer:
            assert answer.status == 500
            assert b"secrets" not in await everything(answer.stream)
        with pytest.raises(ConnectionLost):
            async with ask("GET") as answer:
                await everything(answer.stream)

    streaming(app, test)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_streamed_application_learns_that_nobody_reads(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that leaves cancels it; of a HEAD nothing more can be sent."""
    ended: list[str] = []

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await start(send)
        try:
            while True:
                await finish(send, bytes(65536), more=True)
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    async def test(ask: Asking) -> None:
        async with ask(method) as answer:
            assert answer.status == 200
        await asyncio.sleep(1.0)
        assert ended == ["OSError" if method == "HEAD" else "CancelledError"]

    streaming(app, test)
    assert "failed" not in caplog.text
