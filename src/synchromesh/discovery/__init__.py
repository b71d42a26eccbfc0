"""discovery: which instances of a service are alive, and which of them is called next.

Registry, leases, balancers.
"""

from synchromesh.discovery.balancer import Balancer, BalancerOptions, RoundRobin
from synchromesh.discovery.endpoint import Endpoint, Resolved
from synchromesh.discovery.health import HealthOptions, UpstreamHealth
from synchromesh.discovery.lease_manager import LeaseManager
from synchromesh.discovery.leases import (
    Change,
    ChangeKind,
    LeaseOptions,
    LeaseTable,
)
from synchromesh.discovery.member import CallEnd, Member
from synchromesh.discovery.memory import MemoryRegistry
from synchromesh.discovery.outliers import Ejection, OutlierOptions, Outliers
from synchromesh.discovery.registry import (
    Registration,
    Registry,
    Resolver,
    WatchableResolver,
)

__all__ = [
    "Balancer",
    "BalancerOptions",
    "CallEnd",
    "Change",
    "ChangeKind",
    "Ejection",
    "Endpoint",
    "HealthOptions",
    "LeaseManager",
    "LeaseOptions",
    "LeaseTable",
    "Member",
    "MemoryRegistry",
    "OutlierOptions",
    "Outliers",
    "Registration",
    "Registry",
    "Resolved",
    "Resolver",
    "RoundRobin",
    "UpstreamHealth",
    "WatchableResolver",
]
