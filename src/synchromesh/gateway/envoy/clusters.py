"""The clusters of an Envoy, and the files that say where their instances are. A pure machine.

Three things are not as they come: an instance that is taken off the list is gone at once
(`ignore_health_on_host_removal`), no connection is used that the other end is about to close
(`idle_timeout`), and where all are ejected none is asked, as with an open breaker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from synchromesh.discovery import BalancerOptions
from synchromesh.gateway.envoy.names import TYPE
from synchromesh.gateway.envoy.settings import EnvoySettings, HostPort, Upstream
from synchromesh.resilience import LimitOptions, Policy
from synchromesh.tls import ClientFiles

GATEWAY_CLUSTER: Final = "gateway"
_HTTP: Final = f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"
_TLS: Final = f"{TYPE}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_CONNECT_S: Final = 5.0
_REQUESTS_MAX: Final = 1024
_RETRIES_MIN: Final = 3


def seconds(value: float) -> str:
    """Return a duration as Protobuf's JSON has it.

    Example:
        >>> seconds(0.25), seconds(10.0)
        ('0.250s', '10s')
    """
    return f"{int(value)}s" if value == int(value) else f"{value:.3f}s"


def external_cluster(upstream: str) -> str:
    """Return the name of the cluster of an external service."""
    return f"external.{upstream}"


def eds_file(folder: Path, name: str) -> Path:
    """Return the file that says where the instances of a cluster are."""
    return folder / "eds" / f"{name}.json"


def clusters(settings: EnvoySettings, names: Iterable[str]) -> list[dict[str, Any]]:
    """Return the clusters: of the gateway, and of the upstreams that Envoy asks."""
    return [
        _gateway(settings),
        *(_external(settings, settings.upstreams[name]) for name in names),
    ]


def _gateway(settings: EnvoySettings) -> dict[str, Any]:
    # The gateway itself says what is too much, and answers it in words.
    many = 16 * settings.clients.connections_max
    bounds = {"max_connections": many, "max_pending_requests": many, "max_requests": many}
    return {
        "name": GATEWAY_CLUSTER,
        **_eds(settings, GATEWAY_CLUSTER),
        "connect_timeout": seconds(_CONNECT_S),
        "circuit_breakers": {"thresholds": [bounds]},
        **_http(settings.clients.idle_s / 2),
    }


def _external(settings: EnvoySettings, upstream: Upstream) -> dict[str, Any]:
    policy = settings.policies.of_edge(upstream.name)
    balancer = settings.policies.balancers.get(upstream.name, BalancerOptions())
    in_turn = upstream.is_weighted or balancer.by == "round_robin"
    cluster: dict[str, Any] = {
        "name": external_cluster(upstream.name),
        "connect_timeout": seconds(settings.pool.connect_s),
        "lb_policy": "ROUND_ROBIN" if in_turn else "LEAST_REQUEST",
        "circuit_breakers": {"thresholds": [_bounds(policy)]},
        "outlier_detection": _outliers(policy, balancer, is_alone=len(upstream.places) < 2),
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        **_http(settings.pool.idle_s),
    }
    if upstream.is_named:
        cluster |= _looked_up(external_cluster(upstream.name), upstream.places)
    else:
        cluster |= _eds(settings, upstream.name, cluster=external_cluster(upstream.name))
    place = next(iter(upstream.places), None)
    if place is not None and place.is_tls:
        cluster["transport_socket"] = tls_to(place.host, upstream.tls, settings.authorities)
    return cluster


def issuer_cluster(name: str, url: str, settings: EnvoySettings) -> dict[str, Any]:
    """Return the cluster that the keys of an issuer are fetched from, by their URL."""
    place = HostPort.of("/".join(url.split("/")[:3]))
    cluster = {
        "name": name,
        "connect_timeout": seconds(_CONNECT_S),
        **_looked_up(name, [place]),
    }
    if place.is_tls:  # else it is this machine's own
        cluster["transport_socket"] = tls_to(place.host, ClientFiles(), settings.authorities)
    return cluster


def _eds(settings: EnvoySettings, name: str, cluster: str = "") -> dict[str, Any]:
    source = {"path_config_source": {"path": str(eds_file(settings.folder, name))}}
    return {
        "type": "EDS",
        "ignore_health_on_host_removal": True,
        "eds_cluster_config": {
            "service_name": cluster or name,
            "eds_config": {**source, "resource_api_version": "V3"},
        },
    }


def _looked_up(name: str, places: Iterable[HostPort]) -> dict[str, Any]:
    return {
        "type": "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "load_assignment": assignment(name, places),
    }


def assignment(cluster: str, places: Iterable[HostPort]) -> dict[str, Any]:
    """Return where the instances of a cluster are."""
    found = [
        {
            "endpoint": {
                "address": {"socket_address": {"address": each.host, "port_value": each.port}},
                "hostname": each.authority,
            },
            "load_balancing_weight": each.weight,
        }
        for each in sorted(set(places), key=lambda place: (place.host, place.port))
    ]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": found}]}


def eds(name: str, places: Iterable[HostPort]) -> dict[str, Any]:
    """Return the file that says where the instances of an upstream, or of the gateway, are."""
    cluster = name if name == GATEWAY_CLUSTER else external_cluster(name)
    resource = {
        "@type": f"{TYPE}.config.endpoint.v3.ClusterLoadAssignment",
        **assignment(cluster, (place for place in places if not place.is_named)),
    }
    return {"resources": [resource]}


def _http(idle_s: float) -> Mapping[str, Any]:
    options = {
        "@type": _HTTP,
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": seconds(idle_s)},
    }
    return {"typed_extension_protocol_options": {_HTTP.rpartition("/")[2]: options}}


def tls_to(host: str, files: ClientFiles, authorities: Path) -> dict[str, Any]:
    """Return what secures connections to a host: it has to prove to be that one."""
    is_address = not HostPort(host, 0).is_named
    validation = {
        "trusted_ca": {"filename": str(files.ca or authorities)},
        "match_typed_subject_alt_names": [
            {"san_type": "IP_ADDRESS" if is_address else "DNS", "matcher": {"exact": host}}
        ],
    }
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "alpn_protocols": ["http/1.1"],
        "validation_context": validation,
    }
    if files.certificate is not None:
        common["tls_certificates"] = [
            {
                "certificate_chain": {"filename": str(files.certificate)},
                "private_key": {"filename": str(files.key)},
            }
        ]
    context = {"@type": _TLS, "common_tls_context": common}
    if not is_address:
        context["sni"] = host
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _bounds(policy: Policy) -> dict[str, Any]:
    limit = policy.limit
    in_flight = limit.in_flight_max if isinstance(limit, LimitOptions) else _REQUESTS_MAX
    bounds: dict[str, Any] = {
        "max_connections": _REQUESTS_MAX,
        "max_pending_requests": _REQUESTS_MAX,
        "max_requests": in_flight,
    }
    if policy.budget is not None:
        share = {"value": round(policy.budget.ratio * 100, 3)}
        bounds["retry_budget"] = {
            "budget_percent": share,
            "min_retry_concurrency": _RETRIES_MIN,
        }
    return bounds


def _outliers(policy: Policy, balancer: BalancerOptions, *, is_alone: bool) -> dict[str, Any]:
    """Return what an outlier is; of an instance that is alone, when its breaker would open."""
    found: dict[str, Any] = {
        "max_ejection_percent": 100,
        "enforcing_success_rate": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_consecutive_5xx": 0,
        "enforcing_failure_percentage": 0,
    }
    outliers, breaker = balancer.outliers, policy.breaker
    if outliers is not None and not is_alone:
        found |= {
            "consecutive_5xx": outliers.failures_in_row,
            "enforcing_consecutive_5xx": 100,
            "base_ejection_time": seconds(outliers.eject_for_s),
            "max_ejection_time": seconds(outliers.eject_for_max_s),
        }
    if breaker is not None:
        found |= {
            "interval": seconds(1.0),
            "failure_percentage_threshold": round(breaker.failure_rate * 100),
            "failure_percentage_minimum_hosts": 1,
            "failure_percentage_request_volume": breaker.minimum_calls,
            "consecutive_5xx": found.get("consecutive_5xx", breaker.minimum_calls),
            "enforcing_consecutive_5xx": 100,
            "enforcing_failure_percentage": 100,
            "base_ejection_time": seconds(breaker.open_for_s),
            "max_ejection_time": seconds(breaker.open_for_max_s),
        }
    return found
