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
    for package, extra, needed_for, is_needed in (
        ("asyncpg", "postgres", "[engine] postgres", bool(config.engine.postgres)),
        ("nats", "nats", "[engine] nats", bool(config.engine.nats)),
        ("joserfc", "jwt", "JWT", gateway is not None and _has_jwt(gateway)),
    ):
        if is_needed and not _is_installed(package):
            yield MissingExtra(extra, needed_for=needed_for)


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
