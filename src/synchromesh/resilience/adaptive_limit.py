"""A concurrency limit that finds itself, by how much longer answers take than usual.

In a window of some samples `slowness` is the time that the answers took over the time that calls of
their operations usually take, so that an edge may carry operations of 1 ms and of 500 ms. By
Little's law calls under way / slowness are the *busy* places of the callee, and the rest of the
calls only waits there. The limit follows

    2 x busy + room

where the room is for chance: a queue of `room_max` calls, or of 70 ms of work if that is less. A
callee that loses three quarters of its places gets a quarter of the calls, one that gains some gets
more, and one that has enough is left in peace: a limit that is not half used is not cut.

Answers are not all: where many calls end in a time-out or an overload answer, the limit is cut by
half their share (as DCTCP does with marks), at most by half in a window.

Sources: Netflix concurrency-limits (Gradient2, Vegas), Envoy's adaptive concurrency filter;
Alizadeh et al., "Data Center TCP" (2010) for the cut. Neither re-measures a baseline by keeping
callers out, as Envoy does: what is usual is known per operation, see `LatencyTracker`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from synchromesh.durations import is_count, is_number
from synchromesh.errors import ConfigError
from synchromesh.resilience.latency import SAMPLE_EVERY_S, LatencyTracker

_WINDOW_S = 0.1
_SAMPLES_MIN = 16
# One answer that took a thousand times as long says no more than one that took this much longer.
_RATIO_MAX = 16.0
_SLOW = 1.5
# Time-outs of a callee that answers all else as quickly as ever are hardly overload.
_DROPS_SLOW, _DROPS_QUICK, _DROPS_MOST = 0.01, 0.1, 0.5
_CALMLY, _QUEUE_TIMES = 1.05, 10.0
# Of so many fewer calls each should take less than this share of the time, were it a queue.
_FEWER, _STEADY, _UNMOVED, _TAKES = 0.7, 0.85, 8, 3.0
_ROOM_MIN, _ROOM_S = 4.0, 0.07


@dataclass(frozen=True, slots=True)
class AdaptiveLimitOptions:
    """Configures a concurrency limit that adapts itself to the callee, and its queue.

    Attributes:
        initial: the limit before anything is known; one that was cut returns to it at leisure.
        limit_min: it is never less.
        limit_max: it is never more.
        room_max: how many calls may wait at the callee, on top of what it works on.
        queue_max: how many calls may wait here for a slot.
        wait_max_s: how long a call waits here at most, or four times the usual time if that is
            longer; a tenth of a second, or once that time, where the queue has stood so long.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> AdaptiveLimitOptions(limit_max=500).initial
        128
    """

    initial: int = 128
    limit_min: int = 4
    limit_max: int = 1000
    room_max: int = 32
    queue_max: int = 1000
    wait_max_s: float = 0.5

    def __post_init__(self) -> None:
        for name, value in ((each.name, getattr(self, each.name)) for each in fields(self)):
            is_time = name == "wait_max_s"
            if not (is_number(value) if is_time else is_count(value)):
                kind = "number of seconds" if is_time else "whole number"
                raise ConfigError(f"adaptive limit option {name} is {value!r}; make it a {kind}")
        checks = (
            ("limit_min", self.limit_min >= 1, "1 or more"),
            ("limit_max", self.limit_max >= self.limit_min, "at least limit_min"),
            ("initial", self.limit_min <= self.initial <= self.limit_max, "between the two"),
            ("room_max", self.room_max >= 1, "1 or more"),
            ("queue_max", self.queue_max >= 0, "0 or more"),
            ("wait_max_s", self.wait_max_s > 0, "more than 0"),
        )
        for name, is_right, expected in checks:
            if not is_right:
                value = getattr(self, name)
                raise ConfigError(f"adaptive limit option {name} is {value!r}; make it {expected}")


class AdaptiveLimit:
    """Follows the concurrency that a callee can bear; a pure machine, `Limiter` is its shell.

    Attributes:
        limit: how many calls may be under way now.
        usual_s: how long a call usually takes, as the last window had them; 0 before that.
        is_slower: whether the callee has become slower, for fewer calls do not make it quicker.
        is_pressed: whether the last window showed a callee that has more to do than it can.

    Example:
        >>> adaptive, tracker = AdaptiveLimit(AdaptiveLimitOptions()), LatencyTracker()
        >>> for number in range(100):  # 64 under way, and each is answered as quickly as ever
        ...     adaptive.sample(tracker, number * 0.01, 0.05, in_flight=64)
        >>> adaptive.limit
        160
        >>> for number in range(100, 200):  # eight times as slow: it is a queue that they wait in
        ...     adaptive.sample(tracker, number * 0.01, 0.4, in_flight=adaptive.limit)
        >>> adaptive.limit, adaptive.is_pressed
        (23, True)
    """

    __slots__ = (
        "_calm",
        "_dropped_s",
        "_drops",
        "_exact",
        "_in_flight",
        "_options",
        "_peak",
        "_samples",
        "_slow_by",
        "_slow_in_flight",
        "_took_s",
        "_unmoved",
        "_usual_s",
        "_window_ends_s",
        "is_pressed",
        "is_slower",
        "limit",
        "usual_s",
    )

    def __init__(self, options: AdaptiveLimitOptions) -> None:
        self._options = options
        self._exact = float(options.initial)
        # From here on it rises slowly: at this limit calls were dropped.
        self._calm = math.inf
        self.limit = options.initial
        self.is_pressed = self.is_slower = False
        self._slow_in_flight = self._slow_by = 0.0
        self._unmoved = 0
        self.usual_s = 0.0
        self._window_ends_s = 0.0
        # Of the window: sums, and the most that were under way.
        self._samples = self._drops = self._in_flight = self._peak = 0
        self._took_s = self._usual_s = self._dropped_s = 0.0

    def sample(
        self,
        tracker: LatencyTracker,
        now: float,
        took_s: float,
        *,
        in_flight: int,
        is_drop: bool = False,
    ) -> None:
        """Take one call that has ended into account.

        Args:
            tracker: what is usual for its operation; it learns from the sample.
            now: the time of the loop's clock.
            took_s: how long the callee took for it.
            in_flight: how many calls were under way, this one too.
            is_drop: it ended in a time-out or an overload answer.
        """
        if is_drop:
            tracker.next_sample_s = now + SAMPLE_EVERY_S
            self._drops += 1
            self._dropped_s += took_s
        else:
            usual_s = tracker.usual_s or took_s
            most_s = usual_s * _RATIO_MAX
            self._took_s += took_s if took_s < most_s else most_s  # noqa: FURB136
            self._usual_s += usual_s
            tracker.sample(now, took_s, is_pressed=self.is_pressed, is_slower=self.is_slower)
        self._samples += 1
        self._in_flight += in_flight
        if in_flight > self._peak:
            self._peak = in_flight
        # A small limit gets few samples, and has to grow again soon after the callee is well.
        if self._samples >= min(_SAMPLES_MIN, 2 * self.limit) and (
            now >= self._window_ends_s or in_flight >= self.limit
        ):
            self._judge()
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._window_ends_s = now + _WINDOW_S
        self._samples = self._drops = self._in_flight = self._peak = 0
        self._took_s = self._usual_s = self._dropped_s = 0.0

    def _judge(self) -> None:
        """Move the limit by what the window has shown."""
        options, answers = self._options, self._samples - self._drops
        if answers:
            self.usual_s = self._usual_s / answers
        slowness = max(1.0, self._took_s / self._usual_s) if self._usual_s > 0 else 1.0
        drops = self._drops / self._samples
        is_used, is_slow = 2 * self._peak >= self.limit, slowness > _SLOW
        self.is_pressed = is_used and is_slow
        if is_used and drops >= (_DROPS_SLOW if is_slow else _DROPS_QUICK):
            self.is_pressed = True
            self._exact *= 1 - drops / 2
            # In a queue calls are dropped soon, and the limit was about right. A callee that stood
            # still may be well at once, and the limit then rises as fast as ever.
            is_queue = self._dropped_s < _QUEUE_TIMES * self.usual_s * self._drops
            self._calm = self._exact if is_queue and drops < _DROPS_MOST else math.inf
        elif is_used:
            busy = self._in_flight / self._samples / slowness
            target = 2 * busy + self._room(busy, self._usual_s / answers)
            if target > self._exact:
                self._exact = min(
                    target, self._exact * (_CALMLY if self._exact >= self._calm else 2)
                )
                self._calm *= _CALMLY
            elif is_slow:
                self._exact += (target - self._exact) / 2
            self._watch(slowness, is_slow=is_slow)
        elif self._exact < options.initial:
            self._exact += (options.initial - self._exact) / 10
        self._exact = min(max(self._exact, options.limit_min), options.limit_max)
        self.limit = round(self._exact)

    def _watch(self, slowness: float, *, is_slow: bool) -> None:
        """See whether fewer calls make it quicker: if they do not, it is no queue but slower work.

        Then what is usual is learned anew, in a second or so.
        """
        in_flight = self._in_flight / self._samples
        if not is_slow:
            self._slow_in_flight, self._unmoved, self.is_slower = 0.0, 0, False
        elif not self._slow_in_flight or slowness < _STEADY * self._slow_by:
            # It begins, or it has become quicker: go on from here.
            self._slow_in_flight, self._slow_by = in_flight, slowness
            self._unmoved, self.is_slower = 0, False
        elif in_flight <= _FEWER * self._slow_in_flight or self._exact <= self._options.limit_min:
            # An answer tells of the queue that its call met: it takes some answers' time to see.
            self._unmoved += 1
            took_s = self._took_s / (self._samples - self._drops)
            self.is_slower = self._unmoved >= max(_UNMOVED, _TAKES * took_s / _WINDOW_S)
        else:
            self._unmoved = 0

    def _room(self, busy: float, usual_s: float) -> float:
        """Return how many may wait at the callee."""
        options = self._options
        if usual_s <= 0:
            return float(options.room_max)
        in_time = busy * _ROOM_S / usual_s
        return min(max(in_time, _ROOM_MIN), options.room_max)

    def __repr__(self) -> str:
        return f"<AdaptiveLimit {self.limit}{', pressed' if self.is_pressed else ''}>"
