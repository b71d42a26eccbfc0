"""The window against a reference so simple that it is obviously right."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from synchromesh.messaging import Window

IN_FLIGHT_MAX, HELD_MAX = 3, 12


class WindowAgainstReference(RuleBasedStateMachine):
    """The reference is the list of all positions with their scopes, and a set of those done."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(0, in_flight_max=IN_FLIGHT_MAX, held_max=HELD_MAX)
        self.log: list[tuple[int, str]] = []
        self.done: set[int] = set()
        self.sent: list[int] = []
        self.acknowledged: list[int] = []

    def waiting(self) -> list[tuple[int, str]]:
        return [(at, scope) for at, scope in self.log if at not in self.done]

    def heads(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for at, scope in self.waiting():
            found.setdefault(scope, at)
        return found

    def under_way(self) -> set[int]:
        return set(self.sent) - set(self.acknowledged)

    @precondition(lambda self: self.window.room > 0)
    @rule(step=st.integers(1, 3), scope=st.sampled_from("abcde"))
    def add(self, step: int, scope: str) -> None:
        position = self.window.newest + step
        self.window.add(position, scope)
        self.log.append((position, scope))

    @precondition(lambda self: self.window.room > 0)
    @rule(step=st.integers(1, 3))
    def skip(self, step: int) -> None:
        position = self.window.newest + step
        self.window.skip(position)
        self.log.append((position, ""))
        self.done.add(position)

    @rule()
    def send(self) -> None:
        sent = self.window.ready()
        before = self.under_way()
        heads = self.heads()
        # Only the oldest of its scope, none that is under way already.
        assert set(sent) <= set(heads.values()) - before
        assert len(sent) == len(set(sent))
        self.sent += sent
        # And as many as may: either the bound is reached, or every scope has one under way.
        now = self.under_way()
        assert len(now) == IN_FLIGHT_MAX or set(heads.values()) <= now

    @precondition(lambda self: bool(self.under_way()))
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        position = data.draw(st.sampled_from(sorted(self.under_way())))
        self.window.acknowledge(position)
        self.acknowledged.append(position)
        self.done.add(position)

    @invariant()
    def bounds_hold(self) -> None:
        assert len(self.under_way()) <= IN_FLIGHT_MAX
        scopes = [scope for at, scope in self.log if at in self.under_way()]
        assert len(scopes) == len(set(scopes))
        assert 0 <= self.window.room <= HELD_MAX

    @invariant()
    def checkpoint_is_the_closed_prefix(self) -> None:
        waiting = self.waiting()
        first = waiting[0][0] if waiting else self.window.newest + 1
        closed = [at for at, _ in self.log if at < first]
        assert self.window.checkpoint == (closed[-1] if closed else 0)
        held = [at for at, _ in self.log if at > self.window.checkpoint]
        assert self.window.room == HELD_MAX - len(held)

    @invariant()
    def each_scope_is_acknowledged_in_order(self) -> None:
        scopes = dict(self.log)
        for scope in "abcde":
            mine = [at for at in self.acknowledged if scopes[at] == scope]
            assert mine == sorted(mine)


TestWindow = WindowAgainstReference.TestCase
TestWindow.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
