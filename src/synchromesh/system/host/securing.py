"""TLS of a system: to external services, and at the gateway."""

from __future__ import annotations

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
    secured = {
        name: each for name, each in config.external.items() if each.url.startswith("https://")
    }
    if not secured:
        return None
    from synchromesh.tls import ClientContexts, client_context

    for name, external in secured.items():
        parts = urlsplit(external.url)
        files = special[parts.hostname or "", parts.port or 443] = external.tls.files(folder)
        try:
            client_context(files)
        except ConfigError as error:
            raise ConfigError(f"[external.{name}] tls: {error.message}") from error
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
