"""What happened in one scenario, over time: who was answered, and how each guard stood.

    python -m benchmarks.cascade --only "system 115" --timeline 0.25

A row says how the requests ended that needed the culprit since the row before, how many places of
the culprit are busy and how many wait for one, and of every limit on the way how many calls hold a
slot, of how many there are, and how many wait (`9/12+3`, and what is usual there). An edge has the
state of its breaker too: `-` closed, `O` open, `h` half-open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from benchmarks.cascade.shape import Shape
from benchmarks.cascade.system import System
from synchromesh.resilience import BreakerState, LatencyTracker, Limiter

_STATES = {BreakerState.CLOSED: "-", BreakerState.OPEN: "O", BreakerState.HALF_OPEN: "h"}


class Timeline:
    """Gathers the rows of a run.

    Args:
        every_s: how far they are apart.
    """

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.rows: list[str] = []

    def look(self, at_s: float, system: System, culprit: str, ends: Counter[str]) -> None:
        """Add a row, and count the ends from 0 again."""
        told = " ".join(f"{code} {count}" for code, count in sorted(ends.items()))
        ends.clear()
        resource = system.resources[culprit][-1]
        work = f"{resource.busy}/{resource.places}+{resource.waiting}"
        guards = " | ".join(_guards(system, culprit))
        self.rows.append(f"{at_s:6.2f}  [{told}]  {culprit} {work} | {guards}")


def _guards(system: System, culprit: str) -> Iterator[str]:
    """Describe each limit that a request to the culprit passes."""
    on_the_way = _callers_of(system.shape, culprit)
    callers = {"gateway": system.gateway}
    callers |= {name: system.running[f"{name}-1"].caller for name in on_the_way}
    for name, caller in callers.items():
        for operation, plan in caller._plans.items():
            callee = operation.service
            if callee in on_the_way or callee == culprit:
                breaker = plan.edge.breaker
                state = _STATES.get(breaker.state, "?") if breaker is not None else ""
                yield f"{name}>{callee} {state} {_slots(plan.edge.limiter, plan.edge.tracker)}"
    for name in (*on_the_way, culprit):
        for answerer in system.running[f"{name}-1"].dispatcher._answering.values():
            yield f"{name} {_slots(answerer.limiter, answerer.tracker)}"


def _callers_of(shape: Shape, culprit: str) -> list[str]:
    """Return the services that call the culprit, itself or by others."""
    found = {culprit}
    for part in reversed(shape.parts):
        if found.intersection(part.calls):
            found.add(part.name)
    return [part.name for part in shape.parts if part.name in found - {culprit}]


def _slots(limiter: Limiter | None, tracker: LatencyTracker) -> str:
    if limiter is None:
        return ""
    held = f"{limiter.in_flight}/{limiter.in_flight_max}+{limiter.waiting}"
    return f"{held} {tracker.usual_s * 1000:.0f}ms"
