"""The words of a saga: statuses, records, outcomes, decisions, and which may follow which."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

PIVOT_BODY = b'"pivot"'
"""The body of the `begun` of a pivot: the records alone tell whether there is a way back."""


class BegunAgain(msgspec.Struct, frozen=True):
    """The body of the `begun`, or `undo_begun`, of a further attempt: what ended the one before.

    Attributes:
        after: in a few words.
    """

    after: str
    is_pivot: bool = False


class _Word(Enum):
    """One of a few words; hashed as the one object that it is, for tables are looked up by it."""

    __hash__ = object.__hash__


class SagaStatus(_Word):
    """Where a run stands.

    QUEUED is said of one that was started, and for which there is no place yet. WAITING is said of
    one that would go on, were there code that fits its records: no record says so. SLEEPING is one
    that runs, and has left memory until it is due. No machine knows any of them.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMPENSATING = "compensating"
    WAITING = "waiting"
    SLEEPING = "sleeping"
    COMPLETED = "completed"
    UNDONE = "undone"
    STUCK = "stuck"


UNFINISHED = (
    SagaStatus.QUEUED,
    SagaStatus.RUNNING,
    SagaStatus.COMPENSATING,
    SagaStatus.WAITING,
)
ENDED = (SagaStatus.COMPLETED, SagaStatus.UNDONE)


class RecordKind(_Word):
    """What a record says."""

    BEGUN = "begun"
    DONE = "done"
    REJECTED = "rejected"
    ASLEEP = "asleep"
    WOKEN = "woken"
    TURNED = "turned"
    UNDO_BEGUN = "undo_begun"
    UNDONE = "undone"
    STUCK = "stuck"
    REPAIRED = "repaired"
    ENDED = "ended"


class RepairVerb(_Word):
    """What a person does with a run."""

    RETRY = "retry"  # a stuck one goes on with what it is stuck at, as if it had not been tried
    SKIP = "skip"  # what a stuck one is stuck at was done by hand
    UNDO = "undo"  # a stuck one turns
    CANCEL = "cancel"  # one that goes on turns


class StepState(_Word):
    """The state of a step; UNKNOWN has begun, and may or may not have taken effect."""

    NEW = "new"
    ASLEEP = "asleep"
    UNKNOWN = "unknown"
    DONE = "done"
    REJECTED = "rejected"
    UNDOING = "undoing"
    UNDONE = "undone"


STATUS_AFTER: dict[tuple[SagaStatus, RecordKind], SagaStatus] = {
    (SagaStatus.RUNNING, RecordKind.BEGUN): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.DONE): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.REJECTED): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.ASLEEP): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.WOKEN): SagaStatus.RUNNING,
    (SagaStatus.RUNNING, RecordKind.TURNED): SagaStatus.COMPENSATING,
    (SagaStatus.RUNNING, RecordKind.STUCK): SagaStatus.STUCK,
    (SagaStatus.RUNNING, RecordKind.ENDED): SagaStatus.COMPLETED,
    (SagaStatus.COMPENSATING, RecordKind.UNDO_BEGUN): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, RecordKind.UNDONE): SagaStatus.COMPENSATING,
    (SagaStatus.COMPENSATING, RecordKind.STUCK): SagaStatus.STUCK,
    (SagaStatus.COMPENSATING, RecordKind.ENDED): SagaStatus.UNDONE,
}

# What becomes of a stuck run, by whether it was being undone. One that turned does not turn back.
REPAIRED_TO: dict[tuple[bool, RepairVerb], SagaStatus] = {
    (False, RepairVerb.RETRY): SagaStatus.RUNNING,
    (False, RepairVerb.SKIP): SagaStatus.RUNNING,
    (False, RepairVerb.UNDO): SagaStatus.COMPENSATING,
    (True, RepairVerb.RETRY): SagaStatus.COMPENSATING,
    (True, RepairVerb.SKIP): SagaStatus.COMPENSATING,
}

# A write has no `begun` and no `undo_begun`: it commits with its own record.
STEP_STATE_AFTER: dict[tuple[StepState, RecordKind], StepState] = {
    (StepState.NEW, RecordKind.BEGUN): StepState.UNKNOWN,
    (StepState.NEW, RecordKind.DONE): StepState.DONE,
    (StepState.NEW, RecordKind.REJECTED): StepState.REJECTED,
    (StepState.NEW, RecordKind.ASLEEP): StepState.ASLEEP,
    (StepState.ASLEEP, RecordKind.WOKEN): StepState.DONE,
    (StepState.UNKNOWN, RecordKind.BEGUN): StepState.UNKNOWN,
    (StepState.UNKNOWN, RecordKind.DONE): StepState.DONE,
    (StepState.UNKNOWN, RecordKind.REJECTED): StepState.REJECTED,
    (StepState.UNKNOWN, RecordKind.UNDO_BEGUN): StepState.UNDOING,
    (StepState.DONE, RecordKind.UNDO_BEGUN): StepState.UNDOING,
    (StepState.DONE, RecordKind.UNDONE): StepState.UNDONE,
    (StepState.UNDOING, RecordKind.UNDO_BEGUN): StepState.UNDOING,
    (StepState.UNDOING, RecordKind.UNDONE): StepState.UNDONE,
}


