"""The story of a run, for people: each record with its step, attempt, time and reason."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from synchromesh.codec import decode, to_datetime
from synchromesh.errors import BadRequest, SagaError
from synchromesh.saga.records import (
    RecordKind,
    Repair,
    SagaCause,
    SagaRecord,
    SagaStatus,
    StepState,
)
from synchromesh.saga.state import RunState
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
        _not_undone(_state_of(records)),
    )


def cause_of(row: SagaRow, records: Sequence[StoredRecord | UnreadableRecord]) -> SagaCause:
    """Return why a run turned or is stuck; empty where it is neither.

    Of a cause that cannot be read the reason is left, which is kept beside the records too.
    """
    state = _state_of(records)
    return state.cause if state.status is row.status else SagaCause(row.reason)


def _state_of(records: Sequence[StoredRecord | UnreadableRecord]) -> RunState:
    """Return what can be told of a run's state; what cannot be read or follow is left out."""
    state = RunState()
    for each in records:
        if isinstance(each, StoredRecord):
            with contextlib.suppress(SagaError, BadRequest, ValueError):
                state.apply(each.record)
    return state


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


def _not_undone(state: RunState) -> tuple[str, ...]:
    if not state.is_turned or state.status is SagaStatus.UNDONE:
        return ()
    owed = (StepState.UNKNOWN, StepState.DONE, StepState.UNDOING)
    return tuple(reversed([step for step, phase in state.states().items() if phase in owed]))


def _why(record: SagaRecord) -> str:
    if record.kind in (RecordKind.TURNED, RecordKind.STUCK):
        cause = decode(record.body, SagaCause)
        reason = f"{cause.step}: {cause.reason}" if cause.step else cause.reason
        return f"{reason} (by {cause.who})" if cause.who else reason
    if record.kind is RecordKind.REPAIRED:
        repair = decode(record.body, Repair)
        return f"{repair.verb} by {repair.who}: {repair.why}"
    if record.kind is RecordKind.REJECTED:
        problem = msgspec.json.decode(record.body)
        return f"{problem.get('code', '')}: {problem.get('detail', '')}"
    return ""
