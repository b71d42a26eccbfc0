"""The gateway of a system: checked before anything listens, served by a server of its own.

Its API keys are a file of the run directory, hashed, for this user alone; commands change it while
the system runs, and the gateway reads it again within a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from socket import AF_INET, AF_INET6, create_server, socket

from synchromesh.calls import Caller
from synchromesh.errors import ConfigError
from synchromesh.gateway import (
    Gateway,
    GatewayEngine,
)
from synchromesh.gateway.check import CompiledRoute
from synchromesh.http import HttpServer
from synchromesh.runtime import BACKLOG, DiskRuntime, Network
from synchromesh.system.config.gateway_keys import ApiKeysFile, own_keys_path
from synchromesh.system.config.rundir import RunDir
from synchromesh.telemetry import Tracer


class ServedGateway:
    """Serves the gateway of a system; `start`, then `drain`, then `close`.

    Args:
        network: where it listens.
        externals: the services that are not ours; they are not told who asks.
    """

    def __init__(
        self,
        definition: Gateway,
        *,
        caller: Caller,
        tracer: Tracer,
        runtime: DiskRuntime,
        rundir: RunDir,
        network: Network,
        externals: Iterable[str],
    ) -> None:
        self._definition = definition
        self._externals = frozenset(externals)
        self._caller = caller
        self._tracer = tracer
        self._runtime = runtime
        self._rundir = rundir
        self._network = network
        self._engine: GatewayEngine | None = None
        self._server: HttpServer | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where clients reach it; "" before it has started."""
        return self._url

    async def start(self, host: str, port: int, entries: Sequence[CompiledRoute]) -> None:
        """Read the keys and listen; a file of keys that is missing is made, with no keys in it.

        Args:
            entries: what `check_gateway` made of the definition.

        Raises:
            ConfigError: the keys have mistakes, or it cannot listen there.
        """
        for auth in self._definition.auth:
            path = own_keys_path(auth, self._rundir)
            if path is not None and not path.exists():
                ApiKeysFile(path, self._runtime.disk).write(())
        self._engine = await GatewayEngine.open(
            self._definition,
            caller=self._caller,
            tracer=self._tracer,
            runtime=self._runtime,
            folder=self._rundir.path,
            externals=self._externals,
            entries=entries,
        )
        self._server = HttpServer(self._engine, network=self._network, streaming=self._engine)
        await self._server.start(host, port)
        self._url = self._server.url

    async def run(self) -> None:
        """Keep the keys as their files are; a supervised loop."""
        assert self._engine is not None
        await self._engine.run()

    async def drain(self, within_s: float) -> None:
        """Take no more requests, and answer what was taken; what is left after that is cut."""
        if self._server is not None:
            await self._server.drain(within_s)

    async def close(self) -> None:
        """Stop listening, and end what verifies keys. May be repeated."""
        if self._server is not None:
            await self._server.close()
        if self._engine is not None:
            await self._engine.close()

    def __repr__(self) -> str:
        return f"<ServedGateway {len(self._definition.routes)} routes>"


def open_socket(host: str, port: int) -> socket:
    """Return a socket for the gateway's processes to accept on, whichever of them runs.

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
