"""The machine of one run: what its records mean, and what may follow.

    running ──turned──▶ compensating ──ended──▶ undone
       │ └───stuck──▶ stuck ◀──stuck──┘
       └──ended──▶ completed

    stuck ──repaired (retry, skip)──▶ whence it came
    stuck ──repaired (undo)──▶ compensating

A run is its records. `apply` folds them; the other methods ask what to do and change nothing that
is recorded: the shell appends the records of a `NextAction` and applies them. Once its pivot has
begun a run does not turn, unless the pivot was certainly not done: refused, or never run.

What was asked is asked again, or undone, for as long as those who were asked remember it. Past that
nobody can tell what became of it: the run is stuck (S6).

Code that does not ask for what is recorded is not the code of the run: nothing is decided then, and
no record says so (S11).

Source: Garcia-Molina & Salem, "Sagas", SIGMOD 1987; the pivot is Richardson's, *Microservices
Patterns*, chapter 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from synchromesh.chance import Chance
from synchromesh.codec import decode, encode
from synchromesh.errors import SagaError, readable
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.records import (
    PIVOT_BODY,
    Action,
    Ask,
    AttemptOutcome,
    AttemptResult,
    Begin,
    BegunAgain,
    Halt,
    Nap,
    NapAsk,
    NextAction,
    RecordKind,
    Replay,
    SagaCause,
    SagaRecord,
    SagaStatus,
    StepState,
    UndoStep,
)
from synchromesh.saga.rules import RULES, UNDO_RULES, StepRule, Zone
from synchromesh.saga.state import RunState, StepFacts, named

# A process that comes back after a long time may be the first of those that it needs.
RETURN_GRACE_S = 60.0
# What is kept of why an attempt came to nothing.
AFTER_CHARS_MAX = 200

# A further attempt after these is recorded, with what ended the one before it.
_TOLD = (AttemptResult.UNKNOWN, AttemptResult.NOT_OFFERED)


class SagaMachine(RunState):
    """Decides what one run does next, from the state that its records make.

    Args:
        policy: how patient it is.
        deadline_us: the wall clock at which a run before its pivot turns.
        recovered_us: when the process came back that continues the run, 0 for a new run; for a
            minute from then a step that cannot turn is asked again, however long it was down.
        keep_s: how long those who are asked under a key remember it.

    Example:
        >>> machine = SagaMachine(SagaPolicy(), deadline_us=9)
        >>> machine.register([Ask("stock.reserve", "d")])
        ['stock.reserve#1']
        >>> machine.apply(SagaRecord(RecordKind.BEGUN, "stock.reserve#1", 1, "d"))
        >>> machine.apply(SagaRecord(RecordKind.DONE, "stock.reserve#1", 1, "d", b"7"))
        >>> machine
        <SagaMachine running stock.reserve#1=done>
    """

    def __init__(
        self,
        policy: SagaPolicy,
        *,
        deadline_us: int,
        recovered_us: int = 0,
        keep_s: float = math.inf,
    ) -> None:
        super().__init__()
        self._policy = policy
        self._keep_us = keep_s * 1e6
        self._grace_until_us = recovered_us + int(RETURN_GRACE_S * 1e6) if recovered_us else 0
        self._deadline_us = deadline_us
        self._ordinals: dict[str, int] = {}
        self._asked = 0
        self._owed: list[str] | None = None  # what is to be undone, the next one last

    # -- forward ---------------------------------------------------------------------------------

    def register(self, asks: Sequence[Ask]) -> list[str]:
        """Return the keys, name # ordinal, of the steps that the function asks for at once."""
        # In the usual case without the frame of a comprehension.
        return [self._register(asks[0])] if len(asks) == 1 else [*map(self._register, asks)]

    def on_ask(
        self, keys: Sequence[str], *, now_us: int
    ) -> list[Replay | Begin] | NextAction | Halt:
        """Say what becomes of steps that were registered together.

        A `NextAction` is MISFIT where they are not those recorded (S11), TURN past the deadline,
        and either TURN or STUCK where nobody remembers one that may have been done.
        """
        known = self._steps
        steps = [known[keys[0]]] if len(keys) == 1 else [known[key] for key in keys]
        if (
            len(steps) == 1
            and steps[0].phase is StepState.NEW
            and self._asked == len(self._steps)
            and self.status is SagaStatus.RUNNING
            and (now_us < self._deadline_us or self.has_no_way_back)
        ):
            # The usual case: none of what is asked below can be so of one step that is new.
            return [self._start(keys[0], steps[0], now_us)]
        for key, step in zip(keys, steps, strict=True):
            if step.phase is not StepState.NEW and (changed := self._changed(key, step)):
                return self.misfit(changed)
        # One that was undone meanwhile still leads the function to those that are not.
        if all(step.result is not None or _is_taken(step) for step in steps):
            return [Replay(k, s.result or b"") for k, s in zip(keys, steps, strict=True)]
        unasked = self.unasked()
        if unasked:
            first = unasked.partition(", ")[0]
            return self.misfit(f"the code asks for {named(keys)} where {first} is recorded")
        if self.status is not SagaStatus.RUNNING:
            return Halt()
        if not self.has_no_way_back and now_us >= self._deadline_us:
            return self.turn("its deadline passed")
        for key, step in zip(keys, steps, strict=True):
            if step.phase is StepState.UNKNOWN and (why := self._forgotten(key, step, now_us)):
                return self._give_up_forgotten(key, why)
        return [self._start(key, step, now_us) for key, step in zip(keys, steps, strict=True)]

    def _register(self, ask: Ask) -> str:
        ordinal = self._ordinals[ask.name] = self._ordinals.get(ask.name, 0) + 1
        key = f"{ask.name}#{ordinal}"
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = StepFacts()
        self._asked += 1
        step.ask, step.order = ask, self._asked
        return key

    @property
    def _is_over(self) -> bool:
        """True where a rejection may stand that nobody took: the run turned, or is stuck, at it."""
        return self.status is not SagaStatus.RUNNING

    def _changed(self, key: str, step: StepFacts) -> str:
        ask = _ask_of(step)
        if step.digest != ask.digest:
            return (
                f"step {key} is recorded with other arguments (digest {step.digest}) than the "
                f"code gives (digest {ask.digest})"
            )
        if step.phase is StepState.REJECTED and not _is_taken(step) and not self._is_over:
            return f"step {key} is recorded as refused, which the code does not take for an answer"
        if key in self._pivots and not ask.is_pivot:
            return f"step {key} is no longer the pivot"
        if ask.is_pivot and not self._pivots and not ask.is_write:
            return f"step {key} is now the pivot"
        return ""

    def _start(self, key: str, step: StepFacts, now_us: int) -> Replay | Begin:
        ask = step.ask or _ask_of(step)
        if step.phase is not StepState.NEW and (step.phase is StepState.DONE or _is_taken(step)):
            return Replay(key, step.result or b"")
        if ask.nap is not None:
            nap = () if step.phase is StepState.ASLEEP else (self._asleep(key, ask.nap, now_us),)
            return Begin(key, nap)
        # One that is begun already was in flight when the process died: a further attempt.
        return Begin(key, () if ask.is_write else (self._begun(key, step),))

    def _asleep(self, key: str, nap: NapAsk, now_us: int) -> SagaRecord:
        due_us = nap.at_us or now_us + int(nap.for_s * 1e6)
        wake_us = due_us if self.has_no_way_back else min(due_us, self._deadline_us)
        body = encode(Nap(due_us, wake_us, nap.awaits))
        return SagaRecord(
            RecordKind.ASLEEP, key, digest=_ask_of(self._steps[key]).digest, body=body
        )

    def nap_of(self, key: str) -> Nap:
        """Return when a step that sleeps is due."""
        nap = self._steps[key].nap
        if nap is None:
            raise SagaError(f"step {key} does not sleep")
        return nap

    def on_wake(
        self, key: str, *, now_us: int, told: tuple[int, bytes] | None = None
    ) -> NextAction:
        """Decide what follows for a run at a step that sleeps; SLEEP where it is not due yet.

        `told` is what it sleeps for, with its number: what came in time counts, however late it is.
        """
        nap, digest = self.nap_of(key), _ask_of(self._steps[key]).digest
        if told is not None:
            seq, event = told
            woken = SagaRecord(RecordKind.WOKEN, key, seq, digest, b"[%s]" % event)
            return NextAction(Action.RETURN, (woken,))
        if now_us >= nap.due_us:
            woken = SagaRecord(RecordKind.WOKEN, key, digest=digest, body=b"null")
            return NextAction(Action.RETURN, (woken,))
        if not self.has_no_way_back and now_us >= self._deadline_us:
            return self.turn("its deadline passed")
        return NextAction(Action.SLEEP)

    def _begun(self, key: str, step: StepFacts, after: str = "") -> SagaRecord:
        ask = step.ask or _ask_of(step)
        # Behind a pivot that may have been done another one is a step like others.
        is_pivot = ask.is_pivot and (key in self._pivots or not self.has_no_way_back)
        body = PIVOT_BODY if is_pivot else b""
        if after:
            body = encode(BegunAgain(after[:AFTER_CHARS_MAX], is_pivot))
        return SagaRecord(RecordKind.BEGUN, key, step.attempts + 1, ask.digest, body)

    def unasked(self) -> str:
        """Name the recorded steps that the function has not asked for; "" where there is none."""
        if self._asked == len(self._steps):
            return ""  # each has a key of its own
        return named(key for key, step in self._steps.items() if step.ask is None)

    def result_of(self, key: str) -> bytes:
        """Return the recorded result of a step that is done."""
        return self._steps[key].result or b""

    def rejection_of(self, key: str) -> bytes:
        """Return the problem of a rejection that the function takes for an answer; b"" for none."""
        step = self._steps[key]
        return step.rejection if step.rejection and _is_taken(step) else b""

    def done(self, key: str, result: bytes) -> SagaRecord:
        """Return the record that a step was answered."""
        step = self._steps[key]
        ask = step.ask or _ask_of(step)
        return SagaRecord(RecordKind.DONE, key, step.attempts, ask.digest, result)

    def on_outcome(
        self, key: str, outcome: AttemptOutcome, *, now_us: int, rng: Chance
    ) -> NextAction:
        """Decide what follows from an attempt of a step."""
        step = self._steps[key]
        if outcome.result is AttemptResult.ANSWERED:
            # Alike in all zones, as `RULES` says. A write has committed its record itself.
            is_recorded = step.phase is StepState.DONE
            return NextAction(Action.RETURN, () if is_recorded else (self.done(key, outcome.body),))
        zone = self._zone(key)
        if outcome.result is AttemptResult.UNKNOWN and _ask_of(step).is_write:
            step.attempts += 1
        if outcome.is_declared and _code_of(outcome.problem) in _ask_of(step).takes:
            return NextAction(Action.RETURN, (self._rejected(key, step, outcome),))
        rule = RULES[zone, outcome.result]
        if rule is StepRule.AGAIN:
            if why := self._forgotten(key, step, now_us):
                return self._give_up_forgotten(key, why)
            left_s = self._left_s(zone, step, outcome, now_us)
            if left_s > 0:
                return self._again(key, step, outcome, left_s, rng)
            rule = StepRule.GIVE_UP
        return self._fail(key, step, zone, rule, outcome)

    def _zone(self, key: str) -> Zone:
        if key == self._pivot:
            return Zone.PIVOT
        return Zone.AFTER if self.has_no_way_back else Zone.BEFORE

    def _forgotten(self, key: str, step: StepFacts, now_us: int) -> str:
        """Say that nobody can tell any more what became of a step; "" where somebody can.

        A write is in our own records, and a query has no effect.
        """
        if not step.begun_us or _ask_of(step).is_query or now_us - step.begun_us < self._keep_us:
            return ""
        return (
            f"{key} first went out {(now_us - step.begun_us) / 86.4e9:.1f} days ago, and what was "
            f"done under its key is remembered for {self._keep_us / 86.4e9:.1f}: nobody can tell "
            "any more whether it was done"
        )

    def _give_up_forgotten(self, key: str, why: str) -> NextAction:
        if self._zone(key) is Zone.BEFORE:
            return self.turn(why, key)
        return self.stick(why, key, is_forgotten=True)

    def _left_s(self, zone: Zone, step: StepFacts, outcome: AttemptOutcome, now_us: int) -> float:
        if zone is Zone.AFTER:
            limit_us = self._pivot_done_us + int(self._policy.after_pivot_deadline_s * 1e6)
            return (max(limit_us, self._anew_until_us) - now_us) / 1e6
        is_spent = step.attempts >= (_ask_of(step).attempts_max or self._policy.attempts_max)
        if zone is Zone.BEFORE and outcome.result is AttemptResult.UNKNOWN and is_spent:
            return 0.0
        # A pivot that may have run before cannot turn any more.
        is_doubtful = zone is Zone.PIVOT and step.attempts > 1
        if outcome.result is AttemptResult.NOT_OFFERED and not is_doubtful:
            return 0.0
        limit_us = max(self._deadline_us, self._anew_until_us if is_doubtful else 0)
        return (limit_us - now_us) / 1e6

    @property
    def _anew_until_us(self) -> int:
        """Until when that is asked again which cannot turn, after a return or a repair."""
        if not self._repaired_us:
            return self._grace_until_us
        repaired_us = self._repaired_us + int(self._policy.after_pivot_deadline_s * 1e6)
        return max(self._grace_until_us, repaired_us)

    def _again(
        self, key: str, step: StepFacts, outcome: AttemptOutcome, left_s: float, rng: Chance
    ) -> NextAction:
        is_counted = outcome.result in _TOLD and not _ask_of(step).is_write
        records = (self._begun(key, step, outcome.why),) if is_counted else ()
        return NextAction(Action.RETRY, records, min(left_s, self._wait_s(step, outcome, rng)))

    def _wait_s(self, step: StepFacts, outcome: AttemptOutcome, rng: Chance) -> float:
        step.tries += 1
        return max(self._policy.backoff.backoff_s(step.tries, rng), outcome.retry_after_s or 0.0)

    def _fail(
        self, key: str, step: StepFacts, zone: Zone, rule: StepRule, outcome: AttemptOutcome
    ) -> NextAction:
        # A pivot's first attempt that was not run leaves no doubt; a later one does not speak for
        # those before it.
        is_unrun = outcome.result is not AttemptResult.UNKNOWN and not outcome.has_run
        is_certain = outcome.result is AttemptResult.REJECTED or (is_unrun and step.attempts <= 1)
        has_way_back = zone is Zone.BEFORE or (zone is Zone.PIVOT and is_certain)
        if rule is StepRule.STUCK or not has_way_back:
            records = (self._rejected(key, step, outcome),) if _is_no(outcome) else ()
            stuck = self.stick(
                f"{outcome.result.value}: {outcome.why}", key, is_rejected=_is_no(outcome)
            )
            return NextAction(stuck.action, records + stuck.records)
        turned = self.turn(f"{outcome.result.value}: {outcome.why}", key, outcome.problem)
        if _is_no(outcome) or zone is Zone.PIVOT:
            rejected = self._rejected(key, step, outcome)
            return NextAction(turned.action, (rejected, *turned.records))
        return turned

    def _rejected(self, key: str, step: StepFacts, outcome: AttemptOutcome) -> SagaRecord:
        body = encode(outcome.problem or {})
        return SagaRecord(RecordKind.REJECTED, key, step.attempts, _ask_of(step).digest, body)

    def turn(
        self, reason: str, step: str = "", problem: dict[str, Any] | None = None, who: str = ""
    ) -> NextAction:
        """Return the decision to undo the run, whatever is thought of its pivot."""
        body = encode(SagaCause(readable(reason), step, problem, readable(who)))
        return NextAction(Action.TURN, (SagaRecord(RecordKind.TURNED, body=body),))

    def stick(
        self, reason: str, step: str = "", *, is_rejected: bool = False, is_forgotten: bool = False
    ) -> NextAction:
        """Return the decision that the run needs a person."""
        cause = SagaCause(
            readable(reason), step, is_rejected=is_rejected, is_forgotten=is_forgotten
        )
        return NextAction(Action.STUCK, (SagaRecord(RecordKind.STUCK, body=encode(cause)),))

    def misfit(self, why: str) -> NextAction:
        """Return that this code is not the run's: nothing is decided."""
        return NextAction(Action.MISFIT, why=readable(why))

    def on_raise(self, reason: str, problem: dict[str, Any] | None = None) -> NextAction:
        """Decide what follows where the function itself ends without a result."""
        unasked = self.unasked()
        if unasked:
            return self.misfit(
                f"{reason}, and the code never asks for {unasked}, which is recorded"
            )
        return self.stick(reason) if self.has_no_way_back else self.turn(reason, "", problem)

    def on_return(self, result: bytes) -> NextAction:
        """Decide what follows where the function returns."""
        unasked = self.unasked()
        if unasked:
            return self.misfit(f"the code ends without {unasked}, which is recorded")
        return NextAction(Action.RETURN, (SagaRecord(RecordKind.ENDED, body=result),))

    # -- backward --------------------------------------------------------------------------------

    def next_undo(self, *, now_us: int = 0) -> UndoStep | NextAction | None:
        """Return the undo that is next, the latest asked step first; None where all is undone.

        A `NextAction` is STUCK: nobody remembers what there is to undo.
        """
        if self._owed is None:
            self._owed = sorted(
                (
                    key
                    for key, step in self._steps.items()
                    if step.phase in (StepState.UNKNOWN, StepState.DONE, StepState.UNDOING)
                    and step.ask is not None
                    and step.ask.has_undo
                ),
                key=lambda key: self._steps[key].order,
            )
        # No other step is done or begun from the turn on: none joins them.
        while self._owed and self._steps[self._owed[-1]].phase is StepState.UNDONE:
            self._owed.pop()
        if not self._owed:
            return None
        key = self._owed[-1]
        step = self._steps[key]
        ask = _ask_of(step)
        if why := self._forgotten(key, step, now_us):
            return self.stick(f"its undo: {why}", key, is_forgotten=True)
        records = () if ask.is_write else (self._undo_begun(key, step),)
        return UndoStep(key, step.result, records)

    def _undo_begun(self, key: str, step: StepFacts, after: str = "") -> SagaRecord:
        body = encode(BegunAgain(after[:AFTER_CHARS_MAX])) if after else b""
        return SagaRecord(RecordKind.UNDO_BEGUN, key, step.undo_attempts + 1, body=body)

    def undone(self, key: str) -> SagaRecord:
        """Return the record that a step was undone."""
        return SagaRecord(RecordKind.UNDONE, key, self._steps[key].undo_attempts)

    def on_undo_outcome(
        self, key: str, outcome: AttemptOutcome, *, now_us: int, rng: Chance
    ) -> NextAction:
        """Decide what follows from an attempt of an undo; a failed one is never passed over."""
        step, rule = self._steps[key], UNDO_RULES[outcome.result]
        if rule is StepRule.RETURN:
            is_recorded = step.phase is StepState.UNDONE
            return NextAction(Action.UNDONE, () if is_recorded else (self.undone(key),))
        if rule is StepRule.AGAIN and (why := self._forgotten(key, step, now_us)):
            return self.stick(f"its undo: {why}", key, is_forgotten=True)
        since_us = max(self._turned_us, self._repaired_us)
        limit_us = since_us + int(self._policy.undo_deadline_s * 1e6)
        left_s = (max(limit_us, self._grace_until_us) - now_us) / 1e6
        if rule is StepRule.AGAIN and left_s > 0:
            is_counted = outcome.result in _TOLD and not _ask_of(step).is_write
            records = (self._undo_begun(key, step, outcome.why),) if is_counted else ()
            return NextAction(Action.RETRY, records, min(left_s, self._wait_s(step, outcome, rng)))
        return self.stick(
            f"its undo is {outcome.result.value}: {outcome.why}", key, is_rejected=_is_no(outcome)
        )

    def ended(self) -> SagaRecord:
        """Return the record that all that had to be undone is."""
        return SagaRecord(RecordKind.ENDED)


def _ask_of(step: StepFacts) -> Ask:
    if step.ask is None:
        raise SagaError("a step has an outcome that was never asked for")
    return step.ask


def _is_taken(step: StepFacts) -> bool:
    """Return whether a step was rejected, and the function takes that for an answer."""
    takes = _ask_of(step).takes
    if step.phase is not StepState.REJECTED or not takes or not step.rejection:
        return False
    return _code_of(decode(step.rejection, dict[str, Any])) in takes


def _code_of(problem: dict[str, Any] | None) -> str:
    return str((problem or {}).get("code", ""))


def _is_no(outcome: AttemptOutcome) -> bool:
    return outcome.result is AttemptResult.REJECTED
