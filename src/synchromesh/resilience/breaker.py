"""A circuit breaker: it stops calls to a callee that fails, and probes for its recovery.

    CLOSED ──tripped──▶ OPEN ──rested──▶ HALF_OPEN ──recovered──▶ CLOSED
                          ▲                  │
                          └──probe failed────┘

and ISOLATED (send nothing) or DISABLED (count nothing) by hand, until closed by hand.

The recovery is a *ramp*: half-open, one call may be under way at once, and twice as many after as
many successes: 1, 2, 4 ... `probes_max`. A callee that has just come back, with caches cold and all
its callers waiting, is not given all of them for one good answer.

It trips by the rate of failures in a window, and by a *row* of failures that has lasted, with no
answer between: where a limit lets few calls through, they are few beside what was answered before.

Three rules that breakers tend to miss. An outcome counts only in the *epoch* its call was admitted
in: a call that was sent before the trip and fails after the recovery decides nothing. A probe holds
a *lease*: one that hangs frees its slot when the lease is over, so that the next does not wait for
its timeout; should it be answered after all, that counts. And a call that was cancelled, or refused
for overload, is *neutral*: it gives its slot back and says nothing about the callee.

Source: Nygard, "Release It!", 2nd ed., section 5.2; guarantees B1 to B4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from synchromesh.chance import Chance
from synchromesh.durations import (
    ABOVE_0,
    BELOW_1,
    FROM_0,
    FROM_1,
    SHARE_ABOVE_0,
    refuse_misfit,
    refuse_wrong_numbers,
)
from synchromesh.errors import CircuitOpen
from synchromesh.resilience.breaker_window import OutcomeWindow


class BreakerState(Enum):
    """Names the states of a circuit breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"
    DISABLED = "disabled"


class Trigger(Enum):
    """Names the causes of a state transition."""

    TRIPPED = "tripped"
    RESTED = "rested"
    RECOVERED = "recovered"
    PROBE_FAILED = "probe failed"
    ISOLATED_BY_HAND = "isolated by hand"
    DISABLED_BY_HAND = "disabled by hand"
    CLOSED_BY_HAND = "closed by hand"


_BY_HAND = {
    Trigger.ISOLATED_BY_HAND: BreakerState.ISOLATED,
    Trigger.DISABLED_BY_HAND: BreakerState.DISABLED,
    Trigger.CLOSED_BY_HAND: BreakerState.CLOSED,
}
# The breaker looks its next state up here, and diagrams are drawn from it: B1 is this table.
TRANSITIONS: tuple[tuple[BreakerState, Trigger, BreakerState], ...] = (
    (BreakerState.CLOSED, Trigger.TRIPPED, BreakerState.OPEN),
    (BreakerState.OPEN, Trigger.RESTED, BreakerState.HALF_OPEN),
    (BreakerState.HALF_OPEN, Trigger.RECOVERED, BreakerState.CLOSED),
    (BreakerState.HALF_OPEN, Trigger.PROBE_FAILED, BreakerState.OPEN),
    *((old, by, new) for by, new in _BY_HAND.items() for old in BreakerState if old is not new),
)
_NEXT = {(before, trigger): after for before, trigger, after in TRANSITIONS}

# A row of `minimum_calls` failures that has lasted so long is no chance, and no burst either.
ROW_S = 1.0

# So many probes in turn may end without an outcome before there are pauses, and the first of them.
UNDECIDED_MAX, UNDECIDED_PAUSE_S = 3, 0.01

_NEW = CircuitOpen.__new__


