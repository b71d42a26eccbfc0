"""How patient the runs of a saga are."""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_misfit, refuse_wrong_numbers
from synchromesh.priority import priority_of
from synchromesh.resilience.retry import RetryOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaPolicy:
    """Configures a saga's steps: timeout, attempts and backoff, and the deadlines of its phases.

    Attributes:
        step_timeout_s: how long one attempt of a call waits, unless the step says otherwise.
        attempts_max: attempts of a step before the pivot whose outcome stays unknown. Attempts
            that were certainly not run, as while a breaker is open, do not count.
        backoff_base_s, backoff_cap_s: the wait between attempts doubles from one to the other.
        undo_deadline_s: how long undoing may take before the run is stuck.
        after_pivot_deadline_s: how long the steps after the pivot may take before it is stuck.
        priority: of the calls of its steps: "saga", for they are tried again by themselves;
            "interactive" where a person waits for the run's end; "batch" where nobody does.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> SagaPolicy(attempts_max=2).undo_deadline_s
        3600.0
    """

    step_timeout_s: float = 2.0
    attempts_max: int = 4
    backoff_base_s: float = 0.05
    backoff_cap_s: float = 5.0
    undo_deadline_s: float = 3600.0
    after_pivot_deadline_s: float = 3600.0
    priority: str = "saga"

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self,
            (ABOVE_0, "step_timeout_s undo_deadline_s after_pivot_deadline_s"),
            (FROM_1, "attempts_max"),
            (FROM_0, "backoff_base_s backoff_cap_s"),
        )
        is_fit = self.backoff_cap_s >= self.backoff_base_s
        refuse_misfit(self, "backoff_cap_s", is_fit, "at least backoff_base_s")
        priority_of(self.priority)

    @property
    def backoff(self) -> RetryOptions:
        """The waits between attempts."""
        return RetryOptions(self.attempts_max, self.backoff_base_s, self.backoff_cap_s)
