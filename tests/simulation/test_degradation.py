"""What degrades how when a part of servo-works is off: its drill, held to the docs.

Each column of `docs/degradation.md` is a universe of its own. The drill asks what `probes.toml`
says; here is what only servo-works knows: that a price is told, and that nothing is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from contracts.money import Money
from contracts.orders import Orders, Price
from gateway import gateway

from blast_agreement import disagreements
from servo_works_world import FOLDER
from synchromesh.drill import Probe, read_probes
from synchromesh.drill.simulated import SimulatedDrill
from synchromesh.drill.table import differences, read_tables
from synchromesh.durations import duration
from synchromesh.errors import SynchromeshError
from synchromesh.http import HttpResponse
from synchromesh.system import load_config
from synchromesh.system.control.blast import blast
from synchromesh.system.control.declaring import declared_of
from synchromesh.telemetry.observed import ObservedCall
from synchromesh.testing.sim_system import KILLED, UNWRITABLE, SimSystem

PAGE = Path(__file__).parents[2] / "docs" / "degradation.md"
TABLES = read_tables(PAGE.read_text())
PROBES = read_probes(FOLDER)
CONFIG = load_config(FOLDER)
DRILL = SimulatedDrill(CONFIG, FOLDER, PROBES)
COLUMNS = list(DRILL.columns())
DECLARED = declared_of(CONFIG, FOLDER)
PRICE = "a price set meanwhile"
NEW_PRICE = Price("CP-05", Money(4_711, "EUR"))


class Watch:
    """What an operator and an auditor see of one column.

    Attributes:
        price: what became of a price that was set meanwhile.
        calls: who called whom, as spans tell.
    """

    def __init__(self, part: str, way: str) -> None:
        self._part, self._way = part, way
        self._fresh: dict[str, tuple[Any, float]] = {}
        self._taken: set[str] = set()
        self.price = ""
        self.calls: list[ObservedCall] = []

    def heard(self, probe: Probe, response: HttpResponse, began_s: float) -> None:
        """Check that what stands in for an answer is the last one, and as old as it says."""
        body = json.loads(response.body)
        if probe.route == "POST /orders":
            self._taken.add(body["order_id"])
        mark = dict(response.headers).get("synchromesh-fallback", "")
        partial = dict(response.headers).get("synchromesh-partial", "")
        if mark:
            before, told_s = self._fresh[probe.route]
            assert body == before
            # Several were on their way at once: the last to be answered was not the last to ask.
            age_s = float(mark.split(";")[1].removeprefix("age_s="))
            assert abs(age_s - (began_s - told_s)) < 2.0
        elif partial:
            assert body["data"] == self._fresh[probe.route][0]["data"]
            assert all(body["branches"][name]["age_s"] >= 0 for name in partial.split(", "))
        else:
            self._fresh[probe.route] = (body, began_s)

    def stages(self, system: SimSystem) -> Callable[[str], Awaitable[None]]:
        """Return what follows the drill."""
        epochs: dict[str, int] = {}
        pricing: list[asyncio.Task[str]] = []

        async def told(stage: str) -> None:
            if stage == "off":
                epochs.update({name: node.epoch for name, node in system.nodes.items()})
                pricing.append(asyncio.ensure_future(_set_price(system)))
            elif stage == "back":
                self.price = "told at once" if _is_price_told(system) else "told once it is back"
            else:
                self.price = await pricing[0] or self.price
                assert self.price[:1] == "5" or _is_price_told(system)
                for name in system.nodes_of(self._part):
                    epochs[name] += self._way == KILLED
                assert {name: node.epoch for name, node in system.nodes.items()} == epochs
                _check_nothing_is_lost(system, self._taken)
                self.calls = await system.observed()

        return told


@pytest.mark.parametrize(("part", "way"), COLUMNS, ids=[f"{p} {w}" for p, w in COLUMNS])
def test_it_degrades_as_the_table_says(
    part: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every route, an order, a price, the breakers; then all is whole again, with no restart.

    And `blast` says the same, by what is declared and the calls that were seen.
    """
    caplog.set_level(logging.CRITICAL, "synchromesh")
    watch = Watch(part, way)
    column = DRILL.run(part, way, stages=watch.stages, heard=watch.heard)
    assert differences(TABLES, [column], is_all=False) == []
    assert watch.price == TABLES[part][way][PRICE]
    # Where a database cannot be written, what only reads goes on.
    if part in (*DECLARED.services, *DECLARED.externals) and way != UNWRITABLE:
        assert disagreements(blast(part, DECLARED, watch.calls), column) == []
    for route in gateway.routes:
        assert column.seen[route.route].longest_s <= duration(route.deadline) + 0.1


def test_every_part_is_in_the_table_in_each_of_its_ways() -> None:
    """Each service, a replica, the provider, the registry and the gateway; and no other."""
    assert {(part, way) for part, ways in TABLES.items() for way in ways} == set(COLUMNS)


def test_every_route_has_a_probe() -> None:
    """Nothing is asked that the gateway has not."""
    assert [probe.route for probe in PROBES.probe] == [route.route for route in gateway.routes]


async def _set_price(system: SimSystem) -> str:
    """Set a price, once; return the failure, "" where there was none."""
    await asyncio.sleep(1.0)
    try:
        await system.call(Orders.set_price(NEW_PRICE), key="a new price", timeout_s=5.0)
    except SynchromeshError as error:
        return f"{error.status} {error.code}"
    return ""


def _is_price_told(system: SimSystem) -> bool:
    sql = "select price_minor from price where sku = ?"
    return system.rows("configurator", sql, NEW_PRICE.sku) == [(4_711,)]


def _check_nothing_is_lost(system: SimSystem, told: set[str]) -> None:
    """Check what holds whatever was off: orders are decided, money and sheets add up."""
    assert system.failures == []
    rows = system.rows
    taken = dict(rows("orders", "select order_id, status from orders"))
    assert set(taken.values()) <= {"placed", "rejected"}
    assert told <= set(taken)
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
