"""Rows are read as structs, dataclasses and values; what does not fit is named without its data."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from synchromesh.errors import StatementFailed
from synchromesh.runtime import RealRuntime
from synchromesh.store import Migration, Schema, SqliteStore, Unit, fetch_as

pytestmark = pytest.mark.anyio


class State(enum.Enum):
    OPEN = "open"
    DONE = "done"


class Order(msgspec.Struct, frozen=True):
    id: str
    qty: int
    is_paid: bool
    state: State
    at: dt.datetime
    price: Decimal
    weight: float | None = None
    is_sent: bool | None = None
    body: bytes = b""


@dataclasses.dataclass(frozen=True)
class Line:
    id: str
    qty: int = 1
    tags: list[str] = dataclasses.field(default_factory=list)


class Camel(msgspec.Struct, rename="camel", forbid_unknown_fields=True, tag=True):
    order_id: str
    lines_left: int


ORDER = Order(
    "o-1", 3, True, State.OPEN, dt.datetime(2026, 11, 30, 12, 0, 0, 5, tzinfo=dt.UTC),
    Decimal("1.10"), 2.0, None, b"x",
)  # fmt: skip
TABLE = (
    "create table orders(id text, qty integer, is_paid integer, state text, at integer, "
    "price text, weight real, is_sent integer, body blob)"
)
ALL = "select id, qty, is_paid, state, at, price, weight, is_sent, body, 'new' as later from orders"


async def opened(folder: Path) -> SqliteStore:
    store = await SqliteStore.open(
        str(folder / "shop.db"),
        service="shop",
        schemas=[Schema("service.shop", (Migration(1, (TABLE,), 1),))],
        runtime=RealRuntime(),
    )

    async def fill(unit: Unit) -> None:
        at_us = int(ORDER.at.timestamp()) * 1_000_000 + ORDER.at.microsecond
        await unit.execute(
            "insert into orders values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            "o-1", 3, 1, "open", at_us, "1.10", 2, None, b"x",
        )  # fmt: skip

    await store.write(fill, name="fill")
    return store


async def read(store: SqliteStore, kind: type[Any], sql: str, *values: Any) -> list[Any]:
    return await fetch_as(store, kind, sql, values)


async def test_columns_are_the_fields_of_their_names(tmp_path: Path) -> None:
    """Structs and dataclasses, in any order; a column of no field is left out."""
    store = await opened(tmp_path)
    assert await read(store, Order, ALL) == [ORDER]
    assert await read(store, Line, "select qty, id from orders") == [Line("o-1", 3)]
    assert await read(store, Line, "select id from orders") == [Line("o-1")]
    camel = await read(store, Camel, "select qty as lines_left, id as order_id, 1 from orders")
    assert camel == [Camel("o-1", 3)]
    assert await read(store, Order, f"{ALL} where qty > ?", 3) == []
    await store.close()


@pytest.mark.parametrize(
    ("kind", "sql", "expected"),
    [
        (int, "select count(*) from orders", 1),
        (str, "select id from orders", "o-1"),
        (float, "select 1", 1.0),
        (bool, "select qty > 2 from orders", True),
        (bytes, "select body from orders", b"x"),
        (State, "select state from orders", State.OPEN),
        (dt.datetime, "select at from orders", ORDER.at),
        (dt.datetime, "select '2026-11-30T12:00:00.000005Z'", ORDER.at),
        (dt.date, "select '2026-11-30'", dt.date(2026, 11, 30)),
        (UUID, "select '018bcfe5-6800-7000-8000-000000000000'",
         UUID("018bcfe5-6800-7000-8000-000000000000")),
    ],
)  # fmt: skip
async def test_a_single_column_is_a_value(
    tmp_path: Path, kind: type[Any], sql: str, expected: object
) -> None:
    """Truth is SQLite's 0 and 1, times are microseconds or ISO 8601."""
    store = await opened(tmp_path)
    (value,) = await read(store, kind, sql)
    assert value == expected
    assert type(value) is type(expected)
    await store.close()


@pytest.mark.parametrize(
    ("kind", "sql", "said"),
    [
        (Line, "select qty as n from orders", "no column is called 'id', which Line needs; there "),
        (Line, "select id, qty as id from orders", "2 columns are called 'id'"),
        (Line, "select id, state as qty from orders",
         "column 'qty' of row 1 is text where Line.qty has int"),
        (Line, "select 'a' as id, 1 as qty union all select null, 2 order by qty",
         "column 'id' of row 2 is null where Line.id has str"),
        (Line, "select 'a' as id, 1.5 as qty", "column 'qty' of row 1 is float where"),
        (Order, "select id, qty, 2 as is_paid, state, at, price from orders",
         "'is_paid' of row 1 is int where Order.is_paid has bool"),
        (Order, "select id, qty, is_paid, 'secret' as state, at, price from orders",
         "'state' of row 1 is text where Order.state has State"),
        (Order, "select id, qty, is_paid, state, 'secret' as at, price from orders",
         "'at' of row 1 is text where Order.at has datetime"),
        (int, "select id, qty from orders", "2 columns ('id', 'qty') are read as int, which is"),
        (int, "select 'secret'", "column … of row 1 is text where int is wanted"),
        (Line, "select 1, 'secret'", "there are …, …: select it"),
        (int, "select max(qty) from orders where qty > 9", "is null where int is wanted"),
        (dt.datetime, f"select {2**62}", "is int where datetime is wanted"),
        (int, "select unknown from orders", "no such column: unknown"),
        (int, "update orders set qty = 0", "a read ran a statement that writes"),
    ],
)  # fmt: skip
async def test_what_does_not_fit_is_named(
    tmp_path: Path, kind: type[Any], sql: str, said: str
) -> None:
    """The column, the row, the type and the statement's line; never what the column holds."""
    store = await opened(tmp_path)
    with pytest.raises(StatementFailed) as caught:
        await read(store, kind, sql)
    assert said in caught.value.message
    assert "secret" not in caught.value.message.replace(str(tmp_path), "")
    assert "test_store_rows.py" in caught.value.message
    await store.close()


async def test_a_unit_reads_what_it_has_written(tmp_path: Path) -> None:
    """Rows that a statement returns are typed, too; one that does not fit ends the unit."""
    store = await opened(tmp_path)

    async def change(unit: Unit) -> list[Line]:
        sql = "update orders set qty = qty + ? returning id, qty"
        return await fetch_as(unit, Line, sql, (1,))

    assert await store.write(change, name="change") == [Line("o-1", 4)]

    async def wrong(unit: Unit) -> list[int]:
        return await fetch_as(unit, int, "update orders set qty = 9 returning id", ())

    with pytest.raises(StatementFailed, match="'id' of row 1 is text where int is wanted"):
        await store.write(wrong, name="wrong")
    assert await read(store, int, "select qty from orders") == [4]
    await store.close()
