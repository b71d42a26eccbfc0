"""What snapshots promise on every engine: a decision costs the same however long its stream is, and
a snapshot equals its replay or is not used (E6)."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from synchromesh.errors import ContractError, LogGap, Rejection, StoreBroken
from synchromesh.events import SCHEMA, Decider, Decision, EventTypes, decide, load, remove
from synchromesh.events.snapshots import codec_of
from synchromesh.store import Row, Store, Unit, Unprepared

pytestmark = pytest.mark.anyio

LONG = 20_480  # a whole number of pages


class Added(msgspec.Struct, frozen=True):
    n: int


class Total(msgspec.Struct, frozen=True):
    count: int = 0
    total: int = 0


class Refused(Rejection, code="refused"):
    """Tells that nothing is added."""


def on_command(n: int, state: Total) -> Decision[Total]:
    if n < 0:
        raise Refused
    return Decision(state, (Added(n),) if n else ())


def on_event(state: Total, event: Added) -> Total:
    return Total(state.count + 1, state.total + event.n)


TOTALS = Decider("total", Total(), on_command, on_event, events=(Added,))
TYPES = EventTypes("shop", Added)
# As many of them as are wanted, in one statement.
SEED = (
    "with recursive n(i) as (select 1 union all select i + 1 from n where i < ?) "
    "insert into sm_event(id, stream, version, name, type_version, body, is_public, ordering_key, "
    "trace_id, recorded_us) select 'seed-' || i, ?, i, 'shop.added', 1, "
    "?, 0, '', '', 0 from n"
)


@pytest.fixture
async def store(stores: Any) -> Store:
    opened: Store = await stores.open([SCHEMA])
    return opened


class Counting:
    """A decider that counts what is folded, within units and outside of them."""

    def __init__(self, of: Decider[Total, int, Total] = TOTALS) -> None:
        self.folded = 0
        self.decider = replace(of, evolve=self._evolve)

    def _evolve(self, state: Total, event: Added) -> Total:
        self.folded += 1
        return on_event(state, event)


async def seed(store: Store, count: int, stream: str = "total/a") -> None:
    async def body(unit: Unit) -> None:
        await unit.execute(SEED, count, stream, b'{"n":1}')

    await store.write(body, name="seed")


async def add(
    store: Store, n: int = 1, *, of: Decider[Total, int, Total] = TOTALS, to: str = "a"
) -> Total:
    return await store.write(lambda unit: decide(unit, of, TYPES, to, n), name="add")


async def snapshots(store: Store) -> list[Row]:
    return await store.read("select stream, version, state from sm_snapshot order by version")


async def test_a_decision_folds_as_little_of_a_long_stream_as_of_a_short_one(store: Store) -> None:
    """The first one of 20,480 events is folded before its unit; each further one folds few."""
    await seed(store, LONG)
    counting = Counting()
    assert await add(store, of=counting.decider) == Total(LONG, LONG)
    assert counting.folded == LONG
    counting.folded = 0
    for more in range(1, 251):
        assert (await add(store, of=counting.decider)).count == LONG + more
    assert counting.folded <= 250 * 100


async def test_a_snapshot_is_taken_in_the_unit_that_has_folded_enough(store: Store) -> None:
    """Every hundred events, in the commit of the decision; fewer take none."""
    for _ in range(100):
        await add(store)
    assert await snapshots(store) == []
    await add(store)
    assert await snapshots(store) == [("total/a", 100, b'{"count":100,"total":100}')]
    for _ in range(99):
        await add(store)
    assert len(await snapshots(store)) == 1
    await add(store)
    assert [version for _, version, _ in await snapshots(store)] == [200]


async def test_a_refusal_keeps_nothing_of_what_was_folded(store: Store) -> None:
    """The snapshot was part of the unit, and went with it."""
    await seed(store, 150)
    with pytest.raises(Refused):
        await add(store, -1)
    assert await snapshots(store) == []


def changed(**more: Any) -> Decider[Any, int, Any]:
    return replace(TOTALS, **more)


@dataclass(frozen=True)
class Mean:
    count: int = 0
    mean: float = 0.0


def as_mean(state: Mean, event: Added) -> Mean:
    return Mean(state.count + 1, (state.mean * state.count + event.n) / (state.count + 1))


def in_twos(state: Total, event: Added) -> Total:
    return Total(state.count + 1, state.total + 2 * event.n)


def nothing(_: int, state: Any) -> Decision[Any]:
    return Decision(state)


@pytest.mark.parametrize(
    ("decider", "state"),
    [
        (changed(decide=nothing, version=2), Total(200, 200)),
        (changed(decide=nothing, evolve=in_twos), Total(200, 400)),
        (changed(decide=nothing, evolve=as_mean, initial=Mean()), Mean(200, 1.0)),
    ],
    ids=["version", "evolve", "state"],
)
async def test_a_snapshot_of_another_release_is_made_anew(
    store: Store, decider: Decider[Any, int, Any], state: object
) -> None:
    """Another version, another `evolve` or another state; the one before is kept for its return."""
    await seed(store, 200)
    await add(store, 0)
    assert len(await snapshots(store)) == 1
    assert await add(store, 0, of=decider) == state
    assert len(await snapshots(store)) == 2
    # The first release comes back, and finds its own; a third one takes the place of the second.
    assert await add(store, 0) == Total(200, 200)
    assert await add(store, 0, of=changed(decide=nothing, version=3)) == Total(200, 200)
    assert len(await snapshots(store)) == 2


def test_a_function_that_moves_is_the_same_function() -> None:
    """Where it stands, and the order of its sets, are no part of the digest."""
    code = (
        "import msgspec\n{blank}"
        "from synchromesh.events import Decider, Decision\n"
        "from synchromesh.events.snapshots import codec_of\n"
        "def evolve(state: int, event: object) -> int:\n"
        "    return state + (event in {{'a', 'b', 'c', 'd', 'e'}})\n"
        "print(codec_of(Decider('x', 0, None, evolve, (int,))).digest)\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code.format(blank=blank)],
            env={"PYTHONHASHSEED": hashed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for blank, hashed in (("", "1"), ("\n\n", "2"))
    }
    assert len(digests) == 1


async def test_a_snapshot_of_a_future_that_never_came_is_made_anew(store: Store) -> None:
    """After an older file was put back its stream is shorter than what it tells of."""
    await seed(store, 250)
    await add(store, 0)

    async def shorten(unit: Unit) -> None:
        await unit.execute("delete from sm_event where version > 180")

    await store.write(shorten, name="shorten")
    assert await add(store) == Total(180, 180)
    assert [version for _, version, _ in await snapshots(store)] == [180]
    assert (await add(store)).count == 181


@pytest.mark.parametrize("state", [b"", b"{", b'{"count":"x"}', b"\xff", b"[]"])
async def test_a_snapshot_that_cannot_be_read_is_made_anew(store: Store, state: bytes) -> None:
    """It is a cache: damaged, it costs time."""
    await seed(store, 120)
    await add(store, 0)

    async def damage(unit: Unit) -> None:
        await unit.execute("update sm_snapshot set state = ?", state)

    await store.write(damage, name="damage")
    assert await add(store, 0) == Total(120, 120)
    assert (await snapshots(store))[0][2] == b'{"count":120,"total":120}'


class Loose:
    """A state that JSON cannot hold."""


def loosely(state: Loose, event: Added) -> Loose:
    return state


def to_pair(state: tuple[int, ...], event: Added) -> tuple:  # type: ignore[type-arg]
    return (state[0] + 1, (event.n,))


def untyped(state: Any, event: Any) -> Any:
    return {**state, "n": state.get("n", 0) + 1}


@pytest.mark.parametrize(
    ("decider", "words"),
    [
        (changed(decide=nothing, evolve=loosely, initial=Loose()), "Loose"),
        (changed(decide=nothing, evolve=to_pair, initial=(0,)), "does not come back"),
        (changed(decide=nothing, evolve=untyped, initial={}), "its type is not known"),
    ],
    ids=["no JSON", "not equal", "no type"],
)
async def test_a_state_that_cannot_be_kept_is_folded_each_time_and_said_so(
    store: Store, decider: Decider[Any, int, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a wrong state: the whole stream is folded, once with a warning that says what to do."""
    await seed(store, 2500)
    codec_of.cache_clear()
    with caplog.at_level(logging.WARNING, "synchromesh.events"):
        for _ in range(3):
            await add(store, 0, of=decider)
    assert await snapshots(store) == []
    (said,) = (each.getMessage() for each in caplog.records)
    assert words in said
    assert "snapshot_every=0" in said


