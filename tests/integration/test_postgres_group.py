"""Units that only append share a commit on PostgreSQL, and what can go wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import asyncpg
import pytest
from msgspec import structs

from postgres_server import empty_database
from synchromesh.errors import (
    Fenced,
    SagaConflict,
    StatementFailed,
    StoreBroken,
    StoreUnavailable,
    VersionConflict,
)
from synchromesh.events import SCHEMA, Checkpoint, NewEvent, append, append_each, load, read
from synchromesh.events.appending import TOPIC
from synchromesh.identity import NOBODY
from synchromesh.runtime import RealRuntime
from synchromesh.saga import tables_at_once
from synchromesh.saga.records import RecordKind, SagaRecord, SagaStatus
from synchromesh.saga.schema import SCHEMA as SAGA_SCHEMA
from synchromesh.saga.tables import Part, SagaRow
from synchromesh.saga.writing import write_all
from synchromesh.store import Condition, Unit, postgres_units
from synchromesh.store.postgres import PostgresOptions, PostgresStore
from synchromesh.store.postgres_append import (
    APPEND,
    APPEND_IN_ORDER,
    foretold,
)
from synchromesh.store.postgres_connection import Connection
from synchromesh.store.postgres_dialect import Translation
from synchromesh.store.postgres_foretold import plan_of

pytestmark = pytest.mark.anyio

WAIT_S = 180.0


@pytest.fixture
async def opened(anyio_backend: str) -> AsyncIterator[Callable[..., Awaitable[PostgresStore]]]:
    """Opens stores of one log, each of which knows that units named "add" only append."""
    url = await empty_database("grouped")
    stores: list[PostgresStore] = []

    async def open_one(**options: Any) -> PostgresStore:
        store = await PostgresStore.open(
            url, service="grouped", schemas=[SCHEMA, SAGA_SCHEMA], runtime=RealRuntime(),
            options=PostgresOptions(**options),
        )  # fmt: skip
        stores.append(store)
        await add(store, f"known/{len(stores)}")
        return store

    yield open_one
    for each in stores:
        await each.close()


async def add(
    store: PostgresStore,
    stream: str,
    *,
    events: int = 1,
    expected: int | None = None,
    after: Callable[[Unit], Awaitable[object]] | None = None,
    **event: Any,
) -> int:
    async def body(unit: Unit) -> int:
        new = [NewEvent("shop.sold", b"{}", **event)] * events
        version = await append(unit, stream, new, expected=expected)
        if after is not None:
            await after(unit)
        return version

    return await store.write(body, name="add")


async def stored(store: PostgresStore) -> list[tuple[int, str, int]]:
    """Return position, stream and version of all events, but of those that made a name known."""
    found = await read(store, after=Checkpoint(store.log_id), limit=1000)
    assert [each.position for each in found] == [*range(1, len(found) + 1)]
    of_tests = [each for each in found if not each.stream.startswith("known/")]
    return [(each.position, each.stream, each.version) for each in of_tests]


async def add_each(store: PostgresStore, *streams: str, name: str = "batch") -> None:
    """Append to many streams, as sagas do."""

    async def body(unit: Unit) -> None:
        await unit.execute("select 1")
        await append_each(unit, [(stream, NewEvent("shop.told", b"{}")) for stream in streams])

    await store.write(body, name=name)


class Proxy:
    """A connection of which what is sent is seen, and may fail."""

    def __init__(
        self, connection: Connection, faults: list[tuple[str, bool, Exception]], sent: list[str]
    ) -> None:
        self._connection = connection
        self._faults = faults
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def _call(self, run: Callable[..., Awaitable[Any]], sql: str, *values: Any) -> Any:
        self._sent.append(sql)
        for fault in self._faults:
            at, is_after, error = fault
            if at in f"<{sql}>":
                self._faults.remove(fault)
                if is_after:
                    await run(sql, *values)
                raise error
        return await run(sql, *values)

    async def execute(self, sql: str, *values: Any) -> Any:
        return await self._call(self._connection.execute, sql, *values)

    async def fetch(self, sql: str, *values: Any) -> Any:
        return await self._call(self._connection.fetch, sql, *values)


LOST = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")
CONFLICT = asyncpg.SerializationError("could not serialize access")
FULL = asyncpg.DiskFullError("could not extend file")


def _duplicate() -> Exception:
    error: Exception = asyncpg.UniqueViolationError(
        "duplicate key value violates unique constraint"
    )
    vars(error)["table_name"] = "sm_event"
    return error


APPENDING, COMMITTING, BEGINNING = "count(place)", "; commit", "lock table sm_log"
FORETOLD = "checked as"
LOOKING_UP = "on conflict do nothing returning 1"


_faults: dict[str, list[tuple[str, bool, Exception]]] = {}
_sent: dict[str, list[str]] = {}


def faults_of(store: PostgresStore) -> list[tuple[str, bool, Exception]]:
    """Return what has yet to fail."""
    return _faults[store.place]


def sent_by(store: PostgresStore) -> list[str]:
    """Return what has been sent by now, and gather what will be."""
    _sent[store.place].clear()
    return _sent[store.place]


async def failing(
    opened: Any, *faults: tuple[str, bool, Exception], **options: Any
) -> PostgresStore:
    """Open a store of one connection, of which what is named fails once, later."""
    store: PostgresStore = await opened(connections_max=1, **options)
    connect = store._units._connect
    to_come: list[tuple[str, bool, Exception]] = []
    sent: list[str] = []

    async def connect_proxy() -> Proxy:
        return Proxy(await connect(), to_come, sent)

    store._units._connect = connect_proxy
    _faults[store.place], _sent[store.place] = to_come, sent
    # The connection that it has is replaced by one that is watched.
    admin = await asyncpg.connect(store._url)
    await admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and query like '%; commit'"
    )
    await admin.close()
    await store.write(lambda unit: unit.execute("select 1"), name="anew")
    to_come += faults
    return store


async def test_units_that_append_share_a_commit(opened: Any) -> None:
    """Each gets its own version; positions are dense, and within a stream as versions are."""
    store = await opened()
    before, told = store.commits, []
    stop = store.listen(TOPIC, lambda: told.append(1))
    versions = await asyncio.gather(
        *(add(store, f"s/{number % 40}", events=1 + number % 3) for number in range(60))
    )
    stop()
    assert sorted(versions) == sorted(
        [1 + number % 3 for number in range(40)]
        + [1 + number % 3 + 1 + (number + 40) % 3 for number in range(20)]
    )
    assert store.commits - before <= 4
    assert told
    found = await stored(store)
    for stream in {each[1] for each in found}:
        of = [version for _, each, version in found if each == stream]
        assert of == [*range(1, len(of) + 1)]
    assert len(found) == sum(1 + number % 3 for number in range(60))


async def test_many_writers_of_one_stream_are_put_off_but_not_lost(opened: Any) -> None:
    """Of one stream it is one at a time, each by what the one before it has left."""
    store = await opened()
    versions = await asyncio.gather(*(add(store, "hot") for _ in range(30)))
    assert sorted(versions) == [*range(1, 31)]
    assert [version for _, _, version in await stored(store)] == [*range(1, 31)]


async def test_a_version_that_is_taken_fails_its_unit_alone(opened: Any) -> None:
    """Of those who decided at one version one succeeds (E2), and who is beside them does too."""
    store = await opened()
    before = store.commits
    outcomes = await asyncio.gather(
        *(add(store, "a", expected=0) for _ in range(5)),
        *(add(store, f"b/{number}", expected=0) for number in range(5)),
        return_exceptions=True,
    )
    refused = [each for each in outcomes[:5] if isinstance(each, VersionConflict)]
    assert len(refused) == 4
    assert {each.actual for each in refused} == {1}
    assert outcomes[5:] == [1] * 5
    assert store.commits - before <= 2
    assert len(await stored(store)) == 6


async def test_a_unit_that_fails_after_its_append_fails_alone(opened: Any) -> None:
    """What it appended goes, and the others commit (I4); so with one that asks for more."""
    store = await opened()

    async def fail(_: Unit) -> None:
        raise ValueError("no")

    async def ask(unit: Unit) -> None:
        assert [each.version for each in await load(unit, "more")] == [1]

    outcomes = await asyncio.gather(
        add(store, "a"), add(store, "failed", after=fail), add(store, "b"),
        add(store, "more", after=ask), add(store, "c"), return_exceptions=True,
    )  # fmt: skip
    assert isinstance(outcomes[1], ValueError)
    assert [each for each in outcomes if not isinstance(each, ValueError)] == [1] * 4
    assert sorted(stream for _, stream, _ in await stored(store)) == ["a", "b", "c", "more"]


async def test_a_value_that_the_log_refuses_fails_its_unit_alone(opened: Any) -> None:
    """The server, or the driver, refuses the statement of all: each is tried by itself."""
    store = await opened()
    outcomes = await asyncio.gather(
        add(store, "a"), add(store, str(3**9000)), add(store, "bad", type_version=2**70),
        add(store, "nul\0"), add(store, "b"), return_exceptions=True,
    )  # fmt: skip
    assert all(isinstance(each, StatementFailed | StoreBroken) for each in outcomes[1:4])
    assert (outcomes[0], outcomes[4]) == (1, 1)
    assert sorted(stream for _, stream, _ in await stored(store)) == ["a", "b"]


async def test_a_caller_that_is_cancelled_harms_nobody(opened: Any) -> None:
    """Its unit stands, as every unit does that was asked for."""
    store = await opened()
    tasks = [asyncio.ensure_future(add(store, f"s/{number}")) for number in range(6)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[2], asyncio.CancelledError)
    assert [each for each in outcomes if each == 1] == [1] * 5
    await add(store, "last")
    assert len(await stored(store)) == 7


@pytest.mark.parametrize(
    ("at", "is_after", "error"),
    [
        (COMMITTING, False, LOST), (COMMITTING, True, LOST), (APPENDING, True, LOST),
        (BEGINNING, True, LOST), (APPENDING, False, CONFLICT), (COMMITTING, False, CONFLICT),
        (APPENDING, False, asyncpg.DeadlockDetectedError("deadlock detected")),
        (APPENDING, False, _duplicate()), (COMMITTING, False, FULL),
        (FORETOLD, False, LOST), (FORETOLD, True, LOST), (FORETOLD, False, CONFLICT),
        (FORETOLD, False, _duplicate()), (FORETOLD, False, FULL),
    ],
)  # fmt: skip
async def test_a_group_that_is_cut_takes_effect_once(
    opened: Any, at: str, is_after: bool, error: Exception
) -> None:
    """It is looked up by its mark before it is run again, all of it or nothing (I3)."""
    store = await failing(opened, (at, is_after, error))
    store._units._foresight.saw(is_so=at == FORETOLD)
    versions = await asyncio.wait_for(
        asyncio.gather(*(add(store, f"s/{number}", expected=0) for number in range(8))), WAIT_S
    )
    assert versions == [1] * 8
    assert len(await stored(store)) == 8
    assert not faults_of(store), "it did fail"


@pytest.mark.parametrize("at", [COMMITTING, FORETOLD])
async def test_a_group_that_may_stand_is_never_run_again(
    opened: Any, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit had no answer, and no look-up has one: each is told so, and it stands once."""
    monkeypatch.setattr(postgres_units, "ROUNDS_MAX", 4)
    store = await failing(opened, (at, True, LOST), *[(LOOKING_UP, False, LOST)] * 9)
    expected = 0 if at == FORETOLD else None
    adding = (add(store, f"s/{n}", expected=expected) for n in range(3))
    outcomes = await asyncio.wait_for(asyncio.gather(*adding, return_exceptions=True), WAIT_S)
    assert all(isinstance(each, StoreUnavailable) for each in outcomes), outcomes
    faults_of(store).clear()
    assert sorted(stream for _, stream, _ in await stored(store)) == ["s/0", "s/1", "s/2"]


