"""The state of one run: what its records make of it, whatever any code asks for."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from synchromesh.codec import decode
from synchromesh.errors import SagaError, readable
from synchromesh.saga.records import (
    PIVOT_BODY,
    REPAIRED_TO,
    STATUS_AFTER,
    STEP_STATE_AFTER,
    Ask,
    BegunAgain,
    Nap,
    RecordKind,
    Repair,
    RepairVerb,
    SagaCause,
    SagaRecord,
    SagaStatus,
    StepState,
)

_NAMED_MAX = 8


def named(steps: Iterable[str]) -> str:
    """Name steps in a message; of many the first ones, and how many there are beside.

    Example:
        >>> named(["stock.reserve#1", "bank.charge#1"]), named(map(str, range(100)))
        ('stock.reserve#1, bank.charge#1', '0, 1, 2, 3, 4, 5, 6, 7 and 92 more')
    """
    names = list(steps)
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return ", ".join(names[:_NAMED_MAX]) + more


class StepFacts(msgspec.Struct, gc=False):
    """What is known of one step, and what the code asks for under its key.

    Attributes:
        begun_us: when it first went out.
        tries: waits of this life: the backoff's exponent.
    """

    phase: StepState = StepState.NEW
    digest: str = ""
    begun_us: int = 0
    nap: Nap | None = None
    attempts: int = 0
    undo_attempts: int = 0
    result: bytes | None = None
    rejection: bytes = b""
    tries: int = 0
    ask: Ask | None = None
    order: int = 0


class RunState:
    """Holds the state of one run, folded from its records.

    Attributes:
        cause: why it turned, or is stuck.
        result: of a run that is completed, JSON.

    Example:
        >>> state = RunState()
        >>> state.apply(SagaRecord(RecordKind.BEGUN, "bank.charge#1", 1, "d", PIVOT_BODY))
        >>> state.has_no_way_back
        True
    """

    def __init__(self) -> None:
        self._steps: dict[str, StepFacts] = {}
        self._pivot = ""
        self._pivots: set[str] = set()  # one whose rejection was taken has another behind it
        self._pivot_done_us = 0
        self._turned_us = 0
        self._repaired_us = 0
        self._turned_by: SagaCause | None = None
        # How often a rejection was put aside: what is asked for anew has a key of its own.
        self._rounds: dict[str, int] = {}
        self._taken: dict[str, int] = {}
        self.status = SagaStatus.RUNNING
        self.cause = SagaCause()
        self.result = b""

    def apply(self, record: SagaRecord) -> None:
        """Take a record into the state.

        Raises:
            SagaError: it cannot follow those before it.
        """
        kind = record.kind
        if kind is RecordKind.REPAIRED:
            self._apply_repair(record)
            return
        status = STATUS_AFTER.get((self.status, kind))
        if status is None or (kind is RecordKind.TURNED and self.has_no_way_back):
            raise self._illegal(record)
        if kind is RecordKind.STUCK:
            self.cause = decode(record.body, SagaCause)
        elif kind is RecordKind.TURNED:
            self.cause = self._turned_by = decode(record.body, SagaCause)
            self._turned_us = record.at_us
        elif record.step:
            self._apply_to_step(record)
        elif kind is RecordKind.ENDED:
            self.result = record.body
        else:
            raise self._illegal(record)
        self.status = status

    def _apply_to_step(self, record: SagaRecord) -> None:
        kind, step = record.kind, self._steps.get(record.step) or self._step(record.step)
        phase = STEP_STATE_AFTER.get((step.phase, kind))
        if phase is None:
            raise self._illegal(record)
        step.phase = phase
        if kind is RecordKind.BEGUN:
            step.digest, step.attempts = record.digest, record.attempt
            step.begun_us = step.begun_us or record.at_us
            if _is_of_pivot(record.body):
                self._pivot = record.step
                self._pivots.add(record.step)
        elif kind is RecordKind.ASLEEP:
            step.digest, step.nap = record.digest, decode(record.body, Nap)
        elif kind in (RecordKind.DONE, RecordKind.WOKEN):
            step.digest, step.result = record.digest, record.body
            # What a run has slept behind its pivot is no time that its steps took.
            if record.step == self._pivot or kind is RecordKind.WOKEN:
                self._pivot_done_us = record.at_us
            if kind is RecordKind.WOKEN and record.attempt and step.nap is not None:
                self._taken[step.nap.awaits] = record.attempt
        elif kind is RecordKind.REJECTED:
            step.digest, step.rejection = record.digest, record.body
        elif kind is RecordKind.UNDO_BEGUN:
            step.undo_attempts = record.attempt

    def _apply_repair(self, record: SagaRecord) -> None:
        repair = decode(record.body, Repair)
        verb, at_us, stuck_at = RepairVerb(repair.verb), record.at_us, self.cause
        status = self.repaired_to(verb)
        if status is None or status.value != repair.status or record.step != stuck_at.step:
            raise self._illegal(record)
        if verb is RepairVerb.SKIP:
            self._settle(record, bytes(repair.result))
        elif verb is RepairVerb.RETRY:
            self._renew(stuck_at, at_us)
        else:
            if self.has_no_way_back:
                self._steps[self._pivot].phase = StepState.REJECTED
            reason = readable(f"undone by {repair.who}: {repair.why}")
            self._turned_by, self._turned_us = SagaCause(reason, who=repair.who), at_us
        self._repaired_us = at_us
        self.cause = self._turned_by or SagaCause()
        self.status = status

    def repaired_to(self, verb: RepairVerb) -> SagaStatus | None:
        """Return what a verb makes of the run, None where it has no place (see `repair.judge`)."""
        if self.status is not SagaStatus.STUCK:
            return None
        if verb is RepairVerb.SKIP and not self.cause.step:
            return None
        is_done = self.pivot_state is StepState.DONE
        if verb is RepairVerb.UNDO and is_done:
            return None
        return REPAIRED_TO.get((self.is_turned, verb))

    def _settle(self, record: SagaRecord, result: bytes) -> None:
        """Take the step at which the run is stuck as done, or undone, by hand."""
        step = self._step(record.step)
        if self.is_turned:
            step.phase = StepState.UNDONE
            return
        step.phase, step.digest, step.result = StepState.DONE, record.digest, result
        if record.step == self._pivot:
            self._pivot_done_us = record.at_us

    def _renew(self, stuck_at: SagaCause, at_us: int) -> None:
        """Put aside that the step at which the run is stuck was rejected, or is forgotten."""
        key = stuck_at.step
        step = self._steps.get(key)
        if step is None:
            return
        if stuck_at.is_rejected:
            name = f"{key}/undo" if self.is_turned else key
            self._rounds[name] = self._rounds.get(name, 0) + 1
        if step.phase is StepState.REJECTED:
            del self._steps[key]  # it had no effect
        elif stuck_at.is_forgotten:
            step.begun_us = at_us  # somebody has found out that it was not done

    def _step(self, key: str) -> StepFacts:
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = StepFacts()
        return step

    def _illegal(self, record: SagaRecord) -> SagaError:
        return SagaError(
            f"the record {record.kind.value} {record.step} cannot follow: {self!r}; the records "
            "were changed, or another engine wrote them"
        )

    @property
    def has_no_way_back(self) -> bool:
        """True from the pivot's first `begun` on, unless it is recorded as certainly not done."""
        return bool(self._pivot) and self._steps[self._pivot].phase is not StepState.REJECTED

    @property
    def pivot_state(self) -> StepState:
        """How the pivot stands; NEW where none has begun."""
        return self._steps[self._pivot].phase if self._pivot else StepState.NEW

    @property
    def pivot(self) -> str:
        """The step that is the pivot; "" while none has begun."""
        return self._pivot

    @property
    def is_turned(self) -> bool:
        """True once the run is to be undone, also while it is stuck in that."""
        return self._turned_by is not None

    def taken(self, awaits: str) -> int:
        """Return the number of the last event of a class that the run has taken; 0 for none."""
        return self._taken.get(awaits, 0)

    def states(self) -> dict[str, StepState]:
        """Return the state of each step that is recorded or asked for, in that order."""
        return {key: step.phase for key, step in self._steps.items()}

    def key_of(self, step: str) -> str:
        """Return the key under which a step, or the undo of one, goes out, within its run.

        Example:
            >>> RunState().key_of("stock.reserve#1")
            'stock.reserve#1'
        """
        asked_anew = self._rounds.get(step, 0)
        return f"{step}/{asked_anew + 1}" if asked_anew else step

    def undo_key_of(self, step: str) -> str:
        """Return the key under which the undo of a step goes out, within its run."""
        asked_anew = self._rounds.get(f"{step}/undo", 0)
        key = f"{self.key_of(step)}/undo"
        return f"{key}/{asked_anew + 1}" if asked_anew else key

    def __repr__(self) -> str:
        steps = named(f"{key}={step.phase.value}" for key, step in self._steps.items())
        return f"<{type(self).__name__} {self.status.value}{' ' if steps else ''}{steps}>"


def _is_of_pivot(body: bytes) -> bool:
    """Say of the body of a `begun` whether it is a pivot's."""
    return bool(body) and (body == PIVOT_BODY or decode(body, BegunAgain).is_pivot)
