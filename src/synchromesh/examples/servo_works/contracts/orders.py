"""What others may know about orders: how one is placed, and what became of it."""

from typing import Annotated, Literal, Protocol, TypeAlias

from msgspec import Meta, Struct

from contracts.billing import CreditDeclined
from contracts.inventory import OutOfStock, Pieces
from contracts.money import Money
from contracts.production import FullyBooked
from synchromesh import Contract, PublicEvent, Rejection, command, event, query

OrderId: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
OrderStatus: TypeAlias = Literal["pending", "placed", "rejected"]


class Price(Struct, frozen=True):
    sku: str
    price: Money


class PlaceOrder(Struct, frozen=True):
    """An order as a customer gives it; one sold over the counter has no customer of its own."""

    order_id: OrderId
    sku: str
    qty: Pieces
    customer: str = "counter"


class Placed(Struct, frozen=True, tag="placed"):
    """The order is held, paid for and on the bench."""

    order_id: str
    hold_id: str
    week: int
    total: Money


class Accepted(Struct, frozen=True, tag="accepted"):
    """The order is taken and will be placed or rejected; ask `Orders.one` which."""

    order_id: str


class Order(Struct, frozen=True):
    order_id: str
    customer: str
    sku: str
    qty: int
    total: Money
    status: OrderStatus


class OrderPlaced(Struct, frozen=True):
    order_id: str
    customer: str
    sku: str
    qty: int
    total: Money


class OrderRejected(Struct, frozen=True):
    order_id: str
    customer: str
    sku: str
    qty: int


class NoPrice(Rejection, code="no_price", status=404):
    """Raised when the price list has no such drive."""


class UnknownOrder(Rejection, code="unknown_order", status=404):
    """Raised when no order has this id."""


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @command("PUT /prices")
    async def set_price(self, price: Price) -> None: ...

    @command("POST /orders", raises=(NoPrice, OutOfStock, FullyBooked, CreditDeclined))
    async def place(self, request: PlaceOrder) -> Placed | Accepted: ...

    @query("GET /orders/{order_id}", raises=(UnknownOrder,))
    async def one(self, order_id: str) -> Order: ...

    price_set: PublicEvent[Price] = event(Price, key="sku")
    order_placed: PublicEvent[OrderPlaced] = event(OrderPlaced, key="order_id")
    order_rejected: PublicEvent[OrderRejected] = event(OrderRejected, key="order_id")
