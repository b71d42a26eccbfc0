"""The pace of a recovery: how many runs that come back may be at work at once.

A process that comes back has thousands of runs to continue, and those whom they call have come back
with it, or have been at work all the time. All at once they would time out, use up their attempts
and be undone by nothing but their number. So the window begins small, grows with each run that had
no trouble, and is halved where somebody has too much to do. It does not grow where runs only take
longer for it: then something is busy already, and new work would wait behind them.

Source: Jacobson & Karels, "Congestion Avoidance and Control", SIGCOMM 1988; Brakmo et al., "TCP
Vegas", SIGCOMM 1994.
"""

from __future__ import annotations

import math

FIRST, LEAST = 32, 4
CALM_S = 0.5
# As many make a mean.
_RUNS = 32
_LONGER, _MUCH_LONGER = 2.0, 3.0
# What was the least time need not be for ever.
_AGES = 1.02


class RecoveryPace:
    """Says how many more runs may come back now.

    Args:
        most: the window never is larger.

    Example:
        >>> pace = RecoveryPace(512)
        >>> pace.room
        32
        >>> pace.enter()
        >>> pace.leave(took_s=0.1)  # one that went well makes room for itself and another
        >>> pace.room
        33
        >>> pace.slow(now_s=1.0)
        >>> pace
        <RecoveryPace 0 of 16>
    """

    __slots__ = (
        "_at_work", "_calm_at_s", "_count", "_has_met_trouble", "_least_s", "_most", "_sum_s",
        "_window",
    )  # fmt: skip

    def __init__(self, most: int) -> None:
        self._most = float(max(1, most))
        self._window = min(float(FIRST), self._most)
        self._at_work = 0
        self._has_met_trouble = False
        self._calm_at_s = 0.0
        self._least_s = math.inf
        self._sum_s, self._count = 0.0, 0

    @property
    def room(self) -> int:
        """How many more may come back."""
        return max(0, int(self._window) - self._at_work)

    def enter(self) -> None:
        """Note that one is back."""
        self._at_work += 1

    def leave(self, took_s: float) -> None:
        """Note that one has ended, or sleeps, without trouble, so long after it came back."""
        self._at_work -= 1
        self._sum_s, self._count = self._sum_s + took_s, self._count + 1
        if self._count == _RUNS:
            self._compare(self._sum_s / _RUNS)
            self._sum_s, self._count = 0.0, 0
        if took_s <= self._least_s * _LONGER:
            # Doubled each time that all have been through; once there was trouble, by little.
            step = LEAST / self._window if self._has_met_trouble else 1.0
            self._window = min(self._most, self._window + step)

    def _compare(self, mean_s: float) -> None:
        self._least_s = min(self._least_s * _AGES, mean_s)
        if mean_s > self._least_s * _MUCH_LONGER:
            self._window = max(min(float(FIRST), self._window), self._window * 7 / 8)

    def step_aside(self) -> None:
        """Note that one waits for somebody who is not there, and so is in nobody's way."""
        self._at_work -= 1

    def slow(self, now_s: float) -> None:
        """Halve the window, for somebody has too much to do; what is told at once counts once."""
        if now_s >= self._calm_at_s:
            self._window = max(min(float(LEAST), self._most), self._window / 2)
            self._has_met_trouble = True
            self._calm_at_s = now_s + CALM_S

    def __repr__(self) -> str:
        return f"<RecoveryPace {self._at_work} of {int(self._window)}>"
