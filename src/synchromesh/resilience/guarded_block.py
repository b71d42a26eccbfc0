"""Blocks of code behind a policy: what cannot be put into a function of its own."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType

from synchromesh.chance import Chance
from synchromesh.errors import ConfigError
from synchromesh.resilience.attempts import Attempt, is_full_timeout
from synchromesh.resilience.deadlines import call_due_s
from synchromesh.resilience.failures import Predicate, counts, refuse_unasked
from synchromesh.resilience.on_loop import Cut, OnLoop, OnLoops, no_task
from synchromesh.resilience.policy_layers import PolicyLayers, refuse_hedge, refuse_wrong_words


class Guard:
    """Guards blocks of code, all by one breaker and one limiter; make it once and keep it.

    Each call returns a block to be entered by `async with`. Entering raises `CircuitOpen` or `Shed`
    where nothing may be run; leaving raises `TimedOut` where the block was cancelled at its
    timeout, and else what the block raised. A block cannot be run again: it has no retry.

    Example:
        >>> from synchromesh import Policy
        >>> provider = Policy(timeout_s=0.3, retry=None).guard("billing -> provider")
        >>> async def main() -> str:
        ...     async with provider():
        ...         return repr(provider)
        >>> asyncio.run(main())
        '<Guard billing -> provider closed>'
    """

    def __init__(
        self,
        policy: PolicyLayers,
        *,
        name: str,
        rng: Chance,
        is_failure: Predicate | None = None,
    ) -> None:
        refuse_unasked("is_failure", is_failure)
        refuse_wrong_words(name, rng)
        if policy.retry is not None and policy.retry.attempts_max > 1:
            raise ConfigError(
                f"the block {name!r} is given a policy with retry, and a block cannot be run again;"
                " make it retry=None, or guard a function with Policy.wrap"
            )
        refuse_hedge(policy, f"the block {name!r}")
        self._name = name
        self._timeout_s = policy.timeout_s
        self._is_failure = is_failure
        self._loops = OnLoops(policy, name=name, rng=rng)

    def __call__(self) -> GuardedBlock:
        """Return one block, to be entered once."""
        return GuardedBlock(self._loops, self._timeout_s, self._is_failure)

    def __repr__(self) -> str:
        return f"<Guard {self._loops!r}>"


class GuardedBlock:
    """Runs one block of a `Guard`; an async context manager."""

    __slots__ = ("_attempt", "_cut", "_here", "_is_failure", "_loops", "_permit", "_timeout_s")

    def __init__(
        self, loops: OnLoops, timeout_s: float | None, is_failure: Predicate | None
    ) -> None:
        self._loops = loops
        self._timeout_s = timeout_s
        self._is_failure = is_failure
        self._here: OnLoop | None = None
        self._attempt = Attempt(1)
        self._permit = 0
        self._cut: Cut | None = None

    async def __aenter__(self) -> None:
        if self._here is not None:
            raise RuntimeError("a guarded block is entered once; call the guard for each")
        here = self._loops.here()
        task = asyncio.current_task()
        if task is None:
            raise no_task()
        due_s = call_due_s(here.clock, here.clock(), None)
        self._here, attempt = here, self._attempt
        self._permit = await self._admit(here, due_s)
        if self._timeout_s is not None or due_s is not None:
            cut_s = attempt.began_s + (self._timeout_s or math.inf)
            if due_s is not None:
                cut_s = min(cut_s, due_s)
            attempt.deadline_s = cut_s
            attempt.has_full_timeout = is_full_timeout(self._timeout_s, cut_s, attempt.began_s)
            self._cut = Cut(cut_s, task)
            try:
                here.timers.add(self._cut, here.loop)
            except BaseException:
                # Nobody leaves a block that was not entered.
                if here.limiter is not None:
                    here.limiter.release()
                if here.breaker is not None:
                    here.breaker.neutral(self._permit, attempt.began_s)
                raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        here = self._here
        assert here is not None
        if self._cut is not None:
            here.timers.drop(self._cut)
        ended = outcome = here.ended(error, self._attempt, self._cut)
        try:
            if ended is not None and self._is_failure and not counts(ended, self._is_failure):
                outcome = None
        finally:
            here.edge.report(outcome, self._attempt, self._permit)
            if here.limiter is not None:
                here.limiter.release()
            del outcome
        try:
            if ended is not None and ended is not error:
                raise ended from None
        finally:
            del ended, error  # this frame is in their tracebacks: kept, they are cycles

    async def _admit(self, here: OnLoop, due_s: float | None) -> int:
        """Pass the breaker and the limiter, and note when; an open breaker rejects at once."""
        breaker, limiter = here.breaker, here.limiter
        now = self._attempt.began_s = here.clock()
        permit = breaker.admit(now) if breaker is not None else 0
        if limiter is None or limiter.take():
            return permit
        if breaker is not None:
            breaker.neutral(permit, now)
        until_s = now + (self._timeout_s or math.inf)
        if due_s is not None:
            until_s = min(until_s, due_s)
        await limiter.acquire(None if until_s == math.inf else until_s)
        # The time in the queue is not taken from the block's.
        now = self._attempt.began_s = here.clock()
        try:
            return breaker.admit(now) if breaker is not None else 0
        except BaseException:
            limiter.release()
            raise
