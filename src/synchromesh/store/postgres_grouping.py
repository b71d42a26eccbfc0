"""Which units share a commit on PostgreSQL: those of which it is known that they only append.

A body tells what it does by doing it. The first unit of a name runs by itself; where all that it
asked for was one append, the next ones of that name are put into groups, of which one is under way
at a time. A unit of a group that asks for more is run by itself after all, and so are the next ones
of its name for a while.

Units of a name that append as batches do, to many streams and at no versions, are no group's: the
next ones of that name hold the order of the log by themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

GROUP_MAX = 256
"""Units of one group."""

_SHY = 32
# Units have a few dozen names; whoever makes new ones up makes no leak.
_NAMES_MAX = 1024
# Groups: what is foretold in vain costs a fifth of one that asks.
_BLIND = 8

J = TypeVar("J")


class Grouping(Generic[J]):
    """Decides which units are in the next group. A pure machine.

    Example:
        >>> groups: Grouping[str] = Grouping()
        >>> groups.takes("add")
        False
        >>> groups.saw("add", is_lone=True)
        >>> groups.takes("add")
        True
    """

    def __init__(self) -> None:
        self._waiting: deque[J] = deque()
        # How many units of a name have to append alone before its next ones are put into groups.
        self._shy: dict[str, int] = {}
        self._batches: set[str] = set()
        self._has_turn = False

    def takes(self, name: str) -> bool:
        """Return whether units of that name are put into groups."""
        return self._shy.get(name) == 0

    def saw(self, name: str, *, is_lone: bool, is_batch: bool = False) -> None:
        """Note of a unit that ran by itself whether one append was all, or it was a batch."""
        if is_batch:
            if len(self._batches) >= _NAMES_MAX:
                self._batches.clear()
            self._batches.add(name)
        if is_lone:
            if len(self._shy) >= _NAMES_MAX:
                self._shy.clear()
            self._shy[name] = max(0, self._shy.get(name, 1) - 1)
        elif name in self._shy:
            self._shy[name] = _SHY

    def is_batch(self, name: str) -> bool:
        """Return whether units of that name hold the order of the log from their beginning."""
        return name in self._batches

    def add(self, job: J) -> bool:
        """Have a unit wait for the next group; True where that has no turn yet, and needs one."""
        self._waiting.append(job)
        needs, self._has_turn = not self._has_turn, True
        return needs

    def begin(self) -> list[J]:
        """Return the units of the next group: it is its turn."""
        return [self._waiting.popleft() for _ in range(min(GROUP_MAX, len(self._waiting)))]

    def end(self, put_off: Iterable[J] = ()) -> bool:
        """End a turn; units may be put off to the next. True where one is needed."""
        self._waiting.extendleft(reversed([*put_off]))
        self._has_turn = bool(self._waiting)
        return self._has_turn

    def drain(self, *, is_over: bool) -> list[J]:
        """Take out all that wait, for a turn that is over before it began or is under way."""
        waiting = [*self._waiting]
        self._waiting.clear()
        self._has_turn = self._has_turn and not is_over
        return waiting

    def __repr__(self) -> str:
        return f"<Grouping: {len(self._waiting)} wait>"


class Foresight:
    """Decides whether a group is foretold, or asks step by step what there is. A pure machine.

    Example:
        >>> sight = Foresight()
        >>> sight.is_clear()
        True
    """

    def __init__(self) -> None:
        self._blind = 0

    def is_clear(self) -> bool:
        """Return whether the next group is worth to be foretold: none failed to be just now."""
        self._blind = max(0, self._blind - 1)
        return not self._blind

    def saw(self, *, is_so: bool) -> None:
        """Note of one that was foretold whether it came so: else the next ones are not."""
        if not is_so:
            self._blind = _BLIND
