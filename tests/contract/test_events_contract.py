"""What the event log promises on every engine: E1 to E3, E5, and replaced or damaged logs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from synchromesh.errors import ContractError, LogGap, LogReplaced, VersionConflict
from synchromesh.events import (
    SCHEMA,
    Checkpoint,
    NewEvent,
    StoredEvent,
    append,
    append_each,
    head,
    load,
    load_checkpoint,
    read,
    remove,
    save_checkpoint,
    saved_checkpoint,
    subscribe,
)
from synchromesh.store import SqliteStore, Store, Unit

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(stores: Any) -> Store:
    opened: Store = await stores.open([SCHEMA])
    return opened


def event(name: str = "shop.sold", **more: Any) -> NewEvent:
    return NewEvent(name, b"{}", **more)


def adding(
    stream: str, count: int = 1, *, expected: int | None = None, is_public: bool = False
) -> Callable[[Unit], Awaitable[int]]:
    new = [event(is_public=is_public, partition_key=stream) for _ in range(count)]
    return lambda unit: append(unit, stream, new, expected=expected)


async def add(store: Store, stream: str, count: int = 1, **more: Any) -> int:
    return await store.write(adding(stream, count, **more), name="add")


async def positions(store: Store, after: int = 0, **more: Any) -> list[int]:
    found = await read(store, after=Checkpoint(store.log_id, after), limit=100, **more)
    return [each.position for each in found]


async def test_an_event_is_stored_as_it_was_given(store: Store) -> None:
    """Every field comes back; the time is the unit's."""
    new = NewEvent("shop.sold", b'{"n":1}', 3, is_public=True, partition_key="k", trace_id="t")
    times: list[int] = []

    async def body(unit: Unit) -> int:
        times.append(unit.now_us)
        return await append(unit, "order/1", [new], expected=0)

    assert await store.write(body, name="append") == 1
    (found,) = await load(store, "order/1")
    assert found == StoredEvent(
        1, found.id, "order/1", 1, "shop.sold", 3, b'{"n":1}', True, "k", "t", times[0], 3
    )


async def test_every_event_has_a_uuid7_of_its_own(store: Store) -> None:
    """Of one append, of many, and of `append_each`; a reader finds the same one again."""
    await add(store, "a", 3)
    await add(store, "b")
    new = [(stream, event("shop.sold")) for stream in "aab"]
    await store.write(lambda unit: append_each(unit, new), name="many")
    found = await read(store, after=Checkpoint(store.log_id), limit=9)
    assert len({each.id for each in found}) == len(found) == 7
    assert {UUID(each.id).version for each in found} == {7}
    ids = {each.position: each.id for each in found}
    assert [ids[each.position] for each in await load(store, "a")] == [
        each.id for each in await load(store, "a")
    ]


async def test_versions_of_a_stream_have_no_hole(store: Store) -> None:
    """Each stream counts 1, 2, 3, ... by itself (E1)."""
    assert [await add(store, "a", 2), await add(store, "b"), await add(store, "a", 2)] == [2, 1, 4]
    assert [e.version for e in await load(store, "a")] == [1, 2, 3, 4]
    assert [e.version for e in await load(store, "a", after_version=2)] == [3, 4]
    assert [e.version for e in await load(store, "b")] == [1]
    assert await load(store, "c") == []


@pytest.mark.parametrize("expected", [0, 1, 3, -1])
async def test_an_append_at_another_version_never_succeeds(store: Store, expected: int) -> None:
    """A wrong expected version writes nothing and says what is there (E2)."""
    await add(store, "a", 2)
    with pytest.raises(VersionConflict, match="at version 2") as caught:
        await add(store, "a", expected=expected)
    assert (caught.value.expected, caught.value.actual) == (expected, 2)
    assert await positions(store) == [1, 2]
    assert await add(store, "a", expected=2) == 3


async def test_of_many_who_decided_at_one_version_one_succeeds(store: Store) -> None:
    """Sixteen at once expect version 0: one append, fifteen conflicts (E2)."""
    got = await asyncio.gather(
        *(add(store, "a", expected=0) for _ in range(16)), return_exceptions=True
    )
    assert sum(each == 1 for each in got) == 1
    assert sum(isinstance(each, VersionConflict) for each in got) == 15


