"""What of a status needs a person, in words: each finding says what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from synchromesh.codec import to_datetime
from synchromesh.system.control.status_parts import (
    FAILED,
    PROCESS,
    RUNNING,
    ChildStatus,
    ContractBreak,
    ExternalStatus,
    GoneStatus,
    ProjectionStatus,
    ServiceStatus,
    SetAsideStatus,
)

# How long a message may wait for a release before that is a finding.
HELD_S = 60.0
# So many messages are looked at to say what they wait for.
COUNTED_MAX = 1000


def of_services(
    services: Mapping[str, ServiceStatus], children: Mapping[str, ChildStatus]
) -> Iterator[str]:
    """Yield those of services and of what runs beside them."""
    # A process is told of by its service.
    told = {f"service/{name}" for name, each in services.items() if PROCESS in each.health.children}
    yield from _down({name: child for name, child in children.items() if name not in told})
    for name, service in services.items():
        if service.health.not_ready:
            yield f"{name} is not ready: {service.health.not_ready}"
        if service.full:
            yield f"{name} has no room to write: {service.full}"
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


def of_externals(externals: Mapping[str, ExternalStatus]) -> Iterator[str]:
    """Yield those of external services."""
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


def _service_of(name: str) -> str:
    """Return the service that verbs are told, whichever replica of it has told something."""
    return name.partition("#")[0]


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
            f"messages list --service {_service_of(service)}"
        )


def _gone(service: str, subscribers: list[GoneStatus]) -> Iterator[str]:
    for each in subscribers:
        if each.behind or each.set_aside:
            yield (
                f"{service}: {each.subscriber} takes nothing of it any more, and what it has not "
                f"got is kept: events: {each.behind}, messages set aside: {each.set_aside}; if it "
                f"is gone for ever: synchromesh messages forget {each.subscriber} "
                f"--service {_service_of(service)} --why TEXT"
            )


def of_contracts(records: list[ContractBreak]) -> Iterator[str]:
    """Yield the differences of contracts that stand."""
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


def of_clients(why_old: str) -> Iterator[str]:
    """Yield that revocations may not have come to all processes."""
    if why_old:
        yield f"the grants of clients may be old, and let in what was revoked since: {why_old}"
