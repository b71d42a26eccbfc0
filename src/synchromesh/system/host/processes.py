"""The parts of a system as processes of their own: a service each, and the gateway.

A process that ends is started again, up to the restart intensity; beyond that the system ends and
says which. What runs in the processes is `process`.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from socket import socket

import msgspec

from synchromesh.discovery import MemoryRegistry
from synchromesh.service import Child, Supervisor
from synchromesh.system.config.schema import GATEWAY
from synchromesh.system.control.remote import RemoteProcess
from synchromesh.system.control.status import ChildStatus
from synchromesh.system.host.gateway_part import open_socket
from synchromesh.system.host.host import Host
from synchromesh.system.host.waits import all_of
from synchromesh.system.supervise.child_process import ChildProcess
from synchromesh.system.supervise.orders import ProcessOrders


class Processes:
    """Starts, watches and stops a process for each part.

    Args:
        host: the supervisor's own.
        registry: loses the instances of a process that has ended, at once (R6).
        key: signs every hop.
        token: what a process asks for at its own control API.
        moved: told the name and the URL of a service that is ready at another one than before.

    Attributes:
        remotes: the processes, as the control API asks them; the gateway's by its own name.
    """

    def __init__(
        self,
        host: Host,
        registry: MemoryRegistry,
        *,
        key: bytes,
        token: str,
        moved: Callable[[str, str], None],
    ) -> None:
        self._host = host
        self._registry = registry
        self._key = key
        self._token = token
        self._moved = moved
        self._watching = Supervisor("processes", escalate=host.fail)
        self._socket: socket | None = None
        self.remotes: dict[str, RemoteProcess] = {}
        host.local.supervisors = [*host.local.supervisors, self._watching]

    async def run_services(self) -> None:
        """Start all at once: none waits for another, and calls are held until all are there."""
        children = {name: self._service(name) for name in self._host.config.services}
        starting = [asyncio.ensure_future(child.start()) for child in children.values()]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for start in starting:
                start.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            raise
        for name, child in children.items():
            self._watching.start(Child(f"service/{name}", child.run))

    async def run_gateway(self) -> None:
        """Start the gateway on a socket that stays open here, whichever process accepts on it."""
        config = self._host.config
        accepting = self._socket = open_socket(config.system.host, config.gateway.port)
        child = self._add(
            GATEWAY,
            "the gateway",
            orders=lambda _: self._orders(GATEWAY, handle=accepting.fileno()),
            gone=lambda _: None,
            moved=lambda _: None,
            stop_within_s=self._host.budget.gateway_s,
        )
        await child.start()
        self._watching.start(Child(GATEWAY, child.run))

    def urls(self) -> dict[str, str]:
        """Return where each part is reached, by its name."""
        return {name: remote.child.url for name, remote in self.remotes.items() if remote.child.url}

    async def stop(self) -> None:
        """Stop the gateway, for what it has taken needs all the others; then them. May be repeated.

        Services need each other, and the registry, until they have ended.
        """
        # Or what is stopped would be started again.
        await self._watching.close()
        if self._socket is not None:
            # A client that comes from here on is refused: it would wait for nobody.
            self._socket.close()
        if GATEWAY in self.remotes:
            await all_of([self.remotes[GATEWAY].child.stop()])
        await all_of(remote.child.stop() for remote in self.remotes.values())

    def cut(self) -> None:
        """End all processes at once."""
        for remote in self.remotes.values():
            remote.child.kill()

    def _service(self, name: str) -> ChildProcess:
        def gone(pid: int) -> None:
            # Its end was seen: it is not suspected to be dead, it is (R6).
            self._registry.bury(name, lambda endpoint: ("pid", str(pid)) in endpoint.metadata)

        return self._add(
            name,
            f"service {name!r}",
            orders=lambda port: self._orders(name, port=port),
            gone=gone,
            moved=lambda url: self._moved(name, url),
            stop_within_s=self._host.budget.services_s,
        )

    def _add(
        self,
        name: str,
        title: str,
        *,
        orders: Callable[[int], ProcessOrders],
        gone: Callable[[int], None],
        moved: Callable[[str], None],
        stop_within_s: float,
    ) -> ChildProcess:
        child = ChildProcess(
            title,
            orders=orders,
            folder=self._host.folder,
            log=self._host.rundir.telemetry / f"{name}.log",
            gone=gone,
            moved=moved,
            stop_within_s=stop_within_s,
            budget=self._host.budget,
        )
        self.remotes[name] = RemoteProcess(
            name,
            child,
            state=lambda: self._seen(GATEWAY if name == GATEWAY else f"service/{name}"),
            pool=self._host.pool,
            token=self._token,
        )
        return child

    def _seen(self, child: str) -> ChildStatus:
        """Return how the supervisor sees a process; it watches none before it was ready once."""
        state = self._watching.states.get(child, ChildStatus("starting"))
        return msgspec.convert(state, ChildStatus, from_attributes=True)

    def _orders(self, name: str, *, port: int = 0, handle: int = -1) -> ProcessOrders:
        host = self._host
        return ProcessOrders(
            name=name,
            config=host.config,
            key=base64.b64encode(self._key).decode(),
            control=host.control_server.url,
            token=self._token,
            port=port,
            handle=handle,
            faults=host.local.faults.standing(wall_us=host.runtime.wall_us()),
        )

    def __repr__(self) -> str:
        return f"<Processes {', '.join(self.remotes) or 'not started'}>"
