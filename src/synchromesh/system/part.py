"""One part of a system that runs as a process of its own: a service, or the gateway.

Here is what it is told by its supervisor, what it says, what it stands on, and what it does; the
process around it is `process`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from synchromesh.calls import Caller, FaultTable, Transport
from synchromesh.identity import Signer
from synchromesh.runtime import Runtime
from synchromesh.service import Service, ServiceInstance, Supervisor
from synchromesh.system.config import SystemConfig
from synchromesh.system.faults import ActiveFault
from synchromesh.system.gateway import ServedGateway
from synchromesh.system.remote_registry import RemoteRegistry
from synchromesh.system.rundir import RunDir
from synchromesh.telemetry import SqliteRing, Tracer

# The exit code of a process in which something failed too often; its last line says what.
FAILED = 3
FAILED_SAYS = "synchromesh: "


class ProcessOrders(msgspec.Struct, frozen=True):
    """What a process is told by its supervisor.

    Attributes:
        name: which service it is, or "gateway".
        config: of the whole system.
        key: signs every hop, in base64.
        control: the URL of the control socket, where the registry is.
        token: what the supervisor shows at the admin socket.
        port: where a service listens, if that is free; the configured port goes first.
        handle: the listening socket that the gateway is handed.
        faults: those in force when it was started.
    """

    name: str
    config: SystemConfig
    key: str
    control: str
    token: str
    port: int = 0
    handle: int = -1
    faults: tuple[ActiveFault, ...] = ()

    def __repr__(self) -> str:
        return f"<Orders {self.name} by {self.control}>"  # neither the key nor the token


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Tells that it starts as soon as the process before it has let go of what both need."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Tells that it answers: the port of its admin socket, and where it is reached itself."""

    admin: int
    url: str


class StartFailed(msgspec.Struct, frozen=True, tag="unready"):
    """Tells why it could not be started."""

    message: str


@dataclass(frozen=True, slots=True)
class Ground:
    """What every process of a system stands on.

    Attributes:
        folder: of the system.
        services: the definitions of all.
        ring: takes its spans.
        registry: finds the services.
        transports: reach them; faults do not strike on them yet.
        background: keeps its loops.
        exit: closes what is entered here when the process ends.
        fail: ends the process; told the loop that failed too often and its last error.
        loaded: says `Loaded` to the supervisor.
    """

    orders: ProcessOrders
    folder: Path
    runtime: Runtime
    rundir: RunDir
    services: tuple[Service, ...]
    signer: Signer
    ring: SqliteRing
    registry: RemoteRegistry
    transports: Mapping[str, Transport]
    faults: FaultTable
    background: Supervisor
    exit: AsyncExitStack
    fail: Callable[[str, BaseException], None]
    loaded: Callable[[], None]


class Part(Protocol):
    """What a process is there for; `start`, then `open`, then `drain`."""

    @property
    def caller(self) -> Caller:
        """Makes its calls, once it has started."""
        ...

    @property
    def tracer(self) -> Tracer:
        """Takes its spans, once it has started."""
        ...

    @property
    def instances(self) -> Mapping[str, ServiceInstance]:
        """The service that it is, by its name; none of the gateway."""
        ...

    @property
    def gateway(self) -> ServedGateway | None:
        """The gateway; None of a service."""
        ...

    async def start(self) -> None:
        """Make all ready, so that nothing is left but to be known."""
        ...

    async def open(self) -> str:
        """Be there for those who call it; return its URL."""
        ...

    async def drain(self) -> None:
        """Be known no more, and answer what was taken."""
        ...
