"""The retry loop of one call as a machine: which attempts are made, and which error ends them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from synchromesh.chance import Chance
from synchromesh.errors import (
    CallError,
    ConnectionLost,
    DeadlineExceeded,
    SynchromeshError,
    TimedOut,
)
from synchromesh.resilience.classification import (
    Classification,
    is_certainly_not_run,
    may_have_run,
    may_retry,
)
from synchromesh.resilience.hedging import HedgedCall
from synchromesh.resilience.retry import AttemptsLeft, RetryBudget, RetryOptions

_ONCE = RetryOptions(attempts_max=1)

# Whether an attempt with an unknown outcome may be repeated, whatever it raised or by what it did.
MayRepeat = bool | Callable[[Exception], bool]

# When an attempt began for which nobody looked at the clock: it has taken as long as you like.
UNTIMED = -math.inf

# No retry begins in the last moment of a call. A timer may come so early that has cut the attempt
# before it at the call's deadline: uvloop's are of whole milliseconds.
LEAST_S = 0.001

# The share of the edge's timeout that counts as all of it.
NEARLY_FULL = 0.95


class Judge(Protocol):
    """Learns what an attempt came to, for the instance that it was made at."""

    def __call__(
        self,
        verdict: Classification,
        outcome: BaseException | None,
        now: float,
        took_s: float,
        half_open_s: float | None,
    ) -> bool:
        """Return whether it says something about the service, and not of this instance alone.

        Args:
            verdict: what the outcome is; `outcome` is None for an answer.
            outcome: what was raised.
            now: the time of the loop's clock.
            took_s: how long the attempt took.
            half_open_s: since when the edge's breaker is half-open; None where it is not.
        """
        ...


@dataclass(slots=True)
class Attempt:
    """Carries the deadline and the retry allowance of one attempt, and takes its report.

    Attributes:
        number: 1 for the first attempt of this edge.
        deadline_s: when it is cancelled, on the loop's clock; None for never.
        attempts_left: the extra attempts that the callee's side may spend; to be sent along.
        has_full_timeout: whether `deadline_s` is the edge's timeout, or nearly all of it, and not
            the caller's remainder.
        used: to be set to the extra attempts that the callee reports with an answer, a `Rejection`
            too; those of another `CallError` are in its `attempts_used`. None: all are spent.
        began_s: when the callee's own time began, or `UNTIMED`; to be set where that of others came
            first.
        away_s: how long the callee says that it waited for others, of the time that it took.
        judge: of the instance that it is made at, where there are several.
        is_hedge: whether it is the second one of two at once.
        is_settled: whether what it used has been taken off the call tree's.
        place_s: how long the call has waited for a place of the limiter, in all its attempts.
        backoff_s: how long it has waited between them.
        failed: the codes of what those before it came to.
    """

    number: int
    deadline_s: float | None = None
    attempts_left: int = 0
    has_full_timeout: bool = False
    used: int | None = None
    began_s: float = 0.0
    away_s: float = 0.0
    judge: Judge | None = None
    is_hedge: bool = False
    is_settled: bool = False
    place_s: float = 0.0
    backoff_s: float = 0.0
    failed: tuple[str, ...] = ()


class Attempts:
    """Decides whether and when a call is retried; a pure machine, `Edge` is its shell.

    Args:
        retry: the bounds of one call; None for a single attempt.
        budget: the bound of the edge; None for none.
        left: the bound of the call tree; None for a callee that is a plain function: it cannot
            spend any of the tree's, so that it is given none and takes none.
        timeout_s: the edge's timeout for each attempt; None for none.
        deadline_s: the call's deadline; None for none.
        is_retryable_unknown: whether an attempt with an unknown outcome may be repeated; or what
            tells it by the error.
        rng: the source of jitter.

    Attributes:
        limit: what cut the first attempt that was cut; "" where none was.

    Example:
        >>> attempts = Attempts(
        ...     retry=None, budget=None, left=AttemptsLeft(4), timeout_s=0.5, deadline_s=10.0,
        ...     is_retryable_unknown=False, rng=None)
        >>> attempt = attempts.begin(now=9.0)
        >>> attempt.number, attempt.deadline_s, attempt.attempts_left, attempt.has_full_timeout
        (1, 9.5, 2, True)
    """

    def __init__(
        self,
        *,
        retry: RetryOptions | None,
        budget: RetryBudget | None,
        left: AttemptsLeft | None,
        timeout_s: float | None,
        deadline_s: float | None,
        is_retryable_unknown: MayRepeat,
        rng: Chance | None,
    ) -> None:
        self._retry = retry if retry is not None and rng is not None else _ONCE
        self._budget = budget
        self._left = left
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._is_retryable_unknown = is_retryable_unknown
        self._rng = rng
        self._number = 0
        self._spent = 0
        self._last: Exception | None = None
        self._unknown: Exception | None = None
        self._place_s = self._backoff_s = 0.0
        self._failed: tuple[str, ...] = ()
        self.limit = ""

    def begin(self, now: float) -> Attempt:
        """Begin the next attempt.

        Raises:
            DeadlineExceeded: the deadline has passed and nothing was sent.
            Exception: the deadline has passed and an earlier attempt failed with this.
        """
        if self._deadline_s is not None and now >= self._deadline_s:
            if self._last is not None:
                raise self.final(self._last)
            raise deadline_passed(now - self._deadline_s)
        if self._number == 0 and self._budget is not None:
            self._budget.calls += 1
        self._number += 1
        given = self._left.give() if self._left is not None else 0
        attempt = Attempt(
            self._number,
            attempts_left=given,
            place_s=self._place_s,
            backoff_s=self._backoff_s,
            failed=self._failed,
        )
        self.put_time(attempt, now)
        return attempt

    def take_over(self, attempt: Attempt) -> None:
        """Go on after a first attempt that was begun without this machine, and has failed."""
        self._number = attempt.number

    def put_time(self, attempt: Attempt, now: float) -> None:
        """Give an attempt its deadline, counted from `now`."""
        deadline_s = self._deadline_s
        if self._timeout_s is not None:
            own_s = now + self._timeout_s
            deadline_s = own_s if deadline_s is None else min(own_s, deadline_s)
        attempt.deadline_s = deadline_s
        attempt.has_full_timeout = is_full_timeout(self._timeout_s, deadline_s, now)

    def waited(self, attempt: Attempt, waited_s: float, now: float) -> None:
        """Take note of a wait for a place, which ended `now`: it is not the callee's time."""
        self._place_s += waited_s
        attempt.place_s = self._place_s
        self.put_time(attempt, now)

    def hedge(self, call: HedgedCall, now: float) -> Attempt | None:
        """Begin a second attempt beside the first one; None where the call may not have it."""
        if self._left is None or not call.send(now, self._left, self._budget):
            return None
        self._spent += 1
        attempt = self.begin(now)
        attempt.is_hedge = True
        return attempt

    def ended(self, attempt: Attempt, error: BaseException | None) -> None:
        """Record the end of one of two attempts at once; `answered` or `failed` tell of the call.

        Args:
            attempt: what has ended.
            error: what it raised; None for an answer.
        """
        self._settle(attempt, attempt.used if error is None else _used(attempt, error))
        if isinstance(error, Exception) and may_have_run(error):
            self._unknown = error

    def answered(self, attempt: Attempt) -> None:
        """Record that an attempt was answered."""
        self._settle(attempt, attempt.used)

    def failed(
        self, attempt: Attempt, error: Exception, now: float, *, refuses_until_s: float = -math.inf
    ) -> float | None:
        """Record a failed attempt; return the backoff before the next one, None for no more.

        Args:
            attempt: what failed.
            error: what it raised.
            now: the time of the loop's clock.
            refuses_until_s: until when the edge's breaker sends nothing: no retry waits for it.
        """
        self._settle(attempt, _used(attempt, error))
        wait_s = self._wait_s(error, now, refuses_until_s)
        if wait_s is None:
            return None
        self._last = error
        if may_have_run(error):
            self._unknown = error
        self._backoff_s += wait_s
        code = error.code if isinstance(error, SynchromeshError) else type(error).__name__
        self._failed = (*self._failed, code)
        return wait_s

    def final(self, error: Exception) -> Exception:
        """Return the error that the caller gets where `error` ended the last attempt.

        One that says only that the last attempt was not run would hide that an earlier one may have
        been: then it is the earlier one's.
        """
        if self._unknown is not None and is_certainly_not_run(error):
            error = self._unknown
        if isinstance(error, CallError) and self._left is not None:
            error.attempts_used = self._spent
        return error

    def forget(self) -> None:
        """Drop the errors that are kept: the call is over."""
        self._last = self._unknown = None

    def _wait_s(self, error: Exception, now: float, refuses_until_s: float) -> float | None:
        if self._number >= self._retry.attempts_max or self._rng is None:
            return None
        if not self._may_retry(error):
            return None
        wait_s = self._retry.backoff_s(self._number, self._rng)
        if isinstance(error, SynchromeshError) and error.retry_after_s is not None:
            if error.retry_after_s > self._retry.cap_s:
                return None
            wait_s = max(wait_s, error.retry_after_s)
        at_s = now + wait_s
        if at_s < refuses_until_s:
            return None
        if self._deadline_s is not None and at_s >= self._deadline_s - LEAST_S:
            return None
        # The budget comes last: a token is taken only by a retry that will be made.
        if self._left is not None and not self._left.can_retry:
            return None
        if self._budget is not None and not self._budget.take(now=now):
            return None
        if self._left is not None:
            self._left.take()
        self._spent += 1
        return wait_s

    def _may_retry(self, error: Exception) -> bool:
        asked = self._is_retryable_unknown
        if isinstance(asked, bool):
            return may_retry(error, is_retryable_unknown=asked)
        if may_retry(error, is_retryable_unknown=False):
            return True
        # It is asked only where its answer counts.
        return may_retry(error, is_retryable_unknown=True) and asked(error)

    def _settle(self, attempt: Attempt, used: int | None) -> None:
        if self._left is None or attempt.is_settled:
            return
        attempt.is_settled = True
        self._left.settle(attempt.attempts_left, used)
        self._spent += attempt.attempts_left if used is None else used


def deadline_passed(late_s: float) -> DeadlineExceeded:
    """Return what a call is that was to begin so long after its deadline."""
    return DeadlineExceeded(
        f"the deadline passed {late_s:.3f} s before the call, nothing was sent; give the whole "
        "request more time"
    )


def is_full_timeout(timeout_s: float | None, deadline_s: float | None, now: float) -> bool:
    """Return whether a deadline gives an attempt at `now` the edge's timeout, or nearly all of it.

    A call that was given just the edge's timeout has lost a little of it on its way here; were that
    haste of the caller, its time-outs would never trip the breaker.

    Example:
        >>> [is_full_timeout(2.0, deadline_s, 10.0) for deadline_s in (12.0, 11.9, 11.8)]
        [True, True, False]
    """
    if timeout_s is None or deadline_s is None:
        return False
    return deadline_s - now >= timeout_s * NEARLY_FULL


def _used(attempt: Attempt, error: BaseException) -> int | None:
    if attempt.used is not None:
        return attempt.used
    if isinstance(error, CallError) and not isinstance(error, TimedOut | ConnectionLost):
        return error.attempts_used
    # It may still be running there, and retrying: what it was given is gone.
    return None
