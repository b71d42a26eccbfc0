"""The story of a run, for people: each record with its step, attempt, time and reason."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from synchromesh.codec import decode, to_datetime
from synchromesh.errors import BadRequest, SagaError
from synchromesh.saga.records import (
    PIVOT_BODY,
    BegunAgain,
    RecordKind,
    Repair,
    SagaCause,
    SagaRecord,
    SagaStatus,
    StepState,
)
from synchromesh.saga.repair import RepairImpact, impact
from synchromesh.saga.state import RunState
from synchromesh.saga.tables import SagaRow, StoredRecord, UnreadableRecord, edited, unreadable

# Their bodies are what a step gave.
_ANSWERS = (RecordKind.DONE, RecordKind.WOKEN)
# What a record that cannot follow those before it raises.
_ODD = (SagaError, BadRequest, ValueError)


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
class SagaPayloads:
    """What a run was given and gave, as JSON as it is stored: what is personal in it is sealed.

    Attributes:
        result: "" while it has none.
        steps: what each line's step gave; "" for a line that is about something else.
    """

    input: str
    result: str
    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SagaHistory:
    """All that is recorded of a run.

    `not_undone` names the steps of a turned run that are done or unknown and not undone, the latest
    first: a stuck run hides none of them (S5).
    """

    summary: SagaSummary
    lines: tuple[HistoryEntry, ...]
    not_undone: tuple[str, ...]
    payloads: SagaPayloads


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
    teller = SagaTeller(row)
    teller.take(records)
    return teller.history()


class SagaTeller:
    """Tells the story of a run, of which it may be given the records in parts.

    Args:
        lines_max: how many records have a line, the newest; None is all of them.
    """

    def __init__(self, row: SagaRow, lines_max: int | None = None) -> None:
        self._row = row
        self._records = self._last = 0
        self._state = RunState()
        self._fault: Exception | None = None
        self._newest: deque[StoredRecord | UnreadableRecord] = deque(maxlen=lines_max)
        self._result = b""

    def take(self, records: Sequence[StoredRecord | UnreadableRecord]) -> None:
        """Take the next records."""
        self._records += len(records)
        self._newest += records
        for each in records:
            self._last = each.seq
            if isinstance(each, UnreadableRecord):
                self._fault = self._fault or unreadable(self._row.id, each)
                continue
            if each.record.kind is RecordKind.ENDED:
                self._result = each.record.body
            try:
                self._state.apply(each.record)
            except _ODD as error:
                self._fault = self._fault or error

    def history(self) -> SagaHistory:
        """Return the story of what was taken."""
        row = self._row
        return SagaHistory(
            summarize(row, self._records),
            tuple(map(_line, self._newest)),
            _not_undone(self._state),
            SagaPayloads(_text(row.input), _text(self._result), tuple(map(_given, self._newest))),
        )

    def impacts(self) -> list[RepairImpact]:
        """Return what each verb of a person would do with the run.

        Raises:
            SagaError, BadRequest, ValueError: not all of its records can be read and followed.
        """
        if self._fault is not None:
            raise self._fault
        if self._records != self._last:
            raise edited(self._row.id, self._records, self._last)
        return impact(self._state, is_waiting=self._row.status is SagaStatus.WAITING)

    def __repr__(self) -> str:
        return f"<SagaTeller of {self._row.id}, {self._records} records>"


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
            with contextlib.suppress(*_ODD):
                state.apply(each.record)
    return state


def _given(stored: StoredRecord | UnreadableRecord) -> str:
    """Return what the step of a record gave."""
    if isinstance(stored, UnreadableRecord) or stored.record.kind not in _ANSWERS:
        return ""
    return _text(stored.record.body)


def _text(body: bytes) -> str:
    return body.decode(errors="replace")


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
    if record.kind in (RecordKind.BEGUN, RecordKind.UNDO_BEGUN):
        is_again = record.body not in (b"", PIVOT_BODY)
        return f"after {decode(record.body, BegunAgain).after}" if is_again else ""
    if record.kind is RecordKind.REPAIRED:
        repair = decode(record.body, Repair)
        return f"{repair.verb} by {repair.who}: {repair.why}"
    if record.kind is RecordKind.REJECTED:
        problem = msgspec.json.decode(record.body)
        return f"{problem.get('code', '')}: {problem.get('detail', '')}"
    return ""
