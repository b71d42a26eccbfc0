"""What tests of a registry on NATS share: registries of one system, and a wire that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress

from synchromesh.discovery import Endpoint, Registration, Registry
from synchromesh.discovery.nats_kv import NatsRegistry
from synchromesh.identity import REGISTRY, Signer
from synchromesh.runtime import RealRuntime

KEY = b"the system's key, 32 bytes long!"
FOR_GOOD_S = 120.0


def at(instance: str, service: str = "billing") -> Endpoint:
    return Endpoint(instance, service, f"http://{instance}:1")


def credential(service: str = "billing", key: bytes = KEY) -> str:
    return Signer(key).token(service, audience=REGISTRY, now_us=RealRuntime().wall_us())


def registry_at(url: str, *, system: str = "shop", key: bytes = KEY) -> NatsRegistry:
    return NatsRegistry(url, system=system, signer=Signer(key), runtime=RealRuntime())


@asynccontextmanager
async def running(
    url: str, *, system: str = "shop", key: bytes = KEY
) -> AsyncIterator[NatsRegistry]:
    """Run a registry as one process of a system does."""
    registry = registry_at(url, system=system, key=key)
    await registry.open()
    task = asyncio.create_task(registry.run())
    try:
        await registry.known()
        yield registry
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await registry.close()


@asynccontextmanager
async def kept(
    registry: NatsRegistry, instance: str, service: str = "billing"
) -> AsyncIterator[Registration]:
    """Register an instance, and renew it as a process does."""
    registration = await registry.register(at(instance, service), credential=credential(service))
    task = asyncio.create_task(registration.run())
    try:
        yield registration
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def kept_at(registry: NatsRegistry, key: bytes, *endpoints: Endpoint) -> AsyncIterator[None]:
    """Register endpoints of a system with that key, and renew them as their processes would."""
    tasks = []
    for each in endpoints:
        shown = credential(each.service, key)
        registration = await registry.register(each, credential=shown)
        tasks.append(asyncio.create_task(registration.run()))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in endpoints:
            registry.evict(each.service, lambda found: found in endpoints)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(FOR_GOOD_S):
        while not holds():
            await asyncio.sleep(0.01)


async def listed(
    registry: Registry, *expected: str, service: str = "billing", is_stale: bool = False
) -> list[list[str]]:
    """Wait until these are listed, and nobody else; return all lists that were told until then."""
    told = []
    async with asyncio.timeout(FOR_GOOD_S):
        async with aclosing(registry.watch(service)) as lists:
            async for resolved in lists:
                told.append([each.instance for each in resolved.endpoints])
                if told[-1] == list(expected) and resolved.is_stale is is_stale:
                    break
    return told


class Wire:
    """A way to a server that can be cut, so that both ends see it, or held, so that neither does.

    Args:
        to: the server's port, or the path of its socket.
    """

    def __init__(self, to: int | str) -> None:
        self._to = to
        self._goes = {True: asyncio.Event(), False: asyncio.Event()}
        self.flow()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Return the URL of this end, for NATS."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port of this end."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def hold(self, *, is_back_only: bool = False) -> None:
        """Pass nothing on until `flow`, of the answers alone or of both; all stay connected."""
        self._goes[False].clear()
        if not is_back_only:
            self._goes[True].clear()

    @property
    def is_held(self) -> bool:
        """Whether nothing is passed on."""
        return not self._goes[True].is_set()

    def flow(self) -> None:
        """Pass on again, what was held first."""
        for each in self._goes.values():
            each.set()

    def cut(self) -> None:
        """End all connections, and take none until `mend`."""
        self._is_cut = True
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def mend(self) -> None:
        """Take connections again."""
        self._is_cut = False

    async def close(self) -> None:
        """End it."""
        self.flow()
        self.cut()
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        if isinstance(self._to, int):
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        else:
            there, back = await asyncio.open_unix_connection(self._to)
        self._writers += [writer, back]
        for source, sink, is_to in ((reader, back, True), (there, writer, False)):
            task = asyncio.create_task(_pass_on(source, sink, self._goes[is_to]))
            self._tasks.add(task)


async def _pass_on(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter, goes: asyncio.Event
) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            await goes.wait()
            sink.write(data)
            await sink.drain()
    sink.transport.abort()
