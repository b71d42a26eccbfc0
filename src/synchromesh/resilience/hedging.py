"""Hedging: a query that takes longer than most is sent a second time, to another instance.

The first answer is taken, and the other attempt is cancelled. It cuts the slowest of many calls
where single instances are slow now and then. It does double work, so that three bounds hold: at
most a share of the calls is hedged (a token bucket), a hedge is a retry to the edge's budget and to
the call tree (D2), and nothing is hedged that changes state.

Source: Dean and Barroso, "The Tail at Scale", CACM 2013 ("hedged requests").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from synchromesh.durations import (
    ABOVE_0,
    FROM_1,
    SHARE,
    is_number,
    refuse_misfit,
    refuse_wrong_numbers,
)
from synchromesh.errors import ConfigError
from synchromesh.resilience.retry import AttemptsLeft, BudgetOptions, RetryBudget

# So many of the last calls tell what is late; of fewer than the least nothing is known.
_KEPT = 128
_KEPT_LEAST = 32
_QUANTILES = {"p90": 0.90, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class HedgeOptions:
    """Configures hedging: when a second attempt is sent, and which share of the calls has one.

    Attributes:
        after: "p90", "p95" or "p99": once a call takes longer than that share of the last ones; or
            a number of seconds.
        ratio: hedges allowed for each call, 0 to 1.
        tokens_max: how many unused hedges are kept.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> HedgeOptions(after=0.05).ratio
        0.05
    """

    after: float | Literal["p90", "p95", "p99"] = "p95"
    ratio: float = 0.05
    tokens_max: float = 10.0

    def __post_init__(self) -> None:
        is_quantile = isinstance(self.after, str) and self.after in _QUANTILES
        is_time = is_number(self.after) and ABOVE_0.has(self.after)  # type: ignore[arg-type]
        right = '"p90", "p95", "p99" or a number of seconds above 0'
        refuse_misfit(self, "after", is_quantile or is_time, right)
        refuse_wrong_numbers(self, (SHARE, "ratio"), (FROM_1, "tokens_max"))

    def check(self, operation: str, *, is_command: bool) -> None:
        """Refuse to hedge a command: both attempts may take effect, and one is cancelled.

        Raises:
            ConfigError: the operation is a command.
        """
        if is_command:
            raise ConfigError(
                f"{operation} is a command, and its policy has hedge: only queries are sent twice; "
                "take hedge out of its policy"
            )


class Hedging:
    """Decides for one edge when its queries are hedged. Like all machines it belongs to one loop.

    Args:
        options: when, and how many.
        now: the time of the loop's clock.

    Example:
        >>> hedging = Hedging(HedgeOptions(after=0.05), now=0.0)
        >>> call = hedging.begin(now=1.0)
        >>> call.due_s
        1.05
        >>> call.send(now=1.05, left=AttemptsLeft(2), budget=None)
        True
        >>> call.end(2, is_answer=True, now=1.06), call.loser
        (True, 1)
    """

    __slots__ = ("_at", "_is_sorted_at", "_options", "_quantile_s", "_tokens", "_took_s")

    def __init__(self, options: HedgeOptions, *, now: float) -> None:
        self._options = options
        self._tokens = RetryBudget(
            BudgetOptions(ratio=options.ratio, floor_per_s=0.0, tokens_max=options.tokens_max),
            now=now,
        )
        self._took_s: list[float] = []
        self._at = 0
        self._is_sorted_at = 0
        self._quantile_s = math.inf

    @property
    def after_s(self) -> float:
        """How long a first attempt is waited for; infinity while nothing is known of the calls."""
        after = self._options.after
        if not isinstance(after, str):
            return float(after)
        # Sorted once in a while: what is late does not change with one call.
        if self._at - self._is_sorted_at >= _KEPT_LEAST:
            self._is_sorted_at = self._at
            ordered = sorted(self._took_s)
            self._quantile_s = ordered[int(_QUANTILES[after] * len(ordered))]
        return self._quantile_s

    def begin(self, now: float) -> HedgedCall:
        """Return the machine of one call whose first attempt is sent now."""
        self._tokens.calls += 1
        return HedgedCall(self, now, now + self.after_s)

    def take(self, now: float) -> bool:
        """Take the token of one hedge; False where there is none."""
        return self._tokens.take(now=now)

    def learn(self, took_s: float) -> None:
        """Take note how long a first attempt took."""
        if len(self._took_s) < _KEPT:
            self._took_s.append(took_s)
        else:
            self._took_s[self._at % _KEPT] = took_s
        self._at += 1

    def __repr__(self) -> str:
        return f"<Hedging after {self.after_s:.3g} s, {self._tokens!r}>"


class HedgedCall:
    """One call that may be sent twice; attempts are 1 and 2.

    The shell waits for the first attempt until `due_s` and then asks `send`. It tells each end to
    `end`, and is done once that is True: an answer has come, or nothing is under way any more.
    Then it cancels the `loser`, if there is one.

    Attributes:
        due_s: when the second attempt may be sent; infinity for never.
        loser: the attempt that is under way still after the call is done; None for neither.
        used: extra attempts that were spent: 0 or 1.
    """

    __slots__ = ("_began_s", "_hedging", "_under_way", "due_s", "loser", "used")

    def __init__(self, hedging: Hedging, began_s: float, due_s: float) -> None:
        self._hedging = hedging
        self._began_s = began_s
        self._under_way = [1]
        self.due_s = due_s
        self.loser: int | None = None
        self.used = 0

    def send(self, now: float, left: AttemptsLeft, budget: RetryBudget | None) -> bool:
        """Decide whether the second attempt is sent now; asked at `due_s`, while 1 is under way.

        Args:
            now: the time of the loop's clock.
            left: the extra attempts of the call tree; a hedge spends one.
            budget: of the edge's retries; a hedge takes a token. None bounds it no further.
        """
        self.due_s = math.inf
        if self._under_way != [1] or self.used or not left.can_retry:
            return False
        if not self._hedging.take(now) or (budget is not None and not budget.take(now=now)):
            return False
        left.take()
        self.used = 1
        self._under_way.append(2)
        return True

    def end(self, attempt: int, *, is_answer: bool, now: float) -> bool:
        """Take note that an attempt has ended; return whether the call is done.

        An attempt that fails is no end while the other is under way. Where both fail, the error of
        the last one is the call's, and whether to retry is asked of the edge, as without hedging.
        """
        self._under_way.remove(attempt)
        # A failure comes at any time, and would tell nothing of how long answers take. A first one
        # that lost has taken so long at least: left out, what counts as late would get ever less.
        if is_answer:
            self._hedging.learn(now - self._began_s)
        self.due_s = math.inf
        if is_answer and self._under_way:
            self.loser = self._under_way.pop()
        return not self._under_way

    def __repr__(self) -> str:
        return f"<HedgedCall {self._under_way} under way, due {self.due_s:.3f}>"