async def test_a_look_up_that_had_no_answer_is_not_taken_for_the_commit(opened: Any) -> None:
    """The group never arrived; what is there is the mark of who looked for it (I3)."""
    store = await failing(opened, (FORETOLD, False, LOST), ("<commit>", True, LOST))
    assert await asyncio.wait_for(add(store, "a", expected=0), WAIT_S) == 1
    assert not faults_of(store), "both did fail"
    assert [stream for _, stream, _ in await stored(store)] == ["a"]


async def test_a_group_whose_versions_are_known_is_one_trip(opened: Any) -> None:
    """Its units are over before it is sent; each has its version, and positions are in order."""
    store = await failing(opened)
    sent, before = sent_by(store), store.commits
    streams = [f"s/{number}" for number in range(20)]
    for version in range(3):
        asked = (add(store, each, events=2, expected=2 * version) for each in streams)
        assert await asyncio.gather(*asked) == [2 * version + 2] * 20
    assert [sql for sql in sent if FORETOLD not in sql] == ["reset all"]
    assert (len(sent), store.commits - before) == (4, 3)
    found = await stored(store)
    assert [(stream, version) for _, stream, version in found] == [
        (each, 2 * version + n) for version in range(3) for each in streams for n in (1, 2)
    ]


async def test_a_foretold_version_that_is_taken_fails_its_unit_alone(opened: Any) -> None:
    """Nothing was written of the group, which asks then step by step (E2, I4)."""
    store = await failing(opened)
    sent = sent_by(store)
    await add(store, "a", expected=0)
    outcomes = await asyncio.gather(
        *(add(store, each, expected=0) for each in ("b", "a", "c")), add(store, "d", expected=3),
        return_exceptions=True,
    )  # fmt: skip
    assert [each for each in outcomes if each == 1] == [1, 1]
    refused = [each for each in outcomes if isinstance(each, VersionConflict)]
    assert [each.actual for each in refused] == [1, 0]
    assert sum(FORETOLD in sql for sql in sent) == 2
    assert sum(APPENDING in sql for sql in sent) == 1
    assert [stream for _, stream, _ in await stored(store)] == ["a", "b", "c"]


