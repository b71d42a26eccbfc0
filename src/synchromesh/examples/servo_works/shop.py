"""What the shop opens with: the catalogue of drives, and the book of orders that customers sent.

`open_shop` is what a client does on the first morning. It may be done again: the same delivery is
booked once, prices and slots are set to what they are.
"""

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from contracts.inventory import Inventory, Receive
from contracts.money import Money
from contracts.orders import Orders, PlaceOrder, Price
from contracts.production import OpenSlots, Production
from msgspec import Struct, json

from synchromesh import Call

R = TypeVar("R")

DATA = Path(__file__).parent / "data"


class Drive(Struct, frozen=True):
    """One line of the catalogue; `slots` is how many orders of it are built in each week."""

    sku: str
    name: str
    price: Money
    stock: int
    slots: tuple[int, ...]


class Client(Protocol):
    """Whoever may call the services: a program, a test, the command line."""

    def call(self, call: Call[R], *, key: str) -> Awaitable[R]:
        """Send a command under an idempotency key and return its answer."""
        ...


def catalogue() -> list[Drive]:
    """Return the drives that servo-works makes."""
    return json.decode((DATA / "catalogue.json").read_bytes(), type=list[Drive])


def order_book() -> list[PlaceOrder]:
    """Return the orders that came in, in their order."""
    return json.decode((DATA / "orders.json").read_bytes(), type=list[PlaceOrder])


async def open_shop(client: Client, drives: Sequence[Drive] = ()) -> None:
    """Set the prices, put the first delivery on the shelf and open the weeks of the bench.

    `drives` stand for the whole catalogue where none are given.
    """
    for drive in drives or catalogue():
        sku = drive.sku
        await client.call(Orders.set_price(Price(sku, drive.price)), key=f"opening/price/{sku}")
        await client.call(
            Inventory.receive(Receive(f"opening/{sku}", sku, drive.stock)),
            key=f"opening/stock/{sku}",
        )
        for week, capacity in enumerate(drive.slots, 1):
            await client.call(
                Production.open_slots(OpenSlots(sku, week, capacity)),
                key=f"opening/slots/{sku}/{week}",
            )
