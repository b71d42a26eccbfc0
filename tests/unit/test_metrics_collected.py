"""What is read from the parts of a process when metrics are asked for, and how often."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

from synchromesh.system.control import catalogue as of
from synchromesh.system.control.metrics import FRESH_S, Board, Collector, of_status
from synchromesh.system.control.status import Status
from synchromesh.system.control.status_parts import (
    BreakerStatus,
    ChildStatus,
    ClientStatus,
    HealthStatus,
    HoldStatus,
    ParkedStatus,
    ProjectionStatus,
    ServiceStatus,
    SetAsideStatus,
)
from synchromesh.telemetry.metrics import Family, Histogram, Metric, Sample
from synchromesh.testing import SimRuntime, run

WHO = ("quoting", "quoting#2")
BREAKER = BreakerStatus("quoting -> bank", "open", 3, 9, 9, 0, 0, 1, None, 0.0, 1.0)
PARKED = ParkedStatus(7, "e7", "bank.paid", "ValueError", 0, True)


def test_whatever_a_status_says_has_its_series() -> None:
    """By the metric, the instance and what it is about; no text of an error, and no id."""
    children = {"relay/bank": ChildStatus("running"), "keys": ChildStatus("failed", 4, "secret")}
    service = ServiceStatus(
        pid=1,
        health=HealthStatus("quoting", True, False, children),
        sagas={"stuck": 1, "completed": 8},
        sagas_since_start={"started": 9},
        behind={"relay/bank": 12, "projection/prices": 3},
        schedules_failed={"nightly": "ValueError: secret"},
        projections=[
            ProjectionStatus("prices", 1, 1, "live", 0, 3, 0, False),
            ProjectionStatus("prices", 2, 2, "standby", 7, 3, 0, False, PARKED),
        ],
        set_aside=[SetAsideStatus("parked", "bank", "", "bank.paid", "secret", 5, 1.0)] * 2,
        breakers={"bank": BREAKER},
        holds=HoldStatus(held=1, bridged=2),
        ejected={"bank": ["bank#1", "bank#2"]},
    )
    status = Status(
        "shop", 1, services={"quoting#2": service},
        clients={"gateway": ClientStatus({}, HoldStatus(held=4))},
        children={"registry": ChildStatus("restarting", 1)}, spans_dropped=6, findings=["a", "b"],
    )  # fmt: skip
    board = Board()
    of_status(board, status, "shop")
    told = {
        (family.metric.name, sample.labels): sample.value
        for family in board.families()
        for sample in family.samples
    }

    def value(metric: Metric, *labels: str) -> float:
        return told[metric.name, labels]

    assert value(of.FINDINGS, "shop") == 2
    assert value(of.SPANS_DROPPED, "shop") == 6
    assert value(of.READY, *WHO) == 1
    assert value(of.CHILD_UP, *WHO, "keys") == 0
    assert value(of.CHILD_UP, *WHO, "relay/bank") == 1
    assert value(of.CHILD_RESTARTS, *WHO, "keys") == 4
    assert value(of.CHILD_UP, "", "", "registry") == 0
    assert value(of.SAGAS, *WHO, "stuck") == 1
    assert value(of.SAGA_EVENTS, *WHO, "started") == 9
    assert value(of.RELAY_LAG, *WHO, "bank") == 12
    assert value(of.PROJECTION_LAG, *WHO, "prices") == 3
    assert value(of.PROJECTION_PARKED, *WHO, "prices") == 1
    assert value(of.SCHEDULE_FAILED, *WHO, "nightly") == 1
    assert value(of.SET_ASIDE, *WHO, "parked") == 10
    assert value(of.SET_ASIDE, *WHO, "held") == 0
    assert value(of.BREAKER, *WHO, "bank", "open") == 1
    assert value(of.BREAKER, *WHO, "bank", "closed") == 0
    assert value(of.BREAKER_CHANGES, *WHO, "bank") == 3
    assert value(of.EJECTED, *WHO, "bank") == 2
    assert value(of.HELD, *WHO) == 1
    assert value(of.HELD, "gateway", "gateway") == 4
    assert value(of.HOLDS, *WHO, "bridged") == 2
    for name, labels in told:
        assert not [label for label in labels if "secret" in label or "e7" in label], name
    for family in board.families():
        for sample in family.samples:
            assert len(sample.labels) == len(family.metric.labels), family.metric.name


def test_a_crowd_of_scrapers_costs_what_one_does() -> None:
    """Who asks meanwhile, or right after, gets the same; who leaves takes it from nobody."""
    read = 0

    async def own(self: Collector) -> list[Family]:
        nonlocal read
        read += 1
        await asyncio.sleep(1.0)
        return [Family(of.UP, [Sample(("shop",), float(read))])]

    async def main(runtime: SimRuntime) -> None:
        local: Any = mock.Mock(deps=mock.Mock(runtime=runtime))
        with mock.patch.object(Collector, "own", own):
            collector = Collector(local, "shop", remotes={}, lag=Histogram(of.LAG_S))
            asking = [asyncio.ensure_future(collector.families()) for _ in range(50)]
            await asyncio.sleep(0.5)
            asking.pop(0).cancel()
            told = await asyncio.gather(*asking)
            assert {each[0].samples[0].value for each in told} == {1.0}
            await asyncio.sleep(FRESH_S / 2)
            assert (await collector.families())[0].samples[0].value == 1.0
            await asyncio.sleep(FRESH_S)
            assert (await collector.families())[0].samples[0].value == 2.0

    run(main)
    assert read == 2


def test_a_reading_that_failed_is_not_kept() -> None:
    """The next one who asks has it read anew."""
    read = 0

    async def own(self: Collector) -> list[Family]:
        nonlocal read
        read += 1
        if read == 1:
            raise OSError("the disk")
        return []

    async def main(runtime: SimRuntime) -> None:
        local: Any = mock.Mock(deps=mock.Mock(runtime=runtime))
        with mock.patch.object(Collector, "own", own):
            collector = Collector(local, "shop", remotes={}, lag=Histogram(of.LAG_S))
            told = await asyncio.gather(collector.families(), return_exceptions=True)
            assert [type(each) for each in told] == [OSError]
            await asyncio.sleep(FRESH_S)
            assert await collector.families() == []

    run(main)
