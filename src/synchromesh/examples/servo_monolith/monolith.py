"""servo-monolith: orders, stock and invoices of the maker of servo drives, in one module.

It runs as `python monolith.py`, and prints the port that it listens on; `SHOP_DB` is its database.
"""

import json
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

TABLES = """
create table if not exists stock(sku text primary key, on_hand integer not null);
create table if not exists reservation(
    order_id text primary key, sku text not null references stock(sku), qty integer not null
);
create table if not exists orders(id text primary key, sku text not null, qty integer not null);
create table if not exists invoice(order_id text primary key references orders(id), cents integer);
insert or ignore into stock values ('SX90', 12), ('SX70', 3);
"""
PRICES = {"SX90": 149_000, "SX70": 99_000}

app = FastAPI()


class NewOrder(BaseModel):
    id: str
    sku: str
    qty: int


@contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(os.environ.get("SHOP_DB", "shop.db"), isolation_level=None)
    try:
        connection.execute("begin immediate")
        yield connection
        connection.execute("commit")
    finally:
        connection.close()


def stock_of(db: sqlite3.Connection, sku: str) -> dict[str, object]:
    row = db.execute(
        "select on_hand, (select coalesce(sum(qty), 0) from reservation where sku = stock.sku) "
        "from stock where sku = ?",
        (sku,),
    ).fetchone()
    if row is None:
        raise HTTPException(404, f"there is no {sku}")
    return {"sku": sku, "on_hand": row[0], "available": row[0] - row[1]}


def reserve(db: sqlite3.Connection, order: NewOrder) -> None:
    if int(str(stock_of(db, order.sku)["available"])) < order.qty:
        raise HTTPException(409, f"too few of {order.sku} are left")
    db.execute("insert into reservation values (?, ?, ?)", (order.id, order.sku, order.qty))


@app.get("/stock/{sku}")
def stock(sku: str) -> dict[str, object]:
    with database() as db:
        return stock_of(db, sku)


@app.post("/orders", status_code=201)
def place(order: NewOrder) -> NewOrder:
    with database() as db:
        if db.execute("select 1 from orders where id = ?", (order.id,)).fetchone() is None:
            reserve(db, order)
            db.execute("insert into orders values (?, ?, ?)", (order.id, order.sku, order.qty))
            cents = PRICES[order.sku] * order.qty
            db.execute("insert into invoice values (?, ?)", (order.id, cents))
    return order


@app.get("/invoices/{order_id}")
def invoice(order_id: str) -> dict[str, object]:
    with database() as db:
        row = db.execute("select cents from invoice where order_id = ?", (order_id,)).fetchone()
    if row is None:
        raise HTTPException(404, f"there is no invoice for {order_id}")
    return {"order_id": order_id, "cents": row[0]}


if __name__ == "__main__":
    with sqlite3.connect(os.environ.get("SHOP_DB", "shop.db")) as made:
        made.executescript(TABLES)
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(json.dumps({"port": listening.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
