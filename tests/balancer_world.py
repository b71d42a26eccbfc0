"""Three replicas and one caller, in virtual time: what a balancer and its edge make of bad ones.

Each replica has workers and a queue; its mode may change with time. The caller sends calls at
chance intervals, and retries as an edge does, with the product's breaker, budget and backoff.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from synchromesh.discovery import Balancer, BalancerOptions, CallEnd, Endpoint, Member
from synchromesh.errors import CircuitOpen
from synchromesh.resilience import (
    Breaker,
    BreakerOptions,
    BreakerState,
    BudgetOptions,
    RetryBudget,
    RetryOptions,
)

MEAN_S, SIGMA = 0.01, 0.5
WORKERS = 8
QUICK_S = 0.001
ENDPOINTS = tuple(Endpoint(name, "billing", f"sim://{name}") for name in "abc")

# At a time, what a replica does: "ok", "refuse", "fail", "hang", "shed", or how many times slower
# it is.
Mode = Callable[[float], str | float]


def always(mode: str | float) -> Mode:
    return lambda _: mode


def until(end_s: float, mode: str | float) -> Mode:
    return lambda now: mode if now < end_s else "ok"


def flapping(mode: str | float, period_s: float) -> Mode:
    return lambda now: mode if now % (2 * period_s) < period_s else "ok"


@dataclass(frozen=True)
class Load:
    """What the caller does: `deadline_s` bounds a whole call, `timeout_s` an attempt.

    `own_s` is the edge's timeout: an attempt that had less time than that says nothing (B5).
    """

    rate: float = 300.0
    timeout_s: float = 2.0
    own_s: float = 2.0
    deadline_s: float = math.inf
    attempts_max: int = 3
    lasts_s: float = 20.0


@dataclass
class Call:
    """A call, and what became of it."""

    sent_s: float
    number: int = 0
    tried: set[str] = field(default_factory=set)
    took_s: float = math.inf
    is_ok: bool = False
    is_refused: bool = False


class Replica:
    """A queue before some workers."""

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.busy = 0
        self.queue: deque[Callable[[], None]] = deque()


class World:
    """Runs the calls; `calls` and `attempts` are what came of them."""

    def __init__(
        self,
        modes: dict[str, Mode],
        load: Load = Load(),
        *,
        options: BalancerOptions | None = None,
        seed: int = 1,
        joins_s: dict[str, float] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.load = load
        self.replicas = {
            each.instance: Replica(modes.get(each.instance, always("ok"))) for each in ENDPOINTS
        }
        self.joins_s = joins_s or {}
        self.balancer = Balancer(
            "billing", rng=random.Random(seed + 1), options=options or BalancerOptions()
        )
        self.breaker = Breaker(BreakerOptions(), name="edge", now=0.0)
        self.budget = RetryBudget(BudgetOptions(), now=0.0)
        self.retry = RetryOptions()
        self.calls: list[Call] = []
        self.attempts: list[tuple[float, str]] = []
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._listed: dict[frozenset[str], tuple[Endpoint, ...]] = {}

    def run(self) -> World:
        self._at(self.rng.expovariate(self.load.rate), self._arrive)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self

    def success(self, since_s: float = 0.0, until_s: float = math.inf) -> float:
        """The share of calls sent in a time that succeeded."""
        chosen = [call for call in self.calls if since_s <= call.sent_s < until_s]
        return sum(call.is_ok for call in chosen) / len(chosen)

    def shares(self, since_s: float = 0.0, until_s: float = math.inf) -> dict[str, float]:
        """Which share of the attempts that began in a time each replica had."""
        chosen = Counter(name for at_s, name in self.attempts if since_s <= at_s < until_s)
        return {name: chosen[name] / chosen.total() for name in self.replicas}

    def quantile_s(self, part: float, since_s: float = 0.0) -> float:
        took = sorted(call.took_s for call in self.calls if call.is_ok and call.sent_s >= since_s)
        return took[int(part * len(took))]

    @property
    def opened(self) -> int:
        """How many calls the breaker refused."""
        return sum(call.is_refused for call in self.calls)

    def _at(self, when_s: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when_s, self._count, event))

    def _arrive(self) -> None:
        call = Call(self.now)
        self.calls.append(call)
        self.budget.calls += 1
        self._attempt(call)
        next_s = self.now + self.rng.expovariate(self.load.rate)
        if next_s < self.load.lasts_s:
            self._at(next_s, self._arrive)

    def _attempt(self, call: Call) -> None:
        call.number += 1
        try:
            permit = self.breaker.admit(self.now)
        except CircuitOpen:
            call.is_refused = True
            return
        there = frozenset(n for n in self.replicas if self.now >= self.joins_s.get(n, 0.0))
        listed = self._listed.setdefault(there, tuple(e for e in ENDPOINTS if e.instance in there))
        tried = frozenset() if there <= call.tried else frozenset(call.tried)
        member = self.balancer.pick(listed, self.now, tried)
        call.tried.add(member.instance)
        self.attempts.append((self.now, member.instance))
        began_s, is_over = self.now, False
        timeout_s = min(self.load.timeout_s, call.sent_s + self.load.deadline_s - self.now)

        def end(how: CallEnd) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._end(call, member, permit, began_s, how)

        # Just short of it, for a float does not hold the difference.
        is_full = timeout_s > self.load.own_s - 1e-6
        self._at(began_s + timeout_s, lambda: end(CallEnd.FAILED if is_full else CallEnd.LEFT))
        self._serve(self.replicas[member.instance], end)

    def _end(self, call: Call, member: Member, permit: int, began_s: float, how: CallEnd) -> None:
        took_s = self.now - began_s
        seen = self.breaker.snapshot()
        half_open_s = seen.since_s if seen.state is BreakerState.HALF_OPEN else None
        counts = self.balancer.observe(member, self.now, took_s, how, half_open_s)
        if how in (CallEnd.LEFT, CallEnd.BUSY) or not counts:
            self.breaker.neutral(permit, self.now)
        elif how is CallEnd.FAILED:
            self.breaker.failure(permit, self.now)
        else:
            self.breaker.success(permit, self.now, took_s)
        if how is CallEnd.ANSWERED:
            call.is_ok, call.took_s = True, self.now - call.sent_s
        elif call.number < self.load.attempts_max:
            wait_s = self.retry.backoff_s(call.number, self.rng)
            is_time = self.now + wait_s < call.sent_s + self.load.deadline_s
            if is_time and self.budget.take(now=self.now):
                self._at(self.now + wait_s, lambda: self._attempt(call))

    def _serve(self, replica: Replica, end: Callable[[CallEnd], None]) -> None:
        mode = replica.mode(self.now)
        if mode == "hang":
            return
        if mode == "shed":
            self._at(self.now + QUICK_S, lambda: end(CallEnd.BUSY))
            return
        if mode in ("refuse", "fail"):
            self._at(self.now + QUICK_S, lambda: end(CallEnd.FAILED))
            return
        times = mode if isinstance(mode, float) else 1.0
        took_s = self.rng.lognormvariate(math.log(MEAN_S) - SIGMA**2 / 2, SIGMA) * times

        def begin() -> None:
            replica.busy += 1
            self._at(self.now + took_s, answer)

        def answer() -> None:
            replica.busy -= 1
            end(CallEnd.ANSWERED)
            if replica.queue:
                replica.queue.popleft()()

        if replica.busy < WORKERS:
            begin()
        else:
            replica.queue.append(begin)
