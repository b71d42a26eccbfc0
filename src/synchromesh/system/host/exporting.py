"""What a process records, its export where `[telemetry]` asks for one, and both in the host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from synchromesh.clock import loop_clock
from synchromesh.runtime import DiskRuntime
from synchromesh.service import Child, Service, Supervisor
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.control.status_parts import ExportStatus
from synchromesh.system.supervise.stop_budget import StopBudget
from synchromesh.telemetry import Family, SqliteRing

if TYPE_CHECKING:
    from synchromesh.system.host.otlp_exporter import OtlpExporter

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
    from synchromesh.system.host.otlp_target import LOGS, TRACES, open_exporter

    exporter, signals = open_exporter(config, folder, runtime, process, services, exit)
    export = TelemetryExport(exporter, budget.telemetry_s / 2)

    async def finish() -> None:
        await ring.flush()  # shows the last spans
        ring.tap = None
        await exporter.close(budget.telemetry_s - export.spent_s)

    exit.push_async_callback(finish)
    if TRACES in signals:
        ring.tap = exporter.take_spans
    if LOGS in signals:
        root = logging.getLogger()
        root.addHandler(exporter.log)
        exit.callback(root.removeHandler, exporter.log)

    return ring, export
