"""discovery: which instances of a service are alive, and which of them is called next.

Registry, leases, balancers.
"""

from synchromesh.discovery.balancer import RoundRobin
from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.discovery.leases import (
    Change,
    ChangeKind,
    Lease,
    LeaseOptions,
    LeaseState,
    LeaseTable,
)
from synchromesh.discovery.lessor import Lessor, Watch
from synchromesh.discovery.memory import MemoryRegistry
from synchromesh.discovery.registry import (
    LeaseBackend,
    Registration,
    Registry,
    Resolver,
    WatchableResolver,
)

__all__ = [
    "Change",
    "ChangeKind",
    "Endpoint",
    "Lease",
    "LeaseBackend",
    "LeaseOptions",
    "LeaseState",
    "LeaseTable",
    "Lessor",
    "MemoryRegistry",
    "Registration",
    "Registry",
    "Resolved",
    "Resolver",
    "RoundRobin",
    "Watch",
    "WatchableResolver",
]
