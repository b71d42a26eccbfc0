"""Liveness: which processes are silent, and which of them are to be replaced. A pure machine.

At each round the supervisor asks every process for a sign of life, which only its event loop gives.

    WELL ──SUSPECT_ROUNDS without an answer──▶ SUSPECT ──hang_s without an answer──▶ HUNG
      ▲────────────────── answer ───────────────┘

Silence is counted in rounds, not in seconds: a supervisor that was stopped, starved or asleep
counts none of that time against a process. A round that comes much too late begins the count anew,
for what stopped the supervisor may have stopped the processes too; so does a debugger, as long as
it traces a suspect. Suspicion itself ends by an answer only.

Source: Chandra & Toueg, "Unreliable Failure Detectors for Reliable Distributed Systems", JACM 1996:
to suspect may be wrong and is cheap; to replace waits for much longer. Guarantee R6.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

P = TypeVar("P")

EVERY_S = 0.5
# The first comes within EVERY_S of the hang: it is suspected within 1.5 s.
SUSPECT_ROUNDS = 2
LATE_S = 1.0


@dataclass(frozen=True, slots=True)
class Round(Generic[P]):
    """The result of a round.

    Attributes:
        ask: the processes to be asked now; one that owes an answer is not asked again.
        suspected: those that have become suspects.
        cleared: those that no longer are, because they answered.
        hung: those to be replaced; named again after another `hang_s`, should they still be there.
    """

    ask: tuple[P, ...] = ()
    suspected: tuple[P, ...] = ()
    cleared: tuple[P, ...] = ()
    hung: tuple[P, ...] = ()


@dataclass(slots=True)
class _Asked:
    """A process that was asked at `asked_s`, and how many rounds have counted against it."""

    asked_s: float
    missed: int = 0
    is_suspect: bool = False


class Liveness(Generic[P]):
    """Counts the rounds that processes, represented by any value, leave unanswered.

    Args:
        hang_s: for how long a process may be silent until it is replaced.

    Example:
        >>> liveness = Liveness[str](hang_s=1.5)
        >>> liveness.judge(["a"], now=0.0, wall_s=0.0).ask
        ('a',)
        >>> [liveness.judge(["a"], now=n / 2, wall_s=n / 2).suspected for n in (1, 2)]
        [(), ('a',)]
        >>> liveness.judge(["a"], now=1.5, wall_s=1.5).hung
        ('a',)
        >>> liveness.judge(["a"], answered=["a"], now=2.0, wall_s=2.0).cleared
        ('a',)
    """

    def __init__(self, hang_s: float) -> None:
        self._hang_rounds = max(SUSPECT_ROUNDS, math.ceil(hang_s / EVERY_S))
        self._asked: dict[P, _Asked] = {}
        self._last: tuple[float, float] | None = None

    @property
    def suspects(self) -> tuple[P, ...]:
        """The processes that are suspected of being hung."""
        return tuple(process for process, asked in self._asked.items() if asked.is_suspect)

    def silent_s(self, process: P, now: float) -> float:
        """Return how long a suspect has owed an answer; 0 for any other process."""
        asked = self._asked.get(process)
        return now - asked.asked_s if asked is not None and asked.is_suspect else 0.0

    def judge(
        self,
        running: Iterable[P],
        *,
        answered: Collection[P] = (),
        traced: Collection[P] = (),
        now: float,
        wall_s: float,
    ) -> Round[P]:
        """Judge a round, which is due `EVERY_S` after the last one.

        Args:
            running: the processes that serve; any other one is forgotten.
            answered: those that answered since they were asked.
            traced: those of the silent ones that a debugger holds.
            now: the loop's clock.
            wall_s: the wall clock, which goes on while a machine sleeps.
        """
        is_late = self._note_time(now, wall_s)
        known, self._asked = self._asked, {}
        ask, suspected, cleared, hung = [], [], [], []
        for process in running:
            asked = known.get(process)
            if asked is None or process in answered:
                ask.append(process)
                if asked is not None and asked.is_suspect:
                    cleared.append(process)
                self._asked[process] = _Asked(now)
                continue
            self._asked[process] = asked
            asked.missed = 0 if is_late else asked.missed + 1
            if not asked.is_suspect and asked.missed >= SUSPECT_ROUNDS:
                asked.is_suspect = True
                suspected.append(process)
            if asked.is_suspect and process in traced:
                asked.missed = 0
            if asked.missed >= self._hang_rounds:
                asked.missed = 0
                hung.append(process)
        return Round(tuple(ask), tuple(suspected), tuple(cleared), tuple(hung))

    def __repr__(self) -> str:
        return f"<Liveness of {len(self._asked)}, {len(self.suspects)} suspect>"

    def _note_time(self, now: float, wall_s: float) -> bool:
        """Record the time of a round; return whether it is so late that it counts for nothing."""
        last, self._last = self._last, (now, wall_s)
        if last is None:
            return False
        return max(now - last[0], wall_s - last[1]) > EVERY_S + LATE_S
