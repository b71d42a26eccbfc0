"""Restart intensity: how often a background child is restarted before its failure escalates.

A pure machine: a child that ends is started again after a growing pause, unless it ended more than
`restarts_max` times in `window_s`; then the failure escalates.

Source: Armstrong, "Making reliable distributed systems in the presence of software errors", 2003,
section 5 (restart intensity); Erlang/OTP, supervisor behaviour.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from synchromesh.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RestartOptions:
    """Configures restarts: the restart intensity, and the backoff in seconds."""

    restarts_max: int = 5
    window_s: float = 60.0
    pause_base_s: float = 0.1
    pause_cap_s: float = 5.0

    def __post_init__(self) -> None:
        if self.restarts_max < 0 or self.window_s <= 0:
            raise ConfigError(
                f"restarts_max is {self.restarts_max} and window_s {self.window_s}; make them "
                "0 or more, and above 0"
            )


class Restarts:
    """Counts the failures of one child.

    Example:
        >>> restarts = Restarts(RestartOptions(restarts_max=1, window_s=60.0))
        >>> restarts.failed(now=0.0), restarts.failed(now=1.0), restarts.failed(now=90.0)
        (0.1, None, 0.1)
    """

    def __init__(self, options: RestartOptions) -> None:
        self._options = options
        self._failures: deque[float] = deque(maxlen=options.restarts_max + 1)

    def failed(self, *, now: float) -> float | None:
        """Record a failure; return the backoff before the restart, or None to escalate."""
        self._failures.append(now)
        recent = [at for at in self._failures if at > now - self._options.window_s]
        if len(recent) > self._options.restarts_max:
            return None
        pause_s = self._options.pause_base_s * 2 ** (len(recent) - 1)
        return min(self._options.pause_cap_s, float(pause_s))

    def __repr__(self) -> str:
        return f"<Restarts {len(self._failures)}/{self._options.restarts_max}>"
