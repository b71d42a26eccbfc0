"""The called side: isolation in one process, routes and headers over HTTP, drain and handlers."""

from __future__ import annotations

import asyncio
import gc
import json
from contextvars import ContextVar
from typing import Protocol
from unittest.mock import patch

import pytest

from calls_fakes import ONCE, Always, Leaf, Shop, System, answering, play
from synchromesh.calls import Contract, HttpEdge, Incoming, Reply, Request, query
from synchromesh.context import CREDENTIAL, CallContext
from synchromesh.discovery import Endpoint
from synchromesh.errors import ConfigError, ConnectionLost, RemoteFailed, Shed, TimedOut
from synchromesh.http import HttpResponse, HttpServer
from synchromesh.identity import NOBODY, Credential
from synchromesh.resilience import within
from synchromesh.telemetry import current_span

colour: ContextVar[str] = ContextVar("colour", default="none")


# -- in one process ------------------------------------------------------------------------------


def test_no_context_variable_crosses_a_call() -> None:
    """A handler sees none of its caller's variables, and leaves none behind: as on the wire."""

    async def main(system: System) -> None:
        seen: list[str] = []
        within: list[str] = []

        async def look(_: Incoming) -> bytes:
            seen.append(colour.get())
            colour.set("callee's")
            span = current_span.get()
            assert isinstance(span, CallContext)
            assert span.caller == "client"
            within.append(span.span_id)
            return b"1"

        await system.serve(Leaf, {"ask": look})
        caller = system.caller()
        colour.set("caller's")
        for _ in range(2):
            await caller.call(Leaf.ask(1), context=caller.root())
        assert seen == ["none", "none"]
        assert within == [made.span_id for made in system.spans if made.kind == "handle"]
        assert colour.get() == "caller's"

    play("inproc", main)


def test_a_callee_that_is_stopped_loses_the_connection() -> None:
    """Its caller is not cancelled along with it: the outcome is unknown."""

    class Stopped:
        def authenticate(self, credential: str, now: float, _: object) -> Credential:
            return Credential("", NOBODY, "", 0)

        async def dispatch(self, request: Request) -> Reply:
            raise asyncio.CancelledError

    async def main(system: System) -> None:
        await system.mount("leaf", Stopped(), [Leaf.ask])
        caller = system.caller(policies=ONCE)
        with pytest.raises(ConnectionLost, match="was stopped"):
            await caller.call(Leaf.ask(1), context=caller.root())
        assert repr(system.inproc) == "<InProcessTransport 1 instances>"
        system.inproc.remove("leaf-1")
        assert repr(system.inproc) == "<InProcessTransport 0 instances>"

    play("inproc", main)


def test_a_receiver_that_breaks_after_its_caller_left_is_not_a_stray_failure() -> None:
    """Nobody waits for it any more; the loop is not told of an exception that was never read."""

    class Broken:
        def authenticate(self, credential: str, now: float, _: object) -> Credential:
            return Credential("", NOBODY, "", 0)

        async def dispatch(self, request: Request) -> Reply:
            try:
                await asyncio.sleep(60.0)
            except asyncio.CancelledError:
                raise OSError("torn down") from None
            return Reply(200, b"1")

    async def main(system: System) -> None:
        await system.mount("leaf", Broken(), [Leaf.ask])
        caller = system.caller(policies=ONCE)
        with pytest.raises(TimedOut):
            await caller.call(Leaf.ask(1), context=caller.root(), timeout_s=0.1)
        await asyncio.sleep(0.1)
        gc.collect()

    play("inproc", main)


def test_a_time_out_of_the_handlers_own_is_its_failure() -> None:
    """Only the call's own deadline makes a TimedOut."""

    async def handle(_: Incoming) -> bytes:
        loop = asyncio.get_running_loop()
        await within(lambda: asyncio.sleep(9.0), loop.time() + 0.1)
        return b"1"

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": handle})
        caller = system.caller(policies=ONCE)
        with pytest.raises(RemoteFailed):
            await caller.call(Leaf.ask(1), context=caller.root())

    play("inproc", main)


