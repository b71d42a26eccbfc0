"""What inventory does: receives, reserves and releases drives, and says how many are free."""

from contracts.inventory import (
    Hold,
    Inventory,
    Receive,
    Reserve,
    Stock,
    StockReserved,
    UnknownSku,
)
from contracts.orders import OrderRejected, Orders

from services.inventory.stock import (
    PiecesHeld,
    PiecesReceived,
    PiecesReleased,
    PutBack,
    SetAside,
    StockEvent,
    stock_item,
)
from synchromesh import Context, Migration, Service, Transaction

TABLES = (
    """
    create table hold(
        id text primary key, order_id text not null, sku text not null, qty bigint not null,
        status text not null
    )
    """,
    """
    create table lost_demand(
        sku text primary key, orders bigint not null, pieces bigint not null
    )
    """,
)
# Made from events, and made anew from them at any time.
LEVELS = """
    create table stock_level(
        sku text primary key, received bigint not null, on_hand bigint not null,
        held bigint not null
    )
"""

inventory = Service(
    "inventory", implements=Inventory, migrations=[Migration(1, TABLES, readable_by_min=1)]
)


@inventory.writes(Inventory.receive)
async def receive(tx: Transaction, delivery: Receive) -> Stock:
    """Put a delivery on the shelf."""
    stock = await tx.decide(stock_item, delivery.sku, delivery)
    tx.publish(Inventory.stock_changed, stock)
    return stock


@inventory.writes(Inventory.reserve)
async def reserve(tx: Transaction, request: Reserve) -> Hold:
    """Hold pieces for an order: stream, row, message and answer commit together."""
    hold = Hold(tx.new_id(), request.order_id, request.sku, request.qty)
    left = await tx.decide(
        stock_item, hold.sku, SetAside(hold.sku, hold.id, hold.order_id, hold.qty)
    )
    await tx.execute(
        "insert into hold(id, order_id, sku, qty, status) values (?, ?, ?, ?, 'active')",
        hold.id,
        hold.order_id,
        hold.sku,
        hold.qty,
    )
    tx.publish(Inventory.stock_reserved, StockReserved(hold.id, hold.order_id, hold.sku, hold.qty))
    tx.publish(Inventory.stock_changed, left)
    return hold


@inventory.writes(Inventory.release)
async def release(tx: Transaction, hold: Hold) -> None:
    """Give held pieces back to the shelf."""
    left = await tx.decide(stock_item, hold.sku, PutBack(hold.sku, hold.id))
    await tx.execute("update hold set status = 'released' where id = ?", hold.id)
    tx.publish(Inventory.stock_changed, left)


@inventory.handles(Inventory.stock)
async def stock(ctx: Context, sku: str) -> Stock:
    """Answer from the stock levels, which follow the events within moments."""
    found = await ctx.read(
        "select sku, on_hand, held from stock_level where sku = ?", sku, as_=Stock
    )
    if not found:
        raise UnknownSku(f"inventory has never received {sku}; see the catalogue")
    return found[0]


@inventory.projection(
    "stock_level", events=(PiecesReceived, PiecesHeld, PiecesReleased), tables=[LEVELS]
)
async def stock_level(tx: Transaction, event: StockEvent) -> None:
    """Keep one row for each drive: what was received, what is free, what is held."""
    match event:
        case PiecesReceived(qty=qty):
            received, on_hand, held = qty, qty, 0
        case PiecesHeld(qty=qty):
            received, on_hand, held = 0, -qty, qty
        case PiecesReleased(qty=qty):
            received, on_hand, held = 0, qty, -qty
    await tx.execute(
        "insert into stock_level(sku, received, on_hand, held) values (?, ?, ?, ?) "
        "on conflict(sku) do update set received = stock_level.received + excluded.received, "
        "on_hand = stock_level.on_hand + excluded.on_hand, "
        "held = stock_level.held + excluded.held",
        event.sku,
        received,
        on_hand,
        held,
    )


@inventory.on(Orders.order_rejected)
async def note_lost_demand(tx: Transaction, rejected: OrderRejected) -> None:
    """Count what customers wanted and did not get: the buyer reads it."""
    await tx.execute(
        "insert into lost_demand(sku, orders, pieces) values (?, 1, ?) "
        "on conflict(sku) do update set orders = lost_demand.orders + 1, "
        "pieces = lost_demand.pieces + excluded.pieces",
        rejected.sku,
        rejected.qty,
    )
