"""Every route of servo-works by every method with every credential: the right answer each time.

And nothing of a request that was refused, nor any credential at all, is told to anybody: neither by
an answer, nor a log, nor a span.
"""

import asyncio
import itertools
import json
import logging
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import shop
from contracts.orders import Orders
from demo.issuer import Issuer
from gateway import PEOPLE, gateway

from gateway_fakes import Client, Connection, is_fast
from servo_works_world import SERVICES, Works, works
from synchromesh import ApiKeys
from synchromesh.certificate import ClientCertificate
from synchromesh.gateway import (
    Aggregate,
    Auth,
    Certificates,
    Folders,
    Gateway,
    GatewayEngine,
    KeyRing,
    Principal,
    Route,
    check,
    make_key,
)
from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.state import GatewayState
from synchromesh.http import Headers, HttpExchange, HttpRequest, HttpResponse
from synchromesh.telemetry import Tracer
from synchromesh.testing import SimRuntime, run

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
LOAD = "torque_nm=4&peak_nm=8&speed_rpm=3000&supply=3x400VAC&cable_m=5"
# A request to each route that is answered as it should be.
TARGETS: Mapping[str, str] = {
    "GET /prices": "/prices",
    "GET /configurations": f"/configurations?{LOAD}",
    "GET /quotes/{sku}": "/quotes/SX40?qty=1",
    "POST /orders": "/orders",
    "GET /orders/{order_id}": "/orders/SW-1001",
    "GET /invoices/{order_id}": "/invoices/SW-1001",
    "GET /stock/{sku}": "/stock/SX40",
    "POST /readings": "/readings",
    "GET /machines/{machine_id}": "/machines/SX75-20117",
    "GET /openapi.json": "/openapi.json",
    "GET /reference": "/reference",
}
ACME, LOOKER = "spiffe://partners/acme", "spiffe://partners/looker"
SCOPES = frozenset(scope for route in gateway.routes for scope in route.scopes)
CERTIFICATES = Certificates(
    principals={
        ACME: Principal("acme", SCOPES),
        LOOKER: Principal("looker", frozenset({"nothing:much"})),
    }
)
AUTH: tuple[Auth, ...] = (ApiKeys(), PEOPLE, CERTIFICATES)
WHOLE = replace(gateway, auth=AUTH)
CANARY = "canary-6f1d"
_ids = itertools.count(1)


@dataclass(frozen=True)
class Shown:
    """A credential as it is shown, and what it opens: 200 what it may, else a refusal."""

    status: int
    fields: tuple[tuple[str, str], ...] = ()
    certificate: ClientCertificate | None = None


