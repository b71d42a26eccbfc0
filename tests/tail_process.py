"""One of several processes that write one log on PostgreSQL, and follow it meanwhile.

`python tail_process.py URL NUMBER WRITERS EACH TOTAL` says "ready", and once it reads a line has so
many writers append so many events each. It reads from the beginning as far as TOTAL, and says a
digest of what it has read, in the order in which it was read, and how often it was at the end.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from contextlib import suppress

from synchromesh.events import SCHEMA, Checkpoint, NewEvent, append, read
from synchromesh.runtime import RealRuntime
from synchromesh.store import Unit
from synchromesh.store.postgres import PostgresOptions, PostgresStore

STREAMS = 8


class Regretted(Exception):
    """Ends a unit after it has appended."""


async def write(store: PostgresStore, writer: int, count: int) -> None:
    """Append events: in groups, in units that do more, and now and then in one that fails."""

    async def one(n: int, *, is_alone: bool = False, is_regretted: bool = False) -> None:
        async def body(unit: Unit) -> None:
            if is_alone:
                await unit.execute("select 1")
            event = NewEvent("shop.sold", f"{writer}/{n}".encode())
            await append(unit, f"s/{(writer + n) % STREAMS}", [event], expected=None)
            if is_regretted:
                raise Regretted

        # A name for each way: what was seen of one tells how the next of its name is run.
        await store.write(body, name=f"{is_alone} {is_regretted}")

    for n in range(count):
        if n % 5 == 0:
            with suppress(Regretted):
                await one(n, is_alone=True, is_regretted=True)
        await one(n, is_alone=n % 3 == 0)


async def follow(store: PostgresStore, total: int) -> str:
    """Read the log as far as an event, and return what was read."""
    position, ends, digest = 0, 0, hashlib.sha256()
    while position < total:
        found = await read(store, after=Checkpoint(store.log_id, position), limit=500)
        for each in found:
            position += 1
            assert each.position == position, f"{each.position} comes after {position - 1}"
            digest.update(told(each.position, each.stream, each.version, each.body))
        if not found:
            ends += 1
            await asyncio.sleep(0.005)
    return f"{digest.hexdigest()} {ends}"


def told(position: int, stream: str, version: int, body: bytes) -> bytes:
    """Return what of an event is told from another one."""
    return f"{position} {stream} {version} {body.decode()}\n".encode()


async def main(url: str, number: int, writers: int, each: int, total: int) -> None:
    store = await PostgresStore.open(
        url, service="tailed", schemas=[SCHEMA], runtime=RealRuntime(),
        options=PostgresOptions(look_every_s=0.1, unit_limit_s=60.0),
    )  # fmt: skip
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    reading = asyncio.ensure_future(follow(store, total))
    await asyncio.gather(*(write(store, number * writers + n, each) for n in range(writers)))
    print(await reading, flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
