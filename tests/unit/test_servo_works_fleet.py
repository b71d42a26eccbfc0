"""Fleet: how a drive's condition follows from its readings, and how many it may send."""

import asyncio

import pytest
from contracts.fleet import (
    Batch,
    Fleet,
    Machine,
    Nameplate,
    OtherNameplate,
    Reading,
    Taken,
    UnknownMachine,
)
from services.fleet.condition import Condition, after
from services.fleet.service import COME_AGAIN_AFTER_S, WAITING_MAX

from servo_works_world import Works, works
from synchromesh import CallError
from synchromesh.errors import BadRequest, Shed
from synchromesh.testing import SimRuntime, run

# -- the condition -------------------------------------------------------------------------------


def states(*temperatures_c: float) -> list[str]:
    condition = Condition()
    found: list[str] = []
    for at_s, heat in enumerate(temperatures_c):
        condition = after(condition, Reading(at_s, heat, 1.0))
        found.append(condition.state)
    return found


def test_a_drive_is_hot_from_one_temperature_until_below_another() -> None:
    """Hot at 80 °C; in between it stays what it was; below 70 °C it runs again."""
    assert states(79.9, 80.0, 70.0, 79.9, 69.9, 79.9) == [
        "running",
        "hot",
        "hot",
        "hot",
        "running",
        "running",
    ]


def test_a_fault_goes_before_heat_and_ends_with_the_next_reading() -> None:
    """The last fault stays known after the drive runs again."""
    faulted = after(Condition(), Reading(1, 95.0, 5.0, "E31"))
    assert (faulted.state, faulted.last_fault) == ("faulted", "E31")
    again = after(faulted, Reading(2, 75.0, 4.0))
    assert (again.state, again.last_fault) == ("running", "E31")


def test_the_condition_has_the_latest_reading_and_the_hottest() -> None:
    """Frost counts as well: the hottest of a drive in the cold is below zero."""
    condition = after(after(Condition(), Reading(1, -5.0, 1.0)), Reading(2, -9.0, 2.0))
    assert condition == Condition(2, "running", 2, -9.0, -5.0, 2.0, "")


# -- the service ---------------------------------------------------------------------------------

PLATE = Nameplate("SX90-1", "SX90", "A-1")


def batch(first: int, count: int, plate: Nameplate = PLATE) -> Batch:
    """Return readings by their numbers: each is as warm as its number says."""
    return Batch(
        plate, first, tuple(Reading(n, float(n), 1.0) for n in range(first, first + count))
    )


async def numbers(system: Works, machine_id: str = "SX90-1") -> list[object]:
    """Return the number of every reading of a drive that was kept, in order."""
    rows = await system.rows(
        "fleet",
        "select json_extract(value, '$.at_s') from sm_event, json_each(body, '$.readings') "
        f"where stream = 'telemetry/{machine_id}' order by version, key",
    )
    return [number for (number,) in rows]


def test_a_machine_is_as_its_latest_reading_says() -> None:
    """It makes itself known by its first report, with the order it came with."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            taken = await system.call(Fleet.report(batch(1, 3)))
            assert taken == Taken(3, WAITING_MAX - 3)
            await asyncio.sleep(1.0)
            machine = await system.call(Fleet.machine("SX90-1"))
            assert machine == Machine(
                "SX90-1", "SX90", "A-1", "running", readings=3, waiting=0, at_s=3,
                temperature_c=3.0, hottest_c=3.0, current_a=1.0, last_fault="",
            )  # fmt: skip

    run(main)


def test_what_has_not_been_worked_out_is_said_to_wait() -> None:
    """A machine whose first readings were only taken is new."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            await system.call(Fleet.report(batch(1, 3)))
            machine = await system.call(Fleet.machine("SX90-1"))
            assert (machine.state, machine.readings, machine.waiting) == ("new", 0, 3)

    run(main)


def test_a_machine_that_never_reported_is_unknown() -> None:
    """It is a rejection that the contract declares."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            with pytest.raises(UnknownMachine):
                await system.call(Fleet.machine("SX90-9"))

    run(main)


def test_readings_that_come_again_are_taken_once() -> None:
    """By key, and without one by their numbers: wholly, in part, or from before."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            for _ in range(2):
                await system.call(Fleet.report(batch(1, 4)), key="k1")
            assert (await system.call(Fleet.report(batch(1, 4)))).last == 4
            assert (await system.call(Fleet.report(batch(3, 4)))).last == 6
            assert (await system.call(Fleet.report(batch(2, 2)))).last == 6
            await asyncio.sleep(1.0)
            assert (await system.call(Fleet.machine("SX90-1"))).readings == 6
            assert await numbers(system) == [1, 2, 3, 4, 5, 6]

    run(main)


