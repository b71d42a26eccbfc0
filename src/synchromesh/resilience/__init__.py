"""resilience: circuit breaker, retry, bulkhead and timeout, composed by a policy.

Policy, circuit breaker, retry with budget, limiter, deadline: each alone, or joined by an `Edge` in
the one order of layers.
"""

from synchromesh.resilience.adaptive_limit import AdaptiveLimit, AdaptiveLimitOptions
from synchromesh.resilience.attempts import Attempt, Attempts, Judge
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
from synchromesh.resilience.deadlines import (
    AmbientDeadline,
    DeadlinePassed,
    deadline,
    is_being_cancelled,
    within,
)
from synchromesh.resilience.edge import Edge
from synchromesh.resilience.hedging import HedgedCall, HedgeOptions, Hedging
from synchromesh.resilience.latency import LatencyTracker
from synchromesh.resilience.limiter import Limiter, LimitOptions
from synchromesh.resilience.policy import Policy
from synchromesh.resilience.retry import (
    AttemptsLeft,
    BudgetOptions,
    RetryBudget,
    RetryOptions,
)
from synchromesh.resilience.waiting_line import Waiting, WaitingLine

__all__ = [
    "TRANSITIONS",
    "AdaptiveLimit",
    "AdaptiveLimitOptions",
    "AmbientDeadline",
    "Attempt",
    "Attempts",
    "AttemptsLeft",
    "Breaker",
    "BreakerOptions",
    "BreakerSnapshot",
    "BreakerState",
    "BudgetOptions",
    "Classification",
    "DeadlinePassed",
    "Edge",
    "HedgeOptions",
    "HedgedCall",
    "Hedging",
    "Judge",
    "LatencyTracker",
    "LimitOptions",
    "Limiter",
    "Policy",
    "RetryBudget",
    "RetryOptions",
    "Transition",
    "Trigger",
    "Waiting",
    "WaitingLine",
    "classify",
    "deadline",
    "is_being_cancelled",
    "may_retry",
    "within",
]
