"""`synchromesh client`: who may call the system from outside, what of it, and until when."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synchromesh.cli.actions import say_why, why_option
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line
from synchromesh.runtime import RealRuntime
from synchromesh.system.config.rundir import RunDir

if TYPE_CHECKING:
    from synchromesh.clients import ClientGrant
    from synchromesh.system.config.client_grants import ClientsFile
    from synchromesh.system.config.grants_on_nats import SharedClientsFile
    from synchromesh.system.config.schema import SystemConfig

DAYS = 90


@click.group(cls=CommandGroup)
def client() -> None:
    """Make, list and revoke credentials for calls from outside."""


@client.command(short_help="Make a credential and print it, this once.")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    help="A service that it may call, or an operation, such as billing.quote; again for more.",
)
@click.option("--serves", default="", help="A service of [system] joined that it serves.")
@click.option(
    "--days",
    default=DAYS,
    show_default=True,
    type=click.IntRange(1, 3660),
    help="After how many days it ends.",
)
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def add(
    folder: Path,
    name: str,
    scopes: tuple[str, ...],
    serves: str,
    days: int,
    why: str,
    is_json: bool,
) -> int:
    """Make a credential for client NAME and print it once: it is kept nowhere.

    Who made it and why is recorded. A system that runs takes it within a second.
    """
    from synchromesh.clients import credential_text
    from synchromesh.identity import Signer
    from synchromesh.system.config.client_grants import check_scopes
    from synchromesh.system.config.definitions import load_services
    from synchromesh.system.config.reading import load_config
    from synchromesh.system.config.secrets import signing_key

    if not scopes and not serves:
        raise click.UsageError("say what it may do: --scope SERVICE, or --serves SERVICE")
    who, runtime, rundir = say_why(why), RealRuntime(), RunDir(folder)
    config = load_config(folder, environment=os.environ)
    check_scopes(scopes, serves, load_services(config, folder), config.system.joined)
    rundir.create()
    key = signing_key(config.system.key, rundir, folder, os.environ)
    made = _file(config, folder, runtime).add(
        name, scopes, serves=serves, days=days, made=(who, why), rng=runtime.secret_rng
    )
    text = credential_text(made.id, Signer(key).client_key(made.id))
    if is_json:
        print_json({"credential": text, **_told(made, runtime)})
        return 0
    # Alone on standard output, so that it can be taken into a variable.
    print_line(text)
    click.echo(
        f"credential of client {made.name}, until {made.expires:%Y-%m-%d}; keep it, it is not "
        "shown again",
        err=True,
    )
    if not config.system.control_port:
        click.echo(
            "the system can be found by its folder; for clients that cannot read that, give it a "
            "place of its own: [system] control_port. Replicas by synchromesh run have no such "
            "place: there clients come through the gateway",
            err=True,
        )
    return 0


@client.command("list")
@click.option("--all", "is_all", is_flag=True, help="Those of the last year that have ended, too.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_clients(folder: Path, is_all: bool, is_json: bool) -> int:
    """List clients, what they may call, and until when."""
    config, runtime = _in_system(folder), RealRuntime()
    found = [_told(each, runtime) for each in _file(config, folder, runtime).read()]
    shown = [each for each in found if is_all or each["state"] == "active"]
    if is_json:
        print_json(shown)
    else:
        _show(shown)
    return 0


@client.command(short_help="Take the credential of client NAME back.")
@click.argument("name")
@why_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def revoke(folder: Path, name: str, why: str, is_json: bool) -> int:
    """Take the credential of client NAME back; a system that runs refuses it within a second.

    Who did it and why is recorded.
    """
    config, runtime = _in_system(folder), RealRuntime()
    revoked = _file(config, folder, runtime).revoke(name, who=say_why(why), why=why)
    if is_json:
        print_json(_told(revoked, runtime))
    else:
        print_line(f"revoked: the credential of client {revoked.name}")
    return 0


def _in_system(folder: Path) -> SystemConfig:
    """Return the configuration of a folder. Raises ConfigError where there is no system."""
    from synchromesh.system.config.reading import load_config

    config = load_config(folder, environment=os.environ)
    RunDir(folder).create()
    return config


def _file(
    config: SystemConfig, folder: Path, runtime: RealRuntime
) -> ClientsFile | SharedClientsFile:
    """Return what has the grants: the run directory, or NATS where hosts share it."""
    from synchromesh.system.config.client_grants import ClientsFile
    from synchromesh.system.config.grants_on_nats import SharedClientsFile

    rundir = RunDir(folder)
    file = ClientsFile(rundir.clients, runtime.disk, runtime.wall_us())
    if config.engine.is_shared(rundir.own_nats):
        return SharedClientsFile(config, rundir, runtime.wall_us, file)
    return file


def _told(grant: ClientGrant, runtime: RealRuntime) -> dict[str, Any]:
    import msgspec

    told: dict[str, Any] = msgspec.to_builtins(grant)
    return {"serves": "", "revoked": None, **told, "state": grant.state(runtime.wall_us())}


def _show(found: Iterable[dict[str, Any]]) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    table = plain_table("client", "may call", "serves", "state", "until", "who", "why")
    for each in found:
        last = each["revoked"] or each["made"]
        until = each["revoked"]["at"] if each["revoked"] else each["expires"]
        words = (
            each["name"], ", ".join(each["scopes"]), each["serves"], each["state"], until[:10],
            last["who"], last["why"],
        )  # fmt: skip
        table.add_row(*map(Text, words))
    console().print(table)
