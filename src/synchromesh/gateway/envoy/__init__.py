"""The gateway compiled for Envoy as a second engine, which stands in front of the first."""

from synchromesh.gateway.envoy.bootstrap import Export, export
from synchromesh.gateway.envoy.clusters import GATEWAY_CLUSTER, eds, eds_file
from synchromesh.gateway.envoy.differences import DIFFERENCES, EngineDifference
from synchromesh.gateway.envoy.plan import EVERY, RoutePlan
from synchromesh.gateway.envoy.settings import EnvoySettings, HostPort, Upstream

__all__ = [
    "DIFFERENCES",
    "EVERY",
    "GATEWAY_CLUSTER",
    "EngineDifference",
    "EnvoySettings",
    "Export",
    "HostPort",
    "RoutePlan",
    "Upstream",
    "eds",
    "eds_file",
    "export",
]
