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
from typing import Any, TypeVar

T = TypeVar("T")


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
    itself holds it only weakly.

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
    # A simulated loop makes tasks of its own, which belong to its processes. A task *factory* is
    # of no use here: uvloop calls it with `eager_start=None` from CPython 3.13 on.
    make: Callable[..., asyncio.Task[T]] = getattr(loop, "make_task", asyncio.Task)
    if sys.version_info >= (3, 12):
        return make(coro, loop=loop, name=name, context=context, eager_start=True)
    return _start_by_hand(make, coro, loop, context, name)


if sys.version_info < (3, 12):

    def _start_by_hand(
        make: Callable[..., asyncio.Task[T]],
        coro: Coroutine[Any, Any, T],
        loop: asyncio.AbstractEventLoop,
        context: Context,
        name: str | None,
    ) -> asyncio.Task[T]:
        """Do what `eager_start` does: 3.11 has none.

        A new task hands its first step to `loop.call_soon`. For that moment the loop has another
        one, which keeps the step; then it is run here. Without `_leave_task` it could not be
        entered, for no task runs within another.
        """
        taken: list[tuple[tuple[Any, ...], Context | None]] = []

        def take(*callback: Any, context: Context | None = None) -> None:
            taken.append((callback, context))

        loop.call_soon = take  # type: ignore[method-assign, assignment]
        try:
            task = make(coro, loop=loop, name=name, context=context)
        finally:
            del loop.call_soon
        step = taken[0][0][0]
        if len(taken) > 1:
            # The garbage collector ran while the task was made, and a finalizer scheduled
            # something: that takes the way it would have taken.
            taken.sort(key=lambda each: getattr(each[0][0], "__self__", None) is not task)
            step = taken[0][0][0]
            for callback, its in taken[1:]:
                loop.call_soon(*callback, context=its)
        caller = asyncio.current_task(loop)
        if caller is None:
            context.run(step)
            return task
        asyncio._leave_task(loop, caller)
        try:
            context.run(step)
        finally:
            asyncio._enter_task(loop, caller)
        return task
