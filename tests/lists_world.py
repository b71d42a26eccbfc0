"""Units of work that read lists and append to them; their histories tell if each was alone."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Any

from synchromesh.errors import SynchromeshError
from synchromesh.store import Migration, Schema, Store, Unit
from synchromesh.testing.list_append import Append, ListRead, Txn, TxnEnd

TABLE = "create table list(key text primary key, vals text not null)"
LISTS = Schema("lists", (Migration(1, (TABLE,), 1),))
KEYS = ("x", "y", "z")
READ = "select vals from list where key = ?"
APPEND = (
    "insert into list(key, vals) values (?, ?)"
    " on conflict (key) do update set vals = list.vals || excluded.vals"
)


class ListClient:
    """Runs units that read lists and append to them, and notes what they saw."""

    def __init__(self, name: int, store: Store) -> None:
        self._name = name
        self._store = store
        self._rng = random.Random(name)
        self._value = name * 1_000_000
        self._seen: list[tuple[list[Append | ListRead], TxnEnd, float, float]] = []

    async def run(self, count: int) -> None:
        """Run `count` units; every fifth is cancelled, so that its end is unknown."""
        for number in range(count):
            await self.run_one(is_cancelled=number % 5 == 4)

    async def run_one(self, *, is_cancelled: bool = False) -> bool:
        """Run a unit, and return whether it was acknowledged."""
        loop = asyncio.get_running_loop()
        plan = [
            (self._rng.choice(KEYS), self._rng.random() < 0.5)
            for _ in range(self._rng.randint(1, 4))
        ]
        saw: list[Append | ListRead] = []
        began_s = loop.time()
        writing = asyncio.create_task(
            self._store.write(partial(self._unit, plan, saw), name="lists")
        )
        if is_cancelled:
            await self._store.read("select 1")
            writing.cancel()
        end = TxnEnd.COMMITTED
        try:
            await writing
        except (asyncio.CancelledError, SynchromeshError):
            end = TxnEnd.UNKNOWN
        self._seen.append((saw, end, began_s, loop.time()))
        return end is TxnEnd.COMMITTED

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
