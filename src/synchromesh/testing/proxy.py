"""A proxy in front of a service: it may lose a request, deliver it late, or deliver it twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import structs

from synchromesh.calls import Reply, Request
from synchromesh.context import from_headers, to_headers
from synchromesh.testing.sim_runtime import SimRuntime
from synchromesh.testing.wire import Wire


class Proxy:
    """Delivers requests to a service as proxies and brokers that buffer and retry do.

    TCP loses nothing and repeats nothing, so the network alone never shows a service a request that
    comes after its caller has given up, nor the same one twice.

    Example:
        >>> def behind_a_proxy(dispatcher, runtime: SimRuntime, wire: Wire) -> None:
        ...     dispatcher.dispatch = Proxy(dispatcher.dispatch, runtime, wire).dispatch
    """

    def __init__(
        self, dispatch: Callable[..., Awaitable[Reply]], runtime: SimRuntime, wire: Wire
    ) -> None:
        self._dispatch, self._runtime, self._wire = dispatch, runtime, wire

    async def dispatch(self, request: Request, began_s: float | None = None) -> Reply:
        """Deliver a request as often as was drawn, and return the first reply."""
        delays = self._wire.delays("caller", "proxy")
        if len(delays) == 1 and delays[0] <= self._wire.faults.latency_max_s:
            return await self._dispatch(request, began_s)
        if not delays:
            # No reply ever comes: this ends when the caller gives up.
            await asyncio.Event().wait()
        # What is buffered is delivered though its caller has gone: only the wait ends then.
        copies = [asyncio.create_task(self._deliver(delay_s, request)) for delay_s in delays]
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        return next(copy for copy in copies if copy.done()).result()

    async def _deliver(self, delay_s: float, request: Request) -> Reply:
        now, wall_us = asyncio.get_running_loop().time, self._runtime.wall_us
        # The deadline travels as the time that is left, and the clocks may be wrong: of what is
        # late by less than that, the callee sees no deadline that has passed.
        headers = to_headers(request.context, now=now(), wall_us=wall_us())
        await asyncio.sleep(delay_s)
        context = from_headers(headers, now=now(), wall_us=wall_us(), rng=self._runtime.rng)
        return await self._dispatch(structs.replace(request, context=context))
