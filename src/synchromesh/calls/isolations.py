"""Which edges people have isolated by hand, and why: their breakers send nothing until released."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet

import msgspec


class Isolation(msgspec.Struct, frozen=True):
    """An edge, "CALLER:CALLEE", or a callee for all its callers, that was isolated by hand."""

    target: str
    who: str
    why: str
    at_us: int


class Follower(Protocol):
    """Holds breakers, and looks at the isolations again whenever they change."""

    def follow_isolations(self) -> None:
        """Isolate or release what they say now."""
        ...


class Isolations:
    """The isolations of a process; all its callers follow them.

    Example:
        >>> isolations = Isolations()
        >>> isolations.put(Isolation("orders:billing", "ann", "billing is moved", at_us=0))
        >>> isolations.covers("orders", "billing"), isolations.covers("fleet", "billing")
        (True, False)
        >>> [each.target for each in isolations.drop("billing")]
        ['orders:billing']
    """

    def __init__(self) -> None:
        self._by_target: dict[str, Isolation] = {}
        self._followers: WeakSet[Follower] = WeakSet()

    def follow(self, follower: Follower) -> None:
        """Have a caller follow them for as long as it lives."""
        self._followers.add(follower)
        follower.follow_isolations()

    def put(self, isolation: Isolation) -> None:
        """Isolate an edge, or a callee for all its callers."""
        self._by_target[isolation.target] = isolation
        self._tell()

    def drop(self, target: str) -> list[Isolation]:
        """Release an edge, or all edges of a callee; return what was isolated."""
        dropped = [
            self._by_target.pop(name)
            for name in list(self._by_target)
            if name == target or name.partition(":")[2] == target
        ]
        self._tell()
        return dropped

    def resume(self, standing: Iterable[Isolation]) -> None:
        """Take over those of another process."""
        self._by_target |= {each.target: each for each in standing}
        self._tell()

    @property
    def standing(self) -> tuple[Isolation, ...]:
        """Those that are in force."""
        return tuple(self._by_target.values())

    def covers(self, caller: str, callee: str) -> bool:
        """Return whether an edge is isolated."""
        return f"{caller}:{callee}" in self._by_target or callee in self._by_target

    def _tell(self) -> None:
        for follower in list(self._followers):
            follower.follow_isolations()

    def __repr__(self) -> str:
        return f"<Isolations {', '.join(self._by_target) or 'none'}>"
