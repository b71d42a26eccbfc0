"""What many runs add in one unit, on every engine: rows, records, counts and milestones."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from synchromesh.codec import encode
from synchromesh.errors import ConstraintFailed, Fenced, SagaConflict, SagaLocked
from synchromesh.events import SCHEMA as EVENTS_SCHEMA
from synchromesh.events import Checkpoint, read
from synchromesh.identity import NOBODY
from synchromesh.saga.records import Nap, RecordKind, SagaCause, SagaRecord, SagaStatus
from synchromesh.saga.schema import SCHEMA as SAGA_SCHEMA
from synchromesh.saga.tables import HANDED_OVER, Part, SagaRow
from synchromesh.saga.writing import write_all
from synchromesh.store import Condition, Store, Unit

pytestmark = pytest.mark.anyio

K = RecordKind


class LostShards:
    """A fence of an engine that has lost some shards."""

    def __init__(self, *shards: int) -> None:
        self._shards = shards

    async def lost(self, unit: Unit) -> Collection[int]:
        await unit.execute("select 1")
        return self._shards

    def condition(self) -> Condition:
        return Condition("false" if self._shards else "true", [])


@pytest.fixture
async def store(stores: Any) -> Store:
    opened: Store = await stores.open([EVENTS_SCHEMA, SAGA_SCHEMA], service="sagas")
    return opened


def run_of(id_: str, **more: Any) -> SagaRow:
    known: dict[str, Any] = {
        "name": "place", "version": 1, "lock_key": None, "digest": "d", "input": b"{}",
        "status": SagaStatus.RUNNING, "reason": "", "owner": "o", "trace_id": "t", "span_id": "s",
        "caller": "c", "principal": NOBODY, "deadline_us": 9, "result": None, "started_us": 1,
        "ended_us": None, "shard": 0,
    }  # fmt: skip
    return SagaRow(id=id_, **(known | more))


def record(kind: RecordKind, body: bytes = b"", **more: Any) -> SagaRecord:
    return SagaRecord(kind, "hold#1", 1, "x", body, 7, **more)


def start(id_: str, *records: SagaRecord, **more: Any) -> Part:
    return Part(run_of(id_, **more), 0, records, is_start=True)


def more(id_: str, seq: int, *records: SagaRecord, shard: int = 0) -> Part:
    return Part(run_of(id_, shard=shard), seq, records)


async def write(store: Store, *parts: Part, lost: Collection[int] = ()) -> list[Any]:
    fence = LostShards(*lost)
    return await store.write(lambda unit: write_all(unit, parts, fence), name="saga records")


async def runs(store: Store) -> dict[object, tuple[Any, ...]]:
    rows = await store.read("select id, status, result, ended_us, wake_us from sm_saga")
    return {row[0]: row[1:] for row in rows}


async def test_all_that_runs_add_is_written_in_one_unit(store: Store) -> None:
    """Starts, records, naps, turns and ends: each run is as its last record says."""
    begun = record(K.BEGUN)
    told: list[Any] = []
    for _ in range(2):
        await store.write(
            lambda unit: unit.execute(
                "insert into sm_saga_signal(saga, name, body, at_us) values (?, ?, ?, ?)",
                "a", "paid", b"", 1,
            ),
            name="told",
        )  # fmt: skip
    assert await write(store, start("a", begun), start("b", begun), start("c")) == [True] * 3
    assert {row[0] for row in (await runs(store)).values()} == {"running"}
    nap = encode(Nap(due_us=50, wake_us=40))
    turned = encode(SagaCause(reason="no stock"))
    assert await write(
        store, more("a", 1, record(K.DONE), record(K.ENDED, b"5")),
        more("b", 1, record(K.TURNED, turned)), more("c", 0, record(K.ASLEEP, nap)),
    ) == [True] * 3  # fmt: skip
    assert await runs(store) == {
        "a": ("completed", b"5", 7, None),
        "b": ("compensating", None, None, None),
        "c": ("sleeping", None, None, 40),
    }
    # A run that begins and ends in one batch is changed by what has inserted it.
    assert await write(
        store, more("b", 2, record(K.ENDED)), more("c", 1, record(K.WOKEN)),
        start("d", begun, record(K.ENDED, b"1")),
    ) == [True] * 3  # fmt: skip
    after = await runs(store)
    assert (after["b"][0], after["c"][0], after["d"][:2]) == (
        "undone", "running", ("completed", b"1"),
    )  # fmt: skip
    assert await store.read("select saga, count(*) from sm_saga_record group by 1 order by 1") == [
        ("a", 3), ("b", 3), ("c", 2), ("d", 2),
    ]  # fmt: skip
    assert await store.read("select status, count from sm_saga_count order by 1") == [
        ("completed", 2), ("undone", 1),
    ]  # fmt: skip
    assert await store.read("select count(*) from sm_saga_signal") == [(0,)]
    told = await read(store, after=Checkpoint(store.log_id), limit=100)
    assert [each.position for each in told] == [*range(1, 9)]
    assert sorted((each.stream, each.version, each.name) for each in told) == [
        ("saga/a", 1, "sagas.saga_started"), ("saga/a", 2, "sagas.saga_ended"),
        ("saga/b", 1, "sagas.saga_started"), ("saga/b", 2, "sagas.saga_turned"),
        ("saga/b", 3, "sagas.saga_ended"), ("saga/c", 1, "sagas.saga_started"),
        ("saga/d", 1, "sagas.saga_started"), ("saga/d", 2, "sagas.saga_ended"),
    ]  # fmt: skip


async def test_each_start_of_a_batch_is_judged_by_itself(store: Store) -> None:
    """The same run again, another under its id, and one whose key is taken (S1)."""
    assert await write(store, start("a"), start("b", lock_key="k")) == [True, True]
    outcomes = await write(
        store, start("a"), start("a2"), start("b", digest="other"), start("c", lock_key="k")
    )
    assert outcomes[:2] == [False, True]
    assert isinstance(outcomes[2], SagaConflict)
    assert isinstance(outcomes[3], SagaLocked)
    assert sorted(map(str, await runs(store))) == ["a", "a2", "b"]


async def test_a_start_that_is_refused_takes_along_what_it_began_with(store: Store) -> None:
    """Its `begin` has written, and so the unit fails as a whole."""
    await write(store, start("a"))

    async def begin(unit: Unit) -> None:
        await unit.execute("insert into sm_saga_count(status, count) values ('begun', 1)")

    part = Part(run_of("a", digest="other"), 0, (), is_start=True, begin=begin)
    with pytest.raises(SagaConflict):
        await write(store, start("b"), part)
    assert [*await runs(store)] == ["a"]
    assert await store.read("select count(*) from sm_saga_count") == [(0,)]


async def test_who_has_lost_a_shard_writes_nothing_of_it(store: Store) -> None:
    """The others of the batch are written (S10); a run may be put into the queue of an owner."""
    heard: list[str] = []
    stop = store.listen(HANDED_OVER, lambda: heard.append("handed over"))
    await write(store, start("a", shard=1), start("b", shard=2))
    outcomes = await write(
        store, more("a", 0, record(K.BEGUN), shard=1), more("b", 0, record(K.BEGUN), shard=2),
        start("q", shard=1, status=SagaStatus.QUEUED), lost=(1,),
    )  # fmt: skip
    stop()
    assert isinstance(outcomes[0], Fenced)
    assert outcomes[1:] == [True, True]
    assert heard == ["handed over"]
    assert await store.read("select saga from sm_saga_record") == [("b",)]


async def test_records_whose_numbers_are_taken_fail_the_unit(store: Store) -> None:
    """Another engine has written them: nothing of the batch is kept."""
    await write(store, start("a", record(K.BEGUN)), start("b"))
    with pytest.raises(ConstraintFailed):
        await write(store, more("b", 0, record(K.BEGUN)), more("a", 0, record(K.BEGUN)))
    assert await store.read("select saga, seq from sm_saga_record") == [("a", 1)]
    assert await write(store, more("a", 1, record(K.ENDED, b"1"))) == [True]
