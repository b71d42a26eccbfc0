"""Restart intensity: how often a background child is restarted before it is given up for a while.

A pure machine: a child that ends is started again after a growing pause. One that ended more than
`restarts_max` times in `window_s` is *given up*: it is shown as failed and tried again after a much
longer pause, which doubles each time, until it has run for `window_s`.

    running ──ended──▶ restarting ──pause──▶ running
       └──ended too often──▶ failed ──long pause, or asked──▶ on trial ──TRIAL_S──▶ running
                                ▲─────────────ended──────────────┘

Source: Armstrong, "Making reliable distributed systems in the presence of software errors", 2003,
section 5 (restart intensity); Kubernetes, container restart policy (CrashLoopBackOff: from 10 s,
doubled, up to 5 minutes).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from synchromesh.chance import Chance
from synchromesh.durations import ABOVE_0, FROM_0, refuse_wrong_numbers

# What was given up counts as running only once it has run for so long.
TRIAL_S = 5.0
# The longest exponent of a pause that is not capped long before.
_DOUBLINGS_MAX = 32


@dataclass(frozen=True, slots=True)
class RestartOptions:
    """Configures restarts: the restart intensity, and the pauses in seconds.

    Attributes:
        restarts_max: how often a child is restarted within `window_s`; one more gives it up.
        window_s: the window of the intensity.
        pause_base_s: the first pause before a restart; it doubles with each failure in the window.
        pause_cap_s: the longest of these.
        retry_base_s: the pause before a child that was given up is tried again; it doubles too.
        retry_cap_s: the longest of these.

    Raises:
        ConfigError: a value is outside its range.
    """

    restarts_max: int = 5
    window_s: float = 60.0
    pause_base_s: float = 0.1
    pause_cap_s: float = 5.0
    retry_base_s: float = 10.0
    retry_cap_s: float = 300.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_0, "restarts_max pause_base_s pause_cap_s retry_base_s retry_cap_s"),
            (ABOVE_0, "window_s"),
        )


@dataclass(frozen=True, slots=True)
class RestartDecision:
    """The decision after a failure: how long to pause, and whether the child is given up."""

    pause_s: float
    is_given_up: bool = False


class Restarts:
    """Counts the failures of one child, and decides what each of them comes to.

    Example:
        >>> import random
        >>> restarts = Restarts(RestartOptions(restarts_max=1, window_s=60.0), random.Random(1))
        >>> restarts.failed(now=0.0)
        RestartDecision(pause_s=0.1, is_given_up=False)
        >>> restarts.failed(now=1.0).is_given_up, restarts.failed(now=90.0).is_given_up
        (True, False)
    """

    def __init__(self, options: RestartOptions, rng: Chance) -> None:
        self._options = options
        self._rng = rng
        self._failures: deque[float] = deque(maxlen=options.restarts_max + 1)
        self._given_up = 0
        self._pause_s = 0.0

    def failed(self, *, now: float, is_hopeless: bool = False) -> RestartDecision:
        """Record a failure, and return the restart that follows it.

        `now` is when the child ended. One that is `hopeless` is given up at once: it has used up
        restarts of its own.
        """
        options = self._options
        ran_s = now - self._failures[-1] - self._pause_s if self._failures else 0.0
        if ran_s > options.window_s:
            self._given_up = 0
        self._failures.append(now)
        recent = [at for at in self._failures if at > now - options.window_s]
        if not (is_hopeless or self._given_up or len(recent) > options.restarts_max):
            self._pause_s = _doubled(options.pause_base_s, len(recent), options.pause_cap_s)
            return RestartDecision(self._pause_s)
        self._given_up += 1
        pause_s = _doubled(options.retry_base_s, self._given_up, options.retry_cap_s)
        # Parts that failed for one reason are not all tried again at one moment.
        self._pause_s = pause_s * (0.75 + 0.25 * self._rng.random())
        return RestartDecision(self._pause_s, is_given_up=True)

    def __repr__(self) -> str:
        given_up = f", given up {self._given_up} times" if self._given_up else ""
        return f"<Restarts {len(self._failures)}/{self._options.restarts_max}{given_up}>"


def _doubled(base_s: float, times: int, cap_s: float) -> float:
    return float(min(cap_s, base_s * 2 ** min(times - 1, _DOUBLINGS_MAX)))
