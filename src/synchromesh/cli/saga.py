"""`synchromesh saga`: the runs of sagas, and the story of one."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlencode

import click
from rich.text import Text

from synchromesh.cli.control import ControlClient
from synchromesh.cli.show import console, moment, plain_table, print_json, print_story, styled

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
        console().print(f"no saga is {status}" if status else "no saga was started yet")
    else:
        table = plain_table("saga", "name", "status", "started", "ended", "owner", "reason")
        for column in table.columns:
            # The others have room for words on a narrow screen.
            column.no_wrap = column.header not in ("name", "reason")
        for run in runs:
            table.add_row(
                Text(run["id"]),
                f"{run['service']}.{run['name']}",
                styled(run["status"]),
                moment(run["started_at"]),
                moment(run["ended_at"]),
                Text(run["owner"]),
                Text(run["reason"]),
            )
        console().print(table)
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
        return FINDING if story["status"] == "stuck" else 0
    print_story(console(), story)
    return FINDING if story["status"] == "stuck" else 0
