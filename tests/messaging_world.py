"""A publisher and its subscribers by hand: a contract, databases, and a sender that can fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

import virtual_postgres
from synchromesh.calls.contract import Contract, Operation, PublicEvent, event
from synchromesh.codec import decode, encode
from synchromesh.context import CallContext
from synchromesh.errors import ConnectFailed, TimedOut
from synchromesh.events import SCHEMA as EVENTS
from synchromesh.messaging import (
    SCHEMA,
    Consumer,
    DirectDelivery,
    Message,
    Relay,
    RelayOptions,
    publish,
)
from synchromesh.runtime import DiskRuntime
from synchromesh.store import Migration, Schema, SqliteStore, Store, StoreOptions, Unit
from synchromesh.telemetry import MemoryRing, Tracer

TRACE = "0af7651916cd43dd8448eb211c80319c"

TABLES = Schema(
    "hand",
    (
        Migration(
            1,
            (
                "create table sale(n integer primary key, sku text not null)",
                "create table taken(id {position}, sku text not null, n integer not null)",
            ),
            readable_by_min=1,
        ),
    ),
)
SCHEMAS = (EVENTS, SCHEMA, TABLES)


class Sold(msgspec.Struct, frozen=True):
    sku: str
    n: int


class Shop(Contract, Protocol, service="shop", version="1.0"):
    sold: PublicEvent[Sold] = event(Sold, key="sku")
    returned: PublicEvent[Sold] = event(Sold, key="sku")
    counted: PublicEvent[Sold] = event(Sold)


SOLD = Shop.sold.full_name


async def open_store(
    runtime: DiskRuntime,
    service: str = "shop",
    options: StoreOptions | None = None,
    *,
    folder: str = "",
) -> Any:
    """Open the database of a service, with the tables of these tests; on either `each_engine`."""
    if virtual_postgres.is_on():
        return await virtual_postgres.stores(runtime).open(service, SCHEMAS)
    return await SqliteStore.open(
        f"{folder}/{service}.db",
        service=service,
        schemas=SCHEMAS,
        runtime=runtime,
        options=options or StoreOptions(),
    )


@asynccontextmanager
async def stores(runtime: DiskRuntime, *services: str) -> Any:
    """Open the databases of services, and close them in the end."""
    opened = [await open_store(runtime, service) for service in services]
    try:
        yield opened
    finally:
        for store in opened:
            await store.close()


async def sell(store: Store, sku: str, n: int, *, which: Any = Shop.sold) -> None:
    """Sell in one unit: a row and a public event."""

    async def body(unit: Unit) -> None:
        await unit.execute("insert into sale(n, sku) values (?, ?)", n, sku)
        await publish(unit, which, Sold(sku, n), trace_id=TRACE)

    await store.write(body, name="sell")


def message(n: int = 1, *, sku: str = "SX90", name: str = SOLD, at: int | None = None) -> Message:
    """Make the message of a sale, at position n; it is `event-n`."""
    position = n if at is None else at
    payload = msgspec.Raw(encode(Sold(sku, n)))
    return Message(f"event-{position}", position, name, 1, sku, payload, TRACE)


async def take(unit: Unit, message: Message) -> None:
    """Handle a message: write down what was sold."""
    sold = decode(bytes(message.payload), Sold)
    await unit.execute("insert into taken(sku, n) values (?, ?)", sold.sku, sold.n)


async def taken(store: Store, sku: str | None = None) -> list[Any]:
    """Return what a subscriber has written down, in the order of its commits."""
    rows = await store.read("select sku, n from taken order by id")
    return [n for s, n in rows if sku in (None, s)]


@dataclass
class Poison:
    """A handler that fails on some numbers until it is mended."""

    bad: set[int]
    error: Callable[[], Exception] = lambda: ValueError("cannot be taken")
    calls: int = 0

    async def __call__(self, unit: Unit, message: Message) -> None:
        self.calls += 1
        await take(unit, message)
        if decode(bytes(message.payload), Sold).n in self.bad:
            raise self.error()


Fault = Callable[[Message], str]


class Direct:
    """Sends to consumers of this process; `fault` says for each message what goes wrong.

    "" nothing, "refuse" before it arrives, "lose" the answer after the consumer's commit,
    "garbage" an answer that is none, "hang" until it is cancelled.
    """

    def __init__(self, **consumers: Consumer) -> None:
        self.consumers = consumers
        self.fault: Fault = lambda message: ""
        self.on_sent: Callable[[Message], Awaitable[None]] | None = None
        self.sent: list[int] = []
        self.contexts: list[CallContext] = []
        self.running: Counter[str] = Counter()
        self.running_max = 0
        self.scope_max = 0

    async def send(
        self,
        operation: Operation[..., Any],
        arguments: bytes,
        *,
        context: CallContext,
        timeout_s: float | None = None,
    ) -> bytes:
        """Deliver one message."""
        message: Message = operation.parse(arguments)["message"]
        self.sent.append(message.position)
        self.contexts.append(context)
        self.running[message.scope] += 1
        self.running_max = max(self.running_max, sum(self.running.values()))
        self.scope_max = max(self.scope_max, self.running[message.scope])
        try:
            return await self._send(operation.service, message)
        finally:
            self.running[message.scope] -= 1

    async def _send(self, service: str, message: Message) -> bytes:
        fault = self.fault(message)
        if self.on_sent is not None:
            await self.on_sent(message)
        if fault == "refuse":
            raise ConnectFailed(f"{service} is down")
        receipt = await self.consumers[service].take("shop", message)
        if fault == "lose":
            raise TimedOut(f"{service} did not answer in time")
        return b'{"outcome":7}' if fault == "garbage" else encode(receipt)


def relay_to(
    store: Store,
    sender: Direct,
    runtime: DiskRuntime,
    *,
    subscriber: str = "stock",
    names: frozenset[str] = frozenset({SOLD}),
    ring: MemoryRing | None = None,
    **options: Any,
) -> Relay:
    """Make a relay of the shop's log."""
    return Relay(
        store,
        DirectDelivery(sender, subscriber),
        subscriber=subscriber,
        names=names,
        tracer=Tracer("shop", runtime, MemoryRing() if ring is None else ring),
        runtime=runtime,
        options=RelayOptions(**options),
    )
