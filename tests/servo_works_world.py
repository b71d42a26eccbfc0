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
from services.quoting import quoting

from synchromesh.calls import Call, Reply, Request
from synchromesh.context import to_headers
from synchromesh.http import AsgiHandler, Headers, HttpRequest
from synchromesh.identity import NOBODY, Credential, Principal, Signer
from synchromesh.service import Service
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.config.reading import load_config
from synchromesh.testing import InProcess, SimRuntime

R = TypeVar("R")

FOLDER = Path(shop.__file__).parent
KEY = b"k" * 32
SIGNER = Signer(KEY)
SERVICES: dict[str, Service] = {
    service.name: service
    for service in (orders, inventory, billing, production, configurator, quoting, fleet)
}


class SomebodyElses:
    """Is somebody else's service, an ASGI application that knows none of our credentials."""

    def __init__(self, app: CreditProviderServer) -> None:
        self._handler = AsgiHandler(app)

    async def dispatch(self, request: Request) -> Reply:
        """Send the request to the application as HTTP, and return its answer."""
        operation, headers = request.operation, to_headers(request.context, now=0.0, wall_us=0)
        target, body = operation.to_http(request.arguments)
        path, _, query = target.partition("?")
        answer = await self._handler(
            HttpRequest(operation.method, target, path, query, Headers(headers.items()), body)
        )
        return Reply(answer.status, answer.body)

    def authenticate(self, credential: str, now: float, _: object) -> Credential:
        """Take anybody."""
        return Credential("anybody", NOBODY, "", 0)


class Works(InProcess):
    """The services that a test has started, and a client that calls them; one try for each call."""

    def __init__(self, runtime: SimRuntime) -> None:
        config = load_config(FOLDER)
        super().__init__(
            runtime,
            SERVICES.values(),
            policies=functools.partial(policies_of, config),
            others=config.external,
        )

    def start_provider(self) -> CreditProviderServer:
        """Let the credit provider be reached, and return it with its fault switch."""
        ledger = Ledger(self.runtime.disk.connect("/credit_provider.db"))
        provider = CreditProviderServer(ledger)
        self.transport.add("credit_provider-1", SomebodyElses(provider))
        return provider

    async def call(
        self,
        call: Call[R],
        *,
        key: str = "",
        principal: Principal | str = "ada",
        timeout_s: float | None = None,
    ) -> R:
        """Call as a client does, on behalf of a person."""
        return await super().call(call, key=key, principal=principal, timeout_s=timeout_s)

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
