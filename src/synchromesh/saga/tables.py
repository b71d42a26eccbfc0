"""Every statement on the tables of sagas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from synchromesh.codec import decode, encode, to_datetime, to_json
from synchromesh.errors import ConstraintFailed, SagaConflict, SagaError
from synchromesh.events import NewEvent, append_each
from synchromesh.events.appending import TOPIC, rows_of
from synchromesh.identity import NOBODY, Principal, principal_of, principal_text
from synchromesh.saga import tables_at_once
from synchromesh.saga.records import (
    ENDED,
    UNFINISHED,
    Nap,
    RecordKind,
    Repair,
    SagaCause,
    SagaRecord,
    SagaStatus,
)
from synchromesh.saga.shards import RunFence, fenced
from synchromesh.saga.tables_at_once import Gathered, Rows
from synchromesh.sealing import Vault
from synchromesh.store import ArrayUnit, Row, SqlValue, StoreReader, Unit

UNFINISHED_SQL = "status in ('queued', 'running', 'compensating', 'waiting')"
COLUMNS = (
    "id, name, version, lock_key, digest, input, status, reason, owner, trace_id, span_id, "
    "caller, principal, deadline_us, result, started_us, ended_us, shard"
)
_STATUSES = frozenset(status.value for status in SagaStatus)
RECORD_COLUMNS = "seq, kind, step, attempt, digest, body, at_us"
_RECORDS = f"select {RECORD_COLUMNS} from sm_saga_record where saga = ? order by seq"
_START = (
    f"insert into sm_saga({COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# The runs of an engine's own shards, of which it is given the mask.
OWN = "(cast(? as bigint) >> shard) & 1 = 1"
# The primary key is the fence of a run: what another engine wrote after `seq` is in the way.
_RECORD = (
    "insert into sm_saga_record(saga, seq, kind, step, attempt, digest, body, at_us) "
    "values (?, ?, ?, ?, ?, ?, ?, ?)"
)
_TURN = "update sm_saga set status = ?, reason = ?, wake_us = ? where id = ?"
_END = "update sm_saga set status = ?, result = ?, ended_us = ?, wake_us = null where id = ?"
# What was told before is what the run wakes for at once.
SLEEP = (
    "update sm_saga set status = 'sleeping', reason = ?, awaits = ?, wake_us = case when exists("
    "select 1 from sm_saga_signal s where s.saga = sm_saga.id and s.name = ?) then 0 else ? end "
    "where id = ?"
)
_TAKE = "delete from sm_saga_signal where seq = ?"
_FORGET = "delete from sm_saga_signal where saga = ?"
_COUNT = (
    "insert into sm_saga_count(status, count) values (?, ?) "
    "on conflict(status) do update set count = sm_saga_count.count + excluded.count"
)
_COUNTED = (
    "select status, count from sm_saga_count union all "
    f"select status, count(*) from sm_saga where {UNFINISHED_SQL} group by status union all "
    "select 'stuck', count(*) from sm_saga where status = 'stuck' union all "
    "select 'sleeping', count(*) from sm_saga where wake_us is not null"
)
# In the words of an index, which holds the runs of some statuses only.
_OF_STATUS = {
    **{each: f"where status = '{each.value}' and ended_us is not null" for each in ENDED},
    **{each: f"where {UNFINISHED_SQL} and status = '{each.value}'" for each in UNFINISHED},
    SagaStatus.STUCK: "where status = 'stuck'",
    SagaStatus.SLEEPING: "where wake_us is not null",
}
HANDED_OVER = "sagas handed over"
"""What engines listen to: runs were put into the queues of others."""

CONCLUDED = "sagas concluded"
"""What those listen to who wait for a run that another process has: runs ended, or turned."""

_STATUS_OF = {RecordKind.TURNED: SagaStatus.COMPENSATING, RecordKind.STUCK: SagaStatus.STUCK}


class SagaRow(msgspec.Struct, frozen=True, gc=False):
    """What is stored of one run beside its records."""

    id: str
    name: str
    version: int
    lock_key: str | None
    digest: str
    input: bytes
    status: SagaStatus
    reason: str
    owner: str
    trace_id: str
    span_id: str
    caller: str
    principal: Principal
    deadline_us: int
    result: bytes | None
    started_us: int
    ended_us: int | None
    shard: int = 0


class StoredRecord(msgspec.Struct, frozen=True, gc=False):
    """A record where it stands in its run."""

    seq: int
    record: SagaRecord


class _Milestone(msgspec.Struct, frozen=True, gc=False):
    """What an event of a milestone tells; in the order of the names, as all JSON of ours."""

    id: str
    reason: str
    saga: str
    status: str


class UnreadableRecord(msgspec.Struct, frozen=True):
    """A record that this code cannot read, as far as it is told from the others, and why."""

    seq: int
    kind: str
    step: str
    attempt: int
    at_us: int
    why: str


# -- writing -------------------------------------------------------------------------------------


class Seals(Protocol):
    """Seals what is personal in what one run writes; `RunSeal` does."""

    def row(self, row: SagaRow, vault: Vault) -> SagaRow:
        """Return a row as it is stored."""
        ...

    def records(
        self,
        id: str,  # noqa: A002
        records: Sequence[SagaRecord],
        vault: Vault,
    ) -> list[SagaRecord]:
        """Return the records of a run as they are stored."""
        ...


class Part:
    """What one run adds to a batch: its start or not, and the records after number `seq`.

    `begin` is what else is to be true in the commit of a start: see `Engine.start`; `seal` seals
    what is personal in it, where anything is.
    """

    __slots__ = ("begin", "is_start", "records", "row", "seal", "seq")

    def __init__(
        self,
        row: SagaRow,
        seq: int,
        records: Sequence[SagaRecord],
        *,
        is_start: bool = False,
        begin: Callable[[Unit], Awaitable[None]] | None = None,
    ) -> None:
        self.row = row
        self.seq = seq
        self.records = records
        self.is_start = is_start
        self.begin = begin
        self.seal: Seals | None = None


async def check_owner(unit: Unit, row: SagaRow, fence: RunFence) -> None:
    """Raise `Fenced` where another engine has taken over."""
    if await fence.lost(unit):
        raise fenced(row.id)


async def extend(unit: Unit, part: Part) -> None:
    """Append the records of one run, in a unit that has checked the right to and does more.

    Raises:
        Fenced: their numbers are taken: a later record came.
    """
    try:
        await put(unit, (part,))
    except ConstraintFailed as error:
        raise fenced(part.row.id) from error


def until(nap: Nap) -> str:
    """Say until when a run sleeps."""
    return f"until {to_datetime(nap.due_us).isoformat(timespec='seconds')}"


def conflict(id: str, name: str, wanted: str) -> SagaConflict:  # noqa: A002
    """Return the error that an id belongs to another run."""
    return SagaConflict(
        f"the id {id!r} belongs to a run of saga {name!r} with another input than this start of "
        f"{wanted!r}; give each run an id of its own"
    )


async def put(unit: Unit, parts: Sequence[Part]) -> None:
    """Write all rows of these parts, one statement a table and change.

    Raises:
        ConstraintFailed: records have the numbers of others, or two starts clash.
    """
    gathered = _gather(unit, parts)
    await _write(unit, gathered)
    # Told in the same commit: one story with the events.
    await append_each(unit, gathered.milestones)


async def foretell(unit: Unit, parts: Sequence[Part], fence: RunFence) -> bool:
    """Write all rows of these parts if nothing is in their way; return False if none was written.

    Where that is not known to be told by one statement nothing is tried.
    """
    owned = fence.condition()
    if not isinstance(unit, ArrayUnit) or owned is None:
        return False
    gathered = _gather(unit, parts)
    if not gathered.is_plain:
        return False
    appends = rows_of(unit, gathered.milestones)
    unit.notify(TOPIC)
    return await tables_at_once.foretell(unit, owned, gathered.rows, appends)


def _gather(unit: Unit, parts: Sequence[Part]) -> Gathered:
    starts: list[tuple[SqlValue, ...]] = []
    rows: list[tuple[SqlValue, ...]] = []
    # What is said last of a run holds.
    sleeps: dict[str, tuple[SqlValue, ...]] = {}
    turns: dict[str, tuple[SqlValue, ...]] = {}
    taken: list[tuple[SqlValue, ...]] = []
    ends: list[tuple[SqlValue, ...]] = []
    ended: Counter[str] = Counter()
    milestones: list[tuple[str, NewEvent]] = []
    for part in parts:
        row, seq, records = part.row, part.seq, part.records
        if part.seal is not None:
            records = part.seal.records(row.id, records, unit.vault)
        if part.is_start:
            stored = row if part.seal is None else part.seal.row(row, unit.vault)
            starts.append(_values(stored))
            milestones.append(milestone(unit, row, "started", row.status))
        for record in records:
            kind, seq = record.kind, seq + 1
            rows.append((
                row.id, seq, kind._value_, record.step, record.attempt, record.digest,
                record.body, record.at_us,
            ))  # fmt: skip
            if kind is RecordKind.ENDED:
                # A completed run has the JSON of a result; one that is undone has none.
                status = SagaStatus.COMPLETED if record.body else SagaStatus.UNDONE
                ends.append((status._value_, record.body or None, record.at_us, row.id))
                ended[status._value_] += 1
                unit.notify(CONCLUDED)
                milestones.append(milestone(unit, row, "ended", status))
            elif kind in _STATUS_OF:
                status, cause = _STATUS_OF[kind], decode(record.body, SagaCause)
                turns[row.id] = (status._value_, cause.reason, None, row.id)
                unit.notify(CONCLUDED)
                told = {"who": cause.who} if cause.who else {}
                milestones.append(milestone(unit, row, kind._value_, status, cause.reason, **told))
            elif kind is RecordKind.REPAIRED:
                repair = decode(record.body, Repair)
                status, why = (
                    SagaStatus(repair.status),
                    f"{repair.verb} by {repair.who}: {repair.why}",
                )
                turns[row.id] = (repair.status, why, None, row.id)
                told = {"who": repair.who, "verb": repair.verb, "step": record.step}
                milestones.append(milestone(unit, row, "repaired", status, repair.why, **told))
            elif kind is RecordKind.ASLEEP:
                nap = decode(record.body, Nap)
                sleeps[row.id] = (until(nap), nap.awaits, nap.awaits, nap.wake_us, row.id)
                turns.pop(row.id, None)
            elif kind is RecordKind.WOKEN:
                turns[row.id] = (SagaStatus.RUNNING._value_, "", None, row.id)
                # Its number is that of what it was told.
                taken += [(record.attempt,)] if record.attempt else []
    rows_of_runs = Rows(starts, rows, ends, list(ended.items()))
    changes = (taken, list(sleeps.values()), list(turns.values()))
    return Gathered(rows_of_runs, changes, milestones)


async def _write(unit: Unit, gathered: Gathered) -> None:
    starts, records, ends, counts = gathered.rows
    changing = [*zip((_TAKE, SLEEP, _TURN), gathered.changes, strict=True)]
    if isinstance(unit, ArrayUnit) and not gathered.is_one_by_one:
        for sql, values in changing:
            if values:
                await unit.execute_many(sql, values)
        await tables_at_once.put(unit, gathered.rows)
        return
    for sql, values in (
        (_START, starts), (_RECORD, records), *changing, (_END, ends),
        (_FORGET, [(end[-1],) for end in ends]), (_COUNT, counts),
    ):  # fmt: skip
        if values:
            await unit.execute_many(sql, values)


def _values(row: SagaRow) -> tuple[SqlValue, ...]:
    return (
        row.id, row.name, row.version, row.lock_key, row.digest, row.input, row.status._value_,
        row.reason, row.owner, row.trace_id, row.span_id, row.caller,
        "" if row.principal == NOBODY else principal_text(row.principal),
        row.deadline_us, row.result, row.started_us, row.ended_us, row.shard,
    )  # fmt: skip


def milestone(
    unit: Unit, row: SagaRow, name: str, status: SagaStatus, reason: str = "", **more: str
) -> tuple[str, NewEvent]:
    """Return the event that tells of a milestone of a run, with its stream."""
    told = _Milestone(row.id, reason, row.name, status._value_)
    body = encode({**msgspec.structs.asdict(told), **more}) if more else to_json(told)
    event = NewEvent(f"{unit.service}.saga_{name}", body, trace_id=row.trace_id)
    return f"saga/{row.id}", event


async def count_ended(unit: Unit, counts: Mapping[str, int]) -> None:
    """Add to the counts of runs that have ended."""
    await unit.execute_many(_COUNT, list(counts.items()))


# -- reading -------------------------------------------------------------------------------------


async def find(store: StoreReader, id: str) -> SagaRow | None:  # noqa: A002
    """Return what is stored of a run."""
    rows = await store.read(f"select {COLUMNS} from sm_saga where id = ?", id)
    return row_of(rows[0]) if rows else None


async def count_by_status(store: StoreReader) -> dict[str, int]:
    """Return how many runs there are of each status that one has; those that ended cost nothing."""
    rows = await store.read(_COUNTED)
    return {str(status): _int(count) for status, count in rows if count}


async def latest(
    store: StoreReader, status: SagaStatus | None, limit: int
) -> list[tuple[SagaRow, int]]:
    """Return runs with the number of their records, the last started first.

    Of a status in which runs end, those that ended last.
    """
    where = "" if status is None else _OF_STATUS[status]
    at = "ended_us" if status in ENDED else "started_us"
    at = "wake_us" if status is SagaStatus.SLEEPING else at
    rows = await store.read(
        f"select {COLUMNS}, (select count(*) from sm_saga_record where saga = sm_saga.id) "
        f"from sm_saga {where} order by {at} desc, id desc limit ?",
        limit,
    )
    return [(row_of(row[:-1]), _int(row[-1])) for row in rows]


async def records(source: StoreReader, id: str) -> list[StoredRecord]:  # noqa: A002
    """Return the records of a run, in order.

    Raises:
        SagaError: one of them cannot be read; it is named, with the reason.
    """
    return in_order(id, await source.read(_RECORDS, id))


def in_order(id: str, rows: Sequence[Row]) -> list[StoredRecord]:  # noqa: A002
    """Return the records that a run's rows hold; raises as `records` does."""
    read = readable_of(rows)
    bad = next((each for each in read if isinstance(each, UnreadableRecord)), None)
    if bad is not None:
        raise unreadable(id, bad)
    stored = [each for each in read if isinstance(each, StoredRecord)]
    if stored and stored[-1].seq != len(stored):
        raise edited(id, len(stored), stored[-1].seq)
    return stored


