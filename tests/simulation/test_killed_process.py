"""A process that is killed: its calls are held, and no breaker opens for it; virtual time.

The order is that of a real kill: connections break and are refused at once, the registry tells of
the death later, and a successor registers after that.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from calls_fakes import Always, Bank, Leaf, System, play
from synchromesh.calls import Caller, Policies, Reply, Request
from synchromesh.codec import encode
from synchromesh.discovery import Endpoint, LeaseOptions, MemoryRegistry
from synchromesh.errors import CircuitOpen, ConnectFailed, ConnectionLost, RemoteFailed
from synchromesh.resilience import BreakerState
from synchromesh.telemetry import Tracer

ONE = Reply(200, encode(1))
OLD = Endpoint("leaf-1", "leaf", "inproc://old")
NEW = replace(OLD, url="inproc://new")
WORK_S, EVERY_S = 0.05, 0.01


class Processes:
    """A transport to the processes that run: who is killed loses its calls, and refuses others."""

    def __init__(self, *running: str) -> None:
        self.running = set(running)
        self.killed = asyncio.Event()
        self.broken = self.sent = 0
        self.reply = ONE

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        name = endpoint.url.partition("://")[2]
        self.sent += 1
        if name not in self.running:
            self.broken += 1
            raise ConnectFailed(f"nobody listens at {endpoint.url}; start it")
        await asyncio.sleep(WORK_S)
        if name not in self.running:
            self.broken += 1
            raise ConnectionLost(f"the connection to {endpoint.url} broke")
        return await Always(self.reply).dispatch(request)


def registry_of() -> MemoryRegistry:
    """One whose leases outlast each test: what ends them is the death alone."""
    return MemoryRegistry(verify=lambda _: None, options=LeaseOptions(ttl_s=300.0))


def caller_of(system: System, registry: MemoryRegistry, transport: Processes) -> Caller:
    """One with the policies that there are without any configuration."""
    return Caller(
        "client",
        resolver=registry,
        transports={"inproc": transport},
        signer=system.signer,
        tracer=Tracer("client", system.runtime, system.spans),
        runtime=system.runtime,
        policies=Policies(),
    )


async def ask(caller: Caller) -> int:
    return await caller.call(Leaf.ask(1), context=caller.root())


def state_of(caller: Caller, service: str = "leaf") -> BreakerState:
    breaker = caller.edge(service).breaker
    assert breaker is not None
    return breaker.state


@pytest.mark.parametrize("told_s", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("successor", [OLD, NEW], ids=["same-url", "new-url"])
def test_calls_to_a_process_that_was_killed_are_held_until_it_is_back(
    successor: Endpoint, told_s: float
) -> None:
    """However long the registry takes to tell, twice: the breaker stays closed."""

    async def main(system: System) -> None:
        registry, transport = registry_of(), Processes("old")
        caller, loop = caller_of(system, registry, transport), asyncio.get_running_loop()
        registration = await registry.register(OLD, credential="")
        for _ in range(5):
            assert await ask(caller) == 1

        async def kill() -> float:
            nonlocal registration
            transport.running.clear()
            await asyncio.sleep(told_s)
            await registration.end()
            await asyncio.sleep(0.4)
            transport.running.add(successor.url.partition("://")[2])
            registration = await registry.register(successor, credential="")
            return loop.time()

        for _ in range(2):
            broken = transport.broken
            calls = [asyncio.create_task(ask(caller)) for _ in range(6)]
            await asyncio.sleep(WORK_S / 2)
            killing = asyncio.create_task(kill())
            while not killing.done():
                calls.append(asyncio.create_task(ask(caller)))
                await asyncio.sleep(EVERY_S)
                assert state_of(caller) is BreakerState.CLOSED
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert not any(isinstance(result, CircuitOpen) for result in results)
            assert loop.time() < killing.result() + 0.5
            assert transport.broken > broken + 6 + told_s / EVERY_S / 2
            assert state_of(caller) is BreakerState.CLOSED
            await asyncio.sleep(3.0)

    play("inproc", main)


def test_an_instance_that_is_listed_and_refuses_opens_the_breaker() -> None:
    """Once the registry had its time to tell of a death, and has not."""

    async def main(system: System) -> None:
        registry, transport = registry_of(), Processes()
        loop = asyncio.get_running_loop()
        caller = caller_of(system, registry, transport)
        await registry.register(OLD, credential="")
        began_s, calls = loop.time(), set[asyncio.Task[int]]()
        while state_of(caller) is BreakerState.CLOSED:
            assert loop.time() < began_s + 4.0
            calls.add(asyncio.create_task(ask(caller)))
            await asyncio.sleep(0.05)
        assert loop.time() >= began_s + 2.0
        sent = transport.sent
        with pytest.raises(CircuitOpen):
            await ask(caller)
        assert transport.sent == sent
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)

    play("inproc", main)


def test_an_external_service_that_refuses_opens_the_breaker_at_once() -> None:
    """No registry tells of its death: its refusals are what there is to know."""

    async def main(system: System) -> None:
        registry, loop = registry_of(), asyncio.get_running_loop()
        registry.fix(Endpoint("bank", "bank", "inproc://bank"))
        caller, began_s = caller_of(system, registry, Processes()), loop.time()
        while state_of(caller, "bank") is BreakerState.CLOSED:
            with pytest.raises((ConnectFailed, CircuitOpen)):
                await caller.call(Bank.charge(1), context=caller.root())
        assert loop.time() < began_s + 2.0

    play("inproc", main)


def test_a_probe_is_never_held() -> None:
    """A breaker that opened before the process ended: all that come are held, and none refused."""

    async def main(system: System) -> None:
        registry, transport = registry_of(), Processes("old")
        caller = caller_of(system, registry, transport)
        registration = await registry.register(OLD, credential="")
        transport.reply = Reply.of_error(RemoteFailed("down"))
        while state_of(caller) is BreakerState.CLOSED:
            with pytest.raises((RemoteFailed, CircuitOpen)):
                await ask(caller)
        await registration.end()
        await asyncio.sleep(1.0)
        calls = []
        for n in range(1, 6):
            calls.append(asyncio.create_task(ask(caller)))
            await asyncio.sleep(0.05)
            assert caller.holds.held == n
        for call in calls[1:]:
            call.cancel()
        await asyncio.wait(calls[1:])
        transport.running, transport.reply = {"new"}, ONE
        await registry.register(NEW, credential="")
        assert await calls[0] == 1
        assert await ask(caller) == 1

    play("inproc", main)
