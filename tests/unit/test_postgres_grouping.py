"""Which units share a commit on PostgreSQL, and one group that outlives its limit: no server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from synchromesh.runtime import RealRuntime
from synchromesh.store.postgres_dialect import Translations
from synchromesh.store.postgres_group import AppendGroup
from synchromesh.store.postgres_grouping import GROUP_MAX, Foresight, Grouping
from synchromesh.store.postgres_job import UnitJob, steps_of
from synchromesh.store.postgres_keys import AbsentKeys
from synchromesh.store.postgres_unit import PostgresUnit

pytestmark = pytest.mark.anyio


def test_a_name_is_learnt_by_a_unit_that_only_appends() -> None:
    """And forgotten for a while by one that does more."""
    groups: Grouping[int] = Grouping()
    groups.saw("other", is_lone=False)
    assert not groups.takes("add")
    groups.saw("add", is_lone=True)
    assert groups.takes("add")
    groups.saw("add", is_lone=False)
    for _ in range(31):
        groups.saw("add", is_lone=True)
        assert not groups.takes("add")
    groups.saw("add", is_lone=True)
    assert groups.takes("add")
    assert not groups.takes("other")


def test_names_without_end_are_no_leak() -> None:
    """Those that came last are known still."""
    groups: Grouping[int] = Grouping()
    for number in range(3000):
        groups.saw(f"name {number}", is_lone=True)
    assert len(groups._shy) <= 1024
    assert groups.takes("name 2999")


def test_one_group_has_its_turn_at_a_time() -> None:
    """What comes meanwhile is the next one, behind what was put off."""
    groups: Grouping[int] = Grouping()
    assert groups.add(1)
    assert not groups.add(2)
    assert groups.begin() == [1, 2]
    assert not groups.add(3), "a turn is under way, and asks for the next one at its end"
    assert groups.end([2])
    assert repr(groups) == "<Grouping: 2 wait>"
    assert groups.begin() == [2, 3]
    assert not groups.end()
    assert groups.add(4)
    for number in range(5, 5 + GROUP_MAX):
        assert not groups.add(number)
    assert len(groups.begin()) == GROUP_MAX
    assert groups.end()
    assert len(groups.drain(is_over=False)) == 1
    assert not groups.add(1), "the turn is under way still"
    assert groups.drain(is_over=True) == [1]
    assert groups.add(2)


def test_a_name_whose_units_are_batches_is_known_by_the_first() -> None:
    """They are in no group, and hold the order of the log by themselves."""
    groups: Grouping[int] = Grouping()
    assert not groups.is_batch("saga records")
    groups.saw("saga records", is_lone=False, is_batch=True)
    assert groups.is_batch("saga records")
    assert not groups.takes("saga records")
    for number in range(1024):
        groups.saw(f"name {number}", is_lone=False, is_batch=True)
    assert not groups.is_batch("saga records"), "it is learnt anew, and no leak"


class Server:
    """A connection to a server that answers after the group has timed out."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.group: AppendGroup | None = None

    async def execute(self, sql: str) -> None:
        self.sent.append(sql)

    async def fetch(self, _: str, *values: Any) -> list[tuple[int, bool]]:
        assert self.group is not None
        self.group.expire()
        return [(0, True)] * len(values[0])


async def test_a_group_that_outlives_its_limit_is_rolled_back() -> None:
    """Its units are run by themselves, each within a limit of its own."""
    runtime, loop = RealRuntime(), asyncio.get_running_loop()

    async def body(unit: Any) -> int:
        return int((await unit.append_streams([(unit.name, None, [])], is_each=False))[0])

    jobs = [UnitJob(body, None, name, loop.create_future()) for name in ("a", "b")]

    def unit_of(job: UnitJob) -> PostgresUnit:
        return PostgresUnit(
            job.unit_id, job.name, runtime.wall_us(), service="shop", path="shop",
            plans=Translations(), new_id=runtime.new_id, vault=AbsentKeys("shop"),
        )  # fmt: skip

    server = Server()
    server.group = group = AppendGroup(jobs, unit_of, steps_of, Foresight())
    assert await group.attempt(server, "u-1", 0)
    assert server.sent[-1] == "rollback"
    assert not any("commit" in sql for sql in server.sent)
    assert (group.jobs, group.singles) == ([], jobs)
    assert all(job.is_single and job.result is None for job in jobs)
