"""resilience: what keeps a failing callee from taking its callers along.

Policy, circuit breaker, retry with budget, limiter, deadline: each alone, or joined by an `Edge` in
the one order of layers.
"""

from synchromesh.resilience.attempts import Attempt, Attempts
from synchromesh.resilience.breaker import (
    TRANSITIONS,
    Breaker,
    BreakerOptions,
    BreakerSnapshot,
    BreakerState,
    Transition,
    Trigger,
)
from synchromesh.resilience.classification import Classification, classify, may_retry
from synchromesh.resilience.deadline import DeadlinePassed, is_being_cancelled, within
from synchromesh.resilience.limiter import Limiter, LimitOptions
from synchromesh.resilience.policy import Edge, Policy
from synchromesh.resilience.retry import (
    AttemptsLeft,
    BudgetOptions,
    Chance,
    RetryBudget,
    RetryOptions,
)

__all__ = [
    "TRANSITIONS",
    "Attempt",
    "Attempts",
    "AttemptsLeft",
    "Breaker",
    "BreakerOptions",
    "BreakerSnapshot",
    "BreakerState",
    "BudgetOptions",
    "Chance",
    "Classification",
    "DeadlinePassed",
    "Edge",
    "LimitOptions",
    "Limiter",
    "Policy",
    "RetryBudget",
    "RetryOptions",
    "Transition",
    "Trigger",
    "classify",
    "is_being_cancelled",
    "may_retry",
    "within",
]
