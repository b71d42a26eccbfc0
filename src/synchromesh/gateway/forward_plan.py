"""What a request that is passed on by callbacks needs to know of its route, and of its gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from synchromesh.calls.forwarding import FailedAttempt, Forwarder
from synchromesh.calls.plan import CalledService, Shared
from synchromesh.context import CallContext
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.identifying import Identification
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.traffic import RouteTraffic
from synchromesh.http import HttpExchange
from synchromesh.http.together import TurnWrites
from synchromesh.resilience import Breaker, Edge, LatencyTracker, Limiter
from synchromesh.telemetry import Record, Tracer


class SentForward(Protocol):
    """Is a request that was sent on; see `passing.ForwardExchange`.

    Attributes:
        exchange: with the client.
        plan: of its route.
        wire: what was sent.
        limits: the fields that tell of a rate, where there is one.
    """

    exchange: HttpExchange
    plan: ForwardPlan
    wire: bytes
    limits: Sequence[tuple[str, str]]


class ForwardGate(Protocol):
    """Is what all routes of one gateway share.

    Attributes:
        attempts_left: the extra attempts of each request's tree.
        limiter: bounds what is in flight.
        forwarder: has the ways to the upstreams.
        identification: says who asks.
        origins: tells whom a request comes from.
        traffic: counts what becomes of requests, by route.
    """

    attempts_left: int
    limiter: Limiter
    forwarder: Forwarder
    identification: Identification
    origins: Origins
    tracer: Tracer
    traffic: Mapping[str, RouteTraffic]

    def resume(self, sent: SentForward, context: CallContext, begun: FailedAttempt) -> None:
        """Go on by the slow way with what has failed here."""
        ...


class ForwardPlan(Protocol):
    """Is all that is the same for every request of one route; see `fast.FastForward`."""

    breaker: Breaker | None
    deadline_s: float
    edge: Edge
    entry: CompiledRoute
    is_external: bool
    is_idempotent: bool
    limiter: Limiter | None
    loop: asyncio.AbstractEventLoop
    record: Record
    record_call: Record
    service: CalledService
    shared: Shared
    timeout_s: float
    together: TurnWrites | None
    tracker: LatencyTracker
    traffic: RouteTraffic

    @property
    def gate(self) -> ForwardGate:
        """What it shares with other routes."""
        ...
