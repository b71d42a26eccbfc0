"""What the shop opens with: its catalogue, the drives in the field, the book of orders, its rates.

`open_shop` is what a client does on the first morning. It may be done again: the same delivery is
booked once, prices and slots are set to what they are.
"""

from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from contracts.fleet import Batch, Fleet
from contracts.inventory import Inventory, Receive
from contracts.money import Money
from contracts.orders import Orders, PlaceOrder, Price
from contracts.production import OpenSlots, Production
from msgspec import Struct, json

from synchromesh import Call

R = TypeVar("R")

DATA = Path(__file__).parent / "data"


class CatalogueItem(Struct, frozen=True):
    """One line of the catalogue; `slots` is how many orders of it are built in each week."""

    sku: str
    name: str
    price: Money
    stock: int
    slots: tuple[int, ...]


class Accessory(Struct, frozen=True):
    """A motor or a cable: bought in, and sold with a drive."""

    sku: str
    name: str
    price: Money
    stock: int


class Rates(Struct, frozen=True, forbid_unknown_fields=True):
    """How often each customer, each drive's owner and each passer-by may come; such as "50/s"."""

    orders: str
    readings: str
    window: str


class ShopClient(Protocol):
    """A client that may call the services: a program, a test, the command line."""

    def call(self, call: Call[R], *, key: str) -> Awaitable[R]:
        """Send a command under an idempotency key and return its answer."""
        ...


def catalogue() -> list[CatalogueItem]:
    """Return the drives that servo-works makes."""
    return json.decode((DATA / "catalogue.json").read_bytes(), type=list[CatalogueItem])


def accessories() -> list[Accessory]:
    """Return the motors and cables that go with the drives."""
    return json.decode((DATA / "parts.json").read_bytes(), type=list[Accessory])


def field_reports() -> list[Batch]:
    """Return the first reports of drives in the field; most of them know the order they were of."""
    return json.decode((DATA / "fleet.json").read_bytes(), type=list[Batch])


def order_book() -> list[PlaceOrder]:
    """Return the orders that came in, in their order."""
    return json.decode((DATA / "orders.json").read_bytes(), type=list[PlaceOrder])


def rates() -> Rates:
    """Return the gateway's rate limits."""
    return json.decode((DATA / "rates.json").read_bytes(), type=Rates)


async def open_shop(client: ShopClient) -> None:
    """Set all prices, receive the first deliveries, open the bench, and hear from the field."""
    await stock_drives(client, catalogue())
    for part in accessories():
        await stock_part(client, part)
    for batch in field_reports():
        await client.call(Fleet.report(batch), key=f"opening/report/{batch.machine.machine_id}")


async def open_for_drill(client: ShopClient) -> None:
    """Open, take the first order, and have enough for a drill: what runs out is no part's fault."""
    await open_shop(client)
    await client.call(Orders.place(order_book()[0]), key="first")
    await client.call(Production.open_slots(OpenSlots("SX90", 4, 1_000)), key="slots")
    await client.call(Inventory.receive(Receive("more", "SX90", 1_000)), key="stock")


async def stock_drives(client: ShopClient, drives: Sequence[CatalogueItem]) -> None:
    """Price drives, put the first delivery of each on the shelf, and open its weeks to build."""
    for drive in drives:
        await stock_part(client, drive)
        for week, capacity in enumerate(drive.slots, 1):
            await client.call(
                Production.open_slots(OpenSlots(drive.sku, week, capacity)),
                key=f"opening/slots/{drive.sku}/{week}",
            )


async def stock_part(client: ShopClient, part: CatalogueItem | Accessory) -> None:
    """Price a part, and put its first delivery on the shelf."""
    sku = part.sku
    await client.call(Orders.set_price(Price(sku, part.price)), key=f"opening/price/{sku}")
    await client.call(
        Inventory.receive(Receive(f"opening/{sku}", sku, part.stock)), key=f"opening/stock/{sku}"
    )
