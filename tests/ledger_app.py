"""A process whose saga writes a list into a ledger that is not its own, until it is killed.

    python tests/ledger_app.py FOLDER ends|undoes [LINES]

It is killed as soon as the ledger has so many lines: nothing of its own runs after that.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from saga_fakes import CONTEXT, Declined, Order, Participants, engine_on
from synchromesh import events
from synchromesh.errors import Rejection
from synchromesh.runtime import RealRuntime
from synchromesh.saga import Saga, SagaDefinition, Unknown
from synchromesh.saga.schema import SCHEMA
from synchromesh.store import SqliteStore

ITEMS = 24
CAP = 4
TAKES_S = 0.01
LINES = int(sys.argv[3]) if len(sys.argv) > 3 and sys.argv[3].isdecimal() else 0


def write(ledger: Path, *words: str) -> None:
    """Append a line, as a provider does what it was asked for."""
    with ledger.open("a") as file:
        file.write(" ".join(words) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if len(ledger.read_text().splitlines()) == LINES:
        os.kill(os.getpid(), signal.SIGKILL)


def saga(ledger: Path, *, undoes: bool) -> SagaDefinition[Order, int]:
    """Return a saga that enters each item; what `undoes` is refused in the end."""

    async def enter(key: str, item: int) -> str:
        await asyncio.sleep(TAKES_S)
        write(ledger, "enter", key, str(item))
        await asyncio.sleep(TAKES_S)
        return key

    async def strike(_key: str, done: str | Unknown) -> None:
        write(ledger, "strike", done.key if isinstance(done, Unknown) else done)
        await asyncio.sleep(TAKES_S)

    async def close(key: str) -> str:
        if undoes:
            raise Declined("the ledger stays open")
        return key

    async def enters(s: Saga, order: Order) -> int:
        entered = await s.each(
            range(ITEMS), lambda item: s.step(enter, item, undo=strike, attempts_max=50), cap=CAP
        )
        await s.step(close)
        return len(set(entered))

    return SagaDefinition(enters, "enters", deadline_s=600.0)


async def main(folder: Path, how: str) -> None:
    """Go on with the run, or start it; say how it ended."""
    runtime: Any = RealRuntime()
    definition = saga(folder / "ledger", undoes=how == "undoes")
    store = await SqliteStore.open(
        str(folder / "orders.db"),
        service="orders",
        schemas=[events.SCHEMA, SCHEMA],
        runtime=runtime,
    )
    engine = engine_on(store, Participants(), runtime, [definition])
    await engine.recover()
    handle = await engine.start(definition, Order("A-1"), id="A-1", context=CONTEXT)
    told: object = "undone"
    with suppress(Rejection):
        told = await handle.result(300.0)
    await engine.close()
    await store.close()
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