async def test_every_text_comes_back_as_it_was_given(store: Store) -> None:
    """Quotes, control characters and all of Unicode, and the largest numbers."""
    # PostgreSQL holds no NUL in a text, and says so.
    odd = 'π 🙂 "\\ \x01\n\x7f' + ("\x00" if isinstance(store, SqliteStore) else "")
    new = NewEvent(odd, odd.encode(), 2**63 - 1, partition_key=odd, trace_id=odd)
    await store.write(lambda unit: append(unit, odd, [new], expected=0), name="append")
    (found,) = await load(store, odd)
    assert found.stream == found.name == found.partition_key == found.trace_id == odd
    assert (found.body, found.type_version, found.is_public) == (odd.encode(), 2**63 - 1, False)
    assert await read(store, after=Checkpoint(store.log_id), limit=9) == [found]


async def test_an_empty_append_checks_the_version_and_wakes_nobody(store: Store) -> None:
    """Nothing happened is a decision too."""
    heard: list[int] = []
    store.listen("events", lambda: heard.append(1))
    assert await add(store, "a", 0, expected=0) == 0
    with pytest.raises(VersionConflict):
        await add(store, "a", 0, expected=1)
    assert heard == []
    await add(store, "a")
    await asyncio.sleep(0)
    assert heard == [1]


async def test_events_of_many_streams_are_appended_in_one_statement(store: Store) -> None:
    """Each to the end of its own stream, in the order in which they are given (E1)."""
    await add(store, "a", 2)
    woken: list[int] = []
    stop = store.listen("events", lambda: woken.append(1))
    new = [(stream, event(f"shop.{n}", trace_id="t")) for n, stream in enumerate("abaa")]
    await store.write(lambda unit: append_each(unit, new), name="many")
    await store.write(lambda unit: append_each(unit, []), name="none")
    stop()
    assert woken == [1]
    found = await read(store, after=Checkpoint(store.log_id, 2), limit=9)
    assert [(each.stream, each.version, each.name) for each in found] == [
        ("a", 3, "shop.0"), ("b", 1, "shop.1"), ("a", 4, "shop.2"), ("a", 5, "shop.3"),
    ]  # fmt: skip
    assert {each.trace_id for each in found} == {"t"}


async def test_a_unit_loads_what_it_has_appended(store: Store) -> None:
    """Within a unit its own events are there; after a rollback they are not."""

    async def body(unit: Unit) -> int:
        await append(unit, "a", [event()], expected=0)
        count = len(await load(unit, "a"))
        if count:
            raise ValueError(count)
        return count

    with pytest.raises(ValueError, match="1"):
        await store.write(body, name="rollback")
    assert await load(store, "a") == []


async def test_a_rollback_leaves_no_hole_in_the_positions(store: Store) -> None:
    """Positions are dense in the order of commits, so that a hole means damage (E3)."""

    async def fail(unit: Unit) -> None:
        await append(unit, "b", [event()], expected=0)
        raise ValueError("no")

    await asyncio.gather(
        add(store, "a"),
        store.write(fail, name="fail"),
        add(store, "c"),
        return_exceptions=True,
    )
    assert await positions(store) == [1, 2]


async def test_a_reader_goes_on_from_its_checkpoint(store: Store) -> None:
    """Limit and checkpoint page through the log; head is its end."""
    await add(store, "a", 5)
    at = Checkpoint(store.log_id)
    pages: list[list[int]] = []
    while page := await read(store, after=at, limit=2):
        pages.append([each.position for each in page])
        at = at.past(page[-1])
    assert pages == [[1, 2], [3, 4], [5]]
    assert at == await head(store) == Checkpoint(store.log_id, 5)


async def test_public_events_are_read_alone(store: Store) -> None:
    """The others are passed over and are no hole."""
    await add(store, "a", 2)
    await add(store, "b", 1, is_public=True)
    await add(store, "a", 3)
    await add(store, "b", 1, is_public=True)
    await add(store, "a", 1)
    assert await positions(store, public_only=True) == [3, 7]
    assert await positions(store, 3, public_only=True) == [7]
    assert await positions(store, 7, public_only=True) == []


async def test_a_checkpoint_of_another_log_is_refused(store: Store) -> None:
    """A restored log is another one; the message names the repair."""
    with pytest.raises(LogReplaced, match=r"another-log.*Rebuild"):
        await read(store, after=Checkpoint("another-log", 0), limit=1)


async def delete(store: Store, where: str) -> None:
    async def body(unit: Unit) -> None:
        await unit.execute(f"delete from sm_event where {where}")

    await store.write(body, name="damage")


@pytest.mark.parametrize(
    ("where", "after"),
    [("position = 3", 0), ("position = 1", 0), ("position = 3", 2), ("position in (2, 5)", 1)],
)
async def test_a_hole_that_no_removal_recorded_is_an_error(
    store: Store, where: str, after: int
) -> None:
    """A missing position is found by whoever reads past it (E3)."""
    await add(store, "a", 5)
    await add(store, "b", 1, is_public=True)
    await delete(store, where)
    with pytest.raises(LogGap, match="no removal recorded"):
        await positions(store, after)
    with pytest.raises(LogGap, match="no removal recorded"):
        await positions(store, after, public_only=True)


