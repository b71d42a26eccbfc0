"""Calls within one process: the same bytes as on the wire, and no socket.

A callee runs in a task of its own whose first step is taken inside the call. Most callees end
there; only for those that do not are a future, a callback and a deadline made. What runs inside a
call takes the loop's turn and the caller's stack, and both are bounded: `FAIR_S`, `DEPTH_MAX`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

from synchromesh.calls.dispatcher import Dispatcher, released
from synchromesh.calls.wire import Receiver, Reply, Request
from synchromesh.discovery import Endpoint
from synchromesh.eager import TaskStarter, starter
from synchromesh.errors import ConnectFailed, ConnectionLost
from synchromesh.resilience import DeadlinePassed
from synchromesh.runtime import loop_clock
from synchromesh.timers import Timers
from synchromesh.wheel import Deadline

# How long calls may be answered without a wait before the loop gets a turn.
FAIR_S = 0.001
# How many calls may stand on one stack; a deeper one gets a task whose stack begins at the loop.
DEPTH_MAX = 16

Dispatch = Callable[[Request, Callable[[], float]], Coroutine[Any, Any, Reply]]


class InProcessTransport:
    """Carries requests to instances in this process, by the name of the instance.

    Arguments, results and errors pass as bytes, so that neither side can change what the other
    holds (C1). A call runs in a task of its own, in the context in which its instance was added: as
    over a network, no context variable of the caller's reaches the callee, the caller is released
    whatever the callee does, and its cancellation reaches the callee.

    Example:
        >>> transport = InProcessTransport()
        >>> transport
        <InProcessTransport 0 instances>
    """

    keeps_time = True

    def __init__(self) -> None:
        self._receivers: dict[str, tuple[Dispatch, Context]] = {}
        self._timers = Timers()
        # Callees whose caller has gone. The loop keeps weak references alone: a task that nobody
        # awaits could vanish.
        self._left_behind: set[asyncio.Task[Reply]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clock: Callable[[], float]
        self._start: TaskStarter
        self._depth = 0
        self._inline_s = 0.0

    def add(self, instance: str, receiver: Receiver) -> None:
        """Make an instance reachable; one of the same name is replaced."""
        dispatch = _timeless(receiver)
        if isinstance(receiver, Dispatcher):
            # It is cancelled from here, and needs no timer of its own.
            dispatch = receiver.dispatch
        self._receivers[instance] = (dispatch, copy_context())

    def remove(self, instance: str) -> None:
        """Make an instance unreachable; calls that run go on. May be repeated."""
        self._receivers.pop(instance, None)

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        """Run a request at an instance and return its reply.

        Raises:
            ConnectFailed: this process has no such instance; nothing was run.
            ConnectionLost: the instance was stopped before it had answered.
            DeadlinePassed: it had not answered when the request was due; it has been cancelled.
        """
        found = self._receivers.get(endpoint.instance)
        if found is None:
            raise ConnectFailed(
                f"instance {endpoint.instance!r} of {endpoint.service!r} does not run in this "
                "process (any more); nothing was sent"
            )
        if self._inline_s > FAIR_S:
            # Before anything is run: who is cancelled here has sent nothing. Without it, a handler
            # that only makes calls that never wait would keep the loop for ever.
            self._inline_s = 0.0
            await asyncio.sleep(0)
        dispatch, home = found
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._clock, self._start = loop, loop_clock(loop), starter(loop)
        clock, context = self._clock, home.copy()
        began_s = clock()
        if self._depth < DEPTH_MAX:
            self._depth += 1
            try:
                task = self._start(dispatch(request, clock), context=context)
            finally:
                self._depth -= 1
        else:
            task = loop.create_task(dispatch(request, clock), context=context)
        has_waited = not task.done()
        if has_waited:
            await self._rest(loop, task, request.due_s, context)
        took_s = 0.0
        try:
            reply = task.result()
            took_s = reply.took_s
        except asyncio.CancelledError:
            # Nobody cancelled the caller: raised as it is, it would seem that somebody had.
            raise ConnectionLost(
                f"instance {endpoint.instance!r} was stopped before it answered; what it did is "
                "unknown"
            ) from None
        finally:
            # However it ended. An answer brings its time along, which spares a look at the clock.
            if not has_waited:
                self._inline_s += took_s or clock() - began_s
        return reply

    async def _rest(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[Reply],
        due_s: float,
        context: Context,
    ) -> None:
        """Wait until a callee has ended, or until it is due."""
        # Not for the task itself: a callee that ignores its cancellation must not hold the caller.
        waiting = _Waiting(due_s, task, loop.create_future())
        # An answer releases the caller by itself, any other end of the task a turn later.
        context.run(released.set, (id(task), waiting.released))
        task.add_done_callback(waiting.end)
        self._timers.add(waiting, loop)
        try:
            await waiting.released
        except (asyncio.CancelledError, GeneratorExit):
            # A coroutine that is thrown away may have outlived its loop.
            if not loop.is_closed():
                task.cancel()
            raise
        finally:
            self._inline_s = 0.0  # the loop has had its turn
            self._timers.wheel.drop(waiting)
            if not task.done():
                self._left_behind.add(task)
                task.add_done_callback(self._forget)
        if waiting.is_late:
            raise DeadlinePassed(due_s)

    def _forget(self, task: asyncio.Task[Reply]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # the caller has gone, and the callee has logged it

    def __repr__(self) -> str:
        return f"<InProcessTransport {len(self._receivers)} instances>"


def _timeless(receiver: Receiver) -> Dispatch:
    """Return what runs a receiver that measures no time; it is taken to answer in none."""
    return lambda request, _: receiver.dispatch(request)


class _Waiting(Deadline):
    """A callee that goes on after its first step, and what releases its caller."""

    __slots__ = ("is_late", "released", "task")

    def __init__(
        self, due_s: float, task: asyncio.Task[Reply], released: asyncio.Future[None]
    ) -> None:
        # As the base does, without its frame.
        self.due_s = due_s
        self.slot = None
        self.task = task
        self.released = released
        self.is_late = False

    def end(self, _: object) -> None:
        if not self.released.done():
            self.released.set_result(None)

    def expire(self) -> None:
        # One that ended in this very turn of the loop is in time.
        if not self.task.done():
            self.is_late = True
            self.task.cancel()
            self.end(None)
