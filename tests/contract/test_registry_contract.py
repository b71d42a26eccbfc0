"""What every registry promises, in real time: in memory, and on NATS with a server of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Protocol

import pytest

from nats_server import shared_nats
from synchromesh.discovery import (
    Endpoint,
    LeaseOptions,
    MemoryRegistry,
    Registration,
    Registry,
    Resolved,
)
from synchromesh.discovery.nats_kv import NatsRegistry
from synchromesh.errors import DiscoveryError, StaleIncarnation, Unauthenticated
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import RealRuntime

pytestmark = pytest.mark.anyio

KEY = b"the system's key, 32 bytes long!"
FOR_GOOD_S = 120.0
# Long enough that nobody who renews misses it on a machine that is busy.
OPTIONS = LeaseOptions(ttl_s=3.0, instances_max=40)
QUICK = LeaseOptions(ttl_s=0.3, instances_max=40)


class Opening(Protocol):
    """Opens a registry that nobody else uses."""

    def __call__(
        self, options: LeaseOptions = OPTIONS
    ) -> AbstractAsyncContextManager[Registry]: ...


def credential(service: str = "billing", key: bytes = KEY) -> str:
    return Signer(key).token(service, audience=REGISTRY, now_us=RealRuntime().wall_us())


def at(instance: str, service: str = "billing") -> Endpoint:
    return Endpoint(instance, service, f"http://{instance}:1", (("takes", "a.b"),))


@asynccontextmanager
async def in_memory(name: str, options: LeaseOptions) -> AsyncIterator[Registry]:
    signer, runtime = Signer(KEY), RealRuntime()
    registry = MemoryRegistry(
        verify=lambda shown: signer.verify(shown, audience=REGISTRY, now_us=runtime.wall_us()),
        options=options,
    )
    running = asyncio.create_task(registry.run())
    yield registry
    running.cancel()


@asynccontextmanager
async def on_nats(name: str, options: LeaseOptions) -> AsyncIterator[Registry]:
    registry = NatsRegistry(
        shared_nats().url, system=name, signer=Signer(KEY), runtime=RealRuntime(), options=options
    )
    await registry.open()
    running = asyncio.create_task(registry.run())
    await until(lambda: not registry.is_down)
    yield registry
    running.cancel()
    await registry.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(FOR_GOOD_S):
        while not holds():
            await asyncio.sleep(0.01)


@pytest.fixture(params=[in_memory, on_nats])
def opening(request: pytest.FixtureRequest) -> Opening:
    name = request.node.name.partition("[")[0]

    def opens(options: LeaseOptions = OPTIONS) -> AbstractAsyncContextManager[Registry]:
        made: AbstractAsyncContextManager[Registry] = request.param(name, options)
        return made

    return opens


async def register(registry: Registry, instance: str, service: str = "billing") -> Registration:
    return await registry.register(at(instance, service), credential=credential(service))


async def names(registry: Registry, service: str = "billing") -> list[str]:
    return [each.instance for each in (await registry.resolve(service)).endpoints]


async def listed(registry: Registry, *expected: str, service: str = "billing") -> None:
    """Wait until these instances are listed, and nobody else."""
    async with asyncio.timeout(FOR_GOOD_S):
        async with aclosing(registry.watch(service)) as lists:
            async for resolved in lists:
                if [each.instance for each in resolved.endpoints] == list(expected):
                    return


async def test_registering_needs_the_systems_credential(opening: Opening) -> None:
    """R3: nobody else is listed; an endpoint is found as it was registered."""
    async with opening() as registry:
        for shown in ("forged", "", credential(key=b"x" * 32)):
            with pytest.raises(Unauthenticated):
                await registry.register(at("a"), credential=shown)
        await register(registry, "b")
        await listed(registry, "b")
        assert (await registry.resolve("billing")) == Resolved((at("b"),))


async def test_services_do_not_mix(opening: Opening) -> None:
    """Each has a list of its own, whatever is in the names; nobody registered is no error."""
    async with opening() as registry:
        await register(registry, "billing#1")
        await register(registry, "b.*>ä/1", "ord ers")
        await listed(registry, "billing#1")
        await listed(registry, "b.*>ä/1", service="ord ers")
        assert await registry.resolve("unheard-of") == Resolved(())


async def test_who_renews_stays_and_who_does_not_expires(opening: Opening) -> None:
    """R1: an instance that stopped is gone after one ttl, and nobody else."""
    async with opening() as registry:
        alive = await register(registry, "a")
        renewal = asyncio.create_task(alive.run())
        await register(registry, "b")
        await listed(registry, "a", "b")
        await listed(registry, "a")
        assert alive.last_error is None
        assert not renewal.done()
        renewal.cancel()


async def test_a_drained_instance_is_not_listed_and_keeps_its_lease(opening: Opening) -> None:
    """R1: draining may be repeated; `resume` lists it again; the rest are as before."""
    async with opening() as registry:
        await register(registry, "a")
        leaving = await register(registry, "b")
        await listed(registry, "a", "b")
        await leaving.drain()
        await leaving.drain()
        await leaving.renew()
        await listed(registry, "a")
        await leaving.resume()
        await listed(registry, "a", "b")


async def test_a_lost_lease_is_registered_again(opening: Opening) -> None:
    """With a later incarnation; one that drains is not listed by that."""
    async with opening(QUICK) as registry:
        registration, draining = await register(registry, "a"), await register(registry, "b")
        first = registration.incarnation
        await draining.drain()
        await listed(registry, "a")
        await listed(registry)
        lists = asyncio.create_task(listed(registry, "a"))
        await draining.renew()
        await registration.renew()
        await lists
        assert registration.incarnation > first
        await draining.end()


async def test_who_was_replaced_must_stop(opening: Opening) -> None:
    """R2: it can neither renew, drain nor end what is not its own any more."""
    async with opening() as registry:
        old = await register(registry, "a")
        new = await register(registry, "a")
        assert new.incarnation > old.incarnation
        with pytest.raises(StaleIncarnation, match="replaced"):
            await old.drain()
        with pytest.raises(StaleIncarnation):
            await old.run()
        await old.end()
        await new.renew()
        await listed(registry, "a")


async def test_an_ended_registration_is_gone(opening: Opening) -> None:
    """Ending twice is no error; renewing afterwards is."""
    async with opening() as registry:
        registration = await register(registry, "a")
        await listed(registry, "a")
        await registration.end()
        await registration.end()
        await listed(registry)
        with pytest.raises(DiscoveryError, match="has ended"):
            await registration.renew()
        await register(registry, "a")
        await listed(registry, "a")


async def test_a_slow_watcher_skips_to_the_last_list(opening: Opening) -> None:
    """What it missed is in the list that it gets."""
    async with opening() as registry, aclosing(registry.watch("billing")) as watch:
        assert await anext(watch) == Resolved(())
        for number in range(20):
            await register(registry, f"a{number:02}")
        await listed(registry, *(f"a{number:02}" for number in range(20)))
        assert len((await anext(watch)).endpoints) == 20


async def test_instances_are_bounded(opening: Opening) -> None:
    """One too many is refused by name; one of before may come again."""
    async with opening() as registry:
        for number in range(OPTIONS.instances_max):
            await register(registry, f"a{number:02}")
        await listed(registry, *(f"a{number:02}" for number in range(OPTIONS.instances_max)))
        with pytest.raises(DiscoveryError, match="'b' was not registered; raise instances_max"):
            await register(registry, "b")
        await register(registry, "a00")
