"""Starts the gateway in the process that a host runs.

This is imported by a process that serves the gateway, and by no other one: what a gateway is made
of is a quarter of the toolkit, and most processes of a system serve none.
"""

from __future__ import annotations

from synchromesh.discovery import Registry
from synchromesh.errors import ConfigError
from synchromesh.network import HandedNetwork
from synchromesh.service import Child
from synchromesh.system.config.parts import SystemPart
from synchromesh.system.config.schema import GATEWAY
from synchromesh.system.host.gateway_part import GatewayPart
from synchromesh.system.host.gateway_reload import GatewayReload
from synchromesh.system.host.host import Definitions, Host, Succeeds
from synchromesh.system.host.listed_gateway import ListedGateway
from synchromesh.system.host.securing import terminated
from synchromesh.system.host.service_part import Listening
from synchromesh.system.host.shared_keys import open_shared_keys


async def start_gateway(
    host: Host,
    own: SystemPart,
    definitions: Definitions,
    registry: Registry,
    succeeds: Succeeds | None,
) -> None:
    """Start the gateway of a system, and what runs beside it.

    Args:
        own: which one it is.
        registry: lists it, where operators find its processes there.
        succeeds: what this process inherits; None where it replaces none.

    Raises:
        ConfigError: there is no gateway, it cannot listen, or its keys have mistakes.
    """
    config, runtime, network = host.config, host.runtime, host.runtime.network
    if definitions.gateway is None:
        raise ConfigError("the system has no gateway; name one as [gateway] app")
    if succeeds is not None and succeeds.handle >= 0:
        network = HandedNetwork(succeeds.handle)
    tls = terminated(config, host.folder, runtime.wall_us() / 1e6)
    if tls is not None:
        network = network.secured(server=tls.context)
    made = definitions.gateway, config, host.rundir, runtime, host.deps.signer
    keys = await open_shared_keys(*made, host.exit)
    part = host.gateway = GatewayPart(
        definitions.gateway, host.deps, host.rundir, runtime.disk,
        config=config, tls=tls, keys=keys, name=own.name,
    )  # fmt: skip
    host.exit.push_async_callback(part.close)
    host.admin.parts[own.name] = part.why_not
    at = config.gateway.host or config.system.host, config.gateway.port
    await part.start(network, *at, definitions.entries)
    for child in part.loops():
        host.background.start(child)
    _note(host, part)
    local = host.local
    if definitions.code is not None:
        reload = GatewayReload(
            part, definitions.code, config, host.folder, host.deps, runtime,
            fits=host.fits, took=lambda: _note(host, part),
        )  # fmt: skip
        local.reload, local.reloaded = reload.reload, lambda: reload.last
    local.gateway_url = host.urls[own.name] = part.url
    if host.name:
        # Of a system in one process there is one.
        part.share(config.gateway.replicas)
    local.gateway_warnings, local.gateway_mirrors = part.warnings, part.mirrors
    if host.operated_at:
        listening = Listening(advertise=config.system.advertise, operated_at=host.operated_at)
        listed = ListedGateway(own, registry, listening, part)
        await listed.open(host.deps.signer, runtime.wall_us())
        host.exit.push_async_callback(listed.leave)
        host.background.start(Child("lease/gateway", listed.run))
        host.background.start(Child("gateway/rates", listed.follow))


def _note(host: Host, part: GatewayPart) -> None:
    """Take over what of a gateway may be another one after a reload."""
    host.local.clients[GATEWAY] = part.caller
    logs = "gateway/access log"
    if part.access is not None and logs not in host.background.states:
        host.background.start(Child(logs, part.access.run))
