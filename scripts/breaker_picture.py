"""A breaker over time, by the breaker itself: one call every 100 ms while the callee fails."""

from __future__ import annotations

from typing import NamedTuple

from scripts.svg import AMBER, GREEN, GREY, INK, RED, circle, line, picture, rect, text
from synchromesh.errors import CircuitOpen
from synchromesh.resilience import Breaker, BreakerOptions, BreakerState, Transition

END_S, EVERY_S, TOOK_S = 8.0, 0.1, 0.06
FAILS_FROM_S, FAILS_UNTIL_S = 1.5, 4.6
LEFT, SCALE = 130, 80
COLOURS = {
    BreakerState.CLOSED: GREEN,
    BreakerState.OPEN: RED,
    BreakerState.HALF_OPEN: AMBER,
}


class Told(NamedTuple):
    """What became of one call."""

    at_s: float
    outcome: str


def live() -> tuple[list[Told], list[Transition]]:
    """Run the calls through a breaker with the default options."""
    transitions: list[Transition] = []
    breaker = Breaker(
        BreakerOptions(), name="orders -> billing", now=0.0, on_transition=transitions.append
    )
    told: list[Told] = []
    for number in range(round(END_S / EVERY_S)):
        at_s = round(number * EVERY_S, 3)
        try:
            permit = breaker.admit(at_s)
        except CircuitOpen:
            told.append(Told(at_s, "refused"))
            continue
        is_failure = FAILS_FROM_S <= at_s < FAILS_UNTIL_S
        report = breaker.failure if is_failure else breaker.success
        report(permit, at_s + TOOK_S, TOOK_S)
        told.append(Told(at_s, "failed" if is_failure else "answered"))
    return told, transitions


def draw() -> str:
    """Return the picture."""
    told, transitions = live()
    shapes = [text(12, 46, "the callee"), text(12, 96, "calls"), text(12, 156, "the breaker")]
    for begin, end, colour, words in (
        (0.0, FAILS_FROM_S, GREEN, "works"),
        (FAILS_FROM_S, FAILS_UNTIL_S, RED, "fails"),
        (FAILS_UNTIL_S, END_S, GREEN, "works"),
    ):
        shapes.append(rect(_x(begin), 30, _x(end) - _x(begin), 24, fill=colour))
        shapes.append(text(_x((begin + end) / 2), 47, words, fill="#ffffff", anchor="middle"))
    dots = {"answered": (GREEN, 4.0), "failed": (RED, 4.0), "refused": (GREY, 1.5)}
    for call in told:
        colour, radius = dots[call.outcome]
        shapes.append(circle(_x(call.at_s), 91, radius, fill=colour))
    shapes += _states(transitions)
    shapes += _axis()
    counts = {outcome: sum(call.outcome == outcome for call in told) for outcome in dots}
    x = LEFT
    for outcome, (colour, radius) in dots.items():
        shapes.append(circle(x + 4, 222, radius, fill=colour))
        shapes.append(text(x + 14, 226, f"{counts[outcome]} {outcome}", fill=INK))
        x += 130
    return picture(LEFT + round(END_S * SCALE) + 24, 240, "A circuit breaker over time", *shapes)


def _states(transitions: list[Transition]) -> list[str]:
    shapes: list[str] = []
    spans = [(0.0, BreakerState.CLOSED), *((each.at_s, each.after) for each in transitions)]
    ends = [*(at_s for at_s, _ in spans[1:]), END_S]
    for (begin, state), end in zip(spans, ends, strict=True):
        shapes.append(
            rect(
                round(_x(begin), 1),
                140,
                round(_x(end) - _x(begin), 1),
                24,
                fill=COLOURS[state],
            )
        )
        if end - begin > 0.4:
            words = state.value.replace("_", "-")
            shapes.append(
                text(round(_x((begin + end) / 2), 1), 157, words, fill="#ffffff", anchor="middle")
            )
    return [*shapes, text(LEFT, 132, "amber: half-open, a ramp of probes", size=11, fill=AMBER)]


def _axis() -> list[str]:
    shapes = [line(LEFT, 184, _x(END_S), 184, stroke=GREY)]
    for second in range(round(END_S) + 1):
        shapes.append(line(_x(second), 180, _x(second), 188, stroke=GREY))
        shapes.append(text(_x(second), 202, f"{second} s", size=11, fill=GREY, anchor="middle"))
    return shapes


def _x(at_s: float) -> float:
    return LEFT + at_s * SCALE
