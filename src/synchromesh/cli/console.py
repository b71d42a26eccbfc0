"""`synchromesh console`: another URL that lets a browser into the console."""

from __future__ import annotations

from pathlib import Path

import click

from synchromesh.cli.control import ControlClient
from synchromesh.cli.output import print_json, print_line


@click.command()
@click.option("--json", "is_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def console(folder: Path, is_json: bool) -> int:
    """Print a URL that lets one browser into the console of the running system, once.

    It shows what needs a person, services, traces and sagas, and does what the command line does.
    The browser stays in for a week, also after a restart.
    """
    answer = ControlClient(folder).post("/console", {})
    if is_json:
        print_json(answer)
    else:
        print_line(answer["url"])
    return 0
