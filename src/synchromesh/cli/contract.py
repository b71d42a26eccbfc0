"""`synchromesh contract`: the contracts of a release beside the code, and what a change breaks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line
from synchromesh.errors import ConfigError

if TYPE_CHECKING:
    from synchromesh.calls.description import ContractsOfPart

FINDING = 1
PLACE = Path("contracts/released")


def place_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--dir` to a command that knows the contracts of a release."""
    return click.option(
        "--dir",
        "place",
        default=PLACE,
        type=click.Path(path_type=Path, file_okay=False),
        show_default=True,
        help="Where the files are, below the system's folder.",
    )(command)


@click.group(cls=CommandGroup)
def contract() -> None:
    """Freeze the contracts of a release, and check what a change of them breaks for whom."""


@contract.command()
@place_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def freeze(folder: Path, place: Path, is_json: bool) -> int:
    """Write the contracts of all services and the gateway to files, for version control.

    Do so when a release goes out. What was frozen before is replaced.
    """
    from synchromesh.system.config.released import write_released

    today = _today(folder)
    write_released(folder / place, today)
    if is_json:
        print_json({name: part.offers.digests for name, part in today.items()})
    else:
        count = sum(len(part.offers.digests) for part in today.values())
        print_line(f"{count} operations and events of {', '.join(today)} are in {place}")
    return 0


@contract.command()
@place_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def diff(folder: Path, place: Path, is_json: bool) -> int:
    """Show each operation and event that is not as it was frozen. Exits 1 where there is one."""
    from synchromesh.system.config.contract_changes import changes

    found = changes(_released(folder, place), _today(folder))
    if is_json:
        print_json(found)
    else:
        for each in found:
            print_line(str(each))
            for said in each.breaks:
                print_line(f"  {said}")
        if not found:
            print_line("all contracts are as they were frozen")
    return FINDING if found else 0


@contract.command()
@place_option
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def check(folder: Path, place: Path, is_json: bool) -> int:
    """Check that services can be replaced one by one by those of today, and none breaks another.

    It is what `restart` does with the processes that run; here for continuous integration, with the
    contracts that were frozen. Exits 1 with a line for each thing that does not fit.
    """
    from synchromesh.system.config.contract_changes import breaks

    released = _released(folder, place)
    found = breaks(released, _today(folder))
    if is_json:
        print_json(found)
    elif found:
        for each in found:
            print_line(str(each))
        print_line(
            "make it in two steps that each fit: first add the new beside the old (a new field "
            "with a default), and release both sides; then take the old away"
        )
    else:
        print_line(f"all is right: {', '.join(released)} can be replaced one by one")
    return FINDING if found else 0


def _today(folder: Path) -> dict[str, ContractsOfPart]:
    from synchromesh.system.config.reading import read_layers
    from synchromesh.system.config.released import contracts_today

    config, _ = read_layers(folder, environment=os.environ, flags=())
    return contracts_today(config, folder)


def _released(folder: Path, place: Path) -> dict[str, ContractsOfPart]:
    from synchromesh.system.config.released import read_released

    found = read_released(folder / place)
    if not found:
        raise ConfigError(
            f"nothing is frozen in {folder / place}; freeze what is released with: synchromesh "
            "contract freeze"
        )
    return found
