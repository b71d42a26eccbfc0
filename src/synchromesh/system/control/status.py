"""The status of a running system: one typed value, reported by each process and merged.

It imports nothing of what it tells of, so that the command line decodes it without a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from synchromesh.codec import to_datetime
from synchromesh.system.control.mirror_status import MirrorStatus

RUNNING, FAILED, SILENT, STOPPED = "running", "failed", "silent", "stopped"
# The child by which a service shows its process, where that does not answer.
PROCESS = "process"
# How long a message may wait for a release before that is a finding.
HELD_S = 60.0
# So many messages are looked at to say what they wait for.
COUNTED_MAX = 1000


class ChildStatus(msgspec.Struct, frozen=True):
    """A supervised loop or process: "running", "restarting", "failed", "starting".

    A process may also be "silent", for its event loop answers nothing, or "stopped" by a signal.
    `next_in_s` is when one that has failed is tried again.
    """

    state: str
    restarts: int = 0
    last_error: str = ""
    next_in_s: float = 0.0


class HealthStatus(msgspec.Struct, frozen=True):
    """The health check of a service's instance; `not_ready` says why its database fails."""

    service: str
    is_healthy: bool
    is_draining: bool
    children: dict[str, ChildStatus]
    not_ready: str = ""


class BreakerStatus(msgspec.Struct, frozen=True):
    """The circuit breaker of an edge; `in_state_s` is the time since its last transition."""

    name: str
    state: str
    epoch: int
    calls: int
    failures: int
    slow: int
    probes: int
    probes_max: int
    open_until_s: float | None
    since_s: float
    in_state_s: float


class HoldStatus(msgspec.Struct, frozen=True):
    """How many calls wait, or waited, for an instance to be ready, and their outcomes."""

    held: int = 0
    bridged: int = 0
    given_up: int = 0
    refused: int = 0


class ListedInstance(msgspec.Struct, frozen=True):
    """A listed instance, and its address."""

    instance: str
    url: str
    is_stale: bool


class ParkedStatus(msgspec.Struct, frozen=True):
    """What a projection is parked at, why and since when; position 0 is the log itself."""

    position: int
    event_id: str
    name: str
    error: str
    since_us: int
    is_poison: bool


class ProjectionStatus(msgspec.Struct, frozen=True):
    """A generation of a projection: "live" or "standby", and how many positions it is behind.

    `is_waiting`: this release has no code of its version.
    """

    name: str
    generation: int
    version: int
    state: str
    position: int
    behind: int
    skipped: int
    is_waiting: bool
    parked: ParkedStatus | None = None


class SetAsideStatus(msgspec.Struct, frozen=True):
    """How many messages were set aside for one reason: "parked", "held" or "refused".

    Attributes:
        subscriber: who refuses them; "" where the service itself cannot take them.
        error: the type of the error; its text is told by `synchromesh messages show`.
        oldest_s: how long the oldest one waits.
    """

    state: str
    source: str
    subscriber: str
    event: str
    error: str
    count: int
    oldest_s: float


class GoneStatus(msgspec.Struct, frozen=True):
    """A subscriber that takes nothing of a service any more, and for whom it keeps events.

    `behind` is how many public events come after the position that it has passed, up to 100,000;
    `set_aside` how many messages that it refused, likewise.
    """

    subscriber: str
    position: int
    behind: int
    set_aside: int


class ServiceStatus(msgspec.Struct, frozen=True):
    """An instance of a service, as reported by its process; a silent one has only `health`.

    `in_flight` is how many calls it runs; `ejected` names the instances that it does not call for
    now, by their service. `admin` is the admin listener of its process. `parked` is how many
    messages were set aside, with those that wait behind others; `set_aside` is what they wait for.
    `duties` are those that it has, where several processes share them.
    """

    pid: int | None
    health: HealthStatus
    in_flight: int = 0
    sagas: dict[str, int] = {}
    sagas_since_start: dict[str, int] = {}
    behind: dict[str, int] = {}
    parked: int = 0
    schedules_failed: dict[str, str] = {}
    keys_lost: str = ""
    keys_left_over: str = ""
    projections: list[ProjectionStatus] = []
    set_aside: list[SetAsideStatus] = []
    gone: list[GoneStatus] = []
    breakers: dict[str, BreakerStatus] = {}
    holds: HoldStatus = HoldStatus()
    ejected: dict[str, list[str]] = {}
    instances: list[ListedInstance] = []
    admin: str = ""
    duties: list[str] = []


