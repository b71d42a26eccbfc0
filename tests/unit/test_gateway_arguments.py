"""What a gateway is given of the wrong kind is named with its place and the mend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from gateway_fakes import Fleet
from synchromesh.errors import ConfigError
from synchromesh.gateway import (
    JWT,
    Aggregate,
    ApiKeys,
    AuthFunction,
    Branch,
    Cache,
    Certificates,
    Cors,
    Each,
    Forward,
    Gateway,
    Mirror,
    OpenApi,
    Rate,
    Route,
    Split,
    Stale,
    check,
)
from synchromesh.http import HttpRequest
from synchromesh.identity import Principal
from synchromesh.testing import SimRuntime, run, serving

MACHINE = Route("GET /f/{id}", Fleet.machine, public=True)
KEYED = Route("GET /k/{id}", Fleet.machine, by={"session"})
SOURCES = Cors(origins={"https://a.example"})


async def by_session(request: HttpRequest) -> Principal | None:
    """Know nobody."""


class Asked:
    """Knows nobody, by being called."""

    async def __call__(self, request: HttpRequest) -> Principal | None:
        """Know nobody."""


@pytest.mark.parametrize(
    ("auth", "said"),
    [
        (
            [ApiKeys(), by_session],
            "auth[1] is the function by_session; wrap it in AuthFunction(by_session)",
        ),
        ([lambda _: None], "auth[0] is a function; wrap it in AuthFunction(...)"),
        ([Asked()], "auth[0] is a function; wrap it in AuthFunction(...)"),
        ([print], "auth[0] is the function print; wrap it in AuthFunction(print)"),
        ([ApiKeys], "auth[0] is the class ApiKeys; write a value of it: ApiKeys()"),
        ([JWT], "auth[0] is the class JWT; write a value of it: JWT(...)"),
        ([dataclasses], "auth[0] is a module; write ApiKeys(), JWT(...), "),
        (["api-keys.json"], "auth[0] is 'api-keys.json'; write ApiKeys(), JWT(...), "),
        (ApiKeys(), "auth is a bare ApiKeys; write a list: auth=[ApiKeys(...)]"),
        (ApiKeys, "auth is the class ApiKeys; write a list: auth=[ApiKeys()]"),
        (by_session, "auth is the function by_session; write a list: auth=[AuthFunction(by_"),
        (print, "auth is the function print; write a list: auth=[AuthFunction(print)]"),
        (None, "auth is None; write a list: auth=[ApiKeys()]"),
        ([ApiKeys(None)], "ApiKeys: file is None; make it a text"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_tell_who_asks_is_named(auth: Any, said: str) -> None:
    """And that alone: what the routes ask of it cannot be told to be missing."""
    (mistake,) = check(Gateway(auth=auth, routes=[MACHINE, *([KEYED] * (said[:4] == "auth"))]))
    assert mistake.startswith(said)


@pytest.mark.parametrize(
    ("routes", "said"),
    [
        ([Route], "routes[0] is the class Route; write a value of it: Route(...)"),
        (["GET /x"], "routes[0] is 'GET /x'; write Route, Aggregate or Forward"),
        (
            [Fleet.machine],
            'routes[0] is the operation fleet.machine; write Route("GET /machines/{id}", ...)',
        ),
        ([[MACHINE]], "routes[0] is a list; write its routes one by one, or a * before it"),
        (MACHINE, "routes is a bare Route; write a list: routes=[Route(...)]"),
        ("GET /x", "routes is 'GET /x'; write a list: routes=[Route(...), ...]"),
        (None, "routes is None; write a list: routes=[Route(...), ...]"),
    ],
)
def test_what_is_no_route_is_named(routes: Any, said: str) -> None:
    """By its place in the list, or the list itself."""
    assert check(Gateway(routes=routes)) == (said,)


def route(**more: Any) -> Route:
    return Route("GET /f/{id}", Fleet.machine, **{"public": True, **more})


def forward(**more: Any) -> Forward:
    return Forward("GET /f", to="x", public=True, **more)


def page(branches: Any) -> Aggregate:
    return Aggregate("GET /f/{id}", public=True, branches=branches)


def branch(**more: Any) -> dict[str, Branch]:
    return {"m": Branch(Fleet.machine, args={"id": "path.id"}, required=True, **more)}


def rated(burst: Any) -> Rate:
    return Rate("1/s", burst=burst)


def aged(max_age: Any) -> Cors:
    return Cors(origins=set(), max_age=max_age)


NO_DURATION = "is no duration; write a text such as"


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (route(public="no"), "public is 'no'; make it True or False"),
        (route(rate=rated("2")), "rate.burst is '2'; make it a whole number or None"),
        (route(scopes=None), "scopes is None; make it a set of texts"),
        (forward(headers=5), "headers is 5; make it a set of texts"),
        (page([Fleet.machine]), "branches is a list; make it a dict of Branch by name"),
        (page({1: branch()["m"]}), "branches is a dict; make it a dict of Branch by name"),
        (route(deadline=5), f'its deadline: 5 {NO_DURATION} "5s"'),
        (route(cache=Cache(30), host="a.b"), f'its cache: max_age: 30 {NO_DURATION} "30s"'),  # type: ignore[arg-type]
        (route(fallback=Stale(0.5)), f'its fallback: at_most: 0.5 {NO_DURATION} "0.5s"'),  # type: ignore[arg-type]
        (forward(quiet=300), f'its quiet: 300 {NO_DURATION} "300s"'),
        (route(cors=aged(True)), f'its cors: max_age: a bool {NO_DURATION} "5s"'),
        (page(branch(timeout=1)), f'branch m: its timeout: 1 {NO_DURATION} "1s"'),
    ],
)
def test_an_option_of_the_wrong_kind_is_named(route: Any, said: str) -> None:
    """With its route, host and all, and what it takes."""
    path = route.route.removeprefix("GET ")
    assert check(Gateway(routes=[route])) == (f"GET {route.host}{path}: {said}",)


SILLY = (
    None, 5, 1.5, True, "x", b"x", object(), Route, print, [1], {1}, {"a": 1}, ("x",),
    Fleet.machine, float("nan"), by_session,
)  # fmt: skip
BRANCH = Branch(
    Fleet.machine, args={"id": "path.id"}, required=True, timeout="1s", fallback=Stale("1m")
)
RIGHT: tuple[Any, ...] = (
    Gateway(auth=[ApiKeys()], routes=[MACHINE], openapi=OpenApi(), cors=SOURCES),
    dataclasses.replace(
        MACHINE, rate=Rate("1/s"), fallback=Stale("1m"), cache=Cache("30s"), cors=SOURCES
    ),
    Forward("GET /g", to="x", public=True, split=Split("y", percent=5), mirror=Mirror("z")),
    Aggregate("GET /m/{id}", public=True, branches={"m": BRANCH}),
    ApiKeys(),
    JWT(issuer="https://a", audience="api", jwks="https://a/keys"),
    Certificates(),
    AuthFunction(by_session),
)


def with_silly_values(value: Any) -> Iterator[Any]:
    """Yield a value with each of its options, and of theirs, replaced by each of what is odd."""
    for each in dataclasses.fields(value):
        own = getattr(value, each.name)
        if dataclasses.is_dataclass(own):
            others = [*SILLY, *with_silly_values(own)]
        elif isinstance(own, dict) and isinstance(own.get("m"), Branch):
            branches = [*with_silly_values(own["m"]), dataclasses.replace(BRANCH, each=Each(5))]  # type: ignore[arg-type]
            others = [*SILLY, *({"m": branch} for branch in branches), {1: BRANCH}, {"m": 1}]
        else:
            others = list(SILLY)
        yield from (dataclasses.replace(value, **{each.name: other}) for other in others)


@pytest.mark.parametrize("right", RIGHT, ids=[type(each).__name__ for each in RIGHT])
def test_no_option_of_any_kind_ends_in_a_traceback(right: Any) -> None:
    """And none but a boolean opens a route: a text such as "no" is true, too."""
    for odd in with_silly_values(right):
        if isinstance(odd, Gateway):
            gateway = odd
        elif isinstance(odd, Route | Forward | Aggregate):
            gateway = Gateway(auth=[AuthFunction(by_session)], routes=[odd])
        else:
            gateway = Gateway(auth=[odd], routes=[MACHINE])
        mistakes = check(gateway)
        assert all(isinstance(each, str) for each in mistakes)
        assert mistakes or getattr(odd, "public", True) in (True, False)
        assert all(len(each) < 600 for each in mistakes)


def test_a_test_is_told_of_them_as_well() -> None:
    """Before anything is served."""

    async def main(runtime: SimRuntime) -> None:
        gateway = Gateway(routes=["GET /x"], auth=print)  # type: ignore[list-item,arg-type]
        with pytest.raises(ConfigError, match=r"write a list: auth=\[AuthFunction\(print\)"):
            async with serving(runtime, gateway=gateway):
                pass

    run(main)
