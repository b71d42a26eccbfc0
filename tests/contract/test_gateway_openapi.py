"""What describes a gateway is served by it like a route of its own, and only where it says so."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio.to_thread
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks

from calls_fakes import System
from gateway_fakes import GATEWAY, ROUTES, Plant, behind, json_of
from kinds_app import GATEWAY as KINDS
from kinds_app import Kinds, handlers
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Gateway, GatewayEngine, OpenApi
from synchromesh.gateway.reference import POLICY
from synchromesh.http import Headers, HttpRequest, HttpResponse, HttpServer
from synchromesh.runtime import RealRuntime
from synchromesh.telemetry import Tracer

ABOUT = OpenApi(title="plant", reference="/reference", public=True)
DESCRIBED = replace(GATEWAY, openapi=ABOUT)


@pytest.mark.usefixtures("http_way")
def test_the_document_and_the_page_are_served() -> None:
    """With an ETag, the page's policy, and what every answer of the gateway has."""

    async def main(site: Plant) -> None:
        told = await site.ask("GET /openapi.json", by="")
        assert told.status == 200
        assert set(json_of(told)["paths"]) == {r.route.split(" ")[1] for r in ROUTES}
        fields = Headers(told.headers)
        assert fields.get("content-type") == "application/json"
        assert fields.get_all("cache-control") == ("no-cache",)
        assert fields.get("x-content-type-options") == "nosniff"
        assert fields.get("synchromesh-trace")
        page = await site.ask("GET /reference", by="")
        fields = Headers(page.headers)
        assert fields.get("content-type") == "text/html; charset=utf-8"
        assert fields.get("content-security-policy") == POLICY
        assert page.body.startswith(b"<!doctype html>")
        assert site.asked == []

    behind(main, gateway=DESCRIBED)


@pytest.mark.usefixtures("http_way")
@pytest.mark.parametrize(
    ("known", "status"),
    [("{}", 304), ("W/{}", 304), ('"x", {}', 304), ("*", 304), ('"x"', 200), ("", 200)],
)
def test_who_has_it_already_is_told_so(known: str, status: int) -> None:
    """By If-None-Match; the tag is that of the bytes (RFC 9110, 13.1.2)."""

    async def main(site: Plant) -> None:
        etag = Headers((await site.ask("GET /openapi.json")).headers).get("etag") or ""
        asked = {"if-none-match": known.format(etag)} if known else {}
        told = await site.ask("GET /openapi.json", headers=asked)
        assert (told.status, Headers(told.headers).get("etag")) == (status, etag)
        assert bool(told.body) == (status == 200)

    behind(main, gateway=DESCRIBED)


def test_it_takes_a_principal_unless_it_is_public() -> None:
    """Deny by default (G1); caches of others keep nothing of it then."""

    async def main(site: Plant) -> None:
        for path in ("/openapi.json", "/reference"):
            assert (await site.ask(f"GET {path}", by="")).status == 401
            told = await site.ask(f"GET {path}")
            assert told.status == 200
            assert Headers(told.headers).get("cache-control") == "private, no-cache"
            assert (await site.ask(f"POST {path}")).status == 405

    behind(main, gateway=replace(DESCRIBED, openapi=replace(ABOUT, public=False)))


def test_it_is_served_nowhere_unless_it_is_named() -> None:
    """A gateway that says nothing of it has no such path."""

    async def main(site: Plant) -> None:
        assert (await site.ask("GET /openapi.json")).status == 404
        assert (await site.ask("GET /reference")).status == 404

    behind(main)


# -- the document against the gateway --------------------------------------------------------------

EXAMPLES = 8
_LEFT_OUT = {
    # The codec takes more than a client should send, such as a decimal that is no text.
    "negative_data_rejection",
    # These ask a second time, or for what is kept: an echo keeps nothing.
    "use_after_free",
    "ensure_resource_availability",
    "ignored_auth",
    "max_response_time",
}


class Store:
    """Is the upstream of what is passed on."""

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, [("content-type", "text/plain")], b"kept")


@asynccontextmanager
async def served(gateway: Gateway) -> AsyncIterator[str]:
    """Serve the gateway of every kind and what is behind it on loopback; give its URL."""
    runtime = RealRuntime()
    system = System("http", runtime)
    await system.serve(Kinds, handlers())
    store = HttpServer(Store(), network=runtime.network)
    await store.start()
    system.known.endpoints["store"] = [Endpoint("store-1", "store", store.url)]
    engine = GatewayEngine(
        gateway,
        caller=system.caller("gateway"),
        tracer=Tracer("gateway", runtime, system.spans),
        authenticators=[auth.open(None, None) for auth in gateway.auth],  # type: ignore[arg-type]
    )
    server = HttpServer(engine, network=runtime.network, streaming=engine)
    await server.start()
    try:
        yield server.url
    finally:
        await server.close()
        await store.close()
        await system.close()


@pytest.mark.anyio
async def test_what_is_described_is_what_is_answered() -> None:
    """Generated requests meet no answer that the document does not have; each operation says yes.

    An operation that refuses everything would pass as well: so each must have answered 2xx.
    """
    async with served(KINDS) as url:
        statuses = await anyio.to_thread.run_sync(_asked, url)
    assert len(statuses) == len(KINDS.routes)
    for name, seen in statuses.items():
        assert any(200 <= status < 300 for status in seen), (name, sorted(seen))
    # What does not fit the document is refused, somewhere at least.
    assert 400 in set().union(*statuses.values())


def _asked(url: str) -> dict[str, set[int]]:
    """Ask every operation with data that fits and data that does not; return the statuses."""
    import requests

    by = {"authorization": "shop"}
    document: Any = json.loads(requests.get(f"{url}/openapi.json", headers=by, timeout=30).text)
    schema: Any = schemathesis.openapi.from_dict(document)
    load_all_checks()
    checks = [
        each for each in schemathesis.checks.CHECKS.get_all() if each.__name__ not in _LEFT_OUT
    ]
    statuses: dict[str, set[int]] = {}
    with requests.Session() as session:
        for found in schema.get_all_operations():
            operation = found.ok()
            seen = statuses.setdefault(operation.label, set())
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _ask(operation, mode, checks, session, url, by, seen)
    return statuses


def _ask(
    operation: Any,
    mode: GenerationMode,
    checks: list[Any],
    session: Any,
    url: str,
    by: dict[str, str],
    seen: set[int],
) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.body = _whole_numbers(case.body)
        answer = case.call(base_url=url, session=session, headers=by)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=checks)

    ask()


def _whole_numbers(value: Any) -> Any:
    """Write an integer as one: that it is not 1.0 is a rule JSON Schema has no word for."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole_numbers(each) for name, each in value.items()}
    return [_whole_numbers(each) for each in value] if isinstance(value, list) else value
