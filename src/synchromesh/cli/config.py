"""`synchromesh config`: explains every effective value, and checks the configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from synchromesh.cli.output import print_json, print_line


def settings_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--set` to a command that reads the configuration."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set a value, such as services.orders.port=8001; goes before environment and file.",
    )(command)


@click.group()
def config() -> None:
    """Explain and check the configuration."""


@config.command(short_help="Show every value in force, and what gave it.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def explain(folder: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Show every value in force, and whether default, file, environment or flag gave it.

    Of a secret its reference is shown, and it is not read.
    """
    import msgspec

    from synchromesh.system.config.reading import read_layers

    values, layers = read_layers(folder, environment=os.environ, flags=settings)
    in_force = layers.settings(values)
    if is_json:
        print_json(msgspec.to_builtins(in_force))
        return 0
    from rich.text import Text

    from synchromesh.cli.show import console, plain_table

    table = plain_table("setting", "value", "from")
    for setting in in_force:
        value = msgspec.json.encode(setting.value).decode()
        table.add_row(Text(setting.name), Text(value), Text(setting.place or setting.source))
    console().print(table)
    return 0


@config.command(short_help="Check all that it names; start nothing.")
@settings_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(folder: Path, settings: tuple[str, ...], is_json: bool) -> int:
    """Check the configuration, the definitions that it names, and its secrets; start nothing.

    Exits 2 with what is wrong.
    """
    import asyncio

    from synchromesh.runtime import RealRuntime
    from synchromesh.service import KEEP_S
    from synchromesh.system.config.definitions import (
        check_keep,
        load_gateway,
        load_opening,
        load_services,
    )
    from synchromesh.system.config.gateway_check import check_gateway
    from synchromesh.system.config.reading import read_layers
    from synchromesh.system.config.rundir import RunDir
    from synchromesh.system.config.secrets import given_key

    values, _ = read_layers(folder, environment=os.environ, flags=settings)
    services = load_services(values, folder)
    load_opening(values, folder)
    gateway = load_gateway(values, folder)
    for service in services:
        service.check()
    check_keep(services, KEEP_S)
    if gateway is not None:
        asyncio.run(check_gateway(gateway, values, RunDir(folder), RealRuntime()))
    if values.system.key:
        given_key(values.system.key, folder, os.environ)
    named = {"system": values.system.name, "services": list(values.services)}
    if is_json:
        print_json(named)
        return 0
    print_line(f"{values.system.name}: all is right with {', '.join(values.services)}")
    return 0