async def test_who_fails_after_a_foretold_append_has_written_nothing(opened: Any) -> None:
    """It is known before anything is sent: it is run by itself, and the others in one trip."""
    store = await failing(opened)
    sent = sent_by(store)

    async def fail(_: Unit) -> None:
        raise ValueError("no")

    async def ask(unit: Unit) -> None:
        assert [each.version for each in await load(unit, "more")] == [1]

    async def refuse(_: Unit) -> int:
        raise KeyError("before it asked for anything")

    outcomes = await asyncio.gather(
        add(store, "a", expected=0), add(store, "failed", expected=0, after=fail),
        add(store, "more", expected=0, after=ask), store.write(refuse, name="add"),
        add(store, "b", expected=0), return_exceptions=True,
    )  # fmt: skip
    assert list(map(type, outcomes)) == [int, ValueError, int, KeyError, int]
    assert (sum(FORETOLD in sql for sql in sent), sum(sql == "rollback" for sql in sent)) == (1, 1)
    assert sorted(stream for _, stream, _ in await stored(store)) == ["a", "b", "more"]


async def test_a_foretold_group_waits_for_who_is_to_be_alone(opened: Any) -> None:
    """As every unit does, whose `begin` locks the table of turns."""
    store = await opened()
    other = await asyncpg.connect(store._url)
    await other.execute("begin; lock table sm_turn in exclusive mode")
    waiting = asyncio.ensure_future(add(store, "a", expected=0))
    held = (
        "select exists(select from pg_locks where relation = 'sm_turn'::regclass and not granted)"
    )
    async with asyncio.timeout(WAIT_S):
        while not await other.fetchval(held):
            await asyncio.sleep(0.01)
    assert not waiting.done()
    await other.execute("commit")
    await other.close()
    assert await asyncio.wait_for(waiting, WAIT_S) == 1


