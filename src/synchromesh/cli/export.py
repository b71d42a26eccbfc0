"""`synchromesh export`: writes a system down for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synchromesh.cli.config import settings_option
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_error, print_json, print_line
from synchromesh.errors import ConfigError, SynchromeshError
from synchromesh.runtime import RealRuntime

if TYPE_CHECKING:
    from synchromesh.gateway.envoy import Export
    from synchromesh.system.config.envoy_export import ListenAt, Whereabouts
    from synchromesh.system.config.exports.plan import DeploymentPlan
    from synchromesh.system.config.schema import SystemConfig

FOLLOW_EVERY_S = 1.0


@click.group(cls=CommandGroup)
def export() -> None:
    """Write a system down for other tools."""


@export.command(short_help="Compile the gateway for Envoy, which stands in front of it.")
@click.argument("target", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--listen", default="127.0.0.1:8443", show_default=True, help="What Envoy listens at."
)
@click.option(
    "--certificate",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What it proves itself by, in PEM; without it, it serves plain HTTP.",
)
@click.option(
    "--key",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The private key of the certificate.",
)
@click.option(
    "--follow",
    is_flag=True,
    help="Keep the addresses in DIR/eds as the running system has them, until Ctrl-C.",
)
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def envoy(
    folder: Path,
    target: Path,
    listen: str,
    certificate: Path | None,
    key: Path | None,
    follow: bool,
    settings: tuple[str, ...],
    is_json: bool,
) -> int:
    """Compile the gateway into DIR for Envoy 1.40, which stands in front of it.

    Envoy answers what it can answer as the gateway would, and sends all else on. Which route is
    whose, and why, is shown, and is in DIR/report.json. Start it by: envoy -c DIR/envoy.json

    No secret is written: certificates and keys are named. Exits 2 with every mistake.
    """
    from synchromesh.system.config.envoy_export import BOOTSTRAP, listening, write

    target = target.resolve()
    at = listening(listen, certificate, key, RealRuntime().wall_us() / 1e6)
    config, made = _made(folder, target, at, settings)
    report = {
        "listen": listen,
        "configuration": str(target / BOOTSTRAP),
        **_told(made),
    }
    write(made, target, report)
    if is_json:
        print_json(report)
    else:
        _show(report)
    if made.unplaced:
        click.echo(
            f"no address is known of {', '.join(made.unplaced)}: start the system, and export "
            "again or with --follow",
            err=True,
        )
    if follow:
        _follow(folder, target, config, made)
    return 0


@export.command(short_help="A Grafana dashboard, and alerts for Prometheus.")
@click.argument("target", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def grafana(folder: Path, target: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Write a dashboard for Grafana, and alerts and a configuration for Prometheus, into DIR.

    The configuration asks the admin listener of the system: where it listens now, or is configured
    to. Files of these names are replaced.
    """
    import os

    from synchromesh.system.config.grafana import write
    from synchromesh.system.config.reading import load_config
    from synchromesh.system.config.rundir import RunDir

    config, rundir = load_config(folder, environment=os.environ, flags=settings), RunDir(folder)
    if not (config.admin.port or rundir.is_running()):
        raise ConfigError(
            "[admin] port is 0: it is another one at each start, and the system does not run; "
            "choose one, or start the system and export again"
        )
    at = rundir.read().admin if rundir.is_running() else config.admin.url
    ca = str(folder.resolve() / config.system.tls.ca) if config.admin.tls else ""
    try:
        written = write(target, system=config.system.name, url=at, ca=ca)
    except OSError as error:
        raise ConfigError(f"cannot write to {target}: {error.strerror or error}") from error
    if is_json:
        print_json({"admin": at, "written": [str(path) for path in written]})
        return 0
    for path in written:
        print_line(f"written: {path}")
    if not config.admin.port:
        click.echo(
            "[admin] port is 0: it is another one at each start; choose one, and export again",
            err=True,
        )
    return 0


