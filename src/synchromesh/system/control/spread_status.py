"""The status of a system of replicas that nobody supervises, put together from what each tells.

Who is there, is what the registry says; what a replica says of its database, all of its service do,
so that one of them is believed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from msgspec.structs import replace

from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    PROCESS,
    SILENT,
    ChildStatus,
    ExternalStatus,
    FaultsStatus,
    FaultStatus,
    GatewayStatus,
    HealthStatus,
    IsolationStatus,
    ListedInstance,
    ServiceStatus,
)

MISSING = "missing"


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """What is known of a replica.

    Attributes:
        listed: what the registry has of it.
        node: the name of its host, as in its own.
        status: what it tells; None where it does not answer.
        why: why it does not.
    """

    service: str
    listed: ListedInstance
    pid: int | None
    admin: str
    status: Status | None
    why: str = ""

    @property
    def instance(self) -> str:
        """Its name."""
        return self.listed.instance

    @property
    def node(self) -> str:
        """The name of its host, as in its own."""
        return self.instance.partition("@")[2]


def spread_status(
    system: str,
    reports: Sequence[ReplicaReport],
    *,
    services: Collection[str],
    externals: Collection[str] = (),
    gateway: str = "",
    engines: Mapping[str, str] = MappingProxyType({}),
) -> Status:
    """Return the status of a system.

    Args:
        reports: of all that the registry has, also of what is no service of this configuration.
        services: those that are configured.
        externals: the services that are not ours.
        gateway: what its gateway is called; "" where it has none.
        engines: what it runs on, in words.

    Example:
        >>> at = ListedInstance("orders#1@a", "http://10.0.0.5:8001", False)
        >>> report = ReplicaReport("orders", at, 17, "", None, "it hangs")
        >>> spread_status("shop", [report], services=["orders"]).findings
        ['orders#1@a/process is silent: it hangs']
    """
    faults: dict[str, FaultStatus] = {}
    isolations: dict[str, IsolationStatus] = {}
    whole: list[Status] = []
    told: set[str] = set()
    for report in reports:
        if report.service in externals:
            continue
        own = _renamed(report, is_gateway=report.service == gateway)
        if report.status is not None and report.service != gateway:
            if report.service in told:
                own = replace(own, services={k: _alone(v) for k, v in own.services.items()})
            told.add(report.service)
        faults |= {each.target: replace(each, struck=0) for each in own.faults.in_force}
        isolations |= {each.target: each for each in own.isolations}
        whole.append(own)
    there = {report.service for report in reports}
    first = Status(
        system,
        0,
        services={name: _missing(name) for name in services if name not in there},
        externals={
            name: ExternalStatus([each.listed for each in reports if each.service == name])
            for name in externals
        },
        children={gateway: _no_replica(gateway)} if gateway and gateway not in there else {},
        faults=FaultsStatus(list(faults.values())),
        isolations=list(isolations.values()),
        engines=dict(engines),
    )
    return Status.merge(first, *whole)


def _renamed(report: ReplicaReport, *, is_gateway: bool) -> Status:
    """Return what a replica tells under names that it has alone in the system."""
    status, name = report.status, report.instance
    if status is None:
        silent = ChildStatus(SILENT, last_error=report.why)
        if is_gateway:
            gateway = GatewayStatus(report.pid, report.listed.url, admin=report.admin)
            return Status("", 0, gateways={name: gateway}, children={name: silent})
        health = HealthStatus(report.service, False, False, {PROCESS: silent})
        own = ServiceStatus(report.pid, health, instances=[report.listed], admin=report.admin)
        return Status("", 0, services={name: own})
    at = f"@{report.node}" if report.node else ""
    told = {}
    for each in status.services.values():  # a process has one at most
        told[name] = replace(each, instances=[report.listed], admin=report.admin)
    changed = replace(
        status,
        gateway=None,
        services=told,
        children={f"{child}{at}": state for child, state in status.children.items()},
        clients={f"{client}{at}": each for client, each in status.clients.items()},
        externals={},
    )
    if status.gateway is None:
        return changed
    return replace(changed, gateways={name: replace(status.gateway, admin=report.admin)})


def _alone(service: ServiceStatus) -> ServiceStatus:
    """Return what a replica tells of itself alone, without what is in the database of all."""
    return replace(
        service,
        sagas={},
        behind={},
        parked=0,
        schedules_failed={},
        projections=[],
        set_aside=[],
        gone=[],
        keys_lost="",
        keys_left_over="",
    )


def _missing(service: str) -> ServiceStatus:
    health = HealthStatus(service, False, False, {PROCESS: _no_replica(service)})
    return ServiceStatus(None, health)


def _no_replica(name: str) -> ChildStatus:
    return ChildStatus(
        MISSING,
        last_error=f"no replica of it is registered; start one: synchromesh run {name}",
    )
