"""Event sourcing by a pure decider: state is a fold of events, a command decides on new ones.

    events ──evolve──▶ state ──decide(command)──▶ Decision | Rejection

Nothing in it waits, knows the time or the store, so that it is tested with given/when/then;
`sourcing.decide` runs one against a stream.

Source: Chassaing, "Functional Event Sourcing Decider", 2021; Young, "CQRS Documents", 2010.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from synchromesh.durations import FROM_0, FROM_1, refuse_wrong_numbers
from synchromesh.errors import ContractError

S = TypeVar("S")
C = TypeVar("C")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Decision(msgspec.Struct, Generic[R_co], frozen=True):
    """Returns what a command led to: the result, and the events that happened, oldest first.

    Example:
        >>> Decision("held", ("first", "second")).events
        ('first', 'second')
    """

    result: R_co
    events: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Decider(Generic[S, C, R]):
    """Decide on commands for one kind of stream; all of it is pure.

    Attributes:
        name: the kind; the stream of id x is `name/x`.
        initial: the state of a stream without events.
        decide: (command, state) to a `Decision`, or raises a `Rejection`.
        evolve: (state, event) to the next state; total over `events`, and never refuses.
        events: the event classes that it makes.
        version: raised when `evolve` makes another state of the same events by a change that is
            not in its own code: snapshots that the code before took are then not used.
        state: the type of the state, for snapshots; by default what `evolve` says it returns.
        snapshot_every: events of a stream between two snapshots; 0 takes none.

    Example:
        >>> @dataclass(frozen=True)
        ... class Sold:
        ...     qty: int
        >>> def sell(qty: int, sold: int) -> Decision[int]:
        ...     return Decision(sold + qty, (Sold(qty),))
        >>> def add(sold: int, event: Sold) -> int:
        ...     return sold + event.qty
        >>> sales = Decider("sales", initial=0, decide=sell, evolve=add, events=(Sold,))
        >>> sales.decide(2, sales.fold([Sold(1), Sold(3)])).result
        6
    """

    name: str
    initial: S
    decide: Callable[[C, S], Decision[R]]
    evolve: Callable[[S, Any], S]
    events: tuple[type, ...]
    version: int = 1
    state: Any = None
    snapshot_every: int = 100

    def __post_init__(self) -> None:
        refuse_wrong_numbers(self, (FROM_1, "version"), (FROM_0, "snapshot_every"))

    def fold(self, events: Iterable[object]) -> S:
        """Fold events into a state."""
        state = self.initial
        for event in events:
            state = self.evolve(state, event)
        return state

    def stream(self, stream_id: str) -> str:
        """Return the name of the stream of an id."""
        return f"{self.name}/{stream_id}"

    def check(self, decision: Decision[R]) -> None:
        """Validate a decision: raise `ContractError` for an event that `events` does not list."""
        for event in decision.events:
            if type(event) not in self.events:
                raise ContractError(
                    f"decider {self.name!r} made a {type(event).__qualname__}, which its events= "
                    "does not list; add it there"
                )
