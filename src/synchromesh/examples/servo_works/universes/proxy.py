"""A proxy in front of a node: it may lose a request, deliver it late, or deliver it twice."""

from __future__ import annotations

import asyncio

from synchromesh.calls import HttpEdge
from synchromesh.http import HttpExchange, HttpRequest, HttpResponse
from synchromesh.testing import Wire


class Proxy:
    """Delivers requests to a service as proxies and brokers that buffer and retry do.

    TCP loses nothing and repeats nothing, so the network alone never shows a service a request that
    comes after its caller has given up, nor the same one twice.
    """

    def __init__(self, edge: HttpEdge, wire: Wire) -> None:
        self._edge, self._wire = edge, wire
        self._delays: list[float] | None = None

    def begin_exchange(self, exchange: HttpExchange) -> bool:
        """Pass a request on at once, or decline it where something else happens to it."""
        delays = self._draw()
        if self._is_calm(delays):
            return self._edge.begin_exchange(exchange)
        # The coroutine takes its first step within the turn in which this declines.
        self._delays = delays
        return False

    async def __call__(self, request: HttpRequest) -> HttpResponse:
        """Deliver a request as often as was drawn, and return the first response."""
        delays = self._draw() if self._delays is None else self._delays
        self._delays = None
        if self._is_calm(delays):
            return await self._edge(request)
        if not delays:
            # No response ever comes: this ends when the caller gives up.
            await asyncio.Event().wait()
        # What is buffered is delivered though its caller has gone: only the wait ends then.
        copies = [asyncio.create_task(self._deliver(delay_s, request)) for delay_s in delays]
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        return next(copy for copy in copies if copy.done()).result()

    async def _deliver(self, delay_s: float, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(delay_s)
        return await self._edge(request)

    def _draw(self) -> list[float]:
        return self._wire.delays("caller", "proxy")

    def _is_calm(self, delays: list[float]) -> bool:
        return len(delays) == 1 and delays[0] <= self._wire.faults.latency_max_s