def test_drain_waits_for_those_who_wait_for_a_place_too() -> None:
    """What was accepted before the drain is answered, queued or not."""

    async def slow(_: Incoming) -> bytes:
        await asyncio.sleep(0.3)
        return b"1"

    async def main(system: System) -> None:
        dispatcher = await system.serve(Leaf, {"ask": slow}, in_flight_max=1, queue_max=4)
        caller = system.caller(policies=ONCE)
        calls = [
            asyncio.create_task(caller.call(Leaf.ask(1), context=caller.root())) for _ in range(3)
        ]
        await asyncio.sleep(0.1)
        assert await dispatcher.drain() == 0
        assert asyncio.get_running_loop().time() == pytest.approx(0.9)
        assert await asyncio.gather(*calls) == [1, 1, 1]
        with pytest.raises(Shed, match="drains"):
            await caller.call(Leaf.ask(1), context=caller.root())

    play("inproc", main)


# -- over HTTP -----------------------------------------------------------------------------------


class Twin(Contract, Protocol, service="twin", version="1.0"):
    @query("GET /asks/{n}")
    async def ask(self, n: int) -> int: ...


async def raw(system: System, method: str, target: str, **headers: str) -> HttpResponse:
    """Send a request as anybody could."""
    endpoint = next(iter(system.known.endpoints.values()))[0]
    host, _, port = endpoint.url.removeprefix("http://").partition(":")
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return await system.pool.request(host, int(port), method, target, pairs, timeout_s=None)


def signed(system: System) -> dict[str, str]:
    token = system.signer.token("client", audience="shop", now_us=system.runtime.wall_us())
    return {CREDENTIAL: token}


@pytest.mark.parametrize(("method", "target", "status", "allow"), [
    ("GET", "/nowhere", 404, None),
    ("GET", "/stock", 404, None),
    ("POST", "/stock/a", 405, "GET, HEAD"),
    ("OPTIONS", "*", 404, None),
])  # fmt: skip
def test_unknown_paths_and_methods_are_problems(
    method: str, target: str, status: int, allow: str | None
) -> None:
    """404 for a path that nothing answers, 405 with Allow for another method of one."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1)})
        response = await raw(system, method, target)
        assert response.status == status
        assert response.headers.get("allow") == allow
        assert response.headers.get("content-type") == "application/problem+json"
        code = "unknown_operation" if status == 404 else "method_not_allowed"
        assert json.loads(response.body)["code"] == code

    play("http", main)


def test_head_is_answered_as_get_is_without_a_body() -> None:
    """With the length that the body has, and as any other where it is refused."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1)})
        response = await raw(system, "HEAD", "/stock/a", **signed(system))
        assert (response.status, response.body) == (200, b"")
        assert response.headers.get("content-length") == "1"
        assert (await raw(system, "HEAD", "/stock/a")).status == 401

    play("http", main)


def test_a_stranger_is_told_nothing_of_the_arguments() -> None:
    """Without a credential it is 401 before a byte of path, query or body is judged."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1)})
        response = await raw(system, "GET", "/stock/a?speed=1")
        assert response.status == 401
        assert b"speed" not in response.body
        response = await raw(system, "GET", "/stock/a?speed=1", **signed(system))
        assert response.status == 400
        assert json.loads(response.body)["detail"] == (
            "shop.stock: unknown argument 'speed'; known: sku, least, note"
        )

    play("http", main)


@pytest.mark.parametrize("name", ["deadline-ms", "idempotency-key", CREDENTIAL])
def test_a_header_that_is_given_twice_is_refused(name: str) -> None:
    """Two parties could each believe another one of them."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1)})
        endpoint = system.known.endpoints["shop"][0]
        host, _, port = endpoint.url.removeprefix("http://").partition(":")
        pairs = [*signed(system).items(), (name, "1"), (name, "2")]
        response = await system.pool.request(
            host, int(port), "GET", "/stock/a", pairs, timeout_s=None
        )
        assert response.status == 400
        assert f"header {name} is given twice" in json.loads(response.body)["detail"]

    play("http", main)


