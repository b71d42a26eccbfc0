"""Who gets a connection, and who has to make room: the greediest client, by what is idle of it."""

from __future__ import annotations

from synchromesh.http import Limits
from synchromesh.http.crowd import Crowd


class Peer:
    """A connection that notes that it had to go."""

    def __init__(self, peer: str, *, is_idle: bool = True) -> None:
        self.peer, self.is_idle, self.is_gone = peer, is_idle, False

    def make_room(self) -> None:
        self.is_gone, self.is_idle = True, False


def crowd(*hosts: str, is_idle: bool = True, most: int = 4, each: int | None = None) -> Crowd[Peer]:
    made: Crowd[Peer] = Crowd(Limits(connections_max=most, client_connections_max=each))
    for port, host in enumerate(hosts):
        assert made.join(Peer(f"{host}:{port}", is_idle=is_idle))
    return made


def gone(made: Crowd[Peer]) -> list[str]:
    return [peer.peer for peer in made if peer.is_gone]


def test_the_greediest_client_makes_room_by_its_oldest_idle_connection() -> None:
    """Whoever comes gets a place, the greedy one too, and others lose none."""
    made = crowd("a", "b", "b", "b")
    assert made.join(Peer("c:9"))
    assert gone(made) == ["b:1"]
    assert made.join(Peer("b:10"))
    assert gone(made) == ["b:1", "b:2"]


def test_what_works_is_never_closed() -> None:
    """Where the greediest has nothing idle it is the next one; where nobody has, nobody comes."""
    made = crowd("a", "b", "b", is_idle=False)
    idle = Peer("a:7")
    assert made.join(idle)
    assert made.join(Peer("c:8", is_idle=False))
    assert gone(made) == ["a:7"]
    assert not made.join(Peer("d:9"))
    assert gone(made) == ["a:7"]


def test_one_client_has_its_own_bound() -> None:
    """Past it its own idle connection goes, and where none is idle it is refused alone."""
    made = crowd("a", "a", most=10, each=2)
    assert made.join(Peer("a:5", is_idle=False))
    assert gone(made) == ["a:0"]
    busy = crowd("a", "a", most=10, each=2, is_idle=False)
    assert not busy.join(Peer("a:5"))
    assert busy.join(Peer("b:5"))


def test_nobodys_connections_have_no_bound_of_their_own_and_go_last() -> None:
    """Those of a trusted proxy are of many clients."""
    made: Crowd[Peer] = Crowd(
        Limits(connections_max=4, client_connections_max=1),
        lambda peer: "" if peer.startswith("proxy") else peer.rpartition(":")[0],
    )
    for port in range(3):
        assert made.join(Peer(f"proxy:{port}"))
    assert made.join(Peer("a:4"))
    assert made.join(Peer("b:5"))
    assert gone(made) == ["a:4"]


def test_who_leaves_is_counted_out() -> None:
    """And a table of clients that have gone is empty."""
    made = crowd("a", "b")
    for peer in made:
        made.leave(peer)
        made.leave(peer)
    assert len(made) == 0
    assert repr(made) == "<Crowd 0 connections of 0 clients>"
