"""Whose turn it is among units that several connections run at once."""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.store.turns import Turns


@dataclass(frozen=True)
class Unit:
    name: str
    lane: tuple[str, str] | None = None


def made(*names: str, key: str = "") -> tuple[Turns[Unit], list[Unit]]:
    turns: Turns[Unit] = Turns()
    units = [Unit(each, ("c", key) if key else None) for each in names]
    for unit in units:
        turns.add(unit)
    return turns, units


def taken(turns: Turns[Unit]) -> list[str]:
    names = []
    while (unit := turns.take()) is not None:
        names.append(unit.name)
    return names


def test_units_are_taken_in_the_order_in_which_they_came() -> None:
    """As many as there is room for."""
    turns, _ = made("a", "b", "c")
    assert taken(turns) == ["a", "b", "c"]


def test_of_one_key_there_is_one_at_a_time() -> None:
    """The next is queued when the one before it is over, and nobody else waits for that."""
    turns, (first, second, _) = made("a", "b", "c", key="k")
    turns.add(other := Unit("other"))
    assert taken(turns) == ["a", "other"]
    turns.done(other)
    assert taken(turns) == []
    turns.done(first)
    assert taken(turns) == ["b"]
    turns.done(second)
    assert taken(turns) == ["c"]


def test_all_that_wait_are_taken_out_together() -> None:
    """Those behind their keys, too; what runs goes on, and what comes later is as usual."""
    turns, _ = made("a", "b", key="k")
    turns.add(Unit("c"))
    turns.add(Unit("d", ("c", "other")))
    assert turns.take() is not None
    turns.add(Unit("e", ("c", "other")))
    assert sorted(each.name for each in turns.drain()) == ["c", "d", "e"]
    turns.add(Unit("f", ("c", "other")))
    assert taken(turns) == ["f"]
    turns.done(Unit("a", ("c", "k")))
    assert taken(turns) == ["b"], "it waits for the one that runs, and for nothing else"
