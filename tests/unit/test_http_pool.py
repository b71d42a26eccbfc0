"""The pool in virtual time: what is kept, who waits, and what is known when a call fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from bodies import body_of, open_body
from http_fakes import FakeNetwork, FakeTransport
from synchromesh.errors import (
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    Shed,
    SynchromeshError,
    TimedOut,
)
from synchromesh.http import Body, HttpPool, HttpResponse, PoolLimits
from synchromesh.testing import run

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

Test = Callable[["Stage"], Coroutine[object, object, None]]


class Stage:
    """A pool on a scripted network; answers are given by hand."""

    def __init__(self, limits: PoolLimits) -> None:
        self.network = FakeNetwork()
        self.pool = HttpPool(network=self.network, limits=limits)

    def call(
        self,
        *,
        method: str = "GET",
        timeout_s: float | None = 10.0,
        is_idempotent: bool = False,
        body: bytes = b"",
        port: int = 80,
    ) -> asyncio.Task[HttpResponse]:
        return asyncio.ensure_future(
            self.pool.request(
                "a", port, method, "/", (), body, timeout_s=timeout_s, is_idempotent=is_idempotent
            )
        )

    async def sent(self, index: int = -1) -> FakeTransport:
        """Let a call send, and return its transport."""
        await settle()
        return self.network.made[index]


def staged(test: Test, limits: PoolLimits | None = None, *, seed: int = 0) -> None:
    async def main(_runtime: object) -> None:
        stage = Stage(limits or PoolLimits())
        try:
            await test(stage)
        finally:
            await stage.pool.close()

    run(main, seed=seed)


async def settle() -> None:
    await asyncio.sleep(0.001)


async def outcome(call: asyncio.Task[HttpResponse]) -> type[BaseException]:
    """Return what a call raised."""
    with pytest.raises(SynchromeshError) as caught:
        await call
    return caught.type


# -- keeping -------------------------------------------------------------------------------------


def test_a_connection_is_kept_and_the_latest_used_is_taken_first() -> None:
    """Calls one after the other share a connection; of several idle ones the newest serves."""

    async def test(stage: Stage) -> None:
        one, two = stage.call(), stage.call()
        await settle()
        first, second = stage.network.made
        second.feed(OK)
        first.feed(OK)
        assert (await one).body == b"ok"
        assert (await two).body == b"ok"
        third = stage.call()
        await settle()
        assert first.sent.count(b"GET") == 2
        first.feed(OK)
        await third
        assert len(stage.network.made) == 2
        assert repr(stage.pool) == "<HttpPool 1 endpoints, 2 connections, 2 idle>"

    staged(test)


def test_an_idle_connection_expires() -> None:
    """One timer closes what has been idle for idle_s, and leaves what was used since."""

    async def test(stage: Stage) -> None:
        one = stage.call()
        old = await stage.sent()
        two = stage.call()
        young = await stage.sent()
        old.feed(OK)
        await one
        await asyncio.sleep(3.0)
        young.feed(OK)
        await two
        await asyncio.sleep(2.1)
        assert [old.is_lost, young.is_lost] == [True, False]
        await asyncio.sleep(3.0)
        assert young.is_lost
        assert repr(stage.pool) == "<HttpPool 0 endpoints, 0 connections, 0 idle>"

    staged(test)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        OK + OK,
        OK + b"x",
    ],
)
def test_a_connection_that_is_not_clean_is_not_kept(answer: bytes) -> None:
    """After `close`, HTTP/1.0, or bytes that nobody asked for, the next call connects anew."""

    async def test(stage: Stage) -> None:
        call = stage.call()
        (await stage.sent()).feed(answer)
        assert (await call).body == b"ok"
        again = stage.call()
        await settle()
        assert len(stage.network.made) == 2
        assert stage.network.made[0].is_lost
        stage.network.made[1].feed(OK)
        await again

    staged(test)


def test_an_answer_before_the_request_is_sent_is_taken_and_the_connection_dropped() -> None:
    """A server may refuse a body early; the rest of the body must not start the next request."""

    async def test(stage: Stage) -> None:
        stage_call = stage.call(method="POST", body=b"x" * 10)
        client = await stage.sent()
        client.unsent = 5
        client.feed(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        assert (await stage_call).status == 413
        assert client.is_closing()

    staged(test)


def test_bytes_on_an_idle_connection_end_it() -> None:
    """A late or forged answer cannot become the answer of the next call."""

    async def test(stage: Stage) -> None:
        call = stage.call()
        client = await stage.sent()
        client.feed(OK)
        await call
        client.feed(OK)
        await settle()
        assert client.was_aborted
        assert repr(client.protocol) == "<ClientConnection a:80 closed>"
        assert repr(stage.pool) == "<HttpPool 0 endpoints, 0 connections, 0 idle>"

    staged(test)


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "answer", "status", "body"),
    [
        ("GET", OK, 200, b"ok"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", 304, b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", 200, b""),
        ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200, b""),
        (
            "GET",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\na: b\r\n\r\n" + OK,
            200,
            b"ok",
        ),
        (
            "GET",
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked \r\n\r\n"
                b"1\r\no\r\n1;x=y\r\nk\r\n0\r\nx-t: 1\r\n\r\n"
            ),
            200,
            b"ok",
        ),
    ],
)
def test_a_well_formed_answer_is_read_to_its_end(
    method: str, answer: bytes, status: int, body: bytes
) -> None:
    """Byte by byte or at once, with interim answers, chunks and trailers."""

    async def test(stage: Stage) -> None:
        for size in (1, len(answer)):
            call = stage.call(method=method)
            client = await stage.sent()
            for start in range(0, len(answer), size):
                client.feed(answer[start : start + size])
            response = await call
            assert (response.status, response.body) == (status, body)
            assert response.headers.get("x-t") is None

    staged(test)


def test_an_answer_may_end_with_its_connection() -> None:
    """Without a length the body is what comes until the server closes."""

    async def test(stage: Stage) -> None:
        call = stage.call()
        client = await stage.sent()
        client.feed(b"HTTP/1.1 200 OK\r\n\r\nhal")
        client.feed(b"f")
        assert not call.done()
        client.hang_up()
        assert (await call).body == b"half"

    staged(test)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n", "coding"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc", "coding"),
        (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "coding"),
        (b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", ""),
        (b"HTTP/1.1 200 OK\ncontent-length: 0\n\n", ""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n", ""),
        (b"HTTP/2.0 200 OK\r\n\r\n", "version"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "101"),
        (b"HTTP/1.1 777 What\r\n\r\n", "777"),
        (b"SSH-2.0-OpenSSH\r\n", ""),
        (b"HTTP/1.1 103 Hints\r\n\r\n" * 9, "interim"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n", "header fields"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 40_000 + b"\r\n\r\n", "head is too long"),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 400_000, "head is too long"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n", "longer than 10"),
        (b"HTTP/1.1 200 OK\r\n\r\n01234567890", "longer than 10"),
    ],
)
def test_an_answer_that_could_be_misread_is_an_error(answer: bytes, reason: str) -> None:
    """What is no strict HTTP/1.1, or too large, is not passed on: the outcome is unknown."""

    async def test(stage: Stage) -> None:
        call = stage.call()
        client = await stage.sent()
        client.feed(answer)
        with pytest.raises(ConnectionLost, match=f"a:80 sent no acceptable answer: .*{reason}"):
            await call
        assert client.was_aborted

    staged(test, PoolLimits(body_bytes_max=10))


# -- failing -------------------------------------------------------------------------------------


def test_a_connection_that_breaks_leaves_the_outcome_unknown() -> None:
    """Before or within the answer: it was sent, so it may have been run."""

    async def test(stage: Stage) -> None:
        for start in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no"):
            call = stage.call(is_idempotent=True)
            client = await stage.sent()
            client.feed(start) if start else None
            client.hang_up()
            assert await outcome(call) is ConnectionLost
        assert len(stage.network.made) == 2

    staged(test)


def test_no_answer_in_time_leaves_the_outcome_unknown() -> None:
    """The caller is released at its deadline, and a late answer reaches nobody."""

    async def test(stage: Stage) -> None:
        call = stage.call(timeout_s=2.0)
        client = await stage.sent()
        assert await outcome(call) is TimedOut
        assert asyncio.get_running_loop().time() == 2.0
        assert client.was_aborted

    staged(test)


def test_a_call_without_a_bound_waits() -> None:
    """timeout_s=None leaves the bound to the caller."""

    async def test(stage: Stage) -> None:
        call = stage.call(timeout_s=None)
        client = await stage.sent()
        await asyncio.sleep(1000.0)
        client.feed(OK)
        assert (await call).status == 200

    staged(test)


def test_a_call_without_time_is_not_sent() -> None:
    """No time left is certainly not run."""

    async def test(stage: Stage) -> None:
        assert await outcome(stage.call(timeout_s=0.0)) is DeadlineExceeded
        assert stage.network.made == []

    staged(test)


def test_a_cancelled_call_closes_its_connection() -> None:
    """An answer to nobody must not be left in a connection that another call takes."""

    async def test(stage: Stage) -> None:
        call = stage.call()
        client = await stage.sent()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        assert client.was_aborted
        await settle()
        assert repr(stage.pool) == "<HttpPool 0 endpoints, 0 connections, 0 idle>"

    staged(test)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError("no route"), "no route"),
        (TimeoutError(), "in time"),
    ],
)
def test_a_connection_that_cannot_be_made_sent_nothing(error: OSError, words: str) -> None:
    """ConnectFailed says so, and gives its place to the next call."""

    async def test(stage: Stage) -> None:
        def refuse() -> asyncio.Future[None]:
            raise error

        stage.network.connecting = refuse
        with pytest.raises(ConnectFailed, match=f"cannot connect to a:80: .*{words}") as caught:
            await stage.call()
        assert caught.value.is_retry_safe
        stage.network.connecting = None
        call = stage.call()
        (await stage.sent()).feed(OK)
        await call

    staged(test, PoolLimits(connections_max=1))


def test_connecting_is_bounded_by_its_own_limit_and_by_the_deadline() -> None:
    """A peer that does not answer the handshake costs connect_s or what the caller has left."""

    async def test(stage: Stage) -> None:
        stage.network.connecting = asyncio.get_running_loop().create_future
        time = asyncio.get_running_loop().time
        assert await outcome(stage.call(timeout_s=60.0)) is ConnectFailed
        assert time() == 5.0
        assert await outcome(stage.call(timeout_s=1.0)) is ConnectFailed
        assert time() == 6.0
        call = stage.call()
        await settle()
        call.cancel()
        await asyncio.wait([call])
        await settle()
        assert repr(stage.pool) == "<HttpPool 0 endpoints, 0 connections, 0 idle>"

    staged(test)


def test_a_connection_that_closes_at_once_sent_nothing() -> None:
    """A new connection that is closed before the request is written is a failed connection."""

    class Closing(FakeNetwork):
        async def connect(
            self, factory: Callable[[], asyncio.Protocol], host: str, port: int
        ) -> asyncio.Protocol:
            protocol = await super().connect(factory, host, port)
            self.made[-1].feed(b"HTTP/1.1 503 Busy\r\n\r\n")
            return protocol

    async def test(stage: Stage) -> None:
        stage.pool = HttpPool(network=Closing())
        assert await outcome(stage.call()) is ConnectFailed
        await stage.pool.close()

    staged(test)


# -- stale connections ---------------------------------------------------------------------------


async def _used(stage: Stage) -> FakeTransport:
    """Make one idle connection."""
    call = stage.call()
    client = await stage.sent()
    client.feed(OK)
    await call
    return client


def test_an_idle_connection_found_closed_is_skipped() -> None:
    """What closed while it was idle costs no call."""

    async def test(stage: Stage) -> None:
        client = await _used(stage)
        client.hang_up()
        call = stage.call()
        (await stage.sent(1)).feed(OK)
        assert (await call).status == 200

    staged(test)


def test_a_stale_connection_fails_a_call_that_may_not_be_repeated() -> None:
    """The server closes as the request is sent: whether it was run is unknown."""

    async def test(stage: Stage) -> None:
        client = await _used(stage)
        call = stage.call()
        await settle()
        client.hang_up()
        assert await outcome(call) is ConnectionLost
        assert len(stage.network.made) == 1

    staged(test)


@pytest.mark.parametrize("connections_max", [1, 2])
def test_what_may_not_be_repeated_takes_a_connection_of_the_last_second(
    connections_max: int,
) -> None:
    """A server closes what is idle, and whether it has run a request then is unknown; a call that
    can be sent again takes any. Where there is no place for one more, a new one is made in its own.
    """

    async def test(stage: Stage) -> None:
        client = await _used(stage)
        await asyncio.sleep(0.9)
        for is_idempotent, wait_s in ((False, 2.0), (True, 2.0)):
            call = stage.call(is_idempotent=is_idempotent)
            await settle()
            client.feed(OK)
            assert (await call).body == b"ok"
            await asyncio.sleep(wait_s)
        assert len(stage.network.made) == 1
        call = stage.call(method="POST", body=b"x")
        await settle()
        assert len(stage.network.made) == 2
        assert client.is_closing() == (connections_max == 1)
        stage.network.made[1].feed(OK)
        assert (await call).body == b"ok"
        connections = len([made for made in stage.network.made if not made.is_closing()])
        assert connections == connections_max
        assert f"{connections} connections, {connections} idle" in repr(stage.pool)

    staged(test, PoolLimits(connections_max=connections_max))


def test_a_stale_connection_is_replaced_once_for_an_idempotent_call() -> None:
    """It is sent again on a new connection, past other idle ones, and never a third time."""

    async def test(stage: Stage) -> None:
        one, two = stage.call(), stage.call()
        await settle()
        for client in stage.network.made:
            client.feed(OK)
        await asyncio.gather(one, two)
        for ending in (b"", OK):
            count = len(stage.network.made)
            call = stage.call(is_idempotent=True)
            await settle()
            stale = next(c for c in stage.network.made if c.sent.count(b"GET") == 2)
            stale.hang_up()
            fresh = await stage.sent()
            assert len(stage.network.made) == count + 1
            if ending:
                fresh.feed(ending)
                assert (await call).status == 200
            else:
                fresh.hang_up()
                assert await outcome(call) is ConnectionLost
            stage.network.made.remove(stale)

    staged(test)


def test_a_stale_connection_that_cannot_be_replaced_leaves_the_outcome_unknown() -> None:
    """A server that died may have run what it was sent; that it refuses now does not unsay that."""

    async def test(stage: Stage) -> None:
        client = await _used(stage)
        call = stage.call(is_idempotent=True)
        await settle()

        def refuse() -> asyncio.Future[None]:
            raise ConnectionRefusedError(111, "Connection refused")

        stage.network.connecting = refuse
        client.hang_up()
        assert await outcome(call) is ConnectionLost

    staged(test)


def test_a_repeated_call_takes_the_place_of_an_idle_connection() -> None:
    """Where every place is used the oldest idle connection makes room for the new one."""

    async def test(stage: Stage) -> None:
        one, two = stage.call(), stage.call()
        await settle()
        for client in stage.network.made:
            client.feed(OK)
        await asyncio.gather(one, two)
        call = stage.call(is_idempotent=True)
        await settle()
        other = stage.call()
        await settle()
        first, second = stage.network.made
        first.feed(OK)
        third = stage.call()
        await settle()
        second.hang_up()
        await settle()
        for client in stage.network.made:
            client.feed(OK) if not client.is_closing() else None
        done, pending = await asyncio.wait([call, other, third], timeout=1.0)
        assert len(done) == 3
        assert pending == set()

    staged(test, PoolLimits(connections_max=2))


def test_a_fresh_connection_is_made_even_in_a_place_that_was_waited_for() -> None:
    """The second attempt never rides on a kept connection."""

    async def test(stage: Stage) -> None:
        client = await _used(stage)
        call = stage.call(is_idempotent=True)
        waiting = stage.call()
        await settle()
        client.hang_up()
        second = await stage.sent()
        second.feed(OK)
        assert (await waiting).status == 200
        third = await stage.sent()
        assert third is not second
        assert second.is_closing()
        third.feed(OK)
        assert (await call).status == 200

    staged(test, PoolLimits(connections_max=1))


# -- waiting -------------------------------------------------------------------------------------


def test_calls_wait_in_order_for_a_connection() -> None:
    """connections_max bounds what one endpoint sees; who waits longest is served first."""

    async def test(stage: Stage) -> None:
        calls = [stage.call() for _ in range(3)]
        other = stage.call(port=81)
        await settle()
        assert len(stage.network.made) == 2
        client, elsewhere = stage.network.made
        if b"a:81" in client.sent:
            client, elsewhere = elsewhere, client
        elsewhere.feed(OK)
        await other
        for number in (1, 2, 3):
            await settle()
            assert client.sent.count(b"GET") == number
            client.feed(OK)
        assert [(await call).status for call in calls] == [200] * 3

    staged(test, PoolLimits(connections_max=1))


def test_a_place_that_breaks_is_passed_on() -> None:
    """Who waits gets the right to connect where no connection is left."""

    async def test(stage: Stage) -> None:
        one = stage.call()
        await settle()
        two = stage.call()
        await settle()
        stage.network.made[0].hang_up()
        assert await outcome(one) is ConnectionLost
        (await stage.sent(1)).feed(OK)
        assert (await two).status == 200

    staged(test, PoolLimits(connections_max=1))


def test_waiting_ends_at_the_deadline_and_nothing_was_sent() -> None:
    """No free place in time is the caller's own bound: Shed."""

    async def test(stage: Stage) -> None:
        one = stage.call()
        client = await stage.sent()
        two = stage.call(timeout_s=1.0)
        assert await outcome(two) is Shed
        client.feed(OK)
        await one
        assert client.sent.count(b"GET") == 1

    staged(test, PoolLimits(connections_max=1))


