"""`synchromesh schedule`: when each schedule was done, and when it is due."""

from __future__ import annotations

from pathlib import Path

import click

from synchromesh.cli import actions
from synchromesh.cli.groups import CommandGroup
from synchromesh.cli.output import print_json, print_line

FINDING = 1


@click.group(cls=CommandGroup)
def schedule() -> None:
    """Show the schedules of services."""


@schedule.command("list")
@click.option("--service", default="", help="Only those of this service.")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_schedules(folder: Path, service: str, is_json: bool) -> int:
    """List schedules: when each was done last, and is next. Exits 1 when one failed."""
    answers = actions.read(folder, "schedule.list", service=service)
    found = [{"service": name, **each} for name, own in answers.items() for each in own]
    if is_json:
        print_json(found)
    elif not found:
        print_line("no service has a schedule")
    else:
        from rich.text import Text

        from synchromesh.cli.show import console, plain_table

        table = plain_table("schedule", "is due at", "zone", "last", "next", "failed")
        for each in found:
            table.add_row(
                f"{each['service']}.{each['name']}",
                Text(each["expression"]),
                each["zone"],
                each["last_at"],
                each["next_at"],
                Text(each["failed"]),
            )
        console().print(table)
    return FINDING if any(each["failed"] for each in found) else 0
