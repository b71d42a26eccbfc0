"""The three things that happen to an order; each is one unit of work of the place-order saga."""

from contracts.money import Money
from contracts.orders import (
    NoPrice,
    Order,
    OrderPlaced,
    OrderRejected,
    Orders,
    PlaceOrder,
)
from msgspec import convert

from synchromesh import Transaction


async def create_order(tx: Transaction, request: PlaceOrder) -> Order:
    """Take an order at today's price."""
    rows = await tx.execute("select price_minor, currency from price where sku = ?", request.sku)
    if not rows:
        raise NoPrice(f"the price list has no {request.sku}; see the catalogue", sku=request.sku)
    total = Money(*convert(rows[0], tuple[int, str])).times(request.qty)
    await tx.execute(
        "insert into orders(order_id, customer, sku, qty, total_minor, currency, status) "
        "values (?, ?, ?, ?, ?, ?, 'pending')",
        request.order_id,
        request.customer,
        request.sku,
        request.qty,
        total.minor,
        total.currency,
    )
    return Order(request.order_id, request.customer, request.sku, request.qty, total, "pending")


async def reject_order(tx: Transaction, order: Order) -> None:
    """Undo an order: it stays in the books, as one that was not placed."""
    await tx.execute("update orders set status = 'rejected' where order_id = ?", order.order_id)
    tx.publish(
        Orders.order_rejected,
        OrderRejected(order.order_id, order.customer, order.sku, order.qty),
    )


async def confirm_order(tx: Transaction, order: Order) -> None:
    """Conclude an order: it is held, paid for and on the bench."""
    await tx.execute("update orders set status = 'placed' where order_id = ?", order.order_id)
    tx.publish(
        Orders.order_placed,
        OrderPlaced(order.order_id, order.customer, order.sku, order.qty, order.total),
    )
