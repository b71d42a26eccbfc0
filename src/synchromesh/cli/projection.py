"""`synchromesh projection`: how projections are; what is parked, built anew, or switched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from synchromesh.cli import actions
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line
from synchromesh.errors import ConfigError

FINDING = 1

_service = click.option("--service", default="", help="Whose, where several have one of this name.")
_generation = click.option("--generation", default=0, help="Which, where both are parked.")
_json = click.option("--json", "is_json", is_flag=True, help="Print JSON.")


@click.group(cls=CommandGroup)
def projection() -> None:
    """List, repair and rebuild the projections of services."""


@projection.command("list")
@click.option("--service", default="", help="Only those of this service.")
@_json
@click.pass_obj
def list_all(folder: Path, service: str, is_json: bool) -> int:
    """List projections: what they have reached, and where one is parked. Exits 1 when one is."""
    answers = actions.read(folder, "projection.list", service=service)
    found = [{"service": name, **each} for name, all_ in answers.items() for each in all_]
    if is_json:
        print_json(found)
    elif not found:
        print_line("no service has a projection")
    else:
        from synchromesh.cli.show import console, projections_table

        console().print(projections_table(found))
    return FINDING if any(each["parked"] for each in found) else 0


@projection.command()
@click.argument("name")
@_service
@_generation
@actions.why_option
@_json
@click.pass_obj
def retry(folder: Path, name: str, service: str, generation: int, why: str, is_json: bool) -> int:
    """Try a parked event once more. Exits 1 when it is parked again."""
    found = _repair(folder, "retry", name, service, why, generation=generation)
    if is_json:
        print_json(found)
    elif (parked := found["parked"]) is None:
        print_line(f"projection {name} goes on")
    else:
        where = f"event {parked['position']}" if parked["position"] else "the log"
        print_line(f"projection {name} is parked again at {where}: {parked['error']}")
    return FINDING if found["parked"] else 0


@projection.command()
@click.argument("name")
@click.option("--position", default=0, help="Of the event, so that no other one is skipped.")
@_service
@_generation
@actions.why_option
@_json
@click.pass_obj
def skip(
    folder: Path,
    name: str,
    position: int,
    service: str,
    generation: int,
    why: str,
    is_json: bool,
) -> int:
    """Leave out the event that a projection is parked at, and go on behind it.

    A rebuild leaves it out, too, unless it is told to try what was skipped.
    """
    found = _repair(folder, "skip", name, service, why, generation=generation, position=position)
    if is_json:
        print_json(found)
    else:
        skipped = found["skipped"]
        print_line(
            f"projection {name} has left out event {skipped['position']} ({skipped['name']}), and "
            "goes on"
        )
    return 0


@projection.command()
@click.argument("name")
@click.option("--retry-skipped", is_flag=True, help="Try the events that were skipped.")
@click.option("--without-removed", is_flag=True, help="Needs none of the events that were removed.")
@_service
@actions.why_option
@_json
@click.pass_obj
def rebuild(
    folder: Path,
    name: str,
    retry_skipped: bool,
    without_removed: bool,
    service: str,
    why: str,
    is_json: bool,
) -> int:
    """Build a projection anew, beside the running one, from the first event on."""
    found = _repair(
        folder,
        "rebuild",
        name,
        service,
        why,
        retry_skipped=retry_skipped,
        without_removed=without_removed,
    )
    if is_json:
        print_json(found)
        return 0
    left_out = f"; it leaves out what was skipped: {found['skipped']}" if found["skipped"] else ""
    print_line(
        f"generation {found['generation']} of projection {name} is being built; queries still read "
        f"the one before{left_out}\n"
        f"see how far it is: synchromesh projection list\n"
        f"then let queries read it: synchromesh projection switch {name} --why TEXT"
    )
    return 0


@projection.command()
@click.argument("name")
@_service
@actions.why_option
@_json
@click.pass_obj
def switch(folder: Path, name: str, service: str, why: str, is_json: bool) -> int:
    """Let queries read the other generation, and back by the same command.

    Both are kept up to date. Refused where the other one is parked, or more than a batch behind.
    """
    found = _repair(folder, "switch", name, service, why)
    if is_json:
        print_json(found)
    else:
        print_line(f"queries read generation {found['generation']} of projection {name}")
    return 0


@projection.command()
@click.argument("name")
@_service
@actions.why_option
@_json
@click.pass_obj
def drop(folder: Path, name: str, service: str, why: str, is_json: bool) -> int:
    """Drop the generation that queries do not read, and its tables."""
    found = _repair(folder, "drop", name, service, why)
    if is_json:
        print_json(found)
    else:
        print_line(f"generation {found['generation']} of projection {name} is gone")
    return 0


def _repair(
    folder: Path, act: str, name: str, service: str, why: str, **more: object
) -> dict[str, Any]:
    """Ask the one service that has the projection."""
    if not service and why.strip():
        answers = actions.read(folder, "projection.list")
        having = [each for each, all_ in answers.items() if any(p["name"] == name for p in all_)]
        if len(having) > 1:
            raise ConfigError(
                f"{', '.join(having)} each have a projection {name!r}; say whose: --service NAME"
            )
        service = having[0] if having else ""
    request: dict[str, Any] = {"service": service, "name": name, **more}
    (answer,) = actions.repair(folder, f"projection.{act}", why, **request).values()
    result: dict[str, Any] = answer
    return result
