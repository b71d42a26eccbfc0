"""Manifests for Kubernetes 1.31 and newer: Deployments, budgets of disruption, and a Service.

A pod is told its own address, on which all of it listens. A service has no Service: callers find
its replicas in the registry, as they leave it before they stop. Of the gateway's clients that is
not so, and therefore a pod of it waits before it stops, until none is sent there any more.
"""

from __future__ import annotations

from typing import Any

from synchromesh.system.config.exports.image import RUN, USER, dockerfile, dockerignore, words
from synchromesh.system.config.exports.plan import DeployedPart, DeploymentPlan
from synchromesh.system.config.exports.yaml_text import to_yaml

# For every node to hear that a pod of the gateway takes no more clients.
HEARD_S = 5
# What is left of the grace to end by itself, before it is killed.
SPARE_S = 5
_PART = "app.kubernetes.io/component"
_LOCKED_DOWN = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def files(plan: DeploymentPlan) -> dict[str, str]:
    """Return the files for Kubernetes by name."""
    texts = {"Dockerfile": dockerfile(plan), "Dockerfile.dockerignore": dockerignore()}
    for name, found in manifests(plan).items():
        texts[f"{name}.yaml"] = "---\n".join(map(to_yaml, found))
    return texts


def manifests(plan: DeploymentPlan) -> dict[str, list[dict[str, Any]]]:
    """Return the manifests, by the part that they are about."""
    made = {part.name: _of(plan, part) for part in plan.parts}
    if plan.has_database:
        made["db-create"] = [_job(plan)]
    return made


def _of(plan: DeploymentPlan, part: DeployedPart) -> list[dict[str, Any]]:
    labels, selector = _labels(plan, part.name), _selector(plan, part.name)
    made = [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": part.label, "labels": labels},
            "spec": {
                "replicas": part.replicas,
                "selector": {"matchLabels": selector},
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
                },
                "template": {"metadata": {"labels": labels}, "spec": _pod(plan, part)},
            },
        },
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": part.label, "labels": labels},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
        },
    ]
    if part.is_gateway:
        port = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": part.label, "labels": labels},
                "spec": {"type": "ClusterIP", "selector": selector, "ports": [port]},
            }
        )
    return made


def _pod(plan: DeploymentPlan, part: DeployedPart) -> dict[str, Any]:
    ports = [{"name": "admin", "containerPort": part.admin_port, "protocol": "TCP"}]
    container = {
        "name": "replica",
        "image": plan.image,
        "args": words(part.name),
        "env": [*_own_address(part), *_settings(part), *_secrets(plan, part.secrets)],
        "ports": ports,
        # It listens before any part is started. Only one that hangs is started again: a database
        # that is away does not come back by that.
        "startupProbe": _probe("/healthz", plan, period_s=1, failures=60),
        "livenessProbe": _probe("/healthz", plan, period_s=10, failures=3),
        "readinessProbe": _probe("/readyz", plan, period_s=2, failures=2),
        "resources": {
            "requests": {"cpu": "100m", "memory": "128Mi"},
            "limits": {"memory": "512Mi"},
        },
        "securityContext": _LOCKED_DOWN,
        "volumeMounts": [_mount("run", RUN), _mount("tmp", "/tmp")],  # noqa: S108
    }
    grace_s = plan.stop_s + SPARE_S
    if part.is_gateway:
        ports.append({"name": "http", "containerPort": plan.gateway_port, "protocol": "TCP"})
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": HEARD_S}}}
        grace_s += HEARD_S
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": _selector(plan, part.name)},
    }
    pod = _pod_of(container)
    return {**pod, "terminationGracePeriodSeconds": grace_s, "topologySpreadConstraints": [spread]}


def _pod_of(container: dict[str, Any]) -> dict[str, Any]:
    return {
        "containers": [container],
        "automountServiceAccountToken": False,
        # Variables of other Services, such as SYNCHROMESH_PORT, would be taken for settings.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [_volume("run"), _volume("tmp")],
    }


def _job(plan: DeploymentPlan) -> dict[str, Any]:
    """Return what makes databases and roles: it alone is told who may do that."""
    others = tuple(name for name in plan.secrets if name != plan.postgres)
    container = {
        "name": "db-create",
        "image": plan.image,
        "args": ["db", "create"],
        "env": [*_secrets(plan, others), *_secrets(plan, (plan.postgres,), kept="admin")],
        "securityContext": _LOCKED_DOWN,
        "volumeMounts": [_mount("run", RUN), _mount("tmp", "/tmp")],  # noqa: S108
    }
    labels = _labels(plan, "db-create")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{plan.system}-db-create", "labels": labels},
        "spec": {
            "backoffLimit": 6,
            "ttlSecondsAfterFinished": 600,
            "template": {
                "metadata": {"labels": labels},
                "spec": {**_pod_of(container), "restartPolicy": "OnFailure"},
            },
        },
    }


def _own_address(part: DeployedPart) -> list[dict[str, Any]]:
    """Return the variables by which all of a pod listens on its own address."""
    told = {
        "SYNCHROMESH_SYSTEM__HOST": "status.podIP",
        "SYNCHROMESH_SYSTEM__ADVERTISE": "status.podIP",
        "SYNCHROMESH_SYSTEM__NODE": "metadata.name",
        "SYNCHROMESH_ADMIN__HOST": "status.podIP",
    }
    if part.is_gateway:
        told["SYNCHROMESH_GATEWAY__HOST"] = "status.podIP"
    return [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in told.items()
    ]


def _settings(part: DeployedPart) -> list[dict[str, Any]]:
    return [{"name": name, "value": value} for name, value in part.settings.items()]


def _secrets(
    plan: DeploymentPlan, names: tuple[str, ...], *, kept: str = "secrets"
) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "valueFrom": {"secretKeyRef": {"name": f"{plan.system}-{kept}", "key": name}},
        }
        for name in names
        if name
    ]


def _probe(path: str, plan: DeploymentPlan, *, period_s: int, failures: int) -> dict[str, Any]:
    scheme = {"scheme": "HTTPS"} if plan.is_admin_by_tls else {}
    return {
        "httpGet": {"path": path, "port": "admin", **scheme},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _selector(plan: DeploymentPlan, name: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": plan.system, _PART: name}


def _labels(plan: DeploymentPlan, name: str) -> dict[str, str]:
    return {**_selector(plan, name), "app.kubernetes.io/part-of": plan.system}


def _mount(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "mountPath": path}


def _volume(name: str) -> dict[str, Any]:
    return {"name": name, "emptyDir": {"sizeLimit": "256Mi"}}