async def test_a_log_that_ends_before_the_checkpoint_is_an_error(store: Store) -> None:
    """An older copy of the file does not pass for a quiet one."""
    await add(store, "a", 5)
    await delete(store, "position > 3")
    assert await positions(store, 3) == []
    with pytest.raises(LogGap, match="ends at 3"):
        await positions(store, 5)


async def test_a_recorded_removal_is_no_hole(store: Store) -> None:
    """Ranges may touch and overlap; readers before, in and after them go on (E3)."""
    await add(store, "a", 9)
    await add(store, "b", 1, is_public=True)
    removed = [
        await store.write(lambda unit, r=(first, last): remove(unit, *r), name="remove")  # type: ignore[misc]
        for first, last in ((2, 3), (3, 5), (2, 2), (7, 7))
    ]
    assert removed == [2, 2, 0, 1]
    assert await positions(store) == [1, 6, 8, 9, 10]
    assert await positions(store, 4) == [6, 8, 9, 10]
    assert await positions(store, public_only=True) == [10]
    await delete(store, "position = 9")
    with pytest.raises(LogGap, match="1 positions between 0 and 10"):
        await positions(store)


@pytest.mark.parametrize("first", [1, 2])
async def test_a_removal_that_is_repeated_never_shrinks(store: Store, first: int) -> None:
    """Whoever removes a part of what is gone already takes nothing off its record (E3)."""
    await add(store, "a", 6)
    for last in (4, first, 3, 4):
        await store.write(lambda unit, to=last: remove(unit, first, to), name="remove")  # type: ignore[misc]
        assert await positions(store) == [*range(1, first), 5, 6]


async def test_a_removed_end_is_no_lost_end_and_is_not_given_again(store: Store) -> None:
    """A reader that saw the removed ones waits in peace; the next event has a new position."""
    await add(store, "a", 3)
    await store.write(lambda unit: remove(unit, 2, 3), name="remove")
    assert await positions(store, 3) == []
    await add(store, "b")
    assert await positions(store, 3) == [4]
    assert await positions(store) == [1, 4]


async def test_a_stream_with_removed_events_is_not_folded(store: Store) -> None:
    """A fold over a part would be a wrong state; from beyond the part it is right."""
    await add(store, "a", 4)
    await store.write(lambda unit: remove(unit, 1, 2), name="remove")
    with pytest.raises(LogGap, match="2 of the 4"):
        await load(store, "a")
    assert [each.version for each in await load(store, "a", after_version=2)] == [3, 4]


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 1), (1, 4)])
async def test_only_what_is_there_can_be_removed(store: Store, first: int, last: int) -> None:
    """A range that is empty or beyond the end is refused."""
    await add(store, "a", 3)
    with pytest.raises(ContractError, match="the log has 1 to 3"):
        await store.write(lambda unit: remove(unit, first, last), name="remove")


async def test_only_what_every_relay_has_delivered_can_be_removed(store: Store) -> None:
    """The slowest subscriber decides over public events; private ones concern none of them (O1)."""
    await add(store, "a", 3, is_public=True)
    await add(store, "b", 2)
    for name, position in (("relay/fast", 3), ("relay/slow", 1), ("projection/x", 0)):
        at = Checkpoint(store.log_id, position)
        await store.write(lambda unit, n=name, at=at: save_checkpoint(unit, n, at), name="save")  # type: ignore[misc]
    for first, last in ((1, 2), (2, 2), (3, 5), (1, 5)):
        with pytest.raises(ContractError, match=r"subscriber 'slow' has got .* up to 1"):
            await store.write(lambda unit, r=(first, last): remove(unit, *r), name="remove")  # type: ignore[misc]
    assert await positions(store) == [1, 2, 3, 4, 5]
    for first, last in ((1, 1), (4, 5)):
        await store.write(lambda unit, r=(first, last): remove(unit, *r), name="remove")  # type: ignore[misc]
    assert await positions(store) == [2, 3]


async def test_a_checkpoint_of_another_log_says_nothing_of_what_was_delivered(store: Store) -> None:
    """After a restore, what a relay had got then is no leave to remove what is public now (E3)."""
    await add(store, "a", 3, is_public=True)
    for name, at in (
        ("relay/here", Checkpoint(store.log_id, 2)),
        ("relay/there", Checkpoint("the log before", 9)),
    ):
        await store.write(lambda unit, n=name, at=at: save_checkpoint(unit, n, at), name="save")  # type: ignore[misc]
    with pytest.raises(ContractError, match=r"'there' has its checkpoint in another log, the log"):
        await store.write(lambda unit: remove(unit, 1, 2), name="remove")
    here = Checkpoint(store.log_id, 1)
    await store.write(lambda unit: save_checkpoint(unit, "relay/there", here), name="save")
    assert await store.write(lambda unit: remove(unit, 1, 1), name="remove") == 1


