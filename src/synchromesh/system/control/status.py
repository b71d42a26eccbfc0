"""What a running system says of itself: everything that its status shows, as one JSON object."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from synchromesh.calls import Caller
from synchromesh.discovery import Resolver
from synchromesh.identity import Signer
from synchromesh.runtime import Runtime
from synchromesh.service import ServiceInstance, Supervisor
from synchromesh.system.control.faults import FaultInjector
from synchromesh.telemetry import SqliteRing, Tracer


class HasUrl(Protocol):
    """Is reached at a URL."""

    @property
    def url(self) -> str:
        """Where; "" before it has started."""
        ...


@dataclass(frozen=True, slots=True)
class Overview:
    """What those see who speak for all of a running system.

    Attributes:
        name: the system's.
        caller: makes the calls of the command line, with `tracer`.
        clients: all callers that are no service, by name; the command line's is one.
        instances: by service.
        gateway: the way in; None where there is none, or it is another process.
        urls: where services listen, by service.
        externals: the external services' names.
        resolver: finds both.
        supervisors: keep what belongs to no service.
    """

    name: str
    caller: Caller
    tracer: Tracer
    clients: Mapping[str, Caller]
    ring: SqliteRing
    instances: Mapping[str, ServiceInstance]
    gateway: HasUrl | None
    urls: Mapping[str, str]
    externals: Sequence[str]
    resolver: Resolver
    supervisors: Sequence[Supervisor]
    faults: FaultInjector
    signer: Signer
    runtime: Runtime


async def status_of(overview: Overview) -> dict[str, Any]:
    """Return how the system is.

    `findings` says in words what needs a person: sagas that are stuck, messages that are parked,
    background children that do not run. An open breaker is none: it closes by itself.
    """
    pid = os.getpid()
    services = {
        name: {
            "pid": pid,
            **await instance_status(instance),
            "instances": await _listed(overview, name),
        }
        for name, instance in overview.instances.items()
    }
    children = {
        child: asdict(state)
        for supervisor in overview.supervisors
        for child, state in supervisor.states.items()
    }
    return {
        "system": overview.name,
        "pid": pid,
        "gateway": None if overview.gateway is None else {"pid": pid, "url": overview.gateway.url},
        "services": services,
        "externals": {
            name: {"instances": await _listed(overview, name)} for name in overview.externals
        },
        "clients": {
            name: {"breakers": _breakers(caller), "holds": _holds(caller)}
            for name, caller in overview.clients.items()
        },
        "children": children,
        "faults": overview.faults.told(),
        "spans_dropped": overview.ring.dropped,
        "findings": findings_in(services, children),
    }


def findings_in(
    services: Mapping[str, Mapping[str, Any]], children: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say what of a status needs a person; nothing where all is well.

    Example:
        >>> findings_in({}, {"registry": {"state": "failed", "last_error": "OSError"}})
        ['registry is failed: OSError']
    """
    found = [_down(child, state) for child, state in children.items()]
    for name, service in services.items():
        states = service["health"]["children"]
        found += [_down(f"{name}/{child}", state) for child, state in states.items()]
        if stuck := service["sagas"].get("stuck"):
            see = "see: synchromesh saga list --status stuck"
            found.append(f"{name}: sagas that are stuck: {stuck}; {see}")
        if parked := service["parked"]:
            found.append(f"{name}: messages that are parked: {parked}")
    return [finding for finding in found if finding]


def _down(child: str, state: Mapping[str, Any]) -> str:
    if state["state"] == "running":
        return ""
    return f"{child} is {state['state']}: {state['last_error']}"


async def instance_status(instance: ServiceInstance) -> dict[str, Any]:
    """Return what one instance knows of itself; what others know of it is not among it."""
    return {
        "health": asdict(instance.health()),
        "sagas": await instance.engine.statuses(),
        "sagas_since_start": dict(instance.engine.counts),
        "behind": await instance.behind(),
        "parked": await instance.consumer.parked_count(),
        "breakers": _breakers(instance.caller),
        "holds": _holds(instance.caller),
    }


async def _listed(overview: Overview, service: str) -> list[dict[str, Any]]:
    """Return the instances that callers find, each where it can be reached from outside."""
    resolved = await overview.resolver.resolve(service)
    return [
        {
            "instance": endpoint.instance,
            "url": endpoint.url if endpoint.scheme == "http" else overview.urls.get(service, ""),
            "is_stale": resolved.is_stale,
        }
        for endpoint in resolved.endpoints
    ]


def _holds(caller: Caller) -> dict[str, int]:
    """Return how many calls waited for an instance to be ready, and what came of it."""
    holds = caller.holds
    return {
        "held": holds.held,
        "bridged": holds.bridged,
        "given_up": holds.given_up,
        "refused": holds.refused,
    }


def _breakers(caller: Caller) -> dict[str, Any]:
    """Return the breakers of a caller; `in_state_s` is for how long each is as it is."""
    now = asyncio.get_running_loop().time()
    return {
        callee: {**asdict(breaker), "in_state_s": round(now - breaker.since_s, 3)}
        for callee, breaker in caller.edges.items()
    }
