"""A callee with a number of places, its callers, and a limiter between them; in virtual time."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from benchmarks.cascade.sharing import Sharing

from synchromesh.errors import Shed
from synchromesh.priority import Priority
from synchromesh.resilience import AdaptiveLimitOptions, LatencyTracker, Limiter
from synchromesh.testing import run


@dataclass
class Work:
    """What one operation costs: `mean_s` of a place, exponential or log-normal.

    Attributes:
        rare_s: how long the `rare` ones take that miss a cache, say; None where all are alike.
    """

    mean_s: float
    sigma: float | None = None
    share: float = 1.0
    rare_s: float | None = None
    rare: float = 0.2

    def draw(self, rng: random.Random) -> float:
        if self.rare_s is not None:
            return self.rare_s if rng.random() < self.rare else self.mean_s
        if self.sigma is None:
            return rng.expovariate(1 / self.mean_s)
        return self.mean_s * rng.lognormvariate(-self.sigma * self.sigma / 2, self.sigma)


@dataclass
class Callee:
    """Serves as many calls at once as it has places, and queues all others, first come first."""

    places: int
    busy: int = 0
    queue: deque[asyncio.Future[None]] = field(default_factory=deque)
    wasted: int = 0

    async def serve(self, work_s: float) -> None:
        if self.busy >= self.places:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._left()
                raise
        else:
            self.busy += 1
        try:
            await asyncio.sleep(work_s)
        finally:
            self._left()

    def _left(self) -> None:
        self.busy -= 1
        self.admit()

    def admit(self) -> None:
        while self.queue and self.busy < self.places:
            turn = self.queue.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(None)


@dataclass
class Told:
    """What became of one call."""

    at_s: float
    operation: int
    priority: Priority
    outcome: str
    took_s: float


@dataclass
class Load:
    """Calls in `[from_s, until_s)`, so many a second, at random or evenly."""

    rate: float
    from_s: float = 0.0
    until_s: float = 10.0
    priority: Priority = Priority.INTERACTIVE


@dataclass
class World:
    """One run.

    Attributes:
        places: of the callee; `changes` says when there are how many instead.
        slower: when its work takes how many times as long.
        is_cut: whether the callee stops what its caller has given up, as with a limiter at the
            callee; else it goes on with it in vain, as a foreign one does.
        is_shared: whether calls share the places, or wait for one.
    """

    places: int
    works: tuple[Work, ...]
    loads: tuple[Load, ...]
    seed: int
    limiter: AdaptiveLimitOptions | None = field(default_factory=AdaptiveLimitOptions)
    changes: tuple[tuple[float, int], ...] = ()
    slower: tuple[tuple[float, float], ...] = ()
    deadline_s: float | None = 1.0
    is_cut: bool = True
    is_shared: bool = False
    told: list[Told] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)

    def play(self) -> World:
        run(lambda _: self._main(), until_s=100_000.0)
        return self

    async def _main(self) -> None:
        rng = random.Random(self.seed)
        loop = asyncio.get_running_loop()
        self._began_s = loop.time()
        self._callee = Sharing(self.places) if self.is_shared else Callee(self.places)
        self._limiter = None if self.limiter is None else Limiter(self.limiter, name="callee")
        self._trackers = [LatencyTracker() for _ in self.works]
        for at_s, places in self.changes:
            loop.call_later(at_s, self._change, places)
        await asyncio.gather(
            *(self._arrive(each, random.Random(rng.random())) for each in self.loads)
        )
        await asyncio.sleep(30.0)
        if self._limiter is not None:
            assert (self._limiter.in_flight, self._limiter.waiting) == (0, 0)

    def _change(self, places: int) -> None:
        self._callee.places = places
        self._callee.admit()

    async def _arrive(self, load: Load, rng: random.Random) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(load.from_s)
        pending = set()
        while True:
            await asyncio.sleep(rng.expovariate(load.rate))
            if loop.time() - self._began_s >= load.until_s:
                return
            operation = rng.choices(range(len(self.works)), [each.share for each in self.works])[0]
            now_s = loop.time() - self._began_s
            times = [factor for at_s, factor in self.slower if now_s >= at_s] or [1.0]
            work_s = self.works[operation].draw(rng) * times[-1]
            task = loop.create_task(self._call(operation, work_s, load.priority))
            pending.add(task)
            task.add_done_callback(pending.discard)

    async def _call(self, operation: int, work_s: float, priority: Priority) -> None:
        began_s = asyncio.get_running_loop().time()
        until_s = None if self.deadline_s is None else began_s + self.deadline_s
        outcome = await self._limited(operation, work_s, priority, until_s)
        now = asyncio.get_running_loop().time()
        self.told.append(Told(began_s - self._began_s, operation, priority, outcome, now - began_s))

    async def _limited(
        self, operation: int, work_s: float, priority: Priority, until_s: float | None
    ) -> str:
        loop, limiter, tracker = (
            asyncio.get_running_loop(),
            self._limiter,
            self._trackers[operation],
        )
        if limiter is None:
            return await self._served(work_s, until_s)
        try:
            if priority is Priority.INTERACTIVE and limiter.in_flight < limiter.in_flight_max:
                limiter.in_flight += 1
            else:
                await limiter.acquire(until_s, priority)
        except Shed:
            return "shed"
        began_s = loop.time()
        try:
            outcome = await self._served(work_s, until_s)
            now = loop.time()
            if now >= tracker.next_sample_s:
                limiter.sample(tracker, now, now - began_s, is_late=outcome != "ok")
        finally:
            if limiter.waiting:
                limiter.release()
            else:
                limiter.in_flight -= 1
        self.limits.append((now - self._began_s, limiter.in_flight_max))
        return outcome

    async def _served(self, work_s: float, until_s: float | None) -> str:
        work = asyncio.ensure_future(self._callee.serve(work_s))
        loop = asyncio.get_running_loop()
        left_s = None if until_s is None else until_s - loop.time()
        done, _ = await asyncio.wait((work,), timeout=left_s)
        if done:
            return "ok"
        if self.is_cut:
            work.cancel()
        return "late"

    def share(
        self,
        outcome: str,
        when: Callable[[Told], bool] = lambda _: True,
    ) -> float:
        chosen = [each for each in self.told if when(each)]
        return sum(each.outcome == outcome for each in chosen) / max(1, len(chosen))

    def count(self, outcome: str, from_s: float = 0.0, until_s: float = math.inf) -> int:
        return sum(each.outcome == outcome and from_s <= each.at_s < until_s for each in self.told)


def mean(values: Iterable[float]) -> float:
    """Return the mean of some values."""
    listed = list(values)
    return sum(listed) / len(listed)