async def test_a_foretold_group_is_in_a_session_as_it_began(opened: Any) -> None:
    """Whatever a function has set in it that a unit before has called."""
    store = await failing(opened)
    await store.write(
        lambda unit: unit.execute(
            "create function astray() returns text language sql as "
            "$$select set_config('default_transaction_read_only', 'on', false)$$"
        ),
        name="make",
    )
    await store.write(lambda unit: unit.execute("select astray()"), name="leave")
    sent = sent_by(store)
    assert await add(store, "a", expected=0) == 1
    assert [sql[:9] for sql in sent] == ["reset all", "with chec"], "and it was not refused"


async def test_a_foretold_group_does_not_wait_long_for_one_stream(opened: Any) -> None:
    """Nor for who numbers the log: it goes step by step, and so does the next one."""
    store = await opened()
    other = await asyncpg.connect(store._url)
    await other.execute(
        "begin; select from sm_log where name = 'sm_event' for update; "
        "update sm_log set last = last where name = 'sm_event'"
    )
    waiting = asyncio.ensure_future(add(store, "a", expected=0))
    held = "select exists(select from pg_locks where relation = 'sm_log'::regclass and not granted)"
    async with asyncio.timeout(WAIT_S):
        while not await other.fetchval(held):
            await asyncio.sleep(0.01)
    await other.execute("commit")
    await other.close()
    assert await asyncio.wait_for(waiting, WAIT_S) == 1
    assert not store._units._foresight.is_clear()
    assert len(await stored(store)) == 1


