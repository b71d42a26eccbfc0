"""Whose turn it is among units that several connections run at once.

Units run in the order in which they came, as many at once as there are connections, with one
exception: of those under one idempotency key there is one at a time, since the later ones only
repeat the record of the first.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar


class HasLane(Protocol):
    """A unit as its turns see it; `lane` is its idempotency key, None where it has none."""

    @property
    def lane(self) -> tuple[str, str] | None:
        """The key of which one unit runs at a time."""
        ...


J = TypeVar("J", bound=HasLane)


class Turns(Generic[J]):
    """Decides which unit runs next. A pure machine.

    Example:
        >>> turns: Turns[HasLane] = Turns()
        >>> turns.take() is None
        True
    """

    def __init__(self) -> None:
        self._queue: deque[J] = deque()
        self._behind: dict[tuple[str, str], deque[J]] = {}

    def add(self, job: J) -> None:
        """Queue a unit behind the others; behind those of its key, where there are any."""
        if job.lane is None:
            self._queue.append(job)
        elif (behind := self._behind.get(job.lane)) is not None:
            behind.append(job)
        else:
            self._behind[job.lane] = deque()
            self._queue.append(job)

    def take(self) -> J | None:
        """Return the unit that may run now; None where there is none."""
        return self._queue.popleft() if self._queue else None

    def done(self, job: J) -> None:
        """End a unit; the next one of its key is queued."""
        if job.lane is None:
            return
        behind = self._behind[job.lane]
        if behind:
            self._queue.append(behind.popleft())
        else:
            del self._behind[job.lane]

    def drain(self) -> list[J]:
        """Take out all that wait: none of them has run, or left anything."""
        waiting = [*self._queue]
        self._queue.clear()
        for job in tuple(waiting):
            if job.lane is not None:
                waiting += self._behind.pop(job.lane)
        return waiting

    def __repr__(self) -> str:
        behind = sum(map(len, self._behind.values()))
        return f"<Turns: {len(self._queue)} wait, {behind} behind their keys>"
