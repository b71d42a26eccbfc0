"""The services of servo-works wired in one process, on a simulated disk and in virtual time."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import shop
from credit_provider import CreditProviderServer, Ledger
from services.billing import billing
from services.configurator import configurator
from services.fleet import fleet
from services.inventory import inventory
from services.orders import orders
from services.production import production

from synchromesh.calls import Call, InProcessTransport
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.http import asgi_handler
from synchromesh.identity import Credential, Signer
from synchromesh.service import Deps, Service, ServiceInstance
from synchromesh.store import SqliteStores
from synchromesh.system.config.definitions import policies_of
from synchromesh.system.config.reading import load_config
from synchromesh.telemetry import MemoryRing
from synchromesh.testing import AsgiReceiver, SimRuntime

R = TypeVar("R")

FOLDER = Path(shop.__file__).parent
SIGNER = Signer(b"k" * 32)
SERVICES: dict[str, Service] = {
    service.name: service
    for service in (orders, inventory, billing, production, configurator, fleet)
}


class ForeignAwaited(AsgiReceiver):
    """Is somebody else's service, which knows none of our credentials."""

    def authenticate(self, credential: str) -> Credential:
        """Take anybody."""
        return Credential("anybody", "", "", 0)


class Works:
    """The services that a test has started, and a client that calls them; one try for each call."""

    def __init__(self, runtime: SimRuntime) -> None:
        self.runtime = runtime
        self.transport = InProcessTransport()
        self.ring = MemoryRing()
        self.up: dict[str, ServiceInstance] = {}
        self.deps = Deps(
            runtime=runtime,
            services=SERVICES,
            signer=SIGNER,
            sink=self.ring,
            stores=SqliteStores(runtime, "/{}.db".format),
            resolver=self,
            transports={"inproc": self.transport},
            policies=functools.partial(policies_of, load_config(FOLDER)),
            escalate=lambda service, child, error: None,
        )
        self.client = self.deps.caller("client")

    async def resolve(self, service: str) -> Resolved:
        """Say where a service is: one instance, in this process."""
        return Resolved((Endpoint(f"{service}-1", service, f"inproc://{service}-1"),))

    async def start(self, *names: str) -> None:
        """Start services and make them reachable."""
        for name in names:
            self.up[name] = await ServiceInstance.start(SERVICES[name], self.deps)
            self.transport.add(f"{name}-1", self.up[name].dispatcher)

    def start_provider(self) -> CreditProviderServer:
        """Let the credit provider be reached, and return it with its fault switch."""
        provider = CreditProviderServer(Ledger(self.runtime.disk.connect("/credit_provider.db")))
        self.transport.add("credit_provider-1", ForeignAwaited(asgi_handler(provider)))
        return provider

    async def stop(self, *names: str) -> None:
        """Make services unreachable, and stop them."""
        for name in names:
            self.transport.remove(f"{name}-1")
            await self.up.pop(name).stop()

    async def call(
        self, call: Call[R], *, key: str | None = None, timeout_s: float | None = None
    ) -> R:
        """Call as a client does."""
        context = self.client.root(principal="ada", key=key)
        return await self.client.call(call, context=context, timeout_s=timeout_s)

    async def rows(self, service: str, sql: str) -> list[tuple[object, ...]]:
        """Return what a service has in its database."""
        return [tuple(row) for row in await self.up[service].store.read(sql)]


@asynccontextmanager
async def works(runtime: SimRuntime, *names: str) -> AsyncIterator[Works]:
    """Start services, and stop what is up in the end."""
    made = Works(runtime)
    await made.start(*names)
    try:
        yield made
    finally:
        await made.stop(*list(made.up))
