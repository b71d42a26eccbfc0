"""Testing: a whole system in one process, in virtual time, under a seed.

`run` gives a coroutine a simulated loop, disk, network and clock. `World` adds nodes that crash and
restart, and a network that loses, repeats, delays and parts. `serving` runs services in
either, and `survive` tries them under power cuts and storms.
"""

from synchromesh.testing.disk import SimDisk
from synchromesh.testing.escapes import (
    Deadlock,
    Escape,
    Leaked,
    Livelock,
    Overdue,
    SimulationError,
    Unhandled,
)
from synchromesh.testing.histories import replay_histories
from synchromesh.testing.loop import SimLoop
from synchromesh.testing.network import SimNetwork
from synchromesh.testing.process import PROCESS, SimProcess
from synchromesh.testing.proxy import Proxy
from synchromesh.testing.serving import InProcess, serving
from synchromesh.testing.sim_runtime import SimRuntime, SimWorker
from synchromesh.testing.standing_in import stand_in
from synchromesh.testing.survival import Books, NotSurvived, Survival, survive
from synchromesh.testing.through_gateway import GatewayAnswer, GatewayClient
from synchromesh.testing.wire import CALM, STORMY, NetworkFaults, Wire
from synchromesh.testing.world import Node, World, run

__all__ = [
    "CALM",
    "PROCESS",
    "STORMY",
    "Books",
    "Deadlock",
    "Escape",
    "GatewayAnswer",
    "GatewayClient",
    "InProcess",
    "Leaked",
    "Livelock",
    "NetworkFaults",
    "Node",
    "NotSurvived",
    "Overdue",
    "Proxy",
    "SimDisk",
    "SimLoop",
    "SimNetwork",
    "SimProcess",
    "SimRuntime",
    "SimWorker",
    "SimulationError",
    "Survival",
    "Unhandled",
    "Wire",
    "World",
    "replay_histories",
    "run",
    "serving",
    "stand_in",
    "survive",
]
