"""The words of a saga: statuses, records, outcomes, decisions, and which may follow which."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

PIVOT_BODY = b'"pivot"'
"""The body of the `begun` of a pivot: the records alone tell whether there is a way back."""


class SagaStatus(Enum):
    """Where a run stands."""

    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    UNDONE = "undone"
    STUCK = "stuck"


UNFINISHED = (SagaStatus.RUNNING, SagaStatus.COMPENSATING)


class RecordKind(Enum):
    """What a record says."""

    BEGUN = "begun"
    DONE = "done"
    REJECTED = "rejected"
    TURNED = "turned"
    UNDO_BEGUN = "undo_begun"
    UNDONE = "undone"
    STUCK = "stuck"
    ENDED = "ended"


class StepState(Enum):
    """How far a step has come; UNKNOWN is begun, and nobody knows whether it has an effect."""

    NEW = "new"
    UNKNOWN = "unknown"
    DONE = "done"
    REJECTED = "rejected"
    UNDOING = "undoing"
    UNDONE = "undone"


STATUS_AFTER: dict[tuple[SagaStatus, RecordKind], SagaStatus] = {
    (SagaStatus.RUNNING, RecordKind.BEGUN): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.DONE): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.REJECTED): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.TURNED): SagaStatus.COMPENSATING,
    (SagaStatus.RUNNING, RecordKind.STUCK): SagaStatus.STUCK,
    (SagaStatus.RUNNING, RecordKind.ENDED): SagaStatus.COMPLETED,
    (SagaStatus.COMPENSATING, RecordKind.UNDO_BEGUN): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, RecordKind.UNDONE): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, RecordKind.STUCK): SagaStatus.STUCK,
    (SagaStatus.COMPENSATING, RecordKind.ENDED): SagaStatus.UNDONE,
}

# A write has no `begun` and no `undo_begun`: it commits with its own record.
STEP_STATE_AFTER: dict[tuple[StepState, RecordKind], StepState] = {
    (StepState.NEW, RecordKind.BEGUN): StepState.UNKNOWN,
    (StepState.NEW, RecordKind.DONE): StepState.DONE,
    (StepState.NEW, RecordKind.REJECTED): StepState.REJECTED,
    (StepState.UNKNOWN, RecordKind.BEGUN): StepState.UNKNOWN,
    (StepState.UNKNOWN, RecordKind.DONE): StepState.DONE,
    (StepState.UNKNOWN, RecordKind.REJECTED): StepState.REJECTED,
    (StepState.UNKNOWN, RecordKind.UNDO_BEGUN): StepState.UNDOING,
    (StepState.DONE, RecordKind.UNDO_BEGUN): StepState.UNDOING,
    (StepState.DONE, RecordKind.UNDONE): StepState.UNDONE,
    (StepState.UNDOING, RecordKind.UNDO_BEGUN): StepState.UNDOING,
    (StepState.UNDOING, RecordKind.UNDONE): StepState.UNDONE,
}


class AttemptResult(Enum):
    """What one attempt came to."""

    ANSWERED = "answered"
    REJECTED = "rejected"  # a business no: certain, and final under the key
    NOT_RUN = "not run"  # certainly not run this time: does not use up attempts
    UNKNOWN = "unknown"  # it may have run, may run still, or never
    BROKEN = "broken"  # certainly not run, and no later attempt will do better


class Action(Enum):
    """What a decision comes to."""

    RETURN = "return"
    RETRY = "retry"
    TURN = "turn"
    STUCK = "stuck"
    UNDONE = "undone"


class SagaCause(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run turned or is stuck: for people, and the problem that a client is told."""

    reason: str = ""
    step: str = ""
    problem: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SagaRecord:
    """One durable fact of a run; `step` is its name # ordinal, `body` JSON or empty."""

    kind: RecordKind
    step: str = ""
    attempt: int = 0
    digest: str = ""
    body: bytes = b""
    at_us: int = 0


@dataclass(frozen=True, slots=True)
class Ask:
    """What a step is, as far as the machine cares: its name and what tells its input."""

    name: str
    digest: str
    is_write: bool = False
    is_pivot: bool = False
    has_undo: bool = False


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """What one attempt of a step or an undo came to.

    `body` is the answer's JSON, `problem` what a client would be told of a failure.
    """

    result: AttemptResult
    body: bytes = b""
    why: str = ""
    problem: dict[str, Any] | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Replay:
    """The step is recorded as done: this is its result."""

    step: str
    result: bytes


@dataclass(frozen=True, slots=True)
class Begin:
    """The step is to be tried; the record, if any, must be durable before."""

    step: str
    records: tuple[SagaRecord, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """The run is being undone: the function goes no further."""


@dataclass(frozen=True, slots=True)
class UndoStep:
    """The undo that is next; `result` is None where the step's outcome is unknown."""

    step: str
    result: bytes | None
    records: tuple[SagaRecord, ...]


@dataclass(frozen=True, slots=True)
class NextAction:
    """What follows from an outcome: the records to append, and how long to wait before a retry."""

    action: Action
    records: tuple[SagaRecord, ...] = ()
    delay_s: float = 0.0
