"""The story of a run, for people: each record with its step, attempt, time and reason."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from synchromesh.codec import decode, to_datetime
from synchromesh.errors import BadRequest
from synchromesh.saga.records import RecordKind, SagaCause, SagaRecord
from synchromesh.saga.tables import SagaRow, StoredRecord, UnreadableRecord


@dataclass(frozen=True, slots=True)
class SagaSummary:
    """What one line of a list says of a run; `ended_at` is None while it has not ended."""

    id: str
    name: str
    version: int
    status: str
    reason: str
    owner: str
    trace_id: str
    started_at: dt.datetime
    ended_at: dt.datetime | None
    records: int


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One record: what happened to which step, at which attempt, when and why."""

    at: dt.datetime
    kind: str
    step: str
    attempt: int
    why: str


@dataclass(frozen=True, slots=True)
class SagaHistory:
    """All that is recorded of a run.

    `not_undone` names the steps of a turned run that are done or unknown and not undone, the latest
    first: a stuck run hides none of them (S5).
    """

    summary: SagaSummary
    lines: tuple[HistoryEntry, ...]
    not_undone: tuple[str, ...]


def summarize(row: SagaRow, records: int) -> SagaSummary:
    """Return the summary of a run."""
    return SagaSummary(
        id=row.id,
        name=row.name,
        version=row.version,
        status=row.status.value,
        reason=row.reason,
        owner=row.owner,
        trace_id=row.trace_id,
        started_at=to_datetime(row.started_us),
        ended_at=None if row.ended_us is None else to_datetime(row.ended_us),
        records=records,
    )


def tell(row: SagaRow, records: Sequence[StoredRecord | UnreadableRecord]) -> SagaHistory:
    """Return the story that the records of a run tell; one that cannot be read says so."""
    return SagaHistory(
        summarize(row, len(records)),
        tuple(_line(each) for each in records),
        _not_undone([each.record for each in records if isinstance(each, StoredRecord)]),
    )


def cause_of(row: SagaRow, records: Sequence[StoredRecord | UnreadableRecord]) -> SagaCause:
    """Return why a run turned or is stuck; empty where it is neither.

    Of a cause that cannot be read the reason is left, which is kept beside the records too.
    """
    for each in reversed(records):
        record = each.record if isinstance(each, StoredRecord) else None
        if record is not None and record.kind in (RecordKind.TURNED, RecordKind.STUCK):
            try:
                return decode(record.body, SagaCause)
            except BadRequest:
                break
    return SagaCause(row.reason)


def _line(stored: StoredRecord | UnreadableRecord) -> HistoryEntry:
    if isinstance(stored, UnreadableRecord):
        at = to_datetime(stored.at_us)
        return HistoryEntry(at, stored.kind, stored.step, stored.attempt, stored.why)
    record = stored.record
    try:
        why = _why(record)
    except (BadRequest, msgspec.DecodeError, AttributeError) as error:
        why = f"cannot be read: {error}"
    return HistoryEntry(
        to_datetime(record.at_us), record.kind.value, record.step, record.attempt, why
    )


def _not_undone(records: Sequence[SagaRecord]) -> tuple[str, ...]:
    begun: dict[str, None] = {}
    is_turned = False
    for record in records:
        if record.kind in (RecordKind.BEGUN, RecordKind.DONE):
            begun[record.step] = None
        elif record.kind in (RecordKind.REJECTED, RecordKind.UNDONE):
            begun.pop(record.step, None)
        elif record.kind is RecordKind.TURNED:
            is_turned = True
    ended = bool(records) and records[-1].kind is RecordKind.ENDED
    return tuple(reversed(begun)) if is_turned and not ended else ()


def _why(record: SagaRecord) -> str:
    if record.kind in (RecordKind.TURNED, RecordKind.STUCK):
        cause = decode(record.body, SagaCause)
        return f"{cause.step}: {cause.reason}" if cause.step else cause.reason
    if record.kind is RecordKind.REJECTED:
        problem = msgspec.json.decode(record.body)
        return f"{problem.get('code', '')}: {problem.get('detail', '')}"
    return ""
