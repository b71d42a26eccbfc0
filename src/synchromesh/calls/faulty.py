"""Faults on purpose, on the way to a transport: the shell around `FaultTable`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from synchromesh.calls.faults import FaultTable, Strike
from synchromesh.calls.wire import Passing, Reply, Request, Transport, is_passing
from synchromesh.discovery import Endpoint
from synchromesh.errors import ConfigError, ConnectionLost, RemoteFailed, TimedOut
from synchromesh.http import HttpResponse
from synchromesh.resilience import Chance
from synchromesh.telemetry import Span, current_span

# Callers have timeouts; one that has none must not hang for ever either.
STALL_MAX_S = 300.0


class FaultyTransport:
    """Is a `Transport` that sends through another one what the faults in force spare.

    A struck attempt fails as one of a broken service does: with `RemoteFailed`, which breakers
    count, or by hanging until its caller's timeout. Its call span says so in `fault`. While no
    fault is in force, it costs a look at the table.

    Args:
        inner: carries what is not struck.
        caller: whose attempts they are.
        faults: the faults in force.
        rng: decides which attempts fail where some do, such as `runtime.rng`.

    Example:
        >>> import random
        >>> from synchromesh.calls import InProcessTransport
        >>> FaultyTransport(InProcessTransport(), "orders", FaultTable(), random.Random(0))
        <FaultyTransport of orders over <InProcessTransport 0 instances>>
    """

    def __init__(self, inner: Transport, caller: str, faults: FaultTable, rng: Chance) -> None:
        self._inner = inner
        self._caller = caller
        self._faults = faults
        self._rng = rng

    def send(self, endpoint: Endpoint, request: Request) -> Coroutine[Any, Any, Reply]:
        """Send a request and return its reply, unless a fault strikes it.

        Raises:
            RemoteFailed: it was struck; as with a service that fails, nothing is known.
            ConnectionLost: it was stalled, and its caller has no timeout.
            CallError: what the inner transport raises.
        """
        # No frame of its own on the way of a call that cannot be struck.
        if self._faults.is_empty:
            return self._inner.send(endpoint, request)
        return self._send(endpoint, request)

    @asynccontextmanager
    async def forward(self, endpoint: Endpoint, passing: Passing) -> AsyncIterator[HttpResponse]:
        """Send a request as it is, and give its answer, unless a fault strikes it.

        Raises:
            ConfigError: the inner transport carries no such requests.
            TimedOut: it was stalled for as long as an answer may take.
            CallError: as `send` does.
        """
        if not is_passing(self._inner):
            raise ConfigError(f"{self._inner!r} passes nothing on; register {endpoint.url} by http")
        try:
            async with asyncio.timeout(passing.timeout_s):
                await self._may_suffer(endpoint)
        except TimeoutError:
            raise TimedOut(f"{endpoint.service} did not answer in time, by a fault") from None
        async with self._inner.forward(endpoint, passing) as response:
            yield response

    async def _send(self, endpoint: Endpoint, request: Request) -> Reply:
        await self._may_suffer(endpoint)
        return await self._inner.send(endpoint, request)

    async def _may_suffer(self, endpoint: Endpoint) -> None:
        now = asyncio.get_running_loop().time()
        strike = self._faults.strike(self._caller, endpoint.service, now=now, rng=self._rng)
        if strike is not None:
            await self._suffer(strike)

    async def _suffer(self, strike: Strike) -> None:
        span = current_span.get()
        if isinstance(span, Span):
            span.note("fault", strike.why)
        if strike.latency_s:
            await asyncio.sleep(strike.latency_s)
        told = f"a fault that was put in force on purpose: {strike.why}; heal it to go on"
        if strike.is_error:
            raise RemoteFailed(told)
        if strike.is_stall:
            await asyncio.sleep(STALL_MAX_S)
            raise ConnectionLost(told)

    def __repr__(self) -> str:
        return f"<FaultyTransport of {self._caller} over {self._inner!r}>"


def faulty(
    transports: Mapping[str, Transport], caller: str, faults: FaultTable, rng: Chance
) -> dict[str, Transport]:
    """Put the faults in force in the way of all transports of one caller."""
    return {
        scheme: FaultyTransport(transport, caller, faults, rng)
        for scheme, transport in transports.items()
    }
