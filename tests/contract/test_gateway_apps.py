"""What a gateway promises of a whole application behind it: every method, paths as they came."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import OctKey

from bodies import body_of
from calls_fakes import KEY
from forward_fakes import PARTNER, STORE, Way, answering, through
from gateway_fakes import SHOP
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Auth, Forward, Gateway, Principal
from synchromesh.http import Headers, HttpExchange, HttpRequest
from synchromesh.identity import Signer

pytestmark = pytest.mark.usefixtures("http_way")

GATEWAY = Gateway(
    routes=(
        Forward(
            "ANY /app/{path...}",
            to=STORE,
            path="/{path...}",
            public=True,
            encoded_slashes=True,
        ),
        Forward("ANY /kept/{path...}", to=STORE, public=True, encoded_slashes=True),
        Forward(
            "ANY /v1/{x}/{rest...}",
            to=STORE,
            path="/{x}/api/{rest...}",
            public=True,
            encoded_slashes=True,
        ),
        Forward("GET /own", to=STORE, public=True, headers={"cookie", "authorization"}),
        Forward("GET /app/stock/{sku}", to=PARTNER, path="/{sku}", public=True),
    )
)
GUARDED = Gateway(
    auth=[SHOP],
    routes=(
        Forward("ANY /app/{path...}", to=STORE, path="/{path...}", public=True),
        Forward(
            "ANY /app/admin/{path...}", to=STORE, path="/admin/{path...}", scopes={"orders:write"}
        ),
        Forward("ANY /free/{path...}", to=STORE, public=True),
        Forward("GET /users/{id}", to=STORE, public=True),
        Forward("GET /users/me", to=STORE),
    ),
)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY", "LINK")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("body", [b"", b"a body"])
def test_every_method_passes_with_its_body(method: str, body: bytes) -> None:
    """An application gets what it would get without a gateway, and HEAD has no body."""

    async def main(way: Way) -> None:
        way.store.answer = answering(207, b"told", (("allow", "GET"),))
        for _ in range(2):  # the second goes the way that the first has prepared
            answer = await way.ask(f"{method} /app/a/b?c=%2F", body or None)
            assert (answer.status, answer.headers.get("allow")) == (207, "GET")
            assert answer.body == (b"" if method == "HEAD" else b"told")
        for seen in way.store.seen:
            assert (seen.request.method, seen.request.target) == (method, "/a/b?c=%2F")
            assert (seen.body, seen.is_whole) == (body, True)
        assert len(way.store.seen) == 2

    through(main, gateway=GATEWAY)


def test_a_path_of_the_upstreams_url_goes_before_each_path() -> None:
    """Also on the way that the first request has prepared, and for a method of no other route."""

    async def main(way: Way) -> None:
        (before,) = way.system.known.endpoints[STORE]
        way.system.known.endpoints[STORE] = [Endpoint("store-9", STORE, f"{before.url}/v2/x")]
        for route in ("GET /app/me?q=1", "GET /app/me?q=1", "DELETE /app/stock/7"):
            await way.ask(route)
        targets = [(seen.request.method, seen.request.target) for seen in way.store.seen]
        assert targets == [("GET", "/v2/x/me?q=1")] * 2 + [("DELETE", "/v2/x/stock/7")]

    through(main, gateway=GATEWAY)


@pytest.mark.parametrize(
    ("path", "there"),
    [
        ("/app/", "/"),
        ("/app/a//b/", "/a//b/"),
        ("/app/%41%2f%20;x=1", "/%41%2f%20;x=1"),
        ("/%61pp/...", "/..."),
        ("/app/a%252Fb", "/a%252Fb"),
        ("/app/a..b/.c", "/a..b/.c"),
        ("/kept/a%5Cb", "/kept/a%5Cb"),
        ("/kept/", "/kept/"),
        ("/kept//a", "/kept//a"),
        ("/v1/t%20/x/y", "/t%20/api/x/y"),
        ("/app/stock", "/stock"),
        ("/app/stock/", "/stock/"),
    ],
)
def test_the_rest_of_a_path_is_what_came(path: str, there: str) -> None:
    """It is neither decoded, encoded nor tidied up; only the prefix is another."""

    async def main(way: Way) -> None:
        assert (await way.ask(f"GET {path}")).status == 201
        assert [seen.request.target for seen in way.store.seen] == [there]

    through(main, gateway=GATEWAY)


@pytest.mark.parametrize(
    "path",
    [
        "/app/..",
        "/app/../admin",
        "/app/a/../../admin",
        "/app/./a",
        "/app/%2e%2E/admin",
        "/app/a%2F..%2Fb",
        "/app/..%5cadmin",
        "/app/..\\admin",
        "/app/..;x/admin",
        "/app/%252e%252e%252fadmin",
        "/app/a%25252F..",
        "/app/%2525252541",
        "/app/a%00",
        "/app/%C0%AE%C0%AE/admin",
        "/app//other.example/a",
        "/app/%2Fother.example",
        "/app/\\other.example",
        "/app/%255Cother.example",
        "/v1/%2Fother.example/a",
    ],
)
def test_no_rest_leads_elsewhere(path: str) -> None:
    """Nothing outside of the prefix is reached, however often it is decoded, and no other host."""

    async def main(way: Way) -> None:
        answer = await way.ask(f"GET {path}")
        assert answer.status == 400
        assert way.store.seen == []

    through(main, gateway=GATEWAY)


@pytest.mark.parametrize(
    "path",
    [
        "/app/admin%2Fusers",
        "/app/admin%2fusers",
        "/app/admin%5Cusers",
        "/app/admin\\users",
        "/app/admin%252Fusers",
        "/app/admin%25252fusers",
        "/app/x%2Fy",
        "/app//admin/users",
        "/app/x//admin",
        "/app/admin;a=1/users",
        "/app/admin%3Ba/users",
        "/app/admin%253b/users",
        "/app/%2561dmin/users",
        "/app/;/admin/users",
        "/free/a%2Fb",
        "/users/a%2Fkeys",
        "/users/me;x",
        "/users/%256de",
    ],
)
@pytest.mark.parametrize("by", ["", "visitor"])
def test_no_spelling_leads_past_a_closer_route(path: str, by: str) -> None:
    """What an upstream may take for the path of a route that asks for more is not passed on."""

    async def main(way: Way) -> None:
        for _ in range(2):
            answer = await way.ask(f"GET {path}", by=by)
            assert (answer.status, way.store.seen) == (400, [])

    through(main, gateway=GUARDED)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/app/admin/users", 401),
        ("/app/%61dmin/users", 401),
        ("/app/a%20b/100%25/", 201),
        ("/app/administrator", 201),
        ("/free/a//b;c=1/%2541", 201),
        ("/users/a@b", 201),
        ("/users/me", 401),
    ],
)
def test_a_guard_refuses_nothing_that_is_plain(path: str, status: int) -> None:
    """A path that all read in one way passes, and any does where no closer route asks for more."""

    async def main(way: Way) -> None:
        assert (await way.ask(f"GET {path}", by="")).status == status

    through(main, gateway=GUARDED)


def test_what_was_taken_out_goes_elsewhere() -> None:
    """A route of its own wins on its method and path; the application has the others still."""

    async def main(way: Way) -> None:
        await way.ask("GET /app/stock/a")
        await way.ask("PUT /app/stock/a", b"1")
        await way.ask("GET /app/stock/a/b")
        assert [seen.request.target for seen in way.partner.seen] == ["/a"]
        assert [seen.request.method for seen in way.store.seen] == ["PUT", "GET"]

    through(main, gateway=GATEWAY)


class Waiting(Auth):
    """Knows one principal at once, and asks somebody who never answers about any other."""

    def open(self, folders: object, runtime: object) -> Waiting:
        return self

    async def authenticate(self, request: HttpRequest) -> Principal | None:
        if request.headers.get("authorization") != "known":
            await asyncio.sleep(3600)
        return Principal("known", frozenset())

    def known(self, exchange: HttpExchange) -> Principal | None:
        is_known = (b"authorization", b"known") in exchange.pairs
        return Principal("known", frozenset()) if is_known else None

    def refresh(self) -> None: ...

    async def close(self) -> None: ...


def test_who_is_still_being_identified_holds_no_place() -> None:
    """Made-up credentials that take time shut nobody out: they wait outside."""

    async def main(way: Way) -> None:
        loop = asyncio.get_running_loop()
        unknown = [loop.create_task(way.ask("GET /a", by=f"made up {n}")) for n in range(20)]
        await asyncio.sleep(1.0)
        for _ in range(20):
            assert (await way.ask("GET /a", by="known")).status == 201
            assert (await way.ask("PUT /a", b"1", by="known")).status == 201
        assert not any(task.done() for task in unknown)
        for task in unknown:
            task.cancel()
        await asyncio.gather(*unknown, return_exceptions=True)

    routes = (Forward("ANY /{path...}", to=STORE),)
    through(main, gateway=Gateway(auth=[Waiting()], routes=routes, in_flight_max=2))


def test_an_echo_is_refused() -> None:
    """TRACE would show what the gateway adds to a request."""

    async def main(way: Way) -> None:
        raw = await way.raw(b"TRACE /app/a HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(1.0)
        assert raw.status == 405
        assert b"\r\nallow: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT\r\n" in raw.came
        assert way.store.seen == []

    through(main, gateway=GATEWAY)


@pytest.mark.parametrize("is_long", [False, True])
def test_what_leads_to_the_application_leads_to_the_gateway(is_long: bool) -> None:
    """Neither an internal address nor a path that leads nowhere gets out, whatever the answer."""
    told = b"see there" * (20_000 if is_long else 1)

    async def main(way: Way) -> None:
        url = way.servers[STORE].url
        way.store.answer = answering(
            307,
            lambda: body_of(told, length=None if is_long else len(told)),
            (
                ("location", f"{url}/login?next=%2Fa"),
                ("content-location", "/a.html"),
                ("refresh", f"1; url={url}/b"),
                ("link", f'<{url}/c>; rel="next"'),
                ("set-cookie", "a=1; Path=/"),
                ("set-cookie", "b=2; Path=/admin"),
                ("x-other", url),
            ),
        )
        answer = await way.ask("GET /app/a")
        assert (answer.status, answer.body) == (307, told)
        assert answer.headers.get("location") == "/app/login?next=%2Fa"
        assert answer.headers.get("content-location") == "/app/a.html"
        assert answer.headers.get("refresh") == "1; url=/app/b"
        assert answer.headers.get("link") == '</app/c>; rel="next"'
        assert answer.headers.get_all("set-cookie") == ("a=1; Path=/app", "b=2; Path=/app/admin")
        assert answer.headers.get("x-other") == url
        assert (await way.ask("GET /own")).headers.get("content-location") == "/app/a.html"

    through(main, gateway=GATEWAY)


def test_sessions_pass_where_the_route_says_so() -> None:
    """A cookie and a credential for the application are told to it, and to no other."""
    told = {"cookie": "session=1", "authorization": "Bearer theirs"}

    async def main(way: Way) -> None:
        await way.ask("GET /own", by="", headers=told)
        await way.ask("GET /app/a", by="", headers=told)
        own, other = (seen.request.headers for seen in way.store.seen)
        assert {name: own.get(name) for name in told} == told
        assert not told.keys() & {name for name, _ in other}

    through(main, gateway=GATEWAY)


TELLING = Gateway(
    auth=[SHOP],
    routes=(
        Forward("ANY /to/{path...}", to=PARTNER, principal=True),
        Forward("ANY /ours/{path...}", to=STORE, principal=True),
        Forward("ANY /untold/{path...}", to=PARTNER),
    ),
)


def claims_of(headers: Headers, upstream: str) -> dict[str, Any]:
    """Return what a token says, verified as an application would, by a library of JWT."""
    key = OctKey.import_key(Signer(KEY).principal_key(upstream))
    token = jwt.decode(headers.get("synchromesh-principal", ""), key, algorithms=["HS256"])
    assert token.header == {"alg": "HS256", "typ": "JWT"}
    return token.claims


@pytest.mark.parametrize("route", ["GET /to/a", "POST /to/a", "GET /ours/a"])
def test_who_asks_is_told_to_an_upstream_that_is_to_know(route: str) -> None:
    """By a token for it alone, for a minute; what a client says of it itself does not pass."""
    forged = {"synchromesh-principal": "forged", "synchromesh_principal": "forged"}
    name = PARTNER if "/to/" in route else STORE

    async def main(way: Way) -> None:
        upstream = way.partner if name == PARTNER else way.store
        for number in range(2):
            body = b"x" if route.startswith("POST") else None
            assert (await way.ask(route, body, headers=forged)).status == 201
            headers = upstream.seen[number].request.headers
            assert len(headers.get_all("synchromesh-principal")) == 1
            claims = claims_of(headers, name)
            now_s = way.system.runtime.wall_us() // 1_000_000
            assert (claims["iss"], claims["aud"], claims["sub"]) == ("synchromesh", name, "shop")
            assert "orders:write" in claims["scope"].split(" ")
            assert now_s + 29 <= claims["exp"] <= now_s + 60
            with pytest.raises(BadSignatureError):
                claims_of(headers, "another")
            await asyncio.sleep(40.0)
        told = [seen.request.headers.get("synchromesh-principal") for seen in upstream.seen]
        assert told[0] != told[1]

    through(main, gateway=TELLING)


def test_who_asks_is_told_to_nobody_else() -> None:
    """A stranger learns it only where the route says so."""

    async def main(way: Way) -> None:
        assert (await way.ask("GET /untold/a")).status == 201
        assert way.partner.seen[0].request.headers.get("synchromesh-principal") is None

    through(main, gateway=TELLING)


def test_a_second_attempt_tells_who_asks_as_the_first_did() -> None:
    """The instance that gets it is another one, and knows as much."""

    async def main(way: Way) -> None:
        way.system.known.endpoints[PARTNER].insert(
            0, Endpoint("partner-0", PARTNER, "http://127.0.0.1:1")
        )
        for _ in range(8):
            assert (await way.ask("GET /to/a")).status == 201
        assert len(way.partner.seen) == 8
        for seen in way.partner.seen:
            assert claims_of(seen.request.headers, PARTNER)["sub"] == "shop"

    through(main, gateway=TELLING)
