"""The layers around a call, in one fixed order, as a value.

deadline → retry + budget → limiter → hedge → breaker → attempt with its timeout
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import UnionType

from synchromesh.durations import is_number
from synchromesh.errors import ConfigError
from synchromesh.resilience.adaptive_limit import AdaptiveLimitOptions
from synchromesh.resilience.breaker import BreakerOptions
from synchromesh.resilience.hedging import HedgeOptions
from synchromesh.resilience.limiter import LimitOptions
from synchromesh.resilience.retry import BudgetOptions, RetryOptions

# What a layer is described by, and how that is written.
_LAYERS: dict[str, tuple[type | UnionType, str]] = {
    "retry": (RetryOptions, "RetryOptions(attempts_max=3)"),
    "budget": (BudgetOptions, "BudgetOptions(ratio=0.2)"),
    "limit": (LimitOptions | AdaptiveLimitOptions, "LimitOptions(in_flight_max=8)"),
    "breaker": (BreakerOptions, "BreakerOptions()"),
    "hedge": (HedgeOptions, 'HedgeOptions(after="p95")'),
}


@dataclass(frozen=True, slots=True)
class PolicyLayers:
    """Holds what a `Policy` configures, for those who put it to work; see there."""

    timeout_s: float | None = 2.0
    retry: RetryOptions | None = field(default_factory=RetryOptions)
    budget: BudgetOptions | None = field(default_factory=BudgetOptions)
    limit: LimitOptions | AdaptiveLimitOptions | None = field(default_factory=AdaptiveLimitOptions)
    breaker: BreakerOptions | None = field(default_factory=BreakerOptions)
    hedge: HedgeOptions | None = None

    def __post_init__(self) -> None:
        refuse_wrong_layers({each.name: getattr(self, each.name) for each in fields(self)})

    def explain(self) -> str:
        """Describe the layers that are on, outermost first, one a line."""
        layers = [("deadline", "the call's own, or none; past it nothing is sent")]
        if self.retry is not None:
            layers.append(("retry", _explain_retry(self.retry)))
            if self.budget is not None:
                layers.append(("budget", _explain_budget(self.budget)))
        if self.limit is not None:
            layers.append(("limiter", _explain_limit(self.limit)))
        if self.hedge is not None:
            layers.append(("hedge", _explain_hedge(self.hedge)))
        if self.breaker is not None:
            layers.append(("breaker", _explain_breaker(self.breaker)))
        if self.timeout_s is not None:
            layers.append(("timeout", f"{self.timeout_s:g} s an attempt"))
        return "\n".join(f"{layer:<9} {words}" for layer, words in layers)


def refuse_wrong_layers(layers: Mapping[str, object]) -> None:
    """Refuse what describes no layer, by the names of a policy's options.

    Raises:
        ConfigError: an option is of the wrong type, or the timeout is not above 0.
    """
    for name, value in layers.items():
        if value is None:
            continue
        if name == "timeout_s":
            if not is_number(value) or not value > 0:  # type: ignore[operator]
                raise ConfigError(
                    f"policy timeout_s is {value!r}; make it a number of seconds above 0, or None "
                    "for no timeout"
                )
            continue
        kind, right = _LAYERS[name]
        if not isinstance(value, kind):
            raise ConfigError(
                f"policy {name} is {value!r}; write {name}={right}, or {name}=None to leave the "
                "layer out"
            )


def refuse_wrong_words(name: object, rng: object) -> None:
    """Refuse a name that is no text, and a source of chance that gives no numbers.

    Raises:
        ConfigError: one of them is of the wrong type; None is neither.
    """
    if not isinstance(name, str | None):
        raise ConfigError(f"name is {name!r}; make it a text, which messages call the callee by")
    # A class has the method, and nothing to call it on.
    if rng is not None and (isinstance(rng, type) or not callable(getattr(rng, "random", None))):
        raise ConfigError(
            f"rng is {rng!r}; make it random.Random(seed), or leave it out for the process' own"
        )


def refuse_hedge(policy: PolicyLayers, name: str) -> None:
    """Refuse to hedge what is no call between services: there is no other instance to ask.

    Raises:
        ConfigError: the policy has hedge.
    """
    if policy.hedge is not None:
        raise ConfigError(
            f"{name} is guarded by a policy with hedge, which sends a query of a contract to "
            "another instance; make it hedge=None"
        )


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


def _explain_limit(limit: LimitOptions | AdaptiveLimitOptions) -> str:
    at_once = (
        f"{limit.in_flight_max}"
        if isinstance(limit, LimitOptions)
        else (f"{limit.limit_min} to {limit.limit_max}, as many as it can bear,")
    )
    return f"{at_once} at once, {limit.queue_max} waiting, the rest is shed"


def _explain_hedge(hedge: HedgeOptions) -> str:
    after = hedge.after if isinstance(hedge.after, str) else f"{hedge.after:g} s"
    return f"a query is sent a second time after {after}, at most {hedge.ratio:.0%} of them"


def _explain_breaker(breaker: BreakerOptions) -> str:
    slow = ""
    if breaker.slow_after_s is not None:
        slow = f" or {breaker.slow_rate:.0%} slower than {breaker.slow_after_s:g} s"
    return (
        f"opens at {breaker.failure_rate:.0%} failures{slow} of {breaker.minimum_calls} or more "
        f"calls in {breaker.window_s:g} s, for {breaker.open_for_s:g} s to "
        f"{breaker.open_for_max_s:g} s; ramp to {breaker.probes_max}"
    )