@export.command(short_help="Manifests for Kubernetes, and a Dockerfile.")
@click.argument("target", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--image", default="", help="The image that containers run; SYSTEM:latest if none.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def k8s(folder: Path, target: Path, image: str, settings: tuple[str, ...], is_json: bool) -> int:
    """Write manifests for Kubernetes 1.31 and newer, and a Dockerfile, into DIR.

    Each service and the gateway get a Deployment and a PodDisruptionBudget, the gateway a Service.
    Secrets are named, and never written. Files of these names are replaced. Exits 2 with a mistake.
    """
    from synchromesh.system.config.exports import kubernetes

    plan = _plan(folder, settings, image)
    texts = kubernetes.files(plan)
    secrets = f"variables that the Secret {plan.system}-secrets needs"
    return _write(target, texts, {secrets: list(plan.secrets)}, plan, is_json)


@export.command(short_help="A compose file with PostgreSQL and NATS, and a Dockerfile.")
@click.argument("target", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--image", default="", help="The image that containers run; SYSTEM:latest if none.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def compose(
    folder: Path, target: Path, image: str, settings: tuple[str, ...], is_json: bool
) -> int:
    """Write a compose file for one host, with PostgreSQL and NATS, and a Dockerfile, into DIR.

    Secrets are variables of whoever runs it. Files of these names are replaced. Exits 2 with a
    mistake.
    """
    from synchromesh.system.config.exports import compose as composing

    plan = _plan(folder, settings, image)
    given = [name for name in plan.secrets if name not in (plan.postgres, plan.nats)]
    if plan.postgres and plan.has_database:
        given.append("POSTGRES_PASSWORD")
    return _write(target, composing.files(plan), {"variables to set": given}, plan, is_json)


@export.command(short_help="Units for systemd.")
@click.argument("target", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def systemd(folder: Path, target: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Write units for systemd 252 and newer into DIR: a template for each part, and a target.

    They run this system by this program, where both are now; what their user could not read of it
    is told. Secrets are in a file that they name. Files of these names are replaced. Exits 2 with
    a mistake.
    """
    import sys

    from synchromesh.system.config.exports import systemd as units

    plan, program = _plan(folder, settings, ""), [sys.executable, "-m", "synchromesh.cli"]
    texts = units.files(plan, folder=folder, program=program)
    needs = {f"variables that /etc/{plan.system}.env needs": list(plan.secrets)}
    if closed := units.unreadable(folder, Path(sys.executable)):
        needs["to be moved, as to /opt, or opened to others, for the user of the units"] = closed
    return _write(target, texts, needs, plan, is_json)


def _plan(folder: Path, settings: tuple[str, ...], image: str) -> DeploymentPlan:
    import os

    from synchromesh.system.config.definitions import load_gateway, load_services
    from synchromesh.system.config.exports.plan import plan_of
    from synchromesh.system.config.reading import load_config
    from synchromesh.system.host.extras import needed_extras
    from synchromesh.system.supervise.stop_budget import StopBudget

    config = load_config(folder, environment=os.environ, flags=settings)
    services = load_services(config, folder)
    extras = needed_extras(config, services, load_gateway(config, folder))
    return plan_of(config, services, image=image, stop_s=StopBudget().total_s, extras=extras)


def _write(
    target: Path,
    texts: dict[str, str],
    needs: dict[str, list[str]],
    plan: DeploymentPlan,
    is_json: bool,
) -> int:
    """Write files, and say what they need that is not in them."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (target / name).write_text(text)
    except OSError as error:
        raise ConfigError(f"cannot write to {target}: {error.strerror or error}") from error
    written = [str(target / name) for name in texts]
    if is_json:
        print_json({"written": written, "needs": needs, "files": plan.files})
        return 0
    for path in written:
        print_line(f"written: {path}")
    for what, names in needs.items():
        print_line(f"{what}: {', '.join(names) or 'none'}")
    for setting, place in plan.files.items():
        print_line(f"to be brought: {setting} is in {place}")
    return 0


def _made(
    folder: Path, target: Path, at: ListenAt, settings: tuple[str, ...]
) -> tuple[SystemConfig, Export]:
    import asyncio

    from synchromesh.cli.gateway import definition_of
    from synchromesh.system.config.envoy_export import export_envoy, refuse_unfit
    from synchromesh.system.config.gateway_check import check_gateway
    from synchromesh.system.config.rundir import RunDir

    config, gateway = definition_of(folder, settings)
    # What Envoy cannot do is told before what the gateway would need to do it.
    refuse_unfit(config, gateway, target)
    runtime = RealRuntime()
    entries = asyncio.run(check_gateway(gateway, config, RunDir(folder), runtime))
    found = _whereabouts(folder)
    made = export_envoy(config, gateway, entries, system=folder, folder=target, at=at, found=found)
    return config, made


def _whereabouts(folder: Path) -> Whereabouts:
    """Return where the parts of the system are; of one that does not run nothing is known."""
    from synchromesh.cli.status import ask
    from synchromesh.system.config.envoy_export import Whereabouts
    from synchromesh.system.config.rundir import RunDir

    if not RunDir(folder).is_running():
        return Whereabouts()
    last = ask(folder)
    return Whereabouts(
        "" if last.gateway is None else last.gateway.url,
        {
            name: [each.url for each in external.instances]
            for name, external in last.externals.items()
        },
    )


def _follow(folder: Path, target: Path, config: SystemConfig, made: Export) -> None:
    """Keep the addresses until Ctrl-C; a system that is down is waited for."""
    import asyncio

    from synchromesh.system.config.envoy_export import EdsFiles

    files, is_down = EdsFiles(made, config, target), False
    try:
        while True:
            try:
                for name in files.follow(_whereabouts(folder)):
                    print_error(f"{name} is where the system says")
                is_down = False
            except SynchromeshError as error:
                if not is_down:
                    print_error(f"the addresses stay as they are: {error.message}")
                is_down = True
            asyncio.run(asyncio.sleep(FOLLOW_EVERY_S))
    except KeyboardInterrupt:
        return


def _told(made: Export) -> dict[str, Any]:
    import msgspec

    from synchromesh.gateway.envoy import DIFFERENCES, EVERY

    routes: dict[str, Any] = msgspec.to_builtins({"routes": made.routes})
    told = {
        "always_at_the_gateway": EVERY,
        "differences": msgspec.to_builtins(DIFFERENCES),
    }
    return {**routes, "follows": made.upstreams, "unplaced": made.unplaced, **told}


def _show(report: dict[str, Any]) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    table = plain_table("route", "served by", "why, or what goes on to the gateway")
    for each in report["routes"]:
        more = each["why"] or "; ".join(each["on"])
        table.add_row(Text(each["route"]), Text(each["engine"]), Text(more))
    console().print(table)
    print_line(f"whatever the route, the gateway has: {'; '.join(report['always_at_the_gateway'])}")
    print_line(
        f"written: {report['configuration']}; start it by: envoy -c {report['configuration']}"
    )
