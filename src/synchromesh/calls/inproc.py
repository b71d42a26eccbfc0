"""Calls within one process: the same bytes as on the wire, and no socket."""

from __future__ import annotations

import asyncio
from contextvars import Context, copy_context

from synchromesh.calls.wire import Receiver, Reply, Request
from synchromesh.discovery import Endpoint
from synchromesh.errors import ConnectFailed, ConnectionLost


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

    def __init__(self) -> None:
        self._receivers: dict[str, tuple[Receiver, Context]] = {}
        # The loop keeps weak references alone: a task that nobody awaits could vanish.
        self._running: set[asyncio.Task[Reply]] = set()

    def add(self, instance: str, receiver: Receiver) -> None:
        """Make an instance reachable; one of the same name is replaced."""
        self._receivers[instance] = (receiver, copy_context())

    def remove(self, instance: str) -> None:
        """Make an instance unreachable; calls that run go on. May be repeated."""
        self._receivers.pop(instance, None)

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        """Run a request at an instance and return its reply.

        Raises:
            ConnectFailed: this process has no such instance; nothing was run.
            ConnectionLost: the instance was stopped before it had answered.
        """
        found = self._receivers.get(endpoint.instance)
        if found is None:
            raise ConnectFailed(
                f"instance {endpoint.instance!r} of {endpoint.service!r} does not run in this "
                "process (any more); nothing was sent"
            )
        receiver, home = found
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        task = loop.create_task(receiver.dispatch(request), context=home.copy())
        self._running.add(task)

        def end(ended: asyncio.Task[Reply]) -> None:
            self._running.discard(ended)
            if not answered.done():
                answered.set_result(None)
            elif not ended.cancelled():
                ended.exception()  # the caller has gone, and the callee has logged it

        task.add_done_callback(end)
        try:
            # Not the task itself: a callee that ignores its cancellation must not hold the caller.
            await answered
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled():
            raise ConnectionLost(
                f"instance {endpoint.instance!r} was stopped before it answered; what it did is "
                "unknown"
            )
        return task.result()

    def __repr__(self) -> str:
        return f"<InProcessTransport {len(self._receivers)} instances>"
