"""TLS of a system: between its services, to external services, and at the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from synchromesh.calls import HttpTransport, Transport
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool, PoolLimits
from synchromesh.network import Network, RealNetwork
from synchromesh.runtime import Runtime
from synchromesh.service import Child, Supervisor
from synchromesh.system.config.schema import SystemConfig

if TYPE_CHECKING:
    from synchromesh.system.config.tls_sections import SystemTlsSection
    from synchromesh.tls import ClientContexts, ClientFiles, ServerFiles, ServerTls

REREAD_EVERY_S = 1.0


class SystemTls:
    """What the services of a process prove themselves by to others, and others to them.

    Args:
        server: what listeners are secured by; None for plain ones.
        client: what https:// URLs are reached by; None where there are none.

    Attributes:
        outside: the network by which https:// URLs are reached; None where there are none.
        inside: the network that services listen on.
        watched: the network that an admin listener by TLS listens on; who asks shows nothing.
    """

    def __init__(
        self,
        network: Network,
        server: ServerTls | None,
        client: ClientContexts | None,
        watched: ServerTls | None = None,
    ) -> None:
        self._server, self._client, self._watched = server, client, watched
        self.outside = None if client is None else network.secured(client=client)
        self.inside = network if server is None else network.secured(server=server.context)
        self.watched = network if watched is None else network.secured(server=watched.context)

    @property
    def has_files(self) -> bool:
        """Whether it has files that may change."""
        return self._server is not None

    def warning(self, now_s: float) -> str:
        """Return what a person should know of the certificate; "" where that is nothing."""
        return "" if self._server is None else self._server.warning(now_s=now_s)

    async def run(self, wall_us: Callable[[], int]) -> None:
        """Read the files again when they change; a supervised loop."""
        assert self._server is not None
        assert self._client is not None
        while True:
            await asyncio.sleep(REREAD_EVERY_S)
            for each in (self._server, self._watched):
                if each is not None:
                    each.refresh(now_s=wall_us() / 1e6)
            self._client.refresh()


def system_tls(config: SystemConfig, folder: Path, network: Network, now_s: float) -> SystemTls:
    """Return what secures the calls of a process.

    Raises:
        ConfigError: a file of certificates is missing or wrong; the message names the section.
    """
    section, special = config.system.tls, _special(config, folder)
    files = section.client(folder)
    if not special and files is None:
        return SystemTls(network, None, None)
    from synchromesh.tls import ClientContexts, ServerTls

    if files is None:
        return SystemTls(network, None, ClientContexts(special))
    try:
        own = _own(section, folder)
        watched = replace(own, client_ca=None)
        return SystemTls(
            network,
            ServerTls(own, now_s=now_s),
            ClientContexts(special, files),
            ServerTls(watched, now_s=now_s) if config.admin.tls else None,
        )
    except ConfigError as error:
        raise ConfigError(f"[system] tls: {error.message}") from error


def open_https(
    config: SystemConfig,
    folder: Path,
    runtime: Runtime,
    limits: PoolLimits,
    enter: AsyncExitStack,
    background: Supervisor,
) -> tuple[SystemTls, dict[str, Transport]]:
    """Return what secures a process, and what carries calls to https:// URLs, if there are such.

    Raises:
        ConfigError: a file of certificates is missing or wrong; the message names the section.
    """
    tls = system_tls(config, folder, runtime.network, runtime.wall_us() / 1e6)
    if tls.has_files:
        background.start(Child("tls", lambda: tls.run(runtime.wall_us)))
    if tls.outside is None:
        return tls, {}
    pool = HttpPool(network=tls.outside, limits=limits)
    enter.push_async_callback(pool.close)
    return tls, {"https": HttpTransport(pool, runtime=runtime)}


def _own(section: SystemTlsSection, folder: Path) -> ServerFiles:
    files = section.server(folder)
    assert files is not None, "both are there or none"
    return files


def _special(config: SystemConfig, folder: Path) -> dict[tuple[str, int], ClientFiles]:
    """Return what external services are reached by, by host and port. Raises ConfigError."""
    special: dict[tuple[str, int], ClientFiles] = {}
    for name in _secured(config):
        files = _shown_to(name, config, folder)
        for url in config.external[name].addresses:
            parts = urlsplit(url)
            special[parts.hostname or "", parts.port or 443] = files
    return special


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
    if config.system.tls.certificate:
        tries.append(partial(system_tls, config, folder, RealNetwork(), now_s))
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
