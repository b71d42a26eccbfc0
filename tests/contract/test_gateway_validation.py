"""What a client learns of a request that does not fit: every mistake, each by its place."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway_fakes import (
    NO_RETRY,
    PLACE,
    SECRET,
    SHOP,
    Fleet,
    Orders,
    Plant,
    Production,
    behind,
    json_of,
)
from synchromesh.errors import BadRequest
from synchromesh.gateway import Aggregate, Branch, Gateway, Route
from synchromesh.http import HttpResponse

pytestmark = pytest.mark.usefixtures("each_way", "http_way")

LINE = Branch(Production.line, args={"number": "path.number"}, required=True)
GATEWAY = Gateway(
    auth=[SHOP],
    routes=[
        Route("POST /orders", Orders.place),
        Route("PUT /orders/{order_id}/notes", Orders.note),
        Route("GET /machines", Fleet.machines),
        Route("GET /lines/{number}", Production.line),
        Aggregate("GET /pages/{number}", branches={"line": LINE}),
    ],
)
STRICT = Gateway(
    auth=[SHOP],
    routes=[
        Route("POST /orders", Orders.place, strict=True),
        Route("PUT /orders/{order_id}/notes", Orders.note, strict=True),
    ],
)


def errors_of(answer: HttpResponse) -> list[dict[str, str]]:
    """Return what a problem says of each mistake; it is 400, and no service heard of it."""
    assert answer.status == 400, answer.body
    assert answer.headers.get("content-type") == "application/problem+json"
    problem = json_of(answer)
    assert problem["code"] == "bad_request"
    assert "orders." not in problem["detail"], "the operation's name is ours"
    found: list[dict[str, str]] = problem["errors"]
    return found


@pytest.mark.parametrize(
    ("route", "body", "places"),
    [
        ("POST /orders", {"sku": 7, "qty": "x"}, ["/sku", "/qty"]),
        ("POST /orders", {"qty": "x"}, ["/sku", "/qty"]),
        ("POST /orders", [], [""]),
        ("POST /orders", None, [""]),
        ("PUT /orders/A-1/notes", {"text": 7, "more": 1}, ["/more", "/text"]),
        ("PUT /orders/A-1/notes", {}, ["/text"]),
        ("PUT /orders/A-1/notes?x=1", {}, ["query x", "/text"]),
        ("GET /machines", None, ["query ids"]),
        ("GET /machines?ids=[1]&since=soon&x=1", None, ["query ids", "query since", "query x"]),
        ("GET /lines/x", None, ["path number"]),
        ("GET /lines/-1", None, ["path number"]),
        ("GET /pages/-1", None, ["path number"]),
    ],
)
def test_each_mistake_is_told_by_its_place(route: str, body: Any, places: list[str]) -> None:
    """Fields of the body by a JSON pointer, what is in the path or the query by its name."""

    async def main(plant: Plant) -> None:
        found = errors_of(await plant.ask(route, body))
        told = [e["pointer"] if "pointer" in e else f"{e['in']} {e['name']}" for e in found]
        assert told == places
        assert all(each["detail"] for each in found)
        assert plant.asked == []

    behind(main, gateway=GATEWAY)


def test_what_a_service_says_of_arguments_stays_inside() -> None:
    """Its words may name what is behind it; the gateway's own are about what the client sent."""

    async def main(plant: Plant) -> None:
        error = BadRequest(SECRET)
        error.mistakes = ({"detail": SECRET, "pointer": "/x"},)
        plant.orders.answers["place"] = error
        answer = await plant.ask("POST /orders", PLACE)
        assert SECRET not in answer.body.decode()
        assert "errors" not in json_of(answer)

    behind(main, gateway=GATEWAY, policies=NO_RETRY)


async def sent(plant: Plant, route: str, text: str) -> HttpResponse:
    """Send a body that is no value of ours."""
    return await plant.ask(route, msgspec.Raw(text.encode()))


LOOSE = [
    ("POST /orders", '{"sku":"SX90","qty":2,"qty":3}', ["/qty"]),
    ("POST /orders", '{"sku":"SX90","qty":2,"colour":"red"}', ["/colour"]),
    ("POST /orders", r'{"sku":"SX90","sk\u0075":"SX90","qty":2,"x":1}', ["/sku", "/x"]),
    ("PUT /orders/A-1/notes", '{"text":"a","text":"b"}', ["/text"]),
]


@pytest.mark.parametrize(("route", "text", "pointers"), LOOSE)
def test_a_strict_route_takes_nothing_loose(route: str, text: str, pointers: list[str]) -> None:
    """Unknown and doubled fields are refused before a service hears of them."""

    async def main(plant: Plant) -> None:
        found = errors_of(await sent(plant, route, text))
        assert [each["pointer"] for each in found] == pointers
        assert plant.asked == []

    behind(main, gateway=STRICT)


@pytest.mark.parametrize(("route", "text"), [(route, text) for route, text, _ in LOOSE])
def test_another_route_takes_them_as_ever(route: str, text: str) -> None:
    """Nothing is looked for that nobody has asked for."""

    async def main(plant: Plant) -> None:
        assert (await sent(plant, route, text)).status == 200

    behind(main, gateway=GATEWAY)


def test_a_strict_route_takes_what_fits() -> None:
    """And says of what does not fit the same as any other, and of fields besides, 16 at most."""

    async def main(plant: Plant) -> None:
        assert (await plant.ask("POST /orders", PLACE)).status == 200
        assert (await plant.ask("PUT /orders/A-1/notes", {"text": "x"})).status == 200
        found = errors_of(await sent(plant, "POST /orders", '{"sku":7,"sku":"a","x":1}'))
        assert [each["pointer"] for each in found] == ["/qty", "/sku", "/x"]
        many = ",".join(f'"x{number}":1' for number in range(40))
        found = errors_of(await sent(plant, "POST /orders", f'{{"sku":7,"qty":"x",{many}}}'))
        assert [each["pointer"] for each in found[:3]] == ["/sku", "/qty", "/x0"]
        assert len(found) == 16
        for text in ("[]", '{"sku":7', '{"text":7,"text":8}', "7"):
            found = errors_of(await sent(plant, "PUT /orders/A-1/notes", text))
            assert [each["pointer"] for each in found] == (
                ["/text", "/text"] if "8" in text else [""]
            )
        assert len(plant.asked) == 2

    behind(main, gateway=STRICT)
