"""Calls between simulated nodes: each message may be lost, duplicated, late, or cut off.

A call is a request and a reply, and both are messages of the world's wire; what travels with a call
passes through its headers, read at each end by that node's own wall clock. Unlike HTTP this wire
may deliver a request twice, as proxies and brokers that send again do.

    no such node, or a dead one      silence
    a node that does not serve yet   refused: nothing was run
    the caller gives up              the callee is told so, if that message arrives
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from synchromesh.calls import Reply, Request
from synchromesh.context import CREDENTIAL, to_headers
from synchromesh.context import from_headers as context_of
from synchromesh.discovery import Endpoint
from synchromesh.errors import ConnectFailed, SynchromeshError
from synchromesh.http import AsgiHandler, Headers, HttpRequest
from synchromesh.testing.process import PROCESS
from synchromesh.testing.sim_runtime import SimRuntime
from synchromesh.testing.world import World


class Answering(Protocol):
    """Answers requests; a `Dispatcher` does, and so does `AsgiReceiver`."""

    async def dispatch(self, request: Request) -> Reply:
        """Run the request and return its reply; it raises nothing but a cancellation."""
        ...


class SimExchange:
    """Carries calls between the nodes of a world.

    Args:
        world: its nodes are reached as "sim://name".

    Example:
        >>> exchange = SimExchange(World(seed=1))
        >>> exchange.answering("orders") is None  # nobody serves there yet
        True
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._open: dict[str, tuple[SimRuntime, Answering]] = {}

    def serve(self, runtime: SimRuntime, receiver: Answering) -> None:
        """Serve calls at this node until it dies or `leave` is called."""
        self._open[runtime.name] = (runtime, receiver)

    def leave(self, runtime: SimRuntime) -> None:
        """Refuse calls at this node from now on. May be repeated."""
        self._open.pop(runtime.name, None)

    def transport(self, runtime: SimRuntime) -> SimTransport:
        """Return the transport of one life of a node."""
        return SimTransport(self._world, self, runtime)

    def answering(self, node: str) -> tuple[SimRuntime, Answering] | None:
        """Return the receiver in the current life of a node; None where it does not serve."""
        found = self._open.get(node)
        return found if found is not None and found[0].process is PROCESS.get() else None


class SimTransport:
    """Carries requests from one node to others; a `synchromesh.calls.Transport`.

    Example:
        >>> world = World(seed=1)
        >>> exchange = SimExchange(world)
        >>> async def main(runtime: SimRuntime) -> None:
        ...     world.count[repr(exchange.transport(runtime))] += 1
        >>> world.node("orders", main).start()
        >>> world.run(asyncio.sleep(1.0))
        >>> list(world.count)
        ['<SimTransport of orders>']
    """

    def __init__(self, world: World, exchange: SimExchange, runtime: SimRuntime) -> None:
        self._world = world
        self._exchange = exchange
        self._runtime = runtime

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        """Send a request and return its reply, if any arrives; the caller sets the timeout.

        Raises:
            ConnectFailed: the node does not serve, so that nothing was run.
        """
        under_way = _UnderWay(
            self._world, self._exchange, self._runtime, endpoint.url.removeprefix("sim://")
        )
        under_way.send(request)
        try:
            return await under_way.answered
        except asyncio.CancelledError:
            under_way.give_up()
            raise

    def __repr__(self) -> str:
        return f"<SimTransport of {self._runtime.name}>"


class _UnderWay:
    """One call; each of its methods runs at the end that its comment names."""

    def __init__(
        self, world: World, exchange: SimExchange, runtime: SimRuntime, target: str
    ) -> None:
        self._world, self._exchange, self._runtime = world, exchange, runtime
        self._home, self._target = runtime.process, target
        self.answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._is_refused = False
        self._tasks: list[asyncio.Task[None]] = []

    # -- at the caller ---------------------------------------------------------------------------

    def send(self, request: Request) -> None:
        now = asyncio.get_running_loop().time()
        headers = to_headers(request.context, now=now, wall_us=self._runtime.wall_us())
        headers[CREDENTIAL] = request.credential
        self._world.deliver(
            self._runtime.name, self._target, lambda: self._arrive(request, headers)
        )

    def give_up(self) -> None:
        self._world.deliver(self._runtime.name, self._target, self._cancel)

    def _take(self, outcome: Reply | ConnectFailed) -> None:
        # The next life of a node knows nothing of the calls of the one before it.
        if PROCESS.get() is not self._home or self.answered.done():
            return
        if isinstance(outcome, Reply):
            self.answered.set_result(outcome)
        else:
            self.answered.set_exception(outcome)

    # -- at the callee ---------------------------------------------------------------------------

    def _arrive(self, request: Request, headers: dict[str, str]) -> None:
        found = self._exchange.answering(self._target)
        if self._is_refused:
            return  # the other copy was refused: the caller knows that nothing was run
        if found is not None:
            self._tasks.append(
                asyncio.get_running_loop().create_task(self._serve(*found, request, headers))
            )
        elif not self._tasks:
            self._is_refused = True
            self._reply(
                ConnectFailed(f"node {self._target!r} is up and does not serve; nothing was sent")
            )

    async def _serve(
        self, runtime: SimRuntime, receiver: Answering, request: Request, headers: dict[str, str]
    ) -> None:
        try:
            context = context_of(
                headers,
                now=asyncio.get_running_loop().time(),
                wall_us=runtime.wall_us(),
                rng=runtime.rng,
            )
            arrived = Request(request.operation, request.arguments, context, headers[CREDENTIAL])
        except SynchromeshError as error:
            self._reply(Reply.of_error(error))
            return
        self._reply(await receiver.dispatch(arrived))

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _reply(self, outcome: Reply | ConnectFailed) -> None:
        self._world.deliver(self._target, self._runtime.name, lambda: self._take(outcome))


class AsgiReceiver:
    """Answers calls by an ASGI application that stands for an external service.

    Example:
        >>> from synchromesh.http import AsgiHandler
        >>> async def app(scope, receive, send): ...
        >>> receiver = AsgiReceiver(AsgiHandler(app))
    """

    def __init__(self, handler: AsgiHandler) -> None:
        self._handler = handler

    async def dispatch(self, request: Request) -> Reply:
        """Send the request to the application as HTTP, and return its answer."""
        operation, context = request.operation, request.context
        target, body = operation.to_http(request.arguments)
        path, _, query = target.partition("?")
        headers = Headers(to_headers(context, now=0.0, wall_us=0).items())
        answer = await self._handler(
            HttpRequest(operation.method, target, path, query, headers, body)
        )
        return Reply(answer.status, answer.body)