async def test_a_group_that_is_always_in_conflict_is_run_one_by_one(opened: Any) -> None:
    """And each unit is, at last, alone in the database."""
    faults = [(APPENDING, False, CONFLICT)] * 20
    store = await failing(opened, *faults)
    versions = await asyncio.gather(*(add(store, f"s/{number}") for number in range(4)))
    assert versions == [1] * 4
    assert len(await stored(store)) == 4


async def test_who_appends_to_a_stream_that_another_holds_waits_for_itself(opened: Any) -> None:
    """A unit elsewhere has inserted there and has yet to commit: nobody else waits for it."""
    store = await opened()
    other = await asyncpg.connect(store._url)
    await other.execute(
        "begin; insert into sm_event(id, stream, version, name, type_version, body, is_public, "
        "ordering_key, trace_id, recorded_us) values ('x', 'held', 1, 'n', 1, '', 0, '', '', 1)"
    )
    waiting = asyncio.ensure_future(add(store, "held"))
    async with asyncio.timeout(WAIT_S):
        assert await asyncio.gather(*(add(store, f"s/{number}") for number in range(4))) == [1] * 4
    assert not waiting.done()
    await other.execute("commit")
    assert await asyncio.wait_for(waiting, WAIT_S) == 2
    await other.close()
    found = await stored(store)
    assert [version for _, stream, version in found if stream == "held"] == [1, 2]


async def test_an_event_has_no_position_before_the_one_that_it_follows(opened: Any) -> None:
    """The one before is committed and not numbered yet: the sequencer numbers both, in order."""
    store = await opened()
    await store._sequencer.close()
    other = await asyncpg.connect(store._url)
    await other.execute(
        "insert into sm_event(id, stream, version, name, type_version, body, is_public, "
        "ordering_key, trace_id, recorded_us) values ('x', 'a', 1, 'n', 1, '', 0, '', '', 1)"
    )
    await other.close()
    following, free = asyncio.ensure_future(add(store, "a")), add(store, "b")
    assert await asyncio.wait_for(free, WAIT_S) == 1
    assert not following.done()
    assert [each.position for each in await load(store, "a")] == [0, 0]
    third = await opened(look_every_s=0.01)
    async with asyncio.timeout(WAIT_S):
        while 0 in [each.position for each in await load(third, "a")]:
            await asyncio.sleep(0.01)
    first, second = (each.position for each in await load(third, "a"))
    assert first < second
    await store._sequencer.close()
    assert await following == 2


async def test_a_batch_gives_its_events_positions(opened: Any) -> None:
    """From the second of its name on, and no sequencer has to: it holds the order meanwhile."""
    store = await opened()
    await add_each(store, "a", "b", "a")
    await store._sequencer.close()
    async with asyncio.timeout(WAIT_S):
        await add_each(store, "b", "c", "b", "c")
        await add_each(store)
        assert await add(store, "a") == 3
    found = await stored(store)
    assert [stream for _, stream, _ in found[:3]] == ["a", "b", "a"]
    assert found[3:] == [(5, "b", 2), (6, "c", 1), (7, "b", 3), (8, "c", 2), (9, "a", 3)]


async def test_batches_groups_and_others_of_two_processes_skip_nothing(opened: Any) -> None:
    """A tailing reader sees each event, in order, whoever gave it its position (E3)."""
    stores = [await opened(), await opened(look_every_s=0.01)]
    tail = await opened(look_every_s=0.01)
    total = 2 * 3 * 8 * 5

    async def beside(unit: Unit) -> None:
        await unit.execute("select 1")
        await append(unit, "s/1", [NewEvent("shop.sold", b"{}")], expected=None)

    async def write(store: PostgresStore, number: int) -> None:
        for n in range(8):
            await add(store, f"s/{n % 3}")
            await add(store, f"own/{id(store)}/{number}", expected=n)
            await add_each(store, f"t/{number}", f"u/{number}", name=f"batch {n % 2}")
            await store.write(beside, name="beside")

    async def follow() -> list[tuple[int, str, int]]:
        seen: list[tuple[int, str, int]] = []
        while sum(not stream.startswith("known/") for _, stream, _ in seen) < total:
            after = Checkpoint(tail.log_id, seen[-1][0] if seen else 0)
            found = await read(tail, after=after, limit=50)
            seen += [(each.position, each.stream, each.version) for each in found]
        return seen

    reading = asyncio.ensure_future(follow())
    writers = [write(store, 3 * at + n) for at, store in enumerate(stores) for n in range(3)]
    await asyncio.gather(*writers)
    seen = await asyncio.wait_for(reading, WAIT_S)
    assert [position for position, _, _ in seen] == [*range(1, len(seen) + 1)]
    for stream in {stream for _, stream, _ in seen}:
        versions = [version for _, of, version in seen if of == stream]
        assert versions == [*range(1, len(versions) + 1)]


