"""What the configurator does: keeps what others told of prices and stock, and answers from that.

Its tables are made of public events, so that it answers whether their owners run or not. How many
drives are free is asked anew where the last word is no longer fresh; where inventory does not
answer, its last word stands in, marked as such and with its age.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from contracts.configurator import (
    CableM,
    Configuration,
    Configurator,
    Free,
    Part,
    PriceLine,
    PriceList,
    Source,
    SpeedRpm,
    Supply,
    TorqueNm,
)
from contracts.inventory import Inventory, Stock, UnknownSku
from contracts.money import Money
from contracts.orders import Orders, Price
from msgspec import convert, json

from services.configurator.rules import Load, Sheets, choose
from synchromesh import CallError, Context, Migration, Service, Transaction

TABLES = (
    """
    create table price(
        sku text primary key, price_minor bigint not null, currency text not null,
        told_us bigint not null
    )
    """,
    """
    create table stock(sku text primary key, free bigint not null, told_us bigint not null)
    """,
)

SHEETS = Path(__file__).parents[2] / "data" / "sheets.json"
# What inventory told within this time is as good as its answer to a question.
FRESH_S = 1.0

configurator = Service(
    "configurator", implements=Configurator, migrations=[Migration(1, TABLES, readable_by_min=1)]
)


# -- what others tell ----------------------------------------------------------------------------


@configurator.on(Orders.price_set)
async def keep_price(tx: Transaction, price: Price) -> None:
    """Keep what orders charges for a part from now on."""
    await tx.execute(
        "insert into price(sku, price_minor, currency, told_us) values (?, ?, ?, ?) "
        "on conflict(sku) do update set price_minor = excluded.price_minor, "
        "currency = excluded.currency, told_us = excluded.told_us",
        price.sku,
        price.price.minor,
        price.price.currency,
        tx.now_us,
    )


@configurator.on(Inventory.stock_changed)
async def keep_stock(tx: Transaction, stock: Stock) -> None:
    """Keep how many pieces of a part are free; the events of one part come in their order."""
    await tx.execute(
        "insert into stock(sku, free, told_us) values (?, ?, ?) "
        "on conflict(sku) do update set free = excluded.free, told_us = excluded.told_us",
        stock.sku,
        stock.on_hand,
        tx.now_us,
    )


# -- what is answered ----------------------------------------------------------------------------


@configurator.handles(Configurator.configure)
async def configure(
    ctx: Context,
    torque_nm: TorqueNm,
    peak_nm: TorqueNm,
    speed_rpm: SpeedRpm,
    supply: Supply,
    cable_m: CableM,
) -> Configuration:
    """Choose the cheapest drive, motor and cable that fit, and say how many drives are free."""
    prices = await last_prices(ctx)
    choice = choose(Load(torque_nm, peak_nm, speed_rpm, supply, cable_m), sheets(), prices)
    drive, motor, cable = (
        Part(sku, prices[sku]) for sku in (choice.drive, choice.motor, choice.cable)
    )
    return Configuration(drive, motor, cable, choice.total, await free_pieces(ctx, drive.sku))


@configurator.handles(Configurator.price_list)
async def price_list(ctx: Context) -> PriceList:
    """List what was told last, and how long ago each service told anything."""
    rows = await ctx.read(
        "select price.sku, price_minor, currency, free from price "
        "left join stock on stock.sku = price.sku order by price.sku"
    )
    lines = convert(rows, list[tuple[str, int, str, int | None]])
    told = await ctx.read(
        "select (select max(told_us) from price), (select max(told_us) from stock)"
    )
    orders_us, inventory_us = convert(told[0], tuple[int | None, int | None])
    return PriceList(
        tuple(PriceLine(sku, Money(minor, currency), free) for sku, minor, currency, free in lines),
        (Source("orders", age_s(ctx, orders_us)), Source("inventory", age_s(ctx, inventory_us))),
    )


async def last_prices(ctx: Context) -> Mapping[str, Money]:
    """Return the prices that orders told last."""
    rows = await ctx.read("select sku, price_minor, currency from price")
    return {
        sku: Money(minor, currency)
        for sku, minor, currency in convert(rows, list[tuple[str, int, str]])
    }


async def free_pieces(ctx: Context, sku: str) -> Free:
    """Return how many pieces are free: by a fresh word, by asking, or by the last word there is."""
    rows = await ctx.read("select free, told_us from stock where sku = ?", sku)
    pieces, told_us = convert(rows[0], tuple[int, int]) if rows else (None, None)
    told_s = age_s(ctx, told_us)
    if told_s is not None and told_s <= FRESH_S:
        return Free(pieces, Source("inventory", told_s))
    try:
        stock = await ctx.call(Inventory.stock(sku))
    except UnknownSku:
        return Free(0, Source("inventory", 0.0))
    except CallError:
        return Free(pieces, Source("inventory", told_s, is_fallback=True))
    return Free(stock.on_hand, Source("inventory", 0.0))


def age_s(ctx: Context, told_us: int | None) -> float | None:
    """Return how long ago something was told; never less than 0, whatever clocks do."""
    return None if told_us is None else max(0, ctx.now_us - told_us) / 1e6


@cache
def sheets() -> Sheets:
    """Return the data sheets; they change with a release, and are read once."""
    return json.decode(SHEETS.read_bytes(), type=Sheets)