def unreadable(id: str, bad: UnreadableRecord) -> SagaError:  # noqa: A002
    """Return the error that a record is which this code cannot read."""
    return SagaError(f"record {bad.seq} of saga {id!r} {bad.why}")


def edited(id: str, count: int, last: int) -> SagaError:  # noqa: A002
    """Return the error that it is where the last of so many records has another number."""
    return SagaError(
        f"saga {id!r} has {count} records, and the last has number {last}: the database was "
        "edited; restore a backup"
    )


async def readable(source: StoreReader, id: str) -> list[StoredRecord | UnreadableRecord]:  # noqa: A002
    """Return the records of a run, in order, with what is left of those that cannot be read."""
    return readable_of(await record_rows(source, id))


async def record_rows(source: StoreReader, id: str) -> Sequence[Row]:  # noqa: A002
    """Return the rows of a run's records, in order."""
    return await source.read(_RECORDS, id)


def readable_of(rows: Sequence[Row]) -> list[StoredRecord | UnreadableRecord]:
    """Return the records that rows hold, with what is left of those that cannot be read."""
    return [_record(row) for row in rows]


def _record(row: Row) -> StoredRecord | UnreadableRecord:
    seq, kind, step, attempt, digest, body, at_us = row
    try:
        return StoredRecord(
            _int(seq),
            SagaRecord(
                RecordKind(kind), str(step), _int(attempt), str(digest), _bytes(body), _int(at_us)
            ),
        )
    except (ValueError, TypeError) as error:
        why = (
            f"cannot be read: {error}; a newer release wrote it, or the database was edited: "
            "run that release, or restore a backup"
        )
        at = at_us if isinstance(at_us, int) else 0
        tried = attempt if isinstance(attempt, int) else 0
        return UnreadableRecord(_int(seq), str(kind), str(step), tried, at, why)


def row_of(row: Row) -> SagaRow:
    """Return a run from its columns.

    Raises:
        SagaError: this code does not know its status.
    """
    if row[6] not in _STATUSES:
        raise SagaError(
            f"saga {row[0]!r} has the status {row[6]!r}, which this code does not know; a newer "
            "release wrote it, or the database was edited: run that release, or restore a backup"
        )
    return SagaRow(
        id=str(row[0]),
        name=str(row[1]),
        version=_int(row[2]),
        lock_key=None if row[3] is None else str(row[3]),
        digest=str(row[4]),
        input=_bytes(row[5]),
        status=SagaStatus(row[6]),
        reason=str(row[7]),
        owner=str(row[8]),
        trace_id=str(row[9]),
        span_id=str(row[10]),
        caller=str(row[11]),
        principal=principal_of(str(row[12])),
        deadline_us=_int(row[13]),
        result=None if row[14] is None else _bytes(row[14]),
        started_us=_int(row[15]),
        ended_us=None if row[16] is None else _int(row[16]),
        shard=_int(row[17]),
    )


def _int(value: SqlValue) -> int:
    if not isinstance(value, int):
        raise TypeError(f"the database holds {value!r} where a whole number is expected")
    return value


def _bytes(value: SqlValue) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
