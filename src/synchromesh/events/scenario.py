"""Given events, when a command, then events: tests of a decider that read as its specification."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from synchromesh.errors import Rejection
from synchromesh.events.decider import Decider, Decision

S = TypeVar("S")
C = TypeVar("C")
R = TypeVar("R")


def given(decider: Decider[S, C, R], *events: object) -> Given[S, C, R]:
    """Start a scenario with what has happened.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Sold:
        ...     qty: int
        >>> sales = Decider(
        ...     "sales",
        ...     initial=0,
        ...     decide=lambda qty, sold: Decision(sold + qty, (Sold(qty),)),
        ...     evolve=lambda sold, event: sold + event.qty,
        ...     events=(Sold,),
        ... )
        >>> _ = given(sales, Sold(1)).when(2).then(Sold(2)).returns(3)
    """
    return Given(decider, events)


class Given(Generic[S, C, R]):
    """Holds what has happened, until a command comes.

    Example:
        >>> count = Decider("count", 0, lambda n, s: Decision(s + n), lambda s, e: s + e, (int,))
        >>> _ = given(count, 1, 2).when(4).returns(7)
    """

    def __init__(self, decider: Decider[S, C, R], events: tuple[object, ...]) -> None:
        self._decider = decider
        self._events = events

    def when(self, command: C) -> When[R]:
        """Run a command; a `Rejection` is an outcome, other errors pass."""
        state = self._decider.fold(self._events)
        try:
            decision = self._decider.decide(command, state)
        except Rejection as rejection:
            return When(command, rejection)
        self._decider.check(decision)
        return When(command, decision)


class When(Generic[R]):
    """Checks what a command led to; its methods raise AssertionError unless it is as they say.

    Example:
        >>> count = Decider("count", 0, lambda n, s: Decision(s + n), lambda s, e: s + e, (int,))
        >>> given(count, 1).when(4).returns(6)
        Traceback (most recent call last):
        AssertionError: 4 returned 5, expected 6
    """

    def __init__(self, command: object, outcome: Decision[R] | Rejection) -> None:
        self._command = command
        self._outcome = outcome

    def then(self, *events: object) -> When[R]:
        """Expect exactly these events, in this order; none means that nothing happened."""
        made = self._decision().events
        if tuple(made) != events:
            raise AssertionError(f"{self._command!r} made {_list(made)}, expected {_list(events)}")
        return self

    def returns(self, value: R) -> When[R]:
        """Expect this result."""
        result = self._decision().result
        if result != value:
            raise AssertionError(f"{self._command!r} returned {result!r}, expected {value!r}")
        return self

    def rejects(self, rejection: type[Rejection], **details: Any) -> When[R]:
        """Expect a rejection of this class; of its details, those that are given are compared."""
        outcome = self._outcome
        if not isinstance(outcome, rejection):
            made = outcome if isinstance(outcome, Rejection) else _list(outcome.events)
            raise AssertionError(
                f"{self._command!r} led to {made!r}, expected the rejection {rejection.__name__}"
            )
        found = {name: outcome.details.get(name) for name in details}
        if found != details:
            raise AssertionError(
                f"{self._command!r} was rejected with {found!r}, expected {details!r}"
            )
        return self

    def _decision(self) -> Decision[R]:
        if isinstance(self._outcome, Rejection):
            raise AssertionError(f"{self._command!r} was rejected: {self._outcome!r}")
        return self._outcome


def _list(events: tuple[object, ...]) -> str:
    return ", ".join(repr(event) for event in events) or "no event"
