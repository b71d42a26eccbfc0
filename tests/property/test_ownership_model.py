"""Duties have one owner under an epoch, and each gets one, whatever dies, stands still or comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from synchromesh.store.ownership import DutyTurn, Ownership, View, assign

DUTIES = frozenset({"relay/billing", "sagas/0", "sagas/1"})


@dataclass
class Replica:
    """One life of a process: its machine, and what it believes to own and has yet to stop."""

    machine: Ownership
    able: frozenset[str] = DUTIES
    stopping: set[str] = field(default_factory=set)
    pending: DutyTurn | None = None


@dataclass
class World:
    """The rows of the database, and replicas that act on them in any order."""

    replicas: dict[str, Replica] = field(default_factory=dict)
    leases: dict[str, frozenset[str]] = field(default_factory=dict)
    owners: dict[str, tuple[str, int]] = field(default_factory=dict)
    granted: Counter[tuple[str, int]] = field(default_factory=Counter)

    def come(self, name: str, able: frozenset[str] = DUTIES) -> None:
        self.replicas[name] = Replica(Ownership(name), able)

    def look(self, name: str) -> None:
        """The first half of a turn: what it has stopped is given back, it renews, and decides."""
        replica = self.replicas[name]
        back = replica.machine.to_give_back
        for duty, epoch in back.items():
            if self.owners.get(duty) == (name, epoch):
                self.owners[duty] = ("", epoch)
        replica.machine.given_back(back)
        self.leases[name] = replica.able
        turn = replica.machine.turn(View(dict(self.leases), dict(self.owners)), replica.able)
        replica.stopping |= turn.lost
        replica.pending = turn

    def claim(self, name: str, *, is_told: bool = True) -> None:
        """The second half: the database grants what is free by now; the answer may be lost."""
        replica = self.replicas[name]
        assert replica.pending is not None
        claims, replica.pending = replica.pending.claims, None
        epochs = {}
        for duty in sorted(claims):
            owner, epoch = self.owners.get(duty, ("", 0))
            if owner not in self.leases:
                epochs[duty] = epoch + 1
                self.owners[duty] = (name, epoch + 1)
                self.granted[duty, epoch + 1] += 1
        if is_told:
            replica.machine.claimed(epochs)

    def end(self, name: str) -> None:
        """What is to stop there has stopped."""
        replica = self.replicas[name]
        replica.machine.stopped(replica.stopping)
        replica.stopping.clear()

    def expire(self, name: str) -> None:
        """It stands still, or is dead: its lease runs out."""
        self.leases.pop(name, None)

    def may_write(self, name: str, duty: str) -> bool:
        """What the fence says."""
        epoch = self.replicas[name].machine.epoch(duty)
        return epoch > 0 and self.owners.get(duty) == (name, epoch)

    def check(self) -> None:
        assert set(self.granted.values()) <= {1}, "an epoch was granted twice"
        for duty in DUTIES:
            assert sum(self.may_write(name, duty) for name in self.replicas) <= 1
        for replica in self.replicas.values():
            # What is still stopping here is not begun here.
            assert not replica.stopping & replica.machine.owned

    def settle(self, *gone: str) -> None:
        """Let all that live take a few turns, and check that each duty is done by one of them."""
        for name in gone:
            self.expire(name)
        alive = [name for name in self.replicas if name not in gone]
        for _ in range(4):
            for name in alive:
                if self.replicas[name].pending is not None:
                    self.claim(name)
                self.look(name)
                self.claim(name)
                self.end(name)
                self.check()
        for duty in DUTIES:
            able = [name for name in alive if duty in self.replicas[name].able]
            doing = [name for name in alive if self.may_write(name, duty)]
            assert len(doing) == min(1, len(able)), (duty, self)


def steps(world: World, names: str) -> Iterator[World]:
    """Every world that one step leads to."""
    for name in names:
        replica = world.replicas[name]
        for act in ("look", "claim", "unheard", "end", "expire"):
            if act in ("claim", "unheard") and replica.pending is None:
                continue
            if act == "look" and replica.pending is not None:
                continue
            if (act == "end" and not replica.stopping) or (
                act == "expire" and name not in world.leases
            ):
                continue
            after = deepcopy(world)
            if act == "unheard":
                after.claim(name, is_told=False)
            else:
                getattr(after, act)(name)
            yield after


def test_every_interleaving_of_two_replicas_to_a_bound() -> None:
    """One owner under an epoch in each world; from each, all duties find an owner."""
    start = World()
    for name in "ab":
        start.come(name)
    seen, front = {repr(start)}, [start]
    for _ in range(7):
        reached = []
        for world in front:
            for after in steps(world, "ab"):
                if (key := repr(after)) not in seen:
                    seen.add(key)
                    after.check()
                    reached.append(after)
        front = reached
    assert len(seen) > 500
    for world in front[:: max(1, len(front) // 200)]:
        for gone in ("", "a", "b"):
            deepcopy(world).settle(*gone)


class Duties(RuleBasedStateMachine):
    """Replicas come, act, stand still, die, and are released anew, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.count = 0

    @rule(able=st.sets(st.sampled_from(sorted(DUTIES)), min_size=1))
    @precondition(lambda self: self.count < 5)
    def come(self, able: set[str]) -> None:
        self.count += 1
        self.world.come(f"r{self.count}", frozenset(able))

    @rule(data=st.data(), act=st.sampled_from(["look", "claim", "unheard", "end", "expire"]))
    @precondition(lambda self: self.world.replicas)
    def act(self, data: st.DataObject, act: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.replicas)))
        if self.world.replicas[name].pending is not None:
            self.world.claim(name, is_told=act != "unheard")
        elif act == "expire":
            self.world.expire(name)
        elif act == "end":
            self.world.end(name)
        else:
            self.world.look(name)

    @rule(data=st.data())
    @precondition(lambda self: len(self.world.replicas) > 1)
    def die(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.replicas)))
        del self.world.replicas[name]
        self.world.expire(name)

    @invariant()
    def one_owner_an_epoch(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if self.world.replicas:
            self.world.settle()


TestDuties = Duties.TestCase
TestDuties.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.integers(1, 12), st.data())
@settings(max_examples=30, deadline=None)
def test_shares_are_even_and_few_duties_move(count: int, data: st.DataObject) -> None:
    """Nobody has more than its share of a kind; one that leaves moves few but its own."""
    duties = frozenset(f"sagas/{n}" for n in range(60)) | {f"relay/{n}" for n in range(5)}
    replicas = {f"r{n}": duties for n in range(count)}
    before = assign(replicas)
    for kind in ("sagas/", "relay/"):
        loads = Counter(owner for duty, owner in before.items() if duty.startswith(kind))
        full = -(-sum(loads.values()) // count)
        assert max(loads.values()) <= full
    if count > 1:
        gone = data.draw(st.sampled_from(sorted(replicas)))
        after = assign({name: its for name, its in replicas.items() if name != gone})
        moved = sum(before[duty] not in (gone, after[duty]) for duty in duties)
        assert moved <= len(duties) // 2


@pytest.mark.parametrize("missing", sorted(DUTIES))
def test_what_only_one_release_knows_is_its_own(missing: str) -> None:
    """A duty goes to who is able to do it, whatever its share."""
    meant = assign({"old": DUTIES - {missing}, "new": DUTIES})
    assert meant[missing] == "new"
    assert assign({}) == {}
