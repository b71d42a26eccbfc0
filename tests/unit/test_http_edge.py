"""Calls over HTTP at the receiving side: by bytes and by a coroutine, with the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from calls_fakes import KEY, Hold, Shop, answering
from http_fakes import FakeNetwork, FakeTransport
from synchromesh.calls import Dispatcher, HttpEdge, Incoming
from synchromesh.calls.contract import operations_of
from synchromesh.codec import encode
from synchromesh.http import HttpServer
from synchromesh.identity import Signer
from synchromesh.runtime import Runtime
from synchromesh.telemetry import MemoryRing, Tracer
from synchromesh.testing import run

Test = Callable[["Stage"], Coroutine[object, object, None]]


class Stage:
    """One service behind an edge, on a scripted network; its handler waits for `gate`."""

    def __init__(self, runtime: Runtime, *, is_fast: bool) -> None:
        signer = Signer(KEY)
        self.token = signer.token("client", audience="shop", now_us=runtime.wall_us())
        self.gate = asyncio.Event()
        self.ended: list[str] = []
        self.network = FakeNetwork()
        self.spans = MemoryRing()
        dispatcher = Dispatcher(
            "shop",
            {"stock": answering(3), "reserve": self.reserve},
            signer=signer,
            tracer=Tracer("shop", runtime, self.spans),
            runtime=runtime,
        )
        edge = HttpEdge(runtime=runtime)
        edge.mount(dispatcher, operations_of(Shop).values())
        self.server = HttpServer(edge, network=self.network, is_fast=is_fast)

    async def reserve(self, _: Incoming) -> bytes:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("whole")
        return encode(Hold("h-1"))

    def request(
        self, line: str, *fields: str, body: bytes = b"", token: str | None = None
    ) -> bytes:
        signed = self.token if token is None else token
        lines = [f"{line} HTTP/1.1", "host: x", f"synchromesh-credential: {signed}", *fields]
        if body:
            lines.append(f"content-length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body


def staged(test: Test, *, is_fast: bool = True) -> None:
    async def main(runtime: Runtime) -> None:
        stage = Stage(runtime, is_fast=is_fast)
        await stage.server.start()
        try:
            await test(stage)
        finally:
            await stage.server.close()

    run(main)


async def settle() -> None:
    await asyncio.sleep(0.001)


RESERVE = "POST /reservations"
BODY = b'{"sku":"a","qty":1}'
ASKED: dict[str, tuple[str, list[str], bytes]] = {
    "an answer": ("GET /stock/SX90", [], b""),
    "an answer with a query": ("GET /stock/SX90?least=2", [], b""),
    "a query that does not fit": ("GET /stock/SX90?least=x", [], b""),
    "an unknown argument": ("GET /stock/SX90?most=2", [], b""),
    "a path that is not UTF-8": ("GET /stock/%ff", [], b""),
    "an unknown path": ("GET /nothing", [], b""),
    "another method": ("DELETE /stock/SX90", [], b""),
    "a body that is no JSON": (RESERVE, ["idempotency-key: k"], b"{"),
    "a body that does not fit": (RESERVE, ["idempotency-key: k"], b'{"sku":1}'),
    "a query beside a body": (RESERVE + "?a=b", ["idempotency-key: k"], BODY),
    "a header of ours twice": ("GET /stock/SX90", ["deadline-ms: 1", "Deadline-Ms: 2"], b""),
    "a deadline that is no number": ("GET /stock/SX90", ["deadline-ms: soon"], b""),
    "a deadline that has passed": ("GET /stock/SX90", ["deadline-ms: 0"], b""),
    "a key with a bad escape": (RESERVE, ["idempotency-key: %0a"], BODY),
    "an undo": (RESERVE, ["undoes: k"], b""),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("token", [None, "", "forged.token"], ids=["signed", "unsigned", "forged"])
def test_both_ways_answer_with_the_same_bytes(name: str, token: str | None) -> None:
    """Whatever is asked, and whoever asks: heads and bodies are alike to the byte."""
    line, fields, body = ASKED[name]
    sent: list[bytes] = []

    async def test(stage: Stage) -> None:
        stage.gate.set()
        client = stage.network.client()
        client.feed(stage.request(line, *fields, body=body, token=token))
        await settle()
        sent.append(bytes(client.sent))
        assert not client.has_eof

    for is_fast in (True, False):
        staged(test, is_fast=is_fast)
    assert sent[0] == sent[1]
    assert sent[0].startswith(b"HTTP/1.1 ")


def test_a_stranger_is_told_nothing_of_the_arguments() -> None:
    """Without a credential it is 401, whatever the body is."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(stage.request(RESERVE, body=b"{", token=""))
        assert bytes(client.sent).startswith(b"HTTP/1.1 401 ")

    staged(test)


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_handler_that_waits_is_answered_for_when_it_ends(is_fast: bool) -> None:
    """And what waits behind it on its connection comes after it."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(stage.request(RESERVE, "idempotency-key: k", body=BODY))
        client.feed(stage.request("GET /stock/SX90"))
        await asyncio.sleep(5.0)
        assert client.sent == b""
        stage.gate.set()
        await settle()
        assert client.sent.index(b"h-1") < client.sent.index(b"\r\n\r\n3")

    staged(test, is_fast=is_fast)


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_handler_is_cancelled_at_its_deadline_and_answered_for(is_fast: bool) -> None:
    """The client is told that the outcome is unknown, at the deadline and not later."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        fields = ("idempotency-key: k", "deadline-ms: 2000")
        client.feed(stage.request(RESERVE, *fields, body=BODY))
        await asyncio.sleep(1.9)
        assert client.sent == b""
        assert stage.ended == []
        await asyncio.sleep(0.2)
        assert bytes(client.sent).startswith(b"HTTP/1.1 504 ")
        assert b'"code":"timed_out"' in client.sent
        assert stage.ended == ["cancelled"]
        client.feed(stage.request("GET /stock/SX90"))
        await settle()
        assert bytes(client.sent).endswith(b"\r\n\r\n3")

    staged(test, is_fast=is_fast)


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_client_that_leaves_cancels_its_handler(is_fast: bool) -> None:
    """Nobody works for one that has gone, and its span says so."""

    async def test(stage: Stage) -> None:
        client = stage.network.client()
        client.feed(stage.request(RESERVE, "idempotency-key: k", body=BODY))
        await settle()
        client.hang_up()
        await settle()
        assert stage.ended == ["cancelled"]
        assert [span.status for span in stage.spans] == ["cancelled"]

    staged(test, is_fast=is_fast)


def test_what_does_not_wait_is_answered_within_its_event() -> None:
    """The answer is sent before the event that brought the request is over."""

    async def test(stage: Stage) -> None:
        client: FakeTransport = stage.network.client()
        client.feed(stage.request("GET /stock/SX90"))
        assert bytes(client.sent).endswith(b"\r\n\r\n3")

    staged(test)
