"""What clients of servo-works get while a part of it is off: asked for real, said in words."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.money import Money
from contracts.orders import Orders, Price

from degradation_world import PORTS, SKU, Site, nodes_of
from synchromesh.errors import CallError, SynchromeshError
from synchromesh.http import HttpPool, HttpResponse
from synchromesh.resilience import BreakerState

# An answer within this time did not wait for anything.
AT_ONCE_S = 0.1
GIVES_UP_S = 10.0
OFF_S = 15.0
# What is asked by then is answered before the end; what is asked after it, as it is to stay.
ANSWERED_S, SETTLED_S = 9.0, 11.0
ASKS_EVERY_S = 0.25
# Orders are rarer than what is looked at, and drives report more often.
ORDERS_EVERY, READINGS_EACH = 2, 2
WHOLE_WITHIN_S = 60.0

ORDER, PRICE = "an order asked for meanwhile", "a price set meanwhile"
BREAKERS, WHOLE = "breakers that open", "whole again"
PART = "CP-05"
# By the route of the gateway: what is asked for, as an example.
TARGETS = {
    "GET /prices": "/prices",
    "GET /configurations": (
        "/configurations?torque_nm=4&peak_nm=8&speed_rpm=3000&supply=3x400VAC&cable_m=5"
    ),
    "GET /quotes/{sku}": f"/quotes/{SKU}?qty=1",
    "POST /orders": "/orders",
    "GET /orders/{order_id}": "/orders/SW-1001",
    "GET /invoices/{order_id}": "/invoices/SW-1001",
    "GET /stock/{sku}": f"/stock/{SKU}",
    "POST /readings": "/readings",
    "GET /machines/{machine_id}": "/machines/SX75-20117",
}
AS_ALWAYS = {route: "placed" if route == "POST /orders" else "fresh" for route in TARGETS}


@dataclass(frozen=True, slots=True)
class Told:
    """What one request was answered, in words, and after how long."""

    words: str
    took_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of everything while a part was off.

    Attributes:
        first, then: by route: the first answer, and the usual one once that had settled.
        longest_s: by route: what the slowest answer took.
        words: of what is no route.
        whole_s: how long after it was switched on everything was as always.
    """

    first: dict[str, Told]
    then: dict[str, Told]
    longest_s: dict[str, float]
    words: dict[str, str]
    whole_s: float


class Client:
    """A client at the gateway, who notes what it is told and checks how old it says that it is."""

    def __init__(self, site: Site) -> None:
        self._pool = HttpPool(network=site.world.network)
        self._numbers = itertools.count(1)
        self._fresh: dict[str, tuple[Any, float]] = {}
        self.orders: dict[str, str] = {}

    async def ask(self, route: str, number: int = 0) -> Told:
        """Ask for an example of a route; what has the same number is asked under the same key."""
        number = number or next(self._numbers)
        method, headers, body = route.partition(" ")[0], [("authorization", "desk")], b""
        if method == "POST":
            headers += [("content-type", "application/json"), ("idempotency-key", f"k{number}")]
            body = json.dumps(
                _order(number) if route == "POST /orders" else _batch(number)
            ).encode()
            if route == "POST /orders":
                self.orders.setdefault(f"P-{number}", "")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            response = await self._pool.request(
                "127.0.0.1", PORTS["gateway"], method, TARGETS[route], headers, body,
                timeout_s=GIVES_UP_S,
            )  # fmt: skip
        except CallError:
            return Told("no answer", loop.time() - began_s)
        words = self._said(route, response, began_s)
        if route == "POST /orders":
            self.orders[f"P-{number}"] = words
        return Told(words, loop.time() - began_s)

    async def close(self) -> None:
        await self._pool.close()

    def _said(self, route: str, response: HttpResponse, began_s: float) -> str:
        """Say in a few words what a response is."""
        body = json.loads(response.body)
        if response.status != 200:
            return f"{response.status} {body['code']}"
        if route == "POST /orders":
            return str(body["type"])
        mark = dict(response.headers).get("synchromesh-fallback", "")
        if mark:
            source, age, code = mark.split(";")
            before, told_s = self._fresh[route]
            assert body == before
            # Several were on their way at once: the last to be answered was not the last to ask.
            assert abs(float(age.removeprefix("age_s=")) - (began_s - told_s)) < 2.0
            return f"{source}, {code.removeprefix('code=')}"
        partial = dict(response.headers).get("synchromesh-partial", "")
        if partial:
            assert body["data"] == self._fresh[route][0]["data"]
            marks = {name: body["branches"][name] for name in partial.split(", ")}
            assert all(mark["age_s"] >= 0 for mark in marks.values())
            return "; ".join(f"{n} {m['status']}, {m['code']}" for n, m in marks.items())
        if route == "GET /configurations" and body["free"]["source"]["is_fallback"]:
            assert body["free"]["source"]["age_s"] is not None
            return "free pieces as last told"
        if route == "GET /quotes/{sku}" and body["lead_time"] != "from_shelf":
            return "built to order" if body["lead_time"] == "when_built" else "lead time unknown"
        self._fresh[route] = (body, began_s)
        return "fresh"


