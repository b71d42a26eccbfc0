"""The event log of a service: streams with versions for writers, positions for readers.

An event is appended in the unit of work that decides it and never changes. Within a stream versions
are 1, 2, 3, ... (E1); over the whole log positions ascend in the order of commits and have no holes
but those that `remove` recorded, so a reader that saw position n has seen all before it (E3).

A position means something in its own log only: a checkpoint is (log_id, position), and one of
another log is refused. What tells an event from every other, wherever it goes, is its id.

Source: Kleppmann, *Designing Data-Intensive Applications*, chapter 11.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from synchromesh.errors import BadRequest, ContractError, LogGap, LogReplaced
from synchromesh.store import (
    Row,
    SqlValue,
    Store,
    StoreReader,
    Unit,
    log_id_of,
)

RELAY_PREFIX = "relay/"
"""The prefix of the names of relays' checkpoints."""

ADOPT = ("update sm_checkpoint set log_id = ? where log_id = ?",)
"""Carry the checkpoints of a database over to another log of it: given (new, old).

They are of the same moment as the events beside them, so that each reader goes on where it was."""

COUNTED_MAX = 100_000
"""Up to how many public events beyond a checkpoint are counted."""

# All but what a reader filters by and what it decodes comes as one column, `head`, which the engine
# itself keeps of the others: fetching ten columns takes twice as long as three and decoding one.
_COLUMNS = "position, head, body"
# An event that is not committed, or was a moment ago, may have no position yet.
_LOAD = (
    "select coalesce(position, 0), head, body from sm_event where stream = ? and version > ? "
    "order by version limit ?"
)
_ALL = 2**62
_READ = f"select {_COLUMNS} from sm_event where position > ? order by position limit ?"
_READ_PUBLIC = (
    f"select {_COLUMNS} from sm_event where position > ? and is_public = 1 order by position "
    "limit ?"
)
_REACHED = "coalesce((select position from sm_checkpoint where name = ?), 0)"
_PUBLIC_AFTER = (
    "select count(*) from (select 1 from sm_event where is_public = 1 "
    f"and position > {_REACHED} limit {COUNTED_MAX})"
)
# What was removed is not beyond a checkpoint, so that the positions need not be counted.
_AFTER = f"select coalesce((select max(position) from sm_event), 0) - {_REACHED}"


class Executes(Protocol):
    """Runs a statement, as a unit does; `store.read` is brought to this shape."""

    async def __call__(self, sql: str, *values: SqlValue) -> list[Row]:
        """Run a statement and return its rows."""
        ...


# Structs, and none of the garbage collector's business, since they hold nothing that could refer
# back: a reader makes one for each event, and a frozen dataclass costs it ten times as much.


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """A stored event; it never changes.

    Attributes:
        position: where it stands in its log: it orders, and means nothing in another log. 0 in
            what `load` returns of events that have none yet.
        id: a UUIDv7 of its own, which no other event ever has, also where its position comes again
            in a log that was restored.
        readable_by_min: the oldest version of the type whose code may read it.
    """

    position: int
    id: str
    stream: str
    version: int
    name: str
    type_version: int
    body: bytes
    is_public: bool
    partition_key: str
    trace_id: str
    recorded_us: int
    readable_by_min: int


class _Head(msgspec.Struct, array_like=True, gc=False):
    """The column `head` of an event."""

    id: str
    stream: str
    version: int
    name: str
    type_version: int
    is_public: int
    partition_key: str
    trace_id: str
    recorded_us: int
    readable_by_min: int


_read_head = msgspec.json.Decoder(_Head).decode


class Checkpoint(msgspec.Struct, frozen=True, order=True, gc=False):
    """The position up to which a reader has read a log."""

    log_id: str
    position: int = 0

    def past(self, event: StoredEvent) -> Checkpoint:
        """Return the checkpoint after an event of this log."""
        return Checkpoint(self.log_id, event.position)


class AppendReceipt(msgspec.Struct, frozen=True, gc=False):
    """The receipt of an append: what a projection is waited for with (`ctx.wait_for`).

    It may be part of an answer, and come back with a query. It holds no position: that is given in
    the commit.

    Example:
        >>> AppendReceipt("stock/SX90", 7).version
        7
    """

    stream: str
    version: int


async def position_of(source: Unit | StoreReader, receipt: AppendReceipt) -> int:
    """Return the position from which on a reader has seen what a receipt tells of.

    Raises:
        BadRequest: there is no such event in this log.
    """
    rows = await executor(source)(
        "select min(position) from sm_event where stream = ? and version >= ?",
        receipt.stream,
        receipt.version,
    )
    if rows[0][0] is None:
        raise BadRequest(
            f"stream {receipt.stream!r} has no event of version {receipt.version}; a receipt is of "
            "the service that gave it, and of its log: do not keep it across a restore"
        )
    return _int(rows[0][0])


