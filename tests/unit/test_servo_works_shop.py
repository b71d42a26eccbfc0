"""What the shop opens with, and that its services are whole."""

import asyncio
from typing import TypeVar

import pytest
import shop
from contracts.money import Money
from credit_provider import CHARGE_MAX_MINOR, DECLINED_CUSTOMERS
from demo.draw_orders import FIRST, draw, printed
from services.billing import billing
from services.configurator import configurator
from services.configurator.service import sheets
from services.fleet import fleet
from services.inventory import inventory
from services.orders import orders
from services.production import production
from services.quoting import quoting

from synchromesh import Call, Service

R = TypeVar("R")

SERVICES = [orders, inventory, billing, production, configurator, quoting, fleet]


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_handles_its_whole_contract(service: Service) -> None:
    """A contract without a handler would be refused at start."""
    service.check()


def test_there_are_as_many_operations_as_have_a_reason() -> None:
    """Twelve to eighteen in the whole system, one by one in its contracts."""
    assert 12 <= sum(len(service.operations) for service in SERVICES) <= 18


def test_the_catalogue_is_that_of_a_maker_of_drives() -> None:
    """At least a dozen drives, each with a price, stock and weeks on the bench."""
    drives = shop.catalogue()
    assert len({drive.sku for drive in drives}) == len(drives) >= 12
    assert all(drive.price.minor > 0 and drive.stock > 0 and sum(drive.slots) for drive in drives)


def test_the_order_book_has_orders_of_every_fate() -> None:
    """At least 200 orders: most can be placed, some exceed the stock, some will be declined."""
    book, drives = shop.order_book(), {drive.sku: drive for drive in shop.catalogue()}
    assert len({order.order_id for order in book}) == len(book) >= 200
    assert {order.sku for order in book} == set(drives)
    left = {sku: drive.stock for sku, drive in drives.items()}
    short = declined = 0
    for order in book:
        total = drives[order.sku].price.times(order.qty)
        if left[order.sku] < order.qty:
            short += 1
        elif order.customer in DECLINED_CUSTOMERS or total.minor > CHARGE_MAX_MINOR:
            declined += 1
        else:
            left[order.sku] -= order.qty
    assert short >= 10
    assert declined >= 10
    assert len(book) - short - declined >= 150


def test_the_later_orders_are_drawn_as_is_written() -> None:
    """The book is what its script prints from the first orders, byte for byte."""
    first = shop.order_book()[:FIRST]
    assert printed(first + draw(first)) == (shop.DATA / "orders.json").read_text()


class Notes:
    """A client that notes what it is asked to send."""

    def __init__(self) -> None:
        self.sent: dict[str, str] = {}

    async def call(self, call: Call[R], *, key: str) -> R:
        assert key not in self.sent
        self.sent[key] = call.operation.full_name
        return None  # type: ignore[return-value]


def test_the_shop_opens_with_one_key_for_each_command() -> None:
    """The keys are the same each morning, so that opening again repeats nothing."""
    first, second = Notes(), Notes()
    asyncio.run(shop.open_shop(first))
    asyncio.run(shop.open_shop(second))
    assert first.sent == second.sent
    assert first.sent["opening/stock/SX90"] == "inventory.receive"
    assert set(first.sent.values()) == {
        "orders.set_price",
        "inventory.receive",
        "production.open_slots",
        "fleet.report",
    }


def test_every_part_on_a_data_sheet_is_sold() -> None:
    """What the configurator chooses from is in the catalogue, or a motor or cable in stock."""
    sold = {drive.sku for drive in shop.catalogue()} | {part.sku for part in shop.accessories()}
    known = sheets()
    skus = [part.sku for part in known.drives]
    skus += [part.sku for part in known.motors]
    skus += [part.sku for part in known.cables]
    assert len(set(skus)) == len(skus)
    assert {part.sku for part in shop.accessories()} <= set(skus) <= sold


def test_drives_in_the_field_are_of_the_catalogue_and_of_orders() -> None:
    """What a nameplate says is true: the drive is one that we make, the order one of that drive."""
    drives = {drive.sku for drive in shop.catalogue()}
    orders_by_id = {order.order_id: order.sku for order in shop.order_book()}
    plates = [batch.machine for batch in shop.field_reports()]
    assert len({plate.machine_id for plate in plates}) == len(plates) >= 12
    assert {plate.sku for plate in plates} <= drives
    assert all(orders_by_id[plate.order_id] == plate.sku for plate in plates if plate.order_id)
    assert any(plate.order_id is None for plate in plates)


def test_money_is_whole_minor_units() -> None:
    """A price times a count is exact, and reads as people write it."""
    assert Money(58_905, "EUR").times(3) == Money(176_715, "EUR")
    assert str(Money(58_905, "EUR")) == "589.05 EUR"
