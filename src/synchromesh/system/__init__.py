"""The system: its configuration, wiring, supervision and control API.

Its names are loaded when they are first asked for (PEP 562): a command that only asks the system
that runs here needs the run directory, and no event loop, database or server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synchromesh.lazily import names_of

if TYPE_CHECKING:
    from synchromesh.system.config.reading import load_config
    from synchromesh.system.config.rundir import RunDir, RunInfo
    from synchromesh.system.config.schema import SystemConfig
    from synchromesh.system.host.loops import loop_factory
    from synchromesh.system.host.system import System

_MODULES = {
    "config.rundir": "RunDir RunInfo",
    "config.schema": "SystemConfig",
    "config.reading": "load_config",
    "host.loops": "loop_factory",
    "host.system": "System",
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
    __getattr__ = names_of(__name__, _MODULES)
