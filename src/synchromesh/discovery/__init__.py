"""discovery: which instances of a service are alive, and which of them is called next.

Registry, leases, balancers.
"""

from synchromesh.discovery.balancer import RoundRobin
from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.discovery.lease_manager import LeaseManager
from synchromesh.discovery.leases import (
    Change,
    ChangeKind,
    LeaseOptions,
    LeaseTable,
)
from synchromesh.discovery.memory import MemoryRegistry
from synchromesh.discovery.registry import (
    Registration,
    Registry,
    Resolver,
    WatchableResolver,
)

__all__ = [
    "Change",
    "ChangeKind",
    "Endpoint",
    "LeaseManager",
    "LeaseOptions",
    "LeaseTable",
    "MemoryRegistry",
    "Registration",
    "Registry",
    "Resolved",
    "Resolver",
    "RoundRobin",
    "WatchableResolver",
]
