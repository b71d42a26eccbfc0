"""Two releases of servo-works, as universes replace them in every order.

The shipped code is the newer one. The one before it lets orders look for stock first, so that a run
of one does not fit the other, and inventory does not take `orders.order_rejected` yet. What is
shipped keeps the saga of before as version 1, as a team does that has runs of it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from contracts.billing import Billing, Charge
from contracts.inventory import Inventory, Reserve
from contracts.orders import Accepted, Orders, Placed, PlaceOrder
from contracts.production import Book, Production
from services.orders import orders as shipped_orders
from services.orders.units import confirm_order, create_order, reject_order

from synchromesh import Context, Saga
from synchromesh.saga import SagaDefinition, SagaVersions
from synchromesh.service import Service

# Those whose two releases differ.
DIFFERENT = ("orders", "inventory")


async def order_as_before(s: Saga, request: PlaceOrder) -> Placed:
    """Place an order step by step, with a look at the stock once there is an order."""
    order = await s.write(create_order, request, undo=reject_order)
    # Not before: who was told that an order is accepted finds one, whatever becomes of it.
    await s.call(Inventory.stock(request.sku))
    hold = await s.call(
        Inventory.reserve(Reserve(order.order_id, order.sku, order.qty)), undo=Inventory.release
    )
    quote = await s.call(Production.quote(order.sku))
    await s.call(Billing.charge(Charge(order.order_id, order.customer, order.total)), pivot=True)
    slot = await s.call(Production.book(Book(order.order_id, quote)))
    await s.write(confirm_order, order)
    return Placed(order.order_id, hold.id, slot.week, order.total)


def two_releases(shipped: Mapping[str, Service]) -> dict[str, dict[str, Service]]:
    """Return the services of the release before, "old", and of the shipped one, "new"."""
    (saga,) = shipped["orders"].sagas
    newest = replace(saga, version=2)
    before = replace(saga, fn=order_as_before, version=1)
    inventory = copy.copy(shipped["inventory"])
    taken = {**inventory.subscriptions}
    del taken[Orders.order_rejected.full_name]
    inventory.subscriptions = taken
    old = {"orders": orders_with(before), "inventory": inventory}
    new = {"orders": orders_with(newest, before)}
    return {"old": {**shipped, **old}, "new": {**shipped, **new}}


def orders_with(
    starts: SagaDefinition[PlaceOrder, Placed],
    *others: SagaDefinition[PlaceOrder, Placed],
) -> Service:
    """Return orders with a saga that it starts, and others that it only continues."""

    async def place(ctx: Context, request: PlaceOrder) -> Placed | Accepted:
        run = await starts.start(ctx, request, id=request.order_id)
        return await run.result(within_s=1.0) or Accepted(request.order_id)

    orders = copy.copy(shipped_orders)
    orders.sagas = SagaVersions([starts, *others])
    handled = replace(orders.operations["place"], function=place)
    orders.operations = {**orders.operations, "place": handled}
    return orders
