"""A small system of services for tests of calls: the same code on every transport."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec

from synchromesh.calls import (
    Call,
    Caller,
    Contract,
    Dispatcher,
    FaultTable,
    Handler,
    HttpEdge,
    HttpTransport,
    Incoming,
    InProcessTransport,
    Operation,
    OperationPolicy,
    Policies,
    Receiver,
    Reply,
    Request,
    Transport,
    command,
    operations_of,
    query,
)
from synchromesh.codec import encode
from synchromesh.context import CallContext
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.errors import Rejection
from synchromesh.http import HttpPool, HttpServer, Limits
from synchromesh.identity import NOBODY, Credential, Signer
from synchromesh.resilience import Policy, RetryOptions
from synchromesh.runtime import Runtime
from synchromesh.telemetry import MemoryRing, SpanRecord, Tracer
from synchromesh.testing import run

T = TypeVar("T")

KEY = b"the system's key, 32 bytes long!"
ONCE = Policies(default=Policy(retry=None))


class OutOfStock(Rejection, code="out_of_stock", status=409):
    """Tells that fewer are in stock than were asked for."""


class NeverHeardOf(Rejection, code="never_heard_of", status=410):
    """Tells what no contract declares."""


class Reserve(msgspec.Struct):
    sku: str
    qty: int
    notes: dict[str, str] = {}


class Hold(msgspec.Struct):
    id: str
    notes: dict[str, str] = {}


class Shop(Contract, Protocol, service="shop", version="1.0"):
    @command("POST /reservations", raises=(OutOfStock,))
    async def reserve(self, request: Reserve) -> Hold: ...
    @query("GET /stock/{sku}")
    async def stock(self, sku: str, least: int | None = None, note: str | None = "") -> int: ...
    @command("POST /nothing")
    async def nothing(self) -> None: ...
    @command("PUT /shelves/{shelf}")
    async def label(self, shelf: str, text: str, weight: float = 0.0) -> str: ...


class Front(Contract, Protocol, service="front", version="1.0"):
    @query("GET /asks/{n}")
    async def ask(self, n: int) -> int: ...
    @command("POST /places")
    async def place(self, n: int) -> int: ...


class Middle(Contract, Protocol, service="middle", version="1.0"):
    @query("GET /asks/{n}")
    async def ask(self, n: int) -> int: ...


class Leaf(Contract, Protocol, service="leaf", version="1.0"):
    @query("GET /asks/{n}")
    async def ask(self, n: int) -> int: ...


class Bank(Contract, Protocol, service="bank", version="1.0", external=True):
    @command("POST /charges", raises=(OutOfStock, NeverHeardOf))
    async def charge(self, amount: int) -> str: ...


@dataclass
class Known:
    """A resolver that is told."""

    endpoints: dict[str, list[Endpoint]] = field(default_factory=dict)
    error: Exception | None = None

    async def resolve(self, service: str) -> Resolved:
        if self.error is not None:
            raise self.error
        return Resolved(tuple(self.endpoints.get(service, ())))


class Always:
    """A receiver that gives every request the same reply, and keeps the requests."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[Request] = []

    def authenticate(self, credential: str, now: float, _: object) -> Credential:
        return Credential("", NOBODY, "", 0)

    async def dispatch(self, request: Request) -> Reply:
        self.requests.append(request)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


