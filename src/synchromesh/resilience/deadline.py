"""Deadlines on the loop's clock: cancel what is late, and keep every error's identity.

Built on `asyncio.timeout_at`, whose bookkeeping keeps a cancellation from outside apart from its
own. It adds one thing: a `TimeoutError` of the code inside is never mistaken for this deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlinePassed(TimeoutError):
    """Reports that the deadline given to `within` passed; never raised by the code inside."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"the deadline at {deadline_s:.3f} s on the loop's clock has passed")
        self.deadline_s = deadline_s


async def within(body: Callable[[], Awaitable[T]], deadline_s: float | None) -> T:
    """Await `body()` in this task with a deadline: return its result, or cancel it at `deadline_s`.

    `deadline_s` is on the loop's clock; None waits without end. Context variables are the caller's.
    A deadline that has passed lets `body` run up to its first real wait.

    Raises:
        DeadlinePassed: the body was cancelled at its deadline.
        CancelledError: the task was cancelled from outside, also when both came at once.
        Exception: what the body raised, a TimeoutError of its own too, as the same object.

    Example:
        >>> async def answer() -> int:
        ...     return 42
        >>> asyncio.run(within(answer, None))
        42
    """
    if deadline_s is None:
        return await body()
    # A flag, not the error: this frame is in its traceback, and the two would keep each other.
    is_of_body = False
    try:
        async with asyncio.timeout_at(deadline_s):
            try:
                return await body()
            except TimeoutError:
                is_of_body = True
                raise
    except TimeoutError:
        if is_of_body:
            raise
    # Out here, without a context: the timeout's own error leads to the task that may keep this one.
    raise DeadlinePassed(deadline_s)


def is_being_cancelled() -> bool:
    """Return whether the current task is being cancelled, and not only what it awaited.

    Asked in a function, for a task in a frame that raises its `CancelledError` again is a cycle.

    Example:
        >>> async def main() -> bool:
        ...     return is_being_cancelled()
        >>> asyncio.run(main())
        False
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
