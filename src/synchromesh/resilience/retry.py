"""Retry with exponential backoff and full jitter, a retry budget, and attempts that travel.

Three bounds hold at once. `RetryOptions` bounds one call. `RetryBudget` bounds one edge: retries
are at most a share of its calls. `AttemptsLeft` bounds one call tree: the extra attempts that are
left travel with each call, so that three services in a row that each try three times send the last
one 3 requests where 2 extra attempts are allowed, not 27.

Source: Brooker, "Exponential Backoff And Jitter", AWS 2015 (full jitter); Finagle's RetryBudget;
guarantee D2.
"""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.chance import Chance
from synchromesh.durations import FROM_0, FROM_1, SHARE, refuse_misfit, refuse_wrong_numbers


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """Configures retries: how many attempts, with exponential backoff and full jitter.

    Attributes:
        attempts_max: attempts in all, the first one too.
        base_s: the longest wait before the second attempt; it doubles with each further one.
        cap_s: the longest wait of all. A callee that asks for more, by `retry_after_s`, is not
            waited for: its error is raised at once.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> RetryOptions(attempts_max=2).cap_s
        2.0
    """

    attempts_max: int = 3
    base_s: float = 0.05
    cap_s: float = 2.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (FROM_1, "attempts_max"), (FROM_0, "base_s cap_s"))
        refuse_misfit(self, "cap_s", self.cap_s >= self.base_s, "at least base_s")

    def backoff_s(self, attempt: int, rng: Chance) -> float:
        """Return the backoff with full jitter after attempt number `attempt`, which starts at 1.

        Example:
            >>> class Half:
            ...     def random(self) -> float:
            ...         return 0.5
            >>> [RetryOptions(base_s=0.1, cap_s=1.0).backoff_s(n, Half()) for n in (1, 2, 9)]
            [0.05, 0.1, 0.5]
        """
        # The exponent is bounded: 2.0 ** 2000 does not fit a float.
        return rng.random() * min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 64))


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """Configures the retry budget: which share of an edge's calls may be retries.

    Attributes:
        ratio: retries allowed for each call, 0 to 1.
        floor_per_s: retries a second that are allowed however few the calls.
        tokens_max: how many unused retries are kept; the budget starts with all of them.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> BudgetOptions(ratio=0.1).floor_per_s
        1.0
    """

    ratio: float = 0.2
    floor_per_s: float = 1.0
    tokens_max: float = 10.0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (SHARE, "ratio"), (FROM_0, "floor_per_s tokens_max"))


class RetryBudget:
    """Holds the retries of one edge to a share of its calls, as a token bucket.

    Each call pays in `ratio` of a token, each second `floor_per_s`; a retry takes a whole one.

    Example:
        >>> budget = RetryBudget(BudgetOptions(ratio=0.5, floor_per_s=0.0, tokens_max=1.0), now=0.0)
        >>> budget.take(now=0.0), budget.take(now=0.0)
        (True, False)
        >>> budget.calls += 1; budget.calls += 1; budget.take(now=0.0)
        True

    Attributes:
        calls: those that have not been paid in yet; a caller adds 1 for each call, and none for
            its retries. What they pay matters to a retry alone, so that it is added up there: a
            sum that is bounded above at its end is the same as one that was bounded all the time.
    """

    __slots__ = ("_filled_s", "_options", "_tokens", "calls")

    def __init__(self, options: BudgetOptions, *, now: float) -> None:
        self._options = options
        self._tokens = options.tokens_max
        self._filled_s = now
        self.calls = 0

    @property
    def tokens(self) -> float:
        """How many retries may be made, as of the last retry and the calls since."""
        return self._filled(0.0)

    def take(self, *, now: float) -> bool:
        """Take the token of one retry; False where there is none, and then nothing is taken."""
        self._tokens = self._filled(max(0.0, now - self._filled_s))
        self._filled_s = max(now, self._filled_s)
        self.calls = 0
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def __repr__(self) -> str:
        return f"<RetryBudget {self.tokens:.1f}/{self._options.tokens_max:.1f} tokens>"

    def _filled(self, passed_s: float) -> float:
        options = self._options
        more = self.calls * options.ratio + passed_s * options.floor_per_s
        return min(options.tokens_max, self._tokens + more)


class AttemptsLeft:
    """Counts the extra attempts that are left below this point of a call tree (D2).

    One instance serves all calls that one handler makes, one after the other or at once. Each send
    gives the callee half of what is left, and what the callee did not use comes back:

    >>> left = AttemptsLeft(4)
    >>> given = left.give()
    >>> given, left.left
    (2, 2)
    >>> left.settle(given, used=1)
    >>> left.take()
    >>> left.left, left.used
    (2, 2)

    Whatever fails, and whoever reports, a callee below sees at most `total` attempts beyond the
    first of each call.

    Attributes:
        total: how many there were.
        left: how many may still be made or given away; changed by the methods alone.
    """

    __slots__ = ("left", "total")

    def __init__(self, total: int) -> None:
        self.total = self.left = max(0, total)

    @property
    def used(self) -> int:
        """How many are spent, or given away and not settled: what a handler reports upwards."""
        return self.total - self.left

    @property
    def can_retry(self) -> bool:
        """True while an extra attempt is left."""
        return self.left > 0

    def give(self) -> int:
        """Set half of what is left aside for the callee of a send, and return how many."""
        given = self.left // 2
        self.left -= given
        return given

    def settle(self, given: int, used: int | None) -> None:
        """Take back what the callee did not use; None where it is unknown: then all are spent.

        A callee that says it used more than it was given is believed, down to 0 left.
        """
        if used is not None:
            self.left += given
            self.spend(max(0, used))

    def spend(self, used: int) -> None:
        """Take off what a callee spent of what was given to it; it is believed, down to 0 left."""
        self.left = max(0, self.left - used)

    def take(self) -> None:
        """Spend one on a retry. Raises ValueError where none is left: ask `can_retry` first."""
        if self.left < 1:
            raise ValueError("no attempt is left in this call tree; ask can_retry before take")
        self.left -= 1

    def __repr__(self) -> str:
        return f"<AttemptsLeft {self.left}/{self.total}>"
