"""A service of queries only with three replicas, a gateway before it, and clients that count."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from split_world import port_of
from synchromesh import Context, Contract, Gateway, Migration, Route, Service, command, query
from synchromesh.errors import CallError
from synchromesh.http import HttpPool
from synchromesh.runtime import RealRuntime
from synchromesh.system import System

TOML = """
[system]
name = "offers"

[services.quotes]
app = "replicas_app:quotes"
replicas = 3

[gateway]
app = "replicas_app:way_in"
"""
INSTANCES = ("quotes#1", "quotes#2", "quotes#3")
# In the environment: a file with the process id of who takes three times as long.
SLOWER = "REPLICAS_APP_SLOWER"
MEAN_S, SIGMA, TIMES = 0.03, 0.5, 3.0
AT_ONCE = 6
ASK_WITHIN_S = 30.0


class Quotes(Contract, Protocol, service="quotes", version="1.0"):
    @query("GET /quotes/{sku}")
    async def one(self, sku: str) -> int: ...
    @query("GET /worked/{sku}")
    async def worked(self, sku: str) -> int: ...
    @query("GET /kept")
    async def kept(self) -> int: ...


class Prices(Contract, Protocol, service="prices", version="1.0"):
    @command("PUT /prices/{sku}")
    async def put(self, sku: str) -> None: ...
    @query("GET /prices/{sku}")
    async def one(self, sku: str) -> int: ...
    @query("GET /kept/{sku}")
    async def kept(self, sku: str) -> int: ...


quotes = Service("quotes", implements=Quotes)
prices = Service("prices", implements=Prices, migrations=[Migration(1, (), 1)])


@quotes.handles(Quotes.one)
async def one(ctx: Context, sku: str) -> int:
    await asyncio.sleep(0.001)
    return os.getpid()


@quotes.handles(Quotes.worked)
async def worked(ctx: Context, sku: str) -> int:
    """Take as long as work does that is not always the same: log-normal."""
    took_s = random.lognormvariate(math.log(MEAN_S), SIGMA)
    slower = Path(os.environ[SLOWER])
    is_slower = slower.read_text() == str(os.getpid())
    await asyncio.sleep(took_s * (TIMES if is_slower else 1.0))
    return os.getpid()


@quotes.handles(Quotes.kept)
async def kept(ctx: Context) -> int:
    return len(await ctx.read("select 1"))


@prices.handles(Prices.put)
async def put(ctx: Context, sku: str) -> None: ...


@prices.handles(Prices.kept)
async def kept_price(ctx: Context, sku: str) -> int:
    await ctx.read("select 1")
    return os.getpid()


@prices.handles(Prices.one)
async def price(ctx: Context, sku: str) -> int:
    return 1


way_in = Gateway(
    routes=[
        Route("GET /quotes/{sku}", Quotes.one, public=True, deadline="20s"),
        Route("GET /worked/{sku}", Quotes.worked, public=True, deadline="20s"),
    ]
)
way_to_prices = Gateway(routes=[Route("GET /kept/{sku}", Prices.kept, public=True, deadline="20s")])


@dataclass
class Clients:
    """Clients of the gateway that ask one after the other, each without a pause.

    Attributes:
        at_once: how many there are; `path` is what they ask for.
        statuses: how often which status came back; 0 for no answer.
        pids: how often which process answered.
        took_s: how long each request took.
    """

    system: System
    at_once: int = AT_ONCE
    path: str = "/quotes/SX90"
    statuses: Counter[int] = field(default_factory=Counter)
    pids: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)

    @property
    def asked(self) -> int:
        """How many requests have ended."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """How many of them did not succeed."""
        return self.asked - self.statuses[200]

    async def ask(self, times: int) -> None:
        """Ask so many times more, several at once."""
        until = self.asked + times
        async with self._asking(lambda: self.asked >= until):
            pass

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask while the block runs."""
        over = asyncio.Event()
        async with self._asking(over.is_set):
            try:
                yield
            finally:
                over.set()

    @asynccontextmanager
    async def _asking(self, is_over: Callable[[], bool]) -> AsyncIterator[None]:
        network = RealRuntime().network
        async with HttpPool(network=network) as pool, asyncio.TaskGroup() as group:
            for _ in range(self.at_once):
                group.create_task(self._one_after_the_other(pool, is_over))
            yield

    async def _one_after_the_other(self, pool: HttpPool, is_over: Callable[[], bool]) -> None:
        port, loop = port_of(self.system.info.gateway), asyncio.get_running_loop()
        while not is_over():
            began_s = loop.time()
            try:
                answer = await pool.request(
                    "127.0.0.1", port, "GET", self.path,
                    timeout_s=ASK_WITHIN_S, is_idempotent=True,
                )  # fmt: skip
            except CallError:
                self.statuses[0] += 1
                continue
            finally:
                self.took_s.append(loop.time() - began_s)
            self.statuses[answer.status] += 1
            self.pids[answer.body.decode()] += answer.status == 200
