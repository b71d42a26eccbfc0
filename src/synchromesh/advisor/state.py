"""What does not go away by itself: checks of the state of a system. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from synchromesh.advisor.advice import AdviceCase
from synchromesh.advisor.facts import Facts

BEHIND_MIN = 1_000
SET_ASIDE_S = 3_600.0


def lagging_projections(facts: Facts) -> Iterator[AdviceCase]:
    """Find projections that are far behind, and do not catch up."""
    for each in facts.projections:
        if each.behind_then >= BEHIND_MIN and each.behind_then >= each.behind_first:
            yield AdviceCase(
                f"{each.service}: projection {each.name} is {each.behind_then} events behind, and "
                f"was {each.behind_first} a moment before",
                (f"{each.service}/{each.name}",),
            )


def parked_for_long(facts: Facts) -> Iterator[AdviceCase]:
    """Find messages and events that wait for a person for more than an hour."""
    for each in facts.set_aside:
        if each.oldest_s >= SET_ASIDE_S:
            hours = f"{each.oldest_s / 3600:.0f} h"
            yield AdviceCase(f"{each.service}: {each.what} waits since {hours}", (f"{each.count}",))


def growing_for_ever(facts: Facts) -> Iterator[AdviceCase]:
    """Find what is configured to be kept for ever."""
    for key, what in sorted(facts.keeps.items()):
        yield AdviceCase(f"{what} are kept for ever", (key,))


def drifted_contracts(facts: Facts) -> Iterator[AdviceCase]:
    """Find contracts that are not as they were frozen."""
    for each in facts.drift:
        yield AdviceCase(each, ("contract diff",))


def blocking_code(facts: Facts) -> Iterator[AdviceCase]:
    """Find code that keeps the event loop of a process from turning."""
    for part, by in sorted(facts.blocked.items()):
        yield AdviceCase(f"the event loop of {part} stood still", (by,))
