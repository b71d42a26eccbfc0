"""The upstream, and the gateways that are measured against: nginx, Envoy, @fastify/http-proxy.

Each has one worker, keeps its connections open on both sides, and logs nothing. Ours logs nothing
either, but traces every request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks import tools
from benchmarks.processes import Server, free_port, last_core

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


def upstream(folder: Path) -> Server:
    """Start what stands behind every gateway, on the core of the load."""
    port = free_port()
    branches = [
        _BRANCH.format(name=name, seconds=BRANCH_MS / 1000, body=json.dumps(body))
        for name, body in BRANCHES.items()
    ]
    servers = _UPSTREAM.format(port=port, small=SMALL.decode(), branches="\n    ".join(branches))
    return _nginx(folder / "upstream", "upstream", servers, port, last_core())


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


def envoy(folder: Path, upstream: Server) -> Server:
    """Start Envoy with a router and nothing else."""
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
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    bound = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}
    cluster = {
        "name": "up",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [bound]},
        "load_assignment": {"cluster_name": "up", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    path = folder / "envoy.json"
    path.write_text(json.dumps(config))
    command = [tools.envoy(), "-c", str(path), "--concurrency", "1", "--disable-hot-restart"]
    return Server("Envoy", [*command, "-l", "error"], port=port, folder=folder)


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
