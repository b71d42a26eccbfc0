"""The Date of answers: on every one of them, made once a second, and never twice."""

from __future__ import annotations

import asyncio
import email.utils
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from http_fakes import FakeNetwork
from synchromesh.http import HttpExchange, HttpRequest, HttpResponse, HttpServer
from synchromesh.http.date import http_date
from synchromesh.testing import SimRuntime, run

pytestmark = pytest.mark.usefixtures("http_way")

OWN = "Thu, 01 Jan 1970 00:00:00 GMT"


class Answers:
    """Answers in each of the ways that there are; /own with a Date of its own."""

    def begin_exchange(self, exchange: HttpExchange) -> bool:
        own = b"date: %b\r\n" % OWN.encode() if exchange.target.endswith(b"/own") else b""
        if exchange.target.startswith(b"/ready"):
            exchange.answer(b"HTTP/1.1 200 OK\r\n%bcontent-length: 2\r\n" % own, b"ok")
        elif exchange.target.startswith(b"/begun"):
            exchange.begin(b"HTTP/1.1 200 OK\r\n%bcontent-length: 2\r\n" % own, b"ok")
            exchange.end()
        else:
            return False
        return True

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, [("date", OWN)] if request.path.endswith("/own") else (), b"ok")

    def body_max(self, method: str, path: str, pairs: object) -> int | None:
        return 0 if path.startswith("/streamed") else None

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        yield await self(request)


def dates(
    target: str, after_s: tuple[float, ...] = (0.0,), *, has_clock: bool = True
) -> list[list[str]]:
    """Ask after each of some times, and return the dates of each answer."""
    told: list[list[str]] = []

    async def main(runtime: SimRuntime) -> None:
        network, answers = FakeNetwork(), Answers()
        made: list[int] = []

        def wall_us() -> int:
            made.append(1)
            return runtime.wall_us()

        clock: Callable[[], int] | None = wall_us if has_clock else None
        server = HttpServer(answers, network=network, streaming=answers, wall_us=clock)
        await server.start()
        client = network.client()
        for wait_s in after_s:
            await asyncio.sleep(wait_s)
            client.sent.clear()
            client.feed(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % target.encode())
            await asyncio.sleep(0.001)
            head = client.sent.partition(b"\r\n\r\n")[0].decode()
            told.append([line[6:] for line in head.split("\r\n") if line.startswith("date: ")])
        await server.close()
        assert len(made) <= len({date for each in told for date in each})

    run(main)
    return told


@pytest.mark.parametrize("way", ["/ready", "/begun", "/whole", "/streamed", "/%zz"])
def test_an_answer_says_when_it_was_made(way: str) -> None:
    """Also one that refuses; within a second it is the same text, and then another one."""
    pauses = (0.0,) if way == "/%zz" else (0.0, 0.2, 1.0, 5.0)
    told = dates(way, pauses)
    assert [len(each) for each in told] == [1] * len(pauses)
    moments = [email.utils.parsedate_to_datetime(each[0]).timestamp() for each in told]
    if len(moments) > 1:
        assert [moment - moments[0] for moment in moments] == [0, 0, 1, 6]


@pytest.mark.parametrize("way", ["/ready", "/begun", "/whole", "/streamed"])
def test_there_is_never_more_than_one(way: str) -> None:
    """Where an answer has its own, as an upstream's has, that stays (RFC 9110, 6.6.1)."""
    assert dates(f"{way}/own") == [[OWN]]


def test_without_a_clock_there_is_none() -> None:
    """As RFC 9110 has it."""
    assert dates("/whole", has_clock=False) == [[]]


@pytest.mark.parametrize("second", [0, 784111777, 951782400, 1709210096, 4102444799])
def test_a_date_is_as_http_has_it(second: int) -> None:
    """Leap days and all, whatever the locale."""
    assert http_date(second * 1_000_000 + 999_999) == email.utils.formatdate(second, usegmt=True)
