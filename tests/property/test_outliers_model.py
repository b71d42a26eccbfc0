"""Outlier ejection: every history up to a depth, checked after each step; planted faults are found.

A history is a sequence of operations: send a call, end the oldest or newest one in one of four
ways, let time pass, or list other instances. The checker keeps its own record of what was sent and
how it ended, hears which instances are ejected, and knows nothing of the machine's fields.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass

import pytest

from synchromesh.discovery import (
    Balancer,
    BalancerOptions,
    CallEnd,
    Ejection,
    Endpoint,
    Member,
    OutlierOptions,
    Outliers,
)

SHORT_S, LONG_S = 0.3, 2.5
ENDS = {
    "ok": CallEnd.ANSWERED,
    "fail": CallEnd.FAILED,
    "refuse": CallEnd.BUSY,
    "leave": CallEnd.LEFT,
}
OPERATIONS = (
    "send", "ok oldest", "ok newest", "fail oldest", "fail newest", "leave newest", "short", "long",
)  # fmt: skip
LISTS = {
    names: tuple(Endpoint(name, "billing", f"sim://{name}") for name in names)
    for names in ("a", "ab", "abc", "abcd")
}
OUTLIERS = OutlierOptions(
    failures_in_row=2, minimum_answers=1000, silent_for_s=0.25, eject_for_s=0.5, eject_for_max_s=2.0
)
# By turns: a, b, c.
ALL_WELL = ("send", "send", "send", "ok oldest", "ok oldest", "ok oldest")
A_EJECTED = (
    *("send", "ok newest") * 3, "send", "send", "send", "send", "fail oldest", "ok oldest",
    "ok oldest", "fail oldest",
)  # fmt: skip
FAILED, ANSWERED = ("send", "fail newest"), ("send", "ok newest")
PREFIXES = {
    "from the start": (),
    "all are well": ALL_WELL,
    "a is ejected": A_EJECTED,
    "a is ejected, and a call that it had is under way": (
        *ALL_WELL, "send", "send", "send", "send", "ok oldest", "fail newest", "send", "ok newest",
        "send", "ok newest", "send", "fail newest",
    ),
    "a is ejected, its probe under way": (*A_EJECTED, "long", "send"),
    "two are ejected": (
        *A_EJECTED, "send", "fail newest", "send", "ok newest", "send", "fail newest",
    ),
    "two of four are ejected, and the third fails": (
        "list abcd", *("send", "ok newest") * 4, *FAILED, *ANSWERED * 3, *FAILED, *FAILED,
        *ANSWERED * 2, *FAILED, *FAILED, *ANSWERED,
    ),
    "a is back": (*A_EJECTED, "long", "send", "ok newest"),
}  # fmt: skip


@dataclass
class Under:
    """A call under way, as the checker remembers it; `term` is the instance's when it was sent."""

    member: Member
    name: str
    term: int
    sent_s: float
    is_probe: bool


class Violated(Exception):
    """An invariant does not hold."""