class AttemptResult(_Word):
    """What one attempt came to."""

    ANSWERED = "answered"
    REJECTED = "rejected"  # a business no: certain, and final under the key
    NOT_RUN = "not run"  # certainly not run this time: does not use up attempts
    UNKNOWN = "unknown"  # it may have run, may run still, or never
    BROKEN = "broken"  # no later attempt will do better; not run, unless the outcome `has_run`
    NOT_OFFERED = "not offered"  # not run: this release of the callee does not know it


class Action(_Word):
    """The outcome of a decision; MISFIT: this code is not that of the run, which is left alone."""

    RETURN = "return"
    RETRY = "retry"
    TURN = "turn"
    STUCK = "stuck"
    UNDONE = "undone"
    SLEEP = "sleep"
    MISFIT = "misfit"


class SagaCause(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run turned or is stuck: for people, and the problem that a client is told.

    Attributes:
        step: at which it turned or is stuck; "" where it is at none.
        who: the person who turned it; "" where nobody did.
        is_rejected: the step, or its undo, was rejected: nothing was done under that key, and
            asking again under it changes nothing.
        is_forgotten: nobody remembers whether it was done.
    """

    reason: str = ""
    step: str = ""
    problem: dict[str, Any] | None = None
    who: str = ""
    is_rejected: bool = False
    is_forgotten: bool = False


class Repair(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a person did with a stuck run: the body of a `repaired` record.

    Attributes:
        status: what the run is from then on.
        result: of the step that was done by hand.
    """

    verb: str
    who: str
    why: str
    status: str
    result: msgspec.Raw = msgspec.Raw(b"null")


class SagaRecord(msgspec.Struct, frozen=True, gc=False):
    """One durable fact of a run; `step` is its name # ordinal, `body` JSON or empty."""

    kind: RecordKind
    step: str = ""
    attempt: int = 0
    digest: str = ""
    body: bytes = b""
    at_us: int = 0

    def at(self, at_us: int) -> SagaRecord:
        """Return the record as one of this moment."""
        return SagaRecord(self.kind, self.step, self.attempt, self.digest, self.body, at_us)


class NapAsk(msgspec.Struct, frozen=True, gc=False):
    """How long a run wants to sleep: so many seconds, or until `at_us` where that is not 0.

    `awaits` is the class of events that wake it sooner; "" where none does.
    """

    for_s: float = 0.0
    at_us: int = 0
    awaits: str = ""


class Nap(msgspec.Struct, frozen=True, gc=False):
    """When a run that sleeps is due, and when it wakes: at its deadline, where that is sooner."""

    due_us: int
    wake_us: int
    awaits: str = ""


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a step is, as far as the machine cares: its name and what tells its input.

    `attempts_max` is its own, before the pivot; None is the policy's.
    """

    name: str
    digest: str
    is_write: bool = False
    is_pivot: bool = False
    has_undo: bool = False
    is_query: bool = False
    takes: tuple[str, ...] = ()  # codes of rejections that the function takes for answers
    nap: NapAsk | None = None
    attempts_max: int | None = None


class AttemptOutcome(msgspec.Struct, frozen=True, gc=False):
    """What one attempt of a step or an undo came to.

    `body` is the answer's JSON, `problem` what a client would be told of a failure; a rejection
    `is_declared` where the contract of the operation names it. One that is broken `has_run` where
    it had its effect, and what it returned cannot be recorded.
    """

    result: AttemptResult
    body: bytes = b""
    why: str = ""
    problem: dict[str, Any] | None = None
    retry_after_s: float | None = None
    is_declared: bool = False
    has_run: bool = False


class Replay(msgspec.Struct, frozen=True, gc=False):
    """The step is recorded as done: this is its result."""

    step: str
    result: bytes


class Begin(msgspec.Struct, frozen=True, gc=False):
    """The step is to be tried; the record, if any, must be durable before."""

    step: str
    records: tuple[SagaRecord, ...]


class Halt(msgspec.Struct, frozen=True, gc=False):
    """The run is being undone: the function goes no further."""


class UndoStep(msgspec.Struct, frozen=True, gc=False):
    """The undo that is next; `result` is None where the step's outcome is unknown."""

    step: str
    result: bytes | None
    records: tuple[SagaRecord, ...]


class NextAction(msgspec.Struct, frozen=True, gc=False):
    """What follows from an outcome: the records to append, and how long to wait before a retry.

    `why` says of a MISFIT what the first difference is.
    """

    action: Action
    records: tuple[SagaRecord, ...] = ()
    delay_s: float = 0.0
    why: str = ""
