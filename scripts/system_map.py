"""The map of servo-works: who calls whom and who hears of what, read from its code."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scripts.svg import BLUE, GREY, INK, PAPER, line, picture, rect, text

FOLDER = Path(__file__).parents[1] / "src/synchromesh/examples/servo_works"
BOX_W, BOX_H = 128, 44
# Where each part stands: the column, and the row in it.
PLACES = {
    "gateway": (0, 1.0),
    "fleet": (1, -0.25),
    "orders": (1, 0.75),
    "configurator": (1, 2.1),
    "quoting": (1.1, 3.0),
    "production": (2, -0.2),
    "billing": (2, 1.25),
    "inventory": (2, 2.1),
    "credit_provider": (3, 1.25),
}
COLUMN, ROW, LEFT, TOP = 210, 110, 24, 44
ASIDE = 7


class Edge(NamedTuple):
    """From a caller to its callee, or from a publisher to its subscriber."""

    source: str
    target: str
    is_event: bool


class Contracts(NamedTuple):
    """The service of each contract by the name of its class, and those that are somebody else's."""

    service_of: dict[str, str]
    external: set[str]


def contracts() -> Contracts:
    """Read the contracts of servo-works."""
    found = Contracts({}, set())
    for path in sorted((FOLDER / "contracts").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                said = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
                if "service" in said:
                    found.service_of[node.name] = said["service"]
                    if said.get("external"):
                        found.external.add(said["service"])
    return found


def edges(known: Contracts) -> list[Edge]:
    """Read who uses whose contract: below `.on(...)` as a subscriber, else as a caller."""
    found = set(_edges_in(FOLDER / "gateway.py", "gateway", known))
    for folder in sorted((FOLDER / "services").iterdir()):
        for path in sorted(folder.glob("*.py")):
            found.update(_edges_in(path, folder.name, known))
    return sorted(found)


def _edges_in(path: Path, owner: str, known: Contracts) -> Iterator[Edge]:
    tree = ast.parse(path.read_text())
    heard = {
        argument
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "on"
        for argument in node.args
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            service = known.service_of.get(node.value.id, owner)
            if service != owner:
                is_event = node in heard
                yield Edge(*((service, owner) if is_event else (owner, service)), is_event)


def draw() -> str:
    """Return the map."""
    known = contracts()
    arrows = [_arrow(edge) for edge in edges(known)]
    boxes = [_box(name, is_ours=name not in known.external) for name in PLACES]
    legend = [
        line(24, 450, 64, 450, stroke=GREY, more="marker-end='url(#call)'"),
        text(74, 454, "calls", fill=GREY),
        line(
            134, 450, 174, 450, stroke=BLUE, more="marker-end='url(#event)' stroke-dasharray='5 4'"
        ),
        text(184, 454, "public events, from publisher to subscriber", fill=BLUE),
        text(490, 454, "in grey: somebody else's", fill=GREY),
    ]
    return picture(806, 474, "The services of servo-works", _HEADS, *arrows, *boxes, *legend)


_HEAD = (
    "<marker id='{}' viewBox='0 0 8 8' refX='8' refY='4' markerWidth='8' markerHeight='8'"
    " orient='auto'><path d='M0 0 8 4 0 8z' fill='{}'/></marker>"
)
_HEADS = f"<defs>{_HEAD.format('call', GREY)}{_HEAD.format('event', BLUE)}</defs>"


def _centre(name: str) -> tuple[float, float]:
    column, row = PLACES[name]
    return LEFT + column * COLUMN + BOX_W / 2, TOP + row * ROW + BOX_H / 2


def _box(name: str, *, is_ours: bool) -> str:
    x, y = _centre(name)
    box = rect(
        x - BOX_W / 2, y - BOX_H / 2, BOX_W, BOX_H, fill=PAPER, stroke=INK if is_ours else GREY
    )
    return box + text(x, y + 5, name, anchor="middle", fill=INK if is_ours else GREY)


def _arrow(edge: Edge) -> str:
    (x, y), (to_x, to_y) = _centre(edge.source), _centre(edge.target)
    length = math.hypot(to_x - x, to_y - y)
    along_x, along_y = (to_x - x) / length, (to_y - y) / length
    # Calls and events between two parts run beside each other, whichever way they go.
    aside = (ASIDE if edge.is_event else -ASIDE) * (1 if edge.source < edge.target else -1)
    off_x, off_y = -along_y * aside, along_x * aside
    begin, end = _rim(along_x, along_y, off_x, off_y), _rim(-along_x, -along_y, off_x, off_y)
    stroke, head = (BLUE, "event") if edge.is_event else (GREY, "call")
    dashes = " stroke-dasharray='5 4'" if edge.is_event else ""
    return line(
        round(x + off_x + along_x * begin, 1),
        round(y + off_y + along_y * begin, 1),
        round(to_x + off_x - along_x * end, 1),
        round(to_y + off_y - along_y * end, 1),
        stroke=stroke,
        more=f"marker-end='url(#{head})'{dashes}",
    )


def _rim(along_x: float, along_y: float, off_x: float, off_y: float) -> float:
    """Return how far it is to the rim of a box, in a direction, from a point off its middle."""
    ways = ((along_x, off_x, BOX_W / 2), (along_y, off_y, BOX_H / 2))
    return min((math.copysign(half, a) - off) / a for a, off, half in ways if a)