async def load(
    source: Unit | Store, stream: str, after_version: int = 0, *, limit: int | None = None
) -> list[StoredEvent]:
    """Load the events of a stream after a version, in order; within a unit also the unit's own.

    With a `limit` those are the first so many.

    Raises:
        LogGap: some of them were removed, so that what follows cannot be folded.
    """
    events = _stored(
        await executor(source)(_LOAD, stream, after_version, _ALL if limit is None else limit)
    )
    if events and events[-1].version - after_version != len(events):
        raise LogGap(
            f"stream {stream!r} has {len(events)} of the {events[-1].version - after_version} "
            f"events after version {after_version}; the others were removed: load it from a "
            "version after them, or restore a backup"
        )
    return events


async def read(
    store: Store, *, after: Checkpoint, limit: int, public_only: bool = False
) -> list[StoredEvent]:
    """Read up to `limit` events after a checkpoint, by position.

    Raises:
        LogReplaced: the checkpoint belongs to another log.
        LogGap: positions are missing that no removal recorded, or the log ends before the
            checkpoint.
    """
    check_log(store, after)
    sql = _READ_PUBLIC if public_only else _READ
    events = _stored(await store.read(sql, after.position, limit))
    if not events:
        await _check_end(store, after.position)
    elif events[-1].position - after.position != len(events):
        await _check_range(store, after.position, events[-1].position)
    return events


async def head(store: StoreReader) -> Checkpoint:
    """Return the checkpoint at the end of the log."""
    rows = await store.read("select coalesce(max(position), 0) from sm_event")
    return Checkpoint(store.log_id, _int(rows[0][0]))


async def remove(unit: Unit, first: int, last: int) -> int:
    """Delete the events from position `first` to `last` and record the range; return the count.

    It is the one way to a hole that readers accept (E3). A stream whose latest event goes loses its
    version with it: remove only streams that end there, or old events.

    Raises:
        ContractError: the range is empty, goes beyond the end of the log, or has a public event
            that a subscriber has not got yet (O1).
    """
    end = _int((await unit.execute("select coalesce(max(position), 0) from sm_event"))[0][0])
    if not 1 <= first <= last <= end:
        raise ContractError(
            f"positions {first} to {last} cannot be removed: the log has 1 to {end}, and the first "
            "must not be beyond the last"
        )
    await _check_published(unit, first, last)
    gone = await unit.execute(
        "delete from sm_event where position >= ? and position <= ? returning 1", first, last
    )
    await unit.execute(
        "insert into sm_removal(first, last) values (?, ?) on conflict(first) do update "
        "set last = case when excluded.last > sm_removal.last then excluded.last "
        "else sm_removal.last end",
        first,
        last,
    )
    return len(gone)


async def _check_published(unit: Unit, first: int, last: int) -> None:
    """Raise `ContractError` where a relay has still to deliver an event of the range."""
    log_id = await log_id_of(unit)
    # A checkpoint of another log says nothing of this one.
    rows = await unit.execute(
        "select name, log_id, case when log_id = ? then position else 0 end as reached "
        "from sm_checkpoint where substr(name, 1, ?) = ? order by reached, name limit 1",
        log_id,
        len(RELAY_PREFIX),
        RELAY_PREFIX,
    )
    if not rows:
        return
    name, reached = str(rows[0][0]), _int(rows[0][2])
    waiting = await unit.execute(
        "select min(position) from sm_event where position >= ? and position <= ? "
        "and position > ? and is_public = 1",
        first,
        last,
        reached,
    )
    if waiting[0][0] is not None:
        has_got = f"has got the public events up to {reached}"
        if rows[0][1] != log_id:
            has_got = f"has its checkpoint in another log, {rows[0][1]!s}, and got none of this one"
        raise ContractError(
            f"positions {first} to {last} cannot be removed: subscriber "
            f"{name.removeprefix(RELAY_PREFIX)!r} {has_got}, and {_int(waiting[0][0])} is one. "
            "Wait until its relay has delivered it; if there is no such subscriber any more: "
            f"synchromesh messages forget {name.removeprefix(RELAY_PREFIX)} --why TEXT"
        )


async def load_checkpoint(source: Store, name: str) -> Checkpoint:
    """Load the checkpoint saved under a name; the log's beginning if there is none."""
    found = await saved_checkpoint(source, name)
    return found or Checkpoint(source.log_id)


async def saved_checkpoint(source: Unit | Store, name: str) -> Checkpoint | None:
    """Load the checkpoint saved under a name, also within a unit; None if there is none."""
    rows = await executor(source)("select log_id, position from sm_checkpoint where name = ?", name)
    return Checkpoint(str(rows[0][0]), _int(rows[0][1])) if rows else None