def arrays(places: int) -> list[Any]:
    return [[] for _ in range(places)]


async def test_what_many_share_is_planned_once_and_read_by_keys() -> None:
    """Also by a plan that was made while its tables were empty, for arrays of any length."""
    url = await empty_database("planned")
    schemas = [SCHEMA, SAGA_SCHEMA]
    store = await PostgresStore.open(url, service="p", schemas=schemas, runtime=RealRuntime())
    connection = await asyncpg.connect(url)
    batch = plan_of(("true",), tables_at_once.PUTS, appends=True)
    marked: list[Any] = ["u", 1]
    event = ("id", "shop.sold", 1, b"{}", 0, "", "", 5, 1)
    given: list[tuple[Translation, list[Any]]] = [
        *((each, arrays(each.places)) for each in (APPEND, APPEND_IN_ORDER)),
        *((each, arrays(each.places)) for each in map(Translation, tables_at_once.STATEMENTS)),
        (batch, [*arrays(batch.places - 2), *marked]),
        foretold([("s/1", 7, [event])], "u", 1),
        foretold([("s/1", 7, [event, event])], "u", 1),
    ]
    for plan, values in given:
        text = plan.text(())
        rows = await connection.fetch(f"explain (generic_plan) {text}", *values)
        scans = [row[0] for row in rows if "Seq Scan" in row[0]]
        assert [each for each in scans if "sm_turn" not in each] == []
        for number in range(12):
            if values[-2:] == marked:
                values[-2] = marked[0] = f"u-{number}"
            await connection.fetch(text, *values)
        asked = "select generic_plans from pg_prepared_statements where statement = $1"
        assert await connection.fetchval(asked, text) > 5
    await connection.close()
    await store.close()


class Owned:
    """Is told of duties, and waits until one is this process's."""

    def __init__(self) -> None:
        self.is_owned = asyncio.Event()

    def gained(self, _: Collection[str]) -> None:
        self.is_owned.set()

    async def lost(self, _: Collection[str]) -> None:
        pass


class Shard:
    """The right to write for the one shard, by the fence of its duty."""

    def __init__(self, store: PostgresStore) -> None:
        self._fence = store.owners.fence(["shard"])
        self.condition = self._fence.condition

    async def lost(self, unit: Unit) -> Collection[int]:
        return [0] if await self._fence.lost(unit) else []


class Free:
    """Everybody's right to write."""

    async def lost(self, _: Unit) -> Collection[int]:
        return []

    def condition(self) -> Condition:
        return Condition("true", [])


async def owning(opened: Any, *faults: tuple[str, bool, Exception]) -> PostgresStore:
    """Open a store that owns a shard and knows by two batches what batches are."""
    store = await failing(opened)
    await store.owners.add(["shard"], owned := Owned())
    await asyncio.wait_for(owned.is_owned.wait(), WAIT_S)
    for number in range(2):
        assert await start(store, f"known-{number}") == [True]
    faults_of(store).extend(faults)
    return store


async def start(
    store: PostgresStore, *ids: str, fence: Shard | Free | None = None, digest: str = "d"
) -> list[Any]:
    row = SagaRow(
        id="", name="place", version=1, lock_key=None, digest=digest, input=b"{}",
        status=SagaStatus.RUNNING, reason="", owner="o", trace_id="", span_id="", caller="c",
        principal=NOBODY, deadline_us=9, result=None, started_us=1, ended_us=None,
    )  # fmt: skip
    begun = [SagaRecord(RecordKind.BEGUN, "hold#1", 1, "x", b"", 7)]
    parts = [Part(structs.replace(row, id=id_), 0, begun, is_start=True) for id_ in ids]
    right = fence or Shard(store)
    return await store.write(lambda unit: write_all(unit, parts, right), name="saga records")