class Checker:
    """Runs one history on a balancer and on its own record, and compares after each step."""

    def __init__(self, options: BalancerOptions, rng: random.Random) -> None:
        self.heard: list[Ejection] = []
        self.balancer = Balancer("billing", rng=rng, options=options, on_ejection=self.heard.append)
        self.limits = options.outliers or OUTLIERS
        self.names = "abc"
        self.now = 0.0
        self.under: list[Under] = []
        self.ejected: dict[str, Ejection] = {}
        self.probed_s: dict[str, float] = {}
        self.silent: set[str] = set()
        self.hints: set[str] = set()
        self.terms: Counter[str] = Counter()
        self.last: dict[str, CallEnd] = {}
        self.failed: set[str] = set()
        self.succeeded_s: dict[str, float] = {}
        self.given = ""

    def can(self, operation: str) -> bool:
        if operation.endswith("oldest"):
            return len(self.under) > 1
        return not operation.endswith("newest") or bool(self.under)

    def step(self, operation: str) -> None:
        verb, _, which = operation.partition(" ")
        heard = len(self.heard)
        if verb == "send":
            self._send()
        elif verb in ENDS:
            self._end(ENDS[verb], self.under.pop(0 if which == "oldest" else -1))
        elif verb == "list":
            self.names = which
        else:
            self.now += SHORT_S if verb == "short" else LONG_S
        if verb not in ("send", *ENDS) and len(self.heard) > heard:
            raise Violated("something was ejected or came back by itself")
        self._check_whole()

    def _send(self) -> None:
        before, heard = dict(self.ejected), len(self.heard)
        member = self.balancer.pick(LISTS[self.names], self.now)
        self.given = self.names
        self._forget_unlisted()
        name = member.instance
        if name not in self.names:
            raise Violated("a call went to what is not listed")
        self._hear(heard)
        is_probe = name in self.ejected
        if is_probe:
            self._check_probe(name, before)
            self.probed_s[name] = self.now
            self.hints.discard(name)
            self.terms[name] += 1
        elif overdue := [each for each in self.ejected if self._is_overdue(each)]:
            raise Violated(f"wedged: {overdue[0]} is not probed")
        self.under.append(Under(member, name, self.terms[name], self.now, is_probe))

    def _check_probe(self, name: str, before: dict[str, Ejection]) -> None:
        if name not in before:
            raise Violated("a call went to what its pick had ejected")
        until_s = before[name].until_s
        assert until_s is not None
        if name not in self.hints and self.now < until_s:
            raise Violated("an ejected instance was asked before its time was over")
        probed_s = self.probed_s.get(name, -math.inf)
        if name not in self.hints and self.now < probed_s + self.limits.eject_for_s:
            raise Violated("a second probe was sent beside the first")

    def _is_overdue(self, name: str) -> bool:
        until_s = self.ejected[name].until_s
        assert until_s is not None
        probed_s = self.probed_s.get(name, -math.inf)
        return self.now >= max(until_s, probed_s + self.limits.eject_for_max_s)

    def _end(self, end: CallEnd, call: Under) -> None:
        heard, is_current = len(self.heard), call.term == self.terms[call.name]
        # What was sent in an earlier term says nothing of the instance as it is now.
        others = self._well(except_for=call.name if is_current else "")
        if is_current and end in (CallEnd.ANSWERED, CallEnd.FAILED):
            self.last[call.name] = end
            if end is CallEnd.FAILED:
                self.failed.add(call.name)
            else:
                self.succeeded_s[call.name] = self.now
        counts = self.balancer.observe(call.member, self.now, self.now - call.sent_s, end)
        if not counts and (end is not CallEnd.FAILED or not others):
            raise Violated("the edge does not hear of what is no instance's own failure")
        if counts and end is CallEnd.FAILED and self._are_surely_well(call):
            raise Violated("the edge hears of a failure while the others are well")
        new = self.heard[heard:]
        if new and not is_current:
            raise Violated("a call of another term ejected or returned")
        for event in new:
            if event.until_s is not None and end is not CallEnd.FAILED:
                raise Violated("what did not fail was ejected")
            if event.until_s is not None and event.instance not in self.ejected and not others:
                raise Violated("one was ejected where no other is well")
        was_silent = call.name in self.ejected and call.name in self.silent
        if not is_current and was_silent and end in (CallEnd.ANSWERED, CallEnd.BUSY):
            self.hints.add(call.name)
        is_return = any(event.until_s is None and event.instance == call.name for event in new)
        if call.is_probe and is_current and end is CallEnd.ANSWERED and not is_return:
            raise Violated("a probe succeeded, and its instance did not come back")
        self._hear(heard)

    def _well(self, *, except_for: str) -> list[str]:
        """Name those that may be picked and of which the last that is known is a success."""
        return [
            each
            for each, end in self.last.items()
            if each != except_for and end is CallEnd.ANSWERED and each not in self.ejected
        ]

    def _are_surely_well(self, call: Under) -> bool:
        """Tell whether all others may be picked, have never failed, and answered just now."""
        others = [each for each in self.given if each != call.name]
        return bool(others) and all(
            each not in self.ejected
            and each not in self.failed
            and self.now - self.succeeded_s.get(each, -math.inf) < 1.0
            for each in others
        )

    def _hear(self, heard: int) -> None:
        for event in self.heard[heard:]:
            self.terms[event.instance] += event.why != "the probe succeeded"
            if event.why != "the probe succeeded":
                self.succeeded_s.pop(event.instance, None)
            self.probed_s.pop(event.instance, None)
            self.hints.discard(event.instance)
            if event.until_s is None:
                self.ejected.pop(event.instance)
            else:
                if event.instance not in self.ejected:
                    self.silent.discard(event.instance)
                    if "nothing came back" in event.why:
                        self.silent.add(event.instance)
                self.ejected[event.instance] = event
                self.last.pop(event.instance, None)
                if not 0 < event.until_s - event.at_s <= self.limits.eject_for_max_s + 1e-9:
                    raise Violated("the time of an ejection is not within its bounds")

    def _forget_unlisted(self) -> None:
        for name in set(self.terms) | set(self.last) | set(self.ejected):
            if name not in self.names:
                self.terms[name] += 1
                self.last.pop(name, None)
                self.succeeded_s.pop(name, None)
                self.ejected.pop(name, None)
                self.probed_s.pop(name, None)
                self.hints.discard(name)

    def _check_whole(self) -> None:
        if set(self.balancer.ejected) != set(self.ejected):
            raise Violated("one was ejected or came back, and the listener was not told")
        count = len(self.given)
        if self.ejected and len(self.ejected) > min(math.ceil(count / 2), count - 1):
            raise Violated("more are ejected than may be")
        flying = Counter(id(call.member) for call in self.under)
        for call in self.under:
            if call.member.in_flight != flying[id(call.member)]:
                raise Violated("the calls under way are not what is counted")


