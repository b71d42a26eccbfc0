"""What a gateway that takes another's place keeps of it, and what of a definition is told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bodies import body_of, everything
from forward_fakes import STORE, Way, through
from gateway_fakes import GATEWAY, ROUTES, SHOP, Fleet, Orders
from synchromesh.errors import ConfigError
from synchromesh.gateway import (
    JWT,
    Aggregate,
    ApiKeys,
    Branch,
    Forward,
    Gateway,
    Rate,
    Route,
    Static,
)
from synchromesh.gateway.changes import definition_changes
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.jwt import TokenVerifier
from synchromesh.gateway.opening import reopen
from synchromesh.gateway.principal import Folders
from synchromesh.gateway.state import GatewayState
from synchromesh.http import Headers, HttpRequest
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.schema import (
    HedgeSection,
    OperationSection,
    PolicySection,
    RetrySection,
    SystemConfig,
    SystemSection,
)
from synchromesh.system.control.gateway_changes import config_changes

MACHINE = Route("GET /fleet/{id}", Fleet.machine, public=True, rate=Rate("1/s"))


def gateway(*routes: Any, **more: Any) -> Gateway:
    return Gateway(auth=[SHOP], routes=routes, **more)


def state(of: Gateway, before: GatewayState | None = None) -> GatewayState:
    return GatewayState.of(of, compiled(of), None, before)


def test_what_has_the_same_bounds_goes_on() -> None:
    """Buckets of the same rate, counts of routes of the same name, and what is in flight."""
    one = gateway(MACHINE, Route("GET /orders/{order_id}", Orders.one))
    before = state(one)
    before.traffic["GET /fleet/{id}"].answered("GET", 200, 0.01)
    after = state(gateway(MACHINE), before)
    assert after.buckets["GET /fleet/{id}"] is before.buckets["GET /fleet/{id}"]
    assert after.traffic["GET /fleet/{id}"].counts().answers == {"2xx": 1}
    assert list(after.traffic) == ["GET /fleet/{id}"]
    assert after.limiter is before.limiter
    assert after.last is before.last
    assert after.others is before.others
    faster = Route("GET /fleet/{id}", Fleet.machine, public=True, rate=Rate("2/s"))
    other = state(gateway(faster, in_flight_max=5, stale_max=5, tunnels_max=5), after)
    assert other.buckets["GET /fleet/{id}"] is not before.buckets["GET /fleet/{id}"]
    assert other.limiter is not before.limiter
    assert other.last is not before.last
    assert other.tunnels is not before.tunnels


def test_an_authenticator_of_tokens_keeps_its_keys(tmp_path: Path) -> None:
    """Where its rules are the same; others are opened anew, and closed where one cannot be."""
    jwt = JWT(issuer="https://id.example", audience="api", jwks="https://id.example/keys")
    other = JWT(issuer="https://id.example", audience="app", jwks="https://id.example/keys")
    folders, runtime = Folders(system=tmp_path, run=tmp_path), RealRuntime()
    (tmp_path / "api-keys.json").write_text('{"keys": []}')

    async def main() -> None:
        first = (await reopen([jwt], (), folders, runtime)).authenticators
        before = [(jwt, first[0])]
        again = await reopen([ApiKeys(), jwt], before, folders, runtime)
        assert again.authenticators[1] is first[0]
        assert again.made == [again.authenticators[0]]
        changed = await reopen([other], before, folders, runtime)
        assert changed.authenticators[0] is not first[0]
        assert isinstance(changed.made[0], TokenVerifier)
        with pytest.raises(ConfigError, match=r"none\.json"):
            await reopen([jwt, ApiKeys("none.json")], before, folders, runtime)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (lambda: gateway(*ROUTES), []),
        (
            lambda: gateway(*ROUTES, Forward("GET /fleet/{id}", to="x", host="a.example")),
            ["+ GET a.example/fleet/{id}  Forward(to='x', host='a.example')"],
        ),
        (lambda: gateway(*ROUTES, in_flight_max=7), ["~ gateway: in_flight_max  1024 -> 7"]),
        (lambda: gateway(*ROUTES[1:]), ["- POST /orders  Route(operation=orders.place, "]),
        (
            lambda: Gateway(auth=[SHOP, ApiKeys()], routes=ROUTES),
            ["+ auth  ApiKeys()"],
        ),
        (
            lambda: gateway(
                *ROUTES[:3],
                Route("GET /fleet/{id}", Fleet.machine, scopes={"b", "a"}, deadline="1s"),
                *ROUTES[4:],
            ),
            ["~ GET /fleet/{id}: scopes  none -> a, b", "~ GET /fleet/{id}: public  True -> False"],
        ),
        (
            lambda: gateway(*ROUTES[:3], Forward("GET /fleet/{id}", to="x"), *ROUTES[4:]),
            ["~ GET /fleet/{id}  Route(operation=fleet.machine, public=True, deadline='1s') -> "],
        ),
        (
            lambda: gateway(
                *ROUTES[:4],
                Aggregate(
                    "GET /machines/{id}",
                    deadline="1s",
                    branches={
                        **dict(list(ROUTES[4].branches.items())[:3]),
                        "line": Branch(Fleet.machine, fallback=Static("another")),
                    },
                ),
            ),
            ["~ GET /machines/{id}: branches  machine: Branch("],
        ),
    ],
)
def test_definitions_are_told_apart(after: Callable[[], Gateway], said: list[str]) -> None:
    """By route and field, as they are shown; the same written again is no change."""
    found = [str(change) for change in definition_changes(GATEWAY, after())]
    assert len(found) == len(said)
    assert all(one.startswith(other) for one, other in zip(found, said, strict=True)), found


def test_a_body_that_comes_for_what_is_passed_on_no_more_is_answered() -> None:
    """By the route that has its place, by 404 where there is none, by 413 where it is too long."""

    async def main(way: Way) -> None:
        async def ask(path: str, size: int) -> int:
            body = body_of(b"x" * size, length=None)
            request = HttpRequest("POST", path, path, "", Headers([("host", "x")]), b"", "", body)
            async with way.engine.stream(request) as answer:
                await everything(answer.stream)
                return answer.status

        assert await ask("/none", 10) == 404
        assert await ask("/orders", 10) == 401
        assert await ask("/orders", 2 * 1024 * 1024) == 413

    routes: list[Any] = [ROUTES[0], Forward("GET /few", to=STORE, public=True)]
    through(main, gateway=Gateway(auth=[SHOP], routes=routes))


POLICY = '[policies."gateway:notes"]'


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, PolicySection(timeout="700ms"), ["~ {} timeout  2s -> 700ms"]),
        (PolicySection(timeout="700ms"), None, ["~ {} timeout  700ms -> 2s"]),
        (None, PolicySection(), []),
        (
            PolicySection(timeout="3s"),
            PolicySection(
                timeout="3s",
                retry=RetrySection(attempts=1),
                operations={"who": OperationSection(timeout="1s")},
            ),
            [
                "~ {} operations.who.retry.attempts  3 -> 1",
                "~ {} operations.who.timeout  3s -> 1s",
                "~ {} retry.attempts  3 -> 1",
            ],
        ),
        (
            None,
            PolicySection(operations={"who": OperationSection(hedge=HedgeSection(after="50ms"))}),
            [
                "~ {} operations.who.hedge.after  none -> 50ms",
                "~ {} operations.who.hedge.ratio  none -> 0.05",
            ],
        ),
    ],
)
def test_of_policies_only_what_is_in_force_otherwise_is_told(
    before: PolicySection | None, after: PolicySection | None, said: list[str]
) -> None:
    """Against the defaults, and for an operation against its edge; not each key of a section."""
    one, other = (
        SystemConfig(
            SystemSection("shop"),
            {},
            policies={} if each is None else {"gateway:notes": each},
        )
        for each in (before, after)
    )
    assert [str(each) for each in config_changes(one, other)] == [s.format(POLICY) for s in said]
