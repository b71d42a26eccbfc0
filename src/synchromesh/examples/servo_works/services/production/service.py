"""What production does: quotes a week, books a place on the bench, and hands out build sheets."""

from contracts.billing import Billing, InvoicePaid
from contracts.production import Book, FullyBooked, OpenSlots, Production, Quote, Slot

from synchromesh import Context, Migration, Service, Transaction

TABLES = (
    """
    create table week(
        sku text not null, week bigint not null, capacity bigint not null,
        primary key(sku, week)
    )
    """,
    """
    create table slot(
        id text primary key, order_id text not null, sku text not null, week bigint not null
    )
    """,
    "create index slot_week on slot(sku, week)",
    """
    create table build_sheet(
        order_id text primary key, invoice_id text not null, times bigint not null
    )
    """,
)

production = Service(
    "production", implements=Production, migrations=[Migration(1, TABLES, readable_by_min=1)]
)

FIRST_FREE = """
    select week from week where sku = ? and week >= ? and capacity > (
        select count(*) from slot where slot.sku = week.sku and slot.week = week.week
    )
    order by week limit 1
"""


@production.writes(Production.open_slots)
async def open_slots(tx: Transaction, slots: OpenSlots) -> None:
    """Say how many orders of a drive the bench can build in a week."""
    await tx.execute(
        "insert into week(sku, week, capacity) values (?, ?, ?) "
        "on conflict(sku, week) do update set capacity = excluded.capacity",
        slots.sku,
        slots.week,
        slots.capacity,
    )


@production.handles(Production.quote)
async def quote(ctx: Context, sku: str) -> Quote:
    """Name the first week with room; nothing is held by it."""
    weeks = await ctx.read(FIRST_FREE, sku, 0, as_=int)
    if not weeks:
        raise FullyBooked(f"no open week has room for {sku}", sku=sku)
    return Quote(sku, weeks[0])


@production.writes(Production.book)
async def book(tx: Transaction, request: Book) -> Slot:
    """Book a place on the bench for an order that is paid for, which is why it never refuses.

    Where the quoted week has filled up meanwhile it is the next one with room, and where none has,
    the quoted one after all: somebody works overtime.
    """
    sku, quoted = request.quote.sku, request.quote.week
    weeks = await tx.execute(FIRST_FREE, sku, quoted, as_=int)
    week = weeks[0] if weeks else quoted
    slot = Slot(tx.new_id(), request.order_id, sku, week)
    await tx.execute(
        "insert into slot(id, order_id, sku, week) values (?, ?, ?, ?)",
        slot.id,
        slot.order_id,
        slot.sku,
        slot.week,
    )
    return slot


@production.on(Billing.invoice_paid)
async def hand_out_build_sheet(tx: Transaction, paid: InvoicePaid) -> None:
    """Give the builders a sheet for what is paid; `times` would betray one handed out twice."""
    await tx.execute(
        "insert into build_sheet(order_id, invoice_id, times) values (?, ?, 1) "
        "on conflict(order_id) do update set times = build_sheet.times + 1",
        paid.order_id,
        paid.invoice_id,
    )
