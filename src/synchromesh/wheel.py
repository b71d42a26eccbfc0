"""A timer wheel: many deadlines, nearly all of which are dropped before they come.

A loop's own timer costs a heap operation and a handle for each deadline, and one that was cancelled
stays in the heap until its time comes. Here a deadline is an entry of a dict, by the tick of
`TICK_S` that it falls into, and dropping it removes it. Whoever waits for the wheel sleeps until
the first tick *begins*; what is still there then is put in order and waited for exactly. So the
tick says how many deadlines share a wake-up, and never how early or late one is.

Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987, scheme 6. A pure
machine; `Timers` is its shell.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

TICKS_PER_S = 20
TICK_S = 1 / TICKS_PER_S


class Deadline:
    """One deadline; who waits for it says in `expire` what happens then.

    Attributes:
        due_s: when, on the loop's clock; infinity for never.
        slot: the part of the wheel that holds it; the wheel's own.
    """

    __slots__ = ("due_s", "slot")

    def __init__(self, due_s: float) -> None:
        self.due_s = due_s
        self.slot: dict[Deadline, None] | None = None

    def expire(self) -> None:
        """Do what the deadline is for; called at most once, and not after it was dropped."""


class Wheel:
    """Holds deadlines until they are dropped or due; those of one moment come in order of adding.

    Example:
        >>> wheel, late, soon = Wheel(), Deadline(9.03), Deadline(2.01)
        >>> wheel.add(late), wheel.add(soon)
        (True, True)
        >>> wheel.drop(soon)
        >>> wheel.pop(9.0) is None, wheel.wake_s(), wheel.pop(9.03) is late
        (True, 9.03, True)
        >>> wheel
        <Wheel 0 deadlines>

    Attributes:
        slots: those whose tick has not begun, by tick.
    """

    __slots__ = ("_added", "_near", "_near_order", "_ticks", "_turned", "slots")

    def __init__(self) -> None:
        # Dicts as ordered sets: the order of a set is that of addresses, and differs each run.
        self.slots: dict[int, dict[Deadline, None]] = {}
        self._ticks: list[int] = []
        # Those whose tick has begun, and when each is due; who was dropped is in the order alone.
        self._near: dict[Deadline, None] = {}
        self._near_order: list[tuple[float, int, Deadline]] = []
        self._turned = -1
        self._added = 0

    def add(self, deadline: Deadline) -> bool:
        """Hold a deadline; True where `wake_s` may have become earlier by it."""
        slot = self.slots.get(int(deadline.due_s * TICKS_PER_S)) if deadline.due_s < FAR_S else None
        if slot is None:
            return self._add_first(deadline)
        slot[deadline] = None
        deadline.slot = slot
        return False

    def drop(self, deadline: Deadline) -> None:
        """Forget a deadline that is no longer waited for. May be repeated."""
        slot = deadline.slot
        if slot is not None:
            deadline.slot = None
            del slot[deadline]

    def wake_s(self) -> float | None:
        """Return when `pop` is to be asked next; None while nothing is held.

        It may be earlier than any deadline, and `pop` then returns None.
        """
        near, order = self._near, self._near_order
        while order and order[0][2] not in near:
            heappop(order)
        first_s = order[0][0] if order else math.inf
        if self._ticks:
            first_s = min(first_s, self._ticks[0] / TICKS_PER_S)
        return None if first_s == math.inf else first_s

    def pop(self, now: float) -> Deadline | None:
        """Return a deadline that is due, the earliest first, and hold it no longer; None if none.

        One at a time, so that what one of them does may drop another.
        """
        tick = int(now * TICKS_PER_S)
        if tick > self._turned:
            self._turn(tick)
        near, order = self._near, self._near_order
        while order and order[0][0] <= now:
            deadline = heappop(order)[2]
            if deadline in near:
                self.drop(deadline)
                return deadline
        return None

    def __repr__(self) -> str:
        return f"<Wheel {sum(map(len, self.slots.values())) + len(self._near)} deadlines>"

    def _add_first(self, deadline: Deadline) -> bool:
        due_s = deadline.due_s
        if due_s >= FAR_S:
            return False
        tick = int(due_s * TICKS_PER_S)
        if tick <= self._turned:
            self._come_near(deadline)
            return self._near_order[0][2] is deadline
        deadline.slot = self.slots[tick] = {deadline: None}
        heappush(self._ticks, tick)
        return self._ticks[0] == tick

    def _turn(self, tick: int) -> None:
        self._turned = tick
        while self._ticks and self._ticks[0] <= tick:
            for deadline in self.slots.pop(heappop(self._ticks)):
                self._come_near(deadline)

    def _come_near(self, deadline: Deadline) -> None:
        self._added += 1
        heappush(self._near_order, (deadline.due_s, self._added, deadline))
        self._near[deadline] = None
        deadline.slot = self._near


# Three centuries: a deadline beyond that is none, and its tick need not be a number.
FAR_S = 1e10