def test_a_body_under_way_holds_no_place() -> None:
    """From its head on an answer in parts counts apart; after it its connection may be kept."""

    async def test(stage: Stage) -> None:
        async def streams() -> int:
            async with stage.pool.stream("a", 80, "GET", "/s", timeout_s=10.0) as response:
                assert response.stream is not None
                await response.stream.read()
                return response.status

        first = asyncio.ensure_future(streams())
        slow = await stage.sent()
        second, call = asyncio.ensure_future(streams()), stage.call(timeout_s=1.0)
        await settle()
        assert len(stage.network.made) == 1
        slow.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n")
        (await stage.sent(1)).feed(OK)
        assert await second == 200
        (await stage.sent(1)).feed(OK)
        assert (await call).status == 200
        assert repr(stage.pool) == "<HttpPool 1 endpoints, 2 connections, 1 idle>"
        # There is no place for a second idle one.
        slow.feed(b"the end..")
        assert await first == 200
        await settle()
        assert slow.is_lost
        assert repr(stage.pool) == "<HttpPool 1 endpoints, 1 connections, 1 idle>"

    staged(test, PoolLimits(connections_max=1))


def test_a_connection_is_kept_after_a_body() -> None:
    """Where there is a place, the next exchange takes what an answer in parts has left."""

    async def test(stage: Stage) -> None:
        for _ in range(3):
            async with stage.pool.stream("a", 80, "GET", "/s", timeout_s=10.0) as response:
                pass
            assert response.status == 200

    async def fed(stage: Stage) -> None:
        testing = asyncio.ensure_future(test(stage))
        for _ in range(3):
            client = await stage.sent()
            client.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
            client.feed(b"ok")
            await settle()
        await testing
        assert len(stage.network.made) == 1
        assert repr(stage.pool) == "<HttpPool 1 endpoints, 1 connections, 1 idle>"

    staged(fed, PoolLimits(connections_max=1))


