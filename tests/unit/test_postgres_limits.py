"""What PostgreSQL does not answer is given up from here, in virtual time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import asyncpg
import pytest

from synchromesh.store.postgres_connection import places_of
from synchromesh.store.postgres_limits import TimeLimit, keep_alive
from synchromesh.store.postgres_log import Sequencer
from synchromesh.store.postgres_wakeups import Wakeups
from synchromesh.testing import SimRuntime, run


class Silent:
    """A connection that does not answer from some question on, until it is ended."""

    def __init__(self, answers: int = 0, *, answers_after_s: float = 0.0) -> None:
        self.asked: list[str] = []
        self.is_ended = False
        self._answers = answers
        self._answers_after_s = answers_after_s
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def execute(self, sql: str, *_: object) -> str:
        self.asked.append(sql)
        if len(self.asked) > self._answers:
            if self._answers_after_s:
                await asyncio.wait([self._end], timeout=self._answers_after_s)
            else:
                await asyncio.wait([self._end])
        if self.is_ended:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")
        return ""

    async def add_listener(self, channel: str, _: object) -> None:
        await self.execute(f"listen {channel}")

    def add_termination_listener(self, _: object) -> None:
        """Tell nobody: it ends without a word."""

    def terminate(self) -> None:
        self.is_ended = True
        if not self._end.done():
            self._end.set_result(None)


def test_what_is_late_is_told_and_then_its_connection_ended() -> None:
    """At the limit and at twice that; what is over by then is neither."""

    async def body(_: SimRuntime) -> None:
        loop, late = asyncio.get_running_loop(), list[float]()
        connection = Silent()
        with TimeLimit(connection, 5.0, lambda: late.append(loop.time())):
            began = loop.time()
            with pytest.raises(asyncpg.ConnectionDoesNotExistError):
                await connection.execute("select 1")
        assert (late, loop.time()) == ([began + 5.0], began + 10.0)
        well = Silent()
        with TimeLimit(well, 5.0):
            await asyncio.sleep(9.9)
        limit = TimeLimit(well, 5.0, lambda: late.append(loop.time()))
        await asyncio.sleep(5.1)
        limit.cancel()
        await asyncio.sleep(60.0)
        assert len(late) == 2
        assert not well.is_ended

    run(body)


def test_wake_ups_are_heard_again_after_a_connection_went_silent() -> None:
    """It is looked at where nothing is told, too; then all look, for something was missed."""

    async def body(_: SimRuntime) -> None:
        # It is set up, listens, and is asked once.
        made = [Silent(3), Silent(1000)]
        later, heard = iter(made), list[str | None]()

        async def connect() -> Silent:
            return next(later)

        wakeups = Wakeups(connect, heard.append, sender="me", service="shop")
        await asyncio.sleep(65.0)
        assert not heard
        await asyncio.sleep(10.0)
        assert heard == [None]
        assert [each.is_ended for each in made] == [True, False]
        await wakeups.close()

    run(body)


def test_positions_that_take_long_get_longer_each_time() -> None:
    """A turn without an answer is given up; one that is only slow is not for ever."""

    async def body(_: SimRuntime) -> None:
        made: list[Silent] = []

        async def connect() -> Silent:
            made.append(Silent(answers_after_s=35.0))
            return made[-1]

        sequencer = Sequencer(connect, ["log"], service="shop", look_every_s=1.0)
        numbered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        then: Callable[[], None] = lambda: numbered.set_result(None)  # noqa: E731
        sequencer.number(then)
        await numbered
        assert [each.is_ended for each in made] == [True, True, False]  # 10 s, 20 s, 40 s
        await sequencer.close()

    run(body)


@pytest.mark.anyio
async def test_the_kernel_looks_whether_the_other_end_is_there() -> None:
    """Also where nothing is asked, or sent and not confirmed; a local socket has no need of it."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    keep_alive(writer.transport)
    found = writer.transport.get_extra_info("socket")
    assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    writer.close()
    server.close()
    here, there = socket.socketpair()
    _, writer = await asyncio.open_unix_connection(sock=here)
    keep_alive(writer.transport)
    writer.close()
    there.close()


@pytest.mark.parametrize(
    ("url", "places"),
    [
        ("postgresql://u:p@a/d", ["postgresql://u:p@a/d"]),
        ("postgresql://a:5,b/d", ["postgresql://a:5/d", "postgresql://b/d"]),
        ("postgresql://a,b/d?sslmode=require",
         ["postgresql://a/d?sslmode=require", "postgresql://b/d?sslmode=require"]),
        ("postgresql:///d?host=/run/x&port=5", ["postgresql:///d?host=/run/x&port=5"]),
        ("postgresql://u@/d?host=a,/run&port=5,6",
         ["postgresql://u@/d?host=a&port=5", "postgresql://u@/d?host=/run&port=6"]),
        ("postgresql://u@/d?host=a,b&port=5",
         ["postgresql://u@/d?host=a&port=5", "postgresql://u@/d?host=b&port=5"]),
        ("postgresql://u@/d?host=a,b&port=5,6,7", ["postgresql://u@/d?host=a,b&port=5,6,7"]),
    ],
)  # fmt: skip
def test_an_address_is_split_into_its_servers(url: str, places: list[str]) -> None:
    """Each keeps user, database and options; what does not fit is left to the driver."""
    assert list(places_of(url)) == places