class ExternalStatus(msgspec.Struct, frozen=True):
    """An external service.

    Attributes:
        instances: where requests go.
        down: the URLs whose health check fails, and why.
        checked: how many URLs are checked; 0 for none.
        unread: why it cannot be read where it is; "" where it can, or that is configured.
    """

    instances: list[ListedInstance]
    down: dict[str, str] = {}
    checked: int = 0
    unread: str = ""


class ClientStatus(msgspec.Struct, frozen=True):
    """A caller that is not a service: the gateway, or the command line."""

    breakers: dict[str, BreakerStatus]
    holds: HoldStatus
    ejected: dict[str, list[str]] = {}


class ReloadStatus(msgspec.Struct, frozen=True):
    """The last reload of the gateway, who asked for it and why, and how much it changed."""

    at_us: int
    who: str
    why: str
    changes: int


class GatewayStatus(msgspec.Struct, frozen=True):
    """The gateway, the process that serves it, and what a person should know, in words."""

    pid: int | None
    url: str
    warnings: list[str] = []
    admin: str = ""
    mirrors: list[MirrorStatus] = []
    reloaded: ReloadStatus | None = None


class ExportStatus(msgspec.Struct, frozen=True):
    """How much of a signal was not exported, and why what was tried last is not taken."""

    lost: int
    why: str = ""


class FaultStatus(msgspec.Struct, frozen=True):
    """A fault that is in force on purpose, how many attempts it has struck, by whom and why."""

    target: str
    what: str
    errors: float
    latency_s: float
    is_stall: bool
    left_s: float | None
    struck: int
    who: str = ""
    why: str = ""


class FaultsStatus(msgspec.Struct, frozen=True):
    """The faults in force, and how many attempts faults have ever struck."""

    in_force: list[FaultStatus] = []
    struck: int = 0

    def with_struck(self, others: list[FaultsStatus]) -> FaultsStatus:
        """Return the faults with their counts increased by those of other processes."""
        every = [self, *others]
        struck: dict[str, int] = {}
        for fault in (fault for each in every for fault in each.in_force):
            struck[fault.target] = struck.get(fault.target, 0) + fault.struck
        return FaultsStatus(
            [msgspec.structs.replace(f, struck=struck[f.target]) for f in self.in_force],
            sum(each.struck for each in every),
        )


class ContractBreak(msgspec.Struct, frozen=True):
    """The record of a process that was let in although contracts do not fit.

    Attributes:
        at_us: wall clock.
        part: the service, or "gateway", whose process it is.
        who: answers for it; "" where it was started because none ran.
        reason: why, in their words.
        differences: what did not fit, a sentence each.
        standing: those that do not fit now either, among the processes that run.
    """

    at_us: int
    part: str
    pid: int
    who: str
    reason: str
    differences: tuple[str, ...]
    standing: tuple[str, ...] = ()


class ActStatus(msgspec.Struct, frozen=True):
    """What a person had the running system do: "restart", "break" or "heal"; `at_us` is wall clock.

    `who` and `why` are "" where it was not said.
    """

    at_us: int
    what: str
    target: str
    who: str
    why: str


class IsolationStatus(msgspec.Struct, frozen=True):
    """An edge, or a callee for all its callers, that somebody isolated; `at_us` is wall clock."""

    target: str
    who: str
    why: str
    at_us: int


