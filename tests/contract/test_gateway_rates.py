"""What answers say of a rate: how much is left, and when there is more."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import Any

import pytest

from forward_fakes import STORE, Way, through
from gateway_fakes import (
    NO_RETRY,
    PLACE,
    SHOP,
    Fleet,
    Orders,
    Plant,
    UnknownMachine,
    behind,
)
from synchromesh.errors import Shed
from synchromesh.gateway import Aggregate, Branch, Forward, Gateway, Rate, Route
from synchromesh.http import HttpResponse

pytestmark = pytest.mark.usefixtures("each_way", "http_way")

MACHINE = Branch(Fleet.machine, args={"id": "path.id"}, required=True)
RATE = Rate("30/m", burst=3)
GATEWAY = Gateway(
    auth=[SHOP],
    routes=[
        Route("GET /fleet/{id}", Fleet.machine, rate=RATE),
        Route("POST /orders", Orders.place, scopes={"orders:write"}, rate=Rate("20/s", burst=40)),
        Route("GET /free/{id}", Fleet.machine),
        Aggregate("GET /page/{id}", branches={"machine": MACHINE}, rate=RATE, deadline="1s"),
    ],
)
LIMIT = re.compile(r'"([^"]+)";r=([0-9]+)(?:;t=([0-9]+))?')


@pytest.fixture(params=["inproc", "http"])
def kind(request: pytest.FixtureRequest) -> str:
    """The transport behind the gateway."""
    return str(request.param)


def limit_of(answer: Any) -> tuple[str, int, int | None]:
    """Return the name of the rate, what is left of it, and when there is more."""
    matched = LIMIT.fullmatch(answer.headers.get("ratelimit", ""))
    assert matched is not None, answer.headers.get("ratelimit")
    return matched[1], int(matched[2]), None if matched[3] is None else int(matched[3])


@pytest.mark.parametrize("path", ["fleet", "page"])
def test_an_answer_says_what_is_left(kind: str, path: str) -> None:
    """Each answer counts down, a refusal says when to come again, and time brings more."""

    async def main(plant: Plant) -> None:
        name = f"GET /{path}/{{id}}"
        seen = []
        for _ in range(4):
            answer = await plant.ask(f"GET /{path}/M-1")
            seen.append((answer.status, *limit_of(answer)))
            assert answer.headers.get_all("ratelimit-policy") == (f'"{name}";q=3;w=6',)
        assert seen == [(200, name, 2, 2), (200, name, 1, 2), (200, name, 0, 2), (429, name, 0, 2)]
        assert answer.headers.get("retry-after") == "2"
        await asyncio.sleep(1.5)
        soon = await plant.ask(f"GET /{path}/M-1")
        assert (soon.status, limit_of(soon), soon.headers.get("retry-after")) == (
            429, (name, 0, 1), "1",
        )  # fmt: skip
        await asyncio.sleep(float(soon.headers.get("retry-after", "")))
        assert (await plant.ask(f"GET /{path}/M-1")).status == 200
        await asyncio.sleep(60.0)
        assert limit_of(await plant.ask(f"GET /{path}/M-1")) == (name, 2, 2)
        assert limit_of(await plant.ask(f"GET /{path}/M-1", by="other")) == (name, 2, 2)

    behind(main, gateway=GATEWAY, kind=kind)


def test_a_failure_and_a_no_say_it_as_well(kind: str) -> None:
    """They count, whatever came of them; who may not ask at all is told nothing of it."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = UnknownMachine("there is no M-9")
        for path in ("fleet", "page"):
            answer = await plant.ask(f"GET /{path}/M-9")
            assert (answer.status, limit_of(answer)[1]) == (404, 2)
        plant.orders.answers["place"] = Shed("full")
        answer = await plant.ask("POST /orders", PLACE)
        assert (answer.status, limit_of(answer)) == (503, ("POST /orders", 39, 1))
        assert answer.headers.get("ratelimit-policy") == '"POST /orders";q=40;w=2'
        for by in ("", "visitor"):
            refused = await plant.ask("POST /orders", PLACE, by=by)
            assert refused.status in (401, 403)
            assert "ratelimit" not in refused.headers

    behind(main, gateway=GATEWAY, kind=kind, policies=NO_RETRY)


def test_without_a_rate_nothing_is_said(kind: str) -> None:
    """A route that bounds nobody has nothing to tell."""

    async def main(plant: Plant) -> None:
        answer = await plant.ask("GET /free/M-1")
        assert "ratelimit" not in answer.headers
        assert "ratelimit-policy" not in answer.headers

    behind(main, gateway=GATEWAY, kind=kind)


@pytest.mark.parametrize("path", ["fleet", "page"])
def test_nobody_is_asked_back_before_there_is_a_place(path: str) -> None:
    """A failing service says "soon", and the rate has no place until later: the later counts."""

    async def main(plant: Plant) -> None:
        plant.fleet.answers["machine"] = Shed("full", retry_after_s=1.0)
        for left in (2, 1, 0):
            answer = await plant.ask(f"GET /{path}/M-1")
            assert (answer.status, limit_of(answer)[1]) == (503, left)
            assert answer.headers.get("retry-after") == ("1" if left else "2")

    behind(main, gateway=GATEWAY, policies=NO_RETRY)


# -- what is passed on -------------------------------------------------------------------------

FORWARD = Gateway(auth=[SHOP], routes=[Forward("GET /few", to=STORE, rate=RATE)])


def test_what_is_passed_on_says_it_beside_what_the_upstream_says() -> None:
    """An upstream may have a rate of its own: both are told, each under its name."""

    async def main(way: Way) -> None:
        @asynccontextmanager
        async def limited(request: object) -> Any:
            yield HttpResponse(200, [("ratelimit", '"own";r=5;t=9')], b"")

        way.store.answer = limited
        lefts = []
        for _ in range(4):
            answer = await way.ask("GET /few", by="shop")
            told = answer.headers.get_all("ratelimit")
            own = [each for each in told if each.startswith('"own"')]
            assert len(own) == (1 if answer.status == 200 else 0)
            lefts.append([each for each in told if each not in own])
            assert answer.headers.get_all("ratelimit-policy") == ('"GET /few";q=3;w=6',)
        assert lefts == [[f'"GET /few";r={left};t=2'] for left in (2, 1, 0, 0)]
        assert answer.headers.get("retry-after") == "2"

    through(main, gateway=FORWARD)


def test_what_is_tried_again_says_it_once() -> None:
    """A retry is the same request: it has taken one place, and says so once."""

    async def main(way: Way) -> None:
        tries = 0

        @asynccontextmanager
        async def fails_once(request: object) -> Any:
            nonlocal tries
            tries += 1
            yield HttpResponse(500 if tries == 1 else 200, [], b"")

        way.store.answer = fails_once
        answer = await way.ask("GET /few", by="shop")
        assert (answer.status, tries) == (200, 2)
        assert answer.headers.get_all("ratelimit") == ('"GET /few";r=2;t=2',)
        assert answer.headers.get_all("ratelimit-policy") == ('"GET /few";q=3;w=6',)

    through(main, gateway=FORWARD)