def test_readings_that_a_drive_has_lost_are_no_obstacle() -> None:
    """One that was offline for too long goes on with a later number."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            await system.call(Fleet.report(batch(1, 2)))
            assert (await system.call(Fleet.report(batch(9, 2)))).last == 10
            await asyncio.sleep(1.0)
            machine = await system.call(Fleet.machine("SX90-1"))
            assert (machine.readings, machine.waiting) == (4, 0)

    run(main)


@pytest.mark.parametrize(
    "other", [Nameplate("SX90-1", "SX60", "A-1"), Nameplate("SX90-1", "SX90", None)]
)
def test_two_drives_cannot_be_one(other: Nameplate) -> None:
    """A report under another nameplate is rejected, and nothing of it is kept."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            await system.call(Fleet.report(batch(1, 2)))
            with pytest.raises(OtherNameplate, match="SX90-1 is known as SX90 of order A-1"):
                await system.call(Fleet.report(batch(3, 2, other)))
            assert await numbers(system) == [1, 2]

    run(main)


@pytest.mark.parametrize(
    "wrong", [batch(0, 1), batch(1, 0), batch(1, 101), batch(1, 1, Nameplate("", "SX90"))]
)
def test_a_batch_is_bounded(wrong: Batch) -> None:
    """Numbers begin at 1, a batch has 1 to 100 readings, a drive has a name."""
    with pytest.raises(BadRequest):
        Fleet.report(wrong)


# -- back-pressure -------------------------------------------------------------------------------


def test_a_drive_that_sends_too_much_is_shed() -> None:
    """Beyond its bound nothing of a batch is kept; another drive's readings are still taken."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            await stop_working_out()
            rooms = [
                (await system.call(Fleet.report(batch(first, 100)))).room for first in (1, 101, 201)
            ]
            assert rooms == [200, 100, 0]
            with pytest.raises(Shed, match="300 readings of SX90-1 wait") as shed:
                await system.call(Fleet.report(batch(301, 1)))
            assert shed.value.retry_after_s == COME_AGAIN_AFTER_S
            # What is known already needs no room.
            assert (await system.call(Fleet.report(batch(201, 100)))).last == 300
            other = Nameplate("SX60-1", "SX60")
            assert (await system.call(Fleet.report(batch(1, 100, other)))).room == 200
            assert await numbers(system) == list(range(1, 301))

    run(main)


def test_what_was_shed_is_taken_later_under_the_same_key() -> None:
    """A shed batch is not concluded: there is room again as soon as readings are worked out."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            await stop_working_out()
            for first in (1, 101, 201):
                await system.call(Fleet.report(batch(first, 100)))
            with pytest.raises(Shed):
                await system.call(Fleet.report(batch(301, 50)), key="k1")
            await system.stop("fleet")
            await system.start("fleet")
            await asyncio.sleep(5.0)
            assert (await system.call(Fleet.report(batch(301, 50)), key="k1")).last == 350
            await asyncio.sleep(5.0)
            machine = await system.call(Fleet.machine("SX90-1"))
            assert (machine.readings, machine.waiting, machine.at_s) == (350, 0, 350)

    run(main)


def test_drives_that_wait_when_told_to_lose_nothing() -> None:
    """Ten drives go on while working out stands still and the service restarts."""

    async def main(runtime: SimRuntime) -> None:
        async with works(runtime, "fleet") as system:
            plates = [Nameplate(f"SX90-{n}", "SX90") for n in range(10)]
            await stop_working_out()
            sending = asyncio.gather(*(send_all(system, plate) for plate in plates))
            await asyncio.sleep(10.0)
            for plate in plates:
                assert await numbers(system, plate.machine_id) == list(range(1, 301))
            await system.stop("fleet")
            await system.start("fleet")
            shed = await sending
            await asyncio.sleep(10.0)
            for plate in plates:
                machine = await system.call(Fleet.machine(plate.machine_id))
                assert (machine.readings, machine.waiting) == (1000, 0)
                assert await numbers(system, plate.machine_id) == list(range(1, 1001))
            assert min(shed) > 0

    run(main)


async def send_all(system: Works, plate: Nameplate) -> int:
    """Send 1,000 readings, 50 at a time, again where they failed; return how often it was shed."""
    first, shed = 1, 0
    while first < 1000:
        report = Fleet.report(batch(first, 50, plate))
        try:
            first = (await system.call(report, key=f"{plate.machine_id}/{first}")).last + 1
        except CallError as error:
            shed += isinstance(error, Shed)
            await asyncio.sleep(error.retry_after_s or 0.1)
    return shed


async def stop_working_out() -> None:
    """End the projection until the service is started again, as if it were not getting on."""
    (task,) = (t for t in asyncio.all_tasks() if t.get_name() == "fleet/projection/condition")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
