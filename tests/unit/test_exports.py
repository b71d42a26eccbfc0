"""Exports: each file is what its tool takes, and has the values that it has to have.

The tools pass much that is wrong, so that values are checked here, and what was checked is counted.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml  # type: ignore[import-untyped]
from compose_spec import PyCompose

from cli_runs import Run, runner
from persons_app import customers
from spread_app import TOML
from synchromesh.system.config.exports.systemd import unreadable
from synchromesh.system.config.exports.yaml_text import to_yaml
from synchromesh.system.config.schema import SystemConfig, SystemSection
from synchromesh.system.host.extras import needed_extras
from synchromesh.system.supervise.stop_budget import StopBudget

VERSIONS = ("1.31", "1.37")
SECRETS = {"MESH_KEY", "DATABASE_URL", "NATS_URL"}
PARTS = ("shop", "quotes", "gateway")
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
QUANTITY = re.compile(r"[0-9]+(m|Mi|Gi)?")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(sys, "path", list(sys.path))
    # An export reads no secret.
    for name in SECRETS:
        monkeypatch.delenv(name, raising=False)
    return runner(capsys)


def exported(
    run: Run, folder: Path, kind: str, *words: str, admin: int = 0, text: str = TOML
) -> dict[str, str]:
    """Export a system into a folder, and return the files."""
    for name, value in {"name": "Works_2", "port": 8443, "admin": admin}.items():
        text = text.replace(f"{{{name}}}", str(value))
    (folder / "synchromesh.toml").write_text(text)
    ran = run(folder, "export", kind, str(folder / "out"), *words, "--json")
    assert ran.code == 0, ran.err
    written = [Path(each) for each in json.loads(ran.out)["written"]]
    assert {each.name for each in (folder / "out").iterdir()} == {each.name for each in written}
    return {each.name: each.read_text() for each in written}


def manifests(texts: dict[str, str]) -> list[dict[str, Any]]:
    return [
        each
        for name, text in texts.items()
        if name.endswith(".yaml")
        for each in yaml.safe_load_all(text)
    ]


def kind_of(found: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in found if each["kind"] == kind}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_of_its_schema(tmp_path: Path, run: Run, version: str) -> None:
    """Strictly, and so many of each kind."""
    found = manifests(exported(run, tmp_path, "k8s"))
    validated = [kubernetes_validate.validate(each, version, strict=True) for each in found]
    assert set(validated) == {version}
    kinds = [each["kind"] for each in found]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "Deployment": 3, "PodDisruptionBudget": 3, "Service": 1, "Job": 1,
    }  # fmt: skip


def test_a_deployment_is_what_a_replica_needs(tmp_path: Path, run: Run) -> None:
    """Labels fit, probes ask the admin port, the grace is longer than a stop."""
    found = manifests(
        exported(run, tmp_path, "k8s", "--image", "registry.local/works:1", admin=9200)
    )
    deployments, budgets = kind_of(found, "Deployment"), kind_of(found, "PodDisruptionBudget")
    assert set(deployments) == set(budgets) == {f"works-2-{part}" for part in PARTS}
    for name, each in deployments.items():
        assert LABEL.fullmatch(name)
        part = name.removeprefix("works-2-")
        spec, template = each["spec"], each["spec"]["template"]
        wanted = spec["selector"]["matchLabels"].items()
        assert wanted <= template["metadata"]["labels"].items()
        assert budgets[name]["spec"] == {"maxUnavailable": 1, "selector": spec["selector"]}
        pod = template["spec"]
        assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        (container,) = pod["containers"]
        assert container["image"] == "registry.local/works:1"
        assert container["args"] == ["run", part, "--run-dir", f"/run/synchromesh/{part}"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert set(mounts) == {"/run/synchromesh", "/tmp"}
        assert set(mounts.values()) == {
            each["name"] for each in pod["volumes"] if "emptyDir" in each
        }
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert ports["admin"] == (9200 if part == "gateway" else 9100)
        assert {
            probe: (container[probe]["httpGet"], container[probe]["failureThreshold"] > 0)
            for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        } == {
            "startupProbe": ({"path": "/healthz", "port": "admin"}, True),
            "livenessProbe": ({"path": "/healthz", "port": "admin"}, True),
            "readinessProbe": ({"path": "/readyz", "port": "admin"}, True),
        }
        quantities = [q for each in container["resources"].values() for q in each.values()]
        assert all(map(QUANTITY.fullmatch, quantities))
        waits_s = (
            container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        )
        assert (waits_s > 0) is (part == "gateway")
        assert pod["terminationGracePeriodSeconds"] > waits_s + StopBudget().total_s
    replicas = {part: deployments[f"works-2-{part}"]["spec"]["replicas"] for part in PARTS}
    assert replicas == {"shop": 1, "quotes": 3, "gateway": 2}
    rolling = {
        part: tuple(deployments[f"works-2-{part}"]["spec"]["strategy"]["rollingUpdate"].values())
        for part in PARTS
    }
    assert set(rolling.values()) == {(1, 0)}
    (service,) = kind_of(found, "Service").values()
    gateway = deployments["works-2-gateway"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= gateway["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    assert {"name": port["targetPort"], "containerPort": 8443, "protocol": "TCP"} in gateway[
        "spec"
    ]["containers"][0]["ports"]


def test_replicas_whose_admin_listener_is_by_tls_are_asked_so(tmp_path: Path, run: Run) -> None:
    """Each probe of a Deployment, and the healthcheck of compose."""
    named = ("system.tls.certificate=a", "system.tls.key=b", "system.tls.ca=c", "admin.tls=true")
    sets = [word for each in named for word in ("--set", each)]
    found = kind_of(manifests(exported(run, tmp_path, "k8s", *sets)), "Deployment").values()
    probes = [
        container[probe]["httpGet"]
        for each in found
        for container in each["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    ]
    assert len(probes) == 3 * len(PARTS)
    assert {each["scheme"] for each in probes} == {"HTTPS"}
    (tmp_path / "two").mkdir()
    composed = yaml.safe_load(exported(run, tmp_path / "two", "compose", *sets)["compose.yaml"])
    asked = [str(composed["services"][part]["healthcheck"]["test"]) for part in PARTS]
    assert all("https://127.0.0.1:9100/readyz" in each for each in asked)


def test_secrets_are_named_and_the_address_is_the_pods(tmp_path: Path, run: Run) -> None:
    """Whoever creates databases is told another address than all others."""
    found = manifests(exported(run, tmp_path, "k8s"))
    for each in (*kind_of(found, "Deployment").values(), *kind_of(found, "Job").values()):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        given = {env["name"]: env for env in container["env"]}
        kept = {
            name: env["valueFrom"]["secretKeyRef"]["name"]
            for name, env in given.items()
            if "secretKeyRef" in env.get("valueFrom", {})
        }
        assert set(kept) == SECRETS
        is_job = each["kind"] == "Job"
        assert kept["DATABASE_URL"] == ("works-2-admin" if is_job else "works-2-secrets")
        assert kept["MESH_KEY"] == kept["NATS_URL"] == "works-2-secrets"
        if not is_job:
            for name in ("SYNCHROMESH_SYSTEM__HOST", "SYNCHROMESH_ADMIN__HOST"):
                assert given[name]["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
            assert all(isinstance(env.get("value", ""), str) for env in given.values())


def test_compose_runs_each_part_beside_its_servers(tmp_path: Path, run: Run) -> None:
    """Each service is there, each reference leads somewhere, no secret is written."""
    texts = exported(run, tmp_path, "compose")
    composed = yaml.safe_load(texts["compose.yaml"])
    # Every key and value as the Compose Specification has it: an unknown one is refused.
    assert len(PyCompose.from_yaml(texts["compose.yaml"])) == len(composed["services"])
    services = composed["services"]
    assert set(services) == {*PARTS, "postgres", "nats", "db-create"}
    for name, each in services.items():
        assert set(each.get("depends_on", {})) <= set(services)
        for volume in each.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in composed["volumes"] or (tmp_path / "out" / source).is_file(), name
        assert all(isinstance(value, str) for value in each.get("environment", {}).values())
    for part in PARTS:
        each = services[part]
        assert each["read_only"]
        assert int(each["stop_grace_period"].removesuffix("s")) > StopBudget().total_s
        assert each["environment"]["MESH_KEY"] == "${MESH_KEY:?set it}"
        assert each["environment"]["DATABASE_URL"] == "postgresql://postgres:5432"
        assert each["environment"]["NATS_URL"] == "nats://nats:4222"
        # Else each replica would warn of a server that is set up well.
        assert each["environment"]["SYNCHROMESH_ENGINE__NATS_MONITOR"] == "http://nats:8222"
        # As services do, they tell operators of the name of their container.
        assert each["environment"]["SYNCHROMESH_ADMIN__HOST"] == "0.0.0.0"
        assert each["depends_on"]["db-create"]["condition"] == "service_completed_successfully"
        assert f"run {part} " in each["entrypoint"][-1]
        assert "http://127.0.0.1:9100/readyz" in each["healthcheck"]["test"][-1]
    assert services["quotes"]["deploy"] == {"replicas": 3}
    assert services["gateway"]["ports"] == ["127.0.0.1:8443:8443"]
    assert "${POSTGRES_PASSWORD:?" in services["db-create"]["environment"]["DATABASE_URL"]
    assert "sync_interval: always" in texts["nats.conf"]
    assert "http: 8222" in texts["nats.conf"]
    # A wheel beside the system goes before the index, which has none of Synchromesh.
    copied, installed = texts["Dockerfile"].splitlines()[3:5]
    assert copied == "COPY synchromesh.toml *.whl /wheels/"
    assert installed.startswith("RUN pip install --no-cache-dir --find-links /wheels ")


GUARDED = """
from synchromesh.gateway import JWT, Gateway, Route
from shop_app import Shop
way_in = Gateway(
    routes=[Route("POST /sales", Shop.sell)],
    auth=[JWT(issuer="https://id.example.org", audience="api")],
)
"""
FOUND = """
[external.tax]
discover = { srv = "http://_tax._tcp.example.org" }
"""


def test_the_image_has_what_the_configuration_needs(tmp_path: Path, run: Run) -> None:
    """Else each part of it would end at once, for want of a package."""
    installed = exported(run, tmp_path, "k8s")["Dockerfile"]
    assert "synchromesh[fast,nats,postgres]==" in installed
    (tmp_path / "guarded_way_in.py").write_text(GUARDED)
    text = TOML.replace("spread_app:way_in", "guarded_way_in:way_in") + FOUND
    installed = exported(run, tmp_path, "k8s", text=text)["Dockerfile"]
    assert "synchromesh[dns,fast,jwt,nats,postgres]==" in installed
    config = SystemConfig(SystemSection(name="correspondence"), {})
    assert needed_extras(config, [customers], None) == {"personal"}


@pytest.mark.parametrize(
    ("path", "modes", "closed"),
    [
        ("/home/ada/shop", {}, []),
        ("/home/ada/shop", {"/home/ada": 0o750, "/home/ada/shop": 0o700}, ["/home/ada"]),
        ("/opt/shop", {"/opt/shop": 0o700}, ["/opt/shop"]),
        ("/tmp/shop", {}, ["/tmp/shop"]),
    ],
)
def test_what_the_user_of_the_units_cannot_read_is_told(
    path: str, modes: dict[str, int], closed: list[str]
) -> None:
    """A start would fail with `Permission denied`, in a journal; of /tmp they have their own."""
    assert unreadable(Path(path), mode_of=lambda each: modes.get(str(each), 0o755)) == closed


def test_a_python_in_a_closed_home_is_told_by_the_link_that_leads_there() -> None:
    """As the one of a virtual environment does."""
    program, asked = Path("/home/ada/python/bin/python"), set()

    def mode_of(path: Path) -> int:
        asked.add(path)
        return 0o700 if path == Path("/home/ada") else 0o755

    class Link(type(Path())):  # type: ignore[misc]
        def resolve(self, strict: bool = False) -> Path:
            return program

    assert unreadable(Link("/opt/shop/python"), mode_of=mode_of) == ["/home/ada"]
    assert Path("/opt/shop/python") in asked


def test_units_are_what_systemd_takes(tmp_path: Path, run: Run) -> None:
    """Each is verified, and the target wants each replica by a unit that is there."""
    texts = exported(run, tmp_path, "systemd")
    units = [name for name in texts if name.endswith(("@.service", ".target"))]
    assert sorted(units) == [
        *(f"works-2-{part}@.service" for part in sorted(PARTS)),
        "works-2.target",
    ]
    for part in PARTS:
        lines = texts[f"works-2-{part}@.service"].splitlines()
        (start,) = (line for line in lines if line.startswith("ExecStart="))
        assert start.endswith(f' run {part} --run-dir "%t/works-2-{part}-%i"')
        assert {
            "EnvironmentFile=/etc/works-2.env", f"RuntimeDirectory=works-2-{part}-%i",
            'Environment="SYNCHROMESH_ADMIN__PORT=%i"', "Restart=always", "KillMode=mixed",
            "DynamicUser=yes", "NoNewPrivileges=yes", "ProtectSystem=strict",
        } <= set(lines)  # fmt: skip
        (stop,) = (line for line in lines if line.startswith("TimeoutStopSec="))
        assert int(stop.partition("=")[2].removesuffix("s")) > StopBudget().total_s
    wanted = re.findall(r"^Wants=(.*)@([0-9]+)\.service$", texts["works-2.target"], re.MULTILINE)
    assert [name for name, _ in wanted] == [
        "works-2-shop", *["works-2-quotes"] * 3, "works-2-gateway",
    ]  # fmt: skip
    assert len({port for _, port in wanted}) == len(wanted)
    assert set(re.findall(r"^(\w+)=$", texts["works-2.env.example"], re.MULTILINE)) == SECRETS


def test_systemd_itself_finds_nothing_wrong(tmp_path: Path, run: Run) -> None:
    """And would: a unit with a misspelt key is refused."""
    exported(run, tmp_path, "systemd")
    units = [each for each in (tmp_path / "out").iterdir() if each.suffix != ".example"]
    assert len(units) == len(PARTS) + 1
    verify = ["systemd-analyze", "verify", "--recursive-errors=one", *map(str, units)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    wrong = tmp_path / "out/works-2-shop@.service"
    wrong.write_text(wrong.read_text().replace("KillMode=", "KilMode="))
    done = subprocess.run(verify, capture_output=True, text=True)
    assert "KilMode" in done.stderr


@pytest.mark.parametrize("kind", ["k8s", "compose", "systemd"])
@pytest.mark.parametrize(
    ("found", "instead", "said"),
    [
        ('nats = "env:NATS_URL"', "", "[engine] nats"),
        ('name = "works"', 'name = "2"', "makes no name elsewhere"),
        ('name = "works"', f'name = "{"long" * 12}"', "at most 48 characters"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    tmp_path: Path, run: Run, kind: str, found: str, instead: str, said: str
) -> None:
    """In one line, and nothing is written."""
    text = TOML.format(name="works", port=0, admin=0)
    (tmp_path / "synchromesh.toml").write_text(text.replace(found, instead, 1))
    ran = run(tmp_path, "export", kind, str(tmp_path / "out"))
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "value",
    [
        {"a": ["yes", "No", "1.0", "08", "", " x", "a: b", "#", "~", "äö", "a\nb", "null", "0x1"]},
        [{"a": {"b": [[1, 2.5, True, None], {}]}, "c d": []}, "x"],
    ],
)
def test_what_is_written_as_yaml_is_read_as_it_was(value: object) -> None:
    """By a reader of YAML 1.1, which takes much for something else than a text."""
    assert yaml.safe_load(to_yaml(value)) == value
