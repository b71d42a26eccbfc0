"""`synchromesh saga`: the runs of sagas, and the history of one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlencode

import click

from synchromesh.cli.control import ControlClient
from synchromesh.cli.output import print_json, print_line

FINDING = 1


@click.group()
def saga() -> None:
    """Show the runs of sagas."""


@saga.command("list")
@click.option("--status", default="", help="Only runs of this status, such as stuck.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_runs(folder: Path, status: str, limit: int, is_json: bool) -> int:
    """List the runs of sagas, the newest first. Exits 1 when one is stuck."""
    query = urlencode({"status": status, "limit": limit})
    runs = ControlClient(folder).get(f"/sagas?{query}")["sagas"]
    if is_json:
        print_json(runs)
    elif not runs:
        print_line(f"no saga is {status}" if status else "no saga was started yet")
    else:
        from synchromesh.cli.show import console, sagas_table

        console().print(sagas_table(runs))
    return FINDING if any(run["status"] == "stuck" for run in runs) else 0


@saga.command("show")
@click.argument("saga_id", metavar="ID|last")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show_run(folder: Path, saga_id: str, is_json: bool) -> int:
    """Show one run: each step, attempt and undo, and why. Exits 1 when it is stuck."""
    story = ControlClient(folder).get(f"/sagas/{quote(saga_id, safe='')}")
    if is_json:
        print_json(story)
    else:
        from synchromesh.cli.show import console, print_story

        print_story(console(), story)
    return FINDING if story["status"] == "stuck" else 0
