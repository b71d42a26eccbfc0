"""The way into servo-works: its definition is whole, and a machine's page says what it lacks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import shop
from contracts.orders import Orders
from gateway import gateway

from cli_runs import runner
from gateway_fakes import Token
from servo_works_world import FOLDER, SERVICES, Works, works
from synchromesh.gateway import GatewayEngine, check, outline
from synchromesh.http import Headers, HttpRequest, HttpResponse
from synchromesh.telemetry import Tracer
from synchromesh.testing import SimRuntime, run

MACHINE = "SX75-20117"  # of order SW-1001
COUNTER = "SX40-05511"  # of no order


class Door:
    """The gateway, in front of services that run in this process."""

    def __init__(self, system: Works, **scopes: set[str]) -> None:
        runtime = system.runtime
        # Keys and their hashes are another test's; here a name is enough.
        self.engine = GatewayEngine(
            replace(gateway, auth=[Token()]),
            caller=system.deps.caller("gateway"),
            tracer=Tracer("gateway", runtime, system.ring),
            authenticators=[Token(**scopes)],
        )

    async def ask(self, route: str, by: str = "") -> HttpResponse:
        method, target = route.split(" ")
        path, _, query = target.partition("?")
        fields = {"host": "servo-works"} | ({"authorization": by} if by else {})
        request = HttpRequest(
            method, target, path, query, Headers(fields.items()), b"", "10.0.0.1:1"
        )
        return await self.engine(request)

    async def page(self, machine_id: str) -> tuple[dict[str, Any], dict[str, str], str]:
        """Return a machine's data, the status of its branches, and what is partial."""
        response = await self.ask(f"GET /machines/{machine_id}", "service-desk")
        assert response.status == 200
        body = msgspec.json.decode(response.body)
        statuses = {name: mark["status"] for name, mark in body["branches"].items()}
        return body["data"], statuses, Headers(response.headers).get("synchromesh-partial") or ""


@asynccontextmanager
async def opened(runtime: SimRuntime) -> AsyncIterator[tuple[Works, Door]]:
    """Start the services, open the shop, place the order of a machine, and open the door."""
    async with works(runtime, *SERVICES) as system:
        system.start_provider()
        await shop.open_shop(system)
        await system.call(Orders.place(shop.order_book()[0]))
        await asyncio.sleep(5.0)
        yield system, Door(system, **{"service-desk": {"fleet:read"}, "visitor": set()})


def test_the_definition_is_whole() -> None:
    """Nothing is wrong with it, and its outline has every route."""
    assert check(gateway) == ()
    described = ["GET /openapi.json", "GET /reference"]
    assert [each.route for each in outline(gateway)[len(gateway.routes) :]] == described


def test_only_what_is_marked_is_public() -> None:
    """Looking round the shop needs no key; every other route needs a scope."""
    public = {entry.route for entry in gateway.routes if entry.public}
    assert public == {"GET /prices", "GET /configurations", "GET /quotes/{sku}"}
    assert all(entry.scopes for entry in gateway.routes if not entry.public)


def test_only_what_may_be_old_falls_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Prices and stock do, and `gateway explain` says so; orders and invoices never do."""
    lasting = {told.route: told.fallback for told in outline(gateway) if told.fallback}
    assert lasting == {
        "GET /prices": "its last answer, at most 10m old",
        "GET /stock/{sku}": "its last answer, at most 1m old",
    }
    shown = runner(capsys)(FOLDER, "gateway", "explain").out
    # Each is in two lines of its cell.
    assert "configurator.price_list, else its" in shown
    assert "last answer, at most 10m old" in shown
    assert "inventory.stock, else its last" in shown
    assert "answer, at most 1m old" in shown


def test_the_page_of_a_machine_is_whole() -> None:
    """The machine, the order it came with, and when another one like it could be built."""

    async def main(runtime: SimRuntime) -> None:
        async with opened(runtime) as (_, door):
            data, statuses, partial = await door.page(MACHINE)
            assert (statuses, partial) == ({"machine": "ok", "order": "ok", "slot": "ok"}, "")
            assert data["machine"]["order_id"] == data["order"]["order_id"] == "SW-1001"
            assert data["order"]["status"] == "placed"
            assert data["machine"]["state"] == "running"
            assert data["slot"] == {"sku": "SX75", "week": 1}

    run(main)


def test_a_machine_of_no_order_has_none_on_its_page() -> None:
    """That is no failure: the page is whole without it."""

    async def main(runtime: SimRuntime) -> None:
        async with opened(runtime) as (_, door):
            data, statuses, partial = await door.page(COUNTER)
            assert (statuses, partial) == ({"machine": "ok", "order": "absent", "slot": "ok"}, "")
            assert data["order"] is None

    run(main)


def test_the_page_of_a_machine_degrades_by_its_parts() -> None:
    """Without orders and production it shows what it saw last, marked; without fleet there is none.

    Once they are up again the page is whole, and nothing else had to be done (F3).
    """

    async def main(runtime: SimRuntime) -> None:
        async with opened(runtime) as (system, door):
            whole, _, _ = await door.page(MACHINE)
            await system.stop("orders", "production")
            data, statuses, partial = await door.page(MACHINE)
            assert data == whole
            assert statuses == {"machine": "ok", "order": "stale", "slot": "stale"}
            assert partial == "order, slot"
            # What was never asked for cannot be remembered.
            _, statuses, _ = await door.page("SX90-10212")
            assert statuses == {"machine": "ok", "order": "failed", "slot": "failed"}
            await system.start("orders", "production")
            await asyncio.sleep(60.0)
            assert await door.page(MACHINE) == (
                whole,
                {"machine": "ok", "order": "ok", "slot": "ok"},
                "",
            )
            await system.stop("fleet")
            response = await door.ask(f"GET /machines/{MACHINE}", "service-desk")
            assert response.status == 503

    run(main)


def test_a_page_needs_a_principal_with_its_scope() -> None:
    """Nobody is 401, somebody without the scope 403, and an unknown machine 404."""

    async def main(runtime: SimRuntime) -> None:
        async with opened(runtime) as (_, door):
            path = f"GET /machines/{MACHINE}"
            assert (await door.ask(path)).status == 401
            assert (await door.ask(path, "visitor")).status == 403
            assert (await door.ask("GET /machines/none", "service-desk")).status == 404

    run(main)


def test_anybody_may_look_round_the_shop() -> None:
    """Prices and a configuration are answered without a key; a load that makes no sense is 400."""

    async def main(runtime: SimRuntime) -> None:
        async with opened(runtime) as (_, door):
            prices = msgspec.json.decode((await door.ask("GET /prices")).body)
            assert len(prices["lines"]) == len(shop.catalogue()) + len(shop.accessories())
            load = "torque_nm=4&peak_nm=8&speed_rpm=3000&supply=3x400VAC&cable_m=5"
            response = await door.ask(f"GET /configurations?{load}")
            assert msgspec.json.decode(response.body)["drive"]["sku"] == "SX90"
            assert (await door.ask("GET /configurations?torque_nm=4")).status == 400

    run(main)
