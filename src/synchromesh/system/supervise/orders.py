"""What a process of a system is told by its supervisor, and what it says: one line of JSON each."""

from __future__ import annotations

import msgspec

from synchromesh.system.config.schema import SystemConfig

# The exit code of a process in which something failed too often; its last line says what.
FAILED = 3
FAILED_SAYS = "synchromesh: "


class ActiveFault(msgspec.Struct, frozen=True):
    """A fault in force, as a process that starts later is told of it; `until_us` is wall clock."""

    target: str
    errors: float
    latency_s: float
    is_stall: bool
    until_us: int | None


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
