"""A bulkhead, or concurrency limit: so many at once, so many queued, and the rest is shed.

The limit is fixed by hand (`LimitOptions`) or finds itself (`AdaptiveLimitOptions`). Under pressure
the lower class gives way: each may take a share of the slots only, so that what is left is for
those above, and the queue serves and keeps the higher class first.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from synchromesh.clock import loop_clock
from synchromesh.durations import FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import Shed
from synchromesh.priority import Priority
from synchromesh.resilience.adaptive_limit import AdaptiveLimit, AdaptiveLimitOptions
from synchromesh.resilience.deadlines import DeadlinePassed, within
from synchromesh.resilience.latency import LatencyTracker
from synchromesh.resilience.waiting_line import STANDING_S, Waiting, WaitingLine

# A global is read faster than a member of a class.
_ABOVE_ALL = Priority.INTERACTIVE

# The share of the slots that a class may take.
SHARES = {Priority.BATCH: 0.6, Priority.RETRY: 0.75, Priority.SAGA: 0.9, Priority.INTERACTIVE: 1.0}


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """Configures a concurrency limit and its queue.

    Attributes:
        in_flight_max: how many run at once.
        queue_max: how many more may wait for a slot: in turn, and the newest first when the queue
            has stood for 0.1 s.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> LimitOptions(in_flight_max=8, queue_max=16)
        LimitOptions(in_flight_max=8, queue_max=16)
    """

    in_flight_max: int = 64
    queue_max: int = 0

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (FROM_1, "in_flight_max"), (FROM_0, "queue_max"))


class Limiter:
    """Limits how many run concurrently; `async with limiter:` holds one slot.

    Those who cannot afford a frame take a slot, for the highest class, and give it back by counting

        if limiter.in_flight < limiter.in_flight_max:
            limiter.in_flight += 1
        ...
        if tracker is not None and now >= tracker.next_sample_s:
            limiter.sample(tracker, now, took_s)
        if limiter.waiting:
            limiter.release()
        else:
            limiter.in_flight -= 1

    and the methods are for all else. A limit that adapts itself needs the samples: of answers, and
    of calls that ended in a time-out or an overload answer. A call whose answer comes in parts
    gives its slot back once that begins: the rest is the time of whoever reads it.

    Args:
        options: how many, or how that is found.
        name: what it limits, for messages.
        trusts_refusals: as of `AdaptiveLimit`.

    Attributes:
        in_flight: how many slots are held; `in_flight_max`: how many there are now.
        waiting: how many are queued for one. Where it is 0 counting will do.

    Raises on entry:
        Shed: every slot is taken and the queue is full. It never waits for room in the queue.

    Example:
        >>> async def main() -> str:
        ...     limiter = Limiter(LimitOptions(in_flight_max=1), name="billing")
        ...     async with limiter:
        ...         return repr(limiter)
        >>> asyncio.run(main())
        '<Limiter billing 1/1 in flight, 0/0 waiting>'
    """

    __slots__ = (
        "_adaptive",
        "_answered_s",
        "_clock",
        "_full_s",
        "_line",
        "_name",
        "_queue_max",
        "_streams",
        "_streams_max",
        "_wait_max_s",
        "in_flight",
        "in_flight_max",
        "waiting",
    )

    def __init__(
        self,
        options: LimitOptions | AdaptiveLimitOptions,
        *,
        name: str,
        trusts_refusals: bool = False,
    ) -> None:
        self._name = name
        self._queue_max = options.queue_max
        self._line: WaitingLine[asyncio.Future[bool]] = WaitingLine(options.queue_max)
        self._adaptive: AdaptiveLimit | None = None
        self._wait_max_s = math.inf
        if isinstance(options, AdaptiveLimitOptions):
            self._adaptive = AdaptiveLimit(options, trusts_refusals=trusts_refusals)
            self._wait_max_s = options.wait_max_s
            self.in_flight_max = options.initial
        else:
            self.in_flight_max = options.in_flight_max
        self.in_flight = 0
        self.waiting = 0
        # Of the loop on which somebody waits: who is thrown away has none of his own any more.
        self._clock: Callable[[], float] = float
        # When the callee last answered, and since when all that came found every slot taken.
        self._answered_s = self._full_s = -math.inf

    def take(self, priority: Priority = Priority.INTERACTIVE) -> bool:
        """Acquire a slot if one is free at this moment; to be given back with `release`."""
        # Whoever may have a slot that becomes free gets it at once, so a free one means no queue.
        # A whole number is below a share where it is below what that is rounded up to (`_share`).
        if self.in_flight < self.in_flight_max and (
            priority is _ABOVE_ALL or self.in_flight < self.in_flight_max * SHARES[priority]
        ):
            self.in_flight += 1
            return True
        return False

    async def acquire(
        self, deadline_s: float | None = None, priority: Priority = Priority.INTERACTIVE
    ) -> None:
        """Acquire a slot, at once or in turn; to be given back with `release`.

        Raises:
            Shed: the queue is full, or a call of a higher class took the place in it, or no slot
                was free in time: by `deadline_s` on the loop's clock. A limit that adapts itself
                lets nobody wait for more than half of that time, nor longer than a burst lasts,
                nor until less is left than an answer usually takes.
        """
        if self.take(priority):
            return
        self._clock = loop_clock(asyncio.get_running_loop())
        now = self._clock()
        if not self._queue_max or self._is_stalled(now):
            raise self._shed(now, "took no more")
        until_s = now + self._wait_s(now)
        if deadline_s is not None:
            # An adaptive limit leaves the callee as much time as the queue takes.
            until_s = min(until_s, self._latest_s(now, deadline_s))
            if until_s <= now:
                raise self._shed(now, "no time is left for a wait")
        try:
            has_slot = await within(
                lambda: self._turn(now, until_s, priority), None if until_s == math.inf else until_s
            )
        except DeadlinePassed:
            raise self._shed(until_s, "no slot was free in time") from None
        if not has_slot:
            raise self._shed(now, "took no more")

    def release(self) -> None:
        """Release a slot: to whose turn it is, if somebody waits."""
        self.in_flight -= 1
        if self.waiting:
            self.hand_over()

    def sample(
        self,
        tracker: LatencyTracker,
        now: float,
        took_s: float,
        *,
        is_late: bool = False,
        is_shed: bool = False,
    ) -> None:
        """Learn from a call that has ended, before its slot is released.

        Args:
            tracker: of its operation; due when `now >= tracker.next_sample_s`.
            now: the time of the loop's clock.
            took_s: how long it ran, without its time in the queue.
            is_late: it ended in a time-out for which the callee is to blame.
            is_shed: it was refused for overload.
        """
        adaptive = self._adaptive
        is_answer = not (is_late or is_shed)
        if adaptive is None:
            if is_answer:
                tracker.sample(now, took_s)
            return
        if is_answer:
            self._answered_s = now
        adaptive.sample(
            tracker, now, took_s, in_flight=self.in_flight, is_late=is_late, is_shed=is_shed
        )
        self.in_flight_max = adaptive.limit
        if self.waiting:
            self.hand_over()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        held = f"{self.in_flight}/{self.in_flight_max} in flight"
        return f"<Limiter {self._name} {held}, {self.waiting}/{self._queue_max} waiting>"

    def _share(self, priority: Priority) -> int:
        """Return how many slots may be taken when a call of this class takes one of them."""
        if priority is Priority.INTERACTIVE:
            return self.in_flight_max
        return math.ceil(self.in_flight_max * SHARES[priority])

    def hand_over(self) -> None:
        """Give free slots to those who wait, as long as there is one for whose turn it is."""
        line = self._line
        now = self._clock()
        while line.length:
            allowed = next((each for each in Priority if self.in_flight < self._share(each)), None)
            waiting = None if allowed is None else line.next(now, allowed)
            if waiting is None:
                break
            if not waiting.turn.done():
                self.in_flight += 1
                waiting.turn.set_result(True)
        self.waiting = line.length

    def _latest_s(self, now: float, deadline_s: float) -> float:
        """Return until when a wait is of use to a call: what it takes itself has to be left."""
        if self._adaptive is None:
            return deadline_s
        return min((now + deadline_s) / 2, deadline_s - self._adaptive.usual_s)

    def _wait_s(self, now: float) -> float:
        """Return how long who comes now may wait: less in a queue that is no burst any more."""
        adaptive, line = self._adaptive, self._line
        if adaptive is None:
            return math.inf
        if not adaptive.usual_s:
            return 4 * self._wait_max_s  # nothing is known: its calls may take long
        if line.length and now - line.began_s > self._wait_max_s:
            return max(STANDING_S, adaptive.usual_s)
        return max(self._wait_max_s, 4 * adaptive.usual_s)

    def _is_stalled(self, now: float) -> bool:
        """Whether calls have come for longer than one would wait, and none was answered since."""
        if self._adaptive is None or self._answered_s == -math.inf:
            return False
        if self._answered_s >= self._full_s:
            self._full_s = now
        return now - self._full_s > max(self._wait_max_s, 4 * self._adaptive.usual_s)

    async def _turn(self, now: float, until_s: float, priority: Priority) -> bool:
        """Wait in the queue; return whether a slot came of it."""
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        waiting, line = Waiting(turn, priority, until_s), self._line
        victim = line.join(waiting, now)
        self.waiting = line.length
        if victim is not None and not victim.turn.done():
            victim.turn.set_result(False)
        try:
            return await turn
        except BaseException:
            # Cancelled, or thrown away.
            if turn.cancelled() or not turn.done():
                line.leave(waiting)
                self.waiting = line.length
            elif turn.result():
                # The slot was handed over in the moment of the cancellation: pass it on.
                self.release()
            raise

    def _shed(self, now: float, why: str) -> Shed:
        """Return the refusal; the longer the queue has stood, the later to ask again."""
        stood_s = now - self._line.began_s if self._line.length else 0.0
        return Shed(
            f"{self._name} already runs {self.in_flight} at once with {self.waiting} waiting, and "
            f"{why}, nothing was run; retry later",
            retry_after_s=min(max(stood_s, 0.05), 1.0),
        )
