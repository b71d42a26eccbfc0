"""The shell of `HedgedCall`: two attempts at once, and the first answer counts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from synchromesh.clock import loop_clock
from synchromesh.resilience.attempts import Attempt, Attempts
from synchromesh.resilience.classification import may_retry
from synchromesh.resilience.hedging import HedgedCall

T = TypeVar("T")


class HedgedRun(Generic[T]):
    """One call under way, each attempt in a task; `run` leaves no task behind.

    Args:
        call: decides when there is a second attempt, and when the call is done.
        attempts: of the same call.
        send: makes an attempt.
        take: takes a slot for a second attempt; False where there is none.
        release: gives that slot back.
    """

    def __init__(
        self,
        call: HedgedCall,
        attempts: Attempts,
        send: Callable[[Attempt], Coroutine[Any, Any, T]],
        *,
        take: Callable[[], bool],
        release: Callable[[], None],
    ) -> None:
        self._call = call
        self._attempts = attempts
        self._send = send
        self._take = take
        self._release = release
        self._under_way: dict[asyncio.Task[T], Attempt] = {}

    async def run(self, first: Attempt) -> T:
        """Make the first attempt, and a second one where it is late; return the first answer.

        Raises:
            Exception: what the attempt raised that ended last, or that asking again cannot change.
        """
        self._start(first)
        try:
            return (await self._decided(first)).result()
        except GeneratorExit:
            # Thrown away, maybe with its loop: nobody can wait for them.
            self._cancel()
            self._under_way.clear()
            raise
        finally:
            await self._give_up()

    def __repr__(self) -> str:
        return f"<HedgedRun {self._call!r}>"

    async def _decided(self, first: Attempt) -> asyncio.Task[T]:
        """Return the attempt whose outcome is the call's."""
        call, now = self._call, loop_clock(asyncio.get_running_loop())
        while True:
            wait_s = None if call.due_s == math.inf else max(0.0, call.due_s - now())
            done, _ = await asyncio.wait(
                tuple(self._under_way), timeout=wait_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                self._hedge(first, now())
            # Where both have ended an answer goes first.
            for task in sorted(done, key=self._rank):
                if self._has_decided(task, now()):
                    return task

    def _hedge(self, first: Attempt, now: float) -> None:
        """Send a second time, where there is another instance, time, a slot and a token."""
        is_in_time = first.deadline_s is None or now < first.deadline_s
        if first.judge is None or not is_in_time or not self._take():
            self._call.due_s = math.inf
            return
        second = self._attempts.hedge(self._call, now)
        if second is None:
            self._release()
            return
        # A task that is cancelled before its first step runs nothing, no `finally` either.
        self._start(second).add_done_callback(lambda _: self._release())

    def _start(self, attempt: Attempt) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(self._send(attempt))
        self._under_way[task] = attempt
        return task

    def _rank(self, task: asyncio.Task[T]) -> tuple[bool, int]:
        return task.cancelled() or task.exception() is not None, self._under_way[task].number

    def _has_decided(self, task: asyncio.Task[T], now: float) -> bool:
        attempt, error = self._under_way.pop(task), task.exception()
        self._attempts.ended(attempt, error)
        # What asking again cannot change is as good as an answer.
        is_answer = not isinstance(error, Exception) or not may_retry(
            error, is_retryable_unknown=True
        )
        return self._call.end(attempt.number, is_answer=is_answer, now=now)

    def _cancel(self) -> None:
        for task in self._under_way:
            if not task.get_loop().is_closed():
                task.cancel()

    async def _give_up(self) -> None:
        """Cancel what is under way still, and wait until it has given back what it took."""
        if not self._under_way:
            return
        self._cancel()
        under_way = self._under_way
        self._under_way = {}
        await asyncio.wait(tuple(under_way))
        for task, attempt in under_way.items():
            self._attempts.ended(attempt, None if task.cancelled() else task.exception())
