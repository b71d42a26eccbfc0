"""The stock of one drive, decided purely: what was received, what is held for which order.

    PiecesReceived ──▶ on the shelf ──PiecesHeld──▶ held ──PiecesReleased──▶ on the shelf

Its events are its only truth; the tables that others read are made from them.
"""

from collections.abc import Mapping
from typing import TypeAlias

from contracts.inventory import OutOfStock, Receive, Stock, UnknownHold
from msgspec import Struct

from synchromesh import Decider, Decision


class PiecesReceived(Struct, frozen=True):
    sku: str
    delivery: str
    qty: int


class PiecesHeld(Struct, frozen=True):
    sku: str
    hold_id: str
    order_id: str
    qty: int


class PiecesReleased(Struct, frozen=True):
    sku: str
    hold_id: str
    qty: int


class SetAside(Struct, frozen=True):
    """Hold pieces of a drive for an order."""

    sku: str
    hold_id: str
    order_id: str
    qty: int


class PutBack(Struct, frozen=True):
    """Give held pieces back to the shelf."""

    sku: str
    hold_id: str


class Shelf(Struct, frozen=True):
    """What the events of one drive add up to."""

    on_hand: int = 0
    holds: Mapping[str, int] = {}
    deliveries: frozenset[str] = frozenset()


StockCommand: TypeAlias = Receive | SetAside | PutBack
StockEvent: TypeAlias = PiecesReceived | PiecesHeld | PiecesReleased


def decide(command: StockCommand, shelf: Shelf) -> Decision[Stock]:
    """Return what a command leads to, or raise why it does not."""
    match command:
        case Receive(delivery, sku, qty):
            # A delivery note that is handed in twice is still one delivery.
            is_new = delivery not in shelf.deliveries
            events = (PiecesReceived(sku, delivery, qty),) if is_new else ()
            return _outcome(sku, shelf, *events)
        case SetAside(sku, hold_id, order_id, qty):
            if qty > shelf.on_hand:
                raise OutOfStock(
                    f"{qty} of {sku} were asked for, {shelf.on_hand} are free",
                    sku=sku,
                    free=shelf.on_hand,
                )
            return _outcome(sku, shelf, PiecesHeld(sku, hold_id, order_id, qty))
        case PutBack(sku, hold_id):
            if hold_id not in shelf.holds:
                raise UnknownHold(f"nothing of {sku} is held under {hold_id}")
            return _outcome(sku, shelf, PiecesReleased(sku, hold_id, shelf.holds[hold_id]))


def evolve(shelf: Shelf, event: StockEvent) -> Shelf:
    """Return the shelf as it is after an event."""
    match event:
        case PiecesReceived(_, delivery, qty):
            return Shelf(shelf.on_hand + qty, shelf.holds, shelf.deliveries | {delivery})
        case PiecesHeld(_, hold_id, _, qty):
            holds = {**shelf.holds, hold_id: qty}
            return Shelf(shelf.on_hand - qty, holds, shelf.deliveries)
        case PiecesReleased(_, hold_id, qty):
            holds = {held: pieces for held, pieces in shelf.holds.items() if held != hold_id}
            return Shelf(shelf.on_hand + qty, holds, shelf.deliveries)


def _outcome(sku: str, shelf: Shelf, *events: StockEvent) -> Decision[Stock]:
    for event in events:
        shelf = evolve(shelf, event)
    return Decision(Stock(sku, shelf.on_hand, sum(shelf.holds.values())), events)


stock_item = Decider(
    "stock",
    initial=Shelf(),
    decide=decide,
    evolve=evolve,
    events=(PiecesReceived, PiecesHeld, PiecesReleased),
)
