"""Two services that each name their saga by the number of an order, so that ids are the same."""

from __future__ import annotations

from typing import Protocol

from synchromesh import Context, Contract, Saga, Service, command

TOML = """
[system]
name = "twice"

[services.orders]
app = "same_id_app:orders"

[services.shipping]
app = "same_id_app:shipping"
"""


class Orders(Contract, Protocol, service="orders", version="1.0"):
    @command("POST /orders")
    async def place(self, number: str) -> None: ...


class Shipping(Contract, Protocol, service="shipping", version="1.0"):
    @command("POST /parcels")
    async def ship(self, number: str) -> None: ...


orders = Service("orders", implements=Orders)
shipping = Service("shipping", implements=Shipping)


@orders.saga(str, deadline="2h")
async def buying(s: Saga, number: str) -> str:
    await s.sleep("1h")
    return number


@shipping.saga(str, deadline="2h")
async def parcel(s: Saga, number: str) -> str:
    await s.sleep("1h")
    return number


@orders.handles(Orders.place)
async def place(ctx: Context, number: str) -> None:
    await buying.start(ctx, number, id=number)


@shipping.handles(Shipping.ship)
async def ship(ctx: Context, number: str) -> None:
    await parcel.start(ctx, number, id=number)