def test_a_body_that_is_not_there_yet_waits_for_no_place() -> None:
    """Who sends one takes his own time, in a connection of its own; a whole one has a place."""

    async def test(stage: Stage) -> None:
        async def uploads(body: Body) -> int:
            async with stage.pool.stream("a", 80, "PUT", "/s", (), body, timeout_s=1.0) as response:
                return response.status

        busy = stage.call()
        await settle()
        body = open_body(b"abc", length=6)
        upload = asyncio.ensure_future(uploads(body))
        client = await stage.sent(1)
        assert client.sent.endswith(b"\r\n\r\nabc")
        with pytest.raises(Shed):
            await uploads(body_of(b"abc", length=3))
        await asyncio.sleep(5.0)
        body.feed(b"def")
        body.end()
        await settle()
        client.feed(OK)
        assert await upload == 200
        stage.network.made[0].feed(OK)
        assert (await busy).status == 200

    staged(test, PoolLimits(connections_max=1))


def test_too_many_that_wait_are_shed_at_once() -> None:
    """The line is bounded."""

    async def test(stage: Stage) -> None:
        one = stage.call()
        client = await stage.sent()
        two = stage.call()
        await settle()
        with pytest.raises(Shed, match="1 calls wait"):
            await stage.call()
        client.feed(OK)
        await one
        await settle()
        client.feed(OK)
        await two

    staged(test, PoolLimits(connections_max=1, waiting_max=1))


