"""Messages between a supervisor, its child processes and its fork server: JSON."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import msgspec

from synchromesh.calls import Isolation
from synchromesh.system.config.schema import SystemConfig

# The exit code of a process in which something failed too often; its last line says what.
FAILED = 3
FAILED_SAYS = "synchromesh: "


class ActiveFault(msgspec.Struct, frozen=True):
    """An injected fault, passed to a process that starts later; `until_us` is wall clock.

    `who` has put it in force, and `why`; "" where it was not said.
    """

    target: str
    errors: float
    latency_s: float
    is_stall: bool
    until_us: int | None
    who: str = ""
    why: str = ""


def key_text(keys: Iterable[bytes]) -> str:
    """Return keys as a spec has them: in base64, commas between them.

    Example:
        >>> key_text([b"a", b"b"])
        'YQ==,Yg=='
    """
    return ",".join(base64.b64encode(each).decode() for each in keys)


class CopyOrder(msgspec.Struct, frozen=True):
    """Has a process take its service's SQLite file to the server before it opens a database.

    Attributes:
        at_us: when it was asked for.
    """

    at_us: int
    who: str
    why: str


class ProcessSpec(msgspec.Struct, frozen=True):
    """The spec of a child process: what to run, and how to reach its supervisor.

    Attributes:
        name: which service it is, or which of its replicas, or "gateway".
        config: of the whole system.
        key: signs every hop, in base64; behind a comma one that is accepted beside it.
        control: the URL of the supervisor's control socket, where the registry is, unless that is
            on NATS; "" where the process has no supervisor.
        token: what the supervisor shows at the admin socket.
        port: where a service listens, if that is free; the configured port goes first.
        handle: the listening socket that the gateway is handed.
        faults: those in force when it was started.
        isolations: the edges that are isolated by hand then.
        later: the sections of who is configured and not in the system that runs, by name.
        takes: the public events that each service takes, as the supervisor knows it: for where
            the code of one cannot be imported.
        copies: what it does before it serves; None where its database is where it was.
    """

    name: str
    config: SystemConfig
    key: str
    control: str
    token: str
    port: int = 0
    handle: int = -1
    faults: tuple[ActiveFault, ...] = ()
    isolations: tuple[Isolation, ...] = ()
    later: dict[str, str] = {}
    takes: dict[str, frozenset[str]] = {}
    copies: CopyOrder | None = None

    def __repr__(self) -> str:
        return f"<ProcessSpec {self.name} by {self.control}>"  # neither the key nor the token


class Migrates(msgspec.Struct, frozen=True, tag="migrates"):
    """Reports that it migrates or copies a database, which takes as long as its rows make it."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Reports that the process starts once its predecessor has released what both need."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Reports that the process is ready.

    Attributes:
        control: the port of its control API.
        url: its own.
        admin: the URL of its admin listener.
        copied: what became of a `CopyOrder`, a `CopiedService` as JSON has it.
    """

    control: int
    url: str
    admin: str
    copied: dict[str, Any] | None = None


class StartFailed(msgspec.Struct, frozen=True, tag="unready"):
    """Reports why the process could not be started."""

    message: str


class ForkRequest(msgspec.Struct, frozen=True):
    """Asks the fork server for a process; with it go its link, its log and maybe a socket.

    Attributes:
        handle: the number by which the process knows that socket; -1 for none.
    """

    handle: int = -1


class Forked(msgspec.Struct, frozen=True, tag="forked"):
    """Answers with the id of the new process."""

    pid: int


class NotForked(msgspec.Struct, frozen=True, tag="not_forked"):
    """Answers why a fork would not be what a new interpreter is."""

    reason: str


class Exited(msgspec.Struct, frozen=True, tag="exited"):
    """Reports the end of a forked process; `code` is negative for a signal."""

    pid: int
    code: int
