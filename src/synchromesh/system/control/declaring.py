"""What the code and configuration of a system declare of who depends on whom."""

from __future__ import annotations

from pathlib import Path

from synchromesh.calls import operations_of
from synchromesh.gateway.outlining import outline
from synchromesh.system.config.definitions import load_gateway, load_services
from synchromesh.system.config.expectations import imported_contracts
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.control.blast import Declarations


def declared_of(config: SystemConfig, folder: Path) -> Declarations:
    """Import the services and the gateway of a system, and return what they declare.

    Raises:
        ConfigError: something is missing or wrong.
    """
    services = load_services(config, folder)
    gateway = load_gateway(config, folder)
    return Declarations(
        services=tuple(config.services),
        externals=tuple(config.external),
        routes=() if gateway is None else outline(gateway),
        sagas={
            each.name: tuple(dict.fromkeys(saga.name for saga in each.sagas)) for each in services
        },
        imports={name: _imported(section.app) for name, section in config.services.items()},
        takes={each.name: tuple(each.subscriptions) for each in services},
    )


def _imported(app: str) -> frozenset[str]:
    """Return the services whose contracts the module of a service imports."""
    contracts = imported_contracts(app.partition(":")[0])
    return frozenset(op.service for each in contracts for op in operations_of(each).values())
