"""Who waits for a slot of a limiter, in which order, and who has to go.

The higher class goes first. Within a class it is first come, first served, until the line has stood
for a while: from then on the newest is served first, for it is the one that can still be answered
in time, and where all wait in turn all are answered too late. A full line sends the lowest class
away first.

Source: Maurer, "Fail at Scale" (ACM Queue, 2015): adaptive LIFO.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Generic, TypeVar

from synchromesh.priority import Priority

T = TypeVar("T")

# A line that was never empty for so long stands: it is no burst any more.
STANDING_S = 0.1


class Waiting(Generic[T]):
    """Holds the place of one call in the line; `until_s` is when it is of no use any more."""

    __slots__ = ("priority", "turn", "until_s")

    def __init__(self, turn: T, priority: Priority, until_s: float | None = None) -> None:
        self.turn = turn
        self.priority = priority
        self.until_s = math.inf if until_s is None else until_s


class WaitingLine(Generic[T]):
    """Orders those who wait; a pure machine, `Limiter` is its shell.

    Args:
        length_max: how many may wait.

    Example:
        >>> line: WaitingLine[str] = WaitingLine(2)
        >>> for name, priority in (("report", Priority.BATCH), ("click", Priority.INTERACTIVE)):
        ...     assert line.join(Waiting(name, priority), now=0.0) is None
        >>> line.join(Waiting("second click", Priority.INTERACTIVE), now=0.01).turn
        'report'
        >>> line.next(0.02).turn
        'click'
    """

    __slots__ = ("_classes", "_length_max", "began_s", "length")

    def __init__(self, length_max: int) -> None:
        self._length_max = length_max
        self._classes: tuple[deque[Waiting[T]], ...] = tuple(deque() for _ in Priority)
        self.length = 0
        self.began_s = 0.0

    def is_standing(self, now: float) -> bool:
        """Whether it has not been empty for long."""
        return self.length > 0 and now - self.began_s >= STANDING_S

    def join(self, waiting: Waiting[T], now: float) -> Waiting[T] | None:
        """Let a call join; return who has to go for it where the line is full, maybe itself.

        That is the oldest of the lowest class, if lower than its own; else the newcomer.
        """
        victim = None
        if self.length >= self._length_max:
            lowest = next((each for each in self._classes if each), None)
            if lowest is None or lowest[0].priority >= waiting.priority:
                return waiting
            victim = lowest.popleft()
            self.length -= 1
        if not self.length:
            self.began_s = now
        self._classes[waiting.priority].append(waiting)
        self.length += 1
        return victim

    def next(self, now: float, at_least: Priority = Priority.BATCH) -> Waiting[T] | None:
        """Take out whose turn it is, of a class or above; whose time is over is dropped."""
        is_standing = self.is_standing(now)
        for priority in range(Priority.INTERACTIVE, at_least - 1, -1):
            calls = self._classes[priority]
            while calls:
                waiting = calls.pop() if is_standing else calls.popleft()
                self.length -= 1
                if waiting.until_s > now:
                    return waiting
        return None

    def leave(self, waiting: Waiting[T]) -> None:
        """Let a call leave that waits no longer; it may have left already."""
        calls = self._classes[waiting.priority]
        if waiting in calls:
            calls.remove(waiting)
            self.length -= 1

    def __repr__(self) -> str:
        return f"<WaitingLine {self.length}/{self._length_max}>"
