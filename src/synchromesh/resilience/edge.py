"""An edge: the layers of a policy at work between one caller and one callee.

    deadline → retry + budget → limiter → hedge → breaker → attempt with its timeout

It holds the one breaker and the one retry budget of that pair, whatever the transport, and the one
limit that is fixed by hand. A limit that adapts itself is of each operation: what one of them takes
is no news of another.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import TypeVar

from synchromesh.chance import Chance
from synchromesh.clock import loop_now
from synchromesh.errors import Shed, TimedOut
from synchromesh.priority import Priority
from synchromesh.resilience.adaptive_limit import AdaptiveLimitOptions
from synchromesh.resilience.attempts import Attempt, Attempts, MayRepeat, is_full_timeout
from synchromesh.resilience.breaker import Breaker, BreakerState, Transition
from synchromesh.resilience.classification import Classification, classify
from synchromesh.resilience.deadlines import DeadlinePassed, within
from synchromesh.resilience.hedged_run import HedgedRun
from synchromesh.resilience.hedging import Hedging
from synchromesh.resilience.latency import LatencyTracker
from synchromesh.resilience.limiter import Limiter
from synchromesh.resilience.policy_layers import PolicyLayers
from synchromesh.resilience.retry import AttemptsLeft, RetryBudget

T = TypeVar("T")

CALLERS = "the deadline of who calls"
"""What cuts an attempt for which less than its timeout was left."""

# The share of the timeout in which a callee should have answered that never has yet.
UNKNOWN_SHARE = 0.25


class Edge:
    """Runs the calls of one caller to one callee through the layers of a policy.

    Args:
        policy: the layers.
        name: which edge it is, for messages: "orders -> billing".
        now: the time of the loop's clock.
        rng: spreads the ends of the breaker's open times; None leaves them exact.
        on_transition: told when the breaker changes state; must not raise.
        timeout_key: where its timeout is configured, for messages.

    Example:
        >>> class Certain:
        ...     def random(self) -> float:
        ...         return 0.0
        >>> async def answer(attempt: Attempt) -> int:
        ...     return attempt.number
        >>> from synchromesh import Policy
        >>> edge = Edge(Policy(), name="orders -> billing")
        >>> asyncio.run(edge.run(
        ...     answer, deadline_s=None, attempts_left=2, is_retryable_unknown=True, rng=Certain()))
        1
        >>> edge
        <Edge orders -> billing closed>
    """

    def __init__(
        self,
        policy: PolicyLayers,
        *,
        name: str,
        now: float = 0.0,
        rng: Chance | None = None,
        on_transition: Callable[[Transition], None] | None = None,
        timeout_key: str = "timeout_s",
    ) -> None:
        self.policy = policy
        self.name = name
        self.timeout_key = timeout_key
        # Of each attempt, also where it is kept by who makes them, as behind `untimed`.
        self._timeout_s = policy.timeout_s
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
        self._limiters: dict[str, Limiter] = {}
        self.tracker = LatencyTracker()
        # Of an operation: what is late for one is early for another.
        self.hedging: Hedging | None = None
        self.is_read = False
        self._takes_slots = True
        self._began_s = now

    async def run(
        self,
        attempt: Callable[[Attempt], Awaitable[T]],
        *,
        deadline_s: float | None,
        attempts_left: int | AttemptsLeft | None,
        is_retryable_unknown: MayRepeat,
        rng: Chance,
        failed: tuple[Attempt, Exception] | None = None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> T:
        """Make one call, in as many attempts as policy, budget, deadline and call tree allow.

        Every attempt runs in the caller's task and context; one that may be hedged in a task of its
        own, with a copy of the context. The last attempt's error is raised,
        unless it says only that the last attempt was not run while an earlier one may have been:
        then the earlier one's is, for the call's outcome is unknown.

        Args:
            attempt: makes one attempt; it is cancelled at the deadline it is given.
            deadline_s: the call's deadline on the loop's clock; None for none.
            attempts_left: the extra attempts left in the call tree; a handler hands the same
                `AttemptsLeft` to all its calls. None: the callee is a plain function, and takes
                none.
            is_retryable_unknown: whether an attempt with an unknown outcome may be repeated: a
                query, or a command with a key; or what tells it by the error.
            rng: the source of jitter.
            failed: a first attempt that was made elsewhere, and what it raised; the breaker has
                been told of it.
            priority: what the limiter refuses first; later attempts count as retries.

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
        try:
            if failed is not None:
                attempts.take_over(failed[0])
                await self._wait(attempts, *failed)
            while True:
                current = attempts.begin(loop_now())
                try:
                    answer = await self._limited(attempt, current, attempts, priority)
                except Exception as error:  # noqa: BLE001 - it is raised, or tried again
                    await self._wait(attempts, current, error)
                else:
                    attempts.answered(current)
                    return answer
        finally:
            # Errors have this frame in their tracebacks: kept in it, each would be a cycle.
            attempts.forget()
            failed = None

    def report(self, outcome: BaseException | None, attempt: Attempt, permit: int) -> None:
        """Learn what an attempt came to: instance, limiter and breaker; None is an answer.

        Args:
            outcome: what it raised.
            attempt: what was made.
            permit: what the breaker gave for it; 0 without one.
        """
        breaker = self.breaker
        if outcome is not None and not isinstance(outcome, Exception):
            # Cancelled; or thrown away, and then there is no loop any more that has a time.
            now, verdict = attempt.began_s, Classification.NEUTRAL
        else:
            now = loop_now()
            verdict = classify(outcome, had_enough_time=self._had_enough(attempt, now))
            own_s = max(0.0, now - attempt.began_s - attempt.away_s)
            self.learn(outcome, verdict, now, own_s)
        took_s = now - attempt.began_s
        if attempt.judge is not None:
            half_open_s = _half_open_since_s(breaker)
            if not attempt.judge(verdict, outcome, now, took_s, half_open_s):
                verdict = Classification.NEUTRAL
        if breaker is None or not permit:
            return
        if verdict is Classification.SUCCESS:
            breaker.success(permit, now, took_s)
        elif verdict is Classification.FAILURE:
            breaker.failure(permit, now, took_s)
        else:
            breaker.neutral(permit, now)

    def learn(
        self, outcome: BaseException | None, verdict: Classification, now: float, took_s: float
    ) -> None:
        """Let limiter and tracker learn from an attempt whose slot is not released yet.

        `took_s` is the callee's own time, without what it waited for others.
        """
        tracker, limiter = self.tracker, self.limiter
        if now < tracker.next_sample_s:
            return
        is_shed = isinstance(outcome, Shed) and outcome.is_callees
        is_late = isinstance(outcome, TimedOut) and (
            verdict is Classification.FAILURE or tracker.is_drop(took_s)
        )
        is_answer = verdict is Classification.SUCCESS and took_s < math.inf  # else it was not timed
        if limiter is not None and (is_shed or is_late or is_answer):
            limiter.sample(tracker, now, took_s, is_late=is_late, is_shed=is_shed)
        elif is_answer:
            tracker.sample(now, took_s)

    def first_attempt(self, due_s: float, given: int, began_s: float) -> Attempt:
        """Return a first attempt that was made elsewhere, as `report` and `run` want it."""
        attempt = Attempt(1, due_s, given, began_s=began_s)
        attempt.has_full_timeout = is_full_timeout(self.policy.timeout_s, due_s, began_s)
        return attempt

    def late(self, attempt: Attempt) -> TimedOut:
        """Return what an attempt is that was cancelled at its deadline."""
        limit = self.limit_of(attempt)
        whose = f"its timeout ({limit})" if attempt.has_full_timeout else "the caller's deadline"
        advice = (
            "it changes nothing: ask again, or give it more time"
            if self.is_read
            else "it may have run; ask for the outcome under the same key, or give it more time"
        )
        late = TimedOut(
            f"{self.name} did not answer within {whose}, attempt {attempt.number}: {advice}"
        )
        late.limit = limit
        return late

    def limit_of(self, attempt: Attempt) -> str:
        """Return what an attempt is cut by at its deadline, as it is configured."""
        if not attempt.has_full_timeout:
            return CALLERS
        return f"{self.timeout_key} = {self._timeout_s:g}s"

    def of_operation(
        self,
        policy: PolicyLayers,
        name: str,
        *,
        is_read: bool = False,
        is_ours: bool = False,
        timeout_key: str = "",
    ) -> Edge:
        """Return an edge for one operation: its own time, retries, hedges, and what is usual.

        `name`: the operation's. `is_read`: it changes nothing, which is said where it does not
        answer in time. `is_ours`: a refusal tells that the callee limits itself as we would.
        `timeout_key`: where its timeout is configured, if that is not the edge's.

        Breaker, a limit that is fixed and, where it has one, the budget are shared. One that adapts
        itself is its own: were it shared, an operation that is slow would take the places of all.
        """
        edge = copy(self)
        if isinstance(self.policy.limit, AdaptiveLimitOptions):
            edge.limiter = Limiter(
                self.policy.limit, name=f"{self.name} ({name})", trusts_refusals=is_ours
            )
            self._limiters[name] = edge.limiter
        edge.policy, edge.tracker, edge.is_read = policy, LatencyTracker(), is_read
        edge.timeout_key, edge._timeout_s = timeout_key or self.timeout_key, policy.timeout_s
        if edge.budget is None and policy.retry is not None and policy.budget is not None:
            edge.budget = RetryBudget(policy.budget, now=self._began_s)
        if policy.hedge is not None:
            edge.hedging = Hedging(policy.hedge, now=self._began_s)
        return edge

    @property
    def limiters(self) -> dict[str, Limiter]:
        """The limiters that are in use: of each operation by its name, or "" for all of them."""
        if isinstance(self.policy.limit, AdaptiveLimitOptions):
            return self._limiters
        return {} if self.limiter is None else {"": self.limiter}

    def untimed(self) -> Edge:
        """Return one that shares all, for attempts that hold no slot and are bounded elsewhere."""
        edge = copy(self)
        edge._takes_slots = False
        edge.policy = replace(self.policy, timeout_s=None)
        return edge

    def is_refusing(self, now: float) -> bool:
        """Tell whether its breaker would refuse a call that came at `now`; nothing is changed."""
        return self.breaker is not None and self.breaker.is_refusing(now)

    def __repr__(self) -> str:
        state = f" {self.breaker.state.value}" if self.breaker is not None else ""
        return f"<Edge {self.name}{state}>"

    def _had_enough(self, attempt: Attempt, now: float) -> bool:
        """Say whether a callee that has not answered should have: then it is to blame (B5)."""
        if attempt.has_full_timeout:
            return True
        waited_s, timeout_s = now - attempt.began_s, self.policy.timeout_s
        if self.tracker.is_learned:
            return self.tracker.has_had_enough(waited_s)
        return timeout_s is not None and waited_s >= timeout_s * UNKNOWN_SHARE

    async def _wait(self, attempts: Attempts, current: Attempt, error: Exception) -> None:
        """Wait for the next attempt, or raise the error of the call where there is none."""
        if isinstance(error, TimedOut):
            # Also where the callee's handler was cut, by the deadline that it was given; and what
            # cut the first attempt, for the last one has the rest of the caller's time. The timeout
            # of an edge within this one stays what has cut it.
            own = self.limit_of(current)
            is_within = error.limit not in ("", CALLERS, own)
            attempts.limit = attempts.limit or (error.limit if is_within else own)
            if not is_within:
                error.limit = attempts.limit
        refuses_until_s = self.breaker.refuses_until_s if self.breaker is not None else -math.inf
        now = loop_now()
        wait_s = attempts.failed(current, error, now, refuses_until_s=refuses_until_s)
        if wait_s is None:
            final = attempts.final(error)
            try:
                if final is error:
                    raise error
                raise final from error
            finally:
                del final, error
        await asyncio.sleep(wait_s)

    async def _limited(
        self,
        send: Callable[[Attempt], Awaitable[T]],
        current: Attempt,
        attempts: Attempts,
        priority: Priority,
    ) -> T:
        if self.limiter is None or not self._takes_slots:
            return await self._hedged(send, current, attempts, priority)
        if current.number > 1:
            priority = min(priority, Priority.RETRY)
        breaker = self.breaker
        if breaker is not None and self.is_refusing(loop_now()):
            # At once, and not after a wait for a place (B2).
            breaker.admit(loop_now())
        came_s = loop_now()
        await self.limiter.acquire(current.deadline_s, priority)
        try:
            # The time in the queue is not taken from the callee's.
            now = loop_now()
            attempts.waited(current, now - came_s, now)
            return await self._hedged(send, current, attempts, priority)
        finally:
            self.limiter.release()

    async def _hedged(
        self,
        send: Callable[[Attempt], Awaitable[T]],
        current: Attempt,
        attempts: Attempts,
        priority: Priority,
    ) -> T:
        if self.hedging is None or current.number > 1:
            return await self._guarded(send, current)
        run = HedgedRun(
            self.hedging.begin(loop_now()),
            attempts,
            partial(self._guarded, send),
            take=partial(self._take_another, min(priority, Priority.RETRY)),
            release=self._release_another,
        )
        return await run.run(current)

    def _take_another(self, priority: Priority) -> bool:
        """Take a slot for a hedge; not while the callee is short of any, or recovers."""
        if self.breaker is not None and not self.breaker.closed_permit:
            return False
        return self.limiter is None or self.limiter.take(priority)

    def _release_another(self) -> None:
        if self.limiter is not None:
            self.limiter.release()

    async def _guarded(self, send: Callable[[Attempt], Awaitable[T]], current: Attempt) -> T:
        current.began_s = loop_now()
        permit = 0 if self.breaker is None else self.breaker.admit(current.began_s)
        try:
            answer = await self._timed(send, current)
        except BaseException as error:
            self.report(error, current, permit)
            raise
        self.report(None, current, permit)
        return answer

    async def _timed(self, send: Callable[[Attempt], Awaitable[T]], current: Attempt) -> T:
        try:
            return await within(lambda: send(current), current.deadline_s)
        except DeadlinePassed:
            raise self.late(current) from None


def _half_open_since_s(breaker: Breaker | None) -> float | None:
    if breaker is None or breaker.state is not BreakerState.HALF_OPEN:
        return None
    return breaker.snapshot().since_s
