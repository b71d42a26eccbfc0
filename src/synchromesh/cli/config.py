"""`synchromesh config`: explains every effective value, and checks the configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line, print_verbatim, visible
from synchromesh.errors import ConfigError

if TYPE_CHECKING:
    from synchromesh.system.config.explaining import BranchExplained, EdgeExplained
    from synchromesh.system.config.layers import Setting


def settings_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--set` to a command that reads the configuration."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a value, such as services.orders.port=8001; goes before environment and file.",
    )(command)


@click.group(cls=CommandGroup)
def config() -> None:
    """Explain and check the configuration."""


@config.command(short_help="Show every value in force, and what gave it.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def explain(folder: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Show every value in force, and whether default, file, environment or flag gave it.

    Then how each edge is guarded, and what a client of the gateway gets, branch by branch, while a
    service is off. Of a secret its reference is shown, and it is not read.
    """
    import msgspec

    from synchromesh.system.config.definitions import load_gateway, load_services
    from synchromesh.system.config.explaining import explain_branches, explain_edges
    from synchromesh.system.config.reading import read_layers

    values, layers = read_layers(folder, environment=os.environ, flags=settings)
    in_force = layers.settings(values)
    if not is_json:
        _show_settings(in_force)
    gateway = None
    if values.gateway.app:
        # Only its routes need what is imported, which may have mistakes of its own.
        load_services(values, folder)
        gateway = load_gateway(values, folder)
    edges, branches = list(explain_edges(values, gateway)), explain_branches(gateway)
    if is_json:
        told = {"settings": in_force, "edges": edges, "branches": branches}
        print_json(msgspec.to_builtins(told))
    else:
        _show_edges(edges)
        _show_branches(branches)
    return 0


def _show_settings(in_force: list[Setting]) -> None:
    import msgspec
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    table = plain_table("setting", "value", "from")
    for setting in in_force:
        value = msgspec.json.encode(setting.value).decode()
        table.add_row(Text(setting.name), Text(value), Text(setting.place or setting.source))
    console().print(table)


def _show_edges(edges: list[EdgeExplained]) -> None:
    for edge in edges:
        print_line("")
        print_verbatim(click.style(visible(edge.edge), bold=True))
        for line in edge.policy:
            print_line(f"  {line}")
        for name, lines in edge.operations.items():
            print_line(f"  {name}:")
            for line in lines:
                print_line(f"    {line}")


def _show_branches(branches: list[BranchExplained]) -> None:
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    if not branches:
        return
    print_line("")
    table = plain_table("route", "branch", "asks", "answers with")
    for each in branches:
        steps = " → ".join(each.ladder)
        table.add_row(Text(each.route), Text(each.branch), Text(each.asks), Text(steps))
    console().print(table)


@config.command(short_help="Check all that it names; start nothing.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(folder: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Check the configuration, what it names, its certificates and secrets; start nothing.

    Packages that it needs and that are not installed are named, with what installs them.

    Exits 2 with what is wrong. Policies that contradict each other are wrong here; a start only
    warns of them.
    """
    import asyncio

    from synchromesh.runtime import RealRuntime
    from synchromesh.service import KEEP_S
    from synchromesh.system.config.databases import check_engines
    from synchromesh.system.config.definitions import (
        check_keep,
        load_applications,
        load_gateway,
        load_opening,
        load_services,
        retention_of,
    )
    from synchromesh.system.config.gateway_check import check_gateway
    from synchromesh.system.config.parts import gateways_left_out
    from synchromesh.system.config.policy_check import check_policies, contradictions, refusal_of
    from synchromesh.system.config.reading import read_layers
    from synchromesh.system.config.rundir import RunDir
    from synchromesh.system.config.secrets import given_key
    from synchromesh.system.host.extras import refuse_missing
    from synchromesh.system.host.otlp_target import export_mistakes
    from synchromesh.system.host.securing import tls_mistakes

    values, layers = read_layers(folder, environment=os.environ, flags=settings)
    services = load_services(values, folder)
    load_opening(values, folder)
    gateway = load_gateway(values, folder)
    refuse_missing(values, load_applications(values, folder), gateway)
    for service in services:
        service.check()
    check_keep(services, KEEP_S)
    retention_of(values, services, KEEP_S)
    check_policies(values, services)
    runtime = RealRuntime()
    if gateway is not None:
        asyncio.run(check_gateway(gateway, values, RunDir(folder), runtime))
    mistakes = (
        *tls_mistakes(values, folder, runtime.wall_us() / 1e6),
        *export_mistakes(values, folder),
    )
    if wrong := "\n".join(mistakes):
        raise ConfigError(wrong)
    if found := contradictions(values, gateway, layers.is_written):
        raise refusal_of(found)
    for name in ("key", "accepted_key"):
        if reference := getattr(values.system, name):
            given_key(reference, folder, os.environ, name=f"system.{name}")
    check_engines(values, folder)
    named = {"system": values.system.name, "services": list(values.services)}
    if is_json:
        print_json(named)
        return 0
    print_line(f"{values.system.name}: all is right with {', '.join(values.services)}")
    if left_out := gateways_left_out(values):
        print_line(left_out)
    return 0
