"""Exchanges of the pool by callbacks: when they are told, what of, and who gets the connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine

import pytest

from http_fakes import FakeNetwork
from synchromesh.errors import ConnectFailed, ConnectionLost, Shed, TimedOut
from synchromesh.http import ClientExchange, HttpPool, PoolLimits, RawPair
from synchromesh.http.client import ExchangeState
from synchromesh.testing import run

GET = b"GET / HTTP/1.1\r\nhost: a:80\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: \xe4 \r\n\r\nok"

Test = Callable[["Stage"], Coroutine[object, object, None]]


class Noted(ClientExchange):
    """Keeps what it is told."""

    def __init__(self, due_s: float = math.inf, *, is_idempotent: bool = False) -> None:
        super().__init__(GET, due_s=due_s, is_idempotent=is_idempotent)
        self.told: list[object] = []
        self.then: Callable[[], object] = lambda: None

    def on_answer(self, status: int, pairs: list[RawPair], body: bytes) -> None:
        self.told.append((status, pairs, body))
        self.then()

    def on_error(self, error: Exception) -> None:
        self.told.append(type(error))


class InParts(Noted):
    """Takes the answer as it comes."""

    takes_parts = True

    def on_begin(self, status: int, pairs: list[RawPair], length: int | None) -> None:
        self.told.append((status, length))

    def on_part(self, data: bytes) -> None:
        self.told.append(data)

    def on_end(self) -> None:
        self.told.append("end")


class Stage:
    def __init__(self, limits: PoolLimits) -> None:
        self.network = FakeNetwork()
        self.pool = HttpPool(network=self.network, limits=limits)

    async def send(self, exchange: Noted) -> Noted:
        self.pool.send("a", 80, exchange)
        await settle()
        return exchange


def staged(test: Test, limits: PoolLimits | None = None) -> None:
    async def main(_runtime: object) -> None:
        stage = Stage(limits or PoolLimits())
        try:
            await test(stage)
        finally:
            await stage.pool.close()

    run(main)


async def settle() -> None:
    await asyncio.sleep(0.001)


def test_an_exchange_is_told_within_the_event_that_brought_its_answer() -> None:
    """The fields come as the wire had them, names in lower case, and the body is whole."""

    async def test(stage: Stage) -> None:
        one = await stage.send(Noted())
        stage.network.made[0].feed(OK[:20])
        assert one.told == []
        stage.network.made[0].feed(OK[20:])
        assert one.told == [(200, [(b"content-length", b"2"), (b"x-a", b"\xe4")], b"ok")]
        assert one.state is ExchangeState.DONE

    staged(test)


def test_a_request_is_written_at_once_where_a_connection_is_idle() -> None:
    """No turn of the loop lies between `send` and the write."""

    async def test(stage: Stage) -> None:
        await stage.send(Noted())
        client = stage.network.made[0]
        client.feed(OK)
        stage.pool.send("a", 80, Noted())
        assert client.sent.count(b"GET") == 2

    staged(test)


def test_an_answer_may_send_the_next_request() -> None:
    """The connection has been given back by then: the next one takes the same."""

    async def test(stage: Stage) -> None:
        one, two = Noted(), Noted()
        one.then = lambda: stage.pool.send("a", 80, two)
        await stage.send(one)
        stage.network.made[0].feed(OK)
        stage.network.made[0].feed(OK)
        assert [len(each.told) for each in (one, two)] == [1, 1]
        assert len(stage.network.made) == 1

    staged(test)


def test_who_waits_gets_the_connection_within_the_event_that_freed_it() -> None:
    """In the order of waiting; who has given up is passed over."""

    async def test(stage: Stage) -> None:
        one, two, three = [await stage.send(Noted()) for _ in range(3)]
        client = stage.network.made[0]
        two.cancel()
        client.feed(OK)
        assert client.sent.count(b"GET") == 2
        client.feed(OK)
        assert [len(each.told) for each in (one, two, three)] == [1, 0, 1]

    staged(test, PoolLimits(connections_max=1))


@pytest.mark.parametrize(
    ("is_sent", "is_reached", "error"),
    [(True, True, TimedOut), (False, True, Shed), (False, False, ConnectFailed)],
)
def test_a_deadline_says_what_is_known(
    is_sent: bool, is_reached: bool, error: type[Exception]
) -> None:
    """ExchangeState: unknown. Waiting for a connection, or for its making: nothing was sent."""

    async def test(stage: Stage) -> None:
        if not is_sent and is_reached:
            await stage.send(Noted())
        if not is_reached:
            stage.network.connecting = asyncio.get_running_loop().create_future
        late = await stage.send(Noted(asyncio.get_running_loop().time() + 2.0))
        await asyncio.sleep(1.9)
        assert late.told == []
        await asyncio.sleep(0.1)
        assert late.told == [error]
        late.cancel()
        await settle()
        assert late.told == [error]

    staged(test, PoolLimits(connections_max=1))


def test_a_cancelled_exchange_is_told_nothing_and_closes_its_connection() -> None:
    """A late answer reaches nobody, and the place is free."""

    async def test(stage: Stage) -> None:
        one = await stage.send(Noted())
        one.cancel()
        await settle()
        assert stage.network.made[0].was_aborted
        assert one.told == []
        two = await stage.send(Noted())
        stage.network.made[1].feed(OK)
        assert len(two.told) == 1
        assert repr(stage.pool) == "<HttpPool 1 endpoints, 1 connections, 1 idle>"

    staged(test, PoolLimits(connections_max=1))


def test_a_cancelled_connecting_gives_its_place_back() -> None:
    """Nobody waits for a handshake that nobody wants."""

    async def test(stage: Stage) -> None:
        stage.network.connecting = asyncio.get_running_loop().create_future
        one = await stage.send(Noted())
        one.cancel()
        await settle()
        stage.network.connecting = None
        two = await stage.send(Noted())
        stage.network.made[0].feed(OK)
        assert (one.told, len(two.told)) == ([], 1)

    staged(test, PoolLimits(connections_max=1))


async def _serves(stage: Stage) -> None:
    """Assert that no place is lost: as many are sent at once as there are places."""
    await settle()
    stage.network.made.clear()
    fresh = [await stage.send(Noted()) for _ in range(2)]
    for client in stage.network.made:
        client.feed(OK)
    assert [len(each.told) for each in fresh] == [1, 1]
    assert repr(stage.pool) == "<HttpPool 1 endpoints, 2 connections, 2 idle>"


def test_an_exchange_cancelled_as_it_is_sent_gives_its_place_back() -> None:
    """Its connecting has not begun by then, not even with its first step."""

    async def test(stage: Stage) -> None:
        for _ in range(3):
            one = Noted()
            stage.pool.send("a", 80, one)
            one.cancel()
            await settle()
            assert repr(stage.pool) == "<HttpPool 0 endpoints, 0 connections, 0 idle>"
            assert one.told == []
        await _serves(stage)

    staged(test, PoolLimits(connections_max=2))


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_a_burst_that_ends_in_one_turn_gives_every_place_back(is_cancelled: bool) -> None:
    """Each that ends hands its place to one that waits and ends in the same turn."""

    async def test(stage: Stage) -> None:
        due_s = asyncio.get_running_loop().time() + 1.0
        burst = [await stage.send(Noted(due_s)) for _ in range(7)]
        if is_cancelled:
            for each in burst:
                each.cancel()
        await asyncio.sleep(1.0)
        told = [] if is_cancelled else [Shed]
        assert [each.told for each in burst[2:]] == [told] * 5
        await _serves(stage)

    staged(test, PoolLimits(connections_max=2))


def test_a_place_freed_by_a_deadline_passes_over_who_is_due_as_well() -> None:
    """Who waits behind them and has time left gets it at once."""

    async def test(stage: Stage) -> None:
        due_s = asyncio.get_running_loop().time() + 1.0
        late = [await stage.send(Noted(due_s)) for _ in range(3)]
        one = await stage.send(Noted(due_s + 9.0))
        await asyncio.sleep(1.0)
        assert [each.told for each in late] == [[TimedOut], [Shed], [Shed]]
        assert len(stage.network.made) == 2
        stage.network.made[1].feed(OK)
        assert len(one.told) == 1

    staged(test, PoolLimits(connections_max=1))


def test_nothing_is_sent_of_an_exchange_that_is_due() -> None:
    """A connection that becomes free at the deadline, even just before its timer, is too late."""

    async def test(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + 2.0
        loop.call_at(due_s, lambda: stage.network.made[0].feed(OK))
        one, two = await stage.send(Noted()), await stage.send(Noted(due_s))
        await asyncio.sleep(3.0)
        assert (len(one.told), two.told) == (1, [Shed])
        assert stage.network.made[0].sent.count(b"GET") == 1

    staged(test, PoolLimits(connections_max=1))


@pytest.mark.parametrize(("freed_s", "error"), [(0.5, ConnectFailed), (1.5, Shed), (1.999, Shed)])
def test_a_deadline_after_a_hand_over_blames_who_took_the_time(
    freed_s: float, error: type[Exception]
) -> None:
    """Nothing was sent; the callee has failed only where it took longer than its place did."""

    async def test(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        one = Noted()
        stage.pool.send("a", 80, one)
        late = Noted(loop.time() + 2.0)
        stage.pool.send("a", 80, late)
        await asyncio.sleep(freed_s)
        stage.network.connecting = loop.create_future
        one.cancel()
        await asyncio.sleep(1.9 - freed_s)
        assert late.told == []
        await asyncio.sleep(0.2)
        assert (one.told, late.told) == ([], [error])

    staged(test, PoolLimits(connections_max=1))


def test_a_place_that_refuses_after_the_waiting_is_the_callees_failure() -> None:
    """However long it was waited for: that it refuses is known of it."""

    async def test(stage: Stage) -> None:
        one, two = await stage.send(Noted()), await stage.send(Noted())
        await asyncio.sleep(9.0)

        def refuse() -> asyncio.Future[None]:
            raise ConnectionRefusedError(111, "Connection refused")

        stage.network.connecting = refuse
        one.cancel()
        await settle()
        assert two.told == [ConnectFailed]

    staged(test, PoolLimits(connections_max=1))


def test_a_kept_connection_that_is_closed_is_replaced_once() -> None:
    """Only for what may be sent twice; that the second fails says nothing of the first."""

    async def test(stage: Stage) -> None:
        await stage.send(Noted())
        stage.network.made[0].feed(OK)
        one = await stage.send(Noted(is_idempotent=True))
        stage.network.made[0].hang_up()
        await settle()
        stage.network.made[1].feed(OK)
        assert len(one.told) == 1
        two = await stage.send(Noted(is_idempotent=True))

        def refuse() -> asyncio.Future[None]:
            raise ConnectionRefusedError(111, "Connection refused")

        stage.network.connecting = refuse
        stage.network.made[1].hang_up()
        await settle()
        assert two.told == [ConnectionLost]

    staged(test)


# -- parts -------------------------------------------------------------------------------------


def test_an_answer_is_taken_in_parts() -> None:
    """Its head comes as soon as it is there, and parts as they come; chunks are taken off."""

    async def test(stage: Stage) -> None:
        one = await stage.send(InParts())
        client = stage.network.made[0]
        client.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        assert one.told == [(200, None)]
        client.feed(b"2\r\nab\r\n3\r\ncde\r\n")
        client.feed(b"1\r\nf\r\n0\r\n\r\n")
        assert one.told == [(200, None), b"abcde", b"f", "end"]
        two = await stage.send(InParts())
        client.feed(OK)
        assert two.told == [(200, [(b"content-length", b"2"), (b"x-a", b"\xe4")], b"ok")]
        assert repr(stage.pool) == "<HttpPool 1 endpoints, 1 connections, 1 idle>"

    staged(test)


def test_who_takes_parts_may_pause_and_bounds_the_time_himself() -> None:
    """The deadline is for the head alone; a pause holds the server back, and ends with the body."""

    async def test(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        one = await stage.send(InParts(loop.time() + 1.0))
        client = stage.network.made[0]
        client.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
        await asyncio.sleep(60.0)
        assert one.connection is not None
        one.connection.pause()
        assert client.is_paused
        one.connection.resume()
        client.feed(b"cd")
        assert one.told[-1] == "end"
        two = await stage.send(InParts(loop.time() + 1.0))
        client.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
        two.expect_within(5.0)
        await asyncio.sleep(5.1)
        assert two.told[-1] is TimedOut
        assert client.was_aborted

    staged(test)


def test_an_answer_in_parts_that_breaks_off_is_an_error_and_never_whole() -> None:
    """Its length, its chunks or its connection say that it is not all."""

    async def test(stage: Stage) -> None:
        for framing in (b"content-length: 9", b"transfer-encoding: chunked"):
            one = await stage.send(InParts())
            client = stage.network.made[-1]
            client.feed(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
            client.hang_up()
            await settle()
            assert one.told[-1] is ConnectionLost

    staged(test)
