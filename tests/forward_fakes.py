"""A gateway that passes requests on, before an upstream that can be told what to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from bodies import body_of, everything
from calls_fakes import Known, System, play
from gateway_fakes import SHOP, log_of
from synchromesh.calls import Caller, Policies
from synchromesh.discovery import Endpoint
from synchromesh.gateway import Forward, Gateway, GatewayEngine, Rate
from synchromesh.gateway.checking import compiled
from synchromesh.gateway.origin import Origins
from synchromesh.gateway.state import GatewayState
from synchromesh.http import (
    Body,
    Headers,
    HttpPool,
    HttpRequest,
    HttpResponse,
    HttpServer,
    Limits,
    PoolLimits,
)
from synchromesh.telemetry import Tracer

MiB = 1024 * 1024
STORE, PARTNER = "store", "partner"

ROUTES = (
    Forward(
        "PUT /firmware/{name}",
        to=STORE,
        path="/images/{name}",
        headers={"x-checksum"},
        body_max="256MiB",
        scopes={"orders:write"},
        deadline="2s",
    ),
    Forward("GET /firmware/{name}", to=STORE, path="/images/{name}", public=True),
    Forward("POST /notes", to=STORE, body_max="10B"),
    Forward("POST /partners", to=PARTNER),
    Forward("GET /few", to=STORE, public=True, rate=Rate("1/s")),
)
GATEWAY = Gateway(auth=[SHOP], routes=ROUTES)

Answering = Callable[[HttpRequest], AbstractAsyncContextManager[HttpResponse]]


@dataclass
class Seen:
    """What an upstream was sent; `is_whole` once it has read the body to its end."""

    request: HttpRequest
    body: bytes = b""
    is_whole: bool = False


@asynccontextmanager
async def created(request: HttpRequest) -> AsyncIterator[HttpResponse]:
    """Answer 201 and a few bytes."""
    yield HttpResponse(201, [("content-type", "text/plain")], b"kept")


class Upstream:
    """Somebody's HTTP service: reads each body, keeps what came, and answers by a function."""

    def __init__(self) -> None:
        self.answer: Answering = created
        self.reads = True
        self.seen: list[Seen] = []
        self.ends: list[str] = []

    async def handle(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("everything is a stream")

    def body_max(self, method: str, path: str, pairs: object) -> int:
        return 1024 * MiB

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpResponse]:
        seen = Seen(request)
        self.seen.append(seen)
        assert request.stream is not None
        try:
            while self.reads and (part := await request.stream.read()):
                seen.body += part
            seen.is_whole = self.reads
            async with self.answer(request) as response:
                yield response
        except BaseException as error:
            self.ends.append(type(error).__name__)
            raise
        self.ends.append("whole")


class Announced(Known):
    """A resolver that is told, and tells of it."""

    def __init__(self) -> None:
        super().__init__()
        self._told = asyncio.Event()

    def announce(self) -> None:
        """Tell those who wait that something has changed."""
        told, self._told = self._told, asyncio.Event()
        told.set()

    async def changed(self, _: str = "", /) -> None:
        await self._told.wait()


