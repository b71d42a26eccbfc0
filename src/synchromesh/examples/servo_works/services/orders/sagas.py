"""The place-order saga: an order is held, paid for and on the bench, or nothing of it is."""

from contracts.billing import Billing, Charge
from contracts.inventory import Inventory, Reserve
from contracts.orders import Accepted, Orders, Placed, PlaceOrder
from contracts.production import Book, Production

from services.orders.service import orders
from services.orders.units import confirm_order, create_order, reject_order
from synchromesh import Context, Saga


@orders.saga(PlaceOrder, version=1, deadline="10m", key=lambda request: request.order_id)
async def place_order(s: Saga, request: PlaceOrder) -> Placed:
    """Place an order across four services; a failure before the charge or a no to it undoes all."""
    order = await s.write(create_order, request, undo=reject_order)
    hold, quote = await s.all(
        s.call(
            Inventory.reserve(Reserve(order.order_id, order.sku, order.qty)),
            undo=Inventory.release,
        ),
        s.call(Production.quote(order.sku)),
    )
    # The point of no return: money has moved, so from here on the saga only goes forward.
    await s.call(Billing.charge(Charge(order.order_id, order.customer, order.total)), pivot=True)
    slot = await s.call(Production.book(Book(order.order_id, quote)))
    await s.write(confirm_order, order)
    return Placed(order.order_id, hold.id, slot.week, order.total)


@orders.handles(Orders.place)
async def place(ctx: Context, request: PlaceOrder) -> Placed | Accepted:
    """Start the saga, and wait a second for it: most orders are decided by then."""
    run = await place_order.start(ctx, request, id=request.order_id)
    return await run.result(within_s=1.0) or Accepted(request.order_id)