async def test_none_is_taken_where_none_is_wanted(store: Store) -> None:
    """`snapshot_every=0` folds all of the stream in the unit."""
    await seed(store, 2000)
    assert await add(store, 0, of=changed(snapshot_every=0)) == Total(2000, 2000)
    assert await snapshots(store) == []


async def test_a_stream_whose_old_events_were_removed_goes_on_by_its_snapshot(store: Store) -> None:
    """Without one it is an error, as a fold over a part would be a wrong state."""
    await seed(store, 150)
    await add(store)
    await store.write(lambda unit: remove(unit, 1, 149), name="remove")
    assert await add(store, 0) == Total(151, 151)
    await store.write(lambda unit: remove(unit, 150, 150), name="remove")
    assert await add(store, 0) == Total(151, 151)
    with pytest.raises(LogGap, match="1 of the 151"):
        await add(store, 0, of=changed(version=2))


async def test_a_stream_that_cannot_be_folded_is_told_by_its_decision(store: Store) -> None:
    """An event that has no class here is an error of the caller's unit; nothing is kept."""
    await seed(store, 1500)

    async def spoil(unit: Unit) -> None:
        await unit.execute("update sm_event set name = 'shop.gone' where version = 1400")

    await store.write(spoil, name="spoil")
    with pytest.raises(ContractError, match=r"position 1400 holds 'shop\.gone'"):
        await add(store)
    assert len(await load(store, "total/a")) == 1500


