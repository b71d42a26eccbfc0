"""The layers around a call, in one fixed order, and the shell that runs a call through them.

    deadline → retry + budget → limiter → breaker → attempt with its timeout

A `Policy` is a value. An `Edge` is one policy at work between one caller and one callee: it holds
the one breaker, the one retry budget and the one limiter of that pair, whatever the transport.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

from synchromesh.errors import ConfigError, TimedOut
from synchromesh.resilience.attempts import Attempt, Attempts
from synchromesh.resilience.breaker import Breaker, BreakerOptions, BreakerState, Transition
from synchromesh.resilience.classification import Classification, classify
from synchromesh.resilience.deadline import DeadlinePassed, within
from synchromesh.resilience.limiter import Limiter, LimitOptions
from synchromesh.resilience.retry import (
    AttemptsLeft,
    BudgetOptions,
    Chance,
    RetryBudget,
    RetryOptions,
)

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Policy:
    """Says how an edge is guarded; None leaves a layer out. The defaults are sensible.

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


class Edge:
    """Runs the calls of one caller to one callee through the layers of a policy.

    Args:
        policy: the layers.
        name: which edge it is, for messages: "orders -> billing".
        now: the time of the loop's clock.
        rng: spreads the ends of the breaker's open times; None leaves them exact.
        on_transition: told when the breaker changes state; must not raise.

    Example:
        >>> class Certain:
        ...     def random(self) -> float:
        ...         return 0.0
        >>> async def answer(attempt: Attempt) -> int:
        ...     return attempt.number
        >>> edge = Edge(Policy(), name="orders -> billing")
        >>> asyncio.run(edge.run(
        ...     answer, deadline_s=None, attempts_left=2, is_retryable_unknown=True, rng=Certain()))
        1
        >>> edge
        <Edge orders -> billing closed>
    """

    def __init__(
        self,
        policy: Policy,
        *,
        name: str,
        now: float = 0.0,
        rng: Chance | None = None,
        on_transition: Callable[[Transition], None] | None = None,
    ) -> None:
        self.policy = policy
        self.name = name
        self.breaker: Breaker | None = None
        if policy.breaker is not None:
            self.breaker = Breaker(
                policy.breaker, name=name, now=now, rng=rng, on_transition=on_transition
            )
        self.budget: RetryBudget | None = None
        if policy.retry is not None and policy.budget is not None:
            self.budget = RetryBudget(policy.budget, now=now)
        self.limiter: Limiter | None = None
        if policy.limit is not None:
            self.limiter = Limiter(policy.limit, name=name)

    async def run(
        self,
        attempt: Callable[[Attempt], Awaitable[T]],
        *,
        deadline_s: float | None,
        attempts_left: int | AttemptsLeft,
        is_retryable_unknown: bool,
        rng: Chance,
    ) -> T:
        """Make one call, in as many attempts as policy, budget, deadline and call tree allow.

        Every attempt runs in the caller's task and context. The last attempt's error is raised,
        unless it says only that the last attempt was not run while an earlier one may have been:
        then the earlier one's is, for the call's outcome is unknown.

        Args:
            attempt: makes one attempt; it is cancelled at the deadline it is given.
            deadline_s: the call's deadline on the loop's clock; None for none.
            attempts_left: the extra attempts left in the call tree; a handler hands the same
                `AttemptsLeft` to all its calls.
            is_retryable_unknown: whether an attempt with an unknown outcome may be repeated: a
                query, or a command with a key.
            rng: the source of jitter.

        Raises:
            DeadlineExceeded: the deadline had passed; nothing was sent.
            TimedOut: the attempt was cancelled at its deadline; the outcome is unknown.
            CircuitOpen: the breaker let nothing be sent.
            Shed: the edge's limiter is full.
            Exception: what the attempt raised. A `CallError` has `attempts_used` set: the extra
                attempts that were spent here and below.
        """
        attempts = Attempts(
            retry=self.policy.retry,
            budget=self.budget,
            left=AttemptsLeft(attempts_left) if isinstance(attempts_left, int) else attempts_left,
            timeout_s=self.policy.timeout_s,
            deadline_s=deadline_s,
            is_retryable_unknown=is_retryable_unknown,
            rng=rng,
        )
        loop = asyncio.get_running_loop()
        try:
            while True:
                current = attempts.begin(loop.time())
                try:
                    answer = await self._limited(attempt, current, attempts)
                except Exception as error:
                    wait_s = attempts.failed(current, error, loop.time())
                    if wait_s is None:
                        if attempts.final(error) is error:
                            raise
                        raise attempts.final(error) from error
                else:
                    attempts.answered(current)
                    return answer
                await asyncio.sleep(wait_s)
        finally:
            attempts.forget()

    def without_limiter(self, *, is_timed: bool) -> Edge:
        """Return an edge with the same breaker and budget, for who takes limiter slots by itself.

        A slot may then last longer than an attempt does.

        Args:
            is_timed: whether an attempt has the policy's timeout; else whoever attempts bounds it.
        """
        edge = copy(self)
        edge.limiter = None
        if not is_timed:
            edge.policy = replace(self.policy, timeout_s=None)
        return edge

    def is_refusing(self, now: float) -> bool:
        """Tell whether its breaker would refuse a call that came at `now`; nothing is changed."""
        breaker, options = self.breaker, self.policy.breaker
        if breaker is None or options is None:
            return False
        seen = breaker.snapshot()
        if seen.state is BreakerState.OPEN:
            return seen.open_until_s is not None and now < seen.open_until_s
        if seen.state is BreakerState.HALF_OPEN:
            # Past its lease a probe no longer counts, and the breaker has to be asked to see that.
            return seen.probes >= options.probes_max and now < seen.since_s + options.probe_lease_s
        return seen.state is BreakerState.ISOLATED

    def __repr__(self) -> str:
        state = f" {self.breaker.state.value}" if self.breaker is not None else ""
        return f"<Edge {self.name}{state}>"

    async def _limited(
        self, send: Callable[[Attempt], Awaitable[T]], current: Attempt, attempts: Attempts
    ) -> T:
        if self.limiter is None:
            return await self._guarded(send, current)
        await self.limiter.acquire(current.deadline_s)
        try:
            # The time in the queue is not taken from the callee's.
            attempts.put_time(current, asyncio.get_running_loop().time())
            return await self._guarded(send, current)
        finally:
            self.limiter.release()

    async def _guarded(self, send: Callable[[Attempt], Awaitable[T]], current: Attempt) -> T:
        breaker = self.breaker
        if breaker is None:
            return await self._timed(send, current)
        loop = asyncio.get_running_loop()
        current.began_s = loop.time()
        permit = breaker.admit(current.began_s)
        try:
            answer = await self._timed(send, current)
        except BaseException as error:
            verdict = classify(error, had_full_timeout=current.has_full_timeout)
            _report(breaker, verdict, permit, current.began_s, loop.time())
            raise
        _report(breaker, Classification.SUCCESS, permit, current.began_s, loop.time())
        return answer

    async def _timed(self, send: Callable[[Attempt], Awaitable[T]], current: Attempt) -> T:
        try:
            return await within(lambda: send(current), current.deadline_s)
        except DeadlinePassed:
            whose = "its timeout" if current.has_full_timeout else "the caller's deadline"
            raise TimedOut(
                f"{self.name} did not answer within {whose}, attempt {current.number}: it may have "
                "run; ask for the outcome under the same key, or give it more time"
            ) from None


def _report(
    breaker: Breaker, verdict: Classification, permit: int, began_s: float, now: float
) -> None:
    if verdict is Classification.SUCCESS:
        breaker.success(permit, now, now - began_s)
    elif verdict is Classification.FAILURE:
        breaker.failure(permit, now, now - began_s)
    else:
        breaker.neutral(permit, now)


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
