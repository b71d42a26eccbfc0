"""Units of work run as if one after the other, by their histories (I1, I2)."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from lists_world import KEYS, LISTS, READ, TABLE, ListClient, values
from postgres_server import empty_database
from synchromesh.testing.list_append import Append, ListRead, Txn, TxnEnd, anomalies

pytestmark = pytest.mark.anyio


async def test_units_run_as_if_one_after_the_other(stores: Any) -> None:
    """Those of several processes, too, where the engine has several that write."""
    count = 1 if stores.engine == "sqlite" else 3
    opened = [await stores.open([LISTS]) for _ in range(count)]
    clients = [ListClient(number, opened[number % count]) for number in range(8)]
    await asyncio.gather(*(each.run(40) for each in clients))
    for each in opened:
        await each.close()
    last = await stores.open([LISTS])
    final = {key: values(await last.read(READ, key)) for key in KEYS}
    # On PostgreSQL a unit may come before one whose end was known before it began: what it reads is
    # of a moment, but SERIALIZABLE says nothing of real time.
    history = [txn for each in clients for txn in each.history(has_times=count == 1)]
    assert min(len(each) for each in final.values()) > 20
    assert {txn.end for txn in history} == {TxnEnd.COMMITTED, TxnEnd.UNKNOWN}
    assert anomalies(history, final) == []


async def test_a_weaker_isolation_is_found(anyio_backend: str) -> None:
    """REPEATABLE READ lets each of two append to what the other has read as empty: write skew."""
    url = await empty_database("skew")
    ends = [await asyncpg.connect(url) for _ in range(2)]
    await ends[0].execute(TABLE)
    begun = [each.transaction(isolation="repeatable_read") for each in ends]
    for each in begun:
        await each.start()
    read = [values(await end.fetch("select vals from list")) for end in ends]
    for end, key in zip(ends, "xy", strict=True):
        await end.execute("insert into list values ($1, '1 ')", key)
    for each in begun:
        await each.commit()
    for end in ends:
        await end.close()
    a = Txn("a", (ListRead("y", read[0]), Append("x", 1)))
    b = Txn("b", (ListRead("x", read[1]), Append("y", 1)))
    (found,) = anomalies([a, b], {"x": (1,), "y": (1,)})
    assert str(found) == "G2: a -rw-> b -rw-> a"