async def test_who_waits_no_longer_leaves_what_was_folded(store: Store) -> None:
    """A caller with too little time comes again, and each time there is less to do."""
    await seed(store, 30_000)
    counting = Counting()
    stop_at = [12_000]

    def evolve(state: Total, event: Added) -> Total:
        counting.folded += 1
        if counting.folded == stop_at[0]:
            raise TimeoutError
        return on_event(state, event)

    decider = changed(evolve=evolve)
    with pytest.raises(TimeoutError):
        await add(store, of=decider)
    counting.folded = stop_at[0] = 0
    assert await add(store, of=decider) == Total(30_000, 30_000)
    assert counting.folded <= 20_000


async def test_those_who_wait_for_one_stream_fold_it_once(store: Store) -> None:
    """Ten commands at once after a release that changed the state."""
    await seed(store, 3000)
    counting = Counting()
    await asyncio.gather(*(add(store, of=counting.decider) for _ in range(10)))
    assert counting.folded <= 3000 + 10 * 100
    assert await add(store, 0) == Total(3010, 3010)


async def test_a_unit_that_is_never_prepared_is_refused(store: Store) -> None:
    """Whoever asks for ever is told, and holds nobody up."""
    asked: list[int] = []

    async def prepare(_: Store) -> None:
        asked.append(1)

    async def body(unit: Unit) -> None:
        await unit.execute("insert into sm_checkpoint values ('x', 'y', 1)")
        raise Unprepared("total/a", prepare)

    with pytest.raises(StoreBroken, match="asked 32 times for work before it"):
        await store.write(body, name="never")
    assert len(asked) == 32
    assert await store.read("select count(*) from sm_checkpoint") == [(0,)]
