"""What is kept long enough is forgotten: ended sagas, events that all have read (E3, O1)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from saga_fakes import CONTEXT, ON_SQLITE, THREE, Order, Participants, at_work, open_store
from synchromesh.errors import LogGap, StoreFull
from synchromesh.events import Checkpoint, NewEvent, append, read, save_checkpoint
from synchromesh.events.removal import remove_each
from synchromesh.events.verification import log_faults
from synchromesh.saga import Engine
from synchromesh.saga.deps import Clock
from synchromesh.service.forgetting import Forgetting, Retention
from synchromesh.store import Store, Unit
from synchromesh.store.archive import Archive
from synchromesh.store.health import contents_of
from synchromesh.testing import SimRuntime, run

pytestmark = pytest.mark.usefixtures("each_engine")

MINUTE_US = 60_000_000
NUMBERS = "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) insert into "
KEPT = "orders.saga_kept"
TOLD = "orders.told"
SHORT = Retention(sagas_s=600.0, events_s={TOLD: 300.0}, every_s=60.0, rows_max=20, pause_s=0.0)


@dataclass
class Files:
    """Files of an archive, and what was deleted by the time that they were written."""

    by_path: dict[str, bytes] = field(default_factory=dict)
    error: OSError | None = None

    def append(self, path: str, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.by_path[path] = self.by_path.get(path, b"") + data

    def lines(self, path: str) -> list[Any]:
        return [json.loads(line) for line in self.by_path[path].splitlines()]


def archive_of(runtime: SimRuntime, files: Files) -> Archive:
    return Archive(runtime, lambda what, _: f"/{what}.jsonl", files.append)


async def place(engine: Engine, name: str) -> None:
    saga = await engine.start(THREE, Order(name), id=name, context=CONTEXT)
    assert await saga.result(60.0) is not None


async def tell(store: Store, name: str, key: str, *, is_public: bool = True) -> None:
    event = NewEvent(name, b'{"a":1}', is_public=is_public, partition_key=key)
    await store.write(
        lambda unit: append(unit, f"{name}/{key}", [event], expected=None), name="tell"
    )


async def pass_all(store: Store, name: str, position: int | None = None) -> None:
    """Save a reader's checkpoint; by default at the end of the log."""
    if position is None:
        rows = await store.read("select max(position) from sm_event")
        position = int(rows[0][0] or 0)
    at = Checkpoint(store.log_id, position)
    await store.write(lambda unit: save_checkpoint(unit, name, at), name="read")


async def one(store: Store, sql: str, *values: Any) -> Any:
    return (await store.read(sql, *values))[0][0]


