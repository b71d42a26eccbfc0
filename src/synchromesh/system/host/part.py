"""One part of a system that runs as a process of its own: a service, or the gateway.

Here is what it stands on, and what it does; the process around it is `process`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from synchromesh.calls import Caller
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Deps, ServiceInstance, Supervisor
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.host.gateway import ServedGateway
from synchromesh.system.leases_api.client import RemoteRegistry
from synchromesh.system.supervise.orders import ProcessOrders
from synchromesh.telemetry import SqliteRing, Tracer


@dataclass(frozen=True, slots=True)
class Ground:
    """What every process of a system stands on.

    Attributes:
        folder: of the system.
        ring: takes its spans.
        registry: finds the services.
        background: keeps its loops.
        exit: closes what is entered here when the process ends.
        fail: ends the process; told the loop that failed too often and its last error.
        loaded: says `Loaded` to the supervisor.
    """

    orders: ProcessOrders
    folder: Path
    runtime: DiskRuntime
    rundir: RunDir
    deps: Deps
    ring: SqliteRing
    registry: RemoteRegistry
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
