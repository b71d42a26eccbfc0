"""Units of work run as if one after the other, by their histories (I1, I2)."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

import asyncpg
import pytest

from postgres_server import empty_database
from synchromesh.errors import SynchromeshError
from synchromesh.store import Migration, Schema, Store, Unit
from synchromesh.testing.list_append import Append, ListRead, Txn, TxnEnd, anomalies

pytestmark = pytest.mark.anyio

TABLE = "create table list(key text primary key, vals text not null)"
LISTS = Schema("lists", (Migration(1, (TABLE,), 1),))
KEYS = ("x", "y", "z")
READ = "select vals from list where key = ?"
APPEND = (
    "insert into list(key, vals) values (?, ?)"
    " on conflict (key) do update set vals = list.vals || excluded.vals"
)


class Client:
    """Runs units that read lists and append to them, and notes what they saw."""

    def __init__(self, name: int, store: Store) -> None:
        self._name = name
        self._store = store
        self._rng = random.Random(name)
        self._value = name * 1_000_000
        self._seen: list[tuple[list[Append | ListRead], TxnEnd, float, float]] = []

    async def run(self, count: int) -> None:
        """Run `count` units; every fifth is cancelled, so that its end is unknown."""
        loop = asyncio.get_running_loop()
        for number in range(count):
            plan = [
                (self._rng.choice(KEYS), self._rng.random() < 0.5)
                for _ in range(self._rng.randint(1, 4))
            ]
            saw: list[Append | ListRead] = []
            began_s = loop.time()
            writing = asyncio.create_task(
                self._store.write(partial(self._unit, plan, saw), name="lists")
            )
            if number % 5 == 4:
                await self._store.read("select 1")
                writing.cancel()
            end = TxnEnd.COMMITTED
            try:
                await writing
            except (asyncio.CancelledError, SynchromeshError):
                end = TxnEnd.UNKNOWN
            self._seen.append((saw, end, began_s, loop.time()))

    async def _unit(
        self, plan: list[tuple[str, bool]], saw: list[Append | ListRead], unit: Unit
    ) -> None:
        saw.clear()  # one that met a conflict is run again, with other values
        for key, is_read in plan:
            if is_read:
                saw.append(ListRead(key, values(await unit.execute(READ, key))))
            else:
                self._value += 1
                saw.append(Append(key, self._value))
                await unit.execute(APPEND, key, f"{self._value} ")

    def history(self, *, has_times: bool) -> list[Txn]:
        """Return what its units saw, once none of them is under way any more."""
        return [
            Txn(
                f"{self._name}.{number}",
                tuple(saw),
                end,
                began_s if has_times else None,
                ended_s if has_times and end is TxnEnd.COMMITTED else None,
            )
            for number, (saw, end, began_s, ended_s) in enumerate(self._seen)
        ]


def values(rows: Any) -> tuple[int, ...]:
    return tuple(int(each) for row in rows for each in str(row[0]).split())


async def test_units_run_as_if_one_after_the_other(stores: Any) -> None:
    """Those of several processes, too, where the engine has several that write."""
    count = 1 if stores.engine == "sqlite" else 3
    opened = [await stores.open([LISTS]) for _ in range(count)]
    clients = [Client(number, opened[number % count]) for number in range(8)]
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
