"""What `[telemetry]` asks for: an exporter of what a process records, and its place in the host."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from synchromesh.calls.contract import operations_of
from synchromesh.clock import loop_clock
from synchromesh.errors import ConfigError
from synchromesh.http import HttpPool
from synchromesh.network import ClientTls
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Child, Service, Supervisor
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.config.secrets import read_secret
from synchromesh.system.control.status import ExportStatus
from synchromesh.system.host.otlp_exporter import LOGS, SIGNALS, TRACES, ExportTarget, OtlpExporter
from synchromesh.system.supervise.stop_budget import StopBudget
from synchromesh.telemetry import Family, SqliteRing
from synchromesh.telemetry.otlp import HttpRoute, Resource

ReadMetrics: TypeAlias = Callable[[], Awaitable[list[Family]]]


class TelemetryExport:
    """The export of a process, where there is one: `start`, then `end` before what it reads ends.

    Args:
        exporter: None where nothing is exported.
        within_s: how long the last reading may take.

    Attributes:
        read: returns what this process has counted; nothing is exported of it before it is set.
        spent_s: how long the last reading has taken.
    """

    def __init__(self, exporter: OtlpExporter | None, within_s: float) -> None:
        self._exporter = exporter
        self._within_s = within_s
        self.read: ReadMetrics | None = None
        self.spent_s = 0.0

    def start(self, supervisor: Supervisor) -> None:
        """Send what comes, as a loop of the supervisor's."""
        if self._exporter is not None:
            self._exporter.read = self._counted
            supervisor.start(Child("telemetry", self._exporter.run))

    async def end(self) -> None:
        """Read what was counted for the last time. May be repeated."""
        if self._exporter is not None:
            clock = loop_clock(asyncio.get_running_loop())
            began_s = clock()
            await self._exporter.read_last(self._within_s)
            self.spent_s += clock() - began_s

    async def _counted(self) -> list[Family]:
        return [] if self.read is None else await self.read()

    def status(self) -> dict[str, ExportStatus]:
        """Return what was lost, and why, by signal; of a signal that loses nothing nothing."""
        if self._exporter is None:
            return {}
        lost, why = self._exporter.lost(), self._exporter.why()
        found = {
            name: ExportStatus(sum(counts.values()), why.get(name, ""))
            for name, counts in lost.items()
        }
        return {name: each for name, each in found.items() if each.lost or each.why}

    def __repr__(self) -> str:
        return f"<TelemetryExport by {self._exporter!r}>"


def open_ring(
    path: str,
    config: SystemConfig,
    folder: Path,
    runtime: DiskRuntime,
    process: str,
    services: Iterable[Service],
    exit: AsyncExitStack,  # noqa: A002
    budget: StopBudget,
) -> tuple[SqliteRing, TelemetryExport]:
    """Return what keeps the spans of a process, and its export.

    Args:
        path: of the file that they are in.
        process: what its log records are of; "" for the whole system.
        services: of the whole system.
        exit: sends what is left when it is closed, and closes the file.

    Raises:
        ConfigError: a certificate or a secret is missing or wrong.
    """
    ring = SqliteRing(path, runtime)
    exit.push_async_callback(ring.close)
    section = config.telemetry
    if not section.otlp:
        return ring, TelemetryExport(None, 0.0)
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

    export = TelemetryExport(exporter, budget.telemetry_s / 2)

    async def finish() -> None:
        await ring.flush()  # shows the last spans
        ring.tap = None
        await exporter.close(budget.telemetry_s - export.spent_s)

    exit.push_async_callback(finish)
    if TRACES in collector.signals:
        ring.tap = exporter.take_spans
    if LOGS in collector.signals:
        root = logging.getLogger()
        root.addHandler(exporter.log)
        exit.callback(root.removeHandler, exporter.log)

    return ring, export


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