class System:
    """Services and callers on one transport, "inproc" or "http", by the slow way in "http slow"."""

    def __init__(self, kind: str, runtime: Runtime) -> None:
        self.kind, _, way = kind.partition(" ")
        self.is_slow = way == "slow"
        self.runtime = runtime
        self.signer = Signer(KEY)
        self.known = Known()
        self.spans = MemoryRing()
        self.inproc = InProcessTransport()
        self.stack = AsyncExitStack()
        self.pool = HttpPool(network=runtime.network)
        self.stack.push_async_callback(self.pool.close)
        self.transports: dict[str, Transport] = {
            "inproc": self.inproc,
            "http": HttpTransport(self.pool, runtime=runtime),
        }
        self.dispatchers: list[Dispatcher] = []

    async def serve(
        self,
        contract: type[object],
        handlers: Mapping[str, Handler],
        *,
        instance: str = "",
        **options: Any,
    ) -> Dispatcher:
        """Run an instance of a contract's service."""
        operations = operations_of(contract)
        service = next(iter(operations.values())).service
        dispatcher = Dispatcher(
            service,
            handlers,
            signer=self.signer,
            tracer=Tracer(service, self.runtime, self.spans),
            runtime=self.runtime,
            **options,
        )
        self.dispatchers.append(dispatcher)
        await self.mount(service, dispatcher, operations.values(), instance=instance)
        return dispatcher

    async def mount(
        self,
        service: str,
        receiver: Receiver,
        operations: Iterable[Operation[..., Any]],
        *,
        instance: str = "",
    ) -> None:
        """Make a receiver reachable and known."""
        instance = instance or f"{service}-1"
        url = f"inproc://{instance}"
        if self.kind == "http":
            edge = HttpEdge(runtime=self.runtime)
            edge.mount(receiver, operations)
            server = HttpServer(
                edge,
                network=self.runtime.network,
                limits=Limits(idle_s=60.0),
                is_fast=not self.is_slow,
            )
            await server.start()
            self.stack.push_async_callback(server.close)
            url = server.url
        else:
            self.inproc.add(instance, receiver)
        self.known.endpoints.setdefault(service, []).append(Endpoint(instance, service, url))

    def caller(
        self,
        service: str = "client",
        policies: Policies | None = None,
        faults: FaultTable | None = None,
    ) -> Caller:
        """Return a caller of a service."""
        caller = Caller(
            service,
            resolver=self.known,
            transports=self.transports,
            signer=self.signer,
            tracer=Tracer(service, self.runtime, self.spans),
            runtime=self.runtime,
            policies=policies or Policies(),
            faults=faults,
        )
        caller.is_slow = self.is_slow
        return caller

    def span(self, kind: str, service: str) -> SpanRecord:
        """Return the only span of a kind and service."""
        found = [s for s in self.spans if (s.kind, s.service) == (kind, service)]
        assert len(found) == 1, found
        return found[0]

    async def close(self) -> None:
        """End everything."""
        for dispatcher in self.dispatchers:
            assert await dispatcher.drain(60.0) == 0
        await self.stack.aclose()


def play(kind: str, main: Callable[[System], Coroutine[Any, Any, T]]) -> T:
    """Run a test in virtual time; tasks that are left behind fail it."""

    async def simulated(runtime: Runtime) -> T:
        system = System(kind, runtime)
        try:
            return await main(system)
        finally:
            await system.close()

    return run(simulated)


def answering(value: object) -> Handler:
    """Return a handler that answers the same value always."""

    async def handle(_: Incoming) -> bytes:
        return encode(value)

    return handle


def raising(error: BaseException) -> Handler:
    """Return a handler that raises."""

    async def handle(_: Incoming) -> bytes:
        raise error

    return handle


def passing_on(caller: Caller, call: Call[Any]) -> Handler:
    """Return a handler that answers what a call of its own answers."""

    async def handle(incoming: Incoming) -> bytes:
        return encode(await caller.call(call, context=incoming.context))

    return handle


def parsed(fn: Callable[..., Awaitable[object]]) -> Handler:
    """Return a handler that gives a function the arguments as values."""

    async def handle(incoming: Incoming) -> bytes:
        return encode(await fn(**incoming.operation.parse(incoming.arguments)))

    return handle


__all__ = [
    "KEY", "ONCE", "Always", "Bank", "CallContext", "Front", "Hold", "Known", "Leaf", "Middle",
    "NeverHeardOf", "OperationPolicy", "OutOfStock", "Reserve", "RetryOptions", "Shop", "System",
    "answering", "parsed", "passing_on", "play", "raising",
]  # fmt: skip
