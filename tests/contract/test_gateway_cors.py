"""Pages of other origins, by both ways of the gateway: routes, aggregates, forwards, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest

import forward_fakes
import gateway_fakes
from forward_fakes import STORE, Way, answering, through
from gateway_fakes import PLACE, Plant, behind
from synchromesh.gateway import Cors, Forward, Gateway
from synchromesh.http import HttpResponse

pytestmark = pytest.mark.usefixtures("http_way")

SHOP, EVIL = "https://shop.example", "https://evil.example"
CORS = Cors(origins={SHOP}, credentials=True)
CLOSED = Cors(origins=frozenset())
PLANT = replace(gateway_fakes.GATEWAY, cors=CORS)
STORES = Gateway(
    auth=[gateway_fakes.SHOP],
    routes=[
        *forward_fakes.ROUTES,
        Forward("GET /open", to=STORE, public=True, cors=Cors(origins={"*"})),
        Forward("GET /closed", to=STORE, public=True, cors=CLOSED),
        Forward("ANY /any/{path...}", to=STORE, public=True),
    ],
    cors=CORS,
)


def said(answer: HttpResponse) -> dict[str, str]:
    return {n: v for n, v in answer.headers if n.startswith("access-control-")}


@pytest.mark.parametrize("route", ["GET /orders/A-1", "POST /orders", "GET /machines/M-1"])
@pytest.mark.parametrize("by", ["shop", "", "visitor"])
def test_answers_and_refusals_of_routes_may_be_read_by_a_page(route: str, by: str) -> None:
    """A page that cannot read why it was refused cannot say so."""

    async def main(plant: Plant) -> None:
        body = PLACE if route.startswith("POST") else None
        status = {"shop": 200, "": 401}.get(by)
        for origin in (SHOP, EVIL, None):
            headers = {} if origin is None else {"origin": origin}
            answer = await plant.ask(route, body, by=by, headers=headers)
            assert answer.status == status or status is None
            assert answer.headers.get_all("vary") == ("origin",)
            assert (said(answer).get("access-control-allow-origin") == SHOP) == (origin == SHOP)
            assert bool(said(answer)) == (origin == SHOP)

    behind(main, gateway=PLANT)


def test_what_has_no_route_may_be_read_by_a_page() -> None:
    """By what the gateway says of all."""

    async def main(plant: Plant) -> None:
        for route, status in (("GET /nowhere", 404), ("DELETE /orders", 405)):
            answer = await plant.ask(route, headers={"origin": SHOP})
            assert answer.status == status
            assert said(answer)["access-control-allow-origin"] == SHOP

    behind(main, gateway=PLANT)


def test_what_an_upstream_says_of_it_gives_way() -> None:
    """Only the gateway's word passes where it has one, and the upstream's where it has none."""

    async def main(way: Way) -> None:
        theirs = (
            ("access-control-allow-origin", "*"), ("access-control-allow-methods", "TRACE"),
            ("vary", "accept"),
        )  # fmt: skip
        way.store.answer = answering(200, b"x", theirs)
        answer = await way.ask("GET /firmware/a", headers={"origin": SHOP})
        assert answer.headers.get_all("access-control-allow-origin") == (SHOP,)
        assert "access-control-allow-methods" not in answer.headers
        assert sorted(answer.headers.get_all("vary")) == ["accept", "origin"]
        assert said(await way.ask("GET /firmware/a", headers={"origin": EVIL})) == {}
        assert said(await way.ask("GET /firmware/a")) == {}
        answer = await way.ask("GET /open", headers={"origin": EVIL})
        assert answer.headers.get_all("access-control-allow-origin") == ("*",)
        assert answer.headers.get_all("vary") == ("accept",)
        answer = await way.ask("GET /closed", headers={"origin": EVIL})
        assert said(answer) == dict(theirs[:2])
        # The upstream was told nothing of the page.
        assert all("origin" not in seen.request.headers for seen in way.store.seen)

    through(main, gateway=STORES)


def test_a_failed_forward_may_be_read_by_a_page() -> None:
    """Whichever way it was answered by."""

    async def main(way: Way) -> None:
        way.store.answer = answering(500)
        answer = await way.ask("GET /firmware/a", headers={"origin": SHOP, "x-request-id": "r-1"})
        assert answer.status >= 500
        assert said(answer)["access-control-allow-origin"] == SHOP
        assert answer.headers.get_all("x-request-id") == ("r-1",)

    through(main, gateway=STORES)


PREFLIGHTS: dict[str, tuple[str, dict[str, str], int]] = {
    "a forward": ("/firmware/a", {"access-control-request-method": "PUT"}, 204),
    "any method": ("/any/a/b", {"access-control-request-method": "PATCH"}, 204),
    "a header": ("/notes", {"access-control-request-method": "POST",
                            "access-control-request-headers": "content-type,idempotency-key"}, 204),
    "open": ("/open", {"access-control-request-method": "GET", "origin": EVIL}, 204),
    "a header that is not": ("/notes", {"access-control-request-method": "POST",
                                        "access-control-request-headers": "x-admin"}, 403),
    "another origin": ("/notes", {"access-control-request-method": "POST", "origin": EVIL}, 403),
    "another method": ("/notes", {"access-control-request-method": "DELETE"}, 405),
    "no route": ("/nowhere", {"access-control-request-method": "GET"}, 404),
    "closed": ("/closed", {"access-control-request-method": "GET"}, 405),
}  # fmt: skip


@pytest.mark.parametrize(("path", "headers", "status"), PREFLIGHTS.values(), ids=PREFLIGHTS.keys())
def test_a_browser_that_asks_before_is_answered_here(
    path: str, headers: dict[str, str], status: int
) -> None:
    """Without a credential, which it does not send then; and no upstream hears of it."""

    async def main(way: Way) -> None:
        answer = await way.ask(f"OPTIONS {path}", by="", headers={"origin": SHOP, **headers})
        assert answer.status == status
        assert ("access-control-allow-methods" in answer.headers) == (status == 204)
        if status == 204:
            assert answer.headers.get("access-control-allow-origin") in (SHOP, "*")
            assert answer.headers.get("access-control-max-age") == "600"
        assert way.store.seen == []

    through(main, gateway=STORES)


@pytest.mark.parametrize(
    "headers", [{}, {"origin": SHOP}, {"access-control-request-method": "GET"}]
)
def test_other_options_are_requests_as_any(headers: dict[str, str]) -> None:
    """They are passed on where a route takes any method."""

    async def main(way: Way) -> None:
        assert (await way.ask("OPTIONS /any/a", headers=headers)).status == 201
        assert [seen.request.method for seen in way.store.seen] == ["OPTIONS"]
        assert (await way.ask("OPTIONS /notes", headers=headers)).status == 405

    through(main, gateway=STORES)