def test_a_place_given_to_a_call_that_was_cancelled_goes_to_the_next() -> None:
    """No place is lost, whichever of the two came first."""

    async def test(stage: Stage) -> None:
        for feeds_first in (True, False):
            one = stage.call()
            await settle()
            client = stage.network.made[-1]
            two = stage.call()
            await settle()
            three = stage.call()
            await settle()
            if feeds_first:
                client.feed(OK)
                two.cancel()
            else:
                two.cancel()
                client.feed(OK)
            assert (await one).status == 200
            for _ in range(3):
                await settle()
                if not three.done():
                    stage.network.made[-1].feed(OK)
            assert (await three).status == 200
            await asyncio.wait([two])
            await stage.pool.close()
            stage.pool = HttpPool(network=stage.network, limits=PoolLimits(connections_max=1))

    staged(test, PoolLimits(connections_max=1))


@pytest.mark.parametrize("seed", range(8))
def test_a_place_given_in_the_moment_of_the_cancellation_is_not_lost(seed: int) -> None:
    """Whatever order the loop chooses, who waits behind a cancelled call is served."""

    async def test(stage: Stage) -> None:
        one = stage.call()
        client = await stage.sent()
        two = stage.call()
        await settle()
        one.add_done_callback(lambda _: two.cancel())
        client.feed(OK)
        await one
        await asyncio.wait([two])
        three = stage.call()
        (await stage.sent()).feed(OK)
        assert (await three).status == 200

    staged(test, PoolLimits(connections_max=1), seed=seed)


