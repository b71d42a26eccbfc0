"""What a configuration needs beside the toolkit itself: it is looked for before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from synchromesh.errors import ConfigError, MissingExtra, SynchromeshError
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.host.loops import loop_factory

if TYPE_CHECKING:
    from synchromesh.gateway import Gateway
    from synchromesh.service import Service


def refuse_missing(
    config: SystemConfig, applications: Iterable[str], gateway: Gateway | None
) -> None:
    """Refuse a configuration of which packages are not installed, with what installs each.

    Nothing is imported. Types with `Personal` fields say so where they are declared.

    Args:
        applications: the services that are ASGI applications.

    Raises:
        MissingExtra, ConfigError: one is missing; of several a ConfigError names all.
    """
    missing = [*_missing(config, applications, gateway)]
    if len(missing) == 1:
        raise missing[0]
    if missing:
        raise ConfigError("\n".join(each.message for each in missing))


def _missing(
    config: SystemConfig, applications: Iterable[str], gateway: Gateway | None
) -> Iterator[SynchromeshError]:
    try:
        loop_factory(config.system.loop)
    except MissingExtra as error:
        yield error
    for name in applications:
        from synchromesh.system.host.asgi_servers import find_server

        try:
            find_server(config.services[name].server, name)
        except ConfigError as error:
            yield error
    for package, extra, needed_for in _needed(config, gateway):
        if not _is_installed(package):
            yield MissingExtra(extra, needed_for=needed_for)


def needed_extras(
    config: SystemConfig, services: Iterable[Service], gateway: Gateway | None
) -> set[str]:
    """Return the extras of Synchromesh without which this system does not start."""
    extras = {extra for _, extra, _ in _needed(config, gateway)}
    if any(service.is_personal for service in services):
        extras.add("personal")
    if any(each.discover is not None and each.discover.srv for each in config.external.values()):
        extras.add("dns")
    return extras


def _needed(config: SystemConfig, gateway: Gateway | None) -> Iterator[tuple[str, str, str]]:
    """Yield each package that is needed, its extra, and what needs it."""
    if config.engine.postgres:
        yield "asyncpg", "postgres", "[engine] postgres"
    if config.engine.nats:
        yield "nats", "nats", "[engine] nats"
    if gateway is not None and _has_jwt(gateway):
        yield "joserfc", "jwt", "JWT"


def _has_jwt(gateway: Gateway) -> bool:
    from synchromesh.gateway import JWT
    from synchromesh.gateway.arguments import sound

    # What of its definition is of the wrong kind is named by another check.
    return any(isinstance(each, JWT) for each in sound(gateway)[0].auth)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it is kept from being imported
        return False
