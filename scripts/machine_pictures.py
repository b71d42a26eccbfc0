"""The machines that have a table of what follows, drawn from that table: a box for each state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from scripts.svg import AMBER, BLUE, GREEN, GREY, INK, PAPER, RED, line, picture, rect, text
from synchromesh.resilience import TRANSITIONS, BreakerState
from synchromesh.saga.records import REPAIRED_TO, STATUS_AFTER, STEP_STATE_AFTER, AttemptResult
from synchromesh.saga.rules import RULES, UNDO_RULES, StepRule, Zone
from synchromesh.system.supervise.succession import STATE_AFTER

WIDTH, HEIGHT, COLUMN, ROW, LEFT, TOP = 112, 32, 204, 104, 56, 64
CHAR, LINE = 6.0, 14
# How far two arrows between the same boxes are from one another.
APART = 10


class Arrow(NamedTuple):
    """What leads from one state to another."""

    before: str
    words: str
    after: str


class Machine(NamedTuple):
    """A machine as it is drawn.

    Attributes:
        places: the column and the row of each state, from the top left; halves are allowed.
        colours: of states that are not blue.
    """

    title: str
    arrows: list[Arrow]
    places: Mapping[str, tuple[float, float]]
    colours: Mapping[str, str]


def machines() -> dict[str, Machine]:
    """Return the machines, by the name of the picture."""
    run = [Arrow(s.value, k.value, after.value) for (s, k), after in STATUS_AFTER.items()]
    run += [
        Arrow("stuck", f"{verb.value}, {'if' if turned else 'unless'} it had turned", after.value)
        for (turned, verb), after in REPAIRED_TO.items()
    ]
    return {
        "saga-run": Machine(
            "A run of a saga: its status after each record, and what a person can do",
            run,
            {
                "running": (0, 0),
                "completed": (2, 0),
                "stuck": (2, 1.5),
                "compensating": (0, 3),
                "undone": (2, 3),
            },
            {"completed": GREEN, "undone": GREY, "stuck": RED, "compensating": AMBER},
        ),
        "saga-step": Machine(
            "A step of a saga: its state after each record",
            [Arrow(s.value, k.value, after.value) for (s, k), after in STEP_STATE_AFTER.items()],
            {
                "new": (0, 1),
                "asleep": (1, 0),
                "unknown": (1, 2),
                "rejected": (0, 3),
                "done": (2, 0),
                "undoing": (2, 2),
                "undone": (3, 1),
            },
            {"done": GREEN, "rejected": GREY, "undone": GREY, "unknown": AMBER, "undoing": AMBER},
        ),
        "breaker-states": Machine(
            "A circuit breaker: its state after each trigger",
            _of_breaker(),
            {
                "closed": (0, 0.3),
                "open": (1.5, 0.3),
                "half_open": (0.75, 1.5),
                "isolated": (2.8, 0.3),
                "disabled": (2.8, 1.5),
            },
            {"closed": GREEN, "open": RED, "half_open": AMBER, "isolated": GREY, "disabled": GREY},
        ),
        "succession": Machine(
            "A part of a split system: which process answers, and which one it replaces",
            [Arrow(s.value, e.value, after.value) for (s, e), after in STATE_AFTER.items()],
            {
                "down": (0, 0),
                "making": (0, 1.5),
                "starting": (1, 3),
                "up": (2, 0),
                "replacing": (1, 1.5),
                "loading": (3, 1.5),
                "letting go": (2.5, 3),
                "draining": (4, 0),
                "leaving": (4, 3),
            },
            {"down": GREY, "up": GREEN, "leaving": AMBER, "draining": GREEN, "replacing": GREEN},
        ),
    }


def _of_breaker() -> list[Arrow]:
    """Return the arrows of a breaker; what leads from all states to one is said at that one."""
    triggers = {trigger: after.value for _, trigger, after in TRANSITIONS}
    befores = {
        trigger: {b.value for b, t, _ in TRANSITIONS if t is trigger} for trigger in triggers
    }
    everywhere = {each.value for each in BreakerState}
    arrows = []
    for trigger, after in triggers.items():
        if befores[trigger] == everywhere - {after}:
            arrows.append(Arrow(after, f"{trigger.value}, from any", after))
        else:
            arrows += [Arrow(before, trigger.value, after) for before in sorted(befores[trigger])]
    return arrows


def draw(machine: Machine) -> str:
    """Return the picture of a machine.

    Raises:
        KeyError: a state of its table has no place.
    """
    grouped: dict[tuple[str, str], list[str]] = {}
    for each in machine.arrows:
        grouped.setdefault((each.before, each.after), []).append(each.words)
    shapes = [text(LEFT, 26, machine.title, size=15)]
    labels: list[str] = []
    for (before, after), words in grouped.items():
        if before == after:
            labels += _own(machine.places[before], words)
            continue
        is_double = (after, before) in grouped
        arrow, label = _arrow(machine.places[before], machine.places[after], words, is_double)
        shapes += arrow
        labels += label
    shapes += labels
    for state, place in machine.places.items():
        x, y = _middle(place)
        colour = machine.colours.get(state, BLUE)
        shapes.append(rect(x - WIDTH / 2, y - HEIGHT / 2, WIDTH, HEIGHT, fill=PAPER, stroke=colour))
        shapes.append(text(x, y + 5, state, fill=INK, anchor="middle"))
    right = max(column for column, _ in machine.places.values())
    below = max(row for _, row in machine.places.values())
    width = max(LEFT * 2 + right * COLUMN + WIDTH, LEFT * 2 + len(machine.title) * 7.4)
    return picture(round(width), round(TOP + below * ROW + HEIGHT + 36), machine.title, *shapes)


def draw_rules() -> str:
    """Return the table of what follows from an attempt, by where the step stands to the pivot."""
    title = "What follows from an attempt of a step"
    colours = {
        StepRule.RETURN: GREEN,
        StepRule.TURN: AMBER,
        StepRule.STUCK: RED,
        StepRule.AGAIN: BLUE,
        StepRule.GIVE_UP: AMBER,
    }
    words = {
        StepRule.RETURN: "go on",
        StepRule.TURN: "undo the run",
        StepRule.STUCK: "stuck",
        StepRule.AGAIN: "again",
        StepRule.GIVE_UP: "undo, or stuck",
    }
    heads = {
        Zone.BEFORE: "before the pivot",
        Zone.PIVOT: "the pivot",
        Zone.AFTER: "behind the pivot",
    }
    shapes = [text(LEFT, 26, title, size=15)]
    columns: list[tuple[str, list[StepRule]]] = [
        (heads[zone], [RULES[zone, each] for each in AttemptResult]) for zone in Zone
    ]
    columns.append(("an undo", [UNDO_RULES[each] for each in AttemptResult]))
    for row, each in enumerate(AttemptResult):
        shapes.append(text(LEFT, 88 + row * 34, each.value))
    for column, (head, rules) in enumerate(columns):
        x = LEFT + 90 + column * 144
        shapes.append(text(x + 66, 58, head, fill=GREY, anchor="middle"))
        for row, rule in enumerate(rules):
            y = 68 + row * 34
            shapes.append(rect(x, y, 132, 28, fill=PAPER, stroke=colours[rule]))
            shapes.append(text(x + 66, y + 19, words[rule], anchor="middle"))
    note = "again: until the step's attempts or the zone's time are used up, then as the run can"
    shapes.append(text(LEFT, 68 + len(AttemptResult) * 34 + 18, note, size=12, fill=GREY))
    return picture(LEFT * 2 + 90 + 4 * 144, 68 + len(AttemptResult) * 34 + 36, title, *shapes)


def _middle(place: tuple[float, float]) -> tuple[float, float]:
    column, row = place
    return LEFT + WIDTH / 2 + column * COLUMN, TOP + HEIGHT / 2 + row * ROW


def _own(place: tuple[float, float], words: list[str]) -> Iterator[str]:
    """Draw what leads from a state to itself: words above its box, or below, where arrows come."""
    x, y = _middle(place)
    at = y - HEIGHT / 2 - 6 if place[1] < 1 else y + HEIGHT / 2 + 14
    yield text(x, at, f"↻ {', '.join(words)}", size=11, fill=INK, anchor="middle")


def _arrow(
    before: tuple[float, float], after: tuple[float, float], words: list[str], is_double: bool
) -> tuple[list[str], list[str]]:
    """Draw an arrow from box to box, and its words in its middle."""
    (x, y), (to_x, to_y) = _middle(before), _middle(after)
    length = math.hypot(to_x - x, to_y - y)
    along_x, along_y = (to_x - x) / length, (to_y - y) / length
    aside_x, aside_y = (-along_y * APART, along_x * APART) if is_double else (0.0, 0.0)
    out = _edge(aside_x, aside_y, along_x, along_y)
    into = _edge(aside_x, aside_y, -along_x, -along_y) + 4
    x, y = x + aside_x + along_x * out, y + aside_y + along_y * out
    to_x, to_y = to_x + aside_x - along_x * into, to_y + aside_y - along_y * into
    corners = [
        (to_x + along_x * ahead - along_y * side, to_y + along_y * ahead + along_x * side)
        for ahead, side in ((3, 0), (-6, 4), (-6, -4))
    ]
    tip = " ".join(f"{at_x:.1f},{at_y:.1f}" for at_x, at_y in corners)
    shapes = [
        line(round(x, 1), round(y, 1), round(to_x, 1), round(to_y, 1), stroke=GREY),
        f"<polygon points='{tip}' fill='{GREY}'/>",
    ]
    # Nearer to where it begins, so that those of arrows that cross are apart.
    at = 0.3 if is_double else 0.42
    return shapes, list(_label(x + (to_x - x) * at, y + (to_y - y) * at, words))


def _edge(from_x: float, from_y: float, along_x: float, along_y: float) -> float:
    """Return how far it is to the edge of a box from a point in it, told from its middle."""
    by_side = (WIDTH / 2 - math.copysign(from_x, from_x * along_x)) / abs(along_x or 1e-9)
    by_end = (HEIGHT / 2 - math.copysign(from_y, from_y * along_y)) / abs(along_y or 1e-9)
    return min(by_side, by_end)


def _label(x: float, y: float, words: Iterable[str]) -> Iterator[str]:
    lines = list(words)
    top = y - len(lines) * LINE / 2
    width = max(map(len, lines)) * CHAR
    yield rect(round(x - width / 2, 1), round(top, 1), width, len(lines) * LINE, fill=PAPER)
    for number, each in enumerate(lines):
        at = round(top + number * LINE + 11, 1)
        yield text(round(x, 1), at, each, size=11, fill=INK, anchor="middle")
