"""Every history of a small saga, to a bound: what no run may do, whatever comes when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from synchromesh.codec import decode
from synchromesh.errors import ActionRefused
from synchromesh.saga.machine import SagaMachine
from synchromesh.saga.policy import SagaPolicy
from synchromesh.saga.records import (
    Action,
    Ask,
    AttemptOutcome,
    AttemptResult,
    Begin,
    Halt,
    NapAsk,
    NextAction,
    RecordKind,
    Repair,
    RepairVerb,
    SagaRecord,
    SagaStatus,
    StepState,
)
from synchromesh.saga.repair import RepairWish, judge

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
# A rejection is an answer, and a pivot that was refused has another one behind it.
TRYING = (
    replace(STEPS[1], takes=("no",)),
    Ask("charge", "c", is_pivot=True, takes=("no",)),
    Ask("card", "d", is_pivot=True),
    Ask("book", "b"),
)
SLEEPING = (*STEPS[:2], Ask("sleep", "s", nap=NapAsk(for_s=0.5)), *STEPS[2:])
CHOICES = ("answered", "rejected", "not run", "unknown", "broken", "not offered", "crash", "cancel")
# What a person does with a stuck run, by the choice that is next; any other leaves it stuck.
VERBS = {"unknown": RepairVerb.RETRY, "rejected": RepairVerb.SKIP, "broken": RepairVerb.UNDO}


class One:
    """Always draws the top."""

    def random(self) -> float:
        return 1.0


@dataclass
class History:
    """One walk: choices as they were taken, then answers for ever."""

    choices: tuple[str, ...]
    steps: tuple[Ask, ...] = STEPS
    records: list[SagaRecord] = field(default_factory=list)
    now_s: float = 0.0
    taken: int = 0
    sent: list[tuple[str, str]] = field(default_factory=list)  # key, and what came of it
    repaired: Counter[str] = field(default_factory=Counter)

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
        if machine.status is SagaStatus.STUCK and repaired(history, machine):
            continue
        return machine
    raise AssertionError(f"no end: {history.choices}")


def repaired(history: History, machine: SagaMachine) -> bool:
    """Let a person have a look at a stuck run."""
    verb = VERBS.get(history.choose())
    if verb is None:
        return False
    key = machine.cause.step
    digest = next((ask.digest for ask in history.steps if f"{ask.name}#1" == key), "")
    is_told = verb is RepairVerb.SKIP and not machine.is_turned
    wish = RepairWish("ada", "looked", b"7" if is_told else None, not_done=True)
    # What a person answers for is true: what nobody knew was not done, or is done by hand.
    try:
        record = judge(machine, "A-1", verb, wish, digest=digest if is_told else "")
    except ActionRefused:
        history.repaired[f"{verb.value} refused"] += 1
        return False
    history.take(machine, (record,))
    history.repaired[f"{verb.value} {'back' if machine.is_turned else 'on'}"] += 1
    return True


def forward(history: History, machine: SagaMachine) -> None:
    for ask in history.steps:
        if ask.name == "card" and machine.states()["charge#1"] is not StepState.REJECTED:
            continue
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
                if ask.nap is not None:
                    if not sleep(history, machine, each.step):
                        return
                    continue
                if not try_step(history, machine, each.step, ask):
                    return
    history.take(machine, machine.on_return(b"1").records)


def sleep(history: History, machine: SagaMachine, key: str) -> bool:
    """Leave memory until the run wakes, as the engine does; False where it turned meanwhile."""
    decision = machine.on_wake(key, now_us=int(history.now_s * SECOND))
    if decision.action is Action.SLEEP:
        history.now_s = machine.nap_of(key).wake_us / SECOND
        raise Crash
    history.take(machine, decision.records)
    return decision.action is Action.RETURN


def try_step(history: History, machine: SagaMachine, key: str, ask: Ask) -> bool:
    while True:
        choice = history.choose()
        if not ask.is_write:
            history.sent.append((machine.key_of(key), choice))
        if choice == "crash":
            raise Crash
        if choice == "cancel":
            if machine.has_no_way_back:
                continue
            history.take(machine, machine.turn("cancelled").records)
            return False
        came = AttemptOutcome(
            AttemptResult(choice), b"7", problem={"code": "no"}, is_declared=choice == "rejected"
        )
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
            history.sent.append((machine.undo_key_of(undo.step), choice))
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
    by_step: dict[str, list[object]] = {}
    verbs = [
        decode(record.body, Repair).verb if record.kind is RecordKind.REPAIRED else ""
        for record in history.records
    ]
    for record, verb in zip(history.records, verbs, strict=True):
        by_step.setdefault(record.step, []).append(verb or record.kind)
    assert machine.status not in (SagaStatus.RUNNING, SagaStatus.COMPENSATING)
    turns = [n for n, kind in enumerate(kinds) if kind is RecordKind.TURNED or verbs[n] == "undo"]
    assert len(turns) <= 1
    assert kinds[-1] in (RecordKind.ENDED, RecordKind.STUCK)
    assert "recorded" not in machine.cause.reason, "the same code always matches its records"
    for turned_at in turns:
        assert RecordKind.BEGUN not in kinds[turned_at:]
        assert machine.pivot_state in (StepState.NEW, StepState.REJECTED), "nothing is in doubt"
        for key in ("charge#1", "card#1"):
            pivot, is_told = by_step.get(key, []), "undo" in verbs
            assert RecordKind.DONE not in pivot, "turned after the pivot was done"
            assert not pivot or RecordKind.REJECTED in pivot or is_told, "turned after it was tried"
            came = [each for sent, each in history.sent if sent == key]
            in_doubt = {"unknown", "crash"} & set(came) and "rejected" not in came
            assert not in_doubt or is_told, "turned without knowing of the pivot"
    if machine.status is SagaStatus.UNDONE:
        for step in ("write#1", "reserve#1"):
            done = by_step.get(step, [])
            owed = bool(done) and RecordKind.REJECTED not in done
            settled = done.count(RecordKind.UNDONE) + done.count("skip")
            assert settled == int(owed), (step, done)
        undone = [
            record.step
            for record, verb in zip(history.records, verbs, strict=True)
            if record.kind is RecordKind.UNDONE or verb == "skip"
        ]
        assert undone == sorted(undone), "reserve goes before write"
    if machine.status is SagaStatus.COMPLETED:
        ends = {RecordKind.DONE, RecordKind.WOKEN, "skip"}
        for ask in history.steps:
            came_to = set(by_step.get(f"{ask.name}#1", []))
            is_taken = ask.takes and RecordKind.REJECTED in came_to
            assert ends & came_to or is_taken or ask.name == "card", ask
        charged = set(by_step.get("charge#1", [])) | set(by_step.get("card#1", []))
        assert ends & charged, "completed means charged"
    check_keys(history)
    attempts = [
        r.attempt for r in history.records if (r.kind, r.step) == (RecordKind.BEGUN, "reserve#1")
    ]
    assert attempts == list(range(1, len(attempts) + 1))


def check_keys(history: History) -> None:
    """A key that was refused is not asked again, and none beside one that may have had an effect.

    Under two such keys the participant would do it twice.
    """
    refused: set[str] = set()
    open_keys: dict[str, set[str]] = {}
    for key, came in history.sent:
        assert key not in refused, (key, history.sent)
        if came == "rejected":
            refused.add(key)
        elif came in ("answered", "unknown", "crash", "cancel"):
            step, _, rest = key.partition("#1")
            open_keys.setdefault(step + ("/undo" if "undo" in rest else ""), set()).add(key)
    for keys in open_keys.values():
        assert len(keys - refused) <= 1, history.sent


@pytest.mark.parametrize(("steps", "depth"), [(STEPS, 6), (SLEEPING, 4), (TRYING, 4)])
def test_every_history_to_a_depth_ends_as_it_may(steps: tuple[Ask, ...], depth: int) -> None:
    """A run is completed, undone in reverse, or stuck; it never turns once its pivot was tried."""
    seen: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    pending: list[tuple[str, ...]] = [()]
    while pending:
        choices = pending.pop()
        history = History(choices, steps)
        machine = walk(history)
        check(history, machine)
        seen[machine.status.value] += 1
        repaired.update(history.repaired)
        # Choices that were never asked for make no other history.
        if len(choices) < depth and history.taken > len(choices):
            pending += [(*choices, choice) for choice in CHOICES]
    assert set(seen) == {"completed", "undone", "stuck"}
    assert min(seen.values()) >= (100 if depth == 6 else 10), seen
    if depth < 6:
        return
    assert set(repaired) == {
        "retry on", "retry back", "skip on", "skip back", "undo back", "undo refused",
    }  # fmt: skip
    assert min(repaired.values()) >= 10, repaired


def test_a_reloaded_machine_decides_as_the_one_that_lived() -> None:
    """What a machine knows is in its records: a crash changes no state but waits."""
    history = History(
        ("answered", "unknown", "answered", "unknown", "crash", "answered", "rejected")
    )
    machine = walk(history)
    assert repr(history.load()) == repr(machine)
