"""A shop and its subscribers on real databases, joined by calls or by a stream of a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from messaging_world import SCHEMAS, SOLD, Direct, open_store, take, taken
from postgres_server import empty_database
from synchromesh.errors import ConnectFailed, StoreUnavailable
from synchromesh.identity import Signer
from synchromesh.messaging import (
    Consumer,
    Delivery,
    DirectDelivery,
    MessageHandler,
    Relay,
    RelayOptions,
)
from synchromesh.messaging.jetstream import JetStream
from synchromesh.messaging.jetstream_connection import JetStreamOptions
from synchromesh.messaging.message import Message
from synchromesh.runtime import RealRuntime
from synchromesh.store import SqliteStore
from synchromesh.store.postgres import PostgresStore
from synchromesh.telemetry import MemoryRing, Tracer

WAIT_S = 180.0
KEY = b"k" * 32
QUICK = JetStreamOptions(
    ack_wait_s=1.0,
    heartbeat_s=0.2,
    taken_every_s=0.02,
    timeout_s=2.0,
    backoff_base_s=0.02,
    backoff_cap_s=0.2,
)


class Calls(Direct):
    """Calls consumers of this process; one that is not there is down."""

    async def _send(self, service: str, message: Message) -> bytes:
        if service not in self.consumers:
            raise ConnectFailed(f"{service} is down")
        return await super()._send(service, message)


class Works:
    """Runs relays and consumers, each as a process of its own would.

    Args:
        url: of NATS, or "".
        engine: keeps the databases.
    """

    def __init__(
        self, folder: Path, url: str = "", system: str = "works", *, engine: str = "sqlite"
    ) -> None:
        self.url = url
        self.engine = engine
        self.system = system
        self.runtime = RealRuntime()
        self.ring = MemoryRing()
        self.calls = Calls()
        self.restarts = 0
        self._folder = folder
        self._stores: dict[str, SqliteStore | PostgresStore] = {}

    async def store(self, service: str) -> SqliteStore | PostgresStore:
        """Return the database of a service, which is opened when it is first asked for."""
        if service not in self._stores:
            self._stores[service] = await self._open(service)
        return self._stores[service]

    async def _open(self, service: str) -> SqliteStore | PostgresStore:
        if self.engine == "sqlite":
            made: SqliteStore = await open_store(self.runtime, service, folder=str(self._folder))
            return made
        url = await empty_database(f"works_{service}")
        return await PostgresStore.open(url, service=service, schemas=SCHEMAS, runtime=self.runtime)

    async def close(self) -> None:
        """Close the databases."""
        for each in self._stores.values():
            await each.close()

    @asynccontextmanager
    async def stream(self, **options: Any) -> AsyncIterator[JetStream]:
        """Connect to the stream of the system."""
        made = await JetStream.connect(
            self.url,
            self.system,
            signer=Signer(KEY),
            runtime=self.runtime,
            options=quick(**options),
        )
        try:
            yield made
        finally:
            await made.close()

    @asynccontextmanager
    async def publishing(
        self,
        subscriber: str = "stock",
        *,
        names: frozenset[str] = frozenset({SOLD}),
        through: Callable[[Delivery], Delivery] = lambda delivery: delivery,
        **options: Any,
    ) -> AsyncIterator[Relay]:
        """Run a relay of the shop; it is cancelled in the end, wherever it is."""
        shop = await self.store("shop")

        def relay(delivery: Delivery) -> Relay:
            return Relay(
                shop,
                through(delivery),
                subscriber=subscriber,
                names=names,
                tracer=Tracer("shop", self.runtime, self.ring),
                runtime=self.runtime,
                options=RelayOptions(poll_s=0.05, backoff_base_s=0.02, backoff_cap_s=0.2),
            )

        if not self.url:
            made = relay(DirectDelivery(self.calls, subscriber))
            async with running(shop.owners.run(made.checkpoint_name, made.run)):
                yield made
            return
        async with self.stream(**options) as stream:
            made = relay(stream.delivery("shop", subscriber))
            async with running(self._keep_running(made)):
                yield made

    async def _keep_running(self, relay: Relay) -> None:
        """Run a relay as it is supervised: a stream that is lost has it begin again."""
        shop = await self.store("shop")
        while True:
            try:
                await shop.owners.run(relay.checkpoint_name, relay.run)
            except StoreUnavailable:
                self.restarts += 1

    @asynccontextmanager
    async def taking(
        self,
        service: str = "stock",
        handlers: Mapping[str, MessageHandler] | None = None,
        *,
        consumer: Consumer | None = None,
        **options: Any,
    ) -> AsyncIterator[Consumer]:
        """Run a consumer of a service; its last message is cut off wherever it is."""
        if consumer is None:
            store = await self.store(service)
            consumer = Consumer(store, {SOLD: take} if handlers is None else handlers)
        async with running(consumer.run()):
            if self.url:
                async with self.stream(**options) as stream:
                    tracer = Tracer(service, self.runtime, self.ring)
                    async with running(stream.feed(service, consumer, tracer)):
                        yield consumer
            else:
                self.calls.consumers[service] = consumer
                try:
                    yield consumer
                finally:
                    del self.calls.consumers[service]
        await consumer.close()

    async def until_taken(self, count: int, service: str = "stock") -> list[int]:
        """Wait until a subscriber has written down so many, and return them."""
        store = await self.store(service)

        async def holds() -> bool:
            return len(await taken(store)) >= count

        await until(holds)
        return await taken(store)

    async def until_saved(self, position: int, subscriber: str = "stock") -> None:
        """Wait until the publisher knows that all up to a position was taken."""
        shop = await self.store("shop")

        async def holds() -> bool:
            rows = await shop.read(
                "select position from sm_checkpoint where name = ?", f"relay/{subscriber}"
            )
            return rows == [(position,)]

        await until(holds)


class Unsure:
    """Delivers as another one does; `answer` is told of each message, and may raise instead."""

    def __init__(self, delivery: Delivery, answer: Callable[[Message], Awaitable[None]]) -> None:
        self._delivery = delivery
        self._answer = answer
        self.begin = delivery.begin
        self.taken = delivery.taken

    async def deliver(self, message: Message, context: Any) -> Any:
        receipt = await self._delivery.deliver(message, context)
        await self._answer(message)
        return receipt


def quick(**options: Any) -> JetStreamOptions:
    """Return options for tests: all that waits does so for moments."""
    defaults = {name: getattr(QUICK, name) for name in QUICK.__dataclass_fields__}
    return JetStreamOptions(**{**defaults, **options})


@asynccontextmanager
async def running(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Run something meanwhile; it must not end by itself."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield task
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(WAIT_S):
        while not await holds():
            await asyncio.sleep(0.01)
