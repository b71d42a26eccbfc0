"""Asks once for all who ask the same at the same time.

The asking is nobody's: it has a task of its own, which goes on while anybody waits for it, so that
the first may leave. It ends by the time of the one who began it; whoever came later, and still has
time, begins it again. So does whoever waits for what was asked in another's name, and refused him.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Final, Generic, TypeVar

from synchromesh.errors import (
    DeadlineExceeded,
    Forbidden,
    RateLimited,
    Rejection,
    SynchromeshError,
    TimedOut,
    Unauthenticated,
)

T = TypeVar("T")

_LATE: Final = (DeadlineExceeded, TimedOut)
# What one may be told, and another not.
_PERSONAL: Final = (Forbidden, RateLimited, Rejection, Unauthenticated)


class _Flight(Generic[T]):
    """A question under way, in whose name, and how many wait for its answer."""

    __slots__ = ("task", "waiting", "who")

    def __init__(self, task: asyncio.Task[T | SynchromeshError], who: Hashable) -> None:
        self.task = task
        self.who = who
        self.waiting = 0


class Coalescer(Generic[T]):
    """Keeps the questions that are under way, so that equal ones are asked once.

    It holds no more of them than there are requests in flight, and nothing of what was answered.

    Example:
        >>> async def main() -> tuple[list[int], int]:
        ...     asked = Coalescer[int]()
        ...     calls = []
        ...     async def ask() -> int:
        ...         calls.append(1)
        ...         await asyncio.sleep(0.01)
        ...         return 7
        ...     answers = [asked.answer("stock of SX90", ask, deadline_s=9e9) for _ in range(3)]
        ...     return list(await asyncio.gather(*answers)), len(calls)
        >>> asyncio.run(main())
        ([7, 7, 7], 1)
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight[T]] = {}

    async def answer(
        self,
        question: Hashable,
        ask: Callable[[], Coroutine[Any, Any, T]],
        *,
        deadline_s: float | None,
        who: Hashable = None,
    ) -> T:
        """Return the answer to a question, asked for by `ask` unless somebody asks it already.

        Args:
            question: what tells it from others, and whose it is.
            ask: asks it, within the time of whoever begins it.
            deadline_s: until when who asks waits, and may begin it again, on the loop's clock.
            who: in whose name it is asked; what refuses one is told to nobody else.

        Raises:
            TimedOut: there is no answer when the time is over.
            SynchromeshError: what `ask` raised; all who waited for that are told the same.
        """
        loop = asyncio.get_running_loop()
        while True:
            flight = self._flights.get(question)
            is_first = flight is None or flight.task.done()
            if flight is None or is_first:
                flight = self._flights[question] = _Flight(loop.create_task(_asked(ask)), who)
                flight.task.add_done_callback(partial(self._landed, question, flight))
            # Who began it is told by it when the time is over; it may be another's who is later.
            timeout_s = None
            if deadline_s is not None and not is_first:
                timeout_s = max(0.0, deadline_s - loop.time())
            answer = await self._waited(question, flight, timeout_s)
            if not isinstance(answer, SynchromeshError):
                return answer
            is_anothers = isinstance(answer, _LATE) or (
                flight.who != who and isinstance(answer, _PERSONAL)
            )
            has_time = deadline_s is None or loop.time() < deadline_s
            if is_first or not (is_anothers and has_time):
                raise answer

    def __len__(self) -> int:
        return len(self._flights)

    def __repr__(self) -> str:
        return f"<Coalescer {len(self)} under way>"

    async def _waited(
        self, question: Hashable, flight: _Flight[T], timeout_s: float | None
    ) -> T | SynchromeshError:
        flight.waiting += 1
        try:
            # It is not cancelled with one who waits for it.
            done, _ = await asyncio.wait((flight.task,), timeout=timeout_s)
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.task.done():
                # Nobody is left. Who comes from now on asks anew.
                self._landed(question, flight)
                flight.task.cancel()
        if not done:
            return TimedOut("no answer came in time")
        return flight.task.result()

    def _landed(self, question: Hashable, flight: _Flight[T], _: object = None) -> None:
        if self._flights.get(question) is flight:
            del self._flights[question]


async def _asked(ask: Callable[[], Coroutine[Any, Any, T]]) -> T | SynchromeshError:
    try:
        return await ask()
    except SynchromeshError as error:
        # What is handed to several needs none of the frames that it came through.
        return error.with_traceback(None)
