"""The whole configuration of an Envoy, and the files around it. A pure machine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from synchromesh.gateway.compiled import CompiledRoute
from synchromesh.gateway.envoy.clusters import (
    GATEWAY_CLUSTER,
    clusters,
    eds,
    eds_file,
    seconds,
)
from synchromesh.gateway.envoy.filters import filters
from synchromesh.gateway.envoy.local_replies import local_replies
from synchromesh.gateway.envoy.names import CHUNKED, TYPE
from synchromesh.gateway.envoy.patterns import path_pattern
from synchromesh.gateway.envoy.plan import ENVOY, RoutePlan, issuers_of, plan
from synchromesh.gateway.envoy.routes import virtual_hosts
from synchromesh.gateway.envoy.settings import EnvoySettings
from synchromesh.gateway.envoy.tokens import FILTER, CheckedIssuer, clusters_of, issuers, jwt_filter
from synchromesh.gateway.routes import Gateway

_NETWORK: Final = f"{TYPE}.extensions.filters.network"
_IP_DETECTION: Final = "envoy.http.original_ip_detection.xff"
_EARLY: Final = "envoy.http.early_header_mutation.header_mutation"
# What a client says of whom it stands for; of one that is no proxy it is taken off.
_CLAIMED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")
_PROGRAM_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Export:
    """What is written for an Envoy.

    Attributes:
        bootstrap: its configuration.
        files: the others, by their paths: where instances are, and by what it proves itself.
        routes: which engine serves which route.
        upstreams: the external services that Envoy asks and that follow the registry.
        unplaced: whom Envoy cannot reach yet: no address was known.
    """

    bootstrap: dict[str, Any]
    files: Mapping[Path, dict[str, Any]]
    routes: tuple[RoutePlan, ...]
    upstreams: tuple[str, ...]
    unplaced: tuple[str, ...] = ()


def export(gateway: Gateway, entries: Sequence[CompiledRoute], settings: EnvoySettings) -> Export:
    """Compile a gateway for Envoy; `entries` are its compiled routes."""
    plans = plan(gateway, entries, {name: each.why for name, each in settings.upstreams.items()})
    pairs = list(zip(entries, plans, strict=True))
    direct = [entry for entry, each in pairs if each.engine == ENVOY]
    guarded = [entry for entry in direct if not entry.is_public]
    tokens = [token for token, why in issuers_of(gateway.auth) if not why] if guarded else []
    named = issuers(tokens)
    asked = sorted({name for each in plans for name in each.upstreams})
    hosts = virtual_hosts(pairs, settings, named)
    chain = _filters(direct, guarded, named, gateway.buckets_max)
    listed = [name for name in asked if not settings.upstreams[name].is_named]
    files = {
        eds_file(settings.folder, name): eds(name, settings.upstreams[name].places)
        for name in listed
    }
    ours = [] if settings.gateway is None else [settings.gateway]
    files[eds_file(settings.folder, GATEWAY_CLUSTER)] = eds(GATEWAY_CLUSTER, ours)
    if settings.certificate is not None:
        files[_secret_file(settings)] = _secret(settings)
    bootstrap = {
        "node": {"id": settings.name, "cluster": settings.name},
        "admin": {
            "address": {"pipe": {"path": str(settings.folder / "admin.sock"), "mode": 0o600}}
        },
        "static_resources": {
            "listeners": [_listener(settings, hosts, chain)],
            "clusters": [*clusters(settings, asked), *clusters_of(named, settings)],
        },
        "layered_runtime": {
            "layers": [
                {
                    "name": "export",
                    "static_layer": {"re2.max_program_size.error_level": _PROGRAM_MAX},
                }
            ]
        },
        "overload_manager": _overload(settings),
    }
    unplaced = [name for name in listed if not settings.upstreams[name].places]
    if not ours:
        unplaced.insert(0, GATEWAY_CLUSTER)
    return Export(bootstrap, files, plans, tuple(listed), tuple(unplaced))


def _overload(settings: EnvoySettings) -> dict[str, Any]:
    name = "envoy.resource_monitors.global_downstream_max_connections"
    return {
        "resource_monitors": [
            {
                "name": name,
                "typed_config": {
                    "@type": f"{TYPE}.extensions.resource_monitors.downstream_connections.v3."
                    "DownstreamConnectionsConfig",
                    "max_active_downstream_connections": settings.clients.connections_max,
                },
            }
        ]
    }


def _filters(
    direct: Sequence[CompiledRoute],
    guarded: Sequence[CompiledRoute],
    named: Sequence[CheckedIssuer],
    buckets_max: int,
) -> list[dict[str, Any]]:
    chain = filters(direct, buckets_max)
    if guarded:
        paths = sorted({path_pattern(entry.template.path) for entry in guarded})
        verify = {"name": FILTER, "typed_config": jwt_filter(named, paths)}
        return [verify, *chain]
    return chain


def _listener(
    settings: EnvoySettings, hosts: list[dict[str, Any]], chain: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the listener: what trusted proxies say counts, and what others say does not."""
    ranges = [
        {"address_prefix": str(each.network_address), "prefix_len": each.prefixlen}
        for each in settings.proxies
    ]
    chains = [_chain(settings, "clients", hosts, chain, ())]
    if ranges:
        trusting = _chain(settings, "proxies", hosts, chain, ranges)
        trusting["filter_chain_match"] = {"direct_source_prefix_ranges": ranges}
        chains.insert(0, trusting)
    return {
        "name": "clients",
        "address": _address(settings.host, settings.port),
        "filter_chains": chains,
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _chain(
    settings: EnvoySettings,
    name: str,
    hosts: list[dict[str, Any]],
    chain: list[dict[str, Any]],
    proxies: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    manager = {
        "@type": f"{_NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "HTTP1",
        "route_config": {
            "name": "gateway",
            "virtual_hosts": hosts,
            "ignore_port_in_host_matching": True,
        },
        "http_filters": chain,
        "server_header_transformation": "PASS_THROUGH",
        "generate_request_id": False,
        "preserve_external_request_id": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_protocol_options": {
            "accept_http_10": True,
            "ignore_http_11_upgrade": [
                {"safe_regex": {"regex": r"(?i)[^w].*|w[^e].*|.{0,8}|.{10,}"}}
            ],
        },
        "local_reply_config": local_replies(),
        **_bounds(settings),
        **(_believing(proxies) if proxies else {"use_remote_address": True}),
        "early_header_mutation_extensions": [_early(() if proxies else _CLAIMED)],
    }
    made: dict[str, Any] = {
        "name": name,
        "filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
        ],
    }
    if settings.certificate is not None:
        made["transport_socket"] = _server_tls(settings)
    return made


