"""What a person may do with a run, and what would become of it. It decides; it does nothing.

    the run        retry           skip                  undo                cancel
    goes on        -               -                     -                   before its pivot
    waits          -               -                     -                   before its pivot
    is stuck       if remembered   if it is at a step    before its pivot    -
      in its undo  if remembered   if it is at a step    -                   -
    has ended      -               -                     -                   -

A pivot whose outcome is unknown, and a step that nobody remembers, are for a person to look up: who
says `not_done` has looked, and answers for it.
"""

from __future__ import annotations

import msgspec

from synchromesh.codec import encode
from synchromesh.errors import ActionRefused, readable
from synchromesh.saga.records import (
    RecordKind,
    Repair,
    RepairVerb,
    SagaCause,
    SagaRecord,
    SagaStatus,
    StepState,
)
from synchromesh.saga.state import RunState

NAMED_MAX = 50


class RepairWish(msgspec.Struct, frozen=True):
    """What a person asks for, and answers for with a name.

    Attributes:
        result: of the step that was done by hand, as JSON of its type; None where it has none.
        not_done: what the run does not know was looked up: it was not done.
    """

    who: str
    why: str
    result: bytes | None = None
    not_done: bool = False


class RepairImpact(msgspec.Struct, frozen=True):
    """What one verb would do: `effects` in words, or why it is refused."""

    verb: str
    is_allowed: bool
    refused: str
    effects: tuple[str, ...]


def judge(
    state: RunState,
    id: str,  # noqa: A002
    verb: RepairVerb,
    wish: RepairWish,
    *,
    digest: str = "",
) -> SagaRecord:
    """Return the record that does what is wished.

    Args:
        digest: of the arguments that the code gives to a step that is skipped.

    Raises:
        ActionRefused: it is not safe, or has no place.
    """
    if refused := why_not(state, verb, not_done=wish.not_done):
        raise ActionRefused(f"saga {id!r}: {verb.value} is refused: {refused}")
    if verb is RepairVerb.CANCEL:
        cause = SagaCause(readable(f"cancelled: {wish.why}"), who=readable(wish.who))
        return SagaRecord(RecordKind.TURNED, body=encode(cause))
    status = state.repaired_to(verb)
    assert status is not None
    repair = Repair(
        verb.value,
        readable(wish.who),
        readable(wish.why),
        status.value,
        msgspec.Raw(wish.result or b"null"),
    )
    return SagaRecord(RecordKind.REPAIRED, state.cause.step, digest=digest, body=encode(repair))


def why_not(state: RunState, verb: RepairVerb, *, not_done: bool) -> str:
    """Return why a verb is refused; "" where it is not."""
    if verb is RepairVerb.CANCEL:
        return _why_not_cancel(state)
    if state.status is not SagaStatus.STUCK:
        if state.status in (SagaStatus.COMPLETED, SagaStatus.UNDONE):
            return f"it has ended, {state.status.value}"
        doing = "is being undone" if state.is_turned else "goes on"
        return f"it {doing} by itself; only a stuck run is repaired"
    if verb is RepairVerb.RETRY:
        return _why_not_retry(state, not_done=not_done)
    if verb is RepairVerb.SKIP:
        return "" if state.cause.step else "it is stuck at no step; mend the code, then retry"
    return _why_not_undo(state, not_done=not_done)


def _why_not_cancel(state: RunState) -> str:
    if state.status is SagaStatus.STUCK:
        return "it is stuck; undo turns a stuck run"
    if state.status is SagaStatus.COMPENSATING:
        return "it is being undone already"
    if state.status is not SagaStatus.RUNNING:
        return f"it has ended, {state.status.value}"
    return _past(state) if state.has_no_way_back else ""


def _why_not_retry(state: RunState, *, not_done: bool) -> str:
    if not state.cause.is_forgotten:
        return ""
    if state.is_turned:
        return (
            f"nobody remembers {state.cause.step}, so that its undo would do nothing and look "
            "done; undo it by hand where it stands, then skip"
        )
    if not_done:
        return ""
    return (
        f"nobody remembers {state.cause.step}, so that it would be done a second time if it was "
        "done; look: if it was not, retry with `not_done` said, if it was, skip with its result"
    )


def _why_not_undo(state: RunState, *, not_done: bool) -> str:
    if state.is_turned:
        return "it is being undone already, and is stuck in that; retry or skip"
    if state.pivot_state is StepState.DONE:
        return _past(state)
    if state.has_no_way_back and not not_done:
        return (
            f"whether its pivot {state.pivot} was done is unknown; look: if it was not, undo "
            "with `not_done` said, if it was, skip with its result"
        )
    return ""


def _past(state: RunState) -> str:
    return f"it is past its pivot {state.pivot}: there is no way back"


def impact(state: RunState, *, is_waiting: bool = False) -> list[RepairImpact]:
    """Return what each verb would do, as far as the records tell; the code knows what is undone."""
    told = []
    for verb in RepairVerb:
        refused = why_not(state, verb, not_done=False)
        effects = _effects(state, verb)
        if is_waiting and not refused:
            effects = (*effects, "none of it before code that fits is here")
        told.append(RepairImpact(verb.value, not refused, refused, () if refused else effects))
    return told


def _effects(state: RunState, verb: RepairVerb) -> tuple[str, ...]:
    step, key = state.cause.step, state.key_of(state.cause.step)
    if verb in (RepairVerb.UNDO, RepairVerb.CANCEL):
        return ("goes no further", *_undoing(state))
    if verb is RepairVerb.SKIP:
        if state.is_turned:
            return (f"takes {step} as undone by hand", *_undoing(state, but=step))
        return (f"takes {step} as done by hand, with the result that is given", "goes on behind it")
    if state.is_turned:
        return (f"asks again for the undo of {step}", *_undoing(state, but=step))
    if not step:
        return ("runs the saga function again from its records",)
    anew = " as a new call, for the last one was rejected" if state.cause.is_rejected else ""
    return (f"asks again for {step}{anew or f' under its key {key}'}", "goes on behind it")


def _undoing(state: RunState, but: str = "") -> tuple[str, ...]:
    owed = (StepState.UNKNOWN, StepState.DONE, StepState.UNDOING)
    steps = [step for step, phase in state.states().items() if phase in owed and step != but]
    if not steps:
        return ("has nothing else to undo",)
    named = steps[: -NAMED_MAX - 1 : -1]
    more = f" and {len(steps) - len(named)} more" if len(steps) > len(named) else ""
    return (f"undoes, where the code names an undo: {', '.join(named)}{more}",)
