"""The status of this process, as the control API shows it."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from synchromesh.calls import Caller
from synchromesh.calls.forwarding import HTTP
from synchromesh.clock import loop_now
from synchromesh.discovery import Endpoint, UpstreamHealth
from synchromesh.discovery.readers import FoundResolver
from synchromesh.errors import StoreError
from synchromesh.events.inspection import list_projections
from synchromesh.service import ChildState, Deps, ServiceInstance, Supervisor
from synchromesh.store.owners import SharedOwners
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.control.actions import Action, Answers, ReadAction
from synchromesh.system.control.faults import FaultInjector
from synchromesh.system.control.gateway_changes import ReloadReport, ReloadRequest
from synchromesh.system.control.mirror_status import MirrorStatus
from synchromesh.system.control.spans import LAST, LISTED_MAX, NEWEST
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    ActStatus,
    BreakerStatus,
    ChildStatus,
    ClientStatus,
    ExportStatus,
    ExternalStatus,
    GatewayStatus,
    GoneStatus,
    HealthStatus,
    HoldStatus,
    IsolationStatus,
    ListedInstance,
    ProjectionStatus,
    ReloadStatus,
    ServiceStatus,
    SetAsideStatus,
)
from synchromesh.telemetry import SpanRecord, SqliteRing
from synchromesh.telemetry.observed import ObservedCall

# How many acts of people are told.
ACTS_MAX = 50

_log = logging.getLogger("synchromesh.system")


@dataclass(frozen=True, slots=True)
class LocalApplication:
    """What is shown of an ASGI application that runs in this process.

    Attributes:
        caller: makes its calls.
        in_flight: how many requests it is at work on.
        why_not: why it takes none; "" where it takes them.
    """

    service: str
    caller: Caller
    in_flight: int
    why_not: str
    is_draining: bool


@dataclass(slots=True)
class LocalProcess:
    """Reports what runs in this process; each part is added when it starts.

    Attributes:
        system: its name.
        ring: keeps the spans of this process.
        externals: the names of services that are not ours, where this process tells of them.
        joined: those of services that other processes answer for, likewise.
        asgi: those of services that are ASGI applications.
        applications: return what is shown of the ASGI applications here, by service or instance.
        upstreams: of those whose URLs are checked, which of them are up.
        found: what finds those that are told of elsewhere.
        supervisors: keep what belongs to no service.
        instances: by service, or by instance, such as "quoting#1", where it has replicas.
        clients: callers that are no service, by name.
        gateway_url: where the gateway is reached; "" where it is not served here.
        gateway_warnings: returns what a person should know of it.
        gateway_mirrors: returns what has come of the copies that it sends.
        admin: the URL of its admin listener.
        reread: reads the configuration as it is now.
        reload: reloads the gateway; None where it is not served here.
        taken_up: told of a part whose code is taken up while it runs.
        acts: the last things that people had it do, the newest first.
        export: returns what of its telemetry was not exported, by signal.
        reloaded: returns what its last reload was; None for none.
        code_changed: returns the files that have changed since their part started, by part.
        engines: what databases and the registry are on, in words.
        restart: restarts a part or background child that runs here; False where there is none.
    """

    system: str
    deps: Deps
    ring: SqliteRing
    faults: FaultInjector
    restart: Callable[[str], Awaitable[bool]]
    externals: Sequence[str] = ()
    joined: Sequence[str] = ()
    asgi: Sequence[str] = ()
    applications: dict[str, Callable[[], LocalApplication]] = field(default_factory=dict)
    upstreams: dict[str, UpstreamHealth] = field(default_factory=dict)
    found: dict[str, FoundResolver] = field(default_factory=dict)
    supervisors: Sequence[Supervisor] = ()
    instances: dict[str, ServiceInstance] = field(default_factory=dict)
    clients: dict[str, Caller] = field(default_factory=dict)
    gateway_url: str = ""
    gateway_warnings: Callable[[], list[str]] = list
    gateway_mirrors: Callable[[], list[MirrorStatus]] = list
    admin: str = ""
    reread: Callable[[], SystemConfig] | None = None
    reload: Callable[[ReloadRequest, SystemConfig], Awaitable[ReloadReport]] | None = None
    taken_up: Callable[[str], None] = lambda _: None
    reloaded: Callable[[], ReloadStatus | None] = lambda: None
    acts: deque[ActStatus] = field(default_factory=lambda: deque(maxlen=ACTS_MAX))
    export: Callable[[], dict[str, ExportStatus]] = dict
    code_changed: Callable[[], dict[str, list[str]]] = dict
    engines: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, target: str, who: str, why: str) -> None:
        """Note what a person had the system do; `status` tells it, and of a restart the log."""
        self.acts.appendleft(ActStatus(self.deps.runtime.wall_us(), what, target, who, why))
        if what == "restart":
            _log.info("a restart of %s was asked for", target, extra={"who": who, "why": why})

    def why_not_asked(self, name: str) -> str:
        """Return why operations of what is no `Service` are not called from here, or ""."""
        if name in self.externals:
            return (
                f"{name!r} is an external service: only services of this system call it, and its "
                "contract is theirs"
            )
        if name in (*self.asgi, *self.joined):
            return (
                f"{name!r} is an ASGI application, whose operations only itself knows: ask it by "
                "HTTP, or let a service call it by a contract"
            )
        return ""

    async def observed(self) -> list[ObservedCall]:
        """Return what was called by whom, as the spans of this process tell."""
        return await self.ring.observed()

    async def status(self) -> Status:
        """Return the status of this process."""
        pid = os.getpid()
        return Status(
            system=self.system,
            pid=pid,
            admin=self.admin,
            engines=self.engines,
            gateway=(
                GatewayStatus(
                    pid,
                    self.gateway_url,
                    self.gateway_warnings(),
                    self.admin,
                    self.gateway_mirrors(),
                    self.reloaded(),
                )
                if self.gateway_url
                else None
            ),
            services={
                **{name: await self._service(name) for name in self.instances},
                **{name: await self._application(name) for name in self.applications},
            },
            joined={name: await self._listed(name) for name in self.joined},
            externals={name: await self._external(name) for name in self.externals},
            clients={
                name: ClientStatus(_breakers(caller), _holds(caller), _ejected(caller))
                for name, caller in self.clients.items()
            },
            children={
                name: child_status(child)
                for each in self.supervisors
                for name, child in each.states.items()
            },
            faults=self.faults.status(),
            isolations=msgspec.convert(
                self.deps.isolations.standing, list[IsolationStatus], from_attributes=True
            ),
            spans_dropped=self.ring.dropped,
            export=self.export(),
            acts=list(self.acts),
            code_changed=self.code_changed(),
            clients_old=self.deps.signer.why_clients_old(),
        )

    async def _service(self, name: str) -> ServiceStatus:
        instance = self.instances[name]
        own = instance.health()
        children = {child: child_status(state) for child, state in own.children.items()}
        health = HealthStatus(own.service, own.is_healthy, own.is_draining, children, own.not_ready)
        status = ServiceStatus(
            pid=os.getpid(),
            admin=self.admin,
            health=health,
            in_flight=instance.dispatcher.in_flight,
            sagas_since_start=dict(instance.engine.counts),
            breakers=_breakers(instance.caller),
            holds=_holds(instance.caller),
            ejected=_ejected(instance.caller),
            duties=_duties(instance),
            instances=await self._listed(instance.service.name, name),
        )
        try:
            aside = await instance.set_aside(self.deps.runtime.wall_us())
            return msgspec.structs.replace(
                status,
                sagas=await instance.sagas(),
                behind=await instance.behind(),
                parked=aside.count,
                set_aside=msgspec.convert(aside.groups, list[SetAsideStatus], from_attributes=True),
                gone=msgspec.convert(await instance.gone(), list[GoneStatus], from_attributes=True),
                keys_lost=instance.keys_lost,
                full=instance.full,
                keys_left_over=instance.keys_left_over,
                schedules_failed=await instance.schedules_failed(),
                projections=await _projections(instance),
            )
        except StoreError as error:
            # What it has to tell is in its database; all else is told.
            why = health.not_ready or error.message
            health = msgspec.structs.replace(health, is_healthy=False, not_ready=why)
            return msgspec.structs.replace(status, health=health)

    async def _application(self, name: str) -> ServiceStatus:
        own = self.applications[name]()
        health = HealthStatus(own.service, not own.why_not, own.is_draining, {}, own.why_not)
        return ServiceStatus(
            pid=os.getpid(),
            admin=self.admin,
            health=health,
            in_flight=own.in_flight,
            breakers=_breakers(own.caller),
            holds=_holds(own.caller),
            ejected=_ejected(own.caller),
            instances=await self._listed(own.service, name),
        )

    async def _external(self, name: str) -> ExternalStatus:
        health = self.upstreams.get(name)
        if health is None:
            found = self.found.get(name)
            unread = "" if found is None else found.why_stale
            return ExternalStatus(await self._listed(name), unread=unread)
        urls = {each.instance: each.url for each in health.endpoints}
        down = {urls[instance]: why for instance, why in health.down.items()}
        return ExternalStatus(await self._listed(name), down, len(urls))

    async def _listed(self, service: str, name: str = "") -> list[ListedInstance]:
        """Return what is listed of a service; of one of its replicas, itself alone."""
        resolved = await self.deps.resolver.resolve(service)
        return [
            ListedInstance(endpoint.instance, _outside(endpoint), resolved.is_stale)
            for endpoint in resolved.endpoints
            if name in ("", service, endpoint.instance)
        ]

    async def act(self, action: Action, wanted: Any, _: bytes) -> Answers:
        """Run an action for the services here that have a database, as far as they are asked."""
        answers: dict[str, Any] = {}
        for instance in self.instances.values():
            service = instance.service.name
            if service in answers:
                continue  # of several replicas, which have one database, one is enough
            if wanted.service in ("", service) and instance.has_database:
                run: Any = action.run
                of = instance.store if isinstance(action, ReadAction) else instance
                if (answer := await run(of, wanted)) is not None:
                    answers[service] = answer
        return Answers(answers)

    async def spans(self, trace_id: str, first: int = 0) -> list[SpanRecord]:
        """Return the spans of a trace that are kept here, or of the `LAST`, ordered by start.

        It is so many of the earliest, 0 for all; of the `NEWEST` those that traces began with.
        """
        if trace_id == NEWEST:
            return await self.ring.asked(LISTED_MAX)
        if trace_id == LAST:
            newest = await self.ring.last_trace_id()
            if newest is None:
                return []
            trace_id = newest
        return (await self.ring.trace(trace_id))[: first or None]


async def _projections(instance: ServiceInstance) -> list[ProjectionStatus]:
    if not instance.has_database:
        return []
    found = await list_projections(instance.store)
    told = msgspec.convert(found, list[ProjectionStatus], from_attributes=True)
    return [_without_text(each) for each in told]


def _without_text(projection: ProjectionStatus) -> ProjectionStatus:
    """Return what may leave the service: the class of an error, whose text may be a customer's."""
    parked = projection.parked
    if parked is None:
        return projection
    kind = parked.error.partition(":")[0]
    return replace(projection, parked=replace(parked, error=kind))


