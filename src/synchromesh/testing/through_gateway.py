"""A client that comes in through a gateway's routes, with an API key of its own, as others do.

async with serving(runtime, orders, gateway=gateway) as client:
    shop = client.gateway.key("shop", "orders:write")
    answer = await client.gateway.send("POST /orders", PlaceOrder("SX90", 2), key=shop)
    assert answer.status == 200
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

from synchromesh.codec import decode, encode
from synchromesh.gateway import ApiKeys, Gateway, GatewayEngine, make_key
from synchromesh.gateway.api_keys import KeyRing
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.mirror_book import MirrorCounts
from synchromesh.gateway.names import reserved_prefixes
from synchromesh.gateway.principal import Folders
from synchromesh.http import HttpPool, HttpResponse, HttpServer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Deps

T = TypeVar("T")

GATEWAY = "gateway"


class GatewayAnswer:
    """What a gateway has answered.

    Attributes:
        status: the HTTP status.
        headers: by name in lower case.
        body: the bytes, mostly JSON.

    Example:
        >>> from synchromesh.http import HttpResponse
        >>> GatewayAnswer(HttpResponse(200, [], b"[1]")).value(list[int])
        [1]
    """

    def __init__(self, response: HttpResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers}
        self.body = response.body

    def value(self, kind: type[T]) -> T:
        """Return the body as a value of a type. Raises BadRequest where it does not fit."""
        return decode(self.body, kind)

    def __repr__(self) -> str:
        return f"<GatewayAnswer {self.status} {self.body[:200]!r}>"


class GatewayClient:
    """Runs a gateway before services that are served for a test, and sends requests to it.

    It listens on the runtime's network. API keys are in memory, and `key` makes them, whatever file
    the definition names; what else it authenticates by is opened as in a system that is in the
    current folder.

    Args:
        definition: the gateway.
        deps: of the services behind it.

    Raises:
        ConfigError: the definition has mistakes; the message names them all.

    Example:
        >>> async def status(client: GatewayClient) -> int:
        ...     reader = client.key("reader", "stock:read")
        ...     return (await client.send("GET /stock/SX90", key=reader)).status
    """

    def __init__(self, definition: Gateway, deps: Deps) -> None:
        self._entries = compiled(definition)
        self._definition = definition
        self._deps = deps
        self._keys = KeyRing({}, deps.runtime)
        self._keys.reserve(reserved_prefixes(definition.auth))
        # No stack of contexts: one that a power cut has left goes on with its next when dropped.
        self._started: list[Callable[[], Awaitable[None]]] = []
        self._engine: GatewayEngine
        self._server: HttpServer
        self._pool: HttpPool

    async def start(self, runtime: DiskRuntime) -> None:
        """Put what tells who asks to work, and listen.

        Raises:
            ConfigError: what that needs is missing or wrong.
        """
        tracer = self._deps.tracer(GATEWAY)
        here = Path()
        authenticators = [
            self._keys if isinstance(each, ApiKeys) else each.open(Folders(here, here), runtime)
            for each in self._definition.auth
        ]
        engine = self._engine = GatewayEngine(
            self._definition,
            caller=self._deps.caller(GATEWAY, tracer),
            tracer=tracer,
            authenticators=authenticators,
            externals=self._deps.externals,
            entries=self._entries,
        )
        self._started.append(engine.close)
        self._server = HttpServer(engine, network=runtime.network, streaming=engine)
        await self._server.start()
        self._started.append(self._server.close)
        self._pool = HttpPool(network=runtime.network)
        self._started.append(self._pool.close)

    def mirrors(self) -> list[MirrorCounts]:
        """Return what has come of copies so far, for each route with a mirror, in their order."""
        return [book.counts for book in self._engine.state.mirrors.values()]

    def key(self, principal: str, *scopes: str) -> str:
        """Return a new API key of a principal that may do what the scopes allow."""
        text, entry = make_key(principal, scopes, rng=self._deps.runtime.secret_rng)
        self._keys.add(entry)
        return text

    async def send(
        self,
        route: str,
        value: object = None,
        *,
        key: str = "",
        idempotency_key: str = "",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> GatewayAnswer:
        """Send a request and return what the gateway answers, whatever its status.

        Args:
            route: method and target, as they are on the wire: "GET /stock/SX90?site=1".
            value: the body, sent as JSON; None for none.
            key: the API key, as `key` makes it; "" for a request without one.
            idempotency_key: the header `Idempotency-Key`; "" for none.
            headers: others.
            timeout_s: how long the client waits.

        Raises:
            CallError: no answer came.
        """
        method, _, target = route.partition(" ")
        fields: dict[str, str] = {**(headers or {})}
        if key:
            fields["authorization"] = f"Bearer {key}"
        if idempotency_key:
            fields["idempotency-key"] = idempotency_key
        body = b""
        if value is not None:
            fields["content-type"] = "application/json"
            body = encode(value)
        response = await self._pool.request(
            self._server.host,
            self._server.port,
            method,
            target,
            list(fields.items()),
            body,
            timeout_s=timeout_s,
        )
        return GatewayAnswer(response)

    async def close(self) -> None:
        """Stop listening. May be repeated."""
        while self._started:
            await self._started.pop()()

    def __repr__(self) -> str:
        return f"<GatewayClient {self._definition!r}>"