def walk(
    *,
    depth: int,
    prefix: tuple[str, ...] = (),
    operations: tuple[str, ...] = OPERATIONS,
) -> int:
    """Run every history of up to `depth` operations after the prefix; return their number."""
    ran = 0
    pending = [prefix]
    while pending:
        history = pending.pop()
        options = BalancerOptions(by="round_robin", outliers=OUTLIERS)
        checker = Checker(options, random.Random(1))
        run(checker, history)
        ran += 1
        if len(history) < len(prefix) + depth:
            last = history[-1] if history else ""
            pending += [
                (*history, operation)
                for operation in operations
                if checker.can(operation) and not operation == last == "short"
            ]
    return ran


def run(checker: Checker, history: tuple[str, ...]) -> None:
    for number, operation in enumerate(history, 1):
        try:
            checker.step(operation)
        except Violated as error:
            raise Violated(f"{error}; after: {', '.join(history[:number])}") from None


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_every_history_keeps_the_invariants(prefix: tuple[str, ...]) -> None:
    """Ejection is relative, bounded and ends, in all histories of 5 operations from each place."""
    assert walk(depth=5, prefix=prefix) > 1_000


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_every_history_with_other_lists_keeps_the_invariants(prefix: tuple[str, ...]) -> None:
    """Instances may come and go at any moment."""
    lists = tuple(f"list {names}" for names in LISTS)
    operations = ("send", "ok oldest", "fail newest", "refuse newest", "long", *lists)
    assert walk(depth=4, prefix=prefix, operations=operations) > 500


