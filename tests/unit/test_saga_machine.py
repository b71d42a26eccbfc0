"""The machine of a saga: literal times, no clock, no store."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from synchromesh.codec import decode
from synchromesh.errors import SagaError
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.records import (
    STATUS_AFTER,
    Action,
    Ask,
    AttemptOutcome,
    AttemptResult,
    Begin,
    Halt,
    NextAction,
    RecordKind,
    Replay,
    SagaCause,
    SagaRecord,
    SagaStatus,
    UndoStep,
)
from synchromesh.saga.rules import RULES, UNDO_RULES, StepRule, Zone

SECOND = 1_000_000
POLICY = SagaPolicy(
    attempts_max=2,
    backoff_base_s=1.0,
    backoff_cap_s=4.0,
    undo_deadline_s=20.0,
    after_pivot_deadline_s=30.0,
)
RESERVE = Ask("stock.reserve", "r", has_undo=True)
BOOK = Ask("plant.book", "b", has_undo=True)
CHARGE = Ask("bank.charge", "c", is_pivot=True)
WRITE = Ask("create", "w", is_write=True, has_undo=True)
UNKNOWN = AttemptOutcome(AttemptResult.UNKNOWN, why="timed_out")
NOT_RUN = AttemptOutcome(AttemptResult.NOT_RUN, why="circuit_open")
NOT_OFFERED = AttemptOutcome(AttemptResult.NOT_OFFERED, why="unknown_operation")
BROKEN = AttemptOutcome(AttemptResult.BROKEN, why="forbidden")
REFUSED = AttemptOutcome(AttemptResult.REJECTED, why="no", problem={"code": "no"})
ANSWERED = AttemptOutcome(AttemptResult.ANSWERED, b"7")


class Half:
    """Always draws the middle."""

    def random(self) -> float:
        return 0.5


def machine(*records: SagaRecord, deadline_s: int = 10) -> SagaMachine:
    made = SagaMachine(POLICY, deadline_us=deadline_s * SECOND)
    for record in records:
        made.apply(record)
    return made


def ask(on: SagaMachine, *asks: Ask, at_s: int = 0) -> list[Replay | Begin] | NextAction | Halt:
    return on.on_ask(on.register(asks), now_us=at_s * SECOND)


def begin(on: SagaMachine, *asks: Ask, at_s: int = 0) -> list[str]:
    """Ask for steps and take their records in."""
    answer = ask(on, *asks, at_s=at_s)
    assert isinstance(answer, list)
    for each in answer:
        assert isinstance(each, Begin)
        take(on, each.records, at_s=at_s)
    return [each.step for each in answer]


def take(on: SagaMachine, records: tuple[SagaRecord, ...], at_s: int = 0) -> None:
    for record in records:
        on.apply(replace(record, at_us=at_s * SECOND))


def outcome(on: SagaMachine, key: str, came: AttemptOutcome, at_s: int = 0) -> NextAction:
    decision = on.on_outcome(key, came, now_us=at_s * SECOND, rng=Half())
    take(on, decision.records, at_s=at_s)
    return decision


def past_the_pivot() -> SagaMachine:
    on = machine()
    (key,) = begin(on, CHARGE)
    outcome(on, key, ANSWERED)
    return on


def kinds(decision: NextAction) -> list[RecordKind]:
    return [record.kind for record in decision.records]


def reason(decision: NextAction) -> str:
    return decode(decision.records[-1].body, SagaCause).reason


def test_the_tables_have_a_rule_for_every_zone_and_outcome() -> None:
    """No outcome is met without a rule, forward or backward."""
    assert set(RULES) == {(zone, result) for zone in Zone for result in AttemptResult}
    assert set(UNDO_RULES) == set(AttemptResult)


def test_what_was_answered_is_returned_in_every_zone() -> None:
    """The machine does not look it up."""
    assert {RULES[zone, AttemptResult.ANSWERED] for zone in Zone} == {StepRule.RETURN}


def test_terminal_statuses_take_no_record() -> None:
    """What has ended stays as it ended."""
    ended = {SagaStatus.COMPLETED, SagaStatus.UNDONE, SagaStatus.STUCK}
    assert ended.isdisjoint(status for status, _ in STATUS_AFTER)
    with pytest.raises(SagaError, match="cannot follow"):
        machine(SagaRecord(RecordKind.ENDED, body=b"1"), SagaRecord(RecordKind.BEGUN, "a#1", 1))


def test_a_record_that_cannot_follow_is_refused() -> None:
    """Records that were changed are noticed, not interpreted."""
    for records in (
        [SagaRecord(RecordKind.UNDONE, "a#1")],
        [SagaRecord(RecordKind.BEGUN)],
        [SagaRecord(RecordKind.DONE, "a#1"), SagaRecord(RecordKind.DONE, "a#1")],
        [
            SagaRecord(RecordKind.BEGUN, "a#1", 1, body=b'"pivot"'),
            SagaRecord(RecordKind.TURNED, body=b"{}"),
        ],
    ):
        with pytest.raises(SagaError, match="cannot follow"):
            machine(*records)


def test_ordinals_count_by_name() -> None:
    """The same operation twice makes two keys, whatever is asked in between."""
    on = machine()
    assert on.register([RESERVE, BOOK, RESERVE]) == [
        "stock.reserve#1",
        "plant.book#1",
        "stock.reserve#2",
    ]


def test_a_done_step_is_replayed_and_one_in_flight_is_a_further_attempt() -> None:
    """After a crash only what has no result is asked again, as a recorded attempt (S2)."""
    on = machine(
        SagaRecord(RecordKind.BEGUN, "stock.reserve#1", 1, "r"),
        SagaRecord(RecordKind.BEGUN, "plant.book#1", 1, "b"),
        SagaRecord(RecordKind.DONE, "stock.reserve#1", 1, "r", b"7"),
    )
    answer = ask(on, RESERVE, BOOK)
    assert isinstance(answer, list)
    assert answer[0] == Replay("stock.reserve#1", b"7")
    assert isinstance(answer[1], Begin)
    assert answer[1].records[0].attempt == 2


def test_other_arguments_than_recorded_are_a_mismatch() -> None:
    """New code that gives a recorded step other arguments does not continue it (S11)."""
    on = machine(SagaRecord(RecordKind.BEGUN, "stock.reserve#1", 1, "other"))
    answer = ask(on, RESERVE)
    assert isinstance(answer, NextAction)
    assert answer.action is Action.MISFIT
    assert answer.records == ()
    assert "digest other" in answer.why
    assert "digest r" in answer.why


def test_another_step_than_recorded_is_a_mismatch_that_names_both() -> None:
    """New code that asks for another step does not continue the run (S11)."""
    on = machine(SagaRecord(RecordKind.BEGUN, "stock.reserve#1", 1, "r"))
    answer = ask(on, BOOK)
    assert isinstance(answer, NextAction)
    assert answer.action is Action.MISFIT
    assert "plant.book#1" in answer.why
    assert "stock.reserve#1" in answer.why


def test_a_step_that_became_or_ceased_to_be_the_pivot_is_a_mismatch() -> None:
    """Whether there is a way back is not changed under a run."""
    was = machine(SagaRecord(RecordKind.BEGUN, "bank.charge#1", 1, "c", b'"pivot"'))
    answer = ask(was, replace(CHARGE, is_pivot=False))
    assert isinstance(answer, NextAction)
    assert "no longer the pivot" in answer.why
    now = machine(SagaRecord(RecordKind.BEGUN, "bank.charge#1", 1, "c"))
    answer = ask(now, CHARGE)
    assert isinstance(answer, NextAction)
    assert "now the pivot" in answer.why


def test_an_end_without_the_recorded_steps_is_a_mismatch() -> None:
    """Code that returns or raises before what was done has lost it: nothing is decided."""
    record = SagaRecord(RecordKind.DONE, "stock.reserve#1", 1, "r", b"7")
    assert machine(record).on_return(b"1").action is Action.MISFIT
    assert machine(record).on_raise("bug").action is Action.MISFIT


def test_past_its_deadline_a_run_turns_before_a_further_step() -> None:
    """The deadline counts until the pivot is tried."""
    on = machine()
    assert isinstance(ask(on, RESERVE, at_s=9), list)
    answer = ask(machine(), RESERVE, at_s=10)
    assert isinstance(answer, NextAction)
    assert answer.action is Action.TURN


def test_an_unknown_outcome_uses_an_attempt_and_the_last_one_turns() -> None:
    """A failure that outlasts its attempts turns the run, and is undone as unknown (S6)."""
    on = machine()
    (key,) = begin(on, RESERVE)
    again = outcome(on, key, UNKNOWN)
    assert again.action is Action.RETRY
    assert again.records[0].attempt == 2
    assert again.delay_s == 0.5
    assert outcome(on, key, UNKNOWN).action is Action.TURN
    undo = on.next_undo()
    assert isinstance(undo, UndoStep)
    assert undo.step == key
    assert undo.result is None


def test_what_was_not_run_uses_no_attempt_and_waits_as_it_is_asked() -> None:
    """An open breaker does not burn the attempts, and its retry-after is kept to."""
    on = machine()
    (key,) = begin(on, RESERVE)
    for _ in range(20):
        decision = outcome(on, key, replace(NOT_RUN, retry_after_s=3.0))
        assert decision == NextAction(Action.RETRY, (), 3.0)
    assert outcome(on, key, replace(NOT_RUN, retry_after_s=9.0), at_s=8).delay_s == 2.0
    assert outcome(on, key, NOT_RUN, at_s=10).action is Action.TURN


def test_what_will_never_work_turns_at_once() -> None:
    """A call that does not fit the contract is not tried again."""
    on = machine()
    (key,) = begin(on, RESERVE)
    assert outcome(on, key, BROKEN).action is Action.TURN


def test_a_rejection_turns_and_is_not_undone() -> None:
    """A business no had no effect: there is nothing to undo."""
    on = machine()
    (key,) = begin(on, RESERVE)
    assert kinds(outcome(on, key, REFUSED)) == [RecordKind.REJECTED, RecordKind.TURNED]
    assert on.cause.problem == {"code": "no"}
    assert on.next_undo() is None


def test_steps_are_undone_in_reverse_of_being_asked() -> None:
    """The latest step goes first, those side by side too."""
    on = machine()
    for key in begin(on, RESERVE, BOOK):
        outcome(on, key, ANSWERED)
    take(on, on.turn("cancelled").records)
    undone = []
    while isinstance(undo := on.next_undo(), UndoStep):
        undone.append(undo.step)
        take(on, undo.records)
        take(on, on.on_undo_outcome(undo.step, ANSWERED, now_us=0, rng=Half()).records)
    assert undone == ["plant.book#1", "stock.reserve#1"]
    take(on, (on.ended(),))
    assert on.status is SagaStatus.UNDONE


def test_a_run_that_is_undone_asks_for_nothing_more() -> None:
    """Replaying a turned run stops at the first step without a result."""
    on = machine(
        SagaRecord(RecordKind.BEGUN, "stock.reserve#1", 1, "r"),
        SagaRecord(RecordKind.TURNED, body=b"{}"),
    )
    assert ask(on, RESERVE) == Halt()


def test_an_unknown_pivot_is_asked_past_its_attempts_until_the_deadline() -> None:
    """The pivot is not given up for attempts; past the deadline it is stuck (S8)."""
    on = machine()
    (key,) = begin(on, CHARGE)
    for attempt in range(2, 9):
        again = outcome(on, key, UNKNOWN, at_s=attempt)
        assert again.action is Action.RETRY
        assert again.records[0].attempt == attempt
    assert outcome(on, key, UNKNOWN, at_s=10).action is Action.STUCK


@pytest.mark.parametrize("late_s", [10, 11, 1_000])
def test_a_pivot_unknown_at_once_and_past_the_deadline_is_stuck(late_s: int) -> None:
    """That it was tried but once makes it no more certain that it was not done (S8)."""
    on = machine()
    (key,) = begin(on, CHARGE)
    answer = outcome(on, key, UNKNOWN, at_s=late_s)
    assert answer.action is Action.STUCK
    assert kinds(answer) == [RecordKind.STUCK]
    assert on.has_no_way_back


def test_a_pivot_in_flight_at_a_restart_is_asked_again_past_the_deadline() -> None:
    """What is recorded under its key is fetched, however late."""
    on = machine(SagaRecord(RecordKind.BEGUN, "bank.charge#1", 1, "c", b'"pivot"'))
    (key,) = begin(on, CHARGE, at_s=99)
    assert outcome(on, key, ANSWERED, at_s=99).action is Action.RETURN


def test_a_refused_pivot_turns_even_after_an_unknown_attempt() -> None:
    """A rejection is final under the key, so it settles the attempts before it."""
    on = machine()
    (key,) = begin(on, CHARGE)
    outcome(on, key, UNKNOWN)
    assert outcome(on, key, REFUSED).action is Action.TURN
    assert on.status is SagaStatus.COMPENSATING


@pytest.mark.parametrize("came", [BROKEN, NOT_RUN])
def test_a_pivot_that_was_certainly_never_run_turns(came: AttemptOutcome) -> None:
    """Only the first attempt can say so: then the way back is open."""
    on = machine()
    (key,) = begin(on, CHARGE)
    assert kinds(outcome(on, key, came, at_s=10)) == [RecordKind.REJECTED, RecordKind.TURNED]


@pytest.mark.parametrize("came", [BROKEN, NOT_RUN])
def test_a_pivot_that_may_have_run_before_is_stuck(came: AttemptOutcome) -> None:
    """A later attempt that was not run says nothing of an earlier, unknown one."""
    on = machine()
    (key,) = begin(on, CHARGE)
    outcome(on, key, UNKNOWN)
    assert outcome(on, key, came, at_s=10).action is Action.STUCK


def test_after_the_pivot_nothing_turns() -> None:
    """Refused or broken is stuck; unknown is asked again until its own deadline (S8)."""
    on = past_the_pivot()
    assert on.has_no_way_back
    assert on.on_raise("bug").action is Action.STUCK
    (key,) = begin(on, BOOK, at_s=12)
    for at_s in range(12, 30):
        assert outcome(on, key, UNKNOWN, at_s=at_s).action is Action.RETRY
    assert outcome(on, key, UNKNOWN, at_s=30).action is Action.STUCK
    for came, records in (
        (BROKEN, [RecordKind.STUCK]),
        (REFUSED, [RecordKind.REJECTED, RecordKind.STUCK]),
    ):
        other = past_the_pivot()
        (key,) = begin(other, BOOK)
        assert kinds(outcome(other, key, came)) == records


def test_a_release_that_knows_the_operation_is_waited_for_where_there_is_no_way_back() -> None:
    """Behind the pivot, at one that may have run, and by an undo; before it the run turns."""
    on = past_the_pivot()
    (key,) = begin(on, BOOK, at_s=12)
    for at_s in range(12, 30):
        again = outcome(on, key, NOT_OFFERED, at_s=at_s)
        assert (again.action, kinds(again)) == (Action.RETRY, [RecordKind.BEGUN])
    assert outcome(on, key, NOT_OFFERED, at_s=30).action is Action.STUCK
    for step in (RESERVE, CHARGE):
        on = machine()
        (key,) = begin(on, step)
        assert outcome(on, key, NOT_OFFERED).action is Action.TURN
    on = machine()
    (key,) = begin(on, CHARGE)
    outcome(on, key, UNKNOWN)
    assert outcome(on, key, NOT_OFFERED).action is Action.RETRY
    assert outcome(on, key, NOT_OFFERED, at_s=10).action is Action.STUCK
    on = machine()
    (key,) = begin(on, RESERVE)
    outcome(on, key, ANSWERED)
    take(on, on.turn("cancelled").records, at_s=100)
    undo = on.next_undo()
    assert isinstance(undo, UndoStep)
    take(on, undo.records, at_s=100)
    for at_s, action in ((101, Action.RETRY), (119, Action.RETRY), (120, Action.STUCK)):
        came = on.on_undo_outcome(key, NOT_OFFERED, now_us=at_s * SECOND, rng=Half())
        assert came.action is action


def test_an_undo_is_asked_again_until_its_own_deadline_and_then_stuck() -> None:
    """A failed undo is never passed over (S5)."""
    on = machine()
    (key,) = begin(on, RESERVE)
    outcome(on, key, REFUSED)
    on = machine()
    (key,) = begin(on, RESERVE)
    outcome(on, key, ANSWERED)
    take(on, on.turn("cancelled").records, at_s=100)
    undo = on.next_undo()
    assert isinstance(undo, UndoStep)
    assert undo.result == b"7"
    take(on, undo.records, at_s=100)
    again = on.on_undo_outcome(key, UNKNOWN, now_us=110 * SECOND, rng=Half())
    assert again.action is Action.RETRY
    assert again.records[0].attempt == 2
    waits = on.on_undo_outcome(key, NOT_RUN, now_us=110 * SECOND, rng=Half())
    assert waits.action is Action.RETRY
    assert waits.records == ()
    late = on.on_undo_outcome(key, UNKNOWN, now_us=120 * SECOND, rng=Half())
    assert late.action is Action.STUCK
    assert decode(late.records[0].body, SagaCause).step == key
    for came in (REFUSED, BROKEN):
        decision = on.on_undo_outcome(key, came, now_us=101 * SECOND, rng=Half())
        assert decision.action is Action.STUCK


def test_a_write_commits_with_its_record_and_its_failures_count_in_memory() -> None:
    """A write has no `begun`: it is done or it never was (S3)."""
    on = machine()
    assert begin(on, WRITE) == ["create#1"]
    again = outcome(on, "create#1", UNKNOWN)
    assert again.action is Action.RETRY
    assert again.records == ()
    assert outcome(on, "create#1", UNKNOWN).action is Action.TURN
    other = machine()
    begin(other, WRITE)
    other.apply(other.done("create#1", b"1"))
    assert outcome(other, "create#1", ANSWERED) == NextAction(Action.RETURN)
    take(other, other.turn("cancelled").records)
    undo = other.next_undo()
    assert isinstance(undo, UndoStep)
    assert undo.records == ()
    other.apply(other.undone("create#1"))
    done = other.on_undo_outcome("create#1", ANSWERED, now_us=0, rng=Half())
    assert done == NextAction(Action.UNDONE)
    assert other.next_undo() is None


def test_its_repr_shows_where_it_stands() -> None:
    """One line for tests, the command line and the console."""
    on = machine()
    begin(on, RESERVE)
    assert repr(on) == "<SagaMachine running stock.reserve#1=unknown>"


def test_an_outcome_of_a_step_that_was_never_asked_for_is_an_error() -> None:
    """The machine does not guess what a step was."""
    on = machine(SagaRecord(RecordKind.BEGUN, "a#1", 1))
    with pytest.raises(SagaError, match="never asked"):
        on.on_outcome("a#1", UNKNOWN, now_us=0, rng=Half())
