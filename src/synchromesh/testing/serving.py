"""Services in one process for a test, each with a database of its own, and a client.

def test_a_greeting_is_counted() -> None:
    async def main(runtime: SimRuntime) -> None:
        async with serving(runtime, greeter) as client:
            await client.call(Greeter.greet("Ada"))

    run(main)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from synchromesh.calls import Call, InProcessTransport, Policies
from synchromesh.calls.forwarding import HTTP
from synchromesh.discovery import Endpoint, Resolved
from synchromesh.errors import ConfigError, NoInstance
from synchromesh.gateway import Gateway
from synchromesh.http import Handler
from synchromesh.identity import KEY_BYTES_MIN, Principal, Signer
from synchromesh.resilience import LimitOptions
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Deps, Service, ServiceInstance
from synchromesh.service.deps import PLACES
from synchromesh.service.erasure import erase
from synchromesh.store import SqliteStores
from synchromesh.system.config.definitions import places_of, saga_places_of
from synchromesh.system.config.edge_policies import policies_of
from synchromesh.system.config.schema import SystemConfig
from synchromesh.telemetry import MemoryRing
from synchromesh.testing.doors import HttpDoors, passed_to
from synchromesh.testing.escapes import Unhandled
from synchromesh.testing.through_gateway import GatewayClient

R = TypeVar("R")

CLIENT = "client"


class InProcess:
    """Runs services in this process, each on a database of its own, and calls them as a client.

    Nothing listens: calls go from caller to callee. Databases are on the runtime's disk, as
    `FOLDER/SERVICE.db`.

    Args:
        services: the definitions, of which a test starts those that it needs.
        policies: how the calls of a caller are guarded, by its name.
        places: how many calls a service works on at once, by its name.
        others: services of somebody else, which a test adds to `transport`.
        externals: those of the services that stand for somebody else's: they are called without a
            credential.
        signer: signs hops; one with a key of its own where it is None.
        folder: where databases are; "" is the root of a simulated disk.

    Attributes:
        up: the instances that run, by service.
        ring: the spans.
        failures: background loops that failed too often: service, child and error.
        gateway: the client that comes in through a gateway, where `serving` was given one.
        doors: where services and upstreams are reached by HTTP, for what a gateway passes on.

    Example:
        >>> async def twice(services: InProcess, call: Call[R]) -> R:
        ...     await services.call(call, key="k1")
        ...     return await services.call(call, key="k1")  # the recorded answer of the first
    """

    gateway: GatewayClient

    def __init__(
        self,
        runtime: DiskRuntime,
        services: Iterable[Service],
        *,
        policies: Callable[[str], Policies] = lambda _: Policies(),
        places: Callable[[str], LimitOptions] = lambda _: PLACES,
        others: Collection[str] = (),
        externals: Collection[str] = (),
        signer: Signer | None = None,
        folder: str = "",
    ) -> None:
        self.runtime = runtime
        self.transport = InProcessTransport()
        self.doors = HttpDoors(runtime)
        self.ring = MemoryRing()
        self.up: dict[str, ServiceInstance] = {}
        self.failures: list[tuple[str, str, BaseException]] = []
        self._others = others
        self.deps = Deps(
            runtime=runtime,
            services={service.name: service for service in services},
            signer=signer or Signer(runtime.secret_rng.randbytes(KEY_BYTES_MIN)),
            sink=self.ring,
            stores=SqliteStores(runtime, f"{folder}/{{}}.db".format),
            resolver=self,
            transports={"inproc": self.transport, "http": self.doors.transport},
            policies=policies,
            places=places,
            externals=frozenset(externals),
            gave_up=lambda *failure: self.failures.append(failure),
        )
        self.client = self.deps.caller(CLIENT)

    @property
    def services(self) -> Mapping[str, Service]:
        """The definitions, by name."""
        return self.deps.services

    async def resolve(self, service: str) -> Resolved:
        """Return the endpoint of a service, whether it runs or not."""
        url = self.doors.urls.get(service, "")
        if service in self.deps.services or service in self._others:
            metadata = ((HTTP, url),) if url else ()
            endpoint = Endpoint(f"{service}-1", service, f"inproc://{service}-1", metadata)
        elif url:
            endpoint = Endpoint(service, service, url)
        else:
            raise NoInstance(f"{service!r} is not served here; hand it in too")
        return Resolved((endpoint,))

    async def start(self, *names: str) -> None:
        """Start and list services.

        Raises:
            ContractError: one does not fit its contract.
        """
        for name in names:
            instance = await ServiceInstance.start(self.deps.services[name], self.deps)
            self.up[name] = instance
            self.transport.add(f"{name}-1", instance.dispatcher)

    async def stop(self, *names: str) -> None:
        """Unlist services, then stop them."""
        for name in names:
            self.transport.remove(f"{name}-1")
            await self.up.pop(name).stop()

    async def close(self) -> None:
        """Stop everything: what listens first, then the services, the last one first."""
        if hasattr(self, "gateway"):
            await self.gateway.close()
        await self.doors.close()
        await self.stop(*reversed(list(self.up)))

    async def parked(self) -> list[str]:
        """Return which projections are parked, at which event and why."""
        return [
            f"{name}/projection/{each.name} is parked at {each.parked.where}: {each.parked.error}"
            for name, instance in self.up.items()
            for each in await instance.projections.list()
            if each.parked is not None
        ]

    async def call(
        self,
        call: Call[R],
        *,
        key: str = "",
        principal: Principal | str = "",
        timeout_s: float | None = None,
    ) -> R:
        """Send a call and return its answer.

        Args:
            key: the idempotency key of a command; a new one where it is "".
            principal: on whose behalf the call is made; a name alone has no scopes.
            timeout_s: how long it may take; None for no deadline.

        Raises:
            Rejection: one of those that the operation declares.
            CallError: it failed; see `synchromesh.errors`.
        """
        context = self.client.root(principal=principal, key=key or None)
        return await self.client.call(call, context=context, timeout_s=timeout_s)

    def erase(self, subject: str) -> None:
        """Erase a subject in each service that runs, as `synchromesh personal erase` does."""
        for instance in self.up.values():
            if instance.has_database:
                now_us = self.runtime.wall_us()
                erase(instance.store, subject, now_us=now_us, who="a test", why="a test")

    def __repr__(self) -> str:
        return f"<InProcess {', '.join(self.up) or 'nothing runs'}>"


_NO_UPSTREAMS: Mapping[str, Handler] = MappingProxyType({})


@asynccontextmanager
async def serving(
    runtime: DiskRuntime,
    *services: Service,
    externals: Iterable[Service] = (),
    upstreams: Mapping[str, Handler] = _NO_UPSTREAMS,
    config: SystemConfig | None = None,
    gateway: Gateway | None = None,
) -> AsyncIterator[InProcess]:
    """Start services for a test, yield a client that calls them, and stop them at the end.

    Services that call one another, or take each other's events, are handed in together.

    Args:
        externals: services that stand for somebody else's, such as `stand_in` makes: they are
            called without a credential, as theirs are, whatever their contract says. So is a
            service of a contract with `external=True`.
        upstreams: what stands for externals that a `Forward` leads to, by name: an async function
            from a request to a response, or `synchromesh.http.AsgiHandler(app)`.
        config: a system's configuration, as `load_config` reads it: its policies and bounds of
            calls are in force. Without it they are the defaults.
        gateway: one to put before them: `client.gateway` sends requests through its routes, with
            the API keys that it makes.

    Raises:
        Unhandled: in the end, where a background loop of a service failed too often, or one of its
            projections is parked.
        ContractError: a service does not fit its contract.
        ConfigError: the gateway's definition has mistakes, or leads to somebody who is not here.

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
    theirs = list(externals)
    served = InProcess(
        runtime,
        [*services, *theirs],
        externals=[*(each.name for each in theirs), *upstreams],
        policies=lambda caller: Policies() if config is None else policies_of(config, caller),
        places=lambda name: PLACES if config is None else places_of(config, name),
    )
    if config is not None:
        served.deps = replace(served.deps, saga_places=lambda name: saga_places_of(config, name))
    try:
        await served.start(*served.deps.services)
        if gateway is not None:
            served.gateway = GatewayClient(gateway, served.deps)
            await _open_doors(served, gateway, upstreams)
            await served.gateway.start(runtime)
        yield served
        parked = await served.parked()
    finally:
        await served.close()
    _check(served, parked)


def _check(served: InProcess, parked: Sequence[str]) -> None:
    """Raise Unhandled where a background loop failed too often, or a projection is parked."""
    if served.failures:
        service, child, error = served.failures[0]
        raise Unhandled(f"{service}/{child} failed too often: {error!r}") from error
    if parked:
        raise Unhandled(parked[0])


async def _open_doors(
    served: InProcess, gateway: Gateway, upstreams: Mapping[str, Handler]
) -> None:
    """Serve by HTTP what the gateway passes requests on to."""
    for name in passed_to(gateway):
        if name in served.up:
            await served.doors.open_service(served.up[name])
        elif name in upstreams:
            await served.doors.open_upstream(name, upstreams[name])
        else:
            raise ConfigError(
                f"the gateway passes requests on to {name!r}, and nobody stands for it here; hand "
                f"it in, as a service or in upstreams={{{name!r}: handler}}"
            )
