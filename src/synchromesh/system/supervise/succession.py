"""Which process of a part is current, and which one it replaces: a pure machine.

    DOWN ──asked──▶ MAKING ──made──▶ STARTING ──ready──▶ UP
    UP ──asked──▶ REPLACING ──made──▶ LOADING ──loaded──▶ LETTING_GO ──before ended──▶ STARTING
                                         └──────ready──▶ DRAINING ──before ended──▶ UP

A successor that is not made, or ends while it is loaded, replaces nothing: UP. Where the one before
ends while its successor is loaded, that one merely starts: STARTING. A current process that ends
leaves the part DOWN, or LEAVING until the one before has ended too. So one is made only where none
is being made, and every process is known until it has ended.
"""

from __future__ import annotations

from enum import Enum
from typing import Generic, TypeVar

P = TypeVar("P")


class State(Enum):
    """The state of a part, by its current process and its predecessor."""

    DOWN = "down"
    MAKING = "making"  # the first, or the next of one that ended
    STARTING = "starting"  # alone, and not ready
    UP = "up"
    REPLACING = "replacing"  # it answers; its successor is being made
    LOADING = "loading"  # the one before answers
    LETTING_GO = "letting go"  # nobody answers; the one before is asked to go
    DRAINING = "draining"  # the successor answers; the one before is asked to go
    LEAVING = "leaving"  # the successor has ended; the one before is asked to go


class Event(Enum):
    """An event of a part; all but BEFORE_ENDED concern its current process, or the next."""

    ASKED = "asked for"
    MADE = "made"
    NOT_MADE = "not made"
    LOADED = "loaded"
    READY = "ready"
    ENDED = "ended"
    BEFORE_ENDED = "before ended"


STATE_AFTER: dict[tuple[State, Event], State] = {
    (State.DOWN, Event.ASKED): State.MAKING,
    (State.MAKING, Event.MADE): State.STARTING,
    (State.MAKING, Event.NOT_MADE): State.DOWN,
    (State.STARTING, Event.LOADED): State.STARTING,
    (State.STARTING, Event.READY): State.UP,
    (State.STARTING, Event.ENDED): State.DOWN,
    (State.UP, Event.ASKED): State.REPLACING,
    (State.UP, Event.ENDED): State.DOWN,
    (State.REPLACING, Event.MADE): State.LOADING,
    (State.REPLACING, Event.NOT_MADE): State.UP,
    (State.REPLACING, Event.ENDED): State.MAKING,
    (State.LOADING, Event.LOADED): State.LETTING_GO,
    (State.LOADING, Event.READY): State.DRAINING,
    (State.LOADING, Event.ENDED): State.UP,
    (State.LOADING, Event.BEFORE_ENDED): State.STARTING,
    (State.LETTING_GO, Event.ENDED): State.LEAVING,
    (State.LETTING_GO, Event.BEFORE_ENDED): State.STARTING,
    (State.DRAINING, Event.ENDED): State.LEAVING,
    (State.DRAINING, Event.BEFORE_ENDED): State.UP,
    (State.LEAVING, Event.BEFORE_ENDED): State.DOWN,
}

_CURRENT_HAS_ENDED = (State.DOWN, State.MAKING, State.LEAVING)


class IllegalEvent(Exception):
    """Raised for an event that the current state does not allow."""


class Succession(Generic[P]):
    """Tracks the processes of one part, represented by any value.

    Attributes:
        state: how far it is.
        current: the process made last, or the one that it failed to replace; also once it ended.
        is_stopping: set where all is to end: none is asked for any more. Whoever sets it ends all
            that is `running`, and what is made after.

    Example:
        >>> part = Succession[str]()
        >>> part.apply(Event.ASKED)
        >>> part.started("first")
        >>> part.apply(Event.READY)
        >>> part.apply(Event.ASKED)
        >>> part.started("second")
        >>> part.answering, part.leaving
        ('first', None)
        >>> part.apply(Event.LOADED)
        >>> part.answering, part.leaving
        (None, 'first')
        >>> part
        <Succession letting go: 'first', 'second'>
    """

    def __init__(self) -> None:
        self.state = State.DOWN
        self.current: P | None = None
        self.is_stopping = False
        self._before: P | None = None

    @property
    def running(self) -> tuple[P, ...]:
        """The processes that have not ended, the predecessor first."""
        current = None if self.state in _CURRENT_HAS_ENDED else self.current
        return tuple(each for each in (self._before, current) if each is not None)

    @property
    def answering(self) -> P | None:
        """The process that serves."""
        if self.state is State.LOADING:
            return self._before
        is_ready = self.state in (State.UP, State.REPLACING, State.DRAINING)
        return self.current if is_ready else None

    @property
    def leaving(self) -> P | None:
        """The predecessor, once it has to end for its successor."""
        return None if self.state is State.LOADING else self._before

    @property
    def is_settled(self) -> bool:
        """False while a process is starting that does not serve yet."""
        return self.state in (State.DOWN, State.UP, State.DRAINING)

    def apply(self, event: Event) -> None:
        """Apply an event other than a process's start or exit, which have methods of their own.

        Raises:
            IllegalEvent: it cannot happen now; nothing has changed.
        """
        after = STATE_AFTER.get((self.state, event))
        if after is None or (event is Event.ASKED and self.is_stopping):
            state = self.state.value + (" and stopping" if self.is_stopping else "")
            raise IllegalEvent(f"{event.value!r} cannot happen to a part that is {state}")
        self.state = after

    def started(self, process: P) -> None:
        """Record the requested process as started."""
        current = self.current
        self.apply(Event.MADE)
        self._before = current if self.state is State.LOADING else None
        self.current = process

    def exited(self, process: P) -> None:
        """Record that one of `running` has exited."""
        if process not in self.running:
            raise IllegalEvent(f"{process!r} is none of those that run: {self!r}")
        if process is self._before:
            self.apply(Event.BEFORE_ENDED)
            self._before = None
            return
        is_refused = self.state is State.LOADING
        self.apply(Event.ENDED)
        if is_refused:
            self.current, self._before = self._before, None

    def __repr__(self) -> str:
        running = ", ".join(map(repr, self.running)) or "none"
        return f"<Succession {self.state.value}: {running}>"
