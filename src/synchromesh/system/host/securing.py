"""TLS of a system: to external services, and at the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from synchromesh.errors import ConfigError
from synchromesh.network import Network
from synchromesh.system.config.schema import SystemConfig

if TYPE_CHECKING:
    from synchromesh.tls import ClientFiles, ServerTls


def secured_network(config: SystemConfig, folder: Path, network: Network) -> Network | None:
    """Return the network by which https:// URLs are reached; None where there are none.

    Raises:
        ConfigError: a file of certificates is missing or wrong; the message names the section.
    """
    special: dict[tuple[str, int], ClientFiles] = {}
    for name in _secured(config):
        files = _shown_to(name, config, folder)
        for url in config.external[name].addresses:
            parts = urlsplit(url)
            special[parts.hostname or "", parts.port or 443] = files
    if not special:
        return None
    from synchromesh.tls import ClientContexts

    return network.secured(client=ClientContexts(special))


def terminated(config: SystemConfig, folder: Path, now_s: float) -> ServerTls | None:
    """Return what the gateway proves itself by; None where it serves plain HTTP.

    Raises:
        ConfigError: a file is missing or wrong, or the certificate has expired.
    """
    files = config.gateway.tls.files(folder)
    if files is None:
        return None
    from synchromesh.tls import ServerTls

    try:
        return ServerTls(files, now_s=now_s)
    except ConfigError as error:
        raise ConfigError(f"[gateway] tls: {error.message}") from error


def tls_mistakes(config: SystemConfig, folder: Path, now_s: float) -> Iterator[str]:
    """Yield what a start would refuse about files of certificates, a sentence each."""
    tries: list[Callable[[], object]] = [
        partial(_shown_to, name, config, folder) for name in _secured(config)
    ]
    if config.gateway.app:
        tries.append(partial(terminated, config, folder, now_s))
    for each in tries:
        try:
            each()
        except ConfigError as error:
            yield error.message


def _secured(config: SystemConfig) -> list[str]:
    return [
        name
        for name, each in config.external.items()
        if any(url.startswith("https://") for url in each.addresses)
    ]


def _shown_to(name: str, config: SystemConfig, folder: Path) -> ClientFiles:
    """Return the files for an external service, which have been tried."""
    from synchromesh.tls import client_context

    files = config.external[name].tls.files(folder)
    try:
        client_context(files)
    except ConfigError as error:
        raise ConfigError(f"[external.{name}] tls: {error.message}") from error
    return files
