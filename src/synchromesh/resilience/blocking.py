"""A sync function behind a policy: breaker, limiter and retry, for any number of threads.

What the loop is to an async function a lock is here. A function that runs cannot be cut, so there
is no timeout; and its thread cannot wait for a place without holding one of whoever gave it the
thread, so the limiter has no queue.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from synchromesh.chance import Chance
from synchromesh.errors import ConfigError, Shed
from synchromesh.resilience.adaptive_limit import AdaptiveLimit, AdaptiveLimitOptions
from synchromesh.resilience.attempts import Attempt, Attempts, MayRepeat
from synchromesh.resilience.breaker import Breaker
from synchromesh.resilience.classification import Classification, classify
from synchromesh.resilience.deadlines import call_due_s
from synchromesh.resilience.latency import LatencyTracker
from synchromesh.resilience.limiter import LimitOptions
from synchromesh.resilience.policy_layers import PolicyLayers
from synchromesh.resilience.retry import RetryBudget
from synchromesh.runtime import RealThreads, Threads

T = TypeVar("T")
P = ParamSpec("P")


def guard(
    policy: PolicyLayers,
    fn: Callable[P, T],
    *,
    name: str,
    rng: Chance,
    may_repeat: MayRepeat,
    deadline_s: float | None = None,
    threads: Threads | None = None,
) -> Callable[P, T]:
    """Return a function that calls `fn` through the layers of a policy, in the caller's thread.

    Its retries wait in that thread: a function that is called on an event loop's thread blocks it,
    with a policy as it would without. A deadline is kept between attempts.

    Raises:
        ConfigError: the policy has a timeout, or a fixed limit with a queue.
    """
    if policy.timeout_s is not None:
        raise ConfigError(
            f"{name} is not an async function, and the policy has timeout_s = {policy.timeout_s:g}:"
            " a sync function that runs cannot be cut; give it a policy with timeout_s=None, and a "
            "timeout to what it calls (or make it async)"
        )
    if isinstance(policy.limit, LimitOptions) and policy.limit.queue_max:
        raise ConfigError(
            f"{name} is not an async function, and the policy's limit has "
            f"queue_max = {policy.limit.queue_max}: a thread that waits for a place holds one; "
            "make it 0"
        )
    edge = _Edge(policy, name, rng, threads or RealThreads(), may_repeat)

    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        attempts = edge.attempts(deadline_s)
        try:
            while True:
                attempt, permit = edge.begin(attempts)
                try:
                    answer = fn(*args, **kwargs)
                except BaseException as error:  # noqa: BLE001 - it is raised, or tried again
                    edge.failed(attempts, attempt, permit, error)
                else:
                    edge.answered(attempt, permit)
                    return _no_awaitable(answer, name)
        finally:
            attempts.forget()

    return guarded


class _Edge:
    """The layers of a guarded function, for all threads."""

    def __init__(
        self,
        policy: PolicyLayers,
        name: str,
        rng: Chance,
        threads: Threads,
        may_repeat: MayRepeat,
    ) -> None:
        self._policy = policy
        self._name = name
        self._rng = rng
        self._threads = threads
        self._may_repeat = may_repeat
        self._lock = threads.lock()
        self._in_flight = 0
        limit = policy.limit
        # Without its queue: a thread that waits for a place holds one.
        self._adaptive = AdaptiveLimit(limit) if isinstance(limit, AdaptiveLimitOptions) else None
        self._tracker = LatencyTracker()
        self._in_flight_max: float = math.inf
        if isinstance(limit, LimitOptions):
            self._in_flight_max = limit.in_flight_max
        elif limit is not None:
            self._in_flight_max = limit.initial
        now = threads.time()
        self._breaker = None
        if policy.breaker is not None:
            self._breaker = Breaker(policy.breaker, name=name, now=now, rng=rng)
        self._budget = None
        if policy.retry is not None and policy.budget is not None:
            self._budget = RetryBudget(policy.budget, now=now)

    def attempts(self, within_s: float | None = None) -> Attempts:
        """Return the machine of one call, which may take so long with all its attempts.

        Raises:
            DeadlineExceeded: the deadline around it has passed.
        """
        clock = self._threads.time
        return Attempts(
            retry=self._policy.retry,
            budget=self._budget,
            left=None,
            timeout_s=None,
            deadline_s=call_due_s(clock, clock(), within_s),
            is_retryable_unknown=self._may_repeat,
            rng=self._rng,
        )

    def begin(self, attempts: Attempts) -> tuple[Attempt, int]:
        """Begin an attempt; wait before the next one while there is no place, as for any failure.

        Raises:
            CircuitOpen: the breaker lets nothing through.
            Shed: every place is taken.
        """
        while True:
            with self._lock:
                now = self._threads.time()
                attempt = attempts.begin(now)
                attempt.began_s = now
                try:
                    return attempt, self._admit(now)
                except Exception as error:  # noqa: BLE001 - it is raised, or tried again
                    wait_s = self._wait_s(attempts, attempt, error, now)
            self._threads.sleep(wait_s)

    def answered(self, attempt: Attempt, permit: int) -> None:
        """Record that an attempt was answered."""
        with self._lock:
            now = self._threads.time()
            self._learn(now, now - attempt.began_s, is_shed=False)
            self._in_flight -= 1
            if self._breaker is not None:
                self._breaker.success(permit, now, now - attempt.began_s)

    def failed(
        self, attempts: Attempts, attempt: Attempt, permit: int, error: BaseException
    ) -> None:
        """Record a failed attempt; return when it is time for the next one, or raise its error."""
        try:
            with self._lock:
                now = self._threads.time()
                if isinstance(error, Shed):
                    self._learn(now, now - attempt.began_s, is_shed=True)
                self._in_flight -= 1
                self._report(error, attempt, permit, now)
                if not isinstance(error, Exception):
                    raise error
                wait_s = self._wait_s(attempts, attempt, error, now)
        finally:
            del error  # this frame is in its traceback: kept, it would be a cycle
        self._threads.sleep(wait_s)

    def _admit(self, now: float) -> int:
        permit = self._breaker.admit(now) if self._breaker is not None else 0
        if self._in_flight >= self._in_flight_max:
            if self._breaker is not None:
                self._breaker.neutral(permit, now)
            raise Shed(
                f"{self._name} already runs {self._in_flight} at once, and took no more; "
                "retry later"
            )
        self._in_flight += 1
        return permit

    def _learn(self, now: float, took_s: float, *, is_shed: bool) -> None:
        """Let a limit that adapts itself learn from a run whose place is not given back yet."""
        adaptive, tracker = self._adaptive, self._tracker
        if adaptive is not None and now >= tracker.next_sample_s:
            adaptive.sample(tracker, now, took_s, in_flight=self._in_flight, is_shed=is_shed)
            self._in_flight_max = adaptive.limit

    def _report(self, error: BaseException, attempt: Attempt, permit: int, now: float) -> None:
        if self._breaker is None:
            return
        took_s = now - attempt.began_s
        # Without a deadline nobody has hurried it.
        had_enough = attempt.deadline_s is None or self._tracker.has_had_enough(took_s)
        verdict = classify(error, had_enough_time=had_enough)
        if verdict is Classification.SUCCESS:
            self._breaker.success(permit, now, took_s)
        elif verdict is Classification.FAILURE:
            self._breaker.failure(permit, now, took_s)
        else:
            self._breaker.neutral(permit, now)

    def _wait_s(self, attempts: Attempts, attempt: Attempt, error: Exception, now: float) -> float:
        """Return how long to wait for the next attempt; raise the call's error if there is none."""
        final: Exception | None = None
        try:
            if self._breaker is None:
                wait_s = attempts.failed(attempt, error, now)
            else:
                refuses_until_s = self._breaker.refuses_until_s
                wait_s = attempts.failed(attempt, error, now, refuses_until_s=refuses_until_s)
            if wait_s is not None:
                return wait_s
            final = attempts.final(error)
            if final is error:
                raise error
            raise final from error
        finally:
            del error, final


def _no_awaitable(answer: T, name: str) -> T:
    if inspect.isawaitable(answer):
        if inspect.iscoroutine(answer):
            answer.close()
        raise ConfigError(
            f"{name} is not an async function and has returned an awaitable: nobody would guard "
            "what it does; put the policy around an `async def` that awaits it"
        )
    return answer