@pytest.mark.parametrize("seed", range(20))
def test_long_histories_by_chance_keep_the_invariants(seed: int) -> None:
    """By two choices as by turns, with bad and good times of each instance."""
    rng = random.Random(seed)
    options = BalancerOptions(by=rng.choice(("peak_ewma", "round_robin")), outliers=OUTLIERS)
    checker, history, ejected = Checker(options, random.Random(seed)), [], 0
    bad = ""
    for _ in range(3_000):
        operation = rng.choice(
            ("send", "send", "send", "send", "short", "end", "end", "end", "end")
        )
        if rng.random() < 0.02:
            bad = rng.choice(("", "a", "b", "ab", "abc", "abcd"))
            operation = rng.choice(("long", *(f"list {names}" for names in LISTS)))
        if operation == "end":
            if not checker.under:
                continue
            verb = "fail leave" if checker.under[-1].name in bad else "ok ok ok refuse"
            operation = f"{rng.choice(verb.split())} newest"
        history.append(operation)
        try:
            checker.step(operation)
        except Violated as error:
            raise Violated(f"{error}; after: {', '.join(history[-30:])}") from None
        ejected = max(ejected, len(checker.ejected))
    assert ejected >= 1


class EjectsAll(Outliers):
    """Knows no limit."""

    def _most(self) -> int:
        return 1000


class ComparesNothing(Outliers):
    """Ejects what is bad, whatever the others are."""

    def _is_another_well(self, member: Member, since_s: float, failing_max: float = 1.0) -> bool:
        return True


class TrustsNobody(Outliers):
    """Sees nobody who is well, and tells the edge of everything."""

    def _is_another_well(self, member: Member, since_s: float, failing_max: float = 1.0) -> bool:
        return False


class ProbesAtOnce(Outliers):
    """Rests for no time."""

    def _rest_s(self, count: int, took_s: float) -> float:
        return 0.0


class NeverProbes(Outliers):
    """Forgets whom it has ejected."""

    def probe(self, now: float, tried: frozenset[str]) -> Member | None:
        return None


class ProbesWithoutBound(Outliers):
    """Sends every call to an instance that is due, until one of them ends."""

    def probe(self, now: float, tried: frozenset[str]) -> Member | None:
        due = {name: each.until_s for name, each in self._ejected.items()}
        chosen = super().probe(now, tried)
        if chosen is not None:
            self._ejected[chosen.instance].until_s = due[chosen.instance]
            self.due_s = now
        return chosen


class HeedsLateAnswers(Outliers):
    """Lets an instance come back for a call that it was sent before it was ejected."""

    def observe(self, member: Member, now: float, took_s: float, end: CallEnd) -> bool:
        sentence = self._ejected.get(member.instance)
        late = member if sentence is None else sentence.member
        return super().observe(late, now, took_s, end)


class ReturnsSilently(Outliers):
    """Tells nobody who is back."""

    def _tell(self, name: str, why: str, now: float, until_s: float | None) -> None:
        if until_s is not None:
            super()._tell(name, why, now, until_s)


class ForgetsProbes(Outliers):
    """Does not let an instance come back whose probe succeeded."""

    def _return(self, name: str, now: float, why: str, *, is_warming: bool = True) -> None:
        if not is_warming:
            super()._return(name, now, why, is_warming=False)


@pytest.mark.parametrize(
    ("fault", "violation"),
    [
        (EjectsAll, "more are ejected than may be"),
        (ComparesNothing, "no other is well|no instance's own failure"),
        (TrustsNobody, "while the others are well"),
        (ProbesAtOnce, "not within its bounds"),
        (NeverProbes, "wedged"),
        (ProbesWithoutBound, "a second probe was sent beside the first"),
        (HeedsLateAnswers, "a call of another term"),
        (ReturnsSilently, "did not come back"),
        (ForgetsProbes, "did not come back"),
    ],
)
def test_a_planted_fault_is_found(
    fault: type[Outliers], violation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker is not blind: each way to break ejection breaks an invariant."""
    monkeypatch.setattr("synchromesh.discovery.balancer.Outliers", fault)

    def walk_all() -> None:
        for prefix in reversed(PREFIXES.values()):
            walk(depth=4, prefix=prefix)

    with pytest.raises(Violated, match=violation):
        walk_all()