def child_status(state: ChildState) -> ChildStatus:
    """Return the state of a child as it is shown."""
    next_in_s = state.next_s - loop_now() if state.next_s else 0.0
    return ChildStatus(state.state, state.restarts, state.last_error, round(max(0.0, next_in_s), 1))


def _holds(caller: Caller) -> HoldStatus:
    return msgspec.convert(caller.holds, HoldStatus, from_attributes=True)


def _ejected(caller: Caller) -> dict[str, list[str]]:
    return {service: sorted(instances) for service, instances in caller.ejected.items()}


def _breakers(caller: Caller) -> dict[str, BreakerStatus]:
    now = loop_now()
    return {
        callee: msgspec.convert(
            {
                **msgspec.to_builtins(breaker),
                "in_state_s": max(0.0, round(now - breaker.since_s, 3)),
            },
            BreakerStatus,
        )
        for callee, breaker in caller.edges.items()
    }


def _duties(instance: ServiceInstance) -> list[str]:
    owners = instance.store.owners if instance.has_database else None
    return sorted(owners.owned) if isinstance(owners, SharedOwners) else []


def _outside(endpoint: Endpoint) -> str:
    """Return where an instance is reached from outside: in this process it has two places."""
    return dict(endpoint.metadata).get(HTTP, endpoint.url)
