"""The upstream, and the gateways that are measured against: nginx, Envoy, @fastify/http-proxy.

Each has one worker, keeps its connections open on both sides, and logs nothing. Ours logs nothing
either, but traces every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import tools
from benchmarks.credentials import Certificate
from benchmarks.processes import Server, free_port, free_ports, last_core

# 200 bytes of JSON, as many services answer.
SMALL = b'{"id":1234,"name":"widget","tags":["a","b","c"],"price":12.5,"stock":42,"text":"%s"}' % (
    b"x" * 118
)
# What a page is put together from, each after 5 ms.
BRANCHES: Mapping[str, object] = {
    "user": {"id": 1, "name": "ann"},
    "orders": {"first": 10.5, "second": 20.25},
    "stock": {"sku": "w1", "qty": 42},
}
BRANCH_MS = 5.0

_HTTP = """
daemon off; master_process off; pid nginx.pid; error_log stderr error;
load_module {module};
events {{ worker_connections 4096; multi_accept on; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; tcp_nodelay on;
  client_body_temp_path body; proxy_temp_path proxied; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  {servers}
}}
"""
_UPSTREAM = """
  default_type application/json;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    listen 127.0.0.1:{second} backlog=4096;
    location = /small {{ return 200 '{small}'; }}
    {branches}
  }}
"""
_BRANCH = "location = /{name} {{ echo_sleep {seconds}; echo -n '{body}'; }}"
_PROXY = """
  upstream up {{
    server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
"""


def upstream(folder: Path) -> tuple[Server, str]:
    """Start what stands behind every gateway, on the core of the load; return a second URL, too."""
    port, second = free_ports(2)
    branches = [
        _BRANCH.format(name=name, seconds=BRANCH_MS / 1000, body=json.dumps(body))
        for name, body in BRANCHES.items()
    ]
    servers = _UPSTREAM.format(
        port=port, second=second, small=SMALL.decode(), branches="\n    ".join(branches)
    )
    server = _nginx(folder / "upstream", "upstream", servers, port, last_core())
    return server, f"http://127.0.0.1:{second}"


def nginx(folder: Path, upstream_port: int) -> Server:
    """Start nginx as a proxy before what listens on a port of loopback."""
    port = free_port()
    servers = _PROXY.format(port=port, upstream=upstream_port)
    return _nginx(folder / "nginx", "nginx", servers, port, None)


def _nginx(folder: Path, name: str, servers: str, port: int, cores: set[int] | None) -> Server:
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(_HTTP.format(module=tools.echo_module(), servers=servers))
    command = [tools.nginx(), "-p", str(folder), "-c", str(config), "-e", "stderr"]
    return Server(name, command, port=port, cores=cores, folder=folder)


def envoy(folder: Path, upstream: Server, certificate: Certificate | None = None) -> Server:
    """Start Envoy with a router and nothing else, by TLS where it has a certificate."""
    port = free_port()
    address = {"address": "127.0.0.1", "port_value": upstream.port}
    endpoint = {"endpoint": {"address": {"socket_address": address}}}
    type_of = "type.googleapis.com/envoy.extensions.filters"
    route = {"match": {"prefix": "/"}, "route": {"cluster": "up"}}
    manager = {
        "@type": f"{type_of}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "h",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{type_of}.http.router.v3.Router"},
            }
        ],
    }
    chain: dict[str, object] = {
        "filters": [
            {
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": manager,
            }
        ]
    }
    if certificate is not None:
        chain["transport_socket"] = _tls(certificate)
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }
    bound = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}
    cluster = {
        "name": "up",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [bound]},
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    name = "Envoy" if certificate is None else "Envoy, TLS"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    command = [tools.envoy(), "-c", str(path), "--concurrency", "1", "--disable-hot-restart"]
    return Server(name, [*command, "-l", "error"], port=port, folder=folder)


def _tls(certificate: Certificate) -> dict[str, object]:
    files = {
        "certificate_chain": {"filename": str(certificate.pem)},
        "private_key": {"filename": str(certificate.key)},
    }
    type_of = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    context = {"@type": type_of, "common_tls_context": {"tls_certificates": [files]}}
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def fastify(upstream: Server) -> Server:
    """Start @fastify/http-proxy, with a page that is put together by undici."""
    port = free_port()
    command = [
        "node",
        str(Path(__file__).with_name("fastify.cjs")),
        str(tools.NODE),
        str(port),
        upstream.url,
    ]
    return Server(
        "@fastify/http-proxy",
        command,
        port=port,
        environment={"NODE_ENV": "production"},
    )
