"""Deadlines: cancel what is late and keep every error's identity, and the deadline of a context.

`within` is built on `asyncio.timeout_at`, whose bookkeeping keeps a cancellation from outside apart
from its own. It adds one thing: a `TimeoutError` of the code inside is never mistaken for this
deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self, TypeVar

from synchromesh.clock import loop_clock
from synchromesh.durations import is_number
from synchromesh.errors import ConfigError
from synchromesh.resilience.attempts import deadline_passed
from synchromesh.runtime import RealThreads

T = TypeVar("T")


class AmbientDeadline:
    """The deadline of all guarded calls that are made in a `with` block; made by `deadline`."""

    __slots__ = ("_clock", "_due_s", "_seconds", "_token")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due_s = 0.0
        self._clock: Callable[[], float] = float
        self._token: Token[AmbientDeadline | None] | None = None

    def __enter__(self) -> Self:
        global are_used
        if self._token is not None:
            raise RuntimeError("a deadline is entered once; call deadline() for each block")
        try:
            self._clock = loop_clock(asyncio.get_running_loop())
        except RuntimeError:
            self._clock = RealThreads().time  # in a thread without a loop
        self._due_s = self._clock() + self._seconds
        outer = ambient.get()
        if outer is not None:
            self._due_s = min(self._due_s, outer.due_s(self._clock))
        self._token = ambient.set(self)
        are_used = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            ambient.reset(self._token)

    def remaining_s(self) -> float:
        """Return the seconds that are left, never below 0."""
        return max(0.0, self._due_s - self._clock())

    def due_s(self, clock: Callable[[], float]) -> float:
        """Return when it passes on another clock: contexts are handed on to threads and loops."""
        if clock == self._clock:
            return self._due_s
        return clock() + self._due_s - self._clock()


ambient: ContextVar[AmbientDeadline | None] = ContextVar("synchromesh_deadline", default=None)

# Whether this process has ever had one: a flag is read sooner than a context variable.
are_used = False


def deadline(seconds: float) -> AmbientDeadline:
    """Give all guarded calls of a `with` block one deadline: functions, blocks, async and sync.

    A call that begins too late raises `DeadlineExceeded` and sends nothing; one that is under way
    is cut and raises `TimedOut`, which says nothing about the callee unless it had as much time as
    it needs; no retry begins past it. A sync function cannot be cut, so that there it holds between
    attempts. Nested, the earlier one counts. Tasks and threads that take the context along have it
    too. What is not guarded is not cut: `asyncio.timeout` does that.

    Args:
        seconds: from when the block is entered; 0 or less leaves no time.

    Raises:
        ConfigError: it is not a number of seconds.

    Example:
        >>> from synchromesh import Policy
        >>> @Policy().wrap
        ... async def price(sku: str) -> int:
        ...     return 42
        >>> async def main() -> int:
        ...     with deadline(2.0):
        ...         return await price("SX90")
        >>> asyncio.run(main())
        42
    """
    if not is_number(seconds):
        raise ConfigError(f"the deadline is {seconds!r}; make it a number of seconds")
    return AmbientDeadline(seconds)


def call_due_s(clock: Callable[[], float], began_s: float, within_s: float | None) -> float | None:
    """Return by when a call has to end that begins now: its own time, the ambient one, or None.

    Args:
        clock: that the result is on.
        began_s: what it says now.
        within_s: how long the call may take of itself; None for as long as it wants.

    Raises:
        DeadlineExceeded: that is past.
    """
    outer = ambient.get()
    due_s = None if outer is None else outer.due_s(clock)
    if within_s is not None and (due_s is None or began_s + within_s < due_s):
        return began_s + within_s
    if due_s is not None and due_s <= began_s:
        raise deadline_passed(began_s - due_s)
    return due_s


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
