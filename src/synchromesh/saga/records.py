"""The words of a saga: statuses, records, outcomes, decisions, and which may follow which."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

PIVOT_BODY = b'"pivot"'
"""The body of the `begun` of a pivot: the records alone tell whether there is a way back."""


class Status(Enum):
    """Where a run stands."""

    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    UNDONE = "undone"
    STUCK = "stuck"


UNFINISHED = (Status.RUNNING, Status.COMPENSATING)


class Kind(Enum):
    """What a record says."""

    BEGUN = "begun"
    DONE = "done"
    REFUSED = "refused"
    TURNED = "turned"
    UNDO_BEGUN = "undo_begun"
    UNDONE = "undone"
    STUCK = "stuck"
    ENDED = "ended"


class Phase(Enum):
    """How far a step has come; UNKNOWN is begun, and nobody knows whether it has an effect."""

    NEW = "new"
    UNKNOWN = "unknown"
    DONE = "done"
    REFUSED = "refused"
    UNDOING = "undoing"
    UNDONE = "undone"


STATUS_AFTER: dict[tuple[Status, Kind], Status] = {
    (Status.RUNNING, Kind.BEGUN): Status.RUNNING,
    (Status.RUNNING, Kind.DONE): Status.RUNNING,
    (Status.RUNNING, Kind.REFUSED): Status.RUNNING,
    (Status.RUNNING, Kind.TURNED): Status.COMPENSATING,
    (Status.RUNNING, Kind.STUCK): Status.STUCK,
    (Status.RUNNING, Kind.ENDED): Status.COMPLETED,
    (Status.COMPENSATING, Kind.UNDO_BEGUN): Status.COMPENSATING,
    (Status.COMPENSATING, Kind.UNDONE): Status.COMPENSATING,
    (Status.COMPENSATING, Kind.STUCK): Status.STUCK,
    (Status.COMPENSATING, Kind.ENDED): Status.UNDONE,
}

# A write has no `begun` and no `undo_begun`: it commits with its own record.
PHASE_AFTER: dict[tuple[Phase, Kind], Phase] = {
    (Phase.NEW, Kind.BEGUN): Phase.UNKNOWN,
    (Phase.NEW, Kind.DONE): Phase.DONE,
    (Phase.NEW, Kind.REFUSED): Phase.REFUSED,
    (Phase.UNKNOWN, Kind.BEGUN): Phase.UNKNOWN,
    (Phase.UNKNOWN, Kind.DONE): Phase.DONE,
    (Phase.UNKNOWN, Kind.REFUSED): Phase.REFUSED,
    (Phase.UNKNOWN, Kind.UNDO_BEGUN): Phase.UNDOING,
    (Phase.DONE, Kind.UNDO_BEGUN): Phase.UNDOING,
    (Phase.DONE, Kind.UNDONE): Phase.UNDONE,
    (Phase.UNDOING, Kind.UNDO_BEGUN): Phase.UNDOING,
    (Phase.UNDOING, Kind.UNDONE): Phase.UNDONE,
}


class Result(Enum):
    """What one attempt came to."""

    ANSWERED = "answered"
    REFUSED = "refused"  # a business no: certain, and final under the key
    NOT_RUN = "not run"  # certainly not run this time: does not use up attempts
    UNKNOWN = "unknown"  # it may have run, may run still, or never
    BROKEN = "broken"  # certainly not run, and no later attempt will do better


class Verdict(Enum):
    """What a decision comes to."""

    RETURN = "return"
    RETRY = "retry"
    TURN = "turn"
    STUCK = "stuck"
    UNDONE = "undone"


class Cause(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a run turned or is stuck: for people, and the problem that a client is told."""

    reason: str = ""
    step: str = ""
    problem: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """One durable fact of a run; `step` is its name # ordinal, `body` JSON or empty."""

    kind: Kind
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
class Outcome:
    """What one attempt of a step or an undo came to.

    `body` is the answer's JSON, `problem` what a client would be told of a failure.
    """

    result: Result
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
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Halt:
    """The run is being undone: the function goes no further."""


@dataclass(frozen=True, slots=True)
class UndoStep:
    """The undo that is next; `result` is None where the step's outcome is unknown."""

    step: str
    result: bytes | None
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from an outcome: the records to append, and how long to wait before a retry."""

    verdict: Verdict
    records: tuple[Record, ...] = ()
    delay_s: float = 0.0
