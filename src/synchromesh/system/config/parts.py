"""The names of what runs: each service and the gateway, or each of their replicas."""

from __future__ import annotations

from dataclasses import dataclass

from synchromesh.system.config.schema import GATEWAY, SystemConfig


@dataclass(frozen=True, slots=True)
class SystemPart:
    """What is started, restarted and shown by itself.

    Attributes:
        name: the service's, "gateway", or, of one of several replicas, its instance's.
        service: whose instance it is; "gateway" for the gateway.
        instance: the name that the registry lists it by, such as "quoting#2", or "quoting#2@NODE"
            where the host has a name of its own.

    Example:
        >>> SystemPart("quoting#2", "quoting", "quoting#2").is_named("quoting")
        True
    """

    name: str
    service: str
    instance: str

    @property
    def is_gateway(self) -> bool:
        """Whether it is a gateway."""
        return self.service == GATEWAY

    def is_named(self, name: str) -> bool:
        """Return whether a service's name, or an instance's, means this one, too."""
        return name in (self.service, self.instance, self.instance.partition("@")[0])


def gateways_left_out(config: SystemConfig) -> str:
    """Return what to say of gateways that a system of one process does not run; "" for none."""
    replicas = config.gateway.replicas
    if replicas == 1 or not config.gateway.app:
        return ""
    return f"one of the {replicas} gateways ([gateway] replicas) runs without --split"


def parts_of(config: SystemConfig, name: str) -> tuple[SystemPart, ...]:
    """Return the parts that run a service, or the one of that name; none for another name."""
    at = f"@{config.system.node}" if config.system.node else ""
    service = name.partition("#")[0]
    section = config.gateway if service == GATEWAY else config.services.get(service)
    if section is None:
        return ()
    if section.replicas == 1:
        first = service if service == GATEWAY else f"{service}#1"
        parts = [SystemPart(service, service, f"{first}{at}")]
    else:
        names = [f"{service}#{number}" for number in range(1, section.replicas + 1)]
        parts = [SystemPart(each, service, f"{each}{at}") for each in names]
    return tuple(part for part in parts if part.is_named(name))
