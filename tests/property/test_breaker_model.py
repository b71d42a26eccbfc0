"""Circuit breaker: every history up to a depth, checked after each step; planted faults are found.

A history is a sequence of operations: admit a call, end the oldest or newest call under way in one
of three ways, let time pass, or act by hand. The checker keeps its own record of what is under way
and knows nothing of the breaker's fields.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from synchromesh.errors import CircuitOpen
from synchromesh.resilience import (
    TRANSITIONS,
    Breaker,
    BreakerOptions,
    BreakerSnapshot,
    BreakerState,
    Transition,
    Trigger,
)

SHORT_S, LONG_S = 1.0, 11.0
# As the reference of the circuit breaker has them.
UNDECIDED_MAX, UNDECIDED_PAUSE_S = 3, 0.01
CALLS = ("admit", "ok oldest", "ok newest", "fail oldest", "fail newest")
NEUTRAL = ("neutral oldest", "neutral newest")
TIME = ("short", "long")
HANDS = ("isolate", "disable", "close")
TO_HALF_OPEN = ("admit", "admit", "admit", "fail oldest", "fail newest", "long", "admit")
PREFIXES = {
    "from the start": (),
    "just tripped, a call still under way": TO_HALF_OPEN[:5],
    "half-open, a stale call and a probe under way": TO_HALF_OPEN,
    "half-open, the probe's lease over": (*TO_HALF_OPEN, "long"),
    "one probe succeeded, a stale call under way": (*TO_HALF_OPEN, "ok newest"),
    "two probes at once, a stale call under way": (*TO_HALF_OPEN, "ok newest", "admit", "admit"),
    "recovered, a stale call under way": (*TO_HALF_OPEN, "ok newest", "long", "admit"),
    "open again, the open time doubled": (*TO_HALF_OPEN, "fail newest"),
    "half-open, a probe after four without outcomes": (
        *TO_HALF_OPEN,
        *(3 * ("neutral newest", "admit")),
        *("neutral newest", "short", "admit"),
    ),
}

Make = Callable[[BreakerOptions, Callable[[Transition], None]], Breaker]


class Inlined(Breaker):
    """Is asked as those ask that cannot afford a frame: by the lines in its documentation."""

    def admit(self, now: float) -> int:
        if not self.closed_permit and now < self.refuses_until_s:
            raise self.refusal(now)
        return self.closed_permit or super().admit(now)

    def success(self, permit: int, now: float, took_s: float = 0.0) -> None:
        if permit == self.closed_permit and now < self.slice_ends_s:
            self.successes += 1
        else:
            super().success(permit, now, took_s)


def inlined(options: BreakerOptions, listen: Callable[[Transition], None]) -> Breaker:
    return Inlined(options, name="model", now=0.0, on_transition=listen)


def product(options: BreakerOptions, listen: Callable[[Transition], None]) -> Breaker:
    return Breaker(options, name="model", now=0.0, on_transition=listen)


@dataclass
class Under:
    """A call under way, as the checker remembers it."""

    permit: int
    epoch: int
    is_probe: bool
    admitted_s: float


class Violated(Exception):
    """An invariant does not hold."""


class Checker:
    """Runs one history on a breaker and on its own record, and compares after each step."""

    def __init__(self, make: Make, probes_max: int) -> None:
        self.options = BreakerOptions(
            window_s=100.0,
            minimum_calls=2,
            failure_rate=0.5,
            open_for_s=5.0,
            open_for_max_s=10.0,
            probes_max=probes_max,
            ramp_s=2.0,
            probe_lease_s=10.5,
        )
        self.heard: list[Transition] = []
        self.breaker = make(self.options, self.heard.append)
        self.now = 0.0
        self.under: list[Under] = []
        self.opened_s = 0.0
        # What the ramp of this half-open epoch has come to, counted by what was told, in its order.
        self.good_s: list[float] = []
        # How many probes in turn had no outcome, and until when there is a pause after them.
        self.undecided, self.paused_s = 0, -1.0

    def can(self, operation: str) -> bool:
        if operation.endswith("oldest"):
            return len(self.under) > 1
        return not operation.endswith("newest") or bool(self.under)

    def step(self, operation: str) -> None:
        before, epoch = self.breaker.snapshot(), self.epoch
        verb, _, which = operation.partition(" ")
        if verb == "admit":
            self._admit(before)
        elif verb in ("short", "long"):
            self.now += SHORT_S if verb == "short" else LONG_S
        elif verb in HANDS:
            getattr(self.breaker, verb)(self.now)
        else:
            self._end(verb, self.under.pop(0 if which == "oldest" else -1), before)
        self._check_transitions(before, epoch)

    @property
    def epoch(self) -> int:
        """An epoch is what lies between two changes of state."""
        return len(self.heard)

    def _ramp(self) -> tuple[int, int]:
        """How many may be under way, and the successes towards the next step: it doubles."""
        width, left = 1, len(self.good_s)
        while left >= width and width < self.options.probes_max:
            left -= width
            width = min(2 * width, self.options.probes_max)
        return width, left

    @property
    def width(self) -> int:
        return self._ramp()[0]

    def _is_ramp_over(self) -> bool:
        """Whether it has succeeded often enough, or for long enough, to be closed."""
        width, left = self._ramp()
        is_long = bool(self.good_s) and self.now >= self.good_s[0] + self.options.ramp_s
        return left >= width or is_long

    def _live_probes(self) -> list[Under]:
        """The probes of this epoch whose lease runs: only these may keep another one out."""
        oldest_s = self.now - self.options.probe_lease_s
        mine = [call for call in self.under if call.is_probe and call.epoch == self.epoch]
        return [call for call in mine if call.admitted_s > oldest_s]

    def _admit(self, before: BreakerSnapshot) -> None:
        live, is_over = len(self._live_probes()), self._is_ramp_over()
        try:
            permit = self.breaker.admit(self.now)
        except CircuitOpen as refusal:
            self._check_refusal(before, live, refusal, is_over=is_over)
            return
        if before.state is BreakerState.ISOLATED:
            raise Violated("an isolated breaker sent a call")
        if before.state is BreakerState.OPEN and self.now < self.opened_s + self.options.open_for_s:
            raise Violated("an open breaker sent a call before its time was over")
        is_probe = self.breaker.state is BreakerState.HALF_OPEN
        if is_probe and before.state is BreakerState.HALF_OPEN and self.now < self.paused_s:
            raise Violated("a call was sent in the pause after probes without an outcome")
        if is_probe and before.state is BreakerState.HALF_OPEN and live >= self.width:
            raise Violated("more probes are under way than may be")
        if before.state is BreakerState.HALF_OPEN and is_probe is is_over:
            raise Violated("a call finds it closed exactly when its ramp is over")
        self.under.append(Under(permit, self.epoch, is_probe, self.now))

    def _check_refusal(
        self, before: BreakerSnapshot, live: int, refusal: CircuitOpen, *, is_over: bool
    ) -> None:
        wait_s = refusal.retry_after_s
        if self.breaker.state is not before.state:
            raise Violated("a refusal changed the state")
        if before.state in (BreakerState.CLOSED, BreakerState.DISABLED):
            raise Violated(f"a {before.state.value} breaker refused a call")
        is_paused = self.now < self.paused_s
        if before.state is BreakerState.HALF_OPEN and (
            is_over or (live < self.width and not is_paused)
        ):
            raise Violated("wedged: half-open, no probe lives, and a call was refused")
        if (
            before.state is BreakerState.OPEN
            and self.now >= self.opened_s + self.options.open_for_max_s
        ):
            raise Violated("wedged: open for longer than the longest open time")
        if (wait_s is None) is not (before.state is BreakerState.ISOLATED):
            raise Violated("the time to wait is given exactly unless isolated")
        if wait_s is not None and not 0 < wait_s <= self.options.open_for_max_s:
            raise Violated("the time to wait is not within the open time")

    def _end(self, verb: str, call: Under, before: BreakerSnapshot) -> None:
        is_current = call.epoch == self.epoch
        if verb == "neutral":
            self.breaker.neutral(call.permit, self.now)
        elif verb == "ok":
            self.breaker.success(call.permit, self.now)
        else:
            self.breaker.failure(call.permit, self.now)
        after = self.breaker.snapshot()
        decided = (before.state, before.calls) != (after.state, after.calls)
        if verb == "neutral" and decided:
            raise Violated("a neutral outcome decided something")
        if not is_current and (decided or before.probes != after.probes):
            raise Violated("an outcome of another epoch decided something")
        if verb == "ok" and after.state is BreakerState.OPEN and before.state is not after.state:
            raise Violated("a success opened the breaker")
        is_probe = is_current and before.state is BreakerState.HALF_OPEN
        is_live = is_probe and self.now < call.admitted_s + self.options.probe_lease_s
        # One whose slot was given away counts no more, but for a success.
        is_counted = before.probes > after.probes or (is_probe and verb == "ok")
        if is_live and not is_counted:
            raise Violated("the outcome of a probe was not counted")
        is_good = is_probe and is_counted and verb == "ok"
        if is_probe and is_counted:
            self._note_probe(verb)
        if is_good and (after.state is BreakerState.CLOSED) != self._is_ramp_over():
            raise Violated("it closes exactly at the end of its ramp")
        if verb == "fail" and is_live and after.state is BreakerState.HALF_OPEN:
            raise Violated("a failure in the ramp did not open it")
        has_to = is_current and verb != "neutral" and before.state is BreakerState.CLOSED
        if has_to and not decided:
            raise Violated("an outcome of this epoch was not counted")

    def _note_probe(self, verb: str) -> None:
        """Count the successes of a ramp, and how many probes in turn had no outcome."""
        if verb == "ok":
            self.good_s.append(self.now)
            self.undecided, self.paused_s = 0, -1.0
        elif verb == "neutral":
            self.undecided += 1
            growth = 2.0 ** (self.undecided - UNDECIDED_MAX - 1)
            pause_s = min(UNDECIDED_PAUSE_S * growth, self.options.open_for_s)
            self.paused_s = self.now + pause_s if self.undecided > UNDECIDED_MAX else -1.0

    def _check_transitions(self, before: BreakerSnapshot, epoch: int) -> None:
        state = before.state
        for transition in self.heard[epoch:]:
            step = (transition.before, transition.trigger, transition.after)
            if transition.before is not state or step not in TRANSITIONS:
                raise Violated(f"not a legal transition: {transition}")
            state = transition.after
            self.good_s.clear()
            self.undecided, self.paused_s = 0, -1.0
            if state is BreakerState.OPEN:
                self.opened_s = self.now
        if state is not self.breaker.state:
            raise Violated("the state changed and the listener was not told")


def walk(
    make: Make,
    *,
    depth: int,
    prefix: tuple[str, ...] = (),
    probes_max: int = 1,
    operations: tuple[str, ...] = CALLS + NEUTRAL + TIME,
) -> int:
    """Run every history of up to `depth` operations after the prefix; return how many there were.

    Two short waits in a row are left out: a long one is more.
    """
    ran = 0
    pending = [prefix]
    while pending:
        history = pending.pop()
        checker = Checker(make, probes_max)
        for operation in history:
            try:
                checker.step(operation)
            except Violated as error:
                raise Violated(f"{error}; after: {', '.join(history)}") from None
        ran += 1
        if len(history) < len(prefix) + depth:
            last = history[-1] if history else ""
            pending += [
                (*history, operation)
                for operation in operations
                if checker.can(operation) and not operation == last == "short"
            ]
    return ran


@pytest.mark.parametrize("probes_max", [1, 4])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_every_history_keeps_the_invariants(prefix: tuple[str, ...], probes_max: int) -> None:
    """B1 to B4 hold in all histories of 5 operations from each odd situation, or of 4."""
    depth = 5 - (len(prefix) > len(TO_HALF_OPEN) + 3)
    assert walk(product, depth=depth, prefix=prefix, probes_max=probes_max) > 1_000


@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_every_history_without_its_methods_keeps_the_invariants(prefix: tuple[str, ...]) -> None:
    """B1 to B4 hold for those, too, who write admission and success out where they call."""
    operations = ("admit", "ok oldest", "ok newest", "fail newest", "neutral newest", *TIME, *HANDS)
    assert walk(inlined, depth=4, prefix=prefix, operations=operations) > 500


def test_every_history_with_hands_keeps_the_invariants() -> None:
    """Isolating, disabling and closing by hand break nothing, at whatever moment they come."""
    operations = ("admit", "ok oldest", "fail newest", "neutral newest", "long", *HANDS)
    for prefix in PREFIXES.values():
        assert walk(product, depth=4, prefix=prefix, operations=operations) > 500


class IgnoresEpochs(Breaker):
    """Counts whatever comes."""

    def _counts(self, permit: int) -> bool:
        return self.state in (BreakerState.CLOSED, BreakerState.HALF_OPEN)


class LeasesForEver(Breaker):
    """Waits for a hung probe without end."""

    def _drop_expired(self, now: float) -> None:
        return


class ProbesWithoutBound(Breaker):
    """Forgets the probes that are under way."""

    def _admit_probe(self, now: float) -> int:
        self._probes.clear()
        return super()._admit_probe(now)


class RampsAtOnce(Breaker):
    """Is as wide after one success as after all."""

    def _climb(self, permit: int, now: float) -> None:
        super()._climb(permit, now)
        self._probes_max = self._options.probes_max


class ClosesAtOnce(Breaker):
    """Takes one success for all."""

    def _climb(self, permit: int, now: float) -> None:
        super()._climb(permit, now)
        if self.state is BreakerState.HALF_OPEN:
            self._go(Trigger.RECOVERED, now)


class RampsForEver(Breaker):
    """Waits for a crowd that does not come."""

    def _settle(self, now: float) -> None:
        return


class ForgivesInTheRamp(Breaker):
    """Goes on with the ramp after a failure."""

    def failure(self, permit: int, now: float, took_s: float = 0.0) -> None:
        if self.state is BreakerState.HALF_OPEN and self._probes_max > 1:
            self.neutral(permit, now)
        else:
            super().failure(permit, now, took_s)


class CountsNeutral(Breaker):
    """Takes a cancelled call for a failed one."""

    def neutral(self, permit: int, now: float) -> None:
        self.failure(permit, now)


class AsksWithoutPause(Breaker):
    """Sends the next probe at once, however many had no outcome."""

    def neutral(self, permit: int, now: float) -> None:
        super().neutral(permit, now)
        if self.state is BreakerState.HALF_OPEN:
            self._undecided, self.refuses_until_s = 0, -1.0


class PausesTooLong(Breaker):
    """Keeps a pause over a success."""

    def _climb(self, permit: int, now: float) -> None:
        paused_s = self.refuses_until_s
        super()._climb(permit, now)
        if self.state is BreakerState.HALF_OPEN:
            self.refuses_until_s = max(paused_s, now + 0.001) if paused_s > 0 else paused_s


class KeepsNeutralSlots(Breaker):
    """Does not give the slot of a cancelled probe back before its lease is over."""

    def neutral(self, permit: int, now: float) -> None:
        return


class RestsTooShort(Breaker):
    """Sends before the open time is over."""

    def _rest(self, now: float, *, is_first: bool) -> None:
        super()._rest(now, is_first=is_first)
        self.refuses_until_s = now


class RestsForEver(Breaker):
    """Never asks again."""

    def _rest(self, now: float, *, is_first: bool) -> None:
        self.refuses_until_s = now + 1_000_000.0


class ClosesSilently(Breaker):
    """Skips the listener."""

    def _go(self, trigger: Trigger, now: float) -> None:
        if trigger is Trigger.RECOVERED:
            self._on_transition = None
        super()._go(trigger, now)


class CountsNothing(Breaker):
    """Never trips."""

    def failure(self, permit: int, now: float, took_s: float = 0.0) -> None:
        return


@pytest.mark.parametrize(
    ("fault", "violation"),
    [
        (IgnoresEpochs, "an outcome of another epoch decided something"),
        (LeasesForEver, "wedged: half-open"),
        (ProbesWithoutBound, "more probes are under way than may be"),
        (RampsAtOnce, "more probes are under way than may be"),
        (ClosesAtOnce, "it closes exactly at the end of its ramp"),
        (RampsForEver, "closes exactly at the end|wedged"),
        (ForgivesInTheRamp, "a failure in the ramp did not open it"),
        (CountsNeutral, "a neutral outcome decided something"),
        (KeepsNeutralSlots, "the outcome of a probe was not counted"),
        (AsksWithoutPause, "in the pause after probes without an outcome"),
        (PausesTooLong, "wedged: half-open"),
        (RestsTooShort, "before its time was over"),
        (RestsForEver, "wedged: open"),
        (ClosesSilently, "the listener was not told"),
        (CountsNothing, "was not counted"),
    ],
)
def test_a_planted_fault_is_found(fault: type[Breaker], violation: str) -> None:
    """The checker is not blind: each way to break a breaker breaks an invariant."""

    def make(options: BreakerOptions, listen: Callable[[Transition], None]) -> Breaker:
        return fault(options, name="fault", now=0.0, on_transition=listen)

    def walk_all() -> None:
        for prefix in PREFIXES.values():
            for probes_max in (1, 4):
                walk(make, depth=3, prefix=prefix, probes_max=probes_max)

    with pytest.raises(Violated, match=violation):
        walk_all()


class Reference:
    """Counts a window in the plain way: it keeps every outcome, and looks at all of them.

    An outcome belongs to a tenth of the window by its time, and to the newest one where it is late.
    """

    def __init__(self, options: BreakerOptions) -> None:
        self._options = options
        self._outcomes: list[tuple[int, bool, bool]] = []

    def add(self, now: float, *, is_failure: bool, took_s: float) -> bool:
        """Count an outcome; return whether it trips the breaker."""
        options = self._options
        is_slow = options.slow_after_s is not None and took_s >= options.slow_after_s
        newest = max([tick for tick, _, _ in self._outcomes], default=-1000)
        tick = max(newest, int(now // (options.window_s / 10)))
        self._outcomes = [each for each in self._outcomes if each[0] > tick - 10]
        self._outcomes.append((tick, is_failure, is_slow))
        calls, failures, slow = self.counts
        if calls < options.minimum_calls or not (is_failure or is_slow):
            return False
        return failures >= options.failure_rate * calls or slow >= options.slow_rate * calls

    @property
    def counts(self) -> tuple[int, int, int]:
        failed = [is_failure for _, is_failure, _ in self._outcomes]
        return len(failed), sum(failed), sum(is_slow for _, _, is_slow in self._outcomes)


@pytest.mark.parametrize("make", [product, inlined])
@pytest.mark.parametrize("slow_after_s", [None, 0.5])
@pytest.mark.parametrize("seed", range(10))
def test_the_window_counts_as_a_list_of_all_outcomes_does(
    make: Make, slow_after_s: float | None, seed: int
) -> None:
    """A success that costs a comparison is counted in its slice, and leaves the window with it."""
    rng = random.Random(seed)
    options = BreakerOptions(
        window_s=2.0, minimum_calls=6, failure_rate=0.4, slow_after_s=slow_after_s
    )
    ends = set()
    for _ in range(40):
        breaker, reference, now = make(options, lambda _: None), Reference(options), 0.0
        failing, trips = rng.choice((0.0, 0.2, 0.5)), False
        for _step in range(60):
            now += rng.choice((0.0, 0.0, 0.03, 0.25, 0.5, 3.0, -0.3))
            took_s = rng.choice((0.0, 0.0, 0.0, 0.5))
            is_failure = rng.random() < failing
            tell = breaker.failure if is_failure else breaker.success
            tell(breaker.admit(now), now, took_s)
            trips = reference.add(now, is_failure=is_failure, took_s=took_s)
            assert (breaker.state is BreakerState.OPEN) == trips
            if trips:
                break
            # Looked at only now and then: to look must not be what makes it right.
            if rng.random() < 0.1:
                seen = breaker.snapshot()
                assert (seen.calls, seen.failures, seen.slow) == reference.counts
        ends.add(trips)
    assert ends == {True, False}
