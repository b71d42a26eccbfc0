"""The usual time of one operation: its mean and its slow end, learned from samples.

Each is one float that a sample moves a little: no list of times is kept, nothing is allocated, and
the same samples give the same values. The mean is an average over the last ten seconds or so. The
95th and the 99th percentile move by stochastic approximation: up by much for a sample above, down
by little for one below, so that they rest where 5 % and 1 % are above.

Sources: Robbins and Monro, "A Stochastic Approximation Method" (1951); the baselines of Netflix'
concurrency-limits (Gradient2), which are long averages too.
"""

from __future__ import annotations

from bisect import insort

# A thousand samples a second tell as much as all calls, and cost next to nothing.
SAMPLE_EVERY_S = 0.001

# With fewer samples nobody knows what is usual; nor sooner than this many times the usual time, for
# of calls that began together the quick ones end first.
_LEARNED = 30
_LEARNED_TIMES = 8.0

# So many samples that chance alone does not make their mean much smaller than the usual time.
_CHUNK, _CHUNK_SLOWER, _QUICKER = 64, 16, 0.6
# Until enough is known, so many that began first are what is usual.
_FIRST = 4

_MEMORY_S = 10.0
# While calls wait for the callee's place their times are those of the queue.
_MEMORY_PRESSED_S = 300.0
_GAIN_MAX = 1 / _LEARNED
# A percentile moves by this share of itself, and by more while it knows little.
_STEP, _STEP_EARLY = 0.02, 2.0


class LatencyTracker:
    """Learns how long an operation usually takes; a pure machine, one for each operation.

    A sample is due when `now >= tracker.next_sample_s`: a comparison that callers make in line.

    Attributes:
        next_sample_s: before this time on the loop's clock no sample is wanted.
        usual_s: the mean time of an answer, without what overload adds; 0 before the first sample.
        p95_s, p99_s: so long 95 % and 99 % of answers take at most; 0 before the first sample.
        samples: how many it has learned from.
        is_learned: whether they are enough to know what is usual.

    Example:
        >>> tracker = LatencyTracker()
        >>> for number in range(100):
        ...     tracker.sample(number * 0.01, 0.020)
        >>> tracker
        <LatencyTracker usual 20 ms, p99 20.8 ms of 100 samples>
        >>> tracker.has_had_enough(0.5), tracker.has_had_enough(0.01)
        (True, False)
    """

    __slots__ = (
        "_began_s",
        "_count",
        "_first",
        "_known",
        "_known_s",
        "_last_s",
        "_mean_s",
        "_sum_s",
        "is_learned",
        "next_sample_s",
        "p95_s",
        "p99_s",
        "samples",
        "usual_s",
    )

    def __init__(self) -> None:
        self.next_sample_s = 0.0
        self.usual_s = self.p95_s = self.p99_s = 0.0
        self.samples = 0
        self.is_learned = False
        self._began_s = self._last_s = self._sum_s = self._mean_s = 0.0
        self._count = 0
        # When they began, and how long they took, with a minus: of those that began together the
        # slower ones are kept. And the sum of all that no queue was known to delay.
        self._first: list[tuple[float, float]] = []
        self._known, self._known_s = 0, 0.0

    def sample(
        self, now: float, took_s: float, *, is_pressed: bool = False, is_slower: bool = False
    ) -> None:
        """Learn that an answer took so long.

        Args:
            now: the time of the loop's clock.
            took_s: the callee's own time, without what its caller waited for a place.
            is_pressed: the callee has more to do than it can: its times are hardly learned from.
            is_slower: it has not: it has become slower, and that is learned soon.
        """
        passed_s = now - self._last_s
        self._last_s, self.next_sample_s = now, now + SAMPLE_EVERY_S
        self.samples += 1
        if not self.is_learned:
            self._begin(now, took_s, is_pressed=is_pressed)
            return
        self._note(took_s, _CHUNK_SLOWER if is_slower else _CHUNK)
        is_quicker = self._mean_s < self.usual_s * _QUICKER
        if not self._count and (is_quicker or (is_slower and self._mean_s > self.usual_s)):
            self.usual_s = self._mean_s  # what was learned under overload is given up at once
        # Written out: `min` and `max` would cost as much as all else, and below a thousand calls a
        # second each of them pays for it.
        gain = passed_s / (_MEMORY_PRESSED_S if is_pressed else _MEMORY_S)
        if gain > 0.0:  # who ended earlier may be told later
            gain = gain if gain < _GAIN_MAX else _GAIN_MAX  # noqa: FURB136
            self.usual_s += (took_s - self.usual_s) * gain
        if is_pressed and not is_slower:
            return
        step = _STEP + _STEP_EARLY / self.samples
        if took_s > self.p95_s:
            self.p95_s *= 1 + step * 0.95
        else:
            self.p95_s *= 1 - step * 0.05
        if took_s > self.p99_s:
            self.p99_s *= 1 + step * 0.99
        else:
            self.p99_s *= 1 - step * 0.01

    def _begin(self, now: float, took_s: float, *, is_pressed: bool) -> None:
        """Learn from one of the first, of which a queue may have delayed all but the very first.

        Those that began first, not those that ended first: these are the quick ones.
        """
        if self.samples == 1:
            self._began_s = now
        if not is_pressed:
            self._known += 1
            self._known_s += took_s
        first = self._first
        insort(first, (now - took_s, -took_s))
        del first[_FIRST:]
        self.usual_s = -sum(minus_s for _, minus_s in first) / len(first)
        if took_s > self.p99_s:
            self.p95_s = self.p99_s = took_s
        mean_s = self._known_s / self._known if self._known else self.usual_s
        took_so_long = now - self._began_s >= mean_s * _LEARNED_TIMES
        if self.samples >= _LEARNED and took_so_long:
            self.is_learned = True
            first.clear()
            if not is_pressed:
                # Of an overload from the first call on those that began first have met the least.
                self.usual_s = min(mean_s, self.usual_s)

    def _note(self, took_s: float, chunk: int) -> None:
        """Gather chunks of samples; `_mean_s` is that of the last one where `_count` is 0."""
        self._sum_s += took_s
        self._count += 1
        if self._count >= chunk:
            self._mean_s = self._sum_s / self._count
            self._sum_s, self._count = 0.0, 0

    def has_had_enough(self, took_s: float) -> bool:
        """Tell whether so long is more than 99 % of answers take: who has not answered is late.

        False while there is too little history: what is usual is not known.
        """
        return self.is_learned and took_s > self.p99_s

    def is_drop(self, took_s: float) -> bool:
        """Tell whether who gave up after so long did because of a queue, and not of impatience.

        Not by the slowest answers: in an overload that has lasted they are as slow as time-outs.
        """
        return took_s > self.usual_s > 0.0

    @property
    def hedge_after_s(self) -> float | None:
        """After how long a second attempt is worth it: 95 % answer sooner. None: not known yet."""
        return self.p95_s if self.is_learned else None

    def __repr__(self) -> str:
        usual, slow = self.usual_s * 1000, self.p99_s * 1000
        return f"<LatencyTracker usual {usual:.3g} ms, p99 {slow:.3g} ms of {self.samples} samples>"
