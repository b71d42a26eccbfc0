"""The dependencies of the services of one process, wired by the host alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from synchromesh.calls import Caller, FaultTable, Isolations, Policies, Transport
from synchromesh.discovery import Resolver
from synchromesh.identity import Signer
from synchromesh.messaging import Declared, Stream
from synchromesh.propagation import SAMPLE_ALL, Propagation
from synchromesh.resilience import LimitOptions
from synchromesh.runtime import Runtime
from synchromesh.service.definition import Service
from synchromesh.service.forgetting import Retention
from synchromesh.store import StoreFactory
from synchromesh.store.archive import Archive
from synchromesh.telemetry import Metrics, Sink, Tracer

# How long inboxes remember; longer than any saga may still ask (S6).
KEEP_S = 7 * 86_400.0
PLACES = LimitOptions(in_flight_max=1000, queue_max=1000)
SAGA_PLACES = LimitOptions(in_flight_max=1024, queue_max=10_000)


@dataclass(frozen=True, slots=True)
class Deps:
    """The dependencies of the services, the gateway and other clients of one process.

    Attributes:
        services: the definitions of all services of the system, whichever runs here.
        signer: signs and verifies hops.
        sink: takes spans.
        propagation: which traces are sampled that begin here, and which baggage is taken.
        stores: opens the database of a service.
        resolver: finds the instances of a service.
        transports: reach them, by the scheme of their URL.
        policies: how the calls of a caller are guarded, by its name.
        gave_up: told service, child and error each time a background child is given up, as one
            that has failed too often; it is tried again by itself.
        places: how many calls a service works on at once, and how many wait, by its name.
        saga_places: how many sagas a service has at work at once, and how many more are queued.
        faults: those in force on purpose; None where nothing is ever broken.
        keep_s: how long inboxes remember; longer than any saga may still ask.
        isolations: the edges that people have isolated by hand.
        retention: after which time services forget what they keep.
        archive: opens what keeps in files what a service forgets; None where nothing is kept.
        declared: which events the running processes of services take, as they say themselves.
        stream: by which messages are delivered; None where they are by calls.
        metrics: counts the work of all of them.
    """

    runtime: Runtime
    services: Mapping[str, Service]
    signer: Signer
    sink: Sink
    stores: StoreFactory
    resolver: Resolver
    transports: Mapping[str, Transport]
    policies: Callable[[str], Policies]
    gave_up: Callable[[str, str, BaseException], None]
    places: Callable[[str], LimitOptions] = lambda _: PLACES
    saga_places: Callable[[str], LimitOptions] = lambda _: SAGA_PLACES
    faults: FaultTable | None = None
    keep_s: float = KEEP_S
    externals: frozenset[str] = frozenset()
    isolations: Isolations = field(default_factory=Isolations)
    retention: Retention = field(default_factory=Retention)
    archive: Callable[[str], Archive | None] = lambda _: None
    declared: Declared = field(default_factory=Declared)
    propagation: Propagation = SAMPLE_ALL
    stream: Stream | None = None
    metrics: Metrics = field(default_factory=Metrics)

    def subscribers(self) -> dict[str, frozenset[str]]:
        """Return the public events, by stored name, that each service takes.

        It is what the code says that this process has loaded, with what running processes declare.
        """
        return self.declared.added_to(
            {name: frozenset(each.subscriptions) for name, each in self.services.items()}
        )

    def tracer(self, name: str) -> Tracer:
        """Return the tracer of a service or of another caller."""
        return Tracer(name, self.runtime, self.sink, self.propagation, self.metrics)

    def caller(self, name: str, tracer: Tracer | None = None) -> Caller:
        """Return the caller of a service or a client: its calls are guarded, signed and traced."""
        made = Caller(
            name,
            resolver=self.resolver,
            transports=self.transports,
            signer=self.signer,
            tracer=tracer or self.tracer(name),
            runtime=self.runtime,
            policies=self.policies(name),
            faults=self.faults,
        )
        made.isolations = self.isolations
        self.isolations.follow(made)
        return made
