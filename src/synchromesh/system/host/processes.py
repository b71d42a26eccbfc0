"""The parts of a split system: a process for each instance of a service and of the gateway.

A process that ends is started again, up to the restart intensity; beyond that it is given up for a
while, and the others go on. What runs in the processes is `process`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from socket import AF_INET, AF_INET6, create_server, socket

from msgspec.structs import replace

from synchromesh.discovery import Endpoint
from synchromesh.durations import duration
from synchromesh.errors import ConfigError
from synchromesh.network import BACKLOG
from synchromesh.service import Child, Supervisor
from synchromesh.system.config.parts import SystemPart, parts_of
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.control.contract_book import ContractBook
from synchromesh.system.control.gateway_changes import config_of_gateway, later_names
from synchromesh.system.control.local import child_status
from synchromesh.system.control.remote import RemoteProcess
from synchromesh.system.control.status_parts import SILENT, STOPPED, ChildStatus
from synchromesh.system.host.host import Host
from synchromesh.system.host.moves import Moves
from synchromesh.system.host.registries import SupervisedRegistry
from synchromesh.system.host.service_part import pid_at_host
from synchromesh.system.host.waits import all_of
from synchromesh.system.supervise.child_process import ChildProcess
from synchromesh.system.supervise.forks import ForkServer
from synchromesh.system.supervise.hang_watch import HangWatch
from synchromesh.system.supervise.launcher import Launcher
from synchromesh.system.supervise.messages import ProcessSpec, key_text

STARTS_PER_CORE = 2


class Processes:
    """Starts, watches and stops a process for each part.

    Args:
        host: the supervisor's own.
        registry: loses the instances of a process that has ended, at once (R6).
        keys: the first signs every hop, and all are accepted.
        token: what a process asks for at its own control API.
        on_moved: called with the name and the URL of a part that comes up elsewhere.
        forks: the fork server; None where each process is a new interpreter.
        reread: reads the configuration as it is now.

    Attributes:
        remotes: the processes, as the control API asks them, by the part that each runs.
        book: what each of them offers to others, and expects of them.
        moves: takes their databases to a server.
    """

    def __init__(
        self,
        host: Host,
        registry: SupervisedRegistry,
        *,
        keys: Sequence[bytes],
        token: str,
        on_moved: Callable[[str, str], None],
        forks: ForkServer | None,
        reread: Callable[[], SystemConfig],
    ) -> None:
        self._host = host
        self._registry = registry
        self._keys = keys
        self._token = token
        self._on_moved = on_moved
        self._watching = Supervisor("processes", rng=host.runtime.rng, gave_up=host.gave_up)
        self._forks = forks
        self._reread = reread
        self._launcher = Launcher(host.folder, forks)
        self._sockets: list[socket] = []
        # Dozens at once would each be slow to be ready, and none the sooner.
        self._starting = asyncio.Semaphore(STARTS_PER_CORE * (os.cpu_count() or 1))
        self.remotes: dict[str, RemoteProcess] = {}
        self.book = ContractBook()
        self.moves = Moves(host, self.remotes, reread)
        self._hangs = HangWatch(
            lambda: {name: remote.child for name, remote in self.remotes.items()},
            hang_s=duration(host.config.system.hang),
            wall_us=host.runtime.wall_us,
            on_suspect=self._suspect,
        )
        host.local.supervisors = [*host.local.supervisors, self._watching]

    async def run(self, *names: str) -> None:
        """Start services, or the gateways, as many at once as the machine has use for.

        Calls of services are held until their callees are ready. The listening socket of a gateway
        outlives each of its processes.
        """
        if "liveness" not in self._watching.states:
            if self._forks is not None:
                self._forks.start()
            self._watching.start(Child("liveness", self._hangs.run))
        parts = [part for name in names for part in parts_of(self._host.config, name)]
        children = {
            _child_of(part): self._gateway(part) if part.is_gateway else self._service(part)
            for part in parts
        }
        starting = [
            asyncio.ensure_future(start_in_turn(child, self._starting))
            for child in children.values()
        ]
        try:
            await asyncio.gather(*starting)
        except BaseException:
            for start in starting:
                start.cancel()
            await asyncio.gather(*starting, return_exceptions=True)
            raise
        for name, child in children.items():
            self._watching.start(Child(name, child.run))

    def _gateway(self, part: SystemPart) -> ChildProcess:
        config = self._host.config
        host, port = config.gateway.host or config.system.host, config.gateway.port
        accepting = _open_socket(host, port + len(self._sockets) if port else 0)
        self._sockets.append(accepting)
        return self._add(
            part,
            "the gateway" if part.name == GATEWAY else f"the gateway {part.name!r}",
            spec=lambda _: self._spec(part, handle=accepting.fileno()),
            on_exit=lambda pid: self.book.ended(part.name, pid),
            on_moved=lambda url: self._on_moved(part.name, url),
            stop_within_s=self._host.budget.gateway_s,
        )

    def admin_urls(self) -> dict[str, str]:
        """Return where each process tells of its health, by part."""
        found = {name: remote.child.admin_url for name, remote in self.remotes.items()}
        return {name: url for name, url in found.items() if url}

    def urls(self) -> dict[str, str]:
        """Return the URL of each part, by name."""
        return {name: remote.child.url for name, remote in self.remotes.items() if remote.child.url}

    async def stop(self) -> None:
        """Stop the gateways, whose requests need the services, then the services. May be repeated.

        Services need each other, and the registry, until they have ended.
        """
        # Or what is stopped would be started again.
        await self._watching.close()
        for accepting in self._sockets:
            # A client that comes from here on is refused: it would wait for nobody.
            accepting.close()
        every = self.remotes.values()
        await all_of(remote.child.stop() for remote in every if remote.part.is_gateway)
        await all_of(remote.child.stop() for remote in every)
        if self._forks is not None:
            await self._forks.stop()

    def cut(self) -> None:
        """Kill all processes."""
        for remote in self.remotes.values():
            remote.child.kill()

    def _service(self, part: SystemPart) -> ChildProcess:
        def on_exit(pid: int) -> None:
            self.book.ended(part.name, pid)
            # Its end was seen: it is not suspected to be dead, it is (R6).
            self._registry.evict(part.service, _runs_in(pid))

        return self._add(
            part,
            f"service {part.name!r}",
            spec=lambda port: self._spec(part, port=port),
            on_exit=on_exit,
            on_moved=lambda url: self._on_moved(part.name, url),
            stop_within_s=self._host.budget.services_s,
        )

    def _suspect(self, name: str, pid: int, is_suspect: bool) -> None:
        # Of a replica the registry knows the service.
        service = name.partition("#")[0]
        self._registry.suspect(service, _runs_in(pid), is_suspect=is_suspect)

    def _add(
        self,
        part: SystemPart,
        title: str,
        *,
        spec: Callable[[int], ProcessSpec],
        on_exit: Callable[[int], None],
        on_moved: Callable[[str], None],
        stop_within_s: float,
    ) -> ChildProcess:
        child = ChildProcess(
            title,
            spec=spec,
            launcher=self._launcher,
            log=self._host.rundir.telemetry / f"{part.name}.log",
            on_exit=on_exit,
            on_moved=on_moved,
            stop_within_s=stop_within_s,
            budget=self._host.budget,
        )
        name = _child_of(part)
        remote = self.remotes[part.name] = RemoteProcess(
            part,
            child,
            state=lambda: self._seen(name, child),
            revive=lambda: self._watching.restart(name, child.start),
            pool=self._host.pool,
            token=self._token,
        )
        self._host.admin.parts[part.name] = remote.why_not
        return child

    def _seen(self, name: str, child: ChildProcess) -> ChildStatus:
        """Return the supervisor's state of a process; "starting" before it was ready once."""
        state = self._watching.states.get(name)
        seen = ChildStatus("starting") if state is None else child_status(state)
        process = child.answering
        if process is None or not (silence := self._hangs.silence(process)):
            return seen
        part = name.removeprefix("service/")
        if by := self._host.rundir.blocked_by(part, process.pid):
            silence = f"{silence}; it is blocked by {by}"
        is_held = self._hangs.is_stopped(process.pid)
        return ChildStatus(STOPPED if is_held else SILENT, seen.restarts, silence)

    def _spec(self, part: SystemPart, *, port: int = 0, handle: int = -1) -> ProcessSpec:
        host = self._host
        if host.code is not None:
            host.code.started(part.service)
        # What the gateway reads of its own is as it is now; ConfigError where it cannot be read.
        now = self._reread() if part.is_gateway else host.config
        engine, copies = self.moves.taken(part.name)
        return ProcessSpec(
            name=part.name,
            config=replace(config_of_gateway(host.config, now), engine=engine),
            copies=copies,
            later=later_names(host.config, now),
            takes=self.book.taken(host.deps.subscribers()),
            key=key_text(self._keys),
            control=host.control_server.url,
            token=self._token,
            port=port,
            handle=handle,
            faults=host.local.faults.standing(wall_us=host.runtime.wall_us()),
            isolations=host.deps.isolations.standing,
        )

    def __repr__(self) -> str:
        return f"<Processes {', '.join(self.remotes) or 'not started'}>"


async def start_in_turn(child: ChildProcess, places: asyncio.Semaphore) -> None:
    """Start a process once there is a place, and keep that until it is ready, or migrates.

    How long it migrates nobody knows, and others are not to wait for that.
    """
    await places.acquire()
    with ExitStack() as place:
        place.callback(places.release)
        await child.start(on_migrates=place.close)


def _child_of(part: SystemPart) -> str:
    return part.name if part.is_gateway else f"service/{part.name}"


def _runs_in(pid: int) -> Callable[[Endpoint], bool]:
    return lambda endpoint: ("pid", pid_at_host(pid)) in endpoint.metadata


def _open_socket(host: str, port: int) -> socket:
    """Open the listening socket that successive gateway processes inherit.

    Clients that come before there is one wait in it.

    Raises:
        ConfigError: it cannot listen there.
    """
    family = AF_INET6 if ":" in host else AF_INET
    try:
        return create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror or error}; stop what "
            "listens there, or choose another [gateway] port, or 0 to take a free one"
        ) from error