def bearer(text: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {text}"),)


def named(uri: str, expires_s: float = 1e12) -> ClientCertificate:
    return ClientCertificate({"uri": (uri,)}, expires_s)


class Doorway:
    """The gateway of servo-works with all kinds of credentials, in front of services that run."""

    def __init__(self, system: Works, folder: Path) -> None:
        self.system = system
        runtime = system.runtime
        now_s = runtime.wall_us() / 1e6
        issuer = Issuer.opened(folder, lambda: runtime.wall_us() / 1e6)
        assert issuer is not None
        self.ring = KeyRing({}, runtime)
        folders = Folders(folder, folder)
        self.log = AccessLog(1.0, random.Random(7), runtime.wall_us, Origins())
        self.engine = GatewayEngine(
            WHOLE,
            caller=system.deps.caller("gateway"),
            tracer=Tracer("gateway", runtime, system.ring),
            state=GatewayState.of(WHOLE, compiled(WHOLE), self.log),
            authenticators=[self.ring, *(auth.open(folders, runtime) for auth in AUTH[1:])],
        )
        self.begin = self.engine.begin_exchange
        right, former = self.key("acme", -1), self.key("former", 1)
        looker = self.key("looker", -1, "a")
        wrong = right[:-2] + ("AA" if right[-2:] != "AA" else "BB")
        forger = Issuer(lambda: now_s)
        claims = issuer.claims("acme", sorted(SCOPES))
        expired = issuer.signed({**claims, "exp": now_s - 60})
        unscoped = issuer.signed({**claims, "scope": "a", "exp": now_s + 86_400})
        token = issuer.signed({**claims, "exp": now_s + 86_400})
        self.shown: Mapping[str, Shown] = {
            "none": Shown(401),
            "a wrong key": Shown(401, bearer(wrong)),
            "a wrong key in the other field": Shown(401, (("x-api-key", wrong),)),
            "an expired key": Shown(401, bearer(former)),
            "a right key": Shown(200, bearer(right)),
            "a key without the scope": Shown(403, bearer(looker)),
            "a wrong token": Shown(401, bearer(forger.signed(claims))),
            "an expired token": Shown(401, bearer(expired)),
            "a right token": Shown(200, bearer(token)),
            "a token without the scope": Shown(403, bearer(unscoped)),
            "a certificate": Shown(200, (), named(ACME)),
            "a certificate without the scope": Shown(403, (), named(LOOKER)),
            "an expired certificate": Shown(401, (), named(ACME, 1.0)),
            "a certificate of nobody": Shown(401, (), named("spiffe://partners/nobody")),
            "a key, and a certificate of another": Shown(401, bearer(right), named(LOOKER)),
            "two credentials": Shown(401, (*bearer(token), ("x-api-key", right))),
            "of another kind": Shown(401, (("authorization", f"Basic {CANARY}"),)),
        }
        self.secrets = [
            value.removeprefix("Bearer ")
            for each in self.shown.values()
            for _, value in each.fields
        ]

    def key(self, principal: str, expires_in_s: int, *scopes: str) -> str:
        import datetime as dt

        runtime, ends = self.system.runtime, None
        if expires_in_s >= 0:
            at_s = runtime.wall_us() / 1e6 - expires_in_s
            ends = dt.datetime.fromtimestamp(at_s, dt.UTC)
        text, key = make_key(principal, scopes or SCOPES, rng=runtime.secret_rng, expires=ends)
        self.ring.add(key)
        return text

    async def ask(
        self, method: str, target: str, shown: Shown, body: bytes, more: Mapping[str, str]
    ) -> HttpResponse:
        path, _, query = target.partition("?")
        fields = [("host", "servo-works"), *shown.fields, *more.items()]
        if body:
            fields.append(("content-type", "application/json"))
        if is_fast():
            client = Client("10.0.0.1:4711", shown.certificate)
            pairs = [(name.encode(), value.encode()) for name, value in fields]
            exchange = HttpExchange(client, method.encode(), target.encode(), pairs, body, True)
            if self.begin(exchange):
                return await client.answer
        request = HttpRequest(
            method, target, path, query, Headers(fields), body, "10.0.0.1:4711",
            connection=Connection(shown.certificate),
        )  # fmt: skip
        return await self.engine(request)


def body_of(route: str) -> bytes:
    """Return a body that the route takes."""
    number = next(_ids)
    if route == "POST /orders":
        order = replace_struct(shop.order_book()[0], order_id=f"MX-{number}", qty=1, sku="SX40")
        return msgspec.json.encode(order)
    if route == "POST /readings":
        return msgspec.json.encode(shop.field_reports()[0])
    return b""


def replace_struct(value: Any, **changes: object) -> Any:
    return msgspec.structs.replace(value, **changes)


@asynccontextmanager
async def opened(runtime: SimRuntime, folder: Path) -> AsyncIterator[Doorway]:
    async with works(runtime, *SERVICES) as system:
        system.start_provider()
        await shop.open_shop(system)
        await system.call(Orders.place(shop.order_book()[0]))
        await asyncio.sleep(5.0)
        yield Doorway(system, folder)


def entries(definition: Gateway) -> Iterator[tuple[str, bool]]:
    """Yield each route, and whether it is public."""
    for route in definition.routes:
        assert isinstance(route, Route | Aggregate)
        yield route.route, route.public
    assert definition.openapi is not None
    for path in (definition.openapi.path, definition.openapi.reference):
        yield f"GET {path}", definition.openapi.public


def expected(method: str, taken: frozenset[str], is_public: bool, shown: Shown) -> int:
    """Return the status that a request has to have."""
    if ("GET" if method == "HEAD" else method) not in taken:
        return 405
    return 200 if is_public else shown.status


@pytest.mark.usefixtures("http_way")
def test_every_route_by_every_method_with_every_credential(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Closed is closed by each, and open to whom it is; no answer, log or span tells a secret."""
    caplog.set_level(logging.DEBUG)
    assert check(WHOLE) == ()
    routes = dict(entries(WHOLE))
    assert routes.keys() == TARGETS.keys()
    taken: dict[str, frozenset[str]] = {}
    for route in routes:
        method, path = route.split(" ")
        taken[path] = taken.get(path, frozenset()) | {method}

    async def main(runtime: SimRuntime) -> None:
        asked, wrong, told, spans = 0, list[str](), list[bytes](), list[str]()
        async with opened(runtime, tmp_path) as door:
            for route, is_public in routes.items():
                path = route.split(" ")[1]
                for method, (name, shown) in itertools.product(METHODS, door.shown.items()):
                    if method in taken[path] and method != route.split(" ")[0]:
                        continue  # it is another route's
                    status = expected(method, taken[path], is_public, shown)
                    target, body, more = TARGETS[route], b"", {"cookie": f"sid={CANARY}"}
                    if status == 200:
                        body = body_of(route)
                        await asyncio.sleep(1.0)  # a rate bounds each client
                    else:
                        # What is refused is not looked at, whatever it is.
                        target += f"{'&' if '?' in target else '?'}q={CANARY}"
                        body = json.dumps({"note": CANARY}).encode()
                        more |= {"idempotency-key": CANARY, "x-note": CANARY}
                    answer = await door.ask(method, target, shown, body, more)
                    asked += 1
                    told.append(answer.body + repr(list(answer.headers)).encode())
                    if answer.status != status:
                        wrong.append(f"{method} {route}, {name}: {answer.status}, not {status}")
                # The ring keeps the latest ones alone.
                spans += map(repr, door.system.ring)
            await asyncio.sleep(5.0)
            spans += map(repr, door.system.ring)
            secrets = door.secrets
            lines = b"".join(each.line for each in door.log.take()).decode()
        assert wrong == []
        assert asked > 1000
        assert any("jwt:acme" in span for span in spans)
        assert lines.count('"status":401') > 100
        for text in ("".join(spans), lines, caplog.text, b"".join(told).decode("latin-1")):
            assert CANARY not in text
            assert [secret for secret in secrets if secret in text] == []

    run(main)
