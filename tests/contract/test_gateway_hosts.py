"""What a gateway promises of routes that have a host: which of them a request gets, either way."""

from __future__ import annotations

import asyncio

import pytest

from forward_fakes import PARTNER, STORE, Raw, Way, answering, through
from gateway_fakes import SHOP
from synchromesh.gateway import Forward, Gateway

pytestmark = pytest.mark.usefixtures("http_way")


def to(name: str, route: str, host: str = "", **more: object) -> Forward:
    """Return a route that tells by the upstream's path that it was taken."""
    _, _, path = route.partition(" ")
    rest = path[path.index("{") :] if "{" in path else ""
    there = f"/{name}/{rest}" if rest else f"/{name}"
    return Forward(route, to=STORE, path=there, host=host, public=True, **more)  # type: ignore[arg-type]


GATEWAY = Gateway(
    auth=[SHOP],
    routes=[
        to("any", "GET /parts/{id}"),
        to("any_plain", "GET /parts/new"),
        to("post", "POST /parts/{id}", body_max="1MiB"),
        to("shop", "GET /parts/{id}", "shop.example"),
        to("below", "ANY /parts/{rest...}", "*.example"),
        to("deep", "GET /parts/{id}", "*.b.example"),
        Forward("GET /only", to=PARTNER, host="shop.example", public=True),
    ],
)


@pytest.mark.parametrize(
    ("host", "route", "there"),
    [
        ("elsewhere", "GET /parts/7", "/any/7"),
        ("elsewhere:8443", "GET /parts/new", "/any_plain"),
        ("shop.example", "GET /parts/7", "/shop/7"),
        # The host goes first, though another route names the path.
        ("shop.example", "GET /parts/new", "/shop/new"),
        ("SHOP.Example.:8000", "GET /parts/7?a=1", "/shop/7?a=1"),
        # What it has no route for is answered as below it, and then as on any host.
        ("shop.example", "DELETE /parts/7", "/below/7"),
        ("a.example", "GET /parts/7", "/below/7"),
        ("x.y.example", "GET /parts/7/8", "/below/7/8"),
        ("a.b.example", "GET /parts/7", "/deep/7"),
        ("b.example", "GET /parts/7", "/below/7"),
        ("example", "GET /parts/7", "/any/7"),
        ("notexample", "GET /parts/7", "/any/7"),
        ("[::1]:80", "GET /parts/7", "/any/7"),
        # An empty label is no name below another one.
        (".example", "GET /parts/7", "/any/7"),
        ("..example", "GET /parts/7", "/any/7"),
        ("a..example", "GET /parts/7", "/any/7"),
        (".b.example", "GET /parts/7", "/any/7"),
    ],
)
def test_a_request_gets_the_route_of_its_host(host: str, route: str, there: str) -> None:
    """That very host, then the longest pattern, then any; by its path only within one of these."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200)
        for _ in range(2):  # the second time by what is kept
            answer = await way.ask(route, by="", headers={"host": host})
            assert answer.status == 200
            assert way.store.seen.pop().request.target == there

    through(main, gateway=GATEWAY)


@pytest.mark.parametrize(
    ("head", "there"),
    [
        (b"GET http://shop.example/parts/7 HTTP/1.0\r\n\r\n", "/shop/7"),
        (b"GET http://Shop.Example:80/parts/7 HTTP/1.0\r\nAccept: */*\r\n\r\n", "/shop/7"),
        (b"GET http://shop.example/parts/7 HTTP/1.0\r\nHost: shop.example\r\n\r\n", "/shop/7"),
        (b"GET http://shop.example/parts/7 HTTP/1.1\r\nHost: shop.example\r\n\r\n", "/shop/7"),
        (b"POST http://shop.example/parts/7 HTTP/1.0\r\nContent-Length: 1\r\n\r\na", "/below/7"),
        (b"GET /parts/7 HTTP/1.0\r\n\r\n", "/any/7"),
    ],
)
def test_an_absolute_target_names_the_host(head: bytes, there: str) -> None:
    """HTTP/1.0 may name it there alone; such a client's next hop is told of it (RFC 9112)."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200)
        raw = await way.raw(head)
        await asyncio.wait_for(raw.has_ended.wait() if b"1.0" in head else arrived(raw), 60)
        assert raw.status == 200
        (seen,) = way.store.seen
        assert seen.request.target == there

    through(main, gateway=GATEWAY)


async def arrived(raw: Raw) -> None:
    while b"\r\n\r\n" not in raw.came:
        await asyncio.sleep(0.01)


def test_a_body_is_streamed_by_the_route_of_its_host() -> None:
    """Its length is that route's; and where a host has no such method it is that of any host."""

    async def main(way: Way) -> None:
        way.store.answer = answering(200)
        big = b"x" * 1_200_000
        refused = await way.ask("POST /parts/7", big, by="", headers={"host": "elsewhere"})
        assert refused.status == 413
        small = await way.ask("POST /parts/7", big[:900_000], by="", headers={"host": "a.example"})
        assert small.status == 200
        assert way.store.seen[-1].request.path == "/below/7"

    through(main, gateway=GATEWAY)


def test_a_path_of_another_host_is_not_there() -> None:
    """404 on hosts without it; 405 tells the methods of all routes that the host may have."""

    async def main(way: Way) -> None:
        way.partner.answer = answering(200)
        assert (await way.ask("GET /only", by="", headers={"host": "shop.example"})).status == 200
        for host in ("elsewhere", "a.shop.example"):
            assert (await way.ask("GET /only", by="", headers={"host": host})).status == 404
        other = await way.ask("DELETE /parts/7", by="", headers={"host": "elsewhere"})
        assert other.status == 405
        assert other.headers.get("allow") == "GET, HEAD, POST"

    through(main, gateway=GATEWAY)


def test_where_an_answer_leads_is_told_by_routes_of_its_host() -> None:
    """Another host's way to the same upstream is none here."""

    async def main(way: Way) -> None:
        url = way.servers[STORE].url
        way.store.answer = answering(302, headers=(("location", f"{url}/deep/9"),))
        answer = await way.ask("GET /parts/7", by="", headers={"host": "a.b.example"})
        assert answer.headers.get("location") == "/parts/9"
        answer = await way.ask("GET /parts/7", by="", headers={"host": "shop.example"})
        assert answer.headers.get("location") == "/deep/9"

    through(main, gateway=GATEWAY)
