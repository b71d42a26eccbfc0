"""The servers that `dev --engine` starts beside a system, where its configuration names none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from synchromesh.system.config.rundir import RunDir
from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.supervise.nats_engine import NatsEngine
from synchromesh.system.supervise.postgres_engine import PostgresEngine
from synchromesh.system.supervise.server_process import BY_ITSELF
from synchromesh.system.supervise.stop_budget import StopBudget


class StartedEngine(Protocol):
    """A server that a system needs; `start`, then `run`, then `stop`."""

    @property
    def name(self) -> str:
        """Its key in `[engine]`."""
        ...

    @property
    def url(self) -> str:
        """Its address, which is known before it is started."""
        ...

    async def start(self) -> None:
        """Start it, and wait until it serves. Raises ConfigError."""
        ...

    async def run(self) -> None:
        """Watch it, and start it again where it ended; a supervised loop."""
        ...

    async def stop(self, budget: StopBudget = BY_ITSELF) -> None:
        """Stop it within what a budget has for it. May be repeated."""
        ...


_ENGINES: dict[str, Callable[[Path], StartedEngine]] = {
    "postgres": PostgresEngine,
    "nats": NatsEngine,
}


def engines_of(names: Sequence[str], config: SystemConfig, folder: Path) -> list[StartedEngine]:
    """Return the servers to start, of those that are asked for; not one whose URL is configured.

    Args:
        names: keys of `[engine]`, or "all".

    Raises:
        MissingExtra: one is not installed.
        ConfigError: one cannot be run here.
    """
    asked = _ENGINES if "all" in names else dict.fromkeys(names)
    wanted = [name for name in asked if not getattr(config.engine, name)]
    return [_ENGINES[name](RunDir(folder).path) for name in wanted]
