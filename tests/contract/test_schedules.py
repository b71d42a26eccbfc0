"""Schedules of a service: each time has one effect, whatever happens to the process."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from typing import Protocol

import pytest

import virtual_postgres
from synchromesh import Contract, Migration, Rejection, Service, Transaction
from synchromesh.calls import Call, command
from synchromesh.errors import ContractError
from synchromesh.testing import Node, SimRuntime, World, run, serving

TABLE = "create table sent(at text primary key, n integer not null)"
DAY_S = 86_400.0


class Closed(Rejection, code="closed", status=409):
    """Tells that nobody works on Sundays."""


class Reports(Contract, Protocol, service="reports", version="1.0"):
    @command("POST /reports", raises=(Closed,))
    async def send(self, at: str) -> int: ...


def reporting(missed: str = "last", expression: str = "0 9 * * *") -> Service:
    """Return a service that sends a report each day."""
    reports = Service("reports", implements=Reports, migrations=[Migration(1, (TABLE,), 1)])

    @reports.writes(Reports.send)
    async def send(tx: Transaction, at: str) -> int:
        if dt.datetime.fromisoformat(at).weekday() == 6:
            raise Closed("nobody works on Sundays")
        await tx.execute(
            "insert into sent values (?, 1) on conflict(at) do update set n = n + 1", at
        )
        return 1

    @reports.schedule(expression, missed=missed)
    def daily(due: dt.datetime) -> Call[int]:
        return Reports.send(due.isoformat())

    return reports


async def sent(runtime: SimRuntime) -> list[str]:
    sql = "select at, n from sent order by at"
    if virtual_postgres.is_on():
        found = virtual_postgres.audit(sql, service="reports")
    else:
        found = runtime.disk.rows("/reports.db", sql)
    assert {n for _, n in found} <= {1}
    return [at for at, _ in found]


def test_each_time_has_one_effect_and_a_refusal_is_shown() -> None:
    """Eight days, of which one is a Sunday; the next time clears what failed."""

    async def main(runtime: SimRuntime) -> None:
        seen = []
        async with serving(runtime, reporting()) as client:
            instance = client.up["reports"]
            for _ in range(8):
                await asyncio.sleep(DAY_S)
                seen.append(await instance.schedules_failed())
        assert len(await sent(runtime)) == 7
        failed = [each for each in seen if each]
        assert failed == [{"daily": "closed: nobody works on Sundays"}]

    run(main, until_s=10 * DAY_S)


@pytest.mark.parametrize(("missed", "made"), [("last", 1), ("skip", 0), ("all", 5)])
def test_what_was_missed_while_the_service_was_off(missed: str, made: int) -> None:
    """A new schedule begins when the service is first started, not in the past."""

    async def main(runtime: SimRuntime) -> None:
        every = reporting(missed, "0 9 * * mon-sat")
        async with serving(runtime, every):
            await asyncio.sleep(60.0)
        before = len(await sent(runtime))
        while dt.datetime.fromtimestamp(runtime.wall_us() / 1e6, dt.UTC).weekday() != 6:
            await asyncio.sleep(3600.0)
        async with serving(runtime, every):
            await asyncio.sleep(60.0)
        there = len(await sent(runtime))
        # From a Sunday on: Monday to Friday at nine.
        await asyncio.sleep(5 * DAY_S + 12 * 3600.0)
        async with serving(runtime, every):
            await asyncio.sleep(60.0)
        assert (before, len(await sent(runtime)) - there) == (0, made)

    run(main, until_s=20 * DAY_S)


@pytest.mark.usefixtures("each_engine")
def test_a_failing_callee_is_asked_again_and_given_up_when_the_next_time_is_due() -> None:
    """The time that was not answered is named; the ones after it are run."""
    is_broken = True
    reports = Service("reports", implements=Reports, migrations=[Migration(1, (TABLE,), 1)])

    @reports.writes(Reports.send)
    async def send(tx: Transaction, at: str) -> int:
        if is_broken:
            raise ZeroDivisionError
        await tx.execute("insert into sent values (?, 1)", at)
        return 1

    @reports.schedule("0 * * * *", missed="all")
    def hourly(due: dt.datetime) -> Call[int]:
        return Reports.send(due.isoformat())

    async def main(runtime: SimRuntime) -> None:
        nonlocal is_broken
        async with serving(runtime, reports) as client:
            await asyncio.sleep(2.5 * 3600.0)
            failed = await client.up["reports"].schedules_failed()
            assert "remote_failed" in failed["hourly"]
            assert await sent(runtime) == []
            is_broken = False
            await asyncio.sleep(2 * 3600.0)
            assert await client.up["reports"].schedules_failed() == {}
            assert 2 <= len(await sent(runtime)) <= 3

    run(main, until_s=DAY_S)


def test_a_function_that_raises_is_named_and_passed_over() -> None:
    """Its bug stops neither the service nor the next time."""
    reports = reporting()

    @reports.schedule("0 * * * *")
    def buggy(due: dt.datetime) -> Call[int]:
        raise KeyError(due)

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, reports) as client:
            await asyncio.sleep(DAY_S)
            failed = await client.up["reports"].schedules_failed()
            assert failed == {"buggy": "its function raised KeyError"}

    run(main, until_s=2 * DAY_S)


@pytest.mark.usefixtures("each_engine")
def test_a_function_that_returns_no_call_fails_its_time() -> None:
    """Each time is passed over, and the child that makes them runs on."""
    reports = Service("reports", implements=Reports, migrations=[Migration(1, (TABLE,), 1)])

    @reports.writes(Reports.send)
    async def send(tx: Transaction, at: str) -> int:
        return 1

    @reports.schedule("* * * * *")
    def every_minute(due: dt.datetime) -> Call[int]:
        return "later"  # type: ignore[return-value]

    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, reports) as client:
            await asyncio.sleep(600.0)
            failed = await client.up["reports"].schedules_failed()
            assert failed == {"every_minute": "every_minute returned a str; return a Call"}
            rows = await client.up["reports"].store.read("select last_us from sm_schedule")
            assert runtime.wall_us() - int(rows[0][0] or 0) < 61_000_000

    run(main, until_s=1200.0)


@pytest.mark.parametrize("step", range(1, 60, 2))
def test_a_time_has_one_effect_wherever_the_power_fails(step: int) -> None:
    """Before each second step around the time that it is due."""
    world = World(seed=3)
    every = reporting(expression="* * * * *")
    begun: list[int] = []

    async def serve(runtime: SimRuntime) -> None:
        async with serving(runtime, every):
            await asyncio.Event().wait()

    def cut(node: Node) -> None:
        if node.epoch == 1 and world.loop.time() > 60.0:
            begun.append(node.steps)
            if len(begun) == step:
                node.crash(restart_after_s=1.0)

    node = world.node("reports", serve)
    world.on_step = cut
    node.start()
    world.run(asyncio.sleep(600.0))
    assert world.count["crash"] == 1
    rows = world.disk.rows("/reports.db", "select at, n from sent order by at")
    assert {n for _, n in rows} == {1}
    assert len(rows) >= 9
    times = [dt.datetime.fromisoformat(at) for at, _ in rows]
    assert {later - one for one, later in itertools.pairwise(times)} == {dt.timedelta(minutes=1)}


def test_wrong_definitions_are_refused() -> None:
    """When they are made; a schedule needs a database."""
    reports = Service("reports", implements=Reports)
    assert reporting().state[-2:] == ("schedules: daily", "migrations: 1")

    def daily(due: dt.datetime) -> Call[int]:
        return Reports.send(due.isoformat())

    with pytest.raises(ContractError, match="missed='never'; use 'last', 'all' or 'skip'"):
        reports.schedule("0 9 * * *", missed="never")
    with pytest.raises(ContractError, match="has 2 fields"):
        reports.schedule("0 9")
    reports.schedule("0 9 * * *")(daily)
    with pytest.raises(ContractError, match="two schedules named 'daily'"):
        reports.schedule("0 10 * * *")(daily)

    async def waits(due: dt.datetime) -> Call[int]:
        return Reports.send(due.isoformat())

    with pytest.raises(ContractError, match="is async; it only returns the call"):
        reports.schedule("0 9 * * *")(waits)  # type: ignore[arg-type]
