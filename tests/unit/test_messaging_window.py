"""The window: one under way a scope, in order; the checkpoint moves over a closed prefix."""

from __future__ import annotations

import pytest

from synchromesh.messaging import Window


def window(*scopes: str, in_flight_max: int = 8, held_max: int = 100) -> Window:
    made = Window(0, in_flight_max=in_flight_max, held_max=held_max)
    for position, scope in enumerate(scopes, 1):
        made.add(position, scope)
    return made


def test_the_next_of_a_scope_waits_for_the_one_before() -> None:
    """One message a scope is under way; its acknowledgement lets the next one go (O3)."""
    made = window("a", "a", "a", "b")
    assert made.ready() == [1, 4]
    assert made.ready() == []
    made.acknowledge(1)
    assert made.ready() == [2]
    made.acknowledge(4)
    assert made.ready() == []
    made.acknowledge(2)
    assert made.ready() == [3]


def test_the_checkpoint_waits_for_the_oldest() -> None:
    """What is acknowledged out of order moves nothing until the ones before are."""
    made = window("a", "b", "c")
    made.ready()
    made.acknowledge(3)
    made.acknowledge(2)
    assert made.checkpoint == 0
    made.acknowledge(1)
    assert made.checkpoint == 3


def test_what_concerns_nobody_closes_the_prefix_by_itself() -> None:
    """Skipped positions, and holes between positions, do not hold the checkpoint back."""
    made = Window(10, in_flight_max=8, held_max=100)
    made.skip(12)
    assert made.checkpoint == 12
    made.add(15, "a")
    made.skip(16)
    assert (made.checkpoint, made.newest) == (12, 16)
    assert made.ready() == [15]
    made.acknowledge(15)
    assert made.checkpoint == 16


def test_no_more_are_under_way_than_allowed() -> None:
    """The bound holds over all scopes, and a freed place is used again."""
    made = window("a", "b", "c", in_flight_max=2)
    assert made.ready() == [1, 2]
    assert made.ready() == []
    made.acknowledge(2)
    assert made.ready() == [3]


def test_there_is_room_only_for_as_much_as_may_be_held() -> None:
    """Positions count until the prefix before them is closed."""
    made = window("a", "b", "c", held_max=3)
    assert made.room == 0
    made.ready()
    made.acknowledge(2)
    assert made.room == 0
    made.acknowledge(1)
    assert made.room == 2


@pytest.mark.parametrize("position", [0, 3, 5])
def test_a_log_only_ascends(position: int) -> None:
    """A position that came before is refused, and nothing changes."""
    made = Window(5, in_flight_max=1, held_max=10)
    with pytest.raises(ValueError, match="only ascends"):
        made.add(position, "a")
    with pytest.raises(ValueError, match="only ascends"):
        made.skip(position)
    assert (made.newest, made.room, made.ready()) == (5, 10, [])


def test_only_what_is_under_way_is_acknowledged() -> None:
    """An acknowledgement of what was never sent, or of one twice, is a fault of the caller."""
    made = window("a")
    with pytest.raises(KeyError):
        made.acknowledge(1)
    made.ready()
    made.acknowledge(1)
    with pytest.raises(KeyError):
        made.acknowledge(1)


def test_it_shows_itself() -> None:
    """Its repr says what is held."""
    made = window("a", "a")
    made.ready()
    assert repr(made) == "<Window 1 under way, 2 held, checkpoint 0>"
