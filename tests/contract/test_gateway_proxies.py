"""Behind a proxy: who is counted, and what upstreams are told, by both ways of the gateway."""

from __future__ import annotations

import pytest

from forward_fakes import PARTNER, ROUTES, STORE, Way, answering, through
from gateway_fakes import SHOP, Fleet, Plant, behind
from synchromesh.calls import Policies
from synchromesh.gateway import Aggregate, Branch, Forward, Gateway, Rate, Route
from synchromesh.gateway.origin import Origins, read_proxies
from synchromesh.resilience import Policy, RetryOptions

pytestmark = pytest.mark.usefixtures("http_way")

PROXY, OTHER_PROXY, CLIENT = "10.0.0.7", "10.0.0.8", "203.0.113.5"
TRUSTED = read_proxies([PROXY, OTHER_PROXY])
RATED = Gateway(
    routes=[
        Route("GET /fleet/{id}", Fleet.machine, public=True, rate=Rate("1/m")),
        Aggregate(
            "GET /pages/{id}",
            branches={"machine": Branch(Fleet.machine, args={"id": "path.id"}, required=True)},
            public=True,
            rate=Rate("1/m"),
        ),
    ]
)
# Virtual hosts have one address; it is the proxy's here.
FROM_HERE = {"x-forwarded-for": f"192.0.2.1, {CLIENT}", "x-forwarded-proto": "https"}


@pytest.mark.parametrize("path", ["/fleet/M-1", "/pages/M-1"])
def test_clients_behind_a_proxy_have_a_rate_each(path: str) -> None:
    """Each is counted by the address that its proxy saw, not by the proxy's."""

    async def main(plant: Plant) -> None:
        async def ask(told: str, peer: str = PROXY) -> int:
            headers = {"x-forwarded-for": told}
            answer = await plant.ask(f"GET {path}", by="", peer=f"{peer}:1", headers=headers)
            return answer.status

        assert await ask("203.0.113.1") == 200
        assert await ask("203.0.113.2") == 200
        assert await ask("203.0.113.1") == 429
        # The same client by another proxy, over both of them, or with a made up past.
        assert await ask("203.0.113.1", OTHER_PROXY) == 429
        assert await ask(f"203.0.113.1, {OTHER_PROXY}") == 429
        assert await ask("198.51.100.9, 203.0.113.1") == 429

    behind(main, gateway=RATED, origins=Origins(TRUSTED))


@pytest.mark.parametrize("path", ["/fleet/M-1", "/pages/M-1"])
@pytest.mark.parametrize("peer", ["203.0.113.1", "10.0.0.9"])
def test_a_client_does_not_choose_who_it_is(path: str, peer: str) -> None:
    """Who is no trusted proxy is counted by its own address, whatever it writes."""

    async def main(plant: Plant) -> None:
        for number, expected in enumerate((200, 429, 429)):
            headers = {
                "x-forwarded-for": f"203.0.113.{number}",
                "forwarded": f"for=203.0.113.{number}",
            }
            answer = await plant.ask(f"GET {path}", by="", peer=f"{peer}:{number}", headers=headers)
            assert answer.status == expected

    for origins in (Origins(TRUSTED), Origins()):
        behind(main, gateway=RATED, origins=origins)


@pytest.mark.parametrize("body", [None, b"x"])
def test_an_upstream_is_told_whom_a_request_comes_from(body: bytes | None) -> None:
    """Written anew: the client's address, scheme and host, and nothing of what it made up."""

    async def main(way: Way) -> None:
        headers = FROM_HERE | {"x-forwarded-host": "shop.example", "x-forwarded-port": "99"}
        route = "GET /firmware/a" if body is None else "PUT /firmware/a"
        assert (await way.ask(route, body, headers=headers)).status == 201
        told = way.store.seen[0].request.headers
        assert told.get_all("x-forwarded-for") == (CLIENT,)
        assert told.get_all("x-forwarded-proto") == ("https",)
        assert told.get_all("x-forwarded-host") == ("shop.example",)
        assert told.get_all("forwarded") == (f'for={CLIENT};proto=https;host="shop.example"',)
        assert "x-forwarded-port" not in told

    through(main, origins=Origins(read_proxies(["127.0.0.1", "10.0.0.0/8"])))


def test_an_upstream_is_told_the_peer_of_who_is_not_trusted() -> None:
    """What a client has written of itself reaches nobody."""

    async def main(way: Way) -> None:
        assert (await way.ask("GET /firmware/a", headers=FROM_HERE)).status == 201
        told = way.store.seen[0].request.headers
        assert told.get_all("x-forwarded-for") == (way.server.host,)
        assert told.get_all("x-forwarded-proto") == ("http",)
        assert told.get("x-forwarded-host") == f"{way.server.host}:{way.server.port}"

    through(main)


def test_an_attempt_more_tells_the_same() -> None:
    """What goes on by the slow way has the same origin."""

    async def main(way: Way) -> None:
        answers = iter([answering(503), answering(200)])
        way.store.answer = lambda request: next(answers)(request)
        assert (await way.ask("GET /firmware/a", headers=FROM_HERE)).status == 200
        first, second = (seen.request.headers for seen in way.store.seen)
        assert first.get_all("forwarded") == second.get_all("forwarded")
        assert first.get("x-forwarded-for") == second.get("x-forwarded-for") == CLIENT

    through(
        main,
        policies=Policies(default=Policy(retry=RetryOptions(base_s=0.01))),
        origins=Origins(read_proxies(["127.0.0.1", "10.0.0.0/8"])),
    )


@pytest.mark.parametrize(("to", "wanted", "is_told"), [
    (PARTNER, None, False), (PARTNER, True, True), (STORE, None, True), (STORE, False, False),
])  # fmt: skip
def test_a_stranger_is_told_only_where_its_route_says_so(
    to: str, wanted: bool | None, is_told: bool
) -> None:
    """An address is personal: an upstream that is not ours gets it where that is wanted."""
    route = Forward("GET /x", to=to, public=True, forwarded=wanted)

    async def main(way: Way) -> None:
        assert (await way.ask("GET /x", headers=FROM_HERE)).status == 201
        (seen,) = [*way.store.seen, *way.partner.seen]
        told = {name for name, _ in seen.request.headers if "forwarded" in name}
        assert bool(told) == is_told
        if is_told:
            assert len(told) == 4

    through(main, gateway=Gateway(auth=[SHOP], routes=[*ROUTES, route]))