def test_malformed_headers_are_refused() -> None:
    """A deadline that is no number is 400, not ignored."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1)})
        response = await raw(system, "GET", "/stock/a", deadline_ms="soon", **signed(system))
        assert response.status == 400
        assert "deadline-ms" in json.loads(response.body)["detail"]

    play("http", main)


def test_an_answer_is_plain_json_with_what_it_cost() -> None:
    """Anybody with a credential can call by curl; attempts and waits are headers."""

    async def main(system: System) -> None:
        replies = Always(
            Reply(200, b"1", 2), Reply.of_error(Shed("full", retry_after_s=0.2), attempts_used=1)
        )
        await system.mount("leaf", replies, [Leaf.ask])
        answer = await raw(system, "GET", "/asks/1", **signed(system))
        assert (answer.status, answer.body) == (200, b"1")
        assert answer.headers.get("content-type") == "application/json"
        assert answer.headers.get("attempts-used") == "2"
        shed = await raw(system, "GET", "/asks/1")
        assert (shed.status, shed.headers.get("retry-after")) == (503, "1")
        assert shed.headers.get("attempts-used") == "1"

    play("http", main)


def test_services_share_a_server_under_prefixes() -> None:
    """Equal routes of two services stand under a prefix each; without one they are refused."""

    async def main(system: System) -> None:
        edge = HttpEdge(runtime=system.runtime)
        edge.mount(Always(Reply(200, b"1")), [Leaf.ask], prefix="/leaf")
        edge.mount(Always(Reply(200, b"2")), [Twin.ask], prefix="/twin")
        with pytest.raises(ConfigError, match=r"GET /twin/asks/\{n\} is taken"):
            edge.mount(Always(Reply(200, b"3")), [Leaf.ask], prefix="/twin")
        server = HttpServer(edge, network=system.runtime.network)
        await server.start()
        system.stack.push_async_callback(server.close)
        for service in ("leaf", "twin"):
            url = f"{server.url}/{service}/"
            system.known.endpoints[service] = [Endpoint(f"{service}-1", service, url)]
        caller = system.caller()
        assert await caller.call(Leaf.ask(1), context=caller.root()) == 1
        assert await caller.call(Twin.ask(1), context=caller.root()) == 2
        assert "1 idle" in repr(system.transports["http"])

    play("http", main)


def test_what_a_server_refuses_itself_has_a_class_too() -> None:
    """A server with a narrower limit refuses the head itself, and that is a BadRequest too."""

    async def main(system: System) -> None:
        await system.serve(Shop, {"stock": answering(1)})
        caller = system.caller()
        with (
            patch("synchromesh.calls.fast.TARGET_BYTES_MAX", 100_000),
            pytest.raises(Exception, match="longer than") as caught,
        ):
            await caller.call(Shop.stock("x" * 40_000), context=caller.root())
        assert type(caught.value).__name__ == "BadRequest"

    play("http", main)


def test_places_of_many_instances_are_forgotten() -> None:
    """The table of parsed urls is bounded, however many instances come and go."""

    async def main(system: System) -> None:
        await system.serve(Leaf, {"ask": answering(1)})
        (endpoint,) = system.known.endpoints["leaf"]
        caller = system.caller()
        for number in range(1030):
            url = f"{endpoint.url}{'/' * (number + 1)}"
            system.known.endpoints["leaf"] = [Endpoint(f"leaf-{number}", "leaf", url)]
            assert await caller.call(Leaf.ask(1), context=caller.root()) == 1

    play("http", main)
