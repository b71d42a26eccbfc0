"""The parts of a system as somebody else is to run them: what all the exports are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from synchromesh.errors import ConfigError
from synchromesh.service import Service
from synchromesh.system.config.layers import secret_references
from synchromesh.system.config.schema import GATEWAY, SystemConfig
from synchromesh.system.config.spread import check_spread

ADMIN_PORT, GATEWAY_PORT = 9100, 8080
GATEWAY_REPLICAS = 2
# Of a name of Kubernetes, to which a suffix may come.
_NAME_MAX = 48


@dataclass(frozen=True, slots=True)
class DeployedPart:
    """A service or the gateway, of which some replicas are run.

    Attributes:
        name: as `synchromesh run` takes it.
        label: its name elsewhere, with the system's: a DNS label.
        replicas: how many are run.
        admin_port: where a replica is asked for its health, where it has a host of its own.
        settings: variables that it is given.
        secrets: the names of variables that it is given from where secrets are kept.
    """

    name: str
    label: str
    replicas: int
    admin_port: int
    settings: dict[str, str]
    secrets: tuple[str, ...]

    @property
    def is_gateway(self) -> bool:
        """Whether it is the one that clients come to."""
        return self.name == GATEWAY


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """What is to be run.

    Attributes:
        system: the name of the system as a DNS label.
        image: the image that all containers run.
        parts: the services, then the gateway.
        gateway_port: where the gateway listens.
        stop_s: how long a replica may take to stop.
        postgres, nats: the variables that have the addresses of the servers; "" for another place.
        files: the secrets that are files, which whoever runs the system has to bring, by setting.
        has_database: whether there are databases to create.
        extras: those of Synchromesh that it needs.
        is_admin_by_tls: whether a replica is asked for its health by TLS.
    """

    system: str
    image: str
    parts: tuple[DeployedPart, ...]
    gateway_port: int
    stop_s: int
    postgres: str
    nats: str
    files: dict[str, str]
    has_database: bool
    extras: frozenset[str] = frozenset()
    is_admin_by_tls: bool = False

    @property
    def secrets(self) -> tuple[str, ...]:
        """The variables that have a secret, of all parts."""
        return tuple(sorted({name for part in self.parts for name in part.secrets}))


def plan_of(
    config: SystemConfig,
    services: Sequence[Service],
    *,
    image: str,
    stop_s: float,
    extras: Iterable[str] = (),
) -> DeploymentPlan:
    """Return what is to be run of a system, which needs some extras of Synchromesh.

    Raises:
        ConfigError: its parts cannot be run apart, or two would have one name.
    """
    check_spread(config, services)
    system = _label(config.system.name)
    references = secret_references(config)
    names = [*config.services, *([GATEWAY] if config.gateway.app else [])]
    parts = tuple(_part(config, system, name, references) for name in names)
    labels = [part.label for part in parts]
    if twice := {each for each in labels if labels.count(each) > 1}:
        raise ConfigError(
            f"two parts would be called {', '.join(sorted(twice))} elsewhere, where names have "
            "neither capitals nor _; name one of them otherwise"
        )
    return DeploymentPlan(
        system,
        image or f"{system}:latest",
        parts,
        gateway_port=config.gateway.port or GATEWAY_PORT,
        stop_s=int(stop_s) + 1,
        postgres=_variable(config.engine.postgres),
        nats=_variable(config.engine.nats),
        files={name: text for name, text in references.items() if not _variable(text)},
        has_database=any(service.state for service in services),
        extras=frozenset(extras),
        is_admin_by_tls=config.admin.tls,
    )


def _part(config: SystemConfig, system: str, name: str, references: dict[str, str]) -> DeployedPart:
    is_gateway, ports = name == GATEWAY, config.admin.ports
    settings = {}
    if not ports.get(name):
        settings["SYNCHROMESH_ADMIN__PORT"] = str(config.admin.port or ADMIN_PORT)
    if is_gateway and not config.gateway.port:
        settings["SYNCHROMESH_GATEWAY__PORT"] = str(GATEWAY_PORT)
    # What only the gateway asks for, no service is given.
    secrets = {
        _variable(text)
        for setting, text in references.items()
        if is_gateway or not setting.startswith("gateway.")
    }
    return DeployedPart(
        name,
        _label(f"{system}-{name}"),
        max(GATEWAY_REPLICAS, config.gateway.replicas)
        if is_gateway
        else config.services[name].replicas,
        ports.get(name) or config.admin.port or ADMIN_PORT,
        settings,
        tuple(sorted(secrets - {""})),
    )


def _variable(reference: str) -> str:
    kind, _, name = reference.partition(":")
    return name if kind == "env" else ""


def _label(name: str) -> str:
    """Return a name as a DNS label: small letters, digits and "-", and a letter first."""
    label = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not label or not label[0].isalpha() or len(label) > _NAME_MAX:
        raise ConfigError(
            f"{name!r} makes no name elsewhere; use one that begins with a letter, and is at most "
            f"{_NAME_MAX} characters long together with the system's"
        )
    return label
