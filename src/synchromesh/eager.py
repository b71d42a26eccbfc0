"""Eager tasks: a task whose first step runs inside the call that starts it.

Most handlers end in their first step. Started eagerly they cost no turn of the loop: by the time
`start` returns the task is done, and neither a future nor a callback was made to wait for it. It is
an ordinary task from that first step on: `asyncio.timeout`, `TaskGroup` and `current_task` see the
same one before and after its first wait.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class TaskStarter(Protocol):
    """Makes eager tasks of one loop; see `starter`."""

    def __call__(
        self, coro: Coroutine[Any, Any, T], *, context: Context, name: str | None = None
    ) -> asyncio.Task[T]:
        """Make a task, run its first step at once in `context`, and return it."""
        ...


def start(
    coro: Coroutine[Any, Any, T],
    *,
    loop: asyncio.AbstractEventLoop,
    context: Context,
    name: str | None = None,
) -> asyncio.Task[T]:
    """Make a task of the running loop, run its first step at once, and return it.

    The step runs in `context`, a copy of its own for each task: a context cannot be entered twice.
    What it raises is the task's, never the caller's. Keep the task if it is not done: the loop
    itself holds it only weakly. Who starts many keeps a `starter`.

    Example:
        >>> from contextvars import copy_context
        >>> async def answer() -> int:
        ...     return 42
        >>> async def main() -> bool:
        ...     loop = asyncio.get_running_loop()
        ...     return start(answer(), loop=loop, context=copy_context()).done()
        >>> asyncio.run(main())
        True
    """
    return starter(loop)(coro, context=context, name=name)


def starter(loop: asyncio.AbstractEventLoop) -> TaskStarter:
    """Return what `start` does on one loop, put together once."""
    # A simulated loop makes tasks of its own, which belong to its processes. A task *factory* is
    # of no use here: uvloop calls it with `eager_start=None` from CPython 3.13 on.
    make: Callable[..., asyncio.Task[Any]] = getattr(loop, "make_task", asyncio.Task)
    if sys.version_info >= (3, 12):
        return partial(make, loop=loop, eager_start=True)
    return _by_hand(make, loop)


def _by_hand(
    make: Callable[..., asyncio.Task[Any]], loop: asyncio.AbstractEventLoop
) -> TaskStarter:  # pragma: no cover - of 3.11 alone
    """Return what does what `eager_start` does, which 3.11 has not.

    A new task hands its first step to `loop.call_soon`. For that moment the loop has another one,
    which keeps the step, and then it is run here.
    """
    taken: list[tuple[Any, Context | None]] = []
    # What `asyncio.current_task` reads, without its frame and without asking for the loop.
    current: dict[Any, asyncio.Task[Any]] = asyncio.tasks._current_tasks  # type: ignore[attr-defined]
    leave, enter = asyncio._leave_task, asyncio._enter_task

    def take(callback: Any, *args: Any, context: Context | None = None) -> None:
        taken.append((partial(callback, *args) if args else callback, context))

    def begin(
        coro: Coroutine[Any, Any, T], *, context: Context, name: str | None = None
    ) -> asyncio.Task[T]:
        loop.call_soon = take  # type: ignore[method-assign, assignment]
        try:
            task: asyncio.Task[T] = make(coro, loop=loop, name=name, context=context)
        finally:
            del loop.call_soon
        last = taken.pop()
        step = _sift(taken, last, task, loop) if taken else last[0]
        caller = current.get(loop)
        if caller is None:
            context.run(step)
            return task
        # A task cannot be entered within another one, so the caller's is left meanwhile.
        leave(loop, caller)
        try:
            context.run(step)
        finally:
            enter(loop, caller)
        return task

    return begin


def _sift(
    taken: list[tuple[Any, Context | None]],
    last: tuple[Any, Context | None],
    task: asyncio.Task[Any],
    loop: asyncio.AbstractEventLoop,
) -> Any:
    """Return the step of a task out of what was taken for it; the rest goes where it should.

    The garbage collector may run while a task is made, and a finalizer schedule something.
    """
    step: Any = None
    for callback, context in (*taken, last):
        if step is None and getattr(callback, "__self__", None) is task:
            step = callback
        else:
            loop.call_soon(callback, context=context)
    taken.clear()
    return step
