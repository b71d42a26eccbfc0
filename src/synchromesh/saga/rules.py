"""What follows from an attempt of a step or an undo, by where it stands and what it came to."""

from __future__ import annotations

from enum import Enum

from synchromesh.saga.records import AttemptResult


class Zone(Enum):
    """Where a step stands to the point of no return."""

    __hash__ = object.__hash__  # as the words of `records` are hashed

    BEFORE = "before"
    PIVOT = "pivot"
    AFTER = "after"


class StepRule(Enum):
    """What follows from an attempt."""

    RETURN = "return"
    TURN = "turn"
    STUCK = "stuck"
    AGAIN = "again until the zone's bound, then give up"
    GIVE_UP = "turn where nothing can have happened past the pivot, else stuck"


RULES: dict[tuple[Zone, AttemptResult], StepRule] = {
    (Zone.BEFORE, AttemptResult.ANSWERED): StepRule.RETURN,
    (Zone.BEFORE, AttemptResult.REJECTED): StepRule.TURN,
    (Zone.BEFORE, AttemptResult.NOT_RUN): StepRule.AGAIN,
    (Zone.BEFORE, AttemptResult.UNKNOWN): StepRule.AGAIN,
    (Zone.BEFORE, AttemptResult.BROKEN): StepRule.TURN,
    (Zone.BEFORE, AttemptResult.NOT_OFFERED): StepRule.TURN,
    (Zone.PIVOT, AttemptResult.ANSWERED): StepRule.RETURN,
    (Zone.PIVOT, AttemptResult.REJECTED): StepRule.TURN,
    (Zone.PIVOT, AttemptResult.NOT_RUN): StepRule.AGAIN,
    (Zone.PIVOT, AttemptResult.UNKNOWN): StepRule.AGAIN,
    (Zone.PIVOT, AttemptResult.BROKEN): StepRule.GIVE_UP,
    # Unless an earlier attempt may have run, it turns at once: `SagaMachine` leaves it no time.
    (Zone.PIVOT, AttemptResult.NOT_OFFERED): StepRule.AGAIN,
    (Zone.AFTER, AttemptResult.ANSWERED): StepRule.RETURN,
    (Zone.AFTER, AttemptResult.REJECTED): StepRule.STUCK,
    (Zone.AFTER, AttemptResult.NOT_RUN): StepRule.AGAIN,
    (Zone.AFTER, AttemptResult.UNKNOWN): StepRule.AGAIN,
    (Zone.AFTER, AttemptResult.BROKEN): StepRule.STUCK,
    # Where there is no way back, the release that knows it is waited for: a callee that is taken
    # back, or replaced after its caller, needs no person.
    (Zone.AFTER, AttemptResult.NOT_OFFERED): StepRule.AGAIN,
}

UNDO_RULES: dict[AttemptResult, StepRule] = {
    AttemptResult.ANSWERED: StepRule.RETURN,
    AttemptResult.REJECTED: StepRule.STUCK,
    AttemptResult.NOT_RUN: StepRule.AGAIN,
    AttemptResult.UNKNOWN: StepRule.AGAIN,
    AttemptResult.BROKEN: StepRule.STUCK,
    AttemptResult.NOT_OFFERED: StepRule.AGAIN,
}
