"""`synchromesh saga`: the runs of sagas, and the history of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from synchromesh.cli import actions
from synchromesh.cli.output import print_json, print_line
from synchromesh.errors import ConfigError

FINDING = 1
NEED_PERSON = ("stuck", "waiting")


@click.group()
def saga() -> None:
    """Show the runs of sagas."""


@saga.command("list")
@click.option("--status", default="", help="Only runs of this status, such as stuck.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000))
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_runs(folder: Path, status: str, limit: int, is_json: bool) -> int:
    """List the runs of sagas, the newest first. Exits 1 when one is stuck, or waits for code."""
    runs = _newest(folder, status, limit)
    if is_json:
        print_json(runs)
    elif not runs:
        print_line(f"no saga is {status}" if status else "no saga was started yet")
    else:
        from synchromesh.cli.show import console, sagas_table

        console().print(sagas_table(runs))
    return FINDING if any(run["status"] in NEED_PERSON for run in runs) else 0


@saga.command("show")
@click.argument("saga_id", metavar="ID|last")
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def show_run(folder: Path, saga_id: str, is_json: bool) -> int:
    """Show one run: each step, attempt and undo, and why. Exits 1 when it is stuck, or waits."""
    if saga_id == "last":
        newest = _newest(folder, "", 1)
        if not newest:
            raise ConfigError("no saga has run yet")
        saga_id = newest[0]["id"]
    (story,) = actions.read(folder, "saga.show", id=saga_id).values()
    if is_json:
        print_json(story)
    else:
        from synchromesh.cli.show import console, print_story

        print_story(console(), story)
    return FINDING if story["status"] in NEED_PERSON else 0


def _newest(folder: Path, status: str, limit: int) -> list[dict[str, Any]]:
    answers = actions.read(folder, "saga.list", status=status, limit=limit)
    found = [run for runs in answers.values() for run in runs]
    return sorted(found, key=lambda run: str(run["started_at"]), reverse=True)[:limit]
