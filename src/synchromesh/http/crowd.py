"""The open connections of one listener, by client: who gets one, and who has to make room.

A client that opens connections and leaves them idle would shut all others out once the limit is
reached. So one of its idle connections is closed for each that comes; only where none is idle the
newcomer is refused. Who has made room, or was refused, holds no place any more, and may still take
a while to end: there is room for as many of those, and one more is cut. A pure table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Final, Generic, Protocol, TypeVar

from synchromesh.http.limits import Limits


class Placed(Protocol):
    """One connection; `peer` is `host:port`, "" where that is not known."""

    peer: str

    @property
    def is_idle(self) -> bool:
        """True where nothing of a request has come whose answer is not taken."""
        ...

    def make_room(self) -> None:
        """End an idle connection."""
        ...

    def cut(self) -> None:
        """Drop the connection at once."""
        ...


NOBODY: Final = ""
M = TypeVar("M", bound=Placed)


def host_of(peer: str) -> str:
    """Return the host of `host:port`: by it a client is known where nothing else is said.

    Example:
        >>> host_of("10.0.0.1:4711"), host_of("fd00::1:4711"), host_of("")
        ('10.0.0.1', 'fd00::1', '')
    """
    return peer.rpartition(":")[0]


class Crowd(Generic[M]):
    """Counts connections by client, and bounds them; see `Limits.connections_max`.

    Args:
        limits: how many there may be.
        client_of: tells by the peer whom a connection is counted for; "" for nobody, such as a
            proxy, whose connections are those of many.
    """

    def __init__(self, limits: Limits, client_of: Callable[[str], str] = host_of) -> None:
        self._limits = limits
        self._client_of = client_of
        self._clients: dict[M, str] = {}
        self._placed = _Table[M]()
        self._ending = _Table[M]()

    def take_over(self, limits: Limits, client_of: Callable[[str], str]) -> None:
        """Bound, and count, those that come from now on in another way."""
        self._limits, self._client_of = limits, client_of

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[M]:
        return iter(list(self._clients))

    def join(self, member: M) -> bool:
        """Count a connection in; False where there are too many, and nobody makes room.

        It is cut then where as many are about to end already: even to be told so costs something.
        """
        limits, client = self._limits, self._client_of(member.peer)
        has_place = True
        if self._is_full(self._placed.members.get(client, ()), client):
            has_place = self._make_room(client)
        elif len(self._placed) >= limits.connections_max:
            has_place = self._make_room_anywhere()
        self._clients[member] = client
        if has_place:
            self._placed.add(client, member)
        elif not self._may_end(client, member):
            member.cut()
        return has_place

    def leave(self, member: M) -> None:
        """Count a connection out. May be repeated."""
        client = self._clients.pop(member, None)
        if client is not None:
            self._placed.remove(client, member)
            self._ending.remove(client, member)

    def __repr__(self) -> str:
        return f"<Crowd {len(self._clients)} connections, {len(self._placed)} with a place>"

    def _make_room_anywhere(self) -> bool:
        """Have the client with most connections close an idle one; those of nobody are last."""
        members = self._placed.members

        def places(client: str) -> int:
            return 0 if client == NOBODY else len(members[client])

        # Sorted only where the first has none: a crowd of many makes no work of each newcomer.
        return self._make_room(max(members, key=places)) or any(
            self._make_room(client) for client in sorted(members, key=places, reverse=True)
        )

    def _make_room(self, client: str) -> bool:
        """End the idle connection of a client that came first; its place is free at once."""
        for member in self._placed.members.get(client, ()):
            if member.is_idle:
                self._placed.remove(client, member)
                if self._may_end(client, member):
                    member.make_room()
                else:
                    member.cut()
                return True
        return False

    def _may_end(self, client: str, member: M) -> bool:
        """Count one that has no place; False where there is no room for it either."""
        ending = self._ending
        if len(ending) >= self._limits.connections_max:
            return False
        if self._is_full(ending.members.get(client, ()), client):
            return False
        ending.add(client, member)
        return True

    def _is_full(self, members: Collection[M], client: str) -> bool:
        bound = self._limits.client_connections_max
        return client != NOBODY and bound is not None and len(members) >= bound


class _Table(Generic[M]):
    """Connections by client, in the order in which they came: a set's changes from run to run."""

    def __init__(self) -> None:
        self.members: dict[str, dict[M, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, client: str, member: M) -> None:
        self.members.setdefault(client, {})[member] = None
        self._count += 1

    def remove(self, client: str, member: M) -> None:
        """Remove one that may be there."""
        members = self.members.get(client, {})
        if member in members:
            del members[member]
            self._count -= 1
            if not members:
                del self.members[client]
