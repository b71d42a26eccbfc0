"""Calls held while no instance is ready: bridged, given up, bounded; virtual time."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from calls_fakes import Always, Bank, Leaf, System, play
from synchromesh.calls import Caller, HoldOptions, Holds, Policies, Reply, Request
from synchromesh.codec import encode
from synchromesh.discovery import Endpoint, MemoryRegistry, Registration
from synchromesh.errors import ConfigError, ConnectFailed, ConnectionLost, NoInstance, RemoteFailed
from synchromesh.resilience import Policy
from synchromesh.telemetry import Tracer

ONE = Reply(200, encode(1))
HOME = Endpoint("leaf-1", "leaf", "inproc://leaf-1")


class Known:
    """A transport to endpoints by url; a url that is not there refuses the connection."""

    def __init__(self, **receivers: Always) -> None:
        self.receivers = receivers
        self.refused: list[float] = []

    async def send(self, endpoint: Endpoint, request: Request) -> Reply:
        name = endpoint.url.partition("://")[2]
        if name not in self.receivers:
            self.refused.append(asyncio.get_running_loop().time())
            raise ConnectFailed(f"nobody listens at {endpoint.url}; start it")
        return await self.receivers[name].dispatch(request)


def caller_of(system: System, registry: MemoryRegistry, transport: Known, **hold: float) -> Caller:
    options = HoldOptions(**hold)  # type: ignore[arg-type]
    return Caller(
        "client",
        resolver=registry,
        transports={"inproc": transport},
        signer=system.signer,
        tracer=Tracer("client", system.runtime, system.spans),
        runtime=system.runtime,
        policies=replace(Policies(default=Policy(timeout_s=2.0)), hold=options),
    )


def registry_of() -> MemoryRegistry:
    return MemoryRegistry(verify=lambda _: None)


async def list_after(
    registry: MemoryRegistry, after_s: float, endpoint: Endpoint = HOME
) -> Registration:
    await asyncio.sleep(after_s)
    return await registry.register(endpoint, credential="")


def test_a_call_waits_for_the_instance_that_comes() -> None:
    """It is answered as soon as one is listed, counted as bridged, and its span says so."""

    async def main(system: System) -> None:
        registry, loop = registry_of(), asyncio.get_running_loop()
        caller = caller_of(system, registry, Known(**{"leaf-1": Always(ONE)}))
        coming = asyncio.ensure_future(list_after(registry, 0.8))
        began_s = loop.time()
        assert await caller.call(Leaf.ask(1), context=caller.root()) == 1
        assert loop.time() - began_s == pytest.approx(0.8)
        await coming
        assert await caller.call(Leaf.ask(1), context=caller.root()) == 1
        assert repr(caller.holds) == "<Holds 0 held, 1 bridged, 0 given up, 0 refused>"
        noted = [span.attributes.get("held_ms") for span in system.spans]
        assert noted == ["800", None]

    play("inproc", main)


def test_a_restart_under_load_fails_no_call() -> None:
    """Drained, gone, and listed anew under the same name: all calls meanwhile are answered."""

    async def main(system: System) -> None:
        registry = registry_of()
        caller = caller_of(system, registry, Known(**{"leaf-1": Always(ONE)}))
        registration = await list_after(registry, 0.0)
        answers: list[int] = []

        async def call() -> None:
            answers.append(await caller.call(Leaf.ask(1), context=caller.root()))

        async with asyncio.TaskGroup() as group:
            for n in range(100):
                group.create_task(call())
                await asyncio.sleep(0.02)
                if n == 20:
                    await registration.drain()
                if n == 40:
                    await registration.end()
                if n == 60:
                    await list_after(registry, 0.0)
        assert answers == [1] * 100
        assert caller.holds.bridged == 40

    play("inproc", main)


def test_it_fails_once_its_time_is_over() -> None:
    """Within the bound, or three quarters of the attempt: then it says that none is ready."""

    async def main(system: System) -> None:
        loop = asyncio.get_running_loop()
        for timeout_s, hold_max_s, least_s in ((None, 0.5, 0.5), (1.0, 9.0, 0.75)):
            caller = caller_of(system, registry_of(), Known(), hold_max_s=hold_max_s)
            began_s = loop.time()
            with pytest.raises(NoInstance, match="none is registered"):
                await caller.call(Leaf.ask(1), context=caller.root(), timeout_s=timeout_s)
            assert loop.time() - began_s >= least_s
            assert timeout_s is None or loop.time() - began_s < timeout_s
            assert (caller.holds.held, caller.holds.bridged) == (0, 0)

    play("inproc", main)


def test_only_so_many_are_held() -> None:
    """The others fail at once, retries apart; a hold that is cancelled makes room."""

    async def main(system: System) -> None:
        registry = registry_of()
        caller = caller_of(system, registry, Known(**{"leaf-1": Always(ONE)}), held_max=2)
        held = [
            asyncio.ensure_future(caller.call(Leaf.ask(1), context=caller.root())) for _ in range(2)
        ]
        await asyncio.sleep(0.1)
        with pytest.raises(NoInstance):
            await caller.call(Leaf.ask(1), context=caller.root())
        assert caller.holds.refused > 0
        held[0].cancel()
        await asyncio.wait(held[:1])
        assert caller.holds.held == 1
        await list_after(registry, 0.1)
        assert await held[1] == 1
        assert (caller.holds.held, caller.holds.bridged) == (0, 1)

    play("inproc", main)


def test_without_a_hold_it_fails_as_before() -> None:
    """`hold_max_s=0` turns holding off."""

    async def main(system: System) -> None:
        caller = caller_of(system, registry_of(), Known(), hold_max_s=0.0)
        with pytest.raises(NoInstance):
            await caller.call(Leaf.ask(1), context=caller.root())
        assert repr(caller.holds) == "<Holds 0 held, 0 bridged, 0 given up, 0 refused>"

    play("inproc", main)


def test_an_instance_that_refuses_connections_is_as_good_as_none() -> None:
    """Until the registry knows of the kill the call waits, and goes to where it is then."""

    async def main(system: System) -> None:
        registry = registry_of()
        transport = Known(new=Always(ONE))
        caller = caller_of(system, registry, transport)
        await list_after(registry, 0.0, replace(HOME, url="inproc://killed"))
        coming = asyncio.ensure_future(list_after(registry, 0.9, replace(HOME, url="inproc://new")))
        assert await caller.call(Leaf.ask(1), context=caller.root()) == 1
        assert len(transport.refused) == 1
        await coming

    play("inproc", main)


def test_an_external_service_that_refuses_fails_at_once() -> None:
    """Nobody of the system will start it: there is nothing to wait for."""

    async def main(system: System) -> None:
        registry, loop = registry_of(), asyncio.get_running_loop()
        registry.fix(Endpoint("bank", "bank", "inproc://bank"))
        caller = caller_of(system, registry, Known())
        began_s = loop.time()
        with pytest.raises(ConnectFailed):
            await caller.call(Bank.charge(1), context=caller.root())
        assert caller.holds.given_up == 0
        assert loop.time() - began_s < 1.0

    play("inproc", main)


def test_a_lost_answer_is_asked_for_again_at_the_new_instance() -> None:
    """A kill in mid-call: the command's key finds the restarted instance, after a hold."""

    async def main(system: System) -> None:
        registry = registry_of()
        registration = await list_after(registry, 0.0)

        class Killed(Always):
            async def dispatch(self, request: Request) -> Reply:
                await registration.end()
                raise ConnectionLost("it was killed")

        transport = Known(**{"leaf-1": Killed(ONE)})
        caller = caller_of(system, registry, transport)
        calling = asyncio.ensure_future(caller.call(Leaf.ask(1), context=caller.root()))
        await asyncio.sleep(0.5)
        transport.receivers["leaf-1"] = Always(ONE)
        await list_after(registry, 0.5)
        assert await calling == 1
        assert caller.holds.bridged == 1

    play("inproc", main)


