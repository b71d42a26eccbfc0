"""The layers around a call, in one fixed order, as a value; an `Edge` is one at work.

deadline → retry + budget → limiter → breaker → attempt with its timeout
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from synchromesh.errors import ConfigError
from synchromesh.resilience.breaker import BreakerOptions
from synchromesh.resilience.limiter import LimitOptions
from synchromesh.resilience.retry import BudgetOptions, Chance, RetryOptions

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Policy:
    """Configures the resilience of an edge: timeout, retries, bulkhead, breaker; None is off.

    Attributes:
        timeout_s: how long one attempt may take, whatever the call's own deadline.
        retry: how often and how soon a failed call is tried again.
        budget: which share of the edge's calls may be retries.
        limit: how many calls may be under way at once; further ones are `Shed` at the caller.
        breaker: when the edge stops sending.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> print(Policy(timeout_s=0.3, limit=LimitOptions(in_flight_max=8)).explain())
        deadline  the call's own, or none; past it nothing is sent
        retry     up to 3 attempts, waits of up to 0.05 s that double to 2 s, full jitter
        budget    retries are at most 20% of calls and 1 a second more
        limiter   8 at once, 0 waiting, the rest is shed
        breaker   opens at 50% failures of 10 or more calls in 10 s, for 0.5 s to 2 s; probes: 1
        timeout   0.3 s an attempt
    """

    timeout_s: float | None = 2.0
    retry: RetryOptions | None = field(default_factory=RetryOptions)
    budget: BudgetOptions | None = field(default_factory=BudgetOptions)
    limit: LimitOptions | None = None
    breaker: BreakerOptions | None = field(default_factory=BreakerOptions)

    def __post_init__(self) -> None:
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ConfigError(
                f"policy timeout_s is {self.timeout_s}; make it more than 0, or None for no timeout"
            )

    def explain(self) -> str:
        """Return the layers that are on, outermost first, one a line."""
        layers = [("deadline", "the call's own, or none; past it nothing is sent")]
        if self.retry is not None:
            layers.append(("retry", _explain_retry(self.retry)))
            if self.budget is not None:
                layers.append(("budget", _explain_budget(self.budget)))
        if self.limit is not None:
            at_once, waiting = self.limit.in_flight_max, self.limit.queue_max
            layers.append(("limiter", f"{at_once} at once, {waiting} waiting, the rest is shed"))
        if self.breaker is not None:
            layers.append(("breaker", _explain_breaker(self.breaker)))
        if self.timeout_s is not None:
            layers.append(("timeout", f"{self.timeout_s:g} s an attempt"))
        return "\n".join(f"{layer:<9} {words}" for layer, words in layers)

    def wrap(
        self,
        fn: Callable[P, Awaitable[T]],
        *,
        rng: Chance,
        name: str | None = None,
        is_idempotent: bool = False,
    ) -> Callable[P, Awaitable[T]]:
        """Guard an async function: every call of the result goes through one edge of its own.

        Args:
            fn: what is guarded; its own exceptions are raised as they are, and are failures.
            rng: the source of jitter, such as `runtime.rng`.
            name: what messages call it; its qualified name by default.
            is_idempotent: whether it may be run again when the outcome of a run is unknown.
        """
        from synchromesh.resilience.edge import Edge

        edge = Edge(self, name=name or str(getattr(fn, "__qualname__", fn)))
        attempts_left = self.retry.attempts_max - 1 if self.retry is not None else 0

        @functools.wraps(fn)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
            return await edge.run(
                lambda _: fn(*args, **kwargs),
                deadline_s=None,
                attempts_left=attempts_left,
                is_retryable_unknown=is_idempotent,
                rng=rng,
            )

        return guarded


def _explain_retry(retry: RetryOptions) -> str:
    if retry.attempts_max == 1:
        return "no: 1 attempt"
    return (
        f"up to {retry.attempts_max} attempts, waits of up to {retry.base_s:g} s that double to "
        f"{retry.cap_s:g} s, full jitter"
    )


def _explain_budget(budget: BudgetOptions) -> str:
    return (
        f"retries are at most {budget.ratio:.0%} of calls and {budget.floor_per_s:g} a second more"
    )


def _explain_breaker(breaker: BreakerOptions) -> str:
    slow = ""
    if breaker.slow_after_s is not None:
        slow = f" or {breaker.slow_rate:.0%} slower than {breaker.slow_after_s:g} s"
    return (
        f"opens at {breaker.failure_rate:.0%} failures{slow} of {breaker.minimum_calls} or more "
        f"calls in {breaker.window_s:g} s, for {breaker.open_for_s:g} s to "
        f"{breaker.open_for_max_s:g} s; probes: {breaker.probes_max}"
    )
