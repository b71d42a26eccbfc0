"""A resilience policy: how calls to a callee are guarded, and functions that make them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeVar, overload

from synchromesh.chance import Chance
from synchromesh.resilience.failures import Predicate
from synchromesh.resilience.guarded_block import Guard
from synchromesh.resilience.policy_layers import PolicyLayers
from synchromesh.resilience.wrapping import Wrapping
from synchromesh.runtime import RealRuntime

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Policy(PolicyLayers):
    """Configures the resilience of an edge; None leaves a layer out. The defaults are sensible.

    Attributes:
        timeout_s: how long one attempt may take, whatever the call's own deadline.
        retry: how often and how soon a failed call is tried again.
        budget: which share of the edge's calls may be retries.
        limit: how many calls may be under way at once, fixed or found out; further ones are
            `Shed` at the caller.
        breaker: when the edge stops sending.
        hedge: when a query is sent a second time, to another instance; of calls between services.

    Raises:
        ConfigError: a value is outside its range, or of the wrong type.

    Example:
        >>> from synchromesh.resilience import LimitOptions
        >>> print(Policy(timeout_s=0.3, limit=LimitOptions(in_flight_max=8)).explain())
        deadline  the call's own, or none; past it nothing is sent
        retry     up to 3 attempts, waits of up to 0.05 s that double to 2 s, full jitter
        budget    retries are at most 20% of calls and 1 a second more
        limiter   8 at once, 0 waiting, the rest is shed
        breaker   opens at 50% failures of 10 or more calls in 10 s, for 0.25 s to 0.7 s; ramp to 32
        timeout   0.3 s an attempt
    """

    @overload
    def wrap(
        self,
        fn: F,
        *,
        name: str | None = None,
        rng: Chance | None = None,
        is_idempotent: bool = False,
        retry_if: Predicate | None = None,
        is_failure: Predicate | None = None,
        deadline_s: float | None = None,
        key: Callable[..., Hashable] | None = None,
    ) -> F: ...

    @overload
    def wrap(
        self,
        fn: None = None,
        *,
        name: str | None = None,
        rng: Chance | None = None,
        is_idempotent: bool = False,
        retry_if: Predicate | None = None,
        is_failure: Predicate | None = None,
        deadline_s: float | None = None,
        key: Callable[..., Hashable] | None = None,
    ) -> Callable[[F], F]: ...

    def wrap(
        self,
        fn: F | None = None,
        *,
        name: str | None = None,
        rng: Chance | None = None,
        is_idempotent: bool = False,
        retry_if: Predicate | None = None,
        is_failure: Predicate | None = None,
        deadline_s: float | None = None,
        key: Callable[..., Hashable] | None = None,
    ) -> F | Callable[[F], F]:
        """Guard a function or method with this policy; as a decorator or by a call.

        It has a breaker, a retry budget and a limiter of its own, for all who call it; of an async
        function, for all who call it on one event loop. It ends by the `deadline` around a call.
        Its own errors are raised as they are; errors of `synchromesh.errors` say what they are.

        Args:
            fn: an async function or method. A sync one may be shared by threads; it takes a policy
                without a timeout, for nothing can cut it.
            name: what messages call it; its qualified name by default.
            rng: the source of jitter; the process' own by default.
            is_idempotent: whether it may be run again when the outcome of a run is unknown. Else
                only a run that certainly had no effect is retried.
            retry_if: in place of `is_idempotent`, tells it by what such a run raised or returned.
            is_failure: tells whether what was raised or returned is a failure of the callee; else
                it is an answer. Without it exceptions are failures, and results are not.
            deadline_s: how long a call may take with all its attempts and waits.
            key: tells by the arguments of a call what it calls: each key has a breaker, a budget
                and a limiter of its own, as the last 1,000 do that were called.

        Raises:
            ConfigError: the function is of a kind that this policy cannot guard; an option is not
                what it has to be.

        Example:
            >>> import asyncio
            >>> policy = Policy(timeout_s=0.5)
            >>> @policy.wrap(is_idempotent=True)
            ... async def price(sku: str) -> int:
            ...     return 42
            >>> asyncio.run(price("SX90"))
            42
        """
        wrapping = Wrapping(self, rng, name, is_idempotent, retry_if, is_failure, deadline_s, key)
        return wrapping.around if fn is None else wrapping.around(fn)

    def guard(
        self, name: str, *, rng: Chance | None = None, is_failure: Predicate | None = None
    ) -> Guard:
        """Guard blocks of code with this policy: make it once, and enter a block by calling it.

        Args:
            name: what messages call it.
            rng: the source of jitter; the process' own by default.
            is_failure: tells whether an exception of a block is a failure of what it calls.

        Raises:
            ConfigError: the policy has retry, and a block cannot be run again; an option is not
                what it has to be.

        Example:
            >>> import asyncio
            >>> provider = Policy(timeout_s=0.3, retry=None).guard("billing -> provider")
            >>> async def charge() -> str:
            ...     async with provider():
            ...         return "charged"
            >>> asyncio.run(charge())
            'charged'
        """
        chance = RealRuntime().rng if rng is None else rng
        return Guard(self, name=name, rng=chance, is_failure=is_failure)
