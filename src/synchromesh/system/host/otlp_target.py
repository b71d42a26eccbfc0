"""Where telemetry is sent to, as `[telemetry]` says, and what sends it there.

This is imported where something is exported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from synchromesh.calls.contract import operations_of
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.network import ClientTls
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Service
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import read_secret
from synchromesh.system.host.otlp_exporter import LOGS, SIGNALS, TRACES, ExportTarget, OtlpExporter
from synchromesh.telemetry.otlp import HttpRoute, Resource

__all__ = ["LOGS", "TRACES", "collector_of", "export_mistakes", "open_exporter", "routes_of"]


def open_exporter(
    config: SystemConfig,
    folder: Path,
    runtime: DiskRuntime,
    process: str,
    services: Iterable[Service],
    exit: AsyncExitStack,  # noqa: A002
) -> tuple[OtlpExporter, tuple[str, ...]]:
    """Return what sends telemetry, and which signals are sent.

    Args:
        process: as in `open_ring`.
        exit: closes its connections.

    Raises:
        ConfigError: a certificate or a secret is missing or wrong.
    """
    section = config.telemetry
    collector = collector_of(config, folder, os.environ)
    tls = _tls(config, folder)
    network = runtime.network if tls is None else runtime.network.secured(client=tls)
    pool = HttpPool(network=network)
    exit.push_async_callback(pool.close)
    resource = Resource(
        {
            "service.namespace": config.system.name,
            "telemetry.sdk.name": "synchromesh",
            "telemetry.sdk.language": "python",
            "telemetry.sdk.version": version("synchromesh"),
            **section.resource,
        },
        runtime.new_id(),
    )
    exporter = OtlpExporter(
        collector, pool, runtime, resource, process or config.system.name, routes_of(services),
        metrics_every_s=section.metrics_every_s(),
    )  # fmt: skip
    return exporter, collector.signals


def collector_of(
    config: SystemConfig, folder: Path, environment: Mapping[str, str]
) -> ExportTarget:
    """Return where telemetry is sent to. Raises ConfigError for a secret that cannot be read."""
    section = config.telemetry
    parts = urlsplit(section.otlp)
    headers = []
    for name, reference in section.headers.items():
        place = f"[telemetry] headers.{name}"
        text = read_secret(reference, name=place, folder=folder, environment=environment)
        if not (text.isascii() and text.isprintable()):
            raise ConfigError(f"{place}: {reference} has what no header may have; write ASCII")
        headers.append((name, text))
    return ExportTarget(
        url=section.otlp,
        host=parts.hostname or "",
        port=parts.port or (443 if parts.scheme == "https" else 80),
        prefix=parts.path.rstrip("/"),
        headers=tuple(headers),
        signals=tuple(section.signals or SIGNALS),
    )


def export_mistakes(config: SystemConfig, folder: Path) -> Iterator[str]:
    """Yield what a start would refuse about the export, a sentence each."""
    if not config.telemetry.otlp:
        return
    for attempt in (
        partial(collector_of, config, folder, os.environ),
        partial(_tls, config, folder),
    ):
        try:
            attempt()
        except ConfigError as error:
            yield error.message


def routes_of(services: Iterable[Service]) -> dict[str, HttpRoute]:
    """Return the routes of all operations that services offer, by their full names."""
    return {
        each.full_name: HttpRoute(
            each.method, each.path, {refusal.code: refusal.status for refusal in each.raises}
        )
        for service in services
        if service.contract is not None
        for each in operations_of(service.contract).values()
    }


def _tls(config: SystemConfig, folder: Path) -> ClientTls | None:
    """Return what secures a connection to the collector; None for plain HTTP."""
    section = config.telemetry
    parts = urlsplit(section.otlp)
    if parts.scheme != "https":
        return None
    from synchromesh.tls import ClientContexts

    try:
        return ClientContexts(
            {(parts.hostname or "", parts.port or 443): section.tls.files(folder)}
        )
    except ConfigError as error:
        raise ConfigError(f"[telemetry] tls: {error.message}") from error
