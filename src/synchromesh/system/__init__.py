"""The system: its configuration, wiring, supervision and control API.

Its names are loaded when they are first asked for (PEP 562): a command that only asks the system
that runs here needs the run directory, and no event loop, database or server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synchromesh.system.config.reading import load_config
    from synchromesh.system.config.rundir import RunDir, RunInfo
    from synchromesh.system.config.schema import SystemConfig
    from synchromesh.system.host.loops import loop_factory
    from synchromesh.system.host.system import System

_HOMES = {
    "RunDir": "config.rundir",
    "RunInfo": "config.rundir",
    "System": "host.system",
    "SystemConfig": "config.schema",
    "load_config": "config.reading",
    "loop_factory": "host.loops",
}

__all__ = [
    "RunDir",
    "RunInfo",
    "System",
    "SystemConfig",
    "load_config",
    "loop_factory",
]

if not TYPE_CHECKING:  # a type checker that saw this would take any name for a public one

    def __getattr__(name: str) -> object:
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(f"synchromesh.system has no public name {name!r}")
        value = getattr(import_module(f"synchromesh.system.{home}"), name)
        globals()[name] = value  # the next use is a plain attribute
        return value