class Traffic:
    """What clients ask while a part is off, and which breakers open meanwhile."""

    def __init__(self, site: Site, client: Client) -> None:
        self._site, self._client = site, client
        self._asked: dict[str, list[asyncio.Task[Told]]] = {route: [] for route in TARGETS}
        self._settled: dict[str, int] = {}
        self._ordered_before = set(client.orders)
        self.ordered: set[str] = set()
        self.opened: set[str] = set()

    async def flow(self) -> None:
        """Ask for every route again and again; nobody waits for the answer before."""
        began_s = asyncio.get_running_loop().time()
        for number in range(int(OFF_S / ASKS_EVERY_S)):
            for route, tasks in self._asked.items():
                times = READINGS_EACH if route == "POST /readings" else 1
                if route != "POST /orders" or number % ORDERS_EVERY == 0:
                    tasks += [asyncio.ensure_future(self._client.ask(route)) for _ in range(times)]
            await asyncio.sleep(ASKS_EVERY_S)
            self.opened |= _open_breakers(self._site)
            off_s = asyncio.get_running_loop().time() - began_s
            if off_s <= ANSWERED_S:
                self.ordered = set(self._client.orders) - self._ordered_before
            if off_s <= SETTLED_S:
                self._settled = {route: len(tasks) for route, tasks in self._asked.items()}

    async def answers(self) -> tuple[dict[str, list[Told]], dict[str, list[Told]]]:
        """Return all answers by route, and those to what was asked once that had settled."""
        told = {route: [await task for task in tasks] for route, tasks in self._asked.items()}
        return told, {route: told[route][count:] for route, count in self._settled.items()}


async def measure(site: Site, part: str, way: str) -> Measured:
    """Switch a part off and on again under traffic, and return what became of everything."""
    client, loop = Client(site), asyncio.get_running_loop()
    await site.start()
    assert {route: (await client.ask(route)).words for route in TARGETS} == AS_ALWAYS
    epochs = {name: node.epoch for name, node in site.nodes.items()}
    await asyncio.sleep(2.0)
    site.switch_off(part, way)
    # Who asks in the very moment of a kill does not know what became of it; that is another test's.
    await asyncio.sleep(0.1)
    pricing = asyncio.ensure_future(_set_price(site))
    traffic = Traffic(site, client)
    await traffic.flow()
    is_told_early = await _is_price_told(site)
    site.switch_on(part)
    switched_s = loop.time()
    told, then = await traffic.answers()
    while {route: (await client.ask(route)).words for route in TARGETS} != AS_ALWAYS:
        assert loop.time() - switched_s < WHOLE_WITHIN_S, "it is not whole again"
        await asyncio.sleep(0.1)
    whole_s = loop.time() - switched_s
    was_taken = bool(_statuses_of(site, traffic.ordered))
    if not was_taken:
        for order_id in traffic.ordered:
            again = await client.ask("POST /orders", int(order_id.removeprefix("P-")))
            assert again.words == "placed"
    refusal = await pricing
    await asyncio.sleep(20.0)
    await client.close()
    _check_nothing_is_lost(site, client)
    for name in nodes_of(part):
        epochs[name] += way == "killed"
    assert {name: node.epoch for name, node in site.nodes.items()} == epochs
    assert refusal or await _is_price_told(site)
    became = " or ".join(_statuses_of(site, traffic.ordered)) if was_taken else "not taken"
    words = {
        ORDER: became,
        PRICE: refusal or ("told at once" if is_told_early else "told once it is back"),
        BREAKERS: ", ".join(sorted(traffic.opened)) or "none",
    }
    return Measured(
        {route: tolds[0] for route, tolds in told.items()},
        {route: _usual(tolds) for route, tolds in then.items()},
        {route: max(each.took_s for each in tolds) for route, tolds in told.items()},
        words,
        whole_s,
    )


