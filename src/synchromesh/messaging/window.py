"""The relay's window: one message in flight a partition key, and the checkpoint reached.

A pure machine. Messages enter in the order of the log and leave when they are acknowledged; the
checkpoint is the last position before which everything was acknowledged, so a relay that restarts
from it delivers nothing too late and only the unacknowledged again.

    waiting ──ready──▶ under way ──acknowledge──▶ (gone; the checkpoint moves over a closed prefix)
"""

from __future__ import annotations

from collections import deque


class Window:
    """Tracks the positions between the checkpoint and the newest one read.

    Args:
        checkpoint: the position up to which everything was acknowledged before.
        in_flight_max: how many messages may be under way at once.
        held_max: how many positions it holds; the reader waits while it is full.

    Example:
        >>> window = Window(0, in_flight_max=8, held_max=100)
        >>> window.add(1, "a"); window.add(2, "a"); window.add(3, "b")
        >>> window.ready()
        [1, 3]
        >>> window.acknowledge(3); window.checkpoint
        0
        >>> window.acknowledge(1); window.checkpoint, window.ready()
        (1, [2])
    """

    def __init__(self, checkpoint: int, *, in_flight_max: int, held_max: int) -> None:
        self.checkpoint = checkpoint
        self.newest = checkpoint
        self._in_flight_max = in_flight_max
        self._held_max = held_max
        # Positions in log order; those acknowledged out of order wait here for the ones before.
        self._order: deque[int] = deque()
        self._done: set[int] = set()
        self._scopes: dict[int, str] = {}
        self._queues: dict[str, deque[int]] = {}
        self._in_flight: set[int] = set()

    @property
    def room(self) -> int:
        """The number of positions that may still be read."""
        return self._held_max - len(self._order)

    def skip(self, position: int) -> None:
        """Skip a position that is not for this subscriber."""
        self._enter(position)
        self._done.add(position)
        self._close_prefix()

    def add(self, position: int, scope: str) -> None:
        """Add the next message of the log."""
        self._enter(position)
        self._scopes[position] = scope
        self._queues.setdefault(scope, deque()).append(position)

    def ready(self) -> list[int]:
        """Return the positions that may be sent now, and mark them as in flight."""
        found = []
        for queue in self._queues.values():
            if len(self._in_flight) >= self._in_flight_max:
                break
            if queue[0] not in self._in_flight:
                self._in_flight.add(queue[0])
                found.append(queue[0])
        return found

    def acknowledge(self, position: int) -> None:
        """Mark a position as acknowledged; the next of its partition key becomes ready."""
        self._in_flight.remove(position)
        scope = self._scopes.pop(position)
        queue = self._queues[scope]
        queue.popleft()
        if not queue:
            del self._queues[scope]
        self._done.add(position)
        self._close_prefix()

    def __repr__(self) -> str:
        held = f"{len(self._in_flight)} under way, {len(self._order)} held"
        return f"<Window {held}, checkpoint {self.checkpoint}>"

    def _enter(self, position: int) -> None:
        if position <= self.newest:
            raise ValueError(f"position {position} came after {self.newest}: a log only ascends")
        self.newest = position
        self._order.append(position)

    def _close_prefix(self) -> None:
        while self._order and self._order[0] in self._done:
            self.checkpoint = self._order.popleft()
            self._done.remove(self.checkpoint)
