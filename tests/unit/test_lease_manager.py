"""LeaseManager: the lease table on the loop's clock, and its watchers; virtual time."""

from __future__ import annotations

import asyncio

import pytest

from synchromesh.discovery import Change, Endpoint, LeaseManager, LeaseOptions
from synchromesh.errors import DiscoveryError, StaleIncarnation, WatchLagged
from synchromesh.testing import SimRuntime, run


def at(instance: str) -> Endpoint:
    return Endpoint(instance, "billing", f"sim://{instance}")


def names(manager: LeaseManager) -> list[str]:
    return [endpoint.instance for endpoint in manager.resolve().endpoints]


async def stop(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def collect(manager: LeaseManager, into: list[Change]) -> None:
    with manager.watch() as watch:
        while True:
            into.append(await anext(watch))


def test_run_sweeps_when_a_lease_ends() -> None:
    """Watchers hear of an expiry when it is due, without anybody asking."""

    async def main(_: SimRuntime) -> list[tuple[str, int]]:
        manager = LeaseManager(LeaseOptions(ttl_s=3.0))
        heard: list[Change] = []
        tasks = [asyncio.create_task(manager.run()), asyncio.create_task(collect(manager, heard))]
        await asyncio.sleep(1.0)
        began_s = asyncio.get_running_loop().time()
        incarnation = manager.register(at("a"))
        await asyncio.sleep(2.0)
        manager.renew("a", incarnation)
        while len(heard) < 2:
            await asyncio.sleep(0.5)
        took_s = asyncio.get_running_loop().time() - began_s
        await stop(*tasks)
        assert 5.0 <= took_s <= 5.5
        return [(change.kind.value, change.revision) for change in heard]

    assert run(main) == [("granted", 1), ("expired", 2)]


def test_an_expired_instance_is_not_resolved_though_nobody_swept() -> None:
    """R1 does not hang on a background task being on time."""

    async def main(_: SimRuntime) -> tuple[list[str], list[str]]:
        manager = LeaseManager(LeaseOptions(ttl_s=3.0))
        manager.register(at("a"))
        before = names(manager)
        await asyncio.sleep(3.0)
        return before, names(manager)

    assert run(main) == (["a"], [])


def test_run_ends_the_guard() -> None:
    """R5: what the guard held back is gone when it ends, and watchers hear of both."""

    async def main(_: SimRuntime) -> list[str]:
        manager = LeaseManager(LeaseOptions(ttl_s=3.0, guard_s=10.0))
        heard: list[Change] = []
        tasks = [asyncio.create_task(manager.run()), asyncio.create_task(collect(manager, heard))]
        await asyncio.sleep(0.1)
        incarnations = [manager.register(at(name)) for name in "abc"]
        await asyncio.sleep(4.0)
        assert manager.resolve().is_stale
        manager.renew("a", incarnations[0])
        await asyncio.sleep(2.0)
        manager.renew("a", incarnations[0])
        await asyncio.sleep(1.1)
        assert names(manager) == ["a"]
        await stop(*tasks)
        return [change.kind.value for change in heard]

    assert run(main) == [*["granted"] * 3, "held", "expired", "expired", "trusted"]


def test_a_watch_hears_what_came_before_it_was_first_awaited() -> None:
    """Listening starts when the watch is made: nothing falls between resolving and watching."""

    async def main(_: SimRuntime) -> str:
        manager = LeaseManager(LeaseOptions())
        with manager.watch() as watch:
            manager.register(at("a"))
            return (await anext(watch)).kind.value

    assert run(main) == "granted"


def test_a_watcher_that_lags_is_told_and_forgotten() -> None:
    """A slow watcher costs bounded memory, and never misses a change without knowing."""

    async def main(_: SimRuntime) -> str:
        manager = LeaseManager(LeaseOptions(), backlog_max=2)
        with manager.watch() as watch:
            for name in "abc":
                manager.register(at(name))
            with pytest.raises(WatchLagged, match="2 changes behind"):
                await anext(watch)
            with pytest.raises(WatchLagged):
                await anext(watch)
        return repr(manager)

    assert run(main) == "<LeaseManager <LeaseTable 3/3 ready rev 3>, 0 watchers>"


def test_watchers_are_bounded_and_leave() -> None:
    """A closed watch makes room for another."""

    async def main(_: SimRuntime) -> None:
        manager = LeaseManager(LeaseOptions(), watchers_max=1)
        with manager.watch(), pytest.raises(DiscoveryError, match="raise watchers_max"):
            manager.watch()
        manager.watch().close()

    run(main)


def test_draining_and_ending_are_told() -> None:
    """Each is one change; draining twice is none."""

    async def main(_: SimRuntime) -> list[str]:
        manager = LeaseManager(LeaseOptions())
        incarnation = manager.register(at("a"))
        with manager.watch() as watch:
            manager.drain("a", incarnation)
            manager.drain("a", incarnation)
            manager.end("a", incarnation)
            return [(await anext(watch)).kind.value for _ in range(2)]

    assert run(main) == ["drained", "ended"]


def test_a_stale_process_is_refused() -> None:
    """R2: the shell passes the machine's refusal on."""

    async def main(_: SimRuntime) -> None:
        manager = LeaseManager(LeaseOptions())
        old = manager.register(at("a"))
        manager.register(at("a"))
        with pytest.raises(StaleIncarnation):
            manager.renew("a", old)

    run(main)