def _usual(tolds: Sequence[Told]) -> Told:
    """Return the usual answer: a breaker lets one call through now and then, to see."""
    words = Counter(told.words for told in tolds).most_common(1)[0][0]
    times = sorted(told.took_s for told in tolds if told.words == words)
    return Told(words, times[len(times) // 2])


def _order(number: int) -> dict[str, Any]:
    return {"order_id": f"P-{number}", "sku": SKU, "qty": 1}


def _batch(number: int) -> dict[str, Any]:
    plate = {"machine_id": f"M-{number}", "sku": SKU}
    return {
        "machine": plate,
        "first": 1,
        "readings": [{"at_s": 1, "temperature_c": 40.0, "current_a": 1.0}],
    }


# -- what the operator and an auditor see ---------------------------------------------------------

NEW_PRICE = Price(PART, Money(4_711, "EUR"))


async def _set_price(site: Site) -> str:
    """Set a price, once; return the failure, "" where there was none."""
    await asyncio.sleep(1.0)
    try:
        await site.call(Orders.set_price(NEW_PRICE), key="a new price", timeout_s=5.0)
    except SynchromeshError as error:
        return f"{error.status} {error.code}"
    return ""


async def _is_price_told(site: Site) -> bool:
    sql = "select price_minor from price where sku = ?"
    return bool(site.rows("configurator", sql, PART) == [(4_711,)])


def _open_breakers(site: Site) -> set[str]:
    callers = {
        name: host.gateway.caller if host.gateway else host.instances[name].caller
        for name, host in site.hosts.items()
    }
    return {
        f"{name.partition('#')[0]} → {callee}"
        for name, caller in callers.items()
        for callee, breaker in caller.edges.items()
        if breaker.state is not BreakerState.CLOSED
    }


def _statuses_of(site: Site, orders: Collection[str]) -> list[str]:
    rows = site.rows("orders", "select order_id, status from orders")
    return sorted({status for order_id, status in rows if order_id in orders})


def _check_nothing_is_lost(site: Site, client: Client) -> None:
    """Check what holds whatever was off: orders are decided, money and sheets add up."""
    assert site.failures == []
    rows = site.rows
    taken = dict(rows("orders", "select order_id, status from orders"))
    assert set(taken.values()) <= {"placed", "rejected"}
    assert {o for o, told in client.orders.items() if told in ("placed", "accepted")} <= set(taken)
    placed = sorted(order_id for order_id, status in taken.items() if status == "placed")
    paid = "select order_id from invoice where status = 'paid' order by order_id"
    assert [order_id for (order_id,) in rows("billing", paid)] == placed
    charged = rows("credit_provider", "select count(*) from charge")
    assert charged == [(len(placed),)]
    sheets = "select order_id, times from build_sheet order by order_id"
    assert rows("production", sheets) == [(order_id, 1) for order_id in placed]
    held = "select count(*) from hold where status = 'active'"
    assert rows("inventory", held) == [(len(placed),)]
    readings = "select sum(taken) from machine"
    worked_out = "select sum(readings) from condition"
    assert rows("fleet", readings) == rows("fleet", worked_out)
