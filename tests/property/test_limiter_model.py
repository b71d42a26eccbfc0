"""Limiter: histories of calls that come, end and are cancelled, while its limit moves.

After each step the limiter is compared with the checker's own record: never more than may run,
nobody waits whose slot is free, and no slot is lost, whatever moment a cancellation comes at.
"""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from synchromesh.errors import Shed
from synchromesh.priority import Priority
from synchromesh.resilience import AdaptiveLimitOptions, LatencyTracker, Limiter, LimitOptions
from synchromesh.resilience.limiter import SHARES
from synchromesh.testing import run

FIXED = LimitOptions(in_flight_max=2, queue_max=2)
ADAPTIVE = AdaptiveLimitOptions(
    initial=3, limit_min=1, limit_max=6, room_max=1, queue_max=2, wait_max_s=0.5
)
OPERATIONS = (
    "person", "batch", "hurried", "inline", "end oldest", "end newest", "cancel holder",
    "cancel waiter", "end and cancel", "throw away", "drops", "quick", "time",
)  # fmt: skip


class Checker:
    """Runs one history on a limiter."""

    def __init__(self, options: LimitOptions | AdaptiveLimitOptions, kind: type[Limiter]) -> None:
        self.limiter = kind(options, name="model")
        self.queue_max = options.queue_max
        self.tracker = LatencyTracker()
        self.holders: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        self.waiters: dict[asyncio.Task[None], tuple[Priority, asyncio.Event]] = {}
        self.held = 0
        self.refused: list[float] = []

    async def step(self, operation: str) -> None:
        limiter, before = self.limiter, self.limiter.in_flight
        if operation in ("person", "batch", "hurried"):
            self._come(operation)
        elif operation == "inline" and limiter.in_flight < limiter.in_flight_max:
            self._come("inline")
        elif operation.startswith("end") and self.holders:
            self.holders.pop(0 if operation == "end oldest" else -1)[1].set()
            if operation == "end and cancel":
                await asyncio.sleep(0)  # it may have released, and whose turn it is not have run
                self._cancel_waiter()
        elif operation == "cancel holder" and self.holders:
            self.holders.pop()[0].cancel()
        elif operation == "cancel waiter":
            self._cancel_waiter()
        elif operation == "throw away":
            waiting = limiter.acquire()
            try:
                waiting.send(None)
            except StopIteration:
                limiter.release()
            except Shed:
                pass
            waiting.close()
        elif operation in ("drops", "quick"):
            self._learn(is_late=operation == "drops")
            before = limiter.in_flight
        elif operation == "time":
            await asyncio.sleep(0.3)
        assert limiter.in_flight <= max(before, limiter.in_flight_max)
        await asyncio.sleep(1e-6)  # in virtual time all that is ready has run by then
        self.check()

    def check(self) -> None:
        limiter = self.limiter
        waiting = [priority for priority, _ in self.waiters.values()]
        assert limiter.in_flight == self.held >= 0, "a slot was lost, or given twice"
        assert limiter.waiting == len(waiting) <= self.queue_max
        for priority in waiting:
            is_full = limiter.in_flight >= SHARES[priority] * limiter.in_flight_max
            assert is_full, "somebody waits whose slot is free"

    async def end(self) -> None:
        """End all calls: every slot comes back, and everybody who waited was served or refused."""
        while self.holders or self.waiters:
            if self.holders:
                self.holders.pop()[1].set()
            await asyncio.sleep(0.01)
        self.check()
        assert (self.limiter.in_flight, self.limiter.waiting) == (0, 0)

    def _come(self, how: str) -> None:
        leave = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._call(how, leave))
        self.waiters[task] = (Priority.BATCH if how == "batch" else Priority.INTERACTIVE, leave)

    def _cancel_waiter(self) -> None:
        if self.waiters:
            next(reversed(self.waiters)).cancel()

    def _learn(self, *, is_late: bool) -> None:
        now = asyncio.get_running_loop().time()
        limiter = self.limiter
        for _ in range(16):
            before = limiter.in_flight
            limiter.sample(self.tracker, now, 0.01, is_late=is_late)
            # A small limit moves with each few samples: up, for one who waits, and down again.
            assert limiter.in_flight <= max(before, limiter.in_flight_max)

    async def _call(self, how: str, leave: asyncio.Event) -> None:
        task, limiter = asyncio.current_task(), self.limiter
        assert task is not None
        now = asyncio.get_running_loop().time()
        try:
            if how == "inline" and limiter.in_flight < limiter.in_flight_max:
                limiter.in_flight += 1
            else:
                priority = Priority.BATCH if how == "batch" else Priority.INTERACTIVE
                await limiter.acquire(now + 0.2 if how == "hurried" else None, priority)
        except Shed as refusal:
            self.refused.append(refusal.retry_after_s or 0.0)
            return
        finally:
            del self.waiters[task]
        self.held += 1
        me = (task, leave)
        self.holders.append(me)
        try:
            await leave.wait()
        finally:
            if me in self.holders:
                self.holders.remove(me)
            self.held -= 1
            if limiter.waiting:
                limiter.release()
            else:
                limiter.in_flight -= 1


