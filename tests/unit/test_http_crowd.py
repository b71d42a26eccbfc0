"""Who gets a connection, and who has to make room: the greediest client, by what is idle of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synchromesh.http import Limits
from synchromesh.http.crowd import Crowd


class Peer:
    """A connection that notes that it had to go, and does not end before it is counted out."""

    def __init__(self, peer: str, *, is_idle: bool = True) -> None:
        self.peer, self.is_idle, self.is_gone, self.is_cut = peer, is_idle, False, False

    def make_room(self) -> None:
        assert not self.is_gone
        self.is_gone = True

    def cut(self) -> None:
        assert not self.is_cut
        self.is_cut = True


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
    assert repr(made) == "<Crowd 0 connections, 0 with a place>"


def opened(made: Crowd[Peer]) -> int:
    return sum(not peer.is_cut for peer in made)


def test_one_idle_connection_makes_room_once() -> None:
    """One that takes its time to close is no place for each that comes while it does."""
    made = crowd("a", "b", "b", "b", is_idle=False, most=5)
    assert made.join(Peer("c:4"))
    assert made.join(Peer("d:5", is_idle=False))
    assert gone(made) == ["c:4"]
    assert [made.join(Peer(f"d:{port}", is_idle=False)) for port in range(6, 9)] == [False] * 3


@pytest.mark.parametrize("is_idle", [True, False])
def test_the_bound_holds_while_nobody_ends(is_idle: bool) -> None:
    """Those with a place, and as many that are about to end; past that each is cut at once."""
    made = crowd("a", is_idle=True)
    took = [made.join(Peer(f"b:{port}", is_idle=is_idle)) for port in range(60)]
    assert opened(made) == 8
    assert sum(took) == (60 if is_idle else 4)
    for peer in made:
        if peer.is_cut or peer.is_gone:
            made.leave(peer)
    # Who has ended frees what it held, and nothing else.
    assert made.join(Peer("c:99")) == is_idle
    assert opened(made) <= 8


@pytest.mark.parametrize("is_idle", [True, False])
def test_the_bound_of_one_client_holds_while_nobody_ends(is_idle: bool) -> None:
    """And it takes nothing from others."""
    made = crowd("a", most=100, each=2)
    for port in range(60):
        made.join(Peer(f"b:{port}", is_idle=is_idle))
    assert sum(not peer.is_cut for peer in made if peer.peer.startswith("b")) == 4
    assert made.join(Peer("c:1"))
    assert made.join(Peer("a:2"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "leave", "work"]), st.integers(0, 40), st.booleans()),
        max_size=60,
    ),
    st.integers(1, 4),
    st.none() | st.integers(1, 3),
)
def test_whatever_happens_both_bounds_hold(
    happens: list[tuple[str, int, bool]], most: int, each: int | None
) -> None:
    """Connections come, work, are idle, and end when they like."""
    made: Crowd[Peer] = Crowd(Limits(connections_max=most, client_connections_max=each))
    for what, number, is_idle in happens:
        members = list(made)
        if what == "join":
            made.join(Peer(f"{'abc'[number % 3]}:{number}", is_idle=is_idle))
        elif members:
            member = members[number % len(members)]
            member.is_idle = is_idle
            if what == "leave":
                made.leave(member)
        alive = [peer.peer[0] for peer in made if not peer.is_cut]
        assert len(alive) <= 2 * most
        assert each is None or all(alive.count(client) <= 2 * each for client in "abc")
    for peer in made:
        made.leave(peer)
    assert repr(made) == "<Crowd 0 connections, 0 with a place>"
