"""What a configuration needs so that its parts may run anywhere, each as a process of its own.

Nobody starts them together: they find each other in a registry on NATS, believe each other by one
key, and none has a file that another one needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from synchromesh.errors import ConfigError
from synchromesh.service import Service
from synchromesh.system.config.parts import SystemPart, parts_of
from synchromesh.system.config.schema import GATEWAY, SystemConfig


def check_spread(config: SystemConfig, services: Sequence[Service]) -> None:
    """Check that the parts of a system may run apart from each other.

    Raises:
        ConfigError: they could not find or believe each other, or need what only `dev` starts.
    """
    if not config.engine.nats:
        raise ConfigError(
            "replicas that nobody starts together find each other on NATS; write "
            '[engine] nats = "env:NATS_URL", or run the whole system here: synchromesh dev'
        )
    if not config.system.key:
        raise ConfigError(
            "all replicas need one key, which none can make for the others; write "
            '[system] key = "env:SYSTEM_KEY", and make one with: openssl rand -hex 32'
        )
    for service in services:
        if service.state and not config.engine.is_on_server(service.name):
            raise ConfigError(
                f"{service.name!r} has {'; '.join(service.state)}: its database would be a file "
                'of whichever host it runs on; write [engine] postgres = "env:DATABASE_URL", and '
                "leave it out of [engine] sqlite"
            )
    for name, external in config.external.items():
        if external.command:
            raise ConfigError(
                f"[external.{name}] is a command, which only synchromesh dev starts; run it by "
                "itself, and write its url there"
            )


def alone(config: SystemConfig, name: str, node: str) -> tuple[SystemConfig, SystemPart]:
    """Return the configuration of a process that runs one replica, and which part that is.

    Args:
        name: a service, one of its replicas by number where several run on a host, or "gateway".
        node: the name of the host, where the configuration has none.

    Raises:
        ConfigError: the system has no such part.
    """
    services = config.services
    if name in services:
        # How many there are, is up to whoever starts them.
        services = {**services, name: msgspec.structs.replace(services[name], replicas=1)}
    system = msgspec.structs.replace(config.system, node=config.system.node or node)
    gateway = config.gateway
    if name == GATEWAY:
        gateway = msgspec.structs.replace(gateway, replicas=1)
    changed = msgspec.structs.replace(config, system=system, services=services, gateway=gateway)
    found = [part for part in parts_of(changed, name) if part.name == name]
    if not found or (found[0].is_gateway and not config.gateway.app):
        known = [*config.services, *([GATEWAY] if config.gateway.app else [])]
        raise ConfigError(f"{name!r} is no part of this system, which has {', '.join(known)}")
    ports = {name: config.admin.ports.get(name, config.admin.port)}
    admin = msgspec.structs.replace(config.admin, ports=ports)
    return msgspec.structs.replace(changed, admin=admin), found[0]
