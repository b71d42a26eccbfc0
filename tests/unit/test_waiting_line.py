"""The queue of a limiter: who goes first, and who has to go; literal times, no clock."""

from __future__ import annotations

from synchromesh.priority import Priority
from synchromesh.resilience import Waiting, WaitingLine

BATCH, RETRY, SAGA, PERSON = Priority


def line(*names: str, priority: Priority = PERSON, length_max: int = 3) -> WaitingLine[str]:
    made: WaitingLine[str] = WaitingLine(length_max)
    for name in names:
        assert made.join(Waiting(name, priority), now=1.0) is None
    return made


def drained(made: WaitingLine[str], now: float, at_least: Priority = BATCH) -> list[str]:
    order = []
    while (waiting := made.next(now, at_least)) is not None:
        order.append(waiting.turn)
    return order


def test_it_is_first_come_first_served_until_it_stands() -> None:
    """A burst is served in turn; where the line never ends the newest still has a chance."""
    assert drained(line("a", "b", "c"), now=1.05) == ["a", "b", "c"]
    assert drained(line("a", "b", "c"), now=1.1) == ["c", "b", "a"]


def test_a_line_that_was_empty_begins_anew() -> None:
    """It stands only while it never is empty."""
    made = line("a")
    assert drained(made, now=2.0) == ["a"]
    for name in ("b", "c"):
        made.join(Waiting(name, PERSON), now=3.0)
    assert drained(made, now=3.05) == ["b", "c"]


def test_the_higher_class_goes_first_whenever_it_came() -> None:
    """Whoever waits for an answer is served before what can wait."""
    made = line("batch", priority=BATCH)
    made.join(Waiting("saga", SAGA), now=1.0)
    made.join(Waiting("person", PERSON), now=1.0)
    assert drained(made, now=1.01) == ["person", "saga", "batch"]


def test_a_class_waits_where_only_a_higher_one_may_go() -> None:
    """Free slots that are kept for those above are not for it."""
    made = line("batch", priority=BATCH)
    made.join(Waiting("saga", SAGA), now=1.0)
    assert drained(made, 1.01, at_least=RETRY) == ["saga"]
    assert made.length == 1


def test_a_full_line_sends_the_lowest_away() -> None:
    """The oldest of the lowest class, for a higher one; among equals the newcomer."""
    made = line("a", "b", "c", priority=BATCH)
    refused = made.join(Waiting("d", BATCH), now=1.01)
    assert refused is not None
    assert refused.turn == "d"
    gone = made.join(Waiting("click", PERSON), now=1.01)
    assert gone is not None
    assert gone.turn == "a"
    assert drained(made, now=1.02) == ["click", "b", "c"]


def test_nobody_gives_way_to_a_lower_class_nor_to_an_equal() -> None:
    """A full line of persons refuses batch work, and other persons, however long it has stood."""
    for name, priority in (("batch", BATCH), ("click", PERSON)):
        refused = line("a", "b", "c").join(Waiting(name, priority), now=9.0)
        assert refused is not None
        assert refused.turn == name


def test_whose_time_is_over_is_not_run() -> None:
    """Nobody waits for that answer any more."""
    made: WaitingLine[str] = WaitingLine(3)
    made.join(Waiting("late", PERSON, until_s=1.5), now=1.45)
    made.join(Waiting("in time", PERSON, until_s=9.0), now=1.45)
    assert drained(made, now=1.5) == ["in time"]
    assert made.length == 0


def test_who_leaves_is_gone_and_may_leave_twice() -> None:
    """A cancelled call holds no place."""
    made = line("a")
    waiting = Waiting("b", PERSON)
    made.join(waiting, now=1.0)
    made.leave(waiting)
    made.leave(waiting)
    assert (made.length, drained(made, now=1.01)) == (1, ["a"])


def test_a_line_of_no_length_takes_nobody() -> None:
    """A limiter without a queue refuses at once."""
    waiting = Waiting("a", PERSON)
    assert WaitingLine[str](0).join(waiting, now=0.0) is waiting