async def test_checkpoints_are_kept_by_name(store: Store) -> None:
    """A new reader begins at the beginning; a saved one goes on."""
    assert await load_checkpoint(store, "r") == Checkpoint(store.log_id, 0)
    for position in (3, 7):
        at = Checkpoint(store.log_id, position)
        await store.write(lambda unit, at=at: save_checkpoint(unit, "r", at), name="save")  # type: ignore[misc]
        assert await load_checkpoint(store, "r") == at
    assert await saved_checkpoint(store, "other") is None
    assert await store.write(lambda unit: saved_checkpoint(unit, "r"), name="load") == at


async def test_a_subscriber_catches_up_and_then_lives(store: Store) -> None:
    """What is there comes in batches, then what comes; polling is not waited for."""
    await add(store, "a", 5)
    seen: list[int] = []
    batches = subscribe(store, Checkpoint(store.log_id), batch_max=2, poll_s=3600.0)
    async for batch in batches:
        seen += [each.position for each in batch]
        assert len(batch) <= 2
        if seen[-1] == 5:
            asyncio.get_running_loop().create_task(add(store, "a", 2))
        if seen[-1] == 7:
            break
    await batches.aclose()
    assert seen == [1, 2, 3, 4, 5, 6, 7]


async def test_a_lost_wake_up_only_delays(store: Store) -> None:
    """A subscriber that hears nothing looks again by itself."""
    batches = subscribe(store, Checkpoint(store.log_id), poll_s=0.01)
    waiting = asyncio.ensure_future(anext(batches))
    await asyncio.sleep(0)

    async def quietly(unit: Unit) -> None:
        await unit.execute(
            "insert into sm_event(id, stream, version, name, type_version, body, is_public, "
            "ordering_key, trace_id, recorded_us) values ('id', 'a', 1, 'x.y', 1, ?, 0, '', '', 0)",
            b"{}",
        )

    await store.write(quietly, name="quiet")
    assert [each.position for each in await waiting] == [1]
    await batches.aclose()


async def test_a_unit_that_commits_later_than_it_inserted_is_read_last(store: Store) -> None:
    """Positions are in the order of commits, so that nothing comes behind what was read (E3)."""
    quick_is_done = asyncio.Event()

    async def slow(unit: Unit) -> None:
        await append(unit, "slow", [NewEvent("shop.sold", b"{}")], expected=0)
        # An engine that runs one unit at a time would have the other one wait for ever.
        for _ in range(400):
            if quick_is_done.is_set():
                break
            await unit.execute("select 1")

    async def quickly() -> None:
        await add(store, "quick")
        quick_is_done.set()

    seen: list[StoredEvent] = []

    async def tail() -> None:
        batches = subscribe(store, Checkpoint(store.log_id), poll_s=3600.0)
        async for batch in batches:
            seen.extend(batch)
            if len(seen) == 2:
                break
        await batches.aclose()

    await asyncio.gather(tail(), store.write(slow, name="slow"), quickly())
    assert [each.position for each in seen] == [1, 2]
    assert {each.stream for each in seen} == {"slow", "quick"}
    assert [
        each.position for each in await read(store, after=Checkpoint(store.log_id), limit=9)
    ] == [
        1,
        2,
    ]


async def test_a_tailing_reader_misses_nothing_of_eight_writers(store: Store) -> None:
    """While eight write, some failing, a reader sees every position once and in order (E3)."""
    rounds, writers = 20, 8
    seen: list[StoredEvent] = []

    async def write(number: int) -> None:
        for turn in range(rounds):
            await add(store, f"s{number}", 1 + turn % 3)
            await asyncio.gather(add(store, f"s{number}", expected=-1), return_exceptions=True)

    total = writers * sum(1 + turn % 3 for turn in range(rounds))

    async def tail() -> None:
        batches = subscribe(store, Checkpoint(store.log_id), batch_max=7, poll_s=3600.0)
        async for batch in batches:
            seen.extend(batch)
            if len(seen) >= total:
                break
        await batches.aclose()

    await asyncio.gather(tail(), *(write(number) for number in range(writers)))
    assert [each.position for each in seen] == list(range(1, total + 1))
    for number in range(writers):
        versions = [each.version for each in seen if each.stream == f"s{number}"]
        assert versions == list(range(1, total // writers + 1))