def _bounds(settings: EnvoySettings) -> dict[str, Any]:
    limits = settings.clients
    return {
        "max_request_headers_kb": math.ceil(limits.head_bytes_max / 1024),
        "request_headers_timeout": seconds(limits.head_s),
        "stream_idle_timeout": seconds(max(limits.body_s, settings.pool.quiet_s)),
        "common_http_protocol_options": {
            "idle_timeout": seconds(limits.idle_s),
            "max_headers_count": limits.headers_max,
            "headers_with_underscores_action": "DROP_HEADER",
        },
    }


def _believing(proxies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    detection = {
        "@type": f"{TYPE}.extensions.http.original_ip_detection.xff.v3.XffConfig",
        "xff_trusted_cidrs": {"cidrs": proxies},
        # So that the field is there for a proxy that writes none: its address decides then.
        "skip_xff_append": False,
    }
    return {
        "use_remote_address": False,
        "original_ip_detection_extensions": [{"name": _IP_DETECTION, "typed_config": detection}],
    }


def _early(removed: Sequence[str]) -> dict[str, Any]:
    """Return what is done before anything is looked at; behind it nobody knows of chunks."""
    chunked = {"header": {"key": CHUNKED, "value": "%REQ(TRANSFER-ENCODING)%"}}
    config = {
        "@type": f"{TYPE}.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [
            *({"remove": name} for name in removed),
            {"append": {**chunked, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}},
        ],
    }
    return {"name": _EARLY, "typed_config": config}


# -- what it proves itself by ----------------------------------------------------------------------


def _secret_file(settings: EnvoySettings) -> Path:
    return settings.folder / "sds" / "listener.json"


def _server_tls(settings: EnvoySettings) -> dict[str, Any]:
    source = {"path_config_source": {"path": str(_secret_file(settings))}}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                "alpn_protocols": ["http/1.1"],
                "tls_certificate_sds_secret_configs": [
                    {
                        "name": "listener",
                        "sds_config": {**source, "resource_api_version": "V3"},
                    }
                ],
            },
        },
    }


def _secret(settings: EnvoySettings) -> dict[str, Any]:
    """Return where the certificate and its key are; neither is copied."""
    assert settings.certificate is not None
    resource = {
        "@type": f"{TYPE}.extensions.transport_sockets.tls.v3.Secret",
        "name": "listener",
        "tls_certificate": {
            "certificate_chain": {"filename": str(settings.certificate)},
            "private_key": {"filename": str(settings.key)},
            "watched_directory": {"path": str(settings.certificate.parent)},
        },
    }
    return {"resources": [resource]}
