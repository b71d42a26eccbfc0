"""What orders knows: the price list, and the state of every order."""

from contracts.money import Money
from contracts.orders import Order, Orders, OrderStatus, Price, UnknownOrder
from msgspec import convert

from synchromesh import Context, Migration, Service, Transaction

TABLES = (
    """
    create table price(
        sku text primary key, price_minor bigint not null, currency text not null
    )
    """,
    """
    create table orders(
        order_id text primary key, customer text not null, sku text not null,
        qty bigint not null, total_minor bigint not null, currency text not null,
        status text not null
    )
    """,
)

orders = Service("orders", implements=Orders, migrations=[Migration(1, TABLES, readable_by_min=1)])


@orders.writes(Orders.set_price)
async def set_price(tx: Transaction, price: Price) -> None:
    """Set what a part costs from now on, and tell; orders that are taken keep their price."""
    await tx.execute(
        "insert into price(sku, price_minor, currency) values (?, ?, ?) "
        "on conflict(sku) do update set price_minor = excluded.price_minor, "
        "currency = excluded.currency",
        price.sku,
        price.price.minor,
        price.price.currency,
    )
    tx.publish(Orders.price_set, price)


@orders.handles(Orders.one)
async def one(ctx: Context, order_id: str) -> Order:
    """Return an order as it stands."""
    rows = await ctx.read(
        "select order_id, customer, sku, qty, total_minor, currency, status "
        "from orders where order_id = ?",
        order_id,
    )
    if not rows:
        raise UnknownOrder(f"no order has the id {order_id}")
    order_id, customer, sku, qty, minor, currency, status = convert(
        rows[0], tuple[str, str, str, int, int, str, OrderStatus]
    )
    return Order(order_id, customer, sku, qty, Money(minor, currency), status)