@asynccontextmanager
async def forgetting(
    store: Store, runtime: SimRuntime, retention: Retention = SHORT, **more: Any
) -> AsyncIterator[Forgetting]:
    made = Forgetting(store, retention, Clock(runtime), **more)
    task = asyncio.ensure_future(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def store_of(engine: Engine) -> Store:
    return engine._store


def test_an_hour_of_work_leaves_no_more_than_is_kept() -> None:
    """With 10 minutes for sagas and 5 for events, the database of an hour is that of 10 minutes."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            store, files = store_of(engine), Files()
            archive = archive_of(runtime, files)
            async with forgetting(store, runtime, archive=archive):
                for minute in range(60):
                    await place(engine, f"A-{minute}")
                    await tell(store, TOLD, f"k-{minute}")
                    await tell(store, KEPT, "all")
                    await pass_all(store, "relay/books")
                    await asyncio.sleep(60.0)
            runs = await engine.runs("", 100)
            assert 10 <= len(runs) <= 12
            assert runs[0].id == "A-59"
            assert await engine.statuses() == {"completed": len(runs)}
            kept = await one(store, "select count(distinct saga) from sm_saga_record")
            assert kept == len(runs)
            told = await one(store, "select count(*) from sm_event where name = ?", TOLD)
            assert 5 <= told <= 7
            assert await one(store, "select count(*) from sm_event where name = ?", KEPT) == 60
            milestones = "select count(*) from sm_event where stream like 'saga/%'"
            assert await one(store, milestones) == 2 * len(runs)
            assert await log_faults(store) == []
            everything = await read(store, after=Checkpoint(store.log_id), limit=1000)
            assert len(everything) == 60 + told + 2 * len(runs)
            contents = await contents_of(store, now_us=runtime.wall_us())
            removed = {each.what: each.removed for each in contents.retention}
            assert removed == {"sagas": 60 - len(runs), f"events/{TOLD}": 60 - told}
            assert {each.held_by for each in contents.retention} == {""}
            archived = [line for line in files.lines("/sagas.jsonl") if "saga" in line]
            assert [line["saga"]["id"] for line in archived] == [
                f"A-{n}" for n in range(60 - len(runs))
            ]
            assert [each["record"]["kind"] for each in archived[0]["records"]][-1] == "ended"
            assert len(files.lines(f"/events-{TOLD}.jsonl")) == 60 - told
            await archive.close()

    run(main, until_s=1e8)


@pytest.mark.parametrize(
    ("name", "runs"), [("projection/sales", ["A-2", "A-1"]), ("relay/books", [])]
)
def test_what_a_reader_has_yet_to_pass_stays(name: str, runs: list[str]) -> None:
    """However old it is; status says who holds it. A relay has nothing to do with milestones."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            store = store_of(engine)
            for n in range(3):
                await place(engine, f"A-{n}")
                await tell(store, TOLD, f"k-{n}")
            await pass_all(store, "relay/other")
            await pass_all(store, name, 4)
            async with forgetting(store, runtime):
                await asyncio.sleep(3600.0)
                assert [each.id for each in await engine.runs("", 9)] == runs
                assert await one(store, "select count(*) from sm_event where name = ?", TOLD) == 2
                held = {
                    each.what: each.held_by
                    for each in (await contents_of(store, now_us=runtime.wall_us())).retention
                }
                assert held == {"sagas": name if runs else "", f"events/{TOLD}": name}
                await pass_all(store, name)
                await asyncio.sleep(120.0)
                assert await engine.runs("", 9) == []
            assert await one(store, "select count(*) from sm_event") == 0
            assert await store.read("select first, last from sm_removal") == [(1, 9)]
            assert await log_faults(store) == []

    run(main, until_s=1e8)


def test_a_reader_of_another_log_holds_all() -> None:
    """Nobody knows how far it is in this one."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            store = store_of(engine)
            await place(engine, "A-1")
            at = Checkpoint("another", 99)
            name = "projection/old"
            await store.write(lambda unit: save_checkpoint(unit, name, at), name="old")
            async with forgetting(store, runtime):
                await asyncio.sleep(3600.0)
            assert len(await engine.runs("", 9)) == 1

    run(main, until_s=1e8)


def test_runs_that_go_on_or_need_a_person_are_never_forgotten() -> None:
    """Whatever their age: only an end is one."""

    async def main(runtime: SimRuntime) -> None:
        others = Participants()
        others.faults["stock.reserve"] = ["hangs"] * 99
        async with at_work(runtime, others) as engine:
            store = store_of(engine)
            await engine.start(THREE, Order("A-1"), id="A-1", context=CONTEXT)
            await store.write(
                lambda unit: unit.execute(
                    "insert into sm_saga(id, name, version, digest, input, status, reason, owner, "
                    "trace_id, span_id, caller, principal, deadline_us, shard, started_us) values "
                    "('S-1', 'three_calls', 1, '', ?, 'stuck', '', 'orders', '', '', '', "
                    "'', 0, 1, 0)",
                    b"{}",
                ),
                name="stick",
            )
            made = Forgetting(store, Retention(sagas_s=0.0, rows_max=20), Clock(runtime))
            await made.sweep()
            assert {each.id for each in await engine.runs("", 9)} == {"A-1", "S-1"}

    run(main, until_s=1e8)


def test_what_cannot_be_archived_is_not_deleted() -> None:
    """The file is on the disk first; a full disk is tried again, and the service goes on."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            store, files = store_of(engine), Files(error=OSError(28, "No space left on device"))
            archive = archive_of(runtime, files)
            await place(engine, "A-1")
            async with forgetting(store, runtime, archive=archive):
                await asyncio.sleep(3600.0)
                assert len(await engine.runs("", 9)) == 1
                files.error = None
                await asyncio.sleep(120.0)
                assert await engine.runs("", 9) == []
            assert files.lines("/sagas.jsonl")[0]["saga"]["id"] == "A-1"
            await archive.close()

    run(main, until_s=1e8)


class Refusing:
    """A store that refuses the first unit that forgets, as on a crash right before it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.has_refused = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, body: Callable[[Unit], Any], *, name: str) -> Any:
        if name.startswith("forget") and not self.has_refused:
            self.has_refused = True
            raise StoreFull("no room")
        return await self._store.write(body, name=name)


def test_what_was_archived_and_not_deleted_is_archived_again() -> None:
    """A line twice is better than none; nothing is half deleted."""

    async def main(runtime: SimRuntime) -> None:
        async with at_work(runtime, Participants()) as engine:
            store, files = store_of(engine), Files()
            archive = archive_of(runtime, files)
            await place(engine, "A-1")
            await asyncio.sleep(3600.0)
            refusing: Any = Refusing(store)
            async with forgetting(refusing, runtime, archive=archive):
                await asyncio.sleep(3600.0)
            assert refusing.has_refused
            assert await engine.runs("", 9) == []
            assert await one(store, "select count(*) from sm_saga_record") == 0
            ids = [line["saga"]["id"] for line in files.lines("/sagas.jsonl") if "saga" in line]
            assert ids == ["A-1", "A-1"]
            await archive.close()

    run(main, until_s=1e8)


@ON_SQLITE
@pytest.mark.parametrize("jump_days", [4, -4])
def test_a_clock_that_jumps_forgets_nothing(jump_days: int) -> None:
    """Between two starts nobody watched the time: it does not count, in either direction."""

    async def main(runtime: SimRuntime) -> None:
        kept = Retention(sagas_s=3 * 86_400.0, every_s=1800.0)
        async with at_work(runtime, Participants()) as engine:
            await place(engine, "A-1")
            async with forgetting(store_of(engine), runtime, kept):
                await asyncio.sleep(3600.0)
        base, days = runtime.wall_us, jump_days * 86_400_000_000
        runtime.wall_us = lambda: base() + days  # type: ignore[method-assign]
        async with (
            at_work(runtime, Participants()) as engine,
            forgetting(store_of(engine), runtime, kept),
        ):
            await asyncio.sleep(3600.0)
            assert len(await engine.runs("", 9)) == 1
            if jump_days > 0:
                await asyncio.sleep(3.1 * 86_400.0)
                assert await engine.runs("", 9) == []

    run(main, until_s=1e8)


async def seed(store: Store, runs: int, records: int) -> None:
    """Write runs that ended an hour ago, each with its records and a milestone."""

    async def fill(unit: Unit) -> None:
        await unit.execute(
            f"{NUMBERS} sm_saga(id, name, version, digest, input, status, reason, owner, trace_id, "
            "span_id, caller, principal, deadline_us, shard, started_us, ended_us) select "
            "'old-' || i, 'three_calls', 1, '', x'7b7d', 'completed', '', 'orders', '', '', '', "
            "'', 0, 1, i, i from n",
            runs,
        )
        await unit.execute(
            f"{NUMBERS} sm_saga_record select 'old-' || i, seq, 'ended', '', 1, '', x'', i "
            "from n, (select value as seq from generate) ".replace(
                "(select value as seq from generate)",
                f"(with recursive m(s) as (select 1 union all select s + 1 from m where s < "
                f"{records}) select s as seq from m)",
            ),
            runs,
        )
        await unit.execute(
            f"{NUMBERS} sm_event(id, stream, version, name, type_version, body, is_public, "
            "ordering_key, trace_id, recorded_us) select 'e' || i, 'saga/old-' || i, 1, "
            "'orders.saga_ended', 1, x'7b7d', 0, '', '', i from n",
            runs,
        )
        await unit.execute("insert into sm_saga_count values ('completed', ?)", runs)

    await store.write(fill, name="seed")


class Counted:
    """A store that counts the rows which each unit changes, and the engine's steps for it."""

    def __init__(self, store: Any, units_max: int) -> None:
        self._store = store
        self._left = units_max
        self.rows: list[int] = []
        self.steps: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, body: Callable[[Unit], Any], *, name: str) -> Any:
        connection = self._store._writer._connection
        if name != "forget sagas":
            return await self._store.write(body, name=name)
        if not self._left:
            raise TimeoutError
        self._left -= 1
        before, steps = connection.total_changes, 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection.set_progress_handler(step, 100)
        try:
            return await self._store.write(body, name=name)
        finally:
            connection.set_progress_handler(None, 0)
            self.rows.append(connection.total_changes - before)
            self.steps.append(steps)


