"""The status of a system: merged from what its processes say, and what in it needs a person."""

from __future__ import annotations

import asyncio
from typing import ClassVar, cast

import msgspec
import pytest

from synchromesh.calls import Caller
from synchromesh.resilience.breaker import BreakerSnapshot, BreakerState
from synchromesh.system.control import local
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    ChildStatus,
    ClientStatus,
    FaultsStatus,
    FaultStatus,
    GatewayStatus,
    GoneStatus,
    HealthStatus,
    HoldStatus,
    ServiceStatus,
    SetAsideStatus,
)

DOWN = ChildStatus("restarting", 1, "OSError")


def service(name: str, pid: int, **children: ChildStatus) -> ServiceStatus:
    """Return the status of a service that has no more than background children."""
    return ServiceStatus(pid, HealthStatus(name, not children, False, children))


def fault(target: str, struck: int) -> FaultStatus:
    """Return a fault that has struck so often."""
    return FaultStatus(target, "stall", 0.0, 0.0, True, None, struck)


def test_the_parts_of_processes_are_the_status_of_the_whole() -> None:
    """One status for each process, merged, is what one process with all parts would say."""
    client = ClientStatus({}, HoldStatus())
    orders, stock = service("orders", 2), service("stock", 3)
    supervisor = Status(
        "shop", 1, clients={"control": client}, children={"registry": DOWN}, spans_dropped=1
    )
    others = [
        Status("shop", 2, services={"orders": orders}, children={"lease/orders": DOWN}),
        Status("shop", 3, services={"stock": stock}, spans_dropped=4),
        Status("shop", 4, gateway=GatewayStatus(4, "http://g"), clients={"gateway": client}),
    ]
    assert Status.merge(supervisor, *others) == Status(
        "shop",
        1,
        gateway=GatewayStatus(4, "http://g"),
        services={"orders": orders, "stock": stock},
        clients={"control": client, "gateway": client},
        children={"registry": DOWN, "lease/orders": DOWN},
        spans_dropped=5,
        findings=["registry is restarting: OSError", "lease/orders is restarting: OSError"],
    )


def test_in_which_order_processes_are_merged_is_no_matter() -> None:
    """What was merged may be merged again, as long as the supervisor comes first."""
    first, *rest = (Status("shop", n, services={f"s{n}": service(f"s{n}", n)}) for n in range(4))
    at_once = Status.merge(first, *rest)
    assert Status.merge(Status.merge(first, *rest[:1]), *rest[1:]) == at_once
    assert Status.merge(first, Status.merge(*rest)) == at_once


def test_a_process_that_may_not_know_what_was_revoked_is_a_finding() -> None:
    """Whichever it is, and also after the statuses of hosts are merged with one another."""
    old = Status("shop", 2, clients_old="NATS at n:4222 is not connected")
    merged = Status.merge(Status("shop", 1), old)
    (finding,) = Status.merge(Status("shop", 0), merged).findings
    assert finding.startswith("the grants of clients may be old")
    assert finding.endswith(old.clients_old)
    assert Status.merge(Status("shop", 1), Status("shop", 2)).findings == []


def test_what_faults_struck_is_counted_in_all_processes() -> None:
    """The supervisor says which are in force; each process, how often they struck there."""
    told = [
        FaultsStatus([fault("orders", 0), fault("stock", 1)], 5),
        FaultsStatus([fault("stock", 2), fault("healed", 3)], 7),
        FaultsStatus([fault("orders", 4)], 4),
    ]
    merged = Status.merge(*(Status("shop", n, faults=each) for n, each in enumerate(told)))
    assert merged.faults == FaultsStatus([fault("orders", 4), fault("stock", 3)], 16)


