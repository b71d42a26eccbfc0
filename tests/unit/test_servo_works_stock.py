"""The stock of one drive: given what happened, when a command comes, then this happens."""

from contracts.inventory import OutOfStock, Receive, Stock, UnknownHold
from hypothesis import given as for_all
from hypothesis import strategies as st
from services.inventory.stock import (
    PiecesHeld,
    PiecesReceived,
    PiecesReleased,
    PutBack,
    SetAside,
    StockCommand,
    StockEvent,
    stock_item,
)

from synchromesh import Rejection
from synchromesh.events import given

TEN = PiecesReceived("SX90", "note-1", 10)


def test_a_delivery_goes_on_the_shelf() -> None:
    """What is received is free to be held."""
    scenario = given(stock_item).when(Receive("note-1", "SX90", 10))
    scenario.then(TEN).returns(Stock("SX90", on_hand=10, held=0))


def test_a_delivery_note_that_is_handed_in_twice_is_booked_once() -> None:
    """The note's number tells that it is the same delivery, whoever sends it again."""
    scenario = given(stock_item, TEN).when(Receive("note-1", "SX90", 10))
    scenario.then().returns(Stock("SX90", on_hand=10, held=0))


def test_held_pieces_leave_the_shelf() -> None:
    """A hold takes pieces from those that are free."""
    scenario = given(stock_item, TEN).when(SetAside("SX90", "h1", "A-1", 4))
    scenario.then(PiecesHeld("SX90", "h1", "A-1", 4)).returns(Stock("SX90", on_hand=6, held=4))


def test_the_last_piece_can_be_held() -> None:
    """As many as are free is not too many."""
    scenario = given(stock_item, TEN).when(SetAside("SX90", "h1", "A-1", 10))
    scenario.then(PiecesHeld("SX90", "h1", "A-1", 10)).returns(Stock("SX90", on_hand=0, held=10))


def test_more_than_is_free_is_refused() -> None:
    """Held pieces are not free for another order, and the refusal says how many are."""
    scenario = given(stock_item, TEN, PiecesHeld("SX90", "h1", "A-1", 4))
    scenario.when(SetAside("SX90", "h2", "A-2", 7)).rejects(OutOfStock, sku="SX90", free=6)


def test_nothing_is_free_of_what_was_never_received() -> None:
    """An unknown drive is one of which none is in stock."""
    given(stock_item).when(SetAside("SX90", "h1", "A-1", 1)).rejects(OutOfStock, free=0)


def test_released_pieces_are_free_again() -> None:
    """A release gives back as many as were held, without being told how many."""
    scenario = given(stock_item, TEN, PiecesHeld("SX90", "h1", "A-1", 4))
    scenario.when(PutBack("SX90", "h1")).then(PiecesReleased("SX90", "h1", 4)).returns(
        Stock("SX90", on_hand=10, held=0)
    )


def test_a_hold_is_released_once() -> None:
    """A second release would put pieces on the shelf that are not there."""
    scenario = given(
        stock_item, TEN, PiecesHeld("SX90", "h1", "A-1", 4), PiecesReleased("SX90", "h1", 4)
    )
    scenario.when(PutBack("SX90", "h1")).rejects(UnknownHold)


COMMANDS = st.one_of(
    st.builds(Receive, st.sampled_from("pqr"), st.just("SX90"), st.integers(1, 9)),
    st.builds(
        SetAside, st.just("SX90"), st.sampled_from("abcd"), st.just("A-1"), st.integers(1, 9)
    ),
    st.builds(PutBack, st.just("SX90"), st.sampled_from("abcd")),
)


@for_all(st.lists(COMMANDS, max_size=30))
def test_no_piece_is_ever_lost_or_made(commands: list[StockCommand]) -> None:
    """Whatever is asked, what was received is on hand or held, and neither is below zero."""
    events: list[StockEvent] = []
    used: set[str] = set()
    for command in commands:
        if isinstance(command, SetAside):
            if command.hold_id in used:  # a hold's id is new; the service sees to that
                continue
            used.add(command.hold_id)
        try:
            decision = stock_item.decide(command, stock_item.fold(events))
        except Rejection:
            continue
        events += [event for event in decision.events if isinstance(event, StockEvent)]
        stock = decision.result
        received = sum(event.qty for event in events if isinstance(event, PiecesReceived))
        assert stock.on_hand + stock.held == received
        assert min(stock.on_hand, stock.held) >= 0
