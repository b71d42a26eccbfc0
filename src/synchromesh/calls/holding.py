"""Calls held while no instance is ready: which are, for how long, and what came of it.

A service that restarts is nowhere for a moment. A call that comes just then waits for the new
instance instead of failing, within its deadline: the restart is *bridged*. It waits for a part of
its time only, so that the rest is enough to be answered in, and only so many wait at once. A
service that has been nowhere for longer than any restart takes is down: nobody waits for it then.

A pure machine; `Caller` waits.
"""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.durations import FROM_0, SHARE, refuse_wrong_numbers


@dataclass(frozen=True, slots=True)
class HoldOptions:
    """Configures how calls are held while no instance is ready.

    Attributes:
        hold_max_s: how long one call waits at most, in each of its attempts; 0 for not at all.
        share: the part of an attempt's time, 0 to 1, that may be spent waiting.
        held_max: how many calls of one caller may wait at once; the others fail at once.
        restart_max_s: how long a service may be nowhere for its calls to be held; after that they
            fail at once, until it is found again.

    Raises:
        ConfigError: a value is outside its range.
    """

    hold_max_s: float = 2.0
    share: float = 0.75
    held_max: int = 256
    restart_max_s: float = 10.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (FROM_0, "hold_max_s held_max restart_max_s"), (SHARE, "share"))


@dataclass(slots=True)
class _Absence:
    """Since when a service is nowhere, and when that was seen last."""

    since_s: float
    seen_s: float


class Holds:
    """Decides which calls of one caller are held, and counts them.

    Attributes:
        held: how many wait now.
        bridged: how many have found an instance.
        given_up: how many have found none in their time.
        refused: how many were not held because too many waited, or none would have come.

    Example:
        >>> holds = Holds(HoldOptions(hold_max_s=2.0, share=0.75, held_max=1))
        >>> holds.begin("billing", now=10.0, deadline_s=12.0)
        11.5
        >>> holds.begin("billing", now=10.0, deadline_s=12.0) is None
        True
        >>> holds.end("billing", is_bridged=True)
        >>> holds
        <Holds 0 held, 1 bridged, 0 given up, 1 refused>
    """

    __slots__ = ("_options", "absences", "bridged", "given_up", "held", "refused")

    def __init__(self, options: HoldOptions) -> None:
        self._options = options
        # By service, those of the contracts that this caller knows.
        self.absences: dict[str, _Absence] = {}
        self.held = self.bridged = self.given_up = self.refused = 0

    def found(self, service: str) -> None:
        """Take note that a service has an instance."""
        self.absences.pop(service, None)

    def begin(self, service: str, *, now: float, deadline_s: float | None) -> float | None:
        """Return until when the call is held; None where it is not. Each hold is ended by `end`."""
        options = self._options
        absence = self.absences.get(service)
        # One that nobody looked for that long may have come back and gone again meanwhile.
        if absence is None or now - absence.seen_s > options.restart_max_s:
            absence = self.absences[service] = _Absence(now, now)
        absence.seen_s = now
        wait_s = options.hold_max_s
        if deadline_s is not None:
            wait_s = min(wait_s, (deadline_s - now) * options.share)
        if wait_s <= 0:
            return None
        if now - absence.since_s >= options.restart_max_s or self.held >= options.held_max:
            self.refused += 1
            return None
        self.held += 1
        return now + wait_s

    def end(self, service: str, *, is_bridged: bool) -> None:
        """End a hold, with an instance or without."""
        self.held -= 1
        if is_bridged:
            self.bridged += 1
            self.found(service)
        else:
            self.given_up += 1

    def __repr__(self) -> str:
        return (
            f"<Holds {self.held} held, {self.bridged} bridged, {self.given_up} given up, "
            f"{self.refused} refused>"
        )
