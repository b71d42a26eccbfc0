"""What degrades how when a part of servo-works is off: the table of the docs, row by row.

Each column of `docs/degradation.md` is a universe of its own: the part is switched off under
traffic, everything that the table names is asked for, and it is switched on again.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from gateway import gateway

from degradation_probe import (
    AS_ALWAYS,
    AT_ONCE_S,
    BREAKERS,
    ORDER,
    PRICE,
    TARGETS,
    WHOLE,
    Measured,
    Told,
    measure,
)
from degradation_world import NODES, Site
from synchromesh.durations import duration

PAGE = Path(__file__).parents[2] / "docs" / "degradation.md"
WAYS = {
    "killed": "killed",
    "stalled": "stalled",
    "failing": "failing",
    "cannot write": "unwritable",
}
REST = "every other route"
_SECTION = re.compile(r"^## `([\w#]+)` is off\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_ANSWER = re.compile(r"(?P<words>.+?)(?:, ≤ (?P<bound>[\d.]+) s)?")


def tables() -> dict[str, dict[str, dict[str, str]]]:
    """Return the cells of the page: by part, by way of being off, by row."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for part, text in _SECTION.findall(PAGE.read_text()):
        lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
        (_, *ways), _, *rows = [[cell.strip() for cell in line] for line in lines]
        found[part] = {
            WAYS[way]: {row[0].strip("`"): row[number] for row in rows}
            for number, way in enumerate(ways, 1)
        }
    return found


TABLES = tables()
COLUMNS = [(part, way) for part, ways in TABLES.items() for way in ways]


def check_answer(cell: str, told: Told, *, is_first: bool) -> None:
    """Check an answer against what is written: its words, and how long it may take."""
    matched = _ANSWER.fullmatch(cell)
    assert matched is not None, cell
    assert told.words in matched["words"].split(" or ")
    bound_s = float(matched["bound"] or AT_ONCE_S)
    assert told.took_s <= bound_s * 1.05 + 0.02, told
    # A bound that is far above what it takes would say nothing.
    assert not is_first or bound_s < 1.0 or told.took_s > bound_s / 5, told


def check_route(cell: str, route: str, measured: Measured, *, is_replica: bool) -> None:
    """Check the first answer and the usual one of a route; "as always" is fresh, and at once."""
    if cell == "as always":
        cell = AS_ALWAYS[route]
    first, _, then = cell.partition(" → ")
    told = measured.first[route]
    if is_replica:
        # Whether the first of all waits for it is up to the balancer: one of the first does.
        told = replace(told, took_s=measured.longest_s[route])
    check_answer(first, told, is_first=True)
    check_answer(then or first, measured.then[route], is_first=False)


@pytest.mark.parametrize(("part", "way"), COLUMNS, ids=[f"{p} {w}" for p, w in COLUMNS])
def test_it_degrades_as_the_table_says(
    part: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Every route, an order, a price, the breakers; then all is whole again, with no restart."""
    caplog.set_level(logging.CRITICAL, "synchromesh")
    site = Site(f"{part} {way}")
    measured = site.world.run(measure(site, part, way), until_s=600.0)
    cells = TABLES[part][way]
    for route in gateway.routes:
        cell = cells.get(route.route) or cells[REST]
        check_route(cell, route.route, measured, is_replica="#" in part)
        assert measured.longest_s[route.route] <= duration(route.deadline) + 0.1
    assert set(measured.words[ORDER].split(" or ")) <= set(cells[ORDER].split(" or "))
    assert measured.words[PRICE] == cells[PRICE]
    assert measured.words[BREAKERS] == cells[BREAKERS]
    assert measured.whole_s <= float(cells[WHOLE].removeprefix("≤ ").removesuffix(" s"))


def test_every_part_is_in_the_table() -> None:
    """Each service, a replica, the provider, the registry and the gateway; most stalled, too."""
    parts = {name.partition("#")[0] for name in NODES} | {"quoting#2"}
    assert set(TABLES) == parts
    assert all("killed" in ways for ways in TABLES.values())
    assert {part for part, ways in TABLES.items() if "stalled" in ways} == parts - {"gateway"}


def test_every_route_is_in_each_table() -> None:
    """Named, or among the others; nothing is named that the gateway has not."""
    routes = [route.route for route in gateway.routes]
    assert list(TARGETS) == routes
    for part, way in COLUMNS:
        named = set(TABLES[part][way]) - {REST, ORDER, PRICE, BREAKERS, WHOLE}
        assert named <= set(routes)
        assert REST in TABLES[part][way] or named == set(routes)
