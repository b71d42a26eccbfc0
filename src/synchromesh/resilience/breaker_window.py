"""The sliding time window of a circuit breaker: outcomes counted in a ring of slices."""

from __future__ import annotations

import math


class OutcomeWindow:
    """Counts the outcomes of the last `window_s` in a ring of ten slices; adding is O(1).

    Attributes:
        ends_s: when the current slice ends, as far as a float can say.
    """

    __slots__ = ("_ring", "_slice_s", "_tick", "calls", "ends_s", "failures", "slow")
    _SLICES = 10

    def __init__(self, window_s: float) -> None:
        self._slice_s = window_s / self._SLICES
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._ring = [[0, 0, 0] for _ in range(self._SLICES)]
        self._tick: int | None = None
        self.ends_s = -math.inf
        self.calls = self.failures = self.slow = 0

    def add(self, now: float, *, is_failure: bool, is_slow: bool) -> None:
        """Count one outcome at `now`, after forgetting those that have left the window."""
        tick = int(now // self._slice_s)
        if self._tick is None:
            self._tick = tick
        for passed in range(self._tick + 1, min(tick, self._tick + self._SLICES) + 1):
            self._forget(self._ring[passed % self._SLICES])
        self._tick = max(tick, self._tick)
        self.ends_s = (self._tick + 1) * self._slice_s
        counts = self._ring[self._tick % self._SLICES]
        counts[0] += 1
        counts[1] += is_failure
        counts[2] += is_slow
        self.calls += 1
        self.failures += is_failure
        self.slow += is_slow

    def add_successes(self, count: int) -> None:
        """Count successes that came in the current slice; an outcome was added to it before."""
        assert self._tick is not None
        self._ring[self._tick % self._SLICES][0] += count
        self.calls += count

    def _forget(self, counts: list[int]) -> None:
        self.calls -= counts[0]
        self.failures -= counts[1]
        self.slow -= counts[2]
        counts[:] = (0, 0, 0)
