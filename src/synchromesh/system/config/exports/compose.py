"""A compose file: the whole system on one host, in containers, with PostgreSQL and NATS beside it.

Of PostgreSQL's user only what creates the databases is told; the role of a service has a password
that follows from the system's key.
"""

from __future__ import annotations

import shlex
from typing import Any

from synchromesh.system.config.exports.image import RUN, dockerfile, dockerignore, words
from synchromesh.system.config.exports.plan import DeployedPart, DeploymentPlan
from synchromesh.system.config.exports.yaml_text import to_yaml

POSTGRES_IMAGE, NATS_IMAGE = "postgres:18", "nats:2.12"
NATS_CONF = """\
# Without sync_interval the end of a stream is gone after a power cut.
jetstream { store_dir: /data, sync_interval: always }
http: 8222
"""
_ASK = "import urllib.request as ask; ask.urlopen('http://127.0.0.1:{port}{path}', timeout=4)"
# A certificate is for the address that others call, and this is asked within the container.
_ASK_BY_TLS = (
    "import ssl, urllib.request as ask; ask.urlopen('https://127.0.0.1:{port}{path}', timeout=4, "
    "context=ssl._create_unverified_context())"
)
_PASSWORD = "${POSTGRES_PASSWORD:?set the password of PostgreSQL's own user}"  # noqa: S105


def files(plan: DeploymentPlan) -> dict[str, str]:
    """Return the files for compose by name."""
    return {
        "Dockerfile": dockerfile(plan),
        "Dockerfile.dockerignore": dockerignore(),
        "compose.yaml": to_yaml(composed(plan)),
        "nats.conf": NATS_CONF,
    }


def composed(plan: DeploymentPlan) -> dict[str, Any]:
    """Return what is in the compose file."""
    services: dict[str, Any] = {part.name: _service(plan, part) for part in plan.parts}
    volumes: dict[str, Any] = {}
    if plan.nats:
        volumes["nats"] = {}
        services["nats"] = {
            "image": NATS_IMAGE,
            "command": ["--config", "/etc/nats/nats.conf"],
            "volumes": ["./nats.conf:/etc/nats/nats.conf:ro", "nats:/data"],
            "restart": "unless-stopped",
        }
    if plan.postgres and plan.has_database:
        volumes["postgres"] = {}
        services["postgres"] = {
            "image": POSTGRES_IMAGE,
            "environment": {"POSTGRES_PASSWORD": _PASSWORD},
            "volumes": ["postgres:/var/lib/postgresql"],
            "healthcheck": _health(["CMD", "pg_isready", "--username", "postgres"]),
            "stop_grace_period": "60s",
            "restart": "unless-stopped",
        }
    if plan.has_database:
        address = {plan.postgres: f"postgresql://postgres:{_PASSWORD}@postgres:5432"}
        services["db-create"] = {
            **_container(plan),
            "command": ["db", "create"],
            "environment": {**_given(plan, plan.secrets), **(address if plan.postgres else {})},
            "restart": "on-failure",
        }
        if plan.postgres:
            services["db-create"]["depends_on"] = {"postgres": {"condition": "service_healthy"}}
    return {"name": plan.system, "services": services, **({"volumes": volumes} if volumes else {})}


def _service(plan: DeploymentPlan, part: DeployedPart) -> dict[str, Any]:
    # A container's own name is known only in it; that of each replica is its own.
    run = shlex.join(["exec", "synchromesh", "--folder", "/app", *words(part.name)])
    ask = _ASK_BY_TLS if plan.is_admin_by_tls else _ASK
    made = {
        **_container(plan),
        "entrypoint": ["sh", "-c", f'export SYNCHROMESH_SYSTEM__ADVERTISE="$$(hostname)"; {run}'],
        "environment": {
            "SYNCHROMESH_SYSTEM__HOST": "0.0.0.0",  # noqa: S104
            # Operators ask from any container of the network, and from nowhere else.
            "SYNCHROMESH_ADMIN__HOST": "0.0.0.0",  # noqa: S104
            **part.settings,
            **({"SYNCHROMESH_GATEWAY__HOST": "0.0.0.0"} if part.is_gateway else {}),  # noqa: S104
            **_given(plan, part.secrets),
            **({"SYNCHROMESH_ENGINE__NATS_MONITOR": "http://nats:8222"} if plan.nats else {}),
        },
        "healthcheck": _health(
            ["CMD", "python", "-c", ask.format(port=part.admin_port, path="/readyz")]
        ),
        "stop_grace_period": f"{plan.stop_s}s",
        "restart": "unless-stopped",
    }
    after: dict[str, Any] = {"nats": {"condition": "service_started"}} if plan.nats else {}
    if plan.has_database:
        after["db-create"] = {"condition": "service_completed_successfully"}
    if after:
        made["depends_on"] = after
    if part.is_gateway:
        made["ports"] = [f"127.0.0.1:{plan.gateway_port}:{plan.gateway_port}"]
    elif part.replicas > 1:
        made["deploy"] = {"replicas": part.replicas}
    return made


def _container(plan: DeploymentPlan) -> dict[str, Any]:
    return {
        "image": plan.image,
        "read_only": True,
        "tmpfs": ["/tmp", f"{RUN}:mode=1777"],  # noqa: S108
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _given(plan: DeploymentPlan, names: tuple[str, ...]) -> dict[str, str]:
    """Return variables with where each is from: the servers are beside, the rest is given."""
    beside = {plan.postgres: "postgresql://postgres:5432", plan.nats: "nats://nats:4222"}
    return {name: beside.get(name, f"${{{name}:?set it}}") for name in names}


def _health(test: list[str]) -> dict[str, Any]:
    return {"test": test, "interval": "5s", "timeout": "5s", "retries": 3, "start_period": "60s"}
