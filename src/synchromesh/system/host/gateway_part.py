"""The gateway part of a process, with a server of its own.

Where it is a process of its own, its socket is its supervisor's: the process is handed it, and
neither its end nor its replacement closes it. Clients wait in the backlog meanwhile, and none is
refused.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, create_server, socket
from typing import TYPE_CHECKING

from msgspec import convert, to_builtins

from synchromesh.errors import ConfigError
from synchromesh.gateway import Gateway, GatewayEngine
from synchromesh.gateway.access_log import AccessLog
from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.engine import REREAD_EVERY_S
from synchromesh.gateway.health import HealthDoor
from synchromesh.gateway.opening import all_opened
from synchromesh.gateway.origin import Origins, read_proxies
from synchromesh.gateway.state import GatewayState
from synchromesh.gateway.traffic import GatewayCounts
from synchromesh.http import HttpServer
from synchromesh.network import BACKLOG, HANDSHAKE_S, Network
from synchromesh.runtime import Disk
from synchromesh.service import Deps
from synchromesh.system.config.gateway_keys import ApiKeysFile, folders_of, own_keys_path
from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.control.mirror_status import DifferentStatus, MirrorStatus
from synchromesh.system.host.access_file import AccessFile

if TYPE_CHECKING:
    from synchromesh.tls import ServerTls

# Of the time of a drain; the rest is for what comes last.
_IDLE_SHARE = 2 / 3
# How long a connection may bring one request more once the authorities of clients have changed.
_RENEWED_WITHIN_S = 2.0


class GatewayPart:
    """Serves the gateway of a system; `start`, then `drain`, then `close`.

    Args:
        rundir: where its keys are.
        config: of the system; its externals are not told who asks.
        tls: what the network it listens on proves itself by; None for plain HTTP.

    Attributes:
        caller: sends its calls.
        access: writes the access log; None where there is none.
    """

    def __init__(
        self,
        definition: Gateway,
        deps: Deps,
        rundir: RunDir,
        disk: Disk,
        *,
        config: SystemConfig,
        tls: ServerTls | None = None,
    ) -> None:
        self._tls = tls
        self._definition = definition
        self._deps = deps
        self._rundir = rundir
        self._disk = disk
        self._externals = frozenset(config.external)
        self._limits = config.gateway.clients.compile()
        self._health = config.gateway.health
        self._is_draining = False
        self._access_share = config.gateway.access_share()
        self.access: AccessFile | None = None
        self._origins = Origins(
            read_proxies(config.gateway.trusted_proxies),
            by=config.gateway.forwarded_by or "x-forwarded",
            scheme="http" if tls is None else "https",
        )
        self._tracer = deps.tracer(GATEWAY)
        self.caller = deps.caller(GATEWAY, self._tracer)
        self._engine: GatewayEngine | None = None
        self._server: HttpServer | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The gateway's URL; "" before it has started."""
        return self._url

    async def start(
        self, network: Network, host: str, port: int, entries: Sequence[CompiledRoute]
    ) -> None:
        """Load the keys and start listening; a missing file of keys is created empty.

        Args:
            entries: what `check_gateway` made of the definition.

        Raises:
            ConfigError: the keys have mistakes, or it cannot listen there.
        """
        for auth in self._definition.auth:
            path = own_keys_path(auth, self._rundir)
            if path is not None and not path.exists():
                ApiKeysFile(path, self._disk).write(())
        runtime = self._deps.runtime
        engine = self._engine = GatewayEngine(
            self._definition,
            caller=self.caller,
            tracer=self._tracer,
            authenticators=await all_opened(
                self._definition.auth, folders_of(self._rundir), runtime
            ),
            externals=self._externals,
            origins=self._origins,
            entries=entries,
            state=GatewayState.of(self._definition, entries, self._open_log()),
        )
        door = HealthDoor(engine, self._health, lambda: not self._is_draining)
        server = self._server = HttpServer(
            door if self._health else engine,
            network=network,
            limits=self._limits,
            streaming=door if self._health else engine,
            client_of=self._origins.counted_for,
            refused=engine.note_refused,
            wall_us=runtime.wall_us,
        )
        await server.start(host, port)
        self._url = server.url

    async def run(self) -> None:
        """Read keys and certificates again when their files change; a supervised loop."""
        assert self._engine is not None
        assert self._server is not None
        loop, tls = asyncio.get_running_loop(), self._tls
        again_s = math.inf
        while True:
            self._engine.refresh()
            if tls is not None:
                before = tls.authorities
                tls.refresh(now_s=self._deps.runtime.wall_us() / 1e6)
                is_due = loop.time() >= again_s
                if tls.authorities != before or is_due:
                    # Clients of an authority that was withdrawn are let go of, with all others: and
                    # once more, those whose handshake had begun before.
                    again_s = math.inf if is_due else loop.time() + HANDSHAKE_S + REREAD_EVERY_S
                    self._server.renew(_RENEWED_WITHIN_S)
            await asyncio.sleep(REREAD_EVERY_S)

    def _open_log(self) -> AccessLog | None:
        if not self._access_share:
            return None
        runtime = self._deps.runtime
        log = AccessLog(self._access_share, runtime.rng, runtime.wall_us, self._origins)
        self.access = AccessFile(log, self._rundir.telemetry / "access.jsonl")
        return log

    def snapshot(self) -> GatewayCounts | None:
        """Return what became of the requests so far, by route; None before it has started."""
        return None if self._engine is None else self._engine.snapshot()

    def mirrors(self) -> list[MirrorStatus]:
        """Return what has come of the copies of requests, by route."""
        if self._engine is None:
            return []
        return [
            MirrorStatus(
                route=entry.name,
                first=entry.passage.to,
                to=entry.mirror.passage.to,
                **to_builtins(book.counts),
                in_flight=book.in_flight,
                last_failure=book.last_failure,
                kept=convert(book.kept, list[DifferentStatus], from_attributes=True),
            )
            for entry in self._engine.entries
            if entry.mirror is not None and entry.passage is not None
            for book in (self._engine.state.mirrors[entry.name],)
        ]

    def why_not(self) -> str:
        """Return why it takes no requests; "" where it takes them."""
        if self._is_draining:
            return "it drains"
        return "" if self._url else "it does not run"

    def warnings(self) -> list[str]:
        """Return what a person should know of it, in words."""
        if self._tls is None:
            return []
        warning = self._tls.warning(now_s=self._deps.runtime.wall_us() / 1e6)
        return [f"gateway: {warning}"] if warning else []

    async def drain(self, within_s: float) -> None:
        """Finish accepted requests, and cut what is left at the deadline.

        For two thirds of the time each connection may bring one request more: a client that is
        about to send it could not know whether it was run.
        """
        self._is_draining = True
        if self._server is not None:
            await self._server.drain(within_s, idle_s=within_s * _IDLE_SHARE)

    async def close(self) -> None:
        """Stop listening, and stop the worker that verifies keys. May be repeated."""
        if self._server is not None:
            await self._server.close()
        if self._engine is not None:
            await self._engine.close()
        if self.access is not None:
            self.access.close()

    def __repr__(self) -> str:
        return f"<GatewayPart {len(self._definition.routes)} routes>"


def open_socket(host: str, port: int) -> socket:
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
