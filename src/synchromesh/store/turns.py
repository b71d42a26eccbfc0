"""Whose turn it is among units that several connections run at once.

Units run in the order in which they came, as many at once as there are connections, with two
exceptions: of those under one idempotency key there is one at a time, since the later ones only
repeat the record of the first; and one that met conflicts runs alone, with nothing of this process
beside it, so that what is contended is no lottery.

    came ──take──▶ running ──done──▶ over
                      └──again──▶ waits to be alone ──take, once nothing runs──▶ running
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
        self._alone: deque[J] = deque()
        self._running = 0
        self._is_alone = False

    @property
    def running(self) -> int:
        """How many units run."""
        return self._running

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
        """Return the unit that may run now; None where there is none, or one has to be alone."""
        if self._is_alone:
            return None
        if self._alone:
            if self._running:
                return None
            self._is_alone = True
            job = self._alone.popleft()
        elif self._queue:
            job = self._queue.popleft()
        else:
            return None
        self._running += 1
        return job

    def pause(self) -> None:
        """End the run of a unit that is not over: it is given to `again` later."""
        self._running -= 1
        self._is_alone = False

    def again(self, job: J) -> None:
        """Queue a unit that is not over; it runs alone."""
        self._alone.append(job)

    def done(self, job: J) -> None:
        """End a unit; the next one of its key is queued."""
        self.pause()
        if job.lane is None:
            return
        behind = self._behind[job.lane]
        if behind:
            self._queue.append(behind.popleft())
        else:
            del self._behind[job.lane]

    def drain(self) -> list[J]:
        """Take out all that wait: none of them has run, or left anything."""
        waiting = [*self._queue, *self._alone]
        self._queue.clear()
        self._alone.clear()
        for job in tuple(waiting):
            if job.lane is not None:
                waiting += self._behind.pop(job.lane)
        return waiting

    def __repr__(self) -> str:
        return f"<Turns {self._running} run, {len(self._queue)} wait, {len(self._alone)} alone>"
