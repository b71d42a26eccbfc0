"""The registry behind the control socket: processes, lost answers, partitions; virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

import pytest

from synchromesh.context import CREDENTIAL
from synchromesh.discovery import Endpoint, LeaseOptions, MemoryRegistry, Resolved
from synchromesh.errors import DiscoveryError, StaleIncarnation, Unauthenticated
from synchromesh.http import HttpPool, HttpServer
from synchromesh.identity import REGISTRY, Signer
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.system.leases_api.server import RegistryServer
from synchromesh.testing import NetworkFaults, SimRuntime, World

KEY = b"the system's key, 32 bytes long!"
PORT = 4000
URL = f"http://127.0.0.1:{PORT}"
TTL_S = 3.0


def at(instance: str, service: str = "billing", pid: int = 1) -> Endpoint:
    return Endpoint(instance, service, f"http://{instance}:1", (("pid", str(pid)),))


class Town:
    """A world with a control socket, a process that registers, and one that resolves."""

    def __init__(self, seed: int = 0, faults: NetworkFaults | None = None) -> None:
        self.world = World(seed, faults=faults or NetworkFaults())
        self.seen: list[tuple[float, list[str], bool]] = []
        self.registry: MemoryRegistry | None = None
        self.lookout: RemoteRegistry | None = None
        self.ended: list[str] = []
        self.control = self.world.node("control", self._control)
        self.resolving = self.world.node("orders", self._resolve)
        for node in (self.control, self.resolving):
            node.start()

    def instance(self, name: str, node: str = "", *, is_draining: bool = False) -> None:
        """Start a process that registers as `name`."""

        async def main(runtime: SimRuntime) -> None:
            registry = remote(runtime, "billing")
            registration = None
            while registration is None:
                with suppress(DiscoveryError):
                    registration = await registry.register(at(name), credential="")
                await asyncio.sleep(0.1)
            if is_draining:
                await registration.drain()
            try:
                await registration.run()
            except StaleIncarnation:
                self.ended.append(node or name)

        self.world.node(node or name, main).start()

    async def names(self) -> tuple[list[str], bool]:
        assert self.lookout is not None
        resolved = await self.lookout.resolve("billing")
        return [endpoint.instance for endpoint in resolved.endpoints], resolved.is_stale

    async def at(self, moment_s: float) -> tuple[list[str], bool]:
        """Wait until a moment, and return what is then resolved."""
        await asyncio.sleep(moment_s - self.world.loop.time())
        return await self.names()

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def running() -> None:
            await main()

        self.world.run(running())

    async def _control(self, runtime: SimRuntime) -> None:
        signer = Signer(KEY)
        self.registry = MemoryRegistry(
            verify=lambda token: verify(signer, token, runtime),
            options=LeaseOptions(ttl_s=TTL_S),
        )
        server = RegistryServer(
            self.registry,
            admit=lambda token, to: signer.admit(token, audience=to, now_us=runtime.wall_us()),
            wall_us=runtime.wall_us,
        )
        await HttpServer(server.handle, network=runtime.network).start(port=PORT)
        await self.registry.run()

    async def _resolve(self, runtime: SimRuntime) -> None:
        self.lookout = remote(runtime, "orders")
        watching = asyncio.ensure_future(self._watch(self.lookout))
        await self.lookout.run()
        await watching

    async def _watch(self, registry: RemoteRegistry) -> None:
        while True:
            await registry.changed("billing")
            with suppress(DiscoveryError):
                now = self.world.loop.time()
                self.seen.append((now, *await self.names()))


def verify(signer: Signer, token: str, runtime: SimRuntime) -> None:
    signer.verify(token, audience=REGISTRY, now_us=runtime.wall_us())


def remote(
    runtime: SimRuntime, service: str, key: bytes = KEY, audience: str = REGISTRY
) -> RemoteRegistry:
    signer = Signer(key)
    return RemoteRegistry(
        lambda: URL,
        pool=HttpPool(network=runtime.network),
        credential=lambda: signer.token(service, audience=audience, now_us=runtime.wall_us()),
        runtime=runtime,
    )


def test_a_change_is_seen_within_the_time_of_a_message() -> None:
    """The poll that waits is answered at once: granted, drained and ended are seen in 50 ms."""
    town = Town()

    async def main() -> None:
        assert await town.at(1.0) == ([], False)
        town.instance("b")
        town.instance("a")
        assert await town.at(1.05) == (["a", "b"], False)
        assert town.registry is not None
        town.world.nodes["a"].crash()
        assert town.registry.evict("billing", lambda endpoint: endpoint.instance == "a") == 1
        assert await town.at(1.1) == (["b"], False)
        town.instance("c", is_draining=True)
        assert await town.at(1.4) == (["b"], False)
        # It goes on through many polls that end with nothing new.
        assert await town.at(100.0) == (["b"], False)
        town.world.nodes["b"].crash()
        assert await town.at(100.0 + TTL_S + 0.05) == ([], False)

    town.run(main)


def test_a_suspect_is_off_every_list_until_it_is_cleared() -> None:
    """R6: by the long poll, as any other change; a service that nobody knows has no suspects."""
    town = Town()

    async def main() -> None:
        town.instance("a")
        town.instance("b")
        assert await town.at(1.05) == (["a", "b"], False)
        registry = town.registry
        assert registry is not None

        def suspect(service: str, *, is_suspect: bool) -> None:
            registry.suspect(service, lambda e: e.instance == "a", is_suspect=is_suspect)

        suspect("billing", is_suspect=True)
        suspect("nobody", is_suspect=True)
        assert await town.at(1.1) == (["b"], False)
        suspect("billing", is_suspect=False)
        assert await town.at(1.2) == (["a", "b"], False)

    town.run(main)


def test_nothing_is_resolved_before_the_registry_was_heard() -> None:
    """That nobody is there must not be mixed up with that nobody knows."""
    town = Town()
    town.control.crash()

    async def main() -> None:
        await asyncio.sleep(1.0)
        with pytest.raises(DiscoveryError, match="has never answered"):
            await town.names()
        assert repr(town.lookout) == "<RemoteRegistry down>"
        town.control.start()
        assert await town.at(3.0) == ([], False)

    town.run(main)


@pytest.mark.parametrize("seed", range(10))
def test_the_last_known_good_outlives_the_registry(seed: int) -> None:
    """R4: while it is down and while it learns anew, nobody is lost; then the list is fresh."""
    town = Town(seed)

    async def main() -> None:
        town.instance("a")
        town.instance("b")
        town.instance("c")
        assert await town.at(2.0) == (["a", "b", "c"], False)
        town.control.crash(restart_after_s=5.0)
        assert await town.at(2.1) == (["a", "b", "c"], True)
        # While nobody can say so, one of them dies.
        town.world.nodes["b"].crash()
        assert await town.at(6.9) == (["a", "b", "c"], True)
        assert await town.at(7.0 + TTL_S + 0.1) == (["a", "c"], False)
        lists = [names for at_s, names, _ in town.seen if at_s > 2.0]
        assert all(set(names) >= {"a", "c"} for names in lists), town.seen

    town.run(main)


def test_a_drained_instance_stays_drained_over_the_registrys_restart() -> None:
    """It registers as draining again, and never gets a call in between."""
    town = Town()

    async def main() -> None:
        town.instance("a")
        town.instance("b", is_draining=True)
        assert await town.at(1.0) == (["a"], False)
        town.control.crash(restart_after_s=1.0)
        assert await town.at(20.0) == (["a"], False)

    town.run(main)


def test_who_was_replaced_stays_replaced_over_the_registrys_restart() -> None:
    """R2: incarnations go on above those of before; the process that was paused must stop."""
    town = Town()

    async def main() -> None:
        town.instance("a", node="old")
        await asyncio.sleep(1.0)
        town.world.nodes["old"].pause()
        town.control.crash(restart_after_s=0.5)
        await asyncio.sleep(1.0)
        town.instance("a", node="new")
        await asyncio.sleep(1.0)
        town.world.nodes["old"].resume()
        await asyncio.sleep(2.0)
        assert town.ended == ["old"]
        assert await town.names() == (["a"], False)

    town.run(main)


@pytest.mark.parametrize("who", ["orders", "a"])
def test_a_partition_is_survived(who: str) -> None:
    """Cut off from the registry it is stale, or expires; once healed all is as before."""
    town = Town()

    async def main() -> None:
        town.instance("a")
        assert await town.at(1.0) == (["a"], False)
        town.world.partition("control", who, heal_after_s=30.0)
        apart = await town.at(25.0)
        assert apart == ((["a"], True) if who == "orders" else ([], False))
        assert await town.at(60.0) == (["a"], False)
        assert town.ended == []

    town.run(main)


@pytest.mark.parametrize("seed", range(10))
def test_lost_and_late_answers_do_not_replace_an_instance_by_itself(seed: int) -> None:
    """A grant whose answer was lost is asked for anew; nobody believes to be replaced."""
    town = Town(seed, NetworkFaults(loss=0.3, tail=0.2, tail_s=4.0))

    async def main() -> None:
        for name in ("a", "b", "c"):
            town.instance(name)
        for _ in range(6):
            await asyncio.sleep(10.0)
            town.control.crash(restart_after_s=0.5)
        town.world.calm()
        await asyncio.sleep(20.0)
        assert town.ended == []
        assert await town.names() == (["a", "b", "c"], False)

    town.run(main)


def test_only_the_systems_services_are_listed_each_as_itself() -> None:
    """R3: not with another key, nor another service's credential, nor one of a call between two."""
    town = Town()
    refused: list[str] = []

    async def stranger(runtime: SimRuntime) -> None:
        for registry in (
            remote(runtime, "billing", b"x" * 32),
            remote(runtime, "orders"),
            remote(runtime, "billing", audience="orders"),
        ):
            try:
                await registry.register(at("a"), credential="")
            except (Unauthenticated, DiscoveryError) as error:
                refused.append(f"{type(error).__name__}: {error}")
        with pytest.raises(Unauthenticated):
            await remote(runtime, "billing", b"x" * 32).run()

    async def main() -> None:
        town.world.node("stranger", stranger).start()
        assert await town.at(1.0) == ([], False)
        assert refused[0].startswith("Unauthenticated: ")
        assert refused[1].startswith("DiscoveryError: ")
        assert "a service registers its own instances only" in refused[1]
        assert "is for 'orders', and was shown to '@registry'" in refused[2]

    town.run(main)


