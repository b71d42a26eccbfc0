"""A small shop for tests of what a person does with events and projections."""

from __future__ import annotations

from typing import Protocol

import msgspec

from synchromesh import Context, Contract, Service, Transaction, command, query
from synchromesh.events import AppendReceipt

TOML = '[system]\nname = "shop"\n\n[services.shop]\napp = "shop_app:shop"\n'
UNLUCKY = 13
is_mended: list[bool] = []


class Sold(msgspec.Struct, frozen=True):
    sku: str
    qty: int


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /sales")
    async def sell(self, sku: str, qty: int) -> AppendReceipt: ...
    @query("GET /demand")
    async def demand(self, receipt: AppendReceipt) -> int: ...


shop = Service("shop", implements=Shop)


@shop.writes(Shop.sell)
async def sell(tx: Transaction, sku: str, qty: int) -> AppendReceipt:
    await tx.append(f"sales/{sku}", [Sold(sku, qty)])
    return tx.receipt


@shop.projection(
    "demand", events=(Sold,), tables=["create table demand(sku text primary key, qty integer)"]
)
async def demand_of(tx: Transaction, sold: Sold) -> None:
    if sold.qty == UNLUCKY and not is_mended:
        raise ValueError("thirteen is not sold")
    await tx.execute(
        "insert into demand values (?, ?) on conflict(sku) do update "
        "set qty = demand.qty + excluded.qty",
        sold.sku,
        sold.qty,
    )


@shop.projection("others", events=(Sold,), tables=["create table other(n integer)"])
async def others(tx: Transaction, sold: Sold) -> None:
    await tx.execute("insert into other values (?)", sold.qty)


@shop.handles(Shop.demand)
async def demand(ctx: Context, receipt: AppendReceipt) -> int:
    await ctx.wait_for("demand", receipt, within_s=5.0)
    rows = await ctx.read("select coalesce(sum(qty), 0) from demand")
    return int(str(rows[0][0]))