class Status(msgspec.Struct, frozen=True):
    """The status of a process, or of the system as a whole.

    Attributes:
        pid: the process; of a whole system, its supervisor.
        admin: where that process tells of its health.
        gateway: the way in; None where there is none, or it is another process.
        gateways: all of them by name, where nobody supervises them; `gateway` is one of these.
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

    @classmethod
    def merge(cls, first: Status, *others: Status) -> Status:
        """Merge statuses; system name, process id, faults and isolations are those of the first.

        What two of them tell is taken as the later one tells it.
        """
        every = (first, *others)
        gateway = next((each.gateway for each in every if each.gateway is not None), None)
        services = {name: own for each in every for name, own in each.services.items()}
        externals = {name: own for each in every for name, own in each.externals.items()}
        children = {name: own for each in every for name, own in each.children.items()}
        return cls(
            system=first.system,
            pid=first.pid,
            admin=first.admin,
            gateway=gateway,
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
            findings=[
                *_findings(services, children),
                *_unhealthy(externals),
                *_broken(first.contract_breaks),
                *(gateway.warnings if gateway is not None else ()),
            ],
        )


def _exported(every: Iterable[Status]) -> dict[str, ExportStatus]:
    """Return what all processes have lost, by signal, and why one of them does now."""
    found: dict[str, ExportStatus] = {}
    for name, own in ((name, own) for each in every for name, own in each.export.items()):
        known = found.get(name, ExportStatus(0))
        found[name] = ExportStatus(known.lost + own.lost, known.why or own.why)
    return found


def _findings(
    services: Mapping[str, ServiceStatus], children: Mapping[str, ChildStatus]
) -> Iterator[str]:
    # A process is told of by its service.
    told = {f"service/{name}" for name, each in services.items() if PROCESS in each.health.children}
    yield from _down({name: child for name, child in children.items() if name not in told})
    for name, service in services.items():
        if service.health.not_ready:
            yield f"{name} is not ready: {service.health.not_ready}"
        yield from _down(service.health.children, f"{name}/")
        if stuck := service.sagas.get("stuck"):
            see = "see: synchromesh saga list --status stuck"
            yield f"{name}: sagas that are stuck: {stuck}; {see}"
        if waiting := service.sagas.get("waiting"):
            see = "see: synchromesh saga list --status waiting"
            yield f"{name}: sagas that wait for other code or keys: {waiting}; {see}"
        yield from _parked(name, service.projections)
        yield from _set_aside(name, service.set_aside)
        yield from _gone(name, service.gone)
        if service.keys_lost:
            yield f"{name}: the keys of its personal data are lost; see: synchromesh db verify"
        if service.keys_left_over:
            yield (
                f"{name}: keys that were erased are not overwritten yet in {name}.keys: "
                f"{service.keys_left_over}; it is tried again until they are"
            )
        for schedule, failed in service.schedules_failed.items():
            yield f"{name}: schedule {schedule} failed: {failed}; see: synchromesh schedule list"


def _unhealthy(externals: Mapping[str, ExternalStatus]) -> Iterator[str]:
    for name, external in externals.items():
        for url, why in external.down.items():
            yield f"{name}: {url} is down: {why}"
        if external.unread:
            where = "goes on at what was found last" if external.instances else "is nowhere"
            yield f"{name} {where}: {external.unread}"
        if external.down and len(external.down) == external.checked:
            yield f"{name}: none of its urls is up, so requests go to all; is health.path right?"


def _parked(service: str, projections: list[ProjectionStatus]) -> Iterator[str]:
    for each in projections:
        parked = each.parked
        if parked is None:
            continue
        where = f"event {parked.position} ({parked.name})" if parked.position else "the log"
        since = to_datetime(parked.since_us).strftime("%Y-%m-%d %H:%M:%S")
        todo = "mend it, and restart the service or: synchromesh projection retry"
        if parked.is_poison:
            todo = f"{todo}|skip"
        yield (
            f"{service}: projection {each.name} ({each.state}) is parked at {where} since {since} "
            f"UTC: {parked.error}; {todo} {each.name} --why TEXT"
        )


def _set_aside(service: str, groups: list[SetAsideStatus]) -> Iterator[str]:
    for group in groups:
        if group.state == "parked":
            of = f"messages of {group.source} that are parked"
        elif group.oldest_s < HELD_S:
            continue  # while releases change one after the other, that is as it should be
        elif group.state == "held":
            of = f"messages of {group.source} that are held, for no release here takes them"
        else:
            of = f"messages that {group.subscriber} refuses"
        count = f"{group.count}{' or more' if group.count >= COUNTED_MAX else ''}"
        yield (
            f"{service}: {of}: {count} ({group.event}: {group.error}); see: synchromesh "
            f"messages list --service {service}"
        )


def _gone(service: str, subscribers: list[GoneStatus]) -> Iterator[str]:
    for each in subscribers:
        if each.behind or each.set_aside:
            yield (
                f"{service}: {each.subscriber} takes nothing of it any more, and what it has not "
                f"got is kept: events: {each.behind}, messages set aside: {each.set_aside}; if it "
                f"is gone for ever: synchromesh messages forget {each.subscriber} "
                f"--service {service} --why TEXT"
            )


def _broken(records: list[ContractBreak]) -> Iterator[str]:
    standing: dict[str, set[str]] = {}
    for record in records:
        # Replicas offer and expect what their service does.
        standing.setdefault(record.part.partition("#")[0], set()).update(record.standing)
    for part, differences in standing.items():
        if differences:
            yield (
                f"{part}: differences of contracts that stand: {len(differences)}; restart it, or "
                "the other side, with a release that fits"
            )


def _down(children: Mapping[str, ChildStatus], of: str = "") -> Iterator[str]:
    for name, child in children.items():
        if child.state == RUNNING:
            continue
        finding = f"{of}{name} is {child.state}: {child.last_error}"
        if child.state == FAILED:
            # Parts are restarted by their own name.
            part = f"{of}{name}".removesuffix(f"/{PROCESS}").removeprefix("service/")
            when = f"it is tried again in {child.next_in_s:.0f} s"
            finding = f"{finding}; {when}, and at once by: synchromesh restart {part}"
        yield finding