@ON_SQLITE
def test_a_unit_takes_no_longer_however_much_is_due() -> None:
    """Over a million rows it deletes as few, in as many steps, as over ten thousand."""

    async def costs(runtime: SimRuntime, runs: int) -> Counted:
        store = await open_store(runtime)
        await seed(store, runs, records=4)
        counted = Counted(store, units_max=20)
        made = Forgetting(
            counted,
            Retention(sagas_s=1.0, rows_max=100, pause_s=0.0),
            Clock(runtime),
        )
        with pytest.raises(TimeoutError):
            await made.sweep()
        left = await one(store, "select count from sm_saga_count")
        assert left == await one(store, "select count(*) from sm_saga") < runs
        await store.close()
        return counted

    few = run(lambda runtime: costs(runtime, 2_000))
    many = run(lambda runtime: costs(runtime, 170_000))
    assert len(many.rows) == len(few.rows) == 20
    # Besides those there are the records of holes, of the round and of the count.
    assert max(many.rows) <= 2 * 100 + 10
    assert min(many.rows) >= 90
    assert max(many.steps) <= 2 * max(few.steps)


@ON_SQLITE
def test_a_run_with_more_records_than_fit_goes_in_pieces() -> None:
    """Its last records first, the run itself with its first."""

    async def main(runtime: SimRuntime) -> list[int]:
        store = await open_store(runtime)
        await seed(store, 1, records=250)
        counted = Counted(store, units_max=99)
        made = Forgetting(
            counted,
            Retention(sagas_s=1.0, rows_max=100, pause_s=0.0),
            Clock(runtime),
        )
        await made.sweep()
        assert await one(store, "select count(*) from sm_saga") == 0
        assert await one(store, "select count(*) from sm_saga_record") == 0
        await store.close()
        return counted.rows

    rows = run(main)
    assert len(rows) >= 3
    assert max(rows) <= 110


def test_holes_side_by_side_are_one_and_others_are_kept() -> None:
    """In whatever order they come; what was not removed by us is still a gap (E3)."""

    async def main(runtime: SimRuntime) -> None:
        store = await open_store(runtime)
        for n in range(12):
            await tell(store, TOLD, f"k-{n}")
        for positions in ([2, 5], [4, 9, 10], [3], [11, 8], []):
            await store.write(
                lambda unit, each=positions: remove_each(unit, each),
                name="remove",
            )
            assert await log_faults(store) == []
        assert await store.read("select first, last from sm_removal order by 1") == [
            (2, 5),
            (8, 11),
        ]
        left = await read(store, after=Checkpoint(store.log_id), limit=99)
        assert [each.position for each in left] == [1, 6, 7, 12]
        await store.write(
            lambda unit: unit.execute("delete from sm_event where position = 7"), name="x"
        )
        with pytest.raises(LogGap):
            await read(store, after=Checkpoint(store.log_id), limit=99)
        assert len(await log_faults(store)) == 1
        await store.close()

    run(main, until_s=1e8)
