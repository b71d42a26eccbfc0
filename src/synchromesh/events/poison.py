"""When an event is poison: it fails alone, several times over, so that trying again is no use.

A pure machine. After a batch has failed its events are tried one by one, so that those before the
failing one are done. The failing one is tried again after a growing pause, and is poison after
`attempts_max`; a fault of the store is nobody's event, and is waited for.

Source: Hohpe & Woolf, *Enterprise Integration Patterns*, 2003, "Invalid Message Channel".
"""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_wrong_numbers


@dataclass(frozen=True, slots=True)
class ProjectionOptions:
    """Settings of a projection: batch size, polling, retries of a failing event.

    Between attempts it waits `backoff_s`, doubled each time up to `backoff_max_s`.

    Example:
        >>> ProjectionOptions(batch_max=64).attempts_max
        5
    """

    batch_max: int = 256
    poll_s: float = 1.0
    attempts_max: int = 5
    backoff_s: float = 0.1
    backoff_max_s: float = 5.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (FROM_1, "batch_max attempts_max"),
            (ABOVE_0, "poll_s"),
            (FROM_0, "backoff_s backoff_max_s"),
        )


class EventAttempts:
    """Counts the attempts of one reader of the log.

    Example:
        >>> attempts = EventAttempts(ProjectionOptions(attempts_max=2, backoff_s=1.0))
        >>> attempts.failed(3, now=0.0), attempts.limit
        (False, 1)
        >>> attempts.failed(1, now=0.0), attempts.due_s
        (False, 1.0)
        >>> attempts.failed(1, now=1.0)  # the second time that it fails alone
        True
    """

    def __init__(self, options: ProjectionOptions) -> None:
        self._options = options
        self._failures = 0
        self._careful = 0
        self._faults = 0
        self.due_s = 0.0

    @property
    def limit(self) -> int:
        """How many events the next batch may have."""
        return 1 if self._careful else self._options.batch_max

    @property
    def failures(self) -> int:
        """How often the event that is next has failed alone."""
        return self._failures

    def failed(self, count: int, *, now: float) -> bool:
        """Record a batch of so many events that failed; return whether its one event is poison."""
        if count > 1:
            self._careful = count
            return False
        self._careful = max(1, self._careful)
        self._failures += 1
        if self._failures >= self._options.attempts_max:
            return True
        self._wait(self._failures, now)
        return False

    def faulted(self, *, now: float) -> None:
        """Record a fault of the store, which may pass."""
        self._faults += 1
        self._wait(min(self._faults, 32), now)

    def succeeded(self) -> None:
        """Record a batch that is applied."""
        self._failures = self._faults = 0
        self._careful = max(0, self._careful - 1)
        self.due_s = 0.0

    def _wait(self, times: int, now: float) -> None:
        doubled_s = self._options.backoff_s * 2.0 ** (times - 1)
        self.due_s = now + min(doubled_s, self._options.backoff_max_s)

    def __repr__(self) -> str:
        return (
            f"<EventAttempts {self._failures}/{self._options.attempts_max} careful {self._careful}>"
        )
