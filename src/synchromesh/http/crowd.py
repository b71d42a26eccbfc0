"""The open connections of one listener, by client: who gets one, and who has to make room.

A client that opens connections and leaves them idle would shut all others out once the limit is
reached. So one of its idle connections is closed for each that comes; only where none is idle the
newcomer is refused. A pure table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Generic, Protocol, TypeVar

from synchromesh.http.limits import Limits


class Placed(Protocol):
    """One connection; `peer` is `host:port`, "" where that is not known."""

    peer: str

    @property
    def is_idle(self) -> bool:
        """True where nothing of a request has come that is not answered."""
        ...

    def make_room(self) -> None:
        """End an idle connection."""
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
        # Dicts keep the order in which they came: a set's would change from run to run.
        self._clients: dict[M, str] = {}
        self._members: dict[str, dict[M, None]] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def __iter__(self) -> Iterator[M]:
        return iter(list(self._clients))

    def join(self, member: M) -> bool:
        """Count a connection in; False where there are too many, and nobody makes room."""
        limits, client = self._limits, self._client_of(member.peer)
        others = self._members.get(client, {})
        bound = limits.client_connections_max
        has_place = True
        if client != NOBODY and bound is not None and len(others) >= bound:
            has_place = _make_room(others)
        elif len(self._clients) >= limits.connections_max:
            has_place = self._make_room()
        self._clients[member] = client
        self._members.setdefault(client, {})[member] = None
        return has_place

    def leave(self, member: M) -> None:
        """Count a connection out. May be repeated."""
        client = self._clients.pop(member, None)
        if client is not None:
            members = self._members[client]
            del members[member]
            if not members:
                del self._members[client]

    def __repr__(self) -> str:
        return f"<Crowd {len(self._clients)} connections of {len(self._members)} clients>"

    def _make_room(self) -> bool:
        """Have the client with most connections close an idle one; those of nobody are last."""

        def places(client: str) -> int:
            return 0 if client == NOBODY else len(self._members[client])

        # Sorted only where the first has none: a crowd of many makes no work of each newcomer.
        return _make_room(self._members[max(self._members, key=places)]) or any(
            _make_room(self._members[client])
            for client in sorted(self._members, key=places, reverse=True)
        )


def _make_room(members: Mapping[M, None]) -> bool:
    """End the idle connection that came first, and count it no more against its client."""
    for member in members:
        if member.is_idle:
            member.make_room()
            return True
    return False
