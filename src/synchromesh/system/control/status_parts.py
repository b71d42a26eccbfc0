"""What the status of a system is made of: services, what runs in them, external services, faults.

It imports nothing of what it tells of, so that the command line decodes it without a server.
"""

from __future__ import annotations

import msgspec

from synchromesh.system.control.mirror_status import MirrorStatus

RUNNING, FAILED, SILENT, STOPPED = "running", "failed", "silent", "stopped"
# The child by which a service shows its process, where that does not answer.
PROCESS = "process"


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
    full: str = ""
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