def test_what_it_does_not_know_is_refused_in_words() -> None:
    """A wrong path, body or act is a problem document of status 4xx."""
    town = Town()
    said: list[tuple[int, str]] = []

    async def asking(runtime: SimRuntime) -> None:
        signer = Signer(KEY)
        headers = [
            (CREDENTIAL, signer.token("billing", audience=REGISTRY, now_us=runtime.wall_us()))
        ]
        async with HttpPool(network=runtime.network) as pool:
            for method, target, body in (
                ("GET", "/elsewhere", b""),
                ("POST", "/registry/shout", b"{}"),
                ("POST", "/registry/register", b"{"),
                ("POST", "/registry/register", b'{"instance":"a","service":"billing","url":"x"}'),
                ("POST", "/registry/renew", b"{}"),
            ):
                answer = await pool.request(
                    "127.0.0.1", PORT, method, target, headers, body, timeout_s=5.0
                )
                said.append((answer.status, answer.body.decode()))

    async def main() -> None:
        await asyncio.sleep(0.5)
        town.world.node("asking", asking).start()
        await asyncio.sleep(1.0)

    town.run(main)
    assert [status for status, _ in said] == [404, 404, 400, 400, 400]
    assert "has the url 'x'" in said[3][1]


def test_a_fixed_endpoint_needs_no_lease() -> None:
    """What somebody else runs is listed until it is put elsewhere."""
    town = Town()

    async def main() -> None:
        await asyncio.sleep(0.5)
        assert town.registry is not None
        assert town.lookout is not None
        for url in ("http://bank:1", "http://bank:2"):
            town.registry.fix(Endpoint("bank", "bank", url))
            await asyncio.sleep(0.05)
            resolved = await town.lookout.resolve("bank")
            assert [endpoint.url for endpoint in resolved.endpoints] == [url]
        assert await town.registry.resolve("bank") == resolved

    town.run(main)


def test_watching_tells_each_list_once() -> None:
    """The list as it is, then each other one; the same list again is not told."""
    town = Town()
    told: list[Resolved] = []

    async def watching(runtime: SimRuntime) -> None:
        registry = remote(runtime, "orders")
        running = asyncio.ensure_future(registry.run())
        await asyncio.sleep(0.5)
        async with aclosing(registry.watch("billing")) as watch:
            async for resolved in watch:
                told.append(resolved)  # noqa: PERF401  it never ends
        await running

    async def main() -> None:
        town.world.node("watching", watching).start()
        await asyncio.sleep(1.0)
        town.instance("a")
        await asyncio.sleep(40.0)

    town.run(main)
    assert told == [Resolved(()), Resolved((at("a"),))]
