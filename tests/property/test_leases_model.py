"""Leases against a reference so simple that it is obviously right."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from synchromesh.discovery import Endpoint, LeaseOptions, LeaseTable, Resolved
from synchromesh.errors import StaleIncarnation, UnknownInstance

NAMES = st.sampled_from("abcde")
TTL_S, GUARD_S = 3.0, 9.0


def at(instance: str) -> Endpoint:
    return Endpoint(instance, "billing", f"sim://{instance}")


class LeasesAgainstReference(RuleBasedStateMachine):
    """With the guard off, the table is a dict of expiry times that is filtered by the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = LeaseTable(LeaseOptions(ttl_s=TTL_S, mass_expiry_max=1.0))
        self.expires_s: dict[str, float] = {}
        self.incarnation: dict[str, int] = {}
        self.draining: set[str] = set()
        self.suspects: set[str] = set()
        self.heard = Resolved(())

    @rule(name=NAMES)
    def grant(self, name: str) -> None:
        change = self.table.grant(at(name), now=self.now)
        assert change.lease is not None
        self.incarnation[name] = change.lease.incarnation
        self.expires_s[name] = self.now + TTL_S
        self.draining.discard(name)
        self.suspects.discard(name)
        self.heard = change.resolved

    @rule(name=NAMES, is_suspect=st.booleans())
    def suspect(self, name: str, is_suspect: bool) -> None:
        if name in self.expires_s:
            change = self.table.suspect(name, self.incarnation[name], is_suspect=is_suspect)
            assert (change is None) is ((name in self.suspects) is is_suspect)
            (self.suspects.add if is_suspect else self.suspects.discard)(name)
            self.heard = self.heard if change is None else change.resolved

    @rule(name=NAMES)
    def renew(self, name: str) -> None:
        if name in self.expires_s:
            assert self.table.renew(name, self.incarnation[name], now=self.now) is None
            self.expires_s[name] = self.now + TTL_S
        else:
            with pytest.raises(UnknownInstance):
                self.table.renew(name, self.incarnation.get(name, 0), now=self.now)

    @rule(name=NAMES, older=st.integers(1, 3))
    def renew_stale(self, name: str, older: int) -> None:
        if name in self.expires_s:
            with pytest.raises(StaleIncarnation):
                self.table.renew(name, self.incarnation[name] - older, now=self.now)

    @rule(name=NAMES)
    def drain(self, name: str) -> None:
        if name in self.expires_s:
            change = self.table.drain(name, self.incarnation[name])
            assert (change is None) is (name in self.draining)
            self.draining.add(name)
            self.heard = self.heard if change is None else change.resolved

    @rule(name=NAMES)
    def end(self, name: str) -> None:
        if self.expires_s.pop(name, None) is not None:
            self.heard = self.table.end(name, self.incarnation[name]).resolved
            self.draining.discard(name)
            self.suspects.discard(name)

    # A sweep that comes a whole ttl too late believes nothing at once: its machine has slept.
    @rule(step_s=st.floats(0.0, TTL_S, exclude_max=True))
    def pass_time(self, step_s: float) -> None:
        self.now += step_s
        for change in self.table.sweep(now=self.now):
            self.heard = change.resolved
        self.expires_s = {n: s for n, s in self.expires_s.items() if s > self.now}
        self.draining &= set(self.expires_s)
        self.suspects &= set(self.expires_s)

    @invariant()
    def lists_exactly_the_living(self) -> None:
        ready = set(self.expires_s) - self.draining
        listed = ready - self.suspects or ready
        assert self.table.listed() == Resolved(tuple(at(name) for name in sorted(listed)))

    @invariant()
    def a_watcher_knows_the_list(self) -> None:
        assert self.heard == self.table.listed()

    @invariant()
    def is_due_when_the_first_expires(self) -> None:
        assert self.table.due_s() == min(self.expires_s.values(), default=None)


class GuardedLeases(RuleBasedStateMachine):
    """With the guard on: nothing vanishes in a mass unmarked, and nothing stays listed for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.table = LeaseTable(LeaseOptions(ttl_s=TTL_S, guard_s=GUARD_S))
        self.incarnation: dict[str, int] = {}
        self.heard_s: dict[str, float] = {}

    @rule(name=NAMES)
    def is_heard(self, name: str) -> None:
        try:
            self.table.renew(name, self.incarnation.get(name, 0), now=self.now)
        except UnknownInstance:
            change = self.table.grant(at(name), now=self.now)
            assert change.lease is not None
            self.incarnation[name] = change.lease.incarnation
        self.heard_s[name] = self.now

    @rule(step_s=st.floats(0.0, 4.0))
    def pass_time(self, step_s: float) -> None:
        before = self.names()
        was_stale = self.table.is_stale
        self.now += step_s
        self.table.sweep(now=self.now)
        gone = before - self.names()
        if len(before) >= 3 and not was_stale:
            assert len(gone) <= len(before) / 2

    def names(self) -> set[str]:
        return {lease.endpoint.instance for lease in self.table.leases}

    @invariant()
    def the_living_are_listed(self) -> None:
        living = {n for n, s in self.heard_s.items() if self.now < s + TTL_S}
        assert living <= self.names()

    @invariant()
    def the_silent_are_listed_only_as_stale_and_not_for_ever(self) -> None:
        self.table.sweep(now=self.now)
        silent = {n for n in self.names() if self.now >= self.heard_s[n] + TTL_S}
        assert bool(silent) is self.table.is_stale
        # Time passes at most 4 s between sweeps, so the guard began at most that late.
        for name in silent:
            assert self.now < self.heard_s[name] + TTL_S + 4.0 + GUARD_S


TestLeasesAgainstReference = LeasesAgainstReference.TestCase
TestGuardedLeases = GuardedLeases.TestCase
for case in (TestLeasesAgainstReference, TestGuardedLeases):
    case.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
