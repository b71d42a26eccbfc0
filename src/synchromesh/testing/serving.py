"""Services in one process for a test: each with a database of its own, and a client that calls.

def test_a_greeting_is_counted() -> None:
    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, greeter) as client:
            await client.call(Greeter.greet("Ada"))

    run(main)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from synchromesh.calls import Call, Caller, InProcessTransport, Policies
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.errors import NoInstance
from synchromesh.identity import KEY_BYTES_MIN, Signer
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Deps, Service, ServiceInstance
from synchromesh.store import SqliteStores
from synchromesh.telemetry import MemoryRing
from synchromesh.testing.escapes import Unhandled

R = TypeVar("R")

CLIENT = "client"


class TestClient:
    """Calls the services under test, as a client outside of the system does; see `serving`.

    Example:
        >>> async def twice(client: TestClient, call: Call[R]) -> R:
        ...     await client.call(call, key="k1")
        ...     return await client.call(call, key="k1")  # the recorded answer of the first
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def call(
        self, call: Call[R], *, key: str = "", principal: str = "", timeout_s: float | None = None
    ) -> R:
        """Return the answer of a call, or raise what it was refused with.

        Args:
            key: the idempotency key of a command; a new one where it is "".
            principal: on whose behalf the call is made.
            timeout_s: how long it may take; None for no deadline.

        Raises:
            Rejection: one of those that the operation declares.
            CallError: it failed; see `synchromesh.errors`.
        """
        context = self._caller.root(principal=principal, key=key or None)
        return await self._caller.call(call, context=context, timeout_s=timeout_s)

    def __repr__(self) -> str:
        return f"<Client {self._caller!r}>"


class _Directory:
    """Knows the services that run; they are all in this process."""

    def __init__(self) -> None:
        self.up: set[str] = set()

    async def resolve(self, service: str) -> Resolved:
        """Return the one instance of a service."""
        if service not in self.up:
            raise NoInstance(f"{service!r} is not served here; hand it to serving() too")
        return Resolved((Endpoint(service, service, f"inproc://{service}"),))


@asynccontextmanager
async def serving(runtime: DiskRuntime, *services: Service) -> AsyncIterator[TestClient]:
    """Run services until the block ends, and yield a client that calls them.

    Their databases are on the runtime's disk, as `/SERVICE.db`; services that call one another, or
    subscribe to each other's events, are handed in together. A service of a contract with
    `external=True` is a fake of somebody else's: it is called without a credential, as theirs is.

    Raises:
        Unhandled: in the end, where a background loop of a service failed too often.
        ContractError: a service does not fit its contract.

    Example:
        >>> from typing import Protocol
        >>> from synchromesh.calls import Contract, query
        >>> from synchromesh.service import Context
        >>> from synchromesh.testing import SimRuntime, run
        >>> class Greeter(Contract, Protocol, service="greeter", version="1.0"):
        ...     @query("GET /greetings/{name}")
        ...     async def greet(self, name: str) -> str: ...
        >>> greeter = Service("greeter", implements=Greeter)
        >>> @greeter.handles(Greeter.greet)
        ... async def greet(ctx: Context, name: str) -> str:
        ...     return f"Hello, {name}!"
        >>> async def main(runtime: SimRuntime) -> str:
        ...     async with serving(runtime, greeter) as client:
        ...         return await client.call(Greeter.greet("Ada"))
        >>> run(main)
        'Hello, Ada!'
    """
    directory, transport = _Directory(), InProcessTransport()
    failures: list[tuple[str, BaseException]] = []
    deps = Deps(
        runtime=runtime,
        services={service.name: service for service in services},
        signer=Signer(runtime.rng.randbytes(KEY_BYTES_MIN)),
        sink=MemoryRing(),
        stores=SqliteStores(runtime, "/{}.db".format),
        resolver=directory,
        transports={"inproc": transport},
        policies=lambda _: Policies(),
        escalate=lambda service, child, error: failures.append((f"{service}/{child}", error)),
    )
    async with AsyncExitStack() as enter:
        for service in services:
            service.check()
            instance = await ServiceInstance.start(service, deps)
            enter.push_async_callback(instance.stop)
            transport.add(service.name, instance.dispatcher)
            directory.up.add(service.name)
        yield TestClient(deps.caller(CLIENT))
    if failures:
        child, error = failures[0]
        raise Unhandled(f"{child} failed too often: {error!r}") from error
