"""`synchromesh schedule list`: what is due when, and what failed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from cli_runs import Run, runner
from notes_app import Running
from processes import until
from synchromesh.runtime import RealRuntime
from synchromesh.service.scheduler import SCHEMA
from synchromesh.store import SqliteStore, Unit
from synchromesh.system import RunDir

FAILED = "synchromesh_schedule_failed{"
NINE_US = 1_780_304_400_000_000  # 2026-06-01T09:00Z


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""
    return runner(capsys)


def write_schedules(folder: Path, *rows: tuple[str, str]) -> None:
    """Leave the database of a service with schedules, each with how it failed."""
    rundir = RunDir(folder)
    rundir.create()

    async def main() -> None:
        store = await SqliteStore.open(
            rundir.database("reports"), service="reports", schemas=[SCHEMA], runtime=RealRuntime()
        )

        async def fill(unit: Unit) -> None:
            for name, failed in rows:
                await unit.execute(
                    "insert into sm_schedule values (?, '0 9 * * *', 'UTC', ?, ?, ?)",
                    name, NINE_US, NINE_US + 86_400_000_000, failed,
                )  # fmt: skip

        await store.write(fill, name="fill")
        await store.close()

    asyncio.run(main())


def test_schedules_are_listed_with_what_failed(run: Run, tmp_path: Path) -> None:
    """A failure is exit 1; JSON has the times."""
    write_schedules(tmp_path, ("daily", ""), ("weekly", "closed: nobody works on Sundays"))
    told = run(tmp_path, "schedule", "list")
    assert told.code == 1
    assert [line.split()[0] for line in told.out.splitlines()[1:3]] == [
        "reports.daily",
        "reports.weekly",
    ]
    found = json.loads(run(tmp_path, "schedule", "list", "--json").out)
    assert found[1] == {
        "service": "reports",
        "name": "weekly",
        "expression": "0 9 * * *",
        "zone": "UTC",
        "last_at": "2026-06-01T09:00:00Z",
        "next_at": "2026-06-02T09:00:00Z",
        "failed": "closed: nobody works on Sundays",
    }


CODE = """
import datetime as dt
from typing import Protocol

from synchromesh import Call, Contract, Migration, Service, Transaction, command


class Reports(Contract, Protocol, service="reports", version="1.0"):
    @command("POST /reports")
    async def send(self, at: str) -> int: ...


reports = Service("reports", implements=Reports)


@reports.writes(Reports.send)
async def send(tx: Transaction, at: str) -> int:
    raise LookupError("the figures are missing")


@reports.schedule("0 9 * * *")
def daily(due: dt.datetime) -> Call[int]:
    return Reports.send(due.isoformat())
"""


def test_a_schedule_that_fails_is_counted_and_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the metrics of a running system, and by its status."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "late_reports.py").write_text(CODE)
    toml = '[system]\nname = "late"\n\n[services.reports]\napp = "late_reports:reports"\n'
    (tmp_path / "synchromesh.toml").write_text(toml)
    write_schedules(tmp_path, ("daily", ""))
    with closing(sqlite3.connect(RunDir(tmp_path).database("reports"))) as connection:
        connection.execute("update sm_schedule set last_us = 0, next_us = 1")
        connection.commit()
    with Running(tmp_path) as running:
        url = f"{running.system.info.admin}/metrics"

        def is_counted() -> bool:
            with urllib.request.urlopen(url) as answer:
                lines = answer.read().decode().splitlines()
            return [line[-3:] for line in lines if line.startswith(FAILED)] == ["1.0"]

        assert until(is_counted)
        said = run(tmp_path, "status").out
        assert "reports: schedule daily failed: " in said


def test_where_there_is_none_it_says_so(run: Run, tmp_path: Path) -> None:
    """Exit 0, in both forms."""
    write_schedules(tmp_path)
    assert run(tmp_path, "schedule", "list") == (0, "no service has a schedule\n", "")
    assert run(tmp_path, "schedule", "list", "--json").out == "[]\n"
