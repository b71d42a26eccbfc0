"""Jobs of a simulated loop, and the processes that own them.

A process is one life of a node. Killing it is a power cut, so its tasks are kept, never continued,
and closed only when the world is over.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextvars import Context, ContextVar
from enum import IntEnum
from typing import Any, TypeVar

_SHOWN_MAX = 8

T_co = TypeVar("T_co", covariant=True)


class ProcessState(IntEnum):
    """The state of a process: its callbacks run, are dropped, or are held back."""

    RUNNING = 0
    DEAD = 1
    PAUSED = 2


class SimProcess:
    """One life of a node: all that is scheduled in its context belongs to it, and dies with it.

    Attributes:
        context: where its first task starts; everything that task schedules inherits it.
        steps: how many steps it took, those of earlier lives of the same node included.
        sends: how often it wrote to a connection, in this life.

    Example:
        >>> from synchromesh.testing import SimRuntime, run
        >>> async def main(runtime: SimRuntime) -> int:
        ...     return runtime.process.epoch
        >>> run(main)
        1
    """

    __slots__ = ("context", "epoch", "held", "name", "number", "sends", "state", "steps", "tasks")

    def __init__(self, name: str, *, number: int = 1, epoch: int = 1, steps: int = 0) -> None:
        self.name, self.number, self.epoch, self.steps = name, number, epoch, steps
        self.sends = 0
        self.state = ProcessState.RUNNING
        self.held: list[Job] = []
        self.tasks = TaskList()
        self.context = Context()
        self.context.run(PROCESS.set, self)

    def __repr__(self) -> str:
        return f"<Process {self.name} epoch {self.epoch} {self.state.name.lower()}>"


PROCESS: ContextVar[SimProcess | None] = ContextVar("synchromesh.process", default=None)


class SimTask(asyncio.Task[T_co]):
    """A task that hashes by its number, so that a set of tasks has one order in every run.

    `asyncio.TaskGroup` and much other code keep tasks in sets and cancel them in the set's order;
    hashing by address would make that order differ between two runs of a seed.
    """

    def __init__(self, coro: Any, *, number: int, loop: asyncio.AbstractEventLoop, **more: Any):
        # Before the rest: the task is hashed while it is being made.
        self.number = number
        super().__init__(coro, loop=loop, **more)

    def __hash__(self) -> int:
        return self.number


class TaskList:
    """Keeps tasks alive, so that the garbage collector closes none of them; forgets ended ones.

    `failures` are the exceptions of ended tasks that nobody retrieved.
    """

    __slots__ = ("_prune_at", "_tasks", "_unread", "failures")

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[Any]] = []
        # Who waits for a task reads its exception a step after it has ended.
        self._unread: list[asyncio.Task[Any]] = []
        self._prune_at = 64
        self.failures: list[BaseException] = []

    def add(self, task: asyncio.Task[Any]) -> None:
        """Keep a task until it has ended."""
        self._tasks.append(task)
        if len(self._tasks) >= self._prune_at:
            self._prune()

    def pending(self) -> list[asyncio.Task[Any]]:
        """Return the tasks that have not ended; what the others failed with is read by now."""
        self._prune()
        for task in self._unread:
            error = task.exception()
            if error is not None:
                self.failures.append(error)
        self._unread = []
        return self._tasks

    def _prune(self) -> None:
        pending, unread = [], self._unread
        for task in self._tasks:
            if task.done():
                unread.append(task)
            else:
                pending.append(task)
        self._unread = [task for task in unread if task._log_traceback and not task.cancelled()]
        self._tasks = pending
        self._prune_at = max(64, 2 * len(pending))


class Job(asyncio.TimerHandle):
    """A scheduled callback; cancelled jobs stay queued and are skipped."""

    __slots__ = ("args", "callback", "context", "due_s", "is_cancelled")

    def __init__(
        self, due_s: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context
    ) -> None:
        # The base class keeps private state for asyncio's own loops; none of it is used here.
        self.due_s, self.callback, self.args, self.context = due_s, callback, args, context
        self.is_cancelled = False

    def cancel(self) -> None:
        """Cancel the job: it is skipped when its turn comes."""
        self.is_cancelled = True
        self.callback, self.args = _nothing, ()

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.is_cancelled

    def when(self) -> float:
        """Return the loop's time at which it is due."""
        return self.due_s

    def get_context(self) -> Context:
        """Return the context in which it runs."""
        return self.context

    def __repr__(self) -> str:
        return f"<Job {self.callback!r} due {self.due_s:.6f}>"


def _nothing() -> None:
    """Stand for the callback of a cancelled job."""


def describe_tasks(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Name tasks by their coroutine and the line at which each waits.

    Example:
        >>> describe_tasks([])
        ''
    """
    names = [_describe(task) for task in tasks]
    more = f" and {len(names) - _SHOWN_MAX} more" if len(names) > _SHOWN_MAX else ""
    return ", ".join(names[:_SHOWN_MAX]) + more


def _describe(task: asyncio.Task[Any]) -> str:
    coro: Any = task.get_coro()
    name = getattr(coro, "__qualname__", repr(coro))
    place = ""
    while coro is not None:
        frame = getattr(coro, "cr_frame", None)
        # The last line outside asyncio says more than the inside of a lock or queue.
        if frame is not None and "/asyncio/" not in frame.f_code.co_filename:
            place = f" at {frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        coro = getattr(coro, "cr_await", None)
    return f"{name}{place}"


def discard(task: asyncio.Task[Any]) -> None:
    """Close a task's coroutine after the simulation, and all that it awaits; drop what they raise.

    None is left to the garbage collector: what it closes raises wherever it strikes. In the middle
    of `ast.parse`, as while pytest reports a test that failed, CPython before 3.11.8 and 3.12.2
    takes that for an error of the parser, for to report it another source is parsed
    (python/cpython#106905).
    """
    setattr(task, "_log_destroy_pending", False)  # noqa: B010 - not in the type stubs
    # What is closed as its last reference goes raises to nobody but this hook.
    hook, sys.unraisablehook = sys.unraisablehook, _ignore_unraisable
    try:
        coro: Any = task.get_coro()
        while coro is not None:
            # One that ends by an error leaves what it awaited suspended.
            awaited = getattr(coro, "cr_await", None)
            _close(coro)
            coro = awaited
    finally:
        sys.unraisablehook = hook


def _close(coro: Any) -> None:
    close = getattr(coro, "close", None)
    if close is None:
        return  # a future, on which the innermost one waits
    # A `finally` block that awaits makes `close` raise; each further try gets past one more await.
    for _ in range(16):
        try:
            close()
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001, S112 - the world is over, nobody can be told
            continue
        return


def _ignore_unraisable(_: object) -> None:
    """Drop what a coroutine raised as it was collected after the simulation."""