def test_a_status_finds_what_needs_a_person() -> None:
    """Stuck sagas, parked messages, and children that do not run; all else is no finding."""
    running = ChildStatus("running", 3, "Shed")
    well = msgspec.structs.replace(service("a", 1), sagas={"completed": 1, "undone": 2})
    aside = [
        SetAsideStatus("parked", "a", "", "a.told", "ValueError", 3, 0.0),
        SetAsideStatus("held", "a", "", "a.asked", "UnknownEvent", 2, 61.0),
        SetAsideStatus("held", "a", "", "a.new", "UnknownEvent", 1, 59.0),
        SetAsideStatus("refused", "b", "c", "b.sold", "BadRequest", 7, 60.0),
    ]
    ill = msgspec.structs.replace(
        service("b", 1, **{"relay/b": running, "sweep": DOWN}),
        sagas={"stuck": 2},
        parked=13,
        set_aside=aside,
    )
    assert Status.merge(Status("shop", 1, services={"a": well})).findings == []
    found = Status("shop", 1, services={"a": well, "b": ill}, children={"registry": DOWN})
    assert Status.merge(found).findings == [
        "registry is restarting: OSError",
        "b/sweep is restarting: OSError",
        "b: sagas that are stuck: 2; see: synchromesh saga list --status stuck",
        (
            "b: messages of a that are parked: 3 (a.told: ValueError); see: synchromesh messages "
            "list --service b"
        ),
        (
            "b: messages of a that are held, for no release here takes them: 2 (a.asked: "
            "UnknownEvent); see: synchromesh messages list --service b"
        ),
        (
            "b: messages that c refuses: 7 (b.sold: BadRequest); see: synchromesh messages list "
            "--service b"
        ),
    ]


@pytest.mark.parametrize("name", ["b#2", "b#2@web1"])
def test_what_a_replica_tells_is_repaired_by_its_service(name: str) -> None:
    """A verb that is named to a person takes the service, and not one replica of it."""
    aside = [SetAsideStatus("parked", "a", "", "a.told", "ValueError", 3, 0.0)]
    ill = msgspec.structs.replace(service("b", 1), set_aside=aside)
    (finding,) = Status.merge(Status("shop", 1, services={name: ill})).findings
    assert finding.startswith(f"{name}: messages of a that are parked: 3 ")
    assert finding.endswith("synchromesh messages list --service b")


def test_what_is_given_up_is_found_with_its_verb() -> None:
    """Once, by the name that `restart` takes; and a database that fails, with why."""
    failed = ChildStatus("failed", 6, "KeyError", 37.6)
    silent = ChildStatus("failed", 6, "service 'b' ended by SIGKILL", 9.0)
    ill = service("a", 1, **{"projection/open": failed})
    not_ready = msgspec.structs.replace(ill.health, children={}, not_ready="disk I/O error")
    c = msgspec.structs.replace(service("c", 3), health=not_ready)
    found = Status(
        "shop",
        1,
        services={"a": ill, "b": service("b", 2, process=silent), "c": c},
        children={"service/b": silent, "external/bank": failed},
    )
    again = "it is tried again in {} s, and at once by: synchromesh restart {}"
    assert Status.merge(found).findings == [
        f"external/bank is failed: KeyError; {again.format(38, 'external/bank')}",
        f"a/projection/open is failed: KeyError; {again.format(38, 'a/projection/open')}",
        f"b/process is failed: service 'b' ended by SIGKILL; {again.format(9, 'b')}",
        "c is not ready: disk I/O error",
    ]


def test_a_subscriber_that_is_gone_is_found_where_something_is_kept_for_it() -> None:
    """With the verb for who is gone for ever; who misses nothing is not told."""
    gone = [GoneStatus("till", 9, 0, 0), GoneStatus("books", 0, 0, 1)]
    ran = {"shop": msgspec.structs.replace(service("shop", 1), gone=gone)}
    assert Status.merge(Status("corner", 1, services=ran)).findings == [
        (
            "shop: books takes nothing of it any more, and what it has not got is kept: events: 0, "
            "messages set aside: 1; if it is gone for ever: synchromesh messages forget books "
            "--service shop --why TEXT"
        ),
    ]


def test_no_time_in_a_state_is_negative() -> None:
    """A breaker whose ramp ends at the moment of the reading has been closed for no time."""

    class Reading:
        edges: ClassVar = {
            "billing": BreakerSnapshot(
                "billing",
                BreakerState.CLOSED,
                1,
                0,
                0,
                0,
                0,
                1,
                None,
                since_s=1e12,  # later
            )
        }

    async def main() -> float:
        return local._breakers(cast("Caller", Reading()))["billing"].in_state_s

    assert repr(asyncio.run(main())) == "0.0"
