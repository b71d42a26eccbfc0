"""Goodput over time while one service stalls, or does a quarter: as `make cascade` measured it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scripts.svg import AMBER, BLUE, GREEN, GREY, INK, RED, line, picture, rect, text

PAGE = Path(__file__).parents[1] / "docs/slow-part.md"
BEGIN, END = "<!-- cascade -->", "<!-- /cascade -->"
EACH_BEGIN, EACH_END = "<!-- each claim -->", "<!-- /each claim -->"
RESULTS = Path(__file__).parents[1] / "benchmarks/results/cascade.json"
# The name of a series is "FAULT with LAYERS".
FAULTS = {"stall": "c stalls", "25 % capacity": "c does a quarter"}
LAYERS = {
    "nothing": ("nothing", GREY),
    "time-outs": ("time-outs", AMBER),
    "retries": ("and retries", RED),
    "breaker": ("and a breaker", BLUE),
    "all": ("the default: all layers", GREEN),
}
KINDS = {"unrelated": "answered by a alone", "dependent": "needs c"}
STRUCK_S, SMOOTH = 4.0, 5
LEFT, TOP, WIDTH, HEIGHT, GAP = 60, 70, 330, 120, 50


def draw() -> str:
    """Return the picture: a panel for each fault and kind of traffic, a line for each policy."""
    found = json.loads(RESULTS.read_text())
    shapes = [text(LEFT, 22, "a → b → c: the share of requests that is answered in time", size=15)]
    shapes += _legend()
    for column, (fault, words) in enumerate(FAULTS.items()):
        for row, (kind, what) in enumerate(KINDS.items()):
            x, y = LEFT + column * (WIDTH + GAP), TOP + 24 + row * (HEIGHT + GAP)
            shapes.append(text(x, y - 8, f"{words}; {what}", size=12))
            shapes += _panel(x, y, found, fault, kind)
    height = TOP + 24 + 2 * (HEIGHT + GAP)
    return picture(LEFT + 2 * (WIDTH + GAP), height, "Goodput while one service is ill", *shapes)


def _legend() -> list[str]:
    shapes, x = [], LEFT
    for words, colour in LAYERS.values():
        shapes.append(rect(x, 42, 18, 4, fill=colour))
        shapes.append(text(x + 24, 48, words, size=12, fill=INK))
        x += 46 + 7 * len(words)
    return shapes


def _panel(x: float, y: float, found: Any, fault: str, kind: str) -> Iterator[str]:
    bin_s: float = found["bin_s"]
    default = found["series"][f"{fault} with all"]
    end_s = len(default[kind]) * bin_s
    scale = WIDTH / end_s
    ill_s = default["healed_s"] - STRUCK_S
    yield rect(x + STRUCK_S * scale, y, ill_s * scale, HEIGHT, fill="#fff0f0")
    for share in (0.0, 0.5, 1.0):
        at = y + HEIGHT * (1 - share)
        yield line(x, at, x + WIDTH, at, stroke="#e3e8ee")
        yield text(x - 6, at + 4, f"{share:.0%}", size=10, fill=GREY, anchor="end")
    for second in range(0, round(end_s) + 1, 2):
        yield text(x + second * scale, y + HEIGHT + 14, f"{second} s", size=10, fill=GREY)
    for layers, (_, colour) in LAYERS.items():
        shares = _smooth(found["series"][f"{fault} with {layers}"][kind])
        points = " ".join(
            f"{x + (number + 0.5) * bin_s * scale:.0f},{y + HEIGHT * (1 - share):.0f}"
            for number, share in enumerate(shares)
            if share is not None
        )
        width = 2.5 if layers == "all" else 1.5
        yield f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='{width}'/>"


def _smooth(shares: list[float | None]) -> list[float | None]:
    """Return the mean of each bin and its neighbours: a bin has but a few requests."""
    smooth: list[float | None] = []
    for at in range(len(shares)):
        near = [
            each
            for each in shares[max(0, at - SMOOTH // 2) : at + SMOOTH // 2 + 1]
            if each is not None
        ]
        smooth.append(sum(near) / len(near) if near else None)
    return smooth


def page(text: str) -> str:
    """Return the page with its tables as the results have them: the worst of each, and all."""
    found = json.loads(RESULTS.read_text())
    made: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    worst: dict[str, tuple[float, str, str]] = {}
    for experiment, rows in found["experiments"].items():
        for row in rows:
            name, is_most = row["claim"], row["bound"].startswith("<=")
            made[name] += row["made"]
            kept[name] += row["kept"]
            value = math.inf if row["worst"] is None else row["worst"]
            rank = value if is_most else -value
            if name not in worst or rank > worst[name][0]:
                shown = "never" if row["worst"] is None else f"{row['worst']:g}"
                where = f"{experiment} / {row['worst_in']}" if row["worst_in"] else experiment
                worst[name] = (rank, f"{shown} ({row['bound']})", where)
    lines = ["| claim | kept | worst (bound) | in |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {kept[name]} of {made[name]} | {shown} | {where} |"
        for name, (_, shown, where) in worst.items()
    ]
    text = _filled(text, BEGIN, END, lines)
    return _filled(text, EACH_BEGIN, EACH_END, _each_claim(found["experiments"], list(made)))


def _each_claim(experiments: Any, claims: list[str]) -> Iterator[str]:
    """Return a table for each claim: a row for each fault, a column for each shape."""
    rows = {
        (row["claim"], *experiment.rsplit(" / ", 1)): row
        for experiment, told in experiments.items()
        for row in told
    }
    for claim in claims:
        shapes = list(dict.fromkeys(shape for name, shape, _ in rows if name == claim))
        faults = list(dict.fromkeys(fault for name, _, fault in rows if name == claim))
        yield f"\n### {claim[0].upper()}{claim[1:]}\n"
        yield f"| | {' | '.join(shapes)} |"
        yield "|---|" + "---|" * len(shapes)
        for fault in faults:
            cells = (_cell(rows.get((claim, shape, fault))) for shape in shapes)
            yield f"| {fault} | {' | '.join(cells)} |"


def _cell(row: Any) -> str:
    if row is None:
        return ""
    median, worst = (
        "never" if row[name] is None else f"{row[name]:.3g}" for name in ("median", "worst")
    )
    kept = "" if row["kept"] == row["made"] else f", **{row['kept']} of {row['made']}**"
    return f"{median} · {worst}{kept}"


def _filled(text: str, begin: str, end: str, lines: Iterable[str]) -> str:
    return "\n".join((text[: text.index(begin) + len(begin)], *lines, text[text.index(end) :]))
