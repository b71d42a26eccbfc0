"""The callers of a system that are no services: the command line's, and the gateway's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from synchromesh.calls import Caller, FaultTable, Policies, Transport
from synchromesh.discovery import Resolver
from synchromesh.identity import Signer
from synchromesh.runtime import Runtime
from synchromesh.telemetry import Sink, Tracer


@dataclass(frozen=True, slots=True)
class Clients:
    """Makes callers that are guarded, traced and broken on purpose as services are.

    Attributes:
        policies: how the calls of one are guarded, by its name.
    """

    resolver: Resolver
    transports: Mapping[str, Transport]
    signer: Signer
    sink: Sink
    faults: FaultTable
    runtime: Runtime
    policies: Callable[[str], Policies]

    def make(self, name: str) -> tuple[Caller, Tracer]:
        """Return a caller of that name, and the tracer that it tells its calls to."""
        tracer = Tracer(name, self.runtime, self.sink)
        caller = Caller(
            name,
            resolver=self.resolver,
            transports=self.transports,
            faults=self.faults,
            signer=self.signer,
            tracer=tracer,
            runtime=self.runtime,
            policies=self.policies(name),
        )
        return caller, tracer
