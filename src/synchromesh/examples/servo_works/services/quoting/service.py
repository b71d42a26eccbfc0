"""What quoting does: asks who knows the price, the shelf and the bench, and keeps nothing itself.

It has queries only, and so no database: any number of instances answer alike, side by side. Without
a price there is no quote; where inventory or production does not answer, the lead time is unknown.
"""

from contracts.configurator import Configurator
from contracts.inventory import Inventory, Pieces, UnknownSku
from contracts.money import Money
from contracts.production import FullyBooked, Production
from contracts.quoting import LeadTime, NotSold, PriceQuote, Quoting

from synchromesh import CallError, Context, Service

quoting = Service("quoting", implements=Quoting)


@quoting.handles(Quoting.quote)
async def quote(ctx: Context, sku: str, qty: Pieces) -> PriceQuote:
    """Say what pieces cost now, and when they are there."""
    price = await price_of(ctx, sku)
    total = price.times(qty)
    if await is_on_shelf(ctx, sku, qty):
        return PriceQuote(sku, qty, price, total, "from_shelf", None)
    week = await first_week(ctx, sku)
    lead_time: LeadTime = "unknown" if week is None else "when_built"
    return PriceQuote(sku, qty, price, total, lead_time, week)


async def price_of(ctx: Context, sku: str) -> Money:
    """Return what one piece costs by the price list."""
    prices = await ctx.call(Configurator.price_list())
    for line in prices.lines:
        if line.sku == sku:
            return line.price
    raise NotSold(f"{sku} is not on the price list", sku=sku)


async def is_on_shelf(ctx: Context, sku: str, qty: int) -> bool:
    """Return whether so many are free; False also where inventory does not say."""
    try:
        stock = await ctx.call(Inventory.stock(sku))
    except (UnknownSku, CallError):
        return False
    return stock.on_hand >= qty


async def first_week(ctx: Context, sku: str) -> int | None:
    """Return the first week with room on the bench; None where there is none, or nobody says."""
    try:
        return (await ctx.call(Production.quote(sku))).week
    except (FullyBooked, CallError):
        return None
