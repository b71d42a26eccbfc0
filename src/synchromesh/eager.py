"""Eager tasks: a task whose first step runs inside the call that starts it, and what resumes one.

Most handlers end in their first step. Started eagerly they cost no turn of the loop: by the time
`start` returns the task is done, and neither a future nor a callback was made to wait for it. It is
an ordinary task from that first step on: `asyncio.timeout`, `TaskGroup` and `current_task` see the
same one before and after its first wait.

An `EagerFuture` resumes its task inside the event that brought the result, and not a turn of the
loop later, with its own look at every socket.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

# So many tasks may be resumed within one another: each has its frames on one stack.
HANDED_OVER_MAX = 16
_handing_over = 0


class TaskStarter(Protocol):
    """Makes eager tasks of one loop; see `starter`."""

    def __call__(
        self, coro: Coroutine[Any, Any, T], *, context: Context, name: str | None = None
    ) -> asyncio.Task[T]:
        """Make a task, run its first step at once in `context`, and return it."""
        ...


class EagerFuture(Generic[T]):
    """A result that one task waits for, and that resumes it at once.

    `set_result` runs the next step of the waiting task before it returns, so that it is to be the
    last thing that a callback does. Within the step of another task it resumes it a turn of the
    loop later, as a future of asyncio does, where `hand_over` resumes it at once. Errors and a
    cancellation come a turn later too: whoever tells them may have more to do.

    Example:
        >>> async def main() -> list[str]:
        ...     loop, done = asyncio.get_running_loop(), []
        ...     future = EagerFuture[str](loop)
        ...     def answer() -> None:
        ...         future.set_result("answered")
        ...         done.append("told")
        ...     loop.call_soon(answer)
        ...     done.append(await future)
        ...     await asyncio.sleep(0)
        ...     return done
        >>> asyncio.run(main())
        ['answered', 'told']
    """

    # What a class has costs no store for each future, as a slot would.
    _is_done = False
    _error: BaseException | None = None
    _wake: Callable[[Any], object] | None = None
    _context: Context | None = None
    # With `_loop` and the methods below, all that a task asks of what it waits for (PEP 3156's
    # futures).
    _asyncio_future_blocking = False
    _result: T

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __await__(self) -> Generator[Any, None, T]:
        if self._is_done:
            return self.result()
        if self._wake is not None:
            raise RuntimeError("another task waits for this result already")
        self._asyncio_future_blocking = True
        yield self
        # The task has asked for the result before, and thrown the error in here if it was one.
        return self._result

    def done(self) -> bool:
        """Tell whether there is a result, an error or a cancellation."""
        return self._is_done

    def result(self) -> T:
        """Return the result, or raise the error: once, for it is not kept then."""
        if self._error is not None:
            error, self._error = self._error, asyncio.CancelledError()
            try:
                raise error
            finally:
                del error  # this frame is in its traceback
        return self._result

    def set_result(self, result: T) -> None:
        """Set the result, and resume the task that waits for it."""
        self._result, self._is_done = result, True
        wake, context = self._wake, self._context
        if wake is None or context is None:
            return
        self._wake = None
        if asyncio.current_task(self._loop) is None:
            context.run(wake, self)
        else:
            self._loop.call_soon(wake, self, context=context)

    def hand_over(self, result: T, giver: asyncio.Task[Any] | None = None) -> None:
        """Set the result within the step of another task, and resume the one that waits at once.

        The other task is left meanwhile, and goes on where the resumed one waits again or ends. Of
        many that end within one another the outer ones wait for a turn of the loop. `giver`: the
        other task, from who knows it.
        """
        global _handing_over
        wake, context, loop = self._wake, self._context, self._loop
        if giver is None:
            giver = asyncio.current_task(loop)
        if wake is None or context is None or giver is None or _handing_over >= HANDED_OVER_MAX:
            self.set_result(result)
            return
        self._result, self._is_done, self._wake = result, True, None
        asyncio._leave_task(loop, giver)
        _handing_over += 1
        try:
            context.run(wake, self)
        finally:
            _handing_over -= 1
            asyncio._enter_task(loop, giver)

    def set_exception(self, error: BaseException) -> None:
        """Set an error."""
        self._error, self._is_done = error, True
        wake, self._wake = self._wake, None
        if wake is not None:
            self._loop.call_soon(wake, self, context=self._context)

    def cancel(self, msg: object = None) -> bool:
        """Cancel, as the task that waits does where it is cancelled; False once it is done."""
        if self._is_done:
            return False
        self.set_exception(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        return True

    def add_done_callback(self, wake: Callable[[Any], object], *, context: Context) -> None:
        """Keep how the task is resumed."""
        self._wake, self._context = wake, context

    def __repr__(self) -> str:
        return f"<EagerFuture {'done' if self._is_done else 'pending'}>"


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
    # What `asyncio.current_task` reads. A task cannot be entered within another one, so that the
    # caller's is left meanwhile: as `_leave_task` and `_enter_task` do, at half their price.
    current: dict[Any, asyncio.Task[Any]] = asyncio.tasks._current_tasks  # type: ignore[attr-defined]

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
        caller = current.pop(loop, None)
        try:
            context.run(step)
        finally:
            if caller is not None:
                current[loop] = caller
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
