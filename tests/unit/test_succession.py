"""Which process of a part is the current one: the races of a restart by name, without a process."""

from __future__ import annotations

from itertools import product

import pytest

from synchromesh.system.supervise.succession import (
    STATE_AFTER,
    Event,
    IllegalEvent,
    State,
    Succession,
)


def part(*events: Event) -> Succession[str]:
    """One whose process "old" answers, and what has happened since; the next one made is "new"."""
    part = Succession[str]()
    part.apply(Event.ASKED)
    part.started("old")
    part.apply(Event.READY)
    for event in events:
        if event is Event.MADE:
            part.started("new")
        elif event is Event.ENDED:
            part.exited("new")
        elif event is Event.BEFORE_ENDED:
            part.exited("old")
        else:
            part.apply(event)
    return part


def test_a_service_is_replaced_with_a_gap_that_is_named() -> None:
    """The old one answers until the new one is loaded, then nobody does until it has gone."""
    loading = part(Event.ASKED, Event.MADE)
    assert (loading.answering, loading.leaving) == ("old", None)
    loading.apply(Event.LOADED)
    assert (loading.answering, loading.leaving) == (None, "old")
    loading.exited("old")
    assert (loading.state, loading.running) == (State.STARTING, ("new",))
    loading.apply(Event.READY)
    assert (loading.state, loading.answering) == (State.UP, "new")


def test_a_gateway_is_replaced_without_a_gap() -> None:
    """The new one answers beside the old one, which drains."""
    draining = part(Event.ASKED, Event.MADE, Event.READY)
    assert (draining.answering, draining.leaving) == ("new", "old")
    assert draining.is_settled
    draining.exited("old")
    assert repr(draining) == "<Succession up: 'new'>"


def test_the_old_one_ends_while_the_new_one_is_made() -> None:
    """Only the one that is being made is left, and no other can be asked for."""
    making = part(Event.ASKED)
    making.exited("old")
    assert (making.state, making.current, making.running) == (State.MAKING, "old", ())
    with pytest.raises(IllegalEvent, match="'asked for' cannot happen to a part that is making"):
        making.apply(Event.ASKED)
    making.started("new")
    assert (making.state, making.running) == (State.STARTING, ("new",))


def test_the_old_one_ends_while_the_new_one_loads() -> None:
    """The new one merely starts; where it is loaded there is nobody to let go."""
    starting = part(Event.ASKED, Event.MADE, Event.BEFORE_ENDED)
    assert (starting.state, starting.answering) == (State.STARTING, None)
    starting.apply(Event.LOADED)
    assert starting.leaving is None
    starting.apply(Event.READY)
    assert starting.answering == "new"


def test_the_new_one_is_refused() -> None:
    """The old one is the current one again, and can be replaced again."""
    refused = part(Event.ASKED, Event.MADE, Event.ENDED)
    assert (refused.state, refused.current, refused.answering) == (State.UP, "old", "old")
    refused.apply(Event.ASKED)
    refused.apply(Event.NOT_MADE)
    assert (refused.state, refused.answering) == (State.UP, "old")


def test_the_new_one_is_refused_after_the_old_one_has_ended() -> None:
    """Nobody is left; the next one may be asked for."""
    down = part(Event.ASKED, Event.MADE, Event.BEFORE_ENDED, Event.ENDED)
    assert (down.state, down.current, down.running) == (State.DOWN, "new", ())
    down.apply(Event.ASKED)
    assert down.state is State.MAKING


@pytest.mark.parametrize("said", [Event.LOADED, Event.READY])
def test_the_new_one_ends_while_the_old_one_lets_go(said: Event) -> None:
    """The old one was asked to go and is not taken back; none is made before it has gone."""
    leaving = part(Event.ASKED, Event.MADE, said, Event.ENDED)
    assert (leaving.state, leaving.answering, leaving.leaving) == (State.LEAVING, None, "old")
    with pytest.raises(IllegalEvent, match="leaving"):
        leaving.apply(Event.ASKED)
    leaving.exited("old")
    assert leaving.state is State.DOWN


@pytest.mark.parametrize("events", [(), (Event.MADE,), (Event.MADE, Event.LOADED)])
def test_a_restart_that_is_asked_for_twice_is_one(events: tuple[Event, ...]) -> None:
    """The second is illegal for as long as the first is not over, and changes nothing."""
    asked = part(Event.ASKED, *events)
    before = repr(asked)
    with pytest.raises(IllegalEvent, match="asked for"):
        asked.apply(Event.ASKED)
    assert repr(asked) == before


def test_a_stop_while_one_is_replaced_knows_both() -> None:
    """Both are to be ended; once they have, none is asked for any more."""
    stopping = part(Event.ASKED, Event.MADE, Event.LOADED)
    stopping.is_stopping = True
    assert stopping.running == ("old", "new")
    for process in stopping.running:
        stopping.exited(process)
    with pytest.raises(IllegalEvent, match="down and stopping"):
        stopping.apply(Event.ASKED)


def test_a_stop_while_one_is_made_knows_it_once_it_is() -> None:
    """What comes to be after the stop has begun is to be ended like the others."""
    stopping = part(Event.ASKED)
    stopping.is_stopping = True
    stopping.exited("old")
    stopping.started("new")
    assert stopping.running == ("new",)


def test_an_end_is_taken_in_once() -> None:
    """Who looks again, or asks about one that was never made, is told so."""
    down = part()
    down.exited("old")
    for process in ("old", "stranger"):
        with pytest.raises(IllegalEvent, match=f"'{process}' is none of those that run"):
            down.exited(process)


def test_every_state_can_be_reached_and_left() -> None:
    """The table has no state that is a trap, and none that is never entered."""
    assert {state for state, _ in STATE_AFTER} == set(STATE_AFTER.values()) == set(State)


@pytest.mark.parametrize(
    ("state", "event"), [pair for pair in product(State, Event) if pair not in STATE_AFTER]
)
def test_what_the_table_does_not_name_is_illegal(state: State, event: Event) -> None:
    """It is refused in words, and the state stays."""
    part = Succession[str]()
    part.state = state
    with pytest.raises(IllegalEvent, match=event.value):
        part.apply(event)
    assert part.state is state
