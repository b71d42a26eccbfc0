"""What a person does with events and projections: read, retry, skip, rebuild, switch and back."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_runs import Ran, Run, runner
from notes_app import Running, write_config
from shop_app import TOML, UNLUCKY, is_mended
from synchromesh.events.inspection import find_event
from synchromesh.runtime import RealRuntime
from synchromesh.store.sqlite_reader import SqliteReader


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a system that can be started."""
    is_mended.clear()
    yield write_config(tmp_path, TOML)
    is_mended.clear()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in a folder, in this process."""
    return runner(capsys)


def sell_one(run: Run, folder: Path, sku: str, qty: int) -> str:
    """Sell, and return the receipt as it is handed to a query."""
    ran = run(folder, "call", "shop.sell", f"sku={sku}", f"qty={qty}", "--json")
    return json.dumps(json.loads(ran.out)["result"])


def listed(run: Run, folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(folder, "projection", "list", "--json").out)
    return found


def eventually(run: Run, folder: Path, name: str, **wanted: object) -> dict[str, Any]:
    """Return the first projection of a name that is as wanted; others run meanwhile."""
    until = time.monotonic() + 30.0
    while time.monotonic() < until:
        for each in listed(run, folder):
            if each["name"] == name and all(each[key] == value for key, value in wanted.items()):
                return each
    raise AssertionError(listed(run, folder))


def test_a_parked_projection_is_named_and_skipped(run: Run, folder: Path) -> None:
    """From the finding of `status` to the commit that records who and why; others flow."""
    with Running(folder):
        for qty in (1, UNLUCKY, 3):
            sell_one(run, folder, "bolt", qty)
        eventually(run, folder, "others", behind=0)
        parked = eventually(run, folder, "demand", position=1)
        while not parked["parked"]:
            parked = eventually(run, folder, "demand", position=1)
        assert parked["parked"]["error"] == "ValueError: thirteen is not sold"
        told = run(folder, "projection", "list")
        assert told.code == 1
        assert "at 2 (shop.sold) since" in told.out
        status = json.loads(run(folder, "status", "--json").out)
        (finding,) = status["findings"]
        assert finding.startswith("shop: projection demand (live) is parked at event 2 (shop.sold)")
        assert "UTC: ValueError; mend it" in finding
        assert "thirteen" not in json.dumps(status)
        assert "synchromesh projection retry|skip demand --why TEXT" in finding
        assert run(folder, "projection", "skip", "demand").code == 2
        wrong = run(folder, "projection", "skip", "demand", "--position", "3", "--why", "x")
        assert (wrong.code, "parked at position 2, not at 3" in wrong.err) == (2, True)
        again = run(folder, "projection", "retry", "demand", "--why", "is it still so?")
        assert again.code == 1
        assert "is parked again at event 2: ValueError: thirteen is not sold" in again.out
        words = ("demand", "--position", "2", "--why", "thirteen is a test")
        assert run(folder, "projection", "skip", *words).code == 0
        receipt = sell_one(run, folder, "nut", 4)
        answer = run(folder, "call", "shop.demand", f"receipt={receipt}", "--json")
        assert json.loads(answer.out)["result"] == 8
        assert json.loads(run(folder, "status", "--json").out)["findings"] == []
        ran = run(folder, "events", "list", "--stream", "projection/demand", "--json")
    names = [each["name"] for each in json.loads(ran.out)]
    assert names == ["shop.projection_retried", "shop.projection_skipped"]
    body = json.loads(ran.out)[1]["body"]
    assert (body["position"], body["why"]) == (2, "thirteen is a test")
    assert body["who"]


def test_a_mended_projection_goes_on_after_a_retry(run: Run, folder: Path) -> None:
    """Nothing was lost, and everything is in its order."""
    with Running(folder):
        for qty in (1, UNLUCKY, 3):
            sell_one(run, folder, "bolt", qty)
        while not eventually(run, folder, "demand", position=1)["parked"]:
            pass
        is_mended.append(True)
        ran = run(folder, "projection", "retry", "demand", "--why", "mended", "--json")
        assert (ran.code, json.loads(ran.out)) == (0, {"name": "demand", "parked": None})
        eventually(run, folder, "demand", behind=0, parked=None)
    # Also of a stopped system it is told how each was when it stopped.
    assert [each["parked"] for each in listed(run, folder)] == [None, None]
    rows = sqlite3.connect(folder / ".synchromesh/data/shop.db").execute("select * from demand")
    assert rows.fetchall() == [("bolt", 17)]


def test_a_projection_is_rebuilt_beside_itself_switched_and_back(run: Run, folder: Path) -> None:
    """Each step says what comes next; what cannot be done now is told."""
    with Running(folder):
        sell_one(run, folder, "bolt", 2)
        eventually(run, folder, "demand", behind=0)
        none = run(folder, "projection", "switch", "demand", "--why", "try")
        assert (none.code, "has one generation, 1" in none.err) == (2, True)
        built = run(folder, "projection", "rebuild", "demand", "--why", "the sums look odd")
        assert built.code == 0
        assert "synchromesh projection switch demand --why TEXT" in built.out
        eventually(run, folder, "demand", state="standby", behind=0)
        for generation in (2, 1):
            ran = run(folder, "projection", "switch", "demand", "--why", "it is there")
            assert ran.out == f"queries read generation {generation} of projection demand\n"
            assert eventually(run, folder, "demand", state="live")["generation"] == generation
        dropped = run(folder, "projection", "drop", "demand", "--why", "it is not needed")
        assert dropped.out == "generation 2 of projection demand is gone\n"
        assert run(folder, "projection", "drop", "demand", "--why", "again").code == 2
        unknown = run(folder, "projection", "rebuild", "supply", "--why", "x")
        assert (unknown.code, "no projection is called 'supply'" in unknown.err) == (2, True)
    stopped = run(folder, "projection", "rebuild", "demand", "--why", "x")
    assert (stopped.code, "synchromesh dev" in stopped.err) == (2, True)


def test_events_are_read_of_a_running_system_and_of_a_stopped_one(run: Run, folder: Path) -> None:
    """Lists, one event, the tail and an export say the same in both."""

    def told() -> list[Ran]:
        words = (
            ["list", "--json"],
            ["list", "--limit", "2"],
            ["list", "--after", "2", "--limit", "1", "--json"],
            ["list", "--name", "shop.sold", "--stream", "sales/nut", "--json"],
            ["list", "--name", "shop.bought"],
            ["show", "3"],
            ["show", "shop:3"],
            ["show", first["id"], "--json"],
            ["show", "77"],
            ["show", "019e2c00-0000-7000-8000-000000000000"],
            ["export", "shop"],
            ["export", "shop", "--stream", "sales/bolt", "--after", "1"],
            ["export", "shopp"],
        )
        return [run(folder, "events", *each) for each in words]

    with Running(folder):
        for sku, qty in (("bolt", 1), ("nut", 2), ("bolt", 3), ("nut", 4)):
            sell_one(run, folder, sku, qty)
        first = json.loads(run(folder, "events", "list", "--json").out)[0]
        running = told()
    assert told() == running
    every, two, one, nuts, none, shown, as_listed, by_id, *unknown, exported, bolts, wrong = running
    assert [each["position"] for each in json.loads(every.out)] == [1, 2, 3, 4]
    assert "sales/nut#2" in two.out
    assert "sales/bolt#1" not in two.out
    assert [each["position"] for each in json.loads(one.out)] == [3]
    assert [each["body"] for each in json.loads(nuts.out)] == [
        {"sku": "nut", "qty": 2}, {"sku": "nut", "qty": 4},
    ]  # fmt: skip
    assert none.out == "there is no such event\n"
    assert '"qty": 3' in shown.out
    assert as_listed == shown
    other = run(folder, "events", "show", "shop:3", "--service", "stock")
    assert (other.code, "shop:3 is an event of shop" in other.err) == (2, True)
    assert json.loads(by_id.out) == first
    assert [ran.code for ran in unknown] == [2, 2]
    assert "no event has position 77" in unknown[0].err
    lines = [json.loads(line) for line in exported.out.splitlines()]
    assert [{"service": "shop", **line} for line in lines] == json.loads(every.out)
    assert [json.loads(line)["position"] for line in bolts.out.splitlines()] == [3]
    assert (wrong.code, "'shopp' has no database" in wrong.err) == (2, True)
    tail = run(folder, "events", "tail", "--stream", "sales/nut")
    assert [line.split("  ")[1] for line in tail.out.splitlines()] == ["shop:2", "shop:4"]


def test_an_export_goes_to_a_new_file_alone(run: Run, folder: Path, tmp_path: Path) -> None:
    """A file that is there stays as it is, and a place that is not is named."""
    with Running(folder):
        sell_one(run, folder, "bolt", 1)
        out = tmp_path / "events.jsonl"
        made = run(folder, "events", "export", "shop", "--out", str(out))
        assert (made.code, made.out) == (0, f"1 events of shop are in {out}\n")
        written = out.read_bytes()
        assert run(folder, "events", "export", "shop", "--out", str(out)).code == 2
        assert out.read_bytes() == written
        lost = run(folder, "events", "export", "shop", "--out", str(tmp_path / "no/where"))
        assert (lost.code, "cannot be written: No such file" in lost.err) == (2, True)


def test_an_event_of_a_long_log_is_found_by_its_id(run: Run, folder: Path) -> None:
    """Without an index of ids: they ascend as positions do."""
    with Running(folder):
        sell_one(run, folder, "bolt", 1)
    path = folder / ".synchromesh/data/shop.db"
    database = sqlite3.connect(path)
    database.execute(
        "with recursive n(i) as (select 2 union all select i + 1 from n where i < 40000) "
        "insert into sm_event(id, stream, version, name, type_version, body, is_public, "
        "ordering_key, trace_id, recorded_us) select printf('%012x', i), 'x', i, 'x.y', 1, "
        "cast('{}' as blob), 0, '', '', 0 from n"
    )
    database.execute("update sm_event set id = '' where position = 1")
    database.commit()
    database.close()

    async def find(position: int) -> int:
        reader = SqliteReader.open(str(path), service="shop", runtime=RealRuntime())
        found = await find_event(reader, id=f"{position:012x}")
        await reader.close()
        assert found is not None
        return found.position

    for position in (2, 77, 20_000, 39_999, 40_000):
        assert asyncio.run(find(position)) == position
