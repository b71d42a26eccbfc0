"""Calls held while no instance is ready: which are, for how long, and what came of it.

A service that restarts is nowhere for a moment. A call that comes just then waits for the new
instance instead of failing, within its deadline: the restart is *bridged*. It waits for a part of
its time only, so that the rest is enough to be answered in, and only so many wait at once.

A pure machine; `Caller` waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HoldOptions:
    """Says how calls are held.

    Attributes:
        hold_max_s: how long one call waits at most, in each of its attempts; 0 for not at all.
        share: the part of an attempt's time, 0 to 1, that may be spent waiting.
        held_max: how many calls of one caller may wait at once; the others fail at once.

    Raises:
        ConfigError: a value is outside its range.
    """

    hold_max_s: float = 2.0
    share: float = 0.75
    held_max: int = 256

    def __post_init__(self) -> None:
        if self.hold_max_s < 0 or self.held_max < 0 or not 0 <= self.share <= 1:
            raise ConfigError(
                f"hold options {self} are wrong; make hold_max_s and held_max 0 or more and share "
                "0 to 1"
            )


class Holds:
    """Decides which calls of one caller are held, and counts them.

    Attributes:
        held: how many wait now.
        bridged: how many have found an instance.
        given_up: how many have found none in their time.
        refused: how many were not held because too many waited.

    Example:
        >>> holds = Holds(HoldOptions(hold_max_s=2.0, share=0.75, held_max=1))
        >>> holds.begin(now=10.0, deadline_s=12.0), holds.begin(now=10.0, deadline_s=12.0)
        (11.5, None)
        >>> holds.end(is_bridged=True)
        >>> holds
        <Holds 0 held, 1 bridged, 0 given up, 1 refused>
    """

    __slots__ = ("_options", "bridged", "given_up", "held", "refused")

    def __init__(self, options: HoldOptions) -> None:
        self._options = options
        self.held = self.bridged = self.given_up = self.refused = 0

    def begin(self, *, now: float, deadline_s: float | None) -> float | None:
        """Return until when the call is held; None where it is not. Each hold is ended by `end`."""
        options = self._options
        wait_s = options.hold_max_s
        if deadline_s is not None:
            wait_s = min(wait_s, (deadline_s - now) * options.share)
        if wait_s <= 0:
            return None
        if self.held >= options.held_max:
            self.refused += 1
            return None
        self.held += 1
        return now + wait_s

    def end(self, *, is_bridged: bool) -> None:
        """End a hold, with an instance or without."""
        self.held -= 1
        if is_bridged:
            self.bridged += 1
        else:
            self.given_up += 1

    def __repr__(self) -> str:
        return (
            f"<Holds {self.held} held, {self.bridged} bridged, {self.given_up} given up, "
            f"{self.refused} refused>"
        )
