"""Plans: all that is the same for every call of one operation by one caller, put together once.

A call then looks nothing up but what may have changed since: which instances are ready, and whether
its credential is still fresh.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from synchromesh.calls.choice import Finder
from synchromesh.calls.contract import Operation
from synchromesh.calls.faults import FaultTable
from synchromesh.calls.wire import Hop, Reply, Request, Transport, keeps_time
from synchromesh.codec import decoder_of
from synchromesh.discovery import Endpoint, Resolver, RoundRobin
from synchromesh.errors import ConfigError, RemoteFailed
from synchromesh.identity import Signer
from synchromesh.resilience import Edge
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Tracer

# How long a credential is used without a look at the wall clock, which may be set.
LOOK_S = 1.0
HOPS_MAX = 4096
TARGETS_MAX = 1024


class Target(msgspec.Struct, eq=False):
    """One instance that calls go to, and how.

    Attributes:
        keeps_time: whether its transport releases callers at their deadlines by itself.
        noted: what the span of a call that it answered at once says; shared by all of them.
    """

    endpoint: Endpoint
    transport: Transport
    send: Callable[[Endpoint, Request], Awaitable[Reply]]
    keeps_time: bool
    noted: dict[str, str]


class CalledService:
    """What one caller keeps for all operations of one service that it calls.

    Attributes:
        hops: by principal, with the credential of each.
        targets: by instance.
        balancer: whose turn it is.
    """

    __slots__ = ("balancer", "hops", "is_external", "name", "shared", "targets")

    def __init__(self, name: str, shared: Shared, *, is_external: bool) -> None:
        self.name = name
        self.shared = shared
        self.is_external = is_external
        self.balancer = RoundRobin(name)
        self.hops: dict[str, Hop] = {}
        self.targets: dict[str, Target] = {}

    def hop(self, principal: str, now: float) -> Hop:
        """Return the hop for a principal, with a credential that is still good for a while.

        One that is as it was stays the same object, so that what is kept on it stays.
        """
        hop = self.hops.get(principal)
        if hop is not None and now < hop.fresh_until_s:
            return hop
        if self.is_external:
            # It is not told who we are.
            token, fresh_until_s = "", math.inf
        else:
            shared, signer = self.shared, self.shared.signer
            token = signer.token(
                shared.service, principal, audience=self.name, now_us=shared.runtime.wall_us()
            )
            # A credential is renewed at half its life: what is left is much longer than this.
            fresh_until_s = now + min(LOOK_S, signer.lifetime_s / 4)
        if hop is None or hop.credential != token:
            if len(self.hops) >= HOPS_MAX:
                self.hops.clear()
            hop = self.hops[principal] = Hop(self.name, principal, token)
        hop.fresh_until_s = fresh_until_s
        return hop

    def target(self, endpoint: Endpoint) -> Target:
        """Return how an instance is reached. Raises ConfigError where nothing does."""
        target = self.targets.get(endpoint.instance)
        if target is not None and target.endpoint is endpoint:
            return target
        transport = self.shared.transport(endpoint)
        if len(self.targets) >= TARGETS_MAX:
            self.targets.clear()  # instances come and go; a few are looked up again
        noted = {"instance": endpoint.instance, "attempts": "1"}
        made = Target(endpoint, transport, transport.send, keeps_time(transport), noted)
        self.targets[endpoint.instance] = made
        return made


class Shared:
    """What all plans of one caller share.

    Attributes:
        service: who calls.
        finder: finds instances, and holds calls while there are none.
        lists: what the resolver is sure of, as `MemoryRegistry.lists`; empty for one that asks.
        faults: those in force on purpose; `rules` are empty while none is.
        absences: the services that have no instance; empty while each has one.
        is_slow: whether every call takes the slow way, as tests want it.
        draw: draws so many random bits.
    """

    __slots__ = (
        "absences", "draw", "faults", "finder", "is_slow", "lists", "resolver", "rules",
        "runtime", "service", "signer", "tracer", "transports",
    )  # fmt: skip

    def __init__(
        self,
        service: str,
        *,
        resolver: Resolver,
        finder: Finder,
        transports: Mapping[str, Transport],
        signer: Signer,
        tracer: Tracer,
        runtime: Runtime,
        faults: FaultTable,
        absences: Mapping[str, object],
        is_slow: bool,
    ) -> None:
        self.service = service
        self.resolver = resolver
        self.lists: Mapping[str, tuple[tuple[Endpoint, ...], float]] = getattr(
            resolver, "lists", {}
        )
        self.finder = finder
        self.transports = transports
        self.signer = signer
        self.tracer = tracer
        self.runtime = runtime
        self.draw = runtime.rng.getrandbits
        self.faults = faults
        self.rules: Mapping[str, object] = faults.rules
        self.absences = absences
        self.is_slow = is_slow

    def transport(self, endpoint: Endpoint) -> Transport:
        """Return what reaches an endpoint. Raises ConfigError where nothing does."""
        transport = self.transports.get(endpoint.scheme)
        if transport is None:
            known = ", ".join(sorted(self.transports)) or "none"
            raise ConfigError(
                f"instance {endpoint.instance!r} is reached by {endpoint.scheme!r}, and "
                f"{self.service!r} has no such transport (it has: {known}); add one, or register "
                "the instance under another url"
            )
        return transport


class Plan:
    """The way of one operation's calls, for one caller.

    Attributes:
        edge: its guard, with the operation's own time and retries; `breaker`, `budget`, `limiter`
            and `timeout_s` are those of the edge.
        decode: reads an answer.
        record: takes the span of a call that has ended.
    """

    __slots__ = (
        "breaker", "budget", "decode", "edge", "is_command", "is_external", "limiter", "name",
        "operation", "record", "service", "shared", "timeout_s",
    )  # fmt: skip

    def __init__(self, operation: Operation[..., Any], edge: Edge, service: CalledService) -> None:
        self.operation = operation
        self.name = operation.full_name
        self.is_command = operation.is_command
        self.is_external = operation.is_external
        self.service = service
        self.shared = service.shared
        self.edge = edge
        self.breaker, self.budget, self.limiter = edge.breaker, edge.budget, edge.limiter
        self.timeout_s = math.inf if edge.policy.timeout_s is None else edge.policy.timeout_s
        self.decode: Callable[[bytes], Any] = decoder_of(operation.shape.result)
        self.record = service.shared.tracer.recorder("call", operation.full_name)

    def misfit(self, error: Exception) -> RemoteFailed:
        """Return what an answer is that does not fit the contract: an error of its own (B5)."""
        return RemoteFailed(
            f"{self.name} answered what its contract does not say: the data does not fit: {error}; "
            "caller and callee have contracts that do not fit each other"
        )
