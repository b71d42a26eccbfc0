"""What a configuration needs beside the toolkit itself: it is looked for before anything starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from synchromesh.errors import ConfigError, MissingExtra, SynchromeshError
from synchromesh.gateway import JWT, Gateway
from synchromesh.gateway.arguments import sound
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.host.asgi_servers import find_server
from synchromesh.system.host.loops import loop_factory


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
        try:
            find_server(config.services[name].server, name)
        except ConfigError as error:
            yield error
    # What of its definition is of the wrong kind is named by another check.
    auth = () if gateway is None else sound(gateway)[0].auth
    needs_jwt = any(isinstance(each, JWT) for each in auth)
    for package, extra, needed_for, is_needed in (
        ("asyncpg", "postgres", "[engine] postgres", bool(config.engine.postgres)),
        ("nats", "nats", "[engine] nats", bool(config.engine.nats)),
        ("joserfc", "jwt", "JWT", needs_jwt),
    ):
        if is_needed and not _is_installed(package):
            yield MissingExtra(extra, needed_for=needed_for)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # it is kept from being imported
        return False