@dataclass(frozen=True, slots=True)
class BreakerOptions:
    """Configures a circuit breaker: when it trips and how it recovers; rates are 0 to 1.

    Attributes:
        window_s: how far back outcomes count.
        minimum_calls: fewer outcomes in the window never trip it; so many failures in a row do
            that have come for a second, whatever the rate.
        failure_rate: the share of failures in the window that trips it.
        slow_after_s: a call that takes this long counts as slow; None counts none.
        slow_rate: the share of slow calls in the window that trips it.
        open_for_s: how long it stays open after it tripped; doubles with every failed probe.
        open_for_max_s: the longest it stays open.
        open_jitter: the share of the open time that chance may take off, where an rng is given.
        probes_max: how many calls may be under way at once at the end of the ramp; when as many
            more have succeeded, it closes. 1: the first success closes it.
        ramp_s: the ramp ends so long after its first success, however few the calls, unless one
            failed.
        probe_lease_s: how long a probe that does not end keeps the next one out.

    Raises:
        ConfigError: a value is outside its range.

    Example:
        >>> BreakerOptions(failure_rate=0.25).failure_rate
        0.25
    """

    window_s: float = 10.0
    minimum_calls: int = 10
    failure_rate: float = 0.5
    slow_after_s: float | None = None
    slow_rate: float = 0.5
    open_for_s: float = 0.25
    open_for_max_s: float = 0.7
    open_jitter: float = 0.2
    probes_max: int = 32
    ramp_s: float = 1.0
    probe_lease_s: float = 0.7

    def __post_init__(self) -> None:
        refuse_wrong_numbers(
            self, (FROM_1, "minimum_calls probes_max"), (SHARE_ABOVE_0, "failure_rate slow_rate"),
            (ABOVE_0, "window_s slow_after_s open_for_s open_for_max_s probe_lease_s"),
            (BELOW_1, "open_jitter"), (FROM_0, "ramp_s"),
        )  # fmt: skip
        is_fit = self.open_for_max_s >= self.open_for_s
        refuse_misfit(self, "open_for_max_s", is_fit, "at least open_for_s")


@dataclass(frozen=True, slots=True)
class Transition:
    """Reports a state transition of breaker `name` at `at_s` on the loop's clock."""

    name: str
    before: BreakerState
    trigger: Trigger
    after: BreakerState
    at_s: float


@dataclass(frozen=True, slots=True)
class BreakerSnapshot:
    """Captures a breaker's state and the counts of its window.

    `open_until_s` is on the loop's clock, and None unless the breaker is open. While it is
    half-open `probes` calls are under way, of `probes_max` that may be at this point of the ramp.
    """

    name: str
    state: BreakerState
    epoch: int
    calls: int
    failures: int
    slow: int
    probes: int
    probes_max: int
    open_until_s: float | None
    since_s: float