def test_other_failures_are_not_held() -> None:
    """An instance that answers, if only a no, is there."""

    async def main(system: System) -> None:
        registry = registry_of()
        await list_after(registry, 0.0)
        down = Always(Reply.of_error(RemoteFailed("down")))
        caller = caller_of(system, registry, Known(**{"leaf-1": down}))
        with pytest.raises(RemoteFailed):
            await caller.call(Leaf.ask(1), context=caller.root())
        assert len(down.requests) == 3
        assert caller.holds.given_up == 0

    play("inproc", main)


def test_a_service_that_is_nowhere_for_long_is_not_waited_for() -> None:
    """Past what a restart takes its calls fail at once; once it is back, they are held again."""

    async def main(system: System) -> None:
        registry, loop = registry_of(), asyncio.get_running_loop()
        caller = caller_of(system, registry, Known(**{"leaf-1": Always(ONE)}))

        async def fails_within(timeout_s: float) -> float:
            began_s = loop.time()
            with pytest.raises(NoInstance):
                await caller.call(Leaf.ask(1), context=caller.root(), timeout_s=timeout_s)
            return loop.time() - began_s

        began_s = loop.time()
        while loop.time() < began_s + 10.0:
            assert await fails_within(0.4) >= 0.3
        assert await fails_within(2.0) < 0.3
        assert caller.holds.refused > 0
        registration = await list_after(registry, 0.0)
        assert await caller.call(Leaf.ask(1), context=caller.root()) == 1
        await registration.end()
        assert await fails_within(0.4) >= 0.3

    play("inproc", main)


def test_an_absence_that_nobody_saw_begins_anew() -> None:
    """Who calls seldom cannot know that a service was back meanwhile: it may be a restart."""
    holds = Holds(HoldOptions(restart_max_s=10.0))
    assert holds.begin("leaf", now=0.0, deadline_s=None) == 2.0
    holds.end("leaf", is_bridged=False)
    assert holds.begin("leaf", now=9.9, deadline_s=None) == 11.9
    assert holds.begin("leaf", now=10.0, deadline_s=None) is None
    assert holds.begin("other", now=10.0, deadline_s=None) == 12.0
    assert holds.begin("leaf", now=20.1, deadline_s=None) == 22.1


@pytest.mark.parametrize(
    "words", [{"hold_max_s": -1.0}, {"share": 1.5}, {"held_max": -1}, {"restart_max_s": -1.0}]
)
def test_options_outside_their_range_are_refused(words: dict[str, float]) -> None:
    """The message names what would be right."""
    with pytest.raises(ConfigError, match=r"HoldOptions: .*; make it a"):
        HoldOptions(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["hold_max_s", "share", "held_max", "restart_max_s"])
@pytest.mark.parametrize("wrong", [math.nan, True, "1", None])
def test_options_that_are_no_numbers_are_refused(name: str, wrong: Any) -> None:
    """NaN passes every comparison that says what is wrong; the message names the option."""
    kind = "whole number" if name == "held_max" else "number"
    with pytest.raises(ConfigError, match=f"HoldOptions: {name} is .*; make it a {kind}"):
        HoldOptions(**{name: wrong})
