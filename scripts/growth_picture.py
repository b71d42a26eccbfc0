"""How cost grows with events and sagas, as `benchmarks.growth` and `saga_growth` measured it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.svg import AMBER, BLUE, GREEN, GREY, INK, RED, circle, line, picture, text

RESULTS = Path(__file__).parents[1] / "benchmarks/results"
LEFT, TOP, WIDTH, HEIGHT, GAP = 64, 84, 360, 260, 110
MS_MIN, MS_MAX = 0.01, 100_000.0
UNITS = {"ms": 1.0, "s": 1e3}


class Curve(NamedTuple):
    """One cost: its name in the picture, how its figures are called in the results, its colour."""

    words: str
    figure: str
    colour: str


class Panel(NamedTuple):
    """The costs that grow with one thing."""

    title: str
    area: str
    curves: tuple[Curve, ...]


PANELS = (
    Panel(
        "events in one stream",
        "growth",
        (
            Curve("first decision of a release", "events: first decide of a release", RED),
            Curve("a decision, p50, durable", "events: decide, p50", BLUE),
            Curve("load of the last 100", "events: load the last 100", GREEN),
        ),
    ),
    Panel(
        "sagas",
        "saga_growth",
        (
            Curve("so many come back: all are done", "running: all done after", RED),
            Curve("so many come back: served after", "running: serves after", AMBER),
            Curve("beside so many ended: one, p50", "ended: a saga of 3 stubbed steps, p50", BLUE),
            Curve("beside so many ended: a list", "ended: a list of 20", GREEN),
            Curve("beside so many ended: counts", "ended: how many have which status", GREY),
        ),
    ),
)


def points(area: str, figure: str) -> list[tuple[int, float]]:
    """Return the sizes of a figure and what it took there, in ms.

    Raises:
        ValueError: the results have none.
    """
    rows = json.loads((RESULTS / f"{area}.json").read_text())["rows"]
    found = [
        (int(size.replace(",", "")), row["ours"] * UNITS[row["unit"]])
        for row in rows
        for size, _, name in [row["figure"].partition(" ")]
        if name == figure
    ]
    if not found:
        raise ValueError(f"{area}.json has no {figure!r}: run python -m benchmarks.{area}")
    return sorted(found)


def draw() -> str:
    """Return the picture: a panel for events and one for sagas, both scales logarithmic."""
    shapes = [text(LEFT, 26, "How long it takes, beside so many or for so many", size=15)]
    for number, panel in enumerate(PANELS):
        shapes += _panel(LEFT + number * (WIDTH + GAP), panel)
    legend = max(len(panel.curves) for panel in PANELS) * 18
    height = TOP + HEIGHT + 48 + legend
    width = LEFT + len(PANELS) * (WIDTH + GAP) - GAP + 40
    return picture(width, height, "How cost grows with events and with sagas", *shapes)


def _panel(x: float, panel: Panel) -> Iterator[str]:
    curves = {curve: points(panel.area, curve.figure) for curve in panel.curves}
    sizes = sorted({size for found in curves.values() for size, _ in found})
    first, last = math.log10(sizes[0]), math.log10(sizes[-1])

    def at(size: int, took_ms: float) -> tuple[float, float]:
        share = (math.log10(size) - first) / (last - first)
        return round(x + share * WIDTH, 1), round(_y(took_ms), 1)

    yield text(x, TOP - 28, panel.title, size=13)
    decade = MS_MIN
    while decade <= MS_MAX * 1.01:
        yield line(x, _y(decade), x + WIDTH, _y(decade), stroke="#e3e8ee")
        words = f"{decade:g} ms" if decade < 1000 else f"{decade / 1000:g} s"
        yield text(x - 6, _y(decade) + 4, words, size=10, fill=GREY, anchor="end")
        decade *= 10
    for size in sizes:
        yield text(
            at(size, MS_MIN)[0], TOP + HEIGHT + 16, f"{size:,}", size=10, fill=GREY, anchor="middle"
        )
    for row, (curve, found) in enumerate(curves.items()):
        drawn = [at(size, took_ms) for size, took_ms in found]
        path = " ".join(f"{px:g},{py:g}" for px, py in drawn)
        yield f"<polyline points='{path}' fill='none' stroke='{curve.colour}' stroke-width='2'/>"
        for px, py in drawn:
            yield circle(px, py, 3, fill=curve.colour)
        y = TOP + HEIGHT + 42 + row * 18
        yield line(x, y - 4, x + 18, y - 4, stroke=curve.colour, more="stroke-width='3'")
        yield text(x + 26, y, curve.words, size=12, fill=INK)


def _y(took_ms: float) -> float:
    share = math.log10(took_ms / MS_MIN) / math.log10(MS_MAX / MS_MIN)
    return TOP + HEIGHT * (1 - share)
