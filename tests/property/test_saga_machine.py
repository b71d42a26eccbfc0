"""Every history of a small saga, to a bound: what no run may do, whatever comes when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.records import (
    Action,
    Ask,
    AttemptOutcome,
    AttemptResult,
    Begin,
    Halt,
    NextAction,
    RecordKind,
    SagaRecord,
    SagaStatus,
)

SECOND = 1_000_000
POLICY = SagaPolicy(
    attempts_max=2,
    backoff_base_s=1.0,
    backoff_cap_s=1.0,
    undo_deadline_s=3.0,
    after_pivot_deadline_s=3.0,
)
# The function asks for these, one after the other; the last but one is the pivot.
STEPS = (
    Ask("write", "w", is_write=True, has_undo=True),
    Ask("reserve", "r", has_undo=True),
    Ask("charge", "c", is_pivot=True),
    Ask("book", "b"),
)
CHOICES = ("answered", "rejected", "not run", "unknown", "broken", "crash", "cancel")
CHOICES_MAX = 6


class One:
    """Always draws the top."""

    def random(self) -> float:
        return 1.0


@dataclass
class History:
    """One walk: choices as they were taken, then answers for ever."""

    choices: tuple[str, ...]
    records: list[SagaRecord] = field(default_factory=list)
    now_s: float = 0.0
    taken: int = 0
    is_ended: bool = False

    def choose(self) -> str:
        """Return the next choice; past the last one everything works."""
        self.taken += 1
        return self.choices[self.taken - 1] if self.taken <= len(self.choices) else "answered"

    def load(self) -> SagaMachine:
        """Return the machine that the records make, as after a crash."""
        machine = SagaMachine(POLICY, deadline_us=6 * SECOND)
        for record in self.records:
            machine.apply(record)
        return machine

    def take(self, machine: SagaMachine, records: tuple[SagaRecord, ...]) -> None:
        for record in records:
            stamped = record.at(int(self.now_s * SECOND))
            machine.apply(stamped)
            self.records.append(stamped)


class Crash(Exception):
    """The process died: only the records are left."""


def walk(history: History) -> SagaMachine:
    """Run the machine as the engine does, until it has ended."""
    for _ in range(200):
        machine = history.load()
        try:
            forward(history, machine)
            backward(history, machine)
        except Crash:
            continue
        return machine
    raise AssertionError(f"no end: {history.choices}")


def forward(history: History, machine: SagaMachine) -> None:
    for ask in STEPS:
        keys = machine.register([ask])
        answer = machine.on_ask(keys, now_us=int(history.now_s * SECOND))
        if isinstance(answer, Halt):
            return
        if isinstance(answer, NextAction):
            history.take(machine, answer.records)
            return
        for each in answer:
            if isinstance(each, Begin):
                history.take(machine, each.records)
                if not try_step(history, machine, each.step, ask):
                    return
    history.take(machine, machine.on_return(b"1").records)


def try_step(history: History, machine: SagaMachine, key: str, ask: Ask) -> bool:
    while True:
        choice = history.choose()
        if choice == "crash":
            raise Crash
        if choice == "cancel":
            if machine.has_no_way_back:
                continue
            history.take(machine, machine.turn("cancelled").records)
            return False
        came = AttemptOutcome(AttemptResult(choice), b"7", problem={})
        if ask.is_write and came.result is AttemptResult.ANSWERED:
            history.take(machine, (machine.done(key, b"7"),))
        decision = machine.on_outcome(key, came, now_us=int(history.now_s * SECOND), rng=One())
        if decision.action is not Action.RETRY:
            history.take(machine, decision.records)
            return decision.action is Action.RETURN
        history.now_s += decision.delay_s
        history.take(machine, decision.records)


def backward(history: History, machine: SagaMachine) -> None:
    while machine.status is SagaStatus.COMPENSATING:
        undo = machine.next_undo(now_us=int(history.now_s * SECOND))
        if undo is None:
            history.take(machine, (machine.ended(),))
            return
        if isinstance(undo, NextAction):
            history.take(machine, undo.records)
            return
        history.take(machine, undo.records)
        while True:
            choice = history.choose()
            if choice == "crash":
                raise Crash
            came = AttemptOutcome(
                AttemptResult.ANSWERED if choice == "cancel" else AttemptResult(choice), b""
            )
            decision = machine.on_undo_outcome(
                undo.step, came, now_us=int(history.now_s * SECOND), rng=One()
            )
            if decision.action is Action.RETRY:
                history.now_s += decision.delay_s
            history.take(machine, decision.records)
            if decision.action is not Action.RETRY:
                break


def check(history: History, machine: SagaMachine) -> None:
    """Judge a history by its records alone, with rules that need no machine."""
    kinds = [record.kind for record in history.records]
    by_step: dict[str, list[RecordKind]] = {}
    for record in history.records:
        by_step.setdefault(record.step, []).append(record.kind)
    assert machine.status not in (SagaStatus.RUNNING, SagaStatus.COMPENSATING)
    assert kinds.count(RecordKind.TURNED) <= 1
    assert kinds[-1] in (RecordKind.ENDED, RecordKind.STUCK)
    assert "recorded" not in machine.cause.reason, "the same code always matches its records"
    pivot = by_step.get("charge#1", [])
    if RecordKind.TURNED in kinds:
        turned_at = kinds.index(RecordKind.TURNED)
        assert RecordKind.BEGUN not in kinds[turned_at:]
        assert not pivot or RecordKind.REJECTED in pivot, "turned after the pivot was tried"
    if machine.status is SagaStatus.UNDONE:
        for step in ("write#1", "reserve#1"):
            done = by_step.get(step, [])
            owed = bool(done) and RecordKind.REJECTED not in done
            assert done.count(RecordKind.UNDONE) == int(owed), (step, done)
        undone = [record.step for record in history.records if record.kind is RecordKind.UNDONE]
        assert undone == sorted(undone), "reserve goes before write"
    if machine.status is SagaStatus.COMPLETED:
        assert all(RecordKind.DONE in by_step[f"{ask.name}#1"] for ask in STEPS)
    attempts = [
        r.attempt for r in history.records if (r.kind, r.step) == (RecordKind.BEGUN, "reserve#1")
    ]
    assert attempts == list(range(1, len(attempts) + 1))


def test_every_history_to_a_depth_ends_as_it_may() -> None:
    """A run is completed, undone in reverse, or stuck; it never turns once its pivot was tried."""
    seen: Counter[str] = Counter()
    pending: list[tuple[str, ...]] = [()]
    while pending:
        choices = pending.pop()
        history = History(choices)
        machine = walk(history)
        check(history, machine)
        seen[machine.status.value] += 1
        # Choices that were never asked for make no other history.
        if len(choices) < CHOICES_MAX and history.taken > len(choices):
            pending += [(*choices, choice) for choice in CHOICES]
    assert set(seen) == {"completed", "undone", "stuck"}
    assert min(seen.values()) >= 100, seen


def test_a_reloaded_machine_decides_as_the_one_that_lived() -> None:
    """What a machine knows is in its records: a crash changes no state but waits."""
    history = History(
        ("answered", "unknown", "answered", "unknown", "crash", "answered", "rejected")
    )
    machine = walk(history)
    assert repr(history.load()) == repr(machine)
