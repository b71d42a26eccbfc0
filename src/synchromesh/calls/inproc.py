"""Calls within one process: the same bytes as on the wire, and no socket.

A callee runs in a task of its own whose first step is taken inside the call. Most callees end
there; only for those that do not are a future, a callback and a deadline made. What runs inside a
call takes the loop's turn and the caller's stack, and both are bounded: `FAIR_S`, `DEPTH_MAX`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any

from synchromesh.calls.dispatcher import Dispatcher
from synchromesh.calls.tree import Leaving, Root, running
from synchromesh.calls.wire import Receiver, Reply, Request
from synchromesh.clock import loop_clock
from synchromesh.discovery import Endpoint
from synchromesh.eager import EagerFuture, TaskStarter, starter
from synchromesh.errors import ConnectFailed, ConnectionLost
from synchromesh.resilience import DeadlinePassed
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
        # Whether one releases its callers by itself, too.
        self._receivers: dict[str, tuple[Dispatch, Context, bool]] = {}
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
        is_apart = isinstance(receiver, Dispatcher)
        # It is cancelled from here, and needs no timer of its own.
        dispatch = receiver.dispatch if isinstance(receiver, Dispatcher) else _timeless(receiver)
        self._receivers[instance] = (dispatch, copy_context(), is_apart)

    def remove(self, instance: str) -> None:
        """Make an instance unreachable; calls that run go on. May be repeated."""
        self._receivers.pop(instance, None)

    def send(self, endpoint: Endpoint, request: Request) -> Awaitable[Reply]:
        """Run a request at an instance; return its reply, or what to await for it.

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
            return self._send_later(endpoint, request)
        dispatch, home, is_apart = found
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._clock, self._start = loop, loop_clock(loop), starter(loop)
        clock, context, name = self._clock, home.copy(), request.operation.name
        began_s = clock()
        if self._depth < DEPTH_MAX:
            self._depth += 1
            try:
                task = self._start(dispatch(request, clock), context=context, name=name)
            finally:
                self._depth -= 1
        else:
            task = loop.create_task(dispatch(request, clock), context=context, name=name)
        if not task.done():
            # What it runs under is its own where it is a dispatcher: none waits before that is set.
            callee = context.get(running) if is_apart else None
            return _Waiting(self, endpoint, request.due_s, task, callee)
        took_s = 0.0
        try:
            reply = task.result()
            took_s = reply.took_s
        except asyncio.CancelledError:
            raise _stopped(endpoint) from None
        finally:
            # However it ended. An answer brings its time along, which spares a look at the clock.
            self._inline_s += took_s or clock() - began_s
        return reply

    async def _send_later(self, endpoint: Endpoint, request: Request) -> Reply:
        """Give the loop a turn first: who is cancelled here has sent nothing.

        Without it, a handler that only makes calls that never wait would keep the loop for ever.
        """
        self._inline_s = 0.0
        await asyncio.sleep(0)
        return await self.send(endpoint, request)

    def _forget(self, task: asyncio.Task[Reply]) -> None:
        self._left_behind.discard(task)
        if not task.cancelled():
            task.exception()  # the caller has gone, and the callee has logged it

    def __repr__(self) -> str:
        return f"<InProcessTransport {len(self._receivers)} instances>"


def _stopped(endpoint: Endpoint) -> ConnectionLost:
    # Nobody cancelled the caller: raised as it is, a cancellation would say that somebody had.
    return ConnectionLost(
        f"instance {endpoint.instance!r} was stopped before it answered; what it did is unknown"
    )


def _timeless(receiver: Receiver) -> Dispatch:
    """Return what runs a receiver that measures no time; it is taken to answer in none."""
    return lambda request, _: receiver.dispatch(request)


class _Waiting(Deadline, EagerFuture[Reply | None], Leaving):
    """A callee that goes on after its first step; to be awaited by its caller, at once.

    One object is the deadline, the future and what awaits it: an object is a frame or two. It does
    not wait for the task itself: a callee that ignores its cancellation must not hold its caller.
    """

    caller: Root | None = None

    def __init__(
        self,
        transport: InProcessTransport,
        endpoint: Endpoint,
        due_s: float,
        task: asyncio.Task[Reply],
        callee: Root | None,
    ) -> None:
        # As the bases do, without their frames.
        self.due_s = due_s
        self.slot = None
        self._loop = task.get_loop()
        self._transport = transport
        self._endpoint = endpoint
        self._task = task
        self._callee = callee

    def __await__(self) -> Generator[Any, None, Reply]:
        """Wait until the callee has ended, or until it is due."""
        transport, task = self._transport, self._task
        callee, caller = self._callee, self.caller
        if caller is not None:
            caller.leave(transport._clock())
        # A reply resumes the caller in the step that has made it, any other end a turn later.
        if callee is not None:
            callee.released = self.answer
        task.add_done_callback(self.end)
        transport._timers.add(self, self._loop)
        reply = None
        try:
            # As the base does, without another generator.
            self._asyncio_future_blocking = True
            yield self
            reply = self._result
        except (asyncio.CancelledError, GeneratorExit):
            # A coroutine that is thrown away may have outlived its loop.
            if not self._loop.is_closed():
                task.cancel()
            raise
        finally:
            transport._inline_s = 0.0  # the loop has had its turn
            if caller is not None:
                caller.come_back(transport._clock())
            if self.slot is not None:
                transport._timers.wheel.drop(self)
            if callee is not None:
                callee.released = None  # its context, which its task has, would lead to the task
            if reply is None and not task.done():
                transport._left_behind.add(task)
                task.add_done_callback(transport._forget)
        if reply is not None:
            return reply
        try:
            return task.result()
        except asyncio.CancelledError:
            raise _stopped(self._endpoint) from None

    def answer(self, reply: Reply) -> None:
        """Take the reply, in the last step of the callee's task."""
        if not self._is_done:
            self._task.remove_done_callback(self.end)
            self.hand_over(reply, self._task)

    def end(self, _: object) -> None:
        """Take note that the task has ended without a reply."""
        if not self._is_done:
            self.set_result(None)

    def expire(self) -> None:
        """Release the caller, and cancel the callee."""
        # One that ended in this very turn of the loop is in time.
        if not self._task.done() and not self._is_done:
            self._task.cancel()
            self.set_exception(DeadlinePassed(self.due_s))
