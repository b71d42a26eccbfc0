"""Token buckets: how often each asks, bounded in number. A pure machine.

Each bucket is one number, the time at which it would be full again (the generic cell rate
algorithm): a bucket that is full again says nothing and can be forgotten without loss.

Source: ITU-T I.371, annex A; draft-ietf-httpapi-ratelimit-headers-10 for what is told of them.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

from synchromesh.errors import ConfigError

_LIMIT = re.compile(r"([0-9]{1,6})/(s|m|h)")
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}
# Sums of floats: less than this part of a token is none.
_ROUNDING = 1e-3
# What is left of such an interval is a whole second, rounded up.
_SHORT_S = 0.9

RATELIMIT: Final = "ratelimit"
RATELIMIT_POLICY: Final = "ratelimit-policy"
ALLOWANCES_MAX: Final = 1_000


class Allowance(NamedTuple):
    """What an answer says of a bucket: as header fields, and as it stands on the wire."""

    fields: tuple[tuple[str, str], ...]
    lines: bytes


UNLIMITED: Final = Allowance((), b"")


def interval_of(limit: str) -> float:
    """Return the seconds from one token to the next of a limit such as "20/s".

    Raises:
        ConfigError: it is no such text.

    Example:
        >>> interval_of("20/s"), interval_of("30/m")
        (0.05, 2.0)
    """
    matched = _LIMIT.fullmatch(str(limit))
    if matched is None or int(matched[1]) == 0:
        raise ConfigError(
            f"{str(limit)[:40]!r} is no rate; write a count above 0 per s, m or h, such as "
            '"20/s" or "600/h"'
        )
    return _UNITS_S[matched[2]] / int(matched[1])


def burst_of(limit: str) -> int:
    """Return how many may come at once where nothing else is said: one second's worth, or 1.

    Example:
        >>> burst_of("20/s"), burst_of("30/m")
        (20, 1)
    """
    return max(1, math.floor(1.0 / interval_of(limit) + 1e-9))


def whole_seconds(wait_s: float) -> int:
    """Return a wait in whole seconds, rounded up but for what sums of floats add; at least 1.

    Example:
        >>> whole_seconds(0.2), whole_seconds(2.0000000001), whole_seconds(2.1)
        (1, 2, 3)
    """
    return max(1, math.ceil(wait_s - 1e-6))


class TokenBuckets:
    """Admits each key `burst` times at once and every `interval_s` after that.

    Args:
        interval_s: seconds from one token to the next.
        burst: how many tokens a full bucket has.
        buckets_max: how many buckets are kept; beyond, newcomers share one, so that whoever
            comes under many names gets no more than one of them would.
        name: what clients are told it is called: printable ASCII, without quotes.

    Example:
        >>> buckets = TokenBuckets(interval_s=1.0, burst=2)
        >>> [buckets.take("shop", now=0.0) for _ in range(3)]
        [0.0, 0.0, 1.0]
        >>> buckets.take("shop", now=1.0)
        0.0
    """

    def __init__(
        self, *, interval_s: float, burst: int, buckets_max: int = 10_000, name: str = "default"
    ) -> None:
        if interval_s <= 0 or burst < 1 or buckets_max < 1:
            raise ConfigError(
                f"token buckets have interval_s {interval_s}, burst {burst} and buckets_max "
                f"{buckets_max}; make them more than 0, and 1 or more"
            )
        self._whole = (interval_s, burst, buckets_max)
        self._buckets_max = buckets_max
        self._name = f'"{name}"'
        self.share(1)
        # When each bucket is full again; the one that was used longest ago comes first.
        self._full_at_s: OrderedDict[Hashable, float] = OrderedDict()

    def share(self, among: int) -> None:
        """Admit what is one part of the rate where so many admit by it, from now on.

        A burst is rounded up. What a bucket has left stays in proportion.

        Example:
            >>> buckets = TokenBuckets(interval_s=1.0, burst=4)
            >>> buckets.share(2)
            >>> [buckets.take("shop", now=0.0) for _ in range(3)]
            [0.0, 0.0, 2.0]
        """
        interval_s, burst, _ = self._whole
        interval_s, burst = interval_s * among, -(-burst // among)
        self._interval_s, self._burst = interval_s, burst
        # When a bucket is full again is what is kept of it, and takes as long for each part.
        self._slack_s = interval_s * (burst - 1)
        # As long as an empty bucket takes to be full; in whole seconds, as the draft has it.
        window_s = max(1, math.ceil(interval_s * burst - _ROUNDING))
        self._policy = (RATELIMIT_POLICY, f"{self._name};q={burst};w={window_s}")
        # Most answers say what one before them said.
        self._allowances: dict[tuple[int, int], Allowance] = {}

    def take(self, key: Hashable, now: float) -> float:
        """Take a token and return 0.0; or take none and return how long to wait for one."""
        buckets = self._full_at_s
        full_at_s = buckets.get(key)
        if full_at_s is None:
            key = self._bucket_of(key, now)
            full_at_s = buckets.get(key, now)
        if full_at_s < now:
            full_at_s = now
        wait_s = full_at_s - now - self._slack_s
        if wait_s > self._interval_s * _ROUNDING:
            return wait_s
        buckets[key] = full_at_s + self._interval_s
        buckets.move_to_end(key)
        return 0.0

    def allowance(self, key: Hashable, now: float) -> Allowance:
        """Return what an answer says of a bucket: its policy, what is left, and until when.

        `t` is how long it takes until there is one token more, and what `Retry-After` says of a
        wait that `take` has just returned.

        Example:
            >>> buckets = TokenBuckets(interval_s=2.0, burst=3, name="GET /stock/{sku}")
            >>> buckets.take("shop", now=0.0)
            0.0
            >>> dict(buckets.allowance("shop", now=0.5).fields)["ratelimit"]
            '"GET /stock/{sku}";r=2;t=2'
        """
        buckets, burst = self._full_at_s, self._burst
        full_at_s = buckets.get(key)
        if full_at_s is None:
            full_at_s = buckets.get(_SHARED, now)
        lacking_s = full_at_s - now
        interval_s = self._interval_s
        lacking, more_in = math.ceil(lacking_s / interval_s - _ROUNDING), 1
        if lacking <= 0:
            lacking = more_in = 0
        elif lacking >= burst or interval_s > _SHORT_S:
            lacking = min(burst, lacking)
            # As `take` has it, so that both round to the same second.
            more_in = whole_seconds(lacking_s - interval_s * (lacking - 1))
        return self._allowances.get((lacking, more_in)) or self._allowance(lacking, more_in)

    def is_as(self, other: TokenBuckets) -> bool:
        """Tell whether another one has the same rate and bounds."""
        return self._whole == other._whole

    def __len__(self) -> int:
        return len(self._full_at_s)

    def __repr__(self) -> str:
        return f"<TokenBuckets {len(self)} of {self._buckets_max}, {self._interval_s:g} s a token>"

    def _allowance(self, lacking: int, more_in: int) -> Allowance:
        wait = f";t={more_in}" if lacking else ""
        fields = (self._policy, (RATELIMIT, f"{self._name};r={self._burst - lacking}{wait}"))
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        if len(self._allowances) >= ALLOWANCES_MAX:
            self._allowances.clear()
        allowance = self._allowances[lacking, more_in] = Allowance(fields, lines.encode("ascii"))
        return allowance

    def _bucket_of(self, key: Hashable, now: float) -> Hashable:
        buckets = self._full_at_s
        if key in buckets or len(buckets) < self._buckets_max:
            return key
        while buckets:
            oldest = next(iter(buckets))
            if buckets[oldest] > now:
                break
            del buckets[oldest]
        return key if len(buckets) < self._buckets_max else _SHARED


_SHARED = object()
