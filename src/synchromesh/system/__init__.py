"""The system: the only place that wires, configuration, supervision, the control socket."""

from synchromesh.system.config import SystemConfig, load_config
from synchromesh.system.loops import loop_factory
from synchromesh.system.rundir import RunDir, RunInfo
from synchromesh.system.split import SplitSystem
from synchromesh.system.wiring import System

__all__ = [
    "RunDir",
    "RunInfo",
    "SplitSystem",
    "System",
    "SystemConfig",
    "load_config",
    "loop_factory",
]