class Way:
    """A client, the gateway, and an upstream, each with its server on one network."""

    def __init__(
        self,
        system: System,
        gateway: Gateway,
        policies: Policies | None,
        origins: Origins | None = None,
        log_share: float = 0.0,
    ) -> None:
        self.system = system
        self.log = log_of(system, log_share, origins)
        self.servers: dict[str, HttpServer] = {}
        self.store, self.partner = Upstream(), Upstream()
        self.caller: Caller = system.caller("gateway", policies)
        self.engine = GatewayEngine(
            gateway,
            caller=self.caller,
            tracer=Tracer("gateway", system.runtime, system.spans),
            authenticators=[auth.open(None, None) for auth in gateway.auth],  # type: ignore[arg-type]
            externals={PARTNER},
            origins=origins,
            state=GatewayState.of(gateway, compiled(gateway), self.log),
        )
        network = system.runtime.network
        self.server = HttpServer(
            self.engine,
            network=network,
            streaming=self.engine,
            refused=self.engine.state.note_refused,
        )
        self.pool = HttpPool(network=network, limits=PoolLimits(stall_s=600.0, quiet_s=600.0))
        system.stack.push_async_callback(self.pool.close)
        system.stack.push_async_callback(self.server.close)

    async def start(self) -> None:
        await self.server.start()
        await self.serve(STORE, self.store)
        await self.serve(PARTNER, self.partner)

    async def serve(self, name: str, upstream: Upstream, *, instance: str = "") -> HttpServer:
        """Run an upstream and list it."""
        limits = Limits(body_s=600.0, idle_s=600.0, write_s=600.0)
        network = self.system.runtime.network
        server = HttpServer(upstream.handle, network=network, limits=limits, streaming=upstream)
        await server.start()
        self.servers[instance or name] = server
        self.system.stack.push_async_callback(server.close)
        endpoint = Endpoint(instance or f"{name}-1", name, server.url)
        self.system.known.endpoints.setdefault(name, []).append(endpoint)
        return server

    @asynccontextmanager
    async def asking(
        self,
        route: str,
        body: Body | bytes | None = None,
        *,
        by: str = "shop",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[HttpResponse]:
        """Ask the gateway, and give its answer with its head."""
        method, target = route.split(" ")
        fields = ({"authorization": by} if by else {}) | dict(headers or {})
        sent = body_of(body, length=len(body)) if isinstance(body, bytes) else body
        async with self.pool.stream(
            self.server.host, self.server.port, method, target, fields.items(), sent, timeout_s=600
        ) as answer:
            yield answer

    async def ask(self, route: str, body: Body | bytes | None = None, **more: Any) -> HttpResponse:
        """Ask the gateway, and return its whole answer."""
        async with self.asking(route, body, **more) as answer:
            told = await everything(answer.stream)
            return HttpResponse(answer.status, answer.headers, told)

    async def raw(self, data: bytes) -> Raw:
        """Open a connection to the gateway and send bytes."""
        raw = Raw()
        await self.system.runtime.network.connect(lambda: raw, self.server.host, self.server.port)
        raw.transport.write(data)
        return raw


class Raw(asyncio.Protocol):
    """A client, or a server that says one thing, that keeps every byte, and how it ended."""

    transport: asyncio.Transport

    def __init__(self, told: bytes = b"") -> None:
        self.told = told
        self.came = bytearray()
        self.has_ended = asyncio.Event()
        self.has_eof = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self.came += data
        told, self.told = self.told, b""
        if told:
            self.transport.write(told)

    def eof_received(self) -> bool | None:
        self.has_eof = True
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.has_ended.set()

    @property
    def status(self) -> int:
        """The status of the first answer."""
        return int(self.came[9:12])


def through(
    main: Any,
    *,
    gateway: Gateway = GATEWAY,
    policies: Policies | None = None,
    origins: Origins | None = None,
    log_share: float = 0.0,
    kind: str = "http",
) -> Any:
    """Run a test in virtual time, with upstreams behind a gateway."""

    async def system_main(system: System) -> Any:
        system.known = Announced()
        way = Way(system, gateway, policies, origins, log_share)
        await way.start()
        return await main(way)

    return play(kind, system_main)


def answering(
    status: int,
    body: bytes | Callable[[], Body] = b"",
    headers: tuple[tuple[str, str], ...] = (),
    after_s: float = 0.0,
) -> Answering:
    """Return what answers every request the same."""

    @asynccontextmanager
    async def answer(request: HttpRequest) -> AsyncIterator[HttpResponse]:
        if after_s:
            await asyncio.sleep(after_s)
        if isinstance(body, bytes):
            yield HttpResponse(status, headers, body)
        else:
            yield HttpResponse(status, headers, stream=body())

    return answer


def names(headers: Headers) -> set[str]:
    """Return the names of headers."""
    return {name for name, _ in headers}
