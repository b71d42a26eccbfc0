"""The status of a running system: one typed value, reported by each process and merged."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from synchromesh.system.control.findings import of_clients, of_contracts, of_externals, of_services
from synchromesh.system.control.status_parts import (
    ActStatus,
    ChildStatus,
    ClientStatus,
    ContractBreak,
    ExportStatus,
    ExternalStatus,
    FaultsStatus,
    GatewayStatus,
    IsolationStatus,
    ListedInstance,
    ServiceStatus,
)


class Status(msgspec.Struct, frozen=True):
    """The status of a process, or of the system as a whole.

    Attributes:
        pid: the process; of a whole system, its supervisor.
        admin: where that process tells of its health.
        gateway: the way in; None where there is none, or it is another process.
        gateways: all by name, where there are several or nobody supervises; `gateway` is the first.
        services: by name; of a service with replicas each of them, as "quoting#1".
        joined: the instances of services that other processes answer for, by service.
        clients: all callers that are no service, by name.
        children: what runs in the background and belongs to no service, by name.
        isolations: the edges that are isolated by hand.
        acts: the last things that people had it do, the newest first, since it started.
        contract_breaks: the last processes that were let in although contracts did not fit.
        spans_dropped: how many spans were lost, for too many came at once.
        export: what of its telemetry a collector has not taken, by signal.
        code_changed: the files that have changed since their part started, by service or "gateway".
        findings: what needs a person, in words; an open breaker does not, it closes by itself.
        engines: what databases are on, and the registry where that is on a server, in words.
        clients_old: why a process may not know which clients are revoked; "" where each does.

    Example:
        >>> down = ChildStatus("restarting", last_error="OSError")
        >>> one, two = Status("shop", 1, children={"registry": down}), Status("shop", 2)
        >>> Status.merge(one, two).findings
        ['registry is restarting: OSError']
    """

    system: str
    pid: int
    gateway: GatewayStatus | None = None
    services: dict[str, ServiceStatus] = {}
    externals: dict[str, ExternalStatus] = {}
    joined: dict[str, list[ListedInstance]] = {}
    clients: dict[str, ClientStatus] = {}
    children: dict[str, ChildStatus] = {}
    faults: FaultsStatus = FaultsStatus()
    isolations: list[IsolationStatus] = []
    acts: list[ActStatus] = []
    contract_breaks: list[ContractBreak] = []
    spans_dropped: int = 0
    export: dict[str, ExportStatus] = {}
    code_changed: dict[str, list[str]] = {}
    findings: list[str] = []
    admin: str = ""
    gateways: dict[str, GatewayStatus] = {}
    engines: dict[str, str] = {}
    clients_old: str = ""

    @classmethod
    def merge(cls, first: Status, *others: Status) -> Status:
        """Merge statuses; system name, process id, faults and isolations are those of the first.

        What two of them tell is taken as the later one tells it.
        """
        every = (first, *others)
        gateways = {name: own for each in every for name, own in each.gateways.items()}
        ways_in = [*gateways.values(), *(each.gateway for each in every if each.gateway)]
        services = {name: own for each in every for name, own in each.services.items()}
        externals = {name: own for each in every for name, own in each.externals.items()}
        children = {name: own for each in every for name, own in each.children.items()}
        clients_old = next((each.clients_old for each in every if each.clients_old), "")
        return cls(
            system=first.system,
            pid=first.pid,
            admin=first.admin,
            gateway=ways_in[0] if ways_in else None,
            gateways=gateways,
            services=services,
            externals=externals,
            joined={name: own for each in every for name, own in each.joined.items()},
            clients={name: own for each in every for name, own in each.clients.items()},
            children=children,
            faults=first.faults.with_struck([each.faults for each in others]),
            isolations=first.isolations,
            acts=first.acts,
            contract_breaks=first.contract_breaks,
            spans_dropped=sum(each.spans_dropped for each in every),
            export=_exported(every),
            code_changed=first.code_changed,
            engines=first.engines,
            clients_old=clients_old,
            findings=[
                *of_services(services, children),
                *of_externals(externals),
                *of_contracts(first.contract_breaks),
                *of_clients(clients_old),
                *dict.fromkeys(warning for each in ways_in for warning in each.warnings),
            ],
        )


def _exported(every: Iterable[Status]) -> dict[str, ExportStatus]:
    """Return what all processes have lost, by signal, and why one of them does now."""
    found: dict[str, ExportStatus] = {}
    for name, own in ((name, own) for each in every for name, own in each.export.items()):
        known = found.get(name, ExportStatus(0))
        found[name] = ExportStatus(known.lost + own.lost, known.why or own.why)
    return found
