"""The gateway of a system as what a process is there for.

Its socket is its supervisor's: the process is handed it, and neither its end nor its replacement
closes it. Clients wait in the backlog meanwhile, and none is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from synchromesh.calls import Caller
from synchromesh.errors import ConfigError
from synchromesh.gateway.check import CompiledRoute
from synchromesh.runtime import HandedNetwork
from synchromesh.service import Child, ServiceInstance
from synchromesh.system.config.definitions import load_gateway
from synchromesh.system.config.gateway_check import check_gateway
from synchromesh.system.config.schema import GATEWAY
from synchromesh.system.host.gateway import ServedGateway
from synchromesh.system.host.part import Ground
from synchromesh.telemetry import Tracer

# Longer than the deadline that routes have by default; one that is replaced may take it. Together
# with what else has to end it stays below `child_process.REPLACED_WITHIN_S`.
ANSWER_WITHIN_S = 7.5


class GatewayPart:
    """Serves the gateway on the socket that its supervisor holds."""

    def __init__(self, ground: Ground) -> None:
        config = ground.orders.config
        definition = load_gateway(config, ground.folder)
        if definition is None:
            raise ConfigError("the system has no gateway; name one as [gateway] app")
        self._ground = ground
        self._definition = definition
        self._entries: tuple[CompiledRoute, ...] = ()
        self.instances: Mapping[str, ServiceInstance] = {}
        self.tracer: Tracer = ground.deps.tracer(GATEWAY)
        self.caller: Caller = ground.deps.caller(GATEWAY, self.tracer)
        self.gateway = ServedGateway(
            definition,
            caller=self.caller,
            tracer=self.tracer,
            runtime=ground.runtime,
            rundir=ground.rundir,
            network=HandedNetwork(ground.orders.handle),
            externals=config.external,
        )

    async def start(self) -> None:
        """Check the definition, which may be another one than that of the process before.

        Raises:
            ConfigError: there are mistakes; the message names them all.
        """
        ground = self._ground
        self._entries = await check_gateway(
            self._definition, ground.orders.config, ground.rundir, ground.runtime
        )

    async def open(self) -> str:
        """Serve what waits in the backlog, and what comes."""
        ground, config = self._ground, self._ground.orders.config
        ground.exit.push_async_callback(self.gateway.close)
        await self.gateway.start(config.system.host, config.gateway.port, self._entries)
        ground.background.start(Child("gateway/keys", self.gateway.run))
        return self.gateway.url

    async def drain(self) -> None:
        """Take no more requests, and answer what was taken."""
        await self.gateway.drain(ANSWER_WITHIN_S)

    def __repr__(self) -> str:
        return f"<GatewayPart {self.gateway!r}>"
