"""A concurrency limit that finds itself, by how much longer answers take than usual.

In a window of some samples `slowness` is the time that the answers took over the time that calls of
their operations usually take, so that an edge may carry operations of 1 ms and of 500 ms. By
Little's law calls under way / slowness are the *busy* places of the callee, and the rest of the
calls only waits there. The limit follows

    2 x busy + room

where the room is for chance: a queue of `room_max` calls, or of 70 ms of work if that is less. A
callee that loses three quarters of its places gets a quarter of the calls, one that gains some gets
more, and one that has enough is left in peace: a limit that is not half used is not cut, but
where half of all calls are late while others are answered, or some of slow ones.

A queue delays all who wait in it. Where the mean has risen and most answers are as quick as ever
there is none: some calls take longer by nature, as those that miss a cache do. And a call takes as
long in a queue as there were calls before it: where it takes as long among many as among few it is
the work that has become slower (`_Slowdown`), and that is learned, not limited. Where calls share
processors none waits and all are slowed, by how many they are on average: it comes to the same,
later. So the limit is not raised again before calls that began since the last time have ended.

Answers are not all. Calls that end in a time-out tell how much time calls have. None should wait
for more than a third of what its work leaves of that: where it is the lower one the limit is, by
Little's law again, rate of answers x (usual time + a third of the rest). Where many calls end in
an overload answer it is cut by half their share, as DCTCP does with marks. Neither cuts again for
calls that began before the cut.

Sources: Netflix concurrency-limits (Gradient2, Vegas), Envoy's adaptive concurrency filter;
Cardwell et al., "BBR" (2016) for the product of rate and usual time; Alizadeh et al., "Data Center
TCP" (2010) for the cut. Neither re-measures a baseline by keeping callers out, as Envoy does: what
is usual is known per operation, see `LatencyTracker`.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from synchromesh.durations import ABOVE_0, FROM_0, FROM_1, refuse_misfit, refuse_wrong_numbers
from synchromesh.resilience.latency import SAMPLE_EVERY_S, LatencyTracker

_WINDOW_S = 0.1
_SAMPLES_MIN = 16
# One answer that took a thousand times as long says no more than one that took this much longer.
_RATIO_MAX = 32.0
# So much longer is slow, of the mean; and of the answers fewer than the share are quicker.
_SLOW, _QUICK_SHARE = 1.5, 1 / 3
# Time-outs of a callee that answers all else as quickly as ever are hardly overload.
_DROPS_SLOW, _DROPS_QUICK = 0.01, 0.1
# So many time-outs are enough if they are half of all; without any, calls may have more time.
_LATE_MIN, _FORGETS = 4, 1.02
# The share of the time that its work leaves a call for which it may wait, and of its usual time for
# which it may anyway: the limit could not rise again without.
_WAITS_SHARE, _WAITS_LEAST = 1 / 3, 1 / 4
_ROOM_MIN, _ROOM_S = 4.0, 0.07
# How many calls were under way is remembered for the longest that an answer takes, nearly.
_POINTS, _POINT_S = 64, 0.025
# Other numbers of calls tell a queue from slower work: so many times as many, or as few.
_MORE, _FEWER, _TRIED, _AS_MANY = 1.5, 0.5, 0.4, 0.75
# In a queue a call takes so many times as long as there are times as many, in the work as long as
# ever: between the two is this power. What is so much quicker or worse is so for another reason.
_STEADY, _QUICKER, _WORSE = 1 / 3, 0.7, 1.5
# In so many windows; the limit is held for the first of them. With the least it takes so long, and
# so many answers' time: an answer tells of the queue that its call met.
_ENOUGH, _HELD, _LEAST_S, _TAKES = 3, 2, 0.8, 3.0
# A limit that is not reached so far harms nobody.
_REACHED = 0.9


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
        refuse_wrong_numbers(
            self,
            (FROM_1, "initial limit_min limit_max room_max"),
            (FROM_0, "queue_max"),
            (ABOVE_0, "wait_max_s"),
        )
        refuse_misfit(self, "limit_max", self.limit_max >= self.limit_min, "at least limit_min")
        refuse_misfit(
            self, "initial", self.limit_min <= self.initial <= self.limit_max, "between the two"
        )


class _Slowdown:
    """Tells a queue from work that has become slower, by what other numbers of calls do to it.

    Attributes:
        is_work: fewer calls have not made it quicker, or more not slower: it is no queue.
        windows: how many have been slow in a row.
    """

    __slots__ = (
        "_began_s", "_by", "_fewer", "_in_flight", "_least", "_least_s", "_more", "_sum", "_tried",
        "is_work", "windows",
    )  # fmt: skip

    def __init__(self) -> None:
        self._in_flight = self._by = self._sum = self._began_s = self._least_s = 0.0
        self._fewer = self._tried = 0.0
        self.windows = self._more = self._least = 0
        self.is_work = False

    def end(self) -> None:
        """Take note that answers are as quick as usual."""
        if self.windows:
            self.windows = 0
            self._begin(0.0, 0.0, 0.0)

    def see(
        self, now: float, began: float, ended: float, by: float, took_s: float, *, is_least: bool
    ) -> None:
        """Take a slow window into account.

        A call in a queue waits for those that were there when it began, one that shares its place
        with all others for those that come and go meanwhile: there are many, or few, if both are.

        Args:
            now: the time of the loop's clock.
            began, ended: how many calls were under way when its calls began, and ended.
            by: its slowness.
            took_s: how long its answers took.
            is_least: no fewer calls can be let in.
        """
        self.windows += 1
        if self.is_work and by <= _WORSE * self._by:
            self._by = min(self._by, by)  # as it is learned
            return
        before, slowed = self._in_flight or began, by / (self._by or by)
        grown, few, many = began / before, max(began, ended) / before, min(began, ended) / before
        if self.windows == 1 or self.is_work or (slowed < _QUICKER and _FEWER < grown < _MORE):
            self._begin(now, began, by)
        elif few < _AS_MANY:
            # Half as many tell it; what lies nearer, by the square of how near.
            weight = min(1.0, (math.log(grown) / math.log(_FEWER)) ** 2)
            self._fewer += weight
            self._sum += weight * slowed / grown**_STEADY
            self.is_work = self._fewer >= _ENOUGH and self._sum >= self._fewer
        elif many >= _MORE:
            self._more = self._more + 1 if slowed <= math.sqrt(grown) else 0
            self.is_work = self._more >= _ENOUGH
        else:
            self._refine(began, by)
            if not is_least:
                self._least = 0
                return
            self._least += 1
            if self._least == 1:
                self._least_s = now
            has_lasted = now - self._least_s >= max(_LEAST_S, _TAKES * took_s)
            self.is_work = has_lasted and self._least >= _ENOUGH

    def may_tell_more(self, now: float, in_flight: float, took_s: float) -> bool:
        """Tell whether many more calls are under way than those that were answered found.

        What their answers will take says more than any guess, if they are waited for.
        """
        is_more = in_flight >= _MORE * self._in_flight and now - self._began_s <= took_s
        return is_more or 0 < self._more < _ENOUGH

    def lowered(self, limit: float, target: float) -> float:
        """Return what to lower the limit to: at first to what tells a queue from slower work."""
        self._tried = self._tried or self._in_flight * _TRIED
        tried = self._tried
        return (limit + target) / 2 if self._fewer >= _HELD else max(target, tried)

    def _refine(self, in_flight: float, by: float) -> None:
        """Learn how slow it is with that many calls: one window is a matter of chance."""
        self._in_flight += (in_flight - self._in_flight) / 2
        self._by += (by - self._by) / 2

    def _begin(self, now: float, in_flight: float, by: float) -> None:
        self._began_s, self._in_flight, self._by = now, in_flight, by
        self._fewer = self._tried = self._sum = 0.0
        self._more = self._least = 0
        self.is_work = False


class AdaptiveLimit:
    """Follows the concurrency that a callee can bear; a pure machine, `Limiter` is its shell.

    Args:
        options: its bounds.
        trusts_refusals: a callee that has refused a call has such a limit itself, and sees sooner
            what its slowness comes of: from then on its refusals and time-outs are followed alone.

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
        >>> for number in range(100, 132):  # every other call is refused
        ...     adaptive.sample(
        ...         tracker, number * 0.01, 0.05, in_flight=adaptive.limit, is_shed=number % 2 == 0)
        >>> adaptive.limit, adaptive.is_pressed
        (102, True)
    """

    __slots__ = (
        "_before", "_cut_s", "_exact", "_given_s", "_in_flight", "_is_guarded", "_is_slow", "_late",
        "_late_s", "_options", "_peak", "_points", "_quick", "_raised_s", "_samples", "_sheds",
        "_slowdown", "_took_s", "_trusts_refusals", "_usual_s", "_window_ends_s", "is_pressed",
        "is_slower", "limit", "usual_s",
    )  # fmt: skip

    def __init__(self, options: AdaptiveLimitOptions, *, trusts_refusals: bool = False) -> None:
        self._options = options
        self._exact = float(options.initial)
        self._trusts_refusals = trusts_refusals
        # Whether the callee has refused calls, as far as that is trusted.
        self._is_guarded = False
        # So much time calls have, as far as those tell that had too little.
        self._given_s = math.inf
        # The limit when answers became slow.
        self._before = 0.0
        self.limit = options.initial
        self.is_pressed = self.is_slower = self._is_slow = False
        self._slowdown = _Slowdown()
        self.usual_s = 0.0
        self._window_ends_s = 0.0
        # When calls that were late or shed have cut it last.
        self._cut_s = -math.inf
        # When it was raised last: what that did is told by calls that began since.
        self._raised_s = -math.inf
        # How many were under way, and when.
        self._points: deque[tuple[float, int]] = deque(maxlen=_POINTS)
        # Of the window: sums, and the most that were under way.
        self._samples = self._late = self._sheds = self._quick = self._in_flight = self._peak = 0
        self._took_s = self._usual_s = self._late_s = 0.0

    def sample(
        self,
        tracker: LatencyTracker,
        now: float,
        took_s: float,
        *,
        in_flight: int,
        is_late: bool = False,
        is_shed: bool = False,
    ) -> None:
        """Take one call that has ended into account.

        Args:
            tracker: what is usual for its operation; it learns from the sample.
            now: the time of the loop's clock.
            took_s: how long the callee took for it.
            in_flight: how many calls were under way, this one too.
            is_late: it ended in a time-out.
            is_shed: it ended in an overload answer.
        """
        points = self._points
        if not points or now - points[-1][0] >= _POINT_S:
            points.append((now, in_flight))
        if is_late or is_shed:
            tracker.next_sample_s = now + SAMPLE_EVERY_S
            if now - took_s < self._cut_s:
                return  # it met the queue that has been cut since
            self._sheds += is_shed
            self._is_guarded = self._is_guarded or (is_shed and self._trusts_refusals)
            if is_late:
                self._late += 1
                self._late_s += took_s
        else:
            usual_s = tracker.usual_s or took_s
            most_s = usual_s * _RATIO_MAX
            self._took_s += took_s if took_s < most_s else most_s  # noqa: FURB136
            self._usual_s += usual_s
            self._quick += took_s <= usual_s * _SLOW
            is_pressed = self.is_pressed or (self._is_slow and not tracker.is_learned)
            is_slower = self.is_slower or self._is_guarded
            tracker.sample(now, took_s, is_pressed=is_pressed, is_slower=is_slower)
        self._samples += 1
        self._in_flight += in_flight
        if in_flight > self._peak:
            self._peak = in_flight
        # A small limit gets few samples, and has to grow again soon after the callee is well.
        if (
            self._samples >= min(_SAMPLES_MIN, 2 * self.limit)
            and (now >= self._window_ends_s or in_flight >= self.limit)
        ) or (is_late and self._late >= _LATE_MIN and 2 * self._late >= self._samples):
            self._judge(now)
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._window_ends_s = now + _WINDOW_S
        self._samples = self._late = self._sheds = self._quick = self._in_flight = self._peak = 0
        self._took_s = self._usual_s = self._late_s = 0.0

    @property
    def _answers(self) -> int:
        return self._samples - self._late - self._sheds

    def _judge(self, now: float) -> None:
        """Move the limit by what the window has shown."""
        options, answers = self._options, self._answers
        if answers:
            self.usual_s = self._usual_s / answers
        slowness = max(1.0, self._took_s / self._usual_s) if self._usual_s > 0 else 1.0
        is_slow = self._is_slow = slowness > _SLOW and self._quick < answers * _QUICK_SHARE
        least = self._samples * (_DROPS_SLOW if is_slow and not self.is_slower else _DROPS_QUICK)
        is_late, is_shedding = self._late >= max(1, least), self._sheds >= max(1, least)
        # Where calls are few they never reach a limit that is far too high for the callee.
        are_too_many = is_late and answers and (is_slow or 2 * self._late >= self._samples)
        is_used = bool(are_too_many) or 2 * self._peak >= self.limit
        self._given_s = self._late_s / self._late if self._late else self._given_s * _FORGETS
        self.is_pressed = is_used and (is_slow or is_late or is_shedding)
        if is_used:
            if is_shedding:
                self._exact *= 1 - self._sheds / self._samples / 2
            if is_late or is_shedding:
                self._cut_s = now
            is_dropping = is_late or is_shedding
            if self._is_guarded:
                slowness, is_slow = 1.0, False
            self._follow(now, slowness, is_slow=is_slow, is_dropping=is_dropping)
        elif self._exact < options.initial:
            self._exact += (options.initial - self._exact) / 10
        self._exact = min(max(self._exact, options.limit_min), options.limit_max)
        self.limit = round(self._exact)

    def _follow(self, now: float, slowness: float, *, is_slow: bool, is_dropping: bool) -> None:
        """Move the limit to what the callee works on, and no further down than it may be yet."""
        slowdown, answers = self._slowdown, self._answers
        if is_slow and answers >= 2 * self._late:
            took_s = (self._took_s + self._late_s) / (answers + self._late)
            by, began = took_s / self.usual_s, self._began(now)
            # Nobody works with less than one place: whom that would be said of works slowly.
            is_least = self._exact <= self._options.limit_min or began < slowness
            ended = self._in_flight / self._samples
            slowdown.see(now, began, ended, by, took_s, is_least=is_least)
            if slowdown.windows == 1:
                self._before = self._exact
            elif slowdown.is_work and not self.is_slower:
                self._exact = max(self._exact, self._before)  # it was cut for nothing
        elif answers or self._late:
            slowdown.end()  # or nobody knows how long calls would take that were cut
        self.is_slower = slowdown.is_work
        target = self._in_time(now, is_slow=is_slow)
        if is_slow and not self.is_slower:
            target = min(target, self._target(now, slowness))
        elif answers:
            busy = self._in_flight / self._samples / (1.0 if is_slow else min(slowness, _SLOW))
            target = min(target, 2 * busy + self._room(busy))
        if target > self._exact:
            took_s = self._took_s / answers if answers else 0.0
            if (not is_dropping or self._late) and now - took_s >= self._raised_s:
                self._exact = min(target, self._exact * 2)
                self._raised_s = now
        elif is_dropping:
            self._exact = target
        elif slowdown.windows > 1 and self._peak >= _REACHED * self.limit:
            in_flight, took_s = self._in_flight / self._samples, self._took_s / max(1, answers)
            if not slowdown.may_tell_more(now, in_flight, took_s):
                self._exact = min(self._exact, slowdown.lowered(self._exact, target))

    def _in_time(self, now: float, *, is_slow: bool) -> float:
        """Return the limit at which calls are answered in their time, by Little's law."""
        told, spent_s = self._answers + self._late, self._took_s + self._late_s
        if self._given_s == math.inf or not spent_s:
            return math.inf
        mean_s = spent_s / told
        per_s = (self._at(now - mean_s) or self._in_flight / self._samples) / mean_s
        if not self._answers or (is_slow and not self.is_slower):
            per_s *= self._answers / told  # the callee is at work for nobody on all that is late
        left_s = self._given_s - self.usual_s
        return per_s * (self.usual_s + max(left_s * _WAITS_SHARE, self.usual_s * _WAITS_LEAST))

    def _target(self, now: float, slowness: float) -> float:
        """Return the limit for a callee whose calls wait, by Little's law."""
        busy = self._began(now) / slowness
        return 2 * busy + self._room(busy)

    def _began(self, now: float) -> float:
        """Return how many calls were under way when those of the window began.

        An answer tells of the queue that its call met.
        """
        took_s = self._took_s / self._answers
        return self._at(now - took_s) or self._in_flight / self._samples

    def _at(self, when_s: float) -> float:
        """Return how many calls were under way at a time that has passed."""
        after_s, after = math.inf, 0
        for at_s, in_flight in reversed(self._points):
            if at_s <= when_s:
                if after_s == math.inf:
                    return in_flight
                return in_flight + (after - in_flight) * (when_s - at_s) / (after_s - at_s)
            after_s, after = at_s, in_flight
        return after

    def _room(self, busy: float) -> float:
        """Return how many may wait at the callee."""
        options = self._options
        if self.usual_s <= 0:
            return float(options.room_max)
        in_time = busy * _ROOM_S / self.usual_s
        return min(max(in_time, _ROOM_MIN), options.room_max)

    def __repr__(self) -> str:
        return f"<AdaptiveLimit {self.limit}{', pressed' if self.is_pressed else ''}>"
