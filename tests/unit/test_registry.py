"""Registry in memory, and registrations; virtual time."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from synchromesh.discovery import (
    Endpoint,
    LeaseOptions,
    MemoryRegistry,
    Registration,
    Registry,
    Resolved,
)
from synchromesh.errors import (
    DiscoveryError,
    StaleIncarnation,
    Unauthenticated,
    UnknownInstance,
)
from synchromesh.testing import SimRuntime, run


def at(instance: str, service: str = "billing") -> Endpoint:
    return Endpoint(instance, service, f"inproc://{instance}")


def verify(credential: str) -> None:
    if credential != "the system's":
        raise Unauthenticated("the credential is not the system's; start it with the system's key")


def registry_of(options: LeaseOptions | None = None, *, services_max: int = 8) -> MemoryRegistry:
    return MemoryRegistry(verify=verify, options=options, services_max=services_max)


async def register(registry: Registry, instance: str, service: str = "billing") -> Registration:
    return await registry.register(at(instance, service), credential="the system's")


async def names(registry: Registry, service: str = "billing") -> list[str]:
    return [endpoint.instance for endpoint in (await registry.resolve(service)).endpoints]


def last_error(registration: Registration) -> str:
    return type(registration.last_error).__name__


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def test_registering_needs_the_systems_credential() -> None:
    """R3: nobody else is listed, or renewed into the list."""

    async def main(_: SimRuntime) -> None:
        registry = registry_of()
        with pytest.raises(Unauthenticated):
            await registry.register(at("a"), credential="forged")
        assert await registry.resolve("billing") == Resolved(())

    run(main)


def test_a_lease_that_is_lost_is_granted_again_however_old_its_credential() -> None:
    """A credential ends within minutes, and a process that has shown one may be away for longer."""

    async def main(_: SimRuntime) -> None:
        shown: list[str] = []
        registry = MemoryRegistry(verify=lambda credential: shown.append(verify_once(shown)))
        registration = await register(registry, "a")
        registry.evict("billing", lambda _: True)
        assert await names(registry) == []
        await registration.renew()
        assert await names(registry) == ["a"]
        await registration.drain()
        await registration.resume()
        assert await names(registry) == ["a"]

    def verify_once(shown: list[str]) -> str:
        if shown:
            raise Unauthenticated("the credential has expired")
        return "shown"

    run(main)


def test_a_service_that_nobody_registered_resolves_to_nothing() -> None:
    """Asking is no error, and leaves nothing behind."""

    async def main(_: SimRuntime) -> str:
        registry = registry_of()
        assert await registry.resolve("unheard-of") == Resolved(())
        return repr(registry)

    assert run(main) == "<MemoryRegistry 0 services>"


def test_services_do_not_mix() -> None:
    """Each service has a list of its own."""

    async def main(_: SimRuntime) -> None:
        registry = registry_of()
        await register(registry, "a", "billing")
        await register(registry, "b", "orders")
        assert await names(registry, "billing") == ["a"]
        assert await names(registry, "orders") == ["b"]

    run(main)


def test_a_registration_that_runs_stays_listed_and_one_that_does_not_expires() -> None:
    """R1: an instance that stopped is gone after one ttl."""

    async def main(_: SimRuntime) -> tuple[list[str], list[str]]:
        registry = registry_of(LeaseOptions(ttl_s=3.0))
        renewal = asyncio.create_task((await register(registry, "a")).run())
        await asyncio.sleep(60.0)
        alive = await names(registry)
        await stop(renewal)
        await asyncio.sleep(3.0)
        return alive, await names(registry)

    assert run(main) == (["a"], [])


def test_a_drained_instance_is_not_resolved() -> None:
    """R1: draining takes effect at once and may be repeated; its lease goes on."""

    async def main(_: SimRuntime) -> str:
        registry = registry_of()
        registration = await register(registry, "a")
        await registration.drain()
        await registration.drain()
        await registration.renew()
        assert registration.is_draining
        assert await names(registry) == []
        return repr(registration)

    assert run(main) == "<Registration a #1 draining>"


def test_a_lost_lease_is_registered_again() -> None:
    """A process that slept through its lease comes back, with a new incarnation."""

    async def main(_: SimRuntime) -> int:
        registry = registry_of(LeaseOptions(ttl_s=3.0))
        registration = await register(registry, "a")
        await asyncio.sleep(5.0)
        assert await names(registry) == []
        await registration.renew()
        assert await names(registry) == ["a"]
        return registration.incarnation

    assert run(main) == 2


def test_a_lost_lease_of_a_draining_instance_stays_drained() -> None:
    """Losing a lease while draining does not bring new calls."""

    async def main(_: SimRuntime) -> None:
        registry = registry_of(LeaseOptions(ttl_s=3.0))
        for sleep_s in (10.0, 0.0):
            registration = await register(registry, "a")
            await asyncio.sleep(sleep_s)
            await names(registry)
            await registration.drain()
            await asyncio.sleep(10.0)
            await registration.renew()
            assert await names(registry) == []

    run(main)


def test_a_replaced_process_is_told_to_stop() -> None:
    """R2: `run` ends with the reason instead of fighting its successor."""

    async def main(_: SimRuntime) -> list[str]:
        registry = registry_of()
        old = await register(registry, "a")
        renewal = asyncio.create_task(old.run())
        await register(registry, "a")
        await asyncio.wait([renewal])
        assert isinstance(renewal.exception(), StaleIncarnation)
        await old.end()
        return await names(registry)

    assert run(main) == ["a"]


def test_an_ended_registration_is_gone_and_stays_so() -> None:
    """Ending twice is no error; renewing afterwards is, and `run` returns."""

    async def main(_: SimRuntime) -> str:
        registry = registry_of()
        registration = await register(registry, "a")
        renewal = asyncio.create_task(registration.run())
        await asyncio.sleep(5.0)
        await registration.end()
        await registration.end()
        assert await names(registry) == []
        with pytest.raises(DiscoveryError, match="has ended"):
            await registration.renew()
        with pytest.raises(DiscoveryError, match="has ended"):
            await registration.drain()
        await renewal
        return repr(registration)

    assert run(main) == "<Registration a #1 ended>"


class Flaky:
    """A leasing that cannot be asked for a while."""

    ttl_s = 3.0

    def __init__(self) -> None:
        self.is_down = False
        self.renewals = 0

    async def grant(self, endpoint: Endpoint) -> int:
        return 1

    async def renew(self, endpoint: Endpoint, incarnation: int) -> None:
        if self.is_down:
            raise DiscoveryError("the registry does not answer; start it")
        self.renewals += 1

    async def drain(self, endpoint: Endpoint, incarnation: int) -> None:
        raise UnknownInstance(endpoint.instance)

    async def end(self, endpoint: Endpoint, incarnation: int) -> None:
        raise UnknownInstance(endpoint.instance)


def test_a_registry_that_is_down_is_asked_again_and_that_is_visible() -> None:
    """A renewal loop outlives an outage of the registry, and says so meanwhile."""

    async def main(_: SimRuntime) -> None:
        leasing = Flaky()
        registration = Registration(leasing, at("a"), incarnation=1)
        renewal = asyncio.create_task(registration.run())
        await asyncio.sleep(3.5)
        assert leasing.renewals == 3
        leasing.is_down = True
        await asyncio.sleep(3.0)
        assert last_error(registration) == "DiscoveryError"
        leasing.is_down = False
        await asyncio.sleep(3.0)
        assert last_error(registration) == "NoneType"
        assert leasing.renewals == 6
        await stop(renewal)

    run(main)


def test_leaving_a_registry_that_has_forgotten_is_no_error() -> None:
    """Draining and ending ask for what is already so."""

    async def main(_: SimRuntime) -> None:
        registration = Registration(Flaky(), at("a"), incarnation=1)
        await registration.drain()
        await registration.end()

    run(main)


def test_a_watch_yields_the_list_and_then_each_new_one() -> None:
    """The first list is there at once; changes that leave the list as it is are not told."""

    async def main(_: SimRuntime) -> list[list[str]]:
        registry = registry_of(LeaseOptions(ttl_s=3.0))
        sweeping = asyncio.create_task(registry.run())
        seen: list[list[str]] = []

        async def watching() -> None:
            async with aclosing(registry.watch("billing")) as watch:
                async for resolved in watch:
                    seen.append([endpoint.instance for endpoint in resolved.endpoints])
                    if len(seen) == 5:
                        return

        watcher = asyncio.create_task(watching())
        await asyncio.sleep(0.1)
        await register(registry, "a")
        await asyncio.sleep(0.1)
        draining = await register(registry, "b")
        await asyncio.sleep(0.1)
        await draining.drain()
        await asyncio.sleep(0.1)
        await draining.end()
        # Nobody renews "a": it expires, and `run` is what tells the watcher.
        await watcher
        await stop(sweeping)
        return seen

    assert run(main) == [[], ["a"], ["a", "b"], ["a"], []]


def test_a_slow_watcher_skips_to_the_last_list() -> None:
    """What it missed meanwhile is in the list that it gets; a lag of any length heals."""

    async def main(_: SimRuntime) -> list[int]:
        registry = MemoryRegistry(verify=verify, options=LeaseOptions(ttl_s=1000.0))
        sizes: list[int] = []
        async with aclosing(registry.watch("billing")) as watch:
            sizes.append(len((await anext(watch)).endpoints))
            for number in range(1000):
                await register(registry, f"a{number}")
            sizes.append(len((await anext(watch)).endpoints))
            for _round in range(2):
                for number in range(1000):
                    await register(registry, f"a{number}")
            await register(registry, "last")
            sizes.append(len((await anext(watch)).endpoints))
        return sizes

    assert run(main) == [0, 1000, 1001]


def test_services_are_bounded() -> None:
    """A typing mistake in a loop does not fill the memory."""

    async def main(_: SimRuntime) -> None:
        registry = registry_of(services_max=1)
        await register(registry, "a", "billing")
        with pytest.raises(DiscoveryError, match="raise services_max"):
            await register(registry, "a", "orders")
        with pytest.raises(UnknownInstance):
            await registry.renew(at("a", "orders"), 1)

    run(main)