# -- closing -------------------------------------------------------------------------------------


def test_a_closed_pool_fails_what_runs_waits_and_comes() -> None:
    """Nothing is left open, and nobody is left waiting."""

    async def test(stage: Stage) -> None:
        one = stage.call()
        await settle()
        two = stage.call()
        await settle()
        await stage.pool.close()
        assert await outcome(one) is ConnectionLost
        assert await outcome(two) is ConnectFailed
        with pytest.raises(ConnectFailed, match="the pool is closed"):
            await stage.call()
        await stage.pool.close()
        assert repr(stage.pool) == "<HttpPool 0 endpoints, 0 connections, 0 idle>"

    staged(test, PoolLimits(connections_max=1))


def test_a_connection_that_was_being_made_is_dropped_by_a_closed_pool() -> None:
    """Closing does not wait for a handshake, and does not leak its connection."""

    async def test(stage: Stage) -> None:
        made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        stage.network.connecting = lambda: made
        call = stage.call()
        await settle()
        await stage.pool.close()
        made.set_result(None)
        assert await outcome(call) is ConnectFailed
        assert stage.network.made[0].was_aborted

    staged(test)


def test_an_ipv6_address_is_bracketed() -> None:
    """Host names an address of version 6 as URIs do."""

    async def test(stage: Stage) -> None:
        call = asyncio.ensure_future(stage.pool.request("::1", 80, "GET", "/", timeout_s=1.0))
        client = await stage.sent()
        assert b"host: [::1]:80\r\n" in client.sent
        client.feed(OK)
        await call

    staged(test)