async def save_checkpoint(unit: Unit, name: str, checkpoint: Checkpoint) -> None:
    """Save a checkpoint in the commit of what was done with its events (E5)."""
    await unit.execute(
        "insert into sm_checkpoint(name, log_id, position) values (?, ?, ?) "
        "on conflict(name) do update set log_id = excluded.log_id, position = excluded.position",
        name,
        checkpoint.log_id,
        checkpoint.position,
    )


async def count_after_checkpoint(store: Store, name: str, *, is_public: bool) -> int:
    """Return how many events, or only public ones, come after what is saved under a name.

    It costs the same however long the log is: public ones are counted up to `COUNTED_MAX`.
    """
    rows = await store.read(_PUBLIC_AFTER if is_public else _AFTER, name)
    return max(0, _int(rows[0][0]))


def check_log(store: Store, checkpoint: Checkpoint) -> None:
    """Raise `LogReplaced` for a checkpoint that belongs to another log than the store's."""
    if checkpoint.log_id != store.log_id:
        raise LogReplaced(
            f"the checkpoint is at position {checkpoint.position} of log {checkpoint.log_id}, but "
            f"{store.service!r} has log {store.log_id}: it was restored or imported. Rebuild the "
            "reader from the log's beginning, or set its checkpoint to a position you have compared"
        )


async def _check_range(store: Store, after: int, last: int) -> None:
    """Raise `LogGap` unless all positions in (after, last] are present or recorded as removed."""
    # One statement, so that it sees one state: a removal moves positions from here to there.
    rows = await store.read(
        "select 0, count(*) from sm_event where position > ? and position <= ? "
        "union all select first, last from sm_removal where last > ? and first <= ?",
        after,
        last,
        after,
        last,
    )
    present = next(_int(count) for zero, count in rows if zero == 0)
    ranges = [(_int(first), _int(until)) for first, until in rows if first != 0]
    removed = covered(ranges, after + 1, last)
    if present + removed < last - after:
        raise LogGap(
            f"{last - after - present - removed} positions between {after} and {last} are missing "
            f"from the log of {store.service!r} and no removal recorded them: the file is damaged "
            "or was edited; restore a backup"
        )


async def _check_end(store: Store, after: int) -> None:
    rows = await store.read(
        "select coalesce(max(position), 0) from sm_event "
        "union all select coalesce(max(last), 0) from sm_removal"
    )
    end = max(_int(row[0]) for row in rows)
    if after > end:
        raise LogGap(
            f"the checkpoint is at position {after}, but the log of {store.service!r} ends at "
            f"{end}: it lost its end, for instance by an older copy of the file; restore the "
            "newer one, or rebuild the reader"
        )


def covered(ranges: Iterable[tuple[int, int]], first: int, last: int) -> int:
    """Return how many of the positions from first to last are in any of the ranges."""
    total, at = 0, first - 1
    for begin, end in sorted(ranges):
        end = min(end, last)
        total += max(0, end - max(begin - 1, at))
        at = max(at, end)
    return total


async def following(source: Unit | StoreReader, position: int, limit: int) -> list[StoredEvent]:
    """Read the first events after a position, also within a unit; holes are not looked for."""
    return _stored(await executor(source)(_READ, position, limit))


async def select_events(
    reader: StoreReader, after: int, last: int, where: Mapping[str, str], *, limit: int
) -> list[StoredEvent]:
    """Select events of a range of positions by columns; a negative limit is of the last ones.

    They come in the order in which they are counted: from either end.
    """
    filtered = " and ".join(["position > ?", "position <= ?", *(f"{each} = ?" for each in where)])
    # Within a stream versions ascend as positions do, and have an index.
    order = "version" if "stream" in where else "position"
    order += " desc" if limit < 0 else ""
    sql = f"select {_COLUMNS} from sm_event where {filtered} order by {order} limit ?"
    return _stored(await reader.read(sql, after, last, *where.values(), abs(limit)))


def executor(source: Unit | StoreReader) -> Executes:
    """Return what runs a statement on a unit or a store."""
    execute: Executes | None = getattr(source, "execute", None)
    if execute is not None:
        return execute
    return source.read  # type: ignore[union-attr]


def _stored(rows: list[Row]) -> list[StoredEvent]:
    """Return the events of rows."""
    # One comprehension and no function of ours for an event: half of what a reader takes is here.
    return [
        StoredEvent(
            at,  # type: ignore[arg-type]  # the columns are of these types, here and below
            (of := _read_head(head)).id,  # type: ignore[arg-type]
            of.stream,
            of.version,
            of.name,
            of.type_version,
            body,  # type: ignore[arg-type]
            of.is_public != 0,
            of.partition_key,
            of.trace_id,
            of.recorded_us,
            of.readable_by_min,
        )
        for at, head, body in rows
    ]


def _int(value: SqlValue) -> int:
    return value if isinstance(value, int) else int(value or 0)