class Breaker:
    """Admits calls or rejects them at once, by the failure rate of a sliding time window.

    `admit` returns a permit, and the outcome of the call is reported with it: `success`, `failure`
    or `neutral`, once. A permit of another epoch is ignored, and that of a probe whose slot was
    given away, unless it succeeds after all. Not for several threads: it belongs to one loop.

    What nearly every call does is open to callers that cannot afford a frame for it. These lines
    are `admit` and `success` where the breaker is closed, and the methods are for all else:

        permit = breaker.closed_permit or breaker.admit(now)
        if permit == breaker.closed_permit and now < breaker.slice_ends_s:
            breaker.successes += 1
        else:
            breaker.success(permit, now, took_s)

    Args:
        options: when it trips and how it recovers.
        name: which edge it guards, for messages.
        now: the time of the loop's clock.
        rng: spreads the ends of open times; None leaves them exact.
        on_transition: called after each change of state; must not raise.

    Attributes:
        closed_permit: the permit of this epoch while the breaker is closed, and 0 in any other
            state: one look tells state and epoch.
        refuses_until_s: every call is refused before this time, and `refusal` says why; infinite
            where only a hand ends it. From then on `admit` decides.
        slice_ends_s: until when a success needs no more than `successes += 1`; never where slow
            answers count, for then each has to be looked at.
        successes: those of the current slice of the window that are counted here alone.

    Example:
        >>> breaker = Breaker(BreakerOptions(minimum_calls=1), name="orders -> billing", now=0.0)
        >>> breaker.failure(breaker.admit(0.0), 0.1)
        >>> breaker
        <Breaker orders -> billing open until 0.350>
        >>> breaker.success(breaker.admit(0.4), 0.5)
        >>> breaker
        <Breaker orders -> billing half_open 0/2 probes>
        >>> breaker.success(breaker.admit(1.6), 1.7)  # a second later, and nothing has failed
        >>> breaker.state.value
        'closed'
    """

    __slots__ = (
        "_epoch", "_first_permit", "_name", "_on_transition", "_open_for_s", "_options", "_permit",
        "_probes", "_probes_max", "_ramp_ends_s", "_refusal", "_rng", "_row", "_row_began_s",
        "_since_s", "_state", "_succeeded", "_undecided", "_window", "closed_permit",
        "refuses_until_s", "slice_ends_s", "successes",
    )  # fmt: skip

    def __init__(
        self,
        options: BreakerOptions,
        *,
        name: str,
        now: float,
        rng: Chance | None = None,
        on_transition: Callable[[Transition], None] | None = None,
    ) -> None:
        self._options = options
        self._name = name
        self._rng = rng
        self._on_transition = on_transition
        self._state = BreakerState.CLOSED
        self._since_s = now
        self._window = OutcomeWindow(options.window_s)
        self._epoch = 0
        # One permit serves a whole epoch; each probe is given a number of its own, so that one
        # whose lease is over cannot free or decide for the probe that took its slot.
        self._permit = self._first_permit = self.closed_permit = 1
        self._probes: dict[int, float] = {}
        self._probes_max = 1
        self._succeeded = self._undecided = self._row = 0
        self._ramp_ends_s = math.inf
        self._open_for_s = options.open_for_s
        self.refuses_until_s = -math.inf
        self._refusal = ""
        self.slice_ends_s = -math.inf
        self.successes = 0

    @property
    def name(self) -> str:
        """The edge it guards."""
        return self._name

    @property
    def state(self) -> BreakerState:
        """The state as of the last call or outcome: rest and ramp end only when a call asks."""
        return self._state

    def admit(self, now: float) -> int:
        """Return a permit for one call, or reject the call at once.

        Raises:
            CircuitOpen: nothing may be sent. `retry_after_s` says when to ask again, and is None
                while the breaker is isolated by hand.
        """
        if self.closed_permit:
            return self.closed_permit
        if now < self.refuses_until_s:
            raise self.refusal(now)
        if self._state is BreakerState.DISABLED:
            return self._permit
        if self._state is BreakerState.OPEN:
            self._go(Trigger.RESTED, now)
        return self._admit_probe(now)

    def is_refusing(self, now: float) -> bool:
        """Tell whether a call that came at `now` would be refused; nothing is changed."""
        live = sum(ends_s > now for ends_s in self._probes.values())
        return now < self.refuses_until_s or (live >= self._probes_max and now < self._ramp_ends_s)

    def refusal(self, now: float) -> CircuitOpen:
        """Return the error of a call that comes before `refuses_until_s`."""
        # An open breaker has to be cheaper than the call that it saves. The text is made once, when
        # it opens, and `__new__` spares the frames of `__init__`, which would only set defaults.
        error = _NEW(CircuitOpen, self._refusal)
        error.message = self._refusal
        if self.refuses_until_s < math.inf:
            error.retry_after_s = self.refuses_until_s - now
        return error

    def success(self, permit: int, now: float, took_s: float = 0.0) -> None:
        """Record a success: the callee answered, `took_s` seconds after it was called."""
        if permit == self.closed_permit and now < self.slice_ends_s:
            self.successes += 1
            return
        is_slow = self._is_slow(took_s)
        if self._state is BreakerState.HALF_OPEN:
            if not is_slow and permit > self._first_permit:
                self._climb(permit, now)
            elif self._counts(permit):
                self._go(Trigger.PROBE_FAILED, now)
            return
        if not self._counts(permit):
            return
        self._row = 0
        self._add(now, is_failure=False, is_slow=is_slow)
        if is_slow:
            self._trip_if_due(now)

    def failure(self, permit: int, now: float, took_s: float = 0.0) -> None:
        """Record a failure of the callee, `took_s` seconds after it was called."""
        if not self._counts(permit):
            return
        if self._state is BreakerState.HALF_OPEN:
            self._go(Trigger.PROBE_FAILED, now)
            return
        if self.successes or not self._row:
            self._row, self._row_began_s = 0, now
        self._row += 1
        self._add(now, is_failure=True, is_slow=self._is_slow(took_s))
        self._trip_if_due(now)

    def neutral(self, permit: int, now: float) -> None:
        """Release the permit without an outcome: the call was cancelled, or shed.

        Of a probe that says nothing either way; the next may be sent at once. After several of them
        in turn there are growing pauses: a callee that is full, or stalls, is not asked by all who
        come, as if it were well.
        """
        if self._probes.pop(permit, None) is None:
            return
        self._undecided += 1
        if self._undecided > UNDECIDED_MAX:
            doublings = min(self._undecided - UNDECIDED_MAX - 1, 16)
            pause_s = min(UNDECIDED_PAUSE_S * 2.0**doublings, self._options.open_for_s)
            # A ramp that is over has closed it.
            self.refuses_until_s = min(now + pause_s, self._ramp_ends_s)
            self._refusal = (
                f"the circuit breaker {self._name} is half-open, and its last probes had no "
                "outcome; nothing was sent, ask again soon"
            )

    def isolate(self, now: float) -> None:
        """Force the breaker open: reject every call until `close` or `disable`."""
        self._by_hand(Trigger.ISOLATED_BY_HAND, now)

    def disable(self, now: float) -> None:
        """Disable the breaker: admit every call and count none until `close` or `isolate`."""
        self._by_hand(Trigger.DISABLED_BY_HAND, now)

    def close(self, now: float) -> None:
        """Close it with an empty window, whatever its state; a closed one is left as it is."""
        self._by_hand(Trigger.CLOSED_BY_HAND, now)

    def snapshot(self, now: float = -math.inf) -> BreakerSnapshot:
        """Return its state and counts; a ramp that is over at `now` has ended, without a call."""
        self._settle(now)
        self._fold()
        is_open = self._state is BreakerState.OPEN
        return BreakerSnapshot(
            name=self._name,
            state=self._state,
            epoch=self._epoch,
            calls=self._window.calls,
            failures=self._window.failures,
            slow=self._window.slow,
            probes=len(self._probes),
            probes_max=self._probes_max,
            open_until_s=self.refuses_until_s if is_open else None,
            since_s=self._since_s,
        )

    def __repr__(self) -> str:
        if self._state is BreakerState.CLOSED:
            more = f" {self._window.failures}/{self._window.calls + self.successes} failed"
        elif self._state is BreakerState.OPEN:
            more = f" until {self.refuses_until_s:.3f}"
        elif self._state is BreakerState.HALF_OPEN:
            more = f" {len(self._probes)}/{self._probes_max} probes"
        else:
            more = ""
        return f"<Breaker {self._name} {self._state.value}{more}>"

    def _admit_probe(self, now: float) -> int:
        self._settle(now)
        if self.closed_permit:
            return self.closed_permit
        if len(self._probes) >= self._probes_max:
            self._drop_expired(now)
        if len(self._probes) >= self._probes_max:
            wait_s = min(self._open_for_s, min(self._probes.values()) - now)
            raise CircuitOpen(
                f"the circuit breaker {self._name} is half-open with {len(self._probes)} probes "
                f"under way, nothing was sent; ask again in {wait_s:.3f} s",
                retry_after_s=wait_s,
            )
        self._permit += 1
        self._probes[self._permit] = now + self._options.probe_lease_s
        return self._permit

    def _climb(self, permit: int, now: float) -> None:
        """Count a success of the ramp: it is doubled after as many as its width, or is over."""
        self._probes.pop(permit, None)
        self._succeeded += 1
        self._undecided, self.refuses_until_s = 0, -math.inf
        self._ramp_ends_s = min(self._ramp_ends_s, now + self._options.ramp_s)
        is_wide = self._succeeded >= self._probes_max
        if is_wide and self._probes_max >= self._options.probes_max:
            self._ramp_ends_s = now
        elif is_wide:
            self._succeeded = 0
            self._probes_max = min(self._probes_max * 2, self._options.probes_max)
        self._settle(now)

    def _settle(self, now: float) -> None:
        if now >= self._ramp_ends_s:
            self._go(Trigger.RECOVERED, now)

    def _drop_expired(self, now: float) -> None:
        self._probes = {permit: at_s for permit, at_s in self._probes.items() if at_s > now}

    def _counts(self, permit: int) -> bool:
        if self._state is BreakerState.HALF_OPEN:
            return permit in self._probes
        return self._state is BreakerState.CLOSED and permit == self._permit

    def _add(self, now: float, *, is_failure: bool, is_slow: bool) -> None:
        self._fold()
        self._window.add(now, is_failure=is_failure, is_slow=is_slow)
        if self._options.slow_after_s is None:
            self.slice_ends_s = self._window.ends_s

    def _fold(self) -> None:
        """Put the successes that were only counted into the slice that they came in."""
        if self.successes:
            self._window.add_successes(self.successes)
            self.successes = 0

    def _is_slow(self, took_s: float) -> bool:
        slow_after_s = self._options.slow_after_s
        return slow_after_s is not None and took_s >= slow_after_s

    def _trip_if_due(self, now: float) -> None:
        window, options = self._window, self._options  # asked only after a bad outcome
        if window.calls < options.minimum_calls:
            return
        if (
            window.failures >= options.failure_rate * window.calls
            or (self._row >= options.minimum_calls and now >= self._row_began_s + ROW_S)
            or window.slow >= options.slow_rate * window.calls
        ):
            self._go(Trigger.TRIPPED, now)

    def _by_hand(self, trigger: Trigger, now: float) -> None:
        if (self._state, trigger) in _NEXT:
            self._go(trigger, now)

    def _go(self, trigger: Trigger, now: float) -> None:
        before, after = self._state, _NEXT[self._state, trigger]
        self._state, self._since_s = after, now
        self._epoch += 1
        self._permit += 1
        self._first_permit = self._permit
        self.closed_permit = self._permit if after is BreakerState.CLOSED else 0
        self.refuses_until_s = -math.inf
        self._probes.clear()
        self._probes_max, self._succeeded, self._ramp_ends_s = 1, 0, math.inf
        self._undecided = self._row = 0
        if after is BreakerState.OPEN:
            self._rest(now, is_first=before is BreakerState.CLOSED)
        elif after is BreakerState.ISOLATED:
            self.refuses_until_s = math.inf
            self._refusal = (
                f"the circuit breaker {self._name} is isolated by hand, nothing was sent; "
                "close it by hand to allow calls"
            )
        elif after is BreakerState.CLOSED:
            self._window.clear()
            self.successes, self.slice_ends_s = 0, -math.inf
        if self._on_transition is not None:
            self._on_transition(Transition(self._name, before, trigger, after, now))

    def _rest(self, now: float, *, is_first: bool) -> None:
        options = self._options
        doubled_s = min(self._open_for_s * 2, options.open_for_max_s)
        self._open_for_s = options.open_for_s if is_first else doubled_s
        share = 1.0 if self._rng is None else 1.0 - options.open_jitter * self._rng.random()
        rest_s = self._open_for_s * share
        self.refuses_until_s = now + rest_s
        self._refusal = (
            f"the circuit breaker {self._name} is open for {rest_s:.3g} s, nothing was sent; "
            "ask again when they are over"
        )