async def walk(
    history: tuple[str, ...],
    options: LimitOptions | AdaptiveLimitOptions,
    kind: type[Limiter] = Limiter,
) -> list[float]:
    checker = Checker(options, kind)
    for operation in history:
        try:
            await checker.step(operation)
        except AssertionError as error:
            raise AssertionError(f"{error}; after: {', '.join(history)}") from None
    await checker.end()
    return checker.refused


PREFIXES = {
    "from the start": (),
    "full": ("person", "inline", "person"),
    "full, two waiting": ("person", "person", "person", "batch", "person", "person"),
}


@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_every_history_keeps_the_invariants(
    prefix: tuple[str, ...], options: LimitOptions | AdaptiveLimitOptions
) -> None:
    """All histories of three operations, from each odd situation."""

    async def main() -> None:
        for history in itertools.product(OPERATIONS, repeat=3):
            await walk((*prefix, *history), options)

    run(lambda _: main(), until_s=1_000_000.0)


def histories(seed: int) -> list[tuple[str, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.choices(OPERATIONS, k=rng.randrange(5, 40))) for _ in range(100)]


@pytest.mark.parametrize("options", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("seed", range(5))
def test_long_histories_keep_the_invariants(
    seed: int, options: LimitOptions | AdaptiveLimitOptions
) -> None:
    """Chance makes them as long as trouble needs."""

    async def main() -> list[float]:
        walks = [await walk(history, options) for history in histories(seed)]
        return [retry_after_s for refused in walks for retry_after_s in refused]

    waits = run(lambda _: main(), until_s=1_000_000.0)
    assert waits
    assert all(0 < wait_s <= 1.0 for wait_s in waits)


class LosesWakeUps(Limiter):
    """Counts the slot free and tells nobody."""

    def release(self) -> None:
        self.in_flight -= 1


class KeepsHandedSlots(Limiter):
    """Gives a slot to one who was cancelled in that moment."""

    async def acquire(
        self, deadline_s: float | None = None, priority: Priority = Priority.INTERACTIVE
    ) -> None:
        in_flight = self.in_flight
        try:
            await super().acquire(deadline_s, priority)
        except asyncio.CancelledError:
            self.in_flight = in_flight
            raise


class AdmitsTooMany(Limiter):
    """Hands a slot over though the limit was cut meanwhile."""

    def _share(self, priority: Priority) -> int:
        return super()._share(priority) + (self._line.length > 0)


class ForgetsARise(Limiter):
    """Lets those wait for whom a higher limit has room."""

    def sample(
        self,
        tracker: LatencyTracker,
        now: float,
        took_s: float,
        *,
        is_late: bool = False,
        is_shed: bool = False,
    ) -> None:
        waiting, self.waiting = self.waiting, 0
        super().sample(tracker, now, took_s, is_late=is_late, is_shed=is_shed)
        self.waiting = waiting


@pytest.mark.parametrize("fault", [LosesWakeUps, KeepsHandedSlots, AdmitsTooMany, ForgetsARise])
def test_a_planted_fault_is_found(fault: type[Limiter]) -> None:
    """The checker is not blind: each way to break a limiter breaks an invariant."""

    async def main() -> None:
        for seed in range(5):
            for history in histories(seed):
                await walk(history, ADAPTIVE, fault)

    with pytest.raises((AssertionError, TimeoutError), match=r"slot|wait|in_flight|virtual time"):
        run(lambda _: main(), until_s=100_000.0)