async def runs(store: PostgresStore) -> dict[str, int]:
    """Return how many records each run has; each was told of once, in the order of the log."""
    rows = await store.read("select saga, count(*) from sm_saga_record group by 1 order by 1")
    told = [stream for _, stream, _ in await stored(store)]
    assert sorted(told) == sorted(f"saga/{id_!s}" for id_, _ in rows)
    return {str(id_): int(str(count)) for id_, count in rows if not str(id_).startswith("known")}


async def test_a_batch_in_whose_way_nothing_is_is_one_trip(opened: Any) -> None:
    """What it asks, what it writes and what it tells, with its commit."""
    store = await owning(opened)
    sent, before = sent_by(store), store.commits
    assert await start(store, "a", "b", "c") == [True] * 3
    assert await start(store, "d") == [True]
    assert [sql[:9] for sql in sent] == ["with aske"] * 2
    assert store.commits - before == 2
    assert await runs(store) == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_a_batch_that_finds_a_run_there_asks_step_by_step(opened: Any) -> None:
    """The same start is none, another one is in conflict, and the others are written (S1)."""
    store = await owning(opened)
    assert await start(store, "a") == [True]
    assert await start(store, "b", "a", "c") == [True, False, True]
    for _ in range(8):
        outcomes = await start(store, "a", f"d-{_}", digest="other")
        assert isinstance(outcomes[0], SagaConflict)
        assert outcomes[1] is True
    assert list((await runs(store)).values()) == [1] * 11


async def test_a_batch_of_who_has_lost_a_shard_writes_nothing(opened: Any) -> None:
    """The epoch is checked in the one statement, as it is step by step (S10)."""
    store = await owning(opened)
    fence = Shard(store)
    other = await asyncpg.connect(store._url)
    await other.execute("update sm_duty set epoch = epoch + 1 where name = 'shard'")
    sent = sent_by(store)
    (outcome,) = await start(store, "a", fence=fence)
    assert isinstance(outcome, Fenced)
    assert "with aske" in [sql[:9] for sql in sent], "it was foretold"
    assert await runs(store) == {}
    await other.execute("update sm_duty set epoch = epoch - 1 where name = 'shard'")
    await other.close()


FORETOLD_BATCH = "started as ("


@pytest.mark.parametrize(
    ("is_after", "error"),
    [(False, LOST), (True, LOST), (False, CONFLICT), (False, _duplicate()), (False, FULL)],
)
async def test_a_batch_that_is_cut_takes_effect_once(
    opened: Any, is_after: bool, error: Exception
) -> None:
    """It is looked up by its mark, and its outcomes are those that were foretold (I3)."""
    store = await owning(opened, (FORETOLD_BATCH, is_after, error))
    assert await asyncio.wait_for(start(store, "a", "b"), WAIT_S) == [True, True]
    assert not faults_of(store), "it did fail"
    assert await runs(store) == {"a": 1, "b": 1}


async def test_a_batch_behind_an_event_without_a_position_gives_none(opened: Any) -> None:
    """It goes step by step, and the sequencer numbers both, in order."""
    store = await owning(opened)
    other = await asyncpg.connect(store._url)
    await other.execute(
        "begin; insert into sm_event(id, stream, version, name, type_version, body, is_public, "
        "ordering_key, trace_id, recorded_us) values ('x', 'saga/a', 1, 'n', 1, '', 0, '', '', 1)"
    )
    await other.execute("commit")
    await other.close()
    assert await asyncio.wait_for(start(store, "a"), WAIT_S) == [True]
    found = [version for _, stream, version in await stored(store) if stream == "saga/a"]
    assert found == [1, 2]


async def test_groups_and_batches_of_one_process_are_in_nobodys_way(opened: Any) -> None:
    """Both hold the order of the log, one after the other, so that all of them are foretold."""
    store = await opened(connections_max=4)
    for number in range(2):
        await start(store, f"known-{number}", fence=Free())
    for turn in range(5):
        adding = (add(store, f"s/{n}", expected=turn) for n in range(5))
        starting = (start(store, f"r-{turn}-{n}", fence=Free()) for n in range(5))
        await asyncio.gather(*adding, *starting)
        assert store._units._foresight.is_clear(), "no one was told no"
